"""From a sound file to spectrograms: decoding, views, the log-mel front end, and one pass over a corpus."""

import io
import math
import os
import struct
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import tone

from samsg.audio import LogMel, make_view, open_spectrograms, read_sound, why_unusable, write_spectrograms
from samsg.settings import VIEWS, AudioSettings, SamsgError, ViewSettings

AUDIO, ALL_VIEWS, RATE = AudioSettings(), ViewSettings(), 16_000


def noise(n: int = 64_000, seed: int = 0, level: float = 0.1) -> torch.Tensor:
    """White noise: (n,), float32."""
    return torch.from_numpy(level * np.random.default_rng(seed).standard_normal(n).astype(np.float32))


def fit_tone(samples: np.ndarray, frequency: float) -> tuple[float, float]:
    """The amplitude of a tone by least squares, and the standard deviation of the residual."""
    phase = 2 * np.pi * frequency * np.arange(len(samples)) / RATE
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    weights = np.linalg.lstsq(basis, samples, rcond=None)[0]
    return float(np.hypot(*weights)), float(np.std(samples - basis @ weights))


@pytest.mark.parametrize("kind", ["noise", "tone"])
def test_decibels_equal_librosas(kind: str) -> None:
    waveform = noise() if kind == "noise" else torch.from_numpy(tone(1000, 4, noise=1e-3).astype(np.float32))
    power = librosa.feature.melspectrogram(
        y=waveform.numpy(), sr=16_000, n_fft=1024, win_length=512, hop_length=64, window="hamming", center=True,
        pad_mode="reflect", power=2.0, n_mels=128, htk=True, norm=None, fmin=0, fmax=8000,
    )  # fmt: skip
    expected = 10 * np.log10(np.maximum(power, 1e-10))
    # Two float32 Fourier transforms differ by 0.0005 dB in the quietest cells; a Hann window would by 0.1 dB and more.
    np.testing.assert_allclose(LogMel(AUDIO).decibels(waveform[None])[0].numpy(), expected, rtol=0, atol=0.003)


