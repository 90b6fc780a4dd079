"""Profiles: the paper's numbers, what extends what, and what is refused with which words."""

from pathlib import Path

import pytest
import yaml

from samsg.settings import REPOSITORY, Profile, SamsgError, home, load_profile, nearest, profile_names

SHIPPED = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))


def written(folder: Path, name: str, content: object) -> str:
    """The path of a profile of one's own."""
    path = folder / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def differing(one: dict, other: dict, place: str = "") -> set[str]:
    """The dotted names of the settings in which two dumped profiles differ."""
    found = set()
    for key in one.keys() | other.keys():
        name, mine, its = f"{place}{key}", one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(its, dict):
            found |= differing(mine, its, f"{name}.")
        elif mine != its:
            found.add(name)
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_loads_under_its_own_name(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    assert profile.corpora


def test_the_names_of_the_profiles_are_those_of_the_files():
    assert profile_names() == SHIPPED
    assert {"paper", "demo", "smoke", "scratch"} <= set(SHIPPED)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("audio.sample_rate", 16_000),
        ("audio.seconds", 4.0),
        ("audio.n_samples", 64_000),
        ("audio.n_fft", 1024),
        ("audio.hop", 64),
        ("audio.window", 512),
        ("audio.n_mels", 128),
        ("audio.n_frames", 1001),
        ("audio.scaling", "minmax"),
        ("views.names", ("clean", "noise", "shift", "speed")),
        ("model.size", "base"),
        ("model.depth", None),
        ("model.patch", 16),
        ("model.stride", 10),
        ("model.weights", "imagenet"),
        ("model.normalize", "imagenet"),
        ("rollout.alpha", 0.9),
        ("rollout.order", "abnar"),
        ("rollout.token", "cls"),
        ("mask.strategy", "rollout"),
        ("mask.threshold", 0.5),
        ("mask.fill", 0.0),
        ("training.lr", 1e-5),
        ("training.halve_every", 5),
        ("training.epochs", 25),
        ("training.batch", 4),
        ("training.warmup", 0),
        ("samsg.epochs", None),
        ("samsg.lr", None),
        ("samsg.start", "baseline"),
        ("samsg.reconstruction_weight", 1.0),
        ("samsg.classification_weight", 1.0),
        ("probe.epochs", None),
        ("probe.lr", None),
        ("protocols", ("random",)),
    ],
)
def test_the_paper_profile_has_the_numbers_of_section_iv_b(setting, value):
    found: object = load_profile("paper")
    for part in setting.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_paper_profile_is_about_the_three_corpora_and_says_nothing_more_of_them():
    profile = load_profile("paper")
    assert [profile.title(corpus) for corpus in profile.corpora] == ["SAVEE", "EmoDB", "CREMA-D"]
    assert [profile.note(corpus) for corpus in profile.corpora] == ["", "", ""]
    assert profile.note("emodb", "speaker") == "split by speaker"


def test_every_corpus_of_the_demo_says_that_it_is_synthetic():
    profile = load_profile("demo")
    assert {profile.note(corpus) for corpus in profile.corpora} == {"synthetic speech"}


def test_a_cut_corpus_says_so():
    assert load_profile("emodb_first2s").note("emodb") == "first 2 s of each recording"


def test_a_profile_changes_what_it_names_and_inherits_the_rest():
    paper, scratch = load_profile("paper").model_dump(), load_profile("scratch").model_dump()
    assert differing(paper, scratch) == {
        "name", "description", "mask.scale", "model.weights", "training.epochs", "training.lr", "training.halve_every",
        "training.warmup", "samsg.epochs", "samsg.lr", "probe.epochs", "probe.lr",
    }  # fmt: skip


def test_a_profile_of_ones_own_extends_over_several_steps(tmp_path):
    middle = written(tmp_path, "middle", {"extends": "smoke", "mask": {"threshold": 0.4}, "training": {"batch": 2}})
    profile = load_profile(written(tmp_path, "mine", {"extends": middle, "training": {"epochs": 3}}))
    assert differing(load_profile("smoke").model_dump(), profile.model_dump()) == {
        "name", "mask.threshold", "training.batch", "training.epochs",
    }  # fmt: skip
    assert (profile.name, profile.mask.threshold, profile.training.batch, profile.training.epochs) == (
        "mine",
        0.4,
        2,
        3,
    )


