"""Run the benchmarks, print them as a table, and keep it in docs/: python -m benchmarks [--device cuda] [PART ...]."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import time

import torch

import samsg
from benchmarks import loading, rollout, training
from samsg.settings import REPOSITORY
from samsg.storage import provenance

PARTS = {"rollout": rollout, "training": training, "loading": loading}


def main() -> None:
    """Each part that is named, or all; results go to docs/performance.<device>.json and into the page's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    options = parser.parse_args()
    if len(options.parts) != 1:  # each in a process of its own: what one leaves in memory slows the next
        for name in options.parts or PARTS:
            command = [sys.executable, "-m", "benchmarks", "--device", options.device, name]
            subprocess.run(command, check=True, cwd=REPOSITORY)
        return
    path = REPOSITORY / f"docs/performance.{options.device}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}, "minutes": {}}
    record["machine"] = f"{torch.get_num_threads()} cores, {torch.backends.cpu.get_cpu_capability()}"
    if options.device == "cuda":
        record["machine"] = torch.cuda.get_device_name()
    record |= {"software": samsg.versions(), "code": provenance()["code"]}
    for name in options.parts:  # a part that is run alone replaces its own rows
        start_time = time.perf_counter()
        record["rows"][name] = PARTS[name].run(options.device)
        record["minutes"][name] = round((time.perf_counter() - start_time) / 60, 1)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    minutes = sum(record["minutes"].values())
    description = f"{record['machine']}. {record['software']}. Commit {record['code']}. {minutes:.1f} minutes."
    print(f"\n{description}")
    rows = [line for name in PARTS for line in record["rows"].get(name, [])]
    lines = ["| what | case | value | unit | |", "| --- | --- | ---: | --- | --- |"]
    lines += [f"| {row['what']} | {row['case']} | {row['value']:.4g} | {row['unit']} | {row['note']} |" for row in rows]
    _write_page(options.device, "\n".join([textwrap.fill(description, 120, break_on_hyphens=False), "", *lines]))


def _write_page(device: str, text: str) -> None:
    """Put the table between its two marks in docs/performance.md."""
    start_mark, end_mark = f"<!-- table {device} -->\n", f"<!-- end {device} -->"
    page = REPOSITORY / "docs/performance.md"
    page_head, page_tail = page.read_text(encoding="utf-8").split(start_mark)
    page.write_text(f"{page_head}{start_mark}{text}\n{end_mark}{page_tail.split(end_mark)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
