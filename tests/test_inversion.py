"""From spectrograms back to sound: tones keep their frequency and level, and black is as quiet as a clip gets."""

import numpy as np
import pytest
import torch

from samsg.audio.inversion import InverseLogMel
from samsg.audio.spectrogram import LogMel
from samsg.settings import AudioSettings


def tone(frequency: float, audio: AudioSettings) -> torch.Tensor:
    """A tone of amplitude 0.5 in the second quarter of a clip: -> (1, S)."""
    samples = 0.5 * torch.sin(2 * np.pi * frequency * torch.arange(audio.n_samples) / audio.sample_rate)
    quarter = audio.n_samples // 4
    samples[:quarter] = samples[2 * quarter :] = 0
    return samples[None]


def there_and_back(waveform: torch.Tensor, audio: AudioSettings, hidden: torch.Tensor | None = None) -> torch.Tensor:
    front_end = LogMel(audio)
    offset, scale = front_end.limits(front_end.decibels(waveform))
    spectrogram = front_end(waveform)
    if hidden is not None:
        spectrogram = spectrogram.masked_fill(hidden, 0.0)
    return InverseLogMel(audio)(spectrogram, offset, scale)


@pytest.mark.parametrize("scaling", ["minmax", "standardize"])
@pytest.mark.parametrize("hop", [64, 400, 800])  # the paper's, and two too coarse to say anything about phases
@pytest.mark.parametrize("frequency", [500, 1000, 4000])
def test_a_tone_comes_back_at_its_frequency_its_time_and_its_level(frequency, hop, scaling):
    audio = AudioSettings(hop=hop, scaling=scaling, seconds=1.0)
    sound = there_and_back(tone(frequency, audio), audio)[0].numpy()
    assert sound.shape == (16_000,)
    peak = int(np.abs(np.fft.rfft(sound)).argmax())  # 1 Hz a bin
    # The distance of two mel bands there (Eq. 1): between their centres a spectrogram does not say where a tone lies.
    assert abs(peak - frequency) <= (700 + frequency) * np.log(1 + 8000 / 700) / 129
    level = np.sqrt(np.mean(sound.reshape(4, -1) ** 2, axis=1))  # of each quarter
    assert level[1] == pytest.approx(0.5 / np.sqrt(2), rel=0.15)
    assert level[3] < 0.02 * level[1]


def test_what_is_black_is_not_heard():
    audio = AudioSettings(hop=160, seconds=1.0)
    both = tone(500, audio) + tone(3000, audio)
    low = torch.zeros(1, 1, 128, audio.n_frames, dtype=torch.bool)
    low[:, :, :64] = True  # up to 1654 Hz
    for hidden, heard, gone in ((low, 3000, 500), (~low, 500, 3000)):
        spectrum = np.abs(np.fft.rfft(there_and_back(both, audio, hidden)[0].numpy()))
        near = {f: spectrum[f - 60 : f + 60].max() for f in (500, 3000)}
        assert near[gone] < 0.01 * near[heard]


def test_speech_like_sound_comes_back_as_nearly_the_same_spectrogram():
    audio = AudioSettings(seconds=1.0)
    time = torch.arange(audio.n_samples) / audio.sample_rate
    pitch = 120 + 30 * torch.sin(2 * np.pi * 2 * time)
    phase = 2 * np.pi * torch.cumsum(pitch, 0) / audio.sample_rate
    voice = sum(torch.sin(k * phase) / k for k in range(1, 30))[None] * 0.1
    front_end = LogMel(audio)
    before, after = (front_end.decibels(sound)[0] for sound in (voice, there_and_back(voice, audio)))
    loud = before > before.max() - 40
    assert float((after - before)[loud].abs().median()) < 1.0  # dB


def test_the_same_spectrogram_is_the_same_sound_and_silence_stays_silent():
    audio = AudioSettings(hop=400, seconds=1.0)
    first, second = (there_and_back(tone(1000, audio), audio) for _ in range(2))
    assert torch.equal(first, second)
    assert float(there_and_back(torch.zeros(1, 16_000), audio).abs().max()) < 1e-3
