"""A trained model on any recording, the folder that it is kept in, and the check of a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from toys import tone, wav

import samsg
from samsg.classifier import SamsgClassifier, open_classifier, verify
from samsg.settings import SamsgError
from samsg.stages import PREDICTIONS, read_predictions, read_table
from samsg.tables import collect, estimate_text

SECONDS = 0.5  # a window of the toy corpus's models
SOUND = tone(440, 0.8)


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> samsg.Run:
    """The finished run, to be read alone."""
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    return samsg.open_run(finished / "tones.yaml", "tones")


@pytest.fixture
def copy(finished: Path, home: Path) -> samsg.Run:
    """A copy of the finished run and of its corpus, to be changed."""
    shutil.copytree(finished, home, dirs_exist_ok=True)
    reader = {"reader": str(home / "tones.csv"), "note": "tones"}
    return samsg.open_run(samsg.load_profile(home / "tones.yaml", corpora={"tones": reader}), "tones")


@pytest.fixture
def classifier(run: samsg.Run) -> SamsgClassifier:
    return SamsgClassifier.from_run(run)


@pytest.fixture
def folder(classifier: SamsgClassifier, tmp_path: Path) -> Path:
    classifier.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_predictions_of_test_clips_are_those_of_the_run(run: samsg.Run, classifier: SamsgClassifier) -> None:
    recorded = read_predictions(run, "probe")
    windows = pd.concat([classifier.predict(run.profile.root("tones") / clip) for clip in recorded["clip"]])
    columns = [f"p_{emotion}" for emotion in classifier.emotions]
    assert windows["emotion"].tolist() == recorded["predicted"].tolist()
    # The run's spectrograms are in half precision, which keeps [0, 1] to 0.0003.
    np.testing.assert_allclose(windows[columns], recorded[columns], atol=0.002)


@pytest.mark.parametrize(
    ("seconds", "starts"),
    [(0.2, [0.0]), (0.5, [0.0]), (0.7, [0.0, 0.2]), (1.0, [0.0, 0.5]), (1.6, [0.0, 0.5, 1.0, 1.1])],
)
def test_windows_follow_each_other_and_the_last_ends_with_the_recording(
    classifier: SamsgClassifier, seconds: float, starts: list[float]
) -> None:
    table = classifier.predict(tone(440, seconds))
    assert table["start"].tolist() == pytest.approx(starts)
    assert table["end"].tolist() == pytest.approx([min(start + SECONDS, seconds) for start in starts])
    assert table.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(1)
    assert (table["probability"] == table.filter(like="p_").max(axis=1)).all()


def test_a_long_recording_is_predicted_as_its_windows_one_by_one(classifier: SamsgClassifier) -> None:
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 8_000))  # more windows than one batch
    together = classifier.predict(sound.flatten())
    alone = pd.concat([classifier.predict(window) for window in sound])
    np.testing.assert_allclose(together.filter(like="p_"), alone.filter(like="p_"), atol=1e-5)


def test_silence_has_no_emotion(classifier: SamsgClassifier) -> None:
    table = classifier.predict(np.concatenate([tone(440, SECONDS), np.zeros(8_000)]))
    assert table.loc[0, "emotion"] in classifier.emotions
    assert table.loc[1, "emotion"] == "" and np.isnan(table.loc[1, "probability"])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 6)])
def test_any_format_rate_and_number_of_channels_is_read(
    classifier: SamsgClassifier, tmp_path: Path, name: str, rate: int, channels: int
) -> None:
    samples = tone(440, 0.8, rate, noise=0)
    soundfile.write(tmp_path / name, np.stack([samples] * channels, 1), rate)
    expected, found = classifier.predict(tone(440, 0.8, noise=0)), classifier.predict(tmp_path / name)
    assert found[["start", "end"]].equals(expected[["start", "end"]])
    if (rate, name) == (16_000, "a.flac"):  # other formats and rates lose what -100 dB would show
        np.testing.assert_allclose(found.filter(like="p_"), expected.filter(like="p_"), atol=0.01)


@pytest.mark.parametrize(
    "samples", [np.zeros((2, 100)), np.zeros(0), np.array([0.0, np.nan]), np.zeros(8_000, np.int16)]
)
def test_arrays_that_are_not_samples_are_refused(classifier: SamsgClassifier, samples: np.ndarray) -> None:
    with pytest.raises(SamsgError, match=r"finite floating-point numbers in \[-1, 1\] of the shape \(S,\), found"):
        classifier.predict(samples)


def test_a_saved_model_is_the_model(classifier: SamsgClassifier, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = SamsgClassifier.from_pretrained(folder)
    pd.testing.assert_frame_equal(again.predict(SOUND), classifier.predict(SOUND))
    assert again.about == classifier.about
    again.save_pretrained(folder.with_name("again"))
    for path in folder.iterdir():
        assert (folder.with_name("again") / path.name).read_bytes() == path.read_bytes()


def test_the_card_states_what_the_model_reaches(run: samsg.Run, folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    accuracy = collect(run.profile)["tones (tones)"]["probe"].accuracy
    assert f"Accuracy on 7 test clips: {estimate_text(accuracy)} %; always the most frequent emotion: 42.9 %." in card
    assert "[" in estimate_text(accuracy) and "28 training clips" in card
    assert "library_name: samsg" in card and "pipeline_tag: audio-classification" in card and "{{" not in card


def test_two_test_speakers_give_the_interval_of_the_table_and_not_their_two_scores(copy: samsg.Run) -> None:
    """20 speakers make 10 folds of two; both are right in half of their clips."""
    clips = copy.require("spectrograms") / "clips.csv"
    table = read_table(clips)
    table.assign(speaker=[f"s{number % 20}" for number in range(len(table))]).to_csv(clips, index=False)
    run = samsg.open_run(copy.profile, "tones", "speaker")
    shutil.copytree(copy.stage_folder("probe").parent, run.stage_folder("probe").parent)
    for record in run.stage_folder("probe").parent.glob("*/settings.json"):
        record.write_text(json.dumps({**json.loads(record.read_text()), "protocol": "speaker"}))
    test = samsg.read_clips(run).query("part == 'test'")
    assert test["speaker"].nunique() == 2
    right = test.groupby("speaker").cumcount() % 2 == 0
    predicted = test["emotion"].where(right, test["emotion"].map({"high": "low", "low": "middle", "middle": "high"}))
    for stage in ("baseline", "samsg", "probe"):
        test.assign(predicted=predicted)[["clip", "part", "emotion", "predicted"]].to_csv(
            run.stage_folder(stage) / PREDICTIONS, index=False
        )
    (accuracy,) = {each["probe"].accuracy for each in collect(run.profile, "speaker").values()}
    scores = right.groupby(test["speaker"]).mean()
    assert accuracy.low < scores.min() - 0.2 and accuracy.high > scores.max() + 0.2
    card = SamsgClassifier.from_run(run).about["worth"]
    assert f"Accuracy on {len(test)} test clips: {estimate_text(accuracy)} %" in card and "split by speaker" in card


def change_config(folder: Path, **values: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def change_settings(folder: Path, group: str, **values: object) -> None:
    settings = json.loads((folder / "config.json").read_text())["settings"]
    change_config(folder, settings={**settings, group: {**settings[group], **values}})


def remove_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.emotion_head.weight"]
    save_file(weights, folder / "model.safetensors")


DAMAGES = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "a list": lambda folder: (folder / "config.json").write_text("[1]"),
    "one class": lambda folder: change_config(folder, emotions=["high"]),
    "no settings": lambda folder: change_config(folder, settings={}),
    "an unknown setting": lambda folder: change_settings(folder, "audio", colour="red"),
    "another size": lambda folder: change_settings(folder, "model", size="base"),
    "random bytes": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100),
    "half of the weights": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:5_000]
    ),
    "a pickle": lambda folder: torch.save({"a": torch.zeros(1)}, folder / "model.safetensors"),
    "a tensor less": remove_tensor,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_a_reason(folder: Path, damage: str) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(SamsgError, match=rf"^No model could be read from '{folder}': .+ Give a run"):
        SamsgClassifier.from_pretrained(folder)


def test_a_model_is_found_by_its_run_by_folder_and_by_default(
    run: samsg.Run, finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = SamsgClassifier.from_run(run).predict(SOUND)
    for name in ("tones/tones", str(finished / "runs/tones/tones/random/seed0"), str(folder)):
        assert open_classifier(name).predict(SOUND).equals(expected)
    with pytest.raises(SamsgError, match=r"No model could be read from 'nobody/nothing': .* Give a run"):
        open_classifier("nobody/nothing")
    with pytest.raises(SamsgError, match="'samsg reproduce --profile demo' runs them all"):
        open_classifier()
    monkeypatch.setattr(samsg.classifier, "load_profile", lambda name: {"demo": run.profile}[name])
    monkeypatch.setattr(samsg.classifier, "open_run", lambda *_: run)
    assert open_classifier().predict(SOUND).equals(expected)


@pytest.mark.parametrize(("windows", "panels"), [(1, 1), (2, 2), (5, 5), (13, 12)])
def test_a_picture_has_a_panel_for_each_window_and_12_at_most(
    classifier: SamsgClassifier, windows: int, panels: int
) -> None:
    figure = classifier.picture(tone(440, SECONDS * windows), "clip.wav")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(titles) == len(figure.axes) == panels
    assert titles[0].startswith("0.0 s: ") and titles[0].endswith("%") and "clip.wav" in figure.get_suptitle()
    plt.close(figure)


def test_a_picture_of_silence_names_no_emotion(classifier: SamsgClassifier) -> None:
    (ax,) = classifier.picture(np.zeros(8_000)).axes
    assert ax.get_title() == "0.0 s: silence"
    plt.close("all")


def test_an_untouched_run_agrees_with_itself(run: samsg.Run) -> None:
    table = verify(run)
    assert table.index.tolist() == ["baseline", "samsg", "probe"]
    assert (table["predictions"] == 7).all() and not table["changed"].any()
    assert (table["largest"] < 2e-6).all()  # recorded with six digits


def test_a_changed_model_is_found(copy: samsg.Run) -> None:
    path = copy.require("baseline") / "model.safetensors"
    weights = load_file(path)
    weights["emotion_head.bias"] += torch.tensor([9.0, 0, 0])
    save_file(weights, path)
    table = verify(copy)
    assert table["changed"].to_dict() == {"baseline": 4, "samsg": 0, "probe": 0}  # 3 of 7 clips are 'high' already


def test_a_changed_sound_is_found(copy: samsg.Run) -> None:
    clip = read_predictions(copy, "baseline")["clip"].iloc[0]
    wav(copy.profile.root("tones") / clip, 0.4, frequency=301)
    assert (verify(copy)["largest"] > 1e-3).all()
