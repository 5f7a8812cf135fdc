"""Annealed importance sampling with Hamiltonian Monte Carlo: a lower bound on log p(x) in expectation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inference.batches import Data, require_fixed
from inference.estep import refine
from inference.evidence.path import Annealing, paths
from inference.families import Family
from inference.given import Given, over_draws
from inference.guides import Local
from inference.isolation import device_of, frozen
from inference.noise import derive_seed, resolve_seed, seeded
from inference.results import Evidence
from inference.weights import weigh

__all__ = ["ais", "as_evidence", "describe_start", "near_posterior"]

# A search for the distribution to start from need only come close: what it lacks, annealing makes up for.
START_TOL = 0.1


def ais(
    model: Callable[..., Any],
    data: Data,
    *,
    start: Callable[..., Any] | Family | None = None,
    site: str | None = None,
    annealing: Annealing = Annealing(),  # noqa: B008 (frozen)
    given: Given | None = None,
    seed: int | None = None,
) -> Evidence:
    r"""Log p(x) by annealed importance sampling, per datapoint: a lower bound in expectation.

    .. math::
        \log \hat p(x) = \log \frac1C \sum_c \exp \sum_{t=1}^T (\beta_t - \beta_{t-1})
        \log \frac{p(x, z_{c,t-1})}{r(z_{c,t-1})}, \qquad z_{c,0} \sim r

    where :math:`z_{c,t}` is :math:`z_{c,t-1}` after one HMC transition that leaves
    :math:`r(z)^{1 - \beta_t} p(x, z)^{\beta_t}` invariant. The start r is the prior, or a distribution near the
    posterior, from which the way is shorter.

    Step sizes, for every datapoint and temperature, and scales, where r is the prior, are adapted on pilot chains of
    their own and then frozen: a weighted chain whose transitions depend on its own past does not leave the density
    invariant, and its weight estimates something else. All datapoints and chains run at once.

    Args:
        model: Pyro model.
        data: (N, P) datapoints, each with a fixed x.
        start: r: None, the prior; a guide, amortized or `Local`; or a family, whose best member is then searched for
            each datapoint. Its density must be known everywhere (Pyro's planar flow has none).
        site: name of the latent site; by default that of `start`, else "z".
        annealing: temperatures, chains, schedule and transition.
        given: draws (M, *shape) of each latent site outside the data plate: the value is log p(x | w), averaged over
            the draws of w, which is not log p(x).
        seed: of all draws.

    Returns:
        Value and standard error over chains, the effective number of chains, the mean acceptance probability, and, of
        25 chains or more, the tail index of the weights.

    Raises:
        ValueError: the program breaks the contract, or `data` draws x anew at each access.

    References:
        Neal (2001), Annealed importance sampling.
        Wu, Burda, Salakhutdinov & Grosse (2017), On the quantitative analysis of decoder-based generative models.

    Example:
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 1), torch.zeros(3), 1.0)
        >>> evidence = ais(model.model, torch.zeros(2, 3), annealing=Annealing(num_temperatures=50), seed=0)
        >>> bool(((evidence.value - model.log_evidence(torch.zeros(2, 3))).abs() < 0.2).all())
        True
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="ais")
    if given is not None:
        options: dict[str, Any] = {"site": site, "annealing": annealing}
        return over_draws(
            lambda p, q, seed: ais(p, data, start=start if q is None else q, seed=seed, **options),
            given,
            data,
            model,
            None if isinstance(start, Family) else start,
            seed=seed,
        )
    site = site or getattr(start, "site", None) or "z"
    guide = near_posterior(model, data, start, site=site, seed=seed) if isinstance(start, Family) else start
    chunks = []
    with frozen(model, guide), seeded(seed):
        for path in paths(model, data, num_data, guide, site=site, num_chains=annealing.num_chains, seed=seed):
            plan = path.plan(annealing, seed=seed)
            chunks.append(path.forward(plan, annealing, seed=seed))
    return as_evidence(chunks, annealing, method=f"AIS from {describe_start(start)}", seed=seed)


def near_posterior(model: Callable[..., Any], data: Data, family: Family, *, site: str, seed: int) -> Local:
    """The members of a family that chains start from: near the best one of each datapoint."""
    own = derive_seed(seed, "ais/search")
    refined = refine(model, family, data, site=site, tol=START_TOL, num_draws=4, seed=own)
    return Local(family, refined.params.to(device_of(model)), site)


def as_evidence(chunks: Sequence[tuple[Tensor, Tensor]], annealing: Annealing, *, method: str, seed: int) -> Evidence:
    """The record of each chunk's log weights (C, B) and mean acceptance (B,)."""
    weighed = weigh(torch.cat([log_w.cpu() for log_w, _ in chunks], dim=1))
    return Evidence(
        **weighed._asdict(),
        method=f"{method}, {annealing.num_chains} chains x {annealing.num_temperatures} temperatures "
        "(a lower bound in expectation)",
        bound="lower",
        acceptance=torch.cat([accept.double().cpu() for _, accept in chunks]),
        settings={"annealing": annealing.describe(), "seed": seed},
    )


def describe_start(start: Callable[..., Any] | Family | None) -> str:
    """Where chains start, in words."""
    if start is None:
        return "the prior"
    if isinstance(start, Family):
        return f"q* in {start!r}"
    return f"the guide's q in {start.family!r}" if hasattr(start, "family") else "the guide's q"
