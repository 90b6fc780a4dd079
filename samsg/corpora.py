"""A corpus as one table (Section IV-A), from the names of its files or from a CSV; and its check.

The lists in official/ hold the name, sample rate and length of every file and, for EmoDB and CREMA-D, its SHA-256;
RAVDESS's list follows from its file-name scheme.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import soundfile

from samsg.audio import read_sound, why_unusable
from samsg.settings import SamsgError, home, nearest

COLUMNS = ["clip", "path", "corpus", "speaker", "sentence", "emotion"]
PARTS = ("train", "validation", "test")
SYNTHETIC_NOTE = "SYNTHETIC.txt"  # in the folder of every embedded corpus
PARTS_FILE = "parts.csv"  # the split of an embedded corpus that has its own: path, part
NO_AUDIO = "1076_MTI_SAD_XX"  # CREMA-D's README lists this clip as having no audio
SOUNDS = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".opus"}
RAVDESS_EMOTIONS = ("neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")  # 01 to 08
FEWEST = len(PARTS)  # clips of a class: one for each part
# What a check finds of a file that cannot be read.
UNUSABLE = dict(status="unusable", reason="", sample_rate=0, channels=0, frames=0, seconds=0.0, sha256="")


@dataclass(frozen=True)
class Grammar:
    """How a corpus names its files."""

    title: str  # the name of the corpus in print
    pattern: str  # of the end of a path; groups speaker, code (of the emotion) and sentence
    emotions: dict[str, str]  # code -> emotion
    example: str  # a path, for messages


GRAMMARS = {
    "savee": Grammar(
        "SAVEE",
        r"(?P<speaker>DC|JE|JK|KL)[_/](?P<code>a|d|f|h|n|sa|su)(?P<sentence>\d\d)\.(?i:wav)",
        dict(a="anger", d="disgust", f="fear", h="happiness", n="neutral", sa="sadness", su="surprise"),
        "AudioData/DC/a01.wav or DC_a01.wav",
    ),
    "emodb": Grammar(
        "EmoDB",
        r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<code>[WLEAFTN])[a-z]\.(?i:wav)",
        dict(W="anger", L="boredom", E="disgust", A="fear", F="happiness", T="sadness", N="neutral"),
        "wav/03a01Fa.wav",
    ),
    "crema_d": Grammar(
        "CREMA-D",
        r"(?P<speaker>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<code>ANG|DIS|FEA|HAP|NEU|SAD)_(?:LO|MD|HI|XX?)\.(?i:wav)",
        dict(ANG="anger", DIS="disgust", FEA="fear", HAP="happiness", NEU="neutral", SAD="sadness"),
        "AudioWAV/1001_DFA_ANG_XX.wav",
    ),
    "ravdess": Grammar(  # modality 03: audio alone; channel 01: speech; intensity; statement; repetition; actor
        "RAVDESS",
        r"03-01-(?P<code>0[1-8])-0[12]-(?P<sentence>0[12])-0[12]-(?P<speaker>0[1-9]|1\d|2[0-4])\.(?i:wav|flac)",
        {f"0{number}": emotion for number, emotion in enumerate(RAVDESS_EMOTIONS, start=1)},
        "Actor_01/03-01-06-01-02-01-01.wav",
    ),
}


def parse_path(path: str, corpus: str) -> dict[str, str] | None:
    """Clip, speaker, sentence and emotion from a file's path (with '/'); None if it does not have the corpus's form."""
    match = re.search(rf"(?:^|/){GRAMMARS[corpus].pattern}$", path)
    if match is None:
        return None
    code, speaker, sentence, clip = match["code"], match["speaker"], match["sentence"], Path(path).stem
    if corpus == "savee":
        clip = f"{speaker}_{code}{sentence}"
        # Numbers 01 to 03 are the same sentences in every emotion, the others belong to one emotion.
        sentence = sentence if int(sentence) <= 3 else f"{code}{sentence}"
    return {"clip": clip, "speaker": speaker, "sentence": sentence, "emotion": GRAMMARS[corpus].emotions[code]}


def find_sounds(root: Path) -> list[str]:
    """The sound files below a folder, relative to it and sorted. Links to folders are followed."""
    # glob leaves out names that start with a dot: copies that macOS and Jupyter make.
    names = (name.replace(os.sep, "/") for name in glob.iglob("**/*", root_dir=root, recursive=True))
    sounds = sorted(name for name in names if Path(name).suffix.lower() in SOUNDS and os.path.isfile(root / name))
    for name in sounds:
        if not name.isprintable():
            raise SamsgError(f"{root} has the name {name!r}; tables cannot hold its characters, so rename it.")
    return sounds


def read_corpus(corpus: str, root: str | Path | None = None) -> pd.DataFrame:
    """The manifest of a corpus: a row for each clip, sorted by clip, with the columns of ``COLUMNS``.

    Args:
        corpus: a key of ``GRAMMARS``; the path of a CSV with columns path and emotion and, where known, speaker,
            sentence and part (train, validation, test: a published split).
        root: the folder that paths are relative to; by default data/<corpus>, or a CSV's own folder.

    Raises:
        SamsgError: no such corpus, folder, files or columns; a clip listed twice; a class without clips.
    """
    folder = _folder(corpus, root)
    manifest = _read_csv(Path(corpus), folder) if corpus.lower().endswith(".csv") else _read_grammar(corpus, folder)
    manifest = manifest.sort_values("clip", ignore_index=True)
    twice = manifest.loc[manifest["clip"].duplicated(keep=False), "path"]
    if len(twice):
        raise SamsgError(f"{corpus} has a clip twice, such as {twice.iat[0]} and {twice.iat[1]}; keep one of them.")
    if manifest["emotion"].nunique() < 2:
        raise SamsgError(f"{corpus} has {manifest['emotion'].nunique()} emotions; a classifier needs two or more.")
    return manifest


def _folder(corpus: str, root: str | Path | None) -> Path:
    default = Path(corpus).parent if corpus.lower().endswith(".csv") else home() / "data" / corpus
    return Path(root or default)


def _read_grammar(corpus: str, root: Path) -> pd.DataFrame:
    if corpus not in GRAMMARS:
        own = "Your own is a CSV file; 'samsg data new FOLDER' makes one from a folder of recordings."
        raise SamsgError(f"There is no corpus '{corpus}'; {nearest(corpus, GRAMMARS)} {own}")
    grammar, sounds = GRAMMARS[corpus], find_sounds(root)
    # SAVEE's speaker may be the name of the root itself.
    parsed = {path: parse_path(f"{root.name}/{path}", corpus) for path in sounds}
    rows = [{"path": path, "corpus": corpus, **clip} for path, clip in parsed.items() if clip]
    if missing := sorted(set(grammar.emotions.values()) - {row["emotion"] for row in rows}):
        found = f"{root} has {len(sounds)} sound files, and no {', '.join(missing)} of {grammar.title}"
        raise SamsgError(f"{found}. Names are like {grammar.example}; data/README.md says how to get it.")
    return pd.DataFrame(rows)[COLUMNS]


def _read_csv(path: Path, root: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False, index_col=False)
        table = table.rename(columns=str.strip).apply(lambda column: column.str.strip())
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors too
        raise SamsgError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    if missing := [column for column in ("path", "emotion") if column not in table]:
        raise SamsgError(f"{path} has columns {', '.join(table.columns)}; it also needs {' and '.join(missing)}.")
    for column in ("path", "emotion"):
        for line, cell in enumerate(table[column], start=2):
            if not cell or not cell.isprintable():
                raise SamsgError(f"{path}, line {line}: {column} is empty or has characters that tables cannot hold.")
    if missing := [entry for entry in table["path"] if not os.path.isfile(root / entry)]:
        found = f"{path} lists {len(missing)} files that do not exist in {root}, such as {missing[0][:200]!r}"
        raise SamsgError(f"{found}; correct the paths, or give the folder that they are relative to.")
    clips = table["path"]
    if clips.map(os.path.isabs).all():  # so that a clip keeps its name when the corpus moves
        folder = os.path.commonpath([os.path.dirname(clip) for clip in clips]) if len(clips) else ""
        clips = clips.map(lambda clip: Path(os.path.relpath(clip, folder)).as_posix())
    if "part" in table and set(table["part"]) != set(PARTS):
        found, needed = ", ".join(map(repr, sorted(set(table["part"])))), ", ".join(PARTS)
        raise SamsgError(f"{path} has {found} in column part; a published split needs {needed}, each at least once.")
    table = table.assign(clip=clips, corpus=path.stem)
    return table.reindex(columns=[*COLUMNS, *({"part"} & {*table})], fill_value="")


def emotions_of(manifest: pd.DataFrame) -> list[str]:
    """The classes of a corpus, sorted: the order of every logit and probability column."""
    return sorted(manifest["emotion"].unique())


def hash_files(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file's bytes."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def fingerprint(manifest: pd.DataFrame, root: Path) -> str:
    """SHA-256 over the clips' names, labels and sounds. Their paths do not enter: a corpus may move."""
    if "sha256" not in manifest:
        manifest = manifest.assign(sha256=hash_files(root / path for path in manifest["path"]))
    rows = manifest[[name for name in ("clip", "speaker", "sentence", "emotion", "part", "sha256") if name in manifest]]
    return hashlib.sha256(rows.sort_values("clip").to_json(orient="records").encode()).hexdigest()


