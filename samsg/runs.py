"""Where results are kept: runs/<profile>/<corpus>/<protocol>/seed<k>/<stage>/, whole or not at all.

A stage works in a folder named <stage>.partial, which is renamed when it is complete: what is named <stage> is whole.
Beside its results it keeps the settings it was made with. The same settings again: nothing to do. Others: an error
that shows the difference. What is renamed is on the disk before, so that this holds when the power fails, too.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from samsg.settings import PROTOCOLS, REPOSITORY, Profile, SamsgError, home, load_profile, nearest

# The notebook that makes each stage, for messages.
NOTEBOOKS = {
    "waveforms": "01_data_preparation",
    "spectrograms": "01_data_preparation",
    "baseline": "02_baseline",
    "rollout": "03_attention_rollout",
    "masks": "04_masking",
    "samsg": "05_self_supervised",
    "probe": "06_linear_probe",
}
# What an interrupted stage is gone on from, and is removed when it is whole.
CHECKPOINT, JOURNAL = "checkpoint.pt", "journal.jsonl"
PACKAGES = ("torch", "torchaudio", "timm", "lightning-fabric", "numpy", "scikit-learn", "soundfile")


def progress_bar(steps: Iterable[Any] | None, text: str, total: int, unit: str, done: int = 0) -> tqdm:
    """A progress bar with the time left, in plain text on standard output: it reads well in JupyterLab, on a terminal
    and in a kept notebook."""
    shape = {"file": sys.stdout, "ascii": " =", "ncols": 100, "mininterval": 1.0}
    return tqdm(steps, text, total, unit=unit, initial=done, disable=_rank() > 0, **shape)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(folder: Path, error: Exception) -> bool:
    """Whether an error is one of a full disk. Torch and numpy do not say why they could not write, but leave the disk
    full; safetensors says it, and leaves room."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
    except OSError as found:
        return _is_full(folder, found)
    return False


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A disk that is full or read-only is told in a sentence, whichever library stumbles over it.

    Raises:
        SamsgError: the disk is full, or the folder may not be written to.
    """
    try:
        yield
    except SamsgError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        there = next(place for place in (folder, *folder.parents) if place.is_dir())
        if number in (None, errno.EACCES, errno.EPERM, errno.EROFS) and not os.access(there, os.W_OK):
            raise SamsgError(
                f"{folder} was to be written, but {there} may not be written to. Make it writable, or set SAMSG_HOME "
                "to a folder that is."
            ) from error
        if _is_full(there, error):
            raise SamsgError(
                f"The disk is full: {folder} could not be written to its end. What was whole before is kept. Make room "
                "there and run the same again; it goes on from there."
            ) from error
        raise


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file under another name beside ``path`` and rename it when it is whole and on the disk.

    Raises:
        SamsgError: the disk is full, or the folder may not be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _writing(path.parent):  # inside: what was written of the file still takes its room when that is looked at
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _to_disk(partial)
            partial.replace(path)
            _to_disk(path.parent)
    finally:
        with suppress(OSError):  # such as of a read-only disk, which was told of
            partial.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, readable and in a fixed order."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _differences(found: Any, asked: Any, place: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(asked, dict):
        for key in sorted(found.keys() | asked.keys()):
            yield from _differences(found.get(key), asked.get(key), f"{place}.{key}" if place else key)
    elif found != asked:
        yield f"{place} was {found!r} and is now {asked!r}"


def finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a stage's folder is complete and was made with these settings.

    Raises:
        SamsgError: it is complete, but was made with others.
    """
    record = folder / "settings.json"
    if not record.is_file():
        return False
    found = json.loads(record.read_text(encoding="utf-8"))
    differences = list(_differences(found, json.loads(json.dumps(settings))))
    if differences:
        raise SamsgError(
            f"{folder} was made with other settings: {'; '.join(differences)}. Give the changed profile a name of its "
            f"own, or remove {folder} and what was made from it."
        )
    return True


def partial_of(folder: Path) -> Path:
    """Where a stage works before it is whole."""
    return folder.with_name(folder.name + ".partial")


def _rank() -> int:
    """This process among those of a distributed run; 0 in any other."""
    distributed = sys.modules.get("torch.distributed")  # not imported for this: it takes seconds
    return distributed.get_rank() if distributed and distributed.is_initialized() else 0


def _wait_for_all() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        distributed.barrier()


