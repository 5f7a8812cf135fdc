"""Normal priors: the standard one, and one with learned means and scales."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.priors.base import Prior, confine

__all__ = ["DiagonalNormal", "StandardNormal"]


class StandardNormal(Prior):
    r"""The standard normal distribution.

    .. math::
        p(z) = N(z; 0, I)

    Args:
        num_latents: D, size of the latent vector.

    Raises:
        ValueError: the size is not a positive integer.

    Example:
        >>> StandardNormal(8)().event_shape
        torch.Size([8])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)
        self.register_buffer("loc", torch.zeros(self.num_latents), persistent=False)
        self.register_buffer("scale", torch.ones(self.num_latents), persistent=False)

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)


class DiagonalNormal(Prior):
    r"""Independent normals with learned means and scales.

    .. math::
        p(z) = \prod_d N(z_d; \mu_d, \sigma_d^2), \qquad \log \sigma_d = 12 \tanh(r_d / 12)

    The parameters are :math:`\mu` and r, which is the log scale where scales are moderate; they start at 0, the
    standard normal.

    Args:
        num_latents: D, size of the latent vector.

    Raises:
        ValueError: the size is not a positive integer.

    Example:
        >>> DiagonalNormal(2).scale.detach()
        tensor([1., 1.])
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)
        self.loc = nn.Parameter(torch.zeros(self.num_latents))
        self.raw_scale = nn.Parameter(torch.zeros(self.num_latents))

    @property
    def scale(self) -> Tensor:
        """Standard deviations (D,)."""
        return confine(self.raw_scale).exp()

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)
