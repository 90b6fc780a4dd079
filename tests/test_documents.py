"""What the documents promise exists: links, commands, examples, and the notes of committed tables."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from samsg import cli
from samsg.settings import REPOSITORY, profile_names

DOCUMENTS = [*REPOSITORY.glob("[A-Z]*.md"), REPOSITORY / "data/README.md", *sorted(REPOSITORY.glob("docs/*.md"))]
TABLES = sorted(path for path in (REPOSITORY / "paper_figures").rglob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search("@@|TODO|^(<<<<<<<|=======|>>>>>>>)", text, re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or (document.parent / target).exists(), target


def documented_commands() -> list[tuple[str, str, bool]]:
    """Document, command, and whether it stands in a block, complete; in a sentence it may lack its arguments."""
    found = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        blocks = re.findall(r"^(?: {4}|srun .*?)(samsg .+?)(?: +#.*)?$", text, re.MULTILINE)
        inline = re.findall(r"`(samsg [a-z-][^`]*)`", text)
        found |= {(document.name, command, True) for command in blocks}
        found |= {(document.name, " ".join(command.split()), False) for command in inline}
    return sorted(found)


def test_every_command_in_the_documents_is_one_that_samsg_takes() -> None:
    """Parsed as on the command line, and not run."""
    assert len(documented_commands()) > 20
    for document, text, complete in documented_commands():
        if document == "CHANGELOG.md":  # it also names commands of earlier versions
            continue
        command, words = get_command(cli.app), shlex.split(text)[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        assert set(re.findall(r"--profile ([a-z_0-9]+)(?![\w.])", text)) <= set(profile_names())
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, f"{document}: {text}"
        if complete and "--help" not in words:
            command.make_context(text, words)


def test_the_python_examples_of_the_readme_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, except for the weights, which no test downloads, and the model, of the toy run."""
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    monkeypatch.chdir(finished)
    shutil.copy(next(finished.glob("*.wav")), "clip.wav")
    names: dict[str, object] = {"waveforms": torch.rand(1, 64_000)}
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(re.sub('"demo/[a-z_]+"', '"tones/tones"', block.replace('"imagenet"', '"random"')), names)
    Path("clip.wav").unlink()


@pytest.mark.parametrize("path", TABLES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_committed_table_states_what_it_is_of(path: Path) -> None:
    """No table of this repository may be taken for results on the paper's corpora: none of them is."""
    text = path.read_text(encoding="utf-8").lower()
    assert "synthetic speech" in text or "first 2 s" in text or "on ravdess" in text or text.startswith("ravdess")


def test_the_page_on_performance_shows_the_numbers_of_its_record() -> None:
    record = json.loads((REPOSITORY / "docs/performance.cpu.json").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs/performance.md").read_text(encoding="utf-8")
    rows = [row for part in record["rows"].values() for row in part]
    assert rows
    for row in rows:
        assert f"| {row['case']} | {row['value']:.4g} | {row['unit']} |" in page
