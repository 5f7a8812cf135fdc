"""A process that makes one measurement and prints it: `python -m scaling.worker ENGINE POINT FILE`.

A process of its own, because the most memory that a process ever took never goes down.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import inference.em
from inference import Annealing, MeanField, Training, ais, fit_em, iwae, measure_gaps
from pyro_vae import MLP, VAE, load
from pyro_vae.data import Split
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal
from scaling.grid import Point

HIDDEN = 16
_STATUS = Path("/proc/self/status")


def memory() -> dict[str, float]:
    """Resident memory now and at its peak, MiB.

    The system's own count, where there is one: that of `getrusage` starts at the size of the process that started it.
    """
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return {name: int(lines[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}
    unit = 2**20 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"now": peak, "peak": peak}


def build(point: Point, *, encoder: bool) -> VAE:
    """A small VAE of bits."""
    family = MeanField(point.num_latents)
    torch.manual_seed(0)
    return VAE(
        prior=StandardNormal(point.num_latents),
        likelihood=Bernoulli(),
        decoder=MLP(point.num_latents, HIDDEN, point.num_values),
        family=family,
        encoder=MLP(point.num_values, HIDDEN, family.num_params) if encoder else None,
    )


def work(engine: str, point: Point, data: Split) -> Callable[[], Any]:
    """What is measured."""
    vae = build(point, encoder=engine != "em")
    if engine == "em":
        # Of the fifty E-steps at the end of a fit one: what they take is known, and not how it grows.
        inference.em.LAST_STEPS = 1
        training = Training(epochs=1, local_steps=1, batch_size=128, num_particles=point.num_draws)
        return lambda: fit_em(vae.model, MeanField(point.num_latents), data, training=training, seed=0).params
    if engine == "iwae":
        return lambda: iwae(vae.model, vae.guide, data, num_draws=point.num_draws, proposal=None, seed=0)
    if engine == "ais":
        annealing = Annealing(num_temperatures=5, num_chains=point.num_draws)
        return lambda: ais(vae.model, data, start=vae.guide, annealing=annealing, seed=0)
    draws = {"num_draws": point.num_draws, "num_evidence_draws": point.num_draws, "annealing": None}
    return lambda: measure_gaps(vae.model, vae.guide, data, tol=0.1, seed=0, **draws)


def measure(engine: str, point: Point, file: Path) -> dict[str, float]:
    """Seconds, and memory before the work, at its peak, and what it took: their difference."""
    data = load(file, stream=True, num_validation=1, num_test=1).train
    run = work(engine, point, data)
    before, began, own = memory(), time.perf_counter(), time.process_time()
    run()
    seconds, cpu = time.perf_counter() - began, time.process_time() - own
    peak = memory()["peak"]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "mib_before": before["now"],
        "mib_peak": peak,
        # Before the work more may have been taken for a while than is held then.
        "mib": max(peak - before["now"], 0.0),
    }


if __name__ == "__main__":
    torch.set_default_dtype(torch.float32)
    print(json.dumps(measure(sys.argv[1], Point(**json.loads(sys.argv[2])), Path(sys.argv[3]))))
