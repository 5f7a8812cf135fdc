"""How do time and memory grow? Variational EM, importance sampling, annealing and gaps against N, S and D.

`python benchmarks/scale.py --out FOLDER` makes files of bits and takes each measurement in a process of its own. It
prints the seconds, the memory that the work took at its peak beyond what the process held before, and the exponents of
their growth, and writes `FOLDER/record.json` and `FOLDER/scale.png`. `--only` chooses engines; what the record holds of
others stays.

Data stay in their file, rows are read as they are needed. The model is a VAE of bits with 16 hidden units.

* em: one epoch of `fit_em`, 784 values a datapoint, with one E-step a visit, and at its end one more on all rows, of
  the fifty that a fit takes there. S are its particles.
* iwae: S draws from an untrained encoder, 64 values a datapoint, as for those below.
* ais: S chains, five temperatures, from an untrained encoder.
* gaps: `measure_gaps` without annealing, to a tenth of a nat; S draws score q*, and S the evidence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from records import provenance, write
from scaling.exponents import exponent, growths, last_exponent, table
from scaling.grid import AXES, ENGINES, FULL, TINY, Point, Series, described
from scaling.picture import draw
from studies.common import one_line_errors, say
from timing.machine import Probe, facts, load_average

import inference


def data_file(point: Point, cache: Path) -> Path:
    """Bits of as many datapoints as the point trains or measures on, and two more for the other splits."""
    file = cache / f"bits-{point.num_data}-{point.num_values}.npy"
    if not file.exists():
        generator, part = np.random.default_rng(0), file.with_suffix(".part.npy")
        num_rows, step = point.num_data + 2, 4096
        rows = np.lib.format.open_memmap(part, "w+", np.uint8, (num_rows, point.num_values))
        # Four kinds of datapoint, so that there is something to learn.
        kinds = generator.random((4, point.num_values), dtype=np.float32)
        for start in range(0, num_rows, step):
            size = min(step, num_rows - start)
            chance = kinds[generator.integers(0, len(kinds), size)]
            rows[start : start + size] = generator.random((size, point.num_values), dtype=np.float32) < chance
        rows.flush()
        part.replace(file)
    return file


def measure(engine: str, point: Point, cache: Path) -> dict[str, Any]:
    """One measurement, in a process of its own.

    Raises:
        ValueError: the process failed.
    """
    benchmarks = Path(__file__).resolve().parent
    places = [str(benchmarks), str(Path(inference.__file__).resolve().parents[1])]
    words = [sys.executable, "-m", "scaling.worker", engine, json.dumps(point.describe()), str(data_file(point, cache))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "TQDM_DISABLE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=benchmarks, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ValueError(f"{engine}, {point}: the process that measures it failed: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_engine(engine: str, series: Series, cache: Path, probe: Probe) -> dict[str, list[dict[str, Any]]]:
    """By axis, the measurements with their size."""
    found: dict[Point, dict[str, Any]] = {}
    for point in series.all_points():
        data_file(point, cache)
        probe()
        found[point] = probe.watch(
            lambda point=point: measure(engine, point, cache), lambda result: result["cpu_seconds"]
        )
        say(f"{engine} {point.describe()}: {found[point]['seconds']:.1f} s, {found[point]['mib_peak']:.0f} MiB at most")
    return {
        axis: [{"size": getattr(point, AXES[axis]), **found[point]} for point in series.points(axis)]
        for axis in series.values
    }


def exponents(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of every series, over all sizes and over the two largest."""
    return [
        {
            "engine": growth.engine,
            "axis": growth.axis,
            **{
                f"{name}_{which}": fit(growth.sizes, getattr(growth, name))
                for name in ("seconds", "cpu_seconds", "mib")
                for which, fit in (("all", exponent), ("last_two", last_exponent))
            },
        }
        for growth in growths(measured)
    ]


def run(series: Mapping[str, Series], engines: list[str], out: Path, cache: Path) -> dict[str, Any]:
    """Measure the engines asked for; what the record in `out` holds of others stays."""
    out, cache = out.resolve(), cache.resolve()
    for folder in (out, cache):
        folder.mkdir(parents=True, exist_ok=True)
    file = out / "record.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    measured, machine, sizes = (before.get(name, {}) for name in ("measured", "machine", "sizes"))
    for engine in engines:
        began, load, probe = time.perf_counter(), load_average(), Probe()
        measured[engine] = measure_engine(engine, series[engine], cache, probe)
        sizes[engine] = described(series[engine])
        machine[engine] = {
            "seconds": time.perf_counter() - began,
            "load_average": {"before": load, "after": load_average()},
            "disturbance": probe.summary(),
        }
        say(table({engine: measured[engine]}))
    ordered = {engine: measured[engine] for engine in ENGINES if engine in measured}
    return {
        "benchmark": "scale",
        "sizes": sizes,
        "measured": ordered,
        "exponents": exponents(ordered),
        "machine": {**machine, "facts": facts()},
        **provenance(),
    }


def main() -> None:
    """Run the benchmark and write its record and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--cache", type=Path, help="folder of the files of bits, 0.9 GB (default: OUT/kept)")
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=list(ENGINES), help="engines to measure")
    parser.add_argument("--small", action="store_true", help="without the largest size of each series")
    parser.add_argument("--dry-run", action="store_true", help="a tiny size: does it run?")
    arguments = parser.parse_args()
    series = TINY if arguments.dry_run else FULL
    if arguments.small:
        series = {engine: one.without_largest() for engine, one in series.items()}
    record = run(series, arguments.only, arguments.out, arguments.cache or arguments.out / "kept")
    draw(record, arguments.out / "scale.png")
    write({"dry_run": arguments.dry_run, **record}, arguments.out / "record.json")
    say(table(record["measured"]))


if __name__ == "__main__":
    one_line_errors(main)
