"""Is a map faithful? Deletion and insertion curves of stage i's model; they need no training.

Deletion blackens what a map ranks highest, step by step; insertion shows nothing else. With a faithful map the model
loses its answer early under deletion and finds it early under insertion (Samek et al., IEEE TNNLS 2017; Petsiuk et al.,
RISE, BMVC 2018). Maps are compared at equal area of speech: padding is never taken, and overlapping cells count once.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from samsg.masking import partly_black
from samsg.metrics import cluster_interval
from samsg.model import SpectrogramDeiT
from samsg.rollout import attention_rollout
from samsg.stages import Run, load_model, read_examples
from samsg.training import EVALUATION_BATCH, make_fabric

KINDS = ("deletion", "insertion")
PAPER, LEAST, RANDOM = "rollout, alpha 0.9 (paper)", "least attended", "random"  # LEAST is PAPER backwards
MAPS: dict[str, dict[str, Any]] = {  # names and what they change of ``attention_rollout``
    PAPER: {},
    "rollout, alpha 0.5": {"alpha": 0.5},
    "rollout, alpha 1": {"alpha": 1.0},
    "rollout, as printed": {"reading": "as_printed"},
    "rollout, discard": {"reading": "discard"},
    "last layer": {"reading": "last_layer"},
    "gradient": {"reading": "gradient"},
}
SHARES = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1)  # of the speech
DRAWS, MOST_CLIPS = 3, 120  # random orders, of which the mean is taken; clips of a study


@torch.no_grad()
def curves(model: SpectrogramDeiT, spectrogram: Tensor, labels: Tensor, maps: dict[str, Tensor]) -> pd.DataFrame:
    """The model's answers to spectrograms (B, 1, 128, 1001) with labels (B,), blackened by maps (B, 12, 99).

    One row for each map, share, kind and clip.

    Columns accuracy: 1 where the label is found, else 0; probability: of the class predicted for the whole clip.
    """
    grid, clips, tables = (model.patch, model.stride), range(len(labels)), []
    silence = partly_black(spectrogram, next(iter(maps.values())), 1, *grid)[0]
    # Share of the speech that is black -> answers (B, C); both ends are the same for every map.
    end_answers: dict[float, Tensor] = {0: model(spectrogram).softmax(1), 1: model(silence).softmax(1)}
    for (name, heat), share in product(maps.items(), SHARES):
        inputs = partly_black(spectrogram, heat, share, *grid)
        for kind, image, black_share in zip(KINDS, inputs, (share, 1 - share), strict=True):
            answer = end_answers[black_share] if black_share in end_answers else model(image).softmax(1)  # (B, C)
            values = {"accuracy": answer.argmax(1) == labels, "probability": answer[clips, end_answers[0].argmax(1)]}
            columns = {"map": name, "share": share, "kind": kind, "clip": clips}
            tables.append(pd.DataFrame(columns | {key: value.float().cpu() for key, value in values.items()}))
    return pd.concat(tables, ignore_index=True)


def areas(table: pd.DataFrame) -> pd.DataFrame:
    """Area under the curves of probability, and minus that of random, with 95 % intervals over clips; a row a map."""
    means = table.pivot_table("probability", ["map", "kind", "clip"], "share")  # of random orders, and of seeds
    curve_areas = pd.Series(np.trapezoid(means, means.columns), means.index).unstack("clip")  # (maps and kinds, clips)
    rows: dict[str, dict[str, float]] = {name: {} for name in table["map"].unique()}
    for (name, kind), clip_areas in curve_areas.iterrows():
        for column, values in ((kind, clip_areas), (f"{kind}_gain", clip_areas - curve_areas.loc[RANDOM, kind])):
            pairs = np.stack([values, np.ones(len(values))], 1)
            low, high = cluster_interval(pairs, lambda sums: sums[..., 0] / sums[..., 1])
            rows[name] |= {column: values.mean(), f"{column}_low": low, f"{column}_high": high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("map")


def study(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``curves`` of stage i's model and their ``areas``, of all maps and controls, on the clean view of test clips and,
    where these are fewer than 120, of validation clips."""
    examples, generator = read_examples(run), torch.Generator().manual_seed(run.seed)
    device = make_fabric(run.profile.training.device, run.profile.training.precision).device
    model = load_model(run, "baseline").to(device)
    parts = [examples.parts[part] for part in ("test", "validation")]
    clips = np.concatenate([part[torch.randperm(len(part), generator=generator)] for part in parts])[:MOST_CLIPS]
    tables = []
    for start in range(0, len(clips), EVALUATION_BATCH):
        batch = examples.batch(clips[start : start + EVALUATION_BATCH], device=device)
        maps = {name: attention_rollout(model, batch.spectrograms, **options) for name, options in MAPS.items()}
        draws = torch.rand(DRAWS, *maps[PAPER].shape, generator=generator).to(device)
        for group in (maps | {LEAST: -maps[PAPER]}, *({RANDOM: draw} for draw in draws)):
            table = curves(model, batch.spectrograms, batch.labels, group)
            tables.append(table.assign(clip=examples.names[clips[start + table["clip"]]]))
    table = pd.concat(tables, ignore_index=True)
    return table, areas(table)
