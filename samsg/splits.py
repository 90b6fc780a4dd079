"""Train, validation and test: 70 / 15 / 15 (Section IV-A), at random, by speaker or by sentence.

The paper splits at random. Its percentages fit test sets of ceil(0.15 N) clips, and Figure 5's counts fit a split
stratified by emotion (docs/ambiguities.md).
"""

import math
import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from samsg.corpora import FEWEST, PARTS
from samsg.settings import PROTOCOLS, SamsgError, check_name

HELD_OUT = 0.15  # of all clips, once for validation and once for test
MOST_FOLDS = 5


def split(manifest: pd.DataFrame, protocol: str = "random", seed: int = 0) -> pd.DataFrame:
    """A copy of the manifest with a column ``part``: train, validation or test.

    'random' is stratified by emotion, and keeps a published split: a column ``part`` of the manifest.

    'speaker' and 'sentence' keep each speaker or sentence in one part: the speakers, or sentences, are dealt into k
    folds, 5 at most. Seed s tests on fold s mod k and validates on the next, so seeds 0 to k-1 test every clip once.
    Later seeds deal anew: groups of equal counts may change places. With two sentences, one is tested. Of the other,
    the clips of 15 % of the speakers, drawn with the seed s div 2, are for validation and the rest for training.

    SamsgError if the protocol is unknown, a class has fewer than 3 clips, or speakers or sentences are too few.
    """
    check_name("protocol", protocol, PROTOCOLS)
    emotions, parts = manifest["emotion"], np.full(len(manifest), "train", dtype=object)
    counts = emotions.value_counts()
    if counts.min() < FEWEST:
        rarest = f"{counts.min()} clips of '{counts.idxmin()}'"
        raise SamsgError(f"The corpus has {rarest}; a split needs {FEWEST}. Add clips, or leave that class out.")
    if protocol == "random" and "part" in manifest:
        if unused_parts := set(PARTS) - set(manifest["part"]):
            raise SamsgError(f"No clip of the published part {' or '.join(sorted(unused_parts))} can be used.")
        return manifest.copy()
    if protocol == "random":
        size = max(math.ceil(HELD_OUT * len(parts)), len(counts))
        indices, test = train_test_split(np.arange(len(parts)), test_size=size, stratify=emotions, random_state=seed)
        _, validation = train_test_split(indices, test_size=size, stratify=emotions.iloc[indices], random_state=seed)
    else:
        groups, k = _groups(manifest, protocol, 3 if protocol == "speaker" else 2), folds(manifest, protocol)
        division, fold = divmod(seed, k)
        if k == 2:  # two sentences
            speakers = _groups(manifest, "speaker", 2)
            names = np.random.default_rng(division).permutation(sorted(speakers.unique()))
            test = groups == sorted(groups.unique())[fold]
            validation = ~test & speakers.isin(names[: max(1, round(HELD_OUT * len(names)))])
        else:
            dealer = StratifiedGroupKFold(k, shuffle=True, random_state=division)
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # a fold may lack a rare emotion
                test_folds = [test_fold for _, test_fold in dealer.split(groups, emotions, groups)]
            validation, test = test_folds[(fold + 1) % k], test_folds[fold]
    parts[validation], parts[test] = "validation", "test"
    return manifest.assign(part=parts)


def folds(manifest: pd.DataFrame, protocol: str) -> int:
    """How many seeds test every clip once: 1 for 'random', which has no folds."""
    if protocol == "random":
        return 1
    # scikit-learn makes no more folds than the most frequent emotion has clips.
    return min(manifest[protocol].nunique(), MOST_FOLDS, int(manifest["emotion"].value_counts().max()))


def _groups(manifest: pd.DataFrame, column: str, at_least: int) -> pd.Series:
    """The speaker or sentence of each clip; SamsgError if there are fewer than ``at_least``, or clips without one."""
    groups = manifest.get(column, pd.Series("", manifest.index))
    n_groups, n_unknown = groups[groups != ""].nunique(), int((groups == "").sum())
    if n_groups < at_least or n_unknown:
        requirement = f"This split needs a {column} for each clip, {at_least} {column}s at least"
        raise SamsgError(f"{requirement}; found {n_groups}, and {n_unknown} clips without one.")
    return groups
