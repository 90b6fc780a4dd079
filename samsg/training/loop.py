"""One training loop for all three stages (Section IV-B): Adam, a learning rate halved every few epochs, the weights
of the best validation epoch kept. Lightning Fabric supplies device and precision."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samsg.method.masking import mask_spectrogram, reconstruction_error
from samsg.runs import CHECKPOINT, atomic, progress_bar
from samsg.settings import SamsgError, TrainingSettings

LOOK = 50  # steps between looks at the losses where a look waits for the device
FEW_TOKENS = 400  # up to which attention in separate steps trains faster on CPUs: benchmarks/training.py, growth
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision at every start


@dataclass(frozen=True)
class Batch:
    """Some clips: spectrograms (B, 1, 128, 1001), labels (B,), and masks (B, 12, 99) where a stage has them."""

    spectrograms: Tensor
    labels: Tensor
    masks: Tensor | None


@dataclass(frozen=True)
class Examples:
    """A corpus as the loop sees it.

    Attributes:
        spectrograms: of every view of every clip, (V, N, 128, 1001), memory-mapped.
        labels: class indices, (N,).
        parts: the clips' indices in 'train', 'validation' and 'test'.
        masks: of every view of every clip, bool (V, N, 12, 99), or None.
        names: of the clips, (N,), for messages; without them, their indices are named.
    """

    spectrograms: np.ndarray
    labels: np.ndarray
    parts: dict[str, np.ndarray]
    masks: np.ndarray | None = None
    names: np.ndarray | None = None

    def said(self, clips: np.ndarray, most: int = 16) -> str:
        """Some clips by their names, as many as one can read."""
        names = [str(clip if self.names is None else self.names[clip]) for clip in clips[:most]]
        return ", ".join(names) + (f" and {len(clips) - most} more" if len(clips) > most else "")

    def batch(self, clips: np.ndarray, views: np.ndarray | int, device: torch.device | str) -> Batch:
        """Clips and their views (view 0 is the clean one) as tensors on a device."""
        spectrograms = torch.from_numpy(self.spectrograms[views, clips]).to(device).float()[:, None]
        labels = torch.from_numpy(self.labels[clips]).to(device)
        masks = None if self.masks is None else torch.from_numpy(self.masks[views, clips]).to(device)
        return Batch(spectrograms, labels, masks)

    def epoch(self, key: tuple[int, ...], batch: int, every_view: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """An epoch's batches: clips and views in an order that depends on ``key`` alone."""
        generator = np.random.default_rng(key)
        n_views, clips = len(self.spectrograms), self.parts["train"]
        if every_view:
            clips, views = np.repeat(clips, n_views), np.tile(np.arange(n_views), len(clips))
        else:
            views = generator.integers(n_views, size=len(clips))
        order = generator.permutation(len(clips))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            yield clips[chosen], views[chosen]


@dataclass(frozen=True)
class Losses:
    """What a stage minimises, and what it shows the model.

    Attributes:
        classification, reconstruction: weights of the two losses; 0 leaves one out.
        masked: train on masked spectrograms.
        evaluate_masked: validate and test on them too.
        fill: of masked cells.
    """

    classification: float = 1.0
    reconstruction: float = 0.0
    masked: bool = False
    evaluate_masked: bool = False
    fill: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, masked: bool) -> Terms:
        """Logits (B, C), and the sums that the two losses are made of."""
        core: Any = getattr(model, "module", model)
        core = getattr(core, "module", core)  # one wrapper is Fabric's, one distributes
        shape: dict[str, Any] = {"patch": core.patch, "stride": core.stride}
        shown, zero = batch.spectrograms, torch.zeros((), device=batch.labels.device)
        if masked:
            assert batch.masks is not None
            shown = mask_spectrogram(shown, batch.masks, **shape, fill=self.fill)
        if masked and self.reconstruction:
            assert batch.masks is not None
            logits, patches = model(shown, reconstruct=True)
            error, count = reconstruction_error(patches, batch.spectrograms, batch.masks, **shape)
        else:
            logits, error, count = model(shown), zero, zero
        return Terms(logits, F.cross_entropy(logits.float(), batch.labels, reduction="sum"), error, count)


