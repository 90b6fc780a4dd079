"""The benchmarks run: their small parts, and the rehearsal of the paper profile at a small share."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from samsg.settings import REPOSITORY


def test_the_rehearsal_times_every_stage_of_every_corpus() -> None:
    command = [sys.executable, "-m", "benchmarks.rehearsal", "--device", "cpu", "--profile", "smoke", "--share", "0.08"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = [line for line in lines if line and line[0] in ("savee", "emodb", "crema_d")]
    assert len(rows) == 3 * 6
    for _, stage, seconds, extrapolated in rows:
        factor = 25 if stage in ("baseline", "samsg", "probe") else 1
        assert float(extrapolated) == pytest.approx(factor * float(seconds), abs=factor * 0.06)  # printed to 0.1 s


def test_the_page_shows_the_numbers_of_the_record() -> None:
    record = json.loads((REPOSITORY / "docs/performance.cpu.json").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs/performance.md").read_text(encoding="utf-8")
    rows = [row for part in record["rows"].values() for row in part]
    assert len(rows) > 30
    for row in rows:
        assert f"| {row['case']} | {row['value']:.4g} | {row['unit']} |" in page
