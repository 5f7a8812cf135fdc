"""What chains move in: log p(x, z) in the coordinates of R^D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Transform

from inference.densities import densities, latent_prior, require_observed
from inference.families import Constrained, MeanField, loc_and_tril
from inference.independence import require_rowwise
from inference.supports import bijection, is_unconstrained

__all__ = ["Target", "normal_of"]


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

    @classmethod
    def of(cls, model: Callable[..., Any], x: Float[Tensor, "B P"], site: str) -> Target:
        """The posterior at these datapoints; T is read off the model's prior."""
        return cls(model=model, x=x, site=site, onto=bijection(latent_prior(model, x[:4], site=site).support))

    def __call__(self, u: Float[Tensor, "C B D"]) -> tuple[Float[Tensor, "C B"]]:
        """The one term f that an HMC transition asks for."""
        z, log_slope = self.constrain(u)
        return (densities(self.model, self.x, z, site=self.site).log_joint + log_slope,)

    def constrain(self, u: Float[Tensor, "C B D"]) -> tuple[Float[Tensor, "C B E"], Float[Tensor, "C B"]]:
        """T u and the logarithm of its Jacobian."""
        if self.onto is None:
            return u, u.new_zeros(u.shape[:-1])
        z = self.onto(u)
        return z, self.onto.log_abs_det_jacobian(u, z)

    def unconstrain(self, z: Float[Tensor, "C B E"]) -> Float[Tensor, "C B D"]:
        """The u with T u = z."""
        return z if self.onto is None else self.onto.inv(z)

    def check(self, u: Float[Tensor, "C B D"]) -> None:
        """Run the model once at these positions, under validation, and refuse what breaks the contract."""
        z, _ = self.constrain(u)
        require_observed(self.model, self.x, site=self.site)
        densities(self.model, self.x, z[:1], site=self.site)
        require_rowwise(self.model, self.x, z, site=self.site)


def normal_of(q: Distribution) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D D"]]:
    """Mean and Cholesky factor of q's covariance, in the coordinates of R^D."""
    free = getattr(q, "unconstrained", q)
    support: Any = free.support
    if not is_unconstrained(support):
        family = Constrained(MeanField(q.event_shape[0]), support).to(q.mean.device)
        free = family.family(family.params_from(q))
    return loc_and_tril(free)
