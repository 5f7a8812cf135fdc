"""A prior with two layers."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.networks import MLP, check_size
from pyro_vae.priors.base import Prior, check_widths, confine

__all__ = ["TopDown"]


class TopDown(Prior):
    r"""Two stochastic layers, the upper one setting the mean and scale of the lower one.

    .. math::
        z_2 \sim N(0, I_T), \qquad z_1 = m(z_2) + s(z_2) \, \epsilon, \quad \epsilon \sim N(0, I_F), \qquad
        \log s = 12 \tanh(r / 12)

    The form is the non-centred one: the latent vector is :math:`z = (\epsilon, z_2)` with D = F + T, a standard normal
    whatever the network is, and the network (m, r) acts in `features(z)`, which is the :math:`z_1` that the decoder
    reads. So the two layers are one latent site of one distribution, and every engine and family takes them.

    Args:
        num_latents: F, size of z_1.
        num_top: T, size of z_2.
        hidden: widths of the hidden layers of the network from z_2 to z_1.

    Attributes:
        num_latents: D = F + T.
        num_features: F.

    Raises:
        ValueError: a size is not a positive integer.

    References:
        Sønderby, Raiko, Maaløe, Sønderby & Winther (2016), Ladder variational autoencoders.
        Papaspiliopoulos, Roberts & Sköld (2007), A general framework for the parametrization of hierarchical models.

    Example:
        >>> prior = TopDown(8, num_top=2)
        >>> z = prior().sample((5,))
        >>> z.shape, prior.features(z).shape
        (torch.Size([5, 10]), torch.Size([5, 8]))
    """

    loc: Tensor
    scale: Tensor
    _shown = ("num_top", "hidden")

    def __init__(self, num_latents: int, *, num_top: int = 8, hidden: tuple[int, ...] = (64,)) -> None:
        super().__init__(num_latents)
        self.num_top = check_size("TopDown", "num_top", num_top)
        self.hidden = check_widths(self, "hidden", hidden)
        self.num_latents = self.num_features + self.num_top
        self.net = MLP(self.num_top, *self.hidden, 2 * self.num_features)
        self.register_buffer("loc", torch.zeros(self.num_latents), persistent=False)
        self.register_buffer("scale", torch.ones(self.num_latents), persistent=False)

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)

    def lower(self, z2: Float[Tensor, "*B T"]) -> Distribution:
        """The lower layer given the upper one, p(z_1 | z_2): batch shape `*B`, event shape (F,).

        Args:
            z2: upper layer, (*B, T).
        """
        loc, raw = self.net(z2).chunk(2, dim=-1)
        return dist.Normal(loc, confine(raw).exp(), validate_args=False).to_event(1)

    def features(self, z: Float[Tensor, "*B D"]) -> Float[Tensor, "*B F"]:
        """The lower layer z_1.

        Args:
            z: latent vectors (epsilon, z_2), (*B, D).
        """
        noise, z2 = z.split([self.num_features, self.num_top], dim=-1)
        loc, raw = self.net(z2).chunk(2, dim=-1)
        return loc + confine(raw).exp() * noise
