"""One environment, said three times: pyproject.toml, requirements.lock and environment.yml agree."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from collections import Counter

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from samsg.settings import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
LINES = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
LOCK = [Requirement(line) for line in LINES if line.strip() and not line.lstrip().startswith(("#", "-"))]
# Machines that people have, as markers see them.
MACHINES = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
]
PYTHONS = ["3.11", "3.12", "3.13"]
ENVIRONMENTS = [
    {
        **machine,
        "python_version": python,
        "python_full_version": f"{python}.1",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for machine in MACHINES
    for python in PYTHONS
]
SHOWN = [f"{each['sys_platform']}-{each['platform_machine']}-{each['python_version']}" for each in ENVIRONMENTS]


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""})


def locked(environment: dict[str, str]) -> dict[str, str]:
    """Name -> version of what the lock installs there."""
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version for each in LOCK if applies(each, environment)
    }


def direct() -> list[Requirement]:
    """What pyproject.toml asks for: to build, to run, and in every extra."""
    asked = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        asked += extra
    requirements = [Requirement(each) for each in asked]
    return [each for each in requirements if each.name != PROJECT["project"]["name"]]


def test_the_lock_is_of_exact_versions_and_nothing_else():
    assert len(LOCK) > 100
    assert [line for line in LINES if line.lstrip().startswith("-")] == []  # no options, so no index either
    for requirement in LOCK:
        assert requirement.url is None
        assert [(each.operator, "*" in each.version) for each in requirement.specifier] == [("==", False)], requirement


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=SHOWN)
def test_no_machine_is_told_two_versions_of_one_thing(environment):
    names = Counter(canonicalize_name(each.name) for each in LOCK if applies(each, environment))
    assert [name for name, count in names.items() if count > 1] == []


def test_a_name_that_comes_twice_says_when_each_is_meant():
    names = Counter(canonicalize_name(each.name) for each in LOCK)
    assert [each.name for each in LOCK if names[canonicalize_name(each.name)] > 1 and each.marker is None] == []


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=SHOWN)
def test_every_dependency_is_locked_to_a_version_that_pyproject_allows(environment):
    versions = locked(environment)
    assert len(direct()) > 25
    for requirement in direct():
        if applies(requirement, environment):
            name = canonicalize_name(requirement.name)
            assert name in versions, f"{requirement} is not in the lock"
            assert requirement.specifier.contains(versions[name]), f"{requirement} is locked to {versions[name]}"


def test_the_extra_all_holds_every_other_extra():
    extras = dict(PROJECT["project"]["optional-dependencies"])
    (everything,) = (Requirement(each) for each in extras.pop("all"))
    assert everything.extras == set(extras)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=SHOWN)
def test_torch_torchaudio_and_torchvision_are_the_three_that_fit(environment):
    versions = locked(environment)
    assert [versions[name] for name in ("torch", "torchaudio", "torchvision")] == ["2.11.0", "2.11.0", "0.26.0"]
    pinned = {each.name: str(each.specifier) for each in direct() if each.name.startswith("torch")}
    assert pinned == {"torch": "==2.11.0", "torchaudio": "==2.11.0", "torchvision": "==0.26.0"}


def test_what_the_locked_packages_ask_for_is_locked_too():
    versions = locked({})  # this machine
    missing = []
    for name, version in versions.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version != version:
            continue  # another environment than the lock's: its packages ask for other things
        for requirement in map(Requirement, distribution.requires or []):
            if not applies(requirement, {}):
                continue
            found = versions.get(canonicalize_name(requirement.name))
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                missing.append(f"{name} {version} asks for {requirement}, locked: {found}")
    assert missing == []


def test_conda_takes_python_from_pyprojects_range_and_everything_else_from_the_lock():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["project"]["name"]
    plain = [each for each in environment["dependencies"] if isinstance(each, str)]
    (nested,) = (each for each in environment["dependencies"] if not isinstance(each, str))
    python = {re.split("[=<>]", each)[0]: each for each in plain}
    assert set(python) == {"python", "pip"}
    version = python["python"].removeprefix("python").lstrip("=")
    assert version in PYTHONS
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)
    # Lines of a requirements file: '-e . --no-deps' is none, for pip takes --no-deps on its command line alone. Every
    # dependency is in the lock already.
    assert nested == {"pip": ["-r requirements.lock", "-e ."]}


def test_no_file_names_a_package_index():
    if not (shutil.which("git") and (REPOSITORY / ".git").exists()):
        pytest.skip("what is tracked is asked of git, and this is not a checkout")
    option = "|".join(["index" + "-url", "find" + "-links", "trusted" + "-host", "/simple" + "/?$"])
    found = subprocess.run(
        ["git", "-C", str(REPOSITORY), "grep", "-InE", option], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (1, "")  # git grep: 1 is nothing found
