"""The studies on real speech: does SAMSG gain, and is it the masks? (docs/results.md)

    python tools/claim.py                                   # everything, fold by fold: hours on two cores
    python tools/claim.py emodb_2s/speaker ravdess/sentence  # two of the studies
    python tools/claim.py --small                           # one short fold of each study: minutes

The recordings are looked for in data/, then in --shared. After every fold the tables of the study are written again, to
paper_figures/<profile>/<corpus>_claim_<protocol>_predictions.csv.xz and _training.csv.xz. An interrupted call goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

from samsg import studies
from samsg.corpora import find_sounds, parse_path
from samsg.settings import Profile, SamsgError, home, load_profile
from samsg.stages import open_run

SHARED = {"emodb_2s": "emodb_first2s", "emodb_whole": "emodb_whole", "ravdess": "ravdess"}  # data/... : shared folder
STUDIES = {  # study: seeds. Of 'speaker' and 'sentence' a seed is a fold.
    "emodb_2s/speaker": range(5),
    "ravdess/sentence": range(2),
    "ravdess_long/sentence": range(2),
    "emodb_2s/random": range(5),
    "ravdess/random": range(2),
    "emodb_whole/speaker": range(5),
    "emodb_2s/sentence": range(5),
    "emodb_whole/random": range(5),
    "ravdess/speaker": range(5),
}


def find_recordings(shared: Path) -> None:
    """Link recordings that data/ lacks, and list those of emodb_whole, which lacks emotions, in a CSV."""
    for name, folder in SHARED.items():
        target = home() / "data" / name
        if not target.exists() and (shared / folder).is_dir():
            target.parent.mkdir(exist_ok=True)
            target.symlink_to((shared / folder).resolve())
    whole_folder = home() / "data" / "emodb_whole"
    if not whole_folder.is_dir():
        return
    clips = pd.DataFrame({"path": path, **(parse_path(path, "emodb") or {})} for path in find_sounds(whole_folder))
    is_frequent = clips.groupby("emotion")["path"].transform("size") >= 20  # single clips of the other emotions
    clips.loc[is_frequent, ["path", "emotion", "speaker", "sentence"]].to_csv(f"{whole_folder}.csv", index=False)


def shorten(profile: Profile) -> Profile:
    """The profile with one epoch a stage and two blocks, under a name of its own."""
    one = {"epochs": 1}
    return load_profile(
        profile.name, name=f"{profile.name}_small", training=one, samsg=one, probe=one, model={"depth": 2}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="*", default=list(STUDIES), help=", ".join(STUDIES))
    parser.add_argument("--small", action="store_true", help="one fold of each study, one epoch a stage, two blocks")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the recordings")
    options = parser.parse_args()
    find_recordings(options.shared)
    for study in options.study:
        name, protocol = study.split("/")
        profile, runs = load_profile(name), []
        if options.small:
            profile = shorten(profile)
        for seed in list(STUDIES[study])[: 1 if options.small else None]:
            start_time = time.time()
            runs.append(open_run(profile, next(iter(profile.corpora)), protocol, seed))
            studies.run_study(runs[-1:], "claim")
            studies.write_study(runs, "claim")
            print(f"\n== {study} seed {seed}: {time.time() - start_time:.0f} s", flush=True)
        reference = studies.LONG.title
        print(
            studies.printable(studies.compare(studies.study_predictions(runs, "claim"), protocol, reference), reference)
        )


if __name__ == "__main__":
    try:
        main()
    except SamsgError as error:  # recordings are missing
        sys.exit(f"claim.py: {error}")
