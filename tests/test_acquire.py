"""Getting corpora: through audb from a repository on the file system, and from folders and archives of every kind."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from samsg.corpora import acquire
from samsg.corpora.acquire import PACKAGES, fetch
from samsg.corpora.catalogue import read_corpus
from samsg.settings import SamsgError

EMODB = [f"03{sentence}{code}a.wav" for sentence in ("a01", "b02") for code in "WLEAFTN"]
SAVEE = [f"{code}{number}.wav" for code in ("a", "d", "f", "h", "n", "sa", "su") for number in ("01", "04")]
CREMA_D = [f"1001_DFA_{code}_XX.wav" for code in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 72862\n"


def sound(name: str, sample_rate: int = 16_000, channels: int = 1) -> bytes:
    """A tenth of a second that differs from name to name, as a .wav file."""
    samples = np.random.default_rng(sum(map(ord, name))).uniform(-0.5, 0.5, (sample_rate // 10, channels))
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, "PCM_16", format="WAV")
    return file.getvalue()


def sounds(names: list[str], folder: str = "") -> dict[str, bytes]:
    return {folder + name: sound(name) for name in names}


def as_folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return Path(archive.filename)


def as_tar(path: Path, content: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path.with_suffix(".tar" + mode[1:].replace(":", ".")), mode) as archive:
        for name, data in content.items():
            entry = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data) if isinstance(data, bytes) else None)
    return Path(archive.name)


def as_tar_gz(path: Path, content: dict[str, bytes | tarfile.TarInfo]) -> Path:
    return as_tar(path, content, "w:gz")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A corpus folder that is not there yet; whatever happens, nothing may be left beside it or above it."""
    around = tmp_path / "home" / "data"
    around.mkdir(parents=True)
    yield around / "corpus"
    assert set(os.listdir(around)) <= {"corpus"}
    assert os.listdir(around.parent) == ["data"]


