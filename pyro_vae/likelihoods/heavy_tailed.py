"""Real numbers with tails heavier than the normal's: one outlier costs less than its square."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.elementwise import Elementwise
from pyro_vae.likelihoods.scales import check_above, check_scale, near_floor, scale_above

__all__ = ["Laplace", "StudentT"]


class Laplace(Likelihood):
    r"""Real numbers with Laplace noise, whose scale for each data value comes from the decoder.

    .. math::
        p(x \mid m, r) = \prod_p \frac{1}{2 s_p} e^{-|x_p - m_p| / s_p}, \qquad s_p = \mathrm{floor} + \log(1 + e^{r_p})

    The decoder's first P outputs are the means (and medians) m, the last P are r. The standard deviation is
    :math:`\sqrt 2 \, s_p`.

    Args:
        floor: what a scale s_p cannot fall below, in the units of x; without one the likelihood of data that can be
            fitted exactly is unbounded.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `floor` is not positive.

    Example:
        >>> Laplace()(torch.zeros(5, 2 * 64)).event_shape
        torch.Size([64])
    """

    num_params = 2
    base_measure = "lebesgue"
    support = constraints.real
    expected = "finite real numbers"
    advice = "Drop or fill the rows with infinite values."

    def __init__(self, *, floor: float = 1e-2, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.floor = check_scale("Laplace", "floor", floor)

    def forward(self, decoder_output: Float[Tensor, "*B P2"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        loc, raw_scale = self.split(decoder_output)
        return dist.Laplace(loc, scale_above(self.floor, raw_scale), validate_args=False).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B P2"]) -> Bool[Tensor, "*B P"]:
        """Which scales are less than 1 % above the floor."""
        _, raw_scale = self.split(decoder_output)
        return near_floor(self.floor, scale_above(self.floor, raw_scale))

    def settings(self) -> list[str]:
        """Its floor."""
        return [f"floor={self.floor:g}"]


class StudentT(Likelihood):
    r"""Real numbers with Student's t noise, whose scale for each data value comes from the decoder.

    .. math::
        p(x \mid m, r) = \prod_p \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2}) \sqrt{\pi \nu} \, s_p}
        \left(1 + \frac{(x_p - m_p)^2}{\nu s_p^2}\right)^{-\frac{\nu + 1}{2}},
        \qquad s_p = \mathrm{floor} + \log(1 + e^{r_p})

    The decoder's first P outputs are the means m, the last P are r.

    Args:
        df: degrees of freedom :math:`\nu`, above 1, so that the mean exists; the larger, the closer to a Gaussian.
        floor: what a scale s_p cannot fall below, in the units of x; without one the likelihood of data that can be
            fitted exactly is unbounded.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `df` is not above 1, or `floor` not positive.

    Example:
        >>> StudentT(df=3)(torch.zeros(5, 2 * 64)).event_shape
        torch.Size([64])
    """

    num_params = 2
    base_measure = "lebesgue"
    support = constraints.real
    expected = Laplace.expected
    advice = Laplace.advice

    def __init__(self, *, df: float = 4.0, floor: float = 1e-2, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.df = check_above("StudentT", "df", df, 1, why="so that the mean exists")
        self.floor = check_scale("StudentT", "floor", floor)

    def forward(self, decoder_output: Float[Tensor, "*B P2"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        loc, raw_scale = self.split(decoder_output)
        return _StudentT(loc, scale_above(self.floor, raw_scale), df=self.df).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B P2"]) -> Bool[Tensor, "*B P"]:
        """Which scales are less than 1 % above the floor."""
        _, raw_scale = self.split(decoder_output)
        return near_floor(self.floor, scale_above(self.floor, raw_scale))

    def settings(self) -> list[str]:
        """Its degrees of freedom and its floor."""
        return [f"df={self.df:g}", f"floor={self.floor:g}"]


class _StudentT(Elementwise):
    """Student's t. torch's own takes the difference of two large lgamma in float32, wrong by 0.5 at df = 1e6."""

    support = constraints.real

    @property
    def mean(self) -> Tensor:
        return self.parameters[0]

    def draw(self, *parameters: Tensor) -> Tensor:
        loc, scale = parameters
        return torch.distributions.StudentT(self.settings["df"], loc, scale, validate_args=False).sample()

    def log_prob(self, value: Tensor) -> Tensor:
        loc, scale = self.parameters
        df = self.settings["df"]
        log_tail = torch.log1p(((value - loc) / scale).square() / df)
        return _log_constant(df) - scale.log() - (df + 1) / 2 * log_tail


def _log_constant(df: float) -> float:
    """Log of Gamma((df + 1) / 2) / (Gamma(df / 2) sqrt(pi df))."""
    # The series where the two lgamma cancel: its next term is below 1e-17 there.
    log_ratio = math.log(df / 2) / 2 - 1 / (4 * df) if df > 1e6 else math.lgamma((df + 1) / 2) - math.lgamma(df / 2)
    return log_ratio - math.log(math.pi * df) / 2
