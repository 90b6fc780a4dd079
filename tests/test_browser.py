"""The notebook explore in JupyterLab, in a real browser: a slider and the path of a recording change the picture."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Page, sync_playwright
from toys import wav

from samsg.settings import REPOSITORY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 300  # for the notebook to run, on a busy machine
PICTURE = ".widget-hbox .widget-output img"  # beside the controls
OUTPUTS = "jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells.map(cell => cell.outputs || [])"
IDLE = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"
NOT_RUN = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(each => !/\\d/.test(each.textContent))"
# All cells in the page, whether or not they are scrolled to; no questions about news from the network.
SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}


@pytest.fixture
def address(finished: Path, tmp_path: Path) -> Iterator[str]:
    """The address of the notebook, about the finished run, in a JupyterLab with settings of its own."""
    notebook = load_notebook_node(str(REPOSITORY / "notebooks/explore.ipynb"))
    for cell in notebook.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    parameters = {"profile": str(finished / "tones.yaml"), "corpus": "tones"}
    nbformat.write(parameterize_notebook(notebook, parameters), tmp_path / "explore.ipynb")
    for name, content in SETTINGS.items():
        path = tmp_path / f".settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(content, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    environment = {**os.environ, **{name: str(tmp_path / ".jupyter") for name in folders}}
    environment |= {"SAMSG_HOME": str(finished), "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / ".settings")}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / ".workspaces")}
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={tmp_path}"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(30)


def complaints(page: Page) -> list[str]:
    """Errors of the notebook, and what was written to standard error."""
    outputs = [output for cell in page.evaluate(OUTPUTS) for output in cell]
    return [str(output) for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; on Debian and Ubuntu the package is chromium")
def test_explore_runs_in_jupyterlab_and_its_controls_change_the_picture(address: str, tmp_path: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(1000 * SECONDS)
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_function(IDLE)
        page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(f"!{NOT_RUN} || {OUTPUTS}.flat().some(each => each.output_type == 'error')")
        assert complaints(page) == []
        assert page.locator(".widget-hbox .widget-output audio").count() == 1

        def changed(before: str) -> str:
            script = f"before => {{ const now = document.querySelector('{PICTURE}'); return now && now.src != before }}"
            page.wait_for_function(script, arg=before)
            return str(page.locator(PICTURE).first.get_attribute("src"))

        first = changed("")
        page.locator(".widget-slider", has_text="threshold").locator(".noUi-handle").press("PageDown")
        second = changed(first)
        field = page.locator(".widget-text", has_text="own file").locator("input")
        field.fill(str(wav(tmp_path / "own.wav", 0.3)))
        field.press("Enter")
        changed(second)
        assert complaints(page) == []
        browser.close()
