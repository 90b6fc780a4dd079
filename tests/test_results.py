"""docs/results.md: every table is what the predictions in paper_figures/ give."""

from __future__ import annotations

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
