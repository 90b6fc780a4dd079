"""Corpora into their folders: EmoDB and CREMA-D through audb, and any copy, folder or archive, that is already there
(Section IV-A).

What arrives is laid out as the corpus' authors do, whole or not at all. Only files named as the corpus names them are
taken, and their own names decide where they go: nothing that an archive says of paths is followed.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from samsg.corpora.catalogue import GRAMMARS, POINTER, is_litter, parse_path
from samsg.runs import progress_bar
from samsg.settings import SamsgError, nearest

# Name and version in audb's public repository. EmoDB 2.0.0 is another corpus: it adds ambiguous recordings and gives
# laryngograms the names of the recordings. CREMA-D 1.3.0 has 7 441 files, the one without audio among them.
PACKAGES = {"emodb": ("emodb", "1.4.1"), "crema_d": ("crema-d", "1.3.0")}
CLIPS = {"savee": 480, "emodb": 535, "crema_d": 7441}  # with so many, there is nothing to fetch
BY_HAND = {
    "savee": "from the University of Surrey (kahlan.eps.surrey.ac.uk/savee)",
    "emodb": "from its authors (emodb.bilderbar.info)",
    "crema_d": "from its authors' repository (github.com/CheyneyComputerScience/CREMA-D) with 'git lfs pull'",
}

# What an archive may unpack to, far above any corpus here. The ratio is no sign below SMALL: silence packs well.
TOTAL = 20 * 2**30  # bytes
LARGEST = 500 * 2**20  # bytes of one sound
RATIO = 200  # unpacked to packed
SMALL = 10 * 2**20  # bytes
MEMBERS = 100_000
NOTE = 2**20  # bytes of a name, or of another note on a member, which tarfile would read whole


class _Entry(tarfile.TarInfo):
    """A member of a tar. Long names, notes and the maps of sparse files are read whole before a member is seen, however
    much they unpack to, so they are looked at here, where tarfile lets subclasses step in."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in (b"L", b"K", b"x", b"g", b"X") and not 0 <= self.size <= NOTE:
            raise SamsgError(f"{archive.name!r} holds a name or note of {self.size} bytes: no corpus does.")
        return super()._proc_member(archive)  # type: ignore[misc]  # private to tarfile

    def _proc_sparse(self, *_: Any) -> tarfile.TarInfo:
        raise SamsgError(f"The archive holds {self.name}, a sparse file: no corpus does. Nothing was unpacked.")

    _proc_gnusparse_10 = _proc_sparse


class Member(NamedTuple):
    """What a folder or archive holds."""

    name: str  # with forward slashes
    size: int  # bytes, as declared
    open: Callable[[], Any]  # a binary file


def fetch(corpus: str, folder: Path, source: Path | None = None) -> Path:
    """Bring a corpus into its folder, in its authors' layout.

    EmoDB and CREMA-D come from audb's repositories; mirrors, own repositories and the cache are set as audb documents
    (~/.config/audb.yaml, AUDB_CACHE_ROOT). What was loaded before an interruption is not loaded again.

    Args:
        corpus: 'savee', 'emodb' or 'crema_d'.
        folder: where it shall lie; absent or empty, or already holding the same clips.
        source: a copy to take instead: a folder, or an archive (zip, tar, tar.gz, tar.bz2, tar.xz).

    Returns:
        The folder, absolute.

    Raises:
        SamsgError: no such corpus; it cannot be had without a person or a network; the source is no copy of it,
            damaged, of pointers only, or unsafe to unpack; the folder holds something else.
    """
    if corpus not in GRAMMARS:
        raise SamsgError(f"There is no corpus '{corpus}' to fetch; {nearest(str(corpus), GRAMMARS)}")
    folder, title = Path(folder).expanduser().resolve(), GRAMMARS[corpus].title
    if source is not None:
        return _import(corpus, folder, Path(source).expanduser())
    found = len(_clips(corpus, folder))
    if found >= CLIPS[corpus] or (found and corpus not in PACKAGES):
        print(f"{title}: {found} clips lie in {folder}; nothing to fetch.")
        return folder
    if corpus not in PACKAGES:
        raise SamsgError(
            f"{title} is given to registered people only, so a person must get it; no clip of it lies in {folder}.\n"
            f"1. Register {BY_HAND[corpus].replace('from', 'with', 1)} and download its audio archive.\n"
            f"2. Import it: samsg data fetch {corpus} --source ARCHIVE; or unpack it into {folder}.\n"
            f"3. Its files are then named like {GRAMMARS[corpus].example}; 'samsg data check {corpus}' looks at them."
        )
    return _import(corpus, folder, _load(corpus))


