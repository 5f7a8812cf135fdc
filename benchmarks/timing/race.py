"""The E-step race: seconds until the mean gap to the best mean-field q is below a threshold, on held-out images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from studies.common import kept, say
from torch import Tensor

from inference import Search, refine
from pyro_vae import VAE
from timing.images import images, trained
from timing.machine import Probe
from timing.race_rivals import Rows, adam, dynamics_of_2018
from timing.race_score import Judge, better
from timing.rounds import alternate, summary
from timing.sizes import Sizes

OURS, ADAM, SLOW = "refine", "Adam, one copy", "dynamics of 2018"

# Budgets of our search, cheapest first; the last one is what a user gets who asks for nothing.
_ONE_ROUND = {"max_rounds": 1, "num_judge_draws": 64, "num_select_draws": 4}
LADDER: tuple[dict[str, Any], ...] = (
    *(
        {**_ONE_ROUND, "first_round": steps, "precision": precision}
        for steps in (28, 32, 36, 40, 44, 52, 64, 128, 200, 280)
        for precision in ("bfloat16", "float32")
    ),
    {},
)
# The run behind the reference optimum, the longest search that is made.
THOROUGH: dict[str, Any] = {"first_round": 400, "max_rounds": 3}
TINY_THOROUGH: dict[str, Any] = {"first_round": 20, "max_rounds": 2, "num_particles": 4, "num_judge_draws": 64}


class Point(NamedTuple):
    """What a budget buys."""

    budget: Any
    seconds: float
    gap: float


def ours(vae: VAE, x: Tensor, search: Search, *, tol: float = 0.01, seed: int = 0) -> Rows:
    """The public E-step, from the encoder's rows alone, as its rival's."""
    guide = vae.guide
    assert guide is not None  # noqa: S101 (it was built with an encoder)
    found = refine(vae.model, guide.family, x, init=guide, cold=False, search=search, tol=tol, num_draws=4, seed=seed)
    q = guide.family(found.params)
    return Rows(q.base_dist.loc.detach(), q.base_dist.scale.detach().log())


@torch.no_grad()
def encoded(vae: VAE, x: Tensor) -> Rows:
    """The encoder's rows."""
    q = vae.encode(x)
    return Rows(q.base_dist.loc, q.base_dist.scale.log())  # type: ignore[attr-defined]


def timed(run: Callable[[], Rows]) -> tuple[Rows, float]:
    """What a run finds, and its seconds."""
    began = time.perf_counter()
    rows = run()
    return rows, time.perf_counter() - began


