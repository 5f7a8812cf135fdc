"""Normal distributions of any scale that their dtype holds."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor

__all__ = ["WideNormal"]


class WideNormal(dist.Normal):
    r"""A normal distribution that squares the residual in units of the scale.

    .. math::
        \log p(x) = -\frac12 \left( \frac{x - \mu}{\sigma} \right)^2 - \log \sigma - \frac12 \log 2 \pi

    The usual form divides squares, of which both are infinite, and the quotient NaN, from scales of 2e19 on at single
    precision.

    Example:
        >>> import torch
        >>> bool(WideNormal(torch.tensor(1e30), 1e30).log_prob(torch.tensor(0.0)).isfinite())
        True
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, of the value's shape."""
        return -0.5 * ((value - self.loc) / self.scale).square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
