"""Preparation and loading: one pass into a memory map, against reading sound files again in every epoch."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Row, row, seconds
from samsg.audio import LogMel, open_spectrograms, read_sound, write_spectrograms
from samsg.corpora import COLUMNS, official_list
from samsg.settings import AudioSettings, ViewSettings
from samsg.training import Examples

AUDIO, VIEWS = AudioSettings(), ViewSettings()
CLIPS = 256


class Files(Dataset):
    """The first thing that one writes: read, resample and transform a clip when it is asked for."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths, self.log_mel = root, paths, LogMel(AUDIO)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        waveform = read_sound(self.root / self.paths[index], AUDIO.sample_rate)
        return self.log_mel(F.pad(waveform, (0, AUDIO.n_samples - len(waveform)))[None])[0]  # (1, 128, 1001)


def write_noise(root: Path, rate: int, clips: int) -> pd.DataFrame:
    """Noise of the lengths of CREMA-D's first files, at another rate (Hz): its manifest."""
    files = official_list("crema_d").head(clips)
    noise = 0.1 * np.random.default_rng(0).standard_normal(6 * rate).astype(np.float32)
    for file, frames in zip(files["file"], files["frames"], strict=True):
        soundfile.write(root / file, noise[: frames * rate // 16_000], rate)
    return files.assign(path=files["file"], corpus="crema_d")[COLUMNS]


def preparation(root: Path, clips: int) -> list[Row]:
    """A clip read and resampled, and a clip prepared: four views and their spectrograms."""
    rows = []
    for rate in (16_000, 44_100):
        folder, prepared, threads = root / str(rate), root / f"prepared {rate}", torch.get_num_threads()
        folder.mkdir()
        prepared.mkdir()
        manifest = write_noise(folder, rate, clips)
        start_time = time.perf_counter()
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(lambda path, folder=folder: read_sound(folder / path, AUDIO.sample_rate), manifest["path"]))
        read_time = (time.perf_counter() - start_time) / clips
        start_time = time.perf_counter()
        write_spectrograms(prepared, manifest, folder, AUDIO, VIEWS)
        prepare_time = (time.perf_counter() - start_time) / clips
        torch.set_num_threads(threads)
        rows.append(row("preparation", f"a clip at {rate} Hz, read and resampled", 1000 * read_time, "ms"))
        rows.append(row("preparation", f"a clip at {rate} Hz, its four views' spectrograms", 1000 * prepare_time, "ms"))
    return rows


def epoch(root: Path, clips: int) -> list[Row]:
    """A clip's spectrogram in an epoch: from its file, by two workers, and from the memory map. After preparation."""
    paths = sorted(path.name for path in (root / "16000").iterdir())
    start_time = time.perf_counter()
    for _ in DataLoader(Files(root / "16000", paths), batch_size=4, num_workers=2):
        pass
    file_time = (time.perf_counter() - start_time) / clips
    spectrograms = open_spectrograms(root / "prepared 16000", AUDIO, VIEWS)
    examples = Examples(spectrograms, np.zeros(clips, int), {"train": np.arange(clips)}, np.array(paths))
    map_time = seconds(lambda: [examples.batch(*indices) for indices in examples.epoch((0, 0), 4)], "cpu") / clips
    note = f"{file_time / map_time:.0f} x less"
    return [
        row("loading", "a clip in an epoch, from its file, two workers", 1000 * file_time, "ms"),
        row("loading", "a clip in an epoch, from the memory map", 1000 * map_time, "ms", note),
    ]


def run(device: str, clips: int = CLIPS) -> list[Row]:
    """Both; on the CPU whatever the device."""
    with tempfile.TemporaryDirectory() as root:
        return [*preparation(Path(root), clips), *epoch(Path(root), clips)]