def test_a_profile_that_names_corpora_means_those_alone(tmp_path):
    content = {"extends": "demo", "corpora": {"emodb": {"note": "six voices"}, "own": {"reader": "own.csv"}}}
    profile = load_profile(written(tmp_path, "mine", content))
    assert list(profile.corpora) == ["emodb", "own"]
    assert profile.title("emodb") == "EmoDB"  # kept from the demo
    assert profile.note("emodb") == "six voices"
    assert profile.corpus("own").reader == "own.csv"


def test_overrides_change_a_setting_and_leave_its_neighbours():
    profile = load_profile("demo", mask={"threshold": 0.4}, seeds=[1, 2])
    assert differing(load_profile("demo").model_dump(), profile.model_dump()) == {"mask.threshold", "seeds"}
    assert profile.mask.threshold == 0.4
    assert profile.seeds == (1, 2)


def test_a_learning_rate_without_a_point_is_a_number(tmp_path):
    # YAML 1.1 reads 1e-5 as text.
    assert load_profile(written(tmp_path, "mine", "extends: paper\ntraining: {lr: 1e-4}\n")).training.lr == 1e-4


def test_a_profile_does_not_change():
    with pytest.raises(Exception, match="frozen"):
        load_profile("demo").mask.threshold = 0.3


@pytest.mark.parametrize(
    ("asked", "meant"), [("dmeo", "demo"), ("papr", "paper"), ("smok", "smoke"), ("scrach", "scratch")]
)
def test_an_unknown_profile_names_the_nearest(asked, meant):
    with pytest.raises(SamsgError, match=rf"no profile '{asked}'.*Did you mean '{meant}'\?"):
        load_profile(asked)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SamsgError, match=r"nowhere\.yaml"):
        load_profile(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("overrides", "place", "meant"),
    [
        ({"maks": {}}, "maks", "mask"),
        ({"mask": {"treshold": 0.4}}, "mask.treshold", "threshold"),
        ({"training": {"epoch": 3}}, "training.epoch", "epochs"),
        ({"samsg": {"strat": "initial"}}, "samsg.strat", "start"),
        ({"corpora": {"emodb": {"titel": "EmoDB"}}}, "corpora.emodb.titel", "title"),
        ({"corpora": {"emodb": {"synthetic": {"speekers": 3}}}}, "corpora.emodb.synthetic.speekers", "speakers"),
    ],
)
def test_an_unknown_setting_names_the_nearest(overrides, place, meant):
    with pytest.raises(SamsgError, match=rf"{place}: there is no such setting; .*Did you mean '{meant}'\?"):
        load_profile("demo", **overrides)


def test_an_unknown_corpus_names_the_nearest():
    with pytest.raises(SamsgError, match=r"no corpus 'emdb'; known: crema_d, emodb, savee\. Did you mean 'emodb'\?"):
        load_profile("demo").corpus("emdb")


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(SamsgError, match=r"no protocol 'speeker'; known: .* Did you mean 'speaker'\?"):
        load_profile("demo", protocols=["random", "speeker"])


