"""Figures 4 and 5 of the paper, and the pictures that the notebooks show (Section IV-C).

Functions without an ``ax`` return a whole figure; those with one draw on it. Each takes a note, such as 'synthetic
speech', and shows it. Sizes are those of print: 7.16 inches is the width of a two-column page, and no text is below
7 points. Spectrograms are (128, T) with the lowest band first.
"""

from __future__ import annotations

import string
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from samsg.report import metrics
from samsg.runs import atomic
from samsg.settings import SamsgError

Array = np.ndarray
CELLS: dict[str, Any] = {
    "origin": "lower",
    "aspect": "auto",
    "interpolation": "none",
}  # of spectrograms: one cell, one rectangle
WIDTH = 7.16  # inches, both columns of a page
COLUMN = 3.5  # inches, one column
SMALL, MEDIUM = 7, 8  # points
LEGEND: dict[str, Any] = {"loc": "outside lower center", "fontsize": SMALL, "title_fontsize": SMALL, "frameon": False}
# Okabe & Ito (2008), told apart under every common kind of colour blindness; their black a light grey, on which black
# lines and points can be seen. Another grey is close to fear's and disgust's colours where red and green are confused.
EMOTIONS = {
    "anger": "#D55E00",
    "boredom": "#F0E442",
    "disgust": "#009E73",
    "fear": "#CC79A7",
    "happiness": "#E69F00",
    "neutral": "#CCCCCC",
    "sadness": "#0072B2",
    "surprise": "#56B4E9",
}
FURTHER = ("#332288", "#117733", "#882255", "#8C510A", "#DDCC77", "#AA4499")  # mostly Tol's 'muted'
PARTS = {"train": ("#0072B2", "-"), "validation": ("#009E73", ":"), "test": ("#D55E00", "--")}  # colour, line
STAGES = {"baseline": "DeiT", "samsg": "SAMSG"}
PLAIN: Any = {"text.parse_math": False}  # a class may be called '$x$'
MEL_TICKS = (250, 500, 1000, 2000, 4000, 8000)  # Hz


class Described(Figure):
    """A figure that says what it shows in words too: the text in an image's place, for those who cannot see it.

    It is kept where IPython's own images keep theirs, and in the plain text of the output; nbconvert reads the one,
    MyST the other.
    """

    def description(self) -> str:
        """Its note, title and labels of every panel, and what its legends are about."""
        said = [self.get_suptitle().replace("\n", " ")]
        for ax in self.axes:
            labels = " over ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel())))
            said.append(": ".join(filter(None, (ax.get_title() or ax.get_title(loc="left"), labels))))
        said += [legend.get_title().get_text() for legend in self.legends]
        return ". ".join(dict.fromkeys(filter(None, said)))

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"text/plain": self.description()}, {"image/png": {"alt": self.description()}}


def palette(classes: Sequence[str]) -> dict[str, str]:
    """A colour a class: fixed for the corpora's emotions, for other names by their alphabetical order."""
    others = sorted(set(classes) - set(EMOTIONS))
    further = [*FURTHER, *sns.husl_palette(max(len(others) - len(FURTHER), 0), l=0.4).as_hex()]
    return {name: EMOTIONS[name] if name in EMOTIONS else further[others.index(name)] for name in classes}


def panels(rows: int, columns: int, size: tuple[float, float], note: str = "", **sharing: Any) -> tuple[Figure, Array]:
    """An empty figure with its note, and its axes (rows, columns); size is in inches, sharing is sharex and sharey.

    Pyplot does not know it, so that Jupyter shows it once: where it is returned.
    """
    style: dict[str, Any] = {"figsize": size, "layout": "constrained", "FigureClass": Described}
    with mpl.rc_context(PLAIN):
        figure, axes = plt.subplots(rows, columns, squeeze=False, **style, **sharing)
    plt.close(figure)
    if note:
        text = textwrap.fill(note[0].upper() + note[1:], int(16 * size[0]))
        figure.suptitle(text, fontsize=MEDIUM, style="italic", color=EMOTIONS["anger"])
    return figure, axes


