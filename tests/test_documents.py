"""What the documents promise is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from samsg import cli

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
    assert set(re.findall(r"--profile ([a-z_]+)(?![\w.])", text)) <= profiles


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile("|".join([r"py" + r"pi\.org", r"python" + r"hosted\.org", r"/ro" + r"ot/"]))
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix not in {".png", ".pdf", ".gz"} and path.is_file():
            assert not forbidden.search(path.read_text(encoding="utf-8", errors="replace")), name


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


@pytest.mark.parametrize(("document", "command", "complete"), documented_commands())
def test_every_command_in_the_documents_is_one_that_samsg_takes(document: str, command: str, complete: bool) -> None:
    """Parsed as on the command line, and not run."""
    its, words = get_command(cli.app), shlex.split(command)[1:]
    while words and words[0] in getattr(its, "commands", {}):
        its, words = its.commands[words[0]], words[1:]
    known = {option for parameter in its.params for option in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known
    if complete and "--help" not in words:
        its.make_context(command, words)


def test_the_python_examples_of_the_readme_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for ImageNet's weights, which no test downloads, and the model of a run on tones."""
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    monkeypatch.chdir(finished)
    shutil.copy(next(finished.glob("*.wav")), "clip.wav")
    names: dict[str, object] = {"waveforms": torch.rand(1, 64_000)}
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(block.replace('"imagenet"', '"random"').replace('"demo/savee"', '"tones/tones"'), names)
    assert names["masked"].shape == (1, 1, 128, 1001) and names["heat"].max() == 1
    assert set(names["windows"]["emotion"]) <= {"high", "low", "middle"}
