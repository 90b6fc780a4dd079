"""Corpora as tables: file names, CSVs and guesses, the official lists, the fingerprint and the check."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from toys import wav

from samsg import corpora
from samsg.corpora import COLUMNS, GRAMMARS, check_corpus, fingerprint, official_list, parse_path, read_corpus
from samsg.settings import SamsgError, load_profile
from samsg.sources import guess_labels, new_corpus

FILES = {corpus: official_list(corpus).groupby("emotion")["file"].first().tolist() for corpus in GRAMMARS}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 60788\n"


def touch(root: Path, *files: str) -> Path:
    """A folder with these files, empty: reading a manifest opens none of them."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def expand(pattern: str) -> list[str]:
    """'{a,b}/{1,2}.wav' -> a/1.wav, a/2.wav, b/1.wav and b/2.wav."""
    return list(map("".join, itertools.product(*(part.split(",") for part in re.split("[{}]", pattern)))))


def write_csv(root: Path, text: str, *files: str, encoding: str = "utf-8") -> str:
    """The path of a CSV beside its files."""
    touch(root, *files)
    (root / "own.csv").write_bytes(text.encode(encoding))
    return str(root / "own.csv")


@pytest.mark.parametrize(
    ("corpus", "path", "expected"),
    [
        ("savee", "DC_a01.wav", ("DC_a01", "DC", "01", "anger")),
        ("savee", "KL/sa03.wav", ("KL_sa03", "KL", "03", "sadness")),  # sa, not a
        ("savee", "KL_su04.WAV", ("KL_su04", "KL", "su04", "surprise")),
        ("emodb", "wav/03a01Fa.wav", ("03a01Fa", "03", "a01", "happiness")),
        ("crema_d", "AudioWAV/1001_DFA_ANG_XX.wav", ("1001_DFA_ANG_XX", "1001", "DFA", "anger")),
        ("crema_d", "1040_ITH_SAD_X.wav", ("1040_ITH_SAD_X", "1040", "ITH", "sadness")),  # one X in some copies
        ("ravdess", "03-01-02-02-01-02-24.flac", ("03-01-02-02-01-02-24", "24", "01", "calm")),
        *(("savee", name, ()) for name in ("a01.wav", "XX_a01.wav", "DC_b01.wav", "ADC_a01.wav", "DC_a01.wav.txt")),
        *(("emodb", name, ()) for name in ("03a01Xa.wav", "103a01Fa.wav", "03a01Fa.mp3")),
        ("crema_d", "1001_DFA_SUR_XX.wav", ()),
        ("ravdess", "03-02-06-01-02-01-12.wav", ()),  # song
        ("ravdess", "03-01-06-01-02-01-25.wav", ()),  # actor 25
    ],
)
def test_a_name_is_parsed_or_is_of_no_clip(corpus, path, expected):
    assert tuple((parse_path(path, corpus) or {}).values()) == expected


@pytest.mark.parametrize("corpus", FILES)
def test_a_manifest_is_sorted_and_its_paths_are_relative(tmp_path, corpus):
    manifest = read_corpus(corpus, touch(tmp_path, *(f"disc/wav/{file}" for file in reversed(FILES[corpus]))))
    assert list(manifest.columns) == COLUMNS == ["clip", "path", "corpus", "speaker", "sentence", "emotion"]
    assert manifest["clip"].tolist() == sorted(Path(file).stem for file in FILES[corpus])
    assert manifest["path"].tolist() == [f"disc/wav/{clip}.wav" for clip in manifest["clip"]]
    assert corpora.emotions_of(manifest) == sorted(GRAMMARS[corpus].emotions.values())
    assert set(manifest["corpus"]) == {corpus}


def test_links_are_followed_and_hidden_files_are_not_read(tmp_path):
    touch(tmp_path / "shared disk", *FILES["emodb"])
    (tmp_path / "emodb").mkdir()
    (tmp_path / "emodb/wav").symlink_to(tmp_path / "shared disk")
    touch(tmp_path / "shared disk", "._03a01Wa.wav", "__MACOSX/wav/._03a01Wa.wav", ".ipynb_checkpoints/03a01Wa.wav")
    assert len(read_corpus("emodb", tmp_path / "emodb")) == 7


