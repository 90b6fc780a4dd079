"""The command ``samsg``: the corpora, and the notebooks in one batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from samsg.settings import PROTOCOLS, REPOSITORY, Profile, SamsgError, home, load_profile, nearest, profile_names

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


data = typer.Typer(no_args_is_help=True, help="Get the corpora and check them.")
app.add_typer(data, name="data")


def listed(values: Any) -> list[str]:
    """'a,b c', ['a,b', 'c'] or 'a' -> ['a', 'b', 'c']: how lists are given on the command line."""
    if isinstance(values, str):
        return values.replace(",", " ").split()
    return [part for value in values for part in listed(value)] if isinstance(values, Iterable) else [str(values)]


@app.callback()
def _main() -> None:
    """Reproduce SAMSG: notebooks/ tells the story, 'samsg reproduce' runs it in one batch."""


@app.command()
def profiles() -> None:
    """List the profiles in configs/."""
    for name in profile_names():
        print(f"{name:15} {load_profile(name).description}")


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="a name in configs/, or the path of a .yaml file")] = "demo",
    corpora: Annotated[list[str] | None, typer.Option(help="of the profile's; several with commas")] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="several with commas")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="random, speaker, sentence; several with commas")] = None,
    dry_run: Annotated[bool, typer.Option(help="say what would be run, and run nothing")] = False,
    cores: Annotated[str, typer.Option(help="how many to use")] = "all",
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
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", cores]
    command += ["--directory", str(home()), "--rerun-triggers", "mtime", "params"]
    command += ["--keep-going", "--rerun-incomplete", "--nolock"]
    command += ["--quiet", "host", "reason", *(["--dry-run"] if dry_run else [])]
    command += ["--config", *(f"{key}={value}" for key, value in asked.items())]
    figures = home() / "paper_figures" / chosen.name
    if not dry_run and _up_to_date(command):
        print(f"Nothing to do: every table and figure of profile '{chosen.name}' is up to date in {figures}.")
        return
    print(
        f"Profile '{chosen.name}': {chosen.description}. Corpora {asked['corpora']}; {asked['protocol']}; seeds", end=""
    )
    print(f" {asked['seeds']}. Notebooks, executed: {home() / 'runs' / chosen.name}", flush=True)
    # The notebooks' tools lie beside this interpreter, whether or not its environment is activated.
    started = time.time()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = subprocess.run(command, check=False, env={**os.environ, "PATH": path}).returncode
    if code:
        raise SamsgError("\n".join(["Not everything could be reproduced.", *_failures(chosen, started)]))
    for each in [] if dry_run else listed(asked["protocol"]):
        folder = figures / each if each != "random" else figures
        print(f"\n{(folder / 'table1.md').read_text(encoding='utf-8')}\nTables and figures: {folder}")


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
