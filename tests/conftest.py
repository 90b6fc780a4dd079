"""What all tests share: no test goes to the network, and data beside the repository is read where it is there."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

from pathlib import Path

import pandas as pd
import pytest

from samsg.corpora.catalogue import COLUMNS, GRAMMARS, parse_path
from samsg.settings import REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors of this size are computed several times faster by one thread than by threads that wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with the official file lists and public recordings."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: the official file lists and the recordings are read from it")
    return folder


@pytest.fixture(scope="session")
def official(shared: Path) -> dict[str, pd.DataFrame]:
    """The manifests of the three official corpora, from the names of their files alone."""
    manifests = {}
    for corpus in GRAMMARS:
        files = pd.read_csv(shared / "corpora" / f"{corpus}.csv")["file"]
        rows = [{**(parse_path(file, corpus) or {}), "path": file, "corpus": corpus} for file in files]
        manifests[corpus] = pd.DataFrame(rows)[COLUMNS].sort_values("clip", ignore_index=True)
    return manifests


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder: runs and data of a test are written there."""
    monkeypatch.setenv("SAMSG_HOME", str(tmp_path))
    return tmp_path
