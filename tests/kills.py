"""Runs that are killed, and what is left of them: for tests/test_interruption.py, and longer on its own.

    python -m tests.kills --times 200            # kill -9 at random moments, the same ones for the same --seed
    python -m tests.kills --every masks probe    # kill -9 before each single change of a file in these stages
    python -m tests.kills --threads 1 1 2 2      # no kill: what differs between runs with so many threads

A run is a process of its own, forked from one that has torch in memory already.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import yaml

import samsg
from samsg.settings import SamsgError

CLASSES = {"high": 2000, "low": 300, "middle": 900}  # Hz
STAGES = ("waveforms", "spectrograms", "baseline", "rollout", "masks", "samsg", "probe")
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}  # and files opened to be written
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["samsg.training.stages"])


def write_tones(folder: Path, each: int = 24) -> Path:
    """Three classes of noisy tones, more than a batch of the store, and a profile that trains on them: its file."""
    random, lines = np.random.default_rng(0), ["path,emotion"]
    folder.mkdir(parents=True)
    for emotion, frequency in CLASSES.items():
        for number in range(each):
            tone = 0.3 * np.sin(2 * np.pi * frequency * random.uniform(0.9, 1.1) * np.arange(8000) / 16_000)
            soundfile.write(folder / f"{emotion}{number}.wav", tone + 0.01 * random.standard_normal(8000), 16_000)
            lines.append(f"{emotion}{number}.wav,{emotion}")
    (folder / "tones.csv").write_text("\n".join(lines))
    profile = {
        "extends": "smoke",
        "corpora": {"tones": {"reader": str(folder / "tones.csv")}},
        "audio": {"seconds": 0.5, "hop": 256},
        "model": {"depth": 1},
        "training": {"epochs": 4, "halve_every": 2, "precision": "32-true", "device": "cpu", "lr": 1e-3, "warmup": 5},
        "samsg": {"epochs": 3},
        "probe": {"epochs": 3},
    }
    (folder / "tones.yaml").write_text(yaml.safe_dump(profile))
    return folder / "tones.yaml"


def stage_folder(home: Path, stage: str) -> Path:
    corpus = home / "runs/tones/tones"
    return (corpus if stage in ("waveforms", "spectrograms") else corpus / "random/seed0") / stage


def whole_run(profile: Path, home: Path, say: Connection, kill_at: tuple[str, int] | None, threads: int) -> None:
    """All stages, in a process of their own, whose exit code is 1 after an error of the library, 3 after another.

    Says of each stage when it is asked for, and when it is worked on, and at the end how many changes to files it made.

    Args:
        kill_at: a stage and a number: just before that change to a file in it, the process ends as by kill -9.
    """
    os.environ |= {"SAMSG_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = sys.stderr = (home.parent / f"{home.name}.log").open("a", buffering=1)
    import torch

    from samsg.training import stages

    torch.set_num_threads(threads)
    changes: Counter[str] = Counter()
    at = ""

    def count(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(str(home)):
            changes[at] += 1
            if kill_at == (at, changes[at]):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    run = samsg.open_run(samsg.load_profile(profile), "tones")
    make = run.make

    def made(name: str, work: Callable[[Path], None], **options: bool) -> Path:
        nonlocal at
        at = name
        say.send(name)

        def said(folder: Path) -> None:
            say.send(f"work on {name}")
            work(folder)

        return make(name, said, **options)

    object.__setattr__(run, "make", made)
    try:
        stages.prepare(run)
        stages.train_baseline(run)
        stages.compute_rollout(run)
        stages.compute_masks(run)
        stages.train_samsg(run)
        stages.train_probe(run)
    except SamsgError as error:
        print(f"samsg: {error}")
        sys.exit(1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(3)
    say.send(dict(changes))


def start(
    profile: Path, home: Path, kill_at: tuple[str, int] | None = None, threads: int = 1
) -> tuple[BaseProcess, Connection]:
    """A process that makes all stages of a run, and what it says."""
    home.mkdir(parents=True, exist_ok=True)
    heard, say = FORK.Pipe(duplex=False)
    process = FORK.Process(target=whole_run, args=(profile, home, say, kill_at, threads))
    process.start()
    say.close()
    return process, heard


def undisturbed(profile: Path, home: Path) -> tuple[dict[str, float], dict[str, int]]:
    """A run that nobody kills: how long each stage took (s), and how many changes to files it made."""
    process, heard = start(profile, home)
    begun = {}
    while not isinstance(said := heard.recv(), dict):
        begun.setdefault(said, time.perf_counter())
    ends = [*(begun[stage] for stage in STAGES[1:]), time.perf_counter()]
    process.join()
    return {stage: end - begun[stage] for stage, end in zip(STAGES, ends, strict=True)}, said


def finish(profile: Path, home: Path, threads: int = 1) -> None:
    """Let a run end."""
    process, _ = start(profile, home, threads=threads)
    process.join()
    assert process.exitcode == 0, log(home)[-3000:]


def log(home: Path) -> str:
    """What the runs of a home said."""
    return (home.parent / f"{home.name}.log").read_text()


def kept(home: Path) -> dict[str, float]:
    """How far each stage is: epochs, batches or clips that need not be done again; infinitely, when it is whole."""
    import torch

    far = {}
    for stage in STAGES:
        folder = stage_folder(home, stage)
        partial = folder.with_name(f"{stage}.partial")
        if folder.is_dir():
            far[stage] = np.inf
        elif (partial / "checkpoint.pt").is_file():
            far[stage] = len(torch.load(partial / "checkpoint.pt")["history"])
        elif (partial / "journal.jsonl").is_file():
            notes = (partial / "journal.jsonl").read_bytes()
            far[stage] = notes.count(b"\n") if stage == "waveforms" else len(notes) // 4
        else:
            far[stage] = 0
    return far


def results(home: Path) -> dict[str, bytes]:
    """Every file below the runs, as bytes, without times: seconds of histories, and when what was made."""
    found = {}
    for path in sorted((home / "runs").rglob("*")):
        if not path.is_file() or path.suffix == ".lock":
            continue
        content = path.read_bytes()
        if path.name == "history.csv":
            content = pd.read_csv(path, dtype=str).drop(columns="seconds").to_csv().encode()
        elif path.name == "run.json":
            record = yaml.safe_load(content)
            content = repr([record["corpus_fingerprint"], sorted(record["stages"])]).encode()
        found[str(path.relative_to(home))] = content
    return found


def differences(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """The files that one of two has alone, or that differ."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def kill_after(process: BaseProcess, heard: Connection, stage: str, seconds: float, number: int) -> bool:
    """Send a signal some seconds after a stage began; whether the process was still at work.

    Again, until it ends: Python drops a Ctrl-C that comes just when it removes an object.
    """
    try:
        while heard.recv() != stage:
            pass
    except EOFError:
        return False
    process.join(seconds)
    alive = process.is_alive()
    while process.is_alive():
        os.kill(process.pid, number)
        process.join(1)
    return alive


