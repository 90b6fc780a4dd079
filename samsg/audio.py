"""A sound file -> four views -> log-mel spectrograms (Sections III-A and IV-B, Eq. 1-2).

A view depends on the clip's name, the view's name and one seed, so its spectrogram, rollout and mask belong together.
"""

import math
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from scipy.signal import resample_poly
from torch import Tensor, nn
from torchaudio.functional import add_noise, resample
from torchaudio.transforms import MelSpectrogram

from samsg.settings import AudioSettings, SamsgError, ViewSettings
from samsg.storage import progress

LFS_POINTER = b"version https://git-lfs"  # how the text begins that Git LFS keeps in place of a sound
SHORTEST, LONGEST = 0.064, 60.0  # s: one Fourier transform of the paper, and far more than a sentence
SPECTROGRAMS, CLIPS, REJECTED_CLIPS = "views.f16", "clips.csv", "left_out.csv"  # files that preparation leaves


def read_sound(path: str | Path, sample_rate: int = 16_000, longest: float = LONGEST) -> Tensor:
    """Decode a sound file of any format that libsndfile reads to mono at one rate (Hz): -> (S,), float32.

    Channels are averaged. SamsgError if the file is missing, no sound file, truncated, empty, longer than ``longest``
    (s), or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise SamsgError(f"{path} is {'not a regular file' if path.exists() else 'missing'}.")
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise SamsgError(f"{path} is a Git LFS pointer, not a sound; run 'git lfs pull' where it comes from.")
        with soundfile.SoundFile(path) as sound:
            rate, frames, header = sound.samplerate, sound.frames, sound.extra_info
            if not 1_000 <= rate <= 768_000:
                raise SamsgError(f"{path} states a sample rate of {rate} Hz: its header is damaged.")
            if longest * rate < frames < 2**62:  # a stream of unknown length states more
                raise SamsgError(f"{path} lasts {frames / rate:.0f} s; at most {longest:g} s are read. Cut it.")
            samples = sound.read(math.ceil(longest * rate), "float32", always_2d=True).mean(axis=1)  # (S,)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: raw samples state no sample rate
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise SamsgError(f"{path} cannot be read: {reason}. Is it a sound file, and complete?") from error
    sizes = re.search(r"^(?:data| SSND) : (\d+) \(should be (\d+)\)", header, re.M)
    if sizes and int(sizes[2]) < int(sizes[1]) < 2**31 - 1:  # 2**31 - 1: a pipe, length unknown
        raise SamsgError(f"{path} is truncated: {sizes[2]} of {sizes[1]} bytes of sound; fetch it again.")
    if not len(samples) or not np.abs(samples).max() < 1e12:  # the power of more would overflow
        raise SamsgError(f"{path} holds no samples, or samples that are NaN, infinite or too large.")
    return change_rate(torch.from_numpy(samples), rate, sample_rate)


def change_rate(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Resample from one rate to another, Hz: (S,) -> (S',), float32."""
    divisor = math.gcd(rate, new_rate)
    if rate // divisor > 1000:  # torchaudio's filters for such a ratio would fill the memory
        return torch.from_numpy(resample_poly(waveform, new_rate // divisor, rate // divisor).astype(np.float32))
    return resample(waveform, rate, new_rate)


def why_unusable(waveform: Tensor, sample_rate: int) -> str:
    """Why a recording cannot be trained on, or '' if it can be: too short, or digital silence."""
    if len(waveform) < SHORTEST * sample_rate:
        return f"shorter than {SHORTEST} s"
    if waveform.max() - waveform.min() <= 2 / 2**15:  # the last bit of 16-bit sound
        return "digital silence"
    return ""


def make_view(waveform: Tensor, clip: str, view: str, audio: AudioSettings, views: ViewSettings) -> Tensor:
    """One view of a clip, 4 s long: (S,) -> (64000,). ``views.seed``, clip and view seed its random numbers.

    'noise' adds white noise before padding, so that padding stays 0 and the signal-to-noise ratio is that of the
    speech. 'shift' moves the clip in time. 'speed' plays it faster or slower, pitch included.
    """
    generator = np.random.default_rng([views.seed, zlib.crc32(f"{clip}/{view}".encode())])
    if view == "speed":
        # A speed in hundredths keeps the ratio of the two rates simple, and so the resampling filter short.
        waveform = resample(waveform, round(100 * generator.uniform(min(views.speed), max(views.speed))), 100)
    waveform = waveform[: audio.n_samples]
    if view == "noise" and waveform.any():  # silence has no signal-to-noise ratio
        noise = torch.from_numpy(generator.standard_normal(len(waveform), dtype=np.float32))
        ratio = generator.uniform(min(views.snr), max(views.snr))  # dB
        waveform = add_noise(waveform, noise, torch.tensor(ratio, dtype=torch.float32))
    waveform = nn.functional.pad(waveform, (0, audio.n_samples - len(waveform)))  # with zeros (Section IV-B)
    if view == "shift":
        limit = min(round(views.shift * audio.sample_rate), audio.n_samples)
        offset = int(generator.integers(-limit, limit + 1))
        waveform = nn.functional.pad(waveform, (offset, -offset))  # a negative pad cuts
    return waveform


class LogMel(nn.Module):
    """Log-mel spectrograms, scaled clip by clip: (B, 64000) -> (B, 1, 128, 1001), float32.

    Centred frames, Hamming window, power spectrum (Eq. 1), HTK mel scale (Eq. 2), no area normalisation, decibels.
    The quietest cell of a clip becomes 0 (black) and the loudest 1. Digital silence becomes 0 throughout.
    """

    def __init__(self, audio: AudioSettings = AudioSettings()) -> None:
        super().__init__()
        self.floor = audio.floor
        sizes = {"n_fft": audio.n_fft, "win_length": audio.window, "hop_length": audio.hop, "n_mels": audio.n_mels}
        kinds = {"window_fn": torch.hamming_window, "power": 2.0, "norm": None, "mel_scale": "htk"}
        self.mel = MelSpectrogram(audio.sample_rate, **sizes, **kinds)

    def decibels(self, waveforms: Tensor) -> Tensor:
        """Unscaled log-mel spectrograms in dB: (B, 64000) -> (B, 128, 1001)."""
        return 10 * self.mel(waveforms).clamp(min=self.floor).log10()

    def forward(self, waveforms: Tensor) -> Tensor:
        """Log-mel spectrograms, scaled to [0, 1]: (B, 64000) -> (B, 1, 128, 1001)."""
        decibels = self.decibels(waveforms)
        lowest, highest = (decibels.amin((1, 2), keepdim=True), decibels.amax((1, 2), keepdim=True))  # (B, 1, 1) each
        return ((decibels - lowest) / (highest - lowest).clamp(min=1e-6))[:, None]


def write_spectrograms(
    folder: Path, manifest: pd.DataFrame, root: Path, audio: AudioSettings, views: ViewSettings
) -> None:
    """Read each sound of a corpus, compute its views' spectrograms, and append them to one file.

    Leaves views.f16, (N, V, 128, 1001) in half precision; clips.csv, the manifest with a column samples (of the
    recording, at ``audio.sample_rate``); and left_out.csv, the clips that cannot be trained on, with the reason.
    """
    log_mel, n_clips, threads = LogMel(audio), len(manifest), torch.get_num_threads()

    def process_clip(path: str, clip: str) -> tuple[str, int, bytes]:  # why left out, samples, spectrograms
        try:
            waveform = read_sound(root / path, audio.sample_rate)
        except SamsgError as error:
            return str(error), 0, b""
        if reason := why_unusable(waveform, audio.sample_rate):
            return f"{path}: {reason}.", 0, b""
        waveforms = torch.stack([make_view(waveform, clip, view, audio, views) for view in views.names])  # (V, 64000)
        # Half precision keeps values of [0, 1] to 0.0003, a tenth of the step of 8-bit grey pictures, and 0 exactly.
        return "", len(waveform), log_mel(waveforms).numpy().astype(np.float16).tobytes()

    reasons, samples = [], []
    # One thread a clip: on work this small, torch's own threads wait for each other. 256 clips at a time, for memory.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    # Ordinary writes: a full disk is an error then, and through a memory map it would kill the process.
    with pool, (folder / SPECTROGRAMS).open("wb") as file:
        chunks = (manifest.iloc[start : start + 256] for start in range(0, n_clips, 256))
        results = (result for chunk in chunks for result in pool.map(process_clip, chunk["path"], chunk["clip"]))
        for reason, length, content in progress(results, "spectrograms", n_clips):
            file.write(content)
            reasons.append(reason)
            samples.append(length)
    torch.set_num_threads(threads)  # threads that start later take the number that was set last
    table = manifest.assign(samples=samples, reason=reasons)
    is_usable = table["reason"] == ""
    if not is_usable.any():
        raise SamsgError(f"No sound in {root} can be used; the first: {reasons[0]}")
    table[is_usable].drop(columns="reason").to_csv(folder / CLIPS, index=False)
    table[~is_usable].drop(columns="samples").to_csv(folder / REJECTED_CLIPS, index=False)


def open_spectrograms(folder: Path, audio: AudioSettings, views: ViewSettings) -> np.ndarray:
    """Memory-map what ``write_spectrograms`` left: (N, V, 128, 1001), float16, read only."""
    shape = (-1, len(views.names), audio.n_mels, audio.n_frames)
    return np.memmap(folder / SPECTROGRAMS, np.float16, "r").reshape(shape)
