"""What does a GPU bring, and does it change the numbers? On a machine with one.

`python benchmarks/gpu.py --out FOLDER` measures on real MNIST, in the first GPU, and writes `FOLDER/record.json`:

* training: milliseconds a step of `fit_svi`, of Pyro's `SVI`, of plain PyTorch and of `torch.compile` with CUDA graphs,
  in turns, each in a process of its own; and of `fit_svi` on this machine's CPU. Data are on the device.
* em: microseconds a datapoint and sweep of variational EM.
* precision: what bf16 does to the held-out ELBO of fits on the GPU.
* agreement: the same measurements of one model on both devices: seconds, and how far the numbers lie apart.

`--device cpu` puts the CPU in the GPU's place, to see whether it runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from records import provenance
from studies.common import one_line_errors, say
from timing.images import images, trained, training_file
from timing.machine import Probe, facts
from timing.markdown import rows_of, sentences, training_table
from timing.precision import effect
from timing.sizes import FULL, TINY, Sizes
from timing.sweeps import sweeps
from timing.training import OURS, cells, methods, table

from inference import Annealing, MeanField, Search, ais, elbo, iwae, refine

PARTS = ("training", "em", "precision", "agreement")
ON_GPU = replace(FULL, steps=((128, 200, 5), (1024, 40, 5), (8192, 5, 5)), num_images=1000)
NUM_MEASURED = 256


def measure_training(sizes: Sizes, device: str, cache: Path, log: Path) -> dict[str, Any]:
    """The table on the device, and our line on the CPU."""
    file, probe = training_file(sizes.datasets[0], cache), Probe()
    chosen = methods(sizes, numpyro=None, pythae=None)
    largest = max(batch for batch, _, _ in sizes.steps)
    return {
        "device": table(chosen, cells(sizes, file, device=device), log=log, probe=probe),
        "cpu": table(
            {OURS: chosen[OURS]},
            [cell for cell in cells(sizes, file, device="cpu") if cell[0].batch < largest],
            log=log,
            probe=probe,
        ),
    }


def agreement(sizes: Sizes, device: str, cache: Path) -> dict[str, Any]:
    """Seconds of each measurement on both devices, and the largest difference of a datapoint's numbers."""
    name = sizes.datasets[0]
    vae = trained(name, sizes, cache)
    x = images(name, cache)["test"][: min(NUM_MEASURED, sizes.num_images)].float()
    search = Search(max_rounds=2, compile=sizes.compile)
    family, options = MeanField(sizes.num_latents), {"seed": 0}
    jobs: dict[str, Callable[[], torch.Tensor]] = {
        "elbo": lambda: elbo(vae.model, vae.guide, x, num_draws=1000, **options).value,  # type: ignore[arg-type]
        "refine": lambda: refine(vae.model, family, x, init=vae.guide, search=search, **options).elbo,  # type: ignore[arg-type]
        "iwae": lambda: iwae(vae.model, vae.guide, x, num_draws=1000, search=search, **options).value,  # type: ignore[arg-type]
        "ais": lambda: (
            ais(
                vae.model,
                x,
                annealing=Annealing(num_temperatures=20),
                **options,  # type: ignore[arg-type]
            ).value
        ),
    }
    found: dict[str, Any] = {"num_data": len(x)}
    for kind, job in jobs.items():
        values, seconds = {}, {}
        for place in ("cpu", device):
            vae.to(place)
            began = time.perf_counter()
            values[place] = job().cpu()
            seconds[place] = time.perf_counter() - began
        difference = (values[device] - values["cpu"]).abs().max().item()
        found[kind] = {
            "seconds": seconds,
            "mean": {place: value.double().mean().item() for place, value in values.items()},
            "largest_difference": difference,
        }
        say(f"{kind}: {seconds['cpu']:.1f} s on the CPU, {seconds[device]:.1f} s on {device}; apart {difference:.2g}")
    return found


def text_of(record: dict[str, Any]) -> str:
    """Tables of a record."""
    parts = [training_table(table) for table in record.get("training", {}).values()]
    if "agreement" in record:
        lines = [
            [
                name,
                *(f"{seconds:.1f}" for seconds in one["seconds"].values()),
                *(f"{mean:.3f}" for mean in one["mean"].values()),
                f"{one['largest_difference']:.1g}",
            ]
            for name, one in record["agreement"].items()
            if name != "num_data"
        ]
        head = ["measurement", "s, CPU", "s, GPU", "mean, CPU", "mean, GPU", "largest difference of a datapoint"]
        parts.append(rows_of(head, lines))
    return "\n\n".join([*parts, *sentences(record)])


def main() -> None:
    """Run the benchmark and write its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--cache", type=Path, help="folder of data and the fitted model (default: OUT/kept)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--device", default="cuda", help="the device that is compared with the CPU")
    parser.add_argument("--dry-run", action="store_true", help="a tiny size, nothing compiled: does it run?")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a machine with a GPU; torch sees none. Pass cpu to see whether it runs.")
    sizes, device, out = TINY if arguments.dry_run else ON_GPU, arguments.device, arguments.out.resolve()
    cache = (arguments.cache or out / "kept").resolve()
    for folder in (out, cache):
        folder.mkdir(parents=True, exist_ok=True)
    name = sizes.datasets[0]
    work: dict[str, Callable[[], Any]] = {
        "training": lambda: measure_training(sizes, device, cache, out / "workers.log"),
        "em": lambda: sweeps(name, sizes, cache, device=device),
        "precision": lambda: effect(name, sizes, cache, device=device),
        "agreement": lambda: agreement(sizes, device, cache),
    }
    record: dict[str, Any] = {"benchmark": "gpu", "dry_run": arguments.dry_run, "sizes": sizes.describe()}
    record |= {"machine": facts(), "device": device, "seconds_by_part": {}, **provenance()}
    for part in arguments.only:
        began = time.perf_counter()
        record[part] = work[part]()
        record["seconds_by_part"][part] = time.perf_counter() - began
        # What was measured is kept, whatever becomes of the next part.
        (out / "record.json").write_text(json.dumps(record, indent=2))
    say(text_of(record))


if __name__ == "__main__":
    one_line_errors(main)