def _settled(figure: Figure) -> Figure:
    """The figure with its layout computed and fixed: each drawing would move it on a little otherwise."""
    for text in figure.findobj(mpl.text.Text):
        text.set_parse_math(False)
    if figure.get_layout_engine() is not None:
        for _ in range(2):
            figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _label(ax: Axes, x: str, y: str, title: str = "", note: str = "") -> None:
    ax.set_xlabel(x, fontsize=SMALL)
    ax.set_ylabel(y, fontsize=SMALL)
    ax.tick_params(labelsize=SMALL, length=2, pad=2)
    if title:
        ax.set_title(title, fontsize=MEDIUM)
    if note:
        box: dict[str, Any] = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.85, "edgecolor": "none"}
        style: dict[str, Any] = {
            "fontsize": SMALL,
            "style": "italic",
            "color": EMOTIONS["anger"],
            "bbox": box,
            "zorder": 5,
        }
        ax.text(0.99, 0.96, note[0].upper() + note[1:], transform=ax.transAxes, ha="right", va="top", **style)


def _curves(ax: Axes, histories: Sequence[pd.DataFrame], measure: str, parts: Sequence[str], y: str) -> None:
    """One line a part: the mean over histories, in a band from the lowest to the highest."""
    table = pd.concat(histories, ignore_index=True)
    missing = [f"{part}_{measure}" for part in parts if f"{part}_{measure}" not in table]
    if missing or "epoch" not in table:
        raise SamsgError(f"A history needs epoch and {', '.join(missing)}; found {', '.join(table.columns)}.")
    for part in parts:
        color, line = PARTS[part]
        style: dict[str, Any] = {"color": color, "linestyle": line, "linewidth": 1.2, "label": part, "legend": False}
        if table["epoch"].nunique() < 12:
            style |= {"marker": "o", "markersize": 3, "markeredgewidth": 0}
        # ("pi", 100) is the range of all values.
        sns.lineplot(table, x="epoch", y=f"{part}_{measure}", errorbar=("pi", 100), ax=ax, **style)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3, linewidth=0.5)
    _label(ax, "Epoch", y)


def loss_curves(
    histories: Mapping[str, Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]]],
    titles: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:
    """Figure 4: train and test loss of DeiT (above) and with SAMSG (below), one column a corpus.

    The two panels of a corpus share their y axis: they are what is compared.

    Args:
        histories: corpus -> 'baseline' and 'samsg' -> history, or one a seed: mean, and a band from least to most.
        titles: corpus -> its name.
        note: what must be said of the data.

    Raises:
        SamsgError: a corpus lacks one of the two, or a history lacks a column.
    """
    figure, axes = panels(2, len(histories), (max(COLUMN, WIDTH / 3 * len(histories)), 4.2), note, sharey="col")
    seeds = 1
    for column, (corpus, stages) in enumerate(histories.items()):
        for row, (stage, method) in enumerate(STAGES.items()):
            if stage not in stages:
                raise SamsgError(f"Figure 4 needs the histories 'baseline' and 'samsg'; '{corpus}' has no '{stage}'.")
            runs = [stages[stage]] if isinstance(stages[stage], pd.DataFrame) else list(stages[stage])
            seeds = max(seeds, len(runs))
            ax = axes[row, column]
            _curves(ax, runs, "loss", ("train", "test"), "" if column else "Cross-entropy loss")
            letter = string.ascii_lowercase[row * len(histories) + column]
            ax.set_title(f"({letter}) {method}, {(titles or {}).get(corpus, corpus)}", fontsize=MEDIUM)
    for ax in axes[0]:
        ax.set_ylim(bottom=0)  # when all is drawn: it ends the fitting of the axis to what it shows
    title = f"line: mean of {seeds} seeds; band: their range" if seeds > 1 else None
    figure.legend(handles=axes[0, 0].get_lines(), title=title, ncols=2, **LEGEND)
    return _settled(figure)


def _draw_confusion(ax: Axes, predictions: pd.DataFrame, classes: Sequence[str], title: str) -> None:
    counts = metrics.confusion_matrix(predictions["emotion"], predictions["predicted"], classes)
    share = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    style: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1, "cbar": False, "square": True, "linewidths": 0.3}
    with mpl.rc_context(PLAIN):  # it draws already
        sns.heatmap(share, annot=counts, fmt="d", annot_kws={"fontsize": SMALL}, ax=ax, linecolor="0.85", **style)
    _label(ax, "Predicted emotion", "True emotion", title)
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)


