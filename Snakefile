# The reproduction as a graph: one rule a notebook, run by papermill, for every corpus, protocol and seed asked for.
#
#   samsg reproduce --profile demo          drives it; so does plain Snakemake:
#   snakemake --cores all --config profile=demo corpora=savee,emodb protocols=random seeds=0,1
#
# A rule's output is its executed notebook in runs/; a failed one is kept beside it, with its traceback. The library
# decides which stages are finished.

from pathlib import Path

from samsg.cli import listed
from samsg.settings import STAGES, home, load_profile

ROOT = Path(workflow.basedir)
PROFILE = str(config.get("profile", "demo"))
profile = load_profile(PROFILE)
RUNS = home() / "runs" / profile.name
FIGURES = home() / "paper_figures" / profile.name
CORPORA = listed(config.get("corpora", "")) or list(profile.corpora)
PROTOCOLS = listed(config.get("protocols", "")) or list(profile.protocols)
SEEDS = [int(seed) for seed in listed(config.get("seeds", "")) or profile.seeds]
# Part of every rule, so that changed settings run its notebook again; the library then names the difference.
SETTINGS = profile.model_dump_json(exclude={"description", "corpora", "protocols", "seeds"})
NOTEBOOKS = [stage.notebook for stage in STAGES.values()]
TABLES = [f"table{number}.{kind}" for number in (1, 2) for kind in ("csv", "md", "tex")]
TABLES += [f"figure{number}.{kind}" for number in (4, 5) for kind in ("png", "pdf")] + ["results.csv"]


wildcard_constraints:
    corpus="|".join(map(re.escape, CORPORA)),
    protocol="|".join(PROTOCOLS),
    seed=r"\d+",


def papermill(arguments):
    # Each notebook runs in the folder where a reader would open it; strings are passed raw, never as YAML.
    return (
        "papermill {input.notebook:q} {log.notebook:q} --cwd {ROOT:q}/notebooks --no-progress-bar "
        "-r profile {PROFILE:q} " + arguments + " > {log.text:q} 2>&1 && mv {log.notebook:q} {output[0]:q}"
    )


def logs(stem):
    return {"notebook": RUNS / f"{stem}.failed.ipynb", "text": RUNS / f"{stem}.log"}


rule all:
    input:
        [RUNS / f"notebooks/07_tables_and_figures_{protocol}.ipynb" for protocol in PROTOCOLS],


for earlier, notebook in zip([None, *NOTEBOOKS], NOTEBOOKS):
    of_corpus = earlier is None  # the first notebook prepares a corpus for all its runs
    stem = f"{{corpus}}/notebooks/{notebook}" if of_corpus else f"{{corpus}}/{{protocol}}/seed{{seed}}/notebooks/{notebook}"
    folder = "{corpus}" if earlier == NOTEBOOKS[0] else "{corpus}/{protocol}/seed{seed}"

    rule:
        name:
            notebook[3:]
        input:
            **({} if of_corpus else {"earlier": RUNS / f"{folder}/notebooks/{earlier}.ipynb"}),
            notebook=ROOT / f"notebooks/{notebook}.ipynb",
        output:
            RUNS / f"{stem}.ipynb",
        log:
            **logs(stem),
        params:
            settings=lambda wildcards: SETTINGS + profile.corpora[wildcards.corpus].model_dump_json(),
            # Evaluated here: Snakemake evaluates the shell command after the loop.
            split=lambda wildcards, none=of_corpus: "" if none else f"-r protocol {wildcards.protocol} -p seed {wildcards.seed}",
        threads: 8 # or all cores, where there are fewer: two training processes never share cores
        shell:
            papermill("-r corpus {wildcards.corpus:q} {params.split}")


rule tables_and_figures:
    input:
        notebook=ROOT / "notebooks/07_tables_and_figures.ipynb",
        earlier=lambda wildcards: [
            RUNS / f"{corpus}/{wildcards.protocol}/seed{seed}/notebooks/{NOTEBOOKS[-1]}.ipynb"
            for corpus in CORPORA
            for seed in SEEDS
        ],
    output:
        RUNS / "notebooks/07_tables_and_figures_{protocol}.ipynb",
    log:
        **logs("notebooks/07_tables_and_figures_{protocol}"),
    params:
        settings=lambda _: SETTINGS,  # a string would be searched for wildcards
    shell:
        papermill("-r protocol {wildcards.protocol}")
