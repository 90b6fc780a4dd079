"""What docs/reliability.md promises, a test each: kills, full disks, two processes, hostile files, a queue of jobs."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from toys import write_tone_corpus

import samsg
from samsg import cli
from samsg.settings import SamsgError
from samsg.stages import STAGES, Run
from samsg.storage import write_json

PROCESSES = multiprocessing.get_context("forkserver")  # a process takes 0.1 s to start: torch is imported once
PROCESSES.set_forkserver_preload(["samsg.stages"])
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}  # and files opened for writing


def run_all(home: Path, kill_at: int = 0, largest_file: int = 0) -> None:
    """All stages of the toy run, in a process of its own that writes home.log; exit code 1 after a SamsgError.

    The process is killed just before change ``kill_at`` to a file; files over ``largest_file`` bytes cannot be written.
    """
    os.environ["SAMSG_HOME"] = str(home)
    sys.stdout = sys.stderr = home.with_suffix(".log").open("a", buffering=1)
    torch.set_num_threads(1)
    changes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(str(home)):
            changes += 1
            if changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    make = Run.make

    def noted_make(run: Run, name: str, work: Any, *fingerprint: str) -> Path:
        return make(run, name, lambda folder: print(f"work on {name}") or work(folder), *fingerprint)

    Run.make = noted_make  # type: ignore[method-assign]
    try:
        samsg.run_stages(samsg.open_run(home / "tones.yaml", "tones"))
    except OSError as error:
        print(f"samsg: {error}")
        sys.exit(1)


def finish(home: Path, processes: int = 1, **options: int) -> list[int | None]:
    """Run all stages, or as many as the options allow, in processes at the same time: their exit codes."""
    started = [PROCESSES.Process(target=run_all, args=(home,), kwargs=options) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def results(home: Path) -> dict[str, bytes]:
    """Every file of the runs, without the times in it."""
    # A kill between a stage's completion and the removal of its checkpoint leaves that file.
    left_out, found = ("record.json", "checkpoint.pt"), {}
    for path in sorted((home / "runs").rglob("*.*")):
        if path.name == "history.csv":
            found[str(path.relative_to(home))] = pd.read_csv(path, dtype=str).drop(columns="seconds").to_csv().encode()
        elif path.suffix != ".lock" and path.name not in left_out:
            found[str(path.relative_to(home))] = path.read_bytes()
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A home folder with the toy corpus and no run."""
    (tmp_path / "home").mkdir()
    return write_tone_corpus(tmp_path / "home").parent


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(corpus: Path, finished: Path) -> None:
    """SIGKILL just before every 31st change to a file, from wherever the kill before left off."""
    kills = 0
    while finish(corpus, kill_at=31) == [-signal.SIGKILL]:
        kills += 1
        assert kills < 20, "a rerun must keep the epochs and stages before the kill"
    log = corpus.with_suffix(".log").read_text()
    assert kills >= 3 and log.count("work on baseline") > 1
    assert results(corpus) == results(finished)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(finished: Path, corpus: Path, monkeypatch) -> None:
    assert finish(corpus) == [0]
    assert results(corpus) == results(finished)
    monkeypatch.setenv("SAMSG_HOME", str(corpus))
    runs = [samsg.open_run(corpus / "tones.yaml", "tones", "random", seed) for seed in (0, 1)]
    first, second = ((samsg.train_baseline(run) / "model.safetensors").read_bytes() for run in runs)
    assert first != second


def test_two_processes_on_one_run_do_each_stage_once(corpus: Path, finished: Path) -> None:
    assert finish(corpus, processes=2) == [0, 0]
    log = corpus.with_suffix(".log").read_text()
    assert {name: log.count(f"work on {name}\n") for name in STAGES} == dict.fromkeys(STAGES, 1)
    assert "waiting for another process" in log
    assert results(corpus) == results(finished)


def test_a_disk_without_room_is_one_error_and_nothing_is_lost(corpus: Path, finished: Path) -> None:
    """Limits on the size of a file stand for a full disk: the spectrograms are 1.3 MB, a model 2 MB."""
    for number, (limit, name) in enumerate(((10**6, "spectrograms"), (15 * 10**5, "baseline")), 1):
        assert finish(corpus, largest_file=limit) == [1]
        log = corpus.with_suffix(".log").read_text()
        assert re.findall(r"work on (\w+)", log)[-1] == name
        assert log.count("\nsamsg: [Errno 27] File too large") == number and "Traceback" not in log
    assert finish(corpus) == [0]
    assert corpus.with_suffix(".log").read_text().count("work on spectrograms") == 2  # only the first one failed
    assert results(corpus) == results(finished)


