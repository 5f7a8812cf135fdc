"""ELBO surgery: what the KL term is spent on, and which dimensions of z are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from inference.batches import Data, require_fixed
from inference.counts import is_number
from inference.densities import densities, guide_distribution, latent_prior
from inference.families import from_noise, loc_and_tril, marginals
from inference.isolation import device_of, frozen
from inference.memory import VALUES_AT_ONCE
from inference.noise import derive_seed, resolve_seed, seeded
from inference.results import Surgery
from inference.scoring import (
    guide_of,
    pair_means,
    read_chunks,
    require_draws,
    require_sound,
    scoring_noise,
)
from inference.weights import mean_and_se

__all__ = ["elbo_surgery"]

# Draws that stand for a prior whose variance has no closed form.
_PRIOR_DRAWS = 10_000


def elbo_surgery(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    site: str | None = None,
    num_draws: int = 32,
    threshold: float = 0.01,
    seed: int | None = None,
) -> Surgery:
    r"""Take the ELBO apart: reconstruction, mutual information, and the distance of the mean of q from the prior.

    .. math::
        \frac1N \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) = I(n; z) + \mathrm{KL}(\bar q(z) \,\|\, p(z)), \qquad
        \bar q(z) = \frac1N \sum_n q(z \mid x_n)

    with I(n; z) the mean of :math:`\mathrm{KL}(q(z \mid x_n) \,\|\, \bar q(z))`: how much a draw says about which
    datapoint it came from. The mixture has all N components, at a cost of S N^2 densities, so both terms are
    unbiased for these N datapoints. They are not for the population: see `Surgery`.

    A dimension of z is active if the variance over datapoints of E_q[z_d | x] exceeds `threshold` times its variance
    under the prior (Burda et al. 2016 compare with 0.01, their prior having variance 1).

    Args:
        model: Pyro model.
        guide: Pyro guide, amortized or `Local`, whose density can be evaluated at any point.
        data: (N, P) datapoints, each with a fixed x.
        site: name of the latent site; read off the guide by default.
        num_draws: S, in antithetic pairs, the ones that `elbo` makes at this seed.
        threshold: share of the prior's variance above which a dimension is active.
        seed: of the draws.

    Returns:
        Every term per datapoint with its Monte Carlo error; printing it shows a table.

    Raises:
        ValueError: the guide's density at points it did not draw is not known, the program breaks the contract, or
            `data` draws x anew at each access.

    References:
        Hoffman & Johnson (2016), ELBO surgery: yet another way to carve up the variational evidence lower bound.
        Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders.

    Example:
        >>> from inference import Local, MeanField
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> apart = torch.tensor([[-50.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])
        >>> surgery = elbo_surgery(model.model, Local(MeanField(2), apart), torch.zeros(2, 2), seed=0)
        >>> surgery.mutual_information.mean().exp().round(decimals=4), surgery.active_units
        (tensor(2., dtype=torch.float64), tensor([ True, False]))
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="elbo_surgery")
    require_draws(num_draws, least=4)
    if not (is_number(threshold) and threshold > 0):
        raise ValueError(f"threshold: expected a positive share of the prior's variance; got {threshold!r}. Try 0.01.")
    chunks, means, per_dim = [], [], []
    with frozen(model, guide), seeded(seed), torch.no_grad():
        for index, x in read_chunks(model, data, num_data, num_draws, "ELBO surgery", device=device_of(model, guide)):
            name, q = guide_distribution(guide_of(guide, index, num_data=num_data), x, site=site)
            require_sound(model, guide, q, x, site=name)
            prior = latent_prior(model, x, site=name)
            with pyro.validation_enabled(is_validate=False):
                drawn = _draw(model, x, index, q, site=name, num_draws=num_draws, seed=seed)
                means.append(loc_and_tril(q)[0].double())
                kl, method = _kl_per_dim(q, prior, drawn.z)
            chunks.append(drawn)
            if kl is not None:
                per_dim.append(kl)
        variance = _variance(prior, seed=seed)
        with pyro.validation_enabled(is_validate=False):
            terms = [_terms(chunk, _log_mixture([chunk.q for chunk in chunks], chunk.z)) for chunk in chunks]
    activity = torch.cat(means).var(0) / variance if num_data > 1 else torch.full_like(variance, math.nan)
    return Surgery(
        **{column: torch.cat([part[column] for part in terms]) for column in terms[0]},
        kl_per_dim=torch.cat(per_dim).cpu() if per_dim else None,
        kl_per_dim_method=method,
        activity=activity.cpu(),
        threshold=threshold,
        settings={"site": name, "num_draws": num_draws, "seed": seed},
    )


