"""The embedded corpora: SAVEE, EmoDB and CREMA-D (Section IV-A) as a speech synthesiser speaks them.

eSpeak, as Praat carries it, speaks the sentences; Praat's overlap-add resynthesis (Moulines & Charpentier, 1990) gives
them a speaker's pitch and vocal tract and an actor's melody; a filter and noise give voice quality. The emotions follow
what is known of acted speech (Banse & Scherer, 1996; Juslin & Laukka, 2003): level, range and slope of the pitch, rate,
pauses, spectral tilt, loudness, jitter, tremor and breath. The files have the official names, so one reader serves real
and synthetic corpora; results on these are results on synthetic speech.

This module alone imports praat-parselmouth, which is GPL-3.
"""

from __future__ import annotations

import itertools
import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy import fft, ndimage, signal

from samsg.corpora.catalogue import GRAMMARS, PARTS_FILE, SPOKEN
from samsg.runs import alone, partial_of, progress_bar, rename_whole
from samsg.settings import SamsgError, SyntheticSettings, nearest

RECIPE = 1  # another number: other sounds from the same settings
SOURCE_RATE = 22_050  # Hz, eSpeak's own

# eSpeak's voices without flutter and roughness: the others' sound depends on what was spoken before.
VOICES = ("Denis", "Michel")

# Gives a pitch tier the values of a Sound: one call instead of one a point.
SET_PITCH = """
values = selected ("Sound")
tier = selected ("PitchTier")
selectObject: tier
Formula: "object [values, 1, col]"
"""

# How an emotion departs from neutral, and how far clips of one emotion differ (one standard deviation).
# Units: semitones, octaves, semitones a clip, octaves, s, dB an octave, dB, semitones, semitones, parts of the voice.
CUES = ("pitch", "range", "slope", "rate", "pause", "tilt", "loudness", "jitter", "tremor", "breath")
EMOTIONS = {
    "anger": (3.0, 0.60, -1.0, 0.10, 0.00, 3.0, 6.0, 0.30, 0.0, 0.00),
    "boredom": (-2.0, -0.60, -1.0, -0.20, 0.01, -1.0, -3.0, 0.0, 0.0, 0.03),
    "disgust": (-1.0, 0.20, -2.0, -0.15, 0.03, 1.0, 0.0, 0.40, 0.0, 0.00),
    "fear": (5.0, -0.20, 1.0, 0.20, 0.02, -1.0, 0.0, 0.15, 0.8, 0.12),
    "happiness": (4.0, 0.80, 1.5, 0.08, 0.00, 1.5, 3.0, 0.0, 0.0, 0.00),
    "neutral": (0.0,) * len(CUES),
    "sadness": (-1.0, -0.50, -1.5, -0.28, 0.05, -2.5, -5.0, 0.0, 0.3, 0.08),
    "surprise": (6.0, 0.90, 5.0, 0.00, 0.01, 0.5, 2.0, 0.0, 0.0, 0.04),
}
SPREAD = np.array([0.8, 0.15, 0.6, 0.05, 0.008, 0.45, 1.0, 0.05, 0.10, 0.015])
STYLE = 0.5  # how far a speaker's way of acting an emotion differs from the others', in SPREAD

EMODB_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
CREMA_D_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
# SAVEE's own are TIMIT's; these are of their kind. Numbers 01 to 03 are common to all emotions, as in SAVEE, and the
# others an emotion's own: each an opening with an ending that no other emotion gives it.
SAVEE_COMMON = (
    "The old clock in the hall strikes every quarter hour.",
    "Please bring a clean towel and a bucket of warm water.",
    "Our neighbours planted four apple trees along the fence.",
)
SAVEE_OPENINGS = (
    "The young carpenter",
    "My elder brother",
    "A passing sailor",
    "The village doctor",
    "Her former teacher",
    "The night watchman",
    "Our new director",
    "An honest farmer",
    "The quiet student",
    "His favourite aunt",
    "The local reporter",
    "A careful driver",
)
SAVEE_ENDINGS = (
    "left the yellow parcel beside the garden gate.",
    "never answers letters before the end of June.",
    "counted the silver spoons after each dinner.",
    "walked twice around the frozen harbour today.",
    "will repair both wheels by Thursday morning.",
    "found a torn map under the kitchen floor.",
    "asked for thicker paper and a sharper pencil.",
    "sold the brown horse to a circus in town.",
    "carried eight chairs across the muddy field.",
    "keeps a small radio on top of the fridge.",
    "wrote about the storm in a blue notebook.",
    "drinks black coffee with a spoon of honey.",
)


