"""The E-step: the best member of a family for each datapoint, at a frozen model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from jaxtyping import Float
from torch import Tensor

from inference.batches import Data, require_fixed
from inference.chunked import over_chunks
from inference.counts import require_kind
from inference.families import Family
from inference.given import Given, describe_one, one_draw
from inference.isolation import device_of, frozen
from inference.noise import like, resolve_seed, seeded
from inference.objectives import Loss
from inference.results import Refined
from inference.resuming import Journal, Resume
from inference.scoring import guide_of, guide_rows, pair_means, require_draws, require_tol, score
from inference.search import Search, best_rows
from inference.weights import mean_and_se

__all__ = ["refine"]


def refine(
    model: Callable[..., Any],
    family: Family,
    data: Data,
    *,
    site: str | None = None,
    init: Callable[..., Any] | Float[Tensor, "N K"] | None = None,
    cold: bool = True,
    loss: Loss | None = None,
    tol: float = 0.01,
    num_draws: int = 1000,
    search: Search = Search(),  # noqa: B008 (frozen)
    given: Given | None = None,
    resume: Resume | None = None,
    seed: int | None = None,
) -> Refined:
    r"""Find the best member of a family for each datapoint, at a frozen model.

    .. math::
        \lambda_n^* = \arg\max_\lambda \; E_{q_\lambda}[\log p(x_n, z) - \log q_\lambda(z)]

    Stochastic gradient ascent on all datapoints of a chunk at once, with averaging of iterates: along the natural
    gradient where the family offers it, by Adam elsewhere, on antithetic pairs of normal draws that are orthogonal from
    step to step. Rounds follow, each as long as all before it, until, at that datapoint and on fresh draws, two
    estimates of what remains are below `tol` with a standard error added: the last round's gain (the error of an
    average falls as one over its length, so a round as long as all before it gains about as much as it leaves), and
    what the average gains over its two halves. With `init` given, the
    start row untouched, the search from it (warm) and the search from the standard normal (cold) compete on fresh
    draws.

    The model runs in eval mode; its parameters and buffers, and the guide's, have the same bits after.

    Args:
        model: Pyro model.
        family: variational family.
        data: (N, P) datapoints, each with a fixed x.
        site: name of the latent site; by default that of `init`, else "z".
        init: a guide whose distributions lie in `family`, (N, K) rows of parameters, or None for a cold start alone.
        cold: whether a search from the standard normal competes with that from `init`, in another mode perhaps; it
            about doubles the time.
        loss: minus the bound that q* is best for, and the estimator of its gradient; by default `StickingTheLanding()`,
            or `PathwiseELBO()` in a family whose densities are known at its own draws alone. It is what the search, the
            choice between its results and `remaining` go by; `elbo` is always the ELBO.
        tol: nats per datapoint.
        num_draws: draws, in antithetic pairs, that score the result; they chose nothing.
        search: how the search runs.
        given: one draw (1, *shape) of each latent site outside the data plate: the rows are best at that value.
        resume: where each chunk's results are kept, so that the same call goes on after it was killed.
        seed: of all draws. A datapoint's result depends on the seed and its own index alone.

    Returns:
        Rows of parameters, their ELBO, and whether each search converged.

    Raises:
        ValueError: the program breaks the contract, `init` does not fit, or `data` draws x anew at each access.

    Example:
        >>> import torch
        >>> from pyro_vae.linear import LinearGaussian
        >>> from inference.families import MeanField
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> refined = refine(exact.model, MeanField(2), torch.ones(3, 2), seed=0)
        >>> bool(refined.converged.all())
        True
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="refine")
    require_tol(tol)
    require_draws(num_draws, least=4)
    require_kind("search", search, Search)
    site = site or getattr(init, "site", None) or "z"
    if given is not None:
        model, init = one_draw(given, data, model, init, purpose="refine")
    guide = init if callable(init) else None
    with frozen(model, guide), seeded(seed):
        objective = search.objective(model, family, site, num_data=num_data, loss=loss)
        settings = {
            "family": repr(family),
            "site": site,
            "loss": repr(objective.loss),
            "tol": tol,
            "num_draws": num_draws,
            "search": asdict(search),
            "cold": cold or init is None,
            "seed": seed,
            **describe_one(given),
        }

        def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
            start = start_rows(init, family, x, index, site=site, num_data=num_data, seed=seed)
            found = best_rows(objective, x, index, start, tol=tol, search=search, seed=seed, cold=cold)
            draws = score(objective, x, index, found.params, num_draws=num_draws, seed=seed)
            elbo, elbo_se = mean_and_se(pair_means(draws))
            return {**found._asdict(), "elbo": elbo, "elbo_se": elbo_se}

        rows = init if isinstance(init, Tensor) else None
        columns = over_chunks(
            work,
            model,
            data,
            search.num_particles * objective.loss.num_particles,
            "E-step",
            device=device_of(model, guide),
            journal=Journal.of(resume, model, guide, family, rows, **settings),
        )
    return Refined(**columns, converged=columns["remaining"] < tol, settings=settings)


def start_rows(
    init: Callable[..., Any] | Tensor | None,
    family: Family,
    x: Tensor,
    index: Tensor,
    *,
    site: str,
    num_data: int,
    seed: int,
) -> Float[Tensor, "B K"] | None:
    """The rows a warm search starts from: the guide's, those given, or None."""
    if init is None:
        return None
    if isinstance(init, Tensor):
        expected = (num_data, family.num_params)
        if tuple(init.shape) != expected or not bool(init.isfinite().all()):
            came = f"shape {tuple(init.shape)}" if tuple(init.shape) != expected else "NaN or infinity"
            raise ValueError(f"init: expected finite rows of shape {expected} for {family!r}; got {came}.")
        return init[index].detach().to(like(x))
    return guide_rows(guide_of(init, index, num_data=num_data), family, x, site=site, seed=seed)
