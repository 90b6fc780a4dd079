"""What is on disk, held against the corpora's official file lists and listened to (Section IV-A).

Two questions: is this the corpus of the paper (``check_corpus``), and can a clip be trained on (``listen``)? A bad file
is a line of the answer, never an error. The lists in official/ hold every file's name, sample rate and length and,
for EmoDB and CREMA-D, its size and SHA-256; SAVEE's files are given to registered people alone, and have none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soundfile

from samsg.corpora.catalogue import GRAMMARS, POINTER, is_litter, parse_path, read_corpus
from samsg.runs import progress_bar
from samsg.settings import SamsgError, nearest

OFFICIAL = Path(__file__).with_name("official")
MOST = 2**30  # frames that are read of any file: 6 h at 48 kHz
LONGEST = 60.0  # s; a recording is a sentence, and the longest official one lasts 9 s
SHORTEST = 0.064  # s, one Fourier transform of the front end (1024 samples at 16 kHz)
RATES = (1_000, 768_000)  # Hz, outside which a header is not believed
FULL = 0.999  # full scale, but for rounding
CLIPPED = 0.001  # share of samples at full scale
OFFSET = 0.01  # mean, as a share of full scale
LOUDEST = 1e12  # above which the power overflows single precision
SILENT = {True: 1e-7, False: 2 / 2**15}  # peak to peak, of float and of integer samples: nothing, or the last bit
AT_ONCE = 2**24  # bytes; larger files are not hashed (no official one is) and read in blocks
# CREMA-D's README lists this file as having no audio; it is one of the 7 442 all the same.
NO_AUDIO = {
    "clip": "1076_MTI_SAD_XX",
    "bytes": 82_260,
    "sha256": "2759bb80ce3ac9a64f18aa386ed436fc38e8dbf0568ef3d8957a24ab66e9317c",
}

# Every status, and what it means for a person. Those of LEFT_OUT are left out of training.
STATUSES = {
    "ok": "nothing to say against them",
    "clipped": f"more than {CLIPPED:.1%} of the samples are at full scale; kept",
    "DC offset": f"the mean is more than {OFFSET:.0%} of full scale away from zero; kept",
    "known defect": "the official corpus has no audio there; left out of training",
    "truncated": "the header announces more than the file holds; kept: fetch the file again",
    "other content": "official names, but not the official files: resampled, cut, or another corpus",
    "unexpected name": "not on the official list",
    "duplicate": "a clip lies there twice; keep one copy of each",
    "missing": "on the list, not on disk",
    "LFS pointer": "the text that Git LFS keeps in place of a sound; run 'git lfs pull' where they come from",
    "unreadable": "no sound file; left out of training",
    "empty": "no samples; left out of training",
    "too short": f"less than {SHORTEST} s; left out of training",
    "very long": "no single sentence; left out of training",
    "not numbers": "samples are NaN, infinite, or overflow; left out of training",
    "no audio": "digital silence; left out of training",
}
LEFT_OUT = list(STATUSES)[list(STATUSES).index("missing") :]


class Heard(NamedTuple):
    """What listening to a file says of it; numbers are 0 and the hash is empty where it did not come to them."""

    status: str
    what: str = ""
    sample_rate: int = 0  # Hz
    frames: int = 0
    sha256: str = ""
    samples: np.ndarray | None = None  # mono, float32, (frames,); where kept, and finite

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate if self.sample_rate else 0.0

    @property
    def left_out(self) -> str:
        """Why the file cannot be trained on, or ''."""
        return f"{self.status}: {self.what}" if self.status in LEFT_OUT else ""


def listen(
    path: str | Path,
    longest: float = LONGEST,
    digest: bool = True,
    keep: bool = False,
    into: np.ndarray | None = None,
) -> Heard:
    """Read at most ``longest`` seconds of a file, for what it says of its sound; raises nothing.

    Args:
        path: of the file.
        longest: s; a longer recording is not read.
        digest: hash the file, unless it is larger than AT_ONCE.
        keep: return the samples too.
        into: memory for them, float32, used if they fit; new memory takes longer to get than a clip takes to decode.
    """
    try:
        return _listen(Path(path), longest, digest, _EMPTY if keep and into is None else into)
    except FileNotFoundError:
        link = os.path.islink(path)
        return Heard("unreadable", "a link to nothing") if link else Heard("missing", "not on disk")
    except Exception as error:  # whatever a decoder or file system raises is said of this file; the others go on
        return Heard("unreadable", getattr(error, "strerror", None) or str(error) or type(error).__name__)


_EMPTY = np.zeros(0, np.float32)


def _listen(path: Path, longest: float, digest: bool, into: np.ndarray | None) -> Heard:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
        return Heard("unreadable", "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe or device")
    if info.st_size == 0:
        return Heard("empty", "0 bytes")
    if not os.access(path, os.R_OK):
        return Heard("unreadable", "Permission denied")
    sha256 = ""
    if info.st_size == NO_AUDIO["bytes"] or (digest and info.st_size <= AT_ONCE):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with soundfile.SoundFile(os.fspath(path)) as sound, np.errstate(invalid="ignore", over="ignore"):
            heard = _hear(sound, longest, into)._replace(sha256=sha256)
    except soundfile.LibsndfileError as error:
        with path.open("rb") as file:
            head = file.read(60)
        if head.startswith(POINTER):
            return Heard("LFS pointer", f"{info.st_size} bytes of text")
        text = head.decode("ascii", "replace").split("\n")[0].strip()
        if len(text) > 4 and text.isascii() and text.isprintable():
            return Heard("unreadable", f"text: '{text}'")
        return Heard("unreadable", f"a damaged header or sound ({error.error_string.strip()})")
    if sha256 == NO_AUDIO["sha256"]:
        return heard._replace(status="no audio", what="as CREMA-D's README says")
    return heard


def _hear(sound: soundfile.SoundFile, longest: float, into: np.ndarray | None) -> Heard:
    rate, announced, limit = sound.samplerate, sound.frames, min(longest * sound.samplerate, MOST)
    if not RATES[0] <= rate <= RATES[1]:
        return Heard("unreadable", f"its header says {rate} Hz")
    if limit < announced < 2**62:  # more than that: a stream that does not know its length
        return Heard("very long", f"{announced / rate:.0f} s, more than {longest:g} s", rate, announced)
    frames, full, total, low, high, kept = 0, 0, 0.0, np.inf, -np.inf, []
    fits = into is not None and sound.channels == 1 and announced <= len(into)
    while frames < min(announced, limit + 1):
        out = into[frames:, None] if fits and into is not None else None
        block = sound.read(2**18 // sound.channels, "float32", always_2d=True, out=out)
        if len(block) == 0:
            break
        mono = block.mean(1) if sound.channels > 1 else block[:, 0]  # as training hears it
        low, high = np.minimum(low, mono.min()), np.maximum(high, mono.max())  # NaN stays NaN
        if sound.channels > 1 or max(-low, high) >= FULL:
            full += np.count_nonzero(np.abs(block) >= FULL) / sound.channels
        total += float(mono.mean()) * len(mono)
        frames += len(block)
        if into is not None:
            kept.append(mono)
    heard = Heard("ok", "", rate, frames)
    stored = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.M)
    cut = stored is not None and int(stored[2]) < int(stored[1]) < 2**31 - 1  # more than that: written to a pipe
    if frames == 0:
        return heard._replace(status="empty", what="a header without samples")
    if frames > limit:
        return heard._replace(status="very long", what=f"more than {longest:g} s")
    if not (np.isfinite([low, high]).all() and max(-low, high) < LOUDEST):
        return heard._replace(status="not numbers", what="samples are NaN, infinite, or overflow")
    if into is not None:
        heard = heard._replace(samples=kept[0] if len(kept) == 1 else np.concatenate(kept))
    if heard.seconds < SHORTEST:
        return heard._replace(status="too short", what=f"{frames} samples")
    if high - low <= SILENT[sound.subtype in ("FLOAT", "DOUBLE")]:
        return heard._replace(status="no audio", what=f"{heard.seconds:.3f} s of digital silence")
    if cut or (announced < 2**62 and frames < announced - 0.1 * rate):
        what = f"{stored[2]} of {stored[1]} bytes of samples" if stored and cut else f"{frames} of {announced} samples"
        return heard._replace(status="truncated", what=what)
    if full > CLIPPED * frames:
        return heard._replace(status="clipped", what=f"{full / frames:.1%} of the samples at full scale")
    if abs(total / frames) > OFFSET:
        return heard._replace(status="DC offset", what=f"mean {total / frames:+.3f} of full scale")
    return heard


def _listen_to(paths: list[Path], longest: float, progress: bool, digest: bool = False) -> list[Heard]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        heard = pool.map(partial(listen, longest=longest, digest=digest), paths)
        return list(progress_bar(heard, "listening", len(paths), "file") if progress else heard)


def official_list(corpus: str) -> pd.DataFrame:
    """A corpus as published, one row a file: file, sample_rate (Hz), frames, bytes and sha256 (0 and '' where unknown),
    clip, speaker, sentence, emotion.

    Raises:
        SamsgError: the corpus has no official list.
    """
    if corpus not in GRAMMARS:
        raise SamsgError(f"There is no official list of '{corpus}'; {nearest(corpus, GRAMMARS)}")
    listed = pd.read_csv(OFFICIAL / f"{corpus}.csv.gz", dtype=str, keep_default_na=False)
    listed["bytes"] = listed["bytes"].replace("", "0")
    listed = listed.astype({"sample_rate": int, "frames": int, "bytes": int})
    return listed.join(pd.DataFrame([parse_path(file, corpus) for file in listed["file"]]))


def published_counts(corpus: str, by: str = "emotion") -> pd.Series:
    """Clips of each emotion, speaker or sentence, as published."""
    return official_list(corpus)[by].value_counts().sort_index()


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        corpus: its name.
        root: the folder that was looked in.
        files: one row a file, found or missing: path, clip ('' if not named as the corpus names), emotion, status,
            what, left_out (of training: the reason, or ''), sample_rate (Hz) and seconds (0 where nothing was heard).
        verdict: one sentence.
        exit_code: 0 complete (and official, if there is a list), 1 usable, but not that, 2 not usable.
    """

    corpus: str
    root: Path
    files: pd.DataFrame
    verdict: str
    exit_code: int

    @property
    def counts(self) -> dict[str, int]:
        """Files of each status that occurs, in the order of STATUSES."""
        found = self.files["status"].value_counts()
        return {status: int(found[status]) for status in STATUSES if status in found}

    def text(self, examples: int = 3) -> str:
        """The report for people: counts, the first examples of each status, the verdict."""
        heard = self.files[self.files["seconds"] > 0]
        rates = heard["sample_rate"].value_counts()
        lines = [f"{GRAMMARS[self.corpus].title if self.corpus in GRAMMARS else self.corpus} in {_shown(self.root)}"]
        if len(heard):
            lines[0] += f": {', '.join(f'{count} at {rate} Hz' for rate, count in rates.items())}; "
            lines[0] += f"{heard['seconds'].min():.2f} to {heard['seconds'].max():.2f} s"
        for status, count in self.counts.items():
            lines.append(f"{count:6}  {status}: {STATUSES[status]}")
            noted = self.files[(self.files["status"] == status) & ((self.files["what"] != "") | (status != "ok"))]
            for path, what in noted[["path", "what"]].head(examples).itertuples(index=False):
                lines.append(f"{'':8}{path}{': ' if what else ''}{what}")
            if len(noted) > examples:
                lines.append(f"{'':8}and {len(noted) - examples} more")
        return "\n".join([*lines, f"Verdict: {self.verdict}"])

    def json(self) -> str:
        """The report for programs, every file in it."""
        content: dict[str, Any] = {"corpus": self.corpus, "root": _shown(self.root), "verdict": self.verdict}
        content |= {"exit_code": self.exit_code, "counts": self.counts, "files": self.files.to_dict("records")}
        return json.dumps(content, indent=1, allow_nan=False)


