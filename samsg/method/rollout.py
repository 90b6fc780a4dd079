"""Attention rollout (Section III-D, Eq. 6-7; Abnar & Zuidema 2020 [13]) without keeping attention maps.

Only one row of the rollout is used. With A = mean over heads, a row r moves through a layer as
r -> alpha r A + (1 - alpha) r, so nothing of size tokens x tokens need ever be stored, where the explicit product keeps
12 layers x 12 heads x 1190 x 1190 numbers a clip. What is stored is the input of each layer's attention.

With scores s = q k^T / sqrt d and n(i) = log sum_j exp s(i, j), which fused attention computes anyway,
(r A)(j) = sum_i r(i) exp(s(i, j) - n(i)), and that is the exponential of what fused attention computes for n when keys
and queries change places and log r(i) - n(i) is added to the scores. So a layer costs one more call of fused attention
on CPUs; elsewhere, and for scores with a bias, it is r times the softmax of a slice of the scores at a time.

Queries and keys are taken where a layer hands them to PyTorch's fused attention, whatever it does to them before
(norms, rotary embeddings) or adds to their scores: no kind of attention is written down here a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from samsg.method.deit import SpectrogramDeiT
from samsg.settings import SamsgError

# Bytes of scores that are held at once, where they are held: what keeps a GPU busy.
SLICE = 2**26
# What F.scaled_dot_product_attention calls on CPUs: (output, n), n in single precision, (B, H, T).
fused_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass
class _Call:
    """What a block's attention was called with, and the n of its scores if that was to be had."""

    arguments: tuple[Any, ...]  # (B, T, dim) first
    named: dict[str, Any]
    n: Tensor | None = None  # (B, H, T)


class _Scores(NamedTuple):
    """What a layer's scores are made of: scale * q k^T + bias."""

    q: Tensor  # (B, H, T, d)
    k: Tensor  # (B, H, T, d)
    bias: Tensor | None  # added, or boolean: true where attention may go
    scale: float

    @classmethod
    def of(cls, q: Tensor, k: Tensor, _: Tensor, attn_mask: Tensor | None = None, **named: Any) -> _Scores:
        """From the arguments of F.scaled_dot_product_attention."""
        return cls(q, k, attn_mask, named.get("scale") or q.shape[-1] ** -0.5)

    def softmax(self, queries: slice) -> Tensor:
        """The attention of some queries in single precision: -> (B, H, S, T)."""
        scores = (self.scale * self.q[:, :, queries]) @ self.k.transpose(-2, -1)
        if self.bias is not None:
            bias = self.bias.expand(*scores.shape[:2], self.q.shape[2], -1)[:, :, queries]
            scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
        return scores.softmax(-1, dtype=torch.float32)


class _KeepNormalizers(TorchFunctionMode):
    """Keeps the n of every call of fused attention in the last of ``calls``."""

    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function is F.scaled_dot_product_attention and self.calls:
            scores = _Scores.of(*arguments, **named)
            if scores.q.device.type == "cpu" and scores.bias is None and not named.get("is_causal"):
                out, self.calls[-1].n = fused_on_cpu(*arguments[:3], scale=scores.scale)
                return out
        return function(*arguments, **named)


class _Caught(Exception):  # noqa: N818 - it ends a call where that is wanted
    def __init__(self, scores: _Scores) -> None:
        self.scores = scores


