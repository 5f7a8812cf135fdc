"""Have chains converged, how many independent draws are theirs worth, and does a curve of training still rise?"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["autocorrelated_ess", "nested_rhat", "still_rising"]

# A rise below this many nats matters to no gap; one below so many of its errors may be noise.
_LEAST_RISE, _ERRORS = 0.1, 3.0


def nested_rhat(values: Float[Tensor, "K M S *E"]) -> Float[Tensor, "*E"]:
    r"""Nested R-hat: have superchains, each of chains that started at one point, forgotten where they started?

    .. math::
        n\hat R = \sqrt{1 + \hat B / \hat W}, \qquad
        \hat B = \frac{1}{K - 1} \sum_k (\bar f_{k} - \bar f)^2, \qquad
        \hat W = \frac1K \sum_k \left[ \frac{1}{M - 1} \sum_m (\bar f_{mk} - \bar f_k)^2
        + \frac1M \sum_m \frac{1}{S - 1} \sum_s (f_{smk} - \bar f_{mk})^2 \right]

    Averaging over the M chains of a superchain leaves in B what the starting points still explain, so that many short
    chains can be judged. Of K stationary superchains it is about 1 + 1 / (2 M T), T the effective draws of one chain: a
    threshold of 1.01 asks for M T of at least 50.

    Args:
        values: (K, M, S, ...) K superchains of M chains of S draws; K at least 2.

    Returns:
        One number for each entry of the trailing dimensions; infinite where no chain has moved.

    References:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman (2024), Nested R-hat: assessing the convergence of
        Markov chain Monte Carlo when running many short chains.

    Example:
        >>> apart = torch.tensor([0.0, 1.0]).reshape(2, 1, 1) + torch.tensor([-0.5, 0.5]).reshape(1, 1, 2)
        >>> nested_rhat(apart)
        tensor(1.4142, dtype=torch.float64)
    """
    values = values.double()
    _, num_chains, num_draws = values.shape[:3]
    of_chain = values.mean(2)
    of_superchain = of_chain.mean(1)
    between = of_superchain.var(0)
    within = torch.zeros_like(between)
    if num_chains > 1:
        within = within + of_chain.var(1).mean(0)
    if num_draws > 1:
        within = within + values.var(2).mean((0, 1))
    # Nothing moved and everything agrees: nothing was learnt.
    return (1 + between / within).sqrt().nan_to_num(math.inf, math.inf)


def autocorrelated_ess(values: Float[Tensor, "C S *E"]) -> Float[Tensor, "*E"]:
    r"""Effective number of draws behind the mean of all chains, from their autocorrelations.

    .. math::
        \mathrm{ess} = \frac{C S}{\hat\tau}, \qquad
        \hat\tau = -1 + \frac{2}{\hat c_0} \sum_j (\hat c_{2j} + \hat c_{2j + 1}), \qquad
        \hat c_t = \frac{1}{C S} \sum_c \sum_{s = 1}^{S - t} (f_{cs} - \bar f)(f_{c, s + t} - \bar f)

    The sum of pairs ends where one is not positive (Geyer's initial positive sequence), and no pair counts for more
    than the one before it (his initial monotone sequence). Deviations are from the mean of all chains, not each from
    its own: chains that disagree lower the number, and of many short chains it is not biased by their length.

    Args:
        values: (C, S, ...) C chains of S draws, S at least 2.

    Returns:
        One number for each entry of the trailing dimensions, at most C S log10(C S); NaN where a value never changes.

    References:
        Geyer (1992), Practical Markov chain Monte Carlo.
        Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), Rank-normalization, folding, and localization.
        Agarwal & Vats (2022), Globally centered autocovariances in MCMC.
    """
    values = values.double()
    num_chains, num_draws = values.shape[:2]
    # Padded by as much again, so that a chain's end does not meet its beginning.
    spectrum = torch.fft.rfft(values - values.mean((0, 1)), n=2 * num_draws, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square().mean(0), n=2 * num_draws, dim=0)
    even, odd = (covariance[: num_draws // 2 * 2] / covariance[0]).unflatten(0, (-1, 2)).unbind(1)
    pairs = even + odd
    kept = (pairs > 0).cumprod(0).bool()
    sums = torch.where(kept, pairs.cummin(0).values, 0).sum(0)
    # Of the pair that ended the sum, its first lag still counts where it is positive by itself (as in Stan).
    ending = kept.sum(0, keepdim=True).clamp_max(len(pairs) - 1)
    last = torch.where(kept.all(0), 0, even.gather(0, ending).squeeze(0).clamp_min(0))
    total = num_chains * num_draws
    return total / (-1 + 2 * sums + last).clamp_min(1 / math.log10(total))


def still_rising(curve: Float[Tensor, " E"]) -> tuple[float, int] | None:
    r"""Does a curve with noise, one value an epoch, still rise at its end?

    The mean of the last tenth of the epochs is compared with that of the tenth before, w = max(E // 10, 2) epochs each:

    .. math::
        r = \bar v_{E - w + 1, \dots, E} - \bar v_{E - 2w + 1, \dots, E - w}, \qquad
        \mathrm{se} = \hat\sigma \sqrt{2 / w}, \qquad
        \hat\sigma = 1.4826 \operatorname{median} |\Delta^3 v_e| / \sqrt{20}

    It still rises where r exceeds 0.1 nats and three of its errors. The noise from epoch to epoch is read off third
    differences over the last max(4w, 10) epochs, which a smooth rise hardly touches, by their median, which a few leaps
    do not move; it is taken to be independent between epochs. Of flat curves with normal noise it calls rising fewer
    than 1 % where there are 50 epochs or more, 2 to 4 % where there are 5 to 20.

    Args:
        curve: (E,) nats.

    Returns:
        The rise, in nats, and over how many epochs; None where it does not rise, is not finite at its end, or has fewer
        than 5 epochs: too few to tell a rise from noise.

    Example:
        >>> rise, epochs = still_rising(torch.linspace(-10.0, 0.0, 101))
        >>> print(f"{rise:.2f} nats over {epochs} epochs")
        1.00 nats over 10 epochs
        >>> still_rising(torch.zeros(100)) is None
        True
    """
    curve = curve.double()
    if len(curve) < 5:
        return None
    width = max(len(curve) // 10, 2)
    recent = curve[-max(4 * width, 10) :]
    if not bool(recent.isfinite().all()):
        return None
    rise = float(recent[-width:].mean() - recent[-2 * width : -width].mean())
    # `quantile` of an even number is their middle; `median` would be the lower of the two.
    noise = 1.4826 * float(recent.diff(n=3).abs().quantile(0.5)) / math.sqrt(20)
    return (rise, width) if rise > max(_LEAST_RISE, _ERRORS * noise * math.sqrt(2 / width)) else None
