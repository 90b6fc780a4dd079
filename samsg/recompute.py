"""A finished run held against itself: its predictions computed anew from sounds and models (Section IV-C).

Between a sound file and a number of Table 1 everything is gone through again but the training and the masks: the sounds
are decoded, their clean views and spectrograms computed, the stages' models loaded, and what they predict compared with
predictions.csv: clip by clip, its part and emotion as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from samsg.audio.spectrogram import LogMel
from samsg.audio.store import WaveformStore
from samsg.audio.views import make_view
from samsg.report.metrics import accuracy, macro_f1
from samsg.report.tables import read_one
from samsg.runs import Run, progress_bar
from samsg.settings import SamsgError
from samsg.training.loop import Examples, make_fabric, quicker_attention
from samsg.training.stages import load_model, losses_of, predict, read_clips, read_examples, read_manifest

STAGES = ("baseline", "samsg", "probe")
ROUNDING = 2e-6  # of probabilities, which are recorded to six digits


@dataclass(frozen=True)
class Recomputed:
    """What came of it.

    Attributes:
        run: the run.
        stages: one row a finished stage: clips, differing (emotions), largest (difference of a probability), and of the
            test part accuracy and macro_f1, computed anew and recorded.
        changed: sounds that are not as they were when the run read them.
    """

    run: Run
    stages: pd.DataFrame
    changed: list[str]

    @property
    def same(self) -> bool:
        """Whether every prediction is as recorded and every sound as it was."""
        return self.only_rounding and bool((self.stages["largest"] <= ROUNDING).all())

    @property
    def only_rounding(self) -> bool:
        """Whether clips, parts, emotions, sounds and decisions are as recorded, and digits at most are not."""
        its = self.stages
        return not self.changed and not its["rows"].any() and not its["differing"].any()

    def text(self) -> str:
        """For people: one line a stage, and the verdict."""
        run = self.run
        lines = [f"{run.corpus}, protocol {run.protocol}, seed {run.seed}, profile '{run.profile.name}'"]
        for stage, row in self.stages.iterrows():
            scores = (row[name] for name in ("accuracy", "recorded_accuracy", "macro_f1", "recorded_macro_f1"))
            lines.append(
                f"  {stage:9} {row['clips']:.0f} clips, {row['differing']:.0f} emotions differ, probabilities by "
                f"{row['largest']:.1g} at most; "
                "accuracy {:.4f} (recorded {:.4f}), macro F1 {:.4f} (recorded {:.4f})".format(*scores)
            )
            if row["rows"]:
                lines.append(f"  {stage:9} {row['rows']:.0f} recorded rows are not those of the run's held-out clips")
        if self.changed:
            lines.append(f"  {len(self.changed)} sounds changed since they were read, such as {self.changed[0]}")
        verdict = "the same as recorded" if self.same else "NOT the same as recorded"
        if self.only_rounding and not self.same:
            verdict += ", by less than decides an emotion: another processor, version, or number of processes"
        return "\n".join([*lines, f"Verdict: {verdict}."])


def recompute(run: Run) -> Recomputed:
    """Compute a run's predictions anew.

    In the precision that the stage was trained in, so that on the machine that trained it they are equal.

    Raises:
        SamsgError: no stage of the run is finished, or its sounds are not where they were.
    """
    finished = [stage for stage in STAGES if (run.stage_folder(stage) / "settings.json").is_file()]
    if not finished:
        raise SamsgError(f"No stage of {run.folder} is finished, so there is nothing to compute anew.")
    root, audio = run.profile.root(run.corpus), run.profile.audio
    if not root.is_dir():
        raise SamsgError(f"The sounds of {run.corpus} were looked for in {root}, which is no folder; put them back.")
    store = WaveformStore(run.require("waveforms"))
    changed = store.changed(read_manifest(run), root, audio.sample_rate, anew=True)
    stored, rows = read_examples(run, masks="samsg" in finished), {}
    examples = Examples(_spectrograms(run, store), stored.labels, stored.parts, stored.masks)
    for stage in finished:
        folder, model, losses = run.require(stage), load_model(run, stage), losses_of(run, stage)
        arithmetic = json.loads((folder / "arithmetic.json").read_text(encoding="utf-8"))
        fabric = make_fabric(run.profile.training.model_copy(update={"precision": arithmetic["precision"]}))
        fabric.to_device(model)
        with quicker_attention(model, fabric.device):
            anew = predict(run, fabric, model, examples, losses, run.profile.training.evaluation_batch)
        rows[stage] = _compared(anew, read_one(folder / "predictions.csv"))
    return Recomputed(run, pd.DataFrame.from_dict(rows, orient="index"), changed)


def _compared(anew: pd.DataFrame, recorded: pd.DataFrame) -> dict[str, float]:
    """One row of ``Recomputed.stages``; rows: recorded ones that are not those of a held-out clip, or lacking."""
    keys = ["clip", "part", "emotion"]
    both = anew.merge(recorded, on=keys, suffixes=("", "_recorded"), validate="many_to_many")
    columns = [column for column in anew if column.startswith("p_")]
    missing = [column for column in columns if column not in recorded]
    if missing:
        raise SamsgError(f"predictions.csv lacks {', '.join(missing)}; run the stage anew.")
    differences = both[columns].astype(float).round(6).to_numpy() - both[[f"{c}_recorded" for c in columns]].to_numpy()
    row: dict[str, float] = {"clips": len(anew)}
    row["rows"] = int(anew[keys].value_counts().sub(recorded[keys].value_counts(), fill_value=0).abs().sum())
    row["differing"] = int((both["predicted"] != both["predicted_recorded"]).sum())
    row["largest"] = float(np.abs(differences).max(initial=0))
    emotions = [column.removeprefix("p_") for column in columns]
    for name, table in (("", anew), ("recorded_", recorded)):
        test = table[table["part"] == "test"]
        row[f"{name}accuracy"] = accuracy(test["emotion"], test["predicted"])
        row[f"{name}macro_f1"] = macro_f1(test["emotion"], test["predicted"], emotions)
    return row


def _spectrograms(run: Run, store: WaveformStore) -> np.ndarray:
    """Clean views of the held-out clips, computed anew; those of training stay 0: (1, N, 128, 1001)."""
    audio, log_mel = run.profile.audio, LogMel(run.profile.audio)
    spectrograms = np.zeros((1, len(store), audio.n_mels, audio.n_frames), np.float16)
    held_out = np.flatnonzero(read_clips(run)["part"] != "train")
    for index in progress_bar(held_out, "spectrograms", len(held_out), "clip"):
        view = make_view(store[index], store.clips["clip"].iat[index], "clean", audio, run.profile.views)
        with torch.no_grad():
            spectrograms[0, index] = log_mel(view[None])[0, 0].numpy()
    return spectrograms
