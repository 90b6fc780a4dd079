"""docs/results.md: every table is what the predictions in paper_figures/ give; the text repeats their numbers."""

import re
import sys

from samsg.settings import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
import results


def test_every_table_is_drawn_from_the_committed_predictions() -> None:
    text = results.FILE.read_text(encoding="utf-8")
    assert results.render(text) == text, "run python tools/results.py"


def test_every_study_that_was_run_has_its_table() -> None:
    shown = set(re.findall(r"<!-- claim (\S+) -->", results.FILE.read_text(encoding="utf-8")))
    assert shown == {"/".join(study) for study in results.read_all() if study[1] != "random"}


def test_every_decimal_number_in_the_text_is_in_a_table() -> None:
    lines = results.FILE.read_text(encoding="utf-8").splitlines()
    tables = [line for line in lines if line.startswith("|")]
    files = (
        "demo/table1.md",
        "demo/faithfulness.md",
        "ravdess_long/sentence/faithfulness.md",
        "shortcuts/shortcuts.md",
    )
    tables += [(REPOSITORY / "paper_figures" / name).read_text(encoding="utf-8") for name in files]
    known = {number for table in tables for number in re.findall(r"\d*\.\d+", table)}
    predictions = results.read_all()["emodb_2s", "speaker"][0].query("variant == 'DeiT'")
    known |= {
        f"{100 * (predictions['emotion'] == 'anger').mean():.1f}",
        "2.7",
        ".039",
    }  # millions of parameters; p of notebook 10
    text = " ".join(line for line in lines if not line.startswith("|"))
    assert set(re.findall(r"\d*\.\d+", text)) <= known
