"""Past the paper: variants of a profile, trained on the same splits and compared.

Stages that a variant shares with its profile are made once, so that variants differ in what they change and in nothing
else. A study leaves two tables in paper_figures/<profile>/, from which its results are drawn.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from samsg.corpora import emotions_of
from samsg.metrics import Difference, Estimate, estimate_text, holm, paired_difference, summarise, unit_of
from samsg.settings import REPOSITORY, Profile, SamsgError, home
from samsg.stages import Run, open_run, read_history, read_predictions, read_table, run_stages, svm_predictions
from samsg.storage import atomic

SVM = "Linear SVM"


class Variant(NamedTuple):
    """One row of a study: its title, the settings it changes, and the stage whose predictions count."""

    title: str
    changes: dict[str, dict[str, Any]]
    stage: str = "probe"


SAMSG, DEIT = Variant("SAMSG", {}), Variant("DeiT", {}, "baseline")
# Stage ii without masks: the same epochs and the same restart as SAMSG, and nothing of its method.
NO_MASKS = Variant("SAMSG, no masks", {"mask": {"strategy": "none"}})
LONG = NO_MASKS._replace(title="DeiT, as many epochs", stage="samsg")
FIFTH = {"select": "share", "padding": "exclude"}  # of the patches with speech: every map masks as many patches
CLAIM = [
    Variant("SAMSG, random masks", {"mask": {"strategy": "random", **FIFTH}}),
    SAMSG,  # as printed: patches above 0.5 of the maximum, padding included
    Variant("SAMSG, a fifth of the speech", {"mask": FIFTH}),
    Variant("SAMSG, gradient map", {"rollout": {"reading": "gradient"}, "mask": FIFTH}),
]
CLAIM_STAGE_II = [variant._replace(title=f"{variant.title}, stage ii", stage="samsg") for variant in CLAIM]
STUDIES = {"claim": [DEIT, LONG, NO_MASKS, *CLAIM, *CLAIM_STAGE_II]}  # notebooks 08 and 10 add their own


def changed(profile: Profile, variant: Variant) -> Profile:
    """The profile with a variant's settings, under a name of its own."""
    if not variant.changes:
        return profile
    groups = {group: getattr(profile, group).model_dump() | values for group, values in variant.changes.items()}
    suffix = "_".join(str(value) for values in variant.changes.values() for item in values.items() for value in item)
    name = f"{profile.name}.{suffix.replace('.', '_')}"
    return Profile(**{**profile.model_dump(), **groups, "name": name, "variant_of": profile})


def variant_run(run: Run, variant: Variant) -> Run:
    """The run of a variant on the same corpus, split and seed."""
    return open_run(changed(run.profile, variant), run.corpus, run.protocol, run.seed)


def run_study(runs: Iterable[Run], study: str) -> None:
    """Train every variant on every run's corpus, split and seed; finished stages are not run again."""
    for run in runs:
        for variant in STUDIES[study]:
            run_stages(variant_run(run, variant), variant.stage)


def study_predictions(runs: Iterable[Run], study: str) -> pd.DataFrame:
    """Test predictions of the SVM and of all variants, which must be finished, below each other."""
    tables = []
    for run in runs:
        tables.append(svm_predictions(run).assign(variant=SVM))
        tables += [read_predictions(variant_run(run, v), v.stage).assign(variant=v.title) for v in STUDIES[study]]
    columns = ["variant", "seed", "clip", "speaker", "sentence", "emotion", "predicted"]
    return pd.concat(tables, ignore_index=True)[columns]


def study_files(run: Run, study: str, folder: Path) -> list[Path]:
    """The paths of both tables: paper_figures/demo/emodb_claim_random_predictions.csv.xz, and _training.csv.xz."""
    stem = f"{run.corpus}_{study}_{run.protocol}"
    return [folder / f"paper_figures/{run.profile.name}/{stem}_{kind}.csv.xz" for kind in ("predictions", "training")]


def write_study(runs: Sequence[Run], study: str) -> None:
    """Write a study that is finished on these runs, some seeds of one corpus and protocol, as two tables: test
    predictions, and the last epoch of each variant's last stage, one row a variant and seed."""
    last_epochs = [
        {"variant": variant.title, "seed": run.seed, **read_history(variant_run(run, variant), variant.stage).iloc[-1]}
        for run in runs
        for variant in STUDIES[study]
    ]
    training = pd.DataFrame(last_epochs).drop(columns=["lr", "seconds"]).astype({"epoch": int})
    tables = study_predictions(runs, study), training
    for path, table in zip(study_files(runs[0], study, home()), tables, strict=True):
        with atomic(path) as partial:
            table.to_csv(partial, index=False, float_format="%.4f", compression="xz")


