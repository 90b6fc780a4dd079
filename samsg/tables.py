"""Tables 1 and 2 (Section IV-C): the paper's rows and this run's, with 95 % intervals, as CSV, Markdown and LaTeX.

A corpus with a note, such as 'synthetic speech', is not the paper's: its column has the note in its heading.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from samsg.corpora import emotions_of
from samsg.metrics import Summary, estimate_text, summarise, unit_of
from samsg.settings import Profile, SamsgError, in_repository
from samsg.stages import Run, finished_runs, open_run, read_clips, read_predictions, svm_predictions
from samsg.storage import atomic
from samsg.studies import LONG, variant_run

Results = Mapping[str, Mapping[str, Summary]]  # heading of a corpus -> method -> summary
PAPER_CORPORA = {"savee": "SAVEE", "emodb": "EmoDB", "crema_d": "CREMA-D"}
PAPER_ROWS = {"DeiT (Gong et al.)": "DeiT [2] (paper)", "The SAMSG (Ours)": "SAMSG (paper)"}
METHODS = {
    "chance": "Always the most frequent emotion (this run)",
    "svm": "Linear SVM on log-mel statistics (this run)",
    "baseline": "DeiT (this run)",
    "long": f"{LONG.title} (this run)",
    "samsg": "SAMSG, stage ii (this run)",
    "probe": "SAMSG (this run)",
}
SIZE = "Test clips (this run)"
# Table -> the metric it shows, its name in the caption, and the factor and format of this run's numbers.
CONTENT = {1: ("accuracy", "Accuracy in percent", 100, ".1f"), 2: ("macro_f1", "Macro-averaged F1", 1, ".3f")}


def reference_values(number: int) -> pd.DataFrame:
    """Table 1 or 2 as printed in the paper: columns method, reference, savee, emodb, crema_d; text, '' for a dash."""
    path = in_repository("paper_figures/reference") / f"table{number}.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def collect(profile: Profile, protocol: str = "random", corpora: Collection[str] = ()) -> dict[str, dict[str, Summary]]:
    """Test results of the finished runs, of all or of the named corpora: heading -> method -> summary."""
    results: dict[str, dict[str, Summary]] = {}
    for corpus, seeds in finished_runs(profile, protocol, corpora).items():
        note, title = profile.note(corpus, protocol), profile.title(corpus)
        heading = f"{title} ({note})" if note else PAPER_CORPORA.get(corpus, title)
        if heading in results or (heading in PAPER_CORPORA.values() and corpus not in PAPER_CORPORA):
            raise SamsgError(f"Corpus '{corpus}' would have the heading '{heading}' of another one; give it a title.")
        runs = [open_run(profile, corpus, protocol, seed) for seed in seeds]
        classes, results[heading] = emotions_of(read_clips(runs[0])), {}
        for method in METHODS:
            if method != "long" or all(variant_run(run, LONG).is_finished(LONG.stage) for run in runs):
                predictions = pd.concat([predictions_of(run, method) for run in runs], ignore_index=True)
                results[heading][method] = summarise(predictions, classes, unit_of(protocol, predictions))
    return results


def predictions_of(run: Run, method: str) -> pd.DataFrame:
    """The test predictions of one of ``METHODS``: as ``read_predictions``, without probabilities for the first two."""
    if method == "svm":
        return svm_predictions(run)
    if method == "chance":
        clips = read_clips(run)
        most_frequent = clips.loc[clips["part"] == "train", "emotion"].mode()[0]
        return clips[clips["part"] == "test"].assign(predicted=most_frequent, seed=run.seed)
    return read_predictions(variant_run(run, LONG), LONG.stage) if method == "long" else read_predictions(run, method)


def results_table(number: int, results: Results, paper: bool = True) -> pd.DataFrame:
    """Table 1 (accuracy) or 2 (macro F1) as text, one row a method: with ``paper`` its rows, then this run's."""
    metric, _, scale, form = CONTENT[number]
    table = reference_values(number)
    names = table["method"].map(PAPER_ROWS).fillna(table["method"] + " [" + table["reference"] + "]").tolist()
    columns = {title: dict(zip(names, table[corpus], strict=True)) for corpus, title in PAPER_CORPORA.items() if paper}
    for heading, methods in results.items():
        cells = {METHODS[key]: estimate_text(getattr(summary, metric), scale, form) for key, summary in methods.items()}
        columns[heading] = columns.get(heading, {}) | cells | {SIZE: next(iter(methods.values())).size}
    frame = pd.DataFrame(columns, pd.Index([*names, *METHODS.values(), SIZE], name="Method")).dropna(how="all")
    return frame.fillna("-").replace("", "-")


def caption(number: int, results: Results, paper: bool = True) -> str:
    """What stands above Table 1 or 2; ``paper`` as for ``results_table``."""
    summaries = [summary for methods in results.values() for summary in methods.values()]
    units = " or ".join(sorted({summary.unit for summary in summaries} - {"clip"}))
    text = f"Table {number}. {CONTENT[number][1]}, as reached in this run, with 95 % intervals"
    text += f" (resampled by {units})" if units else ""
    text += "; ± is the standard deviation over seeds" * any(summary.seeds > 1 for summary in summaries)
    text += ". Rows and columns without 'this run' or a note are as printed in the paper, with its references" * paper
    return f"{text}."


def to_markdown(frame: pd.DataFrame, caption: str) -> str:
    """The caption, and below it a pipe table; numbers stay as they are written."""
    cells = frame.reset_index().map(lambda cell: str(cell).replace("|", r"\|"))
    return f"{caption}\n\n{cells.to_markdown(index=False, disable_numparse=True)}\n"


def write_table(frame: pd.DataFrame, folder: Path, stem: str, caption: str) -> None:
    """Write a table, whose rows are indexed by their names, as <stem>.csv, .md and .tex (needs booktabs)."""
    styler = frame.rename_axis(None).style.format(escape="latex")
    styler = styler.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    style = {"environment": "table*", "hrules": True, "label": f"tab:{stem}", "position_float": "centering"}
    tex = styler.to_latex(caption=caption.partition(". ")[2].replace("%", r"\%"), **style)
    texts = {"csv": frame.to_csv(lineterminator="\n"), "md": to_markdown(frame, caption), "tex": tex}
    for kind, text in texts.items():
        with atomic(Path(folder) / f"{stem}.{kind}") as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
