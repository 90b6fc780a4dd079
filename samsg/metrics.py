"""Accuracy and macro F1 (Section IV-C, Eq. 8-10), one recipe of 95 % intervals, and paired tests.

Predictions are tables with the columns clip, seed, emotion (the true one) and predicted.

The recipe of intervals. Clips of one speaker or sentence resemble each other, so clips are resampled by the unit that
the protocol holds out: a cluster bootstrap (percentiles; Efron & Tibshirani 1993, ch. 13), widened for few units by
t(G - 1) / z * sqrt(G / (G - 1)) for G units (Cameron & Miller 2015), and never narrower than the interval of clips that
are independent, which for one seed is Wilson's (1927). Fewer than two units have no interval (nan).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests


class Estimate(NamedTuple):
    """A metric between 0 and 1, its interval, and its standard deviation over seeds (nan for one seed)."""

    value: float
    low: float
    high: float
    std: float


class Summary(NamedTuple):
    """The results of one method on one corpus."""

    n: int  # distinct test clips
    seeds: int
    accuracy: Estimate
    macro_f1: Estimate
    support: dict[str, int]  # distinct test clips of each class
    unit: str  # what the intervals resample

    @property
    def size(self) -> str:
        """'n = 72, 1 seed'."""
        return f"n = {self.n}, {self.seeds} seed{'s' if self.seeds > 1 else ''}"


class Difference(NamedTuple):
    """Accuracy of one method minus that of another on the same clips, and McNemar's exact test."""

    value: float
    low: float
    high: float
    p: float  # nan where a clip is tested under several seeds, or where there is no interval
    only_first: int  # predictions that only the first method gets right
    only_second: int


def estimate_text(estimate: Sequence[float], scale: float = 100, form: str = ".1f") -> str:
    """'57.1 ± 2.0 [42.2, 70.9]': value, deviation over seeds, interval. Without parts that are nan; '-': no value."""
    value, low, high, std = (scale * number for number in estimate)
    spread = "" if np.isnan(std) else f" ± {std:{form}}"
    interval = "" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return "-" if np.isnan(value) else f"{value:{form}}{spread}{interval}"


def unit_of(protocol: str, predictions: pd.DataFrame | None = None) -> str:
    """The column that intervals resample: 'clip' for 'random', else what the protocol holds out.

    Two sentences, one a fold, give no interval. Speakers are resampled then, which says nothing about other sentences.
    """
    if protocol == "sentence" and predictions is not None and predictions["sentence"].nunique() == 2:
        is_one_a_fold = (predictions.groupby("seed")["sentence"].nunique() == 1).all()
        return "speaker" if is_one_a_fold else protocol
    return "clip" if protocol == "random" else protocol


