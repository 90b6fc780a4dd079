"""One row of the attention rollout (Section III-D, Eq. 6-7) in three readings, and two maps to compare with.

Abnar & Zuidema (ACL 2020) [13] mix each layer's attention A_raw, averaged over heads, with the identity, which stands
for the residual connection, A = alpha A_raw + (1 - alpha) I (Eq. 6), and multiply the layers (Eq. 7). Only the row of
CLS is used, and a row r passes through a layer as r A = alpha r A_raw + (1 - alpha) r. So neither the product nor the
attention maps (816 MB a clip) are kept, but the input of each layer's attention. Queries and keys are computed from it
again, and attention for a few queries at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from samsg.model import SpectrogramDeiT
from samsg.settings import SamsgError, check_name

Reading = Literal["output_to_input", "as_printed", "discard", "last_layer", "gradient"]
READINGS: tuple[Reading, ...] = ("output_to_input", "as_printed", "discard")  # without the two for comparison
Token = Literal["cls", "mean"]
SLICE = 2**22  # attention weights computed at once, 16 MB; benchmarks/rollout.py measures time and memory at this size


@torch.no_grad()
def rollout_row(
    model: nn.Module,
    spectrogram: Tensor,
    alpha: float = 0.9,
    reading: Reading = "output_to_input",
    token: Token | Tensor = "cls",
    discard_ratio: float = 0.9,
    target: Tensor | None = None,
) -> Tensor:
    """One row of the attention rollout over all tokens: (B, 1, 128, 1001) -> (B, 1190), each row sums to 1.

    Readings: 'output_to_input', of A(L) ... A(1), as Abnar & Zuidema define it; 'as_printed', of A(1) ... A(L), as
    Eq. 7 is printed; 'discard', of A(L) ... A(1) with vit-explain's A (``discard_lowest``). For comparison:
    'last_layer', its attention alone; 'gradient', attention times its gradient (``positive_relevance``) for the class
    ``target``, (B,), or for the predicted one. ``token``: the row, 'cls' or 'mean', or the number of a token for each
    clip, (B,). For the other options see ``RolloutSettings``.

    The model is a ``SpectrogramDeiT``, or any ViT of timm with a CLS token and standard attention. SamsgError for
    another one, and for an unknown reading or token.
    """
    check_name("reading of the rollout", reading, get_args(Reading))
    if isinstance(token, str):
        check_name("row of the rollout", token, get_args(Token))
    if token == "mean" and getattr(getattr(model, "vit", model), "dist_token", None) is None:
        raise SamsgError("The mean of the CLS and distillation rows needs a model with a distillation token.")
    inputs = _attention_inputs(model, spectrogram)
    if reading == "last_layer":
        alpha, inputs = 1.0, inputs[-1:]
    x = inputs[0][1]  # (B, T, dim), for B, T and the device
    token_indices = token[:, None] if isinstance(token, Tensor) else torch.tensor([[0, 1] if token == "mean" else [0]])
    row = F.one_hot(token_indices.to(x.device), x.shape[1]).float().mean(1).expand(len(x), -1)  # (B, T): 1 at CLS
    if reading == "gradient":
        for relevance in reversed(positive_relevance(model, spectrogram, target)):
            row = row + (row[:, None] @ relevance)[:, 0]  # r (I + relevance): Chefer et al., Eq. 6
        return row / row.sum(1, keepdim=True)
    layers = inputs if reading == "as_printed" else inputs[::-1]  # r A(1) ... A(L) (Eq. 7), or r A(L) ... A(1)
    for attention, x in layers:
        if reading == "discard":
            weights = discard_lowest(_mean_attention(attention, x), discard_ratio)  # (B, T, T)
            row = row / (weights.sum(2) + 1)  # a row of (A + I) / 2 is divided by its sum
            row = (row[:, :, None] * weights).sum(1) + row
        else:
            row = alpha * _row_times_attention(row, attention, x) + (1 - alpha) * row  # r A (Eq. 6)
    return row


def attention_rollout(
    model: SpectrogramDeiT, spectrogram: Tensor, alpha: float = 0.9, reading: Reading = "output_to_input", **rest: Any
) -> Tensor:
    """``rollout_row`` (``rest``: its other options) at the patches, divided by its maximum: -> (B, 12, 99)."""
    row = rollout_row(model, spectrogram, alpha, reading, **rest)
    heat = row[:, 2:].unflatten(1, model.grid)  # (B, 12, 99)
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)


@torch.no_grad()
def attention_maps(model: nn.Module, spectrogram: Tensor) -> list[Tensor]:
    """Attention of each layer, averaged over heads: (B, 1, 128, 1001) -> L x (B, 1190, 1190), first layer first."""
    return [_mean_attention(attention, x) for attention, x in _attention_inputs(model, spectrogram)]


def discard_lowest(attention: Tensor, ratio: float) -> Tensor:
    """Set the lowest share of each clip's entries, rounded down, to 0, except CLS's to itself: (B, T, T) -> (B, T, T).

    As https://github.com/jacobgil/vit-explain does. Its code then divides column j, not row j, by the sum of row j,
    because that sum lacks ``keepdim``; here rows are divided.
    """
    entries = attention.flatten(1)  # (B, T * T)
    lowest_indices = entries.topk(int(ratio * entries.shape[1]), largest=False, sorted=False).indices
    result = entries.scatter(1, lowest_indices, 0)
    result[:, 0] = entries[:, 0]
    return result.view_as(attention)


def positive_relevance(model: Any, spectrogram: Tensor, target: Tensor | None = None) -> list[Tensor]:
    """Each layer's attention times its gradient for a class, positive parts averaged over heads (Chefer et al., CVPR
    2021, Eq. 5): (B, 1, 128, 1001), (B,) -> L x (B, 1190, 1190). It keeps all attention maps."""
    maps: list[Tensor] = []
    layers = [block.attn for block in getattr(model, "vit", model).blocks]
    hooks = [layer.attn_drop.register_forward_hook(lambda _, __, output: maps.append(output)) for layer in layers]
    with torch.enable_grad(), _inspection(model, hooks):
        for layer in layers:
            layer.fused_attn = False  # fused attention has no map to hook
        logits = model(spectrogram.detach().requires_grad_())  # (B, C)
        classes = logits.argmax(1) if target is None else target  # (B,)
        gradients = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps)
    return [(weights * grad).clamp(min=0).mean(1).detach() for weights, grad in zip(maps, gradients, strict=True)]


def _attention_inputs(model: nn.Module, spectrogram: Tensor) -> list[tuple[Attention, Tensor]]:
    """Each block's attention and its input (B, T, dim) in a forward pass, first block first."""
    vit: Any = getattr(model, "vit", model)
    layers: list[Any] = [getattr(block, "attn", None) for block in getattr(vit, "blocks", [])]
    if getattr(vit, "cls_token", None) is None or any(type(layer) is not Attention for layer in layers):
        raise SamsgError(f"Rollout needs a CLS token and timm's standard attention; got {type(vit).__name__}.")
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])) for layer in layers]
    with _inspection(model, hooks):
        (model.tokens if isinstance(model, SpectrogramDeiT) else vit.forward_features)(spectrogram)
    return list(zip(layers, inputs, strict=True))


