"""One environment, stated three times: pyproject.toml, requirements.lock and environment.yml agree."""

import importlib.metadata
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
LOCK = [Requirement(line) for line in LINES if line.strip() and not line.lstrip().startswith("#")]
PYTHONS = ["3.11", "3.12", "3.13"]
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


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""})


def locked(environment: dict[str, str]) -> dict[str, str]:
    """Name -> version that the lock installs on a machine."""
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version for each in LOCK if applies(each, environment)
    }


def direct() -> list[Requirement]:
    """What pyproject.toml asks for: to build, to run, and in every extra."""
    asked = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        asked += extra
    return [each for each in map(Requirement, asked) if each.name != PROJECT["project"]["name"]]


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
    extras = dict(PROJECT["project"]["optional-dependencies"])
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


def test_conda_takes_python_from_pyprojects_range_and_everything_else_from_the_lock():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))
    python, pip, nested = environment["dependencies"]
    assert python.removeprefix("python=") in PYTHONS and pip == "pip"
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [allowed.contains(f"{each}.1") for each in ["3.10", *PYTHONS, "3.14"]] == [False, True, True, True, False]
    assert nested == {"pip": ["-r requirements.lock", "-e ."]}
