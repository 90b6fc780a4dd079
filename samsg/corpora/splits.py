"""Train, validation and test: 70 / 15 / 15 (Section IV-A), by chance, by speaker or by sentence.

The paper's split is by chance. Its printed percentages fit test sets of ceil(0.15 N) clips, and the counts in its
Figure 5 fit a split stratified by emotion (see docs/ambiguities.md), which is what scikit-learn gives.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from samsg.settings import PROTOCOLS, SamsgError, nearest

PARTS = ("train", "validation", "test")
HELD_OUT = 0.15  # of all clips, once for validation and once for test
MOST_FOLDS = 10


def split(manifest: pd.DataFrame, protocol: str = "random", seed: int = 0) -> pd.DataFrame:
    """A copy of the manifest with a column ``part``: train, validation or test.

    'random' is stratified by emotion. 'speaker' and 'sentence' keep each speaker or sentence in one part: the corpus
    is dealt into k folds (one a speaker or sentence, 10 at most), and seed s tests on fold s mod k of deal s div k, so
    that seeds 0 to k-1 test every clip once.

    Under 'random', a manifest that has a column ``part`` already, as a corpus with a published split may, keeps it.

    Args:
        manifest: with columns clip and emotion; speaker or sentence for those protocols.
        protocol: 'random', 'speaker' or 'sentence'.
        seed: of the split.

    Raises:
        SamsgError: an unknown protocol, a class of fewer than 3 clips, or fewer than 3 speakers or sentences.
    """
    if protocol not in PROTOCOLS:
        raise SamsgError(f"There is no protocol '{protocol}'; {nearest(protocol, PROTOCOLS)}")
    counts = manifest["emotion"].value_counts()
    if counts.min() < len(PARTS):
        raise SamsgError(
            f"The corpus has {counts.min()} clips of '{counts.idxmin()}'; {len(PARTS)} are needed at least, one each "
            "for training, validation and test. Add clips, or leave that class out."
        )
    if protocol == "random" and "part" in manifest:
        parts = _as_given(manifest["part"])
    elif protocol == "random":
        parts = _by_chance(manifest["emotion"], seed)
    else:
        groups = manifest[protocol].fillna("") if protocol in manifest else pd.Series("", manifest.index)
        parts = _by_group(manifest["emotion"], groups, protocol, seed)
    return manifest.assign(part=parts)


def _as_given(parts: pd.Series) -> pd.Series:
    unknown = sorted(set(parts) - set(PARTS))
    missing = sorted(set(PARTS) - set(parts))
    if unknown or missing:
        raise SamsgError(
            f"The manifest's column part holds {', '.join(map(repr, unknown)) or 'nothing unknown'} and lacks "
            f"{', '.join(missing) or 'nothing'}; every clip needs one of {', '.join(PARTS)}, or leave the column out."
        )
    return parts


def folds(manifest: pd.DataFrame, protocol: str) -> int:
    """How many seeds test every clip once: 1 for 'random', which has no folds."""
    return 1 if protocol == "random" else _n_folds(manifest["emotion"], manifest[protocol])


def _n_folds(emotions: pd.Series, groups: pd.Series) -> int:
    # scikit-learn deals no more folds than the most frequent emotion has clips.
    return min(groups.nunique(), MOST_FOLDS, int(emotions.value_counts().max()))


def _by_chance(emotions: pd.Series, seed: int) -> np.ndarray:
    held_out = max(math.ceil(HELD_OUT * len(emotions)), emotions.nunique())
    rest, test = train_test_split(np.arange(len(emotions)), test_size=held_out, stratify=emotions, random_state=seed)
    _, validation = train_test_split(rest, test_size=held_out, stratify=emotions.iloc[rest], random_state=seed)
    return _parts(len(emotions), validation, test)


def _by_group(emotions: pd.Series, groups: pd.Series, protocol: str, seed: int) -> np.ndarray:
    n_groups = groups.nunique()
    if n_groups < len(PARTS) or (groups == "").any():
        raise SamsgError(
            f"Protocol '{protocol}' needs a {protocol} for every clip and 3 of them at least; found {n_groups}"
            f"{' and clips without one' if (groups == '').any() else ''}. Use 'random', or complete the manifest."
        )
    k = _n_folds(emotions, groups)
    deal, fold = divmod(seed, k)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # a rare emotion may miss a fold
        dealt = list(StratifiedGroupKFold(k, shuffle=True, random_state=deal).split(emotions, emotions, groups))
    # The next fold validates: it is disjoint from the test fold, in its groups too.
    return _parts(len(emotions), dealt[(fold + 1) % k][1], dealt[fold][1])


def _parts(n: int, validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    parts = np.full(n, "train", dtype=object)
    parts[validation], parts[test] = "validation", "test"
    return parts
