"""What holds for any model, mask, sound, corpus and result, tried on many."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference
from timm.models import VisionTransformer

from samsg.audio.views import make_view
from samsg.corpora.splits import PARTS, split
from samsg.method.deit import SpectrogramDeiT
from samsg.method.masking import control_patches, covered, important_patches, mask_spectrogram
from samsg.method.rollout import attention_rollout, rollout_row
from samsg.report import metrics
from samsg.settings import AudioSettings, SamsgError, ViewSettings
from samsg.studies import holm

seeds = st.integers(0, 2**31)
shares = st.floats(0, 1)


def some(examples: int) -> settings:
    return settings(deadline=None, max_examples=examples, derandomize=True)


# Rollout


@some(60)
@given(
    seeds,
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.0, 0.1, 1.0, 10.0, 300.0]),
    shares,
    st.sampled_from(["abnar", "printed"]),
    st.sampled_from(["cls", "mean"]),
    st.integers(1, 3),
)
def test_a_row_of_the_rollout_is_a_distribution(seed, depth, heads, sharpness, alpha, order, token, clips) -> None:
    """Of any ViT, from even attention to attention that is all on one token."""
    torch.manual_seed(seed)
    shape = {"img_size": (8, 12), "patch_size": 4, "in_chans": 1, "embed_dim": 16, "num_classes": 0}
    model = VisionTransformer(**shape, depth=depth, num_heads=heads, reg_tokens=1).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(sharpness)
    row = rollout_row(model, torch.randn(clips, 1, 8, 12), alpha, order, token)
    assert row.shape == (clips, 2 + 6)
    assert row.min() >= 0
    # 8 float32 numbers, 4 layers; scores in the thousands are rounded to 0.0001, and weights are their exponentials.
    torch.testing.assert_close(row.sum(1), torch.ones(clips), rtol=0, atol=1e-5 * max(1, sharpness))


@pytest.fixture(scope="module")
def model() -> SpectrogramDeiT:
    torch.manual_seed(0)
    made = SpectrogramDeiT(n_classes=3, size="tiny", depth=2, n_mels=36, n_frames=46).eval()
    with torch.no_grad():
        for block in made.vit.blocks:
            block.attn.qkv.weight.mul_(6)
    return made


@some(20)
@given(seeds, st.permutations(range(5)), st.sampled_from(["max", "minmax"]))
@torch.no_grad()
def test_clips_in_another_order_give_the_same_in_that_order(model, seed, order, scale) -> None:
    x = torch.rand(5, 1, 36, 46, generator=torch.Generator().manual_seed(seed))
    heat, turned = attention_rollout(model, x), attention_rollout(model, x[order])
    torch.testing.assert_close(turned, heat[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x[order]), model(x)[order], rtol=1e-4, atol=1e-5)
    masks, turned_masks = (important_patches(each, 0.5, scale) for each in (heat, turned))
    least = heat.amin((1, 2), keepdim=True) if scale == "minmax" else 0
    decided = ((heat - least) / (1 - least) - 0.5).abs() > 1e-4  # not so near the threshold that rounding decides
    assert torch.equal((masks & decided)[order], turned_masks & decided[order])
    assert torch.equal(mask_spectrogram(x, masks)[order], mask_spectrogram(x[order], masks[order]))


# Masks


grids = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))


@some(60)
@given(seeds, grids, shares, st.floats(-10, 10, width=32))
def test_a_masked_spectrogram_differs_where_a_masked_patch_lies_and_is_the_fill_there(seed, grid, share, fill) -> None:
    rows, columns, patch, stride, rim = grid
    generator = torch.Generator().manual_seed(seed)
    size = ((rows - 1) * stride + patch + rim, (columns - 1) * stride + patch + rim)
    x = 20 + torch.rand(2, 1, *size, generator=generator)  # never the fill
    mask = torch.rand(2, rows, columns, generator=generator) < share
    expected = x.clone()
    for clip, row, column in mask.nonzero().tolist():
        top, left = row * stride, column * stride
        expected[clip, 0, top : top + patch, left : left + patch] = fill
    assert torch.equal(mask_spectrogram(x, mask, patch, stride, fill), expected)
    assert torch.equal(covered(mask, patch, stride), (expected != x).sum((1, 2, 3)))


@some(40)
@given(seeds, st.lists(shares, min_size=2, max_size=5), st.sampled_from(["max", "minmax"]), st.integers(1, 4))
def test_the_masked_area_falls_as_the_threshold_rises(seed, thresholds, scale, levels) -> None:
    """Where many patches have the same rollout too."""
    heat = torch.randint(levels + 1, (2, 5, 7), generator=torch.Generator().manual_seed(seed)) / levels
    heat[:, 0, 0] = 1
    areas = torch.stack([covered(important_patches(heat, each, scale)) for each in sorted(thresholds)])
    assert (areas.diff(dim=0) <= 0).all()


@some(40)
@given(
    seeds,
    shares,
    st.sampled_from(["random", "least", "stripes"]),
    st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 6)),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_control_masks_cover_no_more_and_at_most_a_patch_less(seed, share, strategy, shape, stride, levels) -> None:
    rows, columns, patch = shape
    generator = torch.Generator().manual_seed(seed)
    heat = torch.randint(levels + 1, (3, rows, columns), generator=generator) / max(1, levels)  # ties, or all alike
    important = torch.rand(3, rows, columns, generator=generator) < share
    mask = control_patches(strategy, heat, important, generator, patch, stride)
    missing = covered(important, patch, stride) - covered(mask, patch, stride)
    assert missing.min() >= 0 and missing.max() < patch * patch


# Views


@some(60)
@given(
    seeds,
    st.integers(1, 12_000),
    st.sampled_from(["clean", "noise", "shift", "speed"]),
    st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e6]),
    st.floats(-20, 80),
    st.floats(0, 2),
    st.floats(0.1, 10),
)
def test_views_of_any_waveform_have_one_length_and_are_numbers(seed, length, view, loudness, snr, shift, speed) -> None:
    audio = AudioSettings(seconds=0.25)
    views = ViewSettings(snr=(snr, snr + 1), shift=shift, speed=(speed, min(10, speed + 0.1)))
    waveform = loudness * torch.randn(length, generator=torch.Generator().manual_seed(seed))
    made = make_view(waveform, "clip", view, audio, views)
    assert made.shape == (4000,) and made.dtype == torch.float32
    assert made.isfinite().all()


# Splits


@some(60)
@given(st.data(), st.sampled_from(["random", "speaker", "sentence"]), st.integers(0, 100))
def test_splits_of_any_corpus_keep_each_clip_in_one_part_and_groups_whole(data, protocol, seed) -> None:
    n = data.draw(st.integers(9, 60))
    emotions = data.draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n))
    groups = data.draw(st.lists(st.integers(0, 12).map(str), min_size=n, max_size=n))
    clips = [f"{number}.wav" for number in range(n)]
    manifest = pd.DataFrame({"clip": clips, "emotion": emotions, "speaker": groups, "sentence": groups})
    assume(manifest["emotion"].value_counts().min() >= 3)
    try:
        parts = split(manifest, protocol, seed)
    except SamsgError:
        assert protocol != "random" and manifest[protocol].nunique() < 3
        return
    assert parts.drop(columns="part").equals(manifest)
    assert set(parts["part"]) == set(PARTS)
    if protocol != "random":
        assert (parts.groupby(protocol)["part"].nunique() == 1).all()


# Metrics


matrices = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), min_size=n, max_size=n)
)


@some(100)
@given(matrices)
def test_scores_of_any_confusion_matrix_are_scikit_learns(counts) -> None:
    counts = np.array(counts)
    assume(counts.any())
    classes = [f"c{number}" for number in range(len(counts))]
    true, said = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    truth, predicted = ([classes[index] for index in each] for each in (true, said))
    accuracy, macro_f1 = metrics._scores(counts[None])
    assert accuracy[0] == pytest.approx(reference.accuracy_score(truth, predicted))
    expected = reference.f1_score(truth, predicted, labels=classes, average="macro", zero_division=0)
    assert macro_f1[0] == pytest.approx(expected)
    assert metrics.macro_f1(truth, predicted, classes) == pytest.approx(expected)
    assert (metrics.confusion_matrix(truth, predicted, classes).to_numpy() == counts).all()
    clips = [str(number) for number in range(len(truth))]
    table = pd.DataFrame({"clip": clips, "emotion": truth, "predicted": predicted})
    summary = metrics.summarise(table, classes, draws=50)
    assert summary.accuracy.low <= summary.accuracy.value <= summary.accuracy.high
    assert 0 <= summary.macro_f1.low <= summary.macro_f1.high <= 1
    assert sum(summary.support.values()) == summary.n == len(truth)


@some(200)
@given(st.integers(1, 10_000), shares)
def test_wilsons_interval_holds_its_estimate_and_mirrors_its_complement(n, share) -> None:
    correct = round(share * n)
    low, high = metrics.wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    mirrored = metrics.wilson_interval(n - correct, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)
    wider = metrics.wilson_interval(4 * correct, 4 * n)
    assert wider[1] - wider[0] < high - low  # four times the clips, less doubt
    centre, quantile = (low + high) / 2, stats.norm.ppf(0.975)
    assert centre == pytest.approx((correct + quantile**2 / 2) / (n + quantile**2))  # Wilson (1927)


@some(100)
@given(st.lists(shares | st.just(float("nan")), max_size=12))
def test_holms_correction_lowers_no_p_and_keeps_their_order(p) -> None:
    raw = pd.Series(p, dtype=float)
    corrected = holm(raw)
    assert corrected.index.equals(raw.index) and (corrected.isna() == raw.isna()).all()
    known = raw.dropna().sort_values()
    its = corrected[known.index]
    assert (its >= known).all() and (its <= 1).all() and its.is_monotonic_increasing
    assert (its <= (known * len(known)).clip(upper=1)).all()  # never more than Bonferroni's
    if len(known):
        assert its.iloc[0] == min(1, known.iloc[0] * len(known))
