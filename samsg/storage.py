"""Files that are whole or absent, and the record of what made them.

A file or folder is written under another name, and renamed when it is complete.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from samsg.settings import REPOSITORY

PACKAGES = ("torch", "torchaudio", "timm", "lightning-fabric", "numpy", "scikit-learn", "soundfile")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file beside ``path`` and rename it when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented and in a fixed order."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Make a folder while other processes wait: yields '<folder>.partial', renamed in the end if the body makes it."""
    partial = folder.with_name(f"{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))  # ends with its process, however that ends
    try:
        hold = lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder}: waiting for another process that makes it.", flush=True)
        report(f"{folder.parent.name:10} {folder.name:12} waits for another process")
        hold = lock.acquire()
    with hold:
        yield partial
        if partial.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)


def progress(steps: Iterable[Any] | None, text: str, total: int, n_done: int = 0) -> tqdm:
    """A progress bar on standard output that leaves one line: it reads well in JupyterLab and on a terminal."""
    return tqdm(steps, text, total, file=sys.stdout, ascii=" =", ncols=100, mininterval=1.0, initial=n_done)


def report(event: str) -> None:
    """Tell 'samsg reproduce', which started this notebook, how far it is: a line in the file $SAMSG_PROGRESS."""
    if path := os.environ.get("SAMSG_PROGRESS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{event}\n")


def provenance() -> dict[str, Any]:
    """What produces a result here: commit ('+changes' where files differ from it), versions, machine, time."""
    import torch

    place = ["--git-dir", str(REPOSITORY / ".git"), "--work-tree", str(REPOSITORY)]
    command = [shutil.which("git") or "false", *place, "describe", "--always", "--abbrev=12", "--dirty=+changes"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "code": commit or "unknown",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "processor": torch.backends.cpu.get_cpu_capability(),  # other kinds sum in a different order
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions() -> str:
    """One line for the top of a notebook: the versions and the device that it runs on."""
    record = provenance()
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"Python {record['python']}, {packages}; {record['threads']} threads, GPU: {record['gpu']}"
