"""The site of `make docs`, built anew: everything is in it, its links lead somewhere, and it needs no network."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import samsg
from samsg.settings import REPOSITORY

for needed in ("sphinx", "myst_nb", "sphinx_book_theme"):
    pytest.importorskip(needed, reason=f"the site is built with {needed}, of the extra 'docs'")
from sphinx.application import Sphinx  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*Sphinx")  # what its extensions should change
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
    folder, complaints = tmp_path_factory.mktemp("site"), io.StringIO()
    folders = (REPOSITORY, REPOSITORY / "docs", folder, folder / ".doctrees")
    Sphinx(*folders, "html", status=None, warning=complaints).build()
    assert complaints.getvalue() == ""
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_every_document_notebook_and_public_name_is_in_it(site: Path, pages: dict[Path, Page]) -> None:
    entrance = pages[site / "index.html"]
    for source in SOURCES:
        page = source.relative_to(REPOSITORY).with_suffix(".html")
        assert (site / page).is_file()
        assert page.name == "README.html" or page.as_posix() in entrance.links  # the side bar
    assert {f"samsg.{name}" for name in samsg.__all__} <= pages[site / "docs/api.html"].places


def test_links_lead_somewhere_and_nothing_is_loaded_from_the_network(site: Path, pages: dict[Path, Page]) -> None:
    assert [each for page in pages.values() for each in page.loaded if re.match(r"(https?:)?//", each)] == []
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
