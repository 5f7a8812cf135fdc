"""Zeros and ones."""

from __future__ import annotations

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.likelihoods.base import Likelihood

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    r"""Zeros and ones, from logits.

    .. math::
        p(x \mid l) = \prod_p \sigma(l_p)^{x_p} \, \sigma(-l_p)^{1 - x_p}

    Args:
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Example:
        >>> import torch
        >>> Bernoulli()(torch.zeros(5, 64)).event_shape
        torch.Size([64])
    """

    base_measure = "counting"
    support = constraints.boolean
    expected = "zeros and ones"
    advice = (
        'Binarize gray values with load(..., binarize="fixed"), on the command line --data.binarize fixed, '
        "or choose another likelihood: Binomial for counts, DiscretizedLogistic or ContinuousBernoulli for gray "
        "values, Gaussian for real numbers."
    )
    counts_advice = (
        "For counts choose NegativeBinomial or Poisson, or Binomial where the largest count possible is known; "
        'binarize gray values with load(..., binarize="fixed"), on the command line --data.binarize fixed.'
    )

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (logits,) = self.split(decoder_output)
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
