"""The command ``samsg`` and the workflow behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import samsg
from samsg.cli import listed
from samsg.settings import REPOSITORY

SAMSG = str(Path(sys.executable).parent / "samsg")


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"SAMSG_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    return subprocess.run([SAMSG, *arguments], capture_output=True, text=True, check=False, env=environment)


def test_lists_are_given_with_commas_or_spaces() -> None:
    assert listed("a,b c") == listed(["a,b", "c"]) == ["a", "b", "c"]
    assert listed((0, 1)) == ["0", "1"]
    assert listed("") == []


def test_every_public_name_can_be_had() -> None:
    assert {"LogMel", "SpectrogramDeiT", "attention_rollout", "split"} <= set(samsg.__all__)
    assert all(getattr(samsg, name) is not None for name in samsg.__all__)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "dmeo"], "Did you mean 'demo'?"),
        (["--corpora", "emodbb"], "Did you mean 'emodb'?"),
        (["--protocol", "speakers"], "Did you mean 'speaker'?"),
        (["--seeds", "-1"], "A seed is a whole number from 0; got '-1'."),
    ],
)
def test_a_wrong_name_is_one_sentence_with_the_nearest_right_one(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = run("reproduce", *arguments, home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("samsg: ") and said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.done"))


def test_profiles_are_listed_with_what_they_are(tmp_path: Path) -> None:
    done = run("profiles", home=tmp_path)
    assert done.returncode == 0
    for name in ("paper", "scratch", "demo", "smoke"):
        assert f"\n{name} " in "\n" + done.stdout


def test_a_dry_run_plans_each_notebook_once_for_each_corpus_protocol_and_seed(tmp_path: Path) -> None:
    done = run(
        "reproduce", "--profile", "smoke", "--corpora", "emodb,savee", "--seeds", "0,1", "--dry-run", home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    plan = done.stdout + done.stderr
    for corpus in ("emodb", "savee"):
        assert plan.count(f"01_data_preparation: {corpus}") == 1
        for seed in (0, 1):
            assert plan.count(f"02_baseline: {corpus}, random, seed {seed}") == 1
            assert plan.count(f"06_linear_probe: {corpus}, random, seed {seed}") == 1
    assert "crema_d" not in plan
    assert plan.count("07_tables_and_figures: random") == 1


def test_tables_and_figures_that_lie_there_without_a_run_are_made_anew(tmp_path: Path) -> None:
    """As in a new clone: they are committed, what they were made from is not."""
    shutil.copytree(REPOSITORY / "paper_figures/demo", tmp_path / "paper_figures/demo")
    done = run("reproduce", "--profile", "demo", "--dry-run", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("02_baseline: ") == 3


def test_a_failed_notebook_is_kept_and_its_error_is_said(tmp_path: Path) -> None:
    """A corpus that is not there: the message says what was looked for and where; nothing is left half done.

    The folders and settings are called what a shell, Snakemake or a notebook would take for something else.
    """
    home = tmp_path / "a'b\"c; $(touch run) `touch run` & | > x"
    home.mkdir()
    corpus = {"root": "no'whe\"re; $(touch run) {x}", "reader": "savee", "synthetic": None}
    profile = {"extends": "smoke", "corpora": {"007": corpus}, "model": {"weights": "{x}'; $(touch run)"}}
    (home / "mine.yaml").write_text(yaml.safe_dump(profile))
    done = run("reproduce", "--profile", str(home / "mine.yaml"), home=home)
    assert done.returncode == 1
    assert "SAVEE was looked for in" in done.stderr and f"{corpus['root']}, which is no folder" in done.stderr
    assert not [*tmp_path.rglob("run"), *(samsg.settings.REPOSITORY / "notebooks").glob("run")]
    kept = home / "runs/mine/007/notebooks/01_data_preparation.ipynb"
    assert str(kept) in done.stderr
    assert '"output_type": "error"' in kept.read_text()
    assert not kept.with_suffix(".done").exists()
