"""Sounds and spectrograms: one pass into a store and memory maps, against reading files one by one in every epoch."""

from __future__ import annotations

import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset
from torchaudio.functional import resample

from benchmarks.measure import Row, row, seconds
from samsg.audio.spectrogram import LogMel
from samsg.audio.store import WaveformStore, write_spectrograms, write_store
from samsg.audio.views import fit
from samsg.corpora.verify import official_list
from samsg.settings import AudioSettings, ViewSettings
from samsg.training.loop import Examples

AUDIO = AudioSettings()
FEW = 256  # clips, where each costs milliseconds


class Files(Dataset):
    """What one writes first: read, resample, transform, on demand."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths, self.log_mel = root, paths, LogMel(AUDIO)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        samples, rate = soundfile.read(self.root / self.paths[index], dtype="float32")
        waveform = resample(torch.from_numpy(samples), rate, AUDIO.sample_rate)
        return self.log_mel(fit(waveform, AUDIO.n_samples)[None])[0]


def dummy_corpus(root: Path, rate: int, share: float = 1.0) -> pd.DataFrame:
    """Noise of the lengths of CREMA-D's 7 442 files: its manifest."""
    listed = official_list("crema_d")
    listed = listed[: round(share * len(listed))]
    noise = 0.1 * np.random.default_rng(0).standard_normal(6 * rate).astype(np.float32)
    for file, frames in zip(listed["file"], listed["frames"], strict=True):
        soundfile.write(root / file, noise[: frames * rate // 16_000], rate)
    return listed.assign(path=listed["file"], corpus="crema_d")[
        ["clip", "path", "corpus", "speaker", "sentence", "emotion"]
    ]


def read_alone(root: Path, path: str) -> None:
    """What preparing is measured against."""
    samples, rate = soundfile.read(root / path, dtype="float32")
    resample(torch.from_numpy(samples), rate, AUDIO.sample_rate)


def preparation(root: Path) -> list[Row]:
    """The store, against soundfile and torchaudio alone on the same cores; the fastest of three passes each."""
    rows = []
    for rate, share in ((16_000, 1.0), (44_100, 0.25)):
        folder = root / str(rate)
        folder.mkdir()
        manifest = dummy_corpus(folder, rate, share)
        alone, ours = [], []
        for number in range(3):
            started = time.perf_counter()
            with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(lambda path, folder=folder: read_alone(folder, path), manifest["path"]))
            alone.append(time.perf_counter() - started)
            out = root / f"store {rate} {number}"
            out.mkdir()
            started = time.perf_counter()
            write_store(manifest, folder, out, AUDIO)
            ours.append(time.perf_counter() - started)
            shutil.rmtree(out)  # the next must not wait for this one to reach the disk
        case = f"{len(manifest)} clips of CREMA-D's lengths at {rate} Hz"
        rows.append(row("preparation", f"{case}, soundfile and torchaudio alone", min(alone), "s"))
        rows.append(row("preparation", f"{case}, the store", min(ours) / min(alone), "x that", f"{min(ours):.2f} s"))
    return rows


def epoch(root: Path) -> list[Row]:
    """A clip's spectrogram in an epoch: from files by two workers, and from the memory map."""
    folder, views = root / "16000", ViewSettings()
    manifest = dummy_corpus(folder, 16_000, FEW / 7442)
    started = time.perf_counter()
    for _ in DataLoader(Files(folder, list(manifest["path"])), batch_size=4, num_workers=2):
        pass
    files = (time.perf_counter() - started) / len(manifest)
    out = root / "few"
    out.mkdir()
    write_store(manifest, folder, out, AUDIO)
    started = time.perf_counter()
    write_spectrograms(WaveformStore(out), out, AUDIO, views)
    once = (time.perf_counter() - started) / len(manifest)
    examples = Examples(np.load(out / "views.npy", mmap_mode="r"), np.zeros(len(manifest), int), {})
    order = np.random.default_rng(0).permutation(len(manifest)).reshape(-1, 4)
    mapped = seconds(lambda: [examples.batch(chosen, 0, "cpu") for chosen in order], "cpu") / len(manifest)
    return [
        row("loading", "a clip in an epoch, from its file, two workers", 1000 * files, "ms"),
        row(
            "loading",
            "a clip in an epoch, from the memory map",
            1000 * mapped,
            "ms",
            f"{files / mapped:.0f} x less",
        ),
        row("loading", "a clip once, its four views", 1000 * once, "ms"),
    ]


def run(device: str) -> list[Row]:
    """Both; on the CPU whatever the device."""
    with tempfile.TemporaryDirectory() as root:
        return [*preparation(Path(root)), *epoch(Path(root))]
