"""A learned mixture of normals."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.networks import check_size
from pyro_vae.priors.base import Prior, confine
from pyro_vae.priors.mixtures import NormalMixture

__all__ = ["GaussianMixture"]


class GaussianMixture(Prior):
    r"""A mixture of diagonal normals with learned weights, means and scales.

    .. math::
        p(z) = \sum_c w_c \prod_d N(z_d; \mu_{cd}, \sigma_{cd}^2), \qquad w = \mathrm{softmax}(a), \quad
        \log \sigma_{cd} = 12 \tanh(r_{cd} / 12)

    The parameters are a, :math:`\mu` and r. The components start with equal weights and variances 1/2, at means drawn
    from N(0, 1/2) by torch's global generator: on average the mixture then has the variance of the standard normal.

    Args:
        num_latents: D, size of the latent vector.
        num_components: C, number of components.

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> prior = GaussianMixture(2, num_components=3)
        >>> prior.weights.detach()
        tensor([0.3333, 0.3333, 0.3333])
    """

    _shown = ("num_components",)

    def __init__(self, num_latents: int, *, num_components: int = 10) -> None:
        super().__init__(num_latents)
        self.num_components = check_size("GaussianMixture", "num_components", num_components)
        shape = (self.num_components, self.num_latents)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(math.sqrt(0.5) * torch.randn(shape))
        self.raw_scale = nn.Parameter(torch.full(shape, -0.5 * math.log(2)))

    @property
    def weights(self) -> Tensor:
        """Weights (C,), which sum to 1."""
        return self.logits.softmax(-1)

    @property
    def scale(self) -> Tensor:
        """Standard deviations (C, D)."""
        return confine(self.raw_scale).exp()

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        components = dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)
        return NormalMixture(self.logits.log_softmax(-1), components)
