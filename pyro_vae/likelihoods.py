"""Likelihoods: modules that map the decoder's output to a distribution over x.

The decoder ends in P x `num_params` outputs, in blocks: the first P outputs are the first parameter of every data
value.
"""

from __future__ import annotations

from math import lgamma
from typing import ClassVar, Literal, Self

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.networks import check_size

__all__ = ["Bernoulli", "Binomial", "Gaussian", "GaussianDecoderScale", "GaussianSharedScale", "Likelihood"]

# A learned scale counts as sitting on its floor when it is less than 1 % above it.
_ON_FLOOR = 1.01


class Likelihood(nn.Module):
    """A distribution over the data values given the decoder's output.

    A subclass sets the attributes and writes `forward`.

    Attributes:
        num_params: parameters a data value; the decoder has P times as many outputs.
        base_measure: "counting" (probability masses) or "lebesgue" (densities). The two are never compared.
        support: which data values have positive density.
        expected: the support in words, for the error.
        advice: what to do with data outside the support, for the error.
    """

    num_params: int = 1
    base_measure: Literal["counting", "lebesgue"]
    support: constraints.Constraint
    expected: str
    advice: ClassVar[str]

    def forward(self, decoder_output: Float[Tensor, "*B R"]) -> Distribution:
        """The distribution of x.

        Args:
            decoder_output: (*B, P x num_params), any real numbers.

        Returns:
            Distribution with batch shape `*B` and event shape (P,).
        """
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Refuse data outside the support.

        Args:
            x: data, any shape.

        Raises:
            ValueError: a value is outside the support, or not finite.
        """
        wrong = ~(self.support.check(x) & torch.isfinite(x))
        if wrong.any():
            where = tuple(torch.nonzero(wrong)[0].tolist())
            raise ValueError(
                f"{self!r}: expected {self.expected}; got x{list(where)} = {x[where].item():g}. {self.advice}"
            )

    def on_floor(self, decoder_output: Float[Tensor, "*B R"]) -> Bool[Tensor, "*B P"]:
        """Which data values have a learned scale that sits on its floor, less than 1 % above it.

        Nothing but the floor then keeps the likelihood bounded, and log p(x) depends on the floor's value. Never so
        where no scale is learned.

        Args:
            decoder_output: (*B, P x num_params).
        """
        return torch.zeros_like(self.split(decoder_output)[0], dtype=torch.bool)

    def split(self, decoder_output: Float[Tensor, "*B R"]) -> tuple[Float[Tensor, "*B P"], ...]:
        """The `num_params` blocks of the decoder's output.

        Raises:
            ValueError: the number of outputs is not a multiple of `num_params`.
        """
        num_outputs = decoder_output.shape[-1] if decoder_output.dim() else 0
        if num_outputs == 0 or num_outputs % self.num_params:
            raise ValueError(
                f"decoder: expected P x {self.num_params} outputs for {self!r}; got shape "
                f"{tuple(decoder_output.shape)}. "
                "End the decoder in P x likelihood.num_params outputs."
            )
        return decoder_output.chunk(self.num_params, dim=-1)


class Bernoulli(Likelihood):
    r"""Zeros and ones, from logits.

    .. math::
        p(x \mid l) = \prod_p \sigma(l_p)^{x_p} \, \sigma(-l_p)^{1 - x_p}

    Example:
        >>> Bernoulli()(torch.zeros(5, 64)).event_shape
        torch.Size([64])
    """

    base_measure = "counting"
    support = constraints.boolean
    expected = "zeros and ones"
    advice = (
        'Binarize gray values with load(..., binarize="fixed"), on the command line --data.binarize fixed, '
        "or choose another likelihood: Binomial for counts, Gaussian for real numbers."
    )

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (logits,) = self.split(decoder_output)
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)


class Binomial(Likelihood):
    r"""Counts from 0 to a known total, from logits.

    .. math::
        p(x \mid l) = \prod_p \binom{n}{x_p} \, \sigma(l_p)^{x_p} \, \sigma(-l_p)^{n - x_p}

    Args:
        total_count: n, the largest count possible.

    Raises:
        ValueError: `total_count` is not a positive integer.

    Example:
        >>> Binomial(16)(torch.zeros(1)).mean
        tensor([8.])
    """

    base_measure = "counting"
    advice = "Raise total_count to the largest count possible; for real numbers choose Gaussian."

    def __init__(self, total_count: int) -> None:
        super().__init__()
        self.total_count = check_size("Binomial", "total_count", total_count)
        self.support = constraints.integer_interval(0, self.total_count)
        self.expected = f"whole numbers from 0 to {self.total_count}"

    @classmethod
    def from_context(cls, max_value: float | None = None, *, total_count: int | None = None) -> Self:
        """The likelihood with the data's largest value as the total, unless another is chosen.

        Args:
            max_value: largest value in the training data.
            total_count: largest count possible; None takes the largest value in the training data.

        Raises:
            ValueError: the largest value is not a positive whole number.
        """
        if total_count is None:
            if max_value is None or max_value < 1 or max_value % 1:
                came = (
                    "nothing known of the data" if max_value is None else f"data whose largest value is {max_value:g}"
                )
                raise ValueError(
                    f"Binomial: total_count: expected counts to take it from; got {came}. Set total_count."
                )
            total_count = int(max_value)
        return cls(total_count)

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (logits,) = self.split(decoder_output)
        return _LogitBinomial(self.total_count, logits).to_event(1)

    def extra_repr(self) -> str:
        """Its total."""
        return str(self.total_count)


class _LogitBinomial(dist.Binomial):
    """A binomial whose log mass does not cancel at large logits, with log factorials once for all particles."""

    def __init__(self, num_trials: int, logits: Tensor) -> None:
        super().__init__(num_trials, logits=logits, validate_args=False)
        self.num_trials = num_trials

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Distribution | None = None
    ) -> Self:
        return type(self)(self.num_trials, self.logits.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        rest = self.num_trials - value
        log_choose = lgamma(self.num_trials + 1) - torch.lgamma(value + 1) - torch.lgamma(rest + 1)
        return log_choose + value * logsigmoid(self.logits) + rest * logsigmoid(-self.logits)


class Gaussian(Likelihood):
    r"""Real numbers with one fixed scale.

    .. math::
        p(x \mid m) = \prod_p N(x_p; m_p, s^2)

    Args:
        scale: s, standard deviation of every data value.

    Raises:
        ValueError: `scale` is not positive.

    Example:
        >>> Gaussian(scale=0.5)(torch.zeros(2, 3)).stddev[0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    base_measure = "lebesgue"
    support = constraints.real
    expected = "finite real numbers"
    advice = "Drop or fill the rows with missing values."

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = _check_scale("Gaussian", "scale", scale)

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (loc,) = self.split(decoder_output)
        return dist.Normal(loc, self.scale, validate_args=False).to_event(1)

    def extra_repr(self) -> str:
        """Its scale."""
        return f"scale={self.scale:g}"


class GaussianSharedScale(Likelihood):
    r"""Real numbers with one learned scale, shared by all data values.

    .. math::
        p(x \mid m) = \prod_p N(x_p; m_p, s^2), \qquad s = \mathrm{floor} + \log(1 + e^r)

    Args:
        init_scale: s at the start, in the units of x.
        floor: what s cannot fall below, in the units of x; without one the likelihood of data that can be fitted
            exactly is unbounded.

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

    def __init__(self, *, init_scale: float = 1.0, floor: float = 1e-2) -> None:
        super().__init__()
        self.floor = _check_scale("GaussianSharedScale", "floor", floor)
        if not self.floor < init_scale < float("inf"):
            raise ValueError(
                f"GaussianSharedScale: init_scale: expected a number above floor = {self.floor:g}; got {init_scale!r}. "
                "Lower the floor or start higher."
            )
        above = torch.as_tensor(init_scale - self.floor, dtype=torch.get_default_dtype())
        # The inverse of softplus, in the form that does not overflow.
        self.raw_scale = nn.Parameter(above + torch.log(-torch.expm1(-above)))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The standard deviation s."""
        return self.floor + softplus(self.raw_scale)

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (loc,) = self.split(decoder_output)
        return dist.Normal(loc, self.scale, validate_args=False).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B P"]) -> Bool[Tensor, "*B P"]:
        """Whether the scale is less than 1 % above its floor; the same for all data values."""
        return (self.scale < _ON_FLOOR * self.floor).expand(decoder_output.shape)

    def extra_repr(self) -> str:
        """Its scale now, and its floor."""
        return f"scale={self.scale.item():.4g}, floor={self.floor:g}"


class GaussianDecoderScale(Likelihood):
    r"""Real numbers with a scale for each data value, from the decoder.

    .. math::
        p(x \mid m, r) = \prod_p N(x_p; m_p, s_p^2), \qquad s_p = \mathrm{floor} + \log(1 + e^{r_p})

    The decoder's first P outputs are the means m, the last P are r.

    Args:
        floor: what a scale cannot fall below, in the units of x; without one the likelihood of constant data values is
            unbounded.

    Raises:
        ValueError: `floor` is not positive.

    Example:
        >>> GaussianDecoderScale()(torch.zeros(5, 2 * 64)).event_shape
        torch.Size([64])
    """

    num_params = 2
    base_measure = "lebesgue"
    support = constraints.real
    expected = Gaussian.expected
    advice = Gaussian.advice

    def __init__(self, *, floor: float = 1e-2) -> None:
        super().__init__()
        self.floor = _check_scale("GaussianDecoderScale", "floor", floor)

    def forward(self, decoder_output: Float[Tensor, "*B P2"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        loc, raw_scale = self.split(decoder_output)
        return dist.Normal(loc, self.floor + softplus(raw_scale), validate_args=False).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B P2"]) -> Bool[Tensor, "*B P"]:
        """Which scales are less than 1 % above the floor."""
        _, raw_scale = self.split(decoder_output)
        return self.floor + softplus(raw_scale) < _ON_FLOOR * self.floor

    def extra_repr(self) -> str:
        """Its floor."""
        return f"floor={self.floor:g}"


def _check_scale(owner: str, name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{owner}: {name}: expected a positive number, in the units of x; got {value!r}.")
    return float(value)
