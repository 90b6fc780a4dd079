"""A run and its stages: each is whole or absent, made once, and records what it was made from (Fig. 1)."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from toys import CLASSES, TRAINING, write_tone_corpus

import samsg
from samsg import stages, storage, studies
from samsg.settings import REPOSITORY, Profile, SamsgError, load_profile
from samsg.stages import STAGES, WORK, Run, open_run
from samsg.storage import atomic, write_json


def files(folder: Path) -> set[str]:
    """The files below a folder, without locks."""
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The finished run on the toy corpus, to be read and not changed."""
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    return open_run(finished / "tones.yaml", "tones")


@pytest.fixture
def copy(finished: Path, home: Path) -> Run:
    """A copy of the finished run, with its corpus, in another home folder."""
    shutil.copytree(finished, home, dirs_exist_ok=True)
    profile = home / "tones.yaml"
    profile.write_text(profile.read_text().replace(str(finished), str(home)))
    return open_run(profile, "tones")


# The order of stages


def test_everything_about_the_order_follows_from_one_list(home: Path) -> None:
    assert list(WORK) == list(STAGES) == ["spectrograms", "baseline", "rollout", "masks", "samsg", "probe"]
    notebooks = [stage.notebook for stage in STAGES.values()]
    assert notebooks == sorted(notebooks) and [name[:2] for name in notebooks] == ["01", "02", "03", "04", "05", "06"]
    assert all((REPOSITORY / "notebooks" / f"{name}.ipynb").is_file() for name in notebooks)
    run = open_run("smoke", "emodb", "speaker", 2)
    earlier: list[str] = []
    for name, stage in STAGES.items():
        earlier += stage.groups
        assert list(run.settings(name)) == earlier
        with pytest.raises(
            SamsgError, match=rf"'{name}' of emodb \(speaker, seed 2\).*Notebook {stage.notebook}\.ipynb"
        ):
            run.require(name)
    other = {"name", "description", "corpora", "protocols", "seeds", "variant_of"}
    assert set(earlier) == set(Profile.model_fields) - other  # every group of settings belongs to one stage
    assert len(earlier) == len(set(earlier))


def test_spectrograms_are_shared_by_all_runs_of_a_corpus(home: Path) -> None:
    runs = [open_run("smoke", "savee", protocol, seed) for protocol, seed in (("random", 0), ("speaker", 3))]
    folders = [[each.stage_folder(name) for name in ("spectrograms", "probe")] for each in runs]
    root = home / "runs/smoke/savee"
    assert folders[0] == [root / "spectrograms", root / "random/seed0/probe"]
    assert folders[1] == [root / "spectrograms", root / "speaker/seed3/probe"]
    assert runs[0].identity("spectrograms") == runs[1].identity("spectrograms")
    assert runs[0].identity("baseline") != runs[1].identity("baseline")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "smok"}, "no profile 'smok'.*Did you mean 'smoke'"),
        ({"corpus": "emdb"}, "Profile 'smoke' has no corpus 'emdb'.*Did you mean 'emodb'"),
        ({"protocol": "sentense"}, "no protocol 'sentense'.*Did you mean 'sentence'"),
        ({"seed": -1}, "A seed is a whole number from 0; got -1"),
        ({"seed": "0"}, "A seed is a whole number from 0; got '0'"),
    ],
)
def test_unknown_names_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SamsgError, match=message):
        open_run(**{"profile": "smoke", "corpus": "emodb", **changes})


