"""Studies past the paper: controls that differ in one thing alone, tables of predictions alone, a known shortcut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from tones import write_corpus

import samsg
from samsg import studies
from samsg.corpora.catalogue import read_corpus
from samsg.corpora.synthetic import write_corpus as speak
from samsg.method.masking import control_patches, covered, important_patches
from samsg.report.metrics import bootstrap_difference
from samsg.report.tables import read_one
from samsg.settings import SamsgError, SyntheticSettings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder in which all controls were trained on a corpus of tones."""
    home = tmp_path_factory.mktemp("studies")
    write_corpus(home, training={"epochs": 2, "precision": "32-true", "device": "cpu", "lr": 1e-3, "warmup": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSG_HOME", str(home))
        studies.run_study(samsg.load_profile(home / "tones.yaml"), "controls", ["tones"], "random", [0, 1])
    return home


@pytest.fixture
def profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> samsg.Profile:
    monkeypatch.setenv("SAMSG_HOME", str(home))
    return samsg.load_profile(home / "tones.yaml")


def test_what_variants_share_is_made_once(home: Path, profile: samsg.Profile) -> None:
    for stage, times in {"waveforms": 1, "baseline": 4, "rollout": 2, "samsg": 14, "probe": 14}.items():
        # DeiT for as many epochs has a stage i of its own; seven variants have stages ii and iii, under two seeds.
        found = [path for path in (home / "runs").glob("**/settings.json") if path.parent.name == stage]
        assert len(found) == times, (stage, found)
    shared = json.loads((home / "runs/tones/tones/random/seed0/run.json").read_text())["stages"]
    assert set(shared) == {"baseline", "rollout", "masks", "samsg", "probe"}
    own = json.loads((home / "runs/tones.random/tones/random/seed0/run.json").read_text())["stages"]
    assert set(own) == {"masks", "samsg", "probe"}


def test_deit_trained_as_long_has_as_many_epochs_as_samsg(home: Path, profile: samsg.Profile) -> None:
    long = next(variant for variant in studies.variants(profile, "controls") if variant.name == "long")
    its = (profile.training, profile.samsg, profile.probe)
    history = pd.read_csv(samsg.open_run(long.profile, "tones").require("baseline") / "history.csv")
    assert len(history) == sum(each.epochs for each in its) == 2 + 2 + 1


def test_masks_of_all_strategies_cover_the_same_area_view_by_view(profile: samsg.Profile) -> None:
    masks = {}
    for variant in studies.variants(profile, "controls"):
        if variant.name in ("samsg", "random", "least", "stripes", "none"):
            masks[variant.name] = np.load(samsg.open_run(variant.profile, "tones").require("masks") / "masks.npy")
    areas = {name: covered(torch.from_numpy(mask.reshape(-1, *mask.shape[2:]))) for name, mask in masks.items()}
    assert areas["samsg"].any()
    for name in ("random", "least", "stripes"):
        missing = areas["samsg"] - areas[name]
        assert missing.min() >= 0 and missing.max() < 16 * 16, name  # less than a patch more would be too much
        assert not np.array_equal(masks[name], masks["samsg"])
    assert not areas["none"].any()


def test_every_variant_is_compared_on_the_same_clips(profile: samsg.Profile) -> None:
    predictions = studies.study_predictions(profile, "controls", "tones", "random", [0, 1])
    compared = studies.compare(predictions, draws=200)
    assert list(compared.index)[:3] == ["SAMSG", "DeiT", "DeiT, as many epochs"]
    assert (compared["n"] == 14).all()  # 7 of 42 clips, under two seeds
    for title, row in compared.iterrows():
        its = predictions[predictions["variant"] == title]
        assert row["accuracy"] == pytest.approx((its["emotion"] == its["predicted"]).mean())
        if title != "SAMSG":
            assert row["accuracy"] - compared.loc["SAMSG", "accuracy"] == pytest.approx(
                (row["only_it"] - row["only_reference"]) / 14
            )
    text = studies.printable(compared)
    assert text.loc["SAMSG", "Difference"] == "-"
    assert "nan" not in text.to_csv()


def test_a_table_can_be_made_again_from_what_was_kept(profile: samsg.Profile, tmp_path: Path) -> None:
    predictions = studies.study_predictions(profile, "controls", "tones", "random", [0, 1])
    studies.write_predictions(predictions, tmp_path / "kept.csv")
    again = studies.compare(read_one(tmp_path / "kept.csv"), draws=100)
    pd.testing.assert_frame_equal(again, studies.compare(predictions, draws=100))


def test_a_study_that_does_not_exist_names_the_nearest(profile: samsg.Profile) -> None:
    with pytest.raises(SamsgError, match="Did you mean 'controls'"):
        studies.variants(profile, "control")


def test_sensitivity_changes_one_setting_each(profile: samsg.Profile) -> None:
    groups = ("mask", "rollout")
    for variant in studies.variants(profile, "sensitivity")[1:]:
        changed = [
            (group, name)
            for group in groups
            for name, value in getattr(variant.profile, group).model_dump().items()
            if value != getattr(getattr(profile, group), name)
        ]
        assert len(changed) == 1, variant


# Holm (1979): the smallest of m p-values times m, the next times m - 1, never less than the one before.
def test_holm_by_hand() -> None:
    corrected = studies.holm(pd.Series([0.01, np.nan, 0.04, 0.03, 0.5]))
    np.testing.assert_allclose(corrected, [0.04, np.nan, 0.09, 0.09, 0.5])


def test_the_interval_of_a_difference_is_that_of_its_clusters() -> None:
    """All clips of a speaker agree, so a draw of speakers is a draw of their differences: +1, 0, -1."""
    table = pd.DataFrame({"clip": range(30), "speaker": np.repeat(["a", "b", "c"], 10), "emotion": "x"})
    first = table.assign(predicted=np.repeat(["x", "x", "y"], 10))
    second = table.assign(predicted=np.repeat(["y", "x", "x"], 10))
    assert bootstrap_difference(first, second, "speaker") == (-1.0, 1.0)
    low, high = bootstrap_difference(first, second)
    assert -0.4 < low < 0 < high < 0.4  # 30 clips of variance 2 / 3: 1.96 * sqrt(2 / 90) = 0.29
    assert bootstrap_difference(first, first, "speaker") == (0.0, 0.0)


# A shortcut that is known


@pytest.mark.parametrize("strength", [0.0, 0.7, 1.0])
def test_a_shortcut_ties_sentence_to_emotion_in_training_and_never_in_test(tmp_path: Path, strength: float) -> None:
    speak("emodb", tmp_path / "emodb", SyntheticSettings(speakers=3, shortcut=strength))
    parts = pd.read_csv(tmp_path / "emodb/parts.csv")
    clips = read_corpus("emodb", tmp_path / "emodb").merge(parts, on="path")
    assert clips["part"].value_counts().to_dict() == {"train": 3 * 7 * 4, "validation": 3 * 7, "test": 3 * 7 * 3}
    codes = ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral")
    own = dict(zip(codes, sorted(clips["sentence"].unique())[:7], strict=True))
    tied = clips["sentence"] == clips["emotion"].map(own)
    share = tied.groupby(clips["part"]).mean()
    # Untied clips have one of ten sentences; 63 clips of a share of 0.1 spread by 0.04, 84 of 0.73 by 0.05.
    assert share["test"] == pytest.approx(0.1, abs=0.1) and share["test"] > 0
    assert strength < 1 or share["validation"] == 1
    assert share["train"] == (1 if strength == 1 else pytest.approx(strength + 0.1 * (1 - strength), abs=0.12))


def test_the_test_clips_are_the_same_at_every_strength(tmp_path: Path) -> None:
    sounds = {}
    for strength in (0.0, 1.0):
        folder = tmp_path / str(strength)
        speak("emodb", folder, SyntheticSettings(speakers=1, shortcut=strength))
        table = pd.read_csv(folder / "parts.csv").query("part == 'test'")
        sounds[strength] = {path: (folder / path).read_bytes() for path in table["path"]}
    assert len(sounds[0.0]) == 21
    assert sounds[0.0] == sounds[1.0]


def test_a_shortcut_needs_names_for_it(tmp_path: Path) -> None:
    with pytest.raises(SamsgError, match="EmoDB alone"):
        speak("savee", tmp_path / "savee", SyntheticSettings(shortcut=0.5))
    with pytest.raises(SamsgError, match="a sentence for each of 7 emotions; found 4"):
        speak("emodb", tmp_path / "emodb", SyntheticSettings(sentences=4, shortcut=0.5))


def test_a_world_with_a_shortcut_keeps_its_own_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSG_HOME", str(tmp_path))
    small = samsg.load_profile("smoke", views={"names": ["clean"]})
    world = studies.with_shortcut(small, 0.5)
    corpus = world.corpora["emodb"].model_copy(update={"synthetic": SyntheticSettings(speakers=1, shortcut=0.5)})
    world = world.model_copy(update={"corpora": {"emodb": corpus}})
    run = samsg.open_run(world, "emodb")
    samsg.prepare(run)
    assert samsg.read_clips(run)["part"].value_counts().to_dict() == {"train": 28, "validation": 7, "test": 21}
    assert "synthetic" in world.note("emodb")


# No test clip has a part in training


def test_what_test_clips_sound_like_and_are_called_changes_no_model(tmp_path: Path, monkeypatch) -> None:
    """Other test sounds, other test labels: every model of every stage is the same, bit for bit."""
    models = {}
    for name in ("as they are", "others"):
        home = tmp_path / name
        home.mkdir()
        monkeypatch.setenv("SAMSG_HOME", str(home))
        profile = write_corpus(home, training={"epochs": 2, "precision": "32-true", "device": "cpu", "lr": 1e-3})
        table = pd.read_csv(home / "tones.csv")
        number = table["path"].str.extract(r"(\d+)\.wav")[0].astype(int)
        table["part"] = np.select([number >= 12, number >= 10], ["test", "validation"], "train")
        if name == "others":
            random = np.random.default_rng(1)
            for path in table.loc[table["part"] == "test", "path"]:
                soundfile.write(home / path, random.uniform(-0.9, 0.9, 8000), 16_000)
            turned = table["part"] == "test"
            table.loc[turned, "emotion"] = table.loc[turned, "emotion"].map(
                {"high": "low", "low": "middle", "middle": "high"}
            )
        table.to_csv(home / "tones.csv", index=False)
        run = samsg.open_run(samsg.load_profile(profile), "tones")
        studies.run_study(run.profile, "masks", ["tones"])
        files = sorted((home / "runs").glob("**/model.safetensors"))
        models[name] = {str(path.relative_to(home)): path.read_bytes() for path in files}
        kept = (samsg.read_clips(run)["part"] != "test").to_numpy()
        models[name]["masks"] = np.load(run.require("masks") / "masks.npy")[:, kept]
    assert len(models["others"]) == 7  # DeiT, as many epochs, and two of SAMSG's chains; and the masks
    for key, value in models["as they are"].items():
        assert np.array_equal(value, models["others"][key]) if key == "masks" else value == models["others"][key], key


def test_control_masks_cover_what_the_important_patches_cover() -> None:
    heat = torch.rand(6, 12, 9, generator=torch.Generator().manual_seed(0))
    important = heat > torch.tensor([1.1, 0.99, 0.9, 0.5, 0.1, -1.0])[:, None, None]  # none, a few, ..., all
    area = covered(important)
    assert area[0] == 0 and area[-1] == 126 * 96
    for strategy in ("random", "stripes", "least"):
        one, two, other = (
            control_patches(strategy, heat, important, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
        )
        assert torch.equal(one, two)
        assert torch.equal(one, other) == (strategy == "least")
        missing = area - covered(one)
        assert missing.min() >= 0 and missing.max() < 16 * 16
        assert one[-1].all() and not one[0].any()
    least = control_patches("least", heat, important, torch.Generator())
    assert heat[3][least[3]].max() < heat[3][~least[3]].min()
    stripes = control_patches("stripes", heat, important, torch.Generator().manual_seed(0))
    assert stripes[3].all(0).any() and stripes[3].all(1).any()  # whole columns and whole rows
    assert not control_patches("none", heat, important, torch.Generator()).any()


def test_what_patches_cover_is_counted_once_where_they_overlap() -> None:
    mask = torch.zeros(3, 12, 9, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 0, :2] = mask[2, 0, 0] = mask[2, 5, 5] = True
    assert covered(mask).tolist() == [16 * 16, 16 * 26, 2 * 16 * 16]


def test_a_share_and_otsus_threshold_adapt() -> None:
    heat = torch.linspace(0, 1, 108).reshape(1, 12, 9)
    assert int(important_patches(heat, select="share", share=0.25).sum()) == 27
    assert important_patches(heat, select="share", share=0.25)[heat >= heat.flatten()[-27]].all()
    two = torch.where(heat > 0.8, 0.9, 0.3) + 0.01 * torch.rand(1, 12, 9)
    assert torch.equal(important_patches(two, select="otsu"), two > 0.5)
    assert not important_patches(torch.ones(1, 12, 9), select="otsu").any()
