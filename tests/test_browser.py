"""Notebooks in JupyterLab in a real browser: they run, their controls move what they show, nothing is cut off."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).parents[1]
NOTEBOOKS = ("explore", "04_masking")
SECONDS = 180  # for a notebook to run, on a busy machine
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
# All cells in the page, whether or not they are scrolled to; no questions about news from the network.
SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}
OUTPUTS = "jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells.map(cell => cell.outputs || [])"
IDLE = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"
RUNNING = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].filter(each => !/\\d/.test(each.textContent))"
STICKS_OUT = """[...document.querySelectorAll('.jp-OutputArea-output')]
    .filter(each => each.scrollWidth > each.clientWidth + 1)
    .map(each => each.textContent.slice(0, 80) + ': ' + each.scrollWidth + ' > ' + each.clientWidth)"""


@pytest.fixture(scope="module")
def lab(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab, with a {0} for the notebook, on copies of notebooks about a finished run."""
    folder = tmp_path_factory.mktemp("lab")
    for name in NOTEBOOKS:
        notebook = load_notebook_node(str(REPOSITORY / f"notebooks/{name}.ipynb"))
        for cell in notebook.cells:
            cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
        nbformat.write(parameterize_notebook(notebook, {"profile": str(spoken)}), folder / f"{name}.ipynb")
    for name, content in SETTINGS.items():
        path = folder / f".settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(content, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(folder / ".jupyter") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    own |= {"IPYTHONDIR": str(folder / ".ipython"), "SAMSG_HOME": str(spoken.parent)}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".spaces")}
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    with (folder / ".log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / ".log").read_text()[-2000:]
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(
            f"no browser: none of {', '.join(names)} is installed; on Debian and Ubuntu the package is chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


def run_all(browser: Browser, address: str) -> Page:
    """Open a notebook and run it to its end, without errors or warnings."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * SECONDS)
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function(IDLE)
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        f"{RUNNING}.length == 0 || document.querySelector('.jp-RenderedText[data-mime-type*=error]')"
    )
    assert complaints(page) == []
    return page


def outputs(page: Page) -> list[list[dict[str, Any]]]:
    """The outputs of every cell as JupyterLab would save them."""
    return page.evaluate(OUTPUTS)


def complaints(page: Page) -> list[dict[str, Any]]:
    """Errors, and what was written to standard error."""
    every = [output for cell in outputs(page) for output in cell]
    return [output for output in every if output["output_type"] == "error" or output.get("name") == "stderr"]


def text_of_image(page: Page, containing: str) -> str:
    """The text in place of the picture that says ``containing``."""
    said = [
        output["metadata"]["image/png"]["alt"]
        for cell in outputs(page)
        for output in cell
        if "image/png" in output.get("data", {})
    ]
    (found,) = (each for each in said if containing in each)
    return found


@pytest.fixture(scope="module")
def explore(browser: Browser, lab: str) -> Page:
    page = run_all(browser, lab.format("explore"))
    page.wait_for_selector(".widget-slider .noUi-handle >> visible=true")
    return page


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Wait for what the kernel sends to arrive."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "what should have changed did not change"
        page.wait_for_timeout(50)


def settle(page: Page) -> None:
    """Wait until the kernel has done all that it was asked for."""
    page.wait_for_timeout(300)  # for the page to ask
    for _ in range(2):
        page.wait_for_function(IDLE)
        page.wait_for_timeout(200)


def choose(page: Page, control: str, option: str | int) -> None:
    """Choose from one of the lists, by its value or its place."""
    chosen = {"index": option} if isinstance(option, int) else {"value": option}
    page.locator(".widget-dropdown", has_text=control).locator("select").select_option(**chosen)
    settle(page)


def press(page: Page, slider: str, key: str) -> None:
    page.locator(".widget-slider", has_text=slider).locator(".noUi-handle").press(key)
    settle(page)


def players(page: Page) -> list[str]:
    """The sounds, as data addresses."""
    return page.evaluate("[...document.querySelectorAll('audio source')].map(each => each.src)")


def percent(text: str) -> float:
    found = re.search(r"([\d.]+)% of the patches", text)
    assert found, text
    return float(found[1])


def test_the_numbered_notebook_runs_and_nothing_is_wider_than_its_cell(browser: Browser, lab: str) -> None:
    page = run_all(browser, lab.format("04_masking"))
    assert page.evaluate(STICKS_OUT) == []
    assert page.locator(".jp-OutputArea-output img").count() >= 3


def test_the_explorer_runs_shows_its_controls_and_nothing_is_wider_than_its_cell(explore: Page) -> None:
    assert explore.evaluate(STICKS_OUT) == []
    assert explore.locator(".widget-dropdown >> visible=true").count() == 4
    assert explore.locator(".widget-slider >> visible=true").count() == 2  # threshold and alpha, not share
    assert explore.locator(".widget-button >> visible=true").count() == 2
    assert explore.locator("audio").count() == 4
    assert explore.locator(".jp-OutputArea-output img").count() == 3


def test_a_higher_threshold_masks_less(explore: Page) -> None:
    picture = explore.locator(".jp-OutputArea-output img").nth(1)
    text, source = text_of_image(explore, "outline"), picture.get_attribute("src")
    press(explore, "threshold", "PageUp")
    until(explore, lambda: percent(text_of_image(explore, "outline")) < percent(text))
    until(explore, lambda: picture.get_attribute("src") != source)
    assert complaints(explore) == []


def test_alpha_moves_the_rollout(explore: Page) -> None:
    text = text_of_image(explore, "rollout, alpha")
    press(explore, "alpha", "PageDown")
    until(explore, lambda: text_of_image(explore, "rollout, alpha") != text)


def test_sounds_and_stages_follow_when_they_are_asked(explore: Page) -> None:
    heard, judged = players(explore), text_of_image(explore, "stage iii")
    choose(explore, "strategy", "stripes")
    masked = percent(text_of_image(explore, "outline"))
    assert (players(explore), text_of_image(explore, "stage iii")) == (heard, judged)
    explore.get_by_role("button", name="ask the stages").click()
    until(explore, lambda: percent(text_of_image(explore, "stage iii")) == masked)
    explore.get_by_role("button", name="hear the mask").click()
    until(explore, lambda: [old == new for old, new in zip(heard, players(explore), strict=True)][2:] == [False, False])
    choose(explore, "strategy", "rollout")


def test_controls_that_would_do_nothing_are_hidden(explore: Page) -> None:
    threshold, share = (explore.locator(".widget-slider", has_text=name) for name in ("threshold", "share"))
    choose(explore, "strategy", "none")
    until(explore, lambda: percent(text_of_image(explore, "outline")) == 0 and threshold.is_hidden())
    choose(explore, "strategy", "rollout")
    until(explore, threshold.is_visible)
    choose(explore, "select", "share")
    until(explore, lambda: share.is_visible() and threshold.is_hidden())
    choose(explore, "select", "threshold")


def test_another_clip_changes_every_picture(explore: Page) -> None:
    def images() -> list[str]:
        return [image.get_attribute("src") or "" for image in explore.locator(".jp-OutputArea-output img").all()]

    before = images()
    choose(explore, "clip", 3)
    until(explore, lambda: len(images()) == 3 and not set(before) & set(images()))
    assert complaints(explore) == []
