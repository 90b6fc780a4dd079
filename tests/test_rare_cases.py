"""What happens seldom: odd rates, races that are lost, machines that lack something. Each is right, or said so."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sounds import noise, written

import samsg
from samsg import cli, doctor, predict, recompute
from samsg.audio.store import read_sound
from samsg.corpora.catalogue import SPOKEN, read_corpus
from samsg.corpora.verify import listen
from samsg.settings import SamsgError
from samsg.training import loop, stages

# Sounds and lists


def test_a_rate_that_shares_no_divisor_with_the_models_gives_the_same_tone(tmp_path: Path) -> None:
    rate = 16_001  # filters for 16 000 / 16 001 would fill the memory
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    heard = read_sound(written(tmp_path / "odd.wav", tone, rate, subtype="FLOAT"), 16_000).numpy()
    assert heard.shape == (16_000,) and heard.dtype == np.float32
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(heard - expected)[100:-100].max() < 1e-3


def test_a_file_that_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.wav")
    monkeypatch.setattr(os, "access", lambda *_: False)  # who tests as root may read everything
    heard = listen(path)
    assert (heard.status, heard.what) == ("unreadable", "Permission denied")


def test_folders_of_sounds_are_looked_for_where_they_are_and_under_names_that_tables_keep(tmp_path: Path) -> None:
    with pytest.raises(SamsgError, match=r"nowhere, which is no folder; it needs one folder for each class\."):
        read_corpus("folders", tmp_path / "nowhere")
    written(tmp_path / "calm/one.wav")
    written(tmp_path / "glad/two\nlines.wav")
    with pytest.raises(SamsgError, match=r"'glad/two\\nlines\.wav', a name that tables cannot keep"):
        read_corpus("folders", tmp_path)


def test_a_list_may_bring_its_own_split(tmp_path: Path) -> None:
    for name in "abcdef":
        written(tmp_path / f"{name}.wav")
    parts = ["test", "train", "validation"] * 2
    lines = [
        f"{name}.wav,{emotion},{part}" for name, emotion, part in zip("abcdef", 2 * ["x", "x", "y"], parts, strict=True)
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,emotion,part", *lines]))
    assert read_corpus(str(tmp_path / "list.csv"))["part"].tolist() == parts


def test_synthetic_speech_is_taken_for_a_corpus_by_no_profile_that_does_not_say_so(home: Path) -> None:
    profile = samsg.load_profile("paper", corpora={"emodb": {"root": str(home)}})
    (home / SPOKEN).write_text("synthetic")
    with pytest.raises(SamsgError, match=r"holds synthetic speech, but profile 'paper' does not say so of 'emodb'"):
        stages.read_manifest(samsg.open_run(profile, "emodb"))


# What a machine lacks


def test_the_doctor_says_what_a_package_that_is_not_installed_was_needed_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        if name == "audb":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", installed)
    monkeypatch.setattr(doctor, "try_to_load_from_cache", lambda *_: "model.safetensors")
    lines = list(doctor.examine(samsg.load_profile("demo", model={"weights": "imagenet"})))
    assert [line for line in lines if line.startswith("! audb is not installed, which 'samsg data fetch' needs; ")]
    assert not [line for line in lines if "praat-parselmouth is not" in line]
    assert f"  Corpus emodb: embedded, spoken into {home / 'data/synthetic/emodb'} when it is first needed" in lines
    assert "  Weights: ImageNet's (timm/deit_tiny_distilled_patch16_224.fb_in1k), on this machine" in lines


@pytest.mark.parametrize(("times", "pays"), [((1.0, 0.5), True), ((1.0, 0.8), False), ((1.0, None), False)])
def test_bfloat16_is_used_where_it_is_markedly_faster(
    monkeypatch: pytest.MonkeyPatch, times: tuple[float, float | None], pays: bool
) -> None:
    """A clock that moves on with each product by what it is said to take; no time: the device has no bfloat16."""
    clock, took = [0.0], dict(zip((torch.float32, torch.bfloat16), times, strict=True))

    class Matrix:
        def __init__(self, dtype: torch.dtype) -> None:
            if took[dtype] is None:
                raise RuntimeError("no bfloat16 here")
            self.dtype = dtype

        def __matmul__(self, _: Matrix) -> torch.Tensor:
            clock[0] += took[self.dtype]
            return torch.zeros(1, 1)

    monkeypatch.setattr(torch, "ones", lambda *_, dtype, **__: Matrix(dtype))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    assert loop.bf16_pays.__wrapped__(torch.device("cpu")) is pays


def test_a_gpu_that_emulates_bfloat16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert loop.bf16_pays.__wrapped__(torch.device("cuda")) is False


# Runs and models


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> samsg.Run:
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    return samsg.open_run(samsg.load_profile(finished / "tones.yaml"), "tones")


def test_training_goes_on_in_the_precision_that_it_was_begun_in_or_says_so(run: samsg.Run, tmp_path: Path) -> None:
    examples, model = stages.read_examples(run), stages.new_model(run)
    training, losses = run.profile.training.model_copy(update={"epochs": 1}), loop.Losses()
    loop.fit(loop.make_fabric(training), model, examples, losses, training, tmp_path, (0, 0), "training")
    other = training.model_copy(update={"epochs": 2, "precision": "bf16-mixed"})
    with pytest.raises(
        SamsgError, match=r"was begun in 32-true and would go on in bf16-mixed; set training\.precision"
    ):
        loop.fit(loop.make_fabric(other), model, examples, losses, other, tmp_path, (0, 0), "training")


def test_without_a_name_the_demos_first_model_is_opened(run: samsg.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(predict, "load_profile", lambda name: asked.append(name) or run.profile)
    opened, named = samsg.open_classifier(), samsg.open_classifier("tones/tones")
    assert asked == ["demo"]
    assert opened.config == named.config
    sound = noise(0.5)
    assert opened.predict(sound).equals(named.predict(sound))


def test_a_model_of_the_hub_is_downloaded_by_its_name(
    run: samsg.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, asked = samsg.SamsgClassifier.from_run(run), []
    classifier.save_pretrained(tmp_path)

    def download(place: str, name: str, **options: object) -> str:
        asked.append((place, name, options))
        return str(tmp_path / name)

    monkeypatch.setattr(predict, "hf_hub_download", download)
    config = predict.Config.model_validate(classifier.config).model_dump(mode="json")
    its = samsg.SamsgClassifier._from_pretrained(model_id="owner/name", config=config, revision="v1", token=None)
    ((place, name, options),) = asked
    assert (place, name) == ("owner/name", predict.WEIGHTS)
    assert options["revision"] == "v1" and set(options) >= {"token", "cache_dir", "local_files_only"}
    assert its.predict(noise(0.5)).equals(classifier.predict(noise(0.5)))


def test_a_picture_has_one_panel_a_window_and_none_that_is_empty(run: samsg.Run) -> None:
    classifier = samsg.SamsgClassifier.from_run(run)
    for windows, panels in ((1, 1), (4, 4), (13, 12)):
        assert len(classifier.look(noise(0.5 * windows)).axes) == panels


def test_what_cannot_be_computed_anew_says_why(run: samsg.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = samsg.load_profile(
        Path(os.environ["SAMSG_HOME"]) / "tones.yaml",
        corpora={"tones": {"reader": "tones.csv", "note": "tones", "root": str(tmp_path / "nowhere")}},
    )
    with pytest.raises(SamsgError, match=r"sounds of tones were looked for in .*nowhere, which is no folder; put them"):
        recompute.recompute(samsg.open_run(moved, "tones"))
    monkeypatch.setenv("SAMSG_HOME", str(tmp_path))
    with pytest.raises(SamsgError, match=r"No stage of .*seed0 is finished, so there is nothing to compute anew"):
        recompute.recompute(samsg.open_run(run.profile, "tones"))


@pytest.mark.parametrize(
    ("differing", "largest", "changed", "said"),
    [
        (0, 1e-6, [], "Verdict: the same as recorded."),
        (0, 1e-3, [], "Verdict: NOT the same as recorded, by less than decides an emotion: another processor"),
        (1, 1e-3, [], "Verdict: NOT the same as recorded."),
        (
            0,
            0.0,
            ["a.wav", "b.wav"],
            "2 sounds changed since they were read, such as a.wav\nVerdict: NOT the same as rec",
        ),
    ],
)
def test_the_verdict_on_a_run_says_what_differs(
    run: samsg.Run, differing: int, largest: float, changed: list[str], said: str
) -> None:
    scores = dict.fromkeys(("accuracy", "recorded_accuracy", "macro_f1", "recorded_macro_f1"), 0.5)
    row = {"clips": 12, "rows": 0, "differing": differing, "largest": largest, **scores}
    report = recompute.Recomputed(run, pd.DataFrame({"probe": row}).T, changed)
    assert said in report.text()
    assert report.same == ("the same" in said and "NOT" not in said)


# The command


def test_the_command_lists_profiles_and_what_a_machine_needs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["profiles"], standalone_mode=False)
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"paper", "demo", "smoke", "scratch"} <= set(listed)
    cli.app(["doctor", "--profile", "smoke"], standalone_mode=False)
    assert f"Home: {home}" in capsys.readouterr().out


def test_the_package_imports_without_what_only_some_commands_need() -> None:
    """Tests, notebooks and the workflow install more; who only computes a rollout needs none of it."""
    lacking = ["audb", "parselmouth", "papermill", "snakemake", "jupyterlab"]
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); import samsg, samsg.cli; "
    code += "[getattr(samsg, name) for name in samsg.__all__]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