# Whole or absent


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a/b.txt"
    with atomic(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), atomic(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new" and files(tmp_path) == {"a/b.txt"}
    write_json(path, {"b": 1, "a": {"d": [1, 2], "c": None}})
    first = path.read_bytes()
    write_json(path, {"a": {"c": None, "d": [1, 2]}, "b": 1})
    assert path.read_bytes() == first


def test_a_stage_is_made_once_and_records_its_settings(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folders = open_run("smoke", "emodb"), []
    for _ in range(3):
        assert run.make("spectrograms", folders.append, "abc") == home / "runs/smoke/emodb/spectrograms"
    assert [folder.name for folder in folders] == ["spectrograms.partial"]
    assert files(home / "runs/smoke/emodb") == {"spectrograms/settings.json", "spectrograms/record.json"}
    assert "Stage 'spectrograms': loaded from an earlier run, runs/smoke/emodb/spectrograms." in capsys.readouterr().out
    folder = run.stage_folder("spectrograms")
    assert json.loads((folder / "settings.json").read_text()) == run.identity("spectrograms", "abc")
    assert run.identity("baseline")["fingerprint"] == "abc"
    record = json.loads((folder / "record.json").read_text())
    assert Profile(**record["profile"]) == run.profile
    assert record["versions"] == {name: importlib.metadata.version(name) for name in storage.PACKAGES}
    assert record["seconds"] >= 0 and record["code"] and record["gpu"] and record["finished"].endswith("Z")
    line = storage.versions()
    assert "\n" not in line and f"torch {importlib.metadata.version('torch')}" in line


def test_an_interrupted_stage_is_absent_and_continues_with_the_same_settings_only(home: Path) -> None:
    found: list[set[str]] = []

    def work(folder: Path) -> None:
        found.append(files(folder))
        (folder / "checkpoint.pt").touch()
        if len(found) < 3:
            raise KeyboardInterrupt

    for rate in (0.25, 0.25, 0.5):
        run = open_run(load_profile("smoke", training={"lr": rate}), "emodb")
        if len(found) < 2:
            with pytest.raises(KeyboardInterrupt):
                run.make("baseline", work)
            assert not run.stage_folder("baseline").exists() and not run.is_finished("baseline")
        else:
            run.make("baseline", work)
    settings = {"settings.json"}
    assert found == [settings, settings | {"checkpoint.pt"}, settings]  # emptied for another learning rate
    assert files(run.stage_folder("baseline").parent) == {"baseline/settings.json", "baseline/record.json"}


def test_a_stage_of_other_settings_is_refused_with_the_difference(home: Path) -> None:
    run = open_run(load_profile("smoke", training={"lr": 0.25}), "emodb")
    run.make("baseline", lambda folder: (folder / "model").touch())
    other = open_run(load_profile("smoke", training={"lr": 0.5}, mask={"fill": 1.0}), "emodb")
    for ask in (other.require, other.is_finished, lambda name: other.make(name, lambda folder: None)):
        with pytest.raises(SamsgError) as error:
            ask("baseline")
        assert "training.lr was 0.25 and is now 0.5. Give the changed profile another name, or remove" in str(
            error.value
        )
        assert "mask" not in str(error.value)  # of a later stage
    assert (run.require("baseline") / "model").exists()


def test_a_second_worker_waits_and_takes_what_the_first_made(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folders = open_run("smoke", "emodb"), []

    def work(folder: Path) -> None:
        folders.append(folder)
        time.sleep(2.5)

    threads = [threading.Thread(target=run.make, args=("spectrograms", work)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 1 and run.is_finished("spectrograms")
    assert "Another process is working on" in capsys.readouterr().out


# What a stage depends on


def test_a_moved_corpus_and_home_invalidate_nothing(copy: Run, home: Path) -> None:
    (home / "elsewhere").mkdir()
    for path in home.glob("*.wav"):
        path.rename(home / "elsewhere" / path.name)
    before = {path: path.stat().st_mtime_ns for path in (home / "runs").rglob("*") if path.suffix != ".lock"}
    moved = load_profile(home / "tones.yaml", corpora={"tones": {"root": "elsewhere", "title": "T", "note": "new"}})
    run = open_run(moved, "tones")
    assert samsg.run_stages(run) == copy.stage_folder("probe")
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("change", ["sound", "label", "speaker", "clip"])
def test_a_changed_corpus_is_refused(copy: Run, home: Path, change: str) -> None:
    stages.check_sounds(copy)
    table = (home / "tones.csv").read_text()
    assert "low3.wav,low,s3,a" in table
    if change == "sound":
        samples, rate = soundfile.read(home / "low3.wav", dtype="int16")
        samples[100] += 1
        soundfile.write(home / "low3.wav", samples, rate)
    line = {"label": "low3.wav,high,s3,a", "speaker": "low3.wav,low,s0,a", "clip": ""}.get(change, "low3.wav,low,s3,a")
    (home / "tones.csv").write_text(table.replace("low3.wav,low,s3,a", line))
    for ask in (samsg.prepare, stages.check_sounds):
        with pytest.raises(SamsgError, match="was made with other settings or sounds: fingerprint was"):
            ask(copy)
    shutil.rmtree(copy.stage_folder("spectrograms"))
    samsg.prepare(copy)
    with pytest.raises(SamsgError, match="baseline was made with other settings or sounds: fingerprint was"):
        samsg.train_baseline(copy)


def test_a_missing_corpus_and_undeclared_synthetic_speech_are_refused(home: Path) -> None:
    run = open_run("paper", "emodb")
    with pytest.raises(SamsgError, match=r"EmoDB was expected in .*data/emodb"):
        samsg.prepare(run)
    (home / "data/emodb").mkdir(parents=True)
    (home / "data/emodb/SYNTHETIC.txt").touch()
    with pytest.raises(SamsgError, match="holds synthetic speech, but profile 'paper' has no 'synthetic' entry"):
        stages.check_sounds(run)
    stages.check_sounds(open_run("demo", "emodb"))  # it will be spoken
    assert files(home) == {"data/emodb/SYNTHETIC.txt"}


def test_a_variant_shares_the_stages_that_it_does_not_change(copy: Run, home: Path) -> None:
    variant = studies.Variant("random masks", {"mask": {"strategy": "random"}})
    run = studies.variant_run(copy, variant)
    shared = [name for name in STAGES if run.stage_folder(name) == copy.stage_folder(name)]
    assert shared == ["spectrograms", "baseline", "rollout"]
    before = files(home)
    samsg.run_stages(run)
    added = {path.split("/")[-2] for path in files(home) - before}
    assert added == {"masks", "samsg", "probe"} and run.profile.name.startswith("tones.")
    found = samsg.find_run(f"{run.profile.name}/tones")
    assert found is not None and found.profile.model_dump() == run.profile.model_dump()
    assert [found.stage_folder(name) for name in STAGES] == [run.stage_folder(name) for name in STAGES]


# What the stages leave


def test_the_toy_corpus_is_learned(run: Run) -> None:
    history = stages.read_history(run, "baseline")
    assert history["train_loss"].iloc[0] > 1 > history["train_loss"].iloc[3:].min()  # ln 3 = 1.1 is a guess
    assert history["validation_accuracy"].max() >= 6 / 7  # of three classes


def test_every_training_stage_leaves_history_predictions_and_weights(run: Run) -> None:
    clips = samsg.read_clips(run)
    assert clips["part"].value_counts().to_dict() == {"train": 28, "validation": 7, "test": 7}
    assert set(clips["samples"]) == {6400}
    for stage, epochs in {"baseline": 6, "samsg": 2, "probe": 1}.items():
        assert {"settings.json", "record.json", "history.csv", "model.safetensors", "predictions.csv"} == files(
            run.require(stage)
        )
        history = stages.read_history(run, stage)
        assert history["epoch"].tolist() == list(range(1, epochs + 1)) and history.notna().all(axis=None)
        assert ("test_reconstruction" in history) == (stage == "samsg")
        tables = [stages.read_predictions(run, stage, part) for part in ("validation", "test")]
        for part, table in zip(("validation", "test"), tables, strict=True):
            assert table["clip"].tolist() == clips.loc[clips["part"] == part, "clip"].tolist()
            assert set(table["seed"]) == {0} and set(table["speaker"]) <= {"s0", "s1", "s2", "s3"}
            probabilities = table[[f"p_{emotion}" for emotion in sorted(CLASSES)]]
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=2e-6)  # six decimals each
            assert (probabilities.idxmax(axis=1).str.removeprefix("p_") == table["predicted"]).all()
        best = history.loc[history["validation_accuracy"].idxmax(), "validation_accuracy"]
        assert (tables[0]["predicted"] == tables[0]["emotion"]).mean() == pytest.approx(best)
    svm = stages.svm_predictions(run)
    assert svm["clip"].tolist() == tables[1]["clip"].tolist() and (svm["predicted"] == svm["emotion"]).mean() >= 6 / 7


def test_rollouts_and_masks_are_of_all_training_views_and_of_the_clean_held_out_clips(run: Run) -> None:
    heat, masks = np.load(run.require("rollout") / "heat.npy"), np.load(run.require("masks") / "masks.npy")
    examples, known = samsg.read_examples(run, masks=True), ~np.isnan(heat).any((2, 3))
    held_out = np.concatenate([examples.parts["validation"], examples.parts["test"]])
    assert known[examples.parts["train"]].all() and known[held_out, 0].all() and not known[held_out, 1:].any()
    clips, views = (np.array([0, 20, 41]), 0)
    model = samsg.load_model(run, "baseline")
    expected = samsg.attention_rollout(model, examples.batch(clips, views).spectrograms)
    np.testing.assert_allclose(heat[clips, views], expected, rtol=1e-5)  # another batch, another order of sums
    low, high = (reduce(heat[known], axis=(1, 2), keepdims=True) for reduce in (np.min, np.max))
    assert np.array_equal(masks[known], (heat[known] - low) / (high - low) > 0.5)  # the profile's scale is minmax
    assert not masks[~known].any() and np.array_equal(examples.masks, masks)
    shares = stages.read_table(run.require("masks") / "shares.csv")
    assert len(shares) == known.sum() == 28 * 4 + 14
    np.testing.assert_allclose(shares["share"], masks[known].mean((1, 2)), rtol=1e-6)


def test_padding_is_not_masked_where_it_is_excluded(home: Path) -> None:
    # Hop 64: 12 columns of patches. The last one begins with frame 110, whose window begins 384 samples after the end.
    profile = write_tone_corpus(
        home,
        audio={"seconds": 0.5, "hop": 64},
        mask={"strategy": "random", "padding": "exclude", "select": "share", "share": 0.5},
        training={**TRAINING, "epochs": 1},
    )
    run = open_run(profile, "tones")
    samsg.run_stages(run, "masks")
    clean = np.load(run.require("masks") / "masks.npy")[:, 0]
    assert clean.shape == (42, 12, 12) and clean[..., :11].any((0, 1)).all() and not clean[..., 11].any()
    shares = stages.read_table(run.require("masks") / "shares.csv").query("view == 'clean'")
    np.testing.assert_allclose(shares["share_of_speech"], shares["share"] * 12 / 11, rtol=1e-6)


def test_stage_ii_starts_from_stage_i_or_from_its_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    start: dict[str, torch.Tensor] = {}

    def note(run: Run, folder: Path, model: Any, objective: Any, changes: Any) -> None:
        start.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        assert objective.masked and objective.classification == objective.reconstruction == 1
        assert changes is run.profile.samsg
        raise InterruptedError

    monkeypatch.setattr(stages, "_train", note)
    monkeypatch.setattr(Run, "make", lambda run, name, work: work(Path()))
    samsg_settings = run.profile.samsg.model_copy(update={"start": "initial"})
    initial = open_run(run.profile.model_copy(update={"samsg": samsg_settings}), "tones")
    baseline = load_file(run.require("baseline") / "model.safetensors")
    for each, expected in ((run, baseline), (initial, samsg.new_model(run).state_dict())):
        with pytest.raises(InterruptedError):
            samsg.train_samsg(each)
        assert all(torch.equal(start[name], expected[name]) for name in expected)


def test_the_probe_trains_the_cls_token_and_the_head_alone(run: Run) -> None:
    before, after = (load_file(run.require(stage) / "model.safetensors") for stage in ("samsg", "probe"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"vit.cls_token", "emotion_head.weight", "emotion_head.bias"}
    probe = samsg.new_probe(run)
    assert {name for name, parameter in probe.named_parameters() if parameter.requires_grad} == changed
    assert sum(parameter.numel() for parameter in probe.parameters() if parameter.requires_grad) == 192 + 3 * 192 + 3
    assert not torch.equal(probe.emotion_head.weight, before["emotion_head.weight"])
    kept = run.profile.model_copy(update={"probe": run.profile.probe.model_copy(update={"head": "stage_ii"})})
    assert torch.equal(samsg.new_probe(open_run(kept, "tones")).emotion_head.weight, before["emotion_head.weight"])


def test_text_in_tables_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("clip,emotion,predicted,p_None,speaker,epoch,lr\n01,None,NA,0.5,,1,\n1e3,nan,None,,007,2,0.5\n")
    table = stages.read_table(path)
    assert table[["clip", "emotion", "predicted", "speaker"]].to_numpy().tolist() == [
        ["01", "None", "NA", ""],
        ["1e3", "nan", "None", "007"],
    ]
    assert table["p_None"].isna().tolist() == [False, True] and table["epoch"].tolist() == [1, 2]


def test_a_class_none_and_a_clip_01_pass_the_whole_chain(home: Path) -> None:
    profile = write_tone_corpus(home, training={**TRAINING, "epochs": 1})
    table = pd.read_csv(home / "tones.csv").replace({"emotion": {"high": "None", "low": "01"}})
    table.to_csv(home / "tones.csv", index=False)
    run = open_run(profile, "tones")
    samsg.run_stages(run)
    assert samsg.emotions_of(samsg.read_clips(run)) == ["01", "None", "middle"]
    predictions = stages.read_predictions(run, "probe")
    assert set(predictions["emotion"]) == {"01", "None", "middle"} and "p_None" in predictions


# Finding runs


def test_runs_are_found_by_name_or_folder(run: Run, finished: Path) -> None:
    folder = finished / "runs/tones/tones/random/seed0"
    for name in ("tones/tones", "tones/tones/random", "tones/tones/random/seed0", folder, f"{folder}/"):
        assert samsg.find_run(name) == run
    for name in ("", "tones", "tones/tones/speaker", "tones/tones/random/seed0/probe", "../runs", "/", "../../etc/x"):
        assert samsg.find_run(name) is None


def test_finished_runs_are_those_with_a_last_stage(home: Path) -> None:
    profile = load_profile("smoke", seeds=[0, 1, 2])
    with pytest.raises(SamsgError, match="No corpus of profile 'smoke' is finished under protocol 'random'"):
        samsg.finished_runs(profile)
    for corpus, seed, stage in (("emodb", 0, "probe"), ("emodb", 2, "probe"), ("savee", 1, "baseline")):
        open_run(profile, corpus, "random", seed).make(stage, lambda folder: None)
    assert samsg.finished_runs(profile) == {"emodb": [0, 2]}
    assert samsg.finished_runs(profile, names=["emodb"], seeds=[0]) == {"emodb": [0]}


def test_a_stage_reports_its_progress(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSG_PROGRESS", str(home / "events"))
    run = open_run(write_tone_corpus(home), "tones")
    samsg.run_stages(run, "baseline")
    lines = (home / "events").read_text().splitlines()
    assert lines[0].startswith("tones      spectrograms done in ") and lines[-1].startswith(
        "tones      baseline     done"
    )
    assert lines[1].startswith("tones      baseline     epoch 1/6  loss 1.") and lines[1].endswith(" left")
    assert len(lines) == 8


# No test clip takes part in training


def test_what_test_clips_sound_like_and_are_called_changes_no_model(tmp_path: Path, monkeypatch) -> None:
    """Other test sounds, other test labels: each trained model of each stage and variant is the same, byte for byte."""
    results: dict[str, dict[str, Any]] = {}
    for name in ("original", "changed"):
        home = tmp_path / name
        home.mkdir()
        monkeypatch.setenv("SAMSG_HOME", str(home))
        profile = write_tone_corpus(home, training={**TRAINING, "epochs": 2, "lr": 1e-3}, samsg={"epochs": 1})
        table = pd.read_csv(home / "tones.csv")
        number = table["path"].str.extract(r"(\d+)\.wav")[0].astype(int)
        table["part"] = np.select([number >= 12, number >= 10], ["test", "validation"], "train")
        test = table["part"] == "test"
        if name == "changed":
            random = np.random.default_rng(1)
            for path in table.loc[test, "path"]:
                soundfile.write(home / path, random.uniform(-0.9, 0.9, 8000), 16_000)
            table.loc[test, "emotion"] = table.loc[test, "emotion"].map(
                {"high": "low", "low": "middle", "middle": "high"}
            )
        table.to_csv(home / "tones.csv", index=False)
        run = open_run(profile, "tones")
        studies.run_study([run], "masks")
        models = sorted((home / "runs").glob("**/model.safetensors"))
        results[name] = {str(path.relative_to(home)): path.read_bytes() for path in models}
        seen = (samsg.read_clips(run)["part"] != "test").to_numpy()
        results[name]["masks"] = np.load(run.require("masks") / "masks.npy")[seen].tobytes()
        results[name]["test"] = stages.read_predictions(run, "baseline").to_csv()
    assert len(results["original"]) == 3 + 2 * 2 + 2  # SAMSG's three stages; two variants' stages ii and iii
    assert [key for key, value in results["original"].items() if value != results["changed"][key]] == ["test"]