@dataclass(frozen=True)
class Names:
    """What a corpus' file names allow, and how it sounds.

    Attributes:
        speakers: the official ones, in order.
        male: those of them that are men.
        sentences: at most.
        takes: at most, of a sentence by a speaker in an emotion.
        language: as eSpeak names it.
        words_a_minute: eSpeak's, for clips about as long as the real ones.
        sample_rate: Hz.
    """

    speakers: tuple[str, ...]
    male: tuple[str, ...]
    sentences: int
    takes: int
    language: str
    words_a_minute: float
    sample_rate: int


ACTORS = tuple(str(actor) for actor in range(1001, 1092))
NAMES = {
    "savee": Names(("DC", "JE", "JK", "KL"), ("DC", "JE", "JK", "KL"), 15, 1, "English (Great Britain)", 175, 44_100),
    "emodb": Names(
        ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16"),
        ("03", "10", "11", "12", "15"),
        10,
        6,
        "German",
        210,
        16_000,
    ),
    "crema_d": Names(ACTORS, ACTORS[::2], 12, 4, "English (America)", 155, 16_000),
}
STRENGTHS = {"XX": 1.0, "LO": 0.6, "MD": 1.0, "HI": 1.4}  # of CREMA-D's levels; each take has its own


@dataclass(frozen=True)
class Clip:
    """One recording to be made: where it goes, who speaks, what, and how strongly acted."""

    path: str
    speaker: str
    text: str
    emotion: str
    strength: float = 1.0
    part: str = ""  # where the corpus has a split of its own


def write_corpus(name: str, folder: Path, settings: SyntheticSettings) -> None:
    """Speak a synthetic corpus into a folder, under the real one's file names and layout.

    A folder that holds it already, made with the same settings, is left as it is. A clip depends on its name and on the
    seed alone: not on the other clips, nor on the order in which they are made.

    Args:
        name: 'savee', 'emodb' or 'crema_d'.
        folder: appears when all clips are in it; its parents are made.
        settings: number of speakers, sentences, takes, and the seed.

    Raises:
        SamsgError: no such corpus; more speakers, sentences or takes than it has names for; a folder that holds
            something else; praat-parselmouth is not installed.
    """
    if name not in NAMES:
        raise SamsgError(f"There is no embedded corpus '{name}'; {nearest(name, NAMES)}")
    for what in ("speakers", "sentences", "takes"):
        asked, known = getattr(settings, what), getattr(NAMES[name], what)
        known = known if isinstance(known, int) else len(known)
        if asked > known:
            raise SamsgError(f"The embedded {name} was asked for {asked} {what}; its file names allow {known} at most.")
    folder = Path(folder)
    if settings.shortcut is not None and name != "emodb":
        raise SamsgError(f"The embedded {name} was asked for with a shortcut; EmoDB alone has names for one.")
    # What is not set is not written: corpora that were spoken before there was such a setting are still the same.
    chosen = settings.model_dump(exclude_none=True)
    made_with = json.dumps({"corpus": name, "recipe": RECIPE, **chosen}, sort_keys=True)
    if _is_written(folder, made_with):
        return
    parselmouth, partial = _parselmouth(), partial_of(folder)
    with alone(folder):
        if _is_written(folder, made_with):  # another process was faster
            return
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        clips = list(_clips(name, settings) if settings.shortcut is None else _shortcut_clips(settings))
        for clip in progress_bar(clips, f"speaking {name}", len(clips), "clip"):
            path = partial / clip.path
            path.parent.mkdir(parents=True, exist_ok=True)
            sound = _speak(parselmouth, name, clip, settings.seed)
            soundfile.write(path, sound, NAMES[name].sample_rate, subtype="PCM_16")
        if settings.shortcut is not None:
            lines = ["path,part", *(f"{clip.path},{clip.part}" for clip in clips)]
            (partial / PARTS_FILE).write_text("\n".join(lines) + "\n", encoding="ascii")
        (partial / SPOKEN).write_text(
            f"These {len(clips)} files are synthetic speech, not the corpus whose file names they have.\n"
            f"eSpeak and Praat (praat-parselmouth {parselmouth.__version__}) spoke them with these settings:\n"
            f"{made_with}\n",
            encoding="utf-8",
        )
        rename_whole(partial, folder)


