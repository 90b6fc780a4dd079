"""The model: timm's distilled DeiT on log-mel spectrograms with two linear heads (Sections III-C and III-D, Fig. 1-2).

DeiT: Touvron et al., ICML 2021 [27]. Its attention (Eq. 3-5) is timm's; rollout.py computes the softmax of Eq. 4 again.
Overlapping patches and ImageNet weights on spectrograms: Gong et al. (AST), Interspeech 2021 [2]. timm sums the RGB
filters for one channel and resamples the position embedding to the patch grid.
"""

from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from samsg.settings import AudioSettings, ModelSettings, SamsgError, home

# Mean and standard deviation of ImageNet's pictures in grey: the means of timm's IMAGENET_DEFAULT_MEAN and _STD.
IMAGENET_GREY = (0.449, 0.226)
EMBEDDED = Path(__file__).with_name("embedded.safetensors")
DINOV2 = Path("data/weights/dinov2_small.safetensors")  # in home(), where ``samsg weights`` puts it


def patch_grid(n_mels: int, n_frames: int, patch: int = 16, stride: int = 10) -> tuple[int, int]:
    """Number of patches along frequency and time: (12, 99) for 128 x 1001, 1188 in all (Fig. 2).

    SamsgError if the spectrogram is smaller than one patch.
    """
    if min(n_mels, n_frames) < patch:
        problem = f"A spectrogram of {n_mels} x {n_frames} cells holds no patch of {patch} x {patch}"
        raise SamsgError(f"{problem}; lower model.patch or audio.hop, or lengthen audio.seconds.")
    return (n_mels - patch) // stride + 1, (n_frames - patch) // stride + 1


def patchify(spectrogram: Tensor, patch: int = 16, stride: int = 10) -> Tensor:
    """Cut out every patch, in the order of the tokens: (B, 1, 128, 1001) -> (B, 1188, 256)."""
    return F.unfold(spectrogram, patch, stride=stride).transpose(1, 2)  # (B, N, patch * patch)


class OverlappingPatchEmbed(PatchEmbed):
    """timm's patch embedding, ``stride`` cells from patch to patch: (B, 1, 128, 1001) -> (B, 1188, dim)."""

    def __init__(self, *arguments: Any, stride: int = 10, **options: Any) -> None:
        self.stride = stride  # read by _init_img_size, which the parent's constructor calls
        super().__init__(*arguments, **options)
        self.proj.stride = (stride, stride)

    def _init_img_size(self, img_size: Any) -> tuple[tuple[int, int], tuple[int, int], int]:
        rows, columns = patch_grid(img_size[0], img_size[1], self.patch_size[0], self.stride)
        return img_size, (rows, columns), rows * columns


class SpectrogramDeiT(nn.Module):
    """DeiT with an emotion head on (CLS + DIST) / 2 and a reconstruction head on the patch tokens (Fig. 1).

    Sizes: 'tiny', 'small', 'base' (dim 192, 384, 768; heads 3, 6, 12), with 12 blocks if ``depth`` is None. Inputs
    have n_mels x n_frames cells, patches patch x patch, one every ``stride`` cells. ``weights``: 'random'; 'imagenet',
    from timm's hub; 'embedded', samsg's own DeiT-tiny of six blocks; 'dinov2', the ViT-S of ``samsg weights``; or a
    file of a distilled DeiT below ``home()`` (.safetensors, or its authors' .pth). ``normalize``: mean and standard
    deviation of the input. With ``IMAGENET_GREY`` a spectrogram in [0, 1] is treated as the grey pictures that DeiT was
    trained on. SamsgError if the weights are missing or do not fit.
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
        embed = partial(OverlappingPatchEmbed, stride=stride)
        input_options = {"img_size": (n_mels, n_frames), "patch_size": patch, "in_chans": 1, "embed_layer": embed}
        self.vit = _create_vit(size, str(weights), depth or 12, self.grid, input_options)
        self.emotion_head = nn.Linear(self.vit.embed_dim, n_classes)
        self.reconstruction_head = nn.Linear(self.vit.embed_dim, patch * patch)

    def tokens(self, spectrogram: Tensor) -> Tensor:
        """All output tokens, CLS and DIST first: (B, 1, 128, 1001) -> (B, 1190, dim)."""
        mean, deviation = self.normalize
        return self.vit.forward_features((spectrogram - mean) / deviation)

    @staticmethod
    def pool(tokens: Tensor) -> Tensor:
        """(CLS + DIST) / 2 (Fig. 1): (B, 1190, dim) -> (B, dim)."""
        return (tokens[:, 0] + tokens[:, 1]) / 2

    def forward(self, spectrogram: Tensor, reconstruct: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Emotion logits: (B, 1, 128, 1001) -> (B, n_classes); with ``reconstruct`` the patches too, (B, 1188, 256)."""
        tokens = self.tokens(spectrogram)  # (B, 1190, dim)
        logits = self.emotion_head(self.pool(tokens))  # (B, n_classes)
        return (logits, self.reconstruction_head(tokens[:, 2:])) if reconstruct else logits


