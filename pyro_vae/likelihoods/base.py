"""What every likelihood is."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, constraints

from pyro_vae.likelihoods.masking import Marginal

__all__ = ["Likelihood"]

_MASK = "Missing values need mask=True (on the command line --likelihood.mask), which leaves them out of log p(x)."


def _are_counts(x: Tensor) -> bool:
    """Whether the values that were observed are whole numbers from 0, and some are above 1."""
    seen = x[~x.isnan()]
    return bool(((seen >= 0) & (seen == seen.round()) & seen.isfinite()).all()) and bool((seen > 1).any())


class Likelihood(nn.Module):
    """A distribution over the data values given the decoder's output.

    A subclass sets the attributes and writes `forward`. What is called is the module, never `forward` itself: the call
    marginalises missing values.

    Args:
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Attributes:
        num_params: parameters a data value; the decoder has P times as many outputs.
        base_measure: "counting" (probability masses) or "lebesgue" (densities). The two are never compared.
        support: which data values have positive density.
        expected: the support in words, for the error.
        advice: what to do with data outside the support, for the error.
        counts_advice: the same where all data are whole numbers from 0, and not only zeros and ones.
        inside: a number in the support.
    """

    num_params: int = 1
    base_measure: Literal["counting", "lebesgue"]
    support: constraints.Constraint
    expected: str
    advice: ClassVar[str]
    counts_advice: ClassVar[str] = (
        "For counts choose NegativeBinomial or Poisson, or Binomial where the largest count possible is known; for "
        "gray values divide by the largest possible, 255 for 8 bits."
    )
    inside: ClassVar[float] = 0.0

    def __init__(self, *, mask: bool = False) -> None:
        super().__init__()
        self.mask = mask

    def __call__(self, decoder_output: Float[Tensor, "*B R"]) -> Any:
        """The distribution of x, in which missing values count for nothing where the likelihood has a mask."""
        p = super().__call__(decoder_output)
        return self.marginal(p) if self.mask else p

    def forward(self, decoder_output: Float[Tensor, "*B R"]) -> Distribution:
        """The distribution of x.

        Args:
            decoder_output: (*B, P x num_params), any real numbers.

        Returns:
            Distribution with batch shape `*B` and event shape (P,).
        """
        raise NotImplementedError

    def marginal(self, p: Distribution) -> Distribution:
        """The same distribution, whose log density at x is that of the values of x that are not NaN.

        This is where values are independent given z. A likelihood whose values are not overrides it.

        Args:
            p: what `forward` returned.

        Raises:
            ValueError: the values are not independent, so that the marginal is not known here.
        """
        if not isinstance(p, Independent) or p.reinterpreted_batch_ndims != 1:
            raise ValueError(
                f"{self!r}: mask: expected values that are independent given z, `.to_event(1)`; got "
                f"{type(p).__name__}. Override `marginal`, or set mask=False."
            )
        return Marginal(p, self.inside)

    def conditional(self, p: Distribution, x: Float[Tensor, "B P"]) -> Distribution:
        """The distribution of the values of x that are NaN, given z and the values that are not.

        The same as `p` where values are independent given z. A likelihood that overrides `marginal` overrides this,
        too.

        Args:
            p: the likelihood at z, as calling it returned, batch shape (*S, B).
            x: data, (B, P); NaN is not observed.

        Returns:
            Distribution with the batch and event shape of `p`; at observed values it means nothing.

        Raises:
            ValueError: the values are not independent, so that the conditional is not known here.
        """
        if type(self).marginal is not Likelihood.marginal:
            raise ValueError(
                f"{self!r}: expected values that are independent given z, or a method `conditional`; got neither. "
                "Override `conditional` beside `marginal`."
            )
        return p

    def check(self, x: Tensor) -> None:
        """Refuse data outside the support.

        Args:
            x: data, any shape.

        Raises:
            ValueError: a value is outside the support, or not finite; NaN is accepted where the likelihood has a mask.
        """
        wrong = ~(self.support.check(x) & torch.isfinite(x))
        if self.mask:
            wrong &= ~torch.isnan(x)
        if wrong.any():
            where = tuple(torch.nonzero(wrong)[0].tolist())
            value = x[where].item()
            advice = _MASK if math.isnan(value) else self.counts_advice if _are_counts(x) else self.advice
            raise ValueError(f"{self!r}: expected {self.expected}; got x{list(where)} = {value:g}. {advice}")

    def on_floor(self, decoder_output: Float[Tensor, "*B R"]) -> Bool[Tensor, "*B P"]:
        """Which data values have a learned scale that sits on its floor, less than 1 % above it.

        Nothing but the floor then keeps the likelihood bounded, and log p(x) depends on the floor's value. Never so
        where no scale is learned.

        Args:
            decoder_output: (*B, P x num_params).
        """
        return torch.zeros_like(self.split(decoder_output)[0], dtype=torch.bool)

    def split(self, decoder_output: Float[Tensor, "*B R"]) -> tuple[Float[Tensor, "*B P"], ...]:
        """The `num_params` blocks of the decoder's output, each (*B, P).

        Raises:
            ValueError: the number of outputs is not a multiple of `num_params`.
        """
        return self.blocks(decoder_output).unbind(-2)

    def blocks(self, decoder_output: Float[Tensor, "*B R"]) -> Float[Tensor, "*B K P"]:
        """The same blocks as one tensor (*B, num_params, P).

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
        return decoder_output.unflatten(-1, (self.num_params, -1))

    def settings(self) -> list[str]:
        """What the constructor was told, or has been learned since, for the one line that shows the likelihood."""
        return []

    def extra_repr(self) -> str:
        """Its settings."""
        return ", ".join([*self.settings(), *(["mask=True"] if self.mask else [])])
