"""Audio files -> one flat 16 kHz store a corpus, and the spectrograms of all views, both read through memory maps
(Section IV-B)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from scipy.signal import resample_poly
from torchaudio.functional import resample

from samsg.audio.spectrogram import LogMel
from samsg.audio.views import make_view
from samsg.corpora.catalogue import POINTER
from samsg.runs import progress_bar
from samsg.settings import AudioSettings, SamsgError, ViewSettings


def read_sound(path: str | Path, sample_rate: int = 16_000) -> torch.Tensor:
    """Decode a sound file to mono at one rate: -> (S,), float32.

    Raises:
        SamsgError: the file cannot be read, holds no samples, or holds values that are no numbers.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        if _is_lfs_pointer(Path(path)):
            raise SamsgError(
                f"{path} is a Git LFS pointer, not sound; run 'git lfs pull' where it came from."
            ) from error
        raise SamsgError(f"{path} cannot be read as a sound file: {error}. Replace it, or leave it out.") from error
    if len(samples) == 0:
        raise SamsgError(f"{path} holds no samples. Replace it, or leave it out.")
    if not np.isfinite(samples).all():
        raise SamsgError(f"{path} holds samples that are not numbers (NaN or infinite). Replace it, or leave it out.")
    mono = samples.mean(1)
    if rate // math.gcd(rate, sample_rate) > 1000:  # torchaudio's filters for such a ratio would fill the memory
        ratio = sample_rate // math.gcd(rate, sample_rate), rate // math.gcd(rate, sample_rate)
        return torch.from_numpy(resample_poly(mono, *ratio).astype(np.float32))
    return resample(torch.from_numpy(mono), rate, sample_rate)


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


class WaveformStore:
    """The clips of a corpus, end to end in one file.

    Attributes:
        clips: the manifest, with columns start and samples.
    """

    def __init__(self, folder: Path) -> None:
        self.clips = pd.read_csv(folder / "clips.csv", dtype=str, keep_default_na=False)
        self.clips = self.clips.astype({"start": int, "samples": int, "bytes": int})
        self._samples = np.load(folder / "samples.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> torch.Tensor:
        """One recording, whole: -> (S,), float32."""
        start, length = self.clips["start"].iat[index], self.clips["samples"].iat[index]
        return torch.from_numpy(self._samples[start : start + length].copy())


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any], text: str) -> Iterator[Any]:
    """Apply a function to items on all cores, in order, with a progress bar.

    One thread an item: on work as small as a clip, torch's own threads wait for each other more than they work.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from progress_bar(pool.map(function, items), text, len(items), "clip")
    finally:
        torch.set_num_threads(threads)


def write_store(manifest: pd.DataFrame, root: Path, folder: Path, audio: AudioSettings) -> None:
    """Read every file of a manifest once and write samples.npy and clips.csv.

    Raises:
        SamsgError: a file cannot be read; the message names it.
    """

    def read(path: str) -> np.ndarray:
        return read_sound(root / path, audio.sample_rate).numpy()

    sounds = list(in_parallel(read, list(manifest["path"]), "reading sounds"))
    lengths = np.array([len(sound) for sound in sounds])
    np.save(folder / "samples.npy", np.concatenate(sounds))
    clips = manifest.assign(start=np.concatenate([[0], lengths.cumsum()[:-1]]), samples=lengths)
    clips["bytes"] = [(root / path).stat().st_size for path in manifest["path"]]
    clips.to_csv(folder / "clips.csv", index=False)
    seen = hashlib.sha256((folder / "clips.csv").read_bytes())
    with (folder / "samples.npy").open("rb") as file:
        seen.update(hashlib.file_digest(file, "sha256").digest())
    (folder / "fingerprint.txt").write_text(f"{seen.hexdigest()}\n", encoding="ascii")


def write_spectrograms(store: WaveformStore, folder: Path, audio: AudioSettings, views: ViewSettings) -> None:
    """Compute the log-mel spectrogram of every view of every clip and write views.npy: (V, N, 128, 1001), float16.

    Half precision keeps values of [0, 1] to 0.0003, a tenth of what 8-bit grey pictures do, and 0 exactly.
    """
    shape = (len(views.names), len(store), audio.n_mels, audio.n_frames)
    spectrograms = np.lib.format.open_memmap(folder / "views.npy", "w+", np.float16, shape)
    log_mel = LogMel(audio)

    def compute(index: int) -> np.ndarray:
        clip = store.clips["clip"].iat[index]
        waveforms = torch.stack([make_view(store[index], clip, view, audio, views) for view in views.names])
        return log_mel(waveforms)[:, 0].numpy()  # (V, 128, 1001)

    for index, pictures in enumerate(in_parallel(compute, range(len(store)), "spectrograms")):
        spectrograms[:, index] = pictures
    spectrograms.flush()
