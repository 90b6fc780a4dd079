"""From rollout to masked spectrogram (Section III-D, Fig. 3), and the loss on what was masked (Section IV-B)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu
from torch import Tensor

from samsg.method.deit import patchify


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


def most(values: Tensor, counts: Tensor) -> Tensor:
    """As many patches of each clip as ``counts`` says, those with the largest values: (B, 12, 99), (B,) -> bool."""
    ranks = values.flatten(-2).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # (B, N)
    return (ranks < counts[:, None]).unflatten(-1, values.shape[-2:])


def control_patches(
    strategy: Literal["random", "least", "stripes", "none"], heat: Tensor, counts: Tensor, generator: torch.Generator
) -> Tensor:
    """As many patches of each clip as ``counts`` says, but not the important ones: (B, 12, 99), (B,) -> bool.

    Args:
        strategy: 'random' patches; those with the 'least' rollout; 'stripes' of neighbouring columns and rows, half of
            the patches each, at random places, as SpecAugment masks (Park et al., Interspeech 2019); 'none'.
        heat: rollout.
        counts: how many patches of each clip.
        generator: of the random numbers, on the CPU.
    """
    if strategy == "none":
        return torch.zeros_like(heat, dtype=torch.bool)
    if strategy == "least":
        return most(-heat, counts)
    if strategy == "random":
        return most(torch.rand(heat.shape, generator=generator).to(heat), counts)
    rows, columns = heat.shape[-2:]
    masks = []
    for count in counts.tolist():
        row, column = (int(torch.randint(size, (), generator=generator)) for size in (rows, columns))
        # Patches in the order in which a stripe that grows to the right, or downwards, takes them.
        of_time = (torch.arange(columns) - column) % columns * rows + torch.arange(rows)[:, None]  # (12, 99)
        of_frequency = (torch.arange(rows) - row)[:, None] % rows * columns + torch.arange(columns)
        mask = of_time < count // 2
        left = of_frequency.masked_fill(mask, rows * columns)
        masks.append(mask | most(-left[None].float(), torch.tensor([count - count // 2]))[0])
    return torch.stack(masks).to(heat.device)


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
    return spectrogram.masked_fill(masked_cells(mask, spectrogram.shape[2:], patch, stride), fill)


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
