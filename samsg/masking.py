"""From rollout to masked spectrogram (Section III-D, Fig. 3), and the loss on what was masked (Section IV-B)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from samsg.model import patchify
from samsg.settings import MaskSettings


def important_patches(
    heat: Tensor,
    threshold: float = 0.5,
    scale: Literal["max", "minmax"] = "max",
    select: Literal["threshold", "share"] = "threshold",
    share: float = 0.2,
    speech: Tensor | None = None,
) -> Tensor:
    """The patches that the model attends to: (B, 12, 99) -> bool (B, 12, 99).

    With select 'threshold', those whose scaled rollout is above the threshold; with select 'share', those with the
    highest rollout, this share of all, rounded down. ``speech``, bool (B, 12, 99), from ``speech_patches``: only these
    patches count and can be important; None: all. ``MaskSettings`` describes the options.
    """
    speech = torch.ones_like(heat, dtype=torch.bool) if speech is None else speech
    speech_heat = heat.masked_fill(~speech, -torch.inf)
    if select == "share":
        # 0.7 * 90 is 62.999... in floating point.
        return _highest_patches(speech_heat, (share * speech.sum((1, 2)).double() + 1e-6).long())
    maximum = speech_heat.amax((1, 2), keepdim=True)
    minimum = heat.masked_fill(~speech, torch.inf).amin((1, 2), keepdim=True) if scale == "minmax" else 0
    return (speech_heat - minimum) / (maximum - minimum).clamp(min=torch.finfo(heat.dtype).tiny) > threshold


def choose_patches(
    heat: Tensor, settings: MaskSettings, generator: torch.Generator, patch: int, stride: int, speech: Tensor
) -> Tensor:
    """The patches that the settings mask: (B, 12, 99) -> bool (B, 12, 99).

    Strategies: 'rollout', the important patches; 'random' patches, or those with the 'least' rollout, that cover the
    same area, at most one patch less and never more; 'none'. Area is the number of black cells, not of patches:
    overlapping patches that lie apart cover more than neighbours do.
    """
    speech = speech if settings.padding == "exclude" else torch.ones_like(speech)
    mask = important_patches(heat, settings.threshold, settings.scale, settings.select, settings.share, speech)
    if settings.strategy == "rollout":
        return mask
    if settings.strategy == "none":
        return torch.zeros_like(mask)
    values = -heat if settings.strategy == "least" else torch.rand(heat.shape, generator=generator).to(heat)
    return fill_area(values, speech, covered(mask, patch, stride), patch, stride)


def fill_area(values: Tensor, allowed: Tensor, area: Tensor, patch: int, stride: int) -> Tensor:
    """The allowed patches of largest value that cover at most ``area`` (B,) cells: (B, 12, 99) -> bool (B, 12, 99)."""
    values = values.masked_fill(~allowed, -torch.inf)
    low, high = torch.zeros_like(area), allowed.sum((1, 2))
    while (low < high).any():  # bisection: the area grows with every patch
        middle = (low + high + 1) // 2
        is_within_area = covered(_highest_patches(values, middle), patch, stride) <= area
        low, high = torch.where(is_within_area, middle, low), torch.where(is_within_area, high, middle - 1)
    return _highest_patches(values, low)


def _highest_patches(values: Tensor, counts: Tensor) -> Tensor:
    """The patches with the largest values, ``counts`` of each clip: (B, 12, 99), (B,) -> bool (B, 12, 99)."""
    order = values.flatten(1).argsort(dim=1, descending=True, stable=True)  # (B, N)
    return (order.argsort(dim=1) < counts[:, None]).view_as(values)


def speech_patches(spectrogram: Tensor, patch: int = 16, stride: int = 10) -> Tensor:
    """The patches that are not padding throughout: (B, 1, 128, 1001) -> bool (B, 12, 99)."""
    # Padding is digital silence: its cells have the lowest value of the spectrogram.
    maxima = F.max_pool2d(spectrogram, patch, stride)[:, 0]  # (B, 12, 99)
    return maxima > spectrogram.amin((1, 2, 3))[:, None, None]


def masked_cells(mask: Tensor, size: tuple[int, int], patch: int = 16, stride: int = 10) -> Tensor:
    """The cells that any masked patch covers: bool (B, 12, 99) -> bool (B, 1, 128, 1001)."""
    kernel = torch.ones(1, 1, patch, patch, device=mask.device)
    coverage = F.conv_transpose2d(mask[:, None].float(), kernel, stride=stride)  # (B, 1, 126, 996)
    return F.pad(coverage, (0, size[1] - coverage.shape[3], 0, size[0] - coverage.shape[2])) > 0


def covered(mask: Tensor, patch: int = 16, stride: int = 10) -> Tensor:
    """Number of cells that the masked patches cover, overlaps counted once: bool (B, 12, 99) -> (B,)."""
    rows, columns = ((size - 1) * stride + patch for size in mask.shape[1:])
    return masked_cells(mask, (rows, columns), patch, stride).sum((1, 2, 3))


def mask_spectrogram(spectrogram: Tensor, mask: Tensor, patch: int = 16, stride: int = 10, fill: float = 0.0) -> Tensor:
    """Replace the cells of masked patches by ``fill``, black: (B, 1, 128, 1001), bool (B, 12, 99) -> as the first."""
    height, width = spectrogram.shape[2:]
    return spectrogram.masked_fill(masked_cells(mask, (height, width), patch, stride), fill)


def partly_black(
    spectrogram: Tensor, heat: Tensor, share: float, patch: int = 16, stride: int = 10
) -> tuple[Tensor, Tensor]:
    """Deletion and insertion, by which a map (B, 12, 99) is tested: two copies, (B, 1, 128, 1001) each.

    In the first, the share of the speech where the map is highest is black, at most one patch less and never more; in
    the second, all other speech. Padding stays, and cells in which patches overlap count once.
    """
    speech, (height, width) = speech_patches(spectrogram, patch, stride), spectrogram.shape[2:]
    area = (share * covered(speech, patch, stride).double()).long()  # (B,) cells
    highest = fill_area(heat, speech, area, patch, stride)
    highest_cells, speech_cells = (masked_cells(mask, (height, width), patch, stride) for mask in (highest, speech))
    return spectrogram.masked_fill(highest_cells, 0), spectrogram.masked_fill(speech_cells & ~highest_cells, 0)


def reconstruction_error(
    reconstruction: Tensor, spectrogram: Tensor, mask: Tensor, patch: int = 16, stride: int = 10
) -> tuple[Tensor, Tensor]:
    """Mean squared error of each masked patch (SSAST, Gong et al. 2022 [43]), summed over these, and their number.

    Shapes: (B, 1188, 256) from the reconstruction head, (B, 1, 128, 1001) before masking, bool (B, 12, 99).
    """
    error = (reconstruction.float() - patchify(spectrogram, patch, stride)).square().mean(2)  # (B, N)
    weight = mask.flatten(1).to(error.dtype)  # (B, N)
    return (error * weight).sum(), weight.sum()
