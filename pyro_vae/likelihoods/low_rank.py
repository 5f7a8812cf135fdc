"""Real numbers whose noise is correlated between the values of a datapoint."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.scales import check_scale, confine, near_floor, scale_above
from pyro_vae.likelihoods.shapes import NO_SHAPE, Shape
from pyro_vae.networks import check_size

__all__ = ["GaussianLowRank"]

# A loading is at most this many independent scales: the r x r system of the Woodbury identity is then positive definite
# in double precision, whatever the decoder says.
_LOADING = 1e4


class GaussianLowRank(Likelihood):
    r"""Real numbers with a full covariance for each datapoint, low rank plus diagonal, from the decoder.

    .. math::
        p(x \mid m, r, f) = N(x; m, F F^\top + \mathrm{diag}(s^2)), \qquad
        s_p = \mathrm{floor} + \log(1 + e^{r_p}), \qquad
        F_{pk} = 10^4 s_p \tanh\left(\frac{f_{pk}}{10^4 s_p}\right)

    F is f where loadings are below thousands of independent scales. The decoder's outputs are P means m, P numbers r,
    and one block of f for each of the K columns of F. Densities come from the Woodbury identity, in double precision:
    O(P K^2) a datapoint. With a mask, the rows of F that belong to missing values are left out, which is the exact
    marginal.

    Args:
        rank: K, columns of F.
        floor: what an independent scale s_p cannot fall below, in the units of x; without one the likelihood of data
            that can be fitted exactly is unbounded.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: `rank` is not a positive integer, or `floor` not positive.

    References:
        Dorta et al., Structured Uncertainty Prediction Networks, 2018, https://arxiv.org/abs/1802.07079 (a sparse
        precision in place of the low-rank covariance).

    Example:
        >>> GaussianLowRank(rank=3)(torch.zeros(7, 5 * 64)).event_shape
        torch.Size([64])
    """

    base_measure = "lebesgue"
    support = constraints.real
    expected = "finite real numbers"
    advice = "Drop or fill the rows with infinite values."

    def __init__(self, *, rank: int = 2, floor: float = 1e-2, mask: bool = False) -> None:
        super().__init__(mask=mask)
        self.rank = check_size("GaussianLowRank", "rank", rank)
        self.num_params = 2 + self.rank
        self.floor = check_scale("GaussianLowRank", "floor", floor)

    def forward(self, decoder_output: Float[Tensor, "*B R"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        blocks = self.blocks(decoder_output)
        loc, scale = blocks[..., 0, :], scale_above(self.floor, blocks[..., 1, :])
        loadings = confine(blocks[..., 2:, :] / scale.unsqueeze(-2), _LOADING).movedim(-2, -1)
        return _LowRankNormal(loc, loadings, scale, marginal=self.mask)

    def marginal(self, p: Distribution) -> Distribution:
        """The same distribution: `forward` has seen to missing values."""
        return p

    def conditional(self, p: Distribution, x: Float[Tensor, "B P"]) -> Distribution:
        """The distribution of the values of x that are NaN: what the others say of the shared noise is known."""
        return p.given(x)  # type: ignore[attr-defined]

    def on_floor(self, decoder_output: Float[Tensor, "*B R"]) -> Bool[Tensor, "*B P"]:
        """Which independent scales are less than 1 % above the floor."""
        return near_floor(self.floor, scale_above(self.floor, self.blocks(decoder_output)[..., 1, :]))

    def settings(self) -> list[str]:
        """Its rank and its floor."""
        return [f"rank={self.rank}", f"floor={self.floor:g}"]


class _LowRankNormal(TorchDistribution):
    """x = loc + scale (loadings g + e), with g and e standard normal.

    Pyro's own factorises I + A'A in single precision, which fails at loadings A that a decoder can reach, and knows no
    missing values.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "*B P"],
        loadings: Float[Tensor, "*B P K"],
        scale: Float[Tensor, "*B P"],
        *,
        marginal: bool,
    ) -> None:
        self.loc, self.loadings, self.scale, self._marginal = loc, loadings, scale, marginal
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * (1 + self.loadings.square().sum(-1))

    @property
    def covariance_matrix(self) -> Tensor:
        factor = self.scale.unsqueeze(-1) * self.loadings
        return factor @ factor.mT + torch.diag_embed(self.scale.square())

    def expand(self, batch_shape: Shape, _instance: Distribution | None = None) -> Self:
        batch_shape = torch.Size(batch_shape)
        return type(self)(
            self.loc.expand(batch_shape + self.event_shape),
            self.loadings.expand(batch_shape + self.loadings.shape[-2:]),
            self.scale.expand(batch_shape + self.event_shape),
            marginal=self._marginal,
        )

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        shared = torch.randn(*shape[:-1], self.loadings.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        own = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * ((self.loadings @ shared.unsqueeze(-1)).squeeze(-1) + own)

    def given(self, value: Tensor) -> Self:
        """The distribution given the values that are not NaN: of those that are NaN it is exact."""
        _, _, shared, cholesky = self._shared(value)
        identity = torch.eye(cholesky.shape[-1], dtype=cholesky.dtype, device=cholesky.device)
        # g given what is observed is normal, with precision C C': a root of its covariance is the inverse of C'.
        root = torch.linalg.solve_triangular(cholesky.mT, identity.expand_as(cholesky), upper=True)
        loc = self.loc + (self.scale.double() * (self.loadings.double() @ shared).squeeze(-1)).to(self.loc.dtype)
        loadings = (self.loadings.double() @ root).to(self.loc.dtype)
        return type(self)(loc, loadings, self.scale.expand(loc.shape), marginal=self._marginal)

    def log_prob(self, value: Tensor) -> Tensor:
        missing, own, shared, cholesky = self._shared(value)
        # The least sum of squares over g and e that gives the residual; unlike the identity's difference, it does not
        # cancel.
        distance = own.square().sum(-1) + shared.square().sum((-2, -1))
        log_scale = torch.where(missing, 0.0, self.scale.log() + math.log(2 * math.pi) / 2).double().sum(-1)
        log_det = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (-distance / 2 - log_scale - log_det).to(self.loc.dtype)

    def _shared(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which values are missing, the residual's own part, the mean of g given it, and the root of g's precision."""
        missing = torch.isnan(value) & self._marginal
        residual = torch.where(missing, 0.0, (torch.where(missing, self.loc, value) - self.loc) / self.scale).double()
        loadings = self.loadings.double()
        if self._marginal:
            loadings = torch.where(missing.unsqueeze(-1), 0.0, loadings)
        capacitance = loadings.mT @ loadings
        capacitance = capacitance + torch.eye(capacitance.shape[-1], dtype=capacitance.dtype, device=capacitance.device)
        # Positive definite by construction: no need to wait for the device to say so.
        cholesky, _ = torch.linalg.cholesky_ex(capacitance)
        shared = torch.cholesky_solve(loadings.mT @ residual.unsqueeze(-1), cholesky)
        own = residual - (loadings @ shared).squeeze(-1)
        return missing, own, shared, cholesky
