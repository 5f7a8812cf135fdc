"""How fast is it? Training, the E-step and annealed importance sampling, side by side with other ways to the same end.

`python benchmarks/speed.py --out FOLDER` measures everything in one run, the methods in turns, on real MNIST and
Fashion-MNIST, and writes `FOLDER/record.json` (medians, best, ratios, targets, machine) and `FOLDER/speed.png`;
`--only` chooses parts. Data, fitted models and reference optima are kept in `FOLDER/kept` (`--cache`); nothing that was
timed is.

* Training, on the CPU (`benchmarks/gpu.py` has the GPU): milliseconds a step of `fit_svi` end to end, of Pyro's `SVI`,
  of plain PyTorch, of `torch.compile`, and, given interpreters that have them, of NumPyro (`--numpyro-python`) and
  pythae (`--pythae-python`); beside the matrix products of a step alone, which no use of torch can undercut. Each
  method has a process of its own, which is idle until it is asked for its next block of steps.
* E-step: seconds until 1000 held-out images are within 0.05 and 0.01 nat of their best mean-field q.
* Annealing: leapfrog steps a second, and seconds until the bounds of bidirectional Monte Carlo are 0.5 nat apart.
* Precision: what bf16 does to the held-out ELBO.
* Variational EM: microseconds a datapoint and sweep.

A fixed matrix product is timed between rounds, and within them the work of all cores that was not ours is counted;
where the one was often slow or the other not small, another process disturbed the run, and the record says so.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from records import provenance, write
from studies.common import one_line_errors, say
from timing.images import images, slices, trained, training_file
from timing.leapfrogs import rates
from timing.machine import Probe, facts, load_average
from timing.markdown import tables
from timing.overhead import profiled, tiny_cell
from timing.picture import draw
from timing.precision import effect
from timing.race import race
from timing.sizes import FULL, TINY, Sizes
from timing.sweeps import sweeps
from timing.targets import as_records, targets, text_of, training_text
from timing.training import cells, methods, table
from timing.widths import until_close

PARTS = ("training", "precision", "estep", "ais", "em")


def measure_training(
    sizes: Sizes, cache: Path, log: Path, probe: Probe, *, numpyro: str | None, pythae: str | None
) -> dict[str, Any]:
    """The table, and the fixed cost of a step."""
    chosen = methods(sizes, numpyro=numpyro, pythae=pythae)
    file = training_file(sizes.datasets[0], cache)
    tiny = tiny_cell(sizes, slices(file, sizes.tiny[0]))
    record = table(chosen, [*cells(sizes, file, device="cpu"), (tiny, sizes.tiny_rounds)], log=log, probe=probe)
    record["fixed_overhead"] = {**record["cells"].pop(), "profile_of_fit_svi": profiled(tiny, sizes, log=log)}
    return record


def run(
    sizes: Sizes, parts: list[str], out: Path, cache: Path, *, numpyro: str | None, pythae: str | None
) -> dict[str, Any]:
    """Measure the parts asked for."""
    out, cache = out.resolve(), cache.resolve()
    for folder in (out, cache):
        folder.mkdir(parents=True, exist_ok=True)
    began, before, probe = time.perf_counter(), load_average(), Probe()
    record: dict[str, Any] = {"seconds_by_part": {}}
    for part in parts:
        started = time.perf_counter()
        probe()
        if part == "training":
            log = out / "workers.log"
            record[part] = measure_training(sizes, cache, log, probe, numpyro=numpyro, pythae=pythae)
        elif part == "estep":
            record[part] = {name: race(name, sizes, cache, probe) for name in sizes.datasets}
        elif part == "precision":
            record[part] = effect(sizes.datasets[0], sizes, cache)
        elif part == "em":
            record[part] = sweeps(sizes.datasets[0], sizes, cache)
        else:
            name = sizes.datasets[0]
            vae, x = trained(name, sizes, cache), images(name, cache)["test"].float()
            leapfrogs = rates(name, sizes, cache, probe)
            record[part] = {"leapfrogs": leapfrogs, "widths": until_close(vae, x, sizes, probe)}
        record["seconds_by_part"][part] = time.perf_counter() - started
    return {
        "benchmark": "speed",
        "sizes": sizes.describe(),
        "machine": facts(),
        "load_average": {"before": before, "after": load_average()},
        "disturbance": probe.summary(),
        **record,
        "targets": as_records(targets(record)),
        "seconds_of_this_run": time.perf_counter() - began,
        **provenance(),
    }


def main() -> None:
    """Run the benchmark and write its record and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--cache", type=Path, help="folder of data and fitted models (default: OUT/kept)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--numpyro-python", help="an interpreter with numpyro and jax; without it NumPyro is left out")
    parser.add_argument("--pythae-python", help="an interpreter with pythae; without it pythae is left out")
    parser.add_argument("--dry-run", action="store_true", help="a tiny size, nothing compiled: does it run?")
    parser.add_argument("--show", type=Path, nargs="+", metavar="RECORD", help="only print records as Markdown tables")
    arguments = parser.parse_args()
    if arguments.show:
        print(tables([json.loads(file.read_text()) for file in arguments.show]))
        return
    if arguments.out is None:
        parser.error("--out: expected a folder for the results.")
    sizes = TINY if arguments.dry_run else FULL
    cache = arguments.cache or arguments.out / "kept"
    interpreters = {"numpyro": arguments.numpyro_python, "pythae": arguments.pythae_python}
    record = run(sizes, arguments.only, arguments.out, cache, **interpreters)
    draw(record, arguments.out / "speed.png")
    write({"dry_run": arguments.dry_run, **record}, arguments.out / "record.json")
    found = targets(record)
    say("\n".join([training_text(record), "", text_of(found)]))
    noise = record["disturbance"]
    word = "DISTURBED by another process" if noise["disturbed"] else "quiet"
    others = "unknown" if noise["others_cores"] is None else f"{noise['others_cores']:.2f}"
    far = noise["rounds_with_far_cores"]
    say(
        f"machine: {word}; of {noise['rounds']} rounds {noise['disturbed_rounds']} were disturbed, and cores lay far "
        f"apart in {'an unknown number' if far is None else far}; others took {others} cores meanwhile; a fixed "
        f"product took {noise['ms_median']:.2f} ms (best {noise['ms_best']:.2f}, worst {noise['ms_worst']:.2f})"
    )


if __name__ == "__main__":
    one_line_errors(main)
