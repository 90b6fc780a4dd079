"""The notebooks, as committed: their form, and that running them again prints what they printed.

They are committed executed on the demo and run here on the smoke profile, so numbers differ and words do not: outputs
are compared with every number, interval and time replaced by '#'. Cells tagged 'varies' print words that depend on the
numbers; their kind of output is compared alone. A cell that changed after its notebook was executed fails.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

REPOSITORY = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+−]?\d[\d\s.,:e%×x+\-−]*|\bnan\b")


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def words(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell shows: the text of each stream and result with numbers replaced, and the kind of each picture."""
    shown: dict[str, str] = {}
    for number, output in enumerate(cell.outputs):
        if output.output_type == "stream":
            shown[output.name] = shown.get(output.name, "") + output.text
        else:
            kind = next(kind for kind in ("image/png", "text/html", "text/plain") if kind in output.data)
            shown[f"{number} {kind}"] = output.data[kind] if kind == "text/plain" else ""
    if "varies" in cell.metadata.get("tags", []):
        return sorted(kind.split()[-1] for kind in shown)
    # How far a stage is, and that it is finished, depends on what ran before.
    texts = [re.sub(r"[^\n]*(it/s|s/it|loaded from an earlier run)[^\n]*", "", text) for text in shown.values()]
    texts = [NUMBER.sub("#", text).replace("smoke", "demo") for text in texts]
    return [f"{kind.split()[-1]}: {' '.join(text.split())}" for kind, text in zip(shown, texts, strict=True)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_executed_and_in_form(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert len([cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]) == 1
    assert "widgets" not in notebook.metadata, "controls without a kernel behind them would do nothing"
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it from a clean kernel"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert "/home/" not in text and "/tmp/" not in text and "it/s" not in text and "s/it" not in text
    assert path.stat().st_size < 2_000_000


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebooks, run in their order on the smoke profile: the folder of the executed ones."""
    folder = tmp_path_factory.mktemp("notebooks")
    corpora = "{savee: {}, emodb: {synthetic: {speakers: 5, sentences: 4}}, crema_d: {}}"
    changes = "training: {epochs: 1}\nsamsg: {epochs: 1}\nviews: {names: [clean]}\n"
    (folder / "smoke.yaml").write_text(f"extends: smoke\ncorpora: {corpora}\n")
    (folder / "shortcuts_smoke.yaml").write_text(f"extends: smoke\ncorpora: {{emodb: {{}}}}\n{changes}")
    stems = [path.stem for path in NOTEBOOKS]
    chains = [  # at the same time
        ({"profile": f"{folder}/smoke.yaml"}, stems[:8] + stems[11:]),
        ({"profile": f"{folder}/shortcuts_smoke.yaml", "n_speakers": 2}, stems[10:11]),  # trains on corpora of its own
        ({"profile": ""}, stems[8:10]),  # show the predictions in the repository
    ]
    environment = {**os.environ, "SAMSG_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, REPOSITORY / "tools/run_chain.py", folder]
    options = {"env": environment, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, json.dumps(first), *names], **options) for first, names in chains]
    errors = [process.communicate()[1] for process in processes]
    assert not any(process.returncode for process in processes), errors
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_running_a_notebook_again_shows_what_is_committed(path: Path, again: Path) -> None:
    for committed, new in zip(code_cells(path), code_cells(again / path.name), strict=True):
        assert committed.source == new.source
        assert words(committed) == words(new), f"stale output of the cell\n{committed.source}"


def test_a_batch_leaves_the_tables_and_figures(again: Path) -> None:
    names = {path.name for path in (again / "home/paper_figures/smoke").iterdir()}
    expected = {f"table{number}.{kind}" for number in (1, 2) for kind in ("csv", "md", "tex")}
    expected |= {f"figure{number}.{kind}" for number in (4, 5) for kind in ("png", "pdf")} | {"results.csv"}
    assert expected <= names
