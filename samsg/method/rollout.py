"""Attention rollout (Section III-D, Eq. 6-7; Abnar & Zuidema 2020 [13]) without keeping attention maps.

Only one row of the rollout is used. With A = mean over heads, a row r moves through a layer as
r -> alpha r A + (1 - alpha) r, and r A needs no more than a slice of queries at a time: the softmax of the slice's
scores, weighted by r and summed. So nothing of size tokens x tokens is ever stored, where the explicit product keeps
12 layers x 12 heads x 1190 x 1190 numbers a clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from samsg.method.deit import SpectrogramDeiT
from samsg.settings import SamsgError

# Queries whose scores are held at once: small enough for a core's cache, large enough for the matrix units.
SLICE = 256


@contextmanager
def _attention_inputs(blocks: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Record what goes into each block's attention during one forward pass, and leave no trace."""
    inputs: list[Tensor] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
        for block in blocks
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _blocks_and_inputs(model: nn.Module, spectrogram: Tensor) -> tuple[list[nn.Module], list[Tensor]]:
    """The model's blocks, and what went into each one's attention (B, T, dim)."""
    vit = model.vit if isinstance(model, SpectrogramDeiT) else model
    blocks = list(getattr(vit, "blocks", []))
    if not blocks or not all(hasattr(getattr(block, "attn", None), "qkv") for block in blocks):
        raise SamsgError(f"Rollout needs a ViT whose blocks have attn.qkv, as timm's; got {type(vit).__name__}.")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _attention_inputs(blocks) as inputs:
            (model.tokens if isinstance(model, SpectrogramDeiT) else model.forward_features)(spectrogram)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return blocks, inputs


def _queries_and_keys(attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's queries (scaled) and keys, computed again from its input: (B, T, dim) -> 2 x (B, H, T, d)."""
    weight = attention.qkv.weight
    keep = 2 * (weight.shape[0] // 3)  # rows of the values are not needed
    bias = None if attention.qkv.bias is None else attention.qkv.bias[:keep]
    qk = nn.functional.linear(x, weight[:keep], bias)  # (B, T, 2 * dim)
    q, k = qk.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, d) each
    return attention.q_norm(q) * attention.scale, attention.k_norm(k)


def _row_times_attention(row: Tensor, attention: nn.Module, x: Tensor) -> Tensor:
    """r A with A = mean over heads of softmax(q k^T / sqrt d) (Eq. 4): (B, T), (B, T, dim) -> (B, T)."""
    q, k = _queries_and_keys(attention, x)
    k = k.transpose(-2, -1)  # (B, H, d, T)
    result = torch.zeros_like(row)
    # Queries of weight 0 in every row (all but one in the first layer taken) would add nothing.
    used = row.count_nonzero(0).nonzero().squeeze(1)
    for queries in used.split(SLICE):
        weights = (q[:, :, queries] @ k).float().softmax(-1)  # (B, H, S, T)
        result += torch.einsum("bs,bhst->bt", row[:, queries], weights) / weights.shape[1]
    return result


@torch.no_grad()
def attention_maps(model: nn.Module, spectrogram: Tensor) -> list[Tensor]:
    """Each layer's attention, averaged over heads: (B, 1, 128, 1001) -> L x (B, 1190, 1190), the first layer first.

    For looking at and for checking: ``rollout_row`` does without these maps. Errors as there.
    """
    blocks, inputs = _blocks_and_inputs(model, spectrogram)
    maps = []
    for block, x in zip(blocks, inputs, strict=True):
        q, k = _queries_and_keys(block.attn, x)
        maps.append((q @ k.transpose(-2, -1)).float().softmax(-1).mean(1))  # (B, T, T)
    return maps


@torch.no_grad()
def rollout_row(
    model: nn.Module,
    spectrogram: Tensor,
    alpha: float = 0.9,
    order: Literal["abnar", "printed"] = "abnar",
    token: Literal["cls", "mean"] = "cls",
    layers: int | None = None,
) -> Tensor:
    """One row of the attention rollout over all tokens: (B, 1, 128, 1001) -> (B, 1190), each row summing to 1.

    Args:
        model: a ``SpectrogramDeiT`` or any timm ViT with standard attention.
        spectrogram: the model's input.
        alpha: weight of the attention against the identity (Eq. 6).
        order: 'abnar' takes the row of A(L) ... A(1), as Abnar & Zuidema define it; 'printed' that of
            A(1) ... A(L), as Eq. 7 is printed.
        token: the row of CLS, or the 'mean' of the CLS and distillation rows.
        layers: how many of the last layers to roll out; None: all.

    Raises:
        SamsgError: the model has no blocks of standard attention.
    """
    blocks, inputs = _blocks_and_inputs(model, spectrogram)
    pairs = list(zip(blocks, inputs, strict=True))[-layers if layers else None :]
    if order == "abnar":
        pairs.reverse()
    first = 2 if token == "mean" else 1
    row = torch.zeros(inputs[0].shape[:2], device=spectrogram.device)  # (B, T)
    row[:, :first] = 1 / first
    for block, x in pairs:
        row = alpha * _row_times_attention(row, block.attn, x) + (1 - alpha) * row
    return row


def attention_rollout(
    model: SpectrogramDeiT,
    spectrogram: Tensor,
    alpha: float = 0.9,
    order: Literal["abnar", "printed"] = "abnar",
    token: Literal["cls", "mean"] = "cls",
    layers: int | None = None,
) -> Tensor:
    """The rollout laid out on the patch grid, its largest value 1: (B, 1, 128, 1001) -> (B, 12, 99).

    Arguments and errors are those of ``rollout_row``. With ``alpha=1, layers=1`` it is the raw attention of the last
    layer.
    """
    row = rollout_row(model, spectrogram, alpha, order, token, layers)
    heat = row[:, model.vit.num_prefix_tokens :].unflatten(1, model.grid)  # (B, 12, 99)
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
