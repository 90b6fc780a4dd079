"""The site of `make docs`, built anew: everything is in it, its links lead somewhere, and it needs no network."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest

import samsg
from samsg.settings import REPOSITORY

for needed in ("sphinx", "myst_nb", "sphinx_book_theme"):
    pytest.importorskip(needed, reason=f"the site is built with {needed}, of the extra 'docs'")

DOCUMENTS = [*REPOSITORY.glob("[A-Z]*.md"), REPOSITORY / "data/README.md", *REPOSITORY.glob("docs/[!i]*.md")]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


class Page(HTMLParser):
    """What a page links to, what it loads, what in it can be linked to, and what a reader reads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.elements: dict[str, int] = defaultdict(int)
        self.places: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.elements[tag] += 1
        self.places.add(values.get("id") or "")
        if tag == "a":
            self.links.add(values.get("href") or "")
        else:
            self.loaded |= {values.get("src") or "", (tag == "link" and values.get("href")) or ""}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-c",
        REPOSITORY / "docs",
        REPOSITORY,
        folder,
    ]
    built = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")  # no warnings
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_every_document_and_notebook_is_in_it_and_in_the_side_bar(site: Path, pages: dict[Path, Page]) -> None:
    assert len(DOCUMENTS) > 7 and len(NOTEBOOKS) > 10
    entrance = pages[site / "index.html"]
    for source in [*DOCUMENTS, *NOTEBOOKS]:
        page = source.relative_to(REPOSITORY).with_suffix(".html")
        assert (site / page).is_file()
        assert page.name == "README.html" or page.as_posix() in entrance.links


def test_links_lead_to_pages_files_and_places_that_are_there(site: Path, pages: dict[Path, Page]) -> None:
    broken, followed = [], 0
    for path, page in pages.items():
        for link in filter(None, page.links | page.loaded):
            if re.match(r"[a-z]+:", link):
                continue
            target, place = urldefrag(link)
            found = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            good = found.is_file() and (not place or found not in pages or unquote(place) in pages[found].places)
            broken += [] if good else [f"{path.relative_to(site)}: {link}"]
            followed += 1
    assert followed > 1000
    assert broken == []


def test_nothing_is_loaded_from_the_network(pages: dict[Path, Page]) -> None:
    loaded = {source for page in pages.values() for source in page.loaded if re.match(r"(https?:)?//", source)}
    assert loaded == set()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_the_pictures_and_formulas_that_are_committed(
    pages: dict[Path, Page], site: Path, notebook: Path
) -> None:
    cells = nbformat.read(notebook, 4).cells
    page = pages[site / "notebooks" / f"{notebook.stem}.html"]
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert page.elements["img"] >= sum("image/png" in output.get("data", {}) for output in outputs)
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, flags=re.DOTALL)
    assert page.elements["math"] >= len(formulas)  # headings come again in the side bar
    assert not any(formula.strip("$") in page.text for formula in formulas if "\\" in formula)  # no TeX is left


def test_the_reference_holds_every_public_name_with_its_docstring(site: Path, pages: dict[Path, Page]) -> None:
    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text))

    page = pages[site / "docs/api.html"]
    said = words(page.text)
    for name in samsg.__all__:
        first = (inspect.getdoc(getattr(samsg, name)) or "").split("\n\n")[0]
        assert f"samsg.{name}" in page.places
        assert first and words(first) in said, name


def test_a_folder_that_is_linked_to_shows_its_files(site: Path, pages: dict[Path, Page]) -> None:
    folder = pages[site / "paper_figures/demo/index.html"]
    assert {path.name for path in (REPOSITORY / "paper_figures/demo").iterdir()} <= folder.links
    assert "figure4.png" in folder.loaded
