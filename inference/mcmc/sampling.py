"""Draws from the posterior of each datapoint: many Hamiltonian chains from over-dispersed starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference.batches import Data, require_fixed
from inference.chunked import over_chunks
from inference.convergence import autocorrelated_ess, nested_rhat
from inference.counts import require_count, require_kind
from inference.densities import guide_distribution
from inference.given import Given, describe_one, one_draw
from inference.hmc import HMC, Energy, Metric, StepSize, noise_dims, transition
from inference.isolation import device_of, frozen
from inference.mcmc.target import Target, normal_of
from inference.noise import normal_noise, resolve_seed, seeded
from inference.progress import track
from inference.results import PosteriorDraws
from inference.scoring import guide_of, prior_draws, require_sound
from inference.weights import mean_and_se

__all__ = ["sample_posterior"]

# The metric is learnt again at the end of each of these shares of the warm-up; what is left settles the step size.
WINDOWS = (0.15, 0.4, 0.8)
# Of the prior, to see how wide it is.
SPREAD_DRAWS = 64
# A guide's scales are multiplied by this, so that chains start further apart than it believes the posterior to reach.
WIDEN = 2.0


class Start(NamedTuple):
    """Where the superchains of some datapoints start in R^D.

    Attributes:
        points: (K, B, D) starting points.
        scale: (B, D) scales, for a first metric.
    """

    points: Float[Tensor, "K B D"]
    scale: Float[Tensor, "B D"]


def sample_posterior(
    model: Callable[..., Any],
    data: Data,
    *,
    site: str | None = None,
    init: Callable[..., Any] | None = None,
    num_superchains: int = 4,
    chains_per_superchain: int = 16,
    num_warmup: int = 300,
    num_draws: int = 100,
    hmc: HMC = HMC(),  # noqa: B008 (frozen)
    given: Given | None = None,
    seed: int | None = None,
) -> PosteriorDraws:
    r"""Draw from p(z | x) of each datapoint by Hamiltonian Monte Carlo: asymptotically exact draws.

    .. math::
        z_{cs} \sim p(z \mid x_n) \quad \text{as the number of transitions grows}

    All chains of all datapoints of a chunk move at once. The K superchains of a datapoint start at K over-dispersed
    points, draws of the prior or of a guide twice as wide as `init`; the M chains of one start together. The warm-up
    adapts a step size and a diagonal metric to each datapoint; then both are frozen. A constrained z moves in the
    coordinates of R^D.

    The model runs in eval mode; its parameters and buffers, and the guide's, have the same bits after. All draws are
    held in memory: (C, S, N, D) numbers.

    Args:
        model: Pyro model.
        data: (N, P) datapoints, each with a fixed x.
        site: name of the latent site; by default that of `init`, else "z".
        init: a guide whose moments, scales doubled, place the starting points; None: draws of the prior.
        num_superchains: K, starting points a datapoint; at least 2.
        chains_per_superchain: M, chains that start at each.
        num_warmup: transitions of each chain before the draws.
        num_draws: S, draws of each chain, one a transition.
        hmc: settings of a transition.
        given: one draw (1, *shape) of each latent site outside the data plate: z is drawn at that value.
        seed: of all draws. A datapoint's draws depend on the seed and its own index alone.

    Returns:
        The draws, and what says whether the chains have converged: nested R-hat, effective draws, drift, acceptance.

    Raises:
        ValueError: the program breaks the contract, `init` does not fit, or `data` draws x anew at each access.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics.
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman (2024), Nested R-hat.

    Example:
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> draws = sample_posterior(exact.model, torch.ones(3, 2), num_warmup=100, num_draws=50, seed=0)
        >>> draws.z.shape, bool(draws.converged.all())
        (torch.Size([64, 50, 3, 2]), True)
    """
    began = time.perf_counter()
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="sample_posterior")
    counts = {
        "num_superchains": (num_superchains, 2),
        "chains_per_superchain": (chains_per_superchain, 1),
        "num_warmup": (num_warmup, 0),
        "num_draws": (num_draws, 4),
    }
    for name, (value, least) in counts.items():
        require_count(name, value, least=least)
    require_kind("hmc", hmc, HMC)
    if init is not None and not callable(init):
        raise ValueError(
            f"init: expected a guide or None; got {type(init).__name__}. Wrap rows of parameters: Local(family, rows)."
        )
    site = site or getattr(init, "site", None) or "z"
    if given is not None:
        model, init = one_draw(given, data, model, init, purpose="sample_posterior")
    num_chains = num_superchains * chains_per_superchain

    def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            target = Target.of(model, x, site)
            start = _start(target, init, index, num_superchains, num_data=num_data, seed=seed)
        with pyro.validation_enabled(is_validate=False):
            part = _sample(
                target,
                start,
                index,
                chains_per_superchain,
                num_warmup=num_warmup,
                num_draws=num_draws,
                hmc=hmc,
                seed=seed,
            )
        return part | {name: part[name].movedim(2, 0) for name in ("z", "log_joint")}

    with frozen(model, init), seeded(seed):
        columns = over_chunks(work, model, data, num_chains, "posterior", device=device_of(model, init))
    # (N, C, S, ...) to (C, S, N, ...)
    columns |= {name: columns[name].movedim(0, 2) for name in ("z", "log_joint")}
    settings = {
        "site": site,
        **{name: value for name, (value, _) in counts.items()},
        "hmc": asdict(hmc),
        "start": "prior" if init is None else f"guide, scales x {WIDEN:g}",
        "seed": seed,
        **describe_one(given),
    }
    return PosteriorDraws(
        **columns, num_superchains=num_superchains, seconds=time.perf_counter() - began, settings=settings
    )


def _start(
    target: Target, guide: Callable[..., Any] | None, index: Tensor, num_points: int, *, num_data: int, seed: int
) -> Start:
    """Over-dispersed points; under validation, so that what breaks the contract is refused here."""
    model, x, site = target.model, target.x, target.site
    if guide is None:
        z = prior_draws(
            model, x, index, num_points + SPREAD_DRAWS, site=site, seed=seed, stage="sample_posterior/start"
        )
        u = target.unconstrain(z)
        start = Start(u[:num_points], u[num_points:].std(0))
    else:
        part = guide_of(guide, index, num_data=num_data)
        _, q = guide_distribution(part, x, site=site)
        require_sound(model, part, q, x, site=site)
        loc, tril = normal_of(q)
        noise = normal_noise(seed, "sample_posterior/start", index, (num_points, loc.shape[-1]), like=loc)
        points = loc + WIDEN * (tril @ noise.movedim(0, -1)).movedim(-1, 0)
        start = Start(points, tril.square().sum(-1).sqrt())
    target.check(start.points[:3])
    return start


def _sample(
    target: Target,
    start: Start,
    index: Int[Tensor, " B"],
    chains_per_superchain: int,
    *,
    num_warmup: int,
    num_draws: int,
    hmc: HMC,
    seed: int,
) -> dict[str, Tensor]:
    """Every column of the record at these datapoints."""
    num_superchains, num_data, num_latents = start.points.shape
    u = start.points.repeat_interleave(chains_per_superchain, dim=0)
    one = u.new_ones(1)
    shape = (len(u), noise_dims(num_latents))
    energy = Energy(target, target.model, hmc=hmc, num_transitions=num_warmup + num_draws)
    point = energy.point(u)

    metric = Metric(start.scale)
    step = _first_step(start.scale, hmc)
    ends = [round(share * num_warmup) for share in WINDOWS]
    begin, window = 0, []
    for t in track(range(num_warmup), num_warmup, "warm-up", "transition"):
        noise = normal_noise(seed, "sample_posterior/warmup", index, shape, step=t, like=u)
        point, accept = transition(energy, point, one, noise, step_size=step.value, metric=metric, hmc=hmc)
        if t < ends[-1]:
            # While chains are on their way no superchain may be left behind by steps that suit the others.
            accept = accept.unflatten(0, (num_superchains, -1)).mean(1).amin(0, keepdim=True)
        step.update(accept, gain=_gain(t - begin))
        window.append(point.z)
        if t + 1 in ends:
            # The first half of a window may still be on its way.
            metric = _learn(metric, torch.stack(window[len(window) // 2 :]))
            step = _first_step(metric.factor, hmc)
            begin, window = t + 1, []

    z, log_joint, accepts = [], [], []
    for t in track(range(num_draws), num_draws, "sampling", "transition"):
        noise = normal_noise(seed, "sample_posterior/draws", index, shape, step=t, like=u)
        point, accept = transition(energy, point, one, noise, step_size=step.value, metric=metric, hmc=hmc)
        draw, log_slope = target.constrain(point.z)
        z.append(draw)
        log_joint.append(point.terms[0] - log_slope)
        accepts.append(accept.mean(0))
    return _judge(
        torch.stack(z, dim=1), torch.stack(log_joint, dim=1), torch.stack(accepts).mean(0), step.value, num_superchains
    )


def _first_step(like: Tensor, hmc: HMC) -> StepSize:
    """In units of the metric, the size that suits a standard normal, which shrinks slowly with its dimension."""
    size = like.new_full((len(like),), like.shape[-1] ** -0.25)
    return StepSize(size, target=hmc.target_accept)


def _gain(t: int) -> float:
    """Full steps until the step size is about right, then smaller ones."""
    return min(1.0, 10 / (t + 1))


def _learn(metric: Metric, u: Float[Tensor, "T C B D"]) -> Metric:
    """Scales of these positions, shrunk towards a thousandth of the old variance as if by five chains (as in Stan)."""
    num_chains = u.shape[1]
    variance = u.flatten(0, 1).var(0)
    return Metric(((num_chains * variance + 5e-3 * metric.factor.square()) / (num_chains + 5)).sqrt())


def _judge(
    z: Float[Tensor, "C S B D"],
    log_joint: Float[Tensor, "C S B"],
    acceptance: Float[Tensor, " B"],
    step_size: Float[Tensor, " B"],
    num_superchains: int,
) -> dict[str, Tensor]:
    # One quantity at a time, for the sake of memory.
    quantities = (*z.unbind(-1), log_joint)
    rhat = [nested_rhat(values.unflatten(0, (num_superchains, -1))) for values in quantities]
    effective = [autocorrelated_ess(values) for values in quantities]
    half = log_joint.shape[1] // 2
    drift, drift_se = mean_and_se(log_joint[:, -half:].double().mean(1) - log_joint[:, :half].double().mean(1))
    return {
        "z": z,
        "log_joint": log_joint,
        "nested_rhat": torch.stack(rhat).amax(0),
        "ess": torch.stack(effective).amin(0),
        "drift": drift,
        "drift_se": drift_se,
        "acceptance": acceptance,
        "step_size": step_size,
    }
