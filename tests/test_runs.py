"""Where results are kept: a stage is whole or not there, is made once, and says what it was made with."""

import importlib.metadata
import json
import platform
from pathlib import Path

import pytest

from samsg import runs
from samsg.runs import NOTEBOOKS, PACKAGES, Run, atomic, finished, finished_runs, open_run, stage, write_json
from samsg.settings import REPOSITORY, Profile, SamsgError, load_profile

SETTINGS = {"audio": {"hop": 64, "seconds": 4.0}, "seed": 0}


def smoke(**overrides) -> Profile:
    return load_profile("smoke", **overrides)


def contents(folder: Path) -> set[str]:
    """The files below a folder, and its empty folders; without the locks that keep a second process waiting."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_file() or not any(path.iterdir())) and path.suffix != ".lock"
    }


# Files


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a/b.txt"
    with atomic(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), atomic(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new"
    assert contents(tmp_path) == {"a/b.txt"}


def test_json_is_written_in_a_fixed_order(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": {"d": [1, 2], "c": None}})
    write_json(tmp_path / "b.json", {"a": {"c": None, "d": [1, 2]}, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": {"c": None, "d": [1, 2]}, "b": 1}


# Stages


def test_a_stage_appears_under_its_name_when_it_is_whole(tmp_path):
    folder = tmp_path / "seed0/baseline"
    with stage(folder, SETTINGS) as partial:
        (partial / "model").write_text("weights")
        assert not folder.exists()
    assert contents(tmp_path) == {"seed0/baseline/model", "seed0/baseline/settings.json"}
    assert json.loads((folder / "settings.json").read_text()) == SETTINGS
    assert finished(folder, SETTINGS)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_stage_leaves_nothing_under_its_name(tmp_path, interruption):
    folder = tmp_path / "baseline"
    with pytest.raises(interruption), stage(folder, SETTINGS) as partial:
        (partial / "checkpoint").write_text("epoch 3")
        raise interruption
    assert not folder.exists()
    assert not finished(folder, SETTINGS)


def test_work_goes_on_from_a_partial_folder_with_the_same_settings(tmp_path):
    folder = tmp_path / "baseline"
    with pytest.raises(KeyboardInterrupt), stage(folder, SETTINGS) as partial:
        (partial / "checkpoint").write_text("epoch 3")
        raise KeyboardInterrupt
    with stage(folder, SETTINGS) as partial:
        assert (partial / "checkpoint").read_text() == "epoch 3"
    assert finished(folder, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["baseline"]


@pytest.mark.parametrize("others", [{**SETTINGS, "seed": 1}, {"audio": {"hop": 64, "seconds": 2.0}, "seed": 0}, {}])
def test_a_partial_folder_with_other_settings_is_emptied(tmp_path, others):
    folder = tmp_path / "baseline"
    with pytest.raises(KeyboardInterrupt), stage(folder, others) as partial:
        (partial / "checkpoint").write_text("epoch 3")
        raise KeyboardInterrupt
    with stage(folder, SETTINGS) as partial:
        assert contents(partial) == {"settings.json"}
    assert json.loads((folder / "settings.json").read_text()) == SETTINGS


def test_a_partial_folder_without_settings_is_emptied(tmp_path):
    (tmp_path / "baseline.partial").mkdir()
    (tmp_path / "baseline.partial/rest").write_text("of something")
    with stage(tmp_path / "baseline", SETTINGS) as partial:
        assert contents(partial) == {"settings.json"}


def test_a_folder_without_settings_is_not_a_stage(tmp_path):
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline/history.csv").write_text("epoch")
    assert not finished(tmp_path / "baseline", SETTINGS)
    with stage(tmp_path / "baseline", SETTINGS):
        pass
    assert contents(tmp_path / "baseline") == {"settings.json"}


def test_a_stage_with_other_settings_is_an_error_that_shows_the_difference(tmp_path):
    folder = tmp_path / "baseline"
    with stage(folder, SETTINGS):
        pass
    asked = {"audio": {"hop": 128, "seconds": 4.0}, "seed": 0, "mask": {"fill": 0.0}}
    with pytest.raises(SamsgError) as error:
        finished(folder, asked)
    assert f"{folder} was made with other settings: " in str(error.value)
    assert "audio.hop was 64 and is now 128" in str(error.value)
    assert "mask was None and is now {'fill': 0.0}" in str(error.value)
    assert "seed was" not in str(error.value)
    assert "seconds" not in str(error.value)
    assert "a name of its own, or remove" in str(error.value)
    assert finished(folder, SETTINGS)  # and nothing was lost


def test_tuples_and_lists_are_the_same_settings(tmp_path):
    with stage(tmp_path / "a", {"speed": (0.9, 1.1)}):
        pass
    assert finished(tmp_path / "a", {"speed": [0.9, 1.1]})
    assert finished(tmp_path / "a", {"speed": (0.9, 1.1)})


# Runs


def test_a_run_keeps_its_stages_below_home(home):
    run = open_run(smoke(), "savee", "speaker", 3)
    assert run.folder == home / "runs/smoke/savee/speaker/seed3"
    assert run.stage_folder("baseline") == run.folder / "baseline"
    assert run.stage_folder("spectrograms") == home / "runs/smoke/savee/spectrograms"  # shared by all its runs
    assert run.stage_folder("waveforms") == home / "runs/smoke/savee/waveforms"


def test_a_run_may_be_opened_by_its_profiles_name():
    assert open_run("smoke", "emodb") == Run(smoke(), "emodb", "random", 0)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"profile": "smok"}, "no profile 'smok'.*Did you mean 'smoke'"),
        ({"corpus": "emdb"}, "Profile 'smoke' has no corpus 'emdb'.*Did you mean 'emodb'"),
        ({"protocol": "sentense"}, "no protocol 'sentense'.*Did you mean 'sentence'"),
        ({"seed": -1}, "A seed is a whole number from 0; got -1"),
        ({"seed": 1.5}, r"A seed is a whole number from 0; got 1\.5"),
        ({"seed": "0"}, "A seed is a whole number from 0; got '0'"),
    ],
)
def test_names_that_are_not_known_are_refused(asked, words):
    with pytest.raises(SamsgError, match=words):
        open_run(**{"profile": "smoke", "corpus": "emodb", **asked})


CHANGES = {
    "audio": {"audio": {"hop": 400}},
    "views": {"views": {"seed": 1}},
    "model": {"model": {"depth": 1}},
    "training": {"training": {"lr": 0.25}},
    "rollout": {"rollout": {"alpha": 0.5}},
    "mask": {"mask": {"threshold": 0.4}},
    "samsg": {"samsg": {"epochs": 9}},
    "probe": {"probe": {"epochs": 9}},
}


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("waveforms", set()),  # but for the sample rate, which none of these changes alters
        ("spectrograms", {"audio", "views"}),
        ("baseline", {"audio", "views", "model", "training"}),
        ("rollout", {"audio", "views", "model", "training", "rollout"}),
        ("masks", {"audio", "views", "model", "training", "rollout", "mask"}),
        ("samsg", {"audio", "views", "model", "training", "rollout", "mask", "samsg"}),
        ("probe", {"audio", "views", "model", "training", "rollout", "mask", "samsg", "probe"}),
    ],
)
def test_a_stage_depends_on_the_settings_of_all_before_it_and_on_no_later_ones(name, groups):
    before = open_run(smoke(), "emodb").settings(name)
    changed = {
        group for group, change in CHANGES.items() if open_run(smoke(**change), "emodb").settings(name) != before
    }
    assert changed == groups


@pytest.mark.parametrize("name", list(NOTEBOOKS))
def test_corpus_wide_stages_are_shared_and_the_others_belong_to_a_split(name):
    shared = name in ("waveforms", "spectrograms")
    first = open_run(smoke(), "emodb", "random", 0).settings(name)
    assert (open_run(smoke(), "emodb", "random", 1).settings(name) == first) is shared
    assert (open_run(smoke(), "emodb", "speaker", 0).settings(name) == first) is shared


@pytest.mark.parametrize("corpus", [{"synthetic": {"speakers": 9}}, {"synthetic": {"seed": 1}}, {"reader": "own.csv"}])
def test_every_stage_depends_on_which_corpus_it_is_about(corpus):
    # Otherwise a profile whose corpus was changed would go on with the waveforms of the one before.
    before, after = open_run(smoke(), "emodb"), open_run(smoke(corpora={"emodb": corpus}), "emodb")
    assert [name for name in NOTEBOOKS if after.settings(name) == before.settings(name)] == []


@pytest.mark.parametrize("name", list(NOTEBOOKS))
def test_a_stage_does_not_depend_on_what_the_corpus_is_called(name):
    renamed = smoke(corpora={"emodb": {"title": "Berlin", "note": "another note"}})
    assert open_run(renamed, "emodb").settings(name) == open_run(smoke(), "emodb").settings(name)


def test_a_stage_is_made_once(home):
    run, calls = open_run("smoke", "emodb"), []

    def work(folder: Path) -> None:
        calls.append(folder.name)
        (folder / "clips.csv").write_text("clip\n")

    for _ in range(3):
        assert run.make("waveforms", work) == home / "runs/smoke/emodb/waveforms"
    assert calls == ["waveforms.partial"]


def test_a_stage_that_failed_is_made_again(home):
    run, calls = open_run("smoke", "emodb"), []

    def work(folder: Path) -> None:
        calls.append((folder / "checkpoint").exists())
        (folder / "checkpoint").touch()
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.make("baseline", work)
    assert not (run.folder / "run.json").exists()
    run.make("baseline", work)
    assert calls == [False, True]  # the second attempt found the first one's checkpoint


def test_a_stage_of_a_changed_profile_is_refused_and_not_overwritten(home):
    run = open_run(smoke(training={"lr": 0.25}), "emodb")
    run.make("baseline", lambda folder: (folder / "model").write_text("old"))
    other = open_run(smoke(training={"lr": 0.5}), "emodb")
    with pytest.raises(SamsgError, match=r"training\.lr was 0\.25 and is now 0\.5"):
        other.make("baseline", lambda folder: (folder / "model").write_text("new"))
    with pytest.raises(SamsgError, match=r"training\.lr was"):
        other.require("baseline")
    assert (run.require("baseline") / "model").read_text() == "old"


@pytest.mark.parametrize(("name", "notebook"), list(NOTEBOOKS.items()))
def test_what_is_required_names_the_notebook_that_makes_it(home, name, notebook):
    assert (REPOSITORY / "notebooks" / f"{notebook}.ipynb").is_file()
    with pytest.raises(
        SamsgError, match=rf"'{name}' of emodb \(speaker, seed 2\).*notebook {notebook}\.ipynb makes it"
    ):
        open_run("smoke", "emodb", "speaker", 2).require(name)


def test_run_json_says_what_produced_the_results(home):
    run = open_run("smoke", "emodb", "speaker", 2)
    run.make("waveforms", lambda folder: (folder / "fingerprint.txt").write_text("abc\n"))
    run.make("baseline", lambda folder: None)
    run.make("probe", lambda folder: None)
    assert contents(home) == {
        "runs/smoke/emodb/run.json",
        "runs/smoke/emodb/waveforms/fingerprint.txt",
        "runs/smoke/emodb/waveforms/settings.json",
        "runs/smoke/emodb/speaker/seed2/run.json",
        "runs/smoke/emodb/speaker/seed2/baseline/settings.json",
        "runs/smoke/emodb/speaker/seed2/probe/settings.json",
    }
    record = json.loads((run.folder / "run.json").read_text())
    assert (record["corpus"], record["protocol"], record["seed"]) == ("emodb", "speaker", 2)
    assert Profile(**record["profile"]) == run.profile
    assert record["corpus_fingerprint"] == run.settings("probe")["fingerprint"] == "abc"
    assert set(record["stages"]) == {"baseline", "probe"}
    for made in record["stages"].values():
        assert made["versions"] == {name: importlib.metadata.version(name) for name in PACKAGES}
        assert made["python"] == platform.python_version()
        assert made["seconds"] >= 0
        assert made["code"]
        assert made["gpu"]
        assert made["finished"].endswith("Z")
    corpus_record = json.loads((run.corpus_folder / "run.json").read_text())
    assert set(corpus_record["stages"]) == {"waveforms"}
    assert "seed" not in corpus_record


def test_the_code_revision_is_unknown_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runs.code_revision() == "unknown"


def test_versions_are_one_line():
    line = runs.versions()
    assert "\n" not in line
    assert all(f"{name} {importlib.metadata.version(name)}" in line for name in PACKAGES)


# What is there to report


def made(profile: Profile, corpus: str, seed: int, *names: str) -> None:
    for name in names:
        open_run(profile, corpus, "random", seed).make(name, lambda folder: None)


def test_finished_runs_are_found_whichever_they_are(home):
    profile = smoke(seeds=[0, 1, 2])
    made(profile, "emodb", 0, "baseline", "probe")
    made(profile, "emodb", 2, "baseline", "probe")
    made(profile, "savee", 1, "baseline")
    assert finished_runs(profile) == {"emodb": [0, 2]}
    assert finished_runs(profile, last="baseline") == {"savee": [1], "emodb": [0, 2]}
    assert finished_runs(profile, corpora=["emodb"], seeds=[0]) == {"emodb": [0]}


def test_nothing_finished_is_an_error_that_says_what_to_run(home):
    with pytest.raises(
        SamsgError, match=r"No corpus of savee, emodb, crema_d is finished under profile 'smoke'.*01 to 06"
    ):
        finished_runs(smoke())


def test_a_run_that_was_asked_for_must_be_finished(home):
    profile = smoke(seeds=[0, 1])
    made(profile, "emodb", 0, "probe")
    with pytest.raises(SamsgError, match=r"'probe' of emodb \(random, seed 1\).*06_linear_probe\.ipynb"):
        finished_runs(profile, corpora=["emodb"], seeds=[0, 1])
