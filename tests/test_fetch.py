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

from samsg.corpora import read_corpus
from samsg.fetch import PACKAGES, fetch
from samsg.settings import SamsgError

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
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path.with_suffix(".zip")


def as_tar_gz(path: Path, content: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path.with_suffix(".tar.gz"), "w:gz") as archive:
        for name, data in content.items():
            entry = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path.with_suffix(".tar.gz")


ANY_SOURCE = pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar_gz])
ANY_ARCHIVE = pytest.mark.parametrize("pack", [as_zip, as_tar_gz])


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A corpus folder that does not exist yet. No test may leave anything else beside or above it."""
    parent = tmp_path / "home/data"
    parent.mkdir(parents=True)
    yield parent / "corpus"
    assert set(os.listdir(parent)) <= {"corpus", ".corpus.lock", ".crema_d.lock"}
    assert os.listdir(parent.parent) == ["data"]


class Repository:
    """A repository of audb on the file system, the only one that audb knows; it counts what is loaded."""

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
        build = as_folder(self.root / f"build-{corpus}", content)
        database = audformat.Database(name)
        database["files"] = audformat.Table(audformat.filewise_index(sorted(content)))
        database.save(str(build))
        self.audb.publish(str(build), version or pinned, self.repository, verbose=False)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(tmp_path / "audb", monkeypatch)


def test_emodb_through_audb(repository: Repository, folder: Path) -> None:
    content = sounds(EMODB, "wav/")
    content["wav/03a01La.wav"] = sound("03a01La.wav", 44_100, channels=2)
    repository.publish("emodb", content)
    assert fetch("emodb", folder) == folder
    assert files(folder) == sorted(content)
    for name, data in content.items():
        info = soundfile.info(folder / name)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16_000, 1, "PCM_16", 1_600), name
        if name != "wav/03a01La.wav":  # the same bytes, so that their SHA-256 can be compared
            assert (folder / name).read_bytes() == data
    assert read_corpus("emodb", folder)["emotion"].nunique() == 7
    n_loaded = len(repository.loaded)
    assert fetch("emodb", folder) == folder  # the second call loads nothing
    assert len(repository.loaded) == n_loaded == 14


def test_crema_d_through_audb_is_laid_out_as_its_authors_do(repository: Repository, folder: Path) -> None:
    repository.publish("crema_d", sounds(CREMA_D, "1001/"))
    fetch("crema_d", folder)
    assert files(folder) == [f"AudioWAV/{name}" for name in CREMA_D]


def test_an_interrupted_fetch_continues(repository: Repository, folder: Path) -> None:
    repository.publish("emodb", sounds(EMODB, "wav/"))
    repository.breaks_after = 5
    with pytest.raises(SamsgError, match=r"the line is cut\. .*what was loaded is kept.*--source"):
        fetch("emodb", folder)
    assert not folder.exists()
    repository.breaks_after = None
    fetch("emodb", folder)
    assert len(files(folder)) == 14
    assert len(repository.loaded) == len(set(repository.loaded)) == 14  # none is loaded twice
    repository.publish("crema_d", sounds(CREMA_D, "1001/"), version="1.0.0")
    with pytest.raises(SamsgError, match=r"audb could not load crema-d 1\.3\.0: .*Cannot find version '1\.3\.0'"):
        fetch("crema_d", folder.with_name("crema_d"))  # another version is not taken


@pytest.mark.parametrize(("corpus", "words"), [("savee", "University of Surrey"), ("ravdess", "Zenodo")])
def test_what_a_person_must_get_is_explained(corpus: str, words: str, folder: Path) -> None:
    with pytest.raises(SamsgError, match=rf"{words}.*samsg data fetch {corpus} --source"):
        fetch(corpus, folder)


def test_a_folder_with_clips_is_left_as_it_is(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    as_folder(folder, sounds(["DC_a01.wav", "DC_a02.wav"]))
    assert fetch("savee", folder, as_zip(tmp_path / "savee", sounds(SAVEE, "DC_"))) == folder
    assert "already has 2 clips" in capsys.readouterr().out
    assert files(folder) == ["DC_a01.wav", "DC_a02.wav"]


@ANY_SOURCE
def test_a_copy_of_the_user_becomes_the_layout_of_the_authors(pack: Callable, tmp_path: Path, folder: Path) -> None:
    content = sounds(EMODB, "download/EmoDB/wav/")
    content["download/EmoDB/wav/03a01Wa.WAV"] = content.pop("download/EmoDB/wav/03a01Wa.wav")
    others = ["__MACOSX/wav/._03a01Wa.wav", ".DS_Store", "EmoDB/lablaut/03a01Wa.lablaut", "music.wav"]
    fetch("emodb", folder, pack(tmp_path / "copy", content | dict.fromkeys(others, b"no sound")))
    assert files(folder) == sorted(f"wav/{name}" for name in EMODB)
    assert (folder / "wav/03a01Wa.wav").read_bytes() == sound("03a01Wa.wav")


@pytest.mark.parametrize("layout", ["AudioData/DC/{}", "DC_{}"])
def test_all_layouts_of_savee_become_one(layout: str, tmp_path: Path, folder: Path) -> None:
    fetch("savee", folder, as_zip(tmp_path / "savee", {layout.format(name): sound(name) for name in SAVEE}))
    assert files(folder) == sorted(f"AudioData/DC/{name}" for name in SAVEE)


def test_ravdess_from_its_archive_or_as_flac(tmp_path: Path, folder: Path) -> None:
    # Some copies hold every actor twice.
    content = sounds(RAVDESS, "Actor_07/") | sounds(RAVDESS, "audio_speech_actors_01-24/Actor_07/")
    fetch("ravdess", folder, as_zip(tmp_path / "Audio_Speech_Actors_01-24", content))
    assert files(folder) == [f"Actor_07/{name}" for name in RAVDESS]
    fetch("ravdess", folder / "flac", as_folder(tmp_path / "flac", {name[:-4] + ".flac": b"" for name in RAVDESS}))
    assert files(folder / "flac") == [f"Actor_07/{name[:-4]}.flac" for name in RAVDESS]


def test_a_clip_with_two_sounds_is_refused(tmp_path: Path, folder: Path) -> None:
    content = sounds(EMODB, "wav/") | {"copy/wav/03a01Wa.wav": sound("another")}
    with pytest.raises(SamsgError, match="has 03a01Wa twice, with different sounds"):
        fetch("emodb", folder, as_zip(tmp_path / "copy", content))
    assert not folder.exists()


@ANY_ARCHIVE
@pytest.mark.parametrize("name", ["../03a01Wa.wav", "wav/../../../03a01Wa.wav", "/tmp/03a01Wa.wav", "..\\x.txt"])
def test_an_archive_stays_in_its_folder(pack: Callable, name: str, tmp_path: Path, folder: Path) -> None:
    """Such a member is refused, left out or put inside; the ``folder`` fixture checks that nothing lies outside."""
    source = pack(tmp_path / "slip", {name: sound("03a01Wa.wav"), **sounds(EMODB[1:])})
    try:
        fetch("emodb", folder, source)
    except SamsgError as error:
        assert re.search(r"slip\.tar\.gz is not a folder, zip or tar that can be unpacked: .*outside", str(error))
    assert set(files(folder)) <= {f"wav/{clip}" for clip in EMODB}
    assert not Path("/tmp/03a01Wa.wav").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../../secret.wav"])
def test_links_and_devices_in_an_archive_are_refused(kind: bytes, target: str, tmp_path: Path, folder: Path) -> None:
    entry = tarfile.TarInfo("wav/03a01Wa.wav")
    entry.type, entry.linkname = kind, target
    source = as_tar_gz(tmp_path / "links", {entry.name: entry, **sounds(EMODB[1:], "wav/")})
    with pytest.raises(SamsgError, match=r"links\.tar\.gz is not a folder, zip or tar that can be unpacked: .*03a01Wa"):
        fetch("emodb", folder, source)
    assert not folder.exists()


@ANY_SOURCE
def test_lfs_pointers_are_no_sounds(pack: Callable, tmp_path: Path, folder: Path) -> None:
    source = pack(tmp_path / "clone", sounds(CREMA_D[:-1], "AudioWAV/") | {f"AudioWAV/{CREMA_D[-1]}": POINTER})
    with pytest.raises(SamsgError, match=r"SAD_XX\.wav of .* is a Git LFS pointer.*git lfs pull"):
        fetch("crema_d", folder, source)
    assert not folder.exists()


@ANY_SOURCE
@pytest.mark.parametrize("content", [sounds(CREMA_D, "AudioWAV/"), {"AudioData.zip": b"PK"}, {}])
def test_a_source_without_clips_is_refused(pack: Callable, content: dict, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SamsgError, match=r"has no clip of EmoDB, named like wav/03a01Fa\.wav"):
        fetch("emodb", folder, pack(tmp_path / "wrong", content))


@ANY_ARCHIVE
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_a_cut_archive_leaves_nothing(pack: Callable, kept: float, tmp_path: Path, folder: Path) -> None:
    source = pack(tmp_path / "cut", sounds(EMODB, "wav/"))
    content = source.read_bytes()
    source.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(SamsgError, match=r"cut\.(zip|tar\.gz)"):
        fetch("emodb", folder, source)
    assert not folder.exists()


def test_what_cannot_be_a_source_or_a_folder(tmp_path: Path, folder: Path) -> None:
    rar = as_folder(tmp_path / "copy", {"emodb.rar": b"Rar!"}) / "emodb.rar"
    for source in (tmp_path / "nowhere", tmp_path / "nowhere.zip", rar):
        with pytest.raises(SamsgError, match=rf"{source} is not a folder, zip or tar that can be unpacked"):
            fetch("emodb", folder, source)
    with pytest.raises(SamsgError, match=r"no corpus 'emo-db' to fetch; .*Did you mean 'emodb'"):
        fetch("emo-db", folder)
    for place in (as_folder(folder, {"thesis.txt": b"mine"}), folder / "thesis.txt"):
        with pytest.raises(SamsgError, match="which holds something else"):
            fetch("emodb", place, as_zip(tmp_path / "zip", sounds(EMODB)))
    assert (folder / "thesis.txt").read_bytes() == b"mine"
