"""The evidence lower bound of a guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inference.batches import Data, require_fixed
from inference.chunked import over_chunks
from inference.densities import guide_distribution
from inference.given import Given, over_draws
from inference.isolation import device_of, frozen
from inference.noise import resolve_seed, seeded
from inference.results import Evidence
from inference.scoring import guide_of, pair_means, require_draws, require_sound, score_distribution
from inference.weights import mean_and_se

__all__ = ["elbo"]


def elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    site: str | None = None,
    num_draws: int = 1000,
    given: Given | None = None,
    seed: int | None = None,
) -> Evidence:
    r"""The evidence lower bound of a guide, per datapoint.

    .. math::
        L[q] = E_{q(z \mid x)}[\log p(x, z) - \log q(z \mid x)] \le \log p(x)

    Args:
        model: Pyro model.
        guide: Pyro guide, amortized or `Local`.
        data: (N, P) datapoints, each with a fixed x.
        site: name of the latent site; read off the guide by default.
        num_draws: S, in antithetic pairs.
        given: draws (M, *shape) of each latent site outside the data plate: the value is conditional, E[log p(x, z | w)
            - log q(z | x, w)], averaged over the draws of w.
        seed: of the draws.

    Returns:
        Value and standard error, each (N,), nats.

    Raises:
        ValueError: the program breaks the contract, or `data` draws x anew at each access.

    Example:
        >>> from inference import Local, MeanField
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> elbo(model.model, Local(MeanField(2), torch.zeros(5, 4)), torch.zeros(5, 2), seed=0).value.shape
        torch.Size([5])
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="elbo")
    require_draws(num_draws, least=4)
    if given is not None:
        options: dict[str, Any] = {"site": site, "num_draws": num_draws}
        return over_draws(
            lambda p, q, seed: elbo(p, q, data, seed=seed, **options), given, data, model, guide, seed=seed
        )

    def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
        name, q = guide_distribution(guide_of(guide, index, num_data=num_data), x, site=site)
        require_sound(model, guide, q, x, site=name)
        draws = score_distribution(model, x, index, q, site=name, num_draws=num_draws, seed=seed)
        value, se = mean_and_se(pair_means(draws))
        return {"value": value, "se": se}

    with frozen(model, guide), seeded(seed), torch.no_grad():
        columns = over_chunks(work, model, data, 64, "ELBO", device=device_of(model, guide))
    settings = {"num_draws": num_draws, "seed": seed}
    return Evidence(**columns, method="ELBO of the guide", bound="lower", settings=settings)
