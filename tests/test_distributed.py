"""Several processes on one batch give the losses of one process; a run's jobs can be handed to a cluster's queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tones import write_corpus

from samsg.settings import REPOSITORY

SAMSG = str(Path(sys.executable).parent / "samsg")


def samsg(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAMSG_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([SAMSG, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.mark.parametrize("batch", [5, 27])
def test_two_processes_on_one_batch_learn_as_one_does(tmp_path: Path, batch: int) -> None:
    """28 clips: batches of 5 are dealt 3 and 2, and a last one of 3; of 27, that last one has a clip for one alone."""
    folders = {}
    for devices in (1, 2):
        home = tmp_path / str(devices)
        home.mkdir()
        profile = write_corpus(home)
        text = yaml.safe_load(profile.read_text())
        text["training"]["batch"] = batch
        profile.write_text(yaml.safe_dump(text))
        said = samsg(home, "train", "--profile", str(profile), "--devices", str(devices)).stdout
        assert said.count("tones, random, seed 0: ") == 1
        folders[devices] = home / "runs/tones/tones/random/seed0"
    for stage in ("baseline", "samsg", "probe"):
        assert json.loads((folders[2] / stage / "arithmetic.json").read_text())["processes"] == 2
        one, two = (pd.read_csv(folders[devices] / stage / "history.csv").drop(columns="seconds") for devices in (1, 2))
        # The same sums, added in another order in single precision, through some dozens of steps of Adam.
        np.testing.assert_allclose(two, one, rtol=1e-3)
        first, second = (pd.read_csv(folders[devices] / stage / "predictions.csv") for devices in (1, 2))
        assert first["clip"].equals(second["clip"])
        np.testing.assert_allclose(second.filter(like="p_"), first.filter(like="p_"), atol=2e-3)


def test_what_fails_in_the_first_process_ends_the_others_with_its_words(tmp_path: Path) -> None:
    """What one process does alone, such as reading the corpus: the others would wait for it for two hours."""
    profile = write_corpus(tmp_path)
    (tmp_path / "high3.wav").unlink()
    environment = {**os.environ, "SAMSG_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [SAMSG, "train", "--profile", str(profile), "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 1
    words = f"{tmp_path}/tones.csv lists 1 files that are not below {tmp_path}, such as high3.wav"
    assert f"samsg: {words}" in done.stderr
    assert f"samsg: Stage 'waveforms' failed in the first process: {words}" in done.stderr
    assert "Traceback" not in done.stderr


def test_jobs_go_through_a_cluster_queue(tmp_path: Path) -> None:
    """A queue whose submit command notes the job and runs it: the way that SLURM's goes, but for SLURM."""
    profile, cluster = write_corpus(tmp_path), tmp_path / "queue"
    cluster.mkdir()
    (cluster / "submit.sh").write_text(f'echo "$1" >> {tmp_path}/submitted\nsh "$1" > {tmp_path}/log 2>&1\n')
    submit = {"executor": "cluster-generic", "cluster-generic-submit-cmd": f"sh {cluster}/submit.sh", "jobs": 1}
    (cluster / "config.yaml").write_text(yaml.safe_dump({**submit, "latency-wait": 5}))
    planned = samsg(tmp_path, "reproduce", "--profile", str(profile), "--cluster", str(cluster), "--dry-run")
    assert "07_tables_and_figures: random" in planned.stdout + planned.stderr
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(REPOSITORY / "Snakefile"),
        "--profile",
        str(cluster),
    ]
    command += ["--directory", str(tmp_path), "--until", "data_preparation"]
    command += ["--config", f"profile={profile}", "corpora=tones", "protocol=random", "seeds=0", "threads=1"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "SAMSG_HOME": str(tmp_path), "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert len((tmp_path / "submitted").read_text().splitlines()) == 1
    assert (tmp_path / "runs/tones/tones/spectrograms/views.npy").is_file()
