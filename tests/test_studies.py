"""Studies past the paper: variants that differ in one thing, and tables that follow from predictions alone."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import samsg
from samsg import studies
from samsg.masking import covered
from samsg.metrics import holm, paired_difference, summarise
from samsg.stages import MASKS, read_table


@pytest.fixture(scope="module")
def studied(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the study 'masks' of the toy corpus, seed 0."""
    home = tmp_path_factory.mktemp("studied")
    shutil.copytree(finished, home, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSG_HOME", str(home))
        studies.run_study([samsg.open_run(home / "tones.yaml", "tones")], "masks")
    return home


@pytest.fixture
def run(studied: Path, monkeypatch: pytest.MonkeyPatch) -> samsg.Run:
    monkeypatch.setenv("SAMSG_HOME", str(studied))
    return samsg.open_run(studied / "tones.yaml", "tones")


@pytest.mark.parametrize("study", studies.STUDIES)
def test_a_variant_changes_one_setting_and_has_a_name_of_its_own(study: str) -> None:
    profile = samsg.load_profile("demo")
    groups = ("audio", "views", "model", "rollout", "mask", "training", "samsg", "probe")
    names = {}
    for variant in studies.STUDIES[study]:
        changed = studies.changed(profile, variant)
        differing = [
            f"{group}.{name}"
            for group in groups
            for name, value in getattr(changed, group).model_dump().items()
            if value != getattr(getattr(profile, group), name)
        ]
        assert len(differing) == (1 if variant.changes else 0), variant.title
        assert names.setdefault(changed.name, changed) == changed, variant.title
    titles = [variant.title for variant in studies.STUDIES[study]]
    assert len(titles) == len(set(titles)) and studies.SAMSG in studies.STUDIES[study]


def test_what_variants_share_is_made_once(studied: Path, run: samsg.Run) -> None:
    made = Counter(path.parent.name for path in (studied / "runs").rglob("settings.json"))
    # SAMSG, random masks and no masks; DeiT is their stage i, and DeiT for as many epochs a stage ii.
    assert made == {"spectrograms": 1, "baseline": 1, "rollout": 1, "masks": 3, "samsg": 3, "probe": 3}
    long, without = (studies.variant_run(run, studies.LONG), studies.variant_run(run, studies.CONTROLS[3]))
    assert long.stage_folder("samsg") == without.stage_folder("samsg") != run.stage_folder("samsg")


def test_control_masks_cover_the_area_of_the_important_patches_view_by_view(run: samsg.Run) -> None:
    def areas(run: samsg.Run) -> tuple[np.ndarray, torch.Tensor]:
        masks = np.load(samsg.compute_masks(run) / MASKS)
        return masks, covered(torch.from_numpy(masks.reshape(-1, *masks.shape[2:])))

    masks, wanted = areas(run)
    assert wanted.any()
    for variant in studies.CONTROLS:
        others, area = areas(studies.variant_run(run, variant))
        missing = wanted - area
        if variant.title == "SAMSG, no masks":
            assert not area.any()
        else:  # one patch more would be too much
            assert missing.min() >= 0 and missing.max() < 16 * 16 and not np.array_equal(others, masks), variant.title


def test_every_variant_is_compared_on_the_same_test_clips(run: samsg.Run, tmp_path: Path) -> None:
    predictions = studies.study_predictions([run], "masks")
    table = studies.compare(predictions, "random")
    assert table.index.tolist() == [studies.SVM, *(variant.title for variant in studies.STUDIES["masks"])]
    assert (table["n"] == 7).all() and table.loc["DeiT", "accuracy"] == 1
    others = table.drop(index="SAMSG")
    difference = (others["only_variant"] - others["only_reference"]) / 7
    np.testing.assert_allclose(others["difference"], difference)
    np.testing.assert_allclose(others["accuracy"] - table.loc["SAMSG", "accuracy"], difference)
    text = studies.printable(table)
    assert text.loc["SAMSG", ["Difference from SAMSG", "p (Holm)"]].tolist() == ["-", "-"]
    assert "nan" not in text.to_csv()
    predictions.to_csv(tmp_path / "kept.csv", index=False)
    pd.testing.assert_frame_equal(studies.compare(read_table(tmp_path / "kept.csv"), "random"), table)


@pytest.fixture
def predictions() -> pd.DataFrame:
    """Three variants on 60 clips by six speakers; a speaker's clips are all right or all wrong, except for one."""
    clips = pd.DataFrame({"clip": [f"c{number:02}" for number in range(60)], "seed": 0, "emotion": "x"})
    clips["emotion"] = ["x" if number % 2 else "y" for number in range(60)]
    clips["speaker"] = [f"s{number // 10}" for number in range(60)]
    clips["sentence"] = [f"t{number % 5}" for number in range(60)]
    tables = []
    for title, wrong in {"SAMSG": "s0", "DeiT": "s0 s1 s2", "B": "s0 s1"}.items():
        right = ~clips["speaker"].isin(wrong.split()) | (clips["clip"] == "c00")
        tables.append(clips.assign(variant=title, predicted=clips["emotion"].where(right, "z")))
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize("protocol", ["random", "speaker", "sentence"])
def test_intervals_resample_what_the_protocol_holds_out(predictions: pd.DataFrame, protocol: str) -> None:
    unit = "clip" if protocol == "random" else protocol
    table = studies.compare(predictions, protocol)
    rows = {title: rows for title, rows in predictions.groupby("variant", sort=False)}
    for title, row in table.iterrows():
        expected = summarise(rows[title], ["x", "y"], unit)
        assert (row["accuracy"], row["accuracy_low"], row["accuracy_high"]) == expected.accuracy[:3]
        assert (row["macro_f1"], row["macro_f1_low"], row["macro_f1_high"]) == expected.macro_f1[:3]
    expected = paired_difference(rows["DeiT"], rows["SAMSG"], unit)
    assert tuple(table.loc["DeiT", ["difference", "difference_low", "difference_high", "p"]]) == expected[:4]
    width = table["accuracy_high"] - table["accuracy_low"]
    clips = studies.compare(predictions, "random")
    # Speakers agree with themselves and sentences do not: their interval is that of clips.
    assert (width > 1.4 * (clips["accuracy_high"] - clips["accuracy_low"])).all() == (protocol == "speaker")


def test_p_values_are_corrected_for_every_comparison_of_the_table(predictions: pd.DataFrame) -> None:
    table = studies.compare(predictions, "random")
    assert np.isnan(table.loc["SAMSG", "p"]) and np.isnan(table.loc["SAMSG", "p_holm"])
    assert table.loc["DeiT", "p"] == pytest.approx(2 * 0.5**20) and table.loc["B", "p"] == pytest.approx(2 * 0.5**10)
    assert table.loc["DeiT", "p_holm"] == pytest.approx(2 * table.loc["DeiT", "p"])  # Holm: the smallest of two
    assert table.loc["B", "p_holm"] == table.loc["B", "p"]
    pd.testing.assert_series_equal(table["p_holm"], holm(table["p"]), check_names=False)
