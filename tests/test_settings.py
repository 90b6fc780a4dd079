"""Profiles: the paper's numbers, how one profile extends another, and which settings are refused with which message."""

import contextlib
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samsg.settings import REPOSITORY, Profile, SamsgError, load_profile, profile_names


def write(folder: Path, name: str, content: object) -> str:
    """Write a profile; its path."""
    path = folder / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


PAPER = {
    **{"audio.sample_rate": 16_000, "audio.seconds": 4.0, "audio.n_samples": 64_000, "audio.n_fft": 1024},
    **{"audio.hop": 64, "audio.window": 512, "audio.n_mels": 128, "audio.n_frames": 1001},
    **{"views.names": ("clean", "noise", "shift", "speed"), "model.size": "base", "model.depth": None},
    **{"model.patch": 16, "model.stride": 10, "model.weights": "imagenet", "model.normalize": "imagenet"},
    **{"rollout.alpha": 0.9, "rollout.reading": "output_to_input", "rollout.token": "cls"},
    **{"mask.strategy": "rollout", "mask.select": "threshold", "mask.threshold": 0.5, "mask.fill": 0.0},
    **{"training.lr": 1e-5, "training.head_lr": None, "training.schedule": "halving", "training.halve_every": 5},
    **{"training.epochs": 25, "training.batch": 4, "training.warmup": 0, "training.weight_decay": 0.0},
    **{"samsg.start": "baseline", "samsg.epochs": None, "samsg.reconstruction_weight": 1.0},
    **{"samsg.classification_weight": 1.0, "probe.head": "new", "protocols": ("random",)},
}


def test_the_paper_profile_has_the_numbers_of_section_iv_b() -> None:
    profile = load_profile("paper")
    assert {name: attrgetter(name)(profile) for name in PAPER} == PAPER


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads_under_its_own_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name and profile.description and profile.corpora
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_every_corpus_that_is_not_the_papers_has_a_note() -> None:
    paper, demo = load_profile("paper"), load_profile("demo")
    assert [paper.title(corpus) for corpus in paper.corpora] == ["SAVEE", "EmoDB", "CREMA-D"]
    assert {paper.note(corpus) for corpus in paper.corpora} == {""}
    assert {demo.note(corpus) for corpus in demo.corpora} == {"synthetic speech"}
    assert demo.note("emodb", "speaker") == "synthetic speech, split by speaker"
    assert load_profile("emodb_2s").note("emodb") == "first 2 s of each recording"


