"""A trained model on any recording, the folder that it is kept in, and the check of a finished run."""

import pickle
import shutil
import time

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from toys import tone, wav

import samsg
from samsg.classifier import SamsgClassifier, open_classifier, verify
from samsg.metrics import estimate_text
from samsg.settings import SamsgError
from samsg.stages import read_predictions
from samsg.tables import collect

SECONDS = 0.5  # a window of the toy corpus's models
SOUND = tone(440, 0.8)


@pytest.fixture
def run(finished, monkeypatch):
    """The finished run, to be read alone."""
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    return samsg.open_run(finished / "tones.yaml", "tones")


@pytest.fixture
def classifier(run):
    return SamsgClassifier.from_run(run)


@pytest.fixture
def folder(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_predictions_of_test_clips_are_those_of_the_run(run, classifier):
    recorded = read_predictions(run, "probe")
    paths = [run.profile.root("tones") / clip for clip in recorded["clip"]]
    windows = classifier.predict(paths).drop("recording", level="window")
    assert windows.index.tolist() == [(str(path), 1) for path in paths]
    assert windows["emotion"].tolist() == recorded["predicted"].tolist()
    # The run's spectrograms are in half precision, which keeps [0, 1] to 0.0003.
    np.testing.assert_allclose(windows.filter(like="p_"), recorded.filter(like="p_"), atol=0.002)


STARTS = {0.3: [0.0], 0.5: [0.0], 0.7: [0.0, 0.2], 1.0: [0.0, 0.5], 1.6: [0.0, 0.5, 1.0, 1.1]}  # by duration, s


@pytest.mark.parametrize(("seconds", "starts"), STARTS.items())
def test_windows_follow_each_other_and_the_last_ends_with_the_recording(classifier, seconds, starts):
    table = classifier.predict(tone(440, seconds))
    assert table["start"].tolist() == pytest.approx([*starts, 0])
    assert table["end"].tolist() == pytest.approx([*(min(start + SECONDS, seconds) for start in starts), seconds])
    assert table.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(1)
    assert (table["probability"] == table.filter(like="p_").max(axis=1)).all()


def test_a_long_recording_is_predicted_as_its_windows_one_by_one(classifier):
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 8_000))  # more windows than one batch
    together = classifier.predict(sound.flatten()).drop("recording")
    alone = classifier.predict(list(sound)).xs("recording", level="window")
    assert alone.index.tolist() == list(range(20))
    np.testing.assert_allclose(together.filter(like="p_"), alone.filter(like="p_"), atol=1e-5)


def test_silence_has_no_emotion_and_a_window_weighs_the_time_that_it_adds(classifier):
    table = classifier.predict(np.concatenate([tone(440, SECONDS), np.zeros(8_000), tone(2000, 0.2)]))
    assert table.index.tolist() == [1, 2, 3, "recording"]  # 0, 0.5 and 0.7 s
    assert table.loc[2, "emotion"] == "" and np.isnan(table.loc[2, "probability"])
    rows = table.filter(like="p_").to_numpy()
    np.testing.assert_allclose(rows[3], (0.5 * rows[0] + 0.2 * rows[2]) / 0.7, atol=1e-6)
    assert table.loc["recording", "emotion"] == classifier.emotions[rows[3].argmax()]
    assert (classifier.predict(np.zeros(8_000))["emotion"] == "").all()


@pytest.mark.parametrize(("name", "rate", "channels"), [("a.wav", 8000, 6), ("a.flac", 44100, 2), ("a.ogg", 16000, 1)])
def test_any_format_and_rate_is_read(classifier, tmp_path, name, rate, channels):
    samples = tone(440, 0.8, rate, noise=0)
    soundfile.write(tmp_path / name, np.stack([samples] * channels, 1), rate)
    expected, found = classifier.predict(samples, rate), classifier.predict(tmp_path / name)
    assert found[["start", "end"]].equals(expected[["start", "end"]]) and len(found) == 3
    if name == "a.flac":  # others lose what -100 dB would show
        np.testing.assert_allclose(found.filter(like="p_"), expected.filter(like="p_"), atol=0.01)


def test_arrays_that_are_not_samples_and_sounds_that_are_too_short_are_refused(classifier, tmp_path):
    for samples in (np.zeros((2, 100)), np.array([0.0, np.nan]), np.zeros(8_000, np.int16)):
        with pytest.raises(SamsgError, match=r"finite floating-point numbers in \[-1, 1\], \(S,\); found"):
            classifier.predict(samples)
    for sound, name in ((wav(tmp_path / "a.wav", 0.2), "a.wav"), (tone(440, 0.2), "The recording")):
        with pytest.raises(SamsgError, match=rf"{name} lasts 0.20 s; an emotion needs at least 0.25 s"):
            classifier.predict(sound)


