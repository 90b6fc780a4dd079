"""One test clip of a finished run, to look at and to listen to, under settings that move (notebook explore).

Attention is computed once a clip; rollout and mask follow from it in milliseconds. Whatever moves is an ordinary
picture or sound first, so that a notebook without a kernel behind it still shows one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Audio, display
from matplotlib.figure import Figure
from torch import Tensor

from samsg.audio.inversion import InverseLogMel
from samsg.audio.spectrogram import LogMel
from samsg.audio.store import WaveformStore
from samsg.audio.views import fit
from samsg.corpora.catalogue import emotions_of
from samsg.method.deit import SpectrogramDeiT
from samsg.method.masking import choose_patches, mask_spectrogram, masked_cells
from samsg.method.rollout import attention_maps
from samsg.report import figures
from samsg.runs import Run
from samsg.settings import MaskSettings, RolloutSettings, SamsgError
from samsg.training.stages import load_model, read_clips, read_examples

STAGES = {"baseline": "DeiT, stage i", "samsg": "stage ii", "probe": "SAMSG, stage iii"}
ASLEEP = "[{}: where the notebook runs, as in JupyterLab]"


class Clip:
    """A clip as the run has it, and all that does not depend on how it is masked.

    Attributes:
        waveform: (64000,).
        length: samples of it that are the recording's, the rest being padding.
        spectrogram: (1, 1, 128, 1001), scaled.
        maps: the attention of every layer of stage i, (1190, 1190) each.
    """

    def __init__(self, run: Run, models: dict[str, SpectrogramDeiT], name: str) -> None:
        clips, audio = read_clips(run), run.profile.audio
        index = int(np.flatnonzero(clips["clip"] == name)[0])
        recording = WaveformStore(run.require("waveforms"))[index]
        self.run, self.models, self.name = run, models, name
        self.emotion, self.emotions = clips["emotion"].iat[index], emotions_of(clips)
        self.waveform, self.length = fit(recording, audio.n_samples), min(len(recording), audio.n_samples)
        self.spectrogram = read_examples(run).batch(np.array([index]), 0, "cpu").spectrograms
        self.maps = [maps[0] for maps in attention_maps(models["baseline"], self.spectrogram)]


@dataclass(frozen=True)
class Look:
    """A clip under settings of rollout and mask."""

    clip: Clip
    rollout: RolloutSettings
    mask: MaskSettings

    @cached_property
    def heat(self) -> Tensor:
        """What ``attention_rollout`` gives, from the attention that is there: (1, 12, 99)."""
        model, its = self.clip.models["baseline"], self.rollout
        row = torch.zeros(len(self.clip.maps[0]))
        row[: 2 if its.token == "mean" else 1] = 1.0
        for matrix in reversed(self.clip.maps) if its.order == "abnar" else self.clip.maps:
            row = its.alpha * row @ matrix + (1 - its.alpha) * row
        heat = row[model.vit.num_prefix_tokens :].unflatten(0, model.grid)[None]
        return heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)

    @cached_property
    def patches(self) -> Tensor:
        """The masked ones: bool (1, 12, 99)."""
        model, generator = self.clip.run.profile.model, torch.Generator().manual_seed(self.clip.run.seed)
        return choose_patches(self.heat, self.mask, generator, model.patch, model.stride)

    @property
    def _grid(self) -> tuple[int, int, int, int]:
        audio, model = self.clip.run.profile.audio, self.clip.run.profile.model
        return audio.hop, audio.sample_rate, model.patch, model.stride

    @property
    def _hidden(self) -> Tensor:
        height, width = self.clip.spectrogram.shape[2:]
        return masked_cells(self.patches, (height, width), *self._grid[2:])

    @property
    def summary(self) -> str:
        """How much is masked, in words."""
        return f"{self.patches.float().mean():.1%} of the patches, {self._hidden.float().mean():.1%} of the cells"

    def _panels(self) -> tuple[Figure, Any, np.ndarray]:
        note = self.clip.run.profile.note(self.clip.run.corpus)
        return *figures.panels(1, 2, (figures.WIDTH, 2.6), note, sharey="row"), self.clip.spectrogram[0, 0].numpy()

    def attended(self) -> Figure:
        """The spectrogram, and the rollout over it."""
        figure, axes, picture = self._panels()
        figures.spectrogram(axes[0, 0], picture, *self._grid[:2], title=f"{self.clip.name}, {self.clip.emotion}")
        title = f"rollout, alpha {self.rollout.alpha:.2f}, order {self.rollout.order}"
        figures.overlay(axes[0, 1], picture, self.heat[0].numpy(), *self._grid, title=title)
        axes[0, 1].set_ylabel("")
        return figure

    def masked(self) -> Figure:
        """The mask's outline on the rollout, and the spectrogram without what is masked."""
        figure, axes, picture = self._panels()
        heat, patches = self.heat[0].numpy(), self.patches[0].numpy()
        figures.overlay(axes[0, 0], picture, heat, *self._grid, title="rollout and the mask's outline")
        figures.mask_outline(axes[0, 0], patches, picture.shape, *self._grid)
        figures.masked_spectrogram(axes[0, 1], picture, patches, *self._grid, title=f"masked: {self.summary}")
        axes[0, 1].set_ylabel("")
        return figure

    def waveforms(self) -> dict[str, Tensor]:
        """The recording; its whole spectrogram made sound again; what the mask keeps of it; what it removes."""
        audio, clip, hidden = self.clip.run.profile.audio, self.clip, self._hidden
        front_end, black = LogMel(audio), float(clip.spectrogram.min())
        offset, scale = (each.expand(3, 1, 1) for each in front_end.limits(front_end.decibels(clip.waveform[None])))
        pictures = [clip.spectrogram, *(clip.spectrogram.masked_fill(gone, black) for gone in (hidden, ~hidden))]
        names = ["the recording", "all of its spectrogram", "what the mask keeps", "what the mask removes"]
        sounds = [clip.waveform, *InverseLogMel(audio)(torch.cat(pictures), offset, scale)]
        return {name: sound[: clip.length] for name, sound in zip(names, sounds, strict=True)}

    def heard(self) -> HTML:
        """A player each of ``waveforms``, all amplified alike."""
        sounds, rate = self.waveforms(), self.clip.run.profile.audio.sample_rate
        loudest = max(float(sound.abs().max()) for sound in sounds.values()) or 1.0
        rows = [
            f"<figure style='margin:0 0 8px'><figcaption>{name}</figcaption>"
            f"{Audio((0.9 / loudest * sound).numpy(), rate=rate, normalize=False)._repr_html_()}</figure>"
            for name, sound in sounds.items()
        ]
        return HTML(f"<p>{self.clip.name}, {self.summary} masked</p>{''.join(rows)}")

    @torch.no_grad()
    def probabilities(self) -> pd.DataFrame:
        """Of every emotion by every stage: columns (stage, 'clean') and (stage, 'masked')."""
        clean, shape = self.clip.spectrogram, self._grid[2:]
        both = torch.cat([clean, mask_spectrogram(clean, self.patches, *shape, self.mask.fill)])
        table = {stage: model(both).softmax(1) for stage, model in self.clip.models.items()}
        columns = {
            (STAGES[s], kind): p[i].numpy() for s, p in table.items() for i, kind in enumerate(("clean", "masked"))
        }
        return pd.DataFrame(columns, index=self.clip.emotions)

    def judged(self) -> Figure:
        """``probabilities`` as bars."""
        note, title = self.clip.run.profile.note(self.clip.run.corpus), f"{self.clip.name}; masked: {self.summary}"
        return figures.stage_probabilities(self.probabilities(), self.clip.emotion, title, note)


