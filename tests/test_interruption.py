"""A night-long run is killed, a disk fills up: nothing is lost, and nothing is silently wrong (docs/reliability.md)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import kills
import numpy as np
import pandas as pd
import psutil
import pytest
from kills import STAGES, differences, finish, kept, kill_after, killed_run, log, results, stage_folder, start

import samsg
from samsg import runs
from samsg.audio.store import WaveformStore, write_spectrograms, write_store
from samsg.corpora.catalogue import read_corpus
from samsg.runs import atomic, stage
from samsg.settings import REPOSITORY, SamsgError


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile that trains on tones."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    return kills.write_tones(tmp_path_factory.mktemp("corpus") / "tones")


@pytest.fixture(scope="module")
def undisturbed(tones: Path) -> tuple[dict[str, float], dict[str, int], dict[str, bytes]]:
    """Of a run that nobody kills: seconds and changes to files, by stage, and all its files."""
    home = tones.parents[1] / "undisturbed"
    lasting, changes = kills.undisturbed(tones, home)
    return lasting, changes, results(home)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A home folder on a disk of its own, of 64 MB."""
    home = tmp_path / "home"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", home], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk that can be filled needs the right to mount one: {mounted.stderr.decode().strip()}")
    yield home
    subprocess.run(["umount", home], check=True)


# Kills


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tones, undisturbed, tmp_path):
    lasting, changes, wanted = undisturbed
    killed = killed_run(tones, tmp_path / "home", lasting, changes, 28, np.random.default_rng(0))
    assert killed == dict.fromkeys(STAGES, 4)
    assert differences(results(tmp_path / "home"), wanted) == []


def test_a_kill_just_before_a_stage_is_whole_costs_none_of_it(tones, undisturbed, tmp_path):
    """From the last epoch's checkpoint on: best weights, history, predictions, the record, the stage's own name."""
    _, changes, _ = undisturbed
    last = range(changes["probe"] - 21, changes["probe"] + 1, 3)
    assert [found for found in kills.each_change(tones, tmp_path / "home", "probe", last) if found[1]] == []
    epochs = [line for line in log(tmp_path / "copy").split("\n") if "probe:" in line and "| 0/" in line]
    assert len(epochs) == len(last)  # each began at its first step once, and was not begun again


def test_ctrl_c_in_a_stage_keeps_its_epochs(tones, undisturbed, tmp_path):
    lasting, _, wanted = undisturbed
    random, home, interrupted = np.random.default_rng(1), tmp_path / "home", 0
    for name in ("waveforms", "spectrograms", "baseline", "rollout", "samsg", "probe"):
        before = kept(home)
        process, heard = start(tones, home)
        kill_after(process, heard, name, random.uniform(0, lasting[name]), signal.SIGINT)
        assert process.exitcode in (0, 3), log(home)[-3000:]
        interrupted += process.exitcode == 3
        assert all(kept(home)[each] >= before[each] for each in STAGES)
    assert interrupted >= 4
    assert log(home).count("\nKeyboardInterrupt") >= interrupted
    finish(tones, home)
    assert differences(results(home), wanted) == []


