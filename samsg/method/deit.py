"""The backbone: timm's distilled DeiT on log-mel spectrograms, and the two linear heads (Sections III-C and III-D).

DeiT: Touvron et al., ICML 2021 [27]. Overlapping patches and ImageNet weights on spectrograms: Gong et al. (AST),
Interspeech 2021 [2]. timm pools the RGB filters for one channel and resamples the position embedding to the grid.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from samsg.settings import SamsgError, nearest

# Mean and standard deviation of ImageNet's pictures in grey: the mean of timm's IMAGENET_DEFAULT_MEAN and _STD.
IMAGENET_GREY = (0.449, 0.226)
SIZES = ("tiny", "small", "base")


class OverlappingPatchEmbed(PatchEmbed):
    """timm's patch embedding with a stride smaller than the patch: (B, 1, 128, 1001) -> (B, 1188, dim).

    Args:
        stride: cells between neighbouring patches, in both directions.
        arguments: those of ``timm.layers.PatchEmbed``.
    """

    def __init__(self, *arguments: Any, stride: int = 10, **named: Any) -> None:
        self.stride = stride  # read by _init_img_size, which the parent's constructor calls
        super().__init__(*arguments, **named)
        self.proj.stride = (stride, stride)

    def _init_img_size(self, img_size: int | tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], int]:
        height, width = img_size if isinstance(img_size, tuple) else (img_size, img_size)
        rows, columns = patch_grid(height, width, self.patch_size[0], self.stride)
        return (height, width), (rows, columns), rows * columns


def patch_grid(n_mels: int, n_frames: int, patch: int = 16, stride: int = 10) -> tuple[int, int]:
    """Patches along frequency and time: (12, 99) for 128 x 1001, 1188 in all (Fig. 2).

    Raises:
        SamsgError: the spectrogram is smaller than one patch.
    """
    if min(n_mels, n_frames) < patch:
        raise SamsgError(
            f"A spectrogram of {n_mels} x {n_frames} cells holds no patch of {patch} x {patch}; "
            "lower model.patch or audio.hop, or lengthen audio.seconds."
        )
    return (n_mels - patch) // stride + 1, (n_frames - patch) // stride + 1


def patchify(spectrogram: Tensor, patch: int = 16, stride: int = 10) -> Tensor:
    """Cut out every patch: (B, 1, 128, 1001) -> (B, 1188, 256), in the order of the tokens."""
    return F.unfold(spectrogram, patch, stride=stride).transpose(1, 2)  # (B, N, patch * patch)


def pretrained_name(size: str) -> str:
    """timm's name of the distilled DeiT that was trained on ImageNet."""
    return f"deit_{size}_distilled_patch16_224"


