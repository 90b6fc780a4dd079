"""A corpus as one table (Section IV-A), from the names of its files or from a CSV; and its check."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import soundfile
import yaml

from samsg.audio import read_sound, why_unusable
from samsg.settings import SamsgError, check_name, home

COLUMNS = ["clip", "path", "corpus", "speaker", "sentence", "emotion"]
PARTS = ("train", "validation", "test")
FEWEST = len(PARTS)  # clips of a class: one for each part
SYNTHETIC_NOTE = "SYNTHETIC.txt"  # in the folder of every embedded corpus
PARTS_FILE = "parts.csv"  # beside that note, where the corpus has its own split: path, part
NO_AUDIO = "1076_MTI_SAD_XX"  # a clip without audio, as CREMA-D's README says: it is not checked
SOUNDS = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {".aif", ".opus"}  # raw: no header
CHECK_COLUMNS = ["status", "reason", "sample_rate", "channels", "frames", "sha256"]  # of a file
USABLE = ["ok", "other content"]  # the statuses of files that training can read


class Grammar(NamedTuple):
    """How a corpus names its files, and where a copy comes from."""

    title: str  # the name of the corpus in print
    pattern: str  # of the end of a path; groups speaker, code (of the emotion) and sentence
    emotions: dict[str, str]  # code -> emotion
    example: str  # a path, for messages
    folder: str  # of a speaker's files, in the authors' layout
    source: str  # what a person does for a copy
    package: Sequence[str] = ()  # name and version in audb's repository, if it is there


OFFICIAL = Path(__file__).with_name("official")  # the grammars, and lists of all files as published
GRAMMARS = {key: Grammar(**entry) for key, entry in yaml.safe_load((OFFICIAL / "grammars.yaml").read_bytes()).items()}


def parse_path(path: str, corpus: str) -> dict[str, str] | None:
    """Clip, speaker, sentence and emotion from a file's path (with '/'); None if it does not have the corpus's form."""
    if (match := re.search(rf"(?:^|/){GRAMMARS[corpus].pattern}$", path)) is None:
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
    names = sorted(Path(name).as_posix() for name in glob.iglob("**/*", root_dir=root, recursive=True))
    sounds = [name for name in names if Path(name).suffix.lower() in SOUNDS and os.path.isfile(root / name)]
    if bad_names := [name for name in sounds if not name.isprintable()]:
        raise SamsgError(f"{root} has the name {bad_names[0]!r}; tables cannot hold its characters, so rename it.")
    return sounds


def parse_folder(root: Path, corpus: str) -> pd.DataFrame:
    """Path, clip, speaker, sentence and emotion of every sound below a folder; '' where a name is not the corpus's."""
    # SAVEE's speaker may be the name of the root itself.
    rows = [{"path": path, **(parse_path(f"{root.name}/{path}", corpus) or {})} for path in find_sounds(root)]
    return pd.DataFrame(rows, columns=["path", "clip", "speaker", "sentence", "emotion"], dtype=object).fillna("")


def read_corpus(corpus: str, root: str | Path | None = None) -> pd.DataFrame:
    """The manifest of a corpus: a row for each clip, sorted by clip, with the columns of ``COLUMNS``.

    ``corpus`` is a key of ``GRAMMARS``, or the path of a CSV (data/README.md describes its columns). Paths are relative
    to ``root``, by default data/<corpus> or a CSV's own folder. SamsgError if there is no such corpus, folder, file or
    column, if a clip is listed twice, or there are fewer than two classes (of a grammar: not all its emotions).
    """
    read = _read_csv if corpus.lower().endswith(".csv") else _read_grammar
    manifest = read(corpus, _folder(corpus, root)).sort_values("clip", ignore_index=True)
    if copies := manifest.loc[manifest["clip"].duplicated(keep=False), "path"].tolist():
        raise SamsgError(f"{corpus} has a clip twice, such as {copies[0]} and {copies[1]}; keep one of them.")
    if (n_emotions := manifest["emotion"].nunique()) < 2:
        raise SamsgError(f"{corpus} has {n_emotions} emotions; a classifier needs two or more.")
    return manifest