@contextmanager
def _inspection(model: nn.Module, hooks: list[Any]) -> Iterator[None]:
    """A forward pass in eval mode; then hooks are removed, and modules' attributes (training, fused_attn) put back."""
    modules = [(module, vars(module).copy()) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, attributes in modules:
            vars(module).update(attributes)


def _attention_slices(attention: Any, x: Tensor, n_queries: int) -> Iterator[tuple[slice, Tensor]]:
    """The softmax of Eq. 4 for the first ``n_queries`` in slices, single precision: yields slices and (B, H, S, T)."""
    size = 2 * attention.attn_dim  # queries and keys come before values
    bias = attention.qkv.bias
    qk = F.linear(x, attention.qkv.weight[:size], None if bias is None else bias[:size])  # (B, T, 2 * dim)
    q, k = qk.unflatten(2, (2, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)  # (B, H, T, d) each
    q, k = attention.q_norm(q) * attention.scale, attention.k_norm(k).transpose(2, 3)
    step = max(1, SLICE // q[..., 0].numel())
    for start in range(0, n_queries, step):
        queries = slice(start, min(start + step, n_queries))
        yield queries, (q[:, :, queries] @ k).softmax(3, dtype=torch.float32)


def _mean_attention(attention: Any, x: Tensor) -> Tensor:
    """Attention averaged over heads: (B, T, dim) -> (B, T, T)."""
    return torch.cat([weights.mean(1) for _, weights in _attention_slices(attention, x, x.shape[1])], 1)


def _row_times_attention(row: Tensor, attention: Any, x: Tensor) -> Tensor:
    """r A_raw, the attention averaged over heads: (B, T), (B, T, dim) -> (B, T)."""
    # The first row has weight on CLS and DIST alone: the other queries would add nothing.
    n_queries = row.shape[1] if bool(row[:, 2:].any()) else 2
    total = torch.zeros_like(row)
    for queries, weights in _attention_slices(attention, x, n_queries):
        with torch.autocast(row.device.type, enabled=False):
            total += (row[:, None, None, queries] @ weights).mean((1, 2))
    return total