def _shown(path: str | Path) -> str:
    """A path as it can be printed anywhere: file names may hold line ends, and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in Path(path).as_posix())


def check_corpus(
    corpus: str, root: str | Path | None = None, longest: float = LONGEST, progress: bool = False
) -> Report:
    """Hold a folder against a corpus' official list, and listen to every file of it.

    Args:
        corpus: 'savee', 'emodb', 'crema_d', or the path of a CSV corpus, which has no list to be held against.
        root: the folder of the sound files, as in ``read_corpus``.
        longest: s; longer recordings are left out.
        progress: show a progress bar on standard output.

    Raises:
        SamsgError: there is no such corpus, or a CSV cannot be read as one.
    """
    if corpus.lower().endswith(".csv"):
        return _check_csv(corpus, Path(root) if root else Path(corpus).parent, longest, progress)
    listed, root = official_list(corpus).set_index("clip"), Path(root or f"data/{corpus}")
    sounds = [p.relative_to(root) for p in root.rglob("*") if p.suffix.lower() == ".wav"]
    sounds = sorted(path for path in sounds if not is_litter(path))
    rows: list[dict[str, Any]] = []
    clips: dict[str, str] = {}
    digests: dict[str, str] = {}
    everything = _listen_to([root / path for path in sounds], longest, progress, digest=True)
    for path, heard in zip(sounds, everything, strict=True):
        said = parse_path(f"{root.name}/{path.as_posix()}", corpus) or {"clip": "", "emotion": ""}
        row = _row(path, said["clip"], said["emotion"], heard)
        if said["clip"] and said["clip"] in clips:
            row |= {"status": "duplicate", "what": f"the same clip as {clips[said['clip']]}"}
        elif said["clip"] not in listed.index:
            row |= {"status": "unexpected name", "what": heard.left_out or heard.what}
        else:
            row["status"], row["what"] = _compare(heard, said["clip"], listed.loc[said["clip"]])
        clips.setdefault(said["clip"], row["path"])
        twin = digests.setdefault(heard.sha256, row["path"]) if heard.sha256 else row["path"]
        if twin != row["path"] and row["status"] != "duplicate":
            row["what"] = f"{row['what']}{'; ' if row['what'] else ''}the same bytes as {twin}"
        rows.append(row)
    absent = listed[~listed.index.isin(clips)]
    rows += [_row(one.file, one.Index, one.emotion, Heard("missing", "not on disk")) for one in absent.itertuples()]
    files = pd.DataFrame(rows)
    return Report(corpus, root, files, *_verdict(GRAMMARS[corpus].title, files, listed))


def _row(path: str | Path, clip: str, emotion: str, heard: Heard) -> dict[str, Any]:
    row = {"path": _shown(path), "clip": clip, "emotion": emotion, "status": heard.status, "what": heard.what}
    return {**row, "left_out": heard.left_out, "sample_rate": heard.sample_rate, "seconds": round(heard.seconds, 3)}


def _compare(heard: Heard, clip: str, file: pd.Series) -> tuple[str, str]:
    """Status and what of a file that has an official name."""
    if heard.status == "no audio" and clip == NO_AUDIO["clip"]:
        return "known defect", "CREMA-D's README lists it as having no audio"
    same = (heard.sample_rate, heard.frames) == (file["sample_rate"], file["frames"])
    if heard.left_out or (heard.sha256 == file["sha256"] if file["sha256"] else same):
        return heard.status, heard.what
    official = file["frames"] / file["sample_rate"]
    changes = ["resampled"] if heard.sample_rate != file["sample_rate"] else []
    changes += ["cut"] if heard.seconds < official - 0.01 else ["longer"] if heard.seconds > official + 0.01 else []
    what = f"{', '.join(changes) or 'other bytes'}: {heard.sample_rate} Hz, {heard.seconds:.3f} s"
    what += f" (official: {file['sample_rate']} Hz, {official:.3f} s)"
    what += f"; {heard.what}" if heard.what else ""
    return "truncated" if heard.status == "truncated" else "other content", what


def _verdict(title: str, files: pd.DataFrame, listed: pd.DataFrame) -> tuple[str, int]:
    counts = files["status"].value_counts()
    if counts.get("missing") == len(files):
        return f"{title} is not there; data/README.md says how to get it.", 2
    if "duplicate" in counts:
        return f"not usable: {counts['duplicate']} clips lie there more than once; keep one copy of each.", 2
    on_list = files[files["clip"].isin(listed.index)]
    kept = on_list[on_list["left_out"] == ""]
    lost = sorted(set(listed["emotion"]) - set(kept.loc[kept["status"] != "missing", "emotion"]))
    if lost:
        return _unusable(files, lost)
    there = len(kept) + counts.get("known defect", 0)
    other = counts.get("other content", 0) + counts.get("truncated", 0)
    says = f"other content in {other} of {len(listed)} clips: results on it are not results on {title}"
    if there < len(listed):
        return f"incomplete: {there} of {len(listed)} clips{f'; {says}' if other else ''}.", 1
    if other:
        return f"complete, {says}.", 1
    beside = int((files.loc[files["status"] == "unexpected name", "clip"] != "").sum())
    if beside:
        return f"complete and official, and {beside} clips beside it that are not {title}'s; take them out.", 1
    hashes = "" if listed["sha256"].all() else " by names, rates and lengths (there are no hashes to compare)"
    return f"complete and official{hashes}: {len(listed)} clips.", 0


def _unusable(files: pd.DataFrame, lost: list[str]) -> tuple[str, int]:
    status, count = next(iter(files.loc[files["left_out"] != "", "status"].value_counts().items()))
    return f"not usable: no clip of {', '.join(lost)} can be read ({status}: {count} files; {STATUSES[status]}).", 2


def _check_csv(corpus: str, root: Path, longest: float, progress: bool) -> Report:
    manifest = read_corpus(corpus, root)
    heard = _listen_to([root / path for path in manifest["path"]], longest, progress)
    manifest_rows = zip(manifest["path"], manifest["clip"], manifest["emotion"], heard, strict=True)
    files = pd.DataFrame([_row(*row) for row in manifest_rows])
    kept = files[files["left_out"] == ""]
    lost = sorted(set(files["emotion"]) - set(kept["emotion"]))
    name = Path(corpus).stem
    if lost:
        return Report(name, root, files, *_unusable(files, lost))
    if len(kept) < len(files):
        return Report(name, root, files, f"usable: {len(files) - len(kept)} of {len(files)} clips are left out.", 1)
    return Report(name, root, files, f"complete: {len(files)} clips; there is no official list to hold it against.", 0)
