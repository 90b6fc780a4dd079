"""A trained model on any recording: the emotion of every window of 4 s, and where the model looks (Fig. 2).

save_pretrained and push_to_hub are huggingface_hub's: config.json, model.safetensors and a model card.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

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
        self.log_mel = LogMel(self.audio).forward  # no submodule: its filters are not weights to save

    @classmethod
    def from_run(cls, run: Run) -> Self:
        """The model that stage iii of a finished run left."""
        clips, profile = read_clips(run), run.profile
        emotions, note = emotions_of(clips), profile.note(run.corpus, run.protocol)
        summary = summarise(read_predictions(run, "probe"), emotions, unit_of(run.protocol))
        share = summary.support[clips.loc[clips["part"] == "train", "emotion"].mode()[0]] / summary.n
        about = {
            "worth": f"Trained on {profile.title(run.corpus)}{f' ({note})' if note else ''}. Accuracy on {summary.n} "
            f"test clips: {estimate_text(summary.accuracy)} %; always the most frequent emotion: {100 * share:.1f} %.",
            "training": f"profile '{profile.name}', protocol '{run.protocol}', seed {run.seed}, "
            f"{(clips['part'] == 'train').sum()} training clips",
            "windows": f"every window of {profile.audio.seconds:g} s: {', '.join(emotions)}",
        }
        settings = profile.model_dump(mode="json", include={"audio", "model", "rollout"})
        classifier = cls(emotions=emotions, settings=settings, about=about)
        classifier.model = load_model(run, "probe")
        return classifier.eval()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.emotions)}): {self.about['worth']}"

    @classmethod
    def from_pretrained(cls, place: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """A model of a folder that ``save_pretrained`` wrote, or of the Hub ('owner/name'); SamsgError if none fits."""
        defaults = {"strict": True, "local_files_only": True}
        if not Path(place).is_dir():
            with suppress(Exception):  # no network, no answer in time, HF_HUB_OFFLINE; the hub itself retries for 23 s
                get_session().head(constants.ENDPOINT, timeout=2)
                defaults["local_files_only"] = False
        try:
            with redirect_stdout(sys.stderr):  # where the hub's message does not mix with tables
                classifier: Self = super().from_pretrained(place, **defaults | options)
        except Exception as error:  # of the hub, of JSON, of safetensors, of a model that does not fit
            offline = "the Hugging Face Hub cannot be reached, and its cache here does not hold it."
            reason = offline if isinstance(error, LocalEntryNotFoundError) else " ".join(str(error).split())[:300]
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
            waveform = change_rate(waveform.float(), int(sample_rate or rate), rate)
        if len(waveform) < SHORTEST * rate:
            raise SamsgError(f"{name} lasts {len(waveform) / rate:.2f} s; an emotion needs at least {SHORTEST} s.")
        last_start = max(0, len(waveform) - length)
        starts = np.append(np.arange(0, last_start, length), last_start)
        times = {"start": starts / rate, "end": np.minimum(starts + length, len(waveform)) / rate}
        table = pd.DataFrame(times, pd.RangeIndex(1, len(starts) + 1, name="window"))
        samples = nn.functional.pad(waveform, (0, max(0, length - len(waveform))))
        return waveform, table, torch.stack([samples[start : start + length] for start in starts])

    @torch.no_grad()
    def predict(self, sound: Sound | Sequence[Sound], sample_rate: int | None = None) -> pd.DataFrame:
        """The emotions of a recording of 0.25 s to 4 hours, window by window; one shorter than a window is padded.

        ``sound`` is a file, samples (S,), or a list of them; ``sample_rate`` that of samples, Hz, by default the
        model's. SamsgError if a file cannot be read as sound, or samples are not finite numbers of the shape (S,).

        Returns start and end (s), emotion, probability, and p_<emotion> for each class. The index, 'window', counts
        from 1; its last row, 'recording', has the mean probabilities, each window weighted by the time that it adds.
        Digital silence has no emotion, '' and nan, and no weight. For a list, an index 'sound' comes first: the path,
        or the place in the list.
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
        waveform, model = self._windows(sound, sample_rate)[0], self.model
        excerpt = waveform[: MOST_WINDOWS * self.audio.n_samples]
        table, spectrograms = self.predict(excerpt).drop("recording"), self.log_mel(self._windows(excerpt)[2])
        maps = attention_rollout(model, spectrograms, **self.rollout.model_dump()).numpy()  # (W, 12, 99)
        maps[table["emotion"] == ""] = np.nan  # silence
        decibels = LogMel(self.audio).decibels(excerpt[None])[0].numpy()  # (128, T)
        if len(excerpt) < len(waveform):
            title += f" (the first {table['end'].max():g} of {len(waveform) / self.audio.sample_rate:.1f} s)"
        figure = figures.timeline(excerpt.numpy(), table, decibels, maps, self.audio, model.patch, model.stride)
        figure.suptitle(title)
        return figure


def open_classifier(name: str = "") -> SamsgClassifier:
    """The model of a finished run (demo/savee), of a folder, or of the Hub; '' is the demo's first model."""
    if not name:
        demo = load_profile("demo")
        corpus, seeds = next(iter(stages.finished_runs(demo).items()))
        name = f"{demo.name}/{corpus}/random/seed{seeds[0]}"
    run = stages.find_run(name)
    return SamsgClassifier.from_run(run) if run else SamsgClassifier.from_pretrained(name)


def verify(run: Run) -> pd.DataFrame:
    """Test predictions of a finished run, computed again from its sounds and models, beside the recorded ones: a row a
    stage with their number, changed decisions, and the largest difference of a probability (recorded: six digits)."""
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
        n_changed = (table["predicted"] != record["predicted"]).sum()
        largest = (table.filter(like="p_") - record.filter(like="p_")).abs().max(axis=None)
        rows[stage] = {"predictions": len(table), "changed": n_changed, "largest": largest}
    return pd.DataFrame.from_dict(rows, orient="index")
