"""The training step against transformers' AST of the same shape and against the machine's ceiling; stage iii's backward
pass; how a step grows with tokens and model size, with fused attention and with attention in separate steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification

from benchmarks.measure import Row, ceiling, operations, row, seconds
from samsg.model import SpectrogramDeiT
from samsg.training import Examples, best_precision

BATCH = 4


class AST(nn.Module):
    """transformers' AST of the paper's shape, called as ours is."""

    def __init__(self) -> None:
        super().__init__()
        config = ASTConfig(num_labels=7, max_length=1001, num_mel_bins=128, frequency_stride=10, time_stride=10)
        self.ast = ASTForAudioClassification(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ast(x[:, 0].transpose(1, 2)).logits


def step(model: nn.Module, x: torch.Tensor, bf16: bool) -> Callable[[], Any]:
    """One step of classification: forward, cross-entropy, backward, Adam."""
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)
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
    """DeiT-base on 128 x 1001 and AST, both in both precisions."""
    rows, x, step_times = [], clips(device), {}
    for precision in ("bf16", "fp32"):
        for name, create_model in (("this library", lambda: SpectrogramDeiT(7)), ("transformers' AST", AST)):
            call = step(create_model().to(device).train(), x, precision == "bf16")
            step_times[name, precision] = seconds(call, device, times)
            case = f"{name}, {precision}, DeiT-base, batch {BATCH}"
            rows.append(row("training step", case, step_times[name, precision], "s"))
            if len(step_times) == 1:  # this library in bf16
                n_operations, rate = operations(call), ceiling(device, torch.bfloat16)
                fraction = n_operations / step_times[name, precision] / rate
                rows.append(row("training step", "operations of a step, counted", n_operations / 1e12, "TFLOP"))
                rows.append(row("training step", "ceiling: fastest bf16 matrix product", rate / 1e12, "TFLOP/s"))
                rows.append(row("training step", "fraction of the ceiling reached", fraction, ""))
            del call
        ratio = step_times["transformers' AST", precision] / step_times["this library", precision]
        rows.append(row("training step", f"AST / this library, both {precision}", ratio, "x"))
    spectrograms = np.random.default_rng(0).random((16, 4, 128, 1001)).astype(np.float16)
    examples = Examples(spectrograms, np.zeros(16, int), {}, np.arange(16))
    indices = np.arange(BATCH)
    loading = seconds(lambda: examples.batch(indices, indices, device), device, 20)
    share = loading / step_times["this library", "bf16"]
    rows.append(row("training step", "input of a batch, share of the step", share, "", f"{1000 * loading:.2f} ms"))
    return rows


def probe(device: str, times: int) -> list[Row]:
    """Operations of a step of stage i, and of stage iii, where all but CLS and one layer is frozen."""
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
    """A step by tokens, with both kinds of attention, and by size; in the precision that 'auto' takes here."""
    rows, bf16 = [], best_precision(torch.device(device)) == "bf16-mixed"
    for frames in (81, 161, 321, 501, 1001):
        for kind in ("fused", "in steps"):
            model = SpectrogramDeiT(7, size="tiny", depth=6, n_frames=frames).to(device)
            tokens = model.vit.pos_embed.shape[1]
            for block in model.vit.blocks:
                block.attn.fused_attn = kind == "fused"
            ms = 1000 * seconds(step(model, clips(device, frames), bf16), device, times)
            rows.append(row("growth", f"step, tiny of 6 blocks, {tokens} tokens, attention {kind}", ms, "ms"))
    for size in ("tiny", "small", "base"):
        model = SpectrogramDeiT(7, size=size, depth=6, n_frames=251).to(device)
        ms = 1000 * seconds(step(model, clips(device, 251), bf16), device, times)
        rows.append(row("growth", f"step, {size} of 6 blocks, 290 tokens", ms, "ms"))
    return rows


def run(device: str) -> list[Row]:
    """All of them."""
    has_gpu = device != "cpu"
    return [*against_ast(device, 20 if has_gpu else 3), *probe(device, 20), *growth(device, 20 if has_gpu else 8)]