def test_a_folder_that_is_not_the_corpus_is_refused_with_what_was_found(tmp_path):
    with pytest.raises(SamsgError, match=r"nowhere has 0 sound files, and no anger, .*data/README\.md"):
        read_corpus("emodb", tmp_path / "nowhere")
    touch(tmp_path, *FILES["emodb"][1:])
    with pytest.raises(SamsgError, match=r"has 6 sound files, and no anger of EmoDB\. Names are like wav/"):
        read_corpus("emodb", tmp_path)
    with pytest.raises(SamsgError, match=r"no corpus 'emdob'; known: .*ravdess, savee\. Did you mean 'emodb'"):
        read_corpus("emdob")


def test_a_name_that_tables_cannot_hold_is_refused(tmp_path):
    touch(tmp_path, os.fsdecode(b"calm/caf\xe9.wav"))
    with pytest.raises(SamsgError, match=r"has the name 'calm/.*'; tables cannot hold its characters"):
        check_corpus("savee", tmp_path)


def test_a_csv_is_a_corpus_and_its_cells_are_text_without_spaces_around_them(tmp_path):
    text = "path, emotion,speaker,sentence,x\nb/2.wav,None ,07,s1,x\nÄrger 1.wav, mixed/other,NA,\na/1.wav,01,,s2,y\n"
    path = write_csv(tmp_path, text, "a/1.wav", "b/2.wav", "Ärger 1.wav", encoding="utf-8-sig")
    assert read_corpus(path)[COLUMNS].to_numpy().tolist() == [
        ["a/1.wav", "a/1.wav", "own", "", "s2", "01"],
        ["b/2.wav", "b/2.wav", "own", "07", "s1", "None"],
        ["Ärger 1.wav", "Ärger 1.wav", "own", "NA", "", "mixed/other"],
    ]


