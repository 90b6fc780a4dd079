"""Deletion and insertion: exact curves of a model that hears one patch, equal areas, and a whole study."""

import numpy as np
import pandas as pd
import pytest
import torch

import samsg
from samsg import faithfulness
from samsg.faithfulness import SHARES, areas, curves
from samsg.stages import read_predictions


class OnePatch(torch.nn.Module):
    """Class 0 if the patch in row 1, column 2 has sound, else class 1; patches of 4 x 4 cells."""

    patch = stride = 4

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        sound = spectrogram[:, 0, 4:8, 8:12].amax((1, 2))  # (B,)
        return torch.stack([4 * (sound > 0).float() - 2, torch.zeros_like(sound)], 1)  # (B, 2)


@pytest.fixture
def x() -> torch.Tensor:
    """4 x 8 patches with sound and 4 x 4 of padding, (3, 1, 16, 48)."""
    x = 0.1 + torch.rand(3, 1, 16, 48, generator=torch.Generator().manual_seed(0))
    x[..., 32:] = 0
    return x


def test_a_map_that_knows_the_patch_changes_the_answer_at_the_first_share_and_its_reverse_at_the_last(x) -> None:
    heat = torch.rand(3, 4, 12, generator=torch.Generator().manual_seed(1))
    heat[:, 1, 2] = 2
    table = curves(OnePatch(), x, torch.tensor([0, 0, 1]), {"knows": heat, "reverse": -heat})
    assert len(table) == 2 * len(SHARES) * 2 * 3
    right = 1 / (1 + np.exp(-2))  # logits 2 and 0
    for (name, kind), each in table.groupby(["map", "kind"]):
        heard = np.array([share >= 0.05 if name == "knows" else share == 1 for share in SHARES]) ^ (kind == "deletion")
        shown = each.pivot(index="share", columns="clip", values=["accuracy", "probability"])
        assert shown["accuracy"][0].tolist() == shown["accuracy"][1].tolist() == heard.tolist()
        assert shown["accuracy"][2].tolist() == (~heard).tolist()  # its label is not what the model answers
        np.testing.assert_allclose(shown["probability"][2], np.where(heard, right, 1 - right), rtol=1e-6)


def test_the_area_of_a_constant_curve_is_the_constant_and_gains_are_from_random() -> None:
    def table(name: str, probability: dict[float, float]) -> pd.DataFrame:
        rows = [
            {"map": name, "kind": kind, "share": share, "clip": clip, "probability": each + (clip - 1) / 10}
            for kind in ("deletion", "insertion")
            for share, each in probability.items()
            for clip in range(3)
        ]
        return pd.DataFrame(rows)

    falling = {share: 0.8 - 0.6 * share for share in SHARES}  # its area is 0.5
    draws = [table("random", dict.fromkeys(SHARES, level)) for level in (0.2, 0.3, 0.4)]
    found = areas(pd.concat([table("falling", falling), *draws]))
    for kind in ("deletion", "insertion"):
        assert found[kind].to_dict() == pytest.approx({"falling": 0.5, "random": 0.3})
        assert (found[f"{kind}_low"] < found[kind] - 0.05).all() and (found[f"{kind}_high"] > found[kind] + 0.05).all()
        ends = found[[f"{kind}_gain", f"{kind}_gain_low", f"{kind}_gain_high"]]  # all clips differ by the same
        assert ends.loc["falling"].tolist() == pytest.approx([0.2] * 3) and ends.loc["random"].tolist() == [0] * 3


def test_a_study_starts_and_ends_at_the_predictions_of_stage_i(finished, monkeypatch) -> None:
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    monkeypatch.setattr(faithfulness, "MOST_CLIPS", 10)  # all 7 test clips, and 3 of validation
    run = samsg.open_run(finished / "tones.yaml", "tones")
    table, summary = faithfulness.study(run)
    names = [*faithfulness.MAPS, faithfulness.LEAST, faithfulness.RANDOM]
    assert summary.index.tolist() == names and summary.notna().all(axis=None)
    assert table["map"].value_counts()[names].tolist() == [len(SHARES) * 2 * 10] * 8 + [len(SHARES) * 2 * 10 * 3]
    predictions = pd.concat(read_predictions(run, "baseline", part) for part in ("test", "validation"))
    predictions["probability"] = predictions.filter(like="p_").max(axis=1)
    predictions["accuracy"] = (predictions["emotion"] == predictions["predicted"]).astype(float)
    whole = table.query("(kind == 'deletion' and share == 0) or (kind == 'insertion' and share == 1)")
    ends = whole.merge(predictions, on="clip", validate="many_to_one")
    assert set(read_predictions(run, "baseline")["clip"]) < set(ends["clip"]) and ends["clip"].nunique() == 10
    np.testing.assert_allclose(ends["probability_x"], ends["probability_y"], atol=1e-5)  # written with six digits
    assert (ends["accuracy_x"] == ends["accuracy_y"]).all()
