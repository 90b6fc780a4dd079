"""Tables 1 and 2: the paper's numbers are the paper's, and this run's never pass for something they are not."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from samsg.report import metrics, tables
from samsg.settings import REPOSITORY, SamsgError

PAPER = Path(__file__).parents[2] / "shared" / "paper.txt"
NOTE = "synthetic speech"


def estimate(value, std=np.nan):
    return metrics.Estimate(value, value - 0.1, value + 0.1, std)


def summary(accuracy, f1, n=42, seeds=1):
    std = 0.02 if seeds > 1 else np.nan
    return metrics.Summary(n, seeds, estimate(accuracy, std), estimate(f1, std), {"anger": n})


OURS = {"baseline": summary(0.524, 0.5), "probe": summary(0.714, 0.7)}
SYNTHETIC = {corpus: OURS for corpus in tables.OFFICIAL}
NOTES = {corpus: NOTE for corpus in tables.OFFICIAL}


def printed_table(number):
    """The rows of a table in the paper's text: [method, reference, savee, emodb, crema_d]."""
    if not PAPER.is_file():
        pytest.skip("the paper's text is not beside the repository")
    text = PAPER.read_text(encoding="utf-8")
    lines = text[text.index(f"**TABLE {number}.") :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("Method\t"))
    rows = []
    for line in lines[start + 1 :]:
        cells = [re.sub(r"</?b>|%", "", cell).strip() for cell in line.split("\t")]
        if len(cells) != 4:
            break
        method, reference = re.fullmatch(r"(.*?)(?: \[(\d+)\])?", cells[0]).groups(default="")
        rows.append([method, reference, *("" if cell == "-" else cell for cell in cells[1:])])
    return rows


@pytest.mark.parametrize(("number", "rows"), [(1, 13), (2, 6)])
def test_the_reference_values_are_those_that_the_paper_prints(number, rows):
    values = tables.reference_values(number)
    assert list(values.columns) == ["method", "reference", "savee", "emodb", "crema_d"]
    assert len(values) == rows
    assert values.to_numpy().tolist() == printed_table(number)


def test_synthetic_speech_has_columns_of_its_own():
    frame = tables.table(1, SYNTHETIC, NOTES)
    titles = list(tables.OFFICIAL.values())
    assert list(frame.columns) == [*titles, *(f"{title} ({NOTE})" for title in titles)]
    assert frame.loc["SAMSG (this run)", f"EmoDB ({NOTE})"] == "71.4 [61.4, 81.4]"
    assert frame.loc["DeiT (this run)", f"SAVEE ({NOTE})"] == "52.4 [42.4, 62.4]"
    assert frame.loc["Test clips (this run)", f"EmoDB ({NOTE})"] == "n = 42, 1 seed"
    this_run = frame.index.str.contains("this run")
    assert (frame.loc[this_run, titles] == "-").all(axis=None)
    assert (frame.drop(columns=titles).loc[~this_run] == "-").all(axis=None)


def test_the_order_of_rows_and_the_papers_own_ones():
    frame = tables.table(2, SYNTHETIC, NOTES)
    assert list(frame.index[-5:]) == [
        "DeiT [2] (paper)",
        "SAMSG (paper)",
        "DeiT (this run)",
        "SAMSG (this run)",
        "Test clips (this run)",
    ]
    assert frame.index[0] == "Zhang et al. [32]"
    assert frame.loc["SAMSG (paper)", list(tables.OFFICIAL.values())].tolist() == ["0.9401", "0.9692", "0.8595"]
    assert frame.loc["Kakuba et al. [29]", "CREMA-D"] == "-"


def test_an_official_corpus_stands_under_the_papers_heading():
    frame = tables.table(2, {"emodb": OURS}, {"emodb": ""})
    assert list(frame.columns) == ["SAVEE", "EmoDB", "CREMA-D"]
    assert frame.loc["SAMSG (this run)", "EmoDB"] == "0.700 [0.600, 0.800]"
    assert frame.loc["SAMSG (this run)", "SAVEE"] == "-"


