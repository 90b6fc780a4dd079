"""Rollout on the paper's shape (DeiT-base, 128 x 1001) against a plain forward pass and against the explicit product.

The explicit product is what the widely used implementations do: fused attention off, a hook that keeps every layer's
attention of every head, then the mean over heads and a product of 1190 x 1190 matrices.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import torch
from scipy.stats import spearmanr

from benchmarks.measure import Row, peak, row, seconds
from samsg.method.deit import SpectrogramDeiT
from samsg.method.rollout import rollout_row


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
def explicit(model: SpectrogramDeiT, x: torch.Tensor, alpha: float = 0.9) -> torch.Tensor:
    """The CLS row of A(L) ... A(1): (B, 1190)."""
    maps, hooks = [], []
    for block in model.vit.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, weights: maps.append(weights)))
    model.tokens(x)
    for block, hook in zip(model.vit.blocks, hooks, strict=True):
        block.attn.fused_attn = True
        hook.remove()
    product = torch.eye(maps[0].shape[-1], device=x.device).expand(len(x), -1, -1)
    identity = product
    for weights in maps:
        product = (alpha * weights.float().mean(1) + (1 - alpha) * identity) @ product
    return product[:, 0]


def extra_memory(device: str, which: str) -> float:
    """Bytes at the peak of a rollout, beyond the peak of a plain forward pass in the same process."""
    model, x = model_and_clip(device)
    with torch.no_grad():
        model.tokens(x)
        model.tokens(x)
    before = peak(device)
    (explicit if which == "explicit" else rollout_row)(model, x)
    return peak(device) - before


def in_own_process(device: str, which: str) -> float:
    """``extra_memory`` where nothing else has used memory before, and where the allocator keeps none for later: glibc's
    fragments would add to either."""
    code = f"from benchmarks.rollout import extra_memory; print(extra_memory({device!r}, {which!r}))"
    allocator = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command, environment = [sys.executable, "-c", code], {**os.environ, **allocator}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def run(device: str) -> list[Row]:
    """Time, memory and agreement."""
    model, x = model_and_clip(device)
    rows, exact = [], explicit(model, x)
    for name, precision in (("fp32", None), ("bf16", torch.bfloat16)):
        context = torch.autocast(device, precision) if precision else contextlib.nullcontext()
        with torch.no_grad(), context:
            plain = seconds(lambda: model.tokens(x), device)
            ours, theirs = (seconds(lambda f=f: f(model, x), device) for f in (rollout_row, explicit))
            found = rollout_row(model, x)
        rows.append(row("rollout", f"{name}, plain forward pass", plain, "s"))
        rows.append(row("rollout", f"{name}, this library", ours / plain, "x forward", f"{ours:.3f} s"))
        rows.append(row("rollout", f"{name}, explicit product", theirs / plain, "x forward", f"{theirs:.3f} s"))
        error = float((found - exact).abs().max() / exact.max())
        rank = float(spearmanr(found[0].cpu(), exact[0].cpu()).statistic)
        rows.append(row("rollout", f"{name}, largest difference from the product in fp32", error, "of maximum"))
        rows.append(row("rollout", f"{name}, rank correlation with it", rank, ""))
    maps = 12 * 12 * 1190**2 * 4
    rows.append(row("rollout", "fp32, all attention maps of a clip", maps / 1e6, "MB"))
    for which in ("this library", "explicit"):
        memory = in_own_process(device, which)
        note = f"{memory / maps:.3f} of the maps"
        rows.append(row("rollout", f"fp32, extra peak memory, {which}", memory / 1e6, "MB", note))
    return rows
