"""The embedded corpora: SAVEE, EmoDB and CREMA-D (Section IV-A) as a speech synthesiser speaks them.

eSpeak, as Praat contains it, speaks the sentences; Praat's overlap-add resynthesis (Moulines & Charpentier, 1990) gives
them a speaker's pitch and vocal tract and an actor's melody; a filter and noise give voice quality. The emotions follow
what is known of acted speech (Banse & Scherer, 1996; Juslin & Laukka, 2003). Praat-parselmouth, an extra, is GPL-3.
"""

import itertools
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soundfile
from scipy import fft, ndimage, signal

from samsg.corpora import GRAMMARS, SYNTHETIC_NOTE
from samsg.settings import SamsgError, SyntheticSettings, check_name
from samsg.storage import progress, whole_folder

try:
    import parselmouth
    from parselmouth import praat
except ImportError:  # an extra; corpora that were spoken before are read without it
    parselmouth = None

RECIPE = 1  # another number: other sounds from the same settings
SOURCE_RATE = 22_050  # Hz, eSpeak's own
# eSpeak's voices without flutter and roughness: the sound of the others depends on what was spoken before.
VOICES = ("Denis", "Michel")
# Gives a pitch tier the values of a Sound: one call for all points.
SET_PITCH = """
values = selected ("Sound")
tier = selected ("PitchTier")
selectObject: tier
Formula: "object [values, 1, col]"
"""
# How an emotion departs from neutral, and, in the last row, how far its clips differ (one standard deviation).
# Semitones (slope: a clip); range, rate: octaves; pause: s; tilt: dB an octave; loudness: dB; breath: share of voice.
CUE_TABLE = pd.read_csv(Path(__file__).with_name("emotions.csv"), index_col="emotion")
CUES, EMOTIONS = list(CUE_TABLE), {name: list(cues) for name, *cues in CUE_TABLE.drop("spread").itertuples()}
SPREAD = CUE_TABLE.loc["spread"].to_numpy()
STYLE = 0.5  # standard deviation between speakers' ways of acting an emotion, in units of SPREAD

# The texts of each corpus's sentences: SENTENCES["emodb"]["a01"]. SAVEE uses sentences of TIMIT; these resemble them.
# Its numbers 01 to 03 are common to all emotions. Every other one belongs to one emotion: an opening with an ending
# that no other emotion combines with it.
TEXTS = pd.read_csv(Path(__file__).with_name("sentences.csv"), dtype=str)
SENTENCES = TEXTS.groupby(["corpus", "name"], sort=False)["text"].agg(list)


class Blueprint(NamedTuple):
    """What a corpus's file names allow, and how the corpus sounds."""

    speakers: tuple[str, ...]
    men: tuple[str, ...]
    sentences: int  # at most
    takes: int  # at most, of a sentence by a speaker in an emotion
    language: str  # as eSpeak names it
    rate: float  # words a minute, for clips about as long as the real ones
    sample_rate: int  # Hz


ACTORS = tuple(str(actor) for actor in range(1001, 1092))
SAVEE_SPEAKERS = ("DC", "JE", "JK", "KL")
EMODB_SPEAKERS = ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")
BLUEPRINTS = {
    "savee": Blueprint(SAVEE_SPEAKERS, SAVEE_SPEAKERS, 15, 1, "English (Great Britain)", 175, 44_100),
    "emodb": Blueprint(EMODB_SPEAKERS, ("03", "10", "11", "12", "15"), 10, 6, "German", 210, 16_000),
    "crema_d": Blueprint(ACTORS, ACTORS[::2], 12, 4, "English (America)", 155, 16_000),
}
STRENGTHS = {"XX": 1.0, "LO": 0.6, "MD": 1.0, "HI": 1.4}  # of CREMA-D's levels; each take has its own


class Clip(NamedTuple):
    """One recording to make: its file, who speaks which words, and how strongly the emotion is acted."""

    path: str
    speaker: str
    text: str
    emotion: str
    strength: float = 1.0


def write_corpus(name: str, folder: Path, settings: SyntheticSettings) -> None:
    """Speak a synthetic corpus into a folder, with the real corpus's file names and layout, as ``speak_clips`` does.

    SamsgError if the corpus has no names for so many clips, or if the folder holds something else.
    """
    check_name("embedded corpus", name, BLUEPRINTS)
    blueprint = BLUEPRINTS[name]
    limits = {"speakers": len(blueprint.speakers), "sentences": blueprint.sentences, "takes": blueprint.takes}
    for setting, limit in limits.items():
        if getattr(settings, setting) > limit:
            raise SamsgError(f"The embedded {name} has names for {limit} {setting} and no more; lower that setting.")
    # A setting that is not set is not in the note, so that folders from before that setting existed stay valid.
    speak_clips(name, list(_plan_clips(name, settings)), folder, settings.model_dump(exclude_none=True))


