"""docs/results.md: every table is what the predictions in paper_figures/ give; the text repeats their numbers."""

import re
import shutil
import subprocess
import sys

from samsg.settings import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
import results

TEXT = results.FILE.read_text(encoding="utf-8")


def committed(name: str) -> str:
    """A file of paper_figures/ as the last commit has it, since runs write there too; without git, as it is."""
    if shutil.which("git"):
        command = ["git", "show", f"HEAD:./paper_figures/{name}"]
        shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
        if shown.returncode == 0:
            return shown.stdout
    return (REPOSITORY / "paper_figures" / name).read_text(encoding="utf-8")


def test_every_table_is_drawn_from_the_committed_predictions() -> None:
    assert results.render(TEXT) == TEXT, "run python tools/results.py"


def test_every_study_that_was_run_has_its_table_and_every_decimal_number_is_in_a_table() -> None:
    studies = results.read_all()
    shown = set(re.findall(r"<!-- claim (\S+) -->", TEXT))
    assert shown == {"/".join(study) for study in studies if study[1] != "random"}
    tables, text = ([line for line in TEXT.splitlines() if line.startswith("|") == is_row] for is_row in (True, False))
    stems = ("demo/table1", "demo/faithfulness", "ravdess_long/sentence/faithfulness", "shortcuts/shortcuts")
    numbers = re.findall(r"\d*\.\d+", "\n".join([*tables, *(committed(f"{stem}.md") for stem in stems)]))
    emotions = studies["emodb_2s", "speaker"][0].query("variant == 'DeiT'")["emotion"]
    others = {f"{100 * (emotions == 'anger').mean():.1f}", "2.7", ".039"}  # millions of parameters; p of notebook 10
    assert set(re.findall(r"\d*\.\d+", "\n".join(text))) <= {*numbers, *others}
