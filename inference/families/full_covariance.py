"""Normals with a dense covariance."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from inference.families.family import Family, LocationScale
from inference.families.raw import LOG_SCALE, ODDS, confine, confine_slope, raw_of, release
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
        loc, scale, odds = self._split(params)
        factor = self._triangle(confine(odds / math.sqrt(self.num_latents), ODDS), diagonal=1.0)
        scale_tril = scale.unsqueeze(-1) * nn.functional.normalize(factor, dim=-1)
        return dist.MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)

    def natural_direction(
        self,
        params: Float[Tensor, "*B K"],
        grad: Float[Tensor, "*B K"],
        *,
        reach: float = math.inf,
        stretch: float | Tensor = math.inf,
    ) -> Tensor:
        r"""The natural gradient, by way of the Cholesky factor L of the covariance.

        A change L dB of L, dB lower triangular, has Fisher information 2 for each diagonal entry of dB and 1 for each
        below, so

        .. math::
            dB = \mathrm{tril}(L^\top G) \text{ with half the diagonal}, \qquad d\mu = L L^\top g_\mu

        where G is the gradient in L; the rows of L are in one-to-one correspondence with (log sigma, a), which takes g
        to G and L dB back. Nothing is solved and no matrix is inverted: two products of size (D, D).
        """
        size = self.num_latents
        _, scale, odds = self._split(params)
        loc_grad, raw_grad, odds_grad = grad.split([size, size, len(self._start)], dim=-1)
        raw_slope = confine_slope(params[..., size : 2 * size], LOG_SCALE)
        odds_slope = confine_slope(odds / math.sqrt(size), ODDS) / math.sqrt(size)
        ratio = self._triangle(confine(odds / math.sqrt(size), ODDS), diagonal=1.0)  # L_ij / L_ii
        own = scale / ratio.norm(dim=-1)  # L_ii
        tril = own.unsqueeze(-1) * ratio
        # From (log sigma, a) to L, transposed.
        slant = self._triangle(odds_grad / odds_slope, diagonal=0.0) / own.unsqueeze(-1)
        across = tril * (raw_grad / raw_slope / scale.square()).unsqueeze(-1) + slant
        across = across - torch.diag_embed((slant * ratio).sum(-1))
        inner = (tril.mT @ across).tril()
        inner = inner - 0.5 * torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
        # The geometric mean of the largest row sum and the largest column sum bounds the spectral norm.
        sums = inner.abs().sum(-1).amax(-1) * inner.abs().sum(-2).amax(-1)
        inner = inner * (torch.as_tensor(stretch).to(params) / sums.sqrt()[..., None]).clamp_max(1.0).unsqueeze(-1)
        change = tril @ inner
        # And from L back to (log sigma, a).
        log_scale = (tril * change).sum(-1) / scale.square()
        rows, columns = self._lower
        ratio_change = (change - ratio * change.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)) / own.unsqueeze(-1)
        loc = (tril @ (tril.mT @ loc_grad.unsqueeze(-1)).clamp(-reach, reach)).squeeze(-1)
        return torch.cat([loc, log_scale / raw_slope, ratio_change[..., rows, columns] / odds_slope], dim=-1)

    def _triangle(self, below: Float[Tensor, "*B K-2*D"], *, diagonal: float) -> Float[Tensor, "*B D D"]:
        """The lower triangular matrix with these entries below its diagonal, row by row."""
        size = self.num_latents
        rows, columns = self._lower
        eye = torch.eye(size, dtype=below.dtype, device=below.device)
        matrix = (diagonal * eye).expand(*below.shape[:-1], size, size).clone()
        matrix[..., rows, columns] = below
        return matrix

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
