"""From rollout to masked spectrogram (Section III-D, Fig. 3), and the loss on what was masked (Section IV-B)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from samsg.method.deit import patchify


def important_patches(heat: Tensor, threshold: float = 0.5, scale: Literal["max", "minmax"] = "max") -> Tensor:
    """The patches that the model relies on: (B, 12, 99) -> bool (B, 12, 99), true above the threshold.

    Args:
        heat: rollout with largest value 1, as ``attention_rollout`` returns it.
        threshold: 0.5 in the paper.
        scale: 'max' compares the rollout as it is; 'minmax' stretches each clip's from its least value, 0, to its
            largest, 1, which tells patches apart where attention is nearly even. Rollout that is even throughout
            has no important patches then.
    """
    if scale == "minmax":
        least = heat.amin((-2, -1), keepdim=True)
        heat = (heat - least) / (heat.amax((-2, -1), keepdim=True) - least).clamp(min=torch.finfo(heat.dtype).tiny)
    return heat > threshold


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


def reconstruction_loss(
    reconstruction: Tensor, spectrogram: Tensor, mask: Tensor, patch: int = 16, stride: int = 10
) -> Tensor:
    """Mean squared error over the cells of masked patches alone, as SSAST does it (Gong et al. 2022 [43]).

    Args:
        reconstruction: (B, 1188, 256) from the reconstruction head.
        spectrogram: (B, 1, 128, 1001), as it was before masking.
        mask: bool (B, 12, 99). A batch in which nothing is masked has loss 0.
    """
    error = (reconstruction.float() - patchify(spectrogram, patch, stride)).square().mean(-1)  # (B, N)
    weight = mask.flatten(1).to(error.dtype)  # (B, N)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def assemble(patches: Tensor, size: tuple[int, int], patch: int = 16, stride: int = 10) -> Tensor:
    """Lay patches out as spectrograms, the mean where they overlap: (B, 1188, 256) -> (B, 1, 128, 1001).

    Cells beyond the last patch are 0.
    """
    columns = patches.transpose(1, 2)  # (B, 256, N)
    total = F.fold(columns, size, patch, stride=stride)
    count = F.fold(torch.ones_like(columns), size, patch, stride=stride)
    return total / count.clamp(min=1)
