"""What all tests share: no test goes to the network, and data beside the repository is read where it is there."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

from pathlib import Path

import pandas as pd
import pytest
import yaml
from sounds import wav
from tones import write_corpus

import samsg
from samsg.corpora.catalogue import GRAMMARS, read_corpus
from samsg.corpora.verify import official_list
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
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The manifests of the three official corpora, read from dummy sounds of the listed names and lengths."""
    manifests = {}
    for corpus in GRAMMARS:
        root = tmp_path_factory.mktemp(corpus)
        for file in official_list(corpus).itertuples():
            (root / file.file).parent.mkdir(parents=True, exist_ok=True)
            (root / file.file).write_bytes(wav(file.sample_rate, 2 * file.frames, b""))
            os.truncate(root / file.file, 44 + 2 * file.frames)  # sparse
        manifests[corpus] = read_corpus(corpus, root)
    return manifests


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a finished run on tones, to be read and not changed: tones.yaml, seed 0."""
    home = tmp_path_factory.mktemp("finished")
    write_corpus(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSG_HOME", str(home))
        samsg.run_stages(samsg.open_run(samsg.load_profile(home / "tones.yaml"), "tones"))
    return home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder: runs and data of a test are written there."""
    monkeypatch.setenv("SAMSG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a profile in a home folder where its one run, on an embedded EmoDB of 70 clips, is finished."""
    folder = tmp_path_factory.mktemp("spoken")
    corpora = {"emodb": {"synthetic": {"speakers": 2, "sentences": 5}}}
    profile = {"extends": "smoke", "corpora": corpora, "training": {"epochs": 1}, "samsg": {"epochs": 1}}
    (folder / "spoken.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSG_HOME", str(folder))
        samsg.run_stages(samsg.open_run(str(folder / "spoken.yaml")))
    return folder / "spoken.yaml"
