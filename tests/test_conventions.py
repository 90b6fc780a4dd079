"""The files by which other tools know the project, and its locked environment, agree with pyproject.toml; its wheel."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from samsg.settings import REPOSITORY


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


PYPROJECT = tomllib.loads(read("pyproject.toml"))
PROJECT = PYPROJECT["project"]
PYTHONS = list(SpecifierSet(PROJECT["requires-python"]).filter(f"3.{minor}" for minor in range(30)))
LOCK = [Requirement(line) for line in read("requirements.lock").splitlines() if line.strip() and line.strip()[0] != "#"]
# Machines that people have, as markers see them.
MACHINES = {
    ("linux", "x86_64"): {"platform_system": "Linux", "os_name": "posix"},
    ("linux", "aarch64"): {"platform_system": "Linux", "os_name": "posix"},
    ("darwin", "arm64"): {"platform_system": "Darwin", "os_name": "posix"},
    ("win32", "AMD64"): {"platform_system": "Windows", "os_name": "nt"},
}
ENVIRONMENTS = [
    {**names, "sys_platform": system, "platform_machine": machine, "python_version": python}
    | {"python_full_version": f"{python}.1", "platform_python_implementation": "CPython", "extra": ""}
    for (system, machine), names in MACHINES.items()
    for python in PYTHONS
]


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    words = [r"py" + r"pi\.org", r"python" + r"hosted\.org", r"/ro" + r"ot/", "index" + "-url", "find" + "-links"]
    forbidden = re.compile("|".join([*words, "trusted" + "-host"]))
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix not in {".png", ".pdf", ".gz", ".safetensors"} and path.is_file():
            assert not forbidden.search(path.read_text(encoding="utf-8", errors="replace")), name


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Kim", "Lee"]
    assert paper["title"] in " ".join(read("README.md").replace("*", "").split())


def test_ci_containers_and_hooks_run_what_exists_on_pythons_that_are_allowed() -> None:
    targets = set(re.findall(r"^([\w./]+):", read("Makefile"), flags=re.MULTILINE))
    job = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)
    assert set(re.findall(r"^make (\w+)", read(".ci/run"), flags=re.MULTILINE)) <= targets
    dockerfile, container = read("Dockerfile"), json.loads(read(".devcontainer/devcontainer.json"))
    assert re.search(r"^FROM python:([\d.]+)-slim$", dockerfile, flags=re.MULTILINE)[1] in PYTHONS
    assert container["image"].rpartition(":")[2] in PYTHONS
    made = re.findall(r"^RUN make (\S+)$", dockerfile, flags=re.MULTILINE)
    assert {*made, "reproduce", container["postCreateCommand"].removeprefix("make ")} <= targets
    ignored = {line.strip("/") for line in read(".dockerignore").splitlines()}
    assert {".venv", "runs", "data/*", "!data/README.md"} <= ignored
    assert {line.strip("/") for line in read(".gitignore").splitlines() if line.startswith("/")} <= ignored
    hooks = [hook for each in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in each["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}  # nothing is downloaded
    linters = re.findall(r"\$\(BIN\)/(ruff \w+)", read("Makefile"))
    assert sorted(hook["entry"].removeprefix(".venv/bin/").split(" --")[0] for hook in hooks) == sorted(linters)
    assert set(re.findall(r"make ([a-z]+)", read("CONTRIBUTING.md") + read("README.md"))) <= targets


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""})


def locked(environment: dict[str, str]) -> dict[str, str]:
    """Name -> version that the lock installs on a machine."""
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version for each in LOCK if applies(each, environment)
    }


def direct() -> list[Requirement]:
    """What pyproject.toml asks for: to build, to run, and in every extra."""
    asked = [*PYPROJECT["build-system"]["requires"], *PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].values():
        asked += extra
    return [each for each in map(Requirement, asked) if each.name != PROJECT["name"]]


def test_the_lock_holds_exact_versions_and_nothing_else():
    assert len(LOCK) > 100  # a line with an option, such as an index, would not have been parsed
    for requirement in LOCK:
        assert requirement.url is None
        assert [(each.operator, "*" in each.version) for each in requirement.specifier] == [("==", False)], requirement


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda each: "-".join(list(each.values())[2:5]))
def test_every_dependency_is_locked_once_to_a_version_that_pyproject_allows(environment):
    names = Counter(canonicalize_name(each.name) for each in LOCK if applies(each, environment))
    assert [name for name, count in names.items() if count > 1] == []
    versions = locked(environment)
    for requirement in direct():
        if applies(requirement, environment):
            version = versions.get(canonicalize_name(requirement.name), "no version")
            assert version != "no version" and requirement.specifier.contains(version), f"{requirement}: {version}"
    assert [versions[name] for name in ("torch", "torchaudio", "torchvision")] == ["2.11.0", "2.11.0", "0.26.0"]


def test_the_extra_all_holds_every_other_extra():
    extras = dict(PROJECT["optional-dependencies"])
    (everything,) = map(Requirement, extras.pop("all"))
    assert everything.extras == set(extras)


def test_dependencies_of_locked_packages_are_locked_too():
    versions, missing = locked({}), []  # on this machine
    for name, version in versions.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, distribution.requires or []):
            if distribution.version == version and applies(requirement, {}):
                found = versions.get(canonicalize_name(requirement.name))
                if found is None or not requirement.specifier.contains(found, prereleases=True):
                    missing.append(f"{name} {version} asks for {requirement}, locked: {found}")
    assert missing == []


def test_conda_takes_python_from_pyprojects_range_and_everything_else_from_the_lock() -> None:
    python, pip, nested = yaml.safe_load(read("environment.yml"))["dependencies"]
    assert python.removeprefix("python=") in PYTHONS and pip == "pip"
    assert nested == {"pip": ["-r requirements.lock", "-e ."]}


PROGRAM = """
import pathlib, samsg, torch
from samsg import cli
from samsg.tables import reference_values
assert pathlib.Path(samsg.__file__).is_relative_to({installed!r})
assert samsg.LogMel()(torch.zeros(1, 64_000)).shape == (1, 1, 128, 1001)
assert samsg.home() == pathlib.Path.cwd()
assert samsg.load_profile("own.yaml").mask.threshold == 0.4
for asked in (lambda: samsg.load_profile("paper"), lambda: reference_values(1), cli.weights):
    try:
        asked()
    except samsg.SamsgError as error:
        print(error)
"""


def test_a_wheel_holds_every_file_of_the_library_and_works_without_the_repository(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "samsg", tmp_path / "source/samsg", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "./source"]
    built = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "installed")

    def files(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in (folder / "samsg").rglob("*.*") if path.is_file()}

    assert files(tmp_path / "installed") == files(tmp_path / "source")
    (tmp_path / "own.yaml").write_text("corpora: {mine: {reader: list.csv}}\nmask: {threshold: 0.4}\n")
    environment = {name: value for name, value in os.environ.items() if name != "SAMSG_HOME"}
    installed = str(tmp_path / "installed")
    program = [sys.executable, "-c", PROGRAM.format(installed=installed)]
    environment["PYTHONPATH"] = installed
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    needed = re.findall("This needs '(.*?)' of the repository", done.stdout)
    assert needed == ["configs", "paper_figures/reference", "tools/weights.py"]
