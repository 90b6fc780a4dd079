"""Sounds for the tests: quiet noise, files whose headers say what is not so, and files that end a careless program."""

import os
import struct
from pathlib import Path

import numpy as np
import soundfile

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 60788\n"


def noise(seconds: float = 0.1, rate: int = 16_000) -> np.ndarray:
    """(S,): quiet noise, the same each time."""
    return 0.1 * np.random.default_rng(0).uniform(-1, 1, round(seconds * rate))


def written(path: Path, samples: np.ndarray | None = None, rate: int = 16_000, **options: str) -> Path:
    """A sound file, 0.1 s of noise unless samples are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise() if samples is None else samples, rate, **options)
    return path


def wav(rate: int = 16_000, announced: int = 3_200, samples: bytes | None = None) -> bytes:
    """A 16 bit mono WAV whose header may say what is not so."""
    samples = (noise() * 2**15).astype("<i2").tobytes() if samples is None else samples
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate & 0xFFFFFFFF, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + announced & 0xFFFFFFFF, b"WAVE") + form + struct.pack(
        "<4sI", b"data", announced
    ) + samples  # fmt: skip


def make_hostile(root: Path) -> dict[str, tuple[str, str]]:
    """Files that end a careless program, with the status and the words that each should get."""
    root.mkdir()
    (root / "empty.wav").write_bytes(b"")
    (root / "header only.wav").write_bytes(wav(announced=0, samples=b""))
    (root / "half a header.wav").write_bytes(wav()[:30])
    (root / "truncated.wav").write_bytes(wav(announced=32_000))
    flac = written(root / "truncated.flac", noise(2.0)).read_bytes()
    (root / "truncated.flac").write_bytes(flac[: len(flac) // 2])
    (root / "text.wav").write_text("<!DOCTYPE html>\n<p>Not found</p>")
    (root / "bytes.wav").write_bytes(np.random.default_rng(1).bytes(5_000))
    (root / "pointer.wav").write_text(POINTER)
    written(root / "nan.wav", np.where(np.arange(1600) == 800, np.nan, noise()), subtype="FLOAT")
    written(root / "infinite.wav", np.where(np.arange(1600) == 800, -np.inf, noise()), subtype="DOUBLE")
    written(root / "overflow.wav", noise() * 1e30, subtype="FLOAT")
    (root / "0 Hz.wav").write_bytes(wav(rate=0))
    (root / "1 Hz.wav").write_bytes(wav(rate=1))
    (root / "4 GHz.wav").write_bytes(wav(rate=2**32 - 1))
    hours = 3 * 3600 * 16_000 * 2  # bytes; a sparse file
    (root / "3 hours.wav").write_bytes(wav(announced=hours))
    os.truncate(root / "3 hours.wav", 44 + hours)
    (root / "3 hours, says its header.wav").write_bytes(wav(announced=hours))
    written(root / "1 sample.wav", np.array([0.5]))
    written(root / "silence.wav", np.zeros(16_000))
    written(root / "last bit.wav", np.arange(16_000) % 2 / 2**15)
    written(root / "constant.wav", np.full(16_000, 0.25))
    written(root / "out of phase.wav", np.stack([noise(), -noise()], 1))
    (root / "folder.wav").mkdir()
    (root / "link.wav").symlink_to(root / "nothing.wav")
    (root / "circle.wav").symlink_to(root / "circle.wav")
    os.mkfifo(root / "pipe.wav")
    return {
        "empty.wav": ("empty", "0 bytes"),
        "header only.wav": ("empty", "header"),
        "half a header.wav": ("unreadable", "damaged"),
        "truncated.wav": ("truncated", "3200 of 32000 bytes"),
        "truncated.flac": ("unreadable", "damaged"),
        "text.wav": ("unreadable", "text: '<!DOCTYPE html>'"),
        "bytes.wav": ("unreadable", "damaged"),
        "pointer.wav": ("LFS pointer", "bytes of text"),
        "nan.wav": ("not numbers", "NaN"),
        "infinite.wav": ("not numbers", "infinite"),
        "overflow.wav": ("not numbers", "overflow"),
        "0 Hz.wav": ("unreadable", "damaged"),
        "1 Hz.wav": ("unreadable", "1 Hz"),
        "4 GHz.wav": ("unreadable", "damaged"),
        "3 hours.wav": ("very long", "10800 s, more than 60 s"),
        "3 hours, says its header.wav": ("truncated", "3200 of 345600000 bytes"),
        "1 sample.wav": ("too short", "1 samples"),
        "silence.wav": ("no audio", "1.000 s"),
        "last bit.wav": ("no audio", "silence"),
        "constant.wav": ("no audio", "silence"),
        "out of phase.wav": ("no audio", "silence"),
        "folder.wav": ("unreadable", "a folder"),
        "link.wav": ("unreadable", "a link to nothing"),
        "circle.wav": ("unreadable", "symbolic link"),
        "pipe.wav": ("unreadable", "a pipe"),
        "not there.wav": ("missing", "not on disk"),
        "nul\0byte.wav": ("unreadable", "null"),
    }
