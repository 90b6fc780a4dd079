"""The files by which other tools know the project say what pyproject.toml says, and a wheel holds what it should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from samsg.settings import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def pythons() -> list[str]:
    """What requires-python allows: '>=3.11,<3.14' is 3.11, 3.12 and 3.13."""
    first, end = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    return [f"3.{minor}" for minor in range(int(first), int(end))]


def test_the_citation_has_what_its_format_requires_and_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == [{"name": re.search(r"\(c\) \d+ (.+)", read("LICENSE"))[1]}]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]] == ["Kim", "Lee"]
    assert paper["title"] in " ".join(read("README.md").replace("*", "").split())


def test_continuous_integration_runs_its_one_script_on_every_python() -> None:
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == pythons()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"] and os.access(REPOSITORY / ".ci/run", os.X_OK)


def test_containers_start_from_a_python_that_is_allowed_and_run_targets_that_exist() -> None:
    dockerfile, container = read("Dockerfile"), json.loads(read(".devcontainer/devcontainer.json"))
    targets = set(re.findall(r"^([\w./]+):", read("Makefile"), flags=re.MULTILINE))
    assert re.search(r"^FROM python:([\d.]+)-slim$", dockerfile, flags=re.MULTILINE)[1] in pythons()
    assert container["image"].rpartition(":")[2] in pythons()
    assert json.loads(re.search(r"^CMD (.+)$", dockerfile, flags=re.MULTILINE)[1]) == ["make", "reproduce"]
    made = [*re.findall(r"^RUN make (\S+)$", dockerfile, flags=re.MULTILINE), "reproduce"]
    made.append(container["postCreateCommand"].removeprefix("make "))
    assert set(made) <= targets
    # Nothing runs as root.
    commands = [line.split()[0] for line in dockerfile.splitlines() if line and line[0].isupper()]
    assert commands.index("USER") < commands.index("COPY") and "USER root" not in dockerfile


def test_an_image_gets_neither_environment_nor_runs_nor_corpora() -> None:
    ignored = read(".dockerignore").splitlines()
    assert {".venv", "runs", "data/*", "!data/README.md"} <= set(ignored)
    assert {line.strip("/") for line in read(".gitignore").splitlines() if line.startswith("/")} <= {
        line.lstrip("/") for line in ignored
    }


def test_the_hooks_are_the_linters_of_make_lint_and_download_nothing() -> None:
    hooks = [hook for each in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in each["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    linters = re.findall(r"\$\(BIN\)/(ruff \w+)", read("Makefile"))
    assert sorted(hook["entry"].removeprefix(".venv/bin/").split(" --")[0] for hook in hooks) == sorted(linters)


def test_contributors_are_given_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+) {2,}#", read("CONTRIBUTING.md")))
    assert named == {"lint", "test", "docs"} and named <= targets


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the repository's files as they are, unpacked where nothing else of the repository is."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    shutil.copytree(REPOSITORY / "samsg", source / "samsg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*command, "--wheel-dir", wheels, source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_a_wheel_holds_every_module_the_types_and_the_official_lists(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = {path.relative_to(folder).as_posix() for path in (folder / "samsg").rglob("*") if path.is_file()}
        return {name for name in found if "__pycache__" not in name}

    held = files(installed)
    assert held == files(REPOSITORY)
    assert {"samsg/py.typed", "samsg/__init__.pyi", "samsg/corpora/official/emodb.csv.gz"} <= held
    assert list(installed.glob("samsg-*.dist-info/licenses/LICENSE"))


def test_without_the_repository_the_library_works_and_profiles_say_where_they_are(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("corpora: {mine: {reader: list.csv}}\nmask: {threshold: 0.4}\n")
    program = """
import pathlib, samsg, torch
from samsg.report.tables import reference_values
assert pathlib.Path(samsg.__file__).is_relative_to(INSTALLED)
assert samsg.LogMel()(torch.zeros(1, 64_000)).shape == (1, 1, 128, 1001)
assert samsg.home() == pathlib.Path.cwd()
assert samsg.load_profile("own.yaml").mask.threshold == 0.4
for asked in (lambda: samsg.load_profile("paper"), lambda: reference_values(1)):
    try:
        asked()
    except samsg.SamsgError as error:
        print(error)
""".replace("INSTALLED", repr(str(installed)))
    environment = {name: value for name, value in os.environ.items() if name != "SAMSG_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(installed)},
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("'configs' of the repository is needed") and "pip install --editable ." in first
    assert second.startswith("'paper_figures/reference' of the repository is needed")
