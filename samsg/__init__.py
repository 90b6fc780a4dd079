"""SAMSG, reproduced: self-attention-based masked spectrogram generation for speech emotion recognition.

Kim & Lee, "Self-Attention-Based Masked Spectrogram Generation and Self-Supervised Learning Method for Improving Speech
Emotion Recognition". The names below are imported when they are first used, so that light commands stay quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("samsg")

_HOME = {
    "Profile": "settings",
    "SamsgError": "settings",
    "load_profile": "settings",
    "Run": "runs",
    "open_run": "runs",
    "read_corpus": "corpora.catalogue",
    "emotions_of": "corpora.catalogue",
    "split": "corpora.splits",
    "LogMel": "audio.spectrogram",
    "make_view": "audio.views",
    "SpectrogramDeiT": "method.deit",
    "attention_rollout": "method.rollout",
    "rollout_row": "method.rollout",
    "important_patches": "method.masking",
    "mask_spectrogram": "method.masking",
    "prepare": "training.stages",
    "train_baseline": "training.stages",
    "compute_rollout": "training.stages",
    "compute_masks": "training.stages",
    "train_samsg": "training.stages",
    "train_probe": "training.stages",
    "load_model": "training.stages",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from samsg.audio.spectrogram import LogMel
    from samsg.audio.views import make_view
    from samsg.corpora.catalogue import emotions_of, read_corpus
    from samsg.corpora.splits import split
    from samsg.method.deit import SpectrogramDeiT
    from samsg.method.masking import important_patches, mask_spectrogram
    from samsg.method.rollout import attention_rollout, rollout_row
    from samsg.runs import Run, open_run
    from samsg.settings import Profile, SamsgError, load_profile
    from samsg.training.stages import (
        compute_masks,
        compute_rollout,
        load_model,
        prepare,
        train_baseline,
        train_probe,
        train_samsg,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'samsg' has no attribute '{name}'")
    return getattr(import_module(f"samsg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
