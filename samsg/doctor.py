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
        yield "! DeiT-base on a CPU takes days; a GPU is advisable, or profile 'demo' or 'scratch'."
    needed, free = _room(profile), shutil.disk_usage(_there(home())).free
    mark = "!" if free < needed else " "
    yield f"{mark} Home: {home()}, {free / 1e9:.0f} GB free; profile '{profile.name}' keeps some {needed / 1e9:.1f} GB."
    for corpus in profile.corpora:
        yield _corpus(profile, corpus)
    yield _weights(profile)
    try:
        done = finished_runs(profile, profile.protocols[0])
        yield "  Finished: " + ", ".join(
            f"{corpus} (seeds {', '.join(map(str, seeds))})" for corpus, seeds in done.items()
        )
    except SamsgError:
        yield f"  Nothing of profile '{profile.name}' is finished yet: samsg reproduce --profile {profile.name}"


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return folder if folder.exists() else _there(folder.parent)


def _manifest_size(profile: Profile, corpus: str) -> int:
    settings = profile.corpus(corpus)
    reader = settings.reader or corpus
    reader = str(home() / reader) if reader.lower().endswith(".csv") else reader
    return len(read_corpus(reader, profile.root(corpus)))


def _room(profile: Profile) -> int:
    """Bytes that a profile's runs keep: spectrograms of all views in half precision, and the stages' models."""
    audio, clips = profile.audio, 0
    for corpus in profile.corpora:
        try:
            clips += _manifest_size(profile, corpus)
        except SamsgError:
            clips += CLIPS.get(profile.corpus(corpus).reader or corpus, 0)
    spectrograms = 2 * clips * len(profile.views.names) * audio.n_mels * audio.n_frames
    with torch.device("meta"):
        model = SpectrogramDeiT(10, profile.model.size, profile.model.depth, audio.n_mels, audio.n_frames)
    model_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    kept = 3 * model_bytes * len(profile.corpora) * len(profile.protocols) * len(profile.seeds)
    return spectrograms + kept + 3 * model_bytes  # and a checkpoint, with Adam's two moments


def _corpus(profile: Profile, corpus: str) -> str:
    """Whether a corpus is there."""
    settings, root = profile.corpus(corpus), profile.root(corpus)
    if settings.synthetic is not None:
        return f"  Corpus {corpus}: embedded, spoken into {root} when it is first needed"
    try:
        clips = _manifest_size(profile, corpus)
        return f"  Corpus {corpus}: {clips} clips in {root}; samsg data check {corpus} listens to them"
    except SamsgError as error:
        return f"! Corpus {corpus}: {error} Or: samsg data fetch {corpus}"


def _weights(profile: Profile) -> str:
    """Whether the weights that the profile starts from are there."""
    model = profile.model
    if model.weights == "random":
        return "  Weights: random, nothing is needed"
    if model.weights != "imagenet":
        mark = " " if Path(model.weights).is_file() else "!"
        return f"{mark} Weights: the file {model.weights}{'' if mark == ' ' else ', which is not there'}"
    described = timm.get_pretrained_cfg(pretrained_name(model.size))
    place = str(described.hf_hub_id) if described else pretrained_name(model.size)
    if try_to_load_from_cache(place, SAFETENSORS_SINGLE_FILE):
        return f"  Weights: ImageNet's ({place}), on this machine"
    return (
        f"! Weights: ImageNet's ({place}) are not on this machine. They are downloaded when first used; without "
        "network, fetch model.safetensors of that page elsewhere and set model.weights to its path."
    )
