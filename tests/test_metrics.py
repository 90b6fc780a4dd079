"""Accuracy, macro F1, their intervals and McNemar's test: against scikit-learn and against numbers worked by hand."""

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
