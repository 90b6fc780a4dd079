"""The toy corpus of all tests: three classes of noisy tones that are learned in seconds; sound files of any kind."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

CLASSES = {"high": 2000, "low": 300, "middle": 900}  # Hz
NOISE = {"high": 0.003, "low": 0.03, "middle": 0.3}  # standard deviation; brightness is learned faster than pitch

TRAINING = {"precision": "32-true", "device": "cpu"}  # the same numbers on every machine


def tone(frequency: float, seconds: float = 0.5, rate: int = 16_000, seed: int = 0, noise: float = 0.01) -> np.ndarray:
    """A tone in white noise of this standard deviation: (S,), float64."""
    random = np.random.default_rng(seed)
    samples = 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return samples + noise * random.standard_normal(len(samples))


def wav(path: Path, seconds: float = 0.5, rate: int = 16_000, frequency: float = 440, **options: Any) -> Path:
    """Write a sound file with a noisy tone in it; the format follows from the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(frequency, seconds, rate), rate, **options)
    return path


def write_tone_corpus(home: Path, clips: int = 14, **changes: Any) -> Path:
    """The toy corpus as home/tones.csv, and home/tones.yaml, a profile that trains on it: the profile's path.

    Each class has ``clips`` clips of 0.4 s by four speakers, who say two sentences. Spectrograms are of 0.5 s: the last
    0.1 s is padding. With one thread the whole chain takes 5 s, and the baseline gets every test clip of seed 0 right.

    Args:
        home: the folder to write to.
        clips: of each class.
        changes: groups of settings that replace the profile's.
    """
    random, lines = np.random.default_rng(0), ["path,emotion,speaker,sentence"]
    for emotion, frequency in CLASSES.items():
        for number in range(clips):
            path = home / f"{emotion}{number}.wav"
            samples = tone(frequency * random.uniform(0.9, 1.1), 0.4, seed=number, noise=NOISE[emotion])
            soundfile.write(path, samples, 16_000)
            lines.append(f"{path.name},{emotion},s{number % 4},{'ab'[number // 4 % 2]}")
    (home / "tones.csv").write_text("\n".join(lines) + "\n")
    profile = {
        "description": "Noisy tones",
        "corpora": {"tones": {"reader": str(home / "tones.csv"), "note": "tones"}},
        "audio": {"seconds": 0.5, "hop": 256},
        "views": {"snr": [30, 40], "shift": 0.1},
        "model": {"size": "tiny", "depth": 1, "weights": "random"},
        "mask": {"scale": "minmax"},
        "training": {**TRAINING, "epochs": 6, "lr": 1e-4, "head_lr": 1e-3, "schedule": "one_cycle"},
        "samsg": {"epochs": 2},
        "probe": {"epochs": 1},
        **changes,
    }
    (home / "tones.yaml").write_text(yaml.safe_dump(profile))
    return home / "tones.yaml"