def speak_clips(name: str, clips: Sequence[Clip], folder: Path, settings: Mapping[str, Any]) -> None:
    """Speak clips in the voices of a corpus into a folder: all clips and a note, or nothing.

    The note holds the settings that the clips were planned with. A folder with the same note is left as it is;
    SamsgError if it holds something else. A clip depends on its fields and on ``settings["seed"]`` alone.
    """
    note = json.dumps({"corpus": name, "recipe": RECIPE, **settings}, sort_keys=True)
    with whole_folder(folder) as partial:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        if folder.exists() and any(folder.iterdir()):
            path = folder / SYNTHETIC_NOTE
            record = path.read_text(encoding="utf-8").splitlines()[-1] if path.is_file() else "other files"
            if record != note:
                raise SamsgError(f"{folder} is to hold {note} and holds {record}. Remove that folder, or name another.")
            return
        if parselmouth is None:
            raise SamsgError("The embedded corpora need praat-parselmouth: pip install -e '.[synthetic]'.")
        for clip in progress(clips, f"speaking {name}", len(clips)):
            path = partial / clip.path
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, _speak(name, clip, settings["seed"]), BLUEPRINTS[name].sample_rate, "PCM_16")
        text = f"These {len(clips)} files are synthetic speech, not the corpus whose file names they have.\n"
        text += f"eSpeak and Praat (praat-parselmouth {parselmouth.__version__}) spoke them with these settings:\n"
        (partial / SYNTHETIC_NOTE).write_text(f"{text}{note}\n", encoding="utf-8")


def _plan_clips(name: str, settings: SyntheticSettings) -> Iterator[Clip]:
    speakers, codes = BLUEPRINTS[name].speakers[: settings.speakers], GRAMMARS[name].emotions
    sentences, strength = list(SENTENCES[name].index)[: settings.sentences], settings.strength or 1.0
    for speaker, (place, (code, emotion)) in itertools.product(speakers, enumerate(codes.items())):
        if name == "savee":
            common_texts, openings, endings = SENTENCES["savee"]
            # Neutral has twice as many sentences as the others.
            for number in range(settings.sentences * (2 if emotion == "neutral" else 1)):
                # The ending moves with the emotion's place (0 to 6; of neutral 4, 7, 10): no pair occurs twice.
                turn, opening = divmod(number - len(common_texts), len(openings))
                own_text = f"{openings[opening]} {endings[(opening + place + 3 * turn) % len(endings)]}"
                text = common_texts[number] if number < len(common_texts) else own_text
                yield Clip(f"AudioData/{speaker}/{code}{number + 1:02d}.wav", speaker, text, emotion, strength)
        elif name == "emodb":
            for sentence, take in itertools.product(sentences, range(settings.takes)):
                path = f"wav/{speaker}{sentence}{code}{'abcdef'[take]}.wav"
                yield Clip(path, speaker, SENTENCES[name][sentence][0], emotion, strength)
        else:
            for sentence, level in itertools.product(sentences, list(STRENGTHS)[: settings.takes]):
                path = f"AudioWAV/{speaker}_{sentence}_{code}_{level}.wav"
                yield Clip(path, speaker, SENTENCES[name][sentence][0], emotion, STRENGTHS[level] * strength)


def _random(seed: int, *key: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32("/".join(key).encode())])


def _draw_cues(name: str, clip: Clip, seed: int, generator: np.random.Generator) -> dict[str, float]:
    """The clip's cues: those of its emotion, of the way this speaker acts it, and of chance."""
    style = STYLE * _random(seed, name, clip.speaker, clip.emotion).standard_normal(len(CUES))
    strength = clip.strength * generator.normal(1.0, 0.2)
    cues = strength * np.array(EMOTIONS[clip.emotion]) + SPREAD * (style + generator.standard_normal(len(CUES)))
    return dict(zip(CUES, cues.tolist(), strict=True))


