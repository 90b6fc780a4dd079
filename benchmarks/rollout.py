"""Rollout on the paper's shape (DeiT-base, 128 x 1001) against a plain forward pass and against the explicit product.

The explicit product is what the widely used implementations do: fused attention off, a hook that keeps every layer's
attention of every head, then the mean over heads and a product of 1190 x 1190 matrices.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys

import torch
from scipy.stats import spearmanr

from benchmarks.measure import Row, peak, row, seconds
from samsg.model import SpectrogramDeiT
from samsg.rollout import READINGS, discard_lowest, rollout_row


def model_and_clip(device: str) -> tuple[SpectrogramDeiT, torch.Tensor]:
    """DeiT-base that attends to some tokens more than to others, and a spectrogram (1, 1, 128, 1001)."""
    torch.manual_seed(0)
    model = SpectrogramDeiT(n_classes=7, size="base").eval().to(device)
    with torch.no_grad():
        model.vit.pos_embed.mul_(10)
        for block in model.vit.blocks:
            block.attn.qkv.weight.mul_(4)
    return model, torch.rand(1, 1, 128, 1001, generator=torch.Generator().manual_seed(0)).to(device)


@torch.no_grad()
def explicit(model: SpectrogramDeiT, x: torch.Tensor, reading: str, alpha: float = 0.9) -> torch.Tensor:
    """The CLS row of the product of all layers: (B, 1190)."""
    maps, hooks = [], []
    for block in model.vit.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, weights: maps.append(weights)))
    model.tokens(x)
    for block, hook in zip(model.vit.blocks, hooks, strict=True):
        block.attn.fused_attn = True
        hook.remove()
    identity = torch.eye(maps[0].shape[-1], device=x.device)
    product = identity.expand(len(x), -1, -1)
    for weights in maps:
        layer = weights.float().mean(1)
        if reading == "discard":
            layer = discard_lowest(layer, 0.9) + identity
            layer = layer / layer.sum(2, keepdim=True)
        else:
            layer = alpha * layer + (1 - alpha) * identity
        product = product @ layer if reading == "as_printed" else layer @ product
    return product[:, 0]


def extra_memory(device: str, method: str, reading: str) -> float:
    """Bytes at the peak of a rollout, beyond the peak of a plain forward pass in the same process."""
    model, x = model_and_clip(device)
    with torch.no_grad():
        model.tokens(x)
        model.tokens(x)
    forward_peak = peak(device)
    if method == "explicit":
        explicit(model, x, reading)
    else:
        rollout_row(model, x, reading=reading)
    return peak(device) - forward_peak


def in_own_process(device: str, method: str, reading: str) -> float:
    """``extra_memory`` in a fresh process whose allocator returns freed memory at once: fragments would add to it."""
    code = f"from benchmarks.rollout import extra_memory; print(extra_memory({device!r}, {method!r}, {reading!r}))"
    allocator = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command, environment = [sys.executable, "-c", code], {**os.environ, **allocator}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def run(device: str) -> list[Row]:
    """Time, memory and agreement of each reading."""
    model, x = model_and_clip(device)
    rows, maps = [], 12 * 12 * 1190**2 * 4
    for name, precision in (("fp32", None), ("bf16", torch.bfloat16)):
        for reading in READINGS:
            reference = explicit(model, x, reading)
            context = torch.autocast(device, precision) if precision else contextlib.nullcontext()
            calls = [
                lambda: model.tokens(x),
                lambda reading=reading: rollout_row(model, x, reading=reading),
                lambda reading=reading: explicit(model, x, reading),
            ]
            with torch.no_grad(), context:
                # One after the other in each round: other work on the machine slows all three.
                rounds = [[seconds(call, device, times=1) for call in calls] for _ in range(5)]
                forward, library, product = (statistics.median(column) for column in zip(*rounds, strict=True))
                result = rollout_row(model, x, reading=reading)
            case = f"{name}, {reading}"
            rows.append(row("rollout", f"{case}, plain forward pass", forward, "s"))
            rows.append(row("rollout", f"{case}, this library", library / forward, "x forward", f"{library:.3f} s"))
            rows.append(row("rollout", f"{case}, explicit product", product / forward, "x forward", f"{product:.3f} s"))
            error = float((result - reference).abs().max() / reference.max())
            rows.append(row("rollout", f"{case}, largest difference from the product in fp32", error, "of maximum"))
            rank = float(spearmanr(result[0].cpu(), reference[0].cpu()).statistic)
            rows.append(row("rollout", f"{case}, rank correlation with it", rank, ""))
    rows.append(row("rollout", "fp32, all attention maps of a clip", maps / 1e6, "MB"))
    for reading in READINGS:
        for method in ("this library", "explicit"):
            memory = in_own_process(device, method, reading)
            case = f"fp32, {reading}, extra peak memory, {method}"
            rows.append(row("rollout", case, memory / 1e6, "MB", f"{memory / maps:.3f} of the maps"))
    return rows
