"""Tables 1 and 2 (Section IV-C): the paper's rows and this run's, with 95 % intervals, as CSV, Markdown and LaTeX.

The paper's numbers come from paper_figures/reference, this run's from ``metrics.summarise``. A corpus with a note, such
as 'synthetic speech', is not the paper's corpus: it has its own column, with the note in its heading.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from samsg.corpora import emotions_of
from samsg.metrics import Summary, summarise, unit_of
from samsg.settings import Profile, SamsgError, in_repository
from samsg.stages import finished_runs, open_run, read_clips, read_predictions, svm_predictions
from samsg.storage import atomic

Results = Mapping[str, Mapping[str, Summary]]  # heading of a corpus -> method -> summary
PAPER_CORPORA = {"savee": "SAVEE", "emodb": "EmoDB", "crema_d": "CREMA-D"}
PAPER_ROWS = {"DeiT (Gong et al.)": "DeiT [2] (paper)", "The SAMSG (Ours)": "SAMSG (paper)"}
METHODS = {
    "svm": "Linear SVM on log-mel statistics (this run)",
    "baseline": "DeiT (this run)",
    "samsg": "SAMSG, stage ii (this run)",
    "probe": "SAMSG (this run)",
}
# Table -> the metric it shows, its name in the caption, and the factor and format of this run's numbers.
CONTENT = {1: ("accuracy", "Accuracy in percent", 100, ".1f"), 2: ("macro_f1", "Macro-averaged F1", 1, ".3f")}


def reference_values(number: int) -> pd.DataFrame:
    """Table 1 or 2 as printed in the paper: columns method, reference, savee, emodb, crema_d; text, '' for a dash."""
    path = in_repository("paper_figures/reference") / f"table{number}.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def collect(profile: Profile, protocol: str = "random", corpora: Collection[str] = ()) -> dict[str, dict[str, Summary]]:
    """Test results of the finished runs, of all or of the named corpora: heading -> method -> summary.

    Raises:
        SamsgError: no run is finished, or two corpora have one heading.
    """
    results: dict[str, dict[str, Summary]] = {}
    for corpus, finished in finished_runs(profile, protocol, corpora).items():
        note, title = profile.note(corpus, protocol), profile.title(corpus)
        heading = f"{title} ({note})" if note else PAPER_CORPORA.get(corpus, title)
        if heading in results or (heading in PAPER_CORPORA.values() and corpus not in PAPER_CORPORA):
            raise SamsgError(f"Corpus '{corpus}' would have the heading '{heading}' of another one; give it a title.")
        runs = [open_run(profile, corpus, protocol, seed) for seed in finished]
        classes, results[heading] = emotions_of(read_clips(runs[0])), {}
        for method in METHODS:
            tested = [svm_predictions(run) if method == "svm" else read_predictions(run, method) for run in runs]
            results[heading][method] = summarise(pd.concat(tested, ignore_index=True), classes, unit_of(protocol))
    return results


def estimate_text(estimate: Sequence[float], scale: float = 100, form: str = ".1f") -> str:
    """'57.1 ± 2.0 [42.2, 70.9]': value, deviation over seeds, interval; without what is nan, '-' without a value."""
    value, low, high, std = (scale * number for number in estimate)
    spread = "" if np.isnan(std) else f" ± {std:{form}}"
    interval = "" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return "-" if np.isnan(value) else f"{value:{form}}{spread}{interval}"


def results_table(number: int, results: Results, paper: bool = True) -> pd.DataFrame:
    """Table 1 (accuracy) or 2 (macro F1) as text, one row a method: the paper's rows, then those of ``collect``.

    Without ``paper`` the paper's rows and columns are left out, for a corpus of one's own.
    """
    metric, _, scale, form = CONTENT[number]
    columns: dict[str, dict[str, str]] = {}
    if paper:
        printed = reference_values(number)
        names = printed["method"].map(PAPER_ROWS).fillna(printed["method"] + " [" + printed["reference"] + "]")
        columns = {title: dict(zip(names, printed[corpus], strict=True)) for corpus, title in PAPER_CORPORA.items()}
    for heading, summaries in results.items():
        cells = {METHODS[name]: estimate_text(getattr(each, metric), scale, form) for name, each in summaries.items()}
        size = {"Test clips (this run)": next(iter(summaries.values())).size}
        columns[heading] = columns.get(heading, {}) | cells | size
    rows = dict.fromkeys(name for column in columns.values() for name in column)
    return pd.DataFrame(columns, index=pd.Index(list(rows), name="Method")).replace("", np.nan).fillna("-")


def caption(number: int, results: Results) -> str:
    """What stands above Table 1 or 2."""
    summaries = [summary for methods in results.values() for summary in methods.values()]
    units = sorted({summary.unit for summary in summaries} - {"clip"})
    text = f"Table {number}. {CONTENT[number][1]}, as reached in this run, with 95 % intervals"
    text += f" (resampled by {' or '.join(units)})" if units else ""
    text += "; ± is the standard deviation over seeds" if any(summary.seeds > 1 for summary in summaries) else ""
    return f"{text}. Rows and columns without 'this run' or a note are as printed in the paper, with its references."


def to_markdown(frame: pd.DataFrame, caption: str) -> str:
    """The caption, and below it a pipe table; numbers stay as they are written."""
    cells = frame.reset_index().map(lambda cell: str(cell).replace("|", r"\|"))
    return f"{caption}\n\n{cells.to_markdown(index=False, disable_numparse=True)}\n"


def write_table(frame: pd.DataFrame, folder: Path, stem: str, caption: str) -> None:
    """Write a table, whose rows are indexed by their names, as <stem>.csv, .md and .tex (needs booktabs)."""
    escaped = frame.rename_axis(None).style.format(escape="latex")
    escaped = escaped.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    style = {"environment": "table*", "hrules": True, "label": f"tab:{stem}", "position_float": "centering"}
    tex = escaped.to_latex(caption=caption.partition(". ")[2].replace("%", r"\%"), **style)
    texts = {"csv": frame.to_csv(lineterminator="\n"), "md": to_markdown(frame, caption), "tex": tex}
    for kind, text in texts.items():
        with atomic(Path(folder) / f"{stem}.{kind}") as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
