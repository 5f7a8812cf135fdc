"""Numbers from 0 to 1."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.elementwise import Elementwise
from pyro_vae.likelihoods.scales import check_scale, near_floor, scale_above

__all__ = ["Beta", "ContinuousBernoulli"]

# The mean of a beta density keeps this far from 0 and 1, and its concentration above this: nearer, floating point
# numbers cannot hold where its mass lies.
_MARGIN = 1e-3
_LEAST_CONCENTRATION = 0.1
# log(sinh(u) / u) / u^2 as a polynomial in u^2; exact to 1e-17 for u below 1/4.
_LOG_SINHC = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575)


class ContinuousBernoulli(Likelihood):
    r"""Numbers from 0 to 1, both included, from logits: the Bernoulli's formula as a density, with its constant.

    .. math::
        p(x \mid l) = \prod_p \frac{l_p}{e^{l_p} - 1} \, e^{l_p x_p}

    which is uniform at l = 0.

    Args:
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    References:
        Loaiza-Ganem & Cunningham, The Continuous Bernoulli: Fixing a Pervasive Error in Variational Autoencoders, 2019,
        https://arxiv.org/abs/1907.06845

    Example:
        >>> ContinuousBernoulli()(torch.zeros(3)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    base_measure = "lebesgue"
    support = constraints.unit_interval
    expected = "numbers from 0 to 1"
    advice = "Rescale the data to numbers from 0 to 1, or choose Gaussian for real numbers."

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (logits,) = self.split(decoder_output)
        return _ContinuousBernoulli(logits).to_event(1)


class _ContinuousBernoulli(Elementwise):
    """torch's own replaces logits within 0.002 of 0, and those beyond 16 in float32, by others."""

    support = constraints.unit_interval

    @property
    def mean(self) -> Tensor:
        (logits,) = self.parameters
        near, far, size = _near_0(logits)
        # The derivative of the log constant in each of its two forms.
        half = near / 2
        series = 0.5 + half * _polynomial(half.square(), [(k + 1) * c for k, c in enumerate(_LOG_SINHC)])
        away = torch.where(far > 0, -1 / torch.expm1(-size) - 1 / size, 1 / size - 1 / torch.expm1(size))
        return torch.where(logits == near, series, away)

    def draw(self, *parameters: Tensor) -> Tensor:
        (logits,) = parameters
        # The inverse cumulative probability, seen from the end where the density is high.
        size = logits.abs().clamp_min(torch.finfo(logits.dtype).tiny)
        depth = (-torch.log1p(torch.rand_like(logits) * torch.expm1(-size)) / size).clamp(0, 1)
        return torch.where(logits > 0, 1 - depth, depth)

    def log_prob(self, value: Tensor) -> Tensor:
        (logits,) = self.parameters
        near, far, size = _near_0(logits)
        squared = (near / 2).square()
        series = near * (value - 0.5) - squared * _polynomial(squared, _LOG_SINHC)
        # Distance from the end where the density is high: at large logits value * logits cancels with the constant.
        depth = torch.where(far > 0, 1 - value, value)
        away = size.log() - torch.log(-torch.expm1(-size)) - size * depth
        return torch.where(logits == near, series, away)


def _near_0(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits where they are near 0 and 0 elsewhere; where they are not near 0 and 1 elsewhere; and those' size."""
    is_near = logits.abs() < 0.5
    far = torch.where(is_near, 1.0, logits)
    return torch.where(is_near, logits, 0.0), far, far.abs()


def _polynomial(x: Tensor, coefficients: tuple[float, ...] | list[float]) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


class Beta(Likelihood):
    r"""Numbers between 0 and 1, neither included, with mean and concentration from the decoder.

    .. math::
        p(x \mid l, r) = \prod_p \mathrm{Beta}(x_p; \mu_p \kappa_p, (1 - \mu_p) \kappa_p), \qquad
        \mu_p = 0.001 + 0.998 \, \sigma(l_p), \qquad
        \kappa_p = 0.1 + \frac{1}{s_p^2}, \qquad s_p = \mathrm{floor} + \log(1 + e^{r_p})

    The standard deviation is :math:`\sqrt{\mu_p (1 - \mu_p) / (1 + \kappa_p)}`: about s_p times the
    largest it could be. The decoder's first P outputs are l, the last P are r.

    Args:
        floor: what s_p cannot fall below, without unit; without one the likelihood of data that can be fitted
            exactly is unbounded.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `floor` is not positive.

    References:
        Ferrari & Cribari-Neto, Beta Regression for Modelling Rates and Proportions, 2004 (mean and concentration).

    Example:
        >>> Beta()(torch.zeros(2 * 3)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    num_params = 2
    base_measure = "lebesgue"
    expected = "numbers above 0 and below 1"
    advice = (
        "Gray values reach 0 and 1: choose ContinuousBernoulli or DiscretizedLogistic for them, or Bernoulli after "
        'load(..., binarize="fixed"); for real numbers choose Gaussian.'
    )
    inside = 0.5

    def __init__(self, *, floor: float = 1e-2, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.floor = check_scale("Beta", "floor", floor, unit="without unit")
        self.support = _OpenUnitInterval()

    def forward(self, decoder_output: Float[Tensor, "*B P2"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        loc, raw_scale = self.split(decoder_output)
        # Either end from its own sigmoid: 1 - mean has lost its digits where the mean is near 1.
        mean, rest = (_MARGIN + (1 - 2 * _MARGIN) * torch.sigmoid(sign) for sign in (loc, -loc))
        concentration = _LEAST_CONCENTRATION + scale_above(self.floor, raw_scale).square().reciprocal()
        return _Beta(mean * concentration, rest * concentration).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B P2"]) -> Bool[Tensor, "*B P"]:
        """Which s are less than 1 % above the floor."""
        _, raw_scale = self.split(decoder_output)
        return near_floor(self.floor, scale_above(self.floor, raw_scale))

    def settings(self) -> list[str]:
        """Its floor."""
        return [f"floor={self.floor:g}"]


class _Beta(Elementwise):
    """A beta density with its constant in double precision, where the differences of lgamma do not cancel."""

    support = constraints.unit_interval

    @property
    def mean(self) -> Tensor:
        a, b = self.parameters
        return a / (a + b)

    def draw(self, *parameters: Tensor) -> Tensor:
        a, b = parameters
        info = torch.finfo(a.dtype)
        # Draws that rounding would put on 0 or 1 go to the nearest number inside.
        return torch.distributions.Beta(a, b, validate_args=False).sample().clamp(info.tiny, 1 - info.eps / 2)

    def log_prob(self, value: Tensor) -> Tensor:
        a, b = (parameter.double() for parameter in self.parameters)
        value = value.double()
        log_constant = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        log_p = (a - 1) * value.log() + (b - 1) * torch.log1p(-value) + log_constant
        return log_p.to(self.parameters[0].dtype)


class _OpenUnitInterval(constraints.Constraint):
    """0 < x < 1."""

    def check(self, value: Tensor) -> Tensor:
        """Which values are inside."""
        return (value > 0) & (value < 1)