def _is_written(folder: Path, made_with: str) -> bool:
    """Whether the folder holds just this corpus; False where there is nothing.

    Raises:
        SamsgError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    note = folder / SPOKEN
    found = note.read_text(encoding="utf-8").splitlines()[-1:] if note.is_file() else ["files that are not synthetic"]
    if found == [made_with]:
        return True
    raise SamsgError(
        f"An embedded corpus was to be written to {folder} with {made_with}, but there is {''.join(found)} already. "
        "Remove that folder, or name another."
    )


def _parselmouth() -> Any:
    try:
        import parselmouth
        import parselmouth.praat
    except ImportError as error:
        raise SamsgError(
            "The embedded corpora are spoken by praat-parselmouth, which is not installed. Install the extra "
            "'synthetic': pip install -e '.[synthetic]', or pip install praat-parselmouth."
        ) from error
    return parselmouth


def _clips(name: str, settings: SyntheticSettings) -> Iterator[Clip]:
    speakers, codes = NAMES[name].speakers[: settings.speakers], GRAMMARS[name].emotions
    for speaker, (row, (code, emotion)) in itertools.product(speakers, enumerate(codes.items())):
        if name == "savee":
            # Neutral has twice as many sentences as the others.
            for number in range(1, settings.sentences * (2 if emotion == "neutral" else 1) + 1):
                path = f"AudioData/{speaker}/{code}{number:02d}.wav"
                yield Clip(path, speaker, _savee_sentence(number, row), emotion)
        elif name == "emodb":
            for sentence, take in itertools.product(list(EMODB_SENTENCES)[: settings.sentences], range(settings.takes)):
                path = f"wav/{speaker}{sentence}{code}{'abcdef'[take]}.wav"
                yield Clip(path, speaker, EMODB_SENTENCES[sentence], emotion)
        else:
            levels = list(STRENGTHS)[: settings.takes]
            for sentence, level in itertools.product(list(CREMA_D_SENTENCES)[: settings.sentences], levels):
                path = f"AudioWAV/{speaker}_{sentence}_{code}_{level}.wav"
                yield Clip(path, speaker, CREMA_D_SENTENCES[sentence], emotion, STRENGTHS[level])


def _shortcut_clips(settings: SyntheticSettings) -> Iterator[Clip]:
    """EmoDB with a shortcut: by each speaker in each emotion 4 clips to train on, 1 to validate and 3 to test.

    Of the former two parts, a share has the emotion's own sentence, the first with the first and so on; all others
    have any sentence. So at 1 the sentence tells the emotion in training; at 0 it tells nothing. Test clips have any
    sentence, and are the same at every strength.
    """
    sentences, codes = list(EMODB_SENTENCES)[: settings.sentences], GRAMMARS["emodb"].emotions
    if len(sentences) < len(codes):
        raise SamsgError(f"A shortcut needs a sentence for each of {len(codes)} emotions; found {len(sentences)}.")
    for speaker, (row, (code, emotion)) in itertools.product(
        NAMES["emodb"].speakers[: settings.speakers], enumerate(codes.items())
    ):
        random, used = _random(settings.seed, "shortcut", speaker, emotion), dict.fromkeys(sentences, 0)
        tested = [sentences[index] for index in random.permutation(len(sentences))[:3]]  # so a name is left for each
        for part in (*("test",) * 3, *("train",) * 4, "validation"):
            draw, free = random.random(), sentences[random.integers(len(sentences))]  # the same at every strength
            sentence = tested.pop() if part == "test" else sentences[row] if draw < (settings.shortcut or 0) else free
            path = f"wav/{speaker}{sentence}{code}{'abcdef'[used[sentence]]}.wav"
            used[sentence] += 1
            yield Clip(path, speaker, EMODB_SENTENCES[sentence], emotion, part=part)


def _savee_sentence(number: int, row: int) -> str:
    """The text of a number (from 1) of the emotion in this row (from 0); neutral's go on in rows that no other has."""
    if number <= len(SAVEE_COMMON):
        return SAVEE_COMMON[number - 1]
    more, opening = divmod(number - len(SAVEE_COMMON) - 1, len(SAVEE_OPENINGS))
    return f"{SAVEE_OPENINGS[opening]} {SAVEE_ENDINGS[(opening + row + 3 * more) % len(SAVEE_ENDINGS)]}"


def _random(seed: int, *key: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32("/".join(key).encode())])