@pytest.mark.parametrize(
    ("group", "setting", "value"),
    [
        ("audio", "sample_rate", 0),
        ("audio", "seconds", -1),
        ("audio", "hop", 0),
        ("audio", "n_mels", 15),
        ("audio", "floor", 0),
        ("audio", "scaling", "max"),
        ("views", "names", ["noise"]),
        ("views", "names", ["clean", "clean"]),
        ("views", "names", ["clean", "echo"]),
        ("views", "shift", -0.1),
        ("views", "snr", [30.0, 15.0]),
        ("views", "speed", [0.0, 1.1]),
        ("views", "speed", [1.1, 0.9]),
        ("model", "size", "large"),
        ("model", "depth", 0),
        ("model", "stride", 0),
        ("model", "normalize", "audioset"),
        ("rollout", "alpha", -0.1),
        ("rollout", "alpha", 1.1),
        ("rollout", "alpha", float("nan")),
        ("rollout", "order", "reverse"),
        ("rollout", "token", "dist"),
        ("mask", "strategy", "darkest"),
        ("mask", "threshold", -0.01),
        ("mask", "threshold", 1.01),
        ("mask", "threshold", "half"),
        ("training", "epochs", 0),
        ("training", "epochs", 2.5),
        ("training", "batch", 0),
        ("training", "lr", 0),
        ("training", "lr", None),
        ("training", "halve_every", 0),
        ("training", "warmup", -1),
        ("training", "precision", "16-mixed"),
        ("training", "device", "tpu"),
        ("samsg", "reconstruction_weight", -1),
        ("samsg", "epochs", 0),
        ("probe", "head", "old"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(group, setting, value):
    with pytest.raises(SamsgError, match=rf"Profile 'demo' has settings that cannot be: .*{group}\.{setting}"):
        load_profile("demo", **{group: {setting: value}})


def test_a_window_longer_than_the_transform_is_refused():
    with pytest.raises(SamsgError, match=r"window \(2048\) must not be longer than n_fft \(1024\)"):
        load_profile("demo", audio={"window": 2048})


def test_negative_seeds_are_refused_when_the_profile_is_read():
    with pytest.raises(SamsgError, match="seeds"):
        load_profile("demo", seeds=[-1])


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(SamsgError, match=r"mask\.threshold.*training\.epochs"):
        load_profile("demo", mask={"threshold": 2}, training={"epochs": 0})


def test_a_profile_without_corpora_is_refused(tmp_path):
    with pytest.raises(SamsgError, match="corpora: Field required"):
        load_profile(written(tmp_path, "mine", {"seeds": [0]}))


def test_a_profile_that_extends_itself_is_refused(tmp_path):
    path = str(tmp_path / "circle.yaml")
    written(tmp_path, "circle", {"extends": path})
    with pytest.raises(SamsgError, match="extends itself"):
        load_profile(path)


def test_profiles_that_extend_each_other_are_refused(tmp_path):
    one, other = str(tmp_path / "one.yaml"), str(tmp_path / "other.yaml")
    written(tmp_path, "one", {"extends": other})
    written(tmp_path, "other", {"extends": one})
    with pytest.raises(SamsgError, match="extends itself"):
        load_profile(one)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("mask: {threshold: 0.4", "cannot be read as YAML"),
        ("- demo\n- paper\n", "holds a list"),
        ("demo", "holds a str"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path, content, words):
    path = written(tmp_path, "broken", content)
    with pytest.raises(SamsgError, match=rf"broken\.yaml.*{words}"):
        load_profile(path)


def test_a_file_in_another_encoding_is_refused_by_name(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("description: Gefühle\n".encode("latin-1"))
    with pytest.raises(SamsgError, match=r"latin\.yaml cannot be read as YAML"):
        load_profile(tmp_path / "latin.yaml")


def test_frames_are_centred():
    # A frame at sample 0, one a hop after it, and the last within the clip: floor(samples / hop) + 1.
    audio = load_profile("paper", audio={"seconds": 0.1, "hop": 300}).audio
    assert (audio.n_samples, audio.n_frames) == (1600, 6)


def test_the_home_folder_is_the_repository_unless_said_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("SAMSG_HOME", raising=False)
    assert home() == REPOSITORY
    monkeypatch.setenv("SAMSG_HOME", str(tmp_path))
    assert home() == tmp_path.resolve()


def test_sounds_lie_below_home_unless_the_root_is_absolute(home, tmp_path):
    assert load_profile("paper").root("emodb") == home / "data/emodb"
    assert load_profile("demo").root("savee") == home / "data/synthetic/savee"
    assert load_profile("paper", corpora={"emodb": {"root": str(tmp_path / "x")}}).root("emodb") == tmp_path / "x"


def test_nearest_lists_what_is_known_and_guesses_only_what_is_close():
    assert nearest("speeker", ["speaker", "random"]) == "known: random, speaker. Did you mean 'speaker'?"
    assert nearest("zzz", ["speaker", "random"]) == "known: random, speaker."


def test_a_profile_survives_json():
    profile = load_profile("demo")
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
