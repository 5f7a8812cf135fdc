"""Seconds of annealed importance sampling until the two bounds on log p(x) are close, from q* and from the prior."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from studies.common import say
from torch import Tensor

from inference import HMC, Annealing, MeanField, simulate
from inference.chunked import over_chunks
from inference.evidence.annealing import as_evidence, near_posterior
from inference.evidence.path import path_at
from inference.isolation import frozen
from inference.noise import seeded
from inference.results.summary import summarise
from pyro_vae import VAE
from timing.machine import Probe
from timing.rounds import alternate, ratio, summary
from timing.sizes import Sizes

PUBLISHED = "prior, as published"


class Route(NamedTuple):
    """A start and how chains move from there: "prior", "encoder" or "q*", and options of `HMC`."""

    start: str
    options: dict[str, Any]


# Wu et al. (2017): ten leapfrog steps, 65 % acceptance; the schedule is the same for all. The others are as `ais` is.
ROUTES = {
    "encoder": Route("encoder", {}),
    "encoder, bf16 forces": Route("encoder", {"precision": "bfloat16"}),
    "q*": Route("q*", {}),
    "prior": Route("prior", {}),
    PUBLISHED: Route("prior", {"num_leapfrog": 10, "target_accept": 0.65}),
}


def searched(vae: VAE, x: Tensor, start: str, num_latents: int, *, seed: int) -> tuple[Any, float]:
    """Where chains start: the encoder's q, near the best mean-field q, or the prior; and the seconds of the search."""
    if start == "prior":
        return None, 0.0
    if start == "encoder":
        return vae.guide, 0.0
    began = time.perf_counter()
    found = near_posterior(vae.model, x, MeanField(num_latents), site="z", seed=seed)
    return found, time.perf_counter() - began


def anneal(
    vae: VAE,
    z: Tensor,
    x: Tensor,
    annealing: Annealing,
    origin: Any,
    *,
    backward: bool,
    seed: int,
) -> tuple[float, dict[str, float] | None]:
    """Seconds of what `inference.ais` does, and, where asked for, the width of the bounds as `inference.bdmc` has it.

    The backward chains, which exist for simulated data alone, are not in the seconds, nor is the search for the origin.
    """
    seconds = 0.0

    def work(index: Tensor, some: Tensor) -> dict[str, Tensor]:
        nonlocal seconds
        began = time.perf_counter()
        path = path_at(vae.model, index, some, origin, num_data=len(x), site="z", annealing=annealing, seed=seed)
        plan = path.plan(seed=seed)
        columns = path.forward(plan, seed=seed)
        seconds += time.perf_counter() - began
        if not backward:
            return columns
        inverse = path.backward(z[index], plan, seed=seed)
        return {**columns, "inverse log_w": -inverse["log_w"], "inverse acceptance": inverse["acceptance"]}

    with frozen(vae.model), seeded(seed):
        columns = over_chunks(work, vae.model, x, annealing.num_chains, "annealing", device=x.device)
    if not backward:
        return seconds, None
    below = as_evidence(columns, annealing, method="", seed=seed)
    inverse = {name: columns[f"inverse {name}"] for name in ("log_w", "acceptance")}
    above = as_evidence(inverse, annealing, method="", seed=seed)
    return seconds, summarise(-above.value - below.value, above.se.hypot(below.se))


def whole(vae: VAE, z: Tensor, x: Tensor, annealing: Annealing, start: str, *, seed: int) -> float:
    """Seconds of the search and the chains."""
    origin, seconds = searched(vae, x, start, z.shape[1], seed=seed)
    return seconds + anneal(vae, z, x, annealing, origin, backward=False, seed=seed)[0]


def until_close(vae: VAE, data: Tensor, sizes: Sizes, probe: Probe) -> dict[str, Any]:
    """The first number of temperatures at which the mean width is small enough, and the seconds it takes, by route."""
    z, x = simulate(vae.model, data, num_data=sizes.num_data, seed=0)
    ladders: dict[str, list[dict[str, Any]]] = {}
    blocks: dict[str, Callable[[], float]] = {}
    for name, temperatures in sizes.temperatures:
        start, options = ROUTES[name]
        hmc = HMC(compile=sizes.compile, **options)
        ladders[name] = []
        # The same seed finds the same rows, so one search serves all rungs; the race below searches anew.
        origin, search = searched(vae, x, start, sizes.num_latents, seed=0)
        # What compiles does so before the first rung is timed.
        shortest = Annealing(num_temperatures=2, num_chains=sizes.num_chains, hmc=hmc)
        anneal(vae, z, x, shortest, origin, backward=False, seed=0)
        for number in temperatures:
            annealing = Annealing(num_temperatures=number, num_chains=sizes.num_chains, hmc=hmc)
            seconds, width = anneal(vae, z, x, annealing, origin, backward=True, seed=0)
            assert width is not None  # noqa: S101 (it was asked for)
            rung = {"temperatures": number, "search_seconds": search, "seconds": search + seconds, "width": width}
            ladders[name].append(rung)
            say(f"AIS from the {name}, {number} temperatures: width {width['mean']:.2f}, {search + seconds:.1f} s")
            if width["mean"] < sizes.width:
                blocks[name] = lambda annealing=annealing, start=start: whole(vae, z, x, annealing, start, seed=0)
                break
    times = {name: summary(found) for name, found in alternate(blocks, sizes.width_rounds, probe).items()}
    return {
        "num_data": sizes.num_data,
        "num_chains": sizes.num_chains,
        "width": sizes.width,
        "schedule": repr(Annealing().schedule),
        "routes": {name: route._asdict() for name, route in ROUTES.items()},
        "ladders": ladders,
        "seconds": times,
        "ratios": {name: ratio(times.get(PUBLISHED), times.get(name)) for name in times if name != PUBLISHED},
    }