def test_ctrl_c_ends_the_command_with_one_line(tones, undisturbed, tmp_path):
    home = tmp_path / "home"
    environment = {**os.environ, "SAMSG_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "samsg"), "train", "--profile", str(tones)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not (stage_folder(home, "baseline").with_suffix(".partial") / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    while process.poll() is None:  # again, should Python drop it: kill_after
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    _, said = process.communicate()
    assert process.returncode == 130
    said = [line for line in said.splitlines() if line]
    assert said == ["samsg: interrupted. The same command goes on from the last epoch that is kept."]
    finish(tones, home)
    assert differences(results(home), undisturbed[2]) == []


def test_a_notebook_whose_kernel_is_killed_goes_on_from_its_last_epoch(tones, undisturbed, tmp_path, monkeypatch):
    papermill = pytest.importorskip("papermill")
    home = tmp_path / "home"
    process, _ = start(tones, home, ("baseline", 1))
    process.join()
    monkeypatch.setenv("SAMSG_HOME", str(home))
    checkpoint = stage_folder(home, "baseline").with_suffix(".partial") / "checkpoint.pt"

    def kill() -> None:
        while not checkpoint.exists():
            time.sleep(0.01)
        for child in psutil.Process().children(recursive=True):
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                child.kill()

    threading.Thread(target=kill, daemon=True).start()
    notebook = REPOSITORY / "notebooks/02_baseline.ipynb"
    with pytest.raises(Exception, match="Kernel died"):
        papermill.execute_notebook(
            notebook, tmp_path / "02.ipynb", {"profile": str(tones), "corpus": "tones"}, cwd=notebook.parent
        )
    assert 0 < kept(home)["baseline"] < np.inf
    finish(tones, home)
    assert differences(results(home), undisturbed[2]) == []


# Disks


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tones, undisturbed, small_disk):
    """Room for a little more each time, so that it is another file that finds none."""
    random, told = np.random.default_rng(2), 0
    room = np.sort(random.uniform(0, 24 * 2**20, 14).astype(int))
    for free in (0, *room):
        (small_disk / "ballast").unlink(missing_ok=True)
        left = shutil.disk_usage(small_disk).free - int(free)
        if left > 0:
            with (small_disk / "ballast").open("wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, left)
        before = len(log(small_disk)) if told else 0
        process, _ = start(tones, small_disk)
        process.join()
        said = log(small_disk)[before:]
        assert process.exitcode in (0, 1), said[-3000:]
        if process.exitcode:
            told += 1
            assert f"samsg: The disk is full: {small_disk}/runs/" in said
            assert "Make room there and run the same again; it goes on from there.\n" in said
    assert told >= 8
    (small_disk / "ballast").unlink(missing_ok=True)
    finish(tones, small_disk)
    assert differences(results(small_disk), undisturbed[2]) == []


def test_a_folder_that_may_not_be_written_to_is_told_and_what_is_whole_in_it_can_be_used(tones, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    process, _ = start(tones, small_disk)
    process.join()
    assert process.exitcode == 1
    last = log(small_disk).rstrip("\n").split("\n")[-1]
    assert last.startswith(
        f"samsg: {small_disk}/runs/tones/tones/waveforms was to be written, but {small_disk} may not"
    )
    assert "SAMSG_HOME" in last
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    process, _ = start(tones, small_disk, ("samsg", 30))
    process.join()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    process, _ = start(tones, small_disk)
    process.join()
    assert process.exitcode == 1  # all before it is whole, and was used
    assert "random/seed0/samsg was to be written, but" in log(small_disk).rstrip("\n").split("\n")[-1]
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    finish(tones, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    finish(tones, small_disk)  # nothing to do


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    synced, fsync, before = set(), os.fsync, {}

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renames(method: str):
        rename = getattr(Path, method)

        def checked(path: Path, target: Path) -> Path:
            everything = [path, *path.rglob("*")] if path.is_dir() else [path]
            before[target.name] = {each.name for each in everything if each.stat().st_ino not in synced}
            return rename(path, target)

        return checked

    monkeypatch.setattr(os, "fsync", noted)
    for method in ("replace", "rename"):
        monkeypatch.setattr(Path, method, renames(method))
    with stage(tmp_path / "baseline", {"seed": 0}) as partial:
        (partial / "history.csv").write_text("epoch\n")
        (partial / "more").mkdir()
        (partial / "more/model").write_text("weights")
        with atomic(partial / "predictions.csv") as file:
            file.write_text("clip\n")
    assert before == {"settings.json": set(), "predictions.csv": set(), "baseline": set()}


@pytest.mark.parametrize("lost", ["samples", "notes", "spectrograms", "spectrograms' header", "checksums"])
def test_what_a_power_failure_took_from_a_file_is_made_again(tones, tmp_path, lost):
    """A file may have its length and not its content then: zeros."""
    profile = samsg.load_profile(tones)
    manifest = read_corpus(str(tones.parent / "tones.csv"), tones.parent)
    folders = {name: tmp_path / name for name in ("whole", "failed")}
    for folder in folders.values():
        for part in ("waveforms", "spectrograms"):
            (folder / part).mkdir(parents=True)
        write_store(manifest, tones.parent, folder / "waveforms", profile.audio)
        store = WaveformStore(folder / "waveforms")
        write_spectrograms(store, folder / "spectrograms", profile.audio, profile.views)
    part, name = {
        "samples": ("waveforms", "samples.f32"),
        "notes": ("waveforms", "journal.jsonl"),
        "spectrograms": ("spectrograms", "views.npy"),
        "spectrograms' header": ("spectrograms", "views.npy"),
        "checksums": ("spectrograms", "journal.jsonl"),
    }[lost]
    file = folders["failed"] / part / name
    whole = file.read_bytes()
    start_of, length = (0, 64) if "header" in lost else (len(whole) // 2, 4096)
    file.write_bytes(whole[:start_of] + bytes(len(whole[start_of : start_of + length])) + whole[start_of + length :])
    assert file.read_bytes() != whole
    write_store(manifest, tones.parent, folders["failed"] / "waveforms", profile.audio)
    store = WaveformStore(folders["failed"] / "waveforms")
    write_spectrograms(store, folders["failed"] / "spectrograms", profile.audio, profile.views)
    for path in sorted(folders["whole"].rglob("*.*")):
        assert (folders["failed"] / path.relative_to(folders["whole"])).read_bytes() == path.read_bytes(), path.name


# Several processes


def test_of_two_processes_on_one_run_each_stage_is_worked_on_by_one(tones, undisturbed, tmp_path):
    both = [start(tones, tmp_path / "home") for _ in range(2)]
    said: Counter[str] = Counter()
    for process, heard in both:
        while not isinstance(word := heard.recv(), dict):
            said[word] += 1
        process.join()
        assert process.exitcode == 0
    assert {stage: said[f"work on {stage}"] for stage in STAGES} == dict.fromkeys(STAGES, 1)
    assert {stage: said[stage] for stage in STAGES} == dict.fromkeys(STAGES, 2)
    assert differences(results(tmp_path / "home"), undisturbed[2]) == []


def test_stages_that_end_at_the_same_time_are_all_recorded(home, monkeypatch):
    run = samsg.open_run("smoke", "emodb")
    monkeypatch.setattr(runs, "provenance", dict)
    names = STAGES[2:]
    together = threading.Barrier(len(names))

    def work(_: Path) -> None:
        together.wait()

    threads = [threading.Thread(target=run.make, args=(name, work)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(pd.read_json(run.folder / "run.json", typ="series")["stages"]) == set(names)


def test_what_a_killed_process_was_writing_is_removed_when_the_stage_goes_on(home):
    run = samsg.open_run("smoke", "emodb")
    partial = run.folder / "baseline.partial"

    def interrupted(folder: Path) -> None:
        (folder / ".model.safetensors.123.partial").touch()
        (run.folder / ".run.json.123.partial").touch()
        raise SamsgError("killed")

    with pytest.raises(SamsgError):
        run.make("baseline", interrupted)
    assert (partial / ".model.safetensors.123.partial").exists()
    run.make("baseline", lambda folder: None)
    assert sorted(path.name for path in run.folder.rglob("*") if path.is_file() and path.suffix != ".lock") == [
        "run.json",
        "settings.json",
    ]
