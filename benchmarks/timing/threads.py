"""What a busy neighbour costs a product of two threads, under each way that OpenMP's threads can wait for each other.

`python benchmarks/timing/threads.py` times the matrix products of one training step in a process of its own for each
setting, first alone and then beside a process that takes a core, and prints milliseconds: median, worst and best.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

# What is added to the environment; a setting of None is taken out of it.
SETTINGS: dict[str, dict[str, str | None]] = {
    "default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_WAIT_POLICY=active": {"OMP_WAIT_POLICY": "active"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
CLEARED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_DYNAMIC")
BUSY = "while True: pass"


def step_times(seconds: float) -> dict[str, Any]:
    """Milliseconds of a step's products, one number a step, for so many seconds."""
    import torch

    from timing.methods.products import products
    from timing.protocol import Cell

    step = products(Cell(data="", widths=(784, 200, 200, 50), batch=128, steps=1), torch.float32)
    for _ in range(20):
        step()
    times = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        step()
        times.append(1e3 * (time.perf_counter() - began))
    return {"median": median(times), "worst": max(times), "best": min(times), "threads": torch.get_num_threads()}


def measure(setting: dict[str, str | None], seconds: float, *, neighbour: bool) -> dict[str, Any]:
    """The times in a process with this setting, beside a busy one or not."""
    environment = {name: value for name, value in os.environ.items() if name not in CLEARED}
    environment |= {name: value for name, value in setting.items() if value is not None}
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if neighbour else None
    try:
        command = [sys.executable, __file__, "--seconds", str(seconds), "--inside"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    return json.loads(done.stdout)


def compare(seconds: float) -> dict[str, dict[str, Any]]:
    """Every setting, alone and beside a busy process."""
    return {
        name: {
            "alone": measure(setting, seconds, neighbour=False),
            "neighbour": measure(setting, seconds, neighbour=True),
        }
        for name, setting in SETTINGS.items()
    }


def text_of(found: dict[str, dict[str, Any]]) -> str:
    """A line a setting."""
    heads = ("alone: median", "worst", "busy: median", "worst")
    lines = [f"{'ms a step of matrix products':<28}{'threads':>8}" + "".join(f"{head:>15}" for head in heads)]
    for name, cases in found.items():
        alone, busy = cases["alone"], cases["neighbour"]
        lines.append(
            f"{name:<28}{alone['threads']:>8}{alone['median']:>15.2f}{alone['worst']:>15.1f}"
            f"{busy['median']:>15.2f}{busy['worst']:>15.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every setting, or, inside, this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--json", action="store_true", help="print JSON rather than a table")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(step_times(arguments.seconds)))
        return
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    found = compare(arguments.seconds)
    print(f"load average before: {before:.2f}; where it is not near 0, nothing here is alone", file=sys.stderr)
    print(json.dumps(found, indent=2) if arguments.json else text_of(found))


if __name__ == "__main__":
    # `timing` is a folder beside the scripts of benchmarks/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
