"""Counts with a known total."""

from __future__ import annotations

from math import lgamma
from typing import Self

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.shapes import Shape
from pyro_vae.networks import check_size

__all__ = ["Binomial"]


class Binomial(Likelihood):
    r"""Counts from 0 to a known total, from logits.

    .. math::
        p(x \mid l) = \prod_p \binom{n}{x_p} \, \sigma(l_p)^{x_p} \, \sigma(-l_p)^{n - x_p}

    Args:
        total_count: n, the largest count possible.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `total_count` is not a positive integer.

    Example:
        >>> Binomial(16)(torch.zeros(1)).mean
        tensor([8.])
    """

    base_measure = "counting"
    advice = (
        "Raise total_count to the largest count possible, or choose NegativeBinomial or Poisson, which have none; for "
        "real numbers choose Gaussian."
    )
    counts_advice = advice.partition(";")[0] + "."

    def __init__(self, total_count: int, *, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.total_count = check_size("Binomial", "total_count", total_count)
        self.support = constraints.integer_interval(0, self.total_count)
        self.expected = f"whole numbers from 0 to {self.total_count}"

    @classmethod
    def from_context(
        cls, max_value: float | None = None, *, total_count: int | None = None, mask: bool = False
    ) -> Self:
        """The likelihood with the data's largest value as the total, unless another is chosen.

        Args:
            max_value: largest value in the data.
            total_count: largest count possible; None takes the largest value in the data.
            mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

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
        return cls(total_count, mask=mask)

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (logits,) = self.split(decoder_output)
        return _LogitBinomial(self.total_count, logits).to_event(1)

    def settings(self) -> list[str]:
        """Its total."""
        return [str(self.total_count)]


class _LogitBinomial(dist.Binomial):
    """A binomial whose log mass cancels neither at large logits nor at large totals.

    The log factorials are computed once for all particles, and all terms in double precision: at a total of 60,000
    they are hundreds of thousands of nats, and their sum a few.
    """

    def __init__(self, num_trials: int, logits: Tensor) -> None:
        super().__init__(num_trials, logits=logits, validate_args=False)
        self.num_trials = num_trials

    def expand(self, batch_shape: Shape, _instance: Distribution | None = None) -> Self:
        return type(self)(self.num_trials, self.logits.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        value, logits = value.double(), self.logits.double()
        rest = self.num_trials - value
        log_choose = lgamma(self.num_trials + 1) - torch.lgamma(value + 1) - torch.lgamma(rest + 1)
        return (log_choose + value * logsigmoid(logits) + rest * logsigmoid(-logits)).to(self.logits.dtype)
