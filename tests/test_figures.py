"""Figures: what they show, where patches lie on a spectrogram, and the same bytes each time."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from samsg.method.masking import masked_cells
from samsg.report import figures
from samsg.settings import SamsgError

CLASSES = ["anger", "fear", "neutral"]
NOTE = "synthetic speech"
SHOWN = "Synthetic speech"
RATE, HOP = 16_000, 64
EMPTY = np.zeros((128, 1001), dtype=np.float32)


def history(epochs=4, top=2.0):
    loss = np.linspace(top, 0.5, epochs)
    losses = {f"{part}_loss": loss + shift for part, shift in (("train", 0), ("validation", 0.1), ("test", 0.2))}
    accuracies = {"validation_accuracy": 1 - loss / 3, "test_accuracy": 1 - loss / 3}
    return pd.DataFrame({"epoch": np.arange(1, epochs + 1), **losses, **accuracies})


def predictions():
    truth = np.repeat(CLASSES, 5)
    return pd.DataFrame({"emotion": truth, "predicted": np.where(np.arange(15) % 5 == 0, "fear", truth)})


def texts(figure):
    return [text.get_text() for text in figure.texts]


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    plt.close(figure)
    return axes


def test_figure_4():
    histories = {name: {"baseline": history(), "samsg": history()} for name in ("savee", "emodb", "crema_d")}
    figure = figures.loss_curves(histories, {"savee": "SAVEE"}, NOTE)
    assert len(figure.axes) == 6 and SHOWN in texts(figure)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "(a) DeiT, SAVEE" and titles[3] == "(d) SAMSG, SAVEE" and titles[5] == "(f) SAMSG, crema_d"
    assert all(ax.get_xlabel() == "Epoch" for ax in figure.axes)
    assert [ax.get_ylabel() for ax in figure.axes] == ["Cross-entropy loss", "", ""] * 2
    for ax, name in zip(figure.axes, ["train", "test"] * 3, strict=True):
        lines = {line.get_label(): line for line in ax.get_lines()}
        assert list(lines) == ["train", "test"]
        np.testing.assert_allclose(lines[name].get_ydata(), history()[f"{name}_loss"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "test"]


def test_both_panels_of_a_corpus_share_an_axis_that_holds_all_curves():
    figure = figures.loss_curves({"mine": {"baseline": history(top=1.0), "samsg": history(top=9.0)}})
    for ax in figure.axes:
        assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 9.2


def test_several_seeds_are_a_mean_in_a_band():
    seeds = [history(top=1.0), history(top=3.0)]
    figure = figures.loss_curves({"mine": {"baseline": seeds, "samsg": history()}})
    line, band = figure.axes[0].get_lines()[0], figure.axes[0].collections[0].get_paths()[0].vertices
    assert line.get_ydata()[0] == 2.0
    at_first = band[band[:, 0] == 1][:, 1]
    assert (at_first.min(), at_first.max()) == (1.0, 3.0)
    assert "mean of 2 seeds" in figure.legends[0].get_title().get_text()


def test_what_figure_4_needs():
    with pytest.raises(SamsgError, match="'mine' has no 'samsg'"):
        figures.loss_curves({"mine": {"baseline": history()}})
    with pytest.raises(SamsgError, match="needs epoch and test_loss"):
        figures.loss_curves({"mine": {"baseline": history().drop(columns="test_loss"), "samsg": history()}})


def test_figure_5():
    tables = {name: predictions() for name in ("savee", "emodb", "crema_d")}
    figure = figures.confusion_matrices(tables, dict.fromkeys(tables, CLASSES), {"emodb": "EmoDB"}, NOTE)
    panels, bar = figure.axes[:3], figure.axes[3]
    assert [ax.get_title() for ax in panels] == ["(a) savee", "(b) EmoDB", "(c) crema_d"]
    assert SHOWN in texts(figure) and "share" in bar.get_xlabel()
    assert [text.get_text() for text in panels[1].texts] == ["4", "1", "0", "0", "5", "0", "0", "1", "4"]
    share = panels[1].collections[0].get_array()
    np.testing.assert_allclose(np.ravel(share), [0.8, 0.2, 0, 0, 1, 0, 0, 0.2, 0.8])
    assert [label.get_text() for label in panels[0].get_yticklabels()] == CLASSES
    assert panels[0].get_ylabel() == "True emotion" and panels[2].get_xlabel() == "Predicted emotion"
    assert figure.get_figwidth() == 7.16


def test_one_confusion_matrix_and_four():
    assert figures.confusion_matrix(predictions(), CLASSES, "EmoDB", NOTE).axes[0].get_title() == "EmoDB"
    tables = {name: predictions().assign(seed=np.arange(15) % 2) for name in "wxyz"}
    figure = figures.confusion_matrices(tables, dict.fromkeys(tables, CLASSES))
    assert len(figure.axes) == 5 and figure.axes[3].get_title() == "(d) z"
    assert "2 seeds together" in figure.axes[4].get_xlabel()


def test_no_text_is_smaller_than_print_allows_or_cut_off():
    tables = {name: predictions() for name in ("savee", "emodb", "crema_d")}
    figure = figures.confusion_matrices(tables, dict.fromkeys(tables, CLASSES), note=NOTE)
    width, height = figure.bbox.size
    shown = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in shown) >= 7
    for text in shown:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()


def test_names_are_shown_as_they_are_and_never_read_as_formulas(tmp_path):
    names = ["$\\frac$", "a_{b", "{brace}"]
    table = pd.DataFrame({"emotion": np.repeat(names, 5), "predicted": np.repeat(names, 5), "share": 0.5})
    figure = figures.confusion_matrix(table, names, "$\\alpha$", "$\\sum$")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    for number, each in enumerate((figure, figures.masked_share(table, "$^$"))):
        assert figures.save_figure(each, tmp_path, str(number))["png"].stat().st_size > 5_000


def test_learning_curves():
    stage_i = figures.learning(history(), "Stage i", NOTE)
    assert [ax.get_ylabel() for ax in stage_i.axes] == ["Cross-entropy loss", "Accuracy"]
    assert SHOWN in texts(stage_i) and stage_i.axes[0].get_title(loc="left") == "Stage i"
    stage_ii = history().assign(train_reconstruction=0.1, validation_reconstruction=0.2)
    assert figures.learning([stage_ii, stage_ii]).axes[2].get_ylabel() == "Reconstruction loss (MSE)"


def test_masked_share():
    frame = pd.DataFrame({"emotion": ["fear", "anger", "fear"], "share": [0.1, 0.2, 0.5]})
    figure = figures.masked_share(frame, NOTE)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["anger", "fear"]
    assert ax.get_ylabel() == "Masked patches (%)" and SHOWN in texts(figure)
    assert [sorted(points.get_offsets()[:, 1].tolist()) for points in ax.collections] == [[20.0], [10.0, 50.0]]


def test_the_palette_is_fixed():
    colours = figures.palette(["sadness", "zeal", "anger", "awe"])
    assert colours["anger"] == "#D55E00" and colours["sadness"] == "#0072B2"
    assert colours["awe"] == figures.palette(["awe"])["awe"]
    many = figures.palette([*figures.EMOTIONS, *(f"class {number}" for number in range(12))])
    assert len({to_rgb(colour) for colour in many.values()}) == 20


def test_figures_say_in_words_what_they_show():
    from IPython.core.formatters import DisplayFormatter

    figure = figures.learning(history(), "Stage i", NOTE)
    said = "Synthetic speech. Stage i: Cross-entropy loss over Epoch. Accuracy over Epoch"
    data, metadata = DisplayFormatter().format(figure)
    assert data["text/plain"] == metadata["image/png"]["alt"] == said


def test_what_the_stages_make_of_a_clip():
    columns = pd.MultiIndex.from_product([["one", "two"], ["clean", "masked"]])
    table = pd.DataFrame([[0.5, 0.2, 0.1, 0.3], [0.5, 0.8, 0.9, 0.7]], ["anger", "fear"], columns)
    figure = figures.stage_probabilities(table, "fear", "a clip", NOTE)
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"] and SHOWN in texts(figure)
    widths = [[bar.get_width() for bar in bars] for bars in figure.axes[0].containers]
    assert widths == [[50, 50], [20, 80]]
    names = {label.get_text(): label.get_fontweight() for label in figure.axes[0].get_yticklabels()}
    assert names == {"anger": "normal", "fear": "bold"}
    first = figure.axes[0].containers[0][0]
    assert to_rgb(first.get_facecolor()) == to_rgb(figures.EMOTIONS["anger"])
    assert figure.legends[0].get_title().get_text() == "a clip"


def test_a_patch_covers_its_own_cells():
    values = np.zeros((12, 99))
    values[3, 40], values[11, 98] = 1.0, 0.5
    cells = figures.spread_patches(values, (128, 1001))
    rows, columns = np.nonzero(cells == 1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 45, 400, 415) and len(rows) == 256
    rows, columns = np.nonzero(cells == 0.5)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (110, 125, 980, 995)
    assert np.isnan(cells[126:]).all() and np.isnan(cells[:, 996:]).all() and not np.isnan(cells[:126, :996]).any()


def test_masks_are_laid_out_as_the_method_masks():
    mask = np.random.default_rng(0).random((12, 99)) < 0.1
    expected = masked_cells(torch.from_numpy(mask)[None], (128, 1001))[0, 0].numpy()
    np.testing.assert_array_equal(figures.spread_patches(mask, (128, 1001)) > 0, expected)


def test_patches_of_another_model_do_not_fit():
    with pytest.raises(SamsgError, match="do not fit"):
        figures.spread_patches(np.zeros((12, 100)), (128, 1001))


def test_spectrogram_axes(ax):
    image = figures.spectrogram(ax, EMPTY, HOP, RATE, "Clip", NOTE)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("Time (s)", "Frequency (Hz)", "Clip")
    # 1001 frames centred 4 ms apart from 0 to 4 s; 128 bands.
    assert image.get_extent() == pytest.approx([-0.002, 4.002, -0.5, 127.5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["250", "500", "1k", "2k", "4k"]
    assert ax.texts[0].get_text() == SHOWN
    with pytest.raises(SamsgError, match=r"found \(1, 128, 1001\)"):
        figures.spectrogram(ax, EMPTY[None], HOP, RATE)


@pytest.mark.parametrize("frequency", [500, 1000, 4000])
def test_the_frequency_ticks_lie_at_the_band_that_hears_them(ax, frequency):
    from torchaudio.functional import melscale_fbanks

    bands = melscale_fbanks(8001, 0.0, 8000.0, 128, RATE, norm=None, mel_scale="htk")  # 1 Hz a bin
    figures.spectrogram(ax, EMPTY, HOP, RATE)
    names = [label.get_text() for label in ax.get_yticklabels()]
    tick = ax.get_yticks()[names.index(str(frequency) if frequency < 1000 else f"{frequency // 1000}k")]
    assert abs(tick - int(bands[frequency].argmax())) <= 0.5


def test_overlay_and_masked_picture(ax):
    heat = np.zeros((12, 99))
    heat[0, 0], heat[5, 50] = 1.0, 0.6
    image = figures.overlay(ax, EMPTY, heat, HOP, RATE, title="Rollout", note=NOTE)
    assert ax.texts[0].get_text() == SHOWN and ax.get_title() == "Rollout"
    assert image.get_extent() == ax.images[0].get_extent()
    opacity = image.get_alpha()
    assert opacity[0, 0] == opacity[15, 15] == pytest.approx(0.85) and opacity[16, 16] == 0
    assert opacity[50, 515] == pytest.approx(0.85 * 0.6) and opacity[49, 500] == opacity[50, 516] == 0

    ax.clear()
    level = np.random.default_rng(0).random((128, 1001))
    image = figures.masked_spectrogram(ax, level, heat > 0.5, HOP, RATE, note=NOTE)
    assert image.get_array().mask.sum() == 512 and image.get_array().mask[50:66, 500:516].all()
    assert image.get_clim() == (level.min(), level.max()) and to_rgb(image.get_cmap().get_bad()) == (0, 0, 0)
    assert ax.texts[0].get_text() == SHOWN


def test_the_outline_runs_round_the_masked_cells(ax):
    mask = np.zeros((12, 99), dtype=bool)
    mask[2, 10] = mask[2, 11] = True  # cells 20..35 by 100..125
    ends = np.array(figures.mask_outline(ax, mask, (128, 1001), HOP, RATE).get_segments())
    frames, bands = ends[..., 0] * RATE / HOP, ends[..., 1]
    assert (frames.min(), frames.max()) == pytest.approx((99.5, 125.5))
    assert (bands.min(), bands.max()) == (19.5, 35.5)
    assert len(ends) == 2 * (16 + 26)


def test_waveform(ax):
    figures.waveform(ax, np.zeros(32_000), RATE, note=NOTE)
    assert ax.get_xlim() == (0, 2) and (ax.get_xlabel(), ax.get_ylabel()) == ("Time (s)", "Amplitude")
    assert ax.texts[0].get_text() == SHOWN


def test_the_same_figure_is_the_same_bytes(tmp_path):
    saved = []
    for folder in ("first", "second"):
        figure = figures.confusion_matrix(predictions(), CLASSES, "EmoDB", NOTE)
        saved.append(figures.save_figure(figure, tmp_path / folder, "figure5"))
    saved.append(figures.save_figure(figure, tmp_path / "third", "figure5"))
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        contents = {files[kind].read_bytes() for files in saved}
        assert len(contents) == 1 and contents.pop().startswith(start)
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["figure5.pdf", "figure5.png"]
    assert b"CreationDate" not in saved[0]["pdf"].read_bytes() and b"Software" not in saved[0]["png"].read_bytes()


def test_pyplot_is_left_as_it_was():
    figures.confusion_matrix(predictions(), CLASSES)
    figures.masked_share(pd.DataFrame({"emotion": ["fear"], "share": [0.1]}))
    assert plt.get_fignums() == []