def _speak(name: str, clip: Clip, seed: int) -> np.ndarray:
    """One clip: (S,), within -1 to 1, at the corpus's sample rate."""
    blueprint = BLUEPRINTS[name]
    voice, generator = _random(seed, name, clip.speaker), _random(seed, name, clip.path)
    cues = _draw_cues(name, clip, seed, generator)
    is_male = clip.speaker in blueprint.men
    pitch = voice.normal(112 if is_male else 200, 12)  # Hz
    tract = voice.normal(1.0 if is_male else 1.17, 0.03)  # formants, relative to eSpeak's
    rate = voice.normal(blueprint.rate, 8) * 2 ** cues["rate"]  # words a minute
    tilt = voice.normal(0.0, 0.5) + cues["tilt"]  # dB an octave

    variant = VOICES[blueprint.speakers.index(clip.speaker) % len(VOICES)]
    synthesizer = praat.call("Create SpeechSynthesizer", blueprint.language, variant)
    pause = max(0.01, cues["pause"])  # s, between words
    source_pitch = 1.0 if is_male else 2.0  # near the wanted pitch, where overlap-add sounds best
    # Played at another sample rate, the formants move; the rate here and the pitch later make up for the rest.
    rate = min(max(rate / tract, 80), 450)
    praat.call(synthesizer, "Speech output settings", SOURCE_RATE, pause, source_pitch, 2.0, rate, "IPA")
    # eSpeak's pauses at commas and at the end are the only thing that depends on what was spoken before: remove them.
    speech = praat.call(synthesizer, "To Sound", clip.text.replace(",", ""), "no")
    speech = speech[0] if isinstance(speech, list) else speech
    sound = parselmouth.Sound(np.trim_zeros(speech.values[0]), SOURCE_RATE * tract)
    samples = _resynthesise(sound, cues, pitch, is_male, generator)
    return _finish(samples, SOURCE_RATE * tract, blueprint.sample_rate, tilt, cues["loudness"], generator)


def _resynthesise(
    sound: Any, cues: dict[str, float], pitch: float, is_male: bool, generator: np.random.Generator
) -> np.ndarray:
    """Give a sound the speaker's pitch (Hz) and the melody and breath of the cues: (S,) at the sound's rate."""
    manipulation = praat.call(sound, "To Manipulation", 0.01, *((60, 250) if is_male else (100, 400)))
    tier = praat.call(manipulation, "Extract pitch tier")
    table = praat.call(tier, "Down to TableOfReal", "Hertz")
    points = praat.call(table, "To Matrix").values  # (points, 2): s, Hz
    times, semitones = points[:, 0], 12 * np.log2(points[:, 1] / np.median(points[:, 1]))
    semitones = semitones * 2 ** cues["range"] + cues["pitch"] + cues["slope"] * (times / sound.duration - 0.5)
    semitones += max(0.0, cues["tremor"]) * np.sin(2 * np.pi * (6 * times + generator.random()))
    semitones += max(0.03, cues["jitter"]) * generator.standard_normal(len(times))
    hertz = np.clip(pitch * 2 ** (semitones / 12), 50, 600)
    praat.run([tier, parselmouth.Sound(hertz, 1.0)], SET_PITCH)
    praat.call([manipulation, tier], "Replace pitch tier")
    samples = praat.call(manipulation, "Get resynthesis (overlap-add)").values[0]
    aspiration = np.diff(generator.standard_normal(len(samples) + 1)) * ndimage.uniform_filter1d(np.abs(samples), 256)
    return samples + max(0.0, cues["breath"]) * aspiration


def _finish(
    samples: np.ndarray, rate: float, sample_rate: int, tilt: float, loudness: float, generator: np.random.Generator
) -> np.ndarray:
    """Spectral tilt (dB an octave), sample rate, loudness (dB) and a quiet room: (S,) -> (S',)."""
    # Tilt and resampling, both on the spectrum. Lengths with a fast transform change the rate by 1 % at most.
    n_in = fft.next_fast_len(len(samples))
    n_out = fft.next_fast_len(round(n_in * sample_rate / rate))
    octaves = np.log2(np.clip(fft.rfftfreq(n_in, 1 / rate), 100, 8000) / 500)
    samples = fft.irfft(fft.rfft(samples, n_in) * 10 ** (tilt * octaves / 20), n_out)
    samples *= 10 ** ((loudness - 27) / 20) / samples.std()
    n_before, n_after = (generator.uniform(0.1, 0.3, 2) * sample_rate).astype(int)
    samples = np.pad(samples, (n_before, n_after))
    room = signal.lfilter([1.0], [1.0, -0.9], generator.standard_normal(len(samples)))
    samples += 10 ** (generator.normal(-66, 2) / 20) * room / room.std()
    return samples * min(1.0, 0.95 / np.abs(samples).max())
