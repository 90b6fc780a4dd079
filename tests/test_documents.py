"""What the documents promise is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "data/README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert "@@" not in text and "TODO" not in text
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_commands_in_the_readme_exist() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {name for name in re.findall(r"make ([a-z]+)", text)} <= targets
    profiles = {path.stem for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert set(re.findall(r"--profile ([a-z_]+)", text)) <= profiles


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile("|".join([r"py" + r"pi\.org", r"python" + r"hosted\.org", r"/ro" + r"ot/"]))
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix not in {".png", ".pdf", ".gz"} and path.is_file():
            assert not forbidden.search(path.read_text(encoding="utf-8", errors="replace")), name
