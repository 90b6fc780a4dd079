"""Train, validation and test: 70 / 15 / 15 (Section IV-A), at random, by speaker or by sentence.

The paper splits at random. Its percentages fit test sets of ceil(0.15 N) clips, and Figure 5's counts fit a split
stratified by emotion (docs/ambiguities.md).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from samsg.corpora import FEWEST
from samsg.settings import PROTOCOLS, SamsgError, check_name

HELD_OUT = 0.15  # of all clips, once for validation and once for test
MOST_FOLDS = 5


def split(manifest: pd.DataFrame, protocol: str = "random", seed: int = 0) -> pd.DataFrame:
    """A copy of the manifest with a column ``part``: train, validation or test.

    'random' is stratified by emotion, and keeps a published split: a column ``part`` of the manifest.

    'speaker' and 'sentence' keep each speaker or sentence in one part. They are dealt into k folds (5 at most). Seed s
    tests on fold s mod k, so that seeds 0 to k-1 test every clip once; seeds k to 2k-1 use another dealing. With
    exactly two sentences, seed s tests on sentence s mod 2. Of the other sentence's speakers, 15 %, drawn with the seed
    s div 2, validate; the rest train.

    Args:
        manifest: with a column emotion and, for those protocols, speaker or sentence.
        protocol: 'random', 'speaker' or 'sentence'.
        seed: from 0.

    Raises:
        SamsgError: an unknown protocol, a class of fewer than 3 clips, or too few speakers or sentences.
    """
    check_name("protocol", protocol, PROTOCOLS)
    emotions, n_clips = manifest["emotion"], len(manifest)
    counts = emotions.value_counts()
    if counts.min() < FEWEST:
        problem = f"{counts.min()} clips of '{counts.idxmin()}'; a split needs {FEWEST}"
        raise SamsgError(f"The corpus has {problem}. Add clips, or leave that class out.")
    if protocol == "random" and "part" in manifest:
        return manifest.copy()
    if protocol == "random":
        size = max(math.ceil(HELD_OUT * n_clips), len(counts))
        indices, test = train_test_split(np.arange(n_clips), test_size=size, stratify=emotions, random_state=seed)
        _, validation = train_test_split(indices, test_size=size, stratify=emotions.iloc[indices], random_state=seed)
    elif _has_two_sentences(manifest, protocol):
        sentences, speakers = _groups(manifest, "sentence", 2), _groups(manifest, "speaker", 2)
        names = sorted(speakers.unique())
        validation_names = np.random.default_rng(seed // 2).permutation(names)[: max(1, round(HELD_OUT * len(names)))]
        test = (sentences == sorted(sentences.unique())[seed % 2]).to_numpy()
        validation = ~test & speakers.isin(validation_names).to_numpy()
    else:
        groups, k = _groups(manifest, protocol, 3), folds(manifest, protocol)
        division, fold = divmod(seed, k)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")  # a fold may lack a rare emotion
            splits = StratifiedGroupKFold(k, shuffle=True, random_state=division).split(groups, emotions, groups)
            test_folds = [test_fold for _, test_fold in splits]
        validation, test = test_folds[(fold + 1) % k], test_folds[fold]  # the next fold validates
    parts = np.full(n_clips, "train", dtype=object)
    parts[validation], parts[test] = "validation", "test"
    return manifest.assign(part=parts)


def folds(manifest: pd.DataFrame, protocol: str) -> int:
    """How many seeds test every clip once: 1 for 'random', which has no folds."""
    if protocol == "random":
        return 1
    if _has_two_sentences(manifest, protocol):
        return 2
    # scikit-learn makes no more folds than the most frequent emotion has clips.
    return min(manifest[protocol].nunique(), MOST_FOLDS, int(manifest["emotion"].value_counts().max()))


def _has_two_sentences(manifest: pd.DataFrame, protocol: str) -> bool:
    return protocol == "sentence" and "sentence" in manifest and manifest["sentence"].nunique() == 2


def _groups(manifest: pd.DataFrame, column: str, at_least: int) -> pd.Series:
    """The speaker or sentence of each clip; SamsgError if there are fewer than ``at_least``, or clips without one."""
    groups = manifest.get(column, pd.Series("", manifest.index))
    n_groups, n_unknown = groups[groups != ""].nunique(), int((groups == "").sum())
    if n_groups < at_least or n_unknown:
        requirement = f"This split needs a {column} for each clip, {at_least} {column}s at least"
        raise SamsgError(f"{requirement}; found {n_groups}, and {n_unknown} clips without one.")
    return groups
