"""The check: the official lists, copies that are not the official files, and files that are no sounds."""

import hashlib
import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sounds import POINTER, make_hostile, noise, wav, written

from samsg.corpora import verify
from samsg.corpora.catalogue import GRAMMARS
from samsg.corpora.verify import LEFT_OUT, check_corpus, listen, official_list, published_counts
from samsg.settings import SamsgError


def lay_out(root: Path, files: list[str], content: bytes | None = None) -> Path:
    """A folder in which each of these names is the same short sound."""
    content = wav() if content is None else content
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    return root


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """EmoDB's list cut to two clips an emotion, with what ``wav()`` holds as the official content of all but two."""
    listed = official_list("emodb").groupby("emotion").head(2).reset_index(drop=True)
    listed["sha256"] = hashlib.sha256(wav()).hexdigest()
    listed[["sample_rate", "frames"]] = 16_000, 1_600
    monkeypatch.setattr(verify, "official_list", lambda corpus: listed.copy())
    return listed


def status_of(report: verify.Report, name: str) -> tuple[str, str]:
    """Status and what of the one file whose path ends so."""
    (row,) = [row for row in report.files.itertuples() if row.path.endswith(name)]
    return row.status, row.what


# The official lists


def test_sounds_of_every_listed_name_are_found_with_the_published_counts(official):
    assert sum(map(len, official.values())) == 8457
    for corpus, manifest in official.items():
        listed = official_list(corpus).set_index("clip")
        assert set(manifest["clip"]) == set(listed.index)
        for column in ("speaker", "sentence", "emotion"):
            assert manifest[column].value_counts().sort_index().equals(published_counts(corpus, column))


def test_lists_hold_all_8457_files_with_the_published_counts():
    lists = {corpus: official_list(corpus) for corpus in GRAMMARS}
    assert {corpus: len(listed) for corpus, listed in lists.items()} == {"savee": 480, "emodb": 535, "crema_d": 7442}
    for corpus, listed in lists.items():
        assert listed.notna().all(axis=None)
        assert listed["clip"].is_unique
        assert (listed["sha256"] == "").all() == (corpus == "savee")
        assert listed.loc[listed["sha256"] != "", "sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert published_counts("savee").to_dict() == {
        "anger": 60, "disgust": 60, "fear": 60, "happiness": 60, "neutral": 120, "sadness": 60, "surprise": 60
    }  # fmt: skip
    assert published_counts("emodb", "speaker").to_dict() == {
        "03": 49, "08": 58, "09": 43, "10": 38, "11": 55, "12": 35, "13": 61, "14": 69, "15": 56, "16": 71
    }  # fmt: skip
    assert published_counts("crema_d", "speaker").size == 91
    assert published_counts("crema_d", "sentence").size == 12


def test_lists_say_what_the_shared_lists_say(shared):
    for corpus in GRAMMARS:
        expected = (
            pd.read_csv(shared / "corpora" / f"{corpus}.csv")
            .astype({"sha256": object})
            .fillna({"bytes": 0, "sha256": ""})
        )
        columns = ["file", "sample_rate", "frames", "bytes", "sha256"]
        pd.testing.assert_frame_equal(official_list(corpus)[columns], expected[columns], check_dtype=False)


def test_lists_are_small():
    assert sum(path.stat().st_size for path in verify.OFFICIAL.iterdir()) < 500_000


def test_an_unknown_corpus_is_refused_with_those_that_are_known():
    with pytest.raises(SamsgError, match="Did you mean 'emodb'"):
        check_corpus("emo-db")


# Whole corpora