def read_study(run: Run, study: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables that ``write_study`` left, of all seeds, or those that the repository contains; SamsgError if
    neither exists for this profile, corpus and protocol."""
    for folder in (home(), REPOSITORY):
        predictions, training = study_files(run, study, folder)
        if predictions.is_file():
            return read_table(predictions), read_table(training)
    command = f"samsg reproduce --study {study} --profile {run.profile.name} --protocol {run.protocol}"
    raise SamsgError(f"There is no {predictions}; '{command}' trains this study.")


def compare(predictions: pd.DataFrame, protocol: str, reference: str = SAMSG.title) -> pd.DataFrame:
    """Every variant with its intervals, and its difference from the reference on the same clips.

    Intervals resample what the protocol holds out; Holm's method corrects McNemar's p-values for the whole table.
    Returns one row a variant: n, accuracy, macro_f1 and difference, each with _low and _high; p, p_holm, only_variant
    and only_reference (clips that only the variant, or only the reference, gets right).
    """
    classes, unit = emotions_of(predictions), unit_of(protocol, predictions)
    reference_table, rows = predictions[predictions["variant"] == reference], {}
    for title, table in predictions.groupby("variant", sort=False):
        summary = summarise(table, classes, unit)
        estimates: dict[str, Estimate | Difference] = {"accuracy": summary.accuracy, "macro_f1": summary.macro_f1}
        row: dict[str, float] = {"n": summary.n}
        if title != reference:
            difference = estimates["difference"] = paired_difference(table, reference_table, unit)
            row |= {"p": difference.p, "only_variant": difference.only_first, "only_reference": difference.only_second}
        for name, (value, low, high, *_) in estimates.items():
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows[title] = row
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("Method")
    return table.assign(p_holm=holm(table["p"]))


def printable(table: pd.DataFrame, reference: str = SAMSG.title) -> pd.DataFrame:
    """``compare`` as text: percentages with intervals, one row a variant."""
    headings = {"accuracy": "Accuracy (%)", "macro_f1": "Macro F1 (%)", "difference": f"Difference from {reference}"}
    columns = {}
    for name, heading in headings.items():
        form = "+.1f" if name == "difference" else ".1f"
        estimates = table[[name, f"{name}_low", f"{name}_high"]].to_numpy()
        columns[heading] = [estimate_text((*estimate, np.nan), form=form) for estimate in estimates]
    columns["p (Holm)"] = ["-" if np.isnan(p) else f"{p:.3f}" for p in table["p_holm"]]
    columns["Test clips"] = table["n"].astype(int).astype(str).tolist()
    return pd.DataFrame(columns, index=table.index)


def findings(predictions: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Every comparison that the claim rests on, in all studies at once: Holm's method corrects them together.

    Each variant of stage iii is compared with DeiT for as many epochs, and those that mask a fifth of the patches with
    random masks of the rollout's area. A difference needs an interval without 0 and a corrected p below .05.
    ``predictions``: (profile, protocol) -> test predictions of the study 'claim', as ``read_study`` gives them.
    """
    random_masks, _, *fifth_variants = CLAIM
    pairs = [(variant.title, LONG.title) for variant in (NO_MASKS, *CLAIM)]
    pairs += [(variant.title, random_masks.title) for variant in fifth_variants]
    rows = []
    for (title, protocol), table in predictions.items():
        methods = dict(iter(table.groupby("variant")))
        for method, reference in pairs:
            gain = paired_difference(methods[method], methods[reference], unit_of(protocol, table))
            rows.append({"study": f"{title}, {protocol}", "method": method, "against": reference, **gain._asdict()})
    family = pd.DataFrame(rows)
    family["p_holm"] = holm(family["p"])
    is_different = ((family["low"] > 0) | (family["high"] < 0)) & (family["p_holm"] < 0.05)
    bounds = [f"no difference found; gains above {100 * high:.1f} points are excluded" for high in family["high"]]
    return family.assign(finding=np.where(is_different, "difference", bounds))


def subtract(first: pd.DataFrame, second: pd.DataFrame, name: str = "accuracy") -> pd.DataFrame:
    """A column of one ``compare`` minus that of another, of independent clips: difference, _low and _high. The interval
    follows from the two intervals (Zou & Donner, Statistics in Medicine 27, 2008)."""
    a, a_low, a_high = (first[f"{name}{end}"] for end in ("", "_low", "_high"))
    b, b_low, b_high = (second[f"{name}{end}"] for end in ("", "_low", "_high"))
    low = a - b - np.sqrt((a - a_low) ** 2 + (b_high - b) ** 2)
    high = a - b + np.sqrt((a_high - a) ** 2 + (b - b_low) ** 2)
    return pd.DataFrame({"difference": a - b, "difference_low": low, "difference_high": high})
