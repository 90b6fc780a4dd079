"""The training step against transformers' AST of the same shape, and against the machine's own ceiling; where fused
attention begins to pay; stage iii's backward pass; how a step grows with tokens and model size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification

from benchmarks.measure import Row, ceiling, operations, row, seconds
from samsg.method.deit import SpectrogramDeiT
from samsg.training.loop import Examples, bf16_pays

BATCH = 4


class AST(nn.Module):
    """transformers' AST of the paper's shape, called as ours is."""

    def __init__(self) -> None:
        super().__init__()
        config = ASTConfig(num_labels=7, max_length=1001, num_mel_bins=128, frequency_stride=10, time_stride=10)
        self.ast = ASTForAudioClassification(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ast(x[:, 0].transpose(1, 2)).logits


def step(model: nn.Module, x: torch.Tensor, bf16: bool, fused: bool = True) -> Callable[[], Any]:
    """One step of classification: forward, backward, Adam."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=fused or None)
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    context = (lambda: torch.autocast(x.device.type, torch.bfloat16)) if bf16 else contextlib.nullcontext

    def call() -> None:
        with context():
            loss = F.cross_entropy(model(x).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def clips(device: str, frames: int = 1001) -> torch.Tensor:
    """(4, 1, 128, frames)."""
    return torch.rand(BATCH, 1, 128, frames, device=device)


def against_ast(device: str, times: int) -> list[Row]:
    """DeiT-base on 128 x 1001 in both precisions, and AST in both."""
    rows, x, taken = [], clips(device), {}
    cases: list[tuple[str, Callable[[], nn.Module], bool, bool]] = [
        ("this library, bf16", lambda: SpectrogramDeiT(7), True, True),
        ("transformers' AST, bf16", AST, True, True),
        ("this library, fp32", lambda: SpectrogramDeiT(7), False, True),
        ("transformers' AST, fp32 and plain Adam, its defaults", AST, False, False),
    ]
    for name, make, bf16, fused in cases:
        model = make().to(device).train()
        call = step(model, x, bf16, fused)
        taken[name] = seconds(call, device, times)
        rows.append(row("training step", f"{name}, DeiT-base, batch {BATCH}", taken[name], "s"))
        if name == "this library, bf16":
            count = operations(call)
            top = ceiling(device, torch.bfloat16)
            rows.append(row("training step", "operations of a step, counted", count / 1e12, "TFLOP"))
            rows.append(row("training step", "ceiling: fastest bf16 matrix product", top / 1e12, "TFLOP/s"))
            rows.append(row("training step", "fraction of the ceiling reached", count / taken[name] / top, ""))
        del model, call
    names = [name for name, *_ in cases]
    rows.append(row("training step", "AST / this library, both bf16", taken[names[1]] / taken[names[0]], "x"))
    rows.append(row("training step", "AST as it comes / this library", taken[names[3]] / taken[names[0]], "x"))
    examples = Examples(np.random.default_rng(0).random((4, 16, 128, 1001)).astype(np.float16), np.zeros(16, int), {})
    chosen = np.arange(BATCH)
    input_ = seconds(lambda: examples.batch(chosen, chosen, device), device, 20)
    share = input_ / taken[names[0]]
    rows.append(row("training step", "input of a batch, share of the step", share, "", f"{1000 * input_:.2f} ms"))
    return rows


def probe(device: str, times: int) -> list[Row]:
    """Operations of a step of stage iii, where all weights but CLS and one layer are frozen, and of stage i."""
    x, rows = clips(device, 161), []
    for name in ("stage i", "stage iii"):
        model = SpectrogramDeiT(7, size="tiny", n_frames=161).to(device)
        if name == "stage iii":
            model.requires_grad_(False)
            model.vit.cls_token.requires_grad_(True)
            model.emotion_head.requires_grad_(True)
        call = step(model, x, False)
        forward = operations(lambda model=model: model(x))
        rows.append(row("frozen weights", f"{name}, step / forward pass", operations(call) / forward, "x operations"))
        rows.append(row("frozen weights", f"{name}, DeiT-tiny, 161 frames", seconds(call, device, times), "s"))
    return rows


def growth(device: str, times: int) -> list[Row]:
    """A step by tokens (attention fused, and in separate steps) and by size."""
    rows, bf16 = [], bf16_pays(torch.device(device))
    for frames in (161, 321, 501, 1001):
        for way in ("fused", "in steps"):
            model = SpectrogramDeiT(7, size="tiny", depth=4, n_frames=frames).to(device)
            tokens = model.vit.pos_embed.shape[1]
            for block in model.vit.blocks:
                block.attn.fused_attn = way == "fused"
            taken = seconds(step(model, clips(device, frames), bf16), device, times)
            rows.append(row("growth", f"step, tiny of 4 blocks, {tokens} tokens, attention {way}", 1000 * taken, "ms"))
    for size in ("tiny", "small", "base"):
        model = SpectrogramDeiT(7, size=size, depth=4, n_frames=251).to(device)
        taken = seconds(step(model, clips(device, 251), bf16), device, times)
        rows.append(row("growth", f"step, {size} of 4 blocks, 290 tokens", 1000 * taken, "ms"))
    return rows


def compiled(device: str, times: int) -> list[Row]:
    """torch.compile on the demo's model: the step, and how long the first one takes; nothing without a C++ compiler."""
    x, rows = clips(device, 161), []
    model = SpectrogramDeiT(7, size="tiny", depth=4, n_frames=161).to(device)
    plain = seconds(step(model, x, True), device, times)
    started = time.perf_counter()
    try:
        call = step(torch.compile(model), x, True)
        call()
    except Exception as error:
        print(f"torch.compile cannot be measured here: {type(error).__name__}", flush=True)
        return rows
    first = time.perf_counter() - started
    taken = seconds(call, device, times)
    rows.append(
        row("torch.compile", "step, tiny of 4 blocks, 182 tokens, attention fused", taken / plain, "x plain step")
    )
    rows.append(row("torch.compile", "the first step, with its compilation", first, "s"))
    return rows


def run(device: str) -> list[Row]:
    """All of them."""
    quick = device != "cpu"
    return [
        *against_ast(device, 20 if quick else 3),
        *probe(device, 20),
        *growth(device, 20 if quick else 8),
        *compiled(device, 20),
    ]
