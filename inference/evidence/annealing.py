"""Annealed importance sampling with Hamiltonian Monte Carlo: a lower bound on log p(x) in expectation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from inference.batches import Data, require_fixed
from inference.chunked import over_chunks
from inference.counts import require_kind
from inference.densities import densities
from inference.estep import refine
from inference.evidence.path import Annealing, path_at
from inference.families import Constrained, Family, MeanField, on_support
from inference.given import Given, over_draws
from inference.guides import Local
from inference.isolation import device_of, frozen
from inference.mcmc.target import Target
from inference.noise import derive_seed, resolve_seed, seeded
from inference.objectives import LocalLoss
from inference.results import Evidence
from inference.resuming import Journal, Resume
from inference.scoring import prior_draws, require_contract
from inference.search import Search
from inference.weights import weigh

__all__ = ["ais", "as_evidence", "describe_start", "near_posterior", "require_start"]

# A search for the distribution to start from need only come close: what it lacks, annealing makes up for.
START_TOL = 0.1
# Draws of the prior of which one is searched from too, and its scales in those of the prior.
NUM_TRIED = 256
NARROW = 0.1


def ais(
    model: Callable[..., Any],
    data: Data,
    *,
    start: Callable[..., Any] | Family | None = None,
    site: str | None = None,
    annealing: Annealing = Annealing(),  # noqa: B008 (frozen)
    given: Given | None = None,
    resume: Resume | None = None,
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
        resume: where each chunk's results are kept, so that the same call goes on after it was killed.
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
    require_kind("annealing", annealing, Annealing)
    require_start(start)
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
    guide = start
    if isinstance(start, Family):
        guide = near_posterior(model, data, start, site=site, seed=seed, resume=resume)

    def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
        path = path_at(model, index, x, guide, num_data=num_data, site=site, annealing=annealing, seed=seed)
        return path.forward(path.plan(seed=seed), seed=seed)

    with frozen(model, guide), seeded(seed):
        columns = over_chunks(
            work,
            model,
            data,
            annealing.num_chains,
            "annealing",
            device=device_of(model, guide),
            journal=Journal.of(
                resume,
                model,
                guide,
                annealing=annealing.describe(),
                start=describe_start(start),
                site=site,
                seed=seed,
            ),
        )
    return as_evidence(columns, annealing, method=f"AIS from {describe_start(start)}", seed=seed)


def require_start(start: object) -> None:
    """Refuse what chains cannot start from.

    Raises:
        TypeError: it is neither a guide, nor a family, nor None.
    """
    if start is not None and (isinstance(start, type) or not callable(start)):
        came = f"the class {start.__name__}" if isinstance(start, type) else repr(start)
        raise TypeError(f"start: expected a guide, a family such as MeanField(D), or None, the prior; got {came}.")


def near_posterior(
    model: Callable[..., Any], data: Data, family: Family, *, site: str, seed: int, resume: Resume | None = None
) -> Local:
    """The members of a family that chains start from: near the best one of each datapoint."""
    own = derive_seed(seed, "ais/search")
    settings: dict[str, Any] = {"site": site, "tol": START_TOL, "num_draws": 4, "seed": own}

    def kept(name: str) -> Resume | None:
        return None if resume is None else resume.part(f"start/{name}")

    plain = on_support(MeanField(family.num_latents), family.support)
    init = _at_best_prior_draw(model, data, plain, site=site, seed=own)
    # By Adam until it is settled in its mode, which may be narrow.
    narrow = Search(natural=False, max_rounds=2)
    settled = refine(model, plain, data, init=init, cold=False, search=narrow, resume=kept("settled"), **settings)
    refined = refine(model, plain, data, init=settled.params, resume=kept("plain"), **settings)
    if repr(plain) != repr(family):
        # From the best independent normals the way to a richer member is short, and from nowhere it is long.
        rows = family.params_from(plain(refined.params))
        few = Search(max_rounds=3)
        refined = refine(model, family, data, init=rows, cold=False, search=few, resume=kept("rich"), **settings)
    return Local(family, refined.params.to(device_of(model)), site)


@torch.no_grad()
def _at_best_prior_draw(
    model: Callable[..., Any], data: Data, family: Family, *, site: str, seed: int
) -> Float[Tensor, "N K"]:
    """Rows of narrow members around the best of many draws of the prior, for a search to start from.

    A search from the standard normal alone may end in a mode from which no chain comes back.
    """
    free = family.family if isinstance(family, Constrained) else family

    def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
        require_contract(LocalLoss(model, family.to(x.device), site), x, index, seed=seed)
        z = prior_draws(model, x, index, NUM_TRIED, site=site, seed=seed, stage="ais/search/prior")
        with pyro.validation_enabled(is_validate=False):
            best = densities(model, x, z, site=site).log_joint.argmax(0)
        u = Target.of(model, x, site).unconstrain(z)
        loc, scale = u[best, torch.arange(len(x), device=x.device)], NARROW * u.std(0)
        return {"rows": free.params_from(dist.Normal(loc, scale).to_event(1))}

    with frozen(model), seeded(seed):
        return over_chunks(work, model, data, NUM_TRIED, "start", device=device_of(model))["rows"]


def as_evidence(columns: Mapping[str, Tensor], annealing: Annealing, *, method: str, seed: int) -> Evidence:
    """The record of log weights "log_w" (N, C) and mean acceptance "acceptance" (N,)."""
    weighed = weigh(columns["log_w"].T.contiguous())
    return Evidence(
        **weighed._asdict(),
        method=f"{method}, {annealing.num_chains} chains x {annealing.num_temperatures} temperatures "
        "(a lower bound in expectation)",
        bound="lower",
        acceptance=columns["acceptance"].double(),
        settings={"annealing": annealing.describe(), "seed": seed},
    )


def describe_start(start: Callable[..., Any] | Family | None) -> str:
    """Where chains start, in words."""
    if start is None:
        return "the prior"
    if isinstance(start, Family):
        return f"q* in {start!r}"
    return f"the guide's q in {start.family!r}" if hasattr(start, "family") else "the guide's q"