def killed_run(
    profile: Path,
    home: Path,
    lasting: dict[str, float],
    changes: dict[str, int],
    times: int,
    random: np.random.Generator,
) -> Counter[str]:
    """Kill a run in every stage, ``times`` in all, half of them at a random time and half before a random change to a
    file, and let it end: how often it was killed, by stage.

    Raises:
        AssertionError: something that was kept was lost.
    """
    killed: Counter[str] = Counter()
    for stage in STAGES:
        share = times * (STAGES.index(stage) + 1) // len(STAGES)
        while sum(killed.values()) < share:
            before = kept(home) if home.exists() else dict.fromkeys(STAGES, 0)
            if before[stage] == np.inf:
                shutil.rmtree(stage_folder(home, stage))  # it was faster than the kills that it is to be given
                before[stage] = 0
            if random.random() < 0.5:
                process, _ = start(profile, home, (stage, int(random.integers(1, changes[stage] + 1))))
                process.join()
                was = process.exitcode == -signal.SIGKILL
            else:
                process, heard = start(profile, home)
                was = kill_after(process, heard, stage, random.uniform(0, lasting[stage]), signal.SIGKILL)
            assert process.exitcode in (0, -signal.SIGKILL), log(home)[-3000:]
            after = kept(home)
            lost = [each for each in STAGES if after[each] < before[each]]
            assert not lost, f"{lost}: {before} became {after}"
            killed[stage] += was
    finish(profile, home)
    return killed


