"""A prior on a box."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from inference.families import marginals
from pyro_vae.priors.base import LARGEST, Prior, Shape, check_number

__all__ = ["Uniform"]


class Uniform(Prior):
    r"""The uniform distribution on a box.

    .. math::
        p(z) = (b - a)^{-D}, \qquad a \le z_d \le b

    z lives in the box, so a variational family has to be pushed into it: `inference.families.Constrained`.

    Args:
        num_latents: D, size of the latent vector.
        low: a, lower end of every side.
        high: b, upper end of every side.

    Raises:
        ValueError: the size is not a positive integer, or the ends are not numbers in this order.

    Example:
        >>> p = Uniform(2, low=0.0, high=4.0)()
        >>> p.log_prob(torch.tensor([[1.0, 2.0], [1.0, 5.0]])).exp()
        tensor([0.0625, 0.0000])
    """

    _like: Tensor
    _shown = ("low", "high")

    def __init__(self, num_latents: int, *, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(num_latents)
        fix = "Pass low < high, as in low=-1.0, high=1.0."
        self.low = check_number(self, "low", low, -LARGEST, LARGEST, fix=fix)
        self.high = check_number(self, "high", high, -LARGEST, LARGEST, fix=fix)
        # So that the ends are apart in float32 too.
        if self.high - self.low < 1e-4 * max(abs(self.low), abs(self.high)) or self.high == self.low:
            raise ValueError(f"Uniform: high: expected a number above low = {self.low:g}; got {high!r}. {fix}")
        self.register_buffer("_like", torch.zeros(self.num_latents), persistent=False)

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        return _Box(self._like, self.low, self.high)


class _Box(TorchDistribution):
    """The uniform distribution with both ends: a bijection onto the box reaches them by rounding."""

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, like: Tensor, low: float, high: float) -> None:
        self._like, self.low, self.high = like, low, high
        super().__init__(torch.Size(), like.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    @property
    def mean(self) -> Tensor:
        return torch.full_like(self._like, (self.low + self.high) / 2)

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self._like, (self.high - self.low) ** 2 / 12)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = ((value >= self.low) & (value <= self.high)).all(-1)
        log_volume = self.event_shape[0] * math.log(self.high - self.low)
        return torch.full_like(inside, -log_volume, dtype=value.dtype).masked_fill(~inside, -math.inf)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self._like.new_empty(self._extended_shape(torch.Size(sample_shape))).uniform_(self.low, self.high)


@marginals.register
def _(q: _Box) -> Distribution:
    return dist.Uniform(torch.full_like(q._like, q.low), torch.full_like(q._like, q.high), validate_args=False)
