"""Corpora as one table: the file-name grammars of SAVEE, EmoDB and CREMA-D, and any corpus given as a CSV
(Section IV-A)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

import pandas as pd
import soundfile

from samsg.settings import SamsgError, nearest

COLUMNS = ["clip", "path", "corpus", "speaker", "sentence", "emotion"]
FOLDERS = "folders"  # a corpus with a folder for each class
SOUNDS = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".opus"}
# What unpacking leaves beside the sounds: macOS' shadow files.
LITTER = ("._", "__MACOSX", ".DS_Store", ".ipynb_checkpoints")


@dataclass(frozen=True)
class Grammar:
    """How a corpus names its files.

    Attributes:
        title: the corpus' name in print.
        pattern: matches the end of a file's path; groups speaker, code (of the emotion) and sentence.
        emotions: the emotion that each code stands for.
        example: a file's path, for messages.
    """

    title: str
    pattern: re.Pattern[str]
    emotions: dict[str, str]
    example: str


GRAMMARS = {
    "savee": Grammar(
        "SAVEE",
        re.compile(r"(?:^|/)(?P<speaker>DC|JE|JK|KL)[_/](?P<code>a|d|f|h|n|sa|su)(?P<sentence>\d\d)\.wav$", re.I),
        {
            "a": "anger",
            "d": "disgust",
            "f": "fear",
            "h": "happiness",
            "n": "neutral",
            "sa": "sadness",
            "su": "surprise",
        },
        "AudioData/DC/a01.wav or DC_a01.wav",
    ),
    "emodb": Grammar(
        "EmoDB",
        re.compile(r"(?:^|/)(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<code>[WLEAFTN])(?P<version>[a-z])\.wav$", re.I),
        {
            "W": "anger",
            "L": "boredom",
            "E": "disgust",
            "A": "fear",
            "F": "happiness",
            "T": "sadness",
            "N": "neutral",
        },
        "wav/03a01Fa.wav",
    ),
    "crema_d": Grammar(
        "CREMA-D",
        re.compile(
            r"(?:^|/)(?P<speaker>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<code>ANG|DIS|FEA|HAP|NEU|SAD)_(?P<level>LO|MD|HI|XX?)"
            r"\.wav$",
            re.I,
        ),
        {
            "ANG": "anger",
            "DIS": "disgust",
            "FEA": "fear",
            "HAP": "happiness",
            "NEU": "neutral",
            "SAD": "sadness",
        },
        "AudioWAV/1001_DFA_ANG_XX.wav",
    ),
}


def parse_path(path: str, corpus: str) -> dict[str, str] | None:
    """What a file's path says of it (clip, speaker, sentence, emotion), or None if it is not named as the corpus names.

    Args:
        path: with forward slashes, relative to the corpus' folder.
        corpus: 'savee', 'emodb' or 'crema_d'.
    """
    grammar = GRAMMARS[corpus]
    match = grammar.pattern.search(path)
    if match is None:
        return None
    codes = {code.lower(): emotion for code, emotion in grammar.emotions.items()}
    emotion = codes[match["code"].lower()]
    speaker, sentence = match["speaker"].upper(), match["sentence"]
    # Clips and sentences are named as the corpus names them, whatever the case of the copy's file names.
    if corpus == "emodb":
        sentence = sentence.lower()
        clip = f"{speaker}{sentence}{match['code'].upper()}{match['version'].lower()}"
    else:
        sentence, clip = sentence.upper(), Path(path).stem.upper()
    if corpus == "savee":
        clip = f"{speaker}_{match['code'].lower()}{sentence}"
        # Numbers 01 to 03 are the same sentences in every emotion, the others the emotion's own.
        sentence = sentence if int(sentence) <= 3 else f"{match['code'].lower()}{sentence}"
    return {"clip": clip, "speaker": speaker, "sentence": sentence, "emotion": emotion}


POINTER = b"version https://git-lfs"  # how the text begins that Git LFS keeps in place of a sound
SPOKEN = "SYNTHETIC.txt"  # in the folder of every embedded corpus
PARTS_FILE = "parts.csv"  # and the split of one that has its own: path, part


def read_corpus(corpus: str, root: str | Path | None = None) -> pd.DataFrame:
    """The manifest of a corpus: one row a clip, with columns clip, path, corpus, speaker, sentence, emotion.

    Paths are relative to ``root`` and rows are sorted by clip.

    Args:
        corpus: 'savee', 'emodb', 'crema_d'; the path of a CSV file with columns path and emotion and, where known,
            speaker, sentence and part (train, validation, test); or 'folders', for a folder of sounds for each class.
        root: the folder of the sound files; for a CSV, its own folder by default.

    Raises:
        SamsgError: no such corpus, folder, files, columns, or a class without clips.
    """
    if str(corpus).lower().endswith(".csv"):
        return _read_csv(Path(corpus), root)
    if corpus == FOLDERS:
        return _read_folders(Path(root or "data"))
    if corpus not in GRAMMARS:
        known = [*GRAMMARS, FOLDERS]
        raise SamsgError(f"There is no corpus '{corpus}'; {nearest(str(corpus), known)} Or give a CSV file.")
    grammar, root = GRAMMARS[corpus], Path(root or f"data/{corpus}")
    if not root.is_dir():
        raise SamsgError(
            f"{grammar.title} was looked for in {root}, which is no folder. Put its files there, named like "
            f"{grammar.example}; data/README.md says how to get them."
        )
    sounds = sorted(p for p in root.rglob("*") if p.suffix.lower() == ".wav" and not is_litter(p.relative_to(root)))
    rows = []
    for path in sounds:
        relative = path.relative_to(root).as_posix()
        said = parse_path(f"{root.name}/{relative}", corpus)  # SAVEE's speaker may be the root folder's own name
        if said is not None:
            rows.append({**said, "path": relative, "corpus": corpus})
    if not rows:
        found = f"{len(sounds)} .wav files with other names, such as {sounds[0].name}" if sounds else "no .wav files"
        raise SamsgError(f"{grammar.title} was looked for in {root}: found {found}; expected {grammar.example}.")
    manifest = pd.DataFrame(rows)[COLUMNS].sort_values("clip", ignore_index=True)
    _refuse_duplicates(manifest, root)
    missing = sorted(set(grammar.emotions.values()) - set(manifest["emotion"]))
    if missing:
        raise SamsgError(
            f"{grammar.title} in {root} has {len(manifest)} clips but none of {', '.join(missing)}; "
            "the copy is incomplete."
        )
    return manifest


def is_litter(path: PurePath) -> bool:
    """Whether a file is what unpacking leaves beside the sounds; its path is relative to the corpus' folder."""
    return any(part.startswith(LITTER) for part in path.parts)


