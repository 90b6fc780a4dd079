"""The command ``samsg``: the corpora, and the notebooks in one batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from samsg.runs import find_run, open_run
from samsg.settings import PROTOCOLS, Profile, SamsgError, home, in_repository, load_profile, nearest, profile_names


class Commands(TyperGroup):
    """Ctrl-C ends each of them with one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would cut the ending short
            goes_on = " The same command goes on from the last epoch that is kept."
            kept = ctx.invoked_subcommand in ("reproduce", "train")
            print(f"\nsamsg: interrupted.{goes_on if kept else ''}", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
BEFORE, RUNS, USE = "What is there", "Run the paper", "Use and check what came of it"  # in the order of use

# Study -> its notebook.
STUDY_NOTEBOOKS = {
    "controls": "08_controls_and_ablations",
    "sensitivity": "08_controls_and_ablations",
    "generalisation": "09_generalisation",
    "shortcuts": "10_shortcuts",
}

data = typer.Typer(no_args_is_help=True, help="Get the corpora and check them.")
app.add_typer(data, name="data", rich_help_panel=BEFORE)


def listed(values: Any) -> list[str]:
    """'a,b c', ['a,b', 'c'] or 'a' -> ['a', 'b', 'c']: how lists are given on the command line."""
    if isinstance(values, str):
        return values.replace(",", " ").split()
    return [part for value in values for part in listed(value)] if isinstance(values, Iterable) else [str(values)]


@app.callback()
def _main() -> None:
    """Reproduce SAMSG, and use what comes of it.

    Without data of your own: 'samsg reproduce' (minutes, on synthetic speech), then 'samsg predict clip.wav'. With the
    paper's corpora: 'samsg doctor' says what is missing, 'samsg data fetch' gets it, 'samsg reproduce --profile paper'
    runs it. The notebooks tell the same story step by step: make lab.
    """


@app.command(rich_help_panel=BEFORE)
def doctor(profile: Annotated[str, typer.Option(help="what should be run")] = "paper") -> None:
    """Say what this machine has, and what a profile still needs."""
    from samsg.doctor import examine

    print("\n".join(examine(load_profile(profile))))


@data.command()
def fetch(
    corpus: Annotated[str, typer.Argument(help="savee, emodb or crema_d")],
    source: Annotated[Path | None, typer.Option(help="a folder or archive (zip, tar) that you already have")] = None,
    folder: Annotated[Path | None, typer.Option(help="where to; data/<corpus> if not given")] = None,
) -> None:
    """Get a corpus: EmoDB and CREMA-D by download, SAVEE as its four lines say, any from a copy that you have."""
    from samsg.corpora import acquire

    place = acquire.fetch(corpus, folder or home() / "data" / corpus, source)
    print(f"{corpus} lies in {place}. Next: samsg data check {corpus}")


@data.command()
def check(
    corpus: Annotated[str, typer.Argument(help="savee, emodb, crema_d, or a CSV of your own")],
    folder: Annotated[Path | None, typer.Option(help="where it lies; data/<corpus> if not given")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="every file, for programs")] = False,
) -> None:
    """Hold a corpus against its official list and listen to every file.

    Exit code 0: complete and official; 1: usable, but not that; 2: not usable.
    """
    from samsg.corpora.verify import check_corpus

    root = None if corpus.lower().endswith(".csv") else home() / "data" / corpus
    report = check_corpus(corpus, folder or root, progress=not as_json)
    print(report.json() if as_json else report.text())
    raise typer.Exit(report.exit_code)


@app.command(rich_help_panel=BEFORE)
def profiles() -> None:
    """List the profiles in configs/."""
    for name in profile_names():
        print(f"{name:15} {load_profile(name).description}")


