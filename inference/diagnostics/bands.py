r"""Are ranks uniform? Bands that hold at every rank at once, and the p-value that goes with them, both exact.

Of N independent ranks, uniform on 0, ..., L, let :math:`k_i` be the number below i, i = 1, ..., L. The statistic is the
least probable of these counts,

.. math::
    \gamma = \min_i 2 \min\{P(K_i \le k_i), P(K_i \ge k_i)\}, \qquad K_i \sim \mathrm{Bin}(N, i / (L + 1))

and a band at level gamma holds every count whose two-sided tail is above gamma. The probability that all counts lie
within is found exactly: given their number, the counts of the L + 1 ranks are those of independent Poisson variables.

References:
    Säilynoja, Bürkner & Vehtari (2022), Graphical test for discrete uniformity and its applications in goodness-of-fit
    evaluation and multiple sample comparison.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["critical_level", "limits", "p_value", "tail_probabilities"]

# Tails that are equal by symmetry are computed by different sums.
_ULPS = 1 + 1e-9


def tail_probabilities(num_ranks: int, num_draws: int) -> Float[Tensor, "L N+1"]:
    """Twice the smaller tail of Bin(N, i / (L + 1)) at each count 0, ..., N, i = 1, ..., L; 1 at most.

    Args:
        num_ranks: N.
        num_draws: L.

    Example:
        >>> tail_probabilities(2, 1)
        tensor([[0.5000, 1.0000, 0.5000]], dtype=torch.float64)
    """
    count = torch.arange(num_ranks + 1, dtype=torch.float64)
    share = torch.arange(1, num_draws + 1, dtype=torch.float64).unsqueeze(-1) / (num_draws + 1)
    ways = math.lgamma(num_ranks + 1) - torch.lgamma(count + 1) - torch.lgamma(num_ranks - count + 1)
    mass = (ways + count * share.log() + (num_ranks - count) * torch.log1p(-share)).exp()
    above = mass.flip(-1).cumsum(-1).flip(-1)
    return (2 * torch.minimum(mass.cumsum(-1), above)).clamp_max(1)


def limits(tails: Float[Tensor, "L N+1"], level: float) -> tuple[Int[Tensor, " L"], Int[Tensor, " L"]]:
    """The least and the largest count whose tail is above `level`, at each i; the least above the largest: none is."""
    inside = tails > level
    lower = inside.int().argmax(-1)
    return lower, lower + inside.sum(-1) - 1


def p_value(ranks: Int[Tensor, " N"], tails: Float[Tensor, "L N+1"]) -> float:
    """The probability that uniform ranks have a count at least as improbable as the most improbable of these.

    Args:
        ranks: (N,) numbers from 0 to L.
        tails: what `tail_probabilities` gives for them.
    """
    counts = torch.bincount(ranks, minlength=len(tails) + 1).cumsum(0)[:-1]
    worst = float(tails.gather(-1, counts.unsqueeze(-1)).min())
    return 1 - _coverage(tails, worst * _ULPS)


def critical_level(tails: Float[Tensor, "L N+1"], alpha: float) -> float:
    """The largest pointwise level whose band all counts stay in with a probability of at least 1 - alpha.

    Args:
        tails: what `tail_probabilities` gives.
        alpha: probability that uniform ranks may leave the band.
    """
    # By Boole's inequality the first is small enough, and the second bounds the level at a single i.
    low, high = alpha / len(tails), alpha
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        if 1 - _coverage(tails, middle) <= alpha:
            low = middle
        else:
            high = middle
    return low


def _coverage(tails: Float[Tensor, "L N+1"], level: float) -> float:
    """The probability that all counts have tails above `level`."""
    num_draws, num_ranks = tails.shape[0], tails.shape[1] - 1
    rate = num_ranks / (num_draws + 1)
    # Beyond, a Poisson variable has no mass that a double could hold beside 1.
    steps = torch.arange(min(num_ranks, math.ceil(rate + 12 * math.sqrt(rate) + 40)) + 1, dtype=torch.float64)
    step = (steps * math.log(rate) - rate - torch.lgamma(steps + 1)).exp().numpy()
    lower, upper = (limit.tolist() for limit in limits(tails, level))
    mass, first = np.ones(1), 0  # Of the counts first, first + 1, ....
    for least, most in zip([*lower, num_ranks], [*upper, num_ranks], strict=True):
        mass = np.convolve(mass, step)
        skipped = max(least - first, 0)
        mass, first = mass[skipped : max(most - first + 1, 0)], first + skipped
        if not mass.size:
            return 0.0
    total = num_ranks * math.log(num_ranks) - num_ranks - math.lgamma(num_ranks + 1)
    return min(1.0, float(mass[0]) / math.exp(total))
