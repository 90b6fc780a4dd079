"""What all tests share: no test uses the network, and data beside the repository is read where it exists."""

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

from pathlib import Path

import pytest
from toys import write_tone_corpus

import samsg
from samsg.settings import REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread computes tensors of this size several times faster than threads that wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with the official file lists and public recordings."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: it holds the official file lists and recordings")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, where a test's runs and data are written."""
    monkeypatch.setenv("SAMSG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the toy corpus and one finished run on it (tones.yaml, seed 0), to be read and not changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_tone_corpus(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSG_HOME", str(folder))
        samsg.run_stages(samsg.open_run(folder / "tones.yaml", "tones"))
    return folder


@pytest.fixture
def copied_run(finished: Path, home: Path) -> samsg.Run:
    """A copy of the finished run, with its corpus, in another home folder."""
    shutil.copytree(finished, home, dirs_exist_ok=True)
    profile = home / "tones.yaml"
    profile.write_text(profile.read_text().replace(str(finished), str(home)))
    return samsg.open_run(profile, "tones")
