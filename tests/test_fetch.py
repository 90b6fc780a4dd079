"""Getting corpora: through audb from a repository on the file system, and from folders and archives of any kind."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile
from toys import tone

from samsg.corpora import GRAMMARS, read_corpus
from samsg.settings import SamsgError
from samsg.sources import fetch_corpus

EMODB = [f"03{sentence}{code}a.wav" for sentence in ("a01", "b02") for code in "WLEAFTN"]
SAVEE = [f"{code}{number}.wav" for code in ("a", "d", "f", "h", "n", "sa", "su") for number in ("01", "04")]
CREMA_D = [f"1001_DFA_{code}_XX.wav" for code in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")]
RAVDESS = [f"03-01-0{emotion}-01-01-01-07.wav" for emotion in range(1, 9)]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 72862\n"


def sound(name: str, rate: int = 16_000, channels: int = 1) -> bytes:
    """A .wav file of 0.1 s that differs from name to name."""
    file = io.BytesIO()
    samples = tone(440, 0.1, rate, seed=sum(map(ord, name)))
    soundfile.write(file, samples[:, None].repeat(channels, 1), rate, "PCM_16", format="WAV")
    return file.getvalue()


def sounds(names: list[str], folder: str = "") -> dict[str, bytes]:
    return {folder + name: sound(name) for name in names}


def as_folder(path: Path, content: dict[str, bytes]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(f"{path}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return Path(f"{path}.zip")


def as_tar_gz(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(f"{path}.tar.gz", "w:gz") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return Path(f"{path}.tar.gz")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A corpus folder that does not exist yet. No test may leave anything else beside or above it."""
    parent = tmp_path / "home/data"
    parent.mkdir(parents=True)
    yield parent / "corpus"
    assert set(os.listdir(parent)) <= {"corpus", ".corpus.lock"}
    assert os.listdir(parent.parent) == ["data"]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Publish a corpus in a repository of audb on the file system, the only one that audb knows."""
    audb, root = pytest.importorskip("audb", reason="fetching needs samsg[data]"), tmp_path / "audb"
    import audbackend
    import audformat

    root.mkdir()
    audbackend.backend.FileSystem.create(str(root), "local")
    repository = audb.Repository("local", str(root), "file-system")
    monkeypatch.setattr(audb.config, "REPOSITORIES", [repository])
    monkeypatch.setattr(audb.config, "SHARED_CACHE_ROOT", str(root / "shared"))
    monkeypatch.setenv("AUDB_CACHE_ROOT", str(root / "cache"))
    monkeypatch.delenv("AUDB_SHARED_CACHE_ROOT", raising=False)

    def work(corpus: str, content: dict[str, bytes], version: str | None = None) -> None:
        name, pinned = GRAMMARS[corpus].package
        build = as_folder(root / f"build-{corpus}", content)
        database = audformat.Database(name)
        database["files"] = audformat.Table(audformat.filewise_index(sorted(content)))
        database.save(str(build))
        audb.publish(str(build), version or pinned, repository, verbose=False)

    return work


def test_emodb_through_audb(publish: Callable, folder: Path) -> None:
    content = sounds(EMODB, "wav/")
    content["wav/03a01La.wav"] = sound("03a01La.wav", 44_100, channels=2)
    publish("emodb", content, version="1.0.0")
    with pytest.raises(SamsgError, match=r"audb could not load emodb 1\.4\.1: .*Cannot find version '1\.4\.1'"):
        fetch_corpus("emodb", folder)  # another version is not taken
    publish("emodb", content)
    assert fetch_corpus("emodb", folder) == folder
    assert files(folder) == sorted(content)
    for name, data in content.items():
        info = soundfile.info(folder / name)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16_000, 1, "PCM_16", 1_600), name
        if name != "wav/03a01La.wav":  # the same bytes, so that their SHA-256 can be compared
            assert (folder / name).read_bytes() == data
    assert read_corpus("emodb", folder)["emotion"].nunique() == 7


@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar_gz])
def test_a_copy_of_the_user_becomes_the_layout_of_the_authors(pack: Callable, tmp_path: Path, folder: Path) -> None:
    content = sounds(EMODB, "download/EmoDB/wav/")
    content["download/EmoDB/wav/03a01Wa.WAV"] = content.pop("download/EmoDB/wav/03a01Wa.wav")
    others = ["__MACOSX/wav/._03a01Wa.wav", ".DS_Store", "EmoDB/lablaut/03a01Wa.lablaut", "music.wav"]
    fetch_corpus("emodb", folder, pack(tmp_path / "copy", content | dict.fromkeys(others, b"no sound")))
    assert files(folder) == sorted(f"wav/{name}" for name in EMODB)
    assert (folder / "wav/03a01Wa.wav").read_bytes() == sound("03a01Wa.wav")


def test_savee_in_another_layout_and_ravdess_with_every_actor_twice(tmp_path: Path, folder: Path) -> None:
    fetch_corpus("savee", folder / "savee", as_zip(tmp_path / "savee", sounds(SAVEE, "DC_")))
    assert files(folder / "savee") == sorted(f"AudioData/DC/{name}" for name in SAVEE)
    content = sounds(RAVDESS, "Actor_07/") | sounds(RAVDESS, "audio_speech_actors_01-24/Actor_07/")
    fetch_corpus("ravdess", folder / "ravdess", as_zip(tmp_path / "Audio_Speech_Actors_01-24", content))
    assert files(folder / "ravdess") == [f"Actor_07/{name}" for name in RAVDESS]


# Such a member is refused, left out or put inside; the fixture checks that nothing lies outside.
@pytest.mark.parametrize("pack", [as_zip, as_tar_gz])
@pytest.mark.parametrize("name", ["../03a01Wa.wav", "wav/../../../03a01Wa.wav", "/tmp/03a01Wa.wav"])
def test_an_archive_stays_in_its_folder(pack: Callable, name: str, tmp_path: Path, folder: Path) -> None:
    source = pack(tmp_path / "slip", {name: sound("03a01Wa.wav"), **sounds(EMODB[1:])})
    try:
        fetch_corpus("emodb", folder, source)
    except SamsgError as error:
        assert re.search(r"slip\.tar\.gz is not a folder, zip or tar that can be unpacked: .*outside", str(error))
    assert set(files(folder)) <= {f"wav/{clip}" for clip in EMODB}
    assert not Path("/tmp/03a01Wa.wav").exists()


@pytest.mark.parametrize(
    ("kind", "target"), [(tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../../secret"), (tarfile.CHRTYPE, "")]
)
def test_links_out_of_an_archive_and_devices_are_refused(
    kind: bytes, target: str, tmp_path: Path, folder: Path
) -> None:
    entry = tarfile.TarInfo("wav/03a01Wa.wav")
    entry.type, entry.linkname = kind, target
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        archive.addfile(entry)
    with pytest.raises(SamsgError, match=r"links\.tar is not a folder, zip or tar that can be unpacked: 'wav/03a01Wa"):
        fetch_corpus("emodb", folder, tmp_path / "links.tar")


def test_what_a_killed_process_left_is_replaced(tmp_path: Path, folder: Path) -> None:
    as_folder(folder.with_name(f"{folder.name}.partial"), {"wav/cut.wav": b""})
    fetch_corpus("emodb", folder, as_folder(tmp_path / "copy", sounds(EMODB)))
    assert files(folder) == sorted(f"wav/{name}" for name in EMODB)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sounds(EMODB) | {"copy/03a01Wa.wav": b"another"}, "has 03a01Wa twice, with different sounds"),
        (sounds(EMODB[1:]) | {EMODB[0]: POINTER}, r"03a01Wa\.wav of .* is a Git LFS pointer.*git lfs pull"),
        (sounds(CREMA_D), r"has no clip of EmoDB, named like wav/03a01Fa\.wav"),
    ],
    ids=["two sounds", "lfs", "another corpus"],
)
def test_a_source_that_is_not_the_corpus_is_refused(content, message, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SamsgError, match=message):
        fetch_corpus("emodb", folder, as_zip(tmp_path / "copy", content))
    assert not folder.exists()


def test_what_cannot_be_fetched_says_why(tmp_path: Path, folder: Path) -> None:
    cut = [pack(tmp_path / "cut", sounds(EMODB)) for pack in (as_zip, as_tar_gz)]
    for archive in cut:
        os.truncate(archive, archive.stat().st_size // 2)
    for source in (tmp_path / "nowhere.zip", as_folder(tmp_path, {"emodb.rar": b"Rar!"}) / "emodb.rar", *cut):
        with pytest.raises(SamsgError, match=rf"{source} is not a folder, zip or tar that can be unpacked"):
            fetch_corpus("emodb", folder, source)
        assert not folder.exists()
    with pytest.raises(SamsgError, match=r"University of Surrey.*samsg data fetch savee --source"):
        fetch_corpus("savee", folder)
    with pytest.raises(SamsgError, match=r"no corpus 'emo-db'; .*Did you mean 'emodb'"):
        fetch_corpus("emo-db", folder)
    with pytest.raises(SamsgError, match="already holds files"):
        fetch_corpus("emodb", as_folder(folder, {"thesis.txt": b"mine"}), as_zip(tmp_path / "zip", sounds(EMODB)))
    assert (folder / "thesis.txt").read_bytes() == b"mine"