class Repository:
    """A repository of audb on the file system, alone in audb's configuration, and what is loaded from it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.audb = pytest.importorskip("audb", reason="fetching needs samsg[data]")
        import audbackend

        self.root, self.loaded, self.breaks_after = root, [], None
        audbackend.backend.FileSystem.create(str(root), "local")
        self.repository = self.audb.Repository("local", str(root), "file-system")
        monkeypatch.setattr(self.audb.config, "REPOSITORIES", [self.repository])
        monkeypatch.setattr(self.audb.config, "SHARED_CACHE_ROOT", str(root / "shared"))
        monkeypatch.setenv("AUDB_CACHE_ROOT", str(root / "cache"))
        monkeypatch.delenv("AUDB_SHARED_CACHE_ROOT", raising=False)
        get_archive = audbackend.interface.Versioned.get_archive

        def counted(interface, source, *args, **kwargs):
            if "/media/" in source:
                if self.breaks_after is not None and len(self.loaded) >= self.breaks_after:
                    raise ConnectionError("the line is cut.")
                self.loaded.append(source)
            return get_archive(interface, source, *args, **kwargs)

        monkeypatch.setattr(audbackend.interface.Versioned, "get_archive", counted)

    def publish(self, corpus: str, content: dict[str, bytes], version: str | None = None) -> None:
        import audformat

        name, pinned = PACKAGES[corpus]
        build = as_folder(self.root / "build", content)
        database = audformat.Database(name)
        database["files"] = audformat.Table(audformat.filewise_index(sorted(content)))
        database.save(str(build))
        self.audb.publish(str(build), version or pinned, self.repository, verbose=False)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(tmp_path / "audb", monkeypatch)


def test_emodb_through_audb(repository: Repository, folder: Path, capsys: pytest.CaptureFixture) -> None:
    content = sounds(EMODB, "wav/")
    content["wav/03a01Wa.wav"] = sound("03a01Wa.wav", 44_100)
    content["wav/03a01La.wav"] = sound("03a01La.wav", 44_100, channels=2)
    repository.publish("emodb", content)
    assert fetch("emodb", folder) == folder
    assert files(folder) == sorted(content)
    for name, data in content.items():
        info = soundfile.info(folder / name)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16_000, 1, "PCM_16", 1_600), name
        if soundfile.info(io.BytesIO(data)).samplerate == 16_000:  # untouched, so that its SHA-256 can be known
            assert (folder / name).read_bytes() == data
    manifest = read_corpus("emodb", folder)
    assert list(manifest["clip"]) == sorted(name[:-4] for name in EMODB)
    assert manifest["emotion"].nunique() == 7
    assert str(repository.root / "cache") in capsys.readouterr().out
    loaded = list(repository.loaded)
    assert fetch("emodb", folder) == folder  # the same again
    assert (files(folder), repository.loaded) == (sorted(content), loaded)


def test_crema_d_through_audb_is_laid_out_as_its_authors_do(repository: Repository, folder: Path) -> None:
    repository.publish("crema_d", sounds(CREMA_D, "1001/"))
    fetch("crema_d", folder)
    assert files(folder) == [f"AudioWAV/{name}" for name in CREMA_D]
    assert set(read_corpus("crema_d", folder)["speaker"]) == {"1001"}


def test_an_interrupted_fetch_goes_on_where_it_was(repository: Repository, folder: Path) -> None:
    repository.publish("emodb", sounds(EMODB, "wav/"))
    repository.breaks_after = 5
    with pytest.raises(SamsgError, match=r"the line is cut\. .*run it again; or get the corpus .* --source"):
        fetch("emodb", folder)
    assert not folder.exists()
    repository.breaks_after = None
    fetch("emodb", folder)
    assert len(files(folder)) == 14
    assert len(repository.loaded) == len(set(repository.loaded)) == 14  # the first five not twice


def test_a_version_that_is_not_there(repository: Repository, folder: Path) -> None:
    repository.publish("emodb", sounds(EMODB, "wav/"), version="1.0.0")
    with pytest.raises(SamsgError, match=r"emodb 1\.4\.1 was asked for from local .*Cannot find version '1\.4\.1'"):
        fetch("emodb", folder)
    assert not folder.exists()


def test_audb_leaves_what_else_lies_there(repository: Repository, folder: Path) -> None:
    repository.publish("emodb", sounds(EMODB, "wav/"))
    as_folder(folder, {"wav/03a01Wa.wav": b"mine"})
    with pytest.raises(SamsgError, match=r"holds something else .*03a01Wa\.wav"):
        fetch("emodb", folder)
    assert files(folder) == ["wav/03a01Wa.wav"]


def test_savee_is_explained_in_four_lines(folder: Path) -> None:
    with pytest.raises(SamsgError) as raised:
        fetch("savee", folder)
    assert len(str(raised.value).splitlines()) == 4
    assert "University of Surrey" in str(raised.value) and str(folder) in str(raised.value)


def test_savee_that_is_there_is_left(folder: Path, capsys: pytest.CaptureFixture) -> None:
    as_folder(folder, sounds(["DC_a01.wav", "DC_a02.wav"]))
    assert fetch("savee", folder) == folder
    assert "2 clips" in capsys.readouterr().out
    assert files(folder) == ["DC_a01.wav", "DC_a02.wav"]


def test_a_whole_corpus_needs_no_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(acquire.CLIPS, "emodb", len(EMODB))
    monkeypatch.setattr(acquire, "_load", lambda corpus: pytest.fail("asked audb"))
    as_folder(folder, sounds(EMODB))
    assert fetch("emodb", folder) == folder


@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar, as_tar_gz])
def test_a_copy_of_the_users(pack: Callable, tmp_path: Path, folder: Path) -> None:
    content = sounds(EMODB, "download/EmoDB/wav/")
    content["download/EmoDB/wav/03a01Wa.WAV"] = content.pop("download/EmoDB/wav/03a01Wa.wav")
    litter = ["__MACOSX/wav/._03a01Wa.wav", "__MACOSX/wav/03a01Wa.wav", "wav/._03a01La.wav", ".DS_Store"]
    others = ["download/EmoDB/lablaut/03a01Wa.lablaut", "download/EmoDB/readme.txt", "download/music.wav"]
    source = pack(tmp_path / "copy", content | dict.fromkeys(litter + others, b"no sound"))
    for _ in range(2):  # the second time: nothing to do
        assert fetch("emodb", folder, source) == folder
        assert files(folder) == sorted(f"wav/{name}" for name in EMODB)
    assert (folder / "wav/03a01Wa.wav").read_bytes() == sound("03a01Wa.wav")
    assert len(read_corpus("emodb", folder)) == 14


@pytest.mark.parametrize("layout", ["AudioData/DC/{}", "DC_{}", "savee\\AudioData\\DC\\{}"])
def test_all_layouts_of_savee_become_one(layout: str, tmp_path: Path, folder: Path) -> None:
    source = as_zip(tmp_path / "savee", {layout.format(name): sound(name) for name in SAVEE})
    fetch("savee", folder, source)
    assert files(folder) == sorted(f"AudioData/DC/{name}" for name in SAVEE)
    assert set(read_corpus("savee", folder)["speaker"]) == {"DC"}


def test_a_speaker_may_be_the_source_itself(tmp_path: Path, folder: Path) -> None:
    fetch("savee", folder, as_folder(tmp_path / "DC", sounds(SAVEE)))
    assert files(folder) == sorted(f"AudioData/DC/{name}" for name in SAVEE)


def test_a_folder_that_is_its_own_source(folder: Path) -> None:
    as_folder(folder, sounds(SAVEE, "DC_") | {"readme.txt": b"text"})
    before = files(folder)
    fetch("savee", folder, folder)
    assert files(folder) == before


def test_litter_and_empty_folders_are_no_content(tmp_path: Path, folder: Path) -> None:
    as_folder(folder, {".DS_Store": b"", "wav/._a": b""})
    fetch("emodb", folder, as_zip(tmp_path / "copy", sounds(EMODB)))
    assert len(files(folder)) == 14


def test_other_content_stays(tmp_path: Path, folder: Path) -> None:
    as_folder(folder, {"thesis.txt": b"mine"})
    with pytest.raises(SamsgError, match=r"holds something else than .*thesis\.txt; move it away"):
        fetch("emodb", folder, as_zip(tmp_path / "copy", sounds(EMODB)))
    assert files(folder) == ["thesis.txt"]


def test_clips_twice(tmp_path: Path, folder: Path) -> None:
    twice = sounds(EMODB, "wav/") | sounds(EMODB, "copy/wav/")
    fetch("emodb", folder, as_zip(tmp_path / "twice", twice))
    assert len(files(folder)) == 14
    twice["copy/wav/03a01Wa.wav"] = sound("another")
    with pytest.raises(SamsgError, match=r"holds 03a01Wa twice, and .* differs"):
        fetch("emodb", folder, as_zip(tmp_path / "differs", twice))
    assert len(files(folder)) == 14


@pytest.mark.parametrize("pack", [as_zip, as_tar, as_tar_gz])
@pytest.mark.parametrize(
    "name",
    ["../03a01Wa.wav", "wav/../../../03a01Wa.wav", "/tmp/03a01Wa.wav", "C:\\wav\\03a01Wa.wav", "..\\..\\x.txt"],
)
def test_paths_that_lead_out(pack: Callable, name: str, tmp_path: Path, folder: Path) -> None:
    source = pack(tmp_path / "slip", sounds(EMODB) | {name: b"out"})
    with pytest.raises(SamsgError, match="leads out of the archive"):
        fetch("emodb", folder, source)
    assert not folder.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tar(kind: bytes, tmp_path: Path, folder: Path) -> None:
    entry = tarfile.TarInfo("wav/03a01Wa.wav")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with pytest.raises(SamsgError, match=r"03a01Wa\.wav, which is a link or a device"):
        fetch("emodb", folder, as_tar(tmp_path / "links", {entry.name: entry, **sounds(EMODB[1:], "wav/")}))


def test_links_in_zip(tmp_path: Path, folder: Path) -> None:
    source = as_zip(tmp_path / "links", sounds(EMODB[1:]))
    entry = zipfile.ZipInfo(EMODB[0])
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(SamsgError, match="is a link or a device"):
        fetch("emodb", folder, source)


def test_pipes_in_a_folder_are_not_waited_for(tmp_path: Path, folder: Path) -> None:
    source = as_folder(tmp_path / "copy", sounds(EMODB[1:]))
    os.mkfifo(source / EMODB[0])
    fetch("emodb", folder, source)
    assert len(files(folder)) == 13


@pytest.mark.parametrize("pack", [as_zip, as_tar_gz])
def test_bombs(pack: Callable, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = pack(tmp_path / "ratio", {"wav/03a01Wa.wav": bytes(acquire.SMALL + 1)})
    with pytest.raises(SamsgError, match=r"more than a corpus can be: 1 files and 10 MiB .*03a01Wa\.wav"):
        fetch("emodb", folder, bomb)
    source = pack(tmp_path / "copy", sounds(EMODB))
    for limit, value in {"TOTAL": 10_000, "LARGEST": 3_000, "MEMBERS": 13}.items():
        with monkeypatch.context() as patched, pytest.raises(SamsgError, match="more than a corpus can be"):
            patched.setattr(acquire, limit, value)
            fetch("emodb", folder, source)
    fetch("emodb", folder, source)


def test_a_size_that_is_a_lie(tmp_path: Path, folder: Path) -> None:
    source = as_zip(tmp_path / "lie", {EMODB[0]: bytes(1_000_000)})
    content = source.read_bytes().replace((1_000_000).to_bytes(4, "little"), (44).to_bytes(4, "little"))
    source.write_bytes(content)
    with pytest.raises(SamsgError, match="Is the source whole"):
        fetch("emodb", folder, source)


@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])
def test_pointers_are_no_sounds(pack: Callable, tmp_path: Path, folder: Path) -> None:
    source = pack(tmp_path / "clone", sounds(CREMA_D[:-1], "AudioWAV/") | {f"AudioWAV/{CREMA_D[-1]}": POINTER})
    with pytest.raises(SamsgError, match=r"SAD_XX\.wav of .* is a Git LFS pointer.*git lfs pull"):
        fetch("crema_d", folder, source)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (sounds(CREMA_D, "AudioWAV/"), "found 6 other names, such as AudioWAV/1001_DFA_SAD_XX.wav; expected wav/03a01"),
        ({"AudioData.zip": b"PK"}, "found 1 other names, such as AudioData.zip"),
        ({}, "found nothing"),
    ],
)
@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_the_wrong_archive(pack: Callable, content: dict, found: str, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SamsgError, match=found):
        fetch("emodb", folder, pack(tmp_path / "wrong", content))


@pytest.mark.parametrize("pack", [as_zip, as_tar, as_tar_gz])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.9])
def test_a_truncated_archive(pack: Callable, kept: float, tmp_path: Path, folder: Path) -> None:
    source = pack(tmp_path / "cut", sounds(EMODB, "wav/"))
    content = source.read_bytes()
    source.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(SamsgError, match=r"cut\.(zip|tar|tar\.gz)"):
        fetch("emodb", folder, source)
    assert not folder.exists()


def test_what_cannot_be_a_source(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SamsgError, match="does not exist"):
        fetch("emodb", folder, tmp_path / "nowhere")
    with pytest.raises(SamsgError, match="neither a folder nor an archive"):
        fetch("emodb", folder, as_folder(tmp_path / "copy", {"emodb.rar": b"Rar!"}) / "emodb.rar")
    with pytest.raises(SamsgError, match=r"no corpus 'emo-db' to fetch; .*Did you mean 'emodb'"):
        fetch("emo-db", folder)


def test_a_file_in_the_folders_place(tmp_path: Path, folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(SamsgError, match="could not be brought"):
        fetch("emodb", folder, as_zip(tmp_path / "copy", sounds(EMODB)))
    assert folder.read_text() == "a file"