def _load(corpus: str) -> Path:
    """Load a corpus into audb's cache, 16 kHz and mono: the folder in the cache."""
    try:
        import audb
    except ImportError as error:
        raise SamsgError("Fetching needs audb, which is not installed: pip install 'samsg[data]'.") from error
    name, version = PACKAGES[corpus]
    repositories = ", ".join(f"{repository.name} ({repository.host})" for repository in audb.config.REPOSITORIES)
    print(f"{GRAMMARS[corpus].title}: {name} {version} from {repositories}; cache: {audb.default_cache_root()}")
    try:
        # The first channel, not a mix: audb would write mono files anew for a mix, and their SHA-256 would change.
        flavor = {"format": "wav", "sampling_rate": 16_000, "channels": [0]}
        database = audb.load(name, version=version, **flavor, num_workers=8)
        if database is None:
            raise TimeoutError("another process is loading it.")
    except Exception as error:  # audb passes on whatever its backends, the network and the decoders raise
        raise SamsgError(
            f"{name} {version} was asked for from {repositories}; audb said: {error} Is there a network, and do audb's "
            "settings (~/.config/audb.yaml) name a repository with this version? What was loaded is kept, so run it "
            f"again; or get the corpus {BY_HAND[corpus]} and run: samsg data fetch {corpus} --source FOLDER_OR_ARCHIVE"
        ) from error
    return Path(database.root)


