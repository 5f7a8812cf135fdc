"""Leapfrog steps a second of annealed chains: this library's, and those of the 2018 code."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from studies.common import say
from torch import Tensor, nn

from inference.evidence.path import Annealing, Plan, path_at
from inference.evidence.path import Path as ChainPath
from inference.evidence.schedules import SigmoidalSchedule
from inference.hmc import HMC
from inference.isolation import frozen
from pyro_vae import VAE
from timing.images import images, trained
from timing.machine import Probe
from timing.rounds import alternate, ratio, summary
from timing.sizes import Sizes

OURS, OURS_BF16, SLOW = "ais float32", "ais bf16 forces", "code of 2018"
# Steps of a trajectory, for all: the 2018 code's.
NUM_LEAPFROG = 10


def chains_of_2018(decoder: nn.Module, x: Tensor, num_latents: int, *, num_chains: int, betas: Tensor) -> Tensor:
    """Annealed chains as the 2018 code runs them, written anew from its description.

    Eager, from the prior; the gradient taken at both ends of every trajectory, both energies computed once more, the
    decoder's weights part of the graph, densities written out operation by operation; the step size of each chain
    nudged by 2 % after every acceptance or refusal.

    Args:
        decoder: to logits; its parameters require gradients.
        x: (N, P) zeros and ones.
        num_latents: D.
        num_chains: C.
        betas: (T + 1,) inverse temperatures.

    Returns:
        (C N,) log weights.
    """
    x = x.repeat(num_chains, 1)
    mean, log_variance = torch.zeros(len(x), num_latents), torch.zeros(len(x), num_latents)

    def log_likelihood(z: Tensor) -> Tensor:
        logits = decoder(z)
        return -(logits.clamp(min=0) - logits * x + torch.log(1 + torch.exp(-logits.abs()))).sum(1)

    def log_prior(z: Tensor) -> Tensor:
        distance = (z - mean).pow(2) / torch.exp(log_variance)
        return -0.5 * (num_latents * math.log(2 * math.pi) + log_variance.sum(1) + distance.sum(1))

    def energy(z: Tensor, beta: Tensor) -> Tensor:
        return -(beta * log_likelihood(z) + log_prior(z))

    def slope(z: Tensor, beta: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(energy(z, beta).sum(), z)[0]

    z = torch.randn(len(x), num_latents)
    size, accepted = torch.full((len(x), 1), 0.1), torch.zeros(len(x), 1)
    log_w = torch.zeros(len(x))
    for number, (before, beta) in enumerate(zip(betas, betas[1:], strict=False), start=1):
        with torch.no_grad():
            log_w = log_w + (beta - before) * log_likelihood(z)
        momentum = torch.randn(len(x), num_latents)
        moved, r = z, momentum - 0.5 * size * slope(z, beta)
        for step in range(NUM_LEAPFROG):
            moved = moved + size * r
            r = r - (1.0 if step + 1 < NUM_LEAPFROG else 0.5) * size * slope(moved, beta)
        old = energy(z, beta).detach() + 0.5 * momentum.square().sum(1)
        new = energy(moved, beta).detach() + 0.5 * r.square().sum(1)
        taken = ((old - new).exp() > torch.rand(len(x))).unsqueeze(1)
        z = torch.where(taken, moved, z)
        accepted = accepted + taken
        size = (size * torch.where(accepted / number > 0.65, 1.02, 0.98)).clamp(1e-4, 0.5)
    return log_w


def only_path(vae: VAE, x: Tensor, annealing: Annealing, *, seed: int) -> tuple[ChainPath, Plan]:
    """The path of these datapoints from the prior, and its plan, which the weighted chains follow."""
    index, settings = torch.arange(len(x)), {"site": "z", "annealing": annealing, "seed": seed}
    path = path_at(vae.model, index, x, None, num_data=len(x), **settings)
    return path, path.plan(seed=seed)


def rates(name: str, sizes: Sizes, cache: Path, probe: Probe) -> dict[str, Any]:
    """Rows a second, a row being one leapfrog step of one chain at one datapoint, in turns and in several processes.

    How fast exponentials and logarithms are changes from process to process, and with it the code of 2018.

    Args:
        name: the images.
        sizes: how much is measured.
        cache: where images and the fitted model are kept.
        probe: takes over what those of the processes saw.
    """
    shape, seconds = (0, 0), {}
    for _ in range(sizes.rate_processes):
        # A new one each time: nothing but what is measured runs meanwhile.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            shape, found, own = process.submit(_turns, name, sizes, cache).result()
        probe.take_over(own)
        for method, times in found.items():
            seconds.setdefault(method, []).append(times)
    rows_at_once, num_rows = shape
    # Seconds a million rows, so that lower is better, as everywhere.
    millions = {method: [[1e6 * t / num_rows for t in times] for times in runs] for method, runs in seconds.items()}
    found = {method: summary([t for times in runs for t in times]) for method, runs in millions.items()}
    rows = {method: 1e6 / one["median"] for method, one in found.items()}
    say("AIS, leapfrog rows a second: " + ", ".join(f"{method} {rate:,.0f}" for method, rate in rows.items()))
    return {
        "rows_at_once": rows_at_once,
        "num_leapfrog": NUM_LEAPFROG,
        "seconds_a_million_rows": found,
        "of_each_process": {method: [median(times) for times in runs] for method, runs in millions.items()},
        "rows_a_second": rows,
        "ratio_to_2018": {method: ratio(found[SLOW], one) for method, one in found.items() if method != SLOW},
    }


def _turns(name: str, sizes: Sizes, cache: Path) -> tuple[tuple[int, int], dict[str, list[float]], Probe]:
    """In a process of its own: rows at once and of a block, seconds of each block, and what its probe saw."""
    vae, x = trained(name, sizes, cache), images(name, cache)["test"][: sizes.num_data].float()
    rows_at_once = sizes.num_chains * len(x)
    # Between T temperatures lie T - 1 transitions.
    num_rows = (sizes.rate_temperatures - 1) * NUM_LEAPFROG * rows_at_once
    shared: dict[str, Any] = {"num_leapfrog": NUM_LEAPFROG, "compile": sizes.compile}
    kernels = {OURS: HMC(**shared), OURS_BF16: HMC(**shared, precision="bfloat16")}
    blocks: dict[str, Callable[[], float]] = {}
    for method, hmc in kernels.items():
        annealing = Annealing(num_temperatures=sizes.rate_temperatures, num_chains=sizes.num_chains, hmc=hmc)
        with frozen(vae.model):
            path, plan = only_path(vae, x, annealing, seed=0)
            path.forward(plan, seed=0)

        def forward(path: ChainPath = path, plan: Plan = plan) -> float:
            with frozen(vae.model):
                began = time.perf_counter()
                path.forward(plan, seed=0)
                return time.perf_counter() - began

        blocks[method] = forward
    # A copy: compiled code may look at whether weights require gradients.
    decoder = copy.deepcopy(vae.decoder).requires_grad_()
    betas = SigmoidalSchedule()(sizes.rate_temperatures - 1).float()

    def slow() -> float:
        began = time.perf_counter()
        chains_of_2018(decoder, x, sizes.num_latents, num_chains=sizes.num_chains, betas=betas)
        return time.perf_counter() - began

    blocks[SLOW] = slow
    slow()
    probe = Probe()
    return (rows_at_once, num_rows), alternate(blocks, sizes.rate_rounds, probe), probe