def each_change(profile: Path, home: Path, stage: str, numbers: Iterable[int]) -> Iterator[tuple[int, list[str]]]:
    """Kill a run before each of these changes to a file that it makes in a stage, every time from where the stage
    begins, and let the stage end: the number, and the files that came out otherwise than without the kill."""
    copy, before = home.with_name("copy"), home.with_name("before")

    def until(place: Path, moment: tuple[str, int] | None) -> None:
        process, _ = start(profile, place, moment)
        process.join()
        assert process.exitcode == (0 if moment is None else -signal.SIGKILL), log(place)[-3000:]

    end = None if stage == STAGES[-1] else (STAGES[STAGES.index(stage) + 1], 1)
    until(home, (stage, 1))
    shutil.copytree(home, before)
    until(home, end)
    wanted = results(home)
    for number in numbers:
        shutil.copytree(before, copy)
        until(copy, (stage, number))
        until(copy, end)
        yield number, differences(results(copy), wanted)
        shutil.rmtree(copy)
    shutil.rmtree(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=200, help="kills at random moments")
    parser.add_argument("--a-run", type=int, default=28, help="of them in each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", choices=STAGES, nargs="+", help="instead: before each change to a file in a stage")
    parser.add_argument("--threads", type=int, nargs="*", help="instead: whole runs with these numbers of threads")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        profile = write_tones(folder / "tones")
        if asked.threads:
            first = folder / "0"
            for number, threads in enumerate(asked.threads):
                home = folder / str(number)
                finish(profile, home, threads)
                differing = differences(results(home), results(first))
                print(f"{threads} threads, against {asked.threads[0]}: {differing or 'the same bytes'}", flush=True)
                files = [stage_folder(place, "probe") / "predictions.csv" for place in (home, first)]
                found, wanted = (pd.read_csv(file).filter(like="p_") for file in files)
                furthest = (found - wanted).abs().max(axis=None)
                print(f"  largest difference of a probability: {furthest:.1e}")
            return
        lasting, changes = undisturbed(profile, folder / "undisturbed")
        wanted = results(folder / "undisturbed")
        print("seconds a stage:", {stage: round(seconds, 2) for stage, seconds in lasting.items()})
        print("changes to files a stage:", changes, flush=True)
        if asked.every:
            kills = wrong = 0
            for stage in asked.every:
                numbers = range(1, changes[stage] + 1)
                for number, differing in each_change(profile, folder / "every", stage, numbers):
                    kills, wrong = kills + 1, wrong + bool(differing)
                    if differing:
                        print(f"killed before change {number} of {stage}: {differing}", flush=True)
                print(f"{stage}: {changes[stage]} kills", flush=True)
            print(f"{kills} kills, each before another change to a file; {wrong} ended otherwise")
            sys.exit(bool(wrong))
        random, killed, number = np.random.default_rng(asked.seed), Counter(), 0
        while sum(killed.values()) < asked.times:
            home = folder / f"killed{number}"
            some = min(asked.a_run, asked.times - sum(killed.values()))
            killed += killed_run(profile, home, lasting, changes, some, random)
            differing = differences(results(home), wanted)
            print(f"run {number}: {some} kills, differing files: {differing or 'none'}", flush=True)
            if differing:
                sys.exit(1)
            shutil.rmtree(home)
            number += 1
        print(f"{sum(killed.values())} kills over {number} runs: {dict(killed)}")


if __name__ == "__main__":
    main()
