"""Pictures that several notebooks share, Figure 5 of the paper among them (Section IV-C).

Functions with an ``ax`` draw on it, the others return a figure. Spectrograms are (128, T), the lowest band first.
"""

import string
import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from samsg import metrics
from samsg.settings import AudioSettings
from samsg.storage import atomic

Array = np.ndarray
Tables = Mapping[str, pd.DataFrame]  # by the titles of their panels
WIDTH, FONT_SIZE = 7.16, 8  # of a two-column page, inches; of all text, points
# For names in other scripts: matplotlib takes each character from the first font that has it.
SCRIPTS = ("Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "PingFang SC", "Microsoft YaHei")
FONTS = ["DejaVu Sans", *(name for name in SCRIPTS if name in mpl.font_manager.get_font_names())]
BLUE, GREEN, RED = "#0072B2", "#009E73", "#D55E00"  # Okabe & Ito (2008): safe for colour-blind readers
PARTS = {"train": (BLUE, "-"), "validation": (GREEN, ":"), "test": (RED, "--")}  # colour, line
CELLS: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "none"}  # one cell, one rectangle
LEGEND: dict[str, Any] = {"loc": "outside lower center", "fontsize": FONT_SIZE, "frameon": False}
# Of a map over a spectrogram: transparent, orange, yellow.
HEAT = mpl.colors.LinearSegmentedColormap.from_list("heat", ["#D55E0000", "#D55E00C0", "#FFF04DE0"])


class DescribedFigure(Figure):
    """A figure with text of one size, and a text alternative: the note, and the title and labels of every panel."""

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        texts = [(ax.get_title(), ax.get_title("left"), ax.get_ylabel(), ax.get_xlabel()) for ax in self.axes]
        text = ". ".join(dict.fromkeys(filter(None, chain([self.get_suptitle()], *texts)))).replace("\n", " ")
        return {"text/plain": text}, {"image/png": {"alt": text}}  # nbconvert reads the second, MyST the first

    def draw(self, renderer: Any) -> None:  # now every text exists
        plt.setp(self.findobj(mpl.text.Text), fontsize=FONT_SIZE, fontfamily=FONTS)
        super().draw(renderer)


def panels(rows: int, columns: int, size: tuple[float, float], note: str = "", **sharing: Any) -> tuple[Figure, Array]:
    """A figure of empty panels below a note, and their axes (rows, columns). Size in inches; sharing: of subplots."""
    style: dict[str, Any] = {"figsize": size, "layout": "constrained", "dpi": 144, "FigureClass": DescribedFigure}
    figure, axes = plt.subplots(rows, columns, squeeze=False, **style, **sharing)
    plt.close(figure)  # or Jupyter would show it twice
    for ax in axes.flat:
        ax.tick_params(length=2, pad=2)
    if note:
        figure.suptitle(textwrap.fill(note[0].upper() + note[1:], int(16 * size[0])), style="italic", color=RED)
    return figure, axes


def colour_bar(image: Any, axes: Any, label: str, **place: Any) -> None:
    """A labelled colour bar beside one or several axes; place as in ``Figure.colorbar``."""
    bar = image.figure.colorbar(image, ax=axes, label=label, **{"pad": 0.02, "aspect": 15, **place})
    bar.ax.tick_params(length=2)


def curves(ax: Axes, histories: Sequence[pd.DataFrame], measure: str, parts: Sequence[str] = tuple(PARTS)) -> None:
    """A line a part over epochs: the mean of histories, one a seed, in a band from the lowest to the highest."""
    table = pd.concat(histories, ignore_index=True)
    style: dict[str, Any] = {"linewidth": 1.2, "marker": "o", "markersize": 2, "markeredgewidth": 0, "legend": False}
    for part in parts:
        color, line = PARTS[part]
        variables = {"x": "epoch", "y": f"{part}_{measure}", "label": part}
        sns.lineplot(table, **variables, errorbar=("pi", 100), ax=ax, color=color, linestyle=line, **style)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3, linewidth=0.5)


def learning(histories: Sequence[pd.DataFrame], title: str = "", note: str = "") -> Figure:
    """Loss, accuracy and, in stage ii, reconstruction loss of one stage over its epochs; a history a seed."""
    labels = {"loss": "Cross-entropy loss", "accuracy": "Accuracy", "reconstruction": "Reconstruction loss (MSE)"}
    measures = [measure for measure in labels if f"train_{measure}" in histories[0]]
    figure, axes = panels(1, len(measures), (WIDTH, 2.4), note)
    for ax, measure in zip(axes[0], measures, strict=True):
        curves(ax, histories, measure)
        ax.set(xlabel="Epoch", ylabel=labels[measure])
    axes[0, 0].set_title(title, loc="left")
    figure.legend(handles=axes[0, 0].get_lines(), ncols=3, **LEGEND)
    return figure


