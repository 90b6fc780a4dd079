"""The loop and the three stages (Sections III-D and IV-B), on a tiny corpus of tones."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

import samsg
from samsg.settings import SamsgError, TrainingSettings
from samsg.training import loop
from samsg.training.stages import read_examples

CLASSES = {"high": 2000, "low": 300, "middle": 900}  # Hz


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a corpus of three classes, twelve noisy tones each, and a profile that trains on it."""
    monkeypatch.setenv("SAMSG_HOME", str(tmp_path))
    random, lines = np.random.default_rng(0), ["path,emotion,speaker"]
    (tmp_path / "tones").mkdir()
    for emotion, frequency in CLASSES.items():
        for number in range(12):
            time = np.arange(8000) / 16_000
            tone = 0.3 * np.sin(2 * np.pi * frequency * random.uniform(0.9, 1.1) * time)
            soundfile.write(
                tmp_path / f"tones/{emotion}{number}.wav", tone + 0.01 * random.standard_normal(8000), 16_000
            )
            lines.append(f"tones/{emotion}{number}.wav,{emotion},s{number % 4}")
    (tmp_path / "tones.csv").write_text("\n".join(lines))
    profile = {
        "extends": "smoke",
        "corpora": {"tones": {"reader": str(tmp_path / "tones.csv"), "root": "."}},
        "audio": {"seconds": 0.5, "hop": 256},
        "model": {"depth": 1},
        "training": {"epochs": 3, "batch": 4, "precision": "32-true", "lr": 1e-3, "warmup": 5},
        "samsg": {"epochs": 2},
        "probe": {"epochs": 2},
    }
    (tmp_path / "tones.yaml").write_text(yaml.safe_dump(profile))
    return tmp_path


def run_of(home: Path, seed: int = 0, **changes: object) -> samsg.Run:
    return samsg.open_run(samsg.load_profile(home / "tones.yaml", **changes), "tones", "random", seed)


def run_all(run: samsg.Run) -> None:
    samsg.prepare(run)
    for stage in (
        samsg.train_baseline,
        samsg.compute_rollout,
        samsg.compute_masks,
        samsg.train_samsg,
        samsg.train_probe,
    ):
        stage(run)


def test_the_whole_chain_leaves_what_the_tables_need(home: Path) -> None:
    run = run_of(home)
    run_all(run)
    clips = samsg.read_clips(run)
    for stage, epochs in {"baseline": 3, "samsg": 2, "probe": 2}.items():
        predictions = pd.read_csv(run.folder / stage / "predictions.csv")
        wanted = clips[clips["part"].isin(["validation", "test"])]
        assert sorted(predictions["clip"]) == sorted(wanted["clip"])
        probabilities = predictions[[f"p_{emotion}" for emotion in sorted(CLASSES)]]
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=2e-6)  # six decimals each
        likeliest = probabilities.idxmax(axis=1).str.removeprefix("p_")
        assert (likeliest == predictions["predicted"]).mean() > 0.95  # rounding may make a tie
        history = pd.read_csv(run.folder / stage / "history.csv")
        assert history["epoch"].tolist() == list(range(1, epochs + 1))
        assert history.notna().all(axis=None)
        if stage == "samsg":
            assert (history.filter(like="reconstruction") > 0).all(axis=None)
        assert not list((run.folder / stage).glob("*.pt")), "the checkpoint is of no use after the stage"
    record = json.loads((run.folder / "run.json").read_text())
    assert list(record["stages"]) == sorted(["baseline", "rollout", "masks", "samsg", "probe"])
    assert len(record["corpus_fingerprint"]) == 64
    arithmetic = json.loads((run.folder / "samsg/arithmetic.json").read_text())
    assert arithmetic == {"device": "cpu", "precision": "32-true", "processes": 1}


def test_a_label_that_changed_since_it_was_read_is_noticed(home: Path) -> None:
    run = run_of(home)
    samsg.prepare(run)
    table = (home / "tones.csv").read_text()
    (home / "tones.csv").write_text(table.replace("tones/low3.wav,low,", "tones/low3.wav,high,"))
    with pytest.raises(SamsgError, match=r"1 sounds in .*, or what is said of them, .* such as tones/low3\.wav"):
        samsg.prepare(run)


