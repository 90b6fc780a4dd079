"""Whatever bytes a file holds, it is read or refused in a sentence: coverage-guided fuzzing of all that reads files.

    python trials/fuzz.py sound|csv|profile|archive|weights|model [SECONDS]

Atheris (libFuzzer) changes sound files, tables, profiles, archives and models, and keeps what reaches new code. A
finding is an exception that is no SamsgError, a broken promise (the asserts below), a crash, or 10 s or 4 GB for one
file; the file that did it is left as crash-... in the folder where this was started. Needs samsg[trials], and Linux;
docs/reliability.md, section 4, says what was found.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

INSTRUMENTED = ["samsg", "yaml", "tarfile", "zipfile"]
for module in list(sys.modules):  # what is imported already would not be instrumented
    if module.split(".")[0] in INSTRUMENTED:
        del sys.modules[module]
with atheris.instrument_imports(include=INSTRUMENTED):
    import tarfile
    import zipfile

    import samsg
    from samsg.audio.store import read_sound
    from samsg.corpora.acquire import fetch
    from samsg.corpora.verify import STATUSES, listen
    from samsg.settings import NAME, REPOSITORY, SamsgError
    from samsg.training import stages

unpickler = torch._weights_only_unpickler.Unpickler
unpickler.load = atheris.instrument_func(unpickler.load)
PLACE = Path(tempfile.mkdtemp(prefix="samsg-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
SIZES = {"size": "tiny", "depth": 1, "n_mels": 16, "n_frames": 16}


def sound(data: bytes) -> None:
    path = PLACE / "a.wav"
    path.write_bytes(data)
    heard = listen(path, keep=True)
    assert heard.status in STATUSES and heard.what.isprintable(), heard
    if heard.samples is not None:
        assert np.isfinite(heard.samples).all() and len(heard.samples) == heard.frames
    with contextlib.suppress(SamsgError):
        assert torch.isfinite(read_sound(path)).all()


def csv(data: bytes) -> None:
    folder = PLACE / "corpus"
    if not folder.is_dir():
        folder.mkdir()
        for name in ("a.wav", "b.wav", "c d.wav"):
            (folder / name).touch()
    (folder / "own.csv").write_bytes(data)
    with contextlib.suppress(SamsgError):
        manifest = samsg.read_corpus(str(folder / "own.csv"))
        assert manifest["clip"].is_unique and manifest["emotion"].nunique() > 1
        assert all(os.path.realpath(folder / path).startswith(f"{folder}/") for path in manifest["path"])


def profile(data: bytes) -> None:
    (PLACE / "mine.yaml").write_bytes(data)
    with contextlib.suppress(SamsgError):
        its = samsg.load_profile(PLACE / "mine.yaml")
        assert all(NAME.fullmatch(name) for name in (its.name, *its.corpora))
        assert samsg.Profile.model_validate_json(its.model_dump_json()) == its
        assert len(repr(its)) < 100 * len(data) + 10_000


def archive(data: bytes) -> None:
    shutil.rmtree(PLACE / "archive", ignore_errors=True)
    (PLACE / "archive/data").mkdir(parents=True)
    (PLACE / "archive/source").write_bytes(data)
    with contextlib.suppress(SamsgError), contextlib.redirect_stdout(io.StringIO()):
        fetch("emodb", PLACE / "archive/data/emodb", PLACE / "archive/source")
    everything = {path.relative_to(PLACE / "archive").as_posix() for path in (PLACE / "archive").rglob("*")}
    assert all(name in ("source", "data") or name.startswith("data/emodb") for name in everything), everything


def weights(data: bytes) -> None:
    path = PLACE / ("a.pth" if data[:1] == b"P" else "a.safetensors")
    path.write_bytes(data[1:] if data[:1] == b"P" else data)
    with contextlib.suppress(SamsgError):
        samsg.SpectrogramDeiT(n_classes=2, weights=path, **SIZES)


def model(data: bytes) -> None:
    path = the_run().folder / "baseline/model.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(SamsgError):
        stages.load_model(the_run(), "baseline")


def the_run() -> samsg.Run:
    """A run whose first stage is finished, but for its model."""
    if not RUN:
        os.environ["SAMSG_HOME"] = str(PLACE)
        table = "path,emotion\n"
        for number in range(8):
            soundfile.write(PLACE / f"{number}.wav", np.random.default_rng(number).uniform(-0.1, 0.1, 1600), 16_000)
            table += f"{number}.wav,{'ab'[number % 2]}\n"
        (PLACE / "own.csv").write_text(table)
        changes = {"audio": {"seconds": 0.1, "hop": 100, "n_mels": 16}, "model": {"depth": 1}}
        changes |= {"corpora": {"own": {"reader": str(PLACE / "own.csv"), "root": str(PLACE)}}}
        RUN.append(samsg.open_run(samsg.load_profile("smoke", name="fuzzed", **changes, training={"epochs": 1}), "own"))
        with contextlib.redirect_stdout(io.StringIO()):
            samsg.prepare(RUN[0])
            samsg.train_baseline(RUN[0])
    return RUN[0]


RUN: list[samsg.Run] = []


def seeds(target: str) -> list[bytes]:
    """Files in order, from which changes start."""
    noise = 0.1 * np.random.default_rng(0).uniform(-1, 1, 2000)
    if target == "sound":
        kinds = (
            "WAV PCM_16, WAV FLOAT, WAV IMA_ADPCM, FLAC PCM_16, OGG VORBIS, OGG OPUS, MP3 MPEG_LAYER_III, AIFF PCM_24, "
        )
        kinds += "AU ULAW, CAF ALAC_16, W64 PCM_16, VOC PCM_16, SVX PCM_16, NIST PCM_16, RF64 PCM_16"
        made = []
        for kind, subtype in (each.split() for each in kinds.split(", ")):
            out = io.BytesIO()
            soundfile.write(out, noise, 16_000, format=kind, subtype=subtype)
            made.append(out.getvalue())
        return made
    if target == "csv":
        texts = [
            "path,emotion\na.wav,calm\nb.wav,glad\n",
            'path,emotion,speaker,sentence,part\n"c d.wav",a b,1,2,test\n./a.wav,x,,,train\n',
            "emotion;path\n",
            "path,emotion\n../a.wav,x\n/etc/passwd,y\n",
        ]
        return [text.encode() for text in texts]
    if target == "profile":
        own = [path.read_bytes() for path in (REPOSITORY / "configs").glob("*.yaml")]
        return [
            *own,
            b"extends: demo\ncorpora: &a {emodb: *a}\n",
            b"extends: smoke\nseeds: [0, 1]\nmask: {fill: .nan}\n",
        ]
    if target == "archive":
        members = {name: noise.tobytes()[:800] for name in ("wav/03a01Fa.wav", "03a01Nc.wav", "../03a02Fa.wav", "l")}
        kinds = []
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w", format=form) as tar:
                for name, content in members.items():
                    entry = tarfile.TarInfo(f"{'d' * 120}/{name}" if name == "l" else name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
            kinds.append(out.getvalue())
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        return [*kinds, out.getvalue()]
    if target == "weights":
        state = samsg.SpectrogramDeiT(n_classes=2, **SIZES).vit.state_dict()
        small = {name: value[:1] for name, value in state.items() if "bias" in name or "token" in name}
        save_file(small, PLACE / "seed")
        torch.save({"model": small}, PLACE / "seed.pth")
        torch.save(small, PLACE / "old.pth", _use_new_zipfile_serialization=False)
        return [
            (PLACE / "seed").read_bytes(),
            *(b"P" + (PLACE / name).read_bytes() for name in ("seed.pth", "old.pth")),
        ]
    own = (the_run().folder / "baseline/model.safetensors").read_bytes()
    return [own[: 8 + int.from_bytes(own[:8], "little") + 100], own[:200]]


def main() -> None:
    target, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "180"
    targets: dict[str, Callable[[bytes], None]] = {
        each.__name__: each for each in (sound, csv, profile, archive, weights, model)
    }
    if (child := os.fork()) != 0:  # libFuzzer ends its process without a chance to tidy up
        status = os.waitpid(child, 0)[1]
        shutil.rmtree(PLACE, ignore_errors=True)
        sys.exit(os.waitstatus_to_exitcode(status))
    torch.set_num_threads(1)
    # A change hardly ever meets the checksum of a tar's header: any will do.
    tarfile.calc_chksums = lambda header: (tarfile.nti(header[148:156]),) * 2  # type: ignore[attr-defined]
    corpus = PLACE / "seeds"
    corpus.mkdir()
    for number, content in enumerate(seeds(target)):
        (corpus / str(number)).write_bytes(content)
    options = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        "-max_len=20000",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], targets[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
