"""Waveform -> log-mel spectrogram (Section III-A, Eq. 1-2; Section IV-B)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from samsg.settings import AudioSettings


class LogMel(nn.Module):
    """Log-mel spectrograms, scaled clip by clip: (B, 64000) -> (B, 1, 128, 1001), float32.

    Centred frames, Hamming window, power spectrum, HTK mel scale, no area normalisation, decibels. Scaling 'minmax'
    maps the quietest cell of a clip to 0 (black) and the loudest to 1; 'standardize' gives mean 0 and standard
    deviation 0.5, as AST does. A clip of digital silence has nothing to scale and becomes 0 throughout.

    Args:
        audio: the front end's settings.
    """

    def __init__(self, audio: AudioSettings = AudioSettings()) -> None:
        super().__init__()
        self.scaling, self.floor = audio.scaling, audio.floor
        self.mel = MelSpectrogram(
            sample_rate=audio.sample_rate,
            n_fft=audio.n_fft,
            win_length=audio.window,
            hop_length=audio.hop,
            n_mels=audio.n_mels,
            window_fn=torch.hamming_window,
            power=2.0,
            norm=None,
            mel_scale="htk",
        )

    def decibels(self, waveforms: Tensor) -> Tensor:
        """Unscaled log-mel spectrograms in dB: (B, 64000) -> (B, 128, 1001)."""
        return 10 * self.mel(waveforms).clamp(min=self.floor).log10()

    def limits(self, decibels: Tensor) -> tuple[Tensor, Tensor]:
        """What becomes 0 in each clip and what is divided by, in dB: (B, 128, 1001) -> (B, 1, 1) twice."""
        if self.scaling == "minmax":
            offset = decibels.amin((1, 2), keepdim=True)
            scale = decibels.amax((1, 2), keepdim=True) - offset
        else:
            offset = decibels.mean((1, 2), keepdim=True)
            scale = 2 * decibels.std((1, 2), keepdim=True)
        return offset, scale.clamp(min=1e-6)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Scaled log-mel spectrograms: (B, 64000) -> (B, 1, 128, 1001)."""
        decibels = self.decibels(waveforms)
        offset, scale = self.limits(decibels)
        return ((decibels - offset) / scale)[:, None]
