"""Corpora into their folders (Section IV-A): EmoDB and CREMA-D through audb, any corpus from a copy of the user's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from samsg.audio import LFS_POINTER
from samsg.corpora import GRAMMARS, parse_folder
from samsg.settings import SamsgError, check_name
from samsg.storage import whole_folder


def fetch(corpus: str, folder: Path, source: Path | None = None) -> Path:
    """Copy a corpus into its folder, complete or not at all, in its authors' layout; returns the absolute folder.

    ``source`` is a copy: a folder or an archive (zip, tar), of which only files with the corpus's own names are taken.
    SamsgError if a person or a network is needed, or if source or folder hold something else.
    """
    check_name("corpus", corpus, GRAMMARS)
    folder = Path(folder).expanduser().resolve()
    if folder.is_dir() and any(folder.iterdir()):
        raise SamsgError(f"{folder} already holds files. 'samsg data check {corpus}' tells which; or move them away.")
    source = Path(source).expanduser() if source else _download(corpus)
    with whole_folder(folder) as partial, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if not source.is_dir():
            # Keep the archive's name: it may be SAVEE's speaker. Python's 'data' filter confines a tar to its folder.
            archive, source = source, Path(scratch) / "copy" / source.name.partition(".")[0]
            try:
                shutil.unpack_archive(archive, source, filter=None if archive.suffix == ".zip" else "data")
            except Exception as error:  # archives and decompressors raise errors of any kind
                raise SamsgError(f"{archive} is not a folder, zip or tar that can be unpacked: {error}") from error
        _copy_clips(corpus, source, Path(scratch) / "clips")
        (Path(scratch) / "clips").rename(partial)
    return folder


def _download(corpus: str) -> Path:
    """Load a corpus into audb's cache, 16 kHz and mono: -> its folder there."""
    grammar = GRAMMARS[corpus]
    advice = f"{grammar.source}, then run: samsg data fetch {corpus} --source FOLDER_OR_ARCHIVE"
    if not grammar.package:
        raise SamsgError(f"{grammar.title} cannot be downloaded by a program. Please {advice}")
    name, version = grammar.package
    try:
        import audb

        # The first channel, not the mean: audb would write mono files anew for a mean, and their SHA-256 would change.
        database = audb.load(name, version=version, format="wav", sampling_rate=16_000, channels=[0], num_workers=8)
        return Path(database.root)
    except Exception as error:  # audb raises whatever its backends, the network and the decoders do
        requirement = "It needs a network and pip install -e '.[data]'."
        raise SamsgError(f"audb could not load {name} {version}: {error} {requirement} Or {advice}") from error


def _copy_clips(corpus: str, source: Path, target: Path) -> None:
    clips = parse_folder(source, corpus).query("clip != ''")
    if clips.empty:
        raise SamsgError(f"{source} has no clip of {GRAMMARS[corpus].title}, named like {GRAMMARS[corpus].example}.")
    for clip in clips.itertuples():
        content = (source / clip.path).read_bytes()
        if content.startswith(LFS_POINTER):
            raise SamsgError(f"{clip.path} of {source} is a Git LFS pointer, not a sound; run 'git lfs pull' there.")
        stem = clip.clip.removeprefix(f"{clip.speaker}_") if corpus == "savee" else clip.clip
        path = target / GRAMMARS[corpus].folder.format(speaker=clip.speaker) / f"{stem}{Path(clip.path).suffix.lower()}"
        if path.exists() and path.read_bytes() != content:
            raise SamsgError(f"{source} has {clip.clip} twice, with different sounds; remove one of them.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
