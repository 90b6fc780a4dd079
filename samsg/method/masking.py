"""From rollout to masked spectrogram (Section III-D, Fig. 3), and the loss on what was masked (Section IV-B)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu
from torch import Tensor

from samsg.method.deit import patchify
from samsg.settings import MaskSettings


def important_patches(
    heat: Tensor,
    threshold: float = 0.5,
    scale: Literal["max", "minmax"] = "max",
    select: Literal["threshold", "share", "otsu"] = "threshold",
    share: float = 0.2,
) -> Tensor:
    """The patches that the model relies on: (B, 12, 99) -> bool (B, 12, 99).

    Args:
        heat: rollout with largest value 1, as ``attention_rollout`` returns it.
        threshold: 0.5 in the paper; patches above it.
        scale: 'max' compares the rollout as it is; 'minmax' stretches each clip's from its least value, 0, to its
            largest, 1, which tells patches apart where attention is nearly even. Rollout that is even throughout
            has no important patches then.
        select: 'threshold'; 'share', a fixed share of all patches, those with the most rollout; 'otsu', a threshold
            for each clip that best splits its rollout in two (Otsu 1979). The latter two adapt, as the paper's
            conclusion asks for, and do not depend on ``scale``.
        share: of all patches, rounded down.
    """
    if select == "share":
        return most(heat, torch.full(heat.shape[:-2], int(share * heat[0].numel()), device=heat.device))
    if select == "otsu":
        flat = heat.flatten(-2).cpu().numpy()  # (B, N)
        even = flat.min(-1) == flat.max(-1)
        thresholds = [row[0] if same else threshold_otsu(row) for row, same in zip(flat, even, strict=True)]
        return heat > torch.tensor(thresholds, device=heat.device, dtype=heat.dtype)[:, None, None]
    if scale == "minmax":
        least = heat.amin((-2, -1), keepdim=True)
        heat = (heat - least) / (heat.amax((-2, -1), keepdim=True) - least).clamp(min=torch.finfo(heat.dtype).tiny)
    return heat > threshold


def choose_patches(heat: Tensor, its: MaskSettings, generator: torch.Generator, patch: int, stride: int) -> Tensor:
    """The patches that a profile's settings mask, important ones or a control's: (B, 12, 99) -> bool (B, 12, 99).

    Arguments as ``control_patches``.
    """
    mask = important_patches(heat, its.threshold, its.scale, its.select, its.share)
    if its.strategy == "rollout":
        return mask
    return control_patches(its.strategy, heat, mask, generator, patch, stride)


def most(values: Tensor, counts: Tensor) -> Tensor:
    """As many patches of each clip as ``counts`` says, those with the largest values: (B, 12, 99), (B,) -> bool."""
    return (_ranks(values) < counts[:, None]).unflatten(-1, values.shape[-2:])


def _ranks(values: Tensor) -> Tensor:
    """0 for a clip's largest value, 1 for the next, ...: (B, 12, 99) -> (B, N)."""
    return values.flatten(-2).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def covered(mask: Tensor, patch: int = 16, stride: int = 10) -> Tensor:
    """How many cells the masked patches cover together, overlaps once: bool (B, 12, 99) -> (B,)."""
    rows, columns = ((size - 1) * stride + patch for size in mask.shape[-2:])
    return masked_cells(mask, (rows, columns), patch, stride).sum((1, 2, 3))


