"""Data drawn from a model, each datapoint with the z that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.batches import Data, fetch, require_data
from inference.counts import require_count
from inference.densities import densities, guide_distribution, latent_prior
from inference.guides import Local
from inference.isolation import device_of, frozen
from inference.noise import BLOCK, derive_seed, like, measured, resolve_seed

__all__ = ["draw_pairs", "simulate", "site_for_any_x"]


def simulate(
    model: Callable[..., Any], data: Data, *, num_data: int, site: str = "z", seed: int | None = None
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N P"]]:
    r"""Datapoints drawn from the model, each with the latent vector that made it.

    .. math::
        z_n \sim p(z), \qquad x_n \sim p(x \mid z_n)

    So z_n is an exact draw from the posterior p(z | x_n). Datapoint n depends on the seed and n alone, not on
    `num_data`. The model runs in eval mode, and its parameters and buffers have the same bits after.

    Args:
        model: Pyro model with one observed site.
        data: (N', P) data of the kind that the model is for: it is run on them, over and over where N' is less than N.
            Of what it observes only shape and dtype are used, and where they are NaN, unobserved: so are the draws.
        num_data: N, datapoints to draw.
        site: name of the latent site.
        seed: of the draws.

    Returns:
        z and x, on the CPU.

    Raises:
        ValueError: the model observes x whatever it is asked, scores x without a distribution that can be drawn from,
            has several observed sites, or breaks the contract; the message names the site.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> z, x = simulate(model, torch.zeros(1, 2), num_data=100, seed=0)
        >>> z.shape, x.shape
        (torch.Size([100, 2]), torch.Size([100, 2]))
    """
    seed = resolve_seed(seed)
    available = require_data(data)
    require_count("num_data", num_data)
    latents, values = [], []
    with frozen(model), torch.no_grad():
        for first in range(0, num_data, BLOCK):
            # A full block is always drawn, so that a datapoint's draws do not depend on what follows it.
            x = fetch(data, torch.arange(first, first + BLOCK) % available, device=device_of(model))
            if not first:
                latent_prior(model, x, site=site)
            with measured(derive_seed(seed, "simulate", first // BLOCK)):
                z, drawn = draw_pairs(model, x, site=site)
            if not first:
                densities(model, drawn, z.unsqueeze(0), site=site)
            latents.append(z.cpu())
            values.append(drawn.cpu())
    return torch.cat(latents)[:num_data], torch.cat(values)[:num_data]


@torch.no_grad()
def draw_pairs(
    model: Callable[..., Any], x: Float[Tensor, "B P"], *, site: str
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P"]]:
    """As many pairs (z, x) from the model as there are datapoints, as incomplete, from torch's global generator.

    Args:
        model: Pyro model with one observed site, known to have the latent one.
        x: (B, P) data of the kind that the model is for.
        site: name of the latent site.

    Raises:
        ValueError: x cannot be simulated; the message names the site.
    """
    nodes: Mapping[str, Any] = poutine.trace(poutine.uncondition(model)).get_trace(x).nodes
    drawn = nodes[_observed_site(nodes, site, x)]["value"].to(like(x))
    # What nobody observes has no value to say anything by.
    return nodes[site]["value"], torch.where(x.isnan(), x, drawn)


def site_for_any_x(guide: Callable[..., Any], data: Data, *, site: str | None) -> str:
    """The latent site of a guide that is asked about simulated x.

    Raises:
        ValueError: the guide is `Local`.
    """
    if isinstance(guide, Local):
        raise ValueError(
            "guide: expected one that maps any x to q(z | x); got a Local one, whose rows belong to fixed x and say "
            "nothing of simulated ones. Pass an Amortized guide, or one written by hand."
        )
    with frozen(guide), torch.no_grad():
        few = fetch(data, torch.arange(min(require_data(data), 2)), device=device_of(guide))
        return guide_distribution(guide, few, site=site)[0]


def _observed_site(nodes: Mapping[str, Any], site: str, x: Tensor) -> str:
    """The one site that stands for x, drawn; refuses a model that does not draw it."""
    sites = {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node) and not node["infer"].get("_deterministic")
    }
    for name, node in sites.items():
        # What pyro.factor scores has no values; what a point mass at x draws is x itself.
        given = node["is_observed"] or node["value"].data_ptr() == x.data_ptr()
        if given or (node["infer"].get("was_observed") and not node["value"].numel()):
            raise ValueError(
                f"site '{name}': expected the model to draw it under poutine.uncondition, so that x can be simulated; "
                "it observes or scores x all the same. Write it as pyro.sample(name, distribution, obs=x)."
            )
    drawn = [name for name, node in sites.items() if name != site and node["infer"].get("was_observed")]
    if len(drawn) != 1:
        raise ValueError(
            f"model: expected one observed site, whose draws are new x; got {', '.join(map(repr, drawn)) or 'none'}. "
            "Observe x in one site, as one distribution over the vector."
        )
    shape = tuple(sites[drawn[0]]["value"].shape)
    if shape != tuple(x.shape):
        raise ValueError(
            f"site '{drawn[0]}': expected draws of the shape of x, {tuple(x.shape)}; got {shape}. Observe all of x in "
            "this site."
        )
    return drawn[0]