@pytest.mark.parametrize("corpus", GRAMMARS)
def test_every_official_name_is_found(corpus, tmp_path, monkeypatch):
    listed = official_list(corpus)
    lay_out(tmp_path, list(listed["file"]), b"")
    # What the files sound like is told instead of heard: their names are the subject.
    told = {one.file: verify.Heard("ok", "", one.sample_rate, one.frames, one.sha256) for one in listed.itertuples()}
    monkeypatch.setattr(verify, "listen", lambda path, **_options: told[path.name])
    report = check_corpus(corpus, tmp_path)
    assert report.counts == {"ok": len(listed)}
    assert report.exit_code == 0
    assert report.verdict.startswith("complete and official")
    assert ("no hashes" in report.verdict) == (corpus == "savee")
    twins = report.files.loc[report.files["what"] != "", "what"].tolist()
    # CREMA-D gives three recordings two emotions each.
    first = ["1006_TIE_HAP_XX", "1013_WSI_DIS_XX", "1017_IWW_ANG_XX"] if corpus == "crema_d" else []
    assert twins == [f"the same bytes as {name}.wav" for name in first]


def test_savee_with_its_true_lengths_is_official_in_both_layouts(tmp_path):
    listed = official_list("savee").groupby(["speaker", "emotion"]).head(1)
    for one in listed.itertuples():
        samples = noise(one.frames / 44_100, 44_100)
        assert len(samples) == one.frames
        written(tmp_path / "flat" / one.file, samples, 44_100)
        speaker, name = one.file.split("_")
        written(tmp_path / "folders" / "AudioData" / speaker / name, samples[: one.frames // 2], 44_100)
    flat, folders = check_corpus("savee", tmp_path / "flat"), check_corpus("savee", tmp_path / "folders")
    assert flat.counts == {"ok": 28, "missing": 452}
    assert folders.counts == {"other content": 28, "missing": 452}
    assert flat.exit_code == folders.exit_code == 1
    assert flat.verdict == "incomplete: 28 of 480 clips."
    assert status_of(folders, "DC/a01.wav")[1].startswith("cut: 44100 Hz, 1.824 s (official: 44100 Hz, 3.648 s)")
    one_speaker = check_corpus("savee", tmp_path / "folders" / "AudioData" / "DC")  # the root's name is the speaker
    assert one_speaker.counts["other content"] == 7
    both = check_corpus("savee", tmp_path)
    assert both.counts["duplicate"] == 28
    assert both.exit_code == 2
    assert "keep one copy" in both.verdict


def test_first_two_seconds_of_emodb_are_its_names_with_other_content(shared):
    report = check_corpus("emodb", shared / "emodb_first2s")
    assert report.counts == {"other content": 535}
    assert report.exit_code == 1
    assert report.verdict == (
        "complete, other content in 535 of 535 clips: results on it are not results on EmoDB."
    )  # fmt: skip
    assert set(report.files["sample_rate"]) == {22_050}
    assert set(report.files["seconds"]) == {2.0}
    assert set(report.files["left_out"]) == {""}
    expected = "resampled, longer: 22050 Hz, 2.000 s (official: 16000 Hz, 1.898 s)"
    assert status_of(report, "03a01Fa.wav") == ("other content", expected)
    assert "535 at 22050 Hz; 2.00 to 2.00 s" in report.text()


def test_a_folder_that_is_not_there_is_a_report(tmp_path):
    report = check_corpus("emodb", tmp_path / "nowhere")
    assert report.counts == {"missing": 535}
    assert report.exit_code == 2
    assert "data/README.md" in report.text()


# Copies with faults


def test_official_files_nested_upper_case_and_beside_litter_are_official(known, tmp_path):
    lay_out(tmp_path / "download" / "EmoDB" / "wav", [file.upper() for file in known["file"]])
    lay_out(tmp_path, ["._03a01Fa.wav", "__MACOSX/wav/03a01Fa.wav", ".DS_Store", "erkennung.txt"], b"litter")
    report = check_corpus("emodb", tmp_path)
    assert report.counts == {"ok": 14}
    assert (report.verdict, report.exit_code) == ("complete and official: 14 clips.", 0)


def test_each_fault_has_its_line(known, tmp_path):
    files = list(known["file"])
    lay_out(tmp_path, files[4:])
    (tmp_path / files[0]).write_bytes(wav(samples=np.flip((noise() * 2**15).astype("<i2")).tobytes()))
    (tmp_path / files[1]).write_text(POINTER)
    written(tmp_path / files[2], noise(0.1, 8_000), 8_000)
    (tmp_path / "my recording.wav").write_bytes(wav())
    report = check_corpus("emodb", tmp_path)
    assert status_of(report, files[0])[0] == "other content"
    assert status_of(report, files[0])[1].startswith("other bytes: 16000 Hz, 0.100 s (official: 16000 Hz, 0.100 s)")
    assert status_of(report, files[1]) == ("LFS pointer", f"{len(POINTER)} bytes of text")
    assert status_of(report, files[2])[1].startswith("resampled: 8000 Hz, 0.100 s (official: 16000 Hz")
    assert status_of(report, files[3]) == ("missing", "not on disk")
    assert status_of(report, "my recording.wav")[0] == "unexpected name"
    assert report.counts == {
        "ok": 10, "other content": 2, "unexpected name": 1, "missing": 1, "LFS pointer": 1
    }  # fmt: skip
    assert report.verdict.startswith("incomplete: 12 of 14 clips; other content in 2 of 14 clips")
    assert report.exit_code == 1


def test_a_whole_copy_of_pointers_is_not_usable_and_the_way_out_is_named(tmp_path):
    lay_out(tmp_path / "AudioWAV", list(official_list("crema_d")["file"][:300]), POINTER.encode())
    report = check_corpus("crema_d", tmp_path)
    assert report.counts == {"missing": 7142, "LFS pointer": 300}
    assert report.exit_code == 2
    assert "git lfs pull" in report.text()


def test_files_beside_the_corpus_matter_only_if_they_would_be_read_as_its_clips(known, tmp_path):
    lay_out(tmp_path, [*known["file"], "notes.wav"])
    assert check_corpus("emodb", tmp_path).exit_code == 0
    lay_out(tmp_path, ["99a01Fa.wav"])
    report = check_corpus("emodb", tmp_path)
    assert report.exit_code == 1
    assert "1 clips beside it" in report.verdict


def test_crema_d_file_without_audio_is_a_note(tmp_path, monkeypatch):
    listed = official_list("crema_d")
    lay_out(tmp_path, list(listed["file"]), b"")
    told = {one.file: verify.Heard("ok", "", one.sample_rate, one.frames, one.sha256) for one in listed.itertuples()}
    silent = listen(written(tmp_path / "1076_MTI_SAD_XX.wav", np.zeros(41_108)))
    assert silent.status == "no audio"
    monkeypatch.setattr(verify, "listen", lambda path, **_options: {**told, silent_name: silent}[path.name])
    silent_name = "1076_MTI_SAD_XX.wav"
    report = check_corpus("crema_d", tmp_path)
    assert report.counts == {"ok": 7441, "known defect": 1}
    assert (report.verdict, report.exit_code) == ("complete and official: 7442 clips.", 0)
    assert "README" in status_of(report, silent_name)[1]
    assert report.files.set_index("path").at[silent_name, "left_out"].startswith("no audio")


def test_the_official_file_without_audio_is_known_by_its_hash(tmp_path, monkeypatch):
    path = written(tmp_path / "1076_MTI_SAD_XX.wav")
    assert listen(path).status == "ok"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(verify, "NO_AUDIO", {"clip": "", "bytes": path.stat().st_size, "sha256": sha256})
    assert listen(path, digest=False).left_out == "no audio: as CREMA-D's README says"
    monkeypatch.undo()
    official = official_list("crema_d").set_index("clip").loc["1076_MTI_SAD_XX"]
    assert official[["bytes", "sha256"]].to_dict() == {key: verify.NO_AUDIO[key] for key in ("bytes", "sha256")}


# Hostile files


@pytest.mark.parametrize("digest", [True, False])
def test_every_hostile_file_is_a_line(digest, tmp_path):
    expected = make_hostile(tmp_path / "own")
    found = {name: listen(tmp_path / "own" / name, digest=digest) for name in expected}
    assert {name: heard.status for name, heard in found.items()} == {name: said[0] for name, said in expected.items()}
    for name, (status, words) in expected.items():
        assert words in found[name].what, (name, found[name].what)
        assert found[name].what.isprintable()
        assert bool(found[name].left_out) == (status in LEFT_OUT)


def test_the_check_survives_hostile_files_under_any_name(known, tmp_path):
    hostile = [tmp_path / "own" / name for name in make_hostile(tmp_path / "own") if name.endswith(".wav")][:-2]
    official = list(known["file"][1:])
    for source, file in zip(hostile, official, strict=False):
        source.rename(tmp_path / file)
    if os.name == "posix":
        (Path(os.fsencode(tmp_path).decode()) / os.fsdecode(b"caf\xe9\n.wav")).write_bytes(wav())
    report = check_corpus("emodb", tmp_path)
    assert report.exit_code == 2
    text = report.text(examples=100)
    text.encode("utf-8")
    assert r"caf\udce9\n.wav" in text
    assert "nan" not in text.lower().replace("nan.wav", "").replace("are nan,", "")
    content = json.loads(report.json())
    assert content["exit_code"] == 2
    assert content["counts"] == report.counts
    assert len(content["files"]) == len(report.files)
    assert report.files.notna().all(axis=None)


def test_three_hours_are_refused_by_their_header_or_within_a_minute_of_sound(tmp_path):
    make_hostile(tmp_path / "own")
    written(tmp_path / "hours.flac", np.zeros(3 * 3600 * 1_000, dtype=np.int16), 1_000)
    tracemalloc.start()
    started = time.perf_counter()
    assert listen(tmp_path / "own" / "3 hours.wav").status == "very long"
    assert listen(tmp_path / "hours.flac").status == "very long"
    assert time.perf_counter() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    minute = written(tmp_path / "minute.wav", noise(1.5))
    assert listen(minute, longest=1.0).status == "very long"
    assert listen(minute, longest=1.5).status == "ok"


def test_a_file_too_large_to_hash_is_still_heard(tmp_path, monkeypatch):
    path = written(tmp_path / "large.wav", noise(20.0))
    small = listen(path)
    monkeypatch.setattr(verify, "AT_ONCE", 1_000)
    assert listen(path) == small._replace(sha256="")
    assert small.frames == 320_000


def test_a_file_that_may_not_be_read_is_a_line(tmp_path):
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("every file may be read by this user")
    path = written(tmp_path / "secret.wav")
    path.chmod(0)
    assert listen(path)[:2] == ("unreadable", "Permission denied")


def test_a_refusal_by_the_file_system_is_a_line(tmp_path, monkeypatch):
    path = written(tmp_path / "secret.wav")

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert listen(path)[:2] == ("unreadable", "Permission denied")


# Corpora of one's own


def test_a_csv_corpus_is_listened_to(tmp_path):
    for name in ("a", "b", "c", "d"):
        written(tmp_path / f"{name}.wav", noise(0.2))
    listed = "path,emotion\na.wav,calm\nb.wav,calm\nc.wav,mixed/other\nd.wav,mixed/other\n"
    (tmp_path / "own.csv").write_text(listed)
    report = check_corpus(str(tmp_path / "own.csv"))
    assert (report.counts, report.exit_code) == ({"ok": 4}, 0)
    (tmp_path / "a.wav").write_bytes(b"")
    report = check_corpus(str(tmp_path / "own.csv"))
    assert (report.verdict, report.exit_code) == ("usable: 1 of 4 clips are left out.", 1)
    (tmp_path / "b.wav").write_text(POINTER)
    report = check_corpus(str(tmp_path / "own.csv"))
    assert report.exit_code == 2
    assert "no clip of calm" in report.text()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_the_formats_that_training_reads_are_heard(suffix, tmp_path):
    heard = listen(written(tmp_path / f"sound.{suffix}", noise(1.0)))
    assert heard.status == "ok"
    assert heard.sample_rate == 16_000
    assert heard.seconds == pytest.approx(1.0, abs=0.15)
