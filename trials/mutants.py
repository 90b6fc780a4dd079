"""Which faults the tests would not see: mutation testing of the method, the splits and the metrics.

    python -m trials.mutants [MODULE ...] [--sample N] [--seed S]

Each mutant is a module with one small change (cosmic-ray's operators: another operator or comparison, a number one
off, a condition turned round); where its tests still pass they miss something, or the change changes nothing. One
replacement is drawn for each place and kind of change, and changes in annotations, which nothing evaluates, are left
out. The tests are collected and passed once, then each mutant is run in a fork of that process, quick tests first
and up to the first failure: some tenths of a second of processor time, where a process of its own takes five to ten
to import PyTorch. Needs samsg[test,trials], and Linux or macOS; docs/reliability.md says what was found.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from _pytest.runner import runtestprotocol
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from hypothesis import Phase, settings

TESTS = {
    "samsg/masking.py": "tests/test_masking.py",
    "samsg/rollout.py": "tests/test_rollout.py",
    "samsg/model.py": "tests/test_model.py",
    "samsg/splits.py": "tests/test_splits.py",
    "samsg/metrics.py": "tests/test_metrics.py",
}
# The first failure is enough: no example is made smaller, and none is kept.
settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None, derandomize=True)


class _Evaluated(ast.NodeTransformer):
    """A program without annotations: two texts with the same one do the same."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Name("_")
        return self.generic_visit(node)


def evaluated(text: str) -> str:
    return ast.dump(_Evaluated().visit(ast.parse(text)))


def mutants(text: str, seed: int) -> Iterator[str]:
    """The program's mutants, one for each place and kind of change."""
    places: dict[tuple[Any, ...], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(text)))
    for name in operator_names():
        if not get_operator(name).arguments():
            positions = [place for node in nodes for place in get_operator(name)().mutation_positions(node)]
            for occurrence, place in enumerate(positions):
                places.setdefault((*place, name.split("_")[0]), []).append((name, occurrence))
    chance, same = random.Random(seed), evaluated(text)
    for place in sorted(places):
        name, occurrence = chance.choice(places[place])
        mutant = mutate_code(text, get_operator(name)(), occurrence)
        try:
            if mutant is not None and evaluated(mutant) != same:
                yield mutant
        except SyntaxError:
            continue


def graft(module: ModuleType, text: str) -> None:
    """Change a module that is imported already, also where its names were imported from it."""
    before = dict(vars(module))
    exec(compile(text, str(module.__file__), "exec"), vars(module))
    for other in [each for name, each in sys.modules.items() if name.split("_")[0] in ("samsg", "test")]:
        for name in vars(other).keys() & before.keys():
            if vars(other)[name] is before[name]:
                setattr(other, name, vars(module)[name])


class Trial:
    """Takes the place of pytest's own loop over tests."""

    def __init__(self, path: str, sample: int | None, seed: int) -> None:
        self.path, self.sample, self.seed = path, sample, seed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        text = Path(self.path).read_text(encoding="utf-8")
        every = list(mutants(text, self.seed))
        drawn = random.Random(self.seed).sample(every, min(self.sample or len(every), len(every)))
        spent: dict[pytest.Item, float] = {}
        for item in session.items:  # what tests share is made here once, and forks have it
            start = time.process_time()
            if failure := failed(item):
                pytest.exit(f"{item.nodeid} fails without any mutant:\n{failure}", returncode=1)
            spent[item] = time.process_time() - start
        items, limit = sorted(spent, key=spent.__getitem__), 10 + 3 * int(sum(spent.values()))
        if self.judge(text, items, limit) != "survived":
            pytest.exit(f"{self.path} fails its tests when it is grafted as it is.", returncode=1)
        counts: Counter[str] = Counter()
        for mutant in drawn:
            verdict = self.judge(mutant, items, limit)
            counts[verdict] += 1
            if verdict == "survived":
                difference = difflib.unified_diff(text.splitlines(), mutant.splitlines(), n=0, lineterm="")
                print(*list(difference)[2:], sep="\n", flush=True)
        found = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        print(f"{self.path}: {len(every)} mutants, {len(drawn)} tried: {found}", flush=True)
        return True

    def judge(self, text: str, items: list[pytest.Item], limit: int) -> str:
        """'killed' or 'survived'; a loop without end is stopped after so many seconds of processor time, and seen."""
        child = os.fork()
        if not child:
            code = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
                for stream in (1, 2):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
                graft(sys.modules[self.path.removesuffix(".py").replace("/", ".")], text)
                code = int(any(failed(item) != "" for item in items))
            finally:
                os._exit(code)
        return "killed" if os.waitpid(child, 0)[1] else "survived"


def failed(item: pytest.Item) -> str:
    """What made a test fail; nothing if it passed. The fixtures of its file are kept."""
    reports = runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
    return "\n".join(report.longreprtext for report in reports if report.failed)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}; all by default")
    arguments.add_argument("--sample", type=int, help="so many mutants of each module, drawn by chance; all by default")
    arguments.add_argument("--seed", type=int, default=0, help="of what is drawn")
    asked = arguments.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    plugins = [word for name in ("cacheprovider", "faulthandler", "warnings") for word in ("-p", f"no:{name}")]
    options = ["-q", "-s", "--no-header", *plugins, "--hypothesis-profile=mutants"]
    for path in asked.modules or TESTS:
        pytest.main([*options, TESTS[path]], plugins=[Trial(path, asked.sample, asked.seed)])


if __name__ == "__main__":
    main()