@app.command(rich_help_panel=RUNS)
def reproduce(
    profile: Annotated[str, typer.Option(help="a name in configs/, or the path of a .yaml file")] = "demo",
    corpora: Annotated[list[str] | None, typer.Option(help="of the profile's; several with commas")] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="several with commas")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="random, speaker, sentence; several with commas")] = None,
    dry_run: Annotated[bool, typer.Option(help="say what would be run, and run nothing")] = False,
    cores: Annotated[str, typer.Option(help="how many to use")] = "all",
    study: Annotated[str, typer.Option(help=f"instead, past the paper: {', '.join(STUDY_NOTEBOOKS)}")] = "",
    cluster: Annotated[
        Path | None, typer.Option(help="a Snakemake profile, such as configs/slurm: runs jobs there")
    ] = None,
) -> None:
    """Run the notebooks for every corpus, protocol and seed, and regenerate the tables and figures.

    What is finished is not run again; what was interrupted goes on from its last epoch.
    """
    if profile.endswith((".yaml", ".yml")):
        profile = str(Path(profile).expanduser().resolve())  # the notebooks run in another folder
    chosen = load_profile(profile)
    names = listed(corpora or []) or list(chosen.corpora)
    for name in names:
        chosen.corpus(name)
    asked = {
        "profile": profile,
        "corpora": ",".join(names),
        "seeds": ",".join(_whole_numbers(listed(seeds or []) or chosen.seeds)),
        "protocol": ",".join(_protocols(listed(protocol or []) or chosen.protocols)),
    }
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(in_repository("Snakefile"))]
    command += ["--cores", cores] if cluster is None else ["--profile", str(cluster.resolve())]
    command += ["--directory", str(home()), "--rerun-triggers", "mtime", "params"]
    command += ["--keep-going", "--rerun-incomplete", "--nolock"]
    command += ["--quiet", "host", "reason", *(["--dry-run"] if dry_run else [])]
    asked |= {} if cluster is None else {"threads": "8"}
    # A comma behind it keeps a corpus called 007 a name.
    command += ["--config", *(f"{key}={value}{',' * (key == 'corpora')}" for key, value in asked.items())]
    if study:
        if dry_run or cluster is not None:
            raise SamsgError(
                "A study is one notebook, run here: --dry-run and --cluster are not for it (docs/cluster.md)."
            )
        _run_study(study, chosen, profile, {key: listed(value) for key, value in asked.items()}, listed(protocol or []))
        return
    figures = home() / "paper_figures" / chosen.name
    if not dry_run and _up_to_date(command):
        from samsg.training.stages import prepare

        for name in names:  # the workflow does not look at sounds; this does
            prepare(open_run(chosen, name))
        print(f"Nothing to do: every table and figure of profile '{chosen.name}' is up to date in {figures}.")
        return
    print(
        f"Profile '{chosen.name}': {chosen.description}. Corpora {asked['corpora']}; {asked['protocol']}; seeds", end=""
    )
    print(f" {asked['seeds']}. Notebooks, executed: {home() / 'runs' / chosen.name}", flush=True)
    # The notebooks' tools lie beside this interpreter, whether or not its environment is activated.
    started = time.time()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(command, env={**os.environ, "PATH": path}) as snakemake:
        try:
            code = snakemake.wait()
        except KeyboardInterrupt:  # the terminal gave it to all; the notebook that runs takes some seconds to end
            snakemake.wait()
            raise
    if code:
        raise SamsgError("\n".join(["Not everything could be reproduced.", *_failures(chosen, started)]))
    for each in [] if dry_run else listed(asked["protocol"]):
        folder = figures / each if each != "random" else figures
        print(f"\n{(folder / 'table1.md').read_text(encoding='utf-8')}\nTables and figures: {folder}")


