"""A trained model on any recording: the emotion of every window of 4 s, and where the model looked (Fig. 2).

A classifier is a folder, made from a finished run: config.json (classes and settings), model.safetensors (weights;
nothing is ever unpickled) and README.md, a model card written from the run's record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from matplotlib.figure import Figure
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from samsg.audio.spectrogram import LogMel
from samsg.audio.store import read_sound
from samsg.corpora.catalogue import SOUNDS, emotions_of, is_litter
from samsg.method.deit import SpectrogramDeiT
from samsg.method.rollout import attention_rollout
from samsg.report.figures import MEDIUM, overlay, panels
from samsg.report.metrics import summarise
from samsg.report.tables import read_one
from samsg.runs import Run, atomic, find_run, finished_runs, recorded
from samsg.settings import (
    AudioSettings,
    ModelSettings,
    RolloutSettings,
    SamsgError,
    Settings,
    explain,
    home,
    load_profile,
    profile_names,
)
from samsg.training.stages import load_model, model_of, read_clips

CONFIG, WEIGHTS = "config.json", "model.safetensors"
AT_ONCE = 16  # windows
SHOWN = 12  # windows in one picture
LONGEST = 4 * 3600.0  # s of a recording; at 48 kHz that takes some 6 GB while it is read
# Sounds of kinds that libsndfile does not read: not passed over in silence.
UNREAD = {".m4a", ".aac", ".wma", ".amr", ".mp4", ".webm"}
Interval = tuple[float, float, float]  # value, low, high

CARD = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")


class Record(Settings):
    """What a model was trained on, and what it reached there."""

    corpus: str
    note: str
    profile: str
    protocol: str
    seed: int
    train: int  # clips
    test: int
    accuracy: Interval  # of the test part, 0 to 1
    macro_f1: Interval
    commonest: float  # share of the test part that always naming the commonest emotion gets right
    code: str
    torch: str
    finished: str


class Config(Settings):
    """What config.json holds: all that is needed to use the weights."""

    version: Literal[1] = 1
    emotions: tuple[str, ...] = Field(min_length=2)
    audio: AudioSettings
    model: ModelSettings
    rollout: RolloutSettings
    record: Record

    def architecture(self) -> SpectrogramDeiT:
        """The model without its weights, which takes no memory yet."""
        with torch.device("meta"):
            return model_of(self.model, self.audio, len(self.emotions))


def _percent(interval: Interval) -> str:
    value, low, high = (f"{100 * number:.1f}" for number in interval)
    return f"{value} [{low}, {high}]"


def _share(interval: Interval) -> str:
    value, low, high = (f"{number:.3f}".lstrip("0") for number in interval)
    return f"{value} [{low}, {high}]"


class SamsgClassifier(
    ModelHubMixin,
    library_name="samsg",
    pipeline_tag="audio-classification",
    tags=["speech-emotion-recognition"],
    model_card_template=CARD,
):
    """A trained model and all that its use needs.

    ``from_run`` makes one from a finished run, ``save_pretrained`` a folder of it, ``push_to_hub`` shares it, and
    ``from_pretrained`` reads such a folder, or one on the Hugging Face Hub.

    Args:
        model: the trained model.
        config: what it is.
    """

    def __init__(self, model: SpectrogramDeiT, config: Config) -> None:
        self.model, self.config = model.eval(), config
        self.log_mel = LogMel(config.audio)

    @classmethod
    def from_run(cls, run: Run) -> SamsgClassifier:
        """The model that stage iii of a finished run left.

        Raises:
            SamsgError: the stage has not been run, or there is no record of it.
        """
        model, clips, profile = load_model(run, "probe"), read_clips(run), run.profile
        emotions = tuple(emotions_of(clips))
        test = read_one(run.require("probe") / "predictions.csv").query("part == 'test'")
        cluster = "speaker" if run.protocol != "random" and (clips["speaker"] != "").all() else None
        reached = summarise(test.merge(clips[["clip", "speaker"]], on="clip"), emotions, cluster)
        made = recorded(run, "probe")
        record = Record(
            corpus=profile.title(run.corpus),
            note=profile.note(run.corpus, run.protocol),
            profile=profile.name,
            protocol=run.protocol,
            seed=run.seed,
            train=int((clips["part"] == "train").sum()),
            test=reached.n,
            accuracy=(reached.accuracy.value, reached.accuracy.low, reached.accuracy.high),
            macro_f1=(reached.macro_f1.value, reached.macro_f1.low, reached.macro_f1.high),
            commonest=max(reached.support.values()) / reached.n,
            code=made["code"],
            torch=made["versions"]["torch"],
            finished=made["finished"],
        )
        settings = profile.model.model_copy(update={"weights": "random"})  # these come with the folder
        config = Config(emotions=emotions, audio=profile.audio, model=settings, rollout=profile.rollout, record=record)
        return cls(model, config)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the names of its options are the parent's
        cls, place: str | Path, **options: Any
    ) -> SamsgClassifier:
        """Read a folder that ``save_pretrained`` wrote, or a model of that kind on the Hugging Face Hub.

        Args:
            place: the folder, or 'owner/name'.
            options: those of ``huggingface_hub.ModelHubMixin.from_pretrained``: revision, token, cache_dir, ...

        Raises:
            SamsgError: there is no such folder or model, or it is not one of these.
        """
        try:
            return super().from_pretrained(place, **options)
        except (OSError, ValueError, AttributeError) as error:  # not there, no JSON, JSON without names and values
            raise SamsgError(
                f"No model could be read from '{place}': {error}. Give a folder that has {CONFIG} and {WEIGHTS}, as "
                "save_pretrained writes it, or the owner/name of such a model on the Hugging Face Hub."
            ) from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any
    ) -> SamsgClassifier:
        if config is None:
            raise SamsgError(f"'{model_id}' has no {CONFIG}, so it is no model of this library; see save_pretrained.")
        folder = Path(model_id)
        known: dict[str, Any] = {name: options.get(name) for name in ("revision", "cache_dir", "token")}
        known |= {name: bool(options.get(name)) for name in ("force_download", "local_files_only")}
        weights = folder / WEIGHTS if folder.is_dir() else Path(hf_hub_download(model_id, WEIGHTS, **known))
        try:
            described = Config(**config)
        except ValidationError as error:
            raise SamsgError(
                f"{CONFIG} of '{model_id}' is not one that can be used: {explain(error, Config)}."
            ) from error
        except TypeError as error:
            raise SamsgError(f"{CONFIG} of '{model_id}' does not hold names with values: {error}.") from error
        model = described.architecture()
        try:
            model.load_state_dict(load_file(weights), assign=True)
        except (SafetensorError, RuntimeError) as error:
            raise SamsgError(
                f"{WEIGHTS} of '{model_id}' does not fit its {CONFIG}: {' '.join(str(error).split())[:300]}"
            ) from error
        return cls(model, described)

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / "README.md").unlink(missing_ok=True)  # another model's card would be kept
        with atomic(save_directory / WEIGHTS) as partial:
            partial.write_bytes(save({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}))
        with atomic(save_directory / CONFIG) as partial:
            partial.write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def generate_model_card(self, *arguments: Any, **named: Any) -> Any:
        """The model card: what the model is, what it is worth, what it was trained on, and its limits."""
        words = {"record": self.config.record, "config": self.config, "percent": _percent, "share": _share}
        return super().generate_model_card(*arguments, **words, **named)

    def worth(self) -> str:
        """One sentence: what to think of this model."""
        record = self.config.record
        known = f" ({record.note})" if record.note else ""
        return (
            f"Trained on {record.corpus}{known}: right in {_percent(record.accuracy)} % of {record.test} test clips, "
            f"where always the commonest emotion is in {100 * record.commonest:.1f} %."
        )

    def windows(self, waveform: Tensor) -> tuple[np.ndarray, Tensor]:
        """Cut a recording into windows of 4 s, the last one ending with it: (S,) -> starts in s (W,), (W, 64000).

        A recording shorter than a window is padded with zeros, as in training.
        """
        length, rate = self.config.audio.n_samples, self.config.audio.sample_rate
        last = max(0, len(waveform) - length)
        starts = np.append(np.arange(0, last, length), last)
        padded = torch.nn.functional.pad(waveform, (0, max(0, length - len(waveform))))
        return starts / rate, torch.stack([padded[start : start + length] for start in starts])

    def predict(self, sound: str | Path | np.ndarray | Tensor) -> pd.DataFrame:
        """The emotion of every window of a recording.

        Args:
            sound: a sound file of any rate, 4 hours long at most; or samples in [-1, 1] at the model's own rate, mono,
                (S,).

        Returns:
            One row a window: start and end (s), emotion, its probability, and a column p_<emotion> a class. Where
            there is digital silence there is no emotion: '' and nan.

        Raises:
            SamsgError: the file cannot be read as sound, the samples are none, or the model answers with no numbers.
        """
        waveform = self._waveform(sound)
        return self._judged(waveform, *self.windows(waveform))

    @torch.no_grad()
    def _judged(self, waveform: Tensor, starts: np.ndarray, windows: Tensor) -> pd.DataFrame:
        logits = torch.cat([self.model(self.log_mel(batch)) for batch in windows.split(AT_ONCE)])  # (W, C)
        silent = (windows == windows[:, :1]).all(1)
        if not logits[~silent].isfinite().all():
            raise SamsgError("The model answers with values that are no numbers: its weights are damaged.")
        probabilities = logits.softmax(1).masked_fill(silent[:, None], torch.nan).numpy()
        audio = self.config.audio
        end = np.minimum(starts + audio.seconds, len(waveform) / audio.sample_rate)
        table = pd.DataFrame(probabilities, columns=[f"p_{emotion}" for emotion in self.config.emotions])
        return pd.DataFrame({"start": starts, "end": end}).join(_with_likeliest(table))

    def _waveform(self, sound: str | Path | np.ndarray | Tensor) -> Tensor:
        if isinstance(sound, str | Path):
            return read_sound(sound, self.config.audio.sample_rate, LONGEST)
        waveform = torch.as_tensor(sound)
        if waveform.ndim != 1 or not len(waveform) or not waveform.is_floating_point() or not waveform.isfinite().all():
            raise SamsgError(
                "Samples to predict from are finite floating-point numbers in [-1, 1] of the shape (S,); found "
                f"{tuple(waveform.shape)}, {waveform.dtype}. Give the path of a file, which is read rightly, or "
                "average channels and divide integers by their largest value first."
            )
        return waveform.float()

    def look(self, sound: str | Path | np.ndarray | Tensor, title: str = "") -> Figure:
        """A picture of where the model looked: every window's spectrogram, the more attended the more colour; 12 at
        most. Arguments and errors as ``predict``."""
        waveform = self._waveform(sound)
        starts, windows = self.windows(waveform)
        table = self._judged(waveform, starts[:SHOWN], windows[:SHOWN])
        audio, model, spectrograms = self.config.audio, self.config.model, self.log_mel(windows[:SHOWN])
        heat = attention_rollout(self.model, spectrograms, **self.config.rollout.model_dump())  # (W, 12, 99)
        columns = min(3, len(table))
        rows = -(-len(table) // columns)
        figure, axes = panels(rows, columns, (max(4.0, 2.4 * columns), 2.2 * rows + 0.3))
        # Attention may be nearly even: stretched from its least to its most, or all would be one colour.
        shown = f"first {SHOWN} of {len(starts)} windows; " if len(starts) > SHOWN else ""
        heading = f"{title}{' ' if title else ''}({shown}colour: attended least to most)"
        figure.suptitle(heading, fontsize=MEDIUM, parse_math=False)
        for ax, window, picture, rollout in zip(axes.flat, table.itertuples(), spectrograms, heat, strict=False):
            words = f"{window.emotion} {window.probability:.0%}" if window.emotion else "silence"
            overlay(
                ax,
                picture[0].numpy(),
                ((rollout - rollout.min()) / (1 - rollout.min()).clamp(min=1e-6)).numpy(),
                audio.hop,
                audio.sample_rate,
                model.patch,
                model.stride,
                title=f"from {window.start:.1f} s: {words}",
            )
        for ax in axes.flat[len(table) :]:
            ax.remove()
        return figure


def _with_likeliest(probabilities: pd.DataFrame) -> pd.DataFrame:
    """Columns p_<emotion>, and before them the likeliest emotion and its probability: '' and nan in rows of nan."""
    likeliest = probabilities.fillna(-1).idxmax(axis=1).str.removeprefix("p_")
    audible = probabilities.notna().all(axis=1)
    before = {"emotion": likeliest.where(audible, ""), "probability": probabilities.max(axis=1)}
    return pd.DataFrame(before).join(probabilities)


def whole(windows: pd.DataFrame) -> pd.Series:
    """A recording as a whole: from its start to its end, the mean probabilities of its windows that are not silent."""
    mean = windows.filter(like="p_").mean().to_frame().T
    ends = pd.Series({"start": windows["start"].min(), "end": windows["end"].max()})
    return pd.concat([ends, _with_likeliest(mean).iloc[0]])


def sound_files(paths: list[Path]) -> tuple[dict[str, Path], list[Path]]:
    """The files that are named, and all sound files in folders that are.

    Returns:
        name -> file, the name being the path below the folder that was named, or the file's own; and the files in
        folders that are sounds of a kind that cannot be read.

    Raises:
        SamsgError: a path leads nowhere, a folder holds no sounds, or two sounds have one name.
    """
    sounds: dict[str, Path] = {}
    unread: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SamsgError(f"{path} was to be listened to and is not there; give sound files, or folders of them.")
        below = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        base = path if path.is_dir() else path.parent
        below = [each for each in below if not is_litter(each.relative_to(base))]
        unread += [each for each in below if each != path and each.suffix.lower() in UNREAD]
        found = [each for each in below if each == path or each.suffix.lower() in SOUNDS]
        if not found:
            raise SamsgError(f"The folder {path} holds no sound files ({', '.join(sorted(SOUNDS)[:4])}, ...).")
        for each in found:
            name = each.relative_to(base).as_posix()
            if sounds.setdefault(name, each) != each:
                raise SamsgError(f"{sounds[name]} and {each} have one name; give the folder that holds both.")
    return sounds, unread


def open_classifier(model: str = "") -> SamsgClassifier:
    """A classifier by what people call it.

    Args:
        model: a run, 'demo/savee' or 'demo/savee/random/seed0'; a folder that ``save_pretrained`` wrote; a model on
            the Hugging Face Hub, 'owner/name'; or nothing: the first finished run of the demo.

    Raises:
        SamsgError: there is none. What is called like a run of this repository is not asked for on the hub.
    """
    if not model:
        try:
            demo = load_profile("demo")
            corpus, seeds = next(iter(finished_runs(demo).items()))
        except SamsgError as error:
            raise SamsgError(
                f"There is no model yet: {error} Run 'samsg reproduce' first, or name a model by --model."
            ) from error
        return SamsgClassifier.from_run(Run(demo, corpus, "random", seeds[0]))
    if (Path(model) / CONFIG).is_file():
        return SamsgClassifier.from_pretrained(model)
    if (run := find_run(model)) is not None:
        return SamsgClassifier.from_run(run)
    profile = Path(model).parts[0]
    if profile in profile_names() or (home() / "runs" / profile).is_dir() or Path(model).exists():
        known = sorted(str(path.parent.relative_to(home() / "runs")) for path in home().glob("runs/*/*/*/*/probe"))
        raise SamsgError(
            f"There is no finished run '{model}', and no model in a folder of that name; finished: "
            f"{', '.join(known) or 'none'}. 'samsg reproduce' runs a profile."
        )
    return SamsgClassifier.from_pretrained(model)