def _folder(corpus: str, root: str | Path | None) -> Path:
    return Path(root or (Path(corpus).parent if corpus.lower().endswith(".csv") else home() / "data" / corpus))


def _read_grammar(corpus: str, root: Path) -> pd.DataFrame:
    check_name("corpus", corpus, GRAMMARS, " Your own is a CSV file; 'samsg data new FOLDER' makes one.")
    grammar, table = GRAMMARS[corpus], parse_folder(root, corpus)
    if absent_emotions := sorted(set(grammar.emotions.values()) - set(table["emotion"])):
        problem = f"{root} has {len(table)} sound files, and no {', '.join(absent_emotions)} of {grammar.title}"
        raise SamsgError(f"{problem}. Names are like {grammar.example}; data/README.md says how to get it.")
    return table[table["clip"] != ""].assign(corpus=corpus)[COLUMNS]


def _read_csv(path: str, root: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False, index_col=False)
        table = table.rename(columns=str.strip).apply(lambda column: column.str.strip())
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors too
        raise SamsgError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    if not {"path", "emotion"} <= {*table.columns}:
        raise SamsgError(f"{path} has columns {', '.join(table.columns)}; it needs path and emotion.")
    if absent_files := [entry for entry in table["path"] if not os.path.isfile(root / entry)]:
        problem = f"{path} lists {len(absent_files)} files that do not exist in {root}, such as {absent_files[0]!r}"
        raise SamsgError(f"{problem}; correct the paths, or give the folder that they are relative to.")
    for entry, emotion in zip(table["path"], table["emotion"], strict=True):
        if not emotion or not f"{entry}{emotion}".isprintable():
            raise SamsgError(f"{path} has no emotion for {entry!r}, or characters that tables cannot hold.")
    if "part" in table and (parts := {*table["part"]}) != {*PARTS}:
        raise SamsgError(f"{path} has {sorted(parts)} in column part; a published split needs {', '.join(PARTS)}.")
    clips = table["path"]
    if len(clips) and clips.map(os.path.isabs).all():  # so that a clip keeps its name when the corpus moves
        folder = os.path.commonpath([os.path.dirname(clip) for clip in clips])
        clips = clips.map(lambda clip: os.path.relpath(clip, folder))
    columns = [*COLUMNS, "part"] if "part" in table else COLUMNS
    return table.assign(clip=clips, corpus=Path(path).stem).reindex(columns=columns, fill_value="")


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
    """A corpus as published, a row a file: file, sample_rate (Hz), frames (0: unknown), sha256 ('': unknown), clip,
    speaker, sentence and emotion."""
    table = pd.read_csv(OFFICIAL / f"{corpus}.csv.gz", dtype={"sha256": str}, keep_default_na=False)
    table = table.drop(columns="bytes")
    return table.join(pd.DataFrame([parse_path(file, corpus) for file in table["file"]]))


class Report(NamedTuple):
    """What a check of a corpus found."""

    place: str
    files: pd.DataFrame  # path, clip, speaker, emotion, and CHECK_COLUMNS
    verdict: str
    exit_code: int  # 0 complete (and official, where there is a list), 1 usable, 2 not usable

    def text(self) -> str:
        """Clips of each speaker and class, sample rates and channels, counts of each status, the verdict."""
        sounds = self.files[self.files["status"].isin(USABLE)]
        minutes = (sounds["frames"] / sounds["sample_rate"]).sum() / 60
        lines = [f"{self.place}: {len(sounds)} usable sounds, {minutes:.1f} min"]
        if len(sounds):
            rows = sounds["speaker"].replace("", "unknown"), sounds["emotion"]
            lines.append(pd.crosstab(*rows, margins=True, margins_name="all").to_string(max_rows=24))
        for column in ("sample_rate", "channels"):
            counts = sounds[column].value_counts().sort_index()
            lines.append(f"{column}: {', '.join(f'{value} ({count})' for value, count in counts.items())}")
        for status, rows in self.files.groupby("status", sort=False):
            lines.append(f"{len(rows):6}  {status}")
            lines += [f"{'':8}{file.path}: {file.reason}" for file in rows.head(3).itertuples() if status != "ok"]
        return "\n".join([*lines, f"Verdict: {self.verdict}"])


