"""tools/run_chain.py: notebooks of one kernel that know nothing of each other."""

import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client import AsyncKernelClient
from nbclient.exceptions import DeadKernelError

from samsg.settings import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
import run_chain


def write(path: Path, source: str) -> None:
    """A notebook with one cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def test_notebooks_share_a_kernel_and_no_names_and_a_failed_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = "import os; print(os.getpid(), 'secret' in globals())"
    sources = {"first": f"secret = 1\n{process}", "second": process, "third": "1 / 0", "fourth": "pass"}
    for name, source in sources.items():
        write(tmp_path / f"{name}.ipynb", source)
    monkeypatch.setattr(run_chain, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("SAMSG_PROGRESS", str(events := tmp_path / "events"))
    executed, clients = tmp_path / "executed", []
    stop_channels = AsyncKernelClient.stop_channels
    monkeypatch.setattr(AsyncKernelClient, "stop_channels", lambda self: clients.append(self) or stop_channels(self))
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        run_chain.main(executed, {}, list(sources))
    assert sorted(path.name for path in executed.iterdir()) == ["first.ipynb", "second.ipynb", "third.failed.ipynb"]
    first, second = (nbformat.read(executed / f"{name}.ipynb", 4).cells[-1] for name in ("first", "second"))
    assert first.outputs[0].text.split()[1] == "True" and second.outputs[0].text.split()[1] == "False"
    assert first.outputs[0].text.split()[0] == second.outputs[0].text.split()[0]
    assert second.execution_count == 1
    assert len(set(clients)) >= 2 and not any(client.channels_running for client in clients)  # of both notebooks
    failure = "third failed: ZeroDivisionError: division by zero. Notebook with traceback: "
    assert events.read_text() == f"{failure}{executed}/third.failed.ipynb\n"


def test_a_kernel_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "first.ipynb", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(run_chain, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("SAMSG_PROGRESS", str(tmp_path / "events"))
    with pytest.raises(DeadKernelError):
        run_chain.main(tmp_path, {}, ["first"])
    assert (tmp_path / "events").read_text().startswith("first failed: Kernel died, perhaps for lack of memory. ")
