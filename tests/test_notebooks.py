"""The notebooks, as committed, through nbval on the smoke profile: every cell runs, and cells marked
NBVAL_CHECK_OUTPUT print what they printed when they were committed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

REPOSITORY = Path(__file__).parents[1]
# In the order in which they run: the one without a number needs what 06 leaves.
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
# The studies, cut to what shows that every cell runs.
SHORTER = {
    "09_generalisation": {"protocols": ["random", "speaker"], "most_folds": 1},
    "10_shortcuts": {"strengths": [0.0, 1.0]},
}


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_executed_and_in_form(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(cell.outputs for cell in cells(path, "code") if "# NBVAL_CHECK_OUTPUT" in cell.source)
    outputs = [output for cell in cells(path, "code") for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert path.stat().st_size < 2_000_000
    assert "widgets" not in notebook.metadata, "controls without a kernel behind them would do nothing"
    text = path.read_text(encoding="utf-8")
    assert "/home/" not in text and "/tmp/" not in text


def test_what_moves_in_a_notebook_leaves_a_picture_or_a_sound_behind() -> None:
    shown = [cell for cell in cells(REPOSITORY / "notebooks/explore.ipynb", "code") if "controls.show" in cell.source]
    kinds = [[kind for output in cell.outputs for kind in output.data] for cell in shown]
    pictures = [cell for cell, kind in zip(shown, kinds, strict=True) if "image/png" in kind]
    assert len(shown) == 4 and len(pictures) == 3
    for output in (output for cell in pictures for output in cell.outputs if "image/png" in output.data):
        assert "Synthetic speech" in output.metadata["image/png"]["alt"]
    (sounds,) = [output.data["text/html"] for cell in shown for output in cell.outputs if "text/html" in output.data]
    assert sounds.count("<audio") == 4


def test_the_notebooks_run_in_order_and_print_what_is_committed(tmp_path: Path) -> None:
    for path in NOTEBOOKS:
        copy = parameterize_notebook(load_notebook_node(str(path)), {"profile": "smoke", **SHORTER.get(path.stem, {})})
        nbformat.write(copy, tmp_path / path.name)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--nbval-lax",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
    ]
    environment = {**os.environ, "SAMSG_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*map(str, command), *(str(tmp_path / path.name) for path in NOTEBOOKS)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    figures = {path.name for path in (tmp_path / "home/paper_figures/smoke").iterdir()}
    assert figures == {
        *(f"table{number}.{kind}" for number in (1, 2) for kind in ("csv", "md", "tex")),
        *(f"figure{number}.{kind}" for number in (4, 5) for kind in ("png", "pdf")),
        "results.csv",
        *(
            f"{study}.{kind}"
            for study in ("controls", "generalisation", "shortcuts")
            for kind in ("csv", "md", "tex", "png", "pdf")
        ),
        *(f"{study}_predictions.csv" for study in ("controls", "generalisation", "shortcuts")),
    }