def confusion_matrices(predictions: Tables, classes: Mapping[str, Sequence[str]], note: str = "") -> Figure:
    """Figure 5: one confusion matrix a corpus, three in a row. Numbers are clips, colour is the share of the row.
    Classes, by the titles of the panels too, are in the order of rows and columns."""
    columns, rows = min(3, len(predictions)), -(-len(predictions) // 3)
    figure, axes = panels(rows, columns, (max(3.5, WIDTH / 3 * columns), 2.8 * rows + 0.4), note)
    style: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1, "cbar": False, "square": True, "linewidths": 0.3}
    for index, (title, table) in enumerate(predictions.items()):
        ax, letter = axes.flat[index], f"({string.ascii_lowercase[index]}) " if len(predictions) > 1 else ""
        counts = metrics.confusion_matrix(table["emotion"], table["predicted"], classes[title])
        share = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
        sns.heatmap(share, annot=counts, fmt="d", ax=ax, linecolor="0.85", **style)
        ax.set(xlabel="Predicted emotion", ylabel="" if index % columns else "True emotion", title=letter + title)
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(axis="y", rotation=0)
    for ax in axes.flat[len(predictions) :]:
        ax.remove()
    label = textwrap.fill("Colour: share of the true emotion's clips; numbers: clips, all seeds together", 45 * columns)
    place = {"location": "bottom", "fraction": 0.03 / rows, "aspect": 40, "pad": 0.03}
    colour_bar(axes[0, 0].collections[0], figure.axes, label, **place)
    return figure