class _CatchScores(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            raise _Caught(_Scores.of(*arguments, **(named or {})))
        return function(*arguments, **(named or {}))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _calls(model: nn.Module, spectrogram: Tensor) -> list[tuple[nn.Module, _Call]]:
    """Every block's attention, and what it is called with in a forward pass, which leaves no trace on the model."""
    vit: Any = model.vit if isinstance(model, SpectrogramDeiT) else model
    layers: list[Any] = [getattr(block, "attn", None) for block in getattr(vit, "blocks", [])]
    if not layers or not all(isinstance(layer, nn.Module) for layer in layers):
        raise SamsgError(f"Rollout needs a ViT whose blocks have an attn, as timm's; got {type(vit).__name__}.")
    if getattr(vit, "num_prefix_tokens", 0) < 1:
        raise SamsgError(f"Rollout is that of a CLS token, and this {type(vit).__name__} has none.")
    calls: list[_Call] = []

    def record(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(_Call(arguments, named))

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        with _evaluating(model), _KeepNormalizers(calls):
            (model.tokens if isinstance(model, SpectrogramDeiT) else vit.forward_features)(spectrogram)
    finally:
        for hook in hooks:
            hook.remove()
    return list(zip(layers, calls, strict=True))


def _scores(attention: Any, call: _Call) -> _Scores:
    """Call a layer's attention again, up to where it would attend."""
    fused = getattr(attention, "fused_attn", True)
    attention.fused_attn = True
    try:
        with _CatchScores():
            attention.forward(*call.arguments, **call.named)  # without its hooks
    except _Caught as caught:
        return caught.scores
    finally:
        attention.fused_attn = fused
    raise SamsgError(f"Rollout needs attention by F.scaled_dot_product_attention; {type(attention).__name__} has none.")


def _row_times_attention(row: Tensor, scores: _Scores, n: Tensor | None) -> Tensor:
    """r A with A = mean over heads of softmax(q k^T / sqrt d) (Eq. 4): (B, T) -> (B, T)."""
    (clips, tokens), heads = row.shape, scores.k.shape[1]
    # A unit row has all its weight on the first tokens: the other queries would add nothing.
    used = tokens if bool(row[:, -1].any()) else int(row.any(0).nonzero().max()) + 1
    if n is not None:
        q, k = scores.q[:, :, :used], scores.k
        added = (row[:, None, :used].log() - n[..., :used])[:, :, None].contiguous()  # (B, H, 1, S)
        exponent = fused_on_cpu(k, q, q, attn_mask=added, scale=scores.scale)[1]  # (B, H, T)
        return exponent.exp().mean(1)
    step, total = max(1, SLICE // (4 * clips * heads * tokens)), torch.zeros((), device=row.device)
    for start in range(0, used, step):
        queries = slice(start, min(start + step, used))
        weights = scores.softmax(queries)  # (B, H, S, T)
        with torch.autocast(row.device.type, enabled=False):
            total = total + row[:, None, None, queries] @ weights  # (B, H, 1, T)
    return total.mean((1, 2))


@torch.no_grad()
def attention_maps(model: nn.Module, spectrogram: Tensor) -> list[Tensor]:
    """Each layer's attention, averaged over heads: (B, 1, 128, 1001) -> L x (B, 1190, 1190), the first layer first.

    For looking at and for checking: ``rollout_row`` does without these maps. Errors as there.
    """
    return [_scores(*layer).softmax(slice(None)).mean(1) for layer in _calls(model, spectrogram)]  # (B, T, T) each


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
        model: a ``SpectrogramDeiT`` or any ViT of timm with a CLS token and fused attention.
        spectrogram: the model's input.
        alpha: weight of the attention against the identity (Eq. 6).
        order: 'abnar' takes the row of A(L) ... A(1), as Abnar & Zuidema define it; 'printed' that of
            A(1) ... A(L), as Eq. 7 is printed.
        token: the row of CLS, or the 'mean' of the CLS and distillation rows.
        layers: how many of the last layers to roll out; None: all.

    Raises:
        SamsgError: the model has no CLS token, no distillation token to take the mean with, or other attention.
    """
    calls = _calls(model, spectrogram)[-layers if layers else None :]
    if order == "abnar":
        calls.reverse()
    first = 2 if token == "mean" else 1
    x = calls[0][1].arguments[0]  # (B, T, dim)
    vit: Any = model.vit if isinstance(model, SpectrogramDeiT) else model
    if first > vit.num_prefix_tokens:
        raise SamsgError("The mean of the CLS and distillation rows was asked for; this model has no second token.")
    row = torch.zeros(x.shape[:2], device=x.device)  # (B, T)
    row[:, :first] = 1 / first
    for attention, call in calls:
        row = alpha * _row_times_attention(row, _scores(attention, call), call.n) + (1 - alpha) * row
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
