"""What the notebook explore computes: rollout, mask and probabilities of the run itself, and sounds that fit them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import samsg
from samsg.report.explore import Controls, Look
from samsg.settings import SamsgError


@pytest.fixture(scope="module")
def run(spoken: Path) -> samsg.Run:
    return samsg.open_run(str(spoken))


@pytest.fixture(autouse=True)
def home(spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSG_HOME", str(spoken.parent))


@pytest.fixture
def controls(run: samsg.Run) -> Controls:
    return Controls(run)


def row_of(run: samsg.Run, look: Look) -> int:
    return int(np.flatnonzero(samsg.read_clips(run)["clip"] == look.clip.name)[0])


def test_it_begins_with_the_first_test_clip_under_the_runs_own_settings(run, controls):
    look, row = controls.look, row_of(run, controls.look)
    assert samsg.read_clips(run)["part"].iloc[row] == "test"
    np.testing.assert_allclose(
        look.heat[0].numpy(), np.load(run.require("rollout") / "heat.npy")[0, row], rtol=0, atol=1e-5
    )
    np.testing.assert_array_equal(look.patches[0].numpy(), np.load(run.require("masks") / "masks.npy")[0, row])


@pytest.mark.parametrize("order", ["abnar", "printed"])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_moved_settings_give_the_rollout_that_the_method_gives(controls, alpha, order):
    controls.settings["alpha"].value, controls.settings["order"].value = alpha, order
    look = controls.look
    expected = samsg.attention_rollout(look.clip.models["baseline"], look.clip.spectrogram, alpha, order)
    torch.testing.assert_close(look.heat, expected, rtol=0, atol=1e-5)


def test_attention_is_computed_once_a_clip(controls):
    first = controls.look.clip
    controls.settings["alpha"].value = 0.1
    assert controls.look.clip is first
    controls.clip.index = 1
    assert controls.look.clip is not first


def test_clean_probabilities_are_those_of_the_predictions(run, controls):
    table, name = controls.look.probabilities(), controls.look.clip.name
    for stage, title in (("baseline", "DeiT, stage i"), ("samsg", "stage ii"), ("probe", "SAMSG, stage iii")):
        kept = pd.read_csv(run.require(stage) / "predictions.csv").set_index("clip").loc[name]
        wanted = [kept[f"p_{emotion}"] for emotion in table.index]
        np.testing.assert_allclose(table[title, "clean"], wanted, rtol=0, atol=0.02)  # of bf16, where a CPU has it
    np.testing.assert_allclose(table.sum(), 1, atol=1e-5)


def test_without_a_mask_nothing_differs_and_nothing_is_removed(controls):
    controls.settings["strategy"].value = "none"
    look = controls.look
    table, sounds = look.probabilities().swaplevel(axis=1), look.waveforms()
    np.testing.assert_allclose(table["clean"], table["masked"], atol=1e-6)
    torch.testing.assert_close(sounds["what the mask keeps"], sounds["all of its spectrogram"])
    assert sounds["what the mask removes"].abs().max() < 0.01 * sounds["the recording"].abs().max()
    assert look.summary == "0.0% of the patches, 0.0% of the cells"


def test_sounds_are_as_long_as_the_recording(run, controls):
    look = controls.look
    length = samsg.read_clips(run)["samples"].iloc[row_of(run, look)]
    assert {len(sound) for sound in look.waveforms().values()} == {length} and length < 64_000
    assert look.heard().data.count("<audio") == 4


def test_only_settings_that_have_an_effect_are_shown(controls):
    def hidden() -> set[str]:
        return {name for name, control in controls.settings.items() if control.layout.display == "none"}

    assert hidden() == {"share"}
    controls.settings["select"].value = "otsu"
    assert hidden() == {"share", "threshold"}
    controls.settings["strategy"].value = "none"
    assert hidden() == {"share", "threshold", "select"}


def test_a_clip_by_name_and_one_that_is_not_there(run):
    last = samsg.read_clips(run).query("part == 'test'")["clip"].iloc[-1]
    assert Controls(run, last).look.clip.name == last
    with pytest.raises(SamsgError, match="'nobody' is no test clip"):
        Controls(run, "nobody")
