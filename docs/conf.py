"""The site: README, documents, notebooks as committed, and the public names, by Sphinx (`make docs`).

Its sources lie all over the repository and link to each other there, so the repository's root is the source folder
(`sphinx-build -c docs . build/site`) and the site has the repository's layout. Nothing is fetched, by the build or by
the pages: notebooks are not run, and formulas are MathML, which browsers show by themselves.
"""

from __future__ import annotations

import ast
import html
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

REPOSITORY = Path(__file__).resolve().parents[1]

project = "SAMSG, reproduced"
copyright = "2026, the SAMSG reproduction authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "data/README.md", "docs/*.md", "notebooks/*.ipynb"]
exclude_patterns = [".*", "build", "dist", "runs", "data/[!R]*", "docs/index.md"]
UNCOMMITTED = ("build", "data", "dist", "runs")  # may hold corpora and weights

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}  # the search is in the side bar
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}  # without a kernel a widget does nothing, and its scripts come from the network
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "exclude-members": "model_config"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100


def add_to_source(app: Sphinx, name: str, source: list[str]) -> None:
    """The tables of contents below the README, and below docs/api.md every name in samsg/__init__.pyi."""
    if name == "README":
        source[0] += "\n" + (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    elif name == "docs/api":
        stub = ast.parse((REPOSITORY / "samsg/__init__.pyi").read_text(encoding="utf-8"))
        for module in (line for line in stub.body if isinstance(line, ast.ImportFrom)):
            path = REPOSITORY / "samsg" / f"{(module.module or '').replace('.', '/')}.py"
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            heading = f"\n## samsg.{module.module}\n\n{about}\n"
            source[0] += heading if heading not in source[0] else ""
            for each in module.names:
                kind = "autoclass" if each.name[0].isupper() else "autofunction"
                source[0] += f"\n```{{eval-rst}}\n.. {kind}:: samsg.{each.name}\n```\n"


def link_folders(app: Sphinx, document: nodes.document) -> None:
    """Links to folders, which have no page of their own, lead to a list of what is in them."""
    for link in list(document.findall(pending_xref)):
        folder = REPOSITORY / Path(app.env.docname).parent / link["reftarget"]
        relative = os.path.relpath(folder, REPOSITORY)
        if link["reftype"] == "myst" and folder.is_dir() and Path(relative).parts[0] not in UNCOMMITTED:
            app.env.metadata[app.env.docname].setdefault("folders", []).append(relative)
            target = f"{link['reftarget'].rstrip('/')}/index.html"
            link.replace_self(nodes.reference("", "", *link.children, refuri=target, internal=True))


def list_folders(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages of the folders that are linked to, with their files and pictures."""
    hidden = shutil.ignore_patterns(".*", "__pycache__")
    for folder in {folder for each in app.env.metadata.values() for folder in each.get("folders", [])}:
        shutil.copytree(REPOSITORY / folder, app.outdir / folder, ignore=hidden, dirs_exist_ok=True)
        for below, folders, files in os.walk(REPOSITORY / folder):
            folders[:] = sorted(set(folders) - hidden(below, folders))
            here = os.path.relpath(below, REPOSITORY)
            shown = [*(f"{each}/index.html" for each in folders), *sorted(set(files) - hidden(below, files))]
            items = [f'<li><a href="{html.escape(each)}">{html.escape(each)}</a></li>' for each in shown]
            pictures = [f'<p><img src="{each}" alt="{each}"></p>' for each in shown if each.endswith(".png")]
            body = f"<h1>{html.escape(here)}</h1><ul>{''.join(items)}</ul>{''.join(pictures)}"
            yield f"{here}/index", {"title": here, "body": body}, "page.html"


def write_formula(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """TeX -> MathML by docutils' own converter, which does not know \\tag: the paper's number of an equation."""
    block = isinstance(node, nodes.math_block)
    tex, *number = re.split(r"\\tag\{(.*?)\}", node.astext())
    formula = tex2mathml(tex + "".join(number[1:]), as_block=block)
    label = f"<span>({html.escape(number[0])})</span>" if number else ""
    translator.body.append(f'<p class="equation">{formula}{label}</p>' if block else formula)
    raise nodes.SkipNode


def add_entrance(app: Sphinx, error: Exception | None) -> None:
    """index.html, where browsers and servers look first, is the README."""
    if error is None and app.builder.format == "html":
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.connect("source-read", add_to_source)
    app.connect("doctree-read", link_folders)
    app.connect("html-collect-pages", list_folders)
    app.connect("build-finished", add_entrance)