def test_minmax_reaches_exactly_0_and_1_ignores_loudness_and_keeps_silence_0() -> None:
    waveforms = torch.stack([noise(), noise() / 4, noise(seed=1, level=1e-3), torch.zeros(64_000)])
    spectrogram = LogMel(AUDIO)(waveforms)
    assert spectrogram.shape == (4, 1, 128, 1001) and spectrogram.dtype == torch.float32  # Section IV-B
    assert spectrogram.amin((1, 2, 3)).tolist() == [0, 0, 0, 0]
    assert spectrogram.amax((1, 2, 3)).tolist() == [1, 1, 1, 0]
    # A power of two changes no digit of a float32, so its logarithm moves by a constant, rounded to 1e-5 dB.
    torch.testing.assert_close(spectrogram[0], spectrogram[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_depends_on_clip_view_and_seed_alone(view: str) -> None:
    waveform = noise()
    first = make_view(waveform, "clip", view, AUDIO, ALL_VIEWS)
    torch.manual_seed(123)
    assert torch.equal(make_view(waveform, "clip", view, AUDIO, ALL_VIEWS), first)
    assert torch.equal(waveform, noise())  # it is not changed in place
    for clip, views in (("another clip", ALL_VIEWS), ("clip", ViewSettings(seed=1))):
        assert torch.equal(make_view(waveform, clip, view, AUDIO, views), first) == (view == "clean")


def test_noise_leaves_padding_0_and_has_a_ratio_to_the_recording() -> None:
    waveform, ratios = noise(20_000), []
    for clip in range(60):
        view = make_view(waveform, f"clip {clip}", "noise", AUDIO, ALL_VIEWS)
        assert view[20_000:].count_nonzero() == 0
        added = view[:20_000].double() - waveform.double()
        ratios.append(float(10 * torch.log10(waveform.double().square().sum() / added.square().sum())))
    # The sum is rounded to float32, which leaves the added noise 5 digits. 60 uniform draws reach both outer quarters.
    assert 15 - 1e-3 <= min(ratios) < 18.75
    assert 26.25 < max(ratios) <= 30 + 1e-3


def test_shift_moves_a_clip_within_the_limit_and_fills_with_zeros() -> None:
    waveform = torch.arange(1, 64_001, dtype=torch.float32)  # each sample holds its position
    offsets = []
    for clip in range(60):
        view = make_view(waveform, f"clip {clip}", "shift", AUDIO, ALL_VIEWS)
        first = int(view.nonzero()[0])
        offset = first - int(view[first] - 1)
        expected = torch.zeros(64_000)
        expected[max(offset, 0) : 64_000 + min(offset, 0)] = waveform[max(-offset, 0) : 64_000 - max(offset, 0)]
        assert torch.equal(view, expected)
        offsets.append(offset)
    # 0.4 s are 6400 samples. That 60 uniform draws all miss an outer quarter has probability 0.75^60 = 3e-8.
    assert -6400 <= min(offsets) < -3200 and 3200 < max(offsets) <= 6400


@pytest.mark.parametrize("factor", [0.9, 1.25])
def test_speed_changes_duration_and_pitch_by_its_factor(factor: float) -> None:
    waveform = torch.from_numpy(tone(1000, 2, noise=0).astype(np.float32))
    view = make_view(waveform, "clip", "speed", AUDIO, ViewSettings(speed=(factor, factor))).numpy()
    length = math.ceil(32_000 / factor)
    assert view[length - 50 : length].any() and not view[length:].any()
    # The resampling filter changes a tone far below its edge by less than 0.1 %; at the ends it fades.
    amplitude, residual = fit_tone(view[1000 : length - 1000], 1000 * factor)
    assert amplitude == pytest.approx(0.3, rel=2e-3)
    assert residual < 2e-3


def test_a_faster_view_of_a_long_recording_continues_past_its_cut() -> None:
    waveform = torch.from_numpy(np.concatenate([np.zeros(64_000), tone(1000, 1.5, noise=0)]).astype(np.float32))
    view = make_view(waveform, "clip", "speed", AUDIO, ViewSettings(speed=(1.25, 1.25))).numpy()
    # 4 s of silence now take 3.2 s; the last 0.8 s hold the tone, a factor 1.25 higher.
    assert abs(view[:51_000]).max() < 1e-6 and fit_tone(view[51_500:], 1250)[0] == pytest.approx(0.3, rel=2e-3)


SOUNDS = st.builds(noise, st.integers(1, 12_000), st.integers(0, 2**31), st.sampled_from([0.0, 1e-31, 1e-4, 0.1, 1e5]))
SNR = st.floats(-20, 80).map(lambda ratio: (ratio, ratio + 1))
SPEED = st.floats(0.1, 9.9).map(lambda factor: (factor, factor + 0.1))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(SOUNDS, st.sampled_from(VIEWS), st.builds(ViewSettings, snr=SNR, shift=st.floats(0, 2), speed=SPEED))
def test_a_view_of_any_waveform_is_finite_and_of_one_length(waveform, view, views) -> None:
    samples = make_view(waveform, "clip", view, AudioSettings(seconds=0.25), views)
    assert samples.shape == (4000,) and samples.dtype == torch.float32 and samples.isfinite().all()
    assert view != "clean" or torch.equal(samples, torch.cat([waveform, torch.zeros(4000)])[:4000])
    assert waveform.any() or not samples.any()  # silence stays silent


def encoded(samples: np.ndarray, subtype: str | None = "FLOAT", kind: str = "WAV") -> bytes:
    """A sound file with these samples, (S,) or (S, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, subtype, format=kind)
    return file.getvalue()


def test_channels_are_averaged_and_samples_kept_bit_for_bit(tmp_path: Path) -> None:
    left, right = noise(8000, 0).numpy(), noise(8000, 1).numpy()
    (tmp_path / "a.wav").write_bytes(encoded(np.stack([left, right], axis=1)))
    assert np.array_equal(read_sound(tmp_path / "a.wav").numpy(), (left + right) / 2)


# 16 001 Hz shares no divisor with 16 kHz: torchaudio's filters for that ratio would fill the memory.
@pytest.mark.parametrize("rate", [8000, 11_025, 16_001, 44_100])
def test_resampling_keeps_duration_frequency_and_amplitude(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1000, 1, rate, noise=0), rate, subtype="FLOAT")
    samples = read_sound(tmp_path / "a.wav").numpy()
    assert len(samples) == 16_000 and samples.dtype == np.float32
    # The filters have a ripple of 0.05 % there (scipy's 0.12 %), and images of 11 025 Hz leave 0.0002.
    amplitude, residual = fit_tone(samples[1000:-1000], 1000)
    assert amplitude == pytest.approx(0.3, rel=2e-3)
    assert residual < 5e-4


def wav_bytes(rate: int = RATE, announced: int = 3_200, n_samples: int = 1_600) -> bytes:
    """A 16-bit mono WAV whose header states this rate and this many bytes of sound."""
    samples = (2**15 * noise(n_samples).numpy()).astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate & 0xFFFFFFFF, 2, 16)
    riff = struct.pack("<4sI4s", b"RIFF", 36 + announced & 0xFFFFFFFF, b"WAVE")
    return riff + form + struct.pack("<4sI", b"data", announced) + samples


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 72862\n"
BROKEN = {
    "empty.wav": (b"", "cannot be read.*Is it a sound file, and complete?"),
    "text.wav": (b"<!DOCTYPE html>\n<p>Not found</p>", "Is it a sound file, and complete?"),
    "pointer.wav": (LFS_POINTER, "is a Git LFS pointer.*git lfs pull"),
    "half a header.wav": (wav_bytes()[:30], "cannot be read"),
    "header only.wav": (wav_bytes(announced=0, n_samples=0), "holds no samples"),
    "truncated.wav": (wav_bytes(announced=32_000), "is truncated: 3200 of 32000 bytes"),
    "1 Hz.wav": (wav_bytes(rate=1), "sample rate of 1 Hz"),
    "61 s.wav": (wav_bytes(announced=2 * 61 * RATE, n_samples=61 * RATE), "lasts 61 s; at most 60 s"),
    "NaN.wav": (encoded(np.array([0.1, np.nan])), "holds .*samples that are NaN, infinite or too large"),
    "1e30.wav": (encoded(np.array([0.1, 1e30])), "holds .*samples that are NaN, infinite or too large"),
    "sound.raw": (bytes(3200), "cannot be read"),  # it states no sample rate
    "pipe.wav": (None, "is not a regular file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_file_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SamsgError, match=rf"{name} .*{reason}"):
        read_sound(tmp_path / name)


FORMATS = [encoded(noise(1_600).numpy(), None, kind) for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_files_are_read_or_refused(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.wav").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_sound(tmp_path / "a.wav").isfinite().all()
    except SamsgError as error:
        assert "a.wav" in str(error)


def test_a_corpus_becomes_one_file_of_views_and_two_tables(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "01.wav", noise(8000).numpy(), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "two.flac", np.stack([tone(440, 0.5, 44_100), tone(550, 0.5, 44_100)], 1), 44_100)
    soundfile.write(tmp_path / "grüße an.wav", np.clip(50 * noise(40_000).numpy(), -1, 1), RATE, subtype="PCM_U8")
    soundfile.write(tmp_path / "silence.wav", np.full(16_000, 0.25), RATE)
    soundfile.write(tmp_path / "short.wav", noise(1_000).numpy(), RATE)
    (tmp_path / "pointer.wav").write_bytes(LFS_POINTER)
    paths = ["01.wav", "silence.wav", "two.flac", "pointer.wav", "short.wav", "grüße an.wav"]
    clips = [path.split(".")[0] for path in paths]
    manifest = pd.DataFrame({"clip": clips, "path": paths, "emotion": ["None", "joy"] * 3})
    audio, threads = AudioSettings(hop=640), torch.get_num_threads()
    write_spectrograms(tmp_path, manifest, tmp_path, audio, ALL_VIEWS)
    assert torch.get_num_threads() == threads
    clips = pd.read_csv(tmp_path / "clips.csv", dtype=str, keep_default_na=False)
    expected = [["01", "8000", "None"], ["two", "8000", "None"], ["grüße an", "40000", "joy"]]
    assert clips[["clip", "samples", "emotion"]].to_numpy().tolist() == expected
    reasons = pd.read_csv(tmp_path / "left_out.csv")["reason"].tolist()
    assert reasons[::2] == ["silence.wav: digital silence.", "short.wav: shorter than 0.064 s."]
    assert "Git LFS pointer" in reasons[1] and len(reasons) == 3
    stored = open_spectrograms(tmp_path, audio, ALL_VIEWS)
    assert stored.shape == (3, 4, 128, 101) and stored.dtype == np.float16
    for row, (clip, path) in enumerate(zip(clips["clip"], clips["path"], strict=True)):
        views = torch.stack([make_view(read_sound(tmp_path / path), clip, view, audio, ALL_VIEWS) for view in VIEWS])
        # Half precision has steps of 2^-11 just below 1, of which rounding takes half; 1e-6 for the batch.
        np.testing.assert_allclose(stored[row], LogMel(audio)(views)[:, 0], rtol=0, atol=2**-12 + 1e-6)
    assert (stored.min((2, 3)) == 0).all() and (stored.max((2, 3)) == 1).all()
    with pytest.raises(SamsgError, match=r"No sound in .* can be used; the first: silence\.wav: digital silence"):
        write_spectrograms(tmp_path, manifest.query("clip == 'silence'"), tmp_path, audio, ALL_VIEWS)


def test_a_recording_of_one_value_or_one_bit_is_silence() -> None:
    bits = torch.arange(16_000) % 2 / 2**15
    reasons = [why_unusable(sound, RATE) for sound in (torch.zeros(16_000), bits, bits * 4, noise(1023), noise(1024))]
    assert reasons == ["digital silence", "digital silence", "", "shorter than 0.064 s", ""]
