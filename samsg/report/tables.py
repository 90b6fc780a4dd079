"""Tables 1 and 2 of the paper, with this run's rows beside the printed ones (Section IV-C).

The paper's numbers come from paper_figures/reference, this run's from predictions.csv. A corpus with a note, such as
'synthetic speech', is not the paper's corpus: it gets a column of its own, headed with that note.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from samsg.report.metrics import Estimate, Summary
from samsg.runs import NOTEBOOKS, atomic
from samsg.settings import SamsgError, in_repository

Results = Mapping[str, Mapping[str, Summary]]  # corpus -> method -> summary
Words = Mapping[str, str]  # corpus -> its note, or its title
OFFICIAL = {"savee": "SAVEE", "emodb": "EmoDB", "crema_d": "CREMA-D"}
METHODS = {"baseline": "DeiT (this run)", "probe": "SAMSG (this run)"}
PAPER_ROWS = {"DeiT (Gong et al.)": "DeiT [2] (paper)", "The SAMSG (Ours)": "SAMSG (paper)"}
SIZE_ROW = "Test clips (this run)"
NOTHING = "-"
# Table -> the metric it shows, what the caption calls it, the factor and the digits of this run's numbers.
CONTENT = {1: ("accuracy", "Accuracy in percent", 100, 1), 2: ("macro_f1", "Macro-averaged F1", 1, 3)}
LATEX_ESCAPES = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def _read(folder: Path, corpus: str, protocol: str, seed: int, stage: str, name: str) -> pd.DataFrame:
    path = Path(folder) / corpus / protocol / f"seed{seed}" / stage / name
    if not path.is_file():
        raise SamsgError(
            f"Stage '{stage}' on '{corpus}', protocol '{protocol}', seed {seed} was asked for, but there is no {path}; "
            f"run the notebook {NOTEBOOKS.get(stage, 'of that stage')}, which makes it."
        )
    return read_one(path).assign(seed=seed)


def read_one(path: Path) -> pd.DataFrame:
    """A table of predictions or a history: a clip '01' stays '01' and a class 'None' stays 'None'; only numbers may be
    missing."""
    text = dict.fromkeys(("clip", "part", "emotion", "predicted", "speaker", "variant"), str)
    missing = {column: [""] for column in pd.read_csv(path, nrows=0).columns if column not in text}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=missing)


def read_predictions(
    folder: Path, corpora: Iterable[str], protocol: str, seeds: Iterable[int], stage: str, part: str = "test"
) -> dict[str, pd.DataFrame]:
    """The predictions of one stage, all seeds of a corpus in one table with a column seed.

    Args:
        folder: runs/<profile>.
        corpora: names of corpora.
        protocol: of the split: 'random', 'speaker' or 'sentence'.
        seeds: which seeds.
        stage: 'baseline' (DeiT's row of the tables) or 'probe' (SAMSG's row).
        part: 'test' or 'validation'.

    Returns:
        corpus -> columns clip, part, emotion, predicted, p_<emotion>, seed.

    Raises:
        SamsgError: a file is missing, or has no such part; it names the file and the notebook that makes it.
    """
    seeds, predictions = tuple(seeds), {}
    for corpus in corpora:
        tables = [_read(folder, corpus, protocol, seed, stage, "predictions.csv") for seed in seeds]
        predictions[corpus] = pd.concat([table[table["part"] == part] for table in tables], ignore_index=True)
        if predictions[corpus]["seed"].nunique() < len(seeds):
            raise SamsgError(
                f"Stage '{stage}' on '{corpus}' has no clips of part '{part}' for some of the seeds {seeds}; run the "
                f"notebook {NOTEBOOKS.get(stage, 'of that stage')} again."
            )
    return predictions


def read_histories(
    folder: Path, corpora: Iterable[str], protocol: str, seeds: Iterable[int], stage: str
) -> dict[str, list[pd.DataFrame]]:
    """The history of one stage: corpus -> one table a seed, one row an epoch. Arguments as ``read_predictions``."""
    seeds = tuple(seeds)
    return {name: [_read(folder, name, protocol, seed, stage, "history.csv") for seed in seeds] for name in corpora}


def reference_values(number: int) -> pd.DataFrame:
    """Table 1 or 2 as printed in the paper: columns method, reference, savee, emodb, crema_d; text, '' for a dash.

    Raises:
        SamsgError: there is no such table.
    """
    if number not in CONTENT:
        raise SamsgError(f"The paper has no Table {number} of results; ask for 1 (accuracy) or 2 (macro F1).")
    reference = in_repository("paper_figures/reference")
    return pd.read_csv(reference / f"table{number}.csv", dtype=str, keep_default_na=False)


def headings(corpora: Iterable[str], notes: Words, titles: Words | None = None) -> dict[str, str]:
    """How columns name the corpora: emodb -> 'EmoDB', or 'EmoDB (synthetic speech)' with that note."""
    named = {corpus: (titles or {}).get(corpus) or OFFICIAL.get(corpus, corpus) for corpus in corpora}
    return {corpus: f"{name} ({notes[corpus]})" if notes.get(corpus) else name for corpus, name in named.items()}


def _cell(estimate: Estimate, scale: float, digits: int) -> str:
    numbers = (estimate.value, estimate.std, estimate.low, estimate.high)
    value, std, low, high = (f"{scale * number:.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]" if np.isnan(estimate.std) else f"{value} ± {std} [{low}, {high}]"


def table(number: int, results: Results, notes: Words, titles: Words | None = None) -> pd.DataFrame:
    """Table 1 (accuracy) or 2 (macro F1): the paper's rows, then this run's.

    The paper's numbers stand under SAVEE, EmoDB and CREMA-D alone. This run's stand there too if the corpus is one of
    these and has no note, and under a heading with the note otherwise: 'EmoDB (synthetic speech)'.

    Args:
        number: 1 or 2.
        results: corpus -> method -> summary; methods 'baseline' and 'probe' are DeiT and SAMSG, others keep their name.
        notes: corpus -> what must be said of it; missing or empty for the official corpus under the paper's protocol.
        titles: corpus -> its name in headings, where it is not the paper's.

    Returns:
        Text, one row a method, indexed by 'Method'; numbers as 'value [low, high]', and '±' the deviation over seeds.

    Raises:
        SamsgError: there is no such table, or two corpora would have one heading.
    """
    printed = reference_values(number)
    metric, _, scale, digits = CONTENT[number]
    heading = headings(results, notes, titles)
    for corpus, text in heading.items():
        if list(heading.values()).count(text) > 1 or (text in OFFICIAL.values() and OFFICIAL.get(corpus) != text):
            raise SamsgError(f"Another corpus has the heading '{text}' of '{corpus}'; give it another title or a note.")

    names = zip(printed["method"], printed["reference"], strict=True)
    labels = [PAPER_ROWS.get(method, f"{method} [{reference}]") for method, reference in names]
    columns = {title: dict(zip(labels, printed[corpus], strict=True)) for corpus, title in OFFICIAL.items()}
    methods = list(dict.fromkeys(method for summaries in results.values() for method in summaries))
    rows = {method: METHODS.get(method, f"{method} (this run)") for method in methods}
    same_size = all(len({summary.size for summary in summaries.values()}) <= 1 for summaries in results.values())
    sizes = {method: SIZE_ROW if same_size else f"{SIZE_ROW}, {row.split(' (')[0]}" for method, row in rows.items()}
    for corpus, summaries in results.items():
        # An official corpus under another title is still the official corpus.
        official = corpus in OFFICIAL and not notes.get(corpus)
        column = columns.setdefault(OFFICIAL[corpus] if official else heading[corpus], {})
        for method, summary in summaries.items():
            column[rows[method]] = _cell(getattr(summary, metric), scale, digits)
            column[sizes[method]] = summary.size
    order = [*labels, *rows.values(), *dict.fromkeys(sizes.values())]
    return pd.DataFrame(columns, index=pd.Index(order, name="Method")).fillna(NOTHING).replace("", NOTHING)


def caption(number: int, results: Results, notes: Words, titles: Words | None = None) -> str:
    """What stands above Table 1 or 2; arguments as ``table``. Ends with the notes: 'Synthetic speech: SAVEE, EmoDB.'"""
    text = (
        f"Table {number}. {CONTENT[number][1]}, as printed in the paper and as reached in this run, with 95 % intervals"
    )
    several = any(summary.seeds > 1 for summaries in results.values() for summary in summaries.values())
    text += "; ± is the standard deviation over seeds" if several else ""
    text += ". Numbers after names are the paper's references."
    plain = headings(results, {}, titles)
    for note in dict.fromkeys(note for corpus, note in notes.items() if note and corpus in results):
        corpora = ", ".join(plain[corpus] for corpus in results if notes.get(corpus) == note)
        text += f" {note[0].upper()}{note[1:]}: {corpora}; not comparable with the paper's columns."
    return text


def results_frame(results: Results, notes: Words) -> pd.DataFrame:
    """All numbers of a run, one row each: corpus, method, metric, value, low, high, std, n, seeds, note; 0 to 1."""
    rows = [
        (corpus, method, metric, e.value, e.low, e.high, e.std, summary.n, summary.seeds, notes.get(corpus, ""))
        for corpus, summaries in results.items()
        for method, summary in summaries.items()
        for metric, e in (("accuracy", summary.accuracy), ("macro_f1", summary.macro_f1))
    ]
    names = ["corpus", "method", "metric", "value", "low", "high", "std", "n", "seeds", "note"]
    return pd.DataFrame(rows, columns=names)


def _write(folder: Path, name: str, text: str) -> Path:
    path = Path(folder) / name
    with atomic(path) as partial:
        partial.write_bytes(text.encode())
    return path


def write_results(results: Results, notes: Words, folder: Path, stem: str = "results") -> Path:
    """Write ``results_frame`` as <stem>.csv."""
    frame = results_frame(results, notes)
    return _write(folder, f"{stem}.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.6f"))


def _latex(text: object) -> str:
    return "".join(LATEX_ESCAPES.get(character, character) for character in str(text))


def _latex_heading(text: object) -> str:
    """Long names and notes on lines of their own, so that a column is as wide as its numbers."""
    title, bracket, note = str(text).partition(" (")
    lines = textwrap.wrap(title, 10, break_long_words=False, break_on_hyphens=False)
    lines += [f"({note}"] if bracket else []
    stacked = r"\\".join(map(_latex, lines))
    return rf"\shortstack{{{stacked}}}" if len(lines) > 1 else stacked


def to_latex(frame: pd.DataFrame, label: str, caption: str) -> str:
    """A table* with booktabs rules, and a rule before the paper's own rows and before this run's."""
    escaped = frame.reset_index().map(_latex)
    escaped.columns = [_latex_heading(column) for column in escaped.columns]
    lines = escaped.to_latex(index=False, column_format="l" + "c" * frame.shape[1]).splitlines()
    groups = [re.findall(r"\((?:paper|this run)\)", str(name)) for name in frame.index]
    first_row = lines.index(r"\midrule") + 1
    for row in reversed(range(1, len(groups))):
        if groups[row] != groups[row - 1]:
            lines.insert(first_row + row, r"\midrule")
    # Across both columns of a page there are 18 cm: the eight columns of the studies' tables need smaller print.
    size, gap = ("footnotesize", 3) if frame.shape[1] <= 6 else ("scriptsize", 2)
    head = [
        "% Needs \\usepackage{booktabs}.",
        r"\begin{table*}",
        rf"\centering\{size}\setlength{{\tabcolsep}}{{{gap}pt}}",
    ]
    numbered = re.sub(r"^Table \d+\. ", "", caption)  # LaTeX numbers tables itself
    head += [rf"\caption{{{_latex(numbered)}}}", rf"\label{{tab:{label}}}"]
    return "\n".join([*head, *lines, r"\end{table*}", ""])


def to_markdown(frame: pd.DataFrame, caption: str) -> str:
    """The caption, and below it a pipe table."""
    cells = frame.reset_index().map(lambda cell: str(cell).replace("|", r"\|"))
    rows = [list(map(str, cells.columns)), ["---"] * cells.shape[1], *cells.to_numpy().tolist()]
    return f"{caption}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_table(frame: pd.DataFrame, folder: Path, stem: str, caption: str) -> dict[str, Path]:
    """Write a table as <stem>.csv, .md and .tex.

    Args:
        frame: rows indexed by their names, as ``table`` makes it.
        folder: where to; made if needed.
        stem: of the files' names, and of the LaTeX label tab:<stem>.
        caption: above the Markdown and LaTeX tables; ``caption`` makes one that ends with the corpora's notes.

    Returns:
        'csv', 'md' and 'tex' -> the file.
    """
    contents = {
        "csv": frame.to_csv(lineterminator="\n"),
        "md": to_markdown(frame, caption),
        "tex": to_latex(frame, stem, caption),
    }
    return {kind: _write(folder, f"{stem}.{kind}", text) for kind, text in contents.items()}
