# The reproduction as a graph: one rule a notebook, run by papermill, for every corpus, protocol and seed asked for.
#
#   samsg reproduce --profile demo          drives it; plain Snakemake does as well:
#   snakemake --cores all --config profile=demo corpora=savee,emodb protocol=random seeds=0,1
#
# A stage's results are kept by the library (runs/, whole or not at all); Snakemake owns the .done files beside the
# executed notebooks. Executed notebooks are logs: a failed one is kept, traceback and all.

from pathlib import Path

from samsg.cli import listed
from samsg.settings import home, load_profile

ROOT = Path(workflow.basedir)
PROFILE = str(config.get("profile", "demo"))
profile = load_profile(PROFILE)
RUNS = home() / "runs" / profile.name
FIGURES = home() / "paper_figures" / profile.name
CORPORA = listed(config.get("corpora", "")) or list(profile.corpora)
PROTOCOLS = listed(config.get("protocol", "")) or list(profile.protocols)
SEEDS = [int(seed) for seed in listed(config.get("seeds", "")) or profile.seeds]
for corpus in CORPORA:
    profile.corpus(corpus)
# Two training processes on the same cores are slower than one after the other: here a job has them all; on a cluster, some.
THREADS = int(config["threads"]) if "threads" in config else workflow.cores
# Part of every rule, by a function that keeps its braces: what was made under other settings is not up to date, and the
# library says what differs.
SETTINGS = profile.model_dump_json(exclude={"description", "corpora", "protocols", "seeds"})
OF_CORPUS = {corpus: SETTINGS + profile.corpora[corpus].model_dump_json() for corpus in CORPORA}

STAGES = ["02_baseline", "03_attention_rollout", "04_masking", "05_self_supervised", "06_linear_probe"]
TABLES_AND_FIGURES = [
    *(f"table{number}.{kind}" for number in (1, 2) for kind in ("csv", "md", "tex")),
    *(f"figure{number}.{kind}" for number in (4, 5) for kind in ("png", "pdf")),
    "results.csv",
]


wildcard_constraints:
    corpus="|".join(map(re.escape, profile.corpora)),
    protocol="random|speaker|sentence",
    seed=r"\d+",


def papermill(arguments):
    # Each notebook runs in the folder where a reader would open it; strings are passed raw, never as YAML.
    return (
        "papermill {input.notebook:q} {log.notebook:q} --cwd {ROOT:q}/notebooks --no-progress-bar "
        "-r profile {PROFILE:q} " + arguments + " > {log.text:q} 2>&1"
    )


rule all:
    input:
        [FIGURES / (protocol if protocol != "random" else "") / name for protocol in PROTOCOLS for name in TABLES_AND_FIGURES],
        # Tables and figures are committed, runs are not: in a new clone the former alone prove nothing.
        [RUNS / f"notebooks/07_tables_and_figures_{protocol}.done" for protocol in PROTOCOLS],


rule data_preparation:
    message:
        "01_data_preparation: {wildcards.corpus}"
    input:
        notebook=ROOT / "notebooks/01_data_preparation.ipynb",
    params:
        settings=lambda wildcards: OF_CORPUS[wildcards.corpus],
    output:
        done=touch(RUNS / "{corpus}/notebooks/01_data_preparation.done"),
    log:
        notebook=RUNS / "{corpus}/notebooks/01_data_preparation.ipynb",
        text=RUNS / "{corpus}/notebooks/01_data_preparation.log",
    threads: THREADS
    shell:
        papermill("-r corpus {wildcards.corpus:q}")


for before, stage in zip(["", *STAGES], STAGES):

    rule:
        name:
            stage[3:]
        message:
            f"{stage}: {{wildcards.corpus}}, {{wildcards.protocol}}, seed {{wildcards.seed}}"
        input:
            notebook=ROOT / f"notebooks/{stage}.ipynb",
            before=(
                RUNS / f"{{corpus}}/{{protocol}}/seed{{seed}}/notebooks/{before}.done"
                if before
                else RUNS / "{corpus}/notebooks/01_data_preparation.done"
            ),
        output:
            done=touch(RUNS / f"{{corpus}}/{{protocol}}/seed{{seed}}/notebooks/{stage}.done"),
        params:
            settings=lambda wildcards: OF_CORPUS[wildcards.corpus],
        log:
            notebook=RUNS / f"{{corpus}}/{{protocol}}/seed{{seed}}/notebooks/{stage}.ipynb",
            text=RUNS / f"{{corpus}}/{{protocol}}/seed{{seed}}/notebooks/{stage}.log",
        threads: THREADS
        shell:
            papermill("-r corpus {wildcards.corpus:q} -r protocol {wildcards.protocol:q} -p seed {wildcards.seed}")


for protocol in PROTOCOLS:

    rule:
        name:
            f"tables_and_figures_{protocol}"
        message:
            "07_tables_and_figures: {params.protocol}"
        input:
            notebook=ROOT / "notebooks/07_tables_and_figures.ipynb",
            before=[
                RUNS / f"{corpus}/{protocol}/seed{seed}/notebooks/06_linear_probe.done"
                for corpus in CORPORA
                for seed in SEEDS
            ],
        output:
            [FIGURES / (protocol if protocol != "random" else "") / name for name in TABLES_AND_FIGURES],
            done=touch(RUNS / f"notebooks/07_tables_and_figures_{protocol}.done"),
        log:
            notebook=RUNS / f"notebooks/07_tables_and_figures_{protocol}.ipynb",
            text=RUNS / f"notebooks/07_tables_and_figures_{protocol}.log",
        params:
            protocol=protocol,
            settings=lambda wildcards: "".join(OF_CORPUS.values()),
            lists=f"corpora: {CORPORA}\nseeds: {SEEDS}",
        shell:
            papermill("-r protocol {params.protocol:q} -y {params.lists:q}")
