"""What this machine has, and what a profile still needs: versions, device, precision, disk, corpora, weights."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE

from samsg.corpora.acquire import CLIPS
from samsg.corpora.catalogue import read_corpus
from samsg.method.deit import SpectrogramDeiT, pretrained_name
from samsg.runs import PACKAGES, code_revision, finished_runs
from samsg.settings import Profile, SamsgError, home
from samsg.training.loop import make_fabric

OPTIONAL = {"praat-parselmouth": "the embedded corpora", "audb": "samsg data fetch", "snakemake": "samsg reproduce"}
OPTIONAL |= {"papermill": "samsg reproduce", "jupyterlab": "make lab"}


def examine(profile: Profile) -> Iterator[str]:
    """One line a fact; those of what is missing begin with '!' and say what to do."""
    yield f"samsg {version('samsg')}, code {code_revision()}, Python {platform.python_version()}, {platform.platform()}"
    yield "  " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    for name, use in OPTIONAL.items():
        try:
            version(name)
        except PackageNotFoundError:
            yield f"! {name} is not installed, which '{use}' needs; make installs it, or pip install samsg[all]."
    fabric = make_fabric(profile.training)
    name = torch.cuda.get_device_name() if fabric.device.type == "cuda" else f"{torch.get_num_threads()} threads"
    yield f"Device: {fabric.device} ({name}), precision {fabric._precision.precision}"
    if profile.model.size == "base" and fabric.device.type == "cpu":
        yield "! DeiT-base on a CPU takes days; a GPU is advisable, or a profile with model.size tiny, as 'demo' has."
    needed, free = _room(profile), shutil.disk_usage(_there(home())).free
    mark = "!" if free < needed else " "
    yield f"{mark} Home: {home()}, {free / 1e9:.0f} GB free; profile '{profile.name}' keeps some {needed / 1e9:.1f} GB."
    for corpus in profile.corpora:
        yield _corpus(profile, corpus)
    yield _weights(profile)
    for protocol in profile.protocols:
        try:
            done = finished_runs(profile, protocol)
            runs = ", ".join(f"{corpus} (seeds {', '.join(map(str, seeds))})" for corpus, seeds in done.items())
            yield f"  Finished, protocol {protocol}: {runs}"
        except SamsgError as error:
            yield f"  {error}"


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return folder if folder.exists() else _there(folder.parent)


def _room(profile: Profile) -> int:
    """Bytes that a profile's runs keep at most: waveforms, spectrograms, rollouts, masks, and the stages' models."""
    audio, clips = profile.audio, 0
    for corpus in profile.corpora:
        try:
            clips += len(read_corpus(profile.reader(corpus), profile.root(corpus)))
        except SamsgError:
            clips += CLIPS.get(profile.reader(corpus), 0)
    with torch.device("meta"):
        model = SpectrogramDeiT(10, profile.model.size, profile.model.depth, audio.n_mels, audio.n_frames)
    of_view = 2 * audio.n_mels * audio.n_frames  # half precision
    of_run = 5 * clips * len(profile.views.names) * model.grid[0] * model.grid[1]  # rollout and mask of each patch
    of_run += 3 * len(profile.corpora) * 4 * sum(parameter.numel() for parameter in model.parameters())
    checkpoints = (
        6 * 4 * sum(parameter.numel() for parameter in model.parameters())
    )  # Adam's moments; two while one is written
    shared = clips * (4 * audio.n_samples + of_view * len(profile.views.names))
    return shared + of_run * len(profile.protocols) * len(profile.seeds) + checkpoints


def _corpus(profile: Profile, corpus: str) -> str:
    """Whether a corpus is there."""
    settings, root, reader = profile.corpus(corpus), profile.root(corpus), profile.reader(corpus)
    if settings.synthetic is not None:
        return f"  Corpus {corpus}: embedded, spoken into {root} when it is first needed"
    try:
        clips = len(read_corpus(reader, root))
    except SamsgError as error:
        return f"! Corpus {corpus}: {error}{f' Or: samsg data fetch {reader}' if reader in CLIPS else ''}"
    return f"  Corpus {corpus}: {clips} clips; to listen to them: samsg data check {reader} --folder {root}"


def _weights(profile: Profile) -> str:
    """Whether the weights that the profile starts from are there."""
    weights, size = profile.weights, profile.model.size
    if weights == "random":
        return "  Weights: random, nothing is needed"
    if weights != "imagenet":
        there = Path(weights).is_file()
        return f"{' ' if there else '!'} Weights: the file {weights}{'' if there else ', which is not there'}"
    described = timm.get_pretrained_cfg(pretrained_name(size))
    place = str(described.hf_hub_id) if described else pretrained_name(size)
    if try_to_load_from_cache(place, SAFETENSORS_SINGLE_FILE):
        return f"  Weights: ImageNet's ({place}), on this machine"
    return (
        f"! Weights: ImageNet's ({place}) are not on this machine. They are downloaded when first used; without "
        "network, fetch model.safetensors of that page elsewhere and set model.weights to its path."
    )