class Controls:
    """What a reader of the notebook moves, and what is shown again then.

    Args:
        run: a finished run.
        clip: the test clip to begin with; empty: the first.

    Raises:
        SamsgError: a stage has not been run, or the run has no such test clip.
    """

    def __init__(self, run: Run, clip: str = "") -> None:
        models = {stage: load_model(run, stage) for stage in STAGES}
        test = read_clips(run).query("part == 'test'")
        names = {f"{row.clip}, {row.emotion}": row.clip for row in test.itertuples()}
        if clip and clip not in names.values():
            raise SamsgError(f"'{clip}' is no test clip of this run; there are {', '.join(names.values())[:500]}.")
        self._open = lru_cache(maxsize=1)(lambda name: Clip(run, models, name))
        self._rollout, self._mask = run.profile.rollout, run.profile.mask
        first = clip or next(iter(names.values()))
        self.clip = ipywidgets.Dropdown(options=names, value=first, description="clip")
        choices = {
            "strategy": ("rollout", "random", "least", "stripes", "none"),
            "select": ("threshold", "share", "otsu"),
            "order": ("abnar", "printed"),
        }
        start = {**self._rollout.model_dump(), **self._mask.model_dump()}
        self.settings = {
            name: ipywidgets.Dropdown(options=options, value=start[name], description=name)
            for name, options in choices.items()
        }
        self.settings |= {
            name: ipywidgets.FloatSlider(start[name], min=0, max=1, step=0.01, description=name)
            for name in ("threshold", "share", "alpha")
        }
        for name in ("strategy", "select"):
            self.settings[name].observe(self._hide_what_has_no_effect, "value")
        self._hide_what_has_no_effect()

    def _hide_what_has_no_effect(self, _: Any = None) -> None:
        strategy, select = (self.settings[name].value for name in ("strategy", "select"))
        for name in ("select", "threshold", "share"):
            used = strategy != "none" and name in ("select", select)
            self.settings[name].layout.display = "" if used else "none"

    @property
    def look(self) -> Look:
        """The chosen clip under the settings as they are now."""
        values = {name: control.value for name, control in self.settings.items()}
        for_rollout, for_mask = (
            {name: value for name, value in values.items() if name in group.model_fields}
            for group in (RolloutSettings, MaskSettings)
        )
        rollout, mask = self._rollout.model_copy(update=for_rollout), self._mask.model_copy(update=for_mask)
        return Look(self._open(self.clip.value), rollout, mask)

    def choose_clip(self) -> None:
        """Show the list of clips."""
        _show(self.clip, "A list of the test clips")

    def choose_settings(self) -> None:
        """Show the settings."""
        box = ipywidgets.Box(list(self.settings.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        _show(box, f"Controls of {', '.join(self.settings)}")

    def show(self, view: Callable[[Look], Any], button: str = "") -> None:
        """Show what a view makes of ``look``, again whenever something moves; with a button, when it is pressed.

        Args:
            view: a method of ``Look``.
            button: its words, for a view that takes its time.
        """
        again = ipywidgets.Button(description=button, layout=ipywidgets.Layout(width="max-content"))
        if button:
            _show(again, f"Button '{button}'")
        shown = display(view(self.look), display_id=True)

        def update(_: Any) -> None:
            shown.update(view(self.look))

        again.on_click(update)
        for control in [self.clip, *([] if button else self.settings.values())]:
            control.observe(update, "value")


def _show(widget: ipywidgets.Widget, what: str) -> None:
    display({**widget._repr_mimebundle_(), "text/plain": ASLEEP.format(what)}, raw=True)