def _import(corpus: str, folder: Path, source: Path) -> Path:
    title = GRAMMARS[corpus].title
    if not source.exists():
        raise SamsgError(f"{title} was to be taken from {source}, which does not exist; give a folder or an archive.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as partly:
            made = Path(partly) / "made"
            clips = _plan(corpus, source)
            wanted = (member for member in _members(source) if member.name in clips)
            for member in progress_bar(wanted, f"{title}: copying", len(clips), "clip"):
                _copy(member, made / _place(corpus, clips[member.name]), source)
            found = len(_clips(corpus, made))
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
            names = [name for name in names if not is_litter(PurePath(name))]
            if not names:
                if folder.exists():
                    shutil.rmtree(folder)
                made.rename(folder)
            elif not _same(_clips(corpus, folder), _clips(corpus, made)):
                raise SamsgError(
                    f"{folder} holds something else than {source}, such as {names[0]}; move it away, or give another "
                    "folder. Nothing was changed."
                )
    except SamsgError:
        raise
    except Exception as error:  # whatever archives, decompressors and file systems raise
        raise SamsgError(
            f"{title} could not be brought from {source} to {folder}: {error or type(error).__name__}. Is the source "
            "whole, can it be read, and is there room? Nothing was changed."
        ) from error
    print(f"{title}: {found} clips in {folder}")
    return folder


def _plan(corpus: str, source: Path) -> dict[str, str]:
    """The files of a source that are clips -> which; none is read before all are known to be harmless."""
    allowed = TOTAL if source.is_dir() else min(TOTAL, max(SMALL, RATIO * source.stat().st_size))
    clips, others, total = {}, [], 0
    stem = source.name.split(".")[0]  # SAVEE's speaker may be the folder's own name
    for count, member in enumerate(_members(source), start=1):
        said = None if is_litter(PurePath(member.name)) else parse_path(f"{stem}/{member.name}", corpus)
        total += member.size if said or not source.is_dir() else 0
        if count > MEMBERS or total > allowed or (said and member.size > LARGEST):
            raise SamsgError(
                f"{source} would unpack to more than a corpus can be: {count} files and {total / 2**20:.0f} MiB when "
                f"{member.name} was reached. Unpack what you trust of it, and give the folder."
            )
        if said:
            clips[member.name] = said["clip"]
        else:
            others.append(member.name)
    if not clips:
        found = f"{len(others)} other names, such as {others[-1]}" if others else "nothing"
        raise SamsgError(
            f"{source} was taken for {GRAMMARS[corpus].title}: found {found}; expected {GRAMMARS[corpus].example}. "
            "Give its folder or archive; unpack archives that lie in it first."
        )
    return clips


def _members(source: Path) -> Iterator[Member]:
    """The files of a folder, or all that an archive holds."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():  # a pipe would be waited for without end
                yield Member(path.relative_to(source).as_posix(), path.stat().st_size, partial(open, path, "rb"))
    elif (archive := _tar(source)) is not None:  # before zip: a tar that ends with a zip passes for one
        with archive:
            for entry in archive:
                name = _harmless(source, entry.name, entry.isreg() or entry.isdir())
                yield Member(name, entry.size, partial(archive.extractfile, entry))
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as packed:
            for each in packed.infolist():
                kind = stat.S_IFMT(each.external_attr >> 16)
                name = _harmless(source, each.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                yield Member(name, each.file_size, partial(packed.open, each))
    else:
        raise SamsgError(
            f"{source} is neither a folder nor an archive that can be read (zip, tar, tar.gz). If it is one, its end "
            "is missing: download it again. Unpack archives of other kinds, and give the folder."
        )


def _tar(source: Path) -> tarfile.TarFile | None:
    try:
        return tarfile.open(source, tarinfo=_Entry)
    except tarfile.TarError:
        return None


def _harmless(source: Path, name: str, plain: bool) -> str:
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/") or not plain:
        what = "leads out of the archive" if plain else "is a link or a device"
        raise SamsgError(f"{source} holds {name}, which {what}: no corpus does. Nothing was unpacked.")
    return name


def _copy(member: Member, target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = target.with_suffix(".partial")
    with member.open() as file, copy.open("wb") as out:
        start = file.read(len(POINTER))
        if start == POINTER:
            raise SamsgError(
                f"{member.name} of {source} is a Git LFS pointer, the text that stands in for a sound. Run "
                "'git lfs install' and 'git lfs pull' in a clone of the repository, and give that: its zip archive "
                "never holds the sounds."
            )
        out.write(start)
        shutil.copyfileobj(file, out)  # no more than an archive declares; less is an error of its reader
    if target.exists() and not filecmp.cmp(copy, target, shallow=False):
        raise SamsgError(f"{source} holds {target.stem} twice, and {member.name} differs from the other; keep one.")
    copy.replace(target)


def _place(corpus: str, clip: str) -> str:
    """Where a corpus' authors put a clip."""
    if corpus == "savee":
        speaker, _, name = clip.partition("_")
        return f"AudioData/{speaker}/{name}.wav"
    return f"{'wav' if corpus == 'emodb' else 'AudioWAV'}/{clip}.wav"


def _clips(corpus: str, root: Path) -> dict[str, Path]:
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        said = None if is_litter(PurePath(name)) else parse_path(f"{root.name}/{name}", corpus)
        if said and path.is_file():
            found[said["clip"]] = path
    return found


def _same(one: dict[str, Path], other: dict[str, Path]) -> bool:
    return one.keys() == other.keys() and all(filecmp.cmp(one[clip], other[clip], shallow=False) for clip in one)
