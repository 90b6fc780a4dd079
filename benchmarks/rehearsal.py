"""The paper profile at full size, rehearsed: noise of the corpora's names and lengths, random weights, a few epochs.

    python -m benchmarks.rehearsal --device cuda

Times every stage, and extrapolates the stages that train to the paper's 25 epochs. Nothing is learned from noise.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import numpy as np
import pandas as pd
import soundfile
import torch

import samsg
from samsg.corpora import official_list
from samsg.stages import WORK

TRAINING = ("baseline", "samsg", "probe")
EPOCHS = 25


def write_noise(run: samsg.Run, share: float) -> None:
    """Noise under the corpus's official names, of the listed rates and lengths; a share of each emotion's clips."""
    files = official_list(run.corpus).groupby("emotion").sample(frac=share, random_state=0)
    noise = 0.1 * np.random.default_rng(0).standard_normal(11 * 44_100).astype(np.float32)
    for start, file in enumerate(files.itertuples()):  # each clip differs: equal sounds are refused
        path = run.profile.root(run.corpus) / file.file
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise[start : start + file.frames], file.sample_rate)


def rehearse(profile: samsg.Profile, share: float) -> pd.DataFrame:
    """Seconds of every stage of every corpus, as run and as extrapolated to 25 epochs."""
    rows = []
    for corpus in profile.corpora:
        run = samsg.open_run(profile, corpus)
        write_noise(run, share)
        for stage, work in WORK.items():
            start_time = time.perf_counter()
            work(run)
            duration = time.perf_counter() - start_time
            factor = EPOCHS / profile.training.epochs if stage in TRAINING else 1
            rows.append({"corpus": corpus, "stage": stage, "seconds": duration, "at 25 epochs": factor * duration})
    return pd.DataFrame(rows)


def main() -> None:
    """Rehearse, and print a table with its total and the memory that a GPU needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--share", type=float, default=1.0, help="of each corpus's clips")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SAMSG_HOME"] = home
        profile = samsg.load_profile(
            options.profile,
            model={"weights": "random"},
            corpora={name: {"synthetic": None, "root": f"{home}/{name}"} for name in ("savee", "emodb", "crema_d")},
            training={"epochs": options.epochs, "device": options.device},
            samsg={"epochs": None},
            probe={"epochs": None},
        )
        table = rehearse(profile, options.share)
    print(table.round(1).to_string(index=False))
    total = table["at 25 epochs"].sum() / 60
    print(f"\nOne seed of all three corpora: {total:.1f} minutes, extrapolated from {options.epochs} epochs of noise.")
    if torch.cuda.is_available():
        print(f"GPU memory at most: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB.")


if __name__ == "__main__":
    main()
