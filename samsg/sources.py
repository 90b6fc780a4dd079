"""Where corpora come from (Section IV-A): audb, the user's copy, or a folder of recordings; its classes are guessed."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import yaml

from samsg.audio import LFS_POINTER
from samsg.corpora import FEWEST, GRAMMARS, Report, check_files, parse_folder
from samsg.settings import SamsgError, check_name, home, profile_names
from samsg.storage import atomic, whole_folder

EMOTION = re.compile("ang|fea|hap|joy|sad|neu|sur|bor|calm|disg", re.IGNORECASE)  # how names of emotions begin
SECONDS_PER_CLIP, SECONDS_TO_START = 0.014, 150  # a clip and epoch; all notebooks (data/README.md, Time)


def fetch_corpus(corpus: str, folder: Path, source: Path | None = None) -> Path:
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
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
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


def new_corpus(folder: Path, name: str = "") -> str:
    """Write data/<name>.csv and <name>.yaml for a folder of recordings: what was found, and what to run next."""
    folder = folder.expanduser().resolve()
    name = name or re.sub(r"[^\w.-]+", "_", folder.name).strip("_.-")
    csv_path, profile_path = home() / "data" / f"{name}.csv", home() / f"{name}.yaml"
    if not re.fullmatch(r"[^\W_][\w.-]{0,99}", name) or name in {*GRAMMARS, *profile_names()}:
        raise SamsgError(f"A corpus of your own cannot be named '{name}'; choose another --name, such as 'mine'.")
    if csv_path.exists() or profile_path.exists():
        raise SamsgError(f"{csv_path} or {profile_path} already exists; remove both, or choose another --name.")
    files = check_files(guess_labels(folder), folder)
    is_usable = files["status"] == "ok"
    has_class = (is_usable.groupby(files["emotion"]).transform("sum") >= FEWEST) & (files["emotion"] != "")
    files.loc[is_usable & ~has_class, ["status", "reason"]] = "left out", f"no class of {FEWEST} recordings in its path"
    clips = files[files["status"] == "ok"].assign(path=lambda table: f"{folder}/" + table["path"])
    if clips["emotion"].nunique() < 2:
        raise SamsgError(f"{folder} has {len(files)} sounds, but no two classes in paths; write a CSV (path,emotion).")
    epochs = min(12, max(4, 5000 // len(clips)))  # for 1 000 clips: 5, 5 and 3 epochs, 6 minutes
    corpus_settings = {"reader": f"data/{name}.csv", "title": name, "note": "own recordings"}
    content = {"extends": "demo", "description": f"Recordings in {folder.name}", "corpora": {name: corpus_settings}}
    content |= {"training": {"epochs": epochs}, "samsg": {"epochs": epochs}, "probe": {"epochs": 3}}
    with atomic(csv_path) as partial:
        clips.to_csv(partial, columns=["path", "emotion", "speaker", "sentence"], index=False)
    with atomic(profile_path) as partial:
        partial.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    n_passes = 2 * epochs + 3 + 2  # over the clips; spectrograms and rollout take as long as two
    minutes = (SECONDS_TO_START + SECONDS_PER_CLIP * n_passes * len(clips)) / 60 * 2 / min(2, os.cpu_count() or 1)
    verdict = f"{csv_path} lists {len(clips)} of {len(files)} recordings; correct classes and speakers there.\n"
    if not clips["emotion"].str.match(EMOTION).any():
        verdict += "No class has the name of an emotion: are these classes what you want?\n"
    verdict += f"Next, about {minutes:.0f} min if nothing else runs: samsg reproduce --profile {profile_path}"
    return Report(str(folder), files, verdict, 0).text()


def guess_labels(folder: Path) -> pd.DataFrame:
    """Path, clip, emotion, speaker and sentence of every sound below a folder; '' is unknown."""
    for corpus in GRAMMARS:
        table = parse_folder(folder, corpus)
        if (table["clip"] == "").mean() < 0.1:
            return table
    table = table.assign(clip=table["path"], emotion="", speaker="", sentence="")
    # Candidates: each folder; each word of the last folder and the name, with and without digits; from both ends.
    parts = table["path"].map(lambda path: Path(path).with_suffix("").parts)
    words = parts.str[-2:].str.join("/").str.findall("[^-_. /]+")
    letters = words.map(lambda row: [word.rstrip("0123456789") or None for word in row])
    kinds = {"folder": parts.str[:-1], "word": words, "letters": letters}
    columns = {(kind, place): kinds[kind].str[place] for kind in kinds for place in (*range(5), *range(-5, 0))}
    ranks = {}
    for key, column in columns.items():
        counts = column.value_counts()
        if 2 <= len(counts) <= 20 and counts.median() >= FEWEST and counts.sum() > 0.9 * len(table):
            # Names of emotions first, then folders, then the fewest values.
            ranks[key] = counts.index.str.match(EMOTION).mean() > 0.5, key[0] == "folder", -len(counts)
    if not ranks:
        return table
    emotion = columns[max(ranks, key=ranks.__getitem__)]
    common = emotion[emotion.map(emotion.value_counts()) >= FEWEST]
    for column in columns.values():
        # Speakers have several classes each, and two clips of a class on average; a take or a sentence has one.
        pairs = pd.crosstab(column, common).loc[lambda pairs: (pairs > 0).sum(axis=1) > 1]
        if len(pairs) > 1 and pairs.to_numpy().sum() >= max(0.9 * len(common), 2 * pairs.size):
            return table.assign(emotion=emotion, speaker=column).fillna("")
    return table.assign(emotion=emotion).fillna("")