def confusion_matrices(
    predictions: Mapping[str, pd.DataFrame],
    classes: Mapping[str, Sequence[str]],
    titles: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:
    """Figure 5: one confusion matrix a corpus, three in a row. Numbers are clips, colour is the share of the row.

    Args:
        predictions: corpus -> predictions of one part; those of several seeds are counted together.
        classes: corpus -> its classes, in the order of rows and columns.
        titles: corpus -> its name.
        note: what must be said of the data.
    """
    columns = min(3, len(predictions))
    rows = -(-len(predictions) // columns)
    size = (WIDTH if columns == 3 else COLUMN * columns, (2.8 if columns == 3 else 3.4) * rows + 0.4)
    figure, axes = panels(rows, columns, size, note)
    seeds = 1
    for index, (corpus, table) in enumerate(predictions.items()):
        letter = f"({string.ascii_lowercase[index]}) " if len(predictions) > 1 else ""
        title = f"{letter}{(titles or {}).get(corpus, corpus)}"
        _draw_confusion(axes.flat[index], table, classes[corpus], title)
        if index % columns:
            axes.flat[index].set_ylabel("")
        seeds = max(seeds, table["seed"].nunique() if "seed" in table else 1)
    for ax in axes.flat[len(predictions) :]:
        ax.remove()
    place: dict[str, Any] = {
        "ax": figure.axes,
        "location": "bottom",
        "fraction": 0.03 / rows,
        "aspect": 40,
        "pad": 0.03,
    }
    bar = figure.colorbar(axes.flat[0].collections[0], **place)
    counted = f"; numbers: clips, {seeds} seeds together" if seeds > 1 else "; numbers: clips"
    bar.set_label(f"Colour: share of the true emotion's clips{counted}", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    return _settled(figure)


def confusion_matrix(predictions: pd.DataFrame, classes: Sequence[str], title: str = "", note: str = "") -> Figure:
    """One confusion matrix, a column wide; arguments as ``confusion_matrices``."""
    return confusion_matrices({"": predictions}, {"": classes}, {"": title}, note)


def learning(history: pd.DataFrame | Sequence[pd.DataFrame], title: str = "", note: str = "") -> Figure:
    """Loss and accuracy of one stage over its epochs, and the reconstruction loss if it has one (stage ii).

    Args:
        history: one row an epoch, or such tables of several seeds.
        title: above the panels.
        note: what must be said of the data.

    Raises:
        SamsgError: the history lacks a column.
    """
    runs = [history] if isinstance(history, pd.DataFrame) else list(history)
    shown = [
        ("loss", ("train", "validation", "test"), "Cross-entropy loss"),
        ("accuracy", ("validation", "test"), "Accuracy"),
        ("reconstruction", ("train", "validation"), "Reconstruction loss (MSE)"),
    ]
    shown = shown if "train_reconstruction" in runs[0] else shown[:2]
    figure, axes = panels(1, len(shown), (WIDTH, 2.5), note)
    for ax, (measure, parts, y) in zip(axes[0], shown, strict=True):
        _curves(ax, runs, measure, parts, y)
        ax.set_ylim(0, 1.02 if measure == "accuracy" else None)
    axes[0, 0].set_title(title, fontsize=MEDIUM, loc="left")
    figure.legend(handles=axes[0, 0].get_lines(), ncols=3, **LEGEND)
    return _settled(figure)


def masked_share(frame: pd.DataFrame, note: str = "") -> Figure:
    """How much of each clip is masked, by emotion: a box (quartiles) and the clips as points.

    Args:
        frame: columns emotion and share (of masked patches, 0 to 1), one row a clip or view.
        note: what must be said of the data.
    """
    classes = sorted(frame["emotion"].unique())
    percent = [100 * frame.loc[frame["emotion"] == name, "share"] for name in classes]
    figure, axes = panels(1, 1, (COLUMN, 2.8), note)
    ax, random = axes[0, 0], np.random.default_rng(0)
    # Matplotlib's own boxes: seaborn 0.13's warn with matplotlib 3.11 and end with 3.13; its points differ each time.
    style: dict[str, Any] = {
        "widths": 0.6,
        "showfliers": False,
        "patch_artist": True,
        "medianprops": {"color": "black"},
    }
    boxes = ax.boxplot(percent, tick_labels=classes, **style)["boxes"]
    for place, (name, values, box) in enumerate(zip(classes, percent, boxes, strict=True), start=1):
        box.set_facecolor(palette(classes)[name])
        aside = place + random.uniform(-0.15, 0.15, len(values))
        ax.scatter(aside, values, 3, "black", alpha=0.35, linewidths=0, zorder=3, rasterized=True)
    _label(ax, "", "Masked patches (%)")
    ax.tick_params(axis="x", rotation=45)
    return _settled(figure)


def spread_patches(values: Array, shape: tuple[int, int], patch: int = 16, stride: int = 10) -> Array:
    """Patches laid out on the cells they cover: (12, 99) -> (128, 1001), nan beyond the last patch.

    Patch i covers cells 10 i to 10 i + 15. Where patches overlap the largest value stands, as in masking, where a
    cell is masked when any masked patch covers it.

    Raises:
        SamsgError: the patches do not fit into the shape.
    """
    values = np.asarray(values, dtype=float)
    ends = [stride * (count - 1) + patch for count in values.shape]
    if len(ends) != 2 or any(end > size for end, size in zip(ends, shape, strict=True)):
        raise SamsgError(
            f"Patches {values.shape} of {patch} cells, {stride} apart, do not fit into a spectrogram {tuple(shape)}; "
            "give the patch and stride of the model that they come from."
        )
    cells = np.full(shape, np.nan)
    for (row, column), value in np.ndenumerate(values):
        area = cells[stride * row : stride * row + patch, stride * column : stride * column + patch]
        np.fmax(area, value, out=area)
    return cells


def _extent(shape: tuple[int, int], hop: int, sample_rate: int) -> tuple[float, float, float, float]:
    """Edges of a spectrogram, in seconds and bands: frame j is centred at j * hop / sample_rate, band k at k."""
    return -0.5 * hop / sample_rate, (shape[1] - 0.5) * hop / sample_rate, -0.5, shape[0] - 0.5


def spectrogram(
    ax: Axes,
    log_mel: Array,
    hop: int,
    sample_rate: int,
    title: str = "",
    note: str = "",
    cmap: str = "magma",
    limits: tuple[float, float] | None = None,
) -> AxesImage:
    """A log-mel spectrogram in seconds and Hz; masked cells of a masked array are black.

    Args:
        ax: where to draw.
        log_mel: (bands, frames), lowest band first, on the HTK mel scale (Eq. 2) from 0 to half the sample rate.
        hop: samples between frames.
        sample_rate: Hz.
        title: above the picture.
        note: what must be said of the data.
        cmap: colours.
        limits: values of the darkest and the lightest colour; the spectrogram's own if None.

    Raises:
        SamsgError: the array is not two-dimensional.
    """
    cells = np.ma.asanyarray(log_mel)
    if cells.ndim != 2:
        raise SamsgError(f"A spectrogram to draw has the shape (bands, frames); found {cells.shape}. Give one clip's.")
    colours = mpl.colormaps[cmap].with_extremes(bad="black")
    image = ax.imshow(cells, colours, extent=_extent(cells.shape, hop, sample_rate), **CELLS)
    image.set_clim(limits or (cells.data.min(), cells.data.max()))
    ticks = [frequency for frequency in MEL_TICKS if frequency < sample_rate / 2]
    # Band k is centred k + 1 of n + 1 equal mel steps above 0 Hz.
    mel = np.log10(1 + np.array([*ticks, sample_rate / 2]) / 700)
    ax.set_yticks(mel[:-1] / mel[-1] * (len(cells) + 1) - 1, [f"{f // 1000}k" if f >= 1000 else str(f) for f in ticks])
    _label(ax, "Time (s)", "Frequency (Hz)", title, note)
    return image


def overlay(
    ax: Axes, log_mel: Array, heat: Array, hop: int, sample_rate: int, patch: int = 16, stride: int = 10, **labels: Any
) -> AxesImage:
    """Attention rollout (12, 99) laid over its spectrogram (128, 1001): grey below, the more attended the more colour.

    Arguments as ``spectrogram`` and ``spread_patches``; heat has the largest value 1; labels are title and note.
    """
    spectrogram(ax, log_mel, hop, sample_rate, cmap="gray", **labels)
    cells = spread_patches(heat, np.shape(log_mel), patch, stride)
    opacity = np.clip(np.nan_to_num(cells), 0, 1) * 0.85
    extent = _extent(cells.shape, hop, sample_rate)
    return ax.imshow(cells, "inferno", extent=extent, alpha=opacity, vmin=0, vmax=1, **CELLS)


def mask_outline(
    ax: Axes, mask: Array, shape: tuple[int, int], hop: int, sample_rate: int, patch: int = 16, stride: int = 10
) -> LineCollection:
    """The outline of all masked cells, on a spectrogram of that shape: bool (12, 99) on (128, 1001)."""
    covered = np.pad(spread_patches(mask, shape, patch, stride) > 0, 1)
    left, right, *_ = _extent(shape, hop, sample_rate)
    x = np.linspace(left, right, shape[1] + 1)
    upright = np.argwhere(covered[1:-1, 1:] != covered[1:-1, :-1])  # (row, edge)
    level = np.argwhere(covered[1:, 1:-1] != covered[:-1, 1:-1])  # (edge, column)
    lines = [((x[c], r - 0.5), (x[c], r + 0.5)) for r, c in upright]
    lines += [((x[c], r - 0.5), (x[c + 1], r - 0.5)) for r, c in level]
    outline = LineCollection(lines, colors=EMOTIONS["surprise"], linewidths=1, capstyle="projecting")
    ax.add_collection(outline, autolim=False)
    return outline


def masked_spectrogram(
    ax: Axes, log_mel: Array, mask: Array, hop: int, sample_rate: int, patch: int = 16, stride: int = 10, **labels: Any
) -> AxesImage:
    """The spectrogram with its masked cells black, in the colours of the whole one. Arguments as ``overlay``."""
    hidden = spread_patches(mask, np.shape(log_mel), patch, stride) > 0
    return spectrogram(ax, np.ma.masked_array(np.asarray(log_mel), hidden), hop, sample_rate, **labels)


def stage_probabilities(table: pd.DataFrame, emotion: str, title: str = "", note: str = "") -> Figure:
    """What every stage makes of one clip, clean and masked: bars of probability, the true emotion's name in bold.

    Args:
        table: a row an emotion, columns (stage, 'clean') and (stage, 'masked'), probabilities of 0 to 1.
        emotion: the true one.
        title: below the panels, over the legend.
        note: what must be said of the data.
    """
    stages, places = list(dict.fromkeys(table.columns.get_level_values(0))), np.arange(len(table))
    figure, axes = panels(1, len(stages), (WIDTH, 0.9 + 0.26 * len(table)), note, sharex="row", sharey="row")
    colours = [palette(table.index)[name] for name in table.index]
    for ax, stage in zip(axes[0], stages, strict=True):
        for kind, above, style in (("clean", -0.2, {}), ("masked", 0.2, {"hatch": "/////", "alpha": 0.7})):
            style |= {"color": colours, "edgecolor": "0.3", "linewidth": 0.4}
            ax.barh(places + above, 100 * table[stage, kind], 0.38, label=kind, **style)
        ax.set_xlim(0, 100)
        _label(ax, "Probability (%)", "", stage)
    axes[0, 0].set_yticks(places, table.index)
    axes[0, 0].invert_yaxis()
    axes[0, 0].get_yticklabels()[list(table.index).index(emotion)].set_fontweight("bold")
    shown = [Patch(facecolor="white", edgecolor="0.3", hatch=hatch) for hatch in ("", "/////")]
    figure.legend(shown, ["the clip", "the clip, masked"], title=title, ncols=2, **LEGEND)
    return _settled(figure)


def waveform(ax: Axes, samples: Array, sample_rate: int, title: str = "", note: str = "") -> None:
    """A waveform (samples,) over seconds."""
    samples = np.asarray(samples)
    ax.plot(np.arange(len(samples)) / sample_rate, samples, linewidth=0.4, color=EMOTIONS["sadness"], rasterized=True)
    ax.set_xlim(0, len(samples) / sample_rate)
    _label(ax, "Time (s)", "Amplitude", title, note)


def draw_compared(ax: Axes, table: pd.DataFrame, title: str = "") -> None:
    """Accuracy of every variant with its interval, the first one's as a line; a table of ``studies.compare``."""
    places = np.arange(len(table))[::-1]
    reference = 100 * table["accuracy"].iloc[0]
    ax.axvline(reference, color=EMOTIONS["anger"], linewidth=0.8, linestyle="--")
    low, high = (100 * table[f"accuracy_{end}"] for end in ("low", "high"))
    ax.hlines(places, low, high, color=PARTS["train"][0], linewidth=1.2)
    ax.plot(100 * table["accuracy"], places, "o", color=PARTS["train"][0], markersize=4)
    ax.set_yticks(places, table.index, fontsize=SMALL)
    ax.tick_params(labelsize=SMALL)
    ax.grid(axis="x", linewidth=0.3)
    _label(ax, "Accuracy (%)", "", title)


def compared(table: pd.DataFrame, note: str = "") -> Figure:
    """``draw_compared`` as a figure of its own."""
    figure, axes = panels(1, 1, (WIDTH, 0.6 + 0.24 * len(table)), note)
    draw_compared(axes[0, 0], table)
    return _settled(figure)


def against_strength(tables: Mapping[float, pd.DataFrame], note: str = "") -> Figure:
    """Accuracy of every variant, with its interval, against the strength of a shortcut: strength -> ``compare``."""
    figure, axes = panels(1, 1, (WIDTH, 2.8), note)
    ax, strengths = axes[0, 0], np.array(sorted(tables))
    styles = zip(("#D55E00", "#999999", "#0072B2", "#009E73"), ("o", "s", "^", "D"), strict=True)
    for offset, (variant, (colour, marker)) in enumerate(zip(tables[strengths[0]].index, styles, strict=False)):
        rows = [tables[strength].loc[variant] for strength in strengths]
        at = strengths + 0.006 * (offset - 1.5)  # so that the bars do not hide each other
        values, low, high = (np.array([100 * row[f"accuracy{end}"] for row in rows]) for end in ("", "_low", "_high"))
        ax.errorbar(at, values, [values - low, high - values], color=colour, marker=marker, label=variant, capsize=2)
    ax.axhline(100 / 7, color="black", linewidth=0.6, linestyle=":", label="chance")
    ax.tick_params(labelsize=SMALL)
    figure.legend(ncols=5, **LEGEND)  # below: inside it would lie on somebody's interval
    _label(ax, "Strength of the shortcut in training", "Accuracy without it (%)")
    return _settled(figure)


def patch_map(ax: Axes, share: Array, title: str = "") -> None:
    """How often each patch is masked, (12, 99), from never (white) to always (black)."""
    ax.imshow(share, cmap="Greys", vmin=0, vmax=max(0.01, float(share.max())), **CELLS)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(textwrap.fill(f"{title}, at most {share.max():.0%}", 26), fontsize=SMALL)
    _label(ax, "Time", "Frequency")


def save_figure(figure: Figure, folder: Path, stem: str) -> dict[str, Path]:
    """Write <stem>.png (200 dots an inch) and <stem>.pdf, the same bytes for the same figure.

    Returns:
        'png' and 'pdf' -> the file.
    """
    _settled(figure)
    files = {kind: Path(folder) / f"{stem}.{kind}" for kind in ("png", "pdf")}
    undated: dict[str, Any] = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}
    for kind, path in files.items():
        with atomic(path) as partial, mpl.rc_context({"pdf.fonttype": 42}):  # fonts that journals accept
            figure.savefig(partial, format=kind, dpi=200, metadata=undated[kind])
    return files
