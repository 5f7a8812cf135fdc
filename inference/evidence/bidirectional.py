"""Bidirectional Monte Carlo: how far annealed importance sampling can be off, on data simulated from the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inference.batches import Data, fetch, require_fixed
from inference.chunked import over_chunks
from inference.counts import require_count, require_kind
from inference.densities import latent_prior
from inference.evidence.annealing import as_evidence, describe_start, near_posterior, require_start
from inference.evidence.bound import elbo
from inference.evidence.importance import iwae
from inference.evidence.path import Annealing, path_at
from inference.families import Family, MeanField, on_support
from inference.guides import Local
from inference.isolation import device_of, frozen
from inference.noise import derive_seed, resolve_seed, seeded
from inference.results import Bidirectional, Evidence, Side
from inference.simulation import simulate

__all__ = ["bdmc"]


def bdmc(
    model: Callable[..., Any],
    data: Data,
    *,
    start: Callable[..., Any] | Family | None = None,
    site: str | None = None,
    num_data: int = 100,
    num_draws: int = 1000,
    annealing: Annealing = Annealing(),  # noqa: B008 (frozen)
    seed: int | None = None,
) -> Bidirectional:
    r"""Enclose log p(x) between two bounds, on data simulated from the model.

    .. math::
        E[\log \hat p_{\text{forward}}(x)] \le \log p(x) \le E[-\log \widehat{1/p}_{\text{backward}}(x)]

    A simulated x comes with the z that made it, an exact draw from the posterior. `ais` runs as always; chains that
    start at z and run its path backwards estimate 1 / p(x) without bias, so that minus their logarithm is an upper
    bound in expectation. Both use step sizes and scales of the same pilot chains, which never see z.

    How far the distance of the bounds carries over to real data is a matter of how alike the two are: the ELBO and the
    tail index of importance weights are measured on both.

    Args:
        model: Pyro model, one that can be simulated (see `simulate`).
        data: (N', P) real data.
        start: where chains start: None, the prior; an amortized guide; or a family, whose best member is searched for
            each simulated datapoint.
        site: name of the latent site; by default that of `start`, else "z".
        num_data: N, datapoints to simulate, and real datapoints, the first ones, to compare with.
        num_draws: draws behind the ELBO and IWAE, in antithetic pairs.
        annealing: temperatures, chains, schedule and transition.
        seed: of all draws.

    Returns:
        Both bounds per simulated datapoint, the data, and the two sets of data side by side.

    Raises:
        ValueError: the model cannot be simulated from or breaks the contract, or `start` holds rows.

    References:
        Grosse, Ghahramani & Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
        Wu, Burda, Salakhutdinov & Grosse (2017), On the quantitative analysis of decoder-based generative models.

    Example:
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 1), torch.zeros(3), 1.0)
        >>> short = Annealing(num_temperatures=50)
        >>> bounds = bdmc(model.model, torch.zeros(5, 3), num_data=10, annealing=short, seed=0)
        >>> bool(bounds.width.mean().abs() < 0.2)
        True
    """
    seed = resolve_seed(seed)
    available = require_fixed(data, purpose="bdmc")
    require_count("num_data", num_data)
    require_kind("annealing", annealing, Annealing)
    require_start(start)
    if isinstance(start, Local):
        raise ValueError(
            f"start: expected a family, an amortized guide or None; got {start!r}, whose rows belong to other "
            f"datapoints than those simulated. Pass its family, start={start.family!r}."
        )
    num_real = min(available, num_data)
    site = site or getattr(start, "site", None) or "z"
    latents, simulated = simulate(model, data, num_data=num_data, site=site, seed=derive_seed(seed, "bdmc"))
    real = fetch(data, torch.arange(num_real))
    guide = _guide(model, simulated, start, site=site, seed=seed)
    origin = None if start is None else guide

    def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
        path = path_at(model, index, x, origin, num_data=num_data, site=site, annealing=annealing, seed=seed)
        plan = path.plan(seed=seed)
        backward = path.backward(latents[index].to(x.device), plan, seed=seed)
        inverse = {"inverse log_w": -backward["log_w"], "inverse acceptance": backward["acceptance"]}
        return {**path.forward(plan, seed=seed), **inverse}

    with frozen(model, guide), seeded(seed):
        columns = over_chunks(
            work, model, simulated, annealing.num_chains, "annealing", device=device_of(model, origin)
        )
    method = f"AIS from {describe_start(start)}"
    lower = as_evidence(columns, annealing, method=method, seed=seed)
    inverse = {name: columns[f"inverse {name}"] for name in ("log_w", "acceptance")}
    upper = _upper(as_evidence(inverse, annealing, method=f"backward {method}", seed=seed))
    sides = {
        name: _side(model, x, _guide(model, x, start, site=site, seed=seed), site=site, num_draws=num_draws, seed=seed)
        for name, x in (("simulated", simulated), ("real", real))
    }
    return Bidirectional(z=latents, x=simulated, lower=lower, upper=upper, **sides)


def _upper(inverse: Evidence) -> Evidence:
    """An upper bound on log p(x), given the lower bound on -log p(x) that weights of mean 1 / p(x) make."""
    changes = {name: -getattr(inverse, name) for name in ("value", "bias", "halves")}
    method = inverse.method.replace("a lower bound", "an upper bound")
    return dataclasses.replace(inverse, **changes, bound="upper", method=method)  # type: ignore[arg-type]


def _guide(
    model: Callable[..., Any], x: Tensor, start: Callable[..., Any] | Family | None, *, site: str, seed: int
) -> Callable[..., Any]:
    """A q near the posterior: the guide, or the best members of a family, mean-field by default."""
    if callable(start) and not isinstance(start, Family):
        return start
    return near_posterior(model, x, start or _mean_field(model, x, site), site=site, seed=seed)


@torch.no_grad()
def _mean_field(model: Callable[..., Any], x: Tensor, site: str) -> Family:
    with frozen(model):
        prior = latent_prior(model, x[:4].to(device_of(model)), site=site)
    return on_support(MeanField(prior.event_shape[0]), prior.support)


def _side(
    model: Callable[..., Any], x: Tensor, guide: Callable[..., Any], *, site: str, num_draws: int, seed: int
) -> Side:
    options: dict[str, Any] = {"site": site, "num_draws": num_draws, "seed": derive_seed(seed, "bdmc/side")}
    return Side(elbo=elbo(model, guide, x, **options), iwae=iwae(model, guide, x, **options))
