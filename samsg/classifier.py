"""A trained model on any recording: the emotion of every window of 4 s, and where the model looks (Fig. 2).

save_pretrained, from_pretrained and push_to_hub are huggingface_hub's: a folder with config.json, model.safetensors and
a model card.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import PyTorchModelHubMixin
from matplotlib.figure import Figure
from torch import Tensor, nn

from samsg import figures, stages
from samsg.audio import LogMel, make_view, read_sound
from samsg.corpora import emotions_of
from samsg.metrics import summarise, unit_of
from samsg.model import build_model
from samsg.rollout import attention_rollout
from samsg.settings import AudioSettings, ModelSettings, RolloutSettings, SamsgError, load_profile
from samsg.stages import Run, find_run, finished_runs, load_model, open_run, read_clips, read_predictions
from samsg.tables import estimate_text
from samsg.training import EVALUATION_BATCH, Objective, evaluate, make_fabric

Sound = str | Path | np.ndarray | Tensor  # a file, or mono samples in [-1, 1] at the model's own rate, (S,)
LONGEST = 4 * 3600.0  # s of a recording
SHOWN = 12  # windows in one picture
CARD = """---
{{ card_data }}
---

# Speech emotion recognition by SAMSG

Names the emotion of a recording, for {{ about.windows }}. {{ about.worth }}

    samsg predict clip.wav --model THIS_FOLDER

A distilled DeiT, trained by the three stages of SAMSG (Kim & Lee, *Self-Attention-Based Masked Spectrogram Generation
and Self-Supervised Learning Method for Improving Speech Emotion Recognition*): {{ about.training }}.