def _run_study(study: str, chosen: Profile, profile: str, asked: dict[str, list[str]], protocols: list[str]) -> None:
    """Run a study's notebook by papermill, for each corpus and protocol that was asked for."""
    if study not in STUDY_NOTEBOOKS:
        raise SamsgError(f"There is no study '{study}'; {nearest(study, STUDY_NOTEBOOKS)}")
    import papermill

    name, seeds = STUDY_NOTEBOOKS[study], [int(seed) for seed in asked["seeds"]]
    runs: list[dict[str, Any]]
    if study in ("controls", "sensitivity"):
        runs = [
            {"profile": profile, "study": study, "corpus": corpus, "protocol": protocol, "seeds": seeds}
            for corpus in asked["corpora"]
            for protocol in asked["protocol"]
        ]
    elif study == "generalisation":
        which = {"protocols": protocols} if protocols else {}  # all three, unless some are named
        runs = [{"profile": profile, "corpus": corpus, "most_folds": 0, **which} for corpus in asked["corpora"]]
    else:
        runs = [{"profile": profile, "seeds": seeds}]
    for parameters in runs:
        named = [str(parameters[key]) for key in ("study", "corpus", "protocol") if key in parameters]
        stem = "_".join([name, *named, *(["seeds", *map(str, parameters["seeds"])] if "seeds" in parameters else [])])
        kept = home() / "runs" / chosen.name / "notebooks" / f"{stem}.ipynb"
        kept.parent.mkdir(parents=True, exist_ok=True)
        notebooks = in_repository("notebooks")
        print(f"{name}: {parameters}. Executed: {kept}", flush=True)
        try:
            papermill.execute_notebook(notebooks / f"{name}.ipynb", kept, parameters, cwd=notebooks, progress_bar=False)
        except papermill.PapermillExecutionError as error:
            raise SamsgError(
                f"{error.ename}: {error.evalue}\n  The notebook is kept with its traceback: {kept}"
            ) from error
    print(f"Tables and figures: {home() / 'paper_figures' / chosen.name}")


@app.command(rich_help_panel=RUNS)
def train(
    profile: Annotated[str, typer.Option(help="a name in configs/, or the path of a .yaml file")] = "demo",
    corpora: Annotated[list[str] | None, typer.Option(help="of the profile's; several with commas")] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="several with commas")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="random, speaker, sentence; several with commas")] = None,
    devices: Annotated[int, typer.Option(min=1, help="processes (GPUs) on each machine; they share every batch")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="machines; start the command on each, or by srun")] = 1,
) -> None:
    """The notebooks' stages without the notebooks, on several GPUs or machines; 'samsg reproduce' then shows them."""
    from samsg.training import stages
    from samsg.training.loop import make_fabric

    chosen = load_profile(profile)
    fabric = make_fabric(chosen.training, devices, nodes)
    for corpus in listed(corpora or []) or chosen.corpora:
        for each in _protocols(listed(protocol or []) or chosen.protocols):
            for seed in _whole_numbers(listed(seeds or []) or chosen.seeds):
                run = open_run(chosen, corpus, each, int(seed))
                fabric.print(f"{corpus}, {each}, seed {seed}: {stages.run_stages(run)}")


@app.command(rich_help_panel=USE)
def predict(
    sounds: Annotated[list[Path], typer.Argument(help="sound files, and folders of them")],
    model: Annotated[
        str, typer.Option(help="a run (demo/savee), a folder (save_pretrained), or owner/name on the Hugging Face Hub")
    ] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="a table, one row a window")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the same, for programs")] = False,
    plot: Annotated[Path | None, typer.Option(help="a folder for pictures of where the model looked")] = None,
) -> None:
    """Name the emotion of recordings, window by window of 4 s; without --model by the demo's first model.

    Exit code 1: some files could not be read; the others are predicted all the same.
    """
    import pandas as pd

    from samsg.predict import open_classifier, sound_files, whole

    if as_csv and as_json:
        raise SamsgError("--csv and --json were both asked for; give one of them.")
    files, unread = sound_files(sounds)
    classifier = open_classifier(model)
    in_words = not (as_csv or as_json)
    print(classifier.worth(), file=sys.stdout if in_words else sys.stderr)
    if unread:
        print(f"samsg: {len(unread)} files cannot be read here, such as {unread[0]}; make them WAV.", file=sys.stderr)
    tables, failed, first = [], bool(unread), True
    for name, path in files.items():
        try:
            table = classifier.predict(path)
        except SamsgError as error:
            failed = True
            print(f"samsg: {error}", file=sys.stderr)
            continue
        tables.append(table.assign(file=str(path))[["file", *table.columns]])
        if as_csv:
            print(tables.pop().to_csv(index=False, float_format="%.4f", header=first), end="", flush=True)
            first = False
        if in_words:
            rows = [whole(table), *(row for _, row in table.iterrows() if len(table) > 1)]
            print("\n".join([str(path), *(f"  {_in_words(row)}" for row in rows)]), flush=True)
        if plot is not None:
            picture = plot / f"{name}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            classifier.look(path, name).savefig(picture, dpi=150)
            print(f"{picture}: where the model looked", file=sys.stdout if in_words else sys.stderr)
    if as_json:
        everything = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        print(everything.to_json(orient="records", indent=1, force_ascii=False))
    raise typer.Exit(int(failed))