class _Drawn(NamedTuple):
    """A chunk's draws z (S, B, D) of q, and the log densities (S, B) at them."""

    q: Distribution
    z: Tensor
    log_q: Tensor
    log_prior: Tensor
    log_likelihood: Tensor


def _draw(
    model: Callable[..., Any], x: Tensor, index: Tensor, q: Distribution, *, site: str, num_draws: int, seed: int
) -> _Drawn:
    parts = []
    for noise in scoring_noise(x, index, q, num_draws, seed=seed, stage="score"):
        z, log_q = from_noise(q, noise)
        terms = densities(model, x, z, site=site)
        parts.append((z, log_q.double(), terms.log_prior.double(), terms.log_likelihood.double()))
    return _Drawn(q, *(torch.cat(column) for column in zip(*parts, strict=True)))


def _terms(chunk: _Drawn, log_mean_q: Float[Tensor, "S B"]) -> dict[str, Float[Tensor, " B"]]:
    """Value and error of every term, given the log density of the mean of q at the draws."""
    draws = {
        "elbo": chunk.log_likelihood + chunk.log_prior - chunk.log_q,
        "reconstruction": chunk.log_likelihood,
        "kl": chunk.log_q - chunk.log_prior,
        "mutual_information": chunk.log_q - log_mean_q,
        "marginal_kl": log_mean_q - chunk.log_prior,
    }
    columns: dict[str, Tensor] = {}
    for term, values in draws.items():
        value, se = mean_and_se(pair_means(values))
        columns |= {term: value.cpu(), f"{term}_se": se.cpu()}
    return columns


def _kl_per_dim(q: Distribution, prior: Distribution, z: Float[Tensor, "S B D"]) -> tuple[Tensor | None, str]:
    """KL of the marginals (B, D) and where it comes from; None, and the reason, where a marginal is not known."""
    try:
        ours, theirs = marginals(q), marginals(prior)
    except NotImplementedError as error:
        return None, str(error)
    try:
        return kl_divergence(ours, theirs).double(), "closed form"
    except NotImplementedError:
        draws = pair_means(ours.log_prob(z) - theirs.log_prob(z))
        return draws.mean(0), f"Monte Carlo, {len(z)} draws"


def _log_mixture(components: Sequence[Distribution], z: Float[Tensor, "S B D"]) -> Float[Tensor, "S B"]:
    """The log density of the mean of all components, of every chunk, at these draws."""
    size = max(q.batch_shape[0] for q in components) * z.shape[-1]
    parts = []
    for few in z.flatten(0, 1).split(max(1, VALUES_AT_ONCE // size)):
        log_sum = torch.full((len(few),), -math.inf, dtype=torch.float64, device=z.device)
        for q in components:
            # Written out: a flow's transforms belong to datapoints, and need not broadcast.
            points = few.unsqueeze(1).expand(-1, q.batch_shape[0], -1)
            try:
                log_q = q.log_prob(points)
            except NotImplementedError as error:
                raise ValueError(
                    f"guide: expected a density that can be evaluated at other datapoints' draws; a {type(q).__name__} "
                    "has none. Choose a family with has_log_prob."
                ) from error
            log_sum = torch.logaddexp(log_sum, log_q.double().logsumexp(-1))
        parts.append(log_sum)
    return torch.cat(parts).unflatten(0, z.shape[:2]) - math.log(sum(q.batch_shape[0] for q in components))


def _variance(prior: Distribution, *, seed: int) -> Float[Tensor, " D"]:
    """The prior's variance in each dimension: in closed form, else of draws."""
    try:
        return prior.variance[0].double()
    except NotImplementedError:
        with seeded(derive_seed(seed, "prior")):
            draws = [prior.sample() for _ in range(-(-_PRIOR_DRAWS // prior.batch_shape[0]))]
        return torch.cat(draws).double().var(0)
