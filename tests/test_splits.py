"""Splits: the paper's test sets clip by clip, and nothing shared between parts that a protocol keeps apart."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samsg.corpora import PARTS, official_list
from samsg.settings import SamsgError
from samsg.splits import folds, split


@pytest.fixture(scope="module")
def official() -> dict[str, pd.DataFrame]:
    """The manifests of the official corpora, from their lists."""
    names = ("savee", "emodb", "crema_d", "ravdess")
    return {name: official_list(name).sort_values("clip", ignore_index=True) for name in names}


def corpus(counts: dict[str, int]) -> pd.DataFrame:
    """A manifest with these numbers of clips; speakers and sentences take turns."""
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


@pytest.mark.parametrize("protocol", ["random", "speaker", "sentence"])
def test_a_seed_repeats_and_another_differs(official, protocol):
    first = split(official["emodb"], protocol, 3)["part"]
    assert first.equals(split(official["emodb"], protocol, 3)["part"])
    assert not first.equals(split(official["emodb"], protocol, 4)["part"])
    if protocol == "speaker":  # seed 10 begins another division of the 91 actors into 10 folds
        tests = [split(official["crema_d"], protocol, seed).query("part == 'test'") for seed in range(11)]
        divisions = [set(test["speaker"]) for test in tests]
        assert divisions[10] not in divisions[:10]


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
    assert (parts.groupby(official[name][protocol]).nunique() == 1).all(axis=None)  # each group in one part
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


def test_two_sentences_are_tested_in_turn_on_speakers_who_are_not_trained_on(official):
    manifest = official["ravdess"]
    assert folds(manifest, "sentence") == 2
    assert folds(manifest, "speaker") == 10
    held_out = []
    for seed in range(4):
        parts = split(manifest, "sentence", seed)
        by_part = dict(iter(parts.groupby("part")))
        tested = ["01", "02"][seed % 2]
        assert set(by_part["test"]["sentence"]) == {tested}
        assert len(by_part["test"]) == 720
        for part in ("train", "validation"):
            assert set(by_part[part]["sentence"]) == {"01", "02"} - {tested}
        assert not set(by_part["train"]["speaker"]) & set(by_part["validation"]["speaker"])
        assert by_part["validation"]["speaker"].nunique() == 4  # 15 % of 24 actors
        held_out.append(set(by_part["validation"]["speaker"]))
    assert held_out[0] == held_out[1] != held_out[2] == held_out[3]


def test_two_sentences_need_two_speakers():
    manifest = corpus({"calm": 9, "glad": 9}).assign(sentence=["x", "y"] * 9, speaker="ann")
    with pytest.raises(SamsgError, match="needs a speaker for each clip, 2 speakers at least; found 1"):
        split(manifest, "sentence")
    parts = split(manifest.assign(speaker=["ann"] * 9 + ["bob"] * 9), "sentence")
    assert parts["part"].value_counts().to_dict().keys() == set(PARTS)


def test_a_random_split_has_no_folds_and_is_the_default(official):
    assert folds(official["emodb"], "random") == 1
    assert split(official["emodb"]).equals(split(official["emodb"], "random", 0))


@pytest.mark.parametrize("protocol", ["random", "speaker"])
def test_a_class_of_fewer_than_three_clips_is_refused_by_name(protocol):
    with pytest.raises(SamsgError, match=r"has 2 clips of 'sad'; a split needs 3.*leave that class out"):
        split(corpus({"calm": 9, "sad": 2, "glad": 9}), protocol)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(SamsgError, match=r"no protocol 'speakers'; .* Did you mean 'speaker'\?"):
        split(corpus({"calm": 9, "glad": 9}), "speakers")


def test_too_few_speakers_and_clips_without_one_are_refused():
    manifest = corpus({"calm": 9, "glad": 9})
    with pytest.raises(SamsgError, match="needs a speaker for each clip, 3 speakers at least; found 2, and 0 clips"):
        split(manifest.assign(speaker=["one", "two"] * 9), "speaker")
    with pytest.raises(SamsgError, match="found 5, and 1 clips without one"):
        split(manifest.assign(speaker=["", *manifest["speaker"][1:]]), "speaker")
    with pytest.raises(SamsgError, match=r"needs a sentence for each clip.*found 0, and 18 clips without one"):
        split(manifest.drop(columns="sentence"), "sentence")


def test_a_published_split_is_kept_by_the_random_protocol_alone():
    parts = ["train"] * 4 + ["validation", "test"] * 2
    manifest = corpus({"calm": 4, "glad": 4}).assign(part=parts)
    assert split(manifest, "random", 3)["part"].tolist() == parts
    assert split(manifest, "speaker")["part"].tolist() != parts
