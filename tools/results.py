"""Write the tables of docs/results.md again, from the predictions in paper_figures/: python tools/results.py

A test compares the file with what this prints, so that no number in it can be stale.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from samsg import studies
from samsg.settings import SamsgError
from samsg.stages import open_run

FILE = Path(__file__).parents[1] / "docs" / "results.md"
BLOCK = re.compile(r"<!-- (claim|findings|gap|faithfulness)(?: (\S+))? -->\n.*?<!-- end -->", re.DOTALL)
PROTOCOLS = ("speaker", "sentence", "random")
PROFILES = {"emodb_2s": "emodb", "emodb_whole": "emodb", "ravdess": "ravdess", "ravdess_long": "ravdess"}


def read_all() -> dict[tuple[str, str], tuple[pd.DataFrame, pd.DataFrame]]:
    """(profile, protocol) -> predictions and training scores of every study that was run."""
    study_tables = {}
    for profile, corpus in PROFILES.items():
        for protocol in PROTOCOLS:
            try:
                study_tables[profile, protocol] = studies.read_study(open_run(profile, corpus, protocol), "claim")
            except SamsgError:  # not run
                continue
    return study_tables


def interval(values: np.ndarray) -> str:
    """'+1.2 [-3.4, +5.6]', in points."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * values))


def markdown(table: pd.DataFrame) -> str:
    """A pipe table without padding, so that lines stay short."""
    rows = [
        [table.index.name, *table.columns],
        ["---"] * (1 + table.shape[1]),
        *map(list, table.reset_index().to_numpy()),
    ]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def claim(predictions: pd.DataFrame, training: pd.DataFrame, protocol: str) -> str:
    """All methods of one study: train and test accuracy, macro F1, difference from DeiT for as many epochs."""
    table = studies.compare(predictions, protocol, studies.LONG.title)
    text_table = studies.printable(table, studies.LONG.title).drop(columns="Test clips")
    train_accuracy = training.groupby("variant")["train_accuracy"].mean().reindex(table.index)
    text_table.insert(0, "Train (%)", ["-" if np.isnan(value) else f"{100 * value:.1f}" for value in train_accuracy])
    return markdown(
        text_table.rename(columns=lambda name: name.replace("Difference from DeiT, as many epochs", "Difference"))
    )


def findings(predictions: dict[tuple[str, str], pd.DataFrame]) -> str:
    """Every comparison, corrected together."""
    family = studies.findings(predictions)
    family["points"] = [interval(values) for values in family[["value", "low", "high"]].to_numpy()]
    family["p (Holm)"] = family["p_holm"].map("{:.3f}".format)
    family["finding"] = family["finding"].str.partition(";")[0]  # the sizes that are excluded are the interval's ends
    return markdown(family.set_index("study")[["method", "against", "points", "p (Holm)", "finding"]])


def gap(predictions: dict[tuple[str, str], pd.DataFrame]) -> str:
    """Random minus held-out accuracy of every method, and its difference from the gap of DeiT for as many epochs."""
    comparisons = {
        (profile, protocol): studies.compare(table, protocol, studies.LONG.title)
        for (profile, protocol), table in predictions.items()
        if (profile, "random") in predictions
    }
    columns = {}
    for (profile, protocol), table in comparisons.items():
        if protocol != "random":
            random_table = comparisons[profile, "random"]
            for name, heading in (("accuracy", "gap"), ("difference", "minus that of DeiT, as many epochs")):
                values = studies.subtract(random_table, table, name).to_numpy()
                cells = ["-" if np.isnan(row).any() else interval(row) for row in values]
                columns[f"{profile}/{protocol}: {heading}"] = pd.Series(cells, table.index)
    return markdown(pd.DataFrame(columns).rename_axis("Method"))


def faithfulness() -> str:
    """The differences from random order by deletion, of the paper's map and three others, on both corpora."""
    maps = ["rollout, alpha 0.9 (paper)", "gradient", "last layer", "least attended"]
    columns = {}
    for heading, folder in {"RAVDESS": "ravdess_long/sentence", "EmoDB, synthetic speech": "demo"}.items():
        table = pd.read_csv(FILE.parents[1] / "paper_figures" / folder / "faithfulness.csv", index_col="Map")
        columns[heading] = table.loc[maps, "Deletion minus random"]
    return markdown(pd.DataFrame(columns))


def render(text: str) -> str:
    """The document with every block drawn again."""
    study_tables = read_all()
    predictions = {key: table for key, (table, _) in study_tables.items()}

    def block(match: re.Match[str]) -> str:
        kind, study = match.groups()
        if kind == "claim":
            profile, protocol = study.split("/")
            content = claim(*study_tables[profile, protocol], protocol)
        elif kind == "findings":
            content = findings({key: table for key, table in predictions.items() if key[1] != "random"})
        elif kind == "gap":
            content = gap(predictions)
        else:
            content = faithfulness()
        return f"<!-- {kind}{f' {study}' if study else ''} -->\n{content}<!-- end -->"

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    FILE.write_text(render(FILE.read_text(encoding="utf-8")), encoding="utf-8")
