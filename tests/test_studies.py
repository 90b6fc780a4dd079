"""Studies past the paper: variants that differ in one thing, and tables that follow from predictions alone."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import samsg
from samsg import studies
from samsg.metrics import holm, paired_difference, summarise


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
def test_a_variant_changes_what_it_names_and_has_a_name_of_its_own(study: str) -> None:
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
        asked = [f"{group}.{name}" for group, each in variant.changes.items() for name in each]
        assert sorted(differing) == sorted(asked), variant.title
        assert study == "claim" or len(asked) <= 1, variant.title  # 'claim' also equals the areas of the masks
        assert names.setdefault(changed.name, changed) == changed, variant.title
    titles = [variant.title for variant in studies.STUDIES[study]]
    assert len(titles) == len(set(titles)) and studies.SAMSG in studies.STUDIES[study]


def test_what_variants_share_is_made_once(studied: Path, run: samsg.Run) -> None:
    made = Counter(path.parent.name for path in (studied / "runs").rglob("settings.json"))
    # SAMSG, random masks and no masks; DeiT is their stage i, and DeiT for as many epochs a stage ii.
    assert made == {"spectrograms": 1, "baseline": 1, "rollout": 1, "masks": 3, "samsg": 3, "probe": 3}
    long, without = (studies.variant_run(run, studies.LONG), studies.variant_run(run, studies.NO_MASKS))
    assert long.stage_folder("samsg") == without.stage_folder("samsg") != run.stage_folder("samsg")


def test_every_variant_is_compared_on_the_same_test_clips(run: samsg.Run) -> None:
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
    studies.write_study([run], "masks")
    kept, training = studies.read_study(run, "masks")
    pd.testing.assert_frame_equal(studies.compare(kept, "random"), table)
    last = samsg.stages.read_history(run, "probe").iloc[-1]
    assert training.set_index("variant").loc["SAMSG", "train_accuracy"] == round(last["train_accuracy"], 4)
    before = [path.read_bytes() for path in studies.study_files(run, "masks")]
    studies.write_study([run], "masks")
    assert [path.read_bytes() for path in studies.study_files(run, "masks")] == before
    with pytest.raises(samsg.SamsgError, match="samsg reproduce --study claim --profile tones --protocol random"):
        studies.read_study(run, "claim")


@pytest.fixture
def predictions() -> pd.DataFrame:
    """Three variants on 60 clips by six speakers; a speaker's clips are all right or all wrong, except for one."""
    clips = pd.DataFrame({"clip": [f"c{number:02}" for number in range(60)], "seed": 0, "emotion": ["y", "x"] * 30})
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


def test_p_values_are_corrected_for_every_comparison_of_the_table(predictions: pd.DataFrame) -> None:
    table = studies.compare(predictions, "random")
    assert np.isnan(table.loc["SAMSG", "p"]) and np.isnan(table.loc["SAMSG", "p_holm"])
    assert table.loc["DeiT", "p"] == pytest.approx(2 * 0.5**20) and table.loc["B", "p"] == pytest.approx(2 * 0.5**10)
    assert table.loc["DeiT", "p_holm"] == pytest.approx(2 * table.loc["DeiT", "p"])  # Holm: the smallest of two
    assert table.loc["B", "p_holm"] == table.loc["B", "p"]
    pd.testing.assert_series_equal(table["p_holm"], holm(table["p"]), check_names=False)


def test_findings_compare_with_deit_and_with_random_masks_and_correct_all_studies_together() -> None:
    clips = pd.DataFrame({"clip": [f"c{number:02}" for number in range(60)], "seed": 0, "emotion": "x"})
    clips["speaker"] = [f"s{number % 6}" for number in range(60)]
    first = studies.STUDIES["claim"]
    tables = []
    for variant in first:  # the gradient map alone is right on all clips, the others on every third
        right = (np.arange(60) % 3 == 0) | (variant.title == "SAMSG, gradient map")
        tables.append(clips.assign(variant=variant.title, predicted=np.where(right, "x", "z")))
    table = pd.concat(tables, ignore_index=True)
    found = studies.findings({("one", "speaker"): table, ("two", "random"): table})
    last = [variant.title for variant in first if variant.stage == "probe"]
    assert len(found) == 2 * (len(last) + 2) and set(found["against"]) == {studies.LONG.title, "SAMSG, random masks"}
    is_different = found["finding"] == "difference"
    assert (is_different == (found["method"] == "SAMSG, gradient map")).all()
    np.testing.assert_allclose(found.loc[is_different, "value"], 2 / 3)
    # Holm: the least of 14 p-values counts 14 times; four share it, and all four are at least that large.
    assert found.loc[is_different, "p_holm"].min() == pytest.approx(14 * 2 * 0.5**40)
    same = found[~is_different]
    assert same["finding"].str.fullmatch(r"no difference found; gains above \d+\.\d points are excluded").all()


def test_the_difference_of_independent_estimates_has_the_interval_of_zou_and_donner() -> None:
    names = ["accuracy", "accuracy_low", "accuracy_high"]
    first, second = pd.DataFrame([[0.7, 0.6, 0.8]], columns=names), pd.DataFrame([[0.5, 0.47, 0.54]], columns=names)
    value, low, high = studies.subtract(first, second).to_numpy()[0]
    assert value == pytest.approx(0.2)
    assert low == pytest.approx(0.2 - np.hypot(0.1, 0.04)) and high == pytest.approx(0.2 + np.hypot(0.1, 0.03))
