"""Real numbers with independent normal noise: who owns the scale is the difference."""

from __future__ import annotations

import pyro.distributions as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.normal import WideNormal
from pyro_vae.likelihoods.scales import check_scale, inverse_softplus, near_floor, scale_above
from pyro_vae.networks import check_size

__all__ = ["Gaussian", "GaussianDecoderScale", "GaussianOutputScale", "GaussianSharedScale"]


class Gaussian(Likelihood):
    r"""Real numbers with one fixed scale.

    .. math::
        p(x \mid m) = \prod_p N(x_p; m_p, s^2)

    Args:
        scale: s, standard deviation of every data value.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `scale` is not positive.

    Example:
        >>> import torch
        >>> Gaussian(scale=0.5)(torch.zeros(2, 3)).stddev[0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    base_measure = "lebesgue"
    support = constraints.real
    expected = "finite real numbers"
    advice = "Drop or fill the rows with infinite values."

    def __init__(self, *, scale: float = 1.0, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.scale = check_scale("Gaussian", "scale", scale)

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (loc,) = self.split(decoder_output)
        return dist.Normal(loc, self.scale, validate_args=False).to_event(1)

    def settings(self) -> list[str]:
        """Its scale."""
        return [f"scale={self.scale:g}"]


class GaussianSharedScale(Likelihood):
    r"""Real numbers with one learned scale, shared by all data values.

    .. math::
        p(x \mid m) = \prod_p N(x_p; m_p, s^2), \qquad s = \mathrm{floor} + \log(1 + e^r)

    Args:
        init_scale: s at the start, in the units of x.
        floor: what s cannot fall below, in the units of x; without one the likelihood of data that can be fitted
            exactly is unbounded.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `floor` is not positive, or `init_scale` not above it.

    Example:
        >>> GaussianSharedScale(init_scale=0.5).scale.item()
        0.5
    """

    base_measure = "lebesgue"
    support = constraints.real
    expected = Gaussian.expected
    advice = Gaussian.advice

    def __init__(self, *, init_scale: float = 1.0, floor: float = 1e-2, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.floor = check_scale("GaussianSharedScale", "floor", floor)
        self.raw_scale = nn.Parameter(inverse_softplus("GaussianSharedScale", init_scale, self.floor))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The standard deviation s."""
        return scale_above(self.floor, self.raw_scale)

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (loc,) = self.split(decoder_output)
        return dist.Normal(loc, self.scale, validate_args=False).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B P"]) -> Bool[Tensor, "*B P"]:
        """Whether the scale is less than 1 % above its floor; the same for all data values."""
        (loc,) = self.split(decoder_output)
        return near_floor(self.floor, self.scale).expand(loc.shape)

    def settings(self) -> list[str]:
        """Its scale now, and its floor."""
        return [f"scale={self.scale.item():.4g}", f"floor={self.floor:g}"]


class GaussianOutputScale(Likelihood):
    r"""Real numbers with a learned scale for each of the P outputs, the same for all datapoints.

    .. math::
        p(x \mid m) = \prod_p N(x_p; m_p, s_p^2), \qquad s_p = \mathrm{floor} + \log(1 + e^{r_p})

    The noise of factor analysis.

    Args:
        num_values: P, values in a datapoint.
        init_scale: every s_p at the start, in the units of x.
        floor: what no s_p can fall below, in the units of x; without one the likelihood of an output that can be fitted
            exactly is unbounded.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `num_values` is not a positive integer, `floor` not positive, or `init_scale` not above it.

    Example:
        >>> GaussianOutputScale(3, init_scale=0.5).scale.detach()
        tensor([0.5000, 0.5000, 0.5000])
    """

    base_measure = "lebesgue"
    support = constraints.real
    expected = Gaussian.expected
    advice = Gaussian.advice

    def __init__(self, num_values: int, *, init_scale: float = 1.0, floor: float = 1e-2, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.num_values = check_size("GaussianOutputScale", "num_values", num_values)
        self.floor = check_scale("GaussianOutputScale", "floor", floor)
        raw_scale = inverse_softplus("GaussianOutputScale", init_scale, self.floor)
        self.raw_scale = nn.Parameter(raw_scale.repeat(self.num_values))

    @property
    def scale(self) -> Float[Tensor, " P"]:
        """The standard deviations s, (P,)."""
        return scale_above(self.floor, self.raw_scale)

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        return dist.Normal(self._loc(decoder_output), self.scale, validate_args=False).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B P"]) -> Bool[Tensor, "*B P"]:
        """Which scales are less than 1 % above the floor; the same for all datapoints."""
        return near_floor(self.floor, self.scale).expand(self._loc(decoder_output).shape)

    def settings(self) -> list[str]:
        """Its size, the middle of its scales now, and its floor."""
        middle = self.scale.detach().median().item()
        return [str(self.num_values), f"median scale={middle:.4g}", f"floor={self.floor:g}"]

    def _loc(self, decoder_output: Tensor) -> Tensor:
        (loc,) = self.split(decoder_output)
        if loc.shape[-1] != self.num_values:
            raise ValueError(
                f"decoder: expected num_values = {self.num_values} outputs for {self!r}; got shape {tuple(loc.shape)}. "
                "Give the likelihood and the decoder the same number of values."
            )
        return loc


class GaussianDecoderScale(Likelihood):
    r"""Real numbers with a scale for each data value, from the decoder.

    .. math::
        p(x \mid m, r) = \prod_p N(x_p; m_p, s_p^2), \qquad s_p = \mathrm{floor} + \log(1 + e^{r_p})

    The decoder's first P outputs are the means m, the last P are r.

    Args:
        floor: what a scale cannot fall below, in the units of x; without one the likelihood of constant data values is
            unbounded.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `floor` is not positive.

    Example:
        >>> import torch
        >>> GaussianDecoderScale()(torch.zeros(5, 2 * 64)).event_shape
        torch.Size([64])
    """

    num_params = 2
    base_measure = "lebesgue"
    support = constraints.real
    expected = Gaussian.expected
    advice = Gaussian.advice

    def __init__(self, *, floor: float = 1e-2, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.floor = check_scale("GaussianDecoderScale", "floor", floor)

    def forward(self, decoder_output: Float[Tensor, "*B P2"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        loc, raw_scale = self.split(decoder_output)
        return WideNormal(loc, scale_above(self.floor, raw_scale), validate_args=False).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B P2"]) -> Bool[Tensor, "*B P"]:
        """Which scales are less than 1 % above the floor."""
        _, raw_scale = self.split(decoder_output)
        return near_floor(self.floor, scale_above(self.floor, raw_scale))

    def settings(self) -> list[str]:
        """Its floor."""
        return [f"floor={self.floor:g}"]
