"""What happens seldom: odd rates, races that are lost, machines that lack something. Each is right, or said so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sounds import noise, written

import samsg
from samsg import cli, doctor, predict, recompute, studies
from samsg.audio.store import read_sound
from samsg.corpora import acquire
from samsg.corpora.catalogue import SPOKEN, read_corpus
from samsg.corpora.verify import listen
from samsg.method.masking import masked_cells
from samsg.report import figures
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


def test_fetching_says_where_the_corpus_lies(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(acquire, "fetch", lambda *given: asked.append(given) or given[1])
    cli.app(["data", "fetch", "emodb"], standalone_mode=False)
    cli.app(["data", "fetch", "savee", "--source", "SAVEE.zip", "--folder", "elsewhere"], standalone_mode=False)
    assert asked == [("emodb", home / "data/emodb", None), ("savee", Path("elsewhere"), Path("SAVEE.zip"))]
    said = f"emodb lies in {home / 'data/emodb'}. Next: samsg data check emodb"
    assert capsys.readouterr().out.splitlines()[0] == said


def test_a_list_is_checked_for_people_and_for_programs(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.app(["data", "check", str(finished / "tones.csv"), *options])
        said = capsys.readouterr().out
        assert ended.value.code == 0
        assert len(json.loads(said)["files"]) == 42 if options else "42" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0,-1"], "A seed is a whole number from 0; got '-1'"),
        (["--protocol", "speakers"], "no protocol 'speakers'; .*Did you mean 'speaker'"),
        (["--study", "control"], "no study 'control'; .*Did you mean 'controls'"),
        (["--study", "controls", "--dry-run"], "A study is one notebook, run here"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_before_anything_runs(
    home: Path, options: list[str], message: str
) -> None:
    with pytest.raises(SamsgError, match=message):
        cli.app(["reproduce", "--profile", "smoke", *options], standalone_mode=False)
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    ("study", "notebook", "times"),
    [("controls", "08", 2 * 2), ("sensitivity", "08", 2 * 2), ("generalisation", "09", 2), ("shortcuts", "10", 1)],
)
def test_a_study_is_its_notebook_once_for_all_that_it_is_about(
    home: Path, monkeypatch: pytest.MonkeyPatch, study: str, notebook: str, times: int
) -> None:
    ran = []
    fake = SimpleNamespace(PapermillExecutionError=ZeroDivisionError)
    fake.execute_notebook = lambda notebook, kept, parameters, **_: ran.append((notebook, kept, parameters))
    monkeypatch.setitem(sys.modules, "papermill", fake)
    options = ["--corpora", "emodb,savee", "--protocol", "random,speaker", "--seeds", "0,3"]
    cli.app(["reproduce", "--profile", "smoke", "--study", study, *options], standalone_mode=False)
    assert len(ran) == len({kept for _, kept, _ in ran}) == times
    for path, kept, parameters in ran:
        assert path.is_file() and path.name.startswith(notebook)
        assert kept.parent.is_dir() and kept.is_relative_to(home / "runs/smoke/notebooks")
        assert parameters["profile"] == "smoke" and parameters.get("seeds", [0, 3]) == [0, 3]


def test_a_study_that_fails_keeps_its_notebook_and_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PapermillExecutionError(Exception):
        ename, evalue = "SamsgError", "lower training.lr"

    def fail(*_: object, **__: object) -> None:
        raise PapermillExecutionError

    fake = SimpleNamespace(PapermillExecutionError=PapermillExecutionError, execute_notebook=fail)
    monkeypatch.setitem(sys.modules, "papermill", fake)
    with pytest.raises(
        SamsgError, match=r"SamsgError: lower training\.lr\n  The notebook is kept.*10_shortcuts.*ipynb"
    ):
        cli.app(["reproduce", "--profile", "smoke", "--study", "shortcuts"], standalone_mode=False)


def test_of_notebooks_that_failed_the_error_is_said_or_else_the_end_of_the_log(home: Path) -> None:
    folder, profile = home / "runs/smoke/emodb/notebooks", samsg.load_profile("smoke")
    folder.mkdir(parents=True)

    def executed(name: str, outputs: list[dict[str, str]]) -> None:
        (folder / f"{name}.ipynb").write_text(json.dumps({"cells": [{"outputs": outputs}, {"source": "text"}]}))
        (folder / f"{name}.log").write_text(1001 * "-" + f"the log of {name}")

    executed("old", [{"output_type": "error", "ename": "OldError", "evalue": "long ago"}])
    os.utime(folder / "old.ipynb", (1, 1))
    executed("died", [])
    executed("fine", [{"output_type": "stream"}])
    (folder / "fine.done").touch()
    (log,) = cli._failures(profile, since=2)
    assert log == f"{folder / 'died.log'}:\n{(1000 - len('the log of died')) * '-'}the log of died"
    executed("failed", [{"output_type": "error", "ename": "SamsgError", "evalue": "lower training.lr"}])
    said = f"SamsgError: lower training.lr\n  The notebook is kept with its traceback: {folder / 'failed.ipynb'}"
    assert cli._failures(profile, since=2) == [said]


def test_an_exported_model_can_be_pushed(
    run: samsg.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(samsg.SamsgClassifier, "push_to_hub", lambda _, place: f"pushed to {place}")
    folder = tmp_path / "model"
    cli.app(["export", "tones/tones", str(folder)], standalone_mode=False)
    assert "pushed" not in capsys.readouterr().out
    cli.app(["export", "tones/tones", str(folder), "--push", "owner/name"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1] == "pushed to owner/name"
    assert samsg.SamsgClassifier.from_pretrained(folder).config == samsg.open_classifier("tones/tones").config


# Studies and their pictures


def test_where_masks_lie_is_counted_patch_by_patch(run: samsg.Run) -> None:
    masks = np.load(run.require("masks") / "masks.npy")[0]
    clips = samsg.read_clips(run)
    train = (clips["part"] == "train").to_numpy()
    assert np.array_equal(studies.mask_map(run.profile, "tones"), masks[train].mean(0))
    shares = studies.masked_where(run.profile, "tones")
    assert list(shares.index) == clips["clip"][train].tolist()
    np.testing.assert_allclose(shares["masked"], masks[train].mean((1, 2)))
    assert (shares["padding"] == 0).all() and (shares["masked that is padding"] == 0).all()  # tones fill the window
    audio = run.profile.audio
    cells = masked_cells(torch.from_numpy(masks[train]), (audio.n_mels, audio.n_frames))
    np.testing.assert_allclose(shares["black"], cells.float().mean((1, 2, 3)), rtol=1e-6)


def test_variants_with_the_same_masks_are_shown_once(run: samsg.Run) -> None:
    names = [variant.name for variant in studies.distinct_masks(run.profile, "controls", "tones")]
    folders = [
        samsg.open_run(variant.profile, "tones").stage_folder("masks")
        for variant in studies.distinct_masks(run.profile, "controls", "tones")
    ]
    assert names[0] == "samsg" and len(names) > 1
    assert len(set(folders)) == len(folders)
    assert not {"none", "baseline", "long"} & set(names)


def test_how_often_a_model_says_what_the_sentence_told_in_training() -> None:
    clips = pd.DataFrame(
        {
            "clip": [*"abcdef"],
            "part": ["train", "train", "test", "test", "test", "test"],
            "sentence": ["s1", "s2", "s1", "s2", "s1", "s3"],
            "emotion": ["anger", "fear", "fear", "anger", "anger", "fear"],
        }
    )
    said = pd.DataFrame({"clip": [*"cdef"], "predicted": ["anger", "anger", "anger", "anger"]})
    predictions = said.merge(clips[["clip", "emotion"]], on="clip")
    # Told wrongly are c (anger by s1) and d (fear by s2); e is told rightly and f by no sentence.
    assert studies.follows_sentence(predictions, clips) == 1 / 2


def test_the_interval_of_a_difference_is_widened_for_few_groups_and_is_everything_for_one() -> None:
    assert studies._widened(0.1, 0.0, 0.2, groups=1) == (-1.0, 1.0)
    # Student's t with one degree of freedom is 12.706 at 97.5 %, the normal distribution 1.960; and sqrt(2 / 1).
    factor = 2**0.5 * 12.7062 / 1.95996
    assert studies._widened(0.1, 0.0, 0.3, groups=2) == pytest.approx(
        (0.1 - 0.1 * factor, 0.1 + 0.2 * factor), rel=1e-5
    )


def test_pictures_of_studies_show_their_tables() -> None:
    ends = {"accuracy": [0.5, 0.7], "accuracy_low": [0.4, 0.65], "accuracy_high": [0.65, 0.8]}
    table = pd.DataFrame(ends, index=["DeiT", "SAMSG"])
    (ax,) = figures.compared(table, "synthetic speech").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["DeiT", "SAMSG"]
    reference, points = ax.lines
    assert list(reference.get_xdata()) == [50, 50]  # the first variant's
    assert points.get_xdata() == pytest.approx([50, 70]) and list(points.get_ydata()) == [1, 0]
    (intervals,) = ax.collections
    assert [segment[:, 0].tolist() for segment in intervals.get_segments()] == [[40, 65], [65, 80]]

    (ax,) = figures.against_strength({1.0: table, 0.0: table - 0.1}, "").axes
    lines = {bar.get_label(): bar.lines[0] for bar in ax.containers}
    assert lines["SAMSG"].get_ydata() == pytest.approx([60, 70])  # from the weakest to the strongest
    assert lines["DeiT"].get_ydata() == pytest.approx([40, 50])
    assert lines["SAMSG"].get_xdata() == pytest.approx([0, 1], abs=0.01)
    assert "chance" in [text.get_text() for text in ax.figure.legends[0].get_texts()]

    _, axes = figures.panels(1, 1, (2.0, 2.0), "")
    share = np.linspace(0, 0.4, 108).reshape(12, 9)
    figures.patch_map(axes[0, 0], share, "SAMSG")
    (image,) = axes[0, 0].images
    assert np.array_equal(image.get_array(), share) and image.get_clim() == (0, 0.4)
    assert axes[0, 0].get_title() == "SAMSG, at most 40%"


# Only what is needed


def test_the_package_imports_without_what_only_some_commands_need() -> None:
    """Tests, notebooks and the workflow install more; who only computes a rollout needs none of it."""
    lacking = ["audb", "parselmouth", "papermill", "snakemake", "jupyterlab"]
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); import samsg, samsg.cli; "
    code += "[getattr(samsg, name) for name in samsg.__all__]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
