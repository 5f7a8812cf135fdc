"""The machine: what it is, how busy it is, and whether somebody else's work disturbed a measurement."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

# Of a fixed product's fastest time: beyond, another process had a core.
DISTURBED = 1.5
VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_SPINCOUNT",
    "GOMP_CPU_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "LD_PRELOAD",
)


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def facts() -> dict[str, Any]:
    """What a timing depends on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "torch": torch.__version__,
        "parallel": [
            line for line in torch.__config__.parallel_info().splitlines() if "OpenMP" in line or "MKL" in line
        ],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes; this benchmark's own work counts."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else []


class Probe:
    """A fixed matrix product, timed between rounds. Where it is slow, so is what was measured beside it."""

    def __init__(self) -> None:
        self._factor = torch.randn(384, 384)
        self.ms: list[float] = []

    def __call__(self) -> None:
        """Time it once."""
        self._factor @ self._factor
        times = []
        for _ in range(10):
            began = time.perf_counter()
            self._factor @ self._factor
            times.append(1e3 * (time.perf_counter() - began))
        self.ms.append(median(times))

    def summary(self) -> dict[str, Any]:
        """Times in ms, and in how many rounds it was much slower than its best."""
        best = min(self.ms)
        slow = sum(ms > DISTURBED * best for ms in self.ms)
        return {
            "ms_best": best,
            "ms_median": median(self.ms),
            "ms_worst": max(self.ms),
            "rounds": len(self.ms),
            "disturbed_rounds": slow,
            "disturbed": slow > len(self.ms) / 10,
        }
