"""A finished run held against its own sounds and models; what a machine has and a profile still needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import soundfile
from safetensors.torch import load_file, save_file

import samsg
from samsg import cli
from samsg.doctor import examine
from samsg.recompute import recompute
from samsg.runs import find_run
from samsg.settings import SamsgError


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> samsg.Run:
    """A finished run that may be spoiled."""
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    monkeypatch.setenv("SAMSG_HOME", str(home))
    tones = {"reader": str(home / "tones.csv"), "note": "tones", "root": str(home)}
    profile = samsg.load_profile(home / "tones.yaml", corpora={"tones": tones})
    run = samsg.open_run(profile, "tones")
    for name in ("waveforms", "spectrograms", "baseline", "rollout", "masks", "samsg", "probe"):
        folder = run.stage_folder(name)  # the list lies elsewhere than when it was read: say so
        record = folder / "settings.json"
        record.write_text(record.read_text().replace(str(finished), str(home)))
    return run


def test_an_untouched_run_is_the_same_to_the_last_digit(copy: samsg.Run) -> None:
    report = recompute(copy)
    assert report.same and not report.changed
    assert list(report.stages.index) == ["baseline", "samsg", "probe"]
    assert (report.stages["largest"] == 0).all()
    assert (report.stages["accuracy"] == report.stages["recorded_accuracy"]).all()
    assert report.text().endswith("Verdict: the same as recorded.")


def test_a_prediction_that_was_altered_is_found(copy: samsg.Run) -> None:
    path = copy.require("probe") / "predictions.csv"
    table = pd.read_csv(path, dtype={"clip": str})
    wrong = table.index[(table["part"] == "test") & (table["predicted"] != table["emotion"])][0]
    table.loc[wrong, "predicted"] = table.loc[wrong, "emotion"]
    table.to_csv(path, index=False)
    report = recompute(copy)
    assert not report.same
    assert report.stages["differing"].to_dict() == {"baseline": 0, "samsg": 0, "probe": 1}
    assert report.stages.at["probe", "accuracy"] < report.stages.at["probe", "recorded_accuracy"]
    assert "NOT the same" in report.text()


@pytest.mark.parametrize("how", ["a row less", "a row twice", "another truth", "another part"])
def test_rows_that_are_not_those_of_the_run_are_found(copy: samsg.Run, how: str) -> None:
    path = copy.require("probe") / "predictions.csv"
    table = pd.read_csv(path, dtype={"clip": str})
    wrong = table.index[(table["part"] == "test") & (table["predicted"] != table["emotion"])][0]
    if how == "a row less":
        table = table.drop(index=wrong)
    elif how == "a row twice":
        table = pd.concat([table, table.loc[[wrong]]])
    elif how == "another truth":
        table.loc[wrong, "emotion"] = table.loc[wrong, "predicted"]
    else:
        table.loc[wrong, "part"] = "validation"
    table.to_csv(path, index=False)
    report = recompute(copy)
    assert not report.same and not report.only_rounding
    assert report.stages["rows"].gt(0).to_dict() == {"baseline": False, "samsg": False, "probe": True}


def test_digits_alone_are_told_from_decisions(copy: samsg.Run) -> None:
    path = copy.require("probe") / "predictions.csv"
    table = pd.read_csv(path, dtype={"clip": str})
    table["p_high"] += 1e-4
    table.to_csv(path, index=False)
    report = recompute(copy)
    assert report.only_rounding and not report.same
    assert "by less than decides an emotion" in report.text()


def test_weights_that_were_altered_are_found(copy: samsg.Run) -> None:
    path = copy.require("baseline") / "model.safetensors"
    weights = load_file(path)
    weights["emotion_head.bias"][0] += 0.1
    save_file(weights, path)
    report = recompute(copy)
    assert not report.same and report.stages.at["baseline", "largest"] > 1e-3


def test_a_sound_that_was_altered_is_found_even_if_its_stamp_was_kept(copy: samsg.Run) -> None:
    path = copy.profile.root("tones") / "low3.wav"
    stamp = path.stat()
    samples, rate = soundfile.read(path, dtype="int16")
    samples[100] += 1
    soundfile.write(path, samples, rate)
    import os

    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    report = recompute(copy)
    assert report.changed == ["low3.wav"] and not report.same


def test_the_command_says_so_by_its_exit_code(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    with pytest.raises(SystemExit) as ended:
        cli.app(["verify", "tones/tones"])
    assert ended.value.code == 0
    assert "Verdict: the same as recorded." in capsys.readouterr().out
    with pytest.raises(SamsgError, match="There is no run 'tones/nothing'"):
        cli.app(["verify", "tones/nothing"], standalone_mode=False)


def test_a_run_is_found_by_its_name_or_its_folder(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    run = samsg.open_run(samsg.load_profile(finished / "tones.yaml"), "tones")
    for name in ("tones/tones", "tones/tones/random", "tones/tones/random/seed0", run.folder, f"{run.folder}/"):
        assert find_run(name) == run
    for name in ("", "tones", "tones/tones/speaker", "tones/tones/random/seed0/probe", "../runs", "/"):
        assert find_run(name) is None


def test_a_run_of_another_version_is_one_sentence(copy: samsg.Run) -> None:
    (copy.folder / "run.json").write_text('{"profile": {"name": "x", "corpora": {}, "colour": "red"}}')
    with pytest.raises(SamsgError, match="cannot be understood, as of another version"):
        find_run("tones/tones")


def test_the_doctor_names_what_the_paper_needs(home: Path) -> None:
    lines = list(examine(samsg.load_profile("paper")))
    missing = [line for line in lines if line.startswith("!")]
    for name in ("savee", "emodb", "crema_d"):
        assert any(line.startswith(f"! Corpus {name}: ") and f"samsg data fetch {name}" in line for line in missing)
    assert any("deit_base_distilled_patch16_224" in line and "model.weights" in line for line in missing)
    assert any(f"Home: {home}" in line for line in lines)


def test_the_doctor_finds_a_corpus_a_weights_file_and_a_finished_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    lines = list(examine(samsg.load_profile(finished / "tones.yaml")))
    assert not [line for line in lines if line.startswith("!")]
    assert any("Corpus tones: 42 clips" in line for line in lines)
    assert "  Finished, protocol random: tones (seeds 0)" in lines
    profile = samsg.load_profile("paper", model={"weights": str(finished / "tones.csv")})
    assert f"  Weights: the file {finished / 'tones.csv'}" in list(examine(profile))