def _as_the_first_says(answer: Any) -> Any:
    """The same answer in all processes of a distributed run."""
    distributed = sys.modules.get("torch.distributed")
    if not (distributed and distributed.is_initialized()):
        return answer
    said = [answer]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work on a stage, or a file, while no other process does; wait for one that is at it.

    The lock is the system's own: it ends with the process that holds it, however that ends.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=2)
    except Timeout:
        print(f"Another process is working on {folder}; waiting for it.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def rename_whole(partial: Path, folder: Path) -> None:
    """Give a folder its name when everything in it is on the disk."""
    for path in (*partial.rglob("*"), partial):
        _to_disk(path)
    partial.rename(folder)
    _to_disk(folder.parent)


@contextmanager
def stage(folder: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Work on a stage in <folder>.partial and make it <folder> at the end.

    A partial folder of an earlier, interrupted attempt with the same settings is handed on, so that work can go on from
    its last checkpoint, without the files that were being written when it ended; one with other settings is emptied.
    """
    partial = partial_of(folder)
    record = partial / "settings.json"
    content = json.loads(json.dumps(settings))
    if partial.exists() and not (record.is_file() and json.loads(record.read_text(encoding="utf-8")) == content):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    for half in partial.glob(".*.partial"):
        half.unlink()
    write_json(record, content)
    yield partial
    if folder.exists():  # only ever one without settings, so not a whole stage
        shutil.rmtree(folder)
    rename_whole(partial, folder)
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Remove what a whole stage needs no more; not before it is whole, or a kill in between would cost all of it."""
    for name in (CHECKPOINT, JOURNAL):
        if (folder / name).is_file():
            with suppress(OSError):  # of somebody else's, say: it does no harm
                (folder / name).unlink()


@dataclass(frozen=True)
class Run:
    """One corpus, protocol and seed under one profile."""

    profile: Profile
    corpus: str
    protocol: str
    seed: int

    @property
    def corpus_folder(self) -> Path:
        """What all runs on the corpus share: waveforms and spectrograms."""
        return home() / "runs" / self.profile.name / self.corpus

    @property
    def folder(self) -> Path:
        """Where this run's stages are kept."""
        return self.corpus_folder / self.protocol / f"seed{self.seed}"

    def stage_folder(self, name: str) -> Path:
        """The folder of one stage; that of the profile which this one is a variant of, if it would be the same."""
        base = self.profile.variant_of
        if base is not None:
            original = Run(base, self.corpus, self.protocol, self.seed)
            if original.settings(name) == self.settings(name):
                return original.stage_folder(name)
        return (self.corpus_folder if name in ("waveforms", "spectrograms") else self.folder) / name

    def settings(self, name: str) -> dict[str, Any]:
        """The settings that decide a stage's result: its own, and those of every stage before it."""
        profile = self.profile.model_dump(mode="json")
        corpus = profile["corpora"][self.corpus]
        sounds = {"corpus": {key: corpus[key] for key in ("reader", "synthetic")}}
        groups = ["audio", "views"]
        if name == "waveforms":
            return {**sounds, "audio": {"sample_rate": profile["audio"]["sample_rate"]}}
        if name == "spectrograms":
            return {**sounds, **{group: profile[group] for group in groups}, "fingerprint": self.fingerprint}
        groups += ["model", "training"]
        for stage_name, its in (("rollout", "rollout"), ("masks", "mask"), ("samsg", "samsg"), ("probe", "probe")):
            if list(NOTEBOOKS).index(name) >= list(NOTEBOOKS).index(stage_name):
                groups.append(its)
        chosen = {group: profile[group] for group in groups}
        return {**sounds, **chosen, "protocol": self.protocol, "seed": self.seed, "fingerprint": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        """What tells this corpus, as it was read, from any other: of its table and its samples; '' before."""
        return _fingerprint_in(self.stage_folder("waveforms"))

    def require(self, name: str) -> Path:
        """The folder of a stage that must be there by now.

        Raises:
            SamsgError: it is not; the message names the notebook that makes it.
        """
        folder = self.stage_folder(name)
        if not finished(folder, self.settings(name)):
            raise SamsgError(
                f"Stage '{name}' of {self.corpus} ({self.protocol}, seed {self.seed}) was looked for in {folder} and "
                f"has not been run; notebook {NOTEBOOKS[name]}.ipynb makes it, with profile '{self.profile.name}'."
            )
        return folder

    def make(self, name: str, work: Callable[[Path], None], together: bool = False) -> Path:
        """Run a stage unless it is finished, and record what produced it.

        Args:
            name: of the stage.
            work: does it, in the folder it is given.
            together: all processes of a distributed run do it, and the first one alone writes; otherwise that one does
                it while the others wait.
        """
        folder, settings, first = self.stage_folder(name), self.settings(name), _rank() == 0
        done = first and finished(folder, settings)
        with _writing(folder), alone(folder) if first and not done else nullcontext():
            done = done or (first and finished(folder, settings))  # another process may have done it meanwhile
            if _as_the_first_says(done):
                if first:
                    _tidy(folder)
                return folder
            started = time.perf_counter()
            if first:
                try:
                    with stage(folder, settings) as partial:
                        if together:
                            _wait_for_all()
                        work(partial)
                        self._record(name, time.perf_counter() - started, partial)  # or a kill could leave it without
                except Exception as error:
                    if not together:  # the others wait for nothing but this
                        _as_the_first_says(str(error) if isinstance(error, SamsgError) else repr(error))
                    raise
            elif together:
                _wait_for_all()
                work(partial_of(folder))
            if failure := _as_the_first_says(""):
                raise SamsgError(f"Stage '{name}' failed in the first process: {failure}")
        return folder

    def _record(self, name: str, seconds: float, made: Path) -> None:
        path, now = self.stage_folder(name).parent / "run.json", provenance()
        with alone(path):  # other stages of the run may end at the same time
            for half in path.parent.glob(f".{path.name}.*.partial"):
                half.unlink()
            record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            record.setdefault("stages", {})[name] = {"seconds": round(seconds, 2), **now}
            record.update(profile=self.profile.model_dump(mode="json"), corpus=self.corpus)
            if path.parent != self.corpus_folder:
                record.update(protocol=self.protocol, seed=self.seed)
            record["corpus_fingerprint"] = _fingerprint_in(made) or self.fingerprint
            write_json(path, record)


def _fingerprint_in(folder: Path) -> str:
    path = folder / "fingerprint.txt"
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""


def open_run(profile: str | Profile = "demo", corpus: str = "emodb", protocol: str = "random", seed: int = 0) -> Run:
    """One run, its names checked.

    Raises:
        SamsgError: an unknown profile, corpus or protocol, or a seed that is no whole number from 0.
    """
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    profile.corpus(corpus)
    if protocol not in PROTOCOLS:
        raise SamsgError(f"There is no protocol '{protocol}'; {nearest(str(protocol), PROTOCOLS)}")
    if not isinstance(seed, int) or seed < 0:
        raise SamsgError(f"A seed is a whole number from 0; got {seed!r}.")
    return Run(profile, corpus, protocol, seed)


def find_run(name: str | Path) -> Run | None:
    """A run, with the settings that it was made with; None if there is none.

    Args:
        name: 'demo/savee' (protocol random, seed 0), 'demo/savee/speaker/seed1', or its folder in runs/.

    Raises:
        SamsgError: what is recorded of it cannot be understood.
    """
    runs, given = (home() / "runs").resolve(), Path(name).expanduser()
    folder = given.resolve() if given.is_dir() else (runs / given).resolve()
    if not folder.is_relative_to(runs):
        return None
    parts = folder.relative_to(runs).parts
    profile, corpus, protocol, seed = (*parts, *("", "", "random", "seed0")[len(parts) :])[:4]
    record, base = runs / profile / corpus / protocol / seed / "run.json", profile.rpartition(".")[0]
    if not 2 <= len(parts) <= 4 or not record.is_file():
        return None
    original = runs / base / corpus / "run.json"  # what a variant shares with its profile lies there
    variant_of = _profile_of(original) if base and original.is_file() else None
    made = _profile_of(record).model_copy(update={"variant_of": variant_of})
    return open_run(made, corpus, protocol, int(seed.removeprefix("seed")))


def recorded(run: Run, stage: str) -> dict[str, Any]:
    """What produced a stage, from the run's record: code, versions, machine, time.

    Raises:
        SamsgError: there is no record of it.
    """
    path = run.stage_folder(stage).parent / "run.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["stages"][stage]
    except (OSError, ValueError, KeyError) as error:
        raise SamsgError(
            f"{path} does not say what made stage '{stage}'; remove the stage and run it again."
        ) from error
    return record


def _profile_of(record: Path) -> Profile:
    try:
        return Profile(**json.loads(record.read_text(encoding="utf-8"))["profile"])
    except (ValueError, KeyError, TypeError) as error:
        raise SamsgError(f"{record} cannot be understood, as of another version: {error}. Run it anew.") from error


def finished_runs(
    profile: Profile,
    protocol: str = "random",
    corpora: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    last: str = "probe",
) -> dict[str, list[int]]:
    """Corpus -> seeds whose last stage is finished: all that are asked for, or, without lists, whatever is.

    Raises:
        SamsgError: a run that was asked for is not finished, or none is; the message names the notebook.
    """
    done: dict[str, list[int]] = {}
    for corpus in corpora or profile.corpora:
        for seed in seeds or profile.seeds:
            run = open_run(profile, corpus, protocol, seed)
            if corpora or seeds:
                run.require(last)
            if finished(run.stage_folder(last), run.settings(last)):
                done.setdefault(corpus, []).append(seed)
    if not done:
        names = ", ".join(corpora or profile.corpora)
        raise SamsgError(
            f"No corpus of {names} is finished under profile '{profile.name}' and protocol '{protocol}'; notebooks "
            f"01 to {NOTEBOOKS[last]}.ipynb make them one by one, 'samsg reproduce --profile {profile.asked_as}' all."
        )
    return done


def provenance() -> dict[str, Any]:
    """Code revision, versions and machine: what produced a result."""
    import torch

    return {
        "code": code_revision(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    """Its name: another kind adds in another order, and results differ in their last digits, or more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def versions() -> str:
    """One line for the top of a notebook: the versions and the device that it runs on."""
    record = provenance()
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"Python {record['python']}, {packages}; {record['threads']} threads, GPU: {record['gpu']}"


def code_revision() -> str:
    """The commit that is checked out, with '+changes' where files differ from it; 'unknown' outside a checkout."""
    if not (REPOSITORY / ".git").exists():  # git would look further up, and find somebody else's
        return "unknown"
    try:
        described = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=12", "--dirty=+changes"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
