"""Normals whose covariance is diagonal plus low rank."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal

from inference.families.family import Family, LocationScale
from inference.families.noise import capacitance_tril, low_rank_log_volume, solve, times
from inference.families.raw import ODDS, confine, directions, raw_of, release
from inference.families.reading import family_of

# Where a cold search starts: at 0 the gradient in the factor is 0.
_START = 0.1


class LowRank(LocationScale):
    r"""Normals whose covariance is diagonal plus low rank.

    .. math::
        q(z) = N(z; \mu, S C S), \qquad S = \mathrm{diag}(\sigma), \quad
        C_{ij} = (\delta_{ij} + a_i^\top a_j) / \sqrt{(1 + |a_i|^2)(1 + |a_j|^2)}

    :math:`\lambda = (\mu, r, a \sqrt R)`: means, log scales confined as in `MeanField`, and the (D, R) odds of the
    factor to the diagonal, row by row, each confined to 1000. The marginals are N(mu_d, sigma_d^2) whatever a is, and
    a = 0 is the mean-field member. A draw is made of D + R normal numbers, and nothing of size (D, D) is made.
    K = (2 + R) D.

    The cold start is not at a = 0, where the gradient in a vanishes, but near it: correlations are about 0.01.

    Args:
        num_latents: D, size of the latent vector.
        rank: R, columns of the factor; no more than D are used.

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> family = LowRank(5, rank=1)
        >>> family.num_params, family.num_noise
        (15, 6)
        >>> family(torch.zeros(15)).stddev
        tensor([1., 1., 1., 1., 1.])
    """

    def __init__(self, num_latents: int, *, rank: int = 2) -> None:
        size = self._size("num_latents", num_latents)
        num_columns = min(self._size("rank", rank), size)
        super().__init__(size, _START * directions(size * num_columns))
        self.rank = rank
        self.num_columns = num_columns

    @property
    def num_noise(self) -> int:
        """R: one for each dimension and each column of the factor."""
        return self.num_latents + self.num_columns

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        loc, scale, rest = self._split(params)
        odds = confine(rest / math.sqrt(self.num_columns), ODDS).unflatten(-1, (self.num_latents, self.num_columns))
        return LowRankNormal(loc, scale, odds)

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or has its means, variances and leading correlations.

        Of a normal with more columns, or a dense covariance, the leading eigenvectors of the correlation matrix are
        taken, each as far as its eigenvalue exceeds the mean of those left.
        """
        if isinstance(q, LowRankMultivariateNormal) and q.cov_factor.shape[-1] <= self.num_columns:
            self._check_event(q)
            loc, raw = q.loc, raw_of(q.variance.sqrt())
            odds = q.cov_factor / q.cov_diag.sqrt().unsqueeze(-1)
            odds = torch.nn.functional.pad(odds, (0, self.num_columns - odds.shape[-1]))
        else:
            loc, tril = self._moments(q)
            scale = tril.norm(dim=-1)
            raw = raw_of(scale)
            odds = _leading(tril / scale.unsqueeze(-1), self.num_columns)
        odds = release(odds, ODDS, what="correlation factor of q") * math.sqrt(self.num_columns)
        return self._row(loc, raw, odds.flatten(-2))

    def extra_repr(self) -> str:
        """Its size and rank."""
        return f"{self.num_latents}, rank={self.rank}"


def _leading(root: Float[Tensor, "*B D D"], num_columns: int) -> Float[Tensor, "*B D R"]:
    """Odds a (D, R) for which (I + a a') with unit marginals comes close to the correlation matrix C = root root'."""
    values, vectors = torch.linalg.eigh(root.double() @ root.double().mT)
    size = values.shape[-1]
    left = values[..., : max(size - num_columns, 1)].mean(-1, keepdim=True)
    excess = (values[..., size - num_columns :] - left).clamp_min(0)
    factor = vectors[..., size - num_columns :] * excess.sqrt().unsqueeze(-2)
    # What is left to the diagonal is positive: the average of the small eigenvalues is.
    own = (1 - factor.square().sum(-1, keepdim=True)).clamp_min(2 / ODDS**2)
    return (factor / own.sqrt()).to(root.dtype)


class LowRankNormal(dist.LowRankMultivariateNormal):  # type: ignore[name-defined, misc]
    """A low-rank normal with marginal scales (*B, D) and odds (*B, D, R) of the factor to the diagonal.

    Its density is stable in float32: torch's subtracts two numbers of the size of odds^2.
    """

    def __init__(self, loc: Tensor, scale: Tensor, odds: Tensor) -> None:
        shrink = (1 + odds.square().sum(-1)).rsqrt()
        self._odds = odds
        self._tril = capacitance_tril(odds)
        self.loc = loc
        self._diagonal = scale * shrink
        self.cov_diag = self._unbroadcasted_cov_diag = self._diagonal.square()
        self.cov_factor = self._unbroadcasted_cov_factor = self._diagonal.unsqueeze(-1) * odds
        self._capacitance_tril = self._tril.to(loc.dtype)
        Distribution.__init__(self, loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankNormal:
        """The same distribution with a larger batch."""
        new = LowRankNormal.__new__(type(self)) if _instance is None else _instance
        shape = torch.Size(batch_shape)
        for name, dims in {"loc": 1, "_diagonal": 1, "cov_diag": 1, "cov_factor": 2, "_odds": 2, "_tril": 2}.items():
            value = getattr(self, name)
            setattr(new, name, value.expand(*shape, *value.shape[value.dim() - dims :]))
        new._unbroadcasted_cov_diag, new._unbroadcasted_cov_factor = new.cov_diag, new.cov_factor
        new._capacitance_tril = new._tril.to(new.loc.dtype)
        Distribution.__init__(new, shape, self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        whitened = (value - self.loc) / self._diagonal
        common = solve(self._tril, times(self._odds.mT, whitened))
        squares = (whitened - times(self._odds, common)).square().sum(-1) + common.square().sum(-1)
        return -0.5 * squares - low_rank_log_volume(self._diagonal, self._tril)


@family_of.register
def _(q: LowRankMultivariateNormal) -> Family:
    return LowRank(q.event_shape[0], rank=q.cov_factor.shape[-1])
