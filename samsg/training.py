"""One training loop for all three stages (Section IV-B); Lightning Fabric supplies device and precision."""

import io
import logging
import math
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import load_file, save
from torch import Tensor, nn

from samsg.masking import mask_spectrogram, reconstruction_error
from samsg.model import SpectrogramDeiT
from samsg.settings import SamsgError, TrainingSettings
from samsg.storage import atomic, progress, report

EVALUATION_BATCH = 16  # clips
FEW_TOKENS = 400  # up to which unfused attention trains faster on CPUs, where the backward of fused attention is slow
CHECKPOINT, WEIGHTS, HISTORY = "checkpoint.pt", "model.safetensors", "history.csv"
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision at every start


class Batch(NamedTuple):
    """Some clips: spectrograms (B, 1, 128, 1001), labels (B,), and masks (B, 12, 99) in stage ii."""

    spectrograms: Tensor
    labels: Tensor
    masks: Tensor | None


@dataclass(frozen=True)
class Examples:
    """A corpus: N clips in V views, of which view 0 is the clean one."""

    spectrograms: np.ndarray  # (N, V, 128, 1001), memory-mapped
    labels: np.ndarray  # class indices, (N,)
    parts: dict[str, np.ndarray]  # the clips' indices in 'train', 'validation' and 'test'
    names: np.ndarray  # of the clips, (N,), for messages
    masks: np.ndarray | None = None  # bool (N, V, 12, 99), in stage ii

    def batch(self, clips: np.ndarray, views: np.ndarray | int = 0, device: torch.device | str = "cpu") -> Batch:
        """Clips in some of their views as tensors on a device."""
        spectrograms = torch.from_numpy(self.spectrograms[clips, views]).to(device).float()[:, None]
        labels = torch.from_numpy(self.labels[clips]).to(device)
        masks = None if self.masks is None else torch.from_numpy(self.masks[clips, views]).to(device)
        return Batch(spectrograms, labels, masks)

    def epoch(self, key: tuple[int, ...], batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """An epoch's batches, as clips and views: each training clip once, in a random view. ``key`` is the seed."""
        generator, train_clips = np.random.default_rng(key), self.parts["train"]
        views = generator.integers(self.spectrograms.shape[1], size=len(train_clips))
        order = generator.permutation(len(train_clips))
        for indices in np.split(order, range(batch, len(order), batch)):
            yield train_clips[indices], views[indices]


class Objective(NamedTuple):
    """What a stage minimises: classification x cross-entropy + reconstruction x mean squared error."""

    classification: float = 1.0
    reconstruction: float = 0.0
    masked: bool = False  # whether training masks its input, as in stage ii
    fill: float = 0.0  # value of masked cells


class Losses(NamedTuple):
    """Of a batch: logits (B, C); sums over its clips (cross-entropy, right answers) and over its masked patches."""

    logits: Tensor
    cross_entropy: Tensor
    n_right: Tensor
    squared_error: Tensor
    n_masked: Tensor


def compute_losses(model: SpectrogramDeiT, batch: Batch, objective: Objective, masked: bool) -> Losses:
    """One forward pass. Stage ii shows the masked spectrogram and reconstructs the masked patches (Section III-D)."""
    error = n_masked = torch.zeros((), device=batch.labels.device)
    if masked and batch.masks is not None:
        inputs = mask_spectrogram(batch.spectrograms, batch.masks, model.patch, model.stride, objective.fill)
        logits, patches = model(inputs, reconstruct=True)  # (B, C), (B, 1188, 256)
        error, n_masked = reconstruction_error(patches, batch.spectrograms, batch.masks, model.patch, model.stride)
    else:
        logits = model(batch.spectrograms)
    cross_entropy = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
    return Losses(logits, cross_entropy, (logits.argmax(1) == batch.labels).sum(), error, n_masked)


def best_precision(device: torch.device) -> str:
    """The precision for 'auto': bfloat16 where the device has matrix units for it."""
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        bf16 = device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bf16-mixed" if bf16 else "32-true"


@lru_cache
def make_fabric(device: str = "auto", precision: str = "auto") -> Fabric:
    """Device and precision as the settings ask."""
    if precision == "auto":
        precision = best_precision(Fabric(accelerator=device, devices=1, precision="32-true").device)
    return Fabric(accelerator=device, devices=1, precision=cast(Any, precision))


def choose_attention(model: SpectrogramDeiT, device: torch.device) -> None:
    """Fused attention, except where it trains more slowly: on CPUs with few tokens. The two round differently."""
    for block in model.vit.blocks:
        block.attn.fused_attn = device.type != "cpu" or model.vit.pos_embed.shape[1] > FEW_TOKENS


def make_optimizer(model: SpectrogramDeiT, settings: TrainingSettings) -> torch.optim.Adam:
    """Adam for the parameters that require gradients; the two heads may have a learning rate of their own."""
    encoder: dict[str, Any] = {"params": [], "peak_lr": settings.lr}
    heads: dict[str, Any] = {"params": [], "peak_lr": settings.head_lr or settings.lr}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (heads if name.startswith(("emotion_head", "reconstruction_head")) else encoder)["params"].append(parameter)
    options: dict[str, Any] = {"weight_decay": settings.weight_decay, "decoupled_weight_decay": True, "fused": True}
    return torch.optim.Adam([encoder, heads], settings.lr, **options)


def schedule(step: int, steps: int, settings: TrainingSettings) -> float:
    """The factor of the learning rate at a step counted from 0, with ``steps`` steps an epoch.

    'halving': 0.5 every ``halve_every`` epochs (Section IV-B), times a linear warm-up. 'one_cycle': up from a
    twenty-fifth over the first three tenths, then down to 0, each along a cosine (Smith & Topin 2019).
    """
    if settings.schedule == "halving":
        return 0.5 ** (step // steps // settings.halve_every) * min(1.0, (step + 1) / max(1, settings.warmup))
    fraction = (step + 1) / (steps * settings.epochs)
    if fraction < 0.3:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * fraction / 0.3)) / 2
    return (1 + math.cos(math.pi * (fraction - 0.3) / 0.7)) / 2


