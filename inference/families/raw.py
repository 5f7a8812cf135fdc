"""Unconstrained numbers as scales, factors and directions that no real number can break, and back."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

# A log scale is confined to [-LOG_SCALE, LOG_SCALE] and an entry of a correlation factor to [-ODDS, ODDS], smoothly and
# with slope 1 at 0. No real row can then overflow a scale, underflow it to zero, or make a covariance singular, in
# float32 too.
LOG_SCALE = 12.0
ODDS = 1e3

# The least factor by which a planar or Sylvester layer scales a direction: its log determinant stays finite.
_LEAST = 1e-3


def confine(raw: Tensor, bound: float) -> Tensor:
    """The number in [-bound, bound], smoothly and with slope 1 at 0."""
    return bound * torch.tanh(raw / bound)


def confine_slope(raw: Tensor, bound: float) -> Tensor:
    """The derivative of `confine`, no smaller than 1e-3: at the bounds nothing else is left to divide by."""
    return (1 - torch.tanh(raw / bound).square()).clamp_min(1e-3)


def release(value: Tensor, bound: float, *, what: str) -> Tensor:
    """The inverse of `confine`.

    Raises:
        ValueError: a value is out of bounds.
    """
    ratio = value / bound
    # The bound itself is reached: there tanh is 1 up to round-off, which a scale and its logarithm add to.
    if not bool((ratio.abs() < 1 + 1e-4).all()):
        worst = float(value.abs().max())
        raise ValueError(
            f"{what}: expected magnitudes below {bound:g}; got {worst:.4g}. Rescale the latent variable, so that its "
            "posterior is neither that narrow nor that wide."
        )
    most = 1 - torch.finfo(value.dtype).eps
    return bound * torch.atanh(ratio.clamp(-most, most))


def scale_of(raw: Tensor) -> Tensor:
    """The scale of a raw log scale: in [e^-12, e^12]."""
    return confine(raw, LOG_SCALE).exp()


def raw_of(scale: Tensor) -> Tensor:
    """The raw log scale of a scale.

    Raises:
        ValueError: the scale is out of bounds.
    """
    return release(scale.log(), LOG_SCALE, what="log scale of q")


def unit(raw: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """The direction of a vector, whatever its length: a vector of norm 1, or 0 for the vector 0."""
    # Its largest entry scaled to 1, neither 1e38 nor 1e-38 squared is lost.
    largest = raw.detach().abs().amax(-1, keepdim=True)
    scaled = raw / torch.where(largest > 0, largest, 1)
    squares = scaled.square().sum(-1, keepdim=True)
    return scaled / torch.where(squares > 0, squares, 1).sqrt()


def stretch(amount: Tensor) -> Tensor:
    """A number above -1, whatever the amount: 0 at 0, increasing, and like the amount where that is large."""
    # softplus(0 + log(e - 1)) = 1.
    return (1 - _LEAST) * (torch.nn.functional.softplus(amount + math.log(math.e - 1)) - 1)


def directions(*shape: int, seed: int = 0) -> Tensor:
    """Fixed normal numbers, the same in every process: for starts from which no symmetry leads nowhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cholesky(covariance: Float[Tensor, "*B D D"]) -> Float[Tensor, "*B D D"]:
    """Lower Cholesky factor, computed in float64 on the scale of correlations, so that any positive scales will do."""
    wide = covariance.double()
    scale = wide.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    correlation = wide / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    jitter = 1e-12 * torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    return (scale.unsqueeze(-1) * torch.linalg.cholesky(correlation + jitter)).to(covariance.dtype)