def build_model(model: ModelSettings, audio: AudioSettings, n_classes: int, weights: str = "") -> SpectrogramDeiT:
    """The model that the settings describe; ``weights`` replaces theirs. Errors as ``SpectrogramDeiT``."""
    cells = audio.n_mels, audio.n_frames, model.patch, model.stride
    normalize = IMAGENET_GREY if model.normalize == "imagenet" else (0.0, 1.0)
    return SpectrogramDeiT(n_classes, model.size, model.depth, *cells, weights or model.weights, normalize)


def _create_vit(size: str, weights: str, depth: int, grid: tuple[int, int], input_options: dict[str, Any]) -> Any:
    """timm's distilled DeiT with the weights that ``SpectrogramDeiT`` names."""
    name, overlay = f"deit_{size}_distilled_patch16_224", None
    try:
        if weights not in ("random", "imagenet"):
            path = {"embedded": EMBEDDED, "dinov2": home() / DINOV2}.get(weights, home() / Path(weights).expanduser())
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path}")
            # A .pth file is a pickle, which may run code: only tensors are read from it. timm drops the heads.
            state = timm.models.load_state_dict(str(path), weights_only=True)
            if weights == "embedded":  # their grid has 12 rows; timm would take it for a square
                positions = state["pos_embed"].float()  # (1, 2 + 12 * columns, dim)
                rows = [12, (positions.shape[1] - 2) // 12]
                state["pos_embed"] = resample_abs_pos_embed(positions, list(grid), rows, num_prefix_tokens=2)
            if "patch_embed.proj.weight" not in state:
                raise ValueError("they are not those of a DeiT, under timm's names")
            unused_blocks = tuple(f"blocks.{block}." for block in range(depth, 12))
            state = {key: value for key, value in state.items() if not key.startswith(unused_blocks)}
            channels = state["patch_embed.proj.weight"].shape[1]
            overlay = {"state_dict": state, "input_size": (channels, 224, 224)}
        options = {"pretrained_cfg_overlay": overlay, "depth": depth, "num_classes": 0, **input_options}
        vit: Any = timm.create_model(name, pretrained=weights != "random", **options)
        if overlay and (absent := sorted(vit.state_dict().keys() - state.keys())):  # timm would leave these random
            raise ValueError(f"of {depth} blocks they lack {absent[0]} and {len(absent) - 1} other tensors")
    except Exception as error:
        choices = "'embedded' (size tiny, at most 6 blocks), 'random', a file, or 'dinov2' (after `samsg weights`)"
        problem = f"The weights '{weights}' could not be loaded into {name}: {error}"
        raise SamsgError(f"{problem}. Set model.weights to {choices}.") from error
    vit.pretrained_cfg.pop("state_dict", None)  # or the model would keep all weights twice
    return vit
