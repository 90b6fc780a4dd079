"""How things are measured: seconds as the median of several calls after one that does not count, extra memory over a
plain forward pass, and the fastest matrix product of the machine as the ceiling."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Row = dict[str, Any]  # one line of the table: what, case, value, unit, note


def wait(device: str) -> None:
    """For a GPU to finish what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], device: str, times: int = 5) -> float:
    """Median of several calls; one more before them does not count."""
    durations = []
    for _ in range(times + 1):
        wait(device)
        start_time = time.perf_counter()
        call()
        wait(device)
        durations.append(time.perf_counter() - start_time)
    return statistics.median(durations[1:])


def peak(device: str) -> float:
    """Bytes in use at most so far: of the process on a CPU, of PyTorch's memory on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage would count the parent's memory too
    return 1024 * float(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in a call, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def ceiling(device: str, dtype: torch.dtype) -> float:
    """Operations a second of the fastest matrix product tried."""
    highest_rate = 0.0
    for rows, inner, columns in ((4096, 4096, 4096), (4760, 768, 3072), (2048, 2048, 2048)):
        left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in ((rows, inner), (inner, columns)))
        duration = seconds(lambda left=left, right=right: left @ right, device, 5 if device == "cpu" else 50)
        highest_rate = max(highest_rate, 2 * rows * inner * columns / duration)
    return highest_rate


def row(what: str, case: str, value: float, unit: str, note: str = "") -> Row:
    """A line of the table; it is printed as soon as it is known."""
    print(f"{what:16} {case:66} {value:12.4g} {unit:12} {note}", flush=True)
    return {"what": what, "case": case, "value": value, "unit": unit, "note": note}
