"""Variants of a profile that go past the paper: controls, sensitivity, a shortcut that is known.

A study is a list of variants, each a change of settings. What a variant would make just as its profile does (the
sounds, stage i, its rollout) is made once and shared, so that variants differ in what they change and in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from samsg.method.deit import IMAGENET_GREY
from samsg.method.masking import covered
from samsg.report.metrics import bootstrap_difference, mcnemar, summarise
from samsg.report.tables import read_one
from samsg.runs import Run, atomic, open_run
from samsg.settings import Profile, SamsgError, nearest
from samsg.training import stages

MASKS = {
    "random": "random patches",
    "least": "least-attended patches",
    "stripes": "stripes",
    "none": "no masks, so no reconstruction",
}


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Attributes:
        name: of its folder: runs/<profile>.<name>.
        title: in tables and figures.
        profile: the changed profile.
        last: the stage whose predictions count: 'probe', or 'baseline' for DeiT alone.
    """

    name: str
    title: str
    profile: Profile
    last: str = "probe"


def _changes(profile: Profile, study: str) -> list[tuple[str, str, dict[str, Any], str]]:
    """Name, title, changed settings and last stage of each variant; the first is what others are compared with."""
    total = profile.training.epochs + sum(
        its.epochs or profile.training.epochs for its in (profile.samsg, profile.probe)
    )
    samsg: tuple[str, str, dict[str, Any], str] = ("samsg", "SAMSG", {}, "probe")
    deit: tuple[str, str, dict[str, Any], str] = ("deit", "DeiT", {}, "baseline")
    # Its learning rate is halved as often over all epochs as DeiT's is over its own.
    slower = -(-profile.training.halve_every * total // profile.training.epochs)
    longer = {"training": {"epochs": total, "halve_every": slower}}
    long = ("long", "DeiT, as many epochs", longer, "baseline")
    masks = [(name, f"SAMSG, {title}", {"mask": {"strategy": name}}, "probe") for name, title in MASKS.items()]
    if study == "controls":
        losses = [
            ("emotion_only", "SAMSG, no reconstruction", {"samsg": {"reconstruction_weight": 0}}, "probe"),
            ("reconstruction_only", "SAMSG, reconstruction alone", {"samsg": {"classification_weight": 0}}, "probe"),
        ]
        return [samsg, deit, long, *masks, *losses]
    if study == "masks":
        return [samsg, deit, long, masks[0]]
    if study == "sensitivity":
        changes: dict[str, dict[str, Any]] = {
            "threshold 0.3": {"mask": {"threshold": 0.3}},
            "threshold 0.7": {"mask": {"threshold": 0.7}},
            "a fifth of the patches": {"mask": {"select": "share"}},
            "Otsu's threshold": {"mask": {"select": "otsu"}},
            "alpha 0.5": {"rollout": {"alpha": 0.5}},
            "alpha 1": {"rollout": {"alpha": 1.0}},
            "product as printed": {"rollout": {"order": "printed"}},
            "mean of CLS and DIST": {"rollout": {"token": "mean"}},
            "masked with ImageNet's grey": {"mask": {"fill": IMAGENET_GREY[0]}},
        }
        names = {title: "".join(c if c.isalnum() else "_" for c in title.lower()) for title in changes}
        return [samsg, *[(names[title], f"SAMSG, {title}", change, "probe") for title, change in changes.items()]]
    raise SamsgError(f"There is no study '{study}'; {nearest(study, STUDIES)}")


STUDIES = ("controls", "masks", "sensitivity")


def variants(profile: Profile, study: str) -> list[Variant]:
    """The variants of a study: 'controls' (all masks and losses), 'masks' (DeiT, as many epochs, random, SAMSG) or
    'sensitivity' (threshold, alpha, order, row, fill).

    Raises:
        SamsgError: there is no such study.
    """
    content = profile.model_dump()
    made = []
    for name, title, change, last in _changes(profile, study):
        groups = {group: {**content[group], **values} for group, values in change.items()}
        changed = Profile(**{**content, **groups, "name": f"{profile.name}.{name}", "variant_of": profile})
        made.append(Variant(name, title, changed if change else profile, last))
    return made


def run_study(
    profile: Profile, study: str, corpora: Iterable[str], protocol: str = "random", seeds: Iterable[int] = (0,)
) -> None:
    """Train every variant on every corpus and seed, up to its last stage; what is finished is not run again."""
    for corpus in corpora:
        for seed in seeds:
            for variant in variants(profile, study):
                stages.run_stages(open_run(variant.profile, corpus, protocol, seed), variant.last)


def study_predictions(
    profile: Profile, study: str, corpus: str, protocol: str = "random", seeds: Iterable[int] = (0,)
) -> pd.DataFrame:
    """Test predictions of all variants on a corpus: columns variant (its title), seed, clip, speaker, emotion,
    predicted, p_<emotion>.

    Raises:
        SamsgError: a variant has not been run.
    """
    frames = []
    for variant in variants(profile, study):
        for seed in seeds:
            run = open_run(variant.profile, corpus, protocol, seed)
            table = read_one(run.require(variant.last) / "predictions.csv").query("part == 'test'")
            table = table.merge(_speakers(run), on="clip", validate="one_to_one")
            frames.append(table.drop(columns="part").assign(variant=variant.title, seed=seed))
    return pd.concat(frames, ignore_index=True)


def _speakers(run: Run) -> pd.DataFrame:
    clips = stages.read_clips(run)[["clip", "speaker"]]
    return clips.assign(speaker=clips["speaker"].where(clips["speaker"] != "", clips["clip"]))  # unknown: one's own


def compare(predictions: pd.DataFrame, reference: str = "SAMSG", draws: int = 2000) -> pd.DataFrame:
    """Every variant, and how it differs from one of them on the same clips.

    Intervals are bootstrapped over speakers, as clips of one speaker resemble each other, and widened for how few these
    are: by t(G - 1) against the normal quantile and by G / (G - 1), G speakers (Cameron & Miller 2015). McNemar's exact
    test takes clips as independent, and is left out where a clip is tested under several seeds. Its p-values are
    corrected by Holm's method for the comparisons of this table. Macro F1 is that of all folds' clips together.

    Args:
        predictions: of ``study_predictions``, or as committed.
        reference: the variant that the others are compared with.
        draws: resamples.

    Returns:
        One row a variant: n, accuracy, accuracy_low, accuracy_high, macro_f1 and its interval, fold_std
        (the standard deviation of accuracy over seeds), difference (of accuracy,
        from the reference) and its interval, only_it and only_reference (clips that one alone gets right), p, p_holm.
    """
    classes = sorted({*predictions["emotion"], *predictions["predicted"]})
    groups = predictions["speaker"].nunique()
    repeated = predictions.duplicated(["variant", "clip"]).any()
    keyed = predictions.assign(clip=predictions["clip"] + "/" + predictions["seed"].astype(str))
    base, rows = keyed[keyed["variant"] == reference], []
    for title, table in keyed.groupby("variant", sort=False):
        its = summarise(table.drop(columns="seed"), classes, cluster="speaker", draws=draws)
        folds = table.groupby("seed")[["emotion", "predicted"]].apply(
            lambda fold: (fold["emotion"] == fold["predicted"]).mean()
        )
        row = {"variant": title, "n": its.n, "fold_std": folds.std()}
        for name, estimate in (("accuracy", its.accuracy), ("macro_f1", its.macro_f1)):
            low, high = _widened(estimate.value, estimate.low, estimate.high, groups)
            row |= {name: estimate.value, f"{name}_low": max(0.0, low), f"{name}_high": min(1.0, high)}
        if title != reference:
            test = mcnemar(table, base)
            gain = row["accuracy"] - float((base["emotion"] == base["predicted"]).mean())
            low, high = _widened(gain, *bootstrap_difference(table, base, "speaker", draws), groups)
            row |= {"difference": gain, "difference_low": max(-1.0, low), "difference_high": min(1.0, high)}
            row |= {"p": np.nan if repeated else test.p_value}
            row |= {"only_it": test.first_only, "only_reference": test.second_only}
        rows.append(row)
    table = pd.DataFrame(rows).set_index("variant")
    return table.assign(p_holm=holm(table["p"]))


def printable(compared: pd.DataFrame) -> pd.DataFrame:
    """``compare`` as text: percentages with intervals, one row a variant."""

    def interval(row: pd.Series, name: str, form: str) -> str:
        if pd.isna(row[name]):
            return "-"
        value, low, high = (format(100 * row[f"{name}{end}"], form) for end in ("", "_low", "_high"))
        return f"{value} [{low}, {high}]"

    rows = {
        variant: {
            "Accuracy (%)": interval(row, "accuracy", ".1f"),
            "Macro F1 (%)": interval(row, "macro_f1", ".1f"),
            "± over folds": "-" if pd.isna(row["fold_std"]) else f"{100 * row['fold_std']:.1f}",
            "Difference": interval(row, "difference", "+.1f"),
            "Only it / only SAMSG": "-"
            if pd.isna(row["difference"])
            else f"{row['only_it']:.0f} / {row['only_reference']:.0f}",
            "p": "-" if pd.isna(row["p"]) else f"{row['p']:.3f}",
            "p (Holm)": "-" if pd.isna(row["p"]) else f"{row['p_holm']:.3f}",
            "Test clips": f"{row['n']:.0f}",
        }
        for variant, row in compared.iterrows()
    }
    return pd.DataFrame(rows).T.rename_axis("Method")


def write_predictions(predictions: pd.DataFrame, path: Path) -> None:
    """Keep what a table is made of, small: no probabilities."""
    kept = [column for column in predictions if not column.startswith("p_")]
    with atomic(path) as partial:
        predictions[kept].to_csv(partial, index=False)


def follows_sentence(predictions: pd.DataFrame, clips: pd.DataFrame) -> float:
    """Of clips whose sentence is another emotion's own in training: the share that is taken for that emotion.

    Args:
        predictions: with columns clip, predicted.
        clips: of the corpus at strength 1, whose training clips tell each emotion's own sentence; test clips are the
            same at every strength.
    """
    train = clips[clips["part"] == "train"]
    own = train.groupby("sentence")["emotion"].first()
    table = predictions.merge(clips[["clip", "sentence"]], on="clip", validate="many_to_one")
    told = table["sentence"].map(own)
    misled = told.notna() & (told != table["emotion"])
    return float((table["predicted"] == told)[misled].mean())


def masked_where(profile: Profile, corpus: str, protocol: str = "random", seed: int = 0) -> pd.DataFrame:
    """Of every training clip in its clean view: the share of patches that are masked, of cells that become black, of
    patches that are padding (every window of theirs lies behind the clip's end), and of masked ones that are."""
    run = open_run(profile, corpus, protocol, seed)
    clips, masks = stages.read_clips(run), np.load(run.require("masks") / "masks.npy", mmap_mode="r")[0]
    train = (clips["part"] == "train").to_numpy()
    starts = np.arange(masks.shape[2]) * profile.model.stride * profile.audio.hop  # samples, of each column of patches
    ends = clips["samples"].to_numpy()[train, None] + profile.audio.window / 2
    behind = np.repeat((starts >= ends)[:, None], masks.shape[1], axis=1)  # (n, 12, 99)
    its = masks[train]
    both = (its & behind).sum((1, 2)) / np.maximum(its.sum((1, 2)), 1)
    size, patch, stride = profile.audio.n_mels * profile.audio.n_frames, profile.model.patch, profile.model.stride
    black = covered(torch.from_numpy(its), patch, stride).numpy() / size
    shares = {
        "masked": its.mean((1, 2)),
        "black": black,
        "padding": behind.mean((1, 2)),
        "masked that is padding": both,
    }
    return pd.DataFrame(shares, index=clips.loc[train, "clip"])


def distinct_masks(profile: Profile, study: str, corpus: str) -> list[Variant]:
    """The variants of a study that have masks of their own, each kind once."""
    of_masks: dict[Path, Variant] = {}
    for variant in variants(profile, study):
        if variant.last == "probe" and variant.profile.mask.strategy != "none":
            of_masks.setdefault(open_run(variant.profile, corpus).stage_folder("masks"), variant)
    return list(of_masks.values())


def mask_map(profile: Profile, corpus: str, protocol: str = "random", seed: int = 0) -> np.ndarray:
    """How often each patch is masked in the clean training views: (12, 99)."""
    run = open_run(profile, corpus, protocol, seed)
    train = (stages.read_clips(run)["part"] == "train").to_numpy()
    return np.load(run.require("masks") / "masks.npy", mmap_mode="r")[0][train].mean(0)


def _widened(value: float, low: float, high: float, groups: int) -> tuple[float, float]:
    """A percentile interval, widened for having been drawn from few groups; all there is, for one."""
    if groups < 2:
        return -1.0, 1.0
    factor = (groups / (groups - 1)) ** 0.5 * stats.t.ppf(0.975, groups - 1) / stats.norm.ppf(0.975)
    return value - factor * (value - low), value + factor * (high - value)


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for how many they are (Holm 1979); missing ones stay missing."""
    ordered = p.dropna().sort_values()
    steps = pd.Series(range(len(ordered), 0, -1), index=ordered.index)
    return (ordered * steps).cummax().clip(upper=1).reindex(p.index)


def with_shortcut(profile: Profile, strength: float) -> Profile:
    """A profile whose embedded EmoDB has a shortcut of this strength: emotion tied to sentence in training."""
    content, named = profile.model_dump(), {"speakers": 10, "shortcut": strength}
    corpus = {"title": "EmoDB", "root": f"data/synthetic/shortcut{strength:g}", "synthetic": named, "reader": "emodb"}
    return Profile(**{**content, "name": f"{profile.name}.shortcut{strength:g}", "corpora": {"emodb": corpus}})