def tuned_rate(vae: VAE, x: Tensor, sizes: Sizes) -> dict[str, Any]:
    """The rival's step size: the best mean ELBO on training images, after as many steps as the race takes."""
    judge = Judge(vae.decoder, x, sizes.num_latents, num_draws=sizes.num_score_draws, seed=3)
    start, steps = encoded(vae, x), sizes.adam_steps[len(sizes.adam_steps) // 2 - 1]
    elbo = {
        str(rate): judge(adam(vae.decoder, x, start, steps=steps, rate=rate, seed=4)).mean().item()
        for rate in sizes.rates
    }
    return {"rate": max(sizes.rates, key=lambda rate: elbo[str(rate)]), "steps": steps, "elbo": elbo}


def climb(
    budgets: Sequence[Any],
    run: Callable[[Any], Rows],
    gap_of: Callable[[Rows], float],
    below: float,
    *,
    compiles: bool,
) -> list[Point]:
    """Ascending budgets until the gap is below; what may compile at the first run of a shape is timed at the second."""
    points = []
    for budget in budgets:
        if compiles:
            run(budget)
        rows, seconds = timed(lambda budget=budget: run(budget))
        points.append(Point(budget, seconds, gap_of(rows)))
        if points[-1].gap < below:
            break
    return points


def refined_budget(
    points: Sequence[Point], run: Callable[[Any], Rows], gap_of: Callable[[Rows], float], below: float
) -> int | None:
    """The smallest number of steps that is seen to suffice, to within a twelfth, between two rungs of a ladder."""
    good = min((point.budget for point in points if point.gap < below), default=None)
    if good is None:
        return None
    bad = max((point.budget for point in points if point.budget < good), default=0)
    while good - bad > max(1, good // 12):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if gap_of(run(middle)) < below else (good, middle)
    return good


def race(name: str, sizes: Sizes, cache: Path, probe: Probe) -> dict[str, Any]:
    """One data set: the reference, the ladders, and the race at the budgets that they found."""
    data, vae = images(name, cache), trained(name, sizes, cache)
    x = data["test"][: sizes.num_images].float()
    decoder, num_latents = vae.decoder, sizes.num_latents
    tuned = tuned_rate(vae, data["train"][-sizes.num_tune :].float(), sizes)
    say(f"E-step, {name}: Adam's step size {tuned['rate']:g}, chosen on training images")

    start = encoded(vae, x)

    def run_adam(steps: int) -> Rows:
        return adam(decoder, x, start, steps=steps, rate=tuned["rate"], seed=1)

    def run_ours(setting: Mapping[str, Any]) -> Rows:
        return ours(vae, x, Search(**setting, compile=sizes.compile))

    thorough = THOROUGH if sizes.num_images >= 100 else TINY_THOROUGH
    longest = sizes.longer * sizes.adam_steps[len(sizes.adam_steps) // 2]

    def best_known() -> dict[str, Any]:
        choosing = Judge(decoder, x, num_latents, num_draws=sizes.num_score_draws, seed=5)
        from_ours = ours(vae, x, Search(**thorough), tol=1e-3, seed=6)
        rows, share = better(from_ours, adam(decoder, x, start, steps=longest, rate=tuned["rate"], seed=6), choosing)
        return {"rows": tuple(rows), "share_of_refine": share}

    file = cache / f"best-{name}-{sizes.num_images}-{num_latents}-{sizes.epochs}-{longest}.pt"
    reference = kept(file, best_known)
    judge = Judge(decoder, x, num_latents, num_draws=sizes.num_score_draws, seed=7)
    best = judge(Rows(*reference["rows"]))

    def gap_of(rows: Rows) -> float:
        return float((best - judge(rows)).mean())

    ladders = {
        OURS: climb(LADDER, run_ours, gap_of, min(sizes.thresholds), compiles=True),
        ADAM: climb(sizes.adam_steps, run_adam, gap_of, min(sizes.thresholds), compiles=False),
    }
    blocks: dict[str, Callable[[], float]] = {}
    budgets: dict[str, dict[str, Any]] = {}
    for threshold in sizes.thresholds:
        fast = [point for point in ladders[OURS] if point.gap < threshold]
        budgets[str(threshold)] = {
            OURS: min(fast, key=lambda point: point.seconds).budget if fast else None,
            ADAM: refined_budget(ladders[ADAM], run_adam, gap_of, threshold),
        }
        for method, run in ((OURS, run_ours), (ADAM, run_adam)):
            budget = budgets[str(threshold)][method]
            if budget is not None:
                blocks[f"{method} < {threshold}"] = lambda run=run, budget=budget: timed(lambda: run(budget))[1]
    times = {key: summary(found) for key, found in alternate(blocks, sizes.race_rounds, probe).items()}
    say(f"E-step, {name}, seconds: " + ", ".join(f"{key} {found['median']:.2f}" for key, found in times.items()))

    record = {}
    if name == sizes.datasets[0]:
        probe()
        slow = dynamics_of_2018(
            trained(name, sizes, cache).decoder,
            x,
            num_latents,
            gap_of,
            below=max(sizes.thresholds),
            cap=sizes.slow_cap,
            seed=2,
        )
        say(f"E-step, {name}: {SLOW}, gap {slow[-1].gap:.3f} after {slow[-1].seconds:.0f} s")
        record[SLOW] = {
            "snapshots": [point._asdict() for point in slow],
            "below": max(sizes.thresholds),
            "reached": slow[-1].gap < max(sizes.thresholds),
            "seconds": slow[-1].seconds,
        }
    return {
        "num_images": len(x),
        "fingerprint": data["fingerprint"],
        "start_gap": gap_of(start),
        "tuned": tuned,
        "reference": {
            "elbo": best.mean().item(),
            "adam_steps": longest,
            "search": asdict(Search(**thorough)),
            "share_of_refine": reference["share_of_refine"],
        },
        "ladders": {method: [point._asdict() for point in points] for method, points in ladders.items()},
        "budgets": budgets,
        "seconds": times,
        **record,
    }
