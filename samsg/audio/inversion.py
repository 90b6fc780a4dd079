"""Log-mel spectrogram -> waveform: what a model is shown, made audible (the way of spectrogram.py, back).

Decibels become power, mel bands frequency bins by least squares, and phases, which a spectrogram does not keep, are
found by iteration: Griffin & Lim, IEEE Trans. ASSP 1984.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.transforms import GriffinLim, InverseMelScale

from samsg.settings import AudioSettings


class InverseLogMel(nn.Module):
    """Waveforms of scaled log-mel spectrograms: (B, 1, 128, 1001) -> (B, 64000), the same each time.

    Phases follow from frames that overlap. Where the hop is more than a quarter of the window, further frames are
    interpolated between those that are there, so that a coarse spectrogram can be heard as well.

    Args:
        audio: the settings of the front end that made the spectrograms.
    """

    def __init__(self, audio: AudioSettings = AudioSettings()) -> None:
        super().__init__()
        hop = max(1, min(audio.hop, audio.window // 4))
        self.places = torch.arange(audio.n_samples // hop + 1) * hop / audio.hop  # of the frames to come, in frames
        self.bins = InverseMelScale(audio.n_fft // 2 + 1, audio.n_mels, audio.sample_rate, norm=None, mel_scale="htk")
        self.phases = GriffinLim(
            n_fft=audio.n_fft,
            win_length=audio.window,
            hop_length=hop,
            window_fn=torch.hamming_window,
            power=2.0,
            length=audio.n_samples,
            rand_init=False,
        )

    def forward(self, spectrogram: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
        """Invert a batch.

        Args:
            spectrogram: scaled, (B, 1, 128, 1001).
            offset, scale: what it was scaled by, in dB, as ``LogMel.limits`` gives them, (B, 1, 1) each.
        """
        decibels = spectrogram[:, 0] * scale + offset  # (B, 128, 1001)
        before = self.places.long().clamp(max=decibels.shape[2] - 1)
        after = (before + 1).clamp(max=decibels.shape[2] - 1)
        decibels = decibels[..., before].lerp(decibels[..., after], self.places - before)
        return self.phases(self.bins(10 ** (decibels / 10)))
