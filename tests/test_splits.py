"""Splits: the paper's test sets clip by clip, and nothing shared between parts that a protocol keeps apart."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samsg.corpora import GRAMMARS, PARTS, official_list
from samsg.settings import PROTOCOLS, SamsgError
from samsg.splits import folds, split

OFFICIAL = {name: official_list(name).sort_values("clip", ignore_index=True) for name in GRAMMARS}


def corpus(counts: dict[str, int]) -> pd.DataFrame:
    """A manifest with these numbers of clips; speakers and sentences take turns."""
    emotions = [emotion for emotion, count in counts.items() for _ in range(count)]
    rows = [(f"clip{n:04d}", emotion, f"s{n % 5}", f"t{n % 12}") for n, emotion in enumerate(emotions)]
    return pd.DataFrame(rows, columns=["clip", "emotion", "speaker", "sentence"])


def supports(parts: pd.DataFrame, part: str) -> dict[str, int]:
    return parts.loc[parts["part"] == part, "emotion"].value_counts().sort_index().to_dict()


@pytest.mark.parametrize("seed", [0, 1, 2024])
def test_supports_are_those_that_figure_5_shows_under_any_seed(seed):
    found = {name: supports(split(OFFICIAL[name], seed=seed), "test") for name in OFFICIAL}
    # The clips left over go to the largest fractions, which differ: the seed decides which clips, not how many.
    assert found["savee"] == dict.fromkeys(GRAMMARS["savee"].emotions.values(), 9) | {"neutral": 18}
    assert [*found["emodb"].values()] == [19, 12, 7, 11, 11, 12, 9]  # in the order of the emotions' names
    assert found["crema_d"].pop("neutral") == 163  # 1087 * 1117 / 7442 = 163.2
    # 1271 * 1117 / 7442 = 190.8: equal fractions for 4 clips among 5 emotions, so chance leaves one out.
    assert sorted(found["crema_d"].values()) == [190, 191, 191, 191, 191]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(3, 40), min_size=2, max_size=7), st.sampled_from(PROTOCOLS), st.integers(0, 50))
@example([3, 3], "speaker", 0)  # more speakers than clips of any emotion
def test_every_clip_is_in_one_part_and_nothing_else_changes(counts, protocol, seed):
    manifest = corpus({f"e{n}": count for n, count in enumerate(counts)})
    parts = split(manifest, protocol, seed)
    assert parts.drop(columns="part").equals(manifest)
    assert set(parts["part"]) == set(PARTS)
    assert "part" not in manifest


@settings(deadline=None, max_examples=12)
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


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_seed_repeats_and_another_differs(protocol):
    first, again, other = (split(OFFICIAL["emodb"], protocol, seed)["part"] for seed in (3, 3, 4))
    assert first.equals(again) and not first.equals(other)
    if protocol == "speaker":  # seed 5 begins another division of the 91 actors into 5 folds
        tests = [split(OFFICIAL["crema_d"], protocol, seed).query("part == 'test'") for seed in range(6)]
        assert set(tests[5]["speaker"]) not in [set(test["speaker"]) for test in tests[:5]]


def assert_folds(manifest: pd.DataFrame, protocol: str) -> None:
    """Each seed keeps groups in one part and tests some clips; all seeds test and validate each clip once."""
    parts = pd.DataFrame({seed: split(manifest, protocol, seed)["part"] for seed in range(folds(manifest, protocol))})
    assert (parts.groupby(manifest[protocol]).nunique() == 1).all(axis=None)
    assert (parts == "test").sum(axis=1).eq(1).all()
    assert (parts == "validation").sum(axis=1).eq(1).all()
    assert (parts == "test").any().all()


@pytest.mark.parametrize("name", ["savee", "emodb", "crema_d"])
@pytest.mark.parametrize("protocol", ["speaker", "sentence"])
def test_the_folds_test_every_clip_once_and_validate_every_clip_once(name, protocol):
    assert folds(OFFICIAL[name], protocol) == (4 if (name, protocol) == ("savee", "speaker") else 5)
    assert_folds(OFFICIAL[name], protocol)


@settings(deadline=None, max_examples=12)
@given(st.integers(3, 14), st.integers(3, 40), st.integers(0, 1000))
@example(12, 3, 0)
def test_unequal_groups_are_dealt_just_as_evenly(n_groups, per_emotion, seed):
    manifest = corpus({"calm": per_emotion, "glad": 2 * per_emotion, "sad": 3 * per_emotion})
    shares = 1 / np.arange(1, n_groups + 1)  # the first speaks most, the last hardly at all
    speakers = np.random.default_rng(seed).choice(n_groups, len(manifest), p=shares / shares.sum())
    speakers[:3] = range(3)
    manifest["speaker"] = [f"s{speaker}" for speaker in speakers]
    assert 3 <= folds(manifest, "speaker") <= 5
    assert_folds(manifest, "speaker")


def test_two_sentences_are_tested_in_turn_on_speakers_who_are_not_trained_on():
    manifest, held_out = OFFICIAL["ravdess"], []
    assert (folds(manifest, "sentence"), folds(manifest, "speaker"), folds(manifest, "random")) == (2, 5, 1)
    for seed in range(4):
        parts = dict(iter(split(manifest, "sentence", seed).groupby("part")))
        tested = ["01", "02"][seed % 2]
        assert set(parts["test"]["sentence"]) == {tested} and len(parts["test"]) == 720
        assert {*parts["train"]["sentence"], *parts["validation"]["sentence"]} == {"01", "02"} - {tested}
        speakers = set(parts["validation"]["speaker"])
        assert len(speakers) == 4 and not speakers & set(parts["train"]["speaker"])  # 15 % of 24 actors
        held_out.append(speakers)
    assert held_out[0] == held_out[1] != held_out[2] == held_out[3]


CALM, TURNS = corpus({"calm": 9, "glad": 9}), ["one", "two"] * 9


@pytest.mark.parametrize(
    ("manifest", "protocol", "message"),
    [
        (corpus({"calm": 9, "sad": 2}), "random", r"has 2 clips of 'sad'; a split needs 3.*leave that class out"),
        (CALM, "speakers", r"no protocol 'speakers'; .* Did you mean 'speaker'\?"),
        (CALM.assign(speaker=TURNS), "speaker", "needs a speaker for each clip, 3 speakers at least; found 2, and 0 "),
        (CALM.assign(speaker=["", *CALM["speaker"][1:]]), "speaker", "found 5, and 1 clips without one"),
        (CALM.assign(sentence="one"), "sentence", "needs a sentence .*, 2 sentences at least; found 1"),
        (CALM.assign(part="train"), "random", "No clip of the published part test or validation can be used"),
        (CALM.assign(sentence=TURNS, speaker="ann"), "sentence", "needs a speaker .*, 2 speakers at least; found 1"),
    ],
)
def test_what_cannot_be_split_is_refused(manifest, protocol, message):
    with pytest.raises(SamsgError, match=message):
        split(manifest, protocol)


def test_a_published_split_is_kept_by_the_random_protocol_alone():
    parts = ["train"] * 4 + ["validation", "test"] * 2
    manifest = corpus({"calm": 4, "glad": 4}).assign(part=parts)
    assert split(manifest, "random", 3)["part"].tolist() == parts
    assert split(manifest, "speaker")["part"].tolist() != parts
