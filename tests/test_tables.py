"""Tables 1 and 2: the paper's numbers are the paper's, and this run's never pass for something they are not."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from samsg import tables
from samsg.metrics import Estimate, Summary
from samsg.settings import SamsgError, load_profile
from samsg.stages import open_run, run_stages
from samsg.studies import LONG, variant_run


def estimate(value, std=np.nan):
    return Estimate(value, value - 0.1, value + 0.1, std)


def summary(accuracy, f1, n=42, seeds=1):
    std = 0.02 if seeds > 1 else np.nan
    return Summary(n, seeds, estimate(accuracy, std), estimate(f1, std), {"anger": n}, "clip")


OURS = {"baseline": summary(0.524, 0.5), "probe": summary(0.714, 0.7)}
SYNTHETIC = {f"{title} (synthetic speech)": OURS for title in tables.PAPER_CORPORA.values()}


def printed_table(text, number):
    """The rows of a table in the paper's text: [method, reference, savee, emodb, crema_d]."""
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
def test_the_reference_values_are_those_that_the_paper_prints(shared, number, rows):
    values = tables.reference_values(number)
    assert list(values.columns) == ["method", "reference", "savee", "emodb", "crema_d"] and len(values) == rows
    assert values.to_numpy().tolist() == printed_table((shared / "paper.txt").read_text(encoding="utf-8"), number)


def test_synthetic_speech_has_columns_of_its_own():
    frame = tables.results_table(1, SYNTHETIC)
    titles = list(tables.PAPER_CORPORA.values())
    assert list(frame.columns) == [*titles, *SYNTHETIC]
    assert frame.loc["SAMSG (this run)", "EmoDB (synthetic speech)"] == "71.4 [61.4, 81.4]"
    assert frame.loc["DeiT (this run)", "SAVEE (synthetic speech)"] == "52.4 [42.4, 62.4]"
    assert frame.loc["Test clips (this run)", "EmoDB (synthetic speech)"] == "n = 42, 1 seed"
    this_run = frame.index.str.contains("this run")
    assert (frame.loc[this_run, titles] == "-").all(axis=None)
    assert (frame.drop(columns=titles).loc[~this_run] == "-").all(axis=None)


def test_a_corpus_of_the_paper_has_this_runs_rows_below_the_papers():
    long = {"long": summary(0.6, 0.6)}  # the order of the rows does not depend on which corpus has them
    methods = {"chance": summary(0.1, 0.1), "svm": summary(0.6, 0.6), "samsg": summary(0.7, 0.7), **OURS}
    frame = tables.results_table(2, {"EmoDB": methods, "mine (own)": long})
    assert list(frame.pop("mine (own)").iloc[-5:]) == ["-", "0.600 [0.500, 0.700]", "-", "-", "n = 42, 1 seed"]
    assert list(frame.columns) == ["SAVEE", "EmoDB", "CREMA-D"]
    assert frame.index[0] == "Zhang et al. [32]"
    assert list(frame.index[-9:]) == ["DeiT [2] (paper)", "SAMSG (paper)", *tables.METHODS.values(), tables.SIZE]
    assert all(name.endswith(" (this run)") for name in frame.index[-7:])
    assert frame.loc["SAMSG (paper)"].tolist() == ["0.9401", "0.9692", "0.8595"]
    assert frame.loc["Kakuba et al. [29]", "CREMA-D"] == "-"
    assert frame.loc["SAMSG (this run)"].tolist() == ["-", "0.700 [0.600, 0.800]", "-"]


def test_a_corpus_of_ones_own_stands_without_the_papers_rows():
    one_speaker = Summary(9, 1, Estimate(0.5, *[np.nan] * 3), estimate(0.4), {}, "speaker")
    results = {"EmoDB (first 2 s)": {"probe": summary(0.6, 0.5, 81, 3)}, "mine": {"probe": one_speaker}}
    frame = tables.results_table(1, results, paper=False)
    assert list(frame.columns) == ["EmoDB (first 2 s)", "mine"]
    assert list(frame.index) == ["SAMSG (this run)", "Test clips (this run)"]
    assert frame.loc["SAMSG (this run)"].tolist() == ["60.0 ± 2.0 [50.0, 70.0]", "50.0"]  # no interval: one speaker
    assert frame.loc["Test clips (this run)"].tolist() == ["n = 81, 3 seeds", "n = 9, 1 seed"]
    text = "Table 1. Accuracy in percent, as reached in this run, with 95 % intervals"
    spread = " (resampled by speaker); ± is the standard deviation over seeds"
    assert tables.caption(1, results, paper=False) == f"{text}{spread}."
    assert tables.caption(1, SYNTHETIC).startswith(
        f"{text}. Rows and columns without 'this run' or a note are as printed"
    )
    assert tables.caption(2, SYNTHETIC).startswith("Table 2. Macro-averaged F1, as")


def test_results_of_finished_runs_are_collected_by_heading(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.setenv("SAMSG_HOME", str(tmp_path))
    profile = load_profile(finished / "tones.yaml")
    found = tables.collect(profile)["tones (tones)"]
    assert list(found) == ["chance", "svm", "baseline", "samsg", "probe"]
    assert {each.n for each in found.values()} == {7}
    assert found["baseline"].accuracy.value == 1  # the toy corpus is made so
    assert found["chance"].accuracy.value == pytest.approx(2 / 7)  # 'high', the first of three equally frequent classes
    run_stages(variant_run(open_run(profile, "tones"), LONG), LONG.stage)
    assert list(tables.collect(profile)["tones (tones)"]) == list(tables.METHODS)
    with pytest.raises(SamsgError, match="No corpus of profile 'tones' is finished under protocol 'speaker'"):
        tables.collect(profile, "speaker")
    corpus = {**profile.corpora["tones"].model_dump(), "title": "EmoDB", "note": ""}
    with pytest.raises(SamsgError, match="'tones' would have the heading 'EmoDB' of another one; give it a title"):
        tables.collect(load_profile(finished / "tones.yaml", corpora={"tones": corpus}))


def test_a_table_is_written_as_csv_markdown_and_latex(tmp_path):
    columns = {"mine_50% (noise & 50 % of it, $x_1$)": ["-", "60.0 ± 2.0"], "a#b~c^d\\e{f}": ["1|2", "+1.0"]}
    frame = pd.DataFrame(columns, index=pd.Index(["SAMSG_2 (this run)", "50 % of it"], name="Method"))
    folder = tmp_path / "new"
    tables.write_table(frame, folder, "table1", "Table 1. Accuracy, 95 % intervals")
    assert sorted(path.name for path in folder.iterdir()) == ["table1.csv", "table1.md", "table1.tex"]
    read = pd.read_csv(folder / "table1.csv", index_col="Method", dtype=str)
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    lines = (folder / "table1.md").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["Table 1. Accuracy, 95 % intervals", ""] and len(lines) == 6
    assert r"1\|2" in lines[4] and "+1.0" in lines[5]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:]} == {4}
    text = (folder / "table1.tex").read_text(encoding="utf-8")
    assert re.findall(r"\\begin\{(.*?)\}", text) == ["table*", "tabular"]
    assert r"\caption{Accuracy, 95 \% intervals}" in text and r"\label{tab:table1}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"mine\_50\% (noise \& 50 \% of it, \$x\_1\$)" in text and r"SAMSG\_2" in text
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in text.splitlines() if line.endswith(r"\\"))