It always names one of its classes, also for other emotions, other languages, music or noise. It was trained on acted
speech of few speakers; under protocol 'random' test speakers also occur in training, so new speakers are recognised
less well. The licence of the recordings is that of the corpus. Do not use it to judge people.
"""


class SamsgClassifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="samsg",
    pipeline_tag="audio-classification",
    tags=["speech-emotion-recognition"],
    model_card_template=CARD,
):
    """A trained model, its classes in the order of the logits, the profile's groups audio, model and rollout, and, for
    people, what it was trained on and what it reaches (``about["worth"]``)."""

    def __init__(self, emotions: list[str], settings: dict[str, Any], about: dict[str, Any]) -> None:
        super().__init__()
        self.emotions, self.about = emotions, about
        self.audio, self.rollout = AudioSettings(**settings["audio"]), RolloutSettings(**settings["rollout"])
        self.model = build_model(ModelSettings(**settings["model"]), self.audio, len(emotions), weights="random")

    @cached_property  # not a submodule: its filters are not weights to save
    def log_mel(self) -> LogMel:
        """The front end that the model was trained with."""
        return LogMel(self.audio)

    @classmethod
    def from_run(cls, run: Run) -> SamsgClassifier:
        """The model that stage iii of a finished run left."""
        clips, profile = read_clips(run), run.profile
        emotions, note = emotions_of(clips), profile.note(run.corpus, run.protocol)
        summary = summarise(read_predictions(run, "probe"), emotions, unit_of(run.protocol))
        commonest = 100 * max(summary.support.values()) / summary.n
        title = profile.title(run.corpus) + (f" ({note})" if note else "")
        about = {
            "worth": f"Trained on {title}. Accuracy on {summary.n} test clips: {estimate_text(summary.accuracy)} %; "
            f"always the most frequent emotion: {commonest:.1f} %.",
            "training": f"profile '{profile.name}', protocol '{run.protocol}', seed {run.seed}, "
            f"{(clips['part'] == 'train').sum()} training clips",
            "windows": f"every window of {profile.audio.seconds:g} s: {', '.join(emotions)}",
        }
        settings = {name: getattr(profile, name).model_dump(mode="json") for name in ("audio", "model", "rollout")}
        classifier = cls(emotions=emotions, settings=settings, about=about)
        classifier.model = load_model(run, "probe")
        return classifier.eval()

    @classmethod
    def from_pretrained(cls, place: str | Path, **options: Any) -> SamsgClassifier:  # type: ignore[override]
        """Read a folder that ``save_pretrained`` wrote, or a model on the Hugging Face Hub ('owner/name').

        Raises:
            SamsgError: there is no such model, or it is not one of these.
        """
        try:
            with redirect_stdout(sys.stderr):  # where the hub's message does not mix with tables
                classifier: SamsgClassifier = super().from_pretrained(place, strict=True, **options)
        except Exception as error:  # of the hub, of JSON, of safetensors, of a model that does not fit
            message = f"No model could be read from '{place}': {' '.join(str(error).split())[:300]}"
            raise SamsgError(
                f"{message} Give a run (demo/savee), a folder of 'samsg export', or owner/name."
            ) from error
        return classifier.eval()

    def generate_model_card(self, *arguments: Any, **options: Any) -> Any:
        """The model card, with what the model was trained on and what it reaches."""
        return super().generate_model_card(*arguments, about=self.about, **options)

    def _windows(self, sound: Sound) -> tuple[pd.DataFrame, Tensor]:
        """Windows of 4 s, the last one ending with the recording: start and end (s), and the samples (W, 64000)."""
        length, rate = self.audio.n_samples, self.audio.sample_rate
        waveform = read_sound(sound, rate, LONGEST) if isinstance(sound, str | Path) else torch.as_tensor(sound)
        if waveform.ndim != 1 or not len(waveform) or not waveform.is_floating_point() or not waveform.isfinite().all():
            found = f"{waveform.dtype} of the shape {tuple(waveform.shape)}"
            raise SamsgError(f"Samples are finite floating-point numbers in [-1, 1] of the shape (S,), found {found}.")
        last = max(0, len(waveform) - length)
        starts = np.append(np.arange(0, last, length), last)
        padded = nn.functional.pad(waveform.float(), (0, max(0, length - len(waveform))))
        table = pd.DataFrame({"start": starts / rate, "end": np.minimum(starts + length, len(waveform)) / rate})
        return table, torch.stack([padded[start : start + length] for start in starts])

    @torch.no_grad()
    def predict(self, sound: Sound) -> pd.DataFrame:
        """The emotion of every window of a recording of at most 4 hours; one shorter than a window is padded.

        Returns:
            One row a window: start and end (s), emotion, probability, and p_<emotion> for each class. Digital silence
            has no emotion: '' and nan.

        Raises:
            SamsgError: the file cannot be read as sound, or the samples are not finite numbers of the shape (S,).
        """
        table, windows = self._windows(sound)
        logits = torch.cat([self.model(self.log_mel(batch)) for batch in windows.split(EVALUATION_BATCH)])  # (W, C)
        silent = (windows == windows[:, :1]).all(1)
        probabilities = logits.softmax(1).masked_fill(silent[:, None], torch.nan)
        emotions = np.where(silent, "", np.array(self.emotions)[logits.argmax(1)])
        table = table.assign(emotion=emotions, probability=probabilities.amax(1).numpy())
        return table.join(pd.DataFrame(probabilities.numpy(), columns=[f"p_{name}" for name in self.emotions]))

    def picture(self, sound: Sound, title: str = "") -> Figure:
        """Spectrogram and attention rollout of the first 12 windows. Errors as ``predict``."""
        table, spectrograms = self.predict(sound)[:SHOWN], self.log_mel(self._windows(sound)[1][:SHOWN])
        heat = attention_rollout(self.model, spectrograms, **self.rollout.model_dump())  # (W, 12, 99)
        figure, axes = figures.panels(len(table), 1, (figures.WIDTH, 1.8 * len(table) + 0.3))
        figure.suptitle(title)
        for ax, window, cells, rollout in zip(axes.flat, table.itertuples(), spectrograms, heat, strict=True):
            answer = f"{window.emotion} {window.probability:.0%}" if window.emotion else "silence"
            style = {"title": f"{window.start:.1f} s: {answer}", "end": window.end - window.start}
            grid = {"patch": self.model.patch, "stride": self.model.stride}
            figures.overlay(ax, cells[0].numpy(), rollout.numpy(), self.audio, **grid, **style)
        return figure


def open_classifier(name: str = "") -> SamsgClassifier:
    """The model of a finished run (demo/savee), of a folder, or of the Hub; '' is the demo's first model."""
    if not name:
        corpus, seeds = next(iter(finished_runs(load_profile("demo")).items()))
        return SamsgClassifier.from_run(open_run("demo", corpus, "random", seeds[0]))
    run = find_run(name)
    return SamsgClassifier.from_run(run) if run else SamsgClassifier.from_pretrained(name)


def verify(run: Run) -> pd.DataFrame:
    """Test predictions of a finished run, computed again from its sounds and models, beside the recorded ones.

    Returns one row a stage: predictions, changed decisions, and the largest difference of a probability (six digits).
    """
    clips, profile, recorded = read_clips(run), run.profile, stages.read_examples(run)
    log_mel, test = LogMel(profile.audio), clips[clips["part"] == "test"]
    spectrograms = np.zeros((len(clips), 1, *recorded.spectrograms.shape[2:]), np.float16)
    for index, path, clip in test[["path", "clip"]].itertuples():
        waveform = read_sound(profile.root(run.corpus) / path, profile.audio.sample_rate)
        spectrograms[index] = log_mel(make_view(waveform, clip, "clean", profile.audio, profile.views)[None])[0]
    examples = replace(recorded, spectrograms=spectrograms)
    fabric, rows = make_fabric(profile.training.device, profile.training.precision), {}
    for stage in ("baseline", "samsg", "probe"):
        model = fabric.setup_module(load_model(run, stage))
        probabilities, _ = evaluate(fabric, model, examples, "test", Objective())
        new, old = stages.prediction_table(test, probabilities, emotions_of(clips)), read_predictions(run, stage)
        differences = (new.filter(like="p_") - old.filter(like="p_")).abs()
        changed = int((new["predicted"] != old["predicted"]).sum())
        rows[stage] = {"predictions": len(new), "changed": changed, "largest": float(differences.to_numpy().max())}
    return pd.DataFrame.from_dict(rows, orient="index")