def test_other_corpora_and_several_seeds():
    results = {"emodb_first2s": {"probe": summary(0.6, 0.5, 81, 3)}, "mine": {"random mask": summary(0.3, 0.2, 9)}}
    frame = tables.table(1, results, {"emodb_first2s": "first 2 s"}, {"emodb_first2s": "EmoDB"})
    assert list(frame.columns[3:]) == ["EmoDB (first 2 s)", "mine"]
    assert frame.loc["SAMSG (this run)", "EmoDB (first 2 s)"] == "60.0 ± 2.0 [50.0, 70.0]"
    assert frame.loc["random mask (this run)", "mine"] == "30.0 [20.0, 40.0]"
    assert frame.loc["Test clips (this run)", "EmoDB (first 2 s)"] == "n = 81, 3 seeds"


def test_methods_of_different_sizes_say_so():
    frame = tables.table(1, {"mine": {"baseline": summary(0.5, 0.5, 42, 3), "probe": summary(0.5, 0.5)}}, {})
    assert frame.loc["Test clips (this run), DeiT", "mine"] == "n = 42, 3 seeds"
    assert frame.loc["Test clips (this run), SAMSG", "mine"] == "n = 42, 1 seed"


def test_another_corpus_cannot_take_the_papers_heading():
    with pytest.raises(SamsgError, match="heading 'EmoDB' of 'mine'"):
        tables.table(1, {"mine": OURS}, {}, {"mine": "EmoDB"})
    with pytest.raises(SamsgError, match="Table 3"):
        tables.table(3, {}, {})


def test_the_caption_says_what_is_not_the_papers_corpus():
    text = tables.caption(1, SYNTHETIC, {**NOTES, "crema_d": "first 2 s", "absent": "unseen"})
    assert text.startswith("Table 1. Accuracy in percent")
    assert "Synthetic speech: SAVEE, EmoDB; not comparable" in text and "First 2 s: CREMA-D; not comparable" in text
    assert "unseen" not in text and "±" not in text
    assert "±" in tables.caption(2, {"emodb": {"probe": summary(0.5, 0.5, 42, 3)}}, {})
    assert "comparable" not in tables.caption(1, {"emodb": OURS}, {})


def test_every_file_carries_the_note(tmp_path):
    files = tables.write_table(
        tables.table(1, SYNTHETIC, NOTES), tmp_path / "new", "table1", tables.caption(1, SYNTHETIC, NOTES)
    )
    files["results"] = tables.write_results(SYNTHETIC, NOTES, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "results.csv",
        "table1.csv",
        "table1.md",
        "table1.tex",
    ]
    for path in files.values():
        assert NOTE in path.read_text(encoding="utf-8")
    read = pd.read_csv(files["csv"], index_col="Method", dtype=str)
    pd.testing.assert_frame_equal(read, tables.table(1, SYNTHETIC, NOTES), check_dtype=False)
    cells = [line.count("|") for line in files["md"].read_text(encoding="utf-8").splitlines()[2:]]
    assert cells == [8] * (2 + len(read))


def test_the_latex_is_well_formed():
    results = {"mine_50%": {"probe": summary(0.6, 0.5, 81, 3)}, "emodb": OURS}
    notes = {"mine_50%": "noise & 50 % of it"}
    text = tables.to_latex(tables.table(2, results, notes), "table2", tables.caption(2, results, notes))
    begun = re.findall(r"\\begin\{(.*?)\}", text)
    assert begun == ["table*", "tabular"] == re.findall(r"\\end\{(.*?)\}", text)[::-1]
    body = re.sub(r"^%.*", "", text)
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")
    assert r"\shortstack{mine\_50\%\\(noise \& 50 \% of it)}" in text
    assert r"60.0 $\pm$" not in text and r"0.500 $\pm$ 0.020 [0.400, 0.600]" in text
    assert "Table 2." not in text and r"\label{tab:table2}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 3, 1]
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith("Method")]
    assert len(rows) == 9 and all(len(re.findall(r"(?<!\\)&", row)) == 4 for row in rows)
    assert not re.search(r"(?<!\\)[%#_]|[^\x00-\x7f]", body)


