"""The tables of docs/results.md are those that the committed predictions give."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from samsg import studies
from samsg.report.tables import read_one, to_markdown
from samsg.settings import REPOSITORY

RESULTS = REPOSITORY / "docs/results.md"
FIGURES = REPOSITORY / "paper_figures"


def rows_of(table: pd.DataFrame) -> list[str]:
    """The rows of a comparison as Markdown."""
    return to_markdown(studies.printable(table), "").splitlines()[4:]


def test_controls_on_real_speech_are_drawn_again() -> None:
    predictions = read_one(FIGURES / "emodb_folds/speaker/controls_predictions.csv")
    assert predictions.groupby(["variant", "seed", "clip"]).size().max() == 1
    compared = studies.compare(predictions)
    text = RESULTS.read_text(encoding="utf-8")
    rows = rows_of(compared)
    assert len(rows) == 9
    for row in rows:
        assert row in text


def test_sentences_never_heard_are_drawn_again() -> None:
    predictions = read_one(FIGURES / "emodb_folds/generalisation_predictions.csv")
    assert (predictions["protocol"] == "sentence").all()
    # Every clip is tested once by every method.
    assert predictions.groupby("variant")["clip"].nunique().eq(535).all() and len(predictions) == 4 * 535
    text = RESULTS.read_text(encoding="utf-8")
    for row in rows_of(studies.compare(predictions)):
        assert row.replace("| ", "| sentence: ", 1) in text


def test_accuracy_against_strength_is_drawn_again() -> None:
    predictions = read_one(FIGURES / "shortcuts/shortcuts_predictions.csv")
    text = RESULTS.read_text(encoding="utf-8")
    for strength, table in predictions.groupby("strength"):
        for variant, row in studies.printable(studies.compare(table)).iterrows():
            assert f"| {strength:g} | {variant} | {row['Accuracy (%)']} |" in text


TABLES = sorted(path for path in FIGURES.glob("*/**/*.md") if path.name != "README.md")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: str(path.relative_to(FIGURES)))
def test_every_committed_table_says_what_it_is_of(path: Path) -> None:
    """No table of this repository may be taken for results on the paper's corpora: none of them is."""
    caption = path.read_text(encoding="utf-8").splitlines()[0].lower()
    assert "synthetic speech" in caption or "first 2 s" in caption
