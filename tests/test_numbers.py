"""Numbers that cannot lie: a loss that is none, clips and masks at the edge, one sound on both sides of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import samsg
from samsg.audio.store import WaveformStore
from samsg.settings import SamsgError
from samsg.training import loop
from samsg.training.stages import read_examples

SOUNDS = {"high": 2000, "low": 300}  # Hz


def tone(frequency: float, seed: int, seconds: float = 0.5) -> np.ndarray:
    """(S,): a tone in noise, another for each seed."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    return 0.3 * np.sin(2 * np.pi * frequency * time) + 0.01 * np.random.default_rng(seed).standard_normal(len(time))


@pytest.fixture
def corpus(home: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Path -> emotion and sound, 12 each; what ``opened`` writes."""
    return {
        f"{emotion}{number}.wav": (emotion, tone(frequency, number))
        for emotion, frequency in SOUNDS.items()
        for number in range(12)
    }


def opened(home: Path, corpus: dict[str, tuple[str, np.ndarray]], parts: dict | None = None, **changes) -> samsg.Run:
    """The corpus on disk, listed in a CSV, with the parts that are given, and a run on it."""
    (home / "own").mkdir()
    rows = []
    for number, (path, (emotion, samples)) in enumerate(corpus.items()):
        soundfile.write(home / "own" / path, samples, 16_000, subtype="FLOAT")
        row = {"path": path, "emotion": emotion, "speaker": f"s{number % 4}"}
        rows.append(row | ({"part": parts.get(path, "train")} if parts else {}))
    pd.DataFrame(rows).to_csv(home / "own/own.csv", index=False)
    settings = {
        "name": "own",
        "corpora": {"own": {"reader": str(home / "own/own.csv"), "synthetic": None, "root": str(home / "own")}},
        "audio": {"seconds": 0.5, "hop": 256},
        "model": {"depth": 1},
        "training": {"epochs": 1, "batch": 4, "precision": "32-true", "lr": 1e-3, "warmup": 0},
        "samsg": {"epochs": 1},
        "probe": {"epochs": 1},
    }
    for group, change in changes.items():
        settings[group] = {**settings.get(group, {}), **change}
    base = samsg.load_profile("smoke")
    content = base.model_dump()
    merged = {
        key: {**content[key], **value} if key not in ("name", "corpora") else value for key, value in settings.items()
    }
    return samsg.open_run(samsg.Profile(**{**content, **merged, "seeds": (0,)}), "own")


def run_all(run: samsg.Run) -> dict[str, pd.DataFrame]:
    """All stages; their histories."""
    samsg.prepare(run)
    samsg.train_baseline(run)
    samsg.compute_rollout(run)
    samsg.compute_masks(run)
    samsg.train_samsg(run)
    samsg.train_probe(run)
    stages = ("baseline", "samsg", "probe")
    histories = {stage: pd.read_csv(run.folder / stage / "history.csv") for stage in stages}
    for stage, history in histories.items():
        assert np.isfinite(history.to_numpy(dtype=float)).all(), stage
        assert np.isfinite(pd.read_csv(run.folder / stage / "predictions.csv").select_dtypes("number")).all(axis=None)
    return histories


def test_a_loss_that_is_no_number_names_step_epoch_stage_and_clips(home: Path, corpus: dict) -> None:
    run = opened(home, corpus, training={"lr": 1e30})
    samsg.prepare(run)
    with pytest.raises(SamsgError) as raised:
        samsg.train_baseline(run)
    examples = read_examples(run)
    batches = [clips for clips, _ in examples.epoch((0, 1, 0), 4, False)]
    said = str(raised.value)
    # The first step moves the weights by 1e30 each, so the second one's loss is none.
    assert said.startswith("The loss of step 2 of 4 in epoch 1 of baseline is nan; its clips: ")
    assert examples.said(batches[1]) in said and said.endswith("lower training.lr.")
    assert not (run.folder / "baseline").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_spectrograms_that_hold_no_numbers_are_named_and_no_others(home: Path, corpus: dict, value: float) -> None:
    run = opened(home, corpus)
    samsg.prepare(run)
    train = read_examples(run).parts["train"]
    views = np.lib.format.open_memmap(run.stage_folder("spectrograms") / "views.npy", "r+")
    views[:, train[5], 7, 7] = value
    views.flush()
    with pytest.raises(
        SamsgError, match=rf"spectrograms of {samsg.read_clips(run)['clip'][train[5]]} hold values that"
    ):
        samsg.train_baseline(run)


def test_weights_that_break_at_the_last_step_are_found_before_anything_is_kept(home: Path, corpus: dict) -> None:
    run = opened(home, corpus, training={"lr": 1e30, "batch": 24})  # one step: its own loss is in order
    samsg.prepare(run)
    with pytest.raises(SamsgError, match=r"The validation loss after epoch 1 of baseline is no number; its clips: "):
        samsg.train_baseline(run)
    assert not list(run.folder.rglob("model.safetensors"))


def test_where_a_look_waits_for_the_device_the_first_bad_step_is_found_later_and_named_all_the_same(
    home: Path, corpus: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, looks, refuse = opened(home, corpus, training={"lr": 1e30, "batch": 1}), [], loop._refuse_no_numbers

    def later(fabric: object, seen: list, *rest: object) -> None:
        looks.append(seen)
        together = [each for look in looks for each in look]
        if len(together) == 16:
            refuse(fabric, together, *rest)

    monkeypatch.setattr(loop, "_refuse_no_numbers", later)
    samsg.prepare(run)
    with pytest.raises(SamsgError, match="The loss of step 2 of 16 in epoch 1 of baseline is nan"):
        samsg.train_baseline(run)


def test_a_rollout_that_is_no_number_is_not_taken_for_a_view_without_one(home: Path, corpus: dict) -> None:
    run = opened(home, corpus)
    samsg.prepare(run)
    samsg.train_baseline(run)
    path = run.folder / "baseline/model.safetensors"
    state = load_file(path)
    state["vit.blocks.0.attn.qkv.weight"][0, 0] = torch.nan
    save_file(state, path)
    with pytest.raises(SamsgError, match=r"The rollout of high.* is no number"):
        samsg.compute_rollout(run)


def test_clips_that_are_silent_where_they_are_looked_at_are_trained_on(home: Path, corpus: dict) -> None:
    """Digital silence for the 0.5 s that the model sees, and a sound behind it: not left out, and black throughout."""
    for path in ("high0.wav", "low0.wav", "low1.wav"):
        emotion, samples = corpus[path]
        corpus[path] = (emotion, np.concatenate([np.zeros(9600), samples]))
    parts = {"low1.wav": "test", "high1.wav": "validation", "low2.wav": "validation", "high2.wav": "test"}
    run = opened(home, corpus, parts)
    run_all(run)
    clips, examples = samsg.read_clips(run), read_examples(run, masks=True)
    silent = np.flatnonzero(clips["clip"].isin(["high0.wav", "low0.wav", "low1.wav"]))
    assert (examples.spectrograms[0][silent] == 0).all()
    known = np.load(run.folder / "rollout/heat.npy")[0][silent]
    assert np.isfinite(known).all() and (known.max((1, 2)) == 1).all()


@pytest.mark.parametrize(
    ("mask", "share"),
    [({"strategy": "none"}, 0.0), ({"select": "share", "share": 0.0}, 0.0), ({"select": "share", "share": 1.0}, 1.0)],
)
def test_empty_and_full_masks_are_trained_on(home: Path, corpus: dict, mask: dict, share: float) -> None:
    run = opened(home, corpus, mask=mask)
    history = run_all(run)["samsg"]
    shares = pd.read_csv(run.folder / "masks/shares.csv")["share"]
    assert (shares == share).all()
    errors = history.filter(like="reconstruction").to_numpy()
    assert (errors == 0).all() if share == 0 else (errors > 0).all()


@pytest.mark.parametrize("batch", [1, 15])
def test_batches_of_one_clip_and_so_of_one_class_are_trained_on(home: Path, corpus: dict, batch: int) -> None:
    """16 training clips: with batches of 15 the last one holds a single clip."""
    run = opened(home, corpus, training={"batch": batch, "evaluation_batch": 3})
    assert len(run_all(run)["baseline"]) == 1
    assert [len(clips) for clips, _ in read_examples(run).epoch((0, 1, 0), batch, False)][-1] == 1


def test_the_same_sound_in_two_parts_is_refused_by_name(home: Path, corpus: dict) -> None:
    corpus["copy.wav"] = corpus["low3.wav"]
    parts = {"copy.wav": "test", "low2.wav": "validation", "high2.wav": "test", "high1.wav": "validation"}
    run = opened(home, corpus, parts)
    samsg.prepare(run)
    with pytest.raises(
        SamsgError, match=r"same sound of low as copy\.wav \(test\), low3\.wav \(train\)\. Keep one copy"
    ):
        samsg.train_baseline(run)


def test_the_same_file_under_two_names_is_the_same_sound(home: Path, corpus: dict) -> None:
    run = opened(home, corpus, {"low2.wav": "validation", "high2.wav": "test", "high1.wav": "validation"})
    table = home / "own/own.csv"
    table.write_text(table.read_text() + "./low3.wav,low,s0,test\n")
    samsg.prepare(run)
    with pytest.raises(SamsgError, match=r"same sound of low as \./low3\.wav \(test\), low3\.wav \(train\)"):
        samsg.read_clips(run)


def test_the_same_sound_in_one_part_or_under_two_emotions_is_said_and_kept(home: Path, corpus: dict, capsys) -> None:
    """CREMA-D publishes three recordings under two emotions each: whoever learns one of them is wrong on the other."""
    corpus["copy.wav"] = corpus["low3.wav"]
    corpus["other.wav"] = ("high", corpus["low4.wav"][1])
    parts = {"other.wav": "test", "low2.wav": "validation", "high2.wav": "validation", "low1.wav": "test"}
    run = opened(home, corpus, parts)
    samsg.prepare(run)
    said = capsys.readouterr().out
    assert "The same sound more than once, as low: copy.wav, low3.wav\n" in said
    assert "The same sound more than once, as high: other.wav; as low: low4.wav\n" in said
    assert len(samsg.read_clips(run)) == 26


def test_a_checksum_alone_does_not_make_two_sounds_the_same(home: Path, corpus: dict) -> None:
    run = opened(home, corpus)
    samsg.prepare(run)
    folder = run.stage_folder("waveforms")
    table = pd.read_csv(folder / "clips.csv", dtype=str)
    table.assign(crc32="1234").to_csv(folder / "clips.csv", index=False)
    assert WaveformStore(folder).twins() == []
    assert set(WaveformStore(folder).clips["crc32"]) == {"1234"}