def official_list(corpus: str) -> pd.DataFrame:
    """A corpus of ``GRAMMARS`` as published, a row for each file: clip, speaker, sentence, emotion, file, sample_rate
    (Hz), frames and sha256; frames 0 and sha256 '' are unknown.
    """
    path = Path(__file__).with_name("official") / f"{corpus}.csv.gz"
    table = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="bytes")
    table = table.astype({"sample_rate": int, "frames": int})
    return table.join(pd.DataFrame([parse_path(file, corpus) for file in table["file"]]))


def published_counts(corpus: str, by: str = "emotion") -> pd.Series:
    """Clips of each emotion, speaker or sentence, as published."""
    return official_list(corpus)[by].value_counts().sort_index()


class Report(NamedTuple):
    """What a check of a corpus found."""

    place: str  # the corpus and its folder
    files: pd.DataFrame  # path, clip, speaker, emotion, and the columns of UNUSABLE
    verdict: str
    exit_code: int  # 0 complete (and official, where there is a list), 1 usable, 2 not usable

    def text(self) -> str:
        """The report for people: clips of each speaker and class, formats, counts of each status, the verdict."""
        sounds = self.files[self.files["status"].isin(["ok", "other content"])]
        lines = [f"{self.place}: {len(sounds)} usable sounds, {sounds['seconds'].sum() / 60:.1f} min"]
        if len(sounds):
            rows = sounds["speaker"].replace("", "unknown"), sounds["emotion"]
            lines.append(pd.crosstab(*rows, margins=True, margins_name="all").to_string(max_rows=24))
        for column in ("sample_rate", "channels"):
            counts = sounds[column].value_counts().sort_index()
            lines.append(f"{column}: {', '.join(f'{value} ({count})' for value, count in counts.items())}")
        for status, rows in self.files.groupby("status", sort=False):
            lines.append(f"{len(rows):6}  {status}")
            if status != "ok":
                lines += [f"{'':8}{path}: {reason}" for path, reason in rows[["path", "reason"]].head(3).to_numpy()]
        return "\n".join([*lines, f"Verdict: {self.verdict}"])