def test_long_headings_are_stacked_and_wide_tables_are_set_smaller():
    frame = pd.DataFrame([["x"] * 8], columns=["Only it / only A&B", "CREMA-D", *"abcdef"], index=["m"])
    text = tables.to_latex(frame, "wide", "")
    assert r"\shortstack{Only it /\\only A\&B} & CREMA-D & a &" in text
    assert r"\scriptsize" in text and r"\footnotesize" not in text
    assert r"\footnotesize" in tables.to_latex(frame[["CREMA-D", "a"]], "narrow", "")


def test_committed_tables_and_hard_names_compile_and_fit_a_page(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not there: install TeX Live's latex-base and latex-recommended to compile the tables")
    results = {
        "mine_50%": {"probe": summary(0.6, 0.5, 81, 3), "a#b~c^d\\e{f}": summary(0.6, 0.5, 81, 3)},
        "emodb": OURS,
    }
    notes = {"mine_50%": "noise & 50 % of it, $x_1$"}
    tables.write_table(tables.table(1, results, notes), tmp_path, "hard", tables.caption(1, results, notes))
    texts = [*sorted((REPOSITORY / "paper_figures").rglob("*.tex")), tmp_path / "hard.tex"]
    assert len(texts) > 6
    lines = [r"\documentclass[10pt,twocolumn]{article}", r"\usepackage{booktabs}"]
    lines += [r"\usepackage[a4paper,textwidth=516pt]{geometry}", r"\begin{document}"]  # both columns of an IEEE page
    lines += [f"\\input{{{path}}}" for path in texts]
    (tmp_path / "all.tex").write_text("\n".join([*lines, r"\end{document}"]), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in done.stdout
    assert (tmp_path / "all.pdf").stat().st_size > 10_000


def test_results_in_long_form():
    frame = tables.results_frame({"emodb": {"probe": summary(0.6, 0.5, 81, 3)}, "mine": OURS}, {"emodb": NOTE})
    names = ["corpus", "method", "metric", "value", "low", "high", "std", "n", "seeds", "note"]
    assert list(frame.columns) == names
    assert frame.iloc[1].tolist() == ["emodb", "probe", "macro_f1", 0.5, 0.4, 0.6, 0.02, 81, 3, NOTE]
    assert len(frame) == 6 and frame["note"].tolist() == [NOTE] * 2 + [""] * 4


def write_run(folder, corpus, seed, stage="probe"):
    place = folder / corpus / "random" / f"seed{seed}" / stage
    place.mkdir(parents=True)
    text = "clip,part,emotion,predicted,p_None,p_fear\n01,test,None,fear,0.4,0.6\n02,validation,fear,fear,,1.0\n"
    (place / "predictions.csv").write_text(text)
    (place / "history.csv").write_text(f"epoch,train_loss\n1,{seed}.5\n")


def test_reading_predictions_and_histories(tmp_path):
    for seed in (0, 3):
        write_run(tmp_path, "mine", seed)
    predictions = tables.read_predictions(tmp_path, ["mine"], "random", (0, 3), "probe")["mine"]
    assert predictions["seed"].tolist() == [0, 3]
    assert predictions["clip"].tolist() == ["01", "01"] and predictions["emotion"].tolist() == ["None", "None"]
    assert metrics.class_names(predictions) == ["None", "fear"] and predictions["p_fear"].tolist() == [0.6, 0.6]
    validation = tables.read_predictions(tmp_path, ["mine"], "random", (0,), "probe", part="validation")["mine"]
    assert validation["clip"].tolist() == ["02"] and np.isnan(validation["p_None"]).all()
    histories = tables.read_histories(tmp_path, ["mine"], "random", (0, 3), "probe")["mine"]
    assert [history["train_loss"].tolist() for history in histories] == [[0.5], [3.5]]


@pytest.mark.parametrize(("stage", "notebook"), [("baseline", "02_baseline"), ("probe", "06_linear_probe")])
def test_a_missing_file_names_its_notebook(tmp_path, stage, notebook):
    write_run(tmp_path, "mine", 0, stage)
    with pytest.raises(SamsgError, match=rf"random/seed1/{stage}/predictions\.csv; run the notebook {notebook}"):
        tables.read_predictions(tmp_path, ["mine"], "random", (0, 1), stage)
    with pytest.raises(SamsgError, match="no clips of part 'train'"):
        tables.read_predictions(tmp_path, ["mine"], "random", (0,), stage, part="train")