def test_sounds_may_lie_anywhere(tmp_path):
    outside = touch(tmp_path / "disk", "a/1.wav", "b/2.wav", "3.wav")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/link").symlink_to(outside)
    text = f"path,emotion\n{outside}/a/1.wav,calm\n../disk/b/2.wav,glad\nlink/3.wav,glad\n"
    assert len(read_corpus(write_csv(tmp_path / "own", text))) == 3
    path = write_csv(tmp_path / "own", "path,emotion\na/1.wav,calm\nb/2.wav,glad\n")
    assert read_corpus(path, outside)["path"].tolist() == ["a/1.wav", "b/2.wav"]
    # Clips that are listed with absolute paths keep their names when the corpus moves.
    for folder in (outside, touch(tmp_path / "elsewhere", "a/1.wav", "b/2.wav")):
        text = f"path,emotion\n{folder}/a/1.wav,calm\n{folder}/b/2.wav,glad\n"
        assert read_corpus(write_csv(tmp_path / "own", text))["clip"].tolist() == ["a/1.wav", "b/2.wav"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path;emotion\n1.wav;calm\n", "has columns path;emotion; it needs path and emotion"),
        ("", "cannot be read as CSV"),
        ("path,emotion\n1.wav,calm\n2.wav, \n", r"has no emotion for '2\.wav'"),
        ('path,emotion\n1.wav,calm\n2.wav,"gl\rad"\n', "characters that tables cannot hold"),
        ("path,emotion\n1.wav,calm\n2.wav,calm\n", "has 1 emotions; a classifier needs two or more"),
        ("path,emotion\n1.wav,calm\n3.wav,glad\n", r"lists 1 files that do not exist in .*, such as '3\.wav'"),
        ("path,emotion\n1.wav,calm\n/dev/zero,glad\n", "lists 1 files that do not exist"),
        ("path,emotion\n", "has 0 emotions"),
        ("path,emotion\n1.wav,calm\n1.wav,glad\n2.wav,glad\n", r"has a clip twice, such as 1\.wav and 1\.wav"),
        ("path,emotion,part\n1.wav,calm,train\n2.wav,glad,dev\n", ".'dev', 'train'. in column part; .* needs train,"),
        ("path,emotion\n1.wav,\xc4rger\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path, text, words):
    encoding = "latin-1" if "\xc4" in text else "utf-8"
    with pytest.raises(SamsgError, match=rf"own\.csv.* {words}"):
        read_corpus(write_csv(tmp_path, text, "1.wav", "2.wav", encoding=encoding))


def test_a_fingerprint_changes_with_names_labels_and_sounds_alone(tmp_path):
    wav(tmp_path / "a.wav", frequency=440)
    wav(tmp_path / "b.wav", frequency=880)
    manifest = read_corpus(write_csv(tmp_path, "path,emotion,speaker\na.wav,calm,ann\nb.wav,glad,bob\n"))
    first = fingerprint(manifest, tmp_path)
    moved = manifest.assign(corpus="another", path=str(tmp_path) + "/" + manifest["path"])
    assert first == fingerprint(manifest.iloc[::-1], tmp_path) == fingerprint(moved, tmp_path)
    for column in ("clip", "speaker", "sentence", "emotion"):
        assert first != fingerprint(manifest.assign(**{column: ["x", *manifest[column][1:]]}), tmp_path)
    assert first != fingerprint(manifest.assign(part=["train", "test"]), tmp_path)
    wav(tmp_path / "a.wav", frequency=441)
    assert first != fingerprint(manifest, tmp_path)


def test_the_lists_hold_all_files_with_the_published_counts():
    def counts(corpus: str, by: str = "emotion") -> pd.Series:
        return official_list(corpus)[by].value_counts().sort_index()

    for corpus, n in {"savee": 480, "emodb": 535, "crema_d": 7442, "ravdess": 1440}.items():
        table = official_list(corpus)
        assert len(table) == n and table.notna().all(axis=None) and table["clip"].is_unique
        has_hash = table["sha256"].str.fullmatch("[0-9a-f]{64}")
        assert has_hash.all() if corpus in ("emodb", "crema_d") else (table["sha256"] == "").all()
    others = ["anger", "disgust", "fear", "happiness", "sadness"]
    assert counts("savee").to_dict() == {**dict.fromkeys(others, 60), "neutral": 120, "surprise": 60}
    assert counts("emodb").tolist() == [127, 81, 46, 69, 71, 79, 62]
    assert counts("crema_d").to_dict() == {**dict.fromkeys(others, 1271), "neutral": 1087}
    assert counts("ravdess").to_dict() == dict.fromkeys([*others, "calm", "surprise"], 192) | {"neutral": 96}
    assert counts("savee", "speaker").to_dict() == dict.fromkeys(["DC", "JE", "JK", "KL"], 120)
    assert counts("emodb", "speaker").tolist() == [49, 58, 43, 38, 55, 35, 61, 69, 56, 71]  # 03, and 08 to 16
    # 91 actors: 11 sentences in 6 emotions, and IEO in neutral and 5 emotions at 3 levels: 82. 5 actors lack a few.
    actors = counts("crema_d", "speaker")
    assert len(actors) == 91
    assert actors[actors != 82].to_dict() == {"1002": 81, "1008": 76, "1009": 76, "1019": 76, "1076": 81}
    assert counts("ravdess", "speaker").to_dict() == {f"{actor:02d}": 60 for actor in range(1, 25)}
    # SAVEE: 15 sentences in each emotion and 30 in neutral; 3 of them are common to all emotions.
    assert counts("savee", "sentence").tolist() == [28] * 3 + [4] * (6 * 12 + 27)
    assert [len(counts(corpus, "sentence")) for corpus in ("emodb", "crema_d", "ravdess")] == [10, 12, 2]


@pytest.fixture
def small_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pd.DataFrame:
    """EmoDB's list cut to four clips an emotion, and a folder emodb/ with sounds that are its official content."""
    table = official_list("emodb").groupby("emotion").head(4).reset_index(drop=True)
    paths = [wav(tmp_path / "emodb/wav" / file, 0.2, frequency=300 + 9 * n) for n, file in enumerate(table["file"])]
    table["sha256"] = corpora.hash_files(paths)
    table[["sample_rate", "frames"]] = 16_000, 3_200
    monkeypatch.setattr(corpora, "official_list", lambda corpus: table.copy())
    return table


def test_the_official_files_are_complete_and_official(small_list, tmp_path):
    (tmp_path / "emodb/wav/notes.wav").write_bytes(b"beside the corpus")
    report = check_corpus("emodb", tmp_path / "emodb")
    assert (report.verdict, report.exit_code) == ("complete and official: 28 clips.", 0)
    lines = report.text().splitlines()
    assert lines[0] == f"EmoDB in {tmp_path / 'emodb'}: 28 usable sounds, 0.1 min"
    formats = lines.index("sample_rate: 16000 (28)")
    assert lines[formats - 1].split() == ["all", *["4"] * 7, "28"] and lines[formats + 2].split() == ["28", "ok"]


def test_each_fault_has_its_line(small_list, tmp_path):
    root, files = tmp_path / "emodb/wav", list(small_list["file"])
    wav(root / files[0], 0.2, frequency=880)
    wav(root / files[1], 0.2, rate=8_000)
    (root / files[2]).write_text(POINTER)
    (root / files[3]).unlink()
    soundfile.write(root / files[4], np.zeros(3200), 16_000)
    wav(root / "my recording.wav")
    report = check_corpus("emodb", tmp_path / "emodb")
    found = {Path(file.path).name: f"{file.status}: {file.reason}" for file in report.files.itertuples()}
    assert found[files[0]] == "other content: 16000 Hz, 3200 samples (official: 16000 Hz, 3200 samples)"
    assert found[files[1]] == "other content: 8000 Hz, 1600 samples (official: 16000 Hz, 3200 samples)"
    assert found[files[2]].startswith("unusable: is a Git LFS pointer")
    assert found[files[3]] == "missing: not on disk" and found[files[4]] == "unusable: digital silence"
    assert found["my recording.wav"] == "unexpected name: not on the official list" and len(report.files) == 29
    problems = "2 other content, 2 unusable, 1 missing"
    assert report[2:] == (f"usable, but not complete and official: {problems}.", 1)
    wav(root / "99a01Fa.wav")  # it would be read as a clip
    assert "1 unexpected name" in check_corpus("emodb", tmp_path / "emodb").verdict
    wav(root / "copy" / files[0], frequency=660)
    assert check_corpus("emodb", tmp_path / "emodb")[2:] == ("not usable: keep one file of each recording.", 2)


def test_the_clip_of_crema_d_without_audio_is_not_checked(tmp_path, monkeypatch):
    table = official_list("crema_d")
    table = table[table["speaker"] == "1076"].reset_index(drop=True).assign(sample_rate=16_000, frames=3_200, sha256="")
    monkeypatch.setattr(corpora, "official_list", lambda corpus: table.copy())
    report = check_corpus("crema_d", tmp_path / "nowhere")
    assert report.files["status"].value_counts().to_dict() == {"missing": 80}
    assert report.exit_code == 2 and "data/README.md" in report.text()
    for number, file in enumerate(table["file"]):
        wav(tmp_path / file, 0.2, frequency=300 + 9 * number)
    silent = tmp_path / "1076_MTI_SAD_XX.wav"
    for work in (lambda: soundfile.write(silent, np.zeros(3_200), 16_000), silent.unlink):
        work()
        assert check_corpus("crema_d", tmp_path)[2:] == ("complete and official: 80 clips.", 0)


def test_lengths_that_the_list_does_not_know_are_not_compared(tmp_path):
    wav(tmp_path / "03-01-01-01-01-01-01.wav", rate=48_000)
    wav(tmp_path / "03-01-01-01-01-01-02.wav", rate=16_000)
    files = check_corpus("ravdess", tmp_path).files
    assert files["status"].tolist() == ["ok", "other content"] + ["missing"] * 1438
    assert files["reason"][1] == "16000 Hz, 8000 samples (official: 48000 Hz, any samples)"


def test_a_csv_is_checked_for_what_training_would_refuse(tmp_path):
    names = expand("{calm,glad}/{a,b,c,d}.wav")
    for number, name in enumerate(names):
        wav(tmp_path / name, 0.2, frequency=300 + 50 * number)
    rows = "".join(f"{name},{name[:4]},{name[5]}\n" for name in names)
    path = write_csv(tmp_path, f"path,emotion,speaker\n{rows}")
    report = check_corpus(path)
    assert (report.verdict, report.exit_code) == ("complete: 8 clips.", 0)
    table = [line.split() for line in report.text().splitlines()[1:8]]
    assert table[0] == ["emotion", "calm", "glad", "all"] and table[2:4] == [["a", "1", "1", "2"], ["b", "1", "1", "2"]]
    for name in ("calm/a.wav", "calm/b.wav"):
        (tmp_path / name).write_bytes(b"text")
    assert check_corpus(path).verdict.startswith("not usable: 2 clips of calm can be read, and a split needs 3 of each")
    for name in ("calm/a.wav", "calm/b.wav"):  # the same recording twice: one may be trained on and the other tested
        wav(tmp_path / name, 0.2)
    report = check_corpus(path)
    assert report[2:] == ("not usable: keep one file of each recording.", 2)
    assert "     1  duplicate\n        calm/b.wav: the same recording as calm/a.wav" in report.text()
    for parts, code in ((["train", "train", "validation", "test"], 0), (["train", "test", "validation", "test"], 2)):
        rows = "".join(f"{name},{name[:4]},{part}\n" for name, part in zip(names, parts * 2, strict=True))
        assert check_corpus(write_csv(tmp_path, f"path,emotion,part\n{rows}")).exit_code == code


@pytest.mark.parametrize(
    ("pattern", "emotions", "speakers"),
    [
        ("{hot,cold}/{1,2,3,4}.wav", "cold hot", ""),
        ("{ann,bob}/{angry,Happy}_{1,2,3}.wav", "Happy angry", "ann bob"),  # names of emotions before folders
        ("{OAF,YAF}_{fear,sad,ps}/{back,bar,base}.wav", "fear ps sad", "OAF YAF"),
        ("{01,02,03}-{A,B} {1,2,3,4}.wav", "A B", "01 02 03"),
        ("{joy,anger}/{1,2,3}_x.wav", "anger joy", ""),  # takes are not speakers
        ("all/03-01-{02,05}-01-01-{01,02}-{01,02}.wav", "anger calm", "01 02"),  # an official grammar
        ("{high,low}{1,2,3}.wav", "high low", ""),
        ("{high,low,}{1,2,3}.wav", "", ""),  # a third of the names has no such word
        ("{ann,bob}_{joy,sad,calm}_{1,2,3}.wav|odd/{x,y}_1.wav", "calm joy sad x y", "ann bob odd"),  # x, y: rare
    ],
)
def test_classes_and_speakers_are_guessed(tmp_path, pattern, emotions, speakers):
    files = [file for part in pattern.split("|") for file in expand(part)]
    table = guess_labels(touch(tmp_path, *files))
    assert table["path"].tolist() == sorted(files)
    assert [" ".join(sorted(table[column].unique())) for column in ("emotion", "speaker")] == [emotions, speakers]


def test_a_folder_becomes_a_csv_and_a_profile(home):
    folder, names = home / "My sounds", expand("{calm,glad}/{ann,bob}_{1,2,3,4,5,6,7,8}.wav")
    for number, name in enumerate([*names, "odd/ann_1.wav", "stray1.wav", "stray2.wav", "stray3.wav"]):
        wav(folder / name, 0.2, frequency=300 + 9 * number)
    (folder / "calm/ann_bad.wav").write_text("no sound")
    shutil.copy(folder / "calm/ann_1.wav", folder / "calm/ann_twin.wav")
    text = new_corpus(folder)
    assert "32 of 38 recordings" in text and "about 3 min " in text
    for reason in ("odd/ann_1.wav: no class of 3 ", "     4  left out", "ann_twin.wav: the same recording as"):
        assert reason in text
    assert ["ann", "8", "8", "16"] in [line.split() for line in text.splitlines()]
    profile = load_profile(home / "My_sounds.yaml")
    assert profile.model.weights == "embedded" and list(profile.corpora) == ["My_sounds"]
    assert (profile.training.epochs, profile.samsg.epochs, profile.probe.epochs) == (12, 12, 3)
    clips = read_corpus(profile.reader("My_sounds"))
    assert len(clips) == 32 and set(clips["speaker"]) == {"ann", "bob"} and clips["clip"][0] == "calm/ann_1.wav"
    assert check_corpus(profile.reader("My_sounds")).exit_code == 0
    with pytest.raises(SamsgError, match=r"My_sounds\.yaml already exists"):
        new_corpus(folder)
    with pytest.raises(SamsgError, match="cannot be named 'emodb'"):
        new_corpus(folder, "emodb")
    with pytest.raises(SamsgError, match=r"odd has 1 sounds, but no two classes.*write a CSV"):
        new_corpus(folder / "odd")