class Malicious:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_refused(copied_run: Run, home: Path) -> None:
    trace = home / "trace"
    torch.save({"model": Malicious(trace)}, home / "bad.pt")
    torch.load(home / "bad.pt", weights_only=False)  # this is what it does
    trace.unlink()
    # A model of a stage, a checkpoint of an interrupted stage, and weights to start from.
    shutil.copy(home / "bad.pt", copied_run.stage_folder("baseline") / "model.safetensors")
    with pytest.raises(SamsgError, match=r"model\.safetensors does not hold the model of stage 'baseline'"):
        samsg.load_model(copied_run, "baseline")
    shutil.rmtree(copied_run.stage_folder("baseline"))
    partial = copied_run.stage_folder("baseline").with_name("baseline.partial")
    write_json(partial / "settings.json", copied_run.identity("baseline"))
    shutil.copy(home / "bad.pt", partial / "checkpoint.pt")
    with pytest.raises(SamsgError, match=r"checkpoint\.pt is damaged, or holds more than tensors; remove"):
        samsg.train_baseline(copied_run)
    with pytest.raises(SamsgError, match=r"bad\.pt' could not be loaded"):
        samsg.SpectrogramDeiT(3, "tiny", depth=1, weights=home / "bad.pt")
    assert not trace.exists()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "text": lambda content: b"this is not a model",
    "cut": lambda content: content[: len(content) // 2],
    "huge header": lambda content: b"\xff" * 7 + b"\x7f" + content[8:],
    "other shape": lambda content: content.replace(b"[3,192]", b"[192,3]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_refused(copied_run: Run, damage: Callable[[bytes], bytes]) -> None:
    path = copied_run.stage_folder("probe") / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    with pytest.raises(SamsgError, match=r"model\.safetensors does not hold the model of stage 'probe': "):
        samsg.load_model(copied_run, "probe")


def test_runs_go_through_a_clusters_queue(copied_run: Run, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A queue whose submit command notes the job and runs it, as SLURM's would on another machine.

    Of the profile's two corpora one is finished, and another command is still running.
    """
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    corpus = {"reader": str(home / "tones.csv"), "note": "toy"}
    profile = home / "tones.yaml"
    changes = {"corpora": {"tones": corpus, "more": corpus}}
    profile.write_text(yaml.safe_dump({**yaml.safe_load(profile.read_text()), **changes}))
    locks, queue = home / ".snakemake/locks", home / "queue"
    for folder in (locks, queue):
        folder.mkdir(parents=True)
    (locks / "0.output.lock").write_text(f"{home}/runs/tones/notebooks/random/07_tables_and_figures.ipynb\n")
    (queue / "submit.sh").write_text(f'echo "$1" >> {queue}/submitted\nsh "$1" > {queue}/job.log 2>&1\n')
    submit = {"executor": "cluster-generic", "cluster-generic-submit-cmd": f"sh {queue}/submit.sh", "jobs": 1}
    (queue / "config.yaml").write_text(yaml.safe_dump({**submit, "cores": 1, "seconds-between-status-checks": 1}))
    cli.reproduce(str(profile), corpora="more", cluster=queue)
    assert len((queue / "submitted").read_text().splitlines()) == 2  # the run, then tables and figures
    notebook = home / f"runs/tones/more/random/seed0/notebooks/{STAGES['spectrograms'].notebook}.ipynb"
    assert json.loads(notebook.read_text())["metadata"]["papermill"]["exception"] is None
    assert (home / "runs/tones/more/spectrograms/views.f16").is_file()
    printed = capsys.readouterr().out
    assert re.search(r"^\[1/7\] more  stage i  done in \d+ s", printed, re.MULTILINE)  # of this call's notebooks
    assert "more (toy)" in printed and "tones (toy)" not in printed and "DeiT (this run)" in printed
    for number in (1, 2):
        table = pd.read_csv(home / f"paper_figures/tones/table{number}.csv")
        assert {"tones (toy)", "more (toy)"} <= set(table.columns)
