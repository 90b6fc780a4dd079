"""The site of `make docs`, built anew: everything is in it, its links lead somewhere, and it needs no network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import samsg
from samsg.settings import REPOSITORY

for needed in ("sphinx", "myst_nb", "sphinx_book_theme"):
    pytest.importorskip(needed, reason=f"the site is built with {needed}, of the extra 'docs'")

SOURCES = [*REPOSITORY.glob("[A-Z]*.md"), *REPOSITORY.glob("docs/[!i]*.md"), *REPOSITORY.glob("notebooks/*.ipynb")]


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that links can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.places.add(values.get("id", ""))
        if tag == "a":
            self.links.add(values.get("href", ""))
        else:
            self.loaded |= {values.get("src", ""), values.get("href", "") if tag == "link" else ""}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = ["sphinx", "-W", "--keep-going", "-q", "-c", REPOSITORY / "docs", REPOSITORY, folder]
    built = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")  # no warnings
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_every_document_and_notebook_is_in_the_side_bar(site: Path, pages: dict[Path, Page]) -> None:
    entrance = pages[site / "index.html"]
    for source in SOURCES:
        page = source.relative_to(REPOSITORY).with_suffix(".html")
        assert (site / page).is_file()
        assert page.name == "README.html" or page.as_posix() in entrance.links


def test_links_lead_to_pages_files_and_places_that_exist(site: Path, pages: dict[Path, Page]) -> None:
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
    assert followed > 500
    assert broken == []


def test_nothing_is_loaded_from_the_network(pages: dict[Path, Page]) -> None:
    assert [each for page in pages.values() for each in page.loaded if re.match(r"(https?:)?//", each)] == []


def test_the_reference_holds_every_public_name(site: Path, pages: dict[Path, Page]) -> None:
    assert {f"samsg.{name}" for name in samsg.__all__} <= pages[site / "docs/api.html"].places
