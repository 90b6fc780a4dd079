"""A run and its stages: each is whole or absent, made once, and records what it was made from (Fig. 1)."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

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


def files(folder: Path) -> set[str]:
    """The files below a folder, without locks."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix() for path in paths}


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The finished run on the toy corpus, to be read and not changed."""
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    return open_run(finished / "tones.yaml", "tones")


def test_everything_about_the_order_follows_from_one_list(home: Path) -> None:
    assert list(WORK) == list(STAGES) == ["spectrograms", "baseline", "rollout", "masks", "samsg", "probe"]
    notebooks = [stage.notebook for stage in STAGES.values()]
    assert notebooks == sorted(notebooks) and [name[:2] for name in notebooks] == ["01", "02", "03", "04", "05", "06"]
    assert all((REPOSITORY / "notebooks" / f"{name}.ipynb").is_file() for name in notebooks)
    run = open_run("smoke", "emodb", "speaker", 2)
    with pytest.raises(SamsgError, match=r"no stage 'prob'; .*Did you mean 'probe'"):
        samsg.run_stages(run, "prob")
    earlier: list[str] = []
    for name, stage in STAGES.items():
        earlier += stage.groups
        assert set(run.settings(name)) == set(earlier)
        with pytest.raises(SamsgError, match=rf"'{name}' of emodb \(speaker, seed 2\).*{stage.notebook}\.ipynb"):
            run.require(name)
    other = {"name", "description", "corpora", "protocols", "seeds", "variant_of"}
    assert sorted(earlier) == sorted(set(Profile.model_fields) - other)  # every group of settings belongs to one stage


def test_a_stage_is_made_once_and_records_its_settings(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folders = open_run("smoke", "emodb"), []
    for _ in range(2):
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


def test_an_interrupted_stage_is_absent_and_continues_with_the_same_settings_only(home: Path) -> None:
    found: list[set[str]] = []

    def work(folder: Path) -> None:
        found.append(files(folder))
        (folder / "checkpoint.pt").touch()
        raise KeyboardInterrupt

    for rate in (0.25, 0.25, 0.5):
        run = open_run(load_profile("smoke", training={"lr": rate}), "emodb")
        with pytest.raises(KeyboardInterrupt):
            run.make("baseline", work)
        assert not run.stage_folder("baseline").exists() and not run.is_finished("baseline")
    settings = {"settings.json"}
    assert found == [settings, settings | {"checkpoint.pt"}, settings]  # emptied for another learning rate


def test_a_stage_of_other_settings_or_weights_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(load_profile("smoke", training={"lr": 0.25}), "emodb")
    run.make("baseline", lambda folder: None)
    other = open_run(load_profile("smoke", training={"lr": 0.5}, mask={"fill": 1.0}), "emodb")
    for ask in (other.require, lambda name: other.make(name, lambda folder: None)):
        with pytest.raises(SamsgError, match=r"training\.lr was 0\.25 and is now 0\.5\. Give the changed") as error:
            ask("baseline")
        assert "mask" not in str(error.value)  # of a later stage
    assert run.is_finished("baseline")
    monkeypatch.setattr(stages, "EMBEDDED", Path(__file__))
    with pytest.raises(SamsgError, match=r"embedded was '[0-9a-f]+' and is now"):
        run.require("baseline")


def test_a_moved_corpus_and_home_invalidate_nothing(copied_run: Run, home: Path) -> None:
    (home / "elsewhere").mkdir()
    for path in home.glob("*.wav"):
        path.rename(home / "elsewhere" / path.name)
    before = {path: path.stat().st_mtime_ns for path in (home / "runs").rglob("*.*") if path.suffix != ".lock"}
    moved = load_profile(home / "tones.yaml", corpora={"tones": {"root": "elsewhere", "title": "T", "note": "new"}})
    run = open_run(moved, "tones")
    assert samsg.run_stages(run) == copied_run.stage_folder("probe")
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("change", ["sound", "label", "speaker", "clip"])
def test_a_changed_corpus_is_refused(copied_run: Run, home: Path, change: str) -> None:
    stages.check_sounds(copied_run)
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
            ask(copied_run)
    shutil.rmtree(copied_run.stage_folder("spectrograms"))
    samsg.prepare(copied_run)
    with pytest.raises(SamsgError, match="baseline was made with other settings or sounds: fingerprint was"):
        samsg.train_baseline(copied_run)


def test_a_missing_corpus_and_undeclared_synthetic_speech_are_refused(home: Path) -> None:
    run = open_run("paper", "emodb")
    with pytest.raises(SamsgError, match=r"data/emodb has 0 sound files, and no anger.* of EmoDB"):
        samsg.prepare(run)
    (home / "data/emodb").mkdir(parents=True)
    (home / "data/emodb/SYNTHETIC.txt").touch()
    with pytest.raises(SamsgError, match="holds synthetic speech, but profile 'paper' has no 'synthetic' entry"):
        stages.check_sounds(run)
    stages.check_sounds(open_run("demo", "emodb"))  # it will be spoken
    assert files(home) == {"data/emodb/SYNTHETIC.txt"}


def test_a_variant_shares_the_stages_that_it_does_not_change(copied_run: Run, home: Path) -> None:
    variant = studies.Variant("random masks", {"mask": {"strategy": "random", "share": 0.3}})  # a name with a dot
    run = studies.variant_run(copied_run, variant)
    shared = [name for name in STAGES if run.stage_folder(name) == copied_run.stage_folder(name)]
    assert shared == ["spectrograms", "baseline", "rollout"]
    before = files(home)
    samsg.run_stages(run)
    added = {path.split("/")[-2] for path in files(home) - before}
    assert added == {"masks", "samsg", "probe"} and run.profile.name.startswith("tones.")
    found = samsg.find_run(f"{run.profile.name}/tones")
    assert found is not None and found.profile.model_dump() == run.profile.model_dump()
    assert [found.stage_folder(name) for name in STAGES] == [run.stage_folder(name) for name in STAGES]


def test_every_training_stage_leaves_history_predictions_and_weights(run: Run) -> None:
    clips, history = samsg.read_clips(run), stages.read_history(run, "baseline")
    assert history["train_loss"].iloc[0] > 1 > history["train_loss"].iloc[3:].min()  # ln 3 = 1.1 is a guess
    assert history["validation_accuracy"].max() >= 6 / 7  # the toy corpus is learned
    assert clips["part"].value_counts().to_dict() == {"train": 28, "validation": 7, "test": 7}
    assert set(clips["samples"]) == {6400}
    for stage, epochs in {"baseline": 6, "samsg": 2, "probe": 1}.items():
        names = {"settings.json", "record.json", "history.csv", "model.safetensors", "predictions.csv"}
        assert files(run.require(stage)) == names
        history = stages.read_history(run, stage)
        assert len(history) == epochs and history.notna().all(axis=None)
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
    assert stages.svm_predictions(run)["clip"].tolist() == tables[1]["clip"].tolist()


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x * 2, np.sort], ids=["mean", "deviation", "change"])
def test_the_svm_learns_each_of_its_statistics_from_training_clips_alone(run: Run, monkeypatch, change) -> None:
    random, labels = np.random.default_rng(0), np.tile(["high", "low"], 30)
    spectrograms = random.normal(size=(60, 1, 8, 50)).astype(np.float16)
    spectrograms[labels == "high"] = change(spectrograms[labels == "high"])
    clips = pd.DataFrame({"clip": range(60), "part": np.repeat(["train", "test"], 30), "emotion": labels})
    monkeypatch.setattr(stages, "read_examples", lambda run: SimpleNamespace(spectrograms=spectrograms))
    for test_labels in (labels, np.where(clips["part"] == "test", "low", labels)):
        table = clips.assign(emotion=test_labels, speaker="", sentence="")
        monkeypatch.setattr(stages, "read_clips", lambda run, table=table: table)
        assert stages.svm_predictions(run)["predicted"].tolist() == labels[30:].tolist()


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
    assert known.sum() == 28 * 4 + 14


def test_stage_ii_starts_from_stage_i_or_from_its_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(run: Run, _: str, create_model: stages.CreateModel, objective: stages.Objective, *rest: object) -> None:
        started.append((create_model(run).state_dict(), objective))

    started: list[tuple[dict[str, torch.Tensor], stages.Objective]] = []
    monkeypatch.setattr(stages, "_train", train)
    changes = {"start": "initial", "classification_weight": 2.0, "reconstruction_weight": 3.0}
    initial = open_run(run.profile.model_copy(update={"samsg": run.profile.samsg.model_copy(update=changes)}), "tones")
    samsg.train_samsg(run)
    samsg.train_samsg(initial)
    expected = load_file(run.require("baseline") / "model.safetensors"), samsg.new_model(run).state_dict()
    for (found, _), weights in zip(started, expected, strict=True):
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert [objective for _, objective in started] == [(1, 1, True, 0), (2, 3, True, 0)]


def test_the_probe_trains_the_cls_token_and_the_head_alone(run: Run) -> None:
    before, after = (load_file(run.require(stage) / "model.safetensors") for stage in ("samsg", "probe"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"vit.cls_token", "emotion_head.weight", "emotion_head.bias"}
    probe = samsg.new_probe(run)
    assert {name for name, parameter in probe.named_parameters() if parameter.requires_grad} == changed
    assert not torch.equal(probe.emotion_head.weight, before["emotion_head.weight"])
    kept = run.profile.model_copy(update={"probe": run.profile.probe.model_copy(update={"head": "stage_ii"})})
    assert torch.equal(samsg.new_probe(open_run(kept, "tones")).emotion_head.weight, before["emotion_head.weight"])


def test_a_class_none_and_excluded_padding_pass_the_whole_chain(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSG_PROGRESS", str(home / "events"))
    audio = {"seconds": 0.5, "hop": 64}
    mask = {"strategy": "random", "padding": "exclude", "select": "share", "share": 0.5}
    profile = write_tone_corpus(home, audio=audio, mask=mask, training={**TRAINING, "epochs": 1}, samsg={})
    names = {"emotion": {"high": "None", "low": "01"}, "speaker": {"s0": "007", "s1": "NA"}}
    pd.read_csv(home / "tones.csv").replace(names).to_csv(home / "tones.csv", index=False)
    run = open_run(profile, "tones")
    samsg.run_stages(run)
    assert samsg.emotions_of(samsg.read_clips(run)) == ["01", "None", "middle"]
    predictions = pd.concat([stages.read_predictions(run, "probe", part) for part in ("validation", "test")])
    assert set(predictions["emotion"]) == {"01", "None", "middle"} and "p_None" in predictions
    assert set(predictions["speaker"]) == {"007", "NA", "s2", "s3"}
    # 12 columns of patches. The last one begins with frame 110, whose window begins 384 samples after the end.
    clean = np.load(run.require("masks") / "masks.npy")[:, 0]
    assert clean.shape == (42, 12, 12) and clean[..., :11].any((0, 1)).all() and not clean[..., 11].any()
    events = (home / "events").read_text().splitlines()
    assert events[0].startswith("tones      spectrograms done in ") and events[1].endswith(" left")
    assert events[1].startswith("tones      baseline     epoch 1/1  loss 1.")
    assert events[2].startswith("tones      baseline     done")


def test_runs_are_found_by_name_or_folder(run: Run, finished: Path) -> None:
    folder = finished / "runs/tones/tones/random/seed0"
    for name in ("tones/tones", "tones/tones/random", "tones/tones/random/seed0", folder, f"{folder}/"):
        assert samsg.find_run(name) == run
    for name in ("", "tones", "tones/tones/speaker", "tones/tones/random/seed0/probe", "../runs", "/", "../../etc/x"):
        assert samsg.find_run(name) is None
    with pytest.raises(SamsgError, match=r"no protocol 'speakers'; .* Did you mean 'speaker'"):
        open_run(run.profile, "tones", "speakers")


def test_a_run_that_was_moved_is_refused(copied_run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record names a profile, corpus, protocol and seed, whose folder may hold another run."""
    shutil.copytree(home / "runs/tones", home / "runs/copy")
    shutil.copytree(home / "runs/tones/tones/random/seed0", home / "runs/tones/tones/random/seed7")
    for name in ("copy/tones", "tones/tones/random/seed7"):
        with pytest.raises(SamsgError, match=r"was moved from .*/runs/tones/tones/random/seed0; move it back, or set"):
            samsg.find_run(name)
    monkeypatch.setenv("SAMSG_HOME", str(home / "other"))
    with pytest.raises(SamsgError, match=r"was moved from .*/other/runs/tones/tones/random/seed0"):
        samsg.find_run(home / "runs/tones/tones")