def check_corpus(corpus: str, root: str | Path | None = None) -> Report:
    """Decode every file as training does, and compare it with the official list. Arguments as of ``read_corpus``."""
    folder = _folder(corpus, root)
    if corpus not in GRAMMARS:
        files = check_files(read_corpus(corpus, folder), folder)
        return Report(corpus, files, *_verdict(files))
    sounds, official = parse_folder(folder, corpus), official_list(corpus).rename(columns={"file": "path"}).astype(str)
    absent_files = official.loc[~official["clip"].isin(sounds["clip"]), sounds.columns]
    files = check_files(pd.concat([sounds, absent_files]).query(f"clip != '{NO_AUDIO}'"), folder)
    # Compared as text: a name that is not on the list has NaN there, and NaN turns a column of whole numbers to floats.
    disk, entries = files.astype(str), files[["clip"]].merge(official, how="left", on="clip")
    columns = ["sample_rate", "frames"] if "" in set(official["sha256"]) else ["sha256"]
    is_other = (files["status"] == "ok") & ((disk[columns] != entries[columns]) & (entries[columns] != "0")).any(axis=1)
    length = disk["sample_rate"] + " Hz, " + disk["frames"] + " samples"
    listed_length = entries["sample_rate"] + " Hz, " + entries["frames"].replace("0", "any") + " samples"
    first_paths = files.groupby("clip")["path"].transform("first")
    cases = [
        (entries["path"].isna(), "unexpected name", files["reason"].replace("", "not on the official list")),
        (files["path"] != first_paths, "duplicate", "the same clip as " + first_paths),
        (~files["path"].isin(sounds["path"]), "missing", "not on disk"),
        (is_other, "other content", length + " (official: " + listed_length + ")"),
    ]
    files["status"] = files["status"].case_when([(is_case, status) for is_case, status, _ in cases])
    files["reason"] = files["reason"].case_when([(is_case, reason) for is_case, _, reason in cases])
    return Report(f"{GRAMMARS[corpus].title} in {folder}", files, *_verdict(files, " and official"))


def check_files(files: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Decode every file; adds CHECK_COLUMNS. Equal sounds of one emotion are duplicates if their parts may differ."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        details = pd.DataFrame(pool.map(_inspect, [root / path for path in files["path"]]), columns=CHECK_COLUMNS)
    files = files.reset_index(drop=True).join(details)
    for _, copies in files[files["status"] == "ok"].groupby(["sha256", "emotion"]):
        if copies.get("part", copies["path"]).nunique() > 1:
            reason = f"the same recording as {copies['path'].iat[0]}"
            files.loc[copies.index[1:], ["status", "reason"]] = "duplicate", reason
    return files


def _inspect(path: Path) -> tuple[str | int, ...]:
    """The columns CHECK_COLUMNS of one file; it is unusable where training cannot read it."""
    try:
        reason, sound = why_unusable(read_sound(path), 16_000), soundfile.info(path)
    except SamsgError as error:
        return "unusable", str(error).removeprefix(f"{path} "), 0, 0, 0, ""
    return "unusable" if reason else "ok", reason, sound.samplerate, sound.channels, sound.frames, *hash_files([path])


def _verdict(files: pd.DataFrame, official: str = "") -> tuple[str, int]:
    """Verdict and exit code; ``official`` is ' and official' if the files were compared with an official list."""
    is_usable = files["status"].isin(USABLE)
    clip_counts = is_usable.groupby(files["emotion"]).sum().drop("", errors="ignore")
    if few := ", ".join(f"{n} clips of {emotion}" for emotion, n in clip_counts.items() if n < FEWEST):
        return f"not usable: {few} can be read, and a split needs {FEWEST} of each (see data/README.md).", 2
    counts = files.loc[(files["clip"] != "") & (files["status"] != "ok"), "status"].value_counts()
    if "duplicate" in counts:
        return "not usable: keep one file of each recording.", 2
    if counts.empty:
        return f"complete{official}: {is_usable.sum()} clips.", 0
    problems = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"usable, but not complete{official}: {problems}.", 1
