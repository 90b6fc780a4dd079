"""Studies past the paper: variants that differ in one thing, and tables that follow from predictions alone."""

import shutil
from collections import Counter

import nbformat
import numpy as np
import pandas as pd
import pytest

import samsg
from samsg import studies
from samsg.metrics import paired_difference, summarise
from samsg.settings import REPOSITORY

# Notebooks 08 and 10 add studies of their own to the library's.
for name, cell_id in {"08_controls_and_ablations": "c08-studies", "10_shortcuts": "cell-studies"}.items():
    notebook = nbformat.read(REPOSITORY / f"notebooks/{name}.ipynb", 4)
    exec(next(cell.source for cell in notebook.cells if cell.id == cell_id))


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A run of the toy corpus whose study 'masks' is finished, in a home folder of its own."""
    home = tmp_path_factory.mktemp("studied")
    shutil.copytree(finished, home, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSG_HOME", str(home))
        run = samsg.open_run(home / "tones.yaml", "tones")
        studies.run_study([run], "masks")
        yield run


@pytest.mark.parametrize("study", studies.STUDIES)
def test_a_variant_changes_what_it_names_and_has_a_name_of_its_own(study):
    def settings(profile):
        content = profile.model_dump(exclude={"corpora", "name", "variant_of"})
        return pd.json_normalize(content).iloc[0].astype(str)

    profile, names = samsg.load_profile("demo"), {}
    for variant in studies.STUDIES[study]:
        changed = studies.changed(profile, variant)
        differing = settings(profile).compare(settings(changed)).index
        asked = [f"{group}.{name}" for group, each in variant.changes.items() for name in each]
        assert sorted(differing) == sorted(asked), variant.title
        assert study == "claim" or len(asked) <= 1, variant.title  # 'claim' also equals the areas of the masks
        assert names.setdefault(changed.name, changed) == changed, variant.title
    titles = [variant.title for variant in studies.STUDIES[study]]
    assert len(titles) == len(set(titles)) and studies.SAMSG in studies.STUDIES[study]


def test_what_variants_share_is_made_once(run):
    made = Counter(path.parent.name for path in (samsg.home() / "runs").rglob("settings.json"))
    # SAMSG, random masks and no masks; DeiT is their stage i, and DeiT for as many epochs a stage ii.
    assert made == {"spectrograms": 1, "baseline": 1, "rollout": 1, "masks": 3, "samsg": 3, "probe": 3}
    long, without = (studies.variant_run(run, studies.LONG), studies.variant_run(run, studies.NO_MASKS))
    assert long.stage_folder("samsg") == without.stage_folder("samsg") != run.stage_folder("samsg")


def test_every_variant_is_compared_on_the_same_test_clips(run):
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
    files = studies.study_files(run, "masks", samsg.home())
    before = [path.read_bytes() for path in files]
    studies.write_study([run], "masks")
    assert [path.read_bytes() for path in files] == before
    with pytest.raises(samsg.SamsgError, match="samsg reproduce --study claim --profile tones --protocol random"):
        studies.read_study(run, "claim")


NUMBERS = np.arange(60)  # of the clips


def answers(right):
    """Predictions for 60 clips by six speakers; ``right``: variant -> which are right, bool (60,)."""
    clips = pd.DataFrame({"clip": [f"c{number:02}" for number in NUMBERS], "seed": 0, "emotion": ["y", "x"] * 30})
    clips = clips.assign(speaker=[f"s{number // 10}" for number in NUMBERS], sentence=[f"t{n % 5}" for n in NUMBERS])
    tables = [clips.assign(variant=title, predicted=clips["emotion"].where(right[title], "z")) for title in right]
    return pd.concat(tables, ignore_index=True)


FIRST_RIGHT = {"SAMSG": 10, "DeiT": 30, "B": 20}  # a speaker's clips are all right or all wrong, except for clip 0
PREDICTIONS = answers({title: (NUMBERS == 0) | (first <= NUMBERS) for title, first in FIRST_RIGHT.items()})


@pytest.mark.parametrize("protocol", ["random", "speaker", "sentence"])
def test_intervals_resample_what_the_protocol_holds_out(protocol):
    unit = "clip" if protocol == "random" else protocol
    table, rows = studies.compare(PREDICTIONS, protocol), dict(iter(PREDICTIONS.groupby("variant")))
    for title, row in table.iterrows():
        expected = summarise(rows[title], ["x", "y"], unit)
        assert (row["accuracy"], row["accuracy_low"], row["accuracy_high"]) == expected.accuracy[:3]
        assert (row["macro_f1"], row["macro_f1_low"], row["macro_f1_high"]) == expected.macro_f1[:3]
    expected = paired_difference(rows["DeiT"], rows["SAMSG"], unit)
    assert tuple(table.loc["DeiT", ["difference", "difference_low", "difference_high", "p"]]) == expected[:4]


def test_p_values_are_corrected_for_every_comparison_of_the_table():
    table = studies.compare(PREDICTIONS, "random")
    assert np.isnan(table.loc["SAMSG", "p"]) and np.isnan(table.loc["SAMSG", "p_holm"])
    assert table.loc["DeiT", "p"] == pytest.approx(2 * 0.5**20) and table.loc["B", "p"] == pytest.approx(2 * 0.5**10)
    assert table.loc["DeiT", "p_holm"] == pytest.approx(2 * table.loc["DeiT", "p"])  # Holm: the smallest of two
    assert table.loc["B", "p_holm"] == table.loc["B", "p"]


def test_findings_compare_with_deit_and_with_random_masks_and_correct_all_studies_together():
    variants = studies.STUDIES["claim"]  # the gradient map alone is right on all clips, the others on every third
    table = answers({each.title: (NUMBERS % 3 == 0) | (each.title == "SAMSG, gradient map") for each in variants})
    found = studies.findings({("one", "speaker"): table, ("two", "random"): table})
    last = [variant.title for variant in variants if variant.stage == "probe"]
    assert len(found) == 2 * (len(last) + 2) and set(found["against"]) == {studies.LONG.title, "SAMSG, random masks"}
    is_different = found["finding"] == "difference"
    assert (is_different == (found["method"] == "SAMSG, gradient map")).all()
    np.testing.assert_allclose(found.loc[is_different, "value"], 2 / 3)
    # Holm: the least of 14 p-values counts 14 times; four share it, and all four are at least that large.
    assert found.loc[is_different, "p_holm"].min() == pytest.approx(14 * 2 * 0.5**40)
    same = found[~is_different]
    assert same["finding"].str.fullmatch(r"no difference found; gains above \d+\.\d points are excluded").all()


def test_the_difference_of_independent_estimates_has_the_interval_of_zou_and_donner():
    names = ["accuracy", "accuracy_low", "accuracy_high"]
    first, second = pd.DataFrame([[0.7, 0.6, 0.8]], columns=names), pd.DataFrame([[0.5, 0.47, 0.54]], columns=names)
    value, low, high = studies.subtract(first, second).to_numpy()[0]
    assert value == pytest.approx(0.2)
    assert low == pytest.approx(0.2 - np.hypot(0.1, 0.04)) and high == pytest.approx(0.2 + np.hypot(0.1, 0.03))