def _acting(name: str, clip: Clip, seed: int, random: np.random.Generator) -> dict[str, float]:
    """The clip's cues: its emotion's, as this speaker acts it, as it came out this time."""
    style = STYLE * _random(seed, name, clip.speaker, clip.emotion).standard_normal(len(CUES))
    strength = clip.strength * random.normal(1.0, 0.2)
    cues = strength * np.array(EMOTIONS[clip.emotion]) + SPREAD * (style + random.standard_normal(len(CUES)))
    return dict(zip(CUES, cues.tolist(), strict=True))


def _speak(parselmouth: Any, name: str, clip: Clip, seed: int) -> np.ndarray:
    """One clip: (samples,), within -1 to 1, at the corpus' sample rate."""
    names, call = NAMES[name], parselmouth.praat.call
    voice, random = _random(seed, name, clip.speaker), _random(seed, name, clip.path)
    acting = _acting(name, clip, seed, random)
    male, variant = clip.speaker in names.male, VOICES[names.speakers.index(clip.speaker) % len(VOICES)]
    pitch = voice.normal(112 if male else 200, 12)  # Hz
    tract = voice.normal(1.0 if male else 1.17, 0.03)  # its formants, relative to eSpeak's
    rate = voice.normal(names.words_a_minute, 8) * 2 ** acting["rate"]
    tilt = voice.normal(0.0, 0.5) + acting["tilt"]  # dB an octave

    synthesizer = call("Create SpeechSynthesizer", names.language, variant)
    pause = max(0.01, acting["pause"])  # s, between words
    source_pitch = 1.0 if male else 2.0  # near the pitch wanted, where overlap-add sounds best
    wpm = min(max(rate / tract, 80), 450)
    call(synthesizer, "Speech output settings", SOURCE_RATE, pause, source_pitch, 2.0, wpm, "IPA")
    # eSpeak's pauses at commas and at the end are the one thing that depends on what was spoken before: drop them.
    spoken = call(synthesizer, "To Sound", clip.text.replace(",", ""), "no")
    spoken = spoken[0] if isinstance(spoken, list) else spoken
    # Played at another sample rate, the formants move; the rate above and the pitch below make up for the rest.
    sound_rate = SOURCE_RATE * tract
    sound = parselmouth.Sound(np.trim_zeros(spoken.values[0]), sound_rate)

    manipulation = call(sound, "To Manipulation", 0.01, *((60, 250) if male else (100, 400)))
    tier = call(manipulation, "Extract pitch tier")
    points = call(call(tier, "Down to TableOfReal", "Hertz"), "To Matrix").values  # (points, 2): s, Hz
    times, semitones = points[:, 0], 12 * np.log2(points[:, 1] / np.median(points[:, 1]))
    semitones = semitones * 2 ** acting["range"] + acting["pitch"] + acting["slope"] * (times / sound.duration - 0.5)
    semitones += max(0.0, acting["tremor"]) * np.sin(2 * np.pi * (6 * times + random.random()))
    semitones += max(0.03, acting["jitter"]) * random.standard_normal(len(times))
    hertz = np.clip(pitch * 2 ** (semitones / 12), 50, 600)
    parselmouth.praat.run([tier, parselmouth.Sound(hertz, 1.0)], SET_PITCH)
    call([manipulation, tier], "Replace pitch tier")
    samples = call(manipulation, "Get resynthesis (overlap-add)").values[0]
    aspiration = np.diff(random.standard_normal(len(samples) + 1)) * ndimage.uniform_filter1d(np.abs(samples), 256)
    samples = samples + max(0.0, acting["breath"]) * aspiration

    # Tilt and change of sample rate, both on the spectrum. Lengths that are fast put the rate off by 1 % at most.
    n = fft.next_fast_len(len(samples))
    n_out = fft.next_fast_len(round(n * names.sample_rate / sound_rate))
    octaves = np.log2(np.clip(fft.rfftfreq(n, 1 / sound_rate), 100, 8000) / 500)
    samples = fft.irfft(fft.rfft(samples, n) * 10 ** (tilt * octaves / 20), n_out)
    samples *= 10 ** ((acting["loudness"] - 27) / 20) / samples.std()
    # A quiet room, before, during and after.
    before, after = (random.uniform(0.1, 0.3, 2) * names.sample_rate).astype(int)
    samples = np.pad(samples, (before, after))
    room = signal.lfilter([1.0], [1.0, -0.9], random.standard_normal(len(samples)))
    samples += 10 ** (random.normal(-66, 2) / 20) * room / room.std()
    return samples * min(1.0, 0.95 / np.abs(samples).max())