def confusion_matrix(truth: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """Counts of clips: true classes as rows, predicted ones as columns, (C, C)."""
    counts = pd.crosstab(np.asarray(truth), np.asarray(predicted), rownames=["emotion"], colnames=["predicted"])
    return counts.reindex(index=classes, columns=classes, fill_value=0)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for ``correct`` out of ``n``."""
    low, high = stats.binomtest(int(correct), int(n)).proportion_ci(method="wilson")
    return float(low), float(high)


def _unit_codes(predictions: pd.DataFrame, unit: str) -> np.ndarray:
    """The number of each row's unit, (N,); a clip of unknown speaker or sentence is a unit of its own."""
    names = predictions[unit].where(predictions[unit] != "", "clip " + predictions["clip"])
    return pd.factorize(names)[0]


@lru_cache(maxsize=2)  # every method and metric of a table takes the same ones, and drawing them takes longest
def _resamples(n_units: int) -> np.ndarray:
    """How often each of 2000 draws contains each unit, (2000, n_units)."""
    return np.random.default_rng(0).multinomial(n_units, np.full(n_units, 1 / n_units), size=2000).astype(float)


def cluster_interval(counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """The recipe's interval: ``statistic`` maps sums of the units' counts, (draws, ...), to a metric, (draws,)."""
    if (n_units := len(counts)) < 2:
        return np.nan, np.nan
    draws = statistic((_resamples(n_units) @ counts.reshape(n_units, -1)).reshape(-1, *counts.shape[1:]))
    value = float(statistic(counts.sum(0)[None])[0])
    factor = stats.t.ppf(0.975, n_units - 1) / stats.norm.ppf(0.975) * np.sqrt(n_units / (n_units - 1))
    low, high = value + factor * (np.quantile(draws, [0.025, 0.975]) - value)
    return float(min(low, value)), float(max(high, value))  # both quantiles of skewed draws may lie on one side


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Accuracy from confusion matrices, mean over seeds: (..., seeds, C, C) -> (...)."""
    with np.errstate(invalid="ignore"):  # a draw may leave a seed without clips; the other seeds still count
        return np.nanmean(np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1)), axis=-1)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 over all classes (Eq. 8-10) from confusion matrices, mean over seeds: (..., seeds, C, C) -> (...).

    F1 = 2 TP / (2 TP + FP + FN); that of a class neither true nor predicted counts as 0.
    """
    hits, occurrences = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2)  # 2 TP + FP + FN
    f1 = np.where(occurrences > 0, 2 * hits / np.maximum(occurrences, 1), 0).mean(-1)
    return np.nanmean(np.where(counts.sum((-2, -1)) > 0, f1, np.nan), axis=-1)


def summarise(predictions: pd.DataFrame, classes: Sequence[str], unit: str = "clip") -> Summary:
    """Accuracy and macro F1 of one method on one corpus: the mean over seeds, intervals, and spread over seeds.

    Seeds whose test clips do not overlap are folds: their clips are counted together, as one test. ``classes`` are all
    classes of the corpus; ``unit`` is the column that is resampled, ``unit_of(protocol)``.
    """
    codes = tuple(pd.Index(classes).get_indexer(predictions[key]) for key in ("emotion", "predicted"))
    seeds, has_repeats = pd.factorize(predictions["seed"])[0], predictions["clip"].duplicated().any()
    tests, statistics = seeds * has_repeats, (accuracy, macro_f1)  # tests: the seeds, or 0 throughout for folds

    def confusion_counts(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        counts = np.zeros((rows.max() + 1, columns.max() + 1, len(classes), len(classes)))
        np.add.at(counts, (rows, columns, *codes), 1)
        return counts

    intervals: dict[str, list[tuple[float, float]]] = {}
    for column in dict.fromkeys(("clip", unit)):
        counts = confusion_counts(_unit_codes(predictions, column), tests)  # (G, seeds or 1, C, C)
        intervals[column] = [cluster_interval(counts, statistic) for statistic in statistics]
    if not has_repeats:
        intervals["clip"][0] = wilson_interval((codes[0] == codes[1]).sum(), len(predictions))
    ends = np.clip(list(intervals.values()), 0, 1)  # (1 or 2 units, metrics, low and high)
    low, high = ends[..., 0].min(0), ends[..., 1].max(0)  # nan where there are too few units
    seed_counts = confusion_counts(seeds, 0 * seeds)  # (seeds, 1, C, C)
    deviations = [pd.Series(statistic(seed_counts)).std() for statistic in statistics]
    values = [float(statistic(counts.sum(0))) for statistic in statistics]  # of either unit: the sums are the same
    accuracy_estimate, f1_estimate = map(Estimate, values, low, high, deviations)
    support = predictions.drop_duplicates("clip")["emotion"].value_counts().reindex(list(classes), fill_value=0)
    return Summary(int(support.sum()), len(seed_counts), accuracy_estimate, f1_estimate, support.to_dict(), unit)


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, unit: str = "clip") -> Difference:
    """Accuracy of the first method minus that of the second, on the same clips and seeds; ``unit`` is resampled."""
    pairs = first.merge(second[["clip", "seed", "predicted"]], on=["clip", "seed"], validate="one_to_one")
    right_first, right_second = (pairs[name] == pairs["emotion"] for name in ("predicted_x", "predicted_y"))
    gain = right_first.astype(int) - right_second.astype(int)  # -1, 0 or 1 for each pair
    only_first, only_second = int((gain == 1).sum()), int((gain == -1).sum())
    # Agresti & Min (2005): half an observation more in each of the four counts; equal answers keep an interval.
    n, center = len(pairs) + 2, (only_first - only_second) / (len(pairs) + 2)
    margin = stats.norm.ppf(0.975) * np.sqrt(((only_first + only_second + 1) / n - center**2) / n)
    low, high, p = center - margin, center + margin, np.nan
    has_repeats = pairs["clip"].duplicated().any()
    if unit != "clip" or has_repeats:
        sums = gain.groupby(_unit_codes(pairs, unit)).agg(["sum", "size"]).to_numpy()  # (G, 2)
        ends = cluster_interval(sums, lambda totals: totals[..., 0] / totals[..., 1])
        low, high = np.minimum(low, ends[0]), np.maximum(high, ends[1])  # nan where there are too few units
    if not has_repeats and not np.isnan(low):
        p = float(contingency_tables.mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue)
    low, high = np.clip([low, high], -1, 1)
    return Difference(float(gain.mean()), float(low), float(high), p, only_first, only_second)


def holm(p_values: pd.Series) -> pd.Series:
    """p-values corrected for their number (Holm 1979); missing ones stay missing and do not count."""
    values = p_values.dropna()
    p_holm = multipletests(values, method="holm")[1] if len(values) else []
    return pd.Series(p_holm, index=values.index, dtype=float).reindex(p_values.index)
