"""Audio files -> one flat 16 kHz store a corpus, and the spectrograms of all views, both read through memory maps
(Section IV-B).

Files are read once, in order, and their samples appended batch by batch, each batch noted in a journal: an interrupted
call goes on behind the last whole one. What cannot be trained on is noted with the reason and left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.signal import resample_poly
from torchaudio.functional import resample

from samsg.audio.spectrogram import LogMel
from samsg.audio.views import make_view
from samsg.corpora.verify import Heard, listen
from samsg.runs import JOURNAL, progress_bar
from samsg.settings import AudioSettings, SamsgError, ViewSettings

BATCH = 64  # clips that are read, or computed, before they are kept
ROOM = 2**23  # samples of a batch for which there is memory, 2.7 s of each at 48 kHz; more is found when needed


def read_sound(path: str | Path, sample_rate: int = 16_000, longest: float = 600.0) -> torch.Tensor:
    """Decode a sound file to mono at one rate: -> (S,), float32.

    Args:
        path: of the file.
        sample_rate: Hz.
        longest: s; a longer recording is refused unread, since a small file may announce days.

    Raises:
        SamsgError: the file cannot be read, is too long, or holds no samples or values that are no numbers.
    """
    heard = listen(path, longest=longest, digest=False, keep=True)
    if heard.samples is None:
        raise SamsgError(
            f"{path} cannot be read as a sound file: {heard.status}, {heard.what}. Replace it, or leave it out."
        )
    return torch.from_numpy(_resampled(heard, sample_rate))


def _resampled(heard: Heard, rate: int) -> np.ndarray:
    """The samples that were kept, at another rate: (S,), float32; none if none were."""
    if heard.samples is None:
        return np.zeros(0, np.float32)
    if heard.sample_rate == rate:
        return heard.samples
    shared = math.gcd(heard.sample_rate, rate)
    if heard.sample_rate // shared > 1000:  # torchaudio's filters for such a ratio would fill the memory
        return resample_poly(heard.samples, rate // shared, heard.sample_rate // shared).astype(np.float32)
    return resample(torch.from_numpy(heard.samples), heard.sample_rate, rate).numpy()


class WaveformStore:
    """The clips of a corpus, end to end in one file.

    Attributes:
        clips: the manifest, with columns start and samples, and their crc32, and bytes and modified (ns) of the file.
        left_out: the same of what could not be trained on, with a column left_out: the reason.
    """

    def __init__(self, folder: Path) -> None:
        self.clips, self.left_out = (
            pd.read_csv(folder / name, dtype=str, keep_default_na=False).astype({"bytes": int, "modified": int})
            for name in ("clips.csv", "left_out.csv")
        )
        self.clips = self.clips.astype({"start": int, "samples": int})
        self._samples = np.memmap(folder / "samples.f32", "<f4", "r")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> torch.Tensor:
        """One recording, whole: -> (S,), float32."""
        start, length = self.clips["start"].iat[index], self.clips["samples"].iat[index]
        return torch.from_numpy(self._samples[start : start + length].copy())

    def twins(self) -> list[list[int]]:
        """The clips, by index, that hold the very same samples: a list for each sound that is there more than once."""
        alike = self.clips[self.clips.duplicated(["crc32", "samples"], keep=False)]
        sounds: dict[bytes, list[int]] = {}
        for index in alike.index:  # other sounds may have the same checksum
            sounds.setdefault(hashlib.sha256(self[index].numpy().data).digest(), []).append(index)
        return [clips for clips in sounds.values() if len(clips) > 1]

    def changed(self, manifest: pd.DataFrame, root: Path, sample_rate: int, anew: bool = False) -> list[str]:
        """The files that came, went, are called or sound otherwise than when they were read.

        Args:
            manifest: of the corpus as it is now.
            root: the folder that its paths are relative to.
            sample_rate: of the store, Hz.
            anew: listen to every file, and not to those alone whose size or time of change is another.
        """
        files = pd.concat([self.clips, self.left_out], ignore_index=True)
        changed = sorted(set(files["path"]) ^ set(manifest["path"]))
        both = manifest.set_index("path").drop(index=changed, errors="ignore")
        known = files.set_index("path").reindex(index=both.index, columns=both.columns)
        changed += sorted(both.index[(both != known).any(axis=1)])  # another emotion, speaker, part
        for index, file in files[~files["path"].isin(changed)].iterrows():
            if not anew and _stamp(root / file["path"]) == (file["bytes"], file["modified"]):
                continue
            if index >= len(self):
                same = listen(root / file["path"], digest=False).left_out == file["left_out"]
            else:
                same = _sounds_like(root / file["path"], self[index].numpy(), sample_rate)
            changed += [] if same else [file["path"]]
        return changed


def _sounds_like(path: Path, waveform: np.ndarray, sample_rate: int) -> bool:
    heard = listen(path, digest=False, keep=True)
    if heard.left_out or heard.samples is None:
        return False
    # Another kind of processor resamples in another order: far less than the last bit of a recording, 3e-5.
    slack, again = (0.0 if heard.sample_rate == sample_rate else 1e-6), _resampled(heard, sample_rate)
    return again.shape == waveform.shape and bool(np.allclose(again, waveform, rtol=slack, atol=slack))


def _stamp(path: Path) -> tuple[int, int]:
    """Size (bytes) and time of change (ns) of a file, zeros where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name that cannot be one
        return 0, 0
    return found.st_size, found.st_mtime_ns


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Threads, one a core, in which torch computes with one thread each: on work as small as a clip, torch's own
    threads wait for each other more than they work."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def write_store(manifest: pd.DataFrame, root: Path, folder: Path, audio: AudioSettings) -> None:
    """Read every file of a manifest once: samples.f32, clips.csv, left_out.csv and fingerprint.txt in ``folder``.

    A folder that holds the journal of an interrupted call is gone on from, if its files have not changed since. The
    journal stays until the stage is whole.

    Raises:
        SamsgError: no file at all can be trained on.
    """
    paths = list(manifest["path"])
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    done = _gone_on_from(folder, batches, root)
    memory = np.zeros((2, ROOM), np.float32)  # of the batch that is read, and of the one that is written meanwhile
    with (
        (folder / "samples.f32").open("ab") as samples,
        (folder / JOURNAL).open("a", encoding="utf-8") as journal,
        progress_bar(None, "reading sounds", len(paths), "clip", len(done)) as bar,
        workers() as pool,
        ThreadPoolExecutor(1) as writer,
    ):

        def write(clips: list[dict[str, Any]], sounds: list[Heard]) -> list[dict[str, Any]]:
            at_once = pool.map if any(sound.sample_rate != audio.sample_rate for sound in sounds) else map
            for clip, waveform in zip(clips, at_once(partial(_resampled, rate=audio.sample_rate), sounds), strict=True):
                clip |= {"samples": len(waveform), "crc32": zlib.crc32(waveform.data)}
                samples.write(waveform.data)
            samples.flush()  # before the note that says it is there
            journal.write(f"{json.dumps(clips)}\n")
            journal.flush()
            return clips

        written = None
        for number, batch in enumerate(batches[-(-len(done) // BATCH) :]):
            free, clips, sounds = memory[number % 2], [], []
            for path in batch:
                size, modified = _stamp(root / path)
                heard = listen(root / path, digest=False, keep=True, into=free)
                free = free[heard.frames :]
                clips.append({"path": path, "left_out": heard.left_out, "bytes": size, "modified": modified})
                sounds.append(heard._replace(samples=None) if heard.left_out else heard)
                bar.update()
            done += written.result() if written else []
            written = writer.submit(write, clips, sounds)
        done += written.result() if written else []
    notes = pd.DataFrame(done).drop(columns="path")
    bad = (notes["left_out"] != "").to_numpy()
    if bad.all():
        raise SamsgError(f"No sound in {root} can be used; the first: {notes['left_out'].iloc[0]}.")
    files = manifest.reset_index(drop=True).join(notes)
    files[bad].drop(columns=["samples", "crc32"]).to_csv(folder / "left_out.csv", index=False)
    clips = files[~bad].drop(columns="left_out")
    clips["start"] = clips["samples"].cumsum() - clips["samples"]
    clips.to_csv(folder / "clips.csv", index=False)
    # Of every column, the samples' checksums among them, but not of when a file was written.
    seen = hashlib.sha256(clips.drop(columns="modified").to_csv(index=False).encode())
    (folder / "fingerprint.txt").write_text(f"{seen.hexdigest()}\n", encoding="ascii")


def _gone_on_from(folder: Path, batches: list[list[str]], root: Path) -> list[dict[str, Any]]:
    """The notes of an interrupted call on the same files; samples.f32 and the journal are cut behind the last of them.

    A note that was cut off, or whose samples are not there as it says, and everything behind it, does not count.
    """
    done: list[dict[str, Any]] = []
    journal, samples = folder / JOURNAL, folder / "samples.f32"
    journal.touch()
    samples.touch()
    noted = 0  # bytes of the journal
    with samples.open("rb") as stored:
        for batch, line in zip(batches, journal.read_bytes().split(b"\n")[:-1], strict=False):
            try:
                clips = json.loads(line)
            except ValueError:  # after a power failure
                break
            stamps = [(clip["path"], clip["bytes"], clip["modified"]) for clip in clips]
            if stamps != [(path, *_stamp(root / path)) for path in batch]:
                break
            if any(zlib.crc32(stored.read(4 * clip["samples"])) != clip["crc32"] for clip in clips):
                break
            done += clips
            noted += len(line) + 1
    os.truncate(journal, noted)
    os.truncate(samples, 4 * sum(clip["samples"] for clip in done))
    return done


def write_spectrograms(store: WaveformStore, folder: Path, audio: AudioSettings, views: ViewSettings) -> None:
    """Compute the log-mel spectrogram of every view of every clip and write views.npy: (V, N, 128, 1001), float16.

    Half precision keeps values of [0, 1] to 0.0003, a tenth of what 8-bit grey pictures do, and 0 exactly. A folder
    that an interrupted call left is gone on from, behind the last clip that is there as the journal says: its checksum.
    """
    shape, path = (len(views.names), len(store), audio.n_mels, audio.n_frames), folder / "views.npy"
    done = _whole(path, folder / JOURNAL, shape)
    # Filled through a file: a full disk is an error then; through a memory map it ends the process.
    start_of = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, shape).offset
    log_mel = LogMel(audio)

    def compute(index: int) -> np.ndarray:
        clip = store.clips["clip"].iat[index]
        waveforms = torch.stack([make_view(store[index], clip, view, audio, views) for view in views.names])
        return log_mel(waveforms)[:, 0].numpy().astype(np.float16, order="C")  # (V, 128, 1001)

    with (
        path.open("r+b") as spectrograms,
        (folder / JOURNAL).open("r+b" if done else "wb") as notes,
        progress_bar(None, "spectrograms", len(store), "clip", done) as bar,
        workers() as pool,
    ):
        notes.seek(4 * done)
        for start in range(done, len(store), BATCH):
            some = range(start, min(start + BATCH, len(store)))
            for index, pictures in zip(some, pool.map(compute, some), strict=True):
                for view, picture in enumerate(pictures):
                    spectrograms.seek(start_of + (view * len(store) + index) * picture.nbytes)
                    spectrograms.write(picture.data)
                spectrograms.flush()  # before the note that says it is there
                notes.write(zlib.crc32(pictures.data).to_bytes(4, "little"))
                notes.flush()
                bar.update()


def _whole(path: Path, journal: Path, shape: tuple[int, ...]) -> int:
    """How many clips' spectrograms an interrupted call left."""
    try:
        spectrograms, notes = np.load(path, mmap_mode="r"), np.fromfile(journal, "<u4")
    except (OSError, ValueError):  # nothing yet, or a header that was cut off
        return 0
    if spectrograms.shape != shape:
        return 0
    right = [zlib.crc32(spectrograms[:, index].copy().data) == note for index, note in enumerate(notes[: shape[1]])]
    return [*right, False].index(False)
