"""How far apart two cores are: the time that a line of memory takes from one to the other.

Cores that share a cache hand a line over in tens of nanoseconds, others in hundreds. A virtual machine's cores are
moved from one case to the other by its host, and every program that works on two of them changes its pace.

    python benchmarks/timing/cores.py
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from statistics import median

SOURCE = """
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>
enum { WARM = 200, TURNS = 2000 };
static _Alignas(128) atomic_int ball;
static int cores[2];
static void stay_on(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}
static void *answer(void *unused) {
    stay_on(cores[1]);
    for (int i = 0; i < TURNS; i++) {
        while (atomic_load(&ball) != 2 * i + 1);
        atomic_store(&ball, 2 * i + 2);
    }
    return unused;
}
static void *ask(void *nanoseconds) {
    struct timespec began, ended;
    stay_on(cores[0]);
    for (int i = 0; i < TURNS; i++) {
        if (i == WARM) clock_gettime(CLOCK_MONOTONIC, &began);
        atomic_store(&ball, 2 * i + 1);
        while (atomic_load(&ball) != 2 * i + 2);
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    *(double *)nanoseconds = (ended.tv_sec - began.tv_sec) * 1e9 + ended.tv_nsec - began.tv_nsec;
    return nanoseconds;
}
double handover_ns(int first, int second) {
    pthread_t threads[2];
    double nanoseconds;
    cores[0] = first, cores[1] = second;
    atomic_store(&ball, 0);
    pthread_create(&threads[0], 0, answer, 0);
    pthread_create(&threads[1], 0, ask, &nanoseconds);
    pthread_join(threads[1], 0);
    pthread_join(threads[0], 0);
    return nanoseconds / (2.0 * (TURNS - WARM));
}
"""


@cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "cores.c", Path(folder) / "cores.so"
        source.write_text(SOURCE)
        made = subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-pthread", source, "-o", library], check=False, capture_output=True
        )
        if made.returncode:
            return None
        loaded = ctypes.CDLL(str(library))
    loaded.handover_ns.restype = ctypes.c_double
    return loaded


def handover_ns() -> float | None:
    """Nanoseconds one way between the first two cores; None where nothing can tell: one core alone, or no compiler."""
    library = _library()
    if library is None:
        return None
    first, second = sorted(os.sched_getaffinity(0))[:2]
    # The median of a few: a host that takes a core away in between is not what is asked for.
    return median(library.handover_ns(first, second) for _ in range(3))


if __name__ == "__main__":
    for _ in range(20):
        seen = handover_ns()
        if seen is None:
            raise SystemExit("Nothing can tell here: it takes two cores, Linux and a C compiler.")
        print(f"{seen:.0f} ns")
        time.sleep(1)