def test_what_test_clips_sound_like_and_are_called_changes_no_model(tmp_path: Path, monkeypatch) -> None:
    """Other test sounds, other test labels: each trained model of each stage and variant is the same, byte for byte."""
    random_masks, results = studies.Variant("random masks", {"mask": {"strategy": "random"}}), {}
    monkeypatch.setitem(studies.STUDIES, "masks", [studies.SAMSG, random_masks, studies.NO_MASKS])
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
            others = {"high": "low", "low": "middle", "middle": "high"}
            table.loc[test, "emotion"] = table.loc[test, "emotion"].map(others)
        table.to_csv(home / "tones.csv", index=False)
        run = open_run(profile, "tones")
        studies.run_study([run], "claim")
        models = sorted((home / "runs").glob("**/model.safetensors"))
        results[name] = {str(path.relative_to(home)): path.read_bytes() for path in models}
        seen = (samsg.read_clips(run)["part"] != "test").to_numpy()
        results[name]["masks"] = np.load(run.require("masks") / "masks.npy")[seen].tobytes()
        results[name]["test"] = stages.read_predictions(run, "baseline").to_csv()
    assert len(results["original"]) == 3 + 2 * 4 + 2  # SAMSG's three stages; four variants' stages ii and iii
    assert [key for key, value in results["original"].items() if value != results["changed"][key]] == ["test"]
