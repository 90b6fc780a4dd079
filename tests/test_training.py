"""The training loop (Section IV-B): schedule, a step of Adam by hand, losses, precision, and the epoch that is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from toys import TRAINING

from samsg import training
from samsg.masking import masked_cells
from samsg.model import SpectrogramDeiT, patchify
from samsg.settings import SamsgError, TrainingSettings
from samsg.training import Examples, Objective, best_epoch, best_precision, fit, make_fabric, schedule

SIZE, GRID = (36, 46), (3, 4)  # cells, patches
STAGE_II = Objective(1.0, 1.0, masked=True)


def make_model(seed: int = 0) -> SpectrogramDeiT:
    """A DeiT-tiny of one block for three classes."""
    torch.manual_seed(seed)
    return SpectrogramDeiT(3, "tiny", depth=1, n_mels=SIZE[0], n_frames=SIZE[1])


def make_examples(train: int = 6, views: int = 1, masks: bool = False) -> Examples:
    """Clips of noise, as bright as their class: two each for validation and test."""
    random, n = np.random.default_rng(0), train + 4
    labels = np.arange(n) % 3
    spectrograms = 0.25 * (random.random((n, views, *SIZE)) + labels[:, None, None, None])
    return Examples(
        spectrograms.astype(np.float16),
        labels,
        {"validation": np.arange(2), "test": np.arange(2, 4), "train": np.arange(4, n)},
        np.array([f"clip{index}" for index in range(n)]),
        random.random((n, views, *GRID)) < 0.4 if masks else None,
    )


def test_the_learning_rate_is_halved_every_five_epochs() -> None:
    settings, steps = TrainingSettings(), 7
    factors = [schedule(step, steps, settings) for step in range(25 * steps)]
    assert factors == [0.5 ** (epoch // 5) for epoch in range(25) for _ in range(steps)]
    warm = TrainingSettings(warmup=4)
    assert [schedule(step, 2, warm) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_one_cycle_rises_for_three_tenths_and_falls_to_0() -> None:
    settings, steps = TrainingSettings(schedule="one_cycle", epochs=5), 20
    factors, done = np.array([schedule(step, steps, settings) for step in range(100)]), np.arange(1, 101) / 100
    up, down = 0.04 + 0.96 * np.sin(np.pi / 2 * done / 0.3) ** 2, np.cos(np.pi / 2 * (done - 0.3) / 0.7) ** 2
    np.testing.assert_allclose(factors, np.where(done < 0.3, up, down), atol=1e-12)
    assert factors[29] == factors.max() == 1 and factors[-1] == 0


def test_an_epoch_has_every_training_clip_once_in_a_random_view_and_order() -> None:
    examples = make_examples(train=10, views=4)
    epochs = [list(examples.epoch((0, 1, epoch), 4)) for epoch in range(40)]
    assert [len(clips) for clips, _ in epochs[0]] == [4, 4, 2]
    clips, views = np.stack([np.concatenate(batches, axis=1) for batches in epochs], axis=1)  # (40, 10) each
    assert (np.sort(clips) == np.arange(4, 14)).all() and len(np.unique(clips, axis=0)) == 40
    assert np.bincount(views.flat, minlength=4).min() > 60  # of 400, 100 each on average
    again = np.concatenate(list(examples.epoch((0, 1, 3), 4)), axis=1)
    assert np.array_equal(again, [clips[3], views[3]])


def loss_by_hand(model: SpectrogramDeiT, spectrograms: Tensor, labels: Tensor, masks: Tensor | None) -> Tensor:
    """Cross-entropy and, with masks, the mean squared error of the masked patches (Sections III-D and IV-B)."""
    if masks is None:
        return F.cross_entropy(model(spectrograms), labels)
    shown = torch.where(masked_cells(masks, SIZE), torch.zeros(()), spectrograms)
    logits, patches = model(shown, reconstruct=True)
    error = (patches - patchify(spectrograms)).square().mean(2)  # (B, 12)
    return F.cross_entropy(logits, labels) + error[masks.flatten(1)].mean()


@pytest.mark.parametrize("masked", [False, True], ids=["stage i", "stage ii"])
def test_steps_equal_adam_by_hand(masked: bool) -> None:
    settings = TrainingSettings(epochs=2, batch=6, lr=1e-3, head_lr=2e-3, halve_every=1, weight_decay=0.1, **TRAINING)
    examples, model, by_hand = make_examples(masks=masked), make_model(), make_model()
    fabric = make_fabric("cpu", "32-true")
    wrapped, optimizer = fabric.setup(model, training.make_optimizer(model, settings))
    moments = {name: (0.0, 0.0) for name, _ in by_hand.named_parameters()}
    batch = examples.batch(examples.parts["train"])
    objective = STAGE_II if masked else Objective()
    for epoch in range(2):
        row = training.train_epoch(fabric, wrapped, optimizer, examples, objective, settings, (0, epoch))
        by_hand.zero_grad()
        loss = loss_by_hand(by_hand, batch.spectrograms, batch.labels, batch.masks)
        loss.backward()
        # Sums over six clips in another order.
        assert row["train_loss"] + row.get("train_reconstruction", 0) == pytest.approx(loss.item(), rel=1e-5)
        with torch.no_grad():
            for name, parameter in by_hand.named_parameters():
                if parameter.grad is None:  # the reconstruction head in stage i
                    continue
                rate = 0.5**epoch * (2e-3 if name.startswith(("emotion_head", "reconstruction_head")) else 1e-3)
                first, second = moments[name]
                first, second = 0.9 * first + 0.1 * parameter.grad, 0.999 * second + 0.001 * parameter.grad**2
                moments[name] = first, second
                parameter *= 1 - rate * 0.1  # decoupled weight decay
                corrected = first / (1 - 0.9 ** (epoch + 1)), second / (1 - 0.999 ** (epoch + 1))
                parameter -= rate * corrected[0] / (corrected[1].sqrt() + 1e-8)
    # A gradient that is nearly 0 has no certain sign, and Adam steps by its sign: at most 3 steps of 1e-3 apart.
    pairs = zip(model.parameters(), by_hand.parameters(), strict=True)
    differences = torch.cat([(ours - theirs).flatten().abs() for ours, theirs in pairs])
    assert differences.max() < 3 * 2e-3 and (differences > 1e-5).float().mean() < 1e-3


@torch.no_grad()
def test_evaluation_uses_clean_unmasked_spectrograms_and_reconstructs_masked_ones() -> None:
    examples, model = make_examples(train=30, views=2, masks=True), make_model().eval()
    fabric = make_fabric("cpu", "32-true")
    probabilities, scores = training.evaluate(fabric, fabric.setup_module(model), examples, "train", STAGE_II)
    assert probabilities.shape == (30, 3)
    batch = examples.batch(examples.parts["train"])
    logits = model(batch.spectrograms)
    np.testing.assert_allclose(probabilities, logits.softmax(1), atol=1e-6)  # other batches, other sums
    assert scores["train_loss"] == pytest.approx(F.cross_entropy(logits, batch.labels).item(), rel=1e-5)
    assert scores["train_accuracy"] == (logits.argmax(1) == batch.labels).double().mean()
    shown = torch.where(masked_cells(batch.masks, SIZE), torch.zeros(()), batch.spectrograms)
    error = (model(shown, reconstruct=True)[1] - patchify(batch.spectrograms)).square().mean(2)
    assert scores["train_reconstruction"] == pytest.approx(error[batch.masks.flatten(1)].mean().item(), rel=1e-5)


def test_empty_masks_and_batches_of_one_clip_are_trained_on(tmp_path: Path) -> None:
    examples = make_examples(train=5, masks=True)
    examples = replace(examples, masks=np.zeros_like(examples.masks))
    settings = TrainingSettings(epochs=2, batch=4, schedule="one_cycle", **TRAINING)
    fit(make_model(), examples, STAGE_II, settings, tmp_path, (0,))
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["epoch"].tolist() == [1, 2] and history["lr"].iloc[-1] == 0
    assert "train_reconstruction" not in history and np.isfinite(history.to_numpy()).all()


def test_a_nan_loss_names_step_epoch_and_clips(tmp_path: Path) -> None:
    examples = make_examples(train=8)
    examples.spectrograms[7, 0, 3, 3] = np.nan
    settings = TrainingSettings(batch=2, **TRAINING)
    batches = [clips for clips, _ in examples.epoch((0, 0), 2)]
    step = next(number for number, clips in enumerate(batches) if 7 in clips)
    clips = ", ".join(examples.names[batches[step]])
    with pytest.raises(SamsgError, match=rf"The loss is nan at step {step + 1}/4 of epoch 1, on the clips {clips}\."):
        fit(make_model(), examples, Objective(), settings, tmp_path, (0,))
    assert not list(tmp_path.iterdir())


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_comes_first() -> None:
    rows = [(1, 0.5, 0.1), (2, 0.8, 0.9), (3, 0.8, 0.7), (4, 0.8, 0.7), (5, 0.7, 0.2)]
    names = ("epoch", "validation_accuracy", "validation_loss")
    assert best_epoch([dict(zip(names, row, strict=True)) for row in rows]) == 3


def test_the_weights_of_the_best_epoch_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []

    def scores(fabric: Any, model: Any, examples: Examples, part: str, objective: Objective) -> Any:
        if part == "validation":
            weights.append({name: tensor.clone() for name, tensor in model.module.state_dict().items()})
        return None, {f"{part}_loss": 1.0, f"{part}_accuracy": 1.0 if len(weights) == 2 else 0.5}

    monkeypatch.setattr(training, "evaluate", scores)
    model = make_model()
    fit(model, make_examples(), Objective(), TrainingSettings(epochs=4, lr=1e-3, **TRAINING), tmp_path, (0,))
    kept = load_file(tmp_path / "model.safetensors")
    for state in (kept, model.state_dict()):
        assert all(torch.equal(state[name], weights[1][name]) for name in weights[1])
    assert not all(torch.equal(weights[3][name], kept[name]) for name in kept)


def test_precision_is_decided_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for amx, avx512 in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=amx: value)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=avx512: value)
        assert best_precision(cpu) == ("bf16-mixed" if amx or avx512 else "32-true")
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, value=supported: value)
        assert best_precision(cuda) == ("bf16-mixed" if supported else "32-true")
    assert best_precision(torch.device("mps")) == "32-true"


def losses(folder: Path, precision: str = "32-true") -> np.ndarray:
    """Train 3 epochs; train, validation and test loss."""
    folder.mkdir()
    settings = TrainingSettings(epochs=3, lr=1e-4, precision=precision, device="cpu")
    fit(make_model(), make_examples(12, masks=True), STAGE_II, settings, folder, (0,))
    return pd.read_csv(folder / "history.csv").filter(regex="loss|reconstruction").to_numpy()


def test_bfloat16_and_fused_attention_differ_by_rounding_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses(tmp_path / "single")
    np.testing.assert_allclose(losses(tmp_path / "bf16", "bf16-mixed"), expected, rtol=0.03)  # 8 bits: 0.4 % a product
    monkeypatch.setattr(training, "FEW_TOKENS", 0)
    np.testing.assert_allclose(losses(tmp_path / "fused"), expected, rtol=1e-3)  # another order, through 9 Adam steps


def test_training_continues_in_its_precision_or_is_refused(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=1, **TRAINING)
    fit(make_model(), make_examples(), Objective(), settings, tmp_path, (0,))
    other = settings.model_copy(update={"epochs": 2, "precision": "bf16-mixed"})
    with pytest.raises(SamsgError, match=r"is in 32-true, and this machine would continue in bf16-mixed"):
        fit(make_model(), make_examples(), Objective(), other, tmp_path, (0,))
