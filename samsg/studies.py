"""Past the paper: variants of a profile, trained on the same splits and compared.

A study is a list of variants, each a change of settings. Stages that a variant shares with its profile (spectrograms,
stage i, its rollout) are made once, so that variants differ in what they change and in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from samsg.corpora import emotions_of
from samsg.metrics import Difference, Estimate, holm, paired_difference, summarise, unit_of
from samsg.model import IMAGENET_GREY
from samsg.settings import Profile
from samsg.stages import Run, open_run, read_predictions, run_stages, svm_predictions
from samsg.tables import estimate_text

SVM = "Linear SVM"


class Variant(NamedTuple):
    """One row of a study: its title, the settings it changes, and the stage whose predictions count."""

    title: str
    changes: dict[str, dict[str, Any]]
    stage: str = "probe"


MASKS = {"random": "random masks", "least": "least attended masks", "stripes": "stripes", "none": "no masks"}
SAMSG, DEIT = Variant("SAMSG", {}), Variant("DeiT", {}, "baseline")
# Stage ii without masks: the same epochs and the same restart as SAMSG, and nothing of its method.
LONG = Variant("DeiT, as many epochs", {"mask": {"strategy": "none"}}, "samsg")
CONTROLS = [Variant(f"SAMSG, {title}", {"mask": {"strategy": name}}) for name, title in MASKS.items()]
STUDIES: dict[str, list[Variant]] = {
    "controls": [
        SAMSG,
        DEIT,
        LONG,
        *CONTROLS,
        Variant("SAMSG, stage ii", {}, "samsg"),
        Variant("SAMSG, no reconstruction", {"samsg": {"reconstruction_weight": 0.0}}),
        Variant("SAMSG, reconstruction only", {"samsg": {"classification_weight": 0.0}}),
    ],
    "masks": [SAMSG, DEIT, LONG, CONTROLS[0], CONTROLS[3]],
    "sensitivity": [
        SAMSG,
        Variant("threshold 0.3", {"mask": {"threshold": 0.3}}),
        Variant("threshold 0.7", {"mask": {"threshold": 0.7}}),
        Variant("a fifth of the patches", {"mask": {"select": "share"}}),
        Variant("alpha 0.5", {"rollout": {"alpha": 0.5}}),
        Variant("alpha 1", {"rollout": {"alpha": 1.0}}),
        Variant("product as printed", {"rollout": {"reading": "as_printed"}}),
        Variant("discarding", {"rollout": {"reading": "discard"}}),
        Variant("mean of CLS and DIST", {"rollout": {"token": "mean"}}),
        Variant("masked with ImageNet's grey", {"mask": {"fill": IMAGENET_GREY[0]}}),
        Variant("reconstruction weight 10", {"samsg": {"reconstruction_weight": 10.0}}),
    ],
}


def changed(profile: Profile, variant: Variant) -> Profile:
    """The profile with a variant's settings, under a name of its own."""
    if not variant.changes:
        return profile
    content = profile.model_dump()
    groups = {group: {**content[group], **values} for group, values in variant.changes.items()}
    settings = "_".join(str(value) for values in variant.changes.values() for item in values.items() for value in item)
    return Profile(**{**content, **groups, "name": f"{profile.name}.{settings}", "variant_of": profile})


def variant_run(run: Run, variant: Variant) -> Run:
    """The run of a variant on the same corpus, split and seed."""
    return open_run(changed(run.profile, variant), run.corpus, run.protocol, run.seed)


def run_study(runs: Iterable[Run], study: str) -> None:
    """Train every variant on every run's corpus, split and seed; finished stages are not run again."""
    for run in runs:
        for variant in STUDIES[study]:
            run_stages(variant_run(run, variant), variant.stage)


def study_predictions(runs: Iterable[Run], study: str) -> pd.DataFrame:
    """Test predictions of the SVM and of all variants, which must be finished, with the columns named below."""
    tables = []
    for run in runs:
        tables.append(svm_predictions(run).assign(variant=SVM))
        for variant in STUDIES[study]:
            table = read_predictions(variant_run(run, variant), variant.stage)
            tables.append(table.assign(variant=variant.title))
    columns = ["variant", "seed", "clip", "speaker", "sentence", "emotion", "predicted"]
    return pd.concat(tables, ignore_index=True)[columns]


def compare(predictions: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Every variant with its intervals, and its difference from SAMSG on the same clips.

    Intervals resample what the protocol holds out; Holm's method corrects McNemar's p-values for the whole table.

    Returns one row a variant: n, accuracy, macro_f1 and difference, each with _low and _high; p, p_holm, only_variant
    and only_reference (clips that only the variant, or only SAMSG, gets right).
    """
    classes, unit = emotions_of(predictions), unit_of(protocol)
    base, rows = predictions[predictions["variant"] == SAMSG.title], {}
    for title, table in predictions.groupby("variant", sort=False):
        summary = summarise(table, classes, unit)
        estimates: dict[str, Estimate | Difference] = {"accuracy": summary.accuracy, "macro_f1": summary.macro_f1}
        row: dict[str, float] = {"n": summary.n}
        if title != SAMSG.title:
            difference = estimates["difference"] = paired_difference(table, base, unit)
            row |= {"p": difference.p, "only_variant": difference.only_first, "only_reference": difference.only_second}
        for name, (value, low, high, *_) in estimates.items():
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows[title] = row
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("Method")
    return table.assign(p_holm=holm(table["p"]))


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """``compare`` as text: percentages with intervals, one row a variant."""
    headings = {"accuracy": "Accuracy (%)", "macro_f1": "Macro F1 (%)", "difference": "Difference from SAMSG"}
    columns = {}
    for name, heading in headings.items():
        form = "+.1f" if name == "difference" else ".1f"
        estimates = table[[name, f"{name}_low", f"{name}_high"]].to_numpy()
        columns[heading] = [estimate_text((*estimate, np.nan), form=form) for estimate in estimates]
    columns["p (Holm)"] = ["-" if np.isnan(p) else f"{p:.3f}" for p in table["p_holm"]]
    columns["Test clips"] = table["n"].astype(int).astype(str).tolist()
    return pd.DataFrame(columns, index=table.index)
