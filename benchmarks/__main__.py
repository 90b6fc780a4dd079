"""Run the benchmarks, print them as a table, and keep it in docs/: python -m benchmarks [--device cuda] [NAME ...]."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch

import samsg
from benchmarks import loading, rollout, training
from samsg.settings import REPOSITORY

PARTS = {"rollout": rollout, "training": training, "loading": loading}


def main() -> None:
    """Every part that is named, or all; results in docs/performance.<device>.json and in the page's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("parts", nargs="*", metavar="NAME", help=f"of {', '.join(PARTS)}; all if none is named")
    asked = parser.parse_args()
    if len(asked.parts) != 1:  # each in a process of its own: what one leaves in memory slows the next
        for name in asked.parts or PARTS:
            command = [sys.executable, "-m", "benchmarks", "--device", asked.device, name]
            subprocess.run(command, check=True, cwd=REPOSITORY)
        return
    path = REPOSITORY / f"docs/performance.{asked.device}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}, "minutes": {}}
    machine = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} CPU cores"
    record |= {"machine": machine, "software": samsg.versions()}
    for name in asked.parts:  # a part that is run alone replaces its own rows
        started = time.perf_counter()
        record["rows"][name] = PARTS[name].run(asked.device)
        record["minutes"][name] = round((time.perf_counter() - started) / 60, 1)
    minutes = f"{sum(record['minutes'].values()):.1f} minutes on {machine}"
    print(f"\n{minutes}")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    rows = [line for name in PARTS for line in record["rows"].get(name, [])]
    lines = ["| what | case | value | unit | |", "| --- | --- | ---: | --- | --- |"]
    lines += [f"| {r['what']} | {r['case']} | {r['value']:.4g} | {r['unit']} | {r['note']} |" for r in rows]
    head, tail = f"<!-- table {asked.device} -->\n", f"<!-- end {asked.device} -->"
    page = REPOSITORY / "docs/performance.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(head)
    said = f"{record['software']}. {minutes}.\n\n"
    page.write_text(before + head + said + "\n".join(lines) + "\n" + tail + rest.split(tail)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