def _refuse_duplicates(manifest: pd.DataFrame, root: Path) -> None:
    twice = manifest[manifest["clip"].duplicated(keep=False)]
    if len(twice):
        paths = " and ".join(twice.loc[twice["clip"] == twice["clip"].iloc[0], "path"])
        raise SamsgError(
            f"{root} holds {twice['clip'].nunique()} clips more than once, such as {paths}; keep one copy of each."
        )


def _read_folders(root: Path) -> pd.DataFrame:
    if not root.is_dir():
        raise SamsgError(f"A corpus was looked for in {root}, which is no folder; it needs one folder for each class.")
    relative = (path.relative_to(root) for path in sorted(root.glob("*/**/*")) if path.suffix.lower() in SOUNDS)
    paths = pd.Series([path.as_posix() for path in relative if not is_litter(path)], dtype=str)
    for path in paths:
        if not path.isprintable():
            raise SamsgError(f"{root} holds {path!r}, a name that tables cannot keep; give the file another.")
    emotions = paths.str.split("/").str[0]
    if emotions.nunique() < 2:
        raise SamsgError(
            f"{root} holds sounds in {emotions.nunique()} folders; expected one folder for each class, two at least, "
            "such as anger/one.wav."
        )
    manifest = pd.DataFrame({"clip": paths, "path": paths, "corpus": root.name, "speaker": "", "sentence": ""})
    return manifest.assign(emotion=emotions)


def _read_csv(path: Path, root: str | Path | None) -> pd.DataFrame:
    if not path.is_file():
        raise SamsgError(f"The corpus was looked for in {path}, which is no file; give the CSV that lists it.")
    try:
        given = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False, index_col=False)
        given = given.rename(columns=str.strip).apply(lambda column: column.str.strip())
    except (ValueError, pd.errors.ParserError) as error:
        raise SamsgError(f"{path} cannot be read as CSV: {error}") from error
    lacking = [column for column in ("path", "emotion") if column not in given]
    if lacking:
        raise SamsgError(
            f"{path} has columns {', '.join(map(str, given.columns))}; expected path and emotion "
            f"(and, where known, speaker and sentence); {' and '.join(lacking)} is missing."
        )
    for column in ("path", "emotion"):
        empty = given.index[given[column].str.strip() == ""]
        if len(empty):
            raise SamsgError(f"{path}, line {empty[0] + 2}: {column} is empty; fill it in or take the line out.")
    root = Path(root) if root else path.parent
    manifest = pd.DataFrame({"clip": given["path"], "path": given["path"], "corpus": path.stem})
    for column in ("speaker", "sentence"):
        manifest[column] = given.get(column, "")
    manifest["emotion"] = given["emotion"]
    if "part" in given:
        manifest["part"] = given["part"]
    if manifest["emotion"].nunique() < 2:
        raise SamsgError(f"{path} has {manifest['emotion'].nunique()} emotions; a classifier needs two or more.")
    for entry in [*manifest["path"], *manifest["emotion"]]:
        if not entry.isprintable():
            raise SamsgError(f"{path} lists {entry!r}, a name that tables cannot keep; give it another.")
    # os.path, unlike Path, takes names of any length. Links and absolute paths are followed, and may end below root.
    below = os.path.join(os.path.realpath(root), "")
    outside = [entry for entry in manifest["path"] if not os.path.realpath(root / entry).startswith(below)]
    if outside:
        raise SamsgError(f"{path} lists {outside[0]}, which lies outside {root}; paths are relative to that folder.")
    absent = [entry for entry in manifest["path"] if not os.path.isfile(root / entry)]
    if absent:
        raise SamsgError(
            f"{path} lists {len(absent)} files that are not below {root}, such as {absent[0]}; "
            "correct the paths or give the folder they are relative to."
        )
    manifest = manifest.sort_values("clip", ignore_index=True)
    _refuse_duplicates(manifest, root)
    return manifest


def emotions_of(manifest: pd.DataFrame) -> list[str]:
    """The classes of a corpus, in alphabetical order: the order of every probability column and logit."""
    return sorted(manifest["emotion"].unique())
