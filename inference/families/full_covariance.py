"""Normals with a dense covariance."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from inference.families.family import Family, LocationScale
from inference.families.raw import ODDS, confine, raw_of, release
from inference.families.reading import family_of


class FullCovariance(LocationScale):
    r"""Normals with a dense covariance.

    .. math::
        q(z) = N(z; \mu, S C C^\top S), \qquad S = \mathrm{diag}(\sigma), \quad
        C_{ij} = a_{ij} / \sqrt{1 + \textstyle\sum_{k<i} a_{ik}^2}, \; a_{ii} = 1

    :math:`\lambda = (\mu, r, a \sqrt D)`: means, log scales confined as in `MeanField`, and the strictly lower triangle
    of the correlation factor C, row by row (confined to 1000 in the same way), whose rows have unit norm. The marginals
    are therefore N(mu_d, sigma_d^2) whatever a is, a = 0 is the mean-field member, and every real row gives a positive
    definite covariance. The factor sqrt(D) lets a step of one size fit all parameters: a whole row of C then moves by
    about as much as a mean. K = 2 D + D (D - 1) / 2.

    Args:
        num_latents: D, size of the latent vector.

    Raises:
        ValueError: D is not a positive integer.

    Example:
        >>> family = FullCovariance(3)
        >>> family.num_params
        9
        >>> family(torch.zeros(9)).scale_tril.diagonal()
        tensor([1., 1., 1.])
    """

    _lower: Tensor

    def __init__(self, num_latents: int) -> None:
        size = self._size("num_latents", num_latents)
        super().__init__(size, torch.zeros(size * (size - 1) // 2))
        self.register_buffer("_lower", torch.tril_indices(size, size, -1), persistent=False)

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        size = self.num_latents
        loc, scale, odds = self._split(params)
        rows, columns = self._lower
        factor = torch.eye(size, dtype=params.dtype, device=params.device).expand(*params.shape[:-1], size, size)
        factor = factor.clone()
        factor[..., rows, columns] = confine(odds / math.sqrt(size), ODDS)
        scale_tril = scale.unsqueeze(-1) * nn.functional.normalize(factor, dim=-1)
        return dist.MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or has its mean and covariance."""
        loc, tril = self._moments(q)
        raw = raw_of(tril.norm(dim=-1))
        odds = tril / tril.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        rows, columns = self._lower
        odds = release(odds[..., rows, columns], ODDS, what="correlation factor of q") * math.sqrt(self.num_latents)
        return self._row(loc, raw, odds)


@family_of.register
def _(q: MultivariateNormal) -> Family:
    return FullCovariance(q.event_shape[0])
