"""The embedded corpora: official names, the same bytes from the same seed, sounds that are speech and act."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from samsg.corpora.synthetic import SPOKEN, _savee_sentence, write_corpus
from samsg.settings import SamsgError, SyntheticSettings

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
def test_names_are_official(folders, name):
    for path in sounds(folders[name]):
        assert re.fullmatch(OFFICIAL[name], path), path
    beside = {path.name for path in folders[name].iterdir() if path.is_file()}
    assert beside == {SPOKEN}


def test_counts(folders):
    # Neutral has twice as many sentences in SAVEE.
    others = dict.fromkeys(("a", "d", "f", "h", "sa", "su"), 4)
    assert parts("savee", folders["savee"], "emotion") == {**others, "n": 8}
    assert parts("emodb", folders["emodb"], "emotion") == dict.fromkeys("WLEAFTN", 2 * 3)
    assert parts("emodb", folders["emodb"], "speaker") == dict.fromkeys(("03", "08"), 3 * 7)
    assert parts("crema_d", folders["crema_d"], "speaker") == dict.fromkeys(("1001", "1002"), 2 * 6 * 2)
    assert parts("crema_d", folders["crema_d"], "sentence") == dict.fromkeys(("IEO", "TIE"), 2 * 6 * 2)


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


def test_clips_differ_in_length(folders):
    seconds = [soundfile.info(path).duration for path in (folders["emodb"] / "wav").iterdir()]
    assert np.std(seconds) > 0.2


def test_same_seed_same_bytes_whatever_was_spoken_before(folders, tmp_path):
    # These are fewer clips, spoken in another order after other corpora: eSpeak's own state must not leak into them.
    write_corpus("crema_d", tmp_path / "c", SETTINGS["crema_d"].model_copy(update={"speakers": 1}))
    write_corpus("emodb", tmp_path / "e", SETTINGS["emodb"].model_copy(update={"sentences": 2}))
    write_corpus("savee", tmp_path / "s", SETTINGS["savee"].model_copy(update={"sentences": 1}))
    for name, short in {"crema_d": "c", "emodb": "e", "savee": "s"}.items():
        again, before = sounds(tmp_path / short), sounds(folders[name])
        assert len(again) >= 8
        assert all(before[path] == content for path, content in again.items())


def test_other_seed_other_bytes(folders, tmp_path):
    settings = SyntheticSettings(speakers=1, sentences=1, seed=1)
    write_corpus("emodb", tmp_path / "emodb", settings)
    other = sounds(tmp_path / "emodb")
    assert len(other) == 7
    assert all(sounds(folders["emodb"])[path] != content for path, content in other.items())


def test_savee_has_three_sentences_in_common():
    emotions = [[_savee_sentence(number, row) for number in range(1, 31 if row == 4 else 16)] for row in range(7)]
    assert len({tuple(texts[:3]) for texts in emotions}) == 1
    own = [text for texts in emotions for text in texts[3:]]
    assert len(own) == len(set(own)) == 6 * 12 + 27


def test_takes_differ(folders):
    clips = sounds(folders["crema_d"])
    assert clips["AudioWAV/1001_IEO_ANG_XX.wav"] != clips["AudioWAV/1001_IEO_ANG_LO.wav"]


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
    lines = (folders["savee"] / SPOKEN).read_text(encoding="utf-8").splitlines()
    assert "synthetic speech, not the corpus" in lines[0]
    said = json.loads(lines[-1])
    assert said["corpus"] == "savee"
    assert {key: said[key] for key in ("speakers", "sentences", "takes", "seed")} == SETTINGS["savee"].model_dump(
        exclude={"shortcut"}
    )


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
        ("savee", {"speakers": 5}, "5 speakers.* 4 at most"),
        ("emodb", {"sentences": 11}, "11 sentences.* 10 at most"),
        ("savee", {"takes": 2}, "2 takes.* 1 at most"),
        ("crema_d", {"takes": 5}, "5 takes.* 4 at most"),
        ("emo_db", {}, "Did you mean 'emodb'"),
    ],
)
def test_what_the_names_do_not_allow(tmp_path, name, settings, message):
    with pytest.raises(SamsgError, match=message):
        write_corpus(name, tmp_path / "new", SyntheticSettings(**settings))
    assert not list(tmp_path.iterdir())


def test_a_half_made_corpus_is_not_taken_for_a_whole_one_and_begun_again(tmp_path, monkeypatch):
    from samsg.corpora import synthetic

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


def test_missing_parselmouth_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(SamsgError, match=r"\.\[synthetic\]"):
        write_corpus("emodb", tmp_path / "emodb", SyntheticSettings())