def check_corpus(corpus: str, root: str | Path | None = None) -> Report:
    """Decode every file as training does, and compare it with the official list. Arguments as of ``read_corpus``."""
    folder = _folder(corpus, root)
    if corpus not in GRAMMARS:
        files = check_files(read_corpus(corpus, folder), folder)
        return Report(corpus, files, *_verdict(files, ""))
    unknown = {"clip": "", "speaker": "", "emotion": ""}
    parsed = {path: parse_path(f"{folder.name}/{path}", corpus) or unknown for path in find_sounds(folder)}
    files = pd.DataFrame([{"path": path, **clip} for path, clip in parsed.items()], columns=["path", *unknown])
    files = _compare(check_files(files, folder), official_list(corpus))
    return Report(f"{GRAMMARS[corpus].title} in {folder}", files, *_verdict(files, " and official"))


def check_files(files: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Decode every file of a table: the table with the columns of UNUSABLE.

    The second copy of a recording is a 'duplicate' if a split may put it into another part, which training refuses.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_inspect, [root / path for path in files["path"]])
    files = files.join(pd.DataFrame(found, columns=list(UNUSABLE)))
    for _, same in files[files["status"] == "ok"].groupby(["sha256", "emotion"]):
        if same.get("part", same["path"]).nunique() > 1:
            reason = f"the same recording as {same['path'].iat[0]}"
            files.loc[same.index[1:], ["status", "reason"]] = "duplicate", reason
    return files