class Terms(NamedTuple):
    """What the losses of a batch are made of."""

    logits: Tensor  # (B, C)
    entropy: Tensor  # summed over clips
    error: Tensor  # summed over masked patches
    masked: Tensor  # how many these are

    def sums(self) -> Tensor:
        """(3,), to be added up over batches."""
        return torch.stack([self.entropy, self.error, self.masked]).detach()


@lru_cache
def bf16_pays(device: torch.device) -> bool:
    """Whether the device multiplies matrices markedly faster in bfloat16 (AMX or AVX-512 on CPUs), by trying."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return False

    def seconds(kind: torch.dtype) -> float:
        matrix, times = torch.ones(1024, 1024, device=device, dtype=kind), []
        for _ in range(6):
            started = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for the result
            times.append(time.perf_counter() - started)
        return min(times)

    try:
        return seconds(torch.float32) > 1.3 * seconds(torch.bfloat16)
    except RuntimeError:  # a device without bfloat16
        return False


def make_fabric(training: TrainingSettings, devices: int | None = None, nodes: int | None = None) -> Fabric:
    """Device and precision as the settings ask; precision 'auto' is bf16-mixed where that is faster.

    Args:
        training: the settings.
        devices: processes on each machine, which share every batch; given once, by 'samsg train', which starts them.
        nodes: machines.
    """
    if devices is not None and nodes is not None:
        _processes.update(devices=devices, nodes=nodes)
    return _fabric(training.device, training.precision, **_processes)


_processes = {"devices": 1, "nodes": 1}


@lru_cache
def _fabric(device: str, precision: Any, devices: int, nodes: int) -> Fabric:
    if precision == "auto":
        found = Fabric(accelerator=device, devices=1, precision="32-true").device
        precision = "bf16-mixed" if bf16_pays(found) else "32-true"
    # The reconstruction head has no part in stages i and iii. Others wait for what the first process does alone.
    shared = DDPStrategy(find_unused_parameters=True, timeout=timedelta(hours=2))
    strategy = shared if devices * nodes > 1 else "auto"
    fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, precision=precision, strategy=strategy)
    fabric.launch()
    return fabric


@contextmanager
def quicker_attention(model: nn.Module, device: torch.device) -> Iterator[None]:
    """On CPUs, attention over few tokens trains faster in separate steps than fused: the fused backward is slow."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    before = [layer.fused_attn for layer in layers]
    few = device.type == "cpu" and model.get_parameter("vit.pos_embed").shape[1] <= FEW_TOKENS
    for layer, fused in zip(layers, before, strict=True):
        layer.fused_attn = fused and not few
    try:
        yield
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused


def learning_rate(step: int, epoch: int, training: TrainingSettings) -> float:
    """Of a step counted from 0 in an epoch counted from 0: halved every 5 epochs, after a warm-up if one is set."""
    return training.lr * 0.5 ** (epoch // training.halve_every) * min(1.0, (step + 1) / max(1, training.warmup))


@torch.no_grad()
def evaluate(
    fabric: Fabric, model: nn.Module, examples: Examples, part: str, losses: Losses, batch: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Class probabilities of a part's clips in their clean view, (n, C), and their mean losses and accuracy.

    The reconstruction loss is that of masked spectrograms in any case.
    """
    model.eval()
    clips = examples.parts[part]
    mine = clips[fabric.global_rank :: fabric.world_size]
    logits, sums = [], torch.zeros(3, device=fabric.device)
    for start in range(0, len(mine), batch):
        some = examples.batch(mine[start : start + batch], 0, fabric.device)
        terms = losses(model, some, losses.evaluate_masked)
        logits.append(terms.logits.float())
        if losses.masked and losses.reconstruction and not losses.evaluate_masked:
            # What is not masked cannot be reconstructed.
            terms = losses(model, some, masked=True)._replace(entropy=terms.entropy)
        sums += terms.sums()
    rows = torch.cat(logits) if logits else torch.zeros(0, examples.labels.max() + 1, device=fabric.device)
    probabilities = _of_all_processes(fabric, rows, len(clips)).softmax(1).cpu().numpy()
    entropy, error, masked = _total(fabric, sums).tolist()
    accuracy = float((probabilities.argmax(1) == examples.labels[clips]).mean())
    return probabilities, {
        "loss": entropy / len(clips),
        "reconstruction": error / max(1.0, masked),
        "accuracy": accuracy,
    }


def _total(fabric: Fabric, sums: Tensor) -> Tensor:
    """Summed over processes."""
    total: Any = fabric.all_reduce(sums.clone(), reduce_op="sum") if fabric.world_size > 1 else sums
    return total


def _of_all_processes(fabric: Fabric, mine: Tensor, n: int) -> Tensor:
    """Rows that were dealt out one by one to the processes, in their order again: (n / processes, C) -> (n, C)."""
    if fabric.world_size == 1:
        return mine
    rows = -(-n // fabric.world_size)
    gathered: Any = fabric.all_gather(F.pad(mine, (0, 0, 0, rows - len(mine))))
    return gathered.transpose(0, 1).reshape(-1, mine.shape[1])[:n]


def fit(
    fabric: Fabric,
    model: nn.Module,
    examples: Examples,
    losses: Losses,
    training: TrainingSettings,
    folder: Path,
    key: tuple[int, ...],
    text: str,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> pd.DataFrame:
    """Train the parameters that require gradients; leave history.csv and the best epoch's model.safetensors in folder.

    A folder that holds the checkpoint of an interrupted call with the same arguments is gone on from.

    Args:
        key: decides the order of clips and the choice of views, together with the epoch.
        text: on the progress bar.
        after_epoch: is given each epoch's row of the history.

    Returns:
        The history, one row an epoch; the model holds the weights of the best epoch: highest validation accuracy,
        ties to the lower validation loss.

    Raises:
        SamsgError: a loss is infinite or not a number; the message names step, epoch, stage and clips. On one CPU every
            step is looked at before its weights change; elsewhere every 50th, since a look waits for the device.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=training.lr, fused=fabric.device.type in ("cpu", "cuda"))
    bare = model
    model, optimizer = fabric.setup(model, optimizer)
    checkpoint, best_file = folder / CHECKPOINT, folder / "model.safetensors"
    history: list[dict[str, Any]] = []
    if checkpoint.is_file():
        try:
            state = torch.load(checkpoint, map_location=fabric.device, weights_only=True)
        except Exception as error:  # a pickle that would run anything is among what it refuses
            raise SamsgError(f"{checkpoint} is damaged ({error}); remove {folder} to begin anew.") from error
        if state["precision"] != fabric._precision.precision:
            raise SamsgError(
                f"{checkpoint} was begun in {state['precision']} and would go on in {fabric._precision.precision}; set "
                f"training.precision to the former, or remove {folder}."
            )
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
        if fabric.is_global_zero and best_epoch(history, losses.classification > 0) == len(history):
            _save(bare, best_file)  # it was killed between the two, perhaps
    n_train = len(examples.parts["train"]) * (len(examples.spectrograms) if training.views == "all" else 1)
    steps = -(-n_train // training.batch)
    look = 1 if fabric.device.type == "cpu" and fabric.world_size == 1 else LOOK
    bar = progress_bar(None, text, training.epochs * steps, "step", done=len(history) * steps)
    for epoch in range(len(history), training.epochs):
        started = time.perf_counter()
        model.train()
        sums, seen = torch.zeros(3, device=fabric.device), []
        for step, (clips, views) in enumerate(examples.epoch((*key, epoch), training.batch, training.views == "all")):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps + step, epoch, training)
            mine = np.arange(len(clips))[fabric.global_rank :: fabric.world_size]
            counts = float(len(mine) > 0)  # in a last, short batch a process may have no clip of its own
            mine = mine if counts else np.zeros(1, int)
            terms = losses(model, examples.batch(clips[mine], views[mine], fabric.device), losses.masked)
            masked = _total(fabric, counts * terms.masked).clamp(min=1)
            loss = losses.classification * terms.entropy / len(clips) + losses.reconstruction * terms.error / masked
            seen.append((step, clips, views, counts * loss.detach()))
            if len(seen) == look or step == steps - 1:
                _refuse_no_numbers(fabric, seen, examples, f"epoch {epoch + 1} of {text}", steps)
                seen = []
            fabric.backward(fabric.world_size * counts * loss)  # gradients are averaged over processes
            optimizer.step()
            optimizer.zero_grad()
            sums += counts * terms.sums()
            bar.update()
        entropy, squares, masked = _total(fabric, sums).tolist()
        row: dict[str, Any] = {"epoch": epoch + 1, "train_loss": entropy / n_train}
        scores = {}
        for part in ("validation", "test"):  # the test part is for Figure 4 alone: nothing is chosen by it
            rows, scores[part] = evaluate(fabric, model, examples, part, losses, training.evaluation_batch)
            if not np.isfinite([scores[part]["loss"], scores[part]["reconstruction"]]).all():
                bad = ~np.isfinite(rows).all(1)  # none, where the reconstruction alone overflows
                clips = examples.parts[part][bad if bad.any() else slice(None)]
                raise SamsgError(
                    f"The {part} loss after epoch {epoch + 1} of {text} is no number; {_why(examples, clips, 0)}"
                )
            row |= {f"{part}_loss": scores[part]["loss"], f"{part}_accuracy": scores[part]["accuracy"]}
        if losses.masked and losses.reconstruction:
            row |= {f"{part}_reconstruction": scores[part]["reconstruction"] for part in scores}
            row |= {"train_reconstruction": squares / max(1.0, masked)}
        row |= {"lr": learning_rate(epoch * steps + steps - 1, epoch, training)}
        row |= {"seconds": round(time.perf_counter() - started, 3)}
        history.append(row)
        if fabric.is_global_zero:
            state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
            state["precision"] = fabric._precision.precision
            with atomic(checkpoint) as partial:
                torch.save(state, partial)
            if best_epoch(history, losses.classification > 0) == epoch + 1:
                _save(bare, best_file)
        bar.set_postfix_str(
            f"train {row['train_loss']:.3f}, validation {scores['validation']['loss']:.3f}", refresh=False
        )
        if after_epoch is not None:
            after_epoch(row)
    bar.close()
    frame = pd.DataFrame(history)
    if fabric.is_global_zero:
        with atomic(folder / "history.csv") as partial:
            frame.to_csv(partial, index=False)
    fabric.barrier()
    bare.load_state_dict(load_file(best_file, device=str(fabric.device)))
    return frame


def _refuse_no_numbers(fabric: Fabric, seen: list[Any], examples: Examples, text: str, steps: int) -> None:
    """Stop in all processes at the first step whose loss is infinite or not a number."""
    losses = _total(fabric, torch.stack([loss for *_, loss in seen])).tolist()
    for (step, clips, views, _), loss in zip(seen, losses, strict=True):
        if not np.isfinite(loss):
            why = _why(examples, clips, views)
            raise SamsgError(f"The loss of step {step + 1} of {steps} in {text} is {loss}; {why}")


def _why(examples: Examples, clips: np.ndarray, views: np.ndarray | int) -> str:
    """The clips of a loss that is no number: those whose spectrograms hold such values; if none does, all of them."""
    bad = ~np.isfinite(examples.spectrograms[views, clips]).all((1, 2))
    if bad.any():
        return f"the spectrograms of {examples.said(clips[bad])} hold values that are none: make these anew."
    return f"its clips: {examples.said(clips)}. Their spectrograms are in order, so lower training.lr."


def _save(model: nn.Module, path: Path) -> None:
    with atomic(path) as partial:
        save_file(model.state_dict(), partial)


def best_epoch(history: list[dict[str, Any]] | pd.DataFrame, of_emotion: bool = True) -> int:
    """The epoch whose weights are kept: highest validation accuracy, ties to the lower loss, then the earlier; where
    emotion is not trained, the lowest reconstruction error in validation."""
    rows = history.to_dict("records") if isinstance(history, pd.DataFrame) else history
    if not of_emotion:
        return min(rows, key=lambda row: (row["validation_reconstruction"], row["epoch"]))["epoch"]
    return min(rows, key=lambda row: (-row["validation_accuracy"], row["validation_loss"], row["epoch"]))["epoch"]
