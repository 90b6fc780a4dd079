"""Splits: the paper's test sets clip by clip, and nothing shared between parts that a protocol keeps apart."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samsg.corpora.splits import PARTS, folds, split
from samsg.settings import SamsgError


def corpus(counts: dict[str, int]) -> pd.DataFrame:
    """A manifest with so many clips of each emotion; speakers and sentences take turns."""
    emotions = [emotion for emotion, count in counts.items() for _ in range(count)]
    number = np.arange(len(emotions))
    return pd.DataFrame(
        {
            "clip": [f"clip{n:04d}" for n in number],
            "emotion": emotions,
            "speaker": [f"s{n % 5}" for n in number],
            "sentence": [f"t{n % 12}" for n in number],
        }
    )


def supports(parts: pd.DataFrame, part: str) -> dict[str, int]:
    return parts.loc[parts["part"] == part, "emotion"].value_counts().sort_index().to_dict()


@pytest.mark.parametrize("seed", [0, 1, 2024])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("savee", {"anger": 9, "disgust": 9, "fear": 9, "happiness": 9, "neutral": 18, "sadness": 9, "surprise": 9}),
        ("emodb", {"anger": 19, "boredom": 12, "disgust": 7, "fear": 11, "happiness": 11, "neutral": 12, "sadness": 9}),
    ],
)
def test_supports_are_exactly_those_that_figure_5_shows_under_any_seed(official, name, expected, seed):
    # Each emotion gets the whole part of its share, and the clips that are left go to the largest fractions, which
    # differ: the seed has no say in how many, only in which.
    assert supports(split(official[name], seed=seed), "test") == expected


@pytest.mark.parametrize("seed", [0, 1, 2024])
def test_supports_of_crema_d_are_about_191_each_and_163_neutral(official, seed):
    found = supports(split(official["crema_d"], seed=seed), "test")
    assert found.pop("neutral") == 163  # 1087 * 1117 / 7442 = 163.2
    # 1271 * 1117 / 7442 = 190.8: equal fractions for 4 clips among 5 emotions, so chance leaves one out.
    assert sorted(found.values()) == [190, 191, 191, 191, 191]


@pytest.mark.parametrize("name", ["savee", "emodb", "crema_d"])
def test_validation_is_stratified_as_test_is_to_one_clip(official, name):
    parts = split(official[name])
    test, validation = supports(parts, "test"), supports(parts, "validation")
    assert max(abs(test[emotion] - validation[emotion]) for emotion in test) <= 1


@pytest.mark.parametrize(("name", "n"), [("savee", 72), ("emodb", 81), ("crema_d", 1117)])
def test_test_and_validation_sets_have_the_papers_sizes(official, name, n):
    counts = split(official[name])["part"].value_counts()
    assert counts["test"] == counts["validation"] == n == math.ceil(0.15 * len(official[name]))
    assert counts["train"] == len(official[name]) - 2 * n


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(3, 40), min_size=2, max_size=7),
    st.sampled_from(["random", "speaker", "sentence"]),
    st.integers(0, 50),
)
@example([3, 3], "speaker", 0)  # more speakers than clips of any emotion
def test_every_clip_is_in_one_part_and_nothing_else_changes(counts, protocol, seed):
    manifest = corpus({f"e{n}": count for n, count in enumerate(counts)})
    parts = split(manifest, protocol, seed)
    assert parts.drop(columns="part").equals(manifest)
    assert set(parts["part"]) == set(PARTS)
    assert "part" not in manifest


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(3, 60), min_size=2, max_size=7), st.integers(0, 50))
def test_each_part_holds_each_emotions_share_to_one_clip(counts, seed):
    manifest = corpus({f"e{n}": count for n, count in enumerate(counts)})
    held_out = max(math.ceil(0.15 * len(manifest)), len(counts))
    parts = split(manifest, seed=seed)
    assert (parts["part"] == "test").sum() == (parts["part"] == "validation").sum() == held_out
    for emotion, count in manifest["emotion"].value_counts().items():
        share = count * held_out / len(manifest)
        assert abs(supports(parts, "test").get(emotion, 0) - share) < 1
        # What is left is divided in turn, so validation's share moves with what test took: one clip more at most.
        assert abs(supports(parts, "validation").get(emotion, 0) - share) < 2
        assert supports(parts, "train").get(emotion, 0) >= 1


def test_each_part_of_the_smallest_corpus_has_each_emotion():
    parts = split(corpus({"calm": 3, "glad": 3, "sad": 3}))
    assert parts.groupby(["emotion", "part"]).size().to_dict() == {
        (emotion, part): 1 for emotion in ("calm", "glad", "sad") for part in PARTS
    }


@pytest.mark.parametrize("protocol", ["random", "speaker", "sentence"])
def test_a_seed_repeats_and_another_differs(official, protocol):
    first = split(official["emodb"], protocol, 3)["part"]
    assert first.equals(split(official["emodb"], protocol, 3)["part"])
    assert not first.equals(split(official["emodb"], protocol, 4)["part"])


def test_a_split_does_not_depend_on_the_order_of_columns_or_on_the_index(official):
    manifest = official["emodb"]
    shuffled = manifest[reversed(manifest.columns)].set_axis(np.arange(len(manifest)) + 100)
    assert split(shuffled)["part"].tolist() == split(manifest)["part"].tolist()


@pytest.mark.parametrize("protocol", ["speaker", "sentence"])
@pytest.mark.parametrize("name", ["savee", "emodb", "crema_d"])
def test_no_speaker_or_sentence_is_in_two_parts(official, name, protocol):
    for seed in (0, 1, 7):
        parts = split(official[name], protocol, seed)
        assert parts.groupby(protocol)["part"].nunique().eq(1).all()
        assert set(parts["part"]) == set(PARTS)


@pytest.mark.parametrize(
    ("name", "protocol", "k"),
    [
        ("savee", "speaker", 4),
        ("savee", "sentence", 10),
        ("emodb", "speaker", 10),
        ("emodb", "sentence", 10),
        ("crema_d", "speaker", 10),
        ("crema_d", "sentence", 10),
    ],
)
def test_the_folds_test_every_clip_once_and_validate_every_clip_once(official, name, protocol, k):
    assert folds(official[name], protocol) == k
    parts = pd.DataFrame({seed: split(official[name], protocol, seed)["part"] for seed in range(k)})
    assert (parts == "test").sum(axis=1).eq(1).all()
    assert (parts == "validation").sum(axis=1).eq(1).all()
    assert (parts == "test").any().all()


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 14), st.integers(3, 40), st.integers(0, 1000))
@example(12, 3, 0)
def test_unequal_groups_are_dealt_just_as_evenly(n_groups, per_emotion, seed):
    manifest = corpus({"calm": per_emotion, "glad": 2 * per_emotion, "sad": 3 * per_emotion})
    shares = 1 / np.arange(1, n_groups + 1)  # the first speaks most, the last hardly at all
    speakers = np.random.default_rng(seed).choice(n_groups, len(manifest), p=shares / shares.sum())
    speakers[:3] = range(3)
    manifest["speaker"] = [f"s{speaker}" for speaker in speakers]
    k = folds(manifest, "speaker")
    parts = pd.DataFrame({fold: split(manifest, "speaker", fold)["part"] for fold in range(k)})
    assert 3 <= k <= 10
    assert (parts == "test").sum(axis=1).eq(1).all()
    assert (parts == "validation").sum(axis=1).eq(1).all()
    assert (parts == "test").any().all()
    for fold in range(k):
        assert manifest.assign(part=parts[fold]).groupby("speaker")["part"].nunique().eq(1).all()


def test_the_next_deal_mixes_the_folds_anew(official):
    deals = [
        {frozenset(parts.loc[parts["part"] == "test", "speaker"]) for parts in drawn}
        for drawn in (
            [split(official["crema_d"], "speaker", seed) for seed in range(10)],
            [split(official["crema_d"], "speaker", seed) for seed in range(10, 20)],
        )
    ]
    assert len(deals[0]) == len(deals[1]) == 10
    assert deals[0] != deals[1]


def test_leaving_one_speaker_out_leaves_one_out(official):
    tested = [split(official["savee"], "speaker", seed).query("part == 'test'")["speaker"] for seed in range(4)]
    assert [speakers.nunique() for speakers in tested] == [1, 1, 1, 1]
    assert {speakers.iloc[0] for speakers in tested} == {"DC", "JE", "JK", "KL"}


def test_chance_has_no_folds(official):
    assert folds(official["emodb"], "random") == 1


@pytest.mark.parametrize("protocol", ["random", "speaker"])
def test_a_class_of_fewer_than_three_clips_is_refused_by_name(protocol):
    with pytest.raises(SamsgError, match=r"has 2 clips of 'sad'; 3 are needed at least.*leave that class out"):
        split(corpus({"calm": 9, "sad": 2, "glad": 9}), protocol)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(SamsgError, match=r"no protocol 'speakers'; .* Did you mean 'speaker'\?"):
        split(corpus({"calm": 9, "glad": 9}), "speakers")


@pytest.mark.parametrize("protocol", ["speaker", "sentence"])
def test_fewer_than_three_groups_are_refused(protocol):
    manifest = corpus({"calm": 9, "glad": 9})
    manifest[protocol] = ["one", "two"] * 9
    with pytest.raises(SamsgError, match=f"Protocol '{protocol}' needs .* 3 of them at least; found 2"):
        split(manifest, protocol)


@pytest.mark.parametrize("protocol", ["speaker", "sentence"])
def test_clips_without_a_speaker_are_refused(protocol):
    manifest = corpus({"calm": 9, "glad": 9})
    manifest.loc[4, protocol] = ""
    with pytest.raises(SamsgError, match="and clips without one"):
        split(manifest, protocol)


@pytest.mark.parametrize("protocol", ["speaker", "sentence"])
def test_a_manifest_that_does_not_say_the_speaker_is_refused(protocol):
    with pytest.raises(SamsgError, match=f"Protocol '{protocol}' needs"):
        split(corpus({"calm": 9, "glad": 9}).drop(columns=protocol), protocol)


def test_a_published_split_is_kept() -> None:
    parts = ["train"] * 4 + ["validation", "test"] * 2
    manifest = pd.DataFrame({"clip": [*"abcdefgh"], "emotion": ["calm", "anger"] * 4, "part": parts})
    assert split(manifest, "random", 3)["part"].tolist() == parts
    with pytest.raises(SamsgError, match="'dev' and lacks validation"):
        split(manifest.replace({"part": {"validation": "dev"}}))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["train", "validation", "test", "dev"], "holds 'dev' and lacks nothing; every clip needs one of train, valid"),
        (["train", "test", "train", "test"], "holds nothing unknown and lacks validation; every clip needs"),
    ],
)
def test_a_published_split_with_a_part_too_many_or_too_few_is_refused(parts: list[str], message: str) -> None:
    with pytest.raises(SamsgError, match=message):
        split(corpus({"calm": 4, "glad": 4}).assign(part=parts * 2))


def test_a_split_is_by_chance_and_of_seed_0_unless_told_otherwise() -> None:
    manifest = corpus({"calm": 20, "glad": 20})
    assert split(manifest).equals(split(manifest, "random", 0))
    assert not split(manifest).equals(split(manifest, "random", 1))
