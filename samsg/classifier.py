"""A trained model on any recording: the emotion of every window of 4 s, and where the model looks (Fig. 2).

save_pretrained, from_pretrained and push_to_hub are huggingface_hub's: a folder with config.json, model.safetensors and
a model card.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import PyTorchModelHubMixin, constants, get_session
from huggingface_hub.errors import LocalEntryNotFoundError
from matplotlib.figure import Figure
from torch import Tensor, nn

from samsg import figures, stages
from samsg.audio import LogMel, change_rate, make_view, read_sound
from samsg.corpora import emotions_of
from samsg.metrics import estimate_text, summarise, unit_of
from samsg.model import build_model
from samsg.rollout import attention_rollout
from samsg.settings import AudioSettings, ModelSettings, RolloutSettings, SamsgError, load_profile
from samsg.stages import Run, load_model, prediction_table, read_clips, read_predictions
from samsg.training import EVALUATION_BATCH, Objective, choose_attention, evaluate, make_fabric

Sound = str | Path | np.ndarray | Tensor  # a file, or mono samples in [-1, 1], (S,)
SHORTEST, LONGEST = 0.25, 4 * 3600.0  # s of a recording: a syllable, and four hours
MOST_WINDOWS = 12  # windows in one picture
CARD = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")


class SamsgClassifier(nn.Module, PyTorchModelHubMixin, model_card_template=CARD):
    """A trained model: its classes in the order of the logits, the profile's groups audio, model and rollout, and in
    ``about`` what it was trained on and reaches."""

    def __init__(self, emotions: list[str], settings: dict[str, Any], about: dict[str, Any]) -> None:
        super().__init__()
        self.emotions, self.about = emotions, about
        self.audio, self.rollout = AudioSettings(**settings["audio"]), RolloutSettings(**settings["rollout"])
        self.model = build_model(ModelSettings(**settings["model"]), self.audio, len(emotions), weights="random")

    @cached_property  # not a submodule: its filters are not weights to save
    def log_mel(self) -> LogMel:
        return LogMel(self.audio)

    @classmethod
    def from_run(cls, run: Run) -> SamsgClassifier:
        """The model that stage iii of a finished run left."""
        clips, profile = read_clips(run), run.profile
        emotions, note = emotions_of(clips), profile.note(run.corpus, run.protocol)
        summary = summarise(read_predictions(run, "probe"), emotions, unit_of(run.protocol))
        title = profile.title(run.corpus) + (f" ({note})" if note else "")
        accuracy = f"Accuracy on {summary.n} test clips: {estimate_text(summary.accuracy)} %"
        chance = f"always the most frequent emotion: {100 * max(summary.support.values()) / summary.n:.1f} %"
        origin = f"profile '{profile.name}', protocol '{run.protocol}', seed {run.seed}"
        about = {
            "worth": f"Trained on {title}. {accuracy}; {chance}.",
            "training": f"{origin}, {(clips['part'] == 'train').sum()} training clips",
            "windows": f"every window of {profile.audio.seconds:g} s: {', '.join(emotions)}",
        }
        settings = {name: getattr(profile, name).model_dump(mode="json") for name in ("audio", "model", "rollout")}
        classifier = cls(emotions=emotions, settings=settings, about=about)
        classifier.model = load_model(run, "probe")
        return classifier.eval()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.emotions)}): {self.about['worth']}"

    @classmethod
    def from_pretrained(cls, place: str | Path, **options: Any) -> SamsgClassifier:  # type: ignore[override]
        """A model of a folder that ``save_pretrained`` wrote, or of the Hub ('owner/name'); SamsgError if none fits."""
        options = {"local_files_only": not Path(place).is_dir() and not _hub_answers(), **options}
        try:
            with redirect_stdout(sys.stderr):  # where the hub's message does not mix with tables
                classifier: SamsgClassifier = super().from_pretrained(place, strict=True, **options)
        except Exception as error:  # of the hub, of JSON, of safetensors, of a model that does not fit
            reason = " ".join(str(error).split())[:300]
            if isinstance(error, LocalEntryNotFoundError):
                reason = "the Hugging Face Hub cannot be reached, and its cache here does not hold it."
            advice = "Give a run of 'samsg runs', a folder of 'samsg export', or owner/name."
            raise SamsgError(f"No model could be read from '{place}': {reason} {advice}") from error
        return classifier.eval()

    def generate_model_card(self, *arguments: Any, **options: Any) -> Any:
        return super().generate_model_card(*arguments, about=self.about, **options)

    def _windows(self, sound: Sound, sample_rate: int | None = None) -> tuple[Tensor, pd.DataFrame, Tensor]:
        """The recording at the model's rate, (S,); a table of its windows of 4 s with start and end (s), the last of
        which ends with the recording; and the windows' samples, (W, 64000)."""
        length, rate, name = self.audio.n_samples, self.audio.sample_rate, "The recording"
        if isinstance(sound, str | Path):
            waveform, name = read_sound(sound, rate, LONGEST), str(sound)
        else:
            waveform = torch.as_tensor(sound)
            if waveform.ndim != 1 or not waveform.is_floating_point() or not waveform.isfinite().all():
                sample_type = f"{waveform.dtype} of the shape {tuple(waveform.shape)}"
                raise SamsgError(f"Samples are finite floating-point numbers in [-1, 1], (S,); found {sample_type}.")
            waveform = change_rate(waveform.float(), sample_rate or rate, rate)
        if len(waveform) < SHORTEST * rate:
            raise SamsgError(f"{name} lasts {len(waveform) / rate:.2f} s; an emotion needs at least {SHORTEST} s.")
        last_start = max(0, len(waveform) - length)
        starts = np.append(np.arange(0, last_start, length), last_start)
        samples = nn.functional.pad(waveform, (0, max(0, length - len(waveform))))
        times = {"start": starts / rate, "end": np.minimum(starts + length, len(waveform)) / rate}
        table = pd.DataFrame(times, pd.RangeIndex(1, len(starts) + 1, name="window"))
        return waveform, table, torch.stack([samples[start : start + length] for start in starts])

    @torch.no_grad()
    def predict(self, sound: Sound | Sequence[Sound], sample_rate: int | None = None) -> pd.DataFrame:
        """The emotions of a recording of 0.25 s to 4 hours, window by window; one shorter than a window is padded.

        Args:
            sound: a file, samples (S,), or a list of them.
            sample_rate: of samples, Hz; by default that of the model. A file states its own.

        Returns:
            start and end (s), emotion, probability, and p_<emotion> for each class. The index, 'window', counts from 1;
            its last row, 'recording', has the mean probabilities, each window weighted by the time that it adds.
            Digital silence has no emotion, '' and nan, and no weight. For a list, an index 'sound' comes first: the
            path, or the place in the list.

        Raises:
            SamsgError: the file cannot be read as sound, or the samples are not finite numbers of the shape (S,).
        """
        if isinstance(sound, Sequence) and not isinstance(sound, str):
            names = [str(clip) if isinstance(clip, str | Path) else index for index, clip in enumerate(sound)]
            return pd.concat([self.predict(clip, sample_rate) for clip in sound], keys=names, names=["sound"])
        _, table, windows = self._windows(sound, sample_rate)
        logits = torch.cat([self.model(self.log_mel(batch)) for batch in windows.split(EVALUATION_BATCH)])  # (W, C)
        has_sound = (windows != windows[:, :1]).any(1)  # (W,)
        seconds = torch.from_numpy(np.diff(table["end"], prepend=0)).float()[has_sound]
        mean = seconds @ logits.softmax(1)[has_sound] / seconds.sum()  # (C,)
        probabilities = torch.vstack([logits.softmax(1).masked_fill(~has_sound[:, None], torch.nan), mean])
        table.loc["recording"] = 0.0, table["end"].max()
        names = np.array(self.emotions)[probabilities.nan_to_num().argmax(1)]
        table["emotion"] = np.where(probabilities[:, 0].isnan(), "", names)
        table["probability"] = probabilities.amax(1).numpy()
        table[[f"p_{name}" for name in self.emotions]] = probabilities.numpy()
        return table

    def picture(self, sound: Sound, title: str = "", sample_rate: int | None = None) -> Figure:
        """Waveform, probabilities and attention over time, of the first 12 windows. Errors as ``predict``."""
        waveform = self._windows(sound, sample_rate)[0]
        excerpt = waveform[: MOST_WINDOWS * self.audio.n_samples]
        table, spectrograms = self.predict(excerpt).drop("recording"), self.log_mel(self._windows(excerpt)[2])
        maps = attention_rollout(self.model, spectrograms, **self.rollout.model_dump())  # (W, 12, 99)
        decibels, stride = self.log_mel.decibels(excerpt[None])[0].numpy(), self.model.stride  # (128, T)
        inset = (self.model.patch - stride) // 2  # each patch is shown by the cells around its centre
        heat = np.full(decibels.shape, np.nan)
        for window, values in zip(table.itertuples(), maps.numpy(), strict=True):
            first_frame = round(window.start * self.audio.sample_rate / self.audio.hop)
            heat[:, first_frame:] = np.nan  # what two windows share is shown with the later one
            if window.emotion:
                region = heat[inset:, first_frame + inset :]
                cells = np.kron(values, np.ones((stride, stride)))[:, : region.shape[1]]  # without the padding
                region[: cells.shape[0], : cells.shape[1]] = cells / cells.max()
        if len(excerpt) < len(waveform):
            title += f" (the first {table['end'].max():g} of {len(waveform) / self.audio.sample_rate:.1f} s)"
        return figures.timeline(title, excerpt.numpy(), table, decibels, heat, self.audio)


