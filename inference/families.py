"""Variational families: one object that maps unconstrained parameters to a distribution.

A family never learns where its parameters came from: an encoder, a table with one row a datapoint, or a user's code.
"""

from __future__ import annotations

import math
from functools import singledispatch

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

__all__ = ["Family", "FullCovariance", "MeanField", "family_of", "from_noise"]

# A log scale is confined to [-LOG_SCALE, LOG_SCALE] and an entry of a correlation factor to [-ODDS, ODDS], smoothly and
# with slope 1 at 0. No real row can then overflow a scale, underflow it to zero, or make a covariance singular, in
# float32 too.
LOG_SCALE = 12.0
ODDS = 1e3


def _location_units(params: Tensor, size: int) -> Tensor:
    """One standard deviation of q, at most 1, for the locations that a row begins with; 1 for all else."""
    scale = _confine(params[..., size : 2 * size].detach(), LOG_SCALE).exp().clamp_max(1.0)
    return torch.cat([scale, torch.ones_like(params[..., size:])], dim=-1)


def _confine(raw: Tensor, bound: float) -> Tensor:
    return bound * torch.tanh(raw / bound)


def _release(value: Tensor, bound: float, *, what: str) -> Tensor:
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


class Family(nn.Module):
    """A set of distributions over (D,) vectors, indexed by unconstrained parameters.

    Subclasses say how `forward` maps rows of parameters to a distribution, and how `params_from` goes back.

    Args:
        num_latents: D, size of the latent vector.

    Attributes:
        num_latents: D.
        num_params: K, parameters a datapoint.
        has_log_prob: whether the density of points it did not draw itself can be evaluated.
    """

    num_params: int
    has_log_prob: bool = True

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        if isinstance(num_latents, bool) or not isinstance(num_latents, int) or num_latents < 1:
            raise ValueError(
                f"{type(self).__name__}: num_latents: expected a positive integer; got {num_latents!r}. Pass the size "
                "of z."
            )
        self.num_latents = num_latents

    @property
    def num_shared(self) -> int:
        """Number of weights the family owns, shared by all datapoints."""
        return sum(weight.numel() for weight in self.parameters())

    def __call__(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters: batch shape `*B`, event shape (D,).

        Raises:
            ValueError: `params` has not K entries in its last dimension.
        """
        if params.dim() == 0 or params.shape[-1] != self.num_params:
            raise ValueError(
                f"{self!r}: expected params of shape (..., {self.num_params}); got {tuple(params.shape)}. An encoder "
                f"for this family ends in family.num_params = {self.num_params} outputs."
            )
        return super().__call__(params)

    def initial_params(self, num_rows: int, *, like: Tensor) -> Float[Tensor, "N K"]:
        """Rows to start a cold search from: the standard normal distribution.

        Args:
            num_rows: N.
            like: tensor whose dtype and device the rows take.
        """
        return like.new_zeros(num_rows, self.num_params)

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or, where it does not contain `q`, has `q`'s moments.

        Of a distribution that is no kind of normal the means and variances are taken, and covariances of zero.

        Args:
            q: distribution with batch shape `*B` and event shape (D,).

        Raises:
            ValueError: `q` has another event shape, or scales that the family cannot represent.
            NotImplementedError: `q`'s moments are not known in closed form.
        """
        raise NotImplementedError

    def step_units(self, params: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """What a step of size 1 means for each parameter, at these parameters.

        Adam's steps have the size they are told, not one that fits the problem: around a posterior that is narrower
        than a step, a location would jitter for ever. A family with locations measures their steps in standard
        deviations of q.

        Args:
            params: (*B, K) rows.
        """
        return torch.ones_like(params)

    def extra_repr(self) -> str:
        """Its size."""
        return str(self.num_latents)

    def _moments(self, q: Distribution) -> tuple[Tensor, Tensor]:
        """Mean (*B, D) and lower Cholesky factor of the covariance (*B, D, D) of `q`."""
        if tuple(q.event_shape) != (self.num_latents,):
            raise ValueError(
                f"{self!r}: expected a distribution with event shape ({self.num_latents},); got batch shape "
                f"{tuple(q.batch_shape)} and event shape {tuple(q.event_shape)}. Declare the latent dimension with "
                ".to_event(1)."
            )
        return loc_and_tril(q)


class MeanField(Family):
    r"""Independent normals.

    .. math::
        q(z) = \prod_d N(z_d; \mu_d, \sigma_d^2), \qquad \lambda = (\mu, r), \quad \log \sigma = 12 \tanh(r / 12)

    so that r is the log scale where scales are moderate, and no real r breaks the distribution. K = 2 D.

    Args:
        num_latents: D, size of the latent vector.

    Example:
        >>> family = MeanField(3)
        >>> q = family(torch.zeros(5, family.num_params))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)
        self.num_params = 2 * num_latents

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        loc, raw = params.chunk(2, dim=-1)
        return dist.Normal(loc, _confine(raw, LOG_SCALE).exp(), validate_args=False).to_event(1)

    def step_units(self, params: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """One standard deviation of q for a location, at most 1; 1 for all else."""
        return _location_units(params, self.num_latents)

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or has its means and variances."""
        loc, tril = self._moments(q)
        scale = tril.norm(dim=-1)
        return torch.cat([loc, _release(scale.log(), LOG_SCALE, what="log scale of q")], dim=-1)


class FullCovariance(Family):
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

    Example:
        >>> family = FullCovariance(3)
        >>> family.num_params
        9
        >>> family(torch.zeros(9)).scale_tril.diagonal()
        tensor([1., 1., 1.])
    """

    _lower: Tensor

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents)
        self.num_params = 2 * num_latents + num_latents * (num_latents - 1) // 2
        self.register_buffer("_lower", torch.tril_indices(num_latents, num_latents, -1), persistent=False)

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        size = self.num_latents
        loc, raw, odds = params.split([size, size, self.num_params - 2 * size], dim=-1)
        rows, columns = self._lower
        factor = torch.eye(size, dtype=params.dtype, device=params.device).expand(*params.shape[:-1], size, size)
        factor = factor.clone()
        factor[..., rows, columns] = _confine(odds / math.sqrt(size), ODDS)
        scale_tril = _confine(raw, LOG_SCALE).exp().unsqueeze(-1) * nn.functional.normalize(factor, dim=-1)
        return dist.MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)

    def step_units(self, params: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """One standard deviation of q for a location, at most 1; 1 for all else."""
        return _location_units(params, self.num_latents)

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or has its mean and covariance."""
        loc, tril = self._moments(q)
        log_scale = tril.norm(dim=-1).log()
        odds = tril / tril.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        rows, columns = self._lower
        return torch.cat(
            [
                loc,
                _release(log_scale, LOG_SCALE, what="log scale of q"),
                _release(odds[..., rows, columns], ODDS, what="correlation factor of q") * math.sqrt(self.num_latents),
            ],
            dim=-1,
        )


@singledispatch
def loc_and_tril(q: Distribution) -> tuple[Tensor, Tensor]:
    """Mean (*B, D) and lower Cholesky factor of the covariance (*B, D, D) of a distribution over vectors."""
    return q.mean, torch.diag_embed(q.stddev)


@loc_and_tril.register
def _(q: MultivariateNormal) -> tuple[Tensor, Tensor]:
    return q.loc, q.scale_tril


@loc_and_tril.register
def _(q: LowRankMultivariateNormal) -> tuple[Tensor, Tensor]:
    return q.loc, q.scale_tril


@singledispatch
def family_of(q: Distribution) -> Family:
    """The family that a distribution over vectors is a member of.

    Args:
        q: distribution with event shape (D,), as a hand-written guide samples it.

    Raises:
        ValueError: the family cannot be read off the distribution.
    """
    raise ValueError(
        f"family: cannot be read off a {type(q).__name__} with event shape {tuple(q.event_shape)}; expected "
        "independent normals (Normal(...).to_event(1)) or a MultivariateNormal. Pass family= a family that contains it."
    )


@family_of.register
def _(q: Independent) -> Family:
    if isinstance(q.base_dist, Normal) and len(q.event_shape) == 1:
        return MeanField(q.event_shape[0])
    return family_of.dispatch(object)(q)


@family_of.register
def _(q: MultivariateNormal) -> Family:
    return FullCovariance(q.event_shape[0])


@singledispatch
def from_noise(
    q: Distribution, noise: Float[Tensor, "S *B D"]
) -> tuple[Float[Tensor, "S *B D"], Float[Tensor, " S *B"]]:
    """Draws of `q` made from standard normal noise, and log q at them, both differentiable in `q`'s parameters.

    Two distributions given the same noise are drawn with common random numbers. The density comes from the noise, not
    from inverting the draw, so a nearly singular covariance costs no digits.

    Args:
        q: distribution with batch shape `*B` and event shape (D,).
        noise: (S, *B, D) standard normal numbers, one vector a draw.

    Returns:
        The draws, and their log density in nats.

    Raises:
        NotImplementedError: nobody has said how to draw such a distribution from normal noise.
    """
    raise NotImplementedError(
        f"q: cannot draw a {type(q).__name__} from standard normal noise; expected a normal distribution or "
        "transforms of one. Register a rule for its type: @inference.families.from_noise.register."
    )


def _log_normal(noise: Tensor) -> Tensor:
    return -0.5 * (noise.square() + math.log(2 * math.pi))


@from_noise.register
def _(q: Normal, noise: Tensor) -> tuple[Tensor, Tensor]:
    return q.loc + q.scale * noise, _log_normal(noise) - q.scale.log()


@from_noise.register
def _(q: Independent, noise: Tensor) -> tuple[Tensor, Tensor]:
    z, log_q = from_noise(q.base_dist, noise)
    return z, sum_rightmost(log_q, q.reinterpreted_batch_ndims)


@from_noise.register(MultivariateNormal)
@from_noise.register(LowRankMultivariateNormal)
def _(q: Distribution, noise: Tensor) -> tuple[Tensor, Tensor]:
    loc, tril = loc_and_tril(q)
    # With draws first it would be (S, B, D, D) products of single vectors; this is one of (B, D, D) with (B, D, S).
    z = loc + (tril @ noise.movedim(0, -1)).movedim(-1, 0)
    return z, _log_normal(noise).sum(-1) - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@from_noise.register
def _(q: TransformedDistribution, noise: Tensor) -> tuple[Tensor, Tensor]:
    z, log_q = from_noise(q.base_dist, noise)
    for transform in q.transforms:
        previous, z = z, transform(z)
        log_det = transform.log_abs_det_jacobian(previous, z)
        log_q = log_q - sum_rightmost(log_det, max(log_det.dim() - log_q.dim(), 0))
    return z, log_q