def comparison(tables: Tables, reference: float = 0.0, note: str = "") -> Figure:
    """A dot and a 95 % interval for every method, one panel a table; a dashed line stands at ``reference``.
    Tables have a row a method and the columns accuracy, accuracy_low and accuracy_high, 0 to 1."""
    n_methods = len({method for table in tables.values() for method in table.index})
    figure, axes = panels(1, len(tables), (WIDTH, 0.7 + 0.2 * n_methods), note, sharex="row", sharey="row")
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        value, low, high = (100 * table[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
        ax.hlines(table.index, low, high, color=BLUE, linewidth=1.2)
        ax.plot(value, table.index, "o", color=BLUE, markersize=4)
        ax.axvline(100 * reference, color=RED, linewidth=0.8, linestyle="--")
        ax.set(title=title, xlabel="Accuracy (%)")
        ax.grid(axis="x", linewidth=0.3)
    axes[0, 0].set_ylim(n_methods - 0.5, -0.5)  # the first method on top
    return figure


def spectrogram(
    ax: Axes, log_mel: Array, audio: AudioSettings, title: str = "", end: float = np.inf, cmap: str = "magma"
) -> AxesImage:
    """A log-mel spectrogram (128, T) in seconds and Hz; masked cells of a masked array are black. The recording ends at
    ``end`` (s), and the padding behind it is grey. Colours have the range of the recording."""
    cells = np.ma.asanyarray(log_mel)
    bands, frames = cells.shape
    frame = audio.hop / audio.sample_rate  # s
    # Frame j is centred at j * frame, band k at k.
    extent = (-0.5 * frame, (frames - 0.5) * frame, -0.5, bands - 0.5)
    image = ax.imshow(cells, mpl.colormaps[cmap].with_extremes(bad="black"), extent=extent, **CELLS)
    recording = cells.data[:, : int(min(end / frame, frames - 1)) + 1]
    image.set_clim(recording.min(), recording.max())
    ticks = [hertz for hertz in (250, 500, 1000, 2000, 4000, 8000) if hertz < audio.sample_rate / 2]
    # HTK mel scale (Eq. 2); band k is centred k + 1 of n + 1 equal mel steps above 0 Hz.
    mel = np.log10(1 + np.array([*ticks, audio.sample_rate / 2]) / 700)
    ax.set_yticks(mel[:-1] / mel[-1] * (bands + 1) - 1, [f"{f // 1000}k" if f >= 1000 else str(f) for f in ticks])
    ax.set(xlabel="Time (s)", ylabel="Frequency (Hz)", title=title)
    mark_padding(ax, end, extent[1])
    ax.autoscale(False)
    return image


def mark_padding(ax: Axes, end: float, axis_end: float) -> None:
    """A line where the recording ends, and grey from there to ``axis_end`` (s)."""
    if end < axis_end:
        ax.axvspan(end, axis_end, facecolor="0.85", linewidth=0, zorder=3)
        ax.axvline(end, color="black", linewidth=1, linestyle="--", zorder=3)


def overlay(
    ax: Axes, log_mel: Array, heat: Array, audio: AudioSettings, patch: int = 16, stride: int = 10, **options: Any
) -> AxesImage:
    """A map (12, 99), 0 to 1, over its spectrogram (128, 1001); options as ``spectrogram``. Patches overlap; each is
    shown by the cells around its centre, one stride wide."""
    spectrogram(ax, log_mel, audio, cmap="gray", **options)
    frame, start = audio.hop / audio.sample_rate, (patch - stride) / 2 - 0.5  # s, cells
    top, right = (start + stride * count for count in heat.shape)
    return ax.imshow(heat, HEAT, extent=(start * frame, right * frame, start, top), vmin=0, vmax=1, **CELLS)


def timeline(
    waveform: Array, windows: pd.DataFrame, decibels: Array, maps: Array, audio: AudioSettings, patch: int, stride: int
) -> Figure:
    """Waveform (S,), predictions of its W windows, and their maps (W, 12, 99) over the spectrogram in dB, (128, T).

    At most four windows stand in a row. What two windows share is shown with the later one.
    """
    probabilities, end = 100 * windows.filter(like="p_"), len(waveform) / audio.sample_rate  # (W, C), s
    classes, edges, rows = probabilities.shape[1], np.append(windows["start"], end), -(-len(windows) // 4)
    span = max(audio.seconds, end if rows == 1 else -(-len(windows) // rows) * audio.seconds)  # s in a row
    bands, frames = ((patch - stride) / 2 - 0.5 + stride * np.arange(n + 1) for n in maps.shape[1:])  # edges, in cells
    heights = [0.6, max(0.9, 0.16 * classes), 1.5]  # inches
    figure, axes = panels(3 * rows, 1, (WIDTH, rows * (sum(heights) + 0.4) + 0.4), height_ratios=heights * rows)
    for row, (wave_ax, probability_ax, map_ax) in enumerate(axes.reshape(rows, 3)):
        wave_ax.plot(np.arange(len(waveform)) / audio.sample_rate, waveform, color=BLUE, linewidth=0.4)
        wave_ax.set(ylabel="Amplitude", ylim=1.05 * max(np.abs(waveform).max(), 1e-3) * np.array([-1, 1]))
        probability_ax.pcolormesh(edges, range(classes + 1), probabilities.T, cmap="Blues", vmin=0, vmax=100)
        probability_ax.set_yticks(np.arange(classes) + 0.5, [name[2:] for name in probabilities])
        probability_ax.set(ylabel="Probability (%)", ylim=(classes, 0))
        spectrogram(map_ax, decibels, audio, cmap="gray").set_clim(decibels.max() - 80, decibels.max())
        for start, stop, values, heat in zip(edges[:-1], edges[1:], probabilities.to_numpy(), maps, strict=True):
            for y, value in enumerate(values if stop - start > span / 30 else ()):  # where a number fits
                text = "silence" if np.isnan(value) and y == classes // 2 else f"{value:.0f}" if value >= 5 else ""
                style = {"ha": "center", "va": "center_baseline", "color": "white" if value > 60 else "black"}
                probability_ax.text((start + stop) / 2, y + 0.5, text, clip_on=True, **style)
            seconds = (start + frames * audio.hop / audio.sample_rate).clip(max=stop)
            scaled = heat / heat[:, : max(1, (seconds[:-1] < end).sum())].max()  # padding does not count
            image = map_ax.pcolormesh(seconds, bands, scaled, cmap=HEAT, vmin=0, vmax=1)
        for ax in (wave_ax, probability_ax, map_ax):
            mark_padding(ax, end, (row + 1) * span)
            ax.vlines(edges[1:-1], *ax.get_ylim(), color="black", linewidth=0.6)
            ax.set_xlim(row * span, (row + 1) * span)
            ax.tick_params(labelbottom=ax is map_ax)
    colour_bar(image, list(axes.flat), "Attention; 1: highest in its window", shrink=1 / rows, anchor=(0, 1), aspect=25)
    return figure


def mask_outline(ax: Axes, masked: Array, audio: AudioSettings) -> None:
    """The outline of the masked cells, bool (128, 1001), on their spectrogram."""
    frames, bands = (np.arange(-1, count + 1).clip(-0.5, count - 0.5) for count in masked.T.shape)
    seconds = frames * audio.hop / audio.sample_rate
    ax.contour(seconds, bands, np.pad(masked, 1).astype(float), [0.5], colors="#56B4E9", linewidths=1)


def save_figure(figure: Figure, folder: Path, stem: str) -> None:
    """Write <stem>.png (200 dots an inch) and <stem>.pdf, without dates: the same bytes for the same figure."""
    for kind, metadata in {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}.items():
        # Type 42 is a kind of font that journals accept.
        with atomic(Path(folder) / f"{stem}.{kind}") as partial, mpl.rc_context({"pdf.fonttype": 42}):
            figure.savefig(partial, format=kind, dpi=200, metadata=metadata)
