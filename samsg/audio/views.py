"""The seeded views of a clip: clean, noise, shift, speed (Section IV-B names the three augmentations).

A view depends on the clip's name, the view's name and one seed, and on nothing else, so that its spectrogram, its
rollout and its mask can be computed once and always belong together.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import add_noise, resample

from samsg.settings import AudioSettings, ViewSettings


def fit(waveform: Tensor, n_samples: int) -> Tensor:
    """Cut to the first ``n_samples``, or pad with zeros: (S,) -> (64000,)."""
    waveform = waveform[:n_samples]
    return torch.nn.functional.pad(waveform, (0, n_samples - len(waveform)))


def make_view(waveform: Tensor, clip: str, view: str, audio: AudioSettings, views: ViewSettings) -> Tensor:
    """One view of a clip, 4 s long: (S,) -> (64000,).

    'noise' adds white noise at a random signal-to-noise ratio; 'shift' moves the clip by a random time and fills with
    zeros; 'speed' plays it faster or slower, pitch and all, before it is cut or padded.

    Args:
        waveform: the whole recording at ``audio.sample_rate``.
        clip: its name.
        view: 'clean', 'noise', 'shift' or 'speed'.
    """
    generator = np.random.default_rng([views.seed, zlib.crc32(f"{clip}/{view}".encode())])
    if view == "speed":
        # Resampling from factor * rate to rate is speed perturbation; in hundredths the ratio stays a small one.
        factor = round(100 * generator.uniform(*views.speed))
        waveform = resample(waveform, factor, 100)
    waveform = fit(waveform, audio.n_samples)
    if view == "shift":
        limit = min(round(views.shift * audio.sample_rate), audio.n_samples)
        by = int(generator.integers(-limit, limit + 1))
        shifted = torch.zeros_like(waveform)
        shifted[max(by, 0) : len(waveform) + min(by, 0)] = waveform[max(-by, 0) : len(waveform) - max(by, 0)]
        waveform = shifted
    if view == "noise" and waveform.any():  # silence has no signal-to-noise ratio
        noise = torch.from_numpy(generator.standard_normal(len(waveform), dtype=np.float32))
        waveform = add_noise(waveform, noise, torch.tensor(generator.uniform(*views.snr), dtype=torch.float32))
    return waveform
