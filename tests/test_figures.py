"""Figures: their content, where patches lie on a spectrogram, legible text, and the same bytes each time."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_rgb
from torchaudio.functional import melscale_fbanks

from samsg import figures
from samsg.settings import AudioSettings

AUDIO = AudioSettings()
CLASSES = ["anger", "fear", "neutral"]
NOTE = "synthetic speech"
EMPTY = np.zeros((128, 1001), dtype=np.float32)


def history(top=2.0, measures=("loss", "accuracy")):
    """Four epochs; the values of every measure fall from ``top`` to 0.5."""
    parts, values = ("train", "validation", "test"), np.linspace(top, 0.5, 4)
    return pd.DataFrame({"epoch": range(1, 5)} | {f"{part}_{name}": values for part in parts for name in measures})


def matrices(*titles):
    """A panel of 15 clips for each title, of which two are predicted as fear."""
    truth = np.repeat(CLASSES, 5)
    table = pd.DataFrame({"emotion": truth, "predicted": np.where(np.arange(15) % 5 == 0, "fear", truth)})
    return figures.confusion_matrices(dict.fromkeys(titles, table), dict.fromkeys(titles, CLASSES), NOTE)


def compared():
    value = np.array([0.4, 0.6])
    ends = {"accuracy": value, "accuracy_low": value - 0.1, "accuracy_high": value + 0.2}
    return pd.DataFrame(ends, index=["DeiT", "SAMSG"])


@pytest.fixture
def ax():
    return figures.panels(1, 1, (figures.WIDTH, 3))[1][0, 0]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_figure_5():
    figure = matrices("SAVEE", "EmoDB", "CREMA-D")
    *panels, bar = figure.axes  # one colour bar for all
    assert [ax.get_title() for ax in panels] == ["(a) SAVEE", "(b) EmoDB", "(c) CREMA-D"]
    assert figure.get_suptitle() == "Synthetic speech" and "share" in bar.get_xlabel()
    assert [text.get_text() for text in panels[1].texts] == ["4", "1", "0", "0", "5", "0", "0", "1", "4"]
    share = panels[1].collections[0].get_array()
    np.testing.assert_allclose(np.ravel(share), [0.8, 0.2, 0, 0, 1, 0, 0, 0.2, 0.8])
    assert labels(panels[0].yaxis) == labels(panels[2].xaxis) == CLASSES
    assert panels[0].get_ylabel() == "True emotion" and panels[2].get_xlabel() == "Predicted emotion"
    assert matrices("EmoDB").axes[0].get_title() == "EmoDB"  # one has no letter; a fourth begins a row
    assert [ax.get_title() for ax in matrices(*"wxyz").axes] == ["(a) w", "(b) x", "(c) y", "(d) z", ""]


FIGURES = {
    "confusion": lambda: matrices("SAVEE", "EmoDB", "CREMA-D"),
    "confusion of one corpus": lambda: matrices("EmoDB"),
    "curves": lambda: figures.learning([history()], "Stage i", NOTE),
    "comparison": lambda: figures.comparison(dict.fromkeys(("SAVEE", "EmoDB", "CREMA-D"), compared()), note=NOTE),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_text_is_of_one_size_and_inside_the_figure(kind):
    figure = FIGURES[kind]()
    for _ in range(2):
        figure.draw_without_rendering()
    shown = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    assert {text.get_fontsize() for text in shown} == {figures.FONT_SIZE}
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height


def test_figures_have_a_text_alternative():
    data, metadata = DisplayFormatter().format(figures.learning([history()], "Stage i", NOTE))
    text = "Synthetic speech. Stage i. Cross-entropy loss. Epoch. Accuracy"
    assert data["text/plain"] == metadata["image/png"]["alt"] == text


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for folder in ("first", "second"):
        figures.save_figure(matrices("EmoDB"), tmp_path / folder, "figure5")
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"figure5.png", "figure5.pdf"}
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
        assert b"CreationDate" not in path.read_bytes() and b"Software" not in path.read_bytes()
    assert plt.get_fignums() == []


def test_learning_curves_show_all_parts():
    stage_ii = figures.learning([history(measures=("loss", "accuracy", "reconstruction"))] * 2, "Stage ii", NOTE)
    names = ["Cross-entropy loss", "Accuracy", "Reconstruction loss (MSE)"]
    assert [ax.get_ylabel() for ax in stage_ii.axes] == names
    assert [ax.get_ylabel() for ax in figures.learning([history()]).axes] == names[:2]
    assert stage_ii.axes[0].get_title(loc="left") == "Stage ii"
    assert [line.get_label() for line in stage_ii.axes[1].get_lines()] == ["train", "validation", "test"]


def test_a_comparison_has_a_dot_and_an_interval_for_each_method():
    figure = figures.comparison({"speaker": compared(), "sentence": compared().iloc[1:]}, reference=1 / 7, note=NOTE)
    first, second = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["speaker", "sentence"] and first.get_xlim() == second.get_xlim()
    assert labels(first.yaxis) == ["DeiT", "SAMSG"] and first.get_ylim() == (1.5, -0.5)  # the first method on top
    dots, reference = first.get_lines()
    np.testing.assert_allclose(dots.get_xydata(), [[40, 0], [60, 1]])
    assert reference.get_xdata()[0] == pytest.approx(100 / 7)
    ends = np.array(first.collections[0].get_segments())[..., 0]
    np.testing.assert_allclose(ends, [[30, 60], [50, 80]])
    np.testing.assert_allclose(second.get_lines()[0].get_xydata(), [[60, 1]])  # beside its name in the first panel


def test_spectrogram_axes(ax):
    image = figures.spectrogram(ax, EMPTY, AUDIO, "Clip")
    figures.colour_bar(image, ax, "Level")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("Time (s)", "Frequency (Hz)", "Clip")
    # 1001 frames centred 4 ms apart from 0 to 4 s; 128 bands.
    assert image.get_extent() == pytest.approx([-0.002, 4.002, -0.5, 127.5])
    assert ax.figure.axes[1].get_ylabel() == "Level" and not ax.patches
    assert labels(ax.yaxis) == ["250", "500", "1k", "2k", "4k"]  # each at the band that responds most to it
    bands = melscale_fbanks(8001, 0.0, 8000.0, 128, AUDIO.sample_rate, norm=None, mel_scale="htk")  # 1 Hz a bin
    np.testing.assert_allclose(ax.get_yticks(), bands[[250, 500, 1000, 2000, 4000]].argmax(1), atol=0.5)


def test_padding_is_grey_and_colours_have_the_range_of_the_recording(ax):
    level = np.where(np.arange(1001) > 375, 0, np.linspace(0.4, 0.9, 1001)) * np.ones((128, 1))
    image = figures.spectrogram(ax, level, AUDIO, end=1.5)  # frame 375
    assert image.get_clim() == (0.4, level[0, 375])
    (grey,) = ax.patches
    assert (grey.get_x(), grey.get_x() + grey.get_width()) == pytest.approx((1.5, 4.002))
    assert list(ax.get_lines()[0].get_xdata()) == [1.5, 1.5]


def test_an_overlay_shows_a_patch_around_its_centre(ax):
    image = figures.overlay(ax, EMPTY, np.zeros((12, 99)), AUDIO, title="Clip", end=2.0)
    assert ax.get_title() == "Clip" and len(ax.patches) == 1 and image.get_clim() == (0, 1)
    # The first patch covers cells 0 to 15, so its centre is at 7.5, and the 10 cells around that are 3 to 12.
    left, right, bottom, top = image.get_extent()
    assert (left / 0.004, right / 0.004) == pytest.approx((2.5, 992.5)) and (bottom, top) == (2.5, 122.5)
    assert ax.get_xlim() == pytest.approx((-0.002, 4.002)) and ax.get_ylim() == (-0.5, 127.5)
    assert image.get_cmap()(0.0)[3] == 0  # transparent where the map is 0


def test_attention_to_the_padding_does_not_count_as_the_highest():
    windows, rising = pd.DataFrame({"start": [0.0], "p_anger": [1.0]}), np.linspace(0, 1, 99) * np.ones((1, 12, 1))
    figure = figures.timeline(np.ones(16_000), windows, EMPTY, rising, AUDIO, 16, 10)  # 1 s: 25 columns of the map
    assert figure.axes[2].collections[0].get_array()[:, 24].max() == 1


def test_masked_cells_are_black_and_the_others_keep_their_colours(ax):
    level, masked = np.random.default_rng(0).random((128, 1001)), np.zeros((128, 1001), dtype=bool)
    masked[20:36, 100:126] = True
    image = figures.spectrogram(ax, np.ma.masked_array(level, masked), AUDIO, "masked")
    assert (image.get_array().mask == masked).all()
    assert image.get_clim() == (level.min(), level.max()) and to_rgb(image.get_cmap().get_bad()) == (0, 0, 0)
    figures.mask_outline(ax, masked, AUDIO)  # runs round these cells
    ends = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    frames, bands = ends[:, 0] * AUDIO.sample_rate / AUDIO.hop, ends[:, 1]
    assert (frames.min(), frames.max()) == pytest.approx((99.5, 125.5))
    assert (bands.min(), bands.max()) == pytest.approx((19.5, 35.5))
