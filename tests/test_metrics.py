"""Accuracy, macro F1, intervals and paired tests: against scikit-learn, statsmodels and numbers worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as reference

from samsg import metrics

CLASSES = ["anger", "fear", "neutral"]


def table(truth, predicted, **columns):
    clips = [f"clip{index}" for index in range(len(truth))]
    return pd.DataFrame({"clip": clips, "emotion": list(truth), "predicted": list(predicted), "seed": 0, **columns})


def drawn(n, correct, seed, classes=CLASSES):
    random = np.random.default_rng(seed)
    truth = random.choice(classes, n)
    return table(truth, np.where(random.random(n) < correct, truth, random.choice(classes, n)))


def by_speakers(shares, clips=50):
    """Predictions of several speakers, each with its share of correct clips."""
    correct = np.concatenate([np.arange(clips) < share * clips for share in shares])
    speakers = np.repeat([f"s{index}" for index in range(len(shares))], clips)
    return table(["anger"] * len(correct), np.where(correct, "anger", "fear"), speaker=speakers)


def test_summary_of_one_seed_agrees_with_scikit_learn():
    predictions = drawn(72, 0.7, seed=1)
    summary = metrics.summarise(predictions, CLASSES)
    truth, predicted = predictions["emotion"], predictions["predicted"]
    correct = int((truth == predicted).sum())
    assert (summary.n, summary.seeds, summary.size, summary.unit) == (72, 1, "n = 72, 1 seed", "clip")
    assert summary.accuracy.value == pytest.approx(correct / 72)
    assert (summary.accuracy.low, summary.accuracy.high) == metrics.wilson_interval(correct, 72)
    assert metrics.wilson_interval(57, 72) == pytest.approx((0.684, 0.869), abs=5e-4)
    counts = metrics.confusion_matrix(truth, predicted, [*CLASSES, "joy"])
    assert (
        counts.loc["joy"].sum() == 0
        and counts.loc["anger", "fear"] == ((truth == "anger") & (predicted == "fear")).sum()
    )
    expected = reference.f1_score(truth, predicted, labels=CLASSES, average="macro")
    assert summary.macro_f1.value == pytest.approx(expected, abs=1e-12)
    assert math.isnan(summary.accuracy.std) and math.isnan(summary.macro_f1.std)
    assert summary.support == truth.value_counts().reindex(CLASSES).to_dict()
    assert metrics.summarise(predictions, [*CLASSES, "joy"]).support["joy"] == 0


def test_an_estimate_is_text_without_what_is_missing():
    assert metrics.estimate_text((0.5714, 0.4221, 0.709, 0.02)) == "57.1 ± 2.0 [42.2, 70.9]"
    assert [metrics.estimate_text((x, *[math.nan] * 3)) for x in (0.5, math.nan)] == ["50.0", "-"]


def test_several_seeds_of_the_same_clips_are_averaged():
    first = table(["anger", "fear", "fear", "neutral"], ["anger", "fear", "fear", "neutral"], seed=0)
    second = table(["anger", "fear", "fear", "neutral"], ["anger", "fear", "anger", "anger"], seed=1)
    summary = metrics.summarise(pd.concat([first, second]), CLASSES)
    assert (summary.n, summary.seeds, summary.size) == (4, 2, "n = 4, 2 seeds")
    assert summary.accuracy.value == 0.75
    assert summary.accuracy.std == pytest.approx(math.sqrt(0.125))  # of 1 and 0.5, over n - 1
    each = [metrics.summarise(run, CLASSES).macro_f1.value for run in (first, second)]
    assert (summary.macro_f1.value, summary.macro_f1.std) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert summary.support == {"anger": 1, "fear": 2, "neutral": 1}


def test_folds_are_counted_together():
    folds = [drawn(10 + 20 * seed, 0.7, seed).assign(seed=seed) for seed in range(4)]
    together = pd.concat(fold.assign(clip=fold["clip"] + f"of{seed}") for seed, fold in enumerate(folds))
    summary, one = metrics.summarise(together, CLASSES), metrics.summarise(together.assign(seed=0), CLASSES)
    assert (summary.n, summary.seeds) == (160, 4)
    for name in ("accuracy", "macro_f1"):
        ours, pooled = getattr(summary, name), getattr(one, name)
        assert (ours.value, ours.low, ours.high) == (pooled.value, pooled.low, pooled.high)


def factor(units):
    return stats.t.ppf(0.975, units - 1) / stats.norm.ppf(0.975) * math.sqrt(units / (units - 1))


def test_the_interval_of_macro_f1_equals_a_count_over_resamples():
    classes, predictions = [*CLASSES, "joy"], drawn(30, 0.6, seed=2)  # no joy anywhere
    times = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=2000)
    scores = []
    for name in classes:
        true, predicted = (times * (predictions[column] == name).to_numpy() for column in ("emotion", "predicted"))
        hits = np.minimum(true, predicted).sum(1)
        scores.append(2 * hits / np.maximum(true.sum(1) + predicted.sum(1), 1))
    values = np.mean(scores, axis=0)
    again = predictions.loc[np.repeat(np.arange(30), times[0])]
    by_scikit_learn = reference.f1_score(
        again["emotion"], again["predicted"], average="macro", zero_division=0, labels=classes
    )
    assert values[0] == pytest.approx(by_scikit_learn)
    found = metrics.summarise(predictions, classes).macro_f1
    expected = found.value + factor(30) * (np.quantile(values, [0.025, 0.975]) - found.value)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_resampling_clips_draws_from_the_binomial_distribution():
    # Every clip under two seeds with the same answers: 150 of 200 are correct, a draw is Binomial(200, 0.75).
    one = table(["anger"] * 200, ["anger"] * 150 + ["fear"] * 50)
    found = metrics.summarise(pd.concat([one.assign(seed=seed) for seed in (0, 1)]), CLASSES).accuracy
    exact = stats.binom(200, 0.75).ppf([0.025, 0.975]) / 200
    # 2000 draws leave a quantile uncertain by 5 / sqrt(2000) of a standard deviation (0.03): 0.0035 at most.
    assert (found.low, found.high) == pytest.approx(0.75 + factor(200) * (exact - 0.75), abs=0.006)


@pytest.mark.parametrize(("n", "unit"), [(2, "speaker"), (3, "sentence")])
def test_of_two_sentences_speakers_are_resampled(n: int, unit: str) -> None:
    predictions = pd.DataFrame({"sentence": [str(k % n) for k in range(6)], "seed": [k % n for k in range(6)]})
    assert metrics.unit_of("sentence", predictions) == unit and metrics.unit_of("random", predictions) == "clip"
    assert metrics.unit_of("sentence", predictions.assign(seed=0)) == "sentence"


def test_two_speakers_give_a_wide_interval_and_one_none():
    assert [metrics.unit_of(name) for name in ("random", "speaker", "sentence")] == ["clip", "speaker", "sentence"]
    found = metrics.summarise(by_speakers([0.22, 0.26]), CLASSES, "speaker").accuracy
    # The percentiles are the two scores, 2 points off their mean; t(1) / z * sqrt(2) = 9.17 times as far.
    assert factor(2) == pytest.approx(9.168, abs=1e-3)
    assert (found.low, found.high) == pytest.approx((0.24 - 0.02 * factor(2), 0.24 + 0.02 * factor(2)))
    assert metrics.summarise(by_speakers([0.9, 1.0]), CLASSES, "speaker").accuracy.high == 1  # and no further
    assert metrics.paired_difference(by_speakers([0.0, 0.1]), by_speakers([1.0, 0.9]), "speaker").low == -1
    alone = metrics.summarise(by_speakers([0.6]), CLASSES, "speaker")
    assert alone.accuracy.value == 0.6 and np.isnan([alone.accuracy[1:3], alone.macro_f1[1:3]]).all()


def test_speakers_with_equal_scores_give_no_narrower_interval_than_independent_clips():
    predictions = by_speakers([0.5, 0.5, 0.5])
    speakers, clips = (metrics.summarise(predictions, CLASSES, unit) for unit in ("speaker", "clip"))
    assert speakers.accuracy.low < 0.43
    assert (speakers.accuracy[:3], speakers.macro_f1[:3]) == (clips.accuracy[:3], clips.macro_f1[:3])


def test_unknown_speakers_are_units_of_their_own():
    known = by_speakers([0.2, 0.8, 0.4])
    by_clip, by_speaker = (metrics.summarise(known, CLASSES, unit).macro_f1[:3] for unit in ("clip", "speaker"))
    assert metrics.summarise(known.assign(speaker=""), CLASSES, "speaker").macro_f1[:3] == by_clip != by_speaker


@pytest.mark.parametrize("speakers", [3, 6])
def test_the_interval_covers_what_it_claims(speakers):
    # 500 test sets of speakers whose accuracies spread by 0.12 about 0.6. 95 % of 500 are 475, give or take 5.
    random, hits = np.random.default_rng(0), 0
    for _ in range(500):
        correct = random.binomial(30, np.clip(random.normal(0.6, 0.12, speakers), 0, 1))
        sums = np.stack([correct, np.full(speakers, 30)], axis=1)
        low, high = metrics.cluster_interval(sums, lambda total: total[..., 0] / total[..., 1])
        hits += low <= 0.6 <= high
    assert hits >= 460


def test_a_seed_of_which_no_clip_is_drawn_has_no_say():
    rows = [("a", 0), ("b", 0), ("c", 0), ("c", 1)]
    predictions = pd.DataFrame(rows, columns=["clip", "seed"]).assign(emotion="fear", predicted="fear")
    summary = metrics.summarise(predictions, ["fear"])
    assert (summary.accuracy.low, summary.accuracy.high) == (summary.macro_f1.low, summary.macro_f1.high) == (1, 1)


def test_mcnemar_by_hand():
    truth = ["anger"] * 12
    first = table(truth, ["anger"] * 10 + ["fear"] * 2)
    second = table(truth, ["anger"] * 2 + ["fear"] * 8 + ["anger"] + ["fear"])
    found = metrics.paired_difference(first, second.sample(frac=1, random_state=0))
    assert (found.only_first, found.only_second, found.value) == (8, 1, pytest.approx(7 / 12))
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)  # two tails of Binomial(9, 1/2) at 1
    # Agresti & Min: n = 14, centre 7 / 14, margin 1.96 sqrt((10 / 14 - 0.5^2) / 14).
    assert (found.low, found.high) == pytest.approx((0.14308, 0.85692), abs=1e-5)
    swapped = metrics.paired_difference(second, first)
    assert swapped[:4] == pytest.approx((-found.value, -found.high, -found.low, found.p))


def test_the_interval_of_a_difference_resamples_speakers():
    first, second = by_speakers([0.8, 0.6, 0.7, 0.9]), by_speakers([0.5, 0.6, 0.3, 0.5])
    sums = np.array([[15, 50], [0, 50], [20, 50], [20, 50]])  # of only the first correct, and clips
    draws = np.random.default_rng(0).multinomial(4, np.full(4, 0.25), size=2000) @ sums
    expected = 0.275 + factor(4) * (np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975]) - 0.275)
    found = metrics.paired_difference(first, second, "speaker")
    assert found.value == pytest.approx(0.275) and (found.low, found.high) == pytest.approx(expected)
    one = metrics.paired_difference(by_speakers([0.8]), by_speakers([0.5]), "speaker")
    assert math.isnan(one.low) and math.isnan(one.high) and one.value == pytest.approx(0.3)


def test_clips_under_several_seeds_have_a_difference_and_no_p_value():
    first, second = (pd.concat([drawn(40, share, 1).assign(seed=s) for s in (0, 1)]) for share in (0.9, 0.4))
    found = metrics.paired_difference(first, second)
    assert math.isnan(found.p) and found.low < found.value < found.high


def test_holm_by_hand():
    # The smallest of m p-values times m, the next times m - 1, never less than the one before.
    corrected = metrics.holm(pd.Series([0.01, np.nan, 0.04, 0.03, 0.5], index=list("abcde")))
    np.testing.assert_allclose(corrected, [0.04, np.nan, 0.09, 0.09, 0.5])
    assert metrics.holm(pd.Series([np.nan])).isna().all()
