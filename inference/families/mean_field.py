"""Independent normals."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from inference.families.family import Family, LocationScale
from inference.families.raw import LOG_SCALE, confine_slope
from inference.families.reading import family_of


class MeanField(LocationScale):
    r"""Independent normals.

    .. math::
        q(z) = \prod_d N(z_d; \mu_d, \sigma_d^2), \qquad \lambda = (\mu, r), \quad \log \sigma = 12 \tanh(r / 12)

    so that r is the log scale where scales are moderate, and no real r breaks the distribution. K = 2 D.

    Args:
        num_latents: D, size of the latent vector.

    Raises:
        ValueError: D is not a positive integer.

    Example:
        >>> import torch
        >>> family = MeanField(3)
        >>> q = family(torch.zeros(5, family.num_params))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        loc, scale, _ = self._split(params)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def natural_direction(
        self,
        params: Float[Tensor, "*B K"],
        grad: Float[Tensor, "*B K"],
        *,
        reach: float = math.inf,
        stretch: float | Tensor = math.inf,
    ) -> Tensor:
        r"""The natural gradient: F is diagonal, 1 / sigma^2 for a location and 2 for a log scale."""
        _, scale, _ = self._split(params)
        loc_grad, raw_grad = grad.chunk(2, dim=-1)
        slope = confine_slope(params[..., self.num_latents :], LOG_SCALE)
        limit = torch.as_tensor(stretch).to(params)
        loc = scale * (scale * loc_grad).clamp(-reach, reach)
        raw = (raw_grad / (2 * slope)).clamp(-limit, limit) / slope
        return torch.cat([loc, raw], dim=-1)


@family_of.register
def _(q: Independent) -> Family:
    if isinstance(q.base_dist, Normal) and len(q.event_shape) == 1:
        return MeanField(q.event_shape[0])
    return family_of.dispatch(object)(q)