def _inspect(path: Path) -> dict[str, Any]:
    """The columns of UNUSABLE for one file; it is unusable where training cannot read it."""
    try:
        reason, sound = why_unusable(read_sound(path), 16_000), soundfile.info(path)
    except SamsgError as error:
        return {**UNUSABLE, "reason": str(error).removeprefix(f"{path} ")}
    values = sound.samplerate, sound.channels, sound.frames, round(sound.duration, 3), *hash_files([path])
    return dict(zip(UNUSABLE, ("unusable" if reason else "ok", reason, *values), strict=True))


def _compare(files: pd.DataFrame, official: pd.DataFrame) -> pd.DataFrame:
    """Each file with its status against the official list, and a row for each file that is missing."""
    listed = official.set_index("clip")
    known: dict[str, str] = {}  # clip -> path
    for file in files.itertuples():
        if file.clip not in listed.index:
            status, reason = "unexpected name", file.reason or "not on the official list"
        elif known.setdefault(file.clip, file.path) != file.path:
            status, reason = "duplicate", f"the same clip as {known[file.clip]}"
        elif file.clip == NO_AUDIO:
            status, reason = "known defect", "CREMA-D's README lists it as having no audio; it is left out of training"
        else:
            rate, frames, sha256 = listed.loc[file.clip, ["sample_rate", "frames", "sha256"]]
            same_length = file.sample_rate == rate and frames in (0, file.frames)
            if file.reason or file.sha256 == sha256 or (same_length and not sha256):
                continue
            found = f"{file.sample_rate} Hz, {file.frames} samples{' of other bytes' if same_length else ''}"
            status, reason = "other content", f"{found} (official: {rate} Hz, {frames or 'any'} samples)"
        files.loc[file.Index, ["status", "reason"]] = status, reason
    missing = official[~official["clip"].isin(list(known))].rename(columns={"file": "path"})
    missing = missing.assign(**{**UNUSABLE, "status": "missing", "reason": "not on disk"})[files.columns]
    return pd.concat([table for table in (files, missing) if len(table)], ignore_index=True)


def _verdict(files: pd.DataFrame, official: str) -> tuple[str, int]:
    """Verdict and exit code."""
    counts = files.loc[(files["clip"] != "") & (files["status"] != "ok"), "status"].value_counts()
    usable = files[files["status"].isin(["ok", "other content"])]
    clips_of = usable["emotion"].value_counts().reindex(sorted(set(files["emotion"]) - {""}), fill_value=0)
    if clips_of.min() < FEWEST:
        clips = ", ".join(f"{n} clips of {emotion}" for emotion, n in clips_of.items() if n < FEWEST)
        return f"not usable: {clips} can be read, and a split needs {FEWEST} of each (see data/README.md).", 2
    if "duplicate" in counts:
        return "not usable: keep one file of each recording.", 2
    found = ", ".join(f"{count} {status}" for status, count in counts.items())
    if counts.drop("known defect", errors="ignore").empty:
        return f"complete{official}: {len(usable)} clips{f' and {found}' if found else ''}.", 0
    note = " State this with every result." if "other content" in counts else ""
    return f"usable, but not complete{official}: {found}.{note}", 1
