"""Corpora into their folders (Section IV-A): EmoDB and CREMA-D through audb, any corpus from a copy of the user's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from samsg.audio import LFS_POINTER
from samsg.corpora import GRAMMARS, find_sounds, parse_path
from samsg.settings import SamsgError, nearest
from samsg.storage import locked

# Name and version in audb's repository. EmoDB 2.0.0 is another corpus: it adds ambiguous recordings. CREMA-D 1.3.0 has
# 7 441 files; the one without audio is missing.
PACKAGES = {"emodb": ("emodb", "1.4.1"), "crema_d": ("crema-d", "1.3.0")}
SOURCES = {
    "savee": "register with the University of Surrey (kahlan.eps.surrey.ac.uk/savee) and download its audio archive",
    "emodb": "download it from its authors (emodb.bilderbar.info)",
    "crema_d": "clone github.com/CheyneyComputerScience/CREMA-D and run 'git lfs pull' there",
    "ravdess": "download Audio_Speech_Actors_01-24.zip from Zenodo (doi.org/10.5281/zenodo.1188976)",
}
FOLDERS = {"savee": "AudioData/{speaker}", "emodb": "wav", "crema_d": "AudioWAV", "ravdess": "Actor_{speaker}"}


def fetch(corpus: str, folder: Path, source: Path | None = None) -> Path:
    """Bring a corpus into its folder, which is whole or absent, in the layout of its authors: the folder, absolute.

    ``source`` is a copy: a folder or an archive (zip, tar), of which only files with the corpus's own names are taken.
    SamsgError if a person or a network is needed, or if source or folder hold something else.
    """
    if corpus not in GRAMMARS:
        raise SamsgError(f"There is no corpus '{corpus}' to fetch; {nearest(corpus, GRAMMARS)}")
    folder, title = Path(folder).expanduser().resolve(), GRAMMARS[corpus].title
    if n_clips := sum(parse_path(f"{folder.name}/{path}", corpus) is not None for path in find_sounds(folder)):
        print(f"{title}: {folder} already has {n_clips} clips. To fetch it again, remove that folder.")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SamsgError(f"{title} belongs in {folder}, which holds something else. Move that away.")
    source = Path(source).expanduser() if source else _load(corpus)
    with locked(folder), tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        if not source.is_dir():
            # Its name may be that of SAVEE's speaker. Python's 'data' filter confines a tar to its folder.
            archive, source = source, Path(unpacked) / "copy" / source.name.partition(".")[0]
            try:
                shutil.unpack_archive(archive, source, filter=None if archive.suffix == ".zip" else "data")
            except Exception as error:  # archives and decompressors raise errors of any kind
                raise SamsgError(f"{archive} is not a folder, zip or tar that can be unpacked: {error}") from error
        _copy_clips(corpus, source, Path(unpacked) / "clips")
        (Path(unpacked) / "clips").rename(folder)
    return folder


def _load(corpus: str) -> Path:
    """Load a corpus into audb's cache, 16 kHz and mono: -> its folder there."""
    advice = f"{SOURCES[corpus]}, then run: samsg data fetch {corpus} --source FOLDER_OR_ARCHIVE"
    if corpus not in PACKAGES:
        raise SamsgError(f"{GRAMMARS[corpus].title} cannot be downloaded by a program. Please {advice}")
    name, version = PACKAGES[corpus]
    try:
        import audb

        # The first channel, not the mean: audb would write mono files anew for a mean, and their SHA-256 would change.
        database = audb.load(name, version=version, format="wav", sampling_rate=16_000, channels=[0], num_workers=8)
    except Exception as error:  # audb raises whatever its backends, the network and the decoders do
        install = "It needs pip install -e '.[data]' and a network; what was loaded is kept."
        raise SamsgError(f"audb could not load {name} {version}: {error} {install} Or {advice}") from error
    return Path(database.root)


def _copy_clips(corpus: str, source: Path, target: Path) -> None:
    clips = {name: clip for name in find_sounds(source) if (clip := parse_path(f"{source.name}/{name}", corpus))}
    if not clips:
        raise SamsgError(f"{source} has no clip of {GRAMMARS[corpus].title}, named like {GRAMMARS[corpus].example}.")
    for name, clip in clips.items():
        content = (source / name).read_bytes()
        if content.startswith(LFS_POINTER):
            advice = "give a clone of the repository, after 'git lfs pull' in it."
            raise SamsgError(f"{name} of {source} is a Git LFS pointer, the text in place of a sound: {advice}")
        stem = clip["clip"].removeprefix(f"{clip['speaker']}_") if corpus == "savee" else clip["clip"]
        path = target / FOLDERS[corpus].format(**clip) / f"{stem}{Path(name).suffix.lower()}"
        if path.exists() and path.read_bytes() != content:
            raise SamsgError(f"{source} has {clip['clip']} twice, with different sounds; remove one of them.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
