"""The paper profile at full size, rehearsed: noise of the corpora' names and lengths, random weights, a few epochs.

    python -m benchmarks.rehearsal --device cuda

Times every stage and extrapolates those that have epochs to the paper's 25. Nothing is learnt: the sounds are noise.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

import samsg
from samsg.corpora.verify import official_list

STAGES = {
    "prepare": samsg.prepare,
    "baseline": samsg.train_baseline,
    "rollout": samsg.compute_rollout,
    "masks": samsg.compute_masks,
    "samsg": samsg.train_samsg,
    "probe": samsg.train_probe,
}


def write_noise(corpus: str, root: Path, share: float) -> None:
    """Noise under the corpus' official names, of the listed rates and lengths; a share of each emotion's clips."""
    listed = official_list(corpus).groupby("emotion").sample(frac=share, random_state=0)
    noise = 0.1 * np.random.default_rng(0).standard_normal(10 * 44_100).astype(np.float32)
    for number, file in enumerate(listed.itertuples()):
        (root / file.file).parent.mkdir(parents=True, exist_ok=True)
        # Each from a place of its own: the same sound twice would be refused.
        soundfile.write(root / file.file, np.roll(noise, -7 * number)[: file.frames], file.sample_rate)


def rehearse(profile: samsg.Profile, share: float) -> pd.DataFrame:
    """Seconds of every stage of every corpus, as run and as extrapolated to 25 epochs."""
    rows = []
    for corpus in profile.corpora:
        write_noise(corpus, profile.root(corpus), share)
        run = samsg.open_run(profile, corpus)
        for stage, work in STAGES.items():
            started = time.perf_counter()
            work(run)
            taken = time.perf_counter() - started
            factor = 25 / profile.training.epochs if stage in ("baseline", "samsg", "probe") else 1
            rows.append({"corpus": corpus, "stage": stage, "seconds": taken, "at 25 epochs": factor * taken})
    return pd.DataFrame(rows)


def main() -> None:
    """Rehearse, and print a table with its totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--share", type=float, default=1.0, help="of each corpus' clips")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SAMSG_HOME"] = home
        profile = samsg.load_profile(
            asked.profile,
            model={"weights": "random"},
            corpora={name: {"synthetic": None, "root": f"{home}/{name}"} for name in ("savee", "emodb", "crema_d")},
            training={"epochs": asked.epochs, "device": asked.device},
            samsg={"epochs": None},
            probe={"epochs": None},
        )
        table = rehearse(profile, asked.share)
    print(table.round(1).to_string(index=False))
    total = table["at 25 epochs"].sum() / 60
    print(f"\nOne seed of all three corpora: {total:.1f} minutes, extrapolated from {asked.epochs} epochs of noise.")


if __name__ == "__main__":
    main()
