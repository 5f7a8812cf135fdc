"""What chains move in: log p(x, z) in the coordinates of R^D, and where they may start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, Transform

from inference.densities import densities, latent_prior
from inference.families import Constrained, MeanField, loc_and_tril
from inference.noise import BLOCK, derive_seed, seeded
from inference.supports import is_unconstrained

__all__ = ["Target", "normal_of", "prior_draws"]


@dataclass(frozen=True, kw_only=True)
class Target:
    r"""The posterior of each datapoint, up to a constant, in the coordinates of R^D.

    .. math::
        f(u) = \log p(x, T u) + \log |\det \partial T / \partial u|

    Attributes:
        model: Pyro model.
        x: (B, P) datapoints.
        site: name of the latent site.
        onto: T, the map from R^D onto the prior's support; None where they are the same.
    """

    model: Callable[..., Any]
    x: Float[Tensor, "B P"]
    site: str
    onto: Transform | None

    def __call__(self, u: Float[Tensor, "C B D"]) -> Float[Tensor, "1 C B"]:
        """The one term f that an HMC transition asks for."""
        z, log_slope = self.constrain(u)
        return (densities(self.model, self.x, z, site=self.site).log_joint + log_slope).unsqueeze(0)

    def constrain(self, u: Float[Tensor, "C B D"]) -> tuple[Float[Tensor, "C B E"], Float[Tensor, "C B"]]:
        """T u and the logarithm of its Jacobian."""
        if self.onto is None:
            return u, u.new_zeros(u.shape[:-1])
        z = self.onto(u)
        return z, self.onto.log_abs_det_jacobian(u, z)

    def unconstrain(self, z: Float[Tensor, "C B E"]) -> Float[Tensor, "C B D"]:
        """The u with T u = z."""
        return z if self.onto is None else self.onto.inv(z)


@torch.no_grad()
def prior_draws(
    model: Callable[..., Any],
    x: Float[Tensor, "B P"],
    index: Int[Tensor, " B"],
    num_draws: int,
    *,
    site: str,
    seed: int,
    stage: str,
) -> Float[Tensor, "S B E"]:
    """Draws of the prior that belong to datapoints, as `normal_noise` does.

    Args:
        model: Pyro model.
        x: (B, P) consecutive datapoints, from the start of a block.
        index: (B,) their indices.
        num_draws: S.
        site: name of the latent site.
        seed: the run's seed.
        stage: what the draws are for.
    """
    parts = []
    for within in torch.arange(len(x)).split(BLOCK):
        few = x[within]
        # A full block is always drawn, so that a datapoint's draws do not depend on what follows it.
        prior = latent_prior(model, torch.cat([few, few[-1:].expand(BLOCK - len(few), -1)]), site=site)
        with seeded(derive_seed(seed, stage, int(index[within[0]]) // BLOCK)):
            parts.append(prior.sample((num_draws,))[:, : len(few)])
    return torch.cat(parts, dim=1)


def normal_of(q: Distribution) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D D"]]:
    """Mean and Cholesky factor of q's covariance, in the coordinates of R^D."""
    free = getattr(q, "unconstrained", q)
    support: Any = free.support
    if not is_unconstrained(support):
        family = Constrained(MeanField(q.event_shape[0]), support).to(q.mean.device)
        free = family.family(family.params_from(q))
    return loc_and_tril(free)
