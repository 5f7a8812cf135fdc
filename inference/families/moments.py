"""The first two moments of a distribution over vectors."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal

from inference.families.noise import from_noise, noise_size
from inference.families.raw import cholesky

# Draws, in antithetic pairs, that stand in for moments without a closed form.
NUM_DRAWS = 2048


@singledispatch
def loc_and_tril(q: Distribution) -> tuple[Float[Tensor, "*B D"], Float[Tensor, "*B D D"]]:
    """Mean (*B, D) and lower Cholesky factor of the covariance (*B, D, D) of a distribution over vectors.

    Exact for normals, mixtures of them and whatever knows its mean and standard deviation (then with covariances of
    zero); of flows the moments of 2048 draws, always made of the same noise.

    Args:
        q: distribution with batch shape `*B` and event shape (D,).

    Raises:
        NotImplementedError: `q`'s moments are not known in closed form, nor can it be drawn from noise.
    """
    try:
        return q.mean, torch.diag_embed(q.stddev)
    except NotImplementedError:
        return _moments_of_draws(q)


@loc_and_tril.register
def _(q: MultivariateNormal) -> tuple[Tensor, Tensor]:
    return q.loc, q.scale_tril


@loc_and_tril.register
def _(q: LowRankMultivariateNormal) -> tuple[Tensor, Tensor]:
    # In float64: 1 is lost in float32 when a factor of 1e4 times the diagonal is squared and added to it.
    scale = q.cov_diag.double().sqrt().unsqueeze(-1)
    odds = q.cov_factor.double() / scale
    identity = torch.eye(odds.shape[-2], dtype=odds.dtype, device=odds.device)
    return q.loc, (scale * torch.linalg.cholesky(odds @ odds.mT + identity)).to(q.loc.dtype)


@torch.no_grad()
def _moments_of_draws(q: Distribution) -> tuple[Tensor, Tensor]:
    like = _tensor_of(q)
    shape = (*q.batch_shape, noise_size(q))
    generator = torch.Generator().manual_seed(0)
    # One noise for all of the batch: a datapoint's moments do not depend on those beside it.
    noise = torch.randn(NUM_DRAWS // 2, noise_size(q), generator=generator, dtype=torch.float64).to(like)
    noise = torch.cat([noise, -noise]).reshape(NUM_DRAWS, *[1] * len(q.batch_shape), -1)
    # As many draws at once as fit in memory.
    size = max(2, 2**24 // max(1, math.prod(shape)))
    z = [from_noise(q, part.expand(len(part), *shape))[0] for part in noise.split(size)]
    # In units in which no square overflows.
    units = torch.stack([part.double().abs().amax(0) for part in z]).amax(0).clamp_min(torch.finfo(like.dtype).tiny)
    loc = torch.stack([(part / units).sum(0) for part in z]).sum(0) / NUM_DRAWS
    apart = [part / units - loc for part in z]
    covariance = torch.stack([torch.einsum("s...d,s...e->...de", part, part) for part in apart]).sum(0)
    return (units * loc).to(like), (units.unsqueeze(-1) * cholesky(covariance / NUM_DRAWS)).to(like)


def _tensor_of(q: Distribution) -> Tensor:
    """A tensor that has q's dtype and device."""
    while hasattr(q, "base_dist"):
        q = q.base_dist
    known = [value for value in vars(q).values() if isinstance(value, Tensor) and value.is_floating_point()]
    if not known:
        raise NotImplementedError(
            f"q: the moments of a {type(q).__name__} are not known in closed form, nor what dtype to draw it in. "
            "Register a rule for its type: @inference.families.loc_and_tril.register."
        )
    return known[0]