def test_a_profile_extends_another_over_several_files_and_overrides_change_it(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-5 as text.
    write(tmp_path, "middle", "extends: smoke\ntraining: {batch: 2, lr: 1e-5}\n")
    path = write(tmp_path, "mine", {"extends": "middle.yaml", "training": {"epochs": 3}})
    mine = load_profile(path, mask={"threshold": 0.4})
    changes = {"name": "mine", "training": {"lr": 1e-5, "batch": 2, "epochs": 3}, "mask": {"threshold": 0.4}}
    assert mine == load_profile("smoke", **changes)
    with pytest.raises(Exception, match="frozen"):
        mine.mask.threshold = 0.3


def test_a_profile_that_names_corpora_has_no_others_and_inherits_their_settings(tmp_path: Path) -> None:
    content = {"extends": "demo", "corpora": {"emodb": {"note": "six voices"}, "own": {"reader": "own.csv"}}}
    profile = load_profile(write(tmp_path, "mine", content))
    assert list(profile.corpora) == ["emodb", "own"]
    assert (profile.title("emodb"), profile.note("emodb")) == ("EmoDB", "six voices")
    write(tmp_path, "parent", "seeds: [1]\n")  # has no corpora to inherit
    child = load_profile(write(tmp_path, "child", {"extends": "parent.yaml", "corpora": {"own": {}}}))
    assert (list(child.corpora), child.seeds) == (["own"], (1,))


def test_sounds_are_below_home_unless_the_path_is_absolute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_profile("demo").root("savee") == home / "data/synthetic/savee"
    profile = load_profile("paper", corpora={"savee": {"root": "/mnt/x"}, "own": {"reader": "own/list.csv"}})
    assert (profile.root("savee"), profile.root("own")) == (Path("/mnt/x"), home / "own")
    assert (profile.reader("savee"), profile.reader("own")) == ("savee", str(home / "own/list.csv"))
    assert profile.root("emodb") == home / "data/emodb"
    monkeypatch.delenv("SAMSG_HOME")
    assert profile.root("emodb") == REPOSITORY / "data/emodb"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mask": {"treshold": 0.4}}, r"mask\.treshold: unknown setting; did you mean .threshold"),
        ({"audio": {"window": 2048}}, r"audio\.window \(2048\) exceeds audio\.n_fft \(1024\)"),
        ({"rollout": {"order": "abnar"}}, r"rollout\.order: is now rollout\.reading"),
        ({"views": {"names": ["noise", "clean"]}}, r"views\.names must have 'clean' first"),
        ({"views": {"names": ["clean", "clean"]}}, r"views\.names .* each view once"),
    ],
)
def test_an_invalid_setting_is_refused_with_what_is_meant(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(SamsgError, match=rf"Profile 'demo' has invalid settings: .*{message}"):
        load_profile("demo", **overrides)


OUT_OF_RANGE = {
    "audio": {"sample_rate": 0, "seconds": -1, "hop": 0, "n_mels": 15, "floor": 0},
    "views": {"shift": -0.1, "speed": [0.0, 1.1]},
    "rollout": {"alpha": 1.1, "reading": "abnar", "token": "dist", "discard_ratio": 1.0},
    "mask": {"strategy": "darkest", "select": "otsu", "threshold": "half", "padding": "no", "fill": float("nan")},
    "training": {"epochs": 2.5, "batch": 0, "lr": None, "head_lr": 0, "schedule": "cosine", "halve_every": 0},
    "samsg": {"reconstruction_weight": -1, "epochs": 0, "lr": float("inf")},
}


def test_values_out_of_range_are_refused_by_name_all_at_once() -> None:
    with pytest.raises(SamsgError) as caught:
        load_profile("demo", **OUT_OF_RANGE)
    places = re.findall(r"(?:settings:|\);) (\w+\.\w+)", str(caught.value))
    assert set(places) == {f"{group}.{name}" for group, names in OUT_OF_RANGE.items() for name in names}


def test_names_that_differ_in_case_only_are_told_apart() -> None:
    corpora = {name: {"reader": "mine.csv"} for name in ("Mine", "mine")}
    assert load_profile("demo", corpora=corpora).corpus("Mine").reader == "mine.csv"


@pytest.mark.parametrize("name", ["../x", "..", "", "a b", "a\nb", "{x}", "$(x)", "a'b", "x" * 201])
def test_names_that_leave_a_folder_or_reach_a_shell_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SamsgError, match=r"name: String should match pattern"):
        load_profile("demo", name=name)
    with pytest.raises(SamsgError, match=r"(?s)corpora.*String should match pattern"):
        load_profile("demo", corpora={name: {}})
    assert load_profile("demo", name="Größe_2.a-b").name == "Größe_2.a-b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mask: {threshold: 0.4", r"broken\.yaml cannot be read as YAML"),
        ("- demo\n", r"broken\.yaml cannot be read as YAML with names and values"),
        ("seeds: [0]", "corpora: Field required"),
        ("extends: demo\nseeds: [-1]", r"seeds\.0"),
        ("extends: other.yaml", "extends itself"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, "other", {"extends": "broken.yaml"})
    with pytest.raises(SamsgError, match=message):
        load_profile(write(tmp_path, "broken", content))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["extends", "name", "corpora", "mask", "demo", *": {}[]1-&*!'\"\t\0\nä"]), max_size=20))
def test_any_profile_is_read_or_refused(tmp_path: Path, words: list[str]) -> None:
    for content in ("".join(words), "extends: demo\n" + "".join(words)):
        with contextlib.suppress(SamsgError):
            load_profile(write(tmp_path, "any", content))
