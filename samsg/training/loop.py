"""One training loop for all three stages (Section IV-B): Adam, a learning rate halved every few epochs, the weights
of the best validation epoch kept. Lightning Fabric supplies device and precision."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samsg.method.masking import mask_spectrogram, reconstruction_loss
from samsg.runs import atomic, progress_bar
from samsg.settings import SamsgError, TrainingSettings

CHECKPOINT = "checkpoint.pt"  # of an unfinished stage
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
    """

    spectrograms: np.ndarray
    labels: np.ndarray
    parts: dict[str, np.ndarray]
    masks: np.ndarray | None = None

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

    def __call__(self, model: nn.Module, batch: Batch, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C), cross-entropy, and mean squared error of masked patches (0 without masks)."""
        core = getattr(model, "module", model)
        shape = {"patch": core.patch, "stride": core.stride}
        shown = batch.spectrograms
        if masked:
            shown = mask_spectrogram(shown, batch.masks, **shape, fill=self.fill)
        if masked and self.reconstruction:
            logits, patches = model(shown, reconstruct=True)
            error = reconstruction_loss(patches, batch.spectrograms, batch.masks, **shape)
        else:
            logits, error = model(shown), torch.zeros((), device=shown.device)
        return logits, F.cross_entropy(logits.float(), batch.labels), error


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware: AMX or AVX-512 BF16 on CPUs."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def make_fabric(training: TrainingSettings) -> Fabric:
    """Device and precision as the settings ask; precision 'auto' is bf16-mixed where the hardware has it."""
    fabric = Fabric(accelerator=training.device, devices=1, precision="32-true")
    precision = training.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_fast_bf16(fabric.device) else "32-true"
    return Fabric(accelerator=training.device, devices=1, precision=precision)


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
    logits, sums = [], torch.zeros(2, device=fabric.device)
    for start in range(0, len(clips), batch):
        chosen = clips[start : start + batch]
        some = examples.batch(chosen, 0, fabric.device)
        out, entropy, error = losses(model, some, losses.evaluate_masked)
        if losses.masked and losses.reconstruction and not losses.evaluate_masked:
            error = losses(model, some, masked=True)[2]  # what is not masked cannot be reconstructed
        logits.append(out.float())
        sums += len(chosen) * torch.stack([entropy, error])
    probabilities = torch.cat(logits).softmax(1).cpu().numpy()
    loss, reconstruction = (sums / len(clips)).tolist()
    accuracy = float((probabilities.argmax(1) == examples.labels[clips]).mean())
    return probabilities, {"loss": loss, "reconstruction": reconstruction, "accuracy": accuracy}


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
        SamsgError: a loss is infinite or not a number.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=training.lr, fused=fabric.device.type in ("cpu", "cuda"))
    bare = model
    model, optimizer = fabric.setup(model, optimizer)
    checkpoint, best_file = folder / CHECKPOINT, folder / "model.safetensors"
    history: list[dict[str, Any]] = []
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=fabric.device, weights_only=True)
        if state["precision"] != fabric._precision.precision:
            raise SamsgError(
                f"{checkpoint} was begun in {state['precision']} and would go on in {fabric._precision.precision}; set "
                f"training.precision to the former, or remove {folder}."
            )
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
    n_train = len(examples.parts["train"]) * (len(examples.spectrograms) if training.views == "all" else 1)
    steps = -(-n_train // training.batch)
    bar = progress_bar(None, text, training.epochs * steps, "step", done=len(history) * steps)
    for epoch in range(len(history), training.epochs):
        started = time.perf_counter()
        model.train()
        sums = torch.zeros(2, device=fabric.device)
        for step, (clips, views) in enumerate(examples.epoch((*key, epoch), training.batch, training.views == "all")):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps + step, epoch, training)
            _, entropy, error = losses(model, examples.batch(clips, views, fabric.device), losses.masked)
            fabric.backward(losses.classification * entropy + losses.reconstruction * error)
            optimizer.step()
            optimizer.zero_grad()
            sums += len(clips) * torch.stack([entropy.detach(), error.detach()])
            bar.update()
        entropy, error = (sums / n_train).tolist()
        if not np.isfinite(entropy + error):
            raise SamsgError(f"The loss of epoch {epoch + 1} of {text} is {entropy + error}; lower training.lr.")
        row: dict[str, Any] = {"epoch": epoch + 1, "train_loss": entropy}
        scores = {}
        for part in ("validation", "test"):  # the test part is for Figure 4 alone: nothing is chosen by it
            _, scores[part] = evaluate(fabric, model, examples, part, losses, training.evaluation_batch)
            row |= {f"{part}_loss": scores[part]["loss"], f"{part}_accuracy": scores[part]["accuracy"]}
        if losses.masked and losses.reconstruction:
            row |= {f"{part}_reconstruction": scores[part]["reconstruction"] for part in scores}
            row |= {"train_reconstruction": error}
        row |= {"lr": learning_rate(epoch * steps + steps - 1, epoch, training)}
        row |= {"seconds": round(time.perf_counter() - started, 3)}
        history.append(row)
        if best_epoch(history) == epoch + 1:
            with atomic(best_file) as partial:
                save_file(bare.state_dict(), partial)
        state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
        state["precision"] = fabric._precision.precision
        with atomic(checkpoint) as partial:
            torch.save(state, partial)
        bar.set_postfix_str(f"train {entropy:.3f}, validation {scores['validation']['loss']:.3f}", refresh=False)
        if after_epoch is not None:
            after_epoch(row)
    bar.close()
    frame = pd.DataFrame(history)
    with atomic(folder / "history.csv") as partial:
        frame.to_csv(partial, index=False)
    bare.load_state_dict(load_file(best_file, device=str(fabric.device)))
    return frame


def best_epoch(history: list[dict[str, Any]] | pd.DataFrame) -> int:
    """The epoch whose weights are kept: highest validation accuracy, ties to the lower loss, then the earlier."""
    rows = history.to_dict("records") if isinstance(history, pd.DataFrame) else history
    return min(rows, key=lambda row: (-row["validation_accuracy"], row["validation_loss"], row["epoch"]))["epoch"]
