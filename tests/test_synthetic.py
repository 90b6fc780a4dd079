"""The embedded corpora: official names, the same bytes from the same seed, sounds that are speech and act."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from samsg import synthetic
from samsg.corpora import PARTS_FILE, SYNTHETIC_NOTE, read_corpus
from samsg.settings import SamsgError, SyntheticSettings
from samsg.synthetic import write_corpus

parselmouth = pytest.importorskip("parselmouth", reason="the embedded corpora need the extra 'synthetic'")

# The corpora's own grammars, written here once more: speaker, emotion and sentence are groups.
OFFICIAL = {
    "savee": r"AudioData/(?P<speaker>DC|JE|JK|KL)/(?P<emotion>a|d|f|h|n|sa|su)(?P<sentence>0[1-9]|[12]\d|30)\.wav",
    "emodb": r"wav/(?P<speaker>03|08|09|1[0-6])(?P<sentence>a0[12457]|b0[1239]|b10)(?P<emotion>[WLEAFTN])[a-f]\.wav",
    "crema_d": r"AudioWAV/(?P<speaker>10\d\d)_(?P<sentence>IEO|TIE|IOM|IWW|TAI|MTI|IWL|ITH|DFA|ITS|TSI|WSI)"
    r"_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX)\.wav",
}
SETTINGS = {
    "savee": SyntheticSettings(speakers=1, sentences=4),
    "emodb": SyntheticSettings(speakers=2, sentences=3),
    "crema_d": SyntheticSettings(speakers=2, sentences=2, takes=2),
}
SAMPLE_RATES = {"savee": 44_100, "emodb": 16_000, "crema_d": 16_000}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """All three corpora, small."""
    parent = tmp_path_factory.mktemp("data")
    for name, settings in SETTINGS.items():
        write_corpus(name, parent / name, settings)
    return {name: parent / name for name in SETTINGS}


def sounds(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.wav"))}


def parts(name: str, folder: Path, group: str) -> Counter[str]:
    return Counter(re.fullmatch(OFFICIAL[name], path)[group] for path in sounds(folder))


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_are_official_and_one_reader_serves_them(folders, name):
    for path in sounds(folders[name]):
        assert re.fullmatch(OFFICIAL[name], path), path
    assert {path.name for path in folders[name].iterdir() if path.is_file()} == {SYNTHETIC_NOTE}
    manifest = read_corpus(name, folders[name])
    assert manifest["path"].sort_values().tolist() == list(sounds(folders[name]))
    assert manifest["speaker"].nunique() == SETTINGS[name].speakers


def test_counts(folders):
    # Neutral has twice as many sentences in SAVEE.
    others = dict.fromkeys(("a", "d", "f", "h", "sa", "su"), 4)
    assert parts("savee", folders["savee"], "emotion") == {**others, "n": 8}
    assert parts("emodb", folders["emodb"], "emotion") == dict.fromkeys("WLEAFTN", 2 * 3)
    assert parts("emodb", folders["emodb"], "speaker") == dict.fromkeys(("03", "08"), 3 * 7)
    assert parts("crema_d", folders["crema_d"], "speaker") == dict.fromkeys(("1001", "1002"), 2 * 6 * 2)
    assert parts("crema_d", folders["crema_d"], "sentence") == dict.fromkeys(("IEO", "TIE"), 2 * 6 * 2)
    clips = sounds(folders["crema_d"])
    assert clips["AudioWAV/1001_IEO_ANG_XX.wav"] != clips["AudioWAV/1001_IEO_ANG_LO.wav"]  # takes differ


@pytest.mark.parametrize("name", OFFICIAL)
def test_sounds_are_sound(folders, name):
    for path in sounds(folders[name]):
        samples, rate = soundfile.read(folders[name] / path)
        assert rate == SAMPLE_RATES[name] and samples.ndim == 1
        assert soundfile.info(folders[name] / path).subtype == "PCM_16"
        assert 1.0 < len(samples) / rate < 7.0, path
        assert np.isfinite(samples).all()
        assert 0.02 < np.abs(samples).max() < 0.99, path  # neither silent nor clipped
        assert np.count_nonzero(samples) > 0.5 * len(samples), path  # a room's noise, not digital silence


def test_same_seed_same_bytes_whatever_was_spoken_before(folders, tmp_path):
    # These are fewer clips, spoken in another order after other corpora: eSpeak's own state must not leak into them.
    write_corpus("crema_d", tmp_path / "c", SETTINGS["crema_d"].model_copy(update={"speakers": 1}))
    write_corpus("emodb", tmp_path / "e", SETTINGS["emodb"].model_copy(update={"sentences": 2}))
    write_corpus("savee", tmp_path / "s", SETTINGS["savee"].model_copy(update={"sentences": 1}))
    for name, short in {"crema_d": "c", "emodb": "e", "savee": "s"}.items():
        again, before = sounds(tmp_path / short), sounds(folders[name])
        assert len(again) >= 8
        assert all(before[path] == content for path, content in again.items())


def test_recipe_1_still_makes_the_samples_that_it_made_first(folders):
    """Other samples need another RECIPE, or a folder made before would pass for what the settings now mean."""
    samples, _ = soundfile.read(folders["emodb"] / "wav/03a01Wa.wav", dtype="int16")
    assert (synthetic.RECIPE, len(samples)) == (1, 29_042)
    # Another processor may change last bits, which the mean does not show.
    assert np.abs(samples.astype(float)).mean() == pytest.approx(1388.378, rel=1e-4)


def test_other_seed_other_bytes(folders, tmp_path):
    settings = SyntheticSettings(speakers=1, sentences=1, seed=1)
    write_corpus("emodb", tmp_path / "emodb", settings)
    other = sounds(tmp_path / "emodb")
    assert len(other) == 7
    assert all(sounds(folders["emodb"])[path] != content for path, content in other.items())


@pytest.mark.parametrize(
    ("name", "high", "low"),
    [("savee", ("a", "f", "h", "su"), "sa"), ("emodb", "WAF", "T"), ("crema_d", ("ANG", "FEA", "HAP"), "SAD")],
)
def test_lively_emotions_are_higher_and_faster(folders, name, high, low):
    pitch, seconds = {}, {}
    for path in sounds(folders[name]):
        emotion = re.fullmatch(OFFICIAL[name], path)["emotion"]
        sound = parselmouth.Sound(str(folders[name] / path))
        hertz = sound.to_pitch(0.01, 60, 500).selected_array["frequency"]
        pitch.setdefault(emotion, []).append(np.median(hertz[hertz > 0]))
        seconds.setdefault(emotion, []).append(sound.duration)
    for emotion in high:
        assert np.mean(pitch[emotion]) > 1.1 * np.mean(pitch[low]), emotion
        assert np.mean(seconds[emotion]) < np.mean(seconds[low]), emotion


def test_note_says_what_it_is(folders):
    lines = (folders["savee"] / SYNTHETIC_NOTE).read_text(encoding="utf-8").splitlines()
    assert "synthetic speech, not the corpus" in lines[0]
    expected = {"speakers": 1, "sentences": 4, "takes": 1, "seed": 0}
    assert json.loads(lines[-1]) == {"corpus": "savee", "recipe": 1, **expected}


def test_written_once(folders):
    before = {path: path.stat().st_mtime_ns for path in folders["emodb"].rglob("*")}
    write_corpus("emodb", folders["emodb"], SETTINGS["emodb"])
    assert before == {path: path.stat().st_mtime_ns for path in folders["emodb"].rglob("*")}


def test_other_settings_are_refused(folders):
    with pytest.raises(SamsgError, match="Remove that folder"):
        write_corpus("emodb", folders["emodb"], SyntheticSettings(speakers=1))


def test_real_files_are_left_alone(tmp_path):
    (tmp_path / "03a01Fa.wav").write_bytes(b"RIFF")
    with pytest.raises(SamsgError, match="not synthetic"):
        write_corpus("emodb", tmp_path, SyntheticSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["03a01Fa.wav"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("savee", {"speakers": 5}, "names for 4 speakers, not for 5"),
        ("emodb", {"sentences": 11}, "names for 10 sentences, not for 11"),
        ("savee", {"takes": 2}, "names for 1 takes, not for 2"),
        ("savee", {"shortcut": 0.5}, "no names for a shortcut"),
        ("emodb", {"sentences": 6, "shortcut": 0.5}, "a sentence for each of 7 emotions; found 6"),
        ("emo_db", {}, "Did you mean 'emodb'"),
    ],
)
def test_more_than_the_names_allow_is_refused(tmp_path, name, settings, message):
    with pytest.raises(SamsgError, match=message):
        write_corpus(name, tmp_path / "new", SyntheticSettings(**settings))
    assert not (tmp_path / "new").exists()


def test_an_interrupted_corpus_is_absent_and_made_again(tmp_path, monkeypatch):
    written = []

    def fail_at_third(path, *_, **__):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(synthetic.soundfile, "write", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_corpus("emodb", tmp_path / "emodb", SETTINGS["emodb"])
    assert not (tmp_path / "emodb").exists()
    (tmp_path / "emodb.partial/of another program").touch()
    monkeypatch.undo()
    write_corpus("emodb", tmp_path / "emodb", SETTINGS["emodb"])
    assert {path.name for path in tmp_path.iterdir()} == {"emodb", ".emodb.lock"}
    assert not list((tmp_path / "emodb").glob("of*"))


def test_a_shortcut_links_sentence_and_emotion_in_training_alone(tmp_path):
    settings = SyntheticSettings(speakers=1, sentences=7, shortcut=1.0)
    write_corpus("emodb", tmp_path / "one", settings)
    write_corpus("emodb", tmp_path / "none", settings.model_copy(update={"shortcut": 0.0}))
    tables = {}
    for name in ("one", "none"):
        parts = pd.read_csv(tmp_path / name / PARTS_FILE)
        tables[name] = read_corpus("emodb", tmp_path / name).merge(parts, on="path")
        assert tables[name].groupby(["emotion", "part"]).size().unstack().to_numpy().tolist() == [[3, 4, 1]] * 7
    trained = tables["one"][tables["one"]["part"] != "test"]
    assert (trained.groupby("emotion")["sentence"].nunique() == 1).all()
    assert trained["sentence"].nunique() == 7
    assert (tables["none"].groupby("emotion")["sentence"].nunique() > 2).any()
    tests = [set(table.loc[table["part"] == "test", "sentence"] + table["emotion"]) for table in tables.values()]
    assert tests[0] == tests[1]  # the same test clips at every strength


def test_missing_parselmouth_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(SamsgError, match=r"\.\[synthetic\]"):
        write_corpus("emodb", tmp_path / "emodb", SyntheticSettings())
