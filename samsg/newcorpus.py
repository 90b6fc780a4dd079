"""A corpus of one's own from a folder of recordings: guess classes and speakers, write a CSV and a profile."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
import yaml

from samsg.corpora import FEWEST, GRAMMARS, Report, check_files, parse_folder
from samsg.settings import SamsgError, home, profile_names
from samsg.storage import atomic

EMOTION = re.compile("ang|fea|hap|joy|sad|neu|sur|bor|calm|disg", re.IGNORECASE)  # how names of emotions begin
SECONDS_PER_CLIP, SECONDS_TO_START = 0.014, 150  # of an epoch; of the notebooks: data/README.md, Time


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
        raise SamsgError(
            f"{folder} has {len(files)} sounds, but no two classes in paths; write a CSV (path,emotion)."
        )
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
    verdict += f"Next, about {minutes:.0f} min if nothing else runs: samsg reproduce --profile {profile_path}"
    return Report(str(folder), files, verdict, 0).text()


def guess_labels(folder: Path) -> pd.DataFrame:
    """Path, clip, emotion, speaker and sentence of every sound below a folder; '' is unknown."""
    for corpus in GRAMMARS:
        table = parse_folder(folder, corpus)
        if (table["clip"] == "").mean() < 0.1:
            return table
    table = table.assign(clip=table["path"], emotion="", speaker="", sentence="")
    # Classes and speakers are values of a folder or of a word of the last folder and the name, counted from both ends.
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
