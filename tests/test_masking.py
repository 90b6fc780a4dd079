"""Masks: which patches, which cells, which loss; on a few cells by hand and on the paper's grid."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samsg import masking
from samsg.masking import choose_patches, covered, fill_area, important_patches, masked_cells, partly_black
from samsg.model import patchify
from samsg.settings import MaskSettings

SIZE = (128, 1001)


def only(*places: tuple[int, int], grid: tuple[int, int] = (12, 99)) -> torch.Tensor:
    """A mask (1, 12, 99) of these patches."""
    mask = torch.zeros(1, *grid, dtype=torch.bool)
    for row, column in places:
        mask[0, row, column] = True
    return mask


def spectrogram(batch: int = 1, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    """Cells between 0.1 and 0.9, so that no cell looks masked by chance."""
    return 0.1 + 0.8 * torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(seed))


def test_a_patch_is_important_strictly_above_the_threshold():
    heat = torch.tensor([[[0.0, 0.5, 0.5 + 2**-24, 0.49999, 1.0]]])
    assert important_patches(heat, 0.5).tolist() == [[[False, False, True, False, True]]]
    assert important_patches(heat, 1.0).sum() == 0
    assert torch.equal(important_patches(heat), important_patches(heat, 0.5))


def test_the_error_is_summed_over_masked_patches_alone() -> None:
    # One row of three patches in each of two clips, off by 1, 2 and 3 throughout.
    x = spectrogram(2, (16, 36))
    off = patchify(x) + torch.tensor([1.0, 2.0, 3.0])[:, None]

    def error(first: list[bool], second: list[bool]) -> tuple[float, float]:
        total, count = masking.reconstruction_error(off, x, torch.tensor([[first], [second]]))
        return float(total), float(count)

    assert error([True, False, True], [False] * 3) == pytest.approx((1 + 9, 2), rel=1e-5)
    assert error([True, True, True], [True, False, False]) == pytest.approx((1 + 4 + 9 + 1, 4), rel=1e-5)
    assert error([False] * 3, [False] * 3) == (0, 0)
    x, mask = spectrogram(2, (7, 10)), torch.tensor([[[True, False, False], [False, False, True]], [[False] * 3] * 2])
    total, count = masking.reconstruction_error(patchify(x, 4, 3) + 2, x, mask, 4, 3)
    assert total == pytest.approx(2 * 4, rel=1e-5) and count == 2


def test_each_clips_rollout_is_stretched_over_its_own_range_in_both_directions() -> None:
    heat = torch.tensor([[[0.8, 0.84], [0.92, 1.0]], [[1.0, 0.4], [0.2, 0.0]], [[0.6, 0.81], [1.0, 0.79]]])
    stretched = important_patches(heat, scale="minmax")
    assert stretched.tolist() == [[[0, 0], [1, 1]], [[1, 0], [0, 0]], [[0, 1], [1, 0]]]


@pytest.mark.parametrize(("share", "expected"), [(None, 21), (0.0, 0), (0.5, 54), (0.999, 107), (1.0, 108)])
def test_a_share_is_of_all_patches_and_rounded_down(share, expected) -> None:
    heat = torch.rand(2, 12, 9, generator=torch.Generator().manual_seed(0))
    found = important_patches(heat, select="share", **({} if share is None else {"share": share}))
    assert found.sum((1, 2)).tolist() == [expected, expected]
    for values, mask in zip(heat, found, strict=True):
        assert torch.equal(values[mask].sort().values, values.flatten().sort().values[108 - expected :])
    ties = torch.tensor([[[1.0, 3.0, 2.0], [3.0, 0.0, 3.0]], [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]])  # the first are taken
    assert important_patches(torch.rand(1, 9, 10), select="share", share=0.7).sum() == 63  # 0.7 * 90 = 62.99...
    half = important_patches(ties, select="share", share=0.5)
    assert half.tolist() == [[[0, 1, 0], [1, 0, 1]], [[1, 1, 1], [0, 0, 0]]]


def greedy(order: list[tuple[int, int]], area: int, shape: tuple[int, int], patch: int, stride: int):
    """Patches in the order given as long as they cover no more cells than the area; and how many they cover."""
    taken, cells = torch.zeros(shape, dtype=torch.bool), set()
    for row, column in order:
        more = {(stride * row + y, stride * column + x) for y in range(patch) for x in range(patch)}
        if len(cells | more) > area:
            break
        taken[row, column] = True
        cells |= more
    return taken, len(cells)


@pytest.mark.parametrize(("patch", "stride"), [(16, 10), (4, 3), (5, 5)])
def test_an_area_is_filled_in_order_as_long_as_no_more_is_covered(patch, stride) -> None:
    rows, columns, clips = 4, 7, 8
    generator = torch.Generator().manual_seed(1)
    values, heat = (torch.rand(clips, rows, columns, generator=generator) for _ in range(2))
    important = heat > torch.tensor([1.0, 0.95, 0.9, 0.7, 0.5, 0.3, 0.1, -1.0])[:, None, None]
    found = fill_area(values, torch.ones_like(important), covered(important, patch, stride), patch, stride)
    places = list(itertools.product(range(rows), range(columns)))
    for clip in range(clips):
        area = greedy([place for place in places if important[clip][place]], 10**6, (rows, columns), patch, stride)[1]
        order = sorted(places, key=lambda place: -values[clip][place])
        expected, cells = greedy(order, area, (rows, columns), patch, stride)
        assert torch.equal(found[clip], expected)
        assert area - patch**2 < cells <= area
        assert covered(important, patch, stride)[clip] == area and covered(found, patch, stride)[clip] == cells


def test_a_patch_is_of_speech_unless_all_its_cells_have_the_lowest_value() -> None:
    spectrogram = torch.zeros(2, 1, 128, 1001)
    spectrogram[0, :, :, :500] = 0.3  # column c begins with frame 10 c: columns 0 to 49 hold speech
    spectrogram[1, :, 20, 700] = 1.0  # a single cell: rows 1 and 2 and columns 69 and 70 hold it
    found = masking.speech_patches(spectrogram)
    assert found.shape == (2, 12, 99) and found.dtype == torch.bool
    assert torch.equal(found[0], (torch.arange(99) < 50).expand(12, 99))
    assert found[1].nonzero().tolist() == [[1, 69], [1, 70], [2, 69], [2, 70]]


def test_only_speech_counts_and_is_important() -> None:
    heat = torch.tensor([[[0.2, 0.3, 0.5, 1.0, 0.9]], [[0.1, 0.2, 0.4, 0.8, 1.0]]])
    speech = torch.tensor([[[True, True, True, False, False]], [[True] * 5]])
    assert important_patches(heat, speech=speech).tolist() == [[[0, 1, 1, 0, 0]], [[0, 0, 0, 1, 1]]]
    stretched = important_patches(heat, 0.3, "minmax", speech=speech)  # 0, 1/3, 1 of the first clip
    assert stretched.tolist() == [[[0, 1, 1, 0, 0]], [[0, 0, 1, 1, 1]]]
    share = important_patches(heat, select="share", share=0.4, speech=speech)  # 1 of 3 and 2 of 5
    assert share.tolist() == [[[0, 0, 1, 0, 0]], [[0, 0, 0, 1, 1]]]


def test_settings_choose_patches_and_whether_padding_may_be_masked() -> None:
    heat = torch.rand(2, 12, 20, generator=torch.Generator().manual_seed(0))
    speech = (torch.arange(20) < torch.tensor([9, 20])[:, None, None]).expand(2, 12, 20)

    def chosen(**changes) -> torch.Tensor:
        return choose_patches(heat, MaskSettings(**changes), torch.Generator().manual_seed(1), 16, 10, speech)

    for select, padding in itertools.product(("threshold", "share"), ("include", "exclude")):
        allowed = speech if padding == "exclude" else torch.ones_like(speech)
        changes = {"threshold": 0.7, "scale": "minmax", "share": 0.3, "select": select, "padding": padding}
        important = important_patches(heat, 0.7, "minmax", select, 0.3, allowed)
        assert torch.equal(chosen(**changes), important)
        drawn = torch.rand(heat.shape, generator=torch.Generator().manual_seed(1))
        for strategy, order in {"random": drawn, "least": -heat}.items():
            control = fill_area(order, allowed, covered(important), 16, 10)
            assert torch.equal(chosen(strategy=strategy, **changes), control)
    assert (chosen(select="share") & ~speech).any() and not chosen(strategy="none").any()
    assert torch.equal(chosen(), heat > 0.5 * heat.amax((1, 2), True))
    coarse = choose_patches(heat, MaskSettings(strategy="least"), torch.Generator(), 5, 5, speech)
    assert torch.equal(coarse, fill_area(-heat, torch.ones_like(speech), covered(chosen(), 5, 5), 5, 5))


def test_deletion_takes_the_patch_of_the_highest_value_first_and_insertion_shows_it_alone() -> None:
    x = spectrogram(2, (16, 48))
    x[..., 32:] = 0  # padding: 4 x 8 patches of 4 x 4 cells are speech
    heat = torch.rand(2, 4, 12, generator=torch.Generator().manual_seed(1))
    heat[0, 1, 2] = heat[1, 3, 5] = 2
    deletion, insertion = partly_black(x, heat, 1 / 32, 4, 4)
    cells = masked_cells(heat == 2, (16, 48), 4, 4)
    assert torch.equal(deletion, x * ~cells) and torch.equal(insertion, x * cells)


@pytest.mark.parametrize("share", (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1))
def test_every_map_hides_or_shows_the_same_area_of_speech_and_no_padding(share: float) -> None:
    x = 0.1 + torch.rand(2, 1, 128, 101, generator=torch.Generator().manual_seed(0))
    x[0, ..., 60:] = x[1, ..., 95:] = 0.05  # padding has the lowest value; black is 0
    speech = masking.speech_patches(x)  # (2, 12, 9)
    cells, area = masked_cells(speech, (128, 101)), covered(speech) * share
    for heat in (torch.arange(216.0).view(2, 12, 9), torch.rand(2, 12, 9), -speech.float()):  # the last prefers padding
        black, shown = (each == 0 for each in partly_black(x, heat, share))
        missing = area - black.sum((1, 2, 3))
        assert missing.min() >= 0 and missing.max() < 16 * 16  # one patch more would be too much
        assert torch.equal(shown, cells & ~black) and not (black & ~cells).any()


seeds, shares = st.integers(0, 2**31), st.floats(0, 1)
grids = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))


def test_patches_of_16_cells_every_10_become_black_unless_said_otherwise() -> None:
    x, mask = spectrogram(), only((2, 5))
    assert torch.equal(important_patches(0.0 * mask, select="share", share=1.0, speech=mask), mask)  # not beside it
    assert torch.equal(masking.mask_spectrogram(x, mask), x.masked_fill(masked_cells(mask, SIZE, 16, 10), 0))
    assert torch.equal(masking.speech_patches(x), masking.speech_patches(x, 16, 10))


def examples(number: int) -> settings:
    return settings(deadline=None, max_examples=number, derandomize=True)


@examples(60)
@given(seeds, grids, shares, st.floats(-10, 10, width=32))
def test_a_masked_spectrogram_differs_where_a_masked_patch_lies_and_is_the_fill_there(seed, grid, share, fill) -> None:
    rows, columns, patch, stride, rim = grid
    generator = torch.Generator().manual_seed(seed)
    size = ((rows - 1) * stride + patch + rim, (columns - 1) * stride + patch + rim)
    x = 20 + torch.rand(2, 1, *size, generator=generator)  # never the fill
    before, mask = x.clone(), torch.rand(2, rows, columns, generator=generator) < share
    expected = x.clone()
    for clip, row, column in mask.nonzero().tolist():
        top, left = row * stride, column * stride
        expected[clip, 0, top : top + patch, left : left + patch] = fill
    assert torch.equal(masking.mask_spectrogram(x, mask, patch, stride, fill), expected)
    assert torch.equal(covered(mask, patch, stride), (expected != x).sum((1, 2, 3)))
    assert torch.equal(x, before)


@examples(40)
@given(seeds, st.lists(shares, min_size=2, max_size=5), st.sampled_from(["max", "minmax"]), st.integers(1, 4))
def test_a_higher_threshold_masks_no_further_patch(seed, thresholds, scale, levels) -> None:
    """Where many patches have the same rollout too."""
    heat = torch.randint(levels + 1, (2, 5, 7), generator=torch.Generator().manual_seed(seed)) / levels
    heat[:, 0, 0] = 1
    masks = torch.stack([important_patches(heat, threshold, scale) for threshold in sorted(thresholds)])
    assert (masks[1:] <= masks[:-1]).all()


@examples(60)
@given(seeds, shares, st.tuples(*[st.integers(1, 6)] * 4), st.integers(0, 3), st.booleans())
def test_controls_cover_no_more_and_less_than_a_patch_less(seed, share, shape, levels, padded) -> None:
    rows, columns, patch, stride = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(levels + 1, (3, rows, columns), generator=generator) / max(1, levels)  # ties, or all alike
    important = torch.rand(3, rows, columns, generator=generator) < share
    ends = torch.randint(1, columns + 1, (3, 1, 1), generator=generator) if padded else torch.tensor(columns)
    speech = (torch.arange(columns) < ends).expand(3, rows, columns)
    important = important & speech
    mask = fill_area(values, speech, covered(important, patch, stride), patch, stride)
    missing = covered(important, patch, stride) - covered(mask, patch, stride)
    assert missing.min() >= 0 and missing.max() < patch * patch
    assert not (mask & ~speech).any()
