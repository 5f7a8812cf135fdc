"""The machine: what it is, how busy it is, and whether somebody else's work disturbed a measurement."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from timing.cores import handover_ns

# Of a fixed product's fastest time: beyond, another process had a core.
DISTURBED = 1.5
# Nanoseconds of a handover between cores: beyond, they have no cache in common.
FAR = 80.0
# Cores that others may take in a round before it counts as disturbed.
OTHERS = 0.25
T = TypeVar("T")

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


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started; None where the system does not tell."""
    file = Path("/proc/stat")
    if not file.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, file.read_text().split(None, 9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Probe:
    """Whether something else ran: a fixed matrix product between rounds, and the work that was not ours within them."""

    def __init__(self) -> None:
        self._factor = torch.randn(384, 384)
        self.ms: list[float] = []
        self.handover_ns: list[float] = []
        # Of each round: core seconds that others took while a block of ours ran, and how long those blocks were.
        self.others: list[tuple[float, float]] = []

    def __call__(self) -> None:
        """Begin a round: time the product once."""
        self._factor @ self._factor
        times = []
        for _ in range(10):
            began = time.perf_counter()
            self._factor @ self._factor
            times.append(1e3 * (time.perf_counter() - began))
        self.ms.append(median(times))
        if (nanoseconds := handover_ns()) is not None:
            self.handover_ns.append(nanoseconds)
        self.others.append((0.0, 0.0))

    def take_over(self, other: Probe) -> None:
        """What another one saw, in another process of this benchmark."""
        self.ms += other.ms
        self.handover_ns += other.handover_ns
        self.others += other.others

    def watch(self, block: Callable[[], T], own_seconds: Callable[[T], float] | None = None) -> T:
        """Run a block, and see what others did meanwhile.

        Args:
            block: what is timed.
            own_seconds: core seconds that the block took, given its result; by default those of this process.
        """
        before, began, own = busy_seconds(), time.perf_counter(), time.process_time()
        result = block()
        wall, own = time.perf_counter() - began, time.process_time() - own
        if before is not None and self.others:
            took = (busy_seconds() or before) - before - (own_seconds(result) if own_seconds else own)
            last = self.others[-1]
            self.others[-1] = (last[0] + took, last[1] + wall)
        return result

    def summary(self) -> dict[str, Any]:
        """The product's times in ms, the cores that others took, and how many rounds either says were disturbed."""
        best = min(self.ms)
        slow = [ms > DISTURBED * best for ms in self.ms]
        taken = [wall > 0.2 and took > OTHERS * wall for took, wall in self.others]
        count = sum(map(any, zip(slow, taken, strict=True)))
        wall = sum(wall for _, wall in self.others)
        cores = max(sum(took for took, _ in self.others) / wall, 0.0) if wall else None
        far = [nanoseconds > FAR for nanoseconds in self.handover_ns]
        return {
            "handover_ns": {"best": min(self.handover_ns), "worst": max(self.handover_ns)} if far else None,
            "rounds_with_far_cores": sum(far) if far else None,
            "ms_best": best,
            "ms_median": median(self.ms),
            "ms_worst": max(self.ms),
            "others_cores": cores,
            "rounds": len(self.ms),
            "disturbed_rounds": count,
            "disturbed": count > len(self.ms) / 10 or (cores or 0.0) > OTHERS,
        }
