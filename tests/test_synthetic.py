"""The embedded corpora: official names, the same bytes from the same seed, sounds that are speech and act."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from samsg.corpora import PARTS, PARTS_FILE, SYNTHETIC_NOTE, official_list, read_corpus
from samsg.settings import SamsgError, SyntheticSettings, load_profile
from samsg.stages import open_run, read_manifest

parselmouth = pytest.importorskip("parselmouth", reason="the embedded corpora need the extra 'synthetic'")
from samsg.synthetic import RECIPE, write_corpus  # noqa: E402

SETTINGS = {
    "savee": SyntheticSettings(speakers=1, sentences=4),
    "emodb": SyntheticSettings(speakers=2, sentences=3),
    "crema_d": SyntheticSettings(speakers=2, sentences=2, takes=2),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """All three corpora, small."""
    parent = tmp_path_factory.mktemp("data")
    for name, settings in SETTINGS.items():
        write_corpus(name, parent / name, settings)
    return {name: parent / name for name in SETTINGS}


def sounds(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.wav"))}


@pytest.mark.parametrize("name", SETTINGS)
def test_names_are_official_and_sounds_are_speech_in_a_quiet_room(folders, name):
    manifest = read_corpus(name, folders[name])
    assert manifest["path"].sort_values().tolist() == list(sounds(folders[name]))
    assert {path.name for path in folders[name].iterdir() if path.is_file()} == {SYNTHETIC_NOTE}
    for path in folders[name].rglob("*.wav"):
        samples, rate = soundfile.read(path)
        assert rate == (44_100 if name == "savee" else 16_000) and samples.ndim == 1
        assert 1.0 < len(samples) / rate < 7.0 and 0.02 < np.abs(samples).max() < 0.99, path
        assert np.count_nonzero(samples) > 0.5 * len(samples), path  # a room's noise, not digital silence
    for column in ("speaker", "sentence", "emotion"):
        assert set(manifest[column]) <= set(official_list(name)[column])
    assert manifest["speaker"].nunique() == SETTINGS[name].speakers
    counts = manifest["emotion"].value_counts().to_dict()
    if name == "savee":  # neutral has twice as many sentences
        assert counts.pop("neutral") == 8
    assert set(counts.values()) == {{"savee": 4, "emodb": 2 * 3, "crema_d": 2 * 2 * 2}[name]}


def test_the_seed_decides_the_bytes_whatever_was_spoken_before(folders, tmp_path):
    # These are fewer clips, spoken in another order after other corpora: eSpeak's own state must not leak into them.
    for name, change in {"crema_d": {"speakers": 1}, "emodb": {"sentences": 2}, "savee": {"sentences": 1}}.items():
        write_corpus(name, tmp_path / name, SETTINGS[name].model_copy(update=change))
        assert len(sounds(tmp_path / name)) >= 8
        assert sounds(tmp_path / name).items() <= sounds(folders[name]).items()
    write_corpus("emodb", tmp_path / "other", SyntheticSettings(speakers=1, sentences=1, seed=1))
    other, first, takes = sounds(tmp_path / "other"), sounds(folders["emodb"]), sounds(folders["crema_d"])
    assert len(other) == 7 and other.keys() <= first.keys() and not other.items() & first.items()
    assert takes["AudioWAV/1001_IEO_ANG_XX.wav"] != takes["AudioWAV/1001_IEO_ANG_LO.wav"]


def test_the_strength_of_the_acting_changes_all_but_neutral_clips(folders, tmp_path):
    write_corpus("emodb", tmp_path / "emodb", SyntheticSettings(speakers=1, sentences=1, strength=1.4))
    usual, strong = sounds(folders["emodb"]), sounds(tmp_path / "emodb")
    assert [path for path, sound in strong.items() if sound == usual[path]] == ["wav/03a01Na.wav"]


def test_recipe_1_still_makes_the_samples_that_it_made_first(folders):
    """Other samples need another RECIPE, or a folder made before would pass for what the settings now mean."""
    samples, _ = soundfile.read(folders["emodb"] / "wav/03a01Wa.wav", dtype="int16")
    assert (RECIPE, len(samples)) == (1, 29_042)
    # Another processor may change last bits, which the mean does not show.
    assert np.abs(samples.astype(float)).mean() == pytest.approx(1388.378, rel=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_lively_emotions_are_higher_and_faster(folders, name):
    rows = []
    for clip in read_corpus(name, folders[name]).itertuples():
        sound = parselmouth.Sound(str(folders[name] / clip.path))
        hertz = sound.to_pitch(0.01, 60, 500).selected_array["frequency"]
        rows.append({"emotion": clip.emotion, "pitch": np.median(hertz[hertz > 0]), "seconds": sound.duration})
    means = pd.DataFrame(rows).groupby("emotion").mean()
    for emotion in {"anger", "fear", "happiness", "surprise"} & set(means.index):
        assert means.pitch[emotion] > 1.1 * means.pitch["sadness"], emotion
        assert means.seconds[emotion] < means.seconds["sadness"], emotion


def test_a_folder_is_written_once_with_a_note_and_holds_nothing_else(folders, tmp_path):
    lines = (folders["savee"] / SYNTHETIC_NOTE).read_text(encoding="utf-8").splitlines()
    assert "synthetic speech, not the corpus" in lines[0]
    expected = {"speakers": 1, "sentences": 4, "takes": 1, "seed": 0}
    assert json.loads(lines[-1]) == {"corpus": "savee", "recipe": 1, **expected}
    before = {path: path.stat().st_mtime_ns for path in folders["savee"].rglob("*")}
    folders["savee"].with_name("savee.partial").mkdir()  # of a process that was killed
    write_corpus("savee", folders["savee"], SETTINGS["savee"])
    with pytest.raises(SamsgError, match="Remove that folder"):
        write_corpus("savee", folders["savee"], SyntheticSettings(speakers=2))
    (tmp_path / "03a01Fa.wav").touch()
    with pytest.raises(SamsgError, match="holds other files"):
        write_corpus("emodb", tmp_path, SETTINGS["emodb"])
    assert before == {path: path.stat().st_mtime_ns for path in folders["savee"].rglob("*")}


def test_more_than_the_names_allow_is_refused(tmp_path):
    for name, settings, message in (
        ("savee", {"speakers": 5}, "names for 4 speakers and no more"),
        ("emodb", {"sentences": 11}, "names for 10 sentences and no more"),
        ("emo_db", {}, "Did you mean 'emodb'"),
    ):
        with pytest.raises(SamsgError, match=message):
            write_corpus(name, tmp_path / "new", SyntheticSettings(**settings))
    assert not (tmp_path / "new").exists()


def test_a_planned_corpus_brings_its_own_split_and_its_profile_says_what_it_is(folders, home):
    folder = home / "data/emodb"
    shutil.copytree(folders["emodb"], folder)
    parts = read_corpus("emodb", folder)[["path"]]
    parts["part"] = [PARTS[number % len(PARTS)] for number in range(len(parts))]
    parts[::-1].to_csv(folder / PARTS_FILE, index=False)
    profile = load_profile("paper", corpora={"emodb": {"note": "synthetic speech"}})
    assert read_manifest(open_run(profile, "emodb"))[["path", "part"]].equals(parts)
