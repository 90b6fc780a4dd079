"""A trained model on any recording: windows, their times, files that are none, the folder it is kept in."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sounds import make_hostile, written

import samsg
from samsg import cli
from samsg.predict import SamsgClassifier, open_classifier, sound_files, whole
from samsg.settings import SamsgError

SECONDS = 0.5  # a window of the tones corpus


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> samsg.Run:
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    return samsg.open_run(samsg.load_profile(finished / "tones.yaml"), "tones")


@pytest.fixture
def classifier(run: samsg.Run) -> SamsgClassifier:
    return SamsgClassifier.from_run(run)


@pytest.fixture
def folder(classifier: SamsgClassifier, tmp_path: Path) -> Path:
    classifier.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def recording(seconds: float, rate: int = 16_000) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * 440 * time)


def test_it_says_of_a_test_clip_what_the_run_says(run: samsg.Run, classifier: SamsgClassifier) -> None:
    recorded = pd.read_csv(run.require("probe") / "predictions.csv", dtype={"clip": str}).set_index("clip")
    clips = samsg.read_clips(run).set_index("clip")
    for clip, row in recorded.iterrows():
        (said,) = classifier.predict(run.profile.root("tones") / clips.at[clip, "path"]).to_dict("records")
        assert said["emotion"] == row["predicted"]
        # The run read its spectrograms in half precision, which keeps [0, 1] to 0.0003.
        assert [said[name] for name in row.index if name.startswith("p_")] == pytest.approx(
            [row[name] for name in row.index if name.startswith("p_")], abs=0.01
        )


@pytest.mark.parametrize(
    ("seconds", "starts"),
    [
        (0.2, [0.0]),
        (0.5, [0.0]),
        (0.7, [0.0, 0.2]),
        (1.0, [0.0, 0.5]),
        (1.6, [0.0, 0.5, 1.0, 1.1]),
    ],
)
def test_windows_follow_each_other_and_the_last_ends_with_the_recording(
    classifier: SamsgClassifier, seconds: float, starts: list[float]
) -> None:
    table = classifier.predict(recording(seconds))
    assert table["start"].tolist() == pytest.approx(starts)
    assert table["end"].tolist() == pytest.approx([min(start + SECONDS, seconds) for start in starts])
    assert table.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(1)
    assert (table["probability"] == table.filter(like="p_").max(axis=1)).all()


def test_a_long_recording_is_as_its_windows_one_by_one(classifier: SamsgClassifier) -> None:
    sound = np.concatenate([recording(0.5), np.random.default_rng(0).uniform(-0.3, 0.3, 8_000)] * 10)
    together = classifier.predict(sound)  # 20 windows: more than are computed at once
    alone = pd.concat([classifier.predict(part) for part in sound.reshape(20, 8_000)])
    assert together.filter(like="p_").to_numpy() == pytest.approx(alone.filter(like="p_").to_numpy(), abs=1e-5)


def test_silence_has_no_emotion_and_does_not_count_for_the_whole(classifier: SamsgClassifier) -> None:
    table = classifier.predict(np.concatenate([recording(0.5), np.zeros(8_000)]))
    assert table["emotion"].tolist()[1] == "" and np.isnan(table["probability"][1])
    assert whole(table)["emotion"] == table["emotion"][0]
    assert (whole(table)["start"], whole(table)["end"]) == (0.0, 1.0)
    assert whole(table)["probability"] == pytest.approx(table["probability"][0])
    nothing = classifier.predict(np.zeros(8_000))
    assert whole(nothing)["emotion"] == ""


def test_rate_and_channels_of_a_file_do_not_matter(classifier: SamsgClassifier, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "16.wav", recording(0.5), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "44.flac", np.stack([recording(0.5, 44_100)] * 2, 1), 44_100)
    one, other = (classifier.predict(tmp_path / name) for name in ("16.wav", "44.flac"))
    assert one["emotion"].tolist() == other["emotion"].tolist()


@pytest.mark.parametrize(
    "samples", [np.zeros((2, 100)), np.zeros(0), np.array([0.0, np.nan]), np.zeros(8_000, np.int16)]
)
def test_samples_that_are_none_are_refused(classifier: SamsgClassifier, samples: np.ndarray) -> None:
    with pytest.raises(SamsgError, match=r"finite floating-point numbers in \[-1, 1\] of the shape \(S,\)"):
        classifier.predict(samples)


def test_a_saved_model_is_the_model(classifier: SamsgClassifier, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = SamsgClassifier.from_pretrained(folder)
    assert again.config == classifier.config
    pd.testing.assert_frame_equal(again.predict(recording(0.8)), classifier.predict(recording(0.8)))
    again.save_pretrained(folder.with_name("again"))
    for path in folder.iterdir():
        assert (folder.with_name("again") / path.name).read_bytes() == path.read_bytes()


def test_the_card_says_what_the_model_is_worth(run: samsg.Run, folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    test = pd.read_csv(run.require("probe") / "predictions.csv").query("part == 'test'")
    right = 100 * (test["emotion"] == test["predicted"]).mean()
    assert f"| {right:.1f} [" in card and f"| {len(test)} |" in card
    assert "library_name: samsg" in card and "pipeline_tag: audio-classification" in card
    assert "**tones" in card and "{{" not in card


BREAKS = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "a list": lambda folder: (folder / "config.json").write_text("[1]"),
    "an unknown version": lambda folder: change(folder, version=2),
    "no classes": lambda folder: change(folder, emotions=[]),
    "one class less": lambda folder: change(folder, emotions=["high"]),
    "an unknown setting": lambda folder: change(folder, colour="red"),
    "another size": lambda folder: change(folder, model={"size": "base", "weights": "random"}),
    "a spectrogram as large as memory": lambda folder: change(folder, audio={"seconds": 1e7, "hop": 1}),
    "a million blocks": lambda folder: change(folder, model={"size": "tiny", "depth": 1_000_000, "weights": "random"}),
    "a filterbank as large as memory": lambda folder: change(folder, audio={"seconds": 0.5, "n_fft": 10**10}),
    "garbage": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100),
    "half of it": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:5_000]
    ),
    "a pickle": lambda folder: torch.save({"a": torch.zeros(1)}, folder / "model.safetensors"),
    "a tensor less": lambda folder: without_head(folder),
}


def change(folder: Path, **values: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["emotion_head.weight"]
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_folder_is_refused_with_a_reason(folder: Path, broken: str) -> None:
    BREAKS[broken](folder)
    with pytest.raises(SamsgError) as refused:
        SamsgClassifier.from_pretrained(folder, local_files_only=True)
    assert str(folder) in str(refused.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_in_a_folder_it_loads_or_is_refused(folder: Path, data: st.DataObject) -> None:
    """Bytes put over others, cut out or put in, in the settings or in the first part of the weights."""
    path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    whole_file = path.read_bytes()
    at = data.draw(st.integers(0, min(len(whole_file), 6_000)))
    cut, put = data.draw(st.integers(0, 20)), data.draw(st.binary(max_size=20))
    path.write_bytes(whole_file[:at] + put + whole_file[at + cut :])
    try:
        SamsgClassifier.from_pretrained(folder, local_files_only=True).predict(recording(0.5))
    except SamsgError:
        pass
    finally:
        path.write_bytes(whole_file)


def test_a_model_is_found_by_run_folder_and_default(run: samsg.Run, folder: Path, finished: Path) -> None:
    named = open_classifier("tones/tones")
    assert named.config == open_classifier("tones/tones/random/seed0").config
    assert named.config == open_classifier(str(finished / "runs/tones/tones/random/seed0")).config
    assert named.config == open_classifier(str(folder)).config
    with pytest.raises(SamsgError, match="Run 'samsg reproduce' first, or name a model"):
        open_classifier("")
    with pytest.raises(SamsgError, match="No model could be read from 'nobody/nothing'"):
        open_classifier("nobody/nothing")


def test_what_is_called_like_a_run_is_not_asked_for_on_the_hub(run: samsg.Run) -> None:
    for name in ("demo/emodb", "tones/nothing", "tones"):
        with pytest.raises(SamsgError, match=r"no finished run .* finished: tones/tones/random/seed0"):
            open_classifier(name)


def test_folders_are_searched_for_sounds_alone(tmp_path: Path) -> None:
    written(tmp_path / "a/one.wav")
    written(tmp_path / "a/b/one.FLAC", format="FLAC")
    written(tmp_path / "c/one.wav")
    for name in ("._one.wav", "text.txt", "phone.m4a"):
        (tmp_path / "a" / name).write_bytes(b"")
    sounds, unread = sound_files([tmp_path / "a", tmp_path / "a/one.wav"])
    assert sounds == {"b/one.FLAC": tmp_path / "a/b/one.FLAC", "one.wav": tmp_path / "a/one.wav"}
    assert unread == [tmp_path / "a/phone.m4a"]
    (tmp_path / "empty").mkdir()
    for paths, said in ((["empty"], "holds no sound files"), (["nowhere"], "not there"), (["a", "c"], "one name")):
        with pytest.raises(SamsgError, match=said):
            sound_files([tmp_path / path for path in paths])


def test_weights_that_are_no_numbers_are_not_taken_for_silence(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "emotion_head.bias": weights["emotion_head.bias"] * torch.nan}, folder / "model.safetensors")
    with pytest.raises(SamsgError, match="its weights are damaged"):
        SamsgClassifier.from_pretrained(folder).predict(recording(0.5))


def test_a_folder_that_held_another_model_gets_this_ones_card(classifier: SamsgClassifier, folder: Path) -> None:
    (folder / "README.md").write_text("another model, right in 99 %")
    classifier.save_pretrained(folder)
    assert "another model" not in (folder / "README.md").read_text()


def test_the_picture_has_a_panel_for_each_window_and_says_how_many_there_are(classifier: SamsgClassifier) -> None:
    figure = classifier.look(recording(0.8), "clip.wav")
    assert [ax.get_title().split(":")[0] for ax in figure.axes] == ["from 0.0 s", "from 0.3 s"]
    many = classifier.look(recording(8.0))
    assert len(many.axes) == 12 and "first 12 of 16 windows" in many.get_suptitle()
    plt.close("all")


def samsg_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.app(list(arguments))
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_command_predicts_files_and_folders(
    run: samsg.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = written(tmp_path / "sounds/long.wav", recording(1.2))
    written(tmp_path / "sounds/short.wav", recording(0.3))
    model = ["--model", "tones/tones"]
    code, text, _ = samsg_command(capsys, "predict", str(tmp_path / "sounds"), *model, "--plot", str(tmp_path / "look"))
    assert code == 0
    assert "right in" in text and "always the commonest emotion is in" in text
    assert text.count("long.wav") >= 1 and "0.7 to 1.2 s" in text.replace("  ", " ")
    assert {path.name for path in (tmp_path / "look").iterdir()} == {"long.wav.png", "short.wav.png"}
    code, text, error = samsg_command(capsys, "predict", str(sound), *model, "--csv")
    table = pd.read_csv(io.StringIO(text))
    assert list(table.columns[:5]) == ["file", "start", "end", "emotion", "probability"]
    assert len(table) == 3 and "right in" in error
    code, text, _ = samsg_command(capsys, "predict", str(sound), *model, "--json")
    assert [row["start"] for row in json.loads(text)] == pytest.approx([0, 0.5, 0.7])


def test_a_bad_file_is_named_and_the_others_are_predicted(
    run: samsg.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_hostile(tmp_path / "hostile")
    for hours in (tmp_path / "hostile").glob("3 hours*"):
        hours.unlink()  # 21 600 windows
    written(tmp_path / "hostile/zz.wav", recording(0.5))
    code, text, error = samsg_command(capsys, "predict", str(tmp_path / "hostile"), "--model", "tones/tones", "--csv")
    assert code == 1
    table = pd.read_csv(io.StringIO(text), keep_default_na=False)
    assert str(tmp_path / "hostile/zz.wav") in set(table["file"])
    assert "text.wav" in error and "text.wav" not in text
    assert "silence.wav" in text  # it can be read: there is nothing in it