def control_patches(
    strategy: Literal["random", "least", "stripes", "none"],
    heat: Tensor,
    important: Tensor,
    generator: torch.Generator,
    patch: int = 16,
    stride: int = 10,
) -> Tensor:
    """Patches that cover the same area as the important ones, elsewhere: (B, 12, 99), bool (B, 12, 99) -> bool.

    The area is what becomes black: overlapping patches that lie apart cover more cells than as many that touch. Patches
    are taken in the strategy's order as long as they cover no more than the important ones do, so an area is met to
    less than one patch.

    Args:
        strategy: 'random' patches; those with the 'least' rollout; 'stripes' of neighbouring columns and then rows,
            half of the area each, at random places, as SpecAugment masks (Park et al., Interspeech 2019); 'none'.
        heat: rollout.
        important: the mask whose area is to be met.
        generator: of the random numbers, on the CPU.
        patch, stride: side of a patch and distance between neighbours, in cells.
    """
    if strategy == "none":
        return torch.zeros_like(important)
    area = covered(important, patch, stride)
    if strategy == "least":
        return _filled(-heat, area, patch, stride)
    if strategy == "random":
        return _filled(torch.rand(heat.shape, generator=generator).to(heat), area, patch, stride)
    rows, columns = heat.shape[-2:]
    first_row, first_column = (torch.randint(size, (len(heat), 1, 1), generator=generator) for size in (rows, columns))
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    # Patches in the order in which a stripe that grows to the right, or downwards, takes them.
    in_time = (column - first_column) % columns * rows + row  # (B, 12, 99)
    in_frequency = (row - first_row) % rows * columns + column
    upright = _filled(-in_time.float().to(heat), area // 2, patch, stride)
    order = in_frequency.float().to(heat).masked_fill(upright, -1.0)  # what is masked stays so
    return _filled(-order, area, patch, stride)


def _filled(values: Tensor, area: Tensor, patch: int, stride: int) -> Tensor:
    """Each clip's patches with the largest values, as many as cover no more than its area: -> bool (B, 12, 99)."""
    ranks, shape = _ranks(values), values.shape[-2:]
    low, high = torch.zeros_like(area), torch.full_like(area, ranks.shape[1])
    while (low < high).any():  # the area grows with every patch, so halving finds it
        middle = (low + high + 1) // 2
        fits = covered((ranks < middle[:, None]).unflatten(-1, shape), patch, stride) <= area
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle - 1)
    return (ranks < low[:, None]).unflatten(-1, shape)


def masked_cells(mask: Tensor, size: tuple[int, int], patch: int = 16, stride: int = 10) -> Tensor:
    """The cells that masked patches cover: bool (B, 12, 99) -> bool (B, 1, 128, 1001).

    Patches overlap; a cell is masked when any masked patch covers it. Cells beyond the last patch never are.
    """
    kernel = torch.ones(1, 1, patch, patch, device=mask.device)
    cover = F.conv_transpose2d(mask[:, None].float(), kernel, stride=stride)  # (B, 1, 126, 996)
    return F.pad(cover, (0, size[1] - cover.shape[3], 0, size[0] - cover.shape[2])) > 0


def mask_spectrogram(spectrogram: Tensor, mask: Tensor, patch: int = 16, stride: int = 10, fill: float = 0.0) -> Tensor:
    """Blacken patches: (B, 1, 128, 1001), bool (B, 12, 99) -> (B, 1, 128, 1001).

    Args:
        spectrogram: log-mel spectrograms.
        mask: patches to mask.
        fill: what masked cells become: 0, black, in the paper.
    """
    height, width = spectrogram.shape[2:]
    return spectrogram.masked_fill(masked_cells(mask, (height, width), patch, stride), fill)


def reconstruction_error(
    reconstruction: Tensor, spectrogram: Tensor, mask: Tensor, patch: int = 16, stride: int = 10
) -> tuple[Tensor, Tensor]:
    """Squared error of masked patches alone, as SSAST does it (Gong et al. 2022 [43]): its sum over patches, each the
    mean over its cells, and how many they are; one over the other is the loss.

    Args:
        reconstruction: (B, 1188, 256) from the reconstruction head.
        spectrogram: (B, 1, 128, 1001), as it was before masking.
        mask: bool (B, 12, 99).
    """
    error = (reconstruction.float() - patchify(spectrogram, patch, stride)).square().mean(-1)  # (B, N)
    weight = mask.flatten(1).to(error.dtype)  # (B, N)
    return (error * weight).sum(), weight.sum()


def assemble(patches: Tensor, size: tuple[int, int], patch: int = 16, stride: int = 10) -> Tensor:
    """Lay patches out as spectrograms, the mean where they overlap: (B, 1188, 256) -> (B, 1, 128, 1001).

    Cells beyond the last patch are 0.
    """
    columns = patches.transpose(1, 2)  # (B, 256, N)
    total = F.fold(columns, size, patch, stride=stride)
    count = F.fold(torch.ones_like(columns), size, patch, stride=stride)
    return total / count.clamp(min=1)
