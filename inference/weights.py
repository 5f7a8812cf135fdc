"""Importance weights: log-mean-exp, effective sample size, tail index, standard errors. Draws come first: (S, N)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Weighed", "ess", "log_mean_exp", "mean_and_se", "pareto_k", "weigh"]

# Fewer draws show no tail: it would hold fewer than 5.
LEAST_FOR_TAIL = 25


class Weighed(NamedTuple):
    """What independent weights of mean p(x) say of log p(x), for each datapoint.

    Attributes:
        value: (N,) log of the mean weight, nats.
        se: (N,) its standard error, nats.
        bias: (N,) estimated expectation of `value` less log p(x), nats.
        ess: (N,) effective number of draws.
        pareto_k: (N,) tail index; NaN of fewer than 25 draws.
        halves: (2, N) `value` of the first half of the draws, and of the second.
        halves_se: (2, N) their standard errors.
    """

    value: Float[Tensor, " N"]
    se: Float[Tensor, " N"]
    bias: Float[Tensor, " N"]
    ess: Float[Tensor, " N"]
    pareto_k: Float[Tensor, " N"]
    halves: Float[Tensor, "2 N"]
    halves_se: Float[Tensor, "2 N"]


def weigh(log_w: Float[Tensor, "S N"]) -> Weighed:
    r"""Log of the mean weight, with all that says how far to trust it.

    The bias is the delta method's,

    .. math::
        E[\log \hat p] - \log p \approx -\frac{\mathrm{Var}(w)}{2 S p^2} \approx -\frac{\mathrm{se}^2}{2}

    Args:
        log_w: (S, N) log weights, nats.

    Example:
        >>> weigh(torch.zeros(100, 3)).value
        tensor([0., 0., 0.], dtype=torch.float64)
    """
    value, se = log_mean_exp(log_w)
    tail = pareto_k(log_w) if len(log_w) >= LEAST_FOR_TAIL else torch.full_like(value, math.nan)
    half = len(log_w) // 2
    first, second = log_mean_exp(log_w[:half]), log_mean_exp(log_w[half:])
    halves, halves_se = (torch.stack(pair) for pair in zip(first, second, strict=True))
    return Weighed(value, se, -0.5 * se.square(), ess(log_w), tail, halves, halves_se)


def log_mean_exp(log_w: Float[Tensor, "S N"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    r"""The logarithm of the mean weight, and its standard error.

    .. math::
        \log \hat p = \log \frac1S \sum_s w_s, \qquad
        \mathrm{se} = \sqrt{\frac{1}{S (S - 1)} \sum_s (w_s / \hat p - 1)^2}

    The error is the delta method's: meaningful where the weights have a variance (tail index below 0.5).

    Args:
        log_w: (S, N) log importance weights, nats.

    Returns:
        The value and its error, each (N,), nats; the error of a single draw is NaN.

    Example:
        >>> log_mean_exp(torch.tensor([[0.0], [3.0]]).log())
        (tensor([0.4055], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    top, apart = _from_largest(log_w)
    value = apart.logsumexp(0) - math.log(len(log_w))
    return top + value, _standard_error((apart - value).exp() - 1)


def _from_largest(log_w: Float[Tensor, "S N"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "S N"]]:
    """The largest log weight of each datapoint, and all of them less it: small numbers, whose sums keep their digits.

    Where the largest is infinite or NaN, nothing is taken off.
    """
    log_w = log_w.double()
    top = log_w.amax(0)
    top = torch.where(top.isfinite(), top, 0.0)
    return top, log_w - top


def _require_log_weights(log_w: object, *, least: int) -> None:
    if not isinstance(log_w, Tensor):
        raise TypeError(f"log_w: expected a tensor (S, N); got {type(log_w).__name__}. Try torch.as_tensor.")
    if log_w.dim() != 2 or log_w.is_complex():
        raise ValueError(f"log_w: expected real numbers (S, N), draws first; got {log_w.dtype}, {tuple(log_w.shape)}.")
    if len(log_w) < least:
        what = f"at least {least} draws to see a tail" if least > 1 else "at least one draw"
        raise ValueError(f"log_w: expected {what}; got {len(log_w)}. Draw more.")


def mean_and_se(draws: Float[Tensor, "S N"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The mean of independent draws and its standard error, each (N,); the error of a single draw is NaN."""
    draws = draws.double()
    mean = draws.mean(0)
    return mean, _standard_error(draws - mean)


def _standard_error(deviations: Float[Tensor, "S N"]) -> Float[Tensor, " N"]:
    num_draws = len(deviations)
    return (deviations.square().sum(0) / (num_draws * (num_draws - 1))).sqrt()


def ess(log_w: Float[Tensor, "S N"]) -> Float[Tensor, " N"]:
    r"""Effective number of draws behind a weighted mean.

    .. math::
        \mathrm{ess} = \frac{(\sum_s w_s)^2}{\sum_s w_s^2}

    Args:
        log_w: (S, N) log importance weights, nats.

    Returns:
        (N,) between 1 and S; NaN where no weight is positive, or one is infinite.

    Raises:
        ValueError: there is no draw, or `log_w` is not (S, N).

    References:
        Kong (1992), A note on importance sampling using standardized weights.

    Example:
        >>> ess(torch.tensor([[0.0], [0.0], [-torch.inf]])).round(decimals=3)
        tensor([2.], dtype=torch.float64)
    """
    _require_log_weights(log_w, least=1)
    _, apart = _from_largest(log_w)
    return (2 * apart.logsumexp(0) - (2 * apart).logsumexp(0)).exp()


def pareto_k(log_w: Float[Tensor, "S N"]) -> Float[Tensor, " N"]:
    r"""Tail index of the importance weights of each datapoint.

    The largest :math:`M = \min(S / 5, 3 \sqrt S)` weights of a datapoint, less the largest of the others, are fitted
    by a generalised Pareto distribution; its shape k says how many moments the weights have (fewer than 1/k). Above 0.5
    the standard error of their mean is unreliable, above 0.7 the mean itself.

    Args:
        log_w: (S, N) log importance weights, nats; S at least 25.

    Returns:
        (N,) tail indices; NaN where all weights of the tail are equal, as under an exact posterior: there is no tail to
        speak of.

    Raises:
        ValueError: fewer than 25 draws: the tail would hold fewer than 5.

    References:
        Zhang & Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution.
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling.
    """
    _require_log_weights(log_w, least=LEAST_FOR_TAIL)
    num_draws = len(log_w)
    log_w = log_w.double()
    size = min(num_draws // 5, math.ceil(3 * math.sqrt(num_draws)))
    top = (log_w - log_w.amax(0)).topk(size + 1, dim=0).values.flip(0)
    excess = (top[1:].exp() - top[0].exp()).clamp_min(torch.finfo(torch.float64).tiny)
    # Round-off of the densities, not a tail: float32 log weights of a few hundred nats are known to about 1e-4.
    has_tail = top[-1] - top[0] > 1e-4
    return torch.where(has_tail, _pareto_shape(excess), math.nan)


def _pareto_shape(x: Float[Tensor, "M N"]) -> Float[Tensor, " N"]:
    """Zhang & Stephens' posterior mean of the shape, x sorted upwards, shrunk to 0.5 as if by ten draws."""
    size = len(x)
    num_grid = 30 + int(math.sqrt(size))
    steps = 1 - (num_grid / (torch.arange(1, num_grid + 1, dtype=x.dtype, device=x.device) - 0.5)).sqrt()
    quartile = x[int(size / 4 + 0.5) - 1]
    theta = 1 / x[-1] + steps[:, None] / (3 * quartile)  # (G, N)
    # One grid value at a time: (G, M, N) would be large.
    shape = torch.stack([torch.log1p(-row * x).mean(0) for row in theta])
    log_likelihood = size * ((-theta / shape).log() - shape - 1)
    weight = log_likelihood.nan_to_num(-math.inf).softmax(0)
    best = (theta * weight).sum(0)
    k = torch.log1p(-best * x).mean(0)
    return (k * size + 0.5 * 10) / (size + 10)