def test_a_second_process_waits_for_the_first_and_takes_what_it_made(home: Path, capsys) -> None:
    run, made = run_of(home), []

    def work(folder: Path) -> None:
        made.append(folder)
        time.sleep(3)
        (folder / "done").touch()

    threads = [threading.Thread(target=run.make, args=("waveforms", work)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (run.require("waveforms") / "done").is_file()
    assert "Another process is working on" in capsys.readouterr().out


def test_sounds_that_changed_since_they_were_read_are_refused(home: Path) -> None:
    run = run_of(home)
    samsg.prepare(run)
    samsg.prepare(run)
    soundfile.write(home / "tones/low3.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 8000), 16_000)
    with pytest.raises(SamsgError, match=r"1 sounds in .* such as tones/low3\.wav"):
        samsg.prepare(run)


def test_results_on_other_sounds_are_not_taken_for_these(home: Path) -> None:
    """Same names, same lengths, other samples: what was trained on them must not be used."""
    run = run_of(home)
    samsg.prepare(run)
    samsg.train_baseline(run)
    sound, rate = soundfile.read(home / "tones/low3.wav")
    soundfile.write(home / "tones/low3.wav", sound[::-1], rate)
    for name in ("waveforms", "spectrograms"):
        shutil.rmtree(run.stage_folder(name))
    samsg.prepare(run)
    with pytest.raises(SamsgError, match="fingerprint was"):
        samsg.compute_rollout(run)


def test_tones_are_learned(home: Path) -> None:
    run = run_of(home, training={"epochs": 40, "halve_every": 40})
    samsg.prepare(run)
    samsg.train_baseline(run)
    history = pd.read_csv(run.folder / "baseline/history.csv")
    assert history["train_loss"].iloc[0] > 0.8  # ln 3 = 1.1 before it has learned
    assert history["train_loss"].iloc[-1] < 0.55  # half of that
    assert history["validation_accuracy"].max() >= 5 / 6


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(home: Path) -> None:
    texts = []
    names = [
        *("baseline/model.safetensors", "rollout/heat.npy", "masks/masks.npy", "samsg/model.safetensors"),
        *("probe/model.safetensors", "probe/predictions.csv"),
    ]
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        (home / f"{name}.yaml").write_text((home / "tones.yaml").read_text())
        run = samsg.open_run(samsg.load_profile(home / f"{name}.yaml"), "tones", "random", seed)
        run_all(run)
        texts.append({file: (run.folder / file).read_bytes() for file in names})
    assert texts[0] == texts[1]
    assert not [file for file in names if texts[0][file] == texts[2][file]]


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_stage_goes_on_to_the_same_result(
    home: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    (home / "undisturbed.yaml").write_text((home / "tones.yaml").read_text())
    undisturbed = samsg.open_run(samsg.load_profile(home / "undisturbed.yaml"), "tones")
    samsg.prepare(undisturbed)
    samsg.train_baseline(undisturbed)
    run, evaluate, calls = run_of(home), loop.evaluate, []
    samsg.prepare(run)

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2 * epoch + 1:  # two evaluations an epoch
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        samsg.train_baseline(run)
    assert not (run.folder / "baseline").exists()
    with pytest.raises(SamsgError, match="02_baseline"):
        run.require("baseline")
    monkeypatch.setattr(loop, "evaluate", evaluate)
    samsg.train_baseline(run)
    columns = ["epoch", "train_loss", "validation_loss", "validation_accuracy", "test_loss", "lr"]
    histories = [pd.read_csv(each.folder / "baseline/history.csv")[columns] for each in (undisturbed, run)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert (run.folder / "baseline/predictions.csv").read_bytes() == (
        undisturbed.folder / "baseline/predictions.csv"
    ).read_bytes()


def test_the_probe_changes_the_class_token_and_the_linear_layer_alone(home: Path) -> None:
    run = run_of(home)
    run_all(run)
    before, after = (load_file(run.folder / stage / "model.safetensors") for stage in ("samsg", "probe"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"vit.cls_token", "emotion_head.weight", "emotion_head.bias"}


def test_stage_ii_starts_from_stage_i(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(home)
    samsg.prepare(run)
    samsg.train_baseline(run)
    samsg.compute_rollout(run)
    samsg.compute_masks(run)
    seen = {}

    def spy(fabric: object, model: torch.nn.Module, examples: object, losses: loop.Losses, *rest: object) -> None:
        seen.update(weights={name: tensor.clone() for name, tensor in model.state_dict().items()}, losses=losses)
        raise InterruptedError

    monkeypatch.setattr("samsg.training.stages.fit", spy)
    with pytest.raises(InterruptedError):
        samsg.train_samsg(run)
    baseline = load_file(run.folder / "baseline/model.safetensors")
    assert all(torch.equal(baseline[name], seen["weights"][name]) for name in baseline)
    assert seen["losses"].masked and seen["losses"].reconstruction == 1 and not seen["losses"].evaluate_masked


def test_rollouts_are_of_the_training_views_and_of_the_others_clean_view(home: Path) -> None:
    run = run_of(home)
    run_all(run)
    heat = np.load(run.folder / "rollout/heat.npy")
    examples, known = read_examples(run), ~np.isnan(heat).any((2, 3))
    held_out = np.concatenate([examples.parts["validation"], examples.parts["test"]])
    assert known[:, examples.parts["train"]].all()
    assert known[0, held_out].all() and not known[1:, held_out].any()
    np.testing.assert_allclose(heat.max((2, 3))[known], 1, atol=1e-3)  # stored in half precision
    masks = np.load(run.folder / "masks/masks.npy")
    stretched = heat[known] - heat[known].min((1, 2), keepdims=True)  # the profile's mask.scale is minmax
    assert (masks[known] == (stretched > 0.5 * stretched.max((1, 2), keepdims=True))).mean() > 0.999  # half precision
    assert 0 < masks[known].mean() < 1 and not masks[~known].any()


def test_the_learning_rate_is_halved_every_five_epochs() -> None:
    training = TrainingSettings()
    rates = [loop.learning_rate(1000, epoch, training) for epoch in range(25)]
    assert rates[:6] == [1e-5] * 5 + [5e-6]
    assert rates[24] == 1e-5 / 16
    warm = TrainingSettings(warmup=4)
    assert [loop.learning_rate(step, 0, warm) for step in range(5)] == pytest.approx([2.5e-6, 5e-6, 7.5e-6, 1e-5, 1e-5])


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_comes_first() -> None:
    rows = [(1, 0.5, 0.1), (2, 0.8, 0.9), (3, 0.8, 0.7), (4, 0.8, 0.7), (5, 0.7, 0.2)]
    history = pd.DataFrame(rows, columns=["epoch", "validation_accuracy", "validation_loss"])
    assert loop.best_epoch(history) == 3


def examples_of(n_views: int, n_train: int) -> loop.Examples:
    spectrograms = np.zeros((n_views, n_train + 2, 16, 16), np.float16)
    parts = {"train": np.arange(2, n_train + 2), "validation": np.array([0]), "test": np.array([1])}
    return loop.Examples(spectrograms, np.zeros(n_train + 2, int), parts)


def test_an_epoch_shows_every_training_clip_once_in_an_order_of_its_own() -> None:
    examples = examples_of(4, 10)
    epochs = [list(examples.epoch((0, 1, epoch), 4, False)) for epoch in range(40)]
    for batches in epochs:
        clips = np.concatenate([clips for clips, _ in batches])
        assert sorted(clips) == list(range(2, 12))
        assert [len(clips) for clips, _ in batches] == [4, 4, 2]
    orders = {tuple(np.concatenate([clips for clips, _ in batches])) for batches in epochs}
    assert len(orders) == 40
    views = np.concatenate([views for batches in epochs for _, views in batches])
    assert np.bincount(views, minlength=4).min() > 60  # of 400, 100 each on average


def test_an_epoch_of_all_views_shows_each_once() -> None:
    pairs = [pair for clips, views in examples_of(4, 5).epoch((0,), 4, True) for pair in zip(clips, views, strict=True)]
    assert sorted(pairs) == [(clip, view) for clip in range(2, 7) for view in range(4)]


def test_bf16_agrees_with_fp32(home: Path) -> None:
    """bfloat16 keeps 8 bits: losses agree to about 1 %, which is what separates precision from another algorithm."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        (home / f"{precision}.yaml").write_text((home / "tones.yaml").read_text())
        profile = samsg.load_profile(home / f"{precision}.yaml", training={"precision": precision, "epochs": 1})
        run = samsg.open_run(profile, "tones")
        samsg.prepare(run)
        samsg.train_baseline(run)
        losses.append(pd.read_csv(run.folder / "baseline/history.csv")[["train_loss", "test_loss"]].to_numpy())
    np.testing.assert_allclose(*losses, rtol=0.05)


@pytest.mark.parametrize(
    ("stage", "notebook"),
    [
        (samsg.train_baseline, "01_data_preparation"),
        (samsg.compute_rollout, "02_baseline"),
        (samsg.compute_masks, "03_attention_rollout"),
        (samsg.train_samsg, "02_baseline"),
        (samsg.train_probe, "05_self_supervised"),
    ],
)
def test_a_stage_without_the_one_before_names_its_notebook(home: Path, stage: object, notebook: str) -> None:
    run = run_of(home)
    if stage is not samsg.train_baseline:
        samsg.prepare(run)
    with pytest.raises(SamsgError, match=notebook):
        stage(run)


def test_a_changed_setting_is_an_error_that_shows_the_difference(home: Path) -> None:
    samsg.prepare(run_of(home))
    with pytest.raises(SamsgError, match=r"audio\.hop was 256 and is now 128"):
        samsg.prepare(run_of(home, audio={"hop": 128}))


def test_each_way_to_be_faster_changes_no_more_than_rounding_does(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(name: str, precision: str = "32-true") -> np.ndarray:
        training = {"precision": precision, "lr": 1e-4, "warmup": 0}
        run = run_of(home, name=name, training=training)
        samsg.prepare(run)
        history = pd.read_csv(samsg.train_baseline(run) / "history.csv")
        return history[["train_loss", "validation_loss", "test_loss"]].to_numpy()

    as_it_is = losses("quick")
    monkeypatch.setattr(loop, "FEW_TOKENS", 0)
    fused = losses("fused")
    monkeypatch.setattr(samsg.SpectrogramDeiT, "leading_tokens", lambda model, x: model.tokens(x)[:, :2])
    full = losses("full")
    # Single precision in another order, through 18 steps of Adam.
    np.testing.assert_allclose(fused, as_it_is, rtol=1e-3)
    np.testing.assert_allclose(full, as_it_is, rtol=1e-3)
    monkeypatch.undo()
    monkeypatch.setenv("SAMSG_HOME", str(home))
    # bfloat16 keeps 8 bits: 0.4 % a product.
    np.testing.assert_allclose(losses("rounded", "bf16-mixed"), as_it_is, rtol=0.03)
