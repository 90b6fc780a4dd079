# The reproduction as a graph: notebooks 01 to 06 of each run, that is of each corpus, protocol and seed asked for, and
# notebook 07 of each protocol. Papermill runs them.
#
#   samsg reproduce --profile demo          drives it; so does plain Snakemake:
#   snakemake --cores all --config profile=demo corpora=savee,emodb protocols=random seeds=0,1
#
# A rule's outputs are its executed notebooks in runs/; a failed one is kept beside them, with its traceback. The library
# decides which stages are finished.

import json
import sys

from samsg.cli import listed
from samsg.settings import STAGES, home, in_repository, load_profile

PROFILE = str(config.get("profile", "demo"))
profile = load_profile(PROFILE)
RUNS = home() / "runs" / profile.name
CORPORA = listed(config.get("corpora", "")) or list(profile.corpora)
PROTOCOLS = listed(config.get("protocols", "")) or list(profile.protocols)
SEEDS = [int(seed) for seed in listed(config.get("seeds", "")) or profile.seeds]
# Part of every rule, so that changed settings run its notebooks again; the library then names the difference.
SETTINGS = profile.model_dump_json(exclude={"description", "corpora", "protocols", "seeds", "variant_of"})
OF_RUN = [stage.notebook for stage in STAGES.values()]
TABLES = "07_tables_and_figures"
TOOLS = in_repository("tools")
COMMAND = '{sys.executable:q} {TOOLS:q}/run_chain.py "$(dirname {output[0]:q})" {params.parameters:q} '


wildcard_constraints:
    corpus="|".join(map(re.escape, CORPORA)),
    protocol="|".join(PROTOCOLS),
    seed=r"\d+",


def sources(*names):
    return [in_repository(f"notebooks/{name}.ipynb") for name in names]


def as_json(names):
    """A notebook's parameters, as JSON: a corpus '007' is text, a seed is a number."""
    values = {name: int(value) if name == "seed" else value for name, value in names.items()}
    return json.dumps({"profile": PROFILE, **values})


rule all:
    input:
        expand(RUNS / f"notebooks/{{protocol}}/{TABLES}.ipynb", protocol=PROTOCOLS),


rule run:
    input:
        sources(*OF_RUN),
    output:
        [RUNS / f"{{corpus}}/{{protocol}}/seed{{seed}}/notebooks/{name}.ipynb" for name in OF_RUN],
    log:
        RUNS / "{corpus}/{protocol}/seed{seed}/notebooks/run.log",
    params:
        settings=lambda names: SETTINGS + profile.corpora[names.corpus].model_dump_json(),
        parameters=as_json,
    threads: 8  # two training processes never share cores
    shell:
        COMMAND + " ".join(OF_RUN) + " > {log:q} 2>&1"


rule tables_and_figures:
    input:
        sources(TABLES),
        lambda names: expand(rules.run.output[-1], corpus=CORPORA, seed=SEEDS, protocol=names.protocol),
    output:
        RUNS / f"notebooks/{{protocol}}/{TABLES}.ipynb",
    log:
        RUNS / f"notebooks/{{protocol}}/{TABLES}.log",
    params:
        settings=lambda names: SETTINGS,  # a string would be searched for wildcards
        parameters=as_json,
    shell:
        COMMAND + TABLES + " > {log:q} 2>&1"