def _in_words(row: Any) -> str:
    """'0.0 to 2.3 s  anger 63 %, happiness 12 %, fear 9 %'."""
    likeliest = row.filter(like="p_").astype(float).nlargest(3)
    said = ", ".join(f"{name.removeprefix('p_')} {share:.0%}" for name, share in likeliest.items())
    return f"{row['start']:6.1f} to {row['end']:.1f} s  {said if row['emotion'] else 'silence'}"


@app.command(rich_help_panel=USE)
def export(
    run: Annotated[str, typer.Argument(help="a finished run: demo/savee, or paper/emodb/speaker/seed3")],
    folder: Annotated[Path, typer.Argument(help="where to")],
    push: Annotated[str, typer.Option(help="and to the Hugging Face Hub, as owner/name")] = "",
) -> None:
    """Keep a run's model as a folder that others can use: weights, settings, and a model card."""
    from samsg.predict import open_classifier

    classifier = open_classifier(run)
    classifier.save_pretrained(folder)
    print(f"{folder}: try it by 'samsg predict clip.wav --model {folder}'. {classifier.worth()}")
    if push:
        print(classifier.push_to_hub(push))


@app.command(rich_help_panel=USE)
def verify(run: Annotated[str, typer.Argument(help="a finished run: demo/savee, or demo/savee/random/seed0")]) -> None:
    """Compute a finished run's predictions anew, from its sounds and models, and compare them with what it recorded.

    Exit code 0: they are the same; 1: they are not; 2: no decision differs, only digits, as on another processor.
    """
    from samsg.recompute import recompute

    found = find_run(run)
    if found is None:
        raise SamsgError(
            f"There is no run '{run}'; give one as demo/savee/random/seed0, or its folder in {home() / 'runs'}."
        )
    report = recompute(found)
    print(report.text())
    raise typer.Exit(0 if report.same else 2 if report.only_rounding else 1)


def _whole_numbers(seeds: Iterable[Any]) -> list[str]:
    texts = [str(seed) for seed in seeds]
    for text in texts:
        if not text.isdecimal():
            raise SamsgError(f"A seed is a whole number from 0; got '{text}'.")
    return texts


def _protocols(protocols: Iterable[str]) -> list[str]:
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise SamsgError(f"There is no protocol '{protocol}'; {nearest(protocol, PROTOCOLS)}")
    return list(protocols)


def _up_to_date(command: list[str]) -> bool:
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=False)
    return dry.returncode == 0 and "Nothing to be done" in dry.stdout + dry.stderr


def _failures(profile: Profile, since: float) -> list[str]:
    """What went wrong in each notebook executed since then that holds an error; else the end of the logs."""
    lines, logs = [], []
    for path in sorted((home() / "runs" / profile.name).rglob("notebooks/*.ipynb")):
        if path.stat().st_mtime < since:
            continue
        if not path.with_suffix(".done").exists():
            logs.append(path.with_suffix(".log"))
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        lines += [
            f"{error['ename']}: {error['evalue']}\n  The notebook is kept with its traceback: {path}"
            for error in outputs
            if error["output_type"] == "error"
        ]
    return lines or [f"{log}:\n{log.read_text(encoding='utf-8', errors='replace')[-1000:]}" for log in logs]


def main() -> None:
    """Run the command; an error of the library is one sentence, not a traceback."""
    try:
        app()
    except SamsgError as error:
        print(f"samsg: {error}", file=sys.stderr)
        sys.exit(1)