def test_a_saved_model_is_the_model_and_its_card_states_what_it_reaches(run, classifier, folder):
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = SamsgClassifier.from_pretrained(folder)
    pd.testing.assert_frame_equal(again.predict(SOUND), classifier.predict(SOUND))
    assert repr(again) == repr(classifier) and "SamsgClassifier(high, low, middle): Trained on tones" in repr(again)
    again.save_pretrained(folder.with_name("again"))
    for path in folder.iterdir():
        assert (folder.with_name("again") / path.name).read_bytes() == path.read_bytes()
    card = (folder / "README.md").read_text(encoding="utf-8")
    results = collect(run.profile)["tones (tones)"]
    chance = f"always the most frequent emotion: {100 * results['chance'].accuracy.value:.1f} %."  # as in Table 1
    assert f"Accuracy on 7 test clips: {estimate_text(results['probe'].accuracy)} %; {chance}" in card
    assert "28 training clips" in card
    assert "library_name: samsg" in card and "pipeline_tag: audio-classification" in card and "{{" not in card


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda content: b"{}"),
        ("config.json", lambda content: content.replace(b'"tiny"', b'"base"')),
        ("model.safetensors", lambda content: content[:5_000]),
        ("model.safetensors", lambda content: pickle.dumps({"a": 1})),
    ],
)
def test_a_damaged_folder_is_refused_with_a_reason(folder, name, change):
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(SamsgError, match=rf"^No model could be read from '{folder}': .+ Give a run"):
        SamsgClassifier.from_pretrained(folder)


def test_a_model_is_found_by_its_run_by_folder_and_by_default(run, finished, folder, monkeypatch):
    expected = SamsgClassifier.from_run(run).predict(SOUND)
    for name in ("tones/tones", str(finished / "runs/tones/tones/random/seed0"), str(folder)):
        assert open_classifier(name).predict(SOUND).equals(expected)
    with pytest.raises(SamsgError, match=r"No model could be read from 'nobody/nothing': .* Give a run"):
        open_classifier("nobody/nothing")
    with pytest.raises(SamsgError, match="'samsg reproduce --profile demo' runs them all"):
        open_classifier()
    monkeypatch.setattr(samsg.classifier, "load_profile", lambda name: {"demo": run.profile}[name])
    assert open_classifier().predict(SOUND).equals(expected)


def test_a_hub_that_cannot_be_reached_is_not_waited_for(monkeypatch):
    """huggingface_hub alone retries for 23 s. A port without a server stands for a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(SamsgError, match="the Hugging Face Hub cannot be reached"):
        open_classifier("nobody/nothing")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(("windows", "rows", "last"), [(0.6, 1, 0.5), (1, 1, 0.5), (5, 2, 3.0), (13, 3, 6.0)])
def test_a_picture_has_four_windows_in_a_row_and_three_rows_at_most(classifier, windows, rows, last):
    figure = classifier.picture(tone(440, SECONDS * windows), "clip.wav")
    *panels, bar = figure.axes
    assert len(panels) == 3 * rows and bar.get_ylabel().startswith("Attention")
    assert [ax.get_ylabel() for ax in panels[:3]] == ["Amplitude", "Probability (%)", "Frequency (Hz)"]
    assert [label.get_text() for label in panels[1].get_yticklabels()] == classifier.emotions
    assert panels[-1].get_xlim()[1] == pytest.approx(last) and panels[-1].get_xlabel() == "Time (s)"
    padded = 3 if windows < 1 else 0  # grey areas
    assert len([patch for ax in panels[:3] for patch in ax.patches]) == padded
    assert figure.get_suptitle() == ("clip.wav (the first 6 of 6.5 s)" if windows == 13 else "clip.wav")


def test_attention_is_shown_on_sound_alone_and_reaches_1_in_each_window(classifier):
    figure = classifier.picture(np.concatenate([tone(440, SECONDS), np.zeros(8_000), tone(900, 0.3)]))
    first, silent, last = figure.axes[2].collections[:3]
    assert first.get_array().max() == last.get_array().max() == 1 and silent.get_array().mask.all()
    # A patch is shown by the 10 frames of 16 ms around its centre: the first from frame 2.5. The last windows overlap.
    times = [(mesh.get_coordinates()[0, 0, 0], mesh.get_coordinates()[0, -1, 0]) for mesh in (silent, last)]
    assert times == [pytest.approx((0.54, 0.8)), pytest.approx((0.84, 1.16))]
    assert "silence" in [text.get_text() for text in figure.axes[1].texts]


def test_a_run_agrees_with_itself_until_a_model_or_a_sound_changes(finished, home):
    shutil.copytree(finished, home, dirs_exist_ok=True)
    reader = {"reader": str(home / "tones.csv"), "note": "tones"}
    run = samsg.open_run(samsg.load_profile(home / "tones.yaml", corpora={"tones": reader}), "tones")
    table = verify(run)
    assert table.index.tolist() == ["baseline", "samsg", "probe"]
    assert (table["predictions"] == 7).all() and not table["changed"].any()
    assert (table["largest"] < 2e-6).all()  # recorded with six digits
    path = run.require("baseline") / "model.safetensors"
    weights = load_file(path)
    weights["emotion_head.bias"] += torch.tensor([9.0, 0, 0])
    save_file(weights, path)
    table = verify(run)
    assert table["changed"].to_dict() == {"baseline": 4, "samsg": 0, "probe": 0}  # 3 of 7 clips are 'high' already
    clip = read_predictions(run, "baseline")["clip"].iloc[0]
    wav(run.profile.root("tones") / clip, 0.4, frequency=301)
    assert (verify(run)["largest"] > 1e-3).all()