def _hub_answers() -> bool:
    """Whether the Hub can be reached: huggingface_hub repeats a failed request for 23 s."""
    try:
        get_session().head(constants.ENDPOINT, timeout=2)
    except Exception:  # no network, no answer in time, HF_HUB_OFFLINE
        return False
    return True


def open_classifier(name: str = "") -> SamsgClassifier:
    """The model of a finished run (demo/savee), of a folder, or of the Hub; '' is the demo's first model."""
    if not name:
        demo = load_profile("demo")
        corpus, seeds = next(iter(stages.finished_runs(demo).items()))
        return SamsgClassifier.from_run(stages.open_run(demo, corpus, seed=seeds[0]))
    run = stages.find_run(name)
    return SamsgClassifier.from_run(run) if run else SamsgClassifier.from_pretrained(name)


def verify(run: Run) -> pd.DataFrame:
    """Test predictions of a finished run, computed again from its sounds and models, beside the recorded ones.

    Returns one row a stage: predictions, changed decisions, and the largest difference of a probability (six digits).
    """
    clips, profile, examples = read_clips(run), run.profile, stages.read_examples(run)
    log_mel, test_clips = LogMel(profile.audio), clips[clips["part"] == "test"]
    spectrograms = np.zeros((len(clips), 1, *examples.spectrograms.shape[2:]), np.float16)
    for index, path, clip in test_clips[["path", "clip"]].itertuples():
        waveform = read_sound(profile.root(run.corpus) / path, profile.audio.sample_rate)
        spectrograms[index] = log_mel(make_view(waveform, clip, "clean", profile.audio, profile.views)[None])[0]
    examples = replace(examples, spectrograms=spectrograms)
    fabric, rows = make_fabric(profile.training.device, profile.training.precision), {}
    for stage in ("baseline", "samsg", "probe"):
        choose_attention(model := load_model(run, stage), fabric.device)
        probabilities, _ = evaluate(fabric, fabric.setup_module(model), examples, "test", Objective())
        table, record = prediction_table(test_clips, probabilities, emotions_of(clips)), read_predictions(run, stage)
        differences = (table.filter(like="p_") - record.filter(like="p_")).abs()
        n_changed = int((table["predicted"] != record["predicted"]).sum())
        rows[stage] = {"predictions": len(table), "changed": n_changed, "largest": float(differences.to_numpy().max())}
    return pd.DataFrame.from_dict(rows, orient="index")
