"""Accuracy, macro F1, their intervals and McNemar's test: against scikit-learn and against numbers worked by hand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as reference

from samsg.report import metrics
from samsg.settings import SamsgError

CLASSES = ["anger", "fear", "neutral"]


def table(truth, predicted, **columns):
    clips = [f"clip{index}" for index in range(len(truth))]
    return pd.DataFrame({"clip": clips, "emotion": list(truth), "predicted": list(predicted), **columns})


def drawn(n, right, seed, classes=CLASSES):
    random = np.random.default_rng(seed)
    truth = random.choice(classes, n)
    return table(truth, np.where(random.random(n) < right, truth, random.choice(classes, n)))


def test_by_hand():
    truth = ["anger", "anger", "anger", "fear", "fear", "neutral"]
    predicted = ["anger", "anger", "fear", "fear", "anger", "fear"]
    assert metrics.accuracy(truth, predicted) == 3 / 6
    # F1 = 2 TP / (2 TP + FP + FN): anger 4/6, fear 2/5, neutral 0.
    assert metrics.macro_f1(truth, predicted, CLASSES) == pytest.approx((4 / 6 + 2 / 5 + 0) / 3)
    counts = metrics.confusion_matrix(truth, predicted, CLASSES)
    assert counts.to_numpy().tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert counts.loc["anger", "fear"] == 1 and counts.loc["fear", "neutral"] == 0


def test_a_class_that_never_occurs_counts_as_zero():
    assert metrics.macro_f1(["anger", "fear"], ["anger", "fear"], CLASSES) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("correct", "n", "percent"),
    [
        (57, 72, (68.4, 86.9)),
        (68, 72, (86.6, 97.8)),
        (71, 80, (80.0, 94.0)),
        (78, 81, (89.7, 98.7)),
        (750, 1116, (64.4, 69.9)),
        (960, 1117, (83.8, 87.9)),
    ],
)
def test_wilson_intervals_of_the_printed_accuracies(correct, n, percent):
    assert tuple(round(100 * end, 1) for end in metrics.wilson_interval(correct, n)) == percent


def test_summary_of_one_seed():
    predictions = drawn(72, 0.7, seed=1)
    summary = metrics.summarise(predictions, CLASSES)
    truth, predicted = predictions["emotion"], predictions["predicted"]
    right = int((truth == predicted).sum())
    assert (summary.n, summary.seeds, summary.size) == (72, 1, "n = 72, 1 seed")
    assert summary.accuracy.value == pytest.approx(right / 72)
    assert (summary.accuracy.low, summary.accuracy.high) == metrics.wilson_interval(right, 72)
    assert summary.macro_f1.value == reference.f1_score(truth, predicted, labels=CLASSES, average="macro")
    assert math.isnan(summary.accuracy.std) and math.isnan(summary.macro_f1.std)
    assert summary.support == truth.value_counts().reindex(CLASSES).to_dict()


def test_summary_of_several_seeds():
    first = table(["anger", "fear", "fear", "neutral"], ["anger", "fear", "fear", "neutral"], seed=0)
    second = table(["anger", "fear", "fear", "neutral"], ["anger", "fear", "anger", "anger"], seed=1)
    summary = metrics.summarise(pd.concat([first, second]), CLASSES)
    assert (summary.n, summary.seeds, summary.size) == (4, 2, "n = 4, 2 seeds")
    assert summary.accuracy.value == 0.75
    assert summary.accuracy.std == pytest.approx(math.sqrt(0.125))  # of 1 and 0.5, over n - 1
    assert summary.support == {"anger": 1, "fear": 2, "neutral": 1}
    assert summary.accuracy.low <= 0.75 <= summary.accuracy.high


def test_the_bootstrap_of_accuracy_is_the_binomial_distribution():
    # Resampling n clips of which k are right draws from Binomial(n, k / n): its quantiles are known exactly.
    predictions = table(["anger"] * 200, ["anger"] * 150 + ["fear"] * 50)
    low, high = metrics.bootstrap_intervals(predictions, CLASSES, draws=20_000)["accuracy"]
    exact = stats.binom(200, 0.75).ppf([0.025, 0.975]) / 200
    assert abs(low - exact[0]) <= 1 / 200 and abs(high - exact[1]) <= 1 / 200


def test_the_bootstrap_of_macro_f1_equals_a_loop_over_resamples():
    predictions = drawn(60, 0.6, seed=2)
    times = np.random.default_rng(5).multinomial(60, np.full(60, 1 / 60), size=200)
    values = []
    for each in times:
        again = predictions.loc[np.repeat(np.arange(60), each)]
        values.append(metrics.macro_f1(again["emotion"], again["predicted"], CLASSES))
    expected = np.quantile(values, [0.025, 0.975])
    interval = metrics.bootstrap_intervals(predictions, CLASSES, draws=200, seed=5)["macro_f1"]
    assert interval == pytest.approx(expected, abs=1e-12)


def test_a_clip_that_several_seeds_predict_alike_counts_once():
    one = drawn(80, 0.7, seed=3)
    five = pd.concat([one.assign(seed=seed) for seed in range(5)])
    assert metrics.bootstrap_intervals(five, CLASSES) == metrics.bootstrap_intervals(one, CLASSES)


def test_clusters_of_clips_that_are_right_together_widen_the_interval():
    predictions = table(["anger"] * 100, ["anger"] * 70 + ["fear"] * 30, speaker=[str(i // 10) for i in range(100)])
    clips, speakers = (metrics.summarise(predictions, CLASSES, cluster=by).accuracy for by in ("clip", "speaker"))
    assert speakers.high - speakers.low > 2 * (clips.high - clips.low)


def test_seeds_that_test_different_clips():
    folds = [drawn(30, 0.7, seed).assign(seed=seed) for seed in range(4)]
    folds = [fold.assign(clip=fold["clip"] + f"of{seed}") for seed, fold in enumerate(folds)]
    summary = metrics.summarise(pd.concat(folds), CLASSES)
    assert summary.n == 120
    assert summary.accuracy.value == pytest.approx(np.mean([(f["emotion"] == f["predicted"]).mean() for f in folds]))
    assert 0 < summary.macro_f1.low < summary.macro_f1.value < summary.macro_f1.high < 1


def test_the_same_numbers_each_time():
    assert metrics.summarise(drawn(50, 0.5, 4).assign(seed=0), CLASSES) != metrics.summarise(drawn(50, 0.5, 5), CLASSES)
    first, second = (metrics.bootstrap_intervals(drawn(50, 0.5, 4), CLASSES) for _ in range(2))
    assert first == second


def test_mcnemar_by_hand():
    truth = ["anger"] * 12
    first = table(truth, ["anger"] * 10 + ["fear"] * 2)
    second = table(truth, ["anger"] * 2 + ["fear"] * 8 + ["anger"] + ["fear"])
    result = metrics.mcnemar(first, second.sample(frac=1, random_state=0))
    assert (result.first_only, result.second_only) == (8, 1)
    assert result.p_value == pytest.approx(2 * (1 + 9) / 2**9)  # two tails of Binomial(9, 1/2) at 1
    assert metrics.mcnemar(second, first).p_value == pytest.approx(result.p_value)
    assert metrics.mcnemar(first, first) == metrics.McNemar(0, 0, 1.0)


def test_mcnemar_needs_the_same_clips_once():
    first = drawn(10, 0.5, 1)
    with pytest.raises(SamsgError, match="10 and 9 clips, 9 of them in both"):
        metrics.mcnemar(first, first.iloc[1:])
    with pytest.raises(SamsgError, match="one seed at a time"):
        metrics.mcnemar(first, pd.concat([first, first]))


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (table([], []), "found 0 rows"),
        (table(["anger"], ["fear"]).drop(columns="predicted"), "columns clip, emotion$|found 1 rows"),
        (table(["anger"], ["joy"]), "class 'joy'"),
        (table(["anger", "fear"], ["fear", "fear"], part=["test", "validation"]), "one part; found test, validation"),
        (pd.concat([table(["anger"], ["fear"])] * 2), "'clip0' is predicted twice"),
    ],
)
def test_what_cannot_be_judged(predictions, message):
    with pytest.raises(SamsgError, match=message):
        metrics.summarise(predictions, CLASSES)


def test_an_unknown_cluster():
    with pytest.raises(SamsgError, match="no column 'speaker'"):
        metrics.summarise(drawn(5, 0.5, 0), CLASSES, cluster="speaker")


def test_class_names():
    predictions = drawn(5, 0.5, 0).assign(p_anger=0.0, p_fear=0.5, p_neutral=0.5, seed=0)
    assert metrics.class_names(predictions) == CLASSES


@pytest.mark.parametrize(
    ("printed", "n", "fitting"),
    [
        (79.17, 72, [57]),
        (94.44, 72, [68]),
        (88.75, 80, [71]),
        (88.75, 81, []),
        (96.30, 80, []),
        (96.30, 81, [78]),
        (67.20, 1116, [750]),
        (67.20, 1117, []),
        (85.94, 1116, []),
        (85.94, 1117, [960]),
    ],
)
def test_which_counts_fit_the_papers_percentages(printed: float, n: int, fitting: list[int]) -> None:
    assert metrics.fitting_counts(printed, n) == fitting


def test_every_count_fits_its_own_percentage() -> None:
    for n in (7, 72, 81, 1117):
        for k in range(n + 1):
            assert k in metrics.fitting_counts(round(100 * k / n, 2), n)


def test_no_count_fits_a_percentage_that_is_further_away_than_half_its_last_digit() -> None:
    assert [metrics.fitting_counts(printed, 2) for printed in (49.994, 49.995, 50.005, 50.006)] == [[], [1], [1], []]
    assert [metrics.fitting_counts(printed, 2, digits=1) for printed in (50.05, 50.06)] == [[1], []]
    assert metrics.fitting_counts(112.5, 8) == []  # nine of eight


def test_a_class_that_a_resample_lacks_counts_as_zero_there_too() -> None:
    classes, predictions = [*CLASSES, "joy"], drawn(6, 0.6, seed=2)  # no joy anywhere, and often one class less
    times = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=300)
    again = [predictions.loc[np.repeat(np.arange(6), each)] for each in times]
    assert min(each["emotion"].nunique() for each in again) < 3
    expected = {
        "accuracy": [metrics.accuracy(each["emotion"], each["predicted"]) for each in again],
        "macro_f1": [metrics.macro_f1(each["emotion"], each["predicted"], classes) for each in again],
    }
    found = metrics.bootstrap_intervals(predictions, classes, draws=300)
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)


def test_a_seed_of_which_no_clip_is_drawn_has_no_say() -> None:
    # Two clips, one a seed, both right: half of all draws take one clip twice.
    both = pd.DataFrame({"clip": ["a", "b"], "seed": [0, 1], "emotion": "fear", "predicted": "fear"})
    assert metrics.bootstrap_intervals(both, ["fear"]) == {"accuracy": (1.0, 1.0), "macro_f1": (1.0, 1.0)}


def test_the_accuracy_of_several_seeds_has_the_bootstraps_interval_and_2000_draws_from_seed_0() -> None:
    predictions = pd.concat([drawn(40, 0.6, seed=7).assign(seed=seed) for seed in (1, 2)])
    summary = metrics.summarise(predictions, CLASSES)
    drawn_so = metrics.bootstrap_intervals(predictions, CLASSES, "clip", 2000, 0)
    assert metrics.bootstrap_intervals(predictions, CLASSES) == drawn_so
    for name in ("accuracy", "macro_f1"):
        estimate = getattr(summary, name)
        assert (estimate.low, estimate.high) == drawn_so[name]
    others = [metrics.bootstrap_intervals(predictions, CLASSES, draws=n, seed=s) for n, s in ((2001, 0), (2000, 1))]
    assert drawn_so not in others


def test_support_of_a_class_without_clips_is_0_and_a_summary_stays_as_it_is() -> None:
    summary = metrics.summarise(table(["fear", "fear"], ["fear", "anger"]), CLASSES)
    assert summary.support == {"anger": 0, "fear": 2, "neutral": 0}
    for frozen in (summary, summary.accuracy, metrics.McNemar(1, 2, 0.5)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, dataclasses.fields(frozen)[0].name, 1)


def test_the_first_of_several_clips_that_come_twice_is_named() -> None:
    with pytest.raises(SamsgError, match="Clip 'clip0' is predicted twice"):
        metrics.summarise(pd.concat([table(["anger", "fear"], ["fear", "fear"])] * 2), CLASSES)


def test_mcnemar_says_how_many_clips_both_have() -> None:
    first = drawn(10, 0.5, 1)
    with pytest.raises(SamsgError, match="found 10 and 9 clips, 8 of them in both"):
        metrics.mcnemar(first, first.iloc[1:].replace({"clip": {"clip9": "another"}}))
    other = first.assign(emotion=["fear" if emotion == "anger" else "anger" for emotion in first["emotion"]])
    with pytest.raises(SamsgError, match="same clips with the same emotions; found 10 and 10 clips, 10 of them"):
        metrics.mcnemar(first, other)


@pytest.mark.parametrize("cluster", ["clip", "speaker"])
def test_the_bootstrap_of_a_difference_equals_a_loop_over_resamples(cluster: str) -> None:
    speakers = np.repeat(["a", "b", "c", "d", "e"], [2, 3, 5, 7, 13])  # in the order of clips, once these are sorted
    first = table(np.tile(CLASSES, 10), np.tile(CLASSES, 10)).sort_values("clip").assign(speaker=speakers)
    random = np.random.default_rng(3)
    first["predicted"] = np.where(random.random(30) < 0.8, first["emotion"], random.choice(CLASSES, 30))
    second = first.assign(predicted=np.where(random.random(30) < 0.5, first["emotion"], random.choice(CLASSES, 30)))
    gain = [
        float(metrics.accuracy([row.emotion], [row.predicted]) - metrics.accuracy([other.emotion], [other.predicted]))
        for row, other in zip(first.itertuples(), second.itertuples(), strict=True)
    ]
    assert set(gain) == {-1.0, 0.0, 1.0}
    groups = [[place for place, name in enumerate(first[cluster]) if name == each] for each in first[cluster].unique()]
    differences = []
    for times in np.random.default_rng(0).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=2000):
        places = [place for group, often in zip(groups, times, strict=True) for place in group * often]
        differences.append(np.mean([gain[place] for place in places]))
    found = metrics.bootstrap_difference(first, second.sample(frac=1, random_state=0), cluster)
    assert found == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=1e-12)


def test_the_bootstrap_of_a_difference_draws_2000_times_from_seed_0_and_clips() -> None:
    first, second = drawn(50, 0.7, 1), drawn(50, 0.7, 1)
    second["predicted"] = drawn(50, 0.3, 2)["predicted"]
    # Of eight differing quantities, so that one draw more or another seed shows.
    places = np.repeat(["a", "b", "c", "d", "e", "f", "g", "h"], [1, 2, 3, 5, 7, 9, 11, 12])
    first, second = first.assign(speaker=places), second.assign(speaker=places)
    found = metrics.bootstrap_difference(first, second, "speaker")
    assert found == metrics.bootstrap_difference(first, second, "speaker", 2000, 0)
    assert found != metrics.bootstrap_difference(first, second, "speaker", 2001, 0)
    assert found != metrics.bootstrap_difference(first, second, "speaker", 2000, 1)
    assert metrics.bootstrap_difference(first, second) == metrics.bootstrap_difference(first, second, "clip")
