"""A spiky prior: in every dimension a mixture of a narrow and a wide normal."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.priors.base import Prior, check_number, check_scale

__all__ = ["ScaleMixture"]


class ScaleMixture(Prior):
    r"""In every dimension a narrow normal (the spike) or a wide one (the slab), with the choice summed out.

    .. math::
        p(z) = \prod_d \left[ w \, N(z_d; 0, s_0^2) + (1 - w) \, N(z_d; 0, s_1^2) \right]

    The continuous relative of spike and slab: most latent dimensions of a datapoint are close to 0, a few are not.

    Args:
        num_latents: D, size of the latent vector.
        spike: s_0, standard deviation of the narrow normal.
        slab: s_1, standard deviation of the wide normal, at least that of the narrow one.
        weight: w, probability of the spike, strictly between 0 and 1.

    Raises:
        ValueError: the size is not a positive integer, or an option out of range.

    References:
        George & McCulloch (1993), Variable selection via Gibbs sampling.

    Example:
        >>> ScaleMixture(3, spike=0.1)().variance
        tensor([0.5050, 0.5050, 0.5050])
    """

    _zero: Tensor
    _shown = ("spike", "slab", "weight")

    def __init__(self, num_latents: int, *, spike: float = 0.1, slab: float = 1.0, weight: float = 0.5) -> None:
        super().__init__(num_latents)
        self.spike = check_scale(self, "spike", spike)
        self.slab = check_scale(self, "slab", slab)
        if self.slab < self.spike:
            raise ValueError(
                f"ScaleMixture: slab: expected at least spike = {self.spike:g}; got {slab!r}. Exchange the two."
            )
        self.weight = check_number(
            self, "weight", weight, 1e-6, 1 - 1e-6, fix="For a single normal take StandardNormal or DiagonalNormal."
        )
        self.register_buffer("_zero", torch.zeros(self.num_latents), persistent=False)

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        which = dist.Categorical(probs=self._pairs(self.weight, 1 - self.weight), validate_args=False)
        normals = dist.Normal(self._pairs(0.0, 0.0), self._pairs(self.spike, self.slab), validate_args=False)
        return _RealMixture(which, normals, validate_args=False).to_event(1)

    def _pairs(self, first: float, second: float) -> Tensor:
        """(D, 2): these numbers for every dimension."""
        return torch.stack([torch.full_like(self._zero, first), torch.full_like(self._zero, second)], dim=-1)


class _RealMixture(dist.MixtureSameFamily):
    """Pyro's, on a support that can be compared: all real numbers."""

    support = constraints.real