class SpectrogramDeiT(nn.Module):
    """DeiT with an emotion head on (CLS + DIST) / 2 and a reconstruction head on the patch tokens (Fig. 1).

    Args:
        n_classes: emotions.
        size: 'tiny', 'small' or 'base' (dim 192, 384, 768; heads 3, 6, 12; depth 12).
        depth: blocks, if other than the size's own 12.
        n_mels, n_frames: cells of the spectrogram along frequency and time.
        patch, stride: side of a patch and distance between neighbours, in cells.
        weights: 'random', 'imagenet' (through timm's hub) or the path of a file with DeiT's ImageNet weights
            (.safetensors, or .pth as published by its authors).
        normalize: mean and standard deviation that spectrograms are brought to 0 and 1 from, as they come in. With
            ``IMAGENET_GREY`` a spectrogram in [0, 1] is treated as the grey pictures that DeiT was trained on.

    Raises:
        SamsgError: no such size, or weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        n_classes: int,
        size: str = "base",
        depth: int | None = None,
        n_mels: int = 128,
        n_frames: int = 1001,
        patch: int = 16,
        stride: int = 10,
        weights: str | Path = "random",
        normalize: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.patch, self.stride, self.normalize = patch, stride, normalize
        self.grid = patch_grid(n_mels, n_frames, patch, stride)
        if size not in SIZES:
            raise SamsgError(f"There is no DeiT of size '{size}'; {nearest(size, SIZES)}")
        self.vit: Any = _distilled_deit(
            pretrained_name(size),
            weights,
            img_size=(n_mels, n_frames),
            patch_size=patch,
            in_chans=1,
            num_classes=0,
            embed_layer=partial(OverlappingPatchEmbed, stride=stride),
            **({} if depth is None else {"depth": depth}),
        )
        self.emotion_head = nn.Linear(self.vit.embed_dim, n_classes)
        self.reconstruction_head = nn.Linear(self.vit.embed_dim, patch * patch)

    def tokens(self, spectrogram: Tensor) -> Tensor:
        """All output tokens, CLS and DIST first: (B, 1, 128, 1001) -> (B, 1190, dim)."""
        mean, deviation = self.normalize
        return self.vit.forward_features((spectrogram - mean) / deviation)

    def leading_tokens(self, spectrogram: Tensor) -> Tensor:
        """CLS and DIST alone, as ``tokens`` gives them: (B, 1, 128, 1001) -> (B, 2, dim).

        The last block computes these two from all tokens, and no others, which nothing would read.
        """
        mean, deviation = self.normalize
        vit, (*blocks, last) = self.vit, self.vit.blocks
        x = vit._pos_embed(vit.patch_embed((spectrogram - mean) / deviation))  # (B, 1190, dim)
        x = vit.norm_pre(vit.patch_drop(x))
        for block in blocks:
            x = block(x)
        attention, y = last.attn, last.norm1(x)
        weight, bias, heads = attention.qkv.weight, attention.qkv.bias, (attention.num_heads, attention.head_dim)
        q = F.linear(y[:, :2], weight[: vit.embed_dim], bias[: vit.embed_dim]).unflatten(2, heads)
        k, v = F.linear(y, weight[vit.embed_dim :], bias[vit.embed_dim :]).unflatten(2, (2, *heads)).unbind(2)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # (B, H, 2, d), (B, H, 1190, d) twice
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, 2, dim)
        x = x[:, :2] + last.ls1(attention.proj(y))
        return vit.norm(x + last.ls2(last.mlp(last.norm2(x))))

    @staticmethod
    def pool(tokens: Tensor) -> Tensor:
        """(CLS + DIST) / 2 (Fig. 1): (B, 1190, dim) -> (B, dim)."""
        return (tokens[:, 0] + tokens[:, 1]) / 2

    def classify(self, tokens: Tensor) -> Tensor:
        """Emotion logits: (B, 1190, dim) -> (B, n_classes)."""
        return self.emotion_head(self.pool(tokens))

    def reconstruct(self, tokens: Tensor) -> Tensor:
        """The cells of every patch: (B, 1190, dim) -> (B, 1188, 256)."""
        return self.reconstruction_head(tokens[:, 2:])

    def forward(self, spectrogram: Tensor, reconstruct: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Emotion logits: (B, 1, 128, 1001) -> (B, n_classes); with ``reconstruct`` the patches too, (B, 1188, 256)."""
        if not reconstruct:
            return self.classify(self.leading_tokens(spectrogram))
        tokens = self.tokens(spectrogram)  # (B, 1190, dim)
        return self.classify(tokens), self.reconstruct(tokens)


def _distilled_deit(name: str, weights: str | Path, **named: Any) -> Any:
    if str(weights) == "random":
        return timm.create_model(name, pretrained=False, **named)
    overlay = None
    if str(weights) != "imagenet" and not Path(weights).is_file():
        raise SamsgError(
            f"model.weights names '{weights}', which is no file; give 'imagenet', 'random', or the path of "
            f"the ImageNet weights of {name}."
        )
    try:
        if str(weights) != "imagenet":
            # A .pth file is a pickle, which may run anything: tensors alone are taken of it. The published heads have
            # 1000 classes and are dropped, as with the weights from the hub.
            overlay = {"state_dict": timm.models.load_state_dict(str(weights), weights_only=True)}
        vit: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **named)
        vit.pretrained_cfg.pop("state_dict", None)
        return vit
    except Exception as error:
        raise SamsgError(
            f"The ImageNet weights of {name} (asked for: '{weights}') could not be loaded: {error}. Without network, "
            "set model.weights to a local file of them, or to 'random' (profile 'scratch' trains from there)."
        ) from error