def train_epoch(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    examples: Examples,
    objective: Objective,
    settings: TrainingSettings,
    key: tuple[int, ...],
) -> dict[str, float]:
    """One epoch; ``key`` ends with its number, from 0. Returns loss and accuracy of the batches as trained on."""
    model.train()
    steps = -(-len(examples.parts["train"]) // settings.batch)
    totals = np.zeros(5)  # clips, and the four sums of Losses
    for step, (clips, views) in enumerate(examples.epoch(key, settings.batch)):
        for group in optimizer.param_groups:
            group["lr"] = schedule(key[-1] * steps + step, steps, settings) * group["peak_lr"]
        batch = examples.batch(clips, views, fabric.device)
        losses = compute_losses(model, batch, objective, objective.masked)
        loss = objective.classification * losses.cross_entropy / len(clips)
        loss = loss + objective.reconstruction * losses.squared_error / losses.n_masked.clamp(min=1)
        if not math.isfinite(loss.item()):
            place = f"step {step + 1}/{steps} of epoch {key[-1] + 1}, on the clips {', '.join(examples.names[clips])}"
            raise SamsgError(f"The loss is {loss.item()} at {place}. Lower training.lr, or prepare these clips again.")
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        totals += [len(clips), *(value.item() for value in losses[1:])]
    return _averages("train", totals)


@torch.no_grad()
def evaluate(
    fabric: Fabric, model: Any, examples: Examples, part: str, objective: Objective
) -> tuple[np.ndarray, dict[str, float]]:
    """Class probabilities (n, C) of a part's clean, unmasked clips, and measures; reconstruction is of them masked."""
    model.eval()
    clips, logits, totals = examples.parts[part], [], np.zeros(5)
    for start in range(0, len(clips), EVALUATION_BATCH):
        batch = examples.batch(clips[start : start + EVALUATION_BATCH], 0, fabric.device)
        losses = compute_losses(model, batch, objective, masked=False)
        if objective.masked:
            losses = Losses(*losses[:3], *compute_losses(model, batch, objective, masked=True)[3:])
        logits.append(losses.logits.float().cpu())
        totals += [len(batch.labels), *(value.item() for value in losses[1:])]
    return torch.cat(logits).softmax(1).numpy(), _averages(part, totals)


def _averages(part: str, totals: np.ndarray) -> dict[str, float]:
    n_clips, cross_entropy, n_right, error, n_masked = totals.tolist()
    if not math.isfinite(cross_entropy):
        raise SamsgError(f"The {part} loss is {cross_entropy} after an epoch. Lower training.lr.")
    scores = {f"{part}_loss": cross_entropy / n_clips, f"{part}_accuracy": n_right / n_clips}
    return scores | ({f"{part}_reconstruction": error / n_masked} if n_masked else {})


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The epoch whose weights are kept: highest validation accuracy, ties to the lower loss, then to the earlier."""
    return min(history, key=lambda row: (-row["validation_accuracy"], row["validation_loss"], row["epoch"]))["epoch"]


def fit(
    model: SpectrogramDeiT,
    examples: Examples,
    objective: Objective,
    settings: TrainingSettings,
    folder: Path,
    key: tuple[int, ...],
    title: str = "training",
) -> dict[str, np.ndarray]:
    """Train the parameters that require gradients; leave history.csv and the best epoch's model.safetensors in folder.

    A folder with the checkpoint of an interrupted call is continued. The test part is evaluated for Figure 4; nothing
    is chosen by it. ``key``, with the epoch, is the seed of the order of clips and the choice of views.

    Returns class probabilities of the validation and test clips by the best epoch's weights, which the model ends with.
    SamsgError if a training loss is NaN or infinite, or the checkpoint is damaged or of another precision.
    """
    fabric = make_fabric(settings.device, settings.precision)
    choose_attention(model, fabric.device)
    fabric_model, optimizer = fabric.setup(model, make_optimizer(model, settings))
    history = _resume(folder / CHECKPOINT, fabric, model, optimizer)
    bar = progress(range(len(history), settings.epochs), title, settings.epochs, len(history))
    for epoch in bar:
        start_time = time.perf_counter()
        scores = train_epoch(fabric, fabric_model, optimizer, examples, objective, settings, (*key, epoch))
        row: dict[str, Any] = {"epoch": epoch + 1, **scores}
        for part in ("validation", "test"):
            row |= evaluate(fabric, fabric_model, examples, part, objective)[1]
        row |= {"lr": optimizer.param_groups[0]["lr"], "seconds": round(time.perf_counter() - start_time, 3)}
        history.append(row)
        if best_epoch(history) == epoch + 1:
            _write(folder / WEIGHTS, save(model.state_dict()))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
        torch.save(state | {"precision": fabric._precision.precision}, buffer := io.BytesIO())
        _write(folder / CHECKPOINT, buffer.getvalue())
        eta, loss = row["seconds"] * (settings.epochs - epoch - 1), f"loss {row['train_loss']:.2f}"
        report(f"{title} epoch {epoch + 1}/{settings.epochs}  {loss}  {eta // 60:.0f}:{eta % 60:02.0f} left")
        bar.set_postfix_str(loss, refresh=False)
    _write(folder / HISTORY, pd.DataFrame(history).to_csv(index=False).encode())
    model.load_state_dict(load_file(folder / WEIGHTS, device=str(fabric.device)))
    return {part: evaluate(fabric, fabric_model, examples, part, objective)[0] for part in ("validation", "test")}


def _resume(checkpoint: Path, fabric: Fabric, model: nn.Module, optimizer: Any) -> list[dict[str, Any]]:
    """Load the state of an interrupted training, if there is one: its history. Only tensors and numbers are read."""
    if not checkpoint.is_file():
        return []
    try:
        state = torch.load(checkpoint, map_location=fabric.device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise SamsgError(f"{checkpoint} is damaged, or holds more than tensors; remove {checkpoint.parent}.") from error
    if (precision := state["precision"]) != fabric._precision.precision:
        problem = f"{checkpoint} is in {precision}, and this machine would continue in {fabric._precision.precision}"
        raise SamsgError(f"{problem}. Set training.precision to {precision}, or remove {checkpoint.parent}.")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["history"])


def _write(path: Path, content: bytes) -> None:
    """Write bytes. Python's own write names the cause of a failure; those of torch and safetensors do not."""
    with atomic(path) as partial:
        partial.write_bytes(content)
