"""Draws made from standard normal noise."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from jaxtyping import Float
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)


@singledispatch
def noise_size(q: Distribution) -> int:
    """R, how many standard normal numbers `from_noise` makes one draw of.

    Args:
        q: distribution with event shape (D,).

    Example:
        >>> import pyro.distributions as dist
        >>> noise_size(dist.Normal(torch.zeros(5, 3), 1.0).to_event(1))
        3
    """
    return q.event_shape[0]


@noise_size.register(Independent)
@noise_size.register(TransformedDistribution)
def _(q: Independent | TransformedDistribution) -> int:
    # A base distribution over numbers: its last batch dimension is q's event dimension.
    return noise_size(q.base_dist) if len(q.base_dist.event_shape) else q.event_shape[0]


@noise_size.register
def _(q: LowRankMultivariateNormal) -> int:
    return q.event_shape[0] + q.cov_factor.shape[-1]


@singledispatch
def from_noise(
    q: Distribution, noise: Float[Tensor, "S *B R"]
) -> tuple[Float[Tensor, "S *B D"], Float[Tensor, " S *B"]]:
    """Draws of `q` made from standard normal noise, and log q at them, both differentiable in `q`'s parameters.

    Two distributions given the same noise are drawn with common random numbers. The density comes from the noise, not
    from inverting the draw, so a nearly singular covariance costs no digits.

    Args:
        q: distribution with batch shape `*B` and event shape (D,).
        noise: (S, *B, R) standard normal numbers, one vector a draw; R = `noise_size(q)`.

    Returns:
        The draws, and their log density in nats.

    Raises:
        NotImplementedError: nobody has said how to draw such a distribution from normal noise.
    """
    raise NotImplementedError(
        f"q: cannot draw a {type(q).__name__} from standard normal noise; expected a normal distribution, a mixture of "
        "diagonal normals or transforms of one. Register a rule for its type: @inference.families.from_noise.register."
    )


def log_normal(noise: Tensor) -> Tensor:
    """Log density of the standard normal distribution, number by number."""
    return -0.5 * (noise.square() + math.log(2 * math.pi))


@from_noise.register
def _(q: Normal, noise: Tensor) -> tuple[Tensor, Tensor]:
    return q.loc + q.scale * noise, log_normal(noise) - q.scale.log()


@from_noise.register
def _(q: Independent, noise: Tensor) -> tuple[Tensor, Tensor]:
    z, log_q = from_noise(q.base_dist, noise)
    return z, sum_rightmost(log_q, q.reinterpreted_batch_ndims)


@from_noise.register
def _(q: MultivariateNormal, noise: Tensor) -> tuple[Tensor, Tensor]:
    # With draws first it would be (S, B, D, D) products of single vectors; this is one of (B, D, D) with (B, D, S).
    z = q.loc + (q.scale_tril @ noise.movedim(0, -1)).movedim(-1, 0)
    return z, log_normal(noise).sum(-1) - q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@from_noise.register
def _(q: LowRankMultivariateNormal, noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""Draws mu + diag(s) (e + A u), with noise (e, u) and A = diag(1/s) F: nothing of size (D, D) is made.

    The quadratic form of log q is |e + A v|^2 + |u - v|^2 with v = (I + A'A)^-1 (u - A'e): no large numbers cancel.
    """
    size, rank = q.cov_factor.shape[-2:]
    own, common = noise.split([size, rank], dim=-1)
    scale = q.cov_diag.sqrt()
    odds = q.cov_factor / scale.unsqueeze(-1)
    tril = capacitance_tril(odds)
    z = q.loc + scale * (own + times(odds, common))
    excess = solve(tril, common - times(odds.mT, own))
    squares = (own + times(odds, excess)).square().sum(-1) + (common - excess).square().sum(-1)
    return z, -0.5 * squares - low_rank_log_volume(scale, tril)


def low_rank_log_volume(scale: Float[Tensor, "*B D"], tril: Float[Tensor, "*B R R"]) -> Float[Tensor, " *B"]:
    """Log of the normalising constant of a low-rank normal with diagonal scales and capacitance factor `tril`."""
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(scale.dtype)
    return scale.log().sum(-1) + log_det + 0.5 * scale.shape[-1] * math.log(2 * math.pi)


def capacitance_tril(odds: Float[Tensor, "*B D R"]) -> Float[Tensor, "*B R R"]:
    """Cholesky factor of I + A'A, computed in float64: in float32 large columns that nearly coincide lose the I."""
    wide = odds.double()
    return torch.linalg.cholesky(wide.mT @ wide + torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device))


def times(matrix: Float[Tensor, "*B I J"], vectors: Float[Tensor, "*S *B J"]) -> Float[Tensor, "*S *B I"]:
    """Matrix times vector, one matrix for all draws."""
    return torch.einsum("...ij,...j->...i", matrix, vectors)


def solve(tril: Float[Tensor, "*B R R"], vectors: Float[Tensor, "*S *B R"]) -> Float[Tensor, "*S *B R"]:
    """The solution of L L' x = v, found in L's dtype."""
    return torch.cholesky_solve(vectors.to(tril).unsqueeze(-1), tril).squeeze(-1).to(vectors.dtype)


@from_noise.register
def _(q: TransformedDistribution, noise: Tensor) -> tuple[Tensor, Tensor]:
    z, log_q = from_noise(q.base_dist, noise)
    for transform in q.transforms:
        if hasattr(transform, "push"):
            z, log_det = transform.push(z)
        else:
            previous, z = z, transform(z)
            log_det = transform.log_abs_det_jacobian(previous, z)
        log_q = log_q - sum_rightmost(log_det, max(log_det.dim() - log_q.dim(), 0))
    return z, log_q
