"""Values that were not observed, marginalised where values are independent."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from pyro_vae.likelihoods.shapes import NO_SHAPE, Shape

__all__ = ["Marginal"]


class Marginal(TorchDistribution):
    """Independent values, of which those that are NaN are left out of the log density.

    Draws and the mean are those of all values.

    Args:
        p: batch shape `*B`, event shape (P,).
        inside: a number in the support. It stands in for NaN, so that no gradient becomes NaN.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, p: Independent, inside: float) -> None:
        self.p = p
        self.inside = inside
        super().__init__(p.batch_shape, p.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients."""
        return self.p.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """That of all values."""
        return self.p.support

    @property
    def mean(self) -> Tensor:
        """Mean of all values, (*B, P)."""
        return self.p.mean

    @property
    def variance(self) -> Tensor:
        """Variance of all values, (*B, P)."""
        return self.p.variance

    def expand(self, batch_shape: Shape, _instance: Distribution | None = None) -> Self:
        """The same with another batch shape."""
        return type(self)(self.p.expand(torch.Size(batch_shape)), self.inside)

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Draws of all values, (*sample_shape, *B, P)."""
        return self.p.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Draws with gradients, (*sample_shape, *B, P)."""
        return self.p.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the values that are not NaN."""
        missing = torch.isnan(value)
        log_p = self.p.base_dist.log_prob(torch.where(missing, self.inside, value))
        return torch.where(missing, 0.0, log_p).sum(-1)
