"""Mixtures of independent normals, with draws that are differentiable in everything."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from inference.families.family import Family, LocationScale
from inference.families.moments import loc_and_tril
from inference.families.noise import from_noise, noise_size
from inference.families.raw import LOG_SCALE, cholesky, confine, directions, raw_of, release
from inference.families.reading import family_of

# A component's distance from the common location is confined to 1000 common scales, its log scale relative to the
# common one to [-8, 8], and its log odds to [-12, 12].
_DISTANCE = 1e3
_LOG_RELATIVE = 8.0
_LOG_RANGE = 23.0

# Root mean square distance of the components at the cold start.
_SPREAD = 0.5


class MixtureOfGaussians(LocationScale):
    r"""Mixtures of independent normals.

    .. math::
        q(z) = \sum_c \pi_c \prod_d N(z_d; \mu_d + \sigma_d \delta_{cd}, (\sigma_d \tau_{cd})^2)

    :math:`\lambda = (\mu, r, \delta, \rho, l)` with common location and scale as in `MeanField`, for each component a
    distance and a log relative scale in each dimension, and its log odds (confined to 1000, 8 and 12). Components that
    coincide are the mean-field member, and stay together: a search goes elsewhere from the cold start alone, whose
    components are 0.5 apart from their common mean 0, with variances 1 in all. Draws are differentiable, also in the
    weights (the implicit derivative of the conditional distribution functions). K = 2 D + C (2 D + 1).

    Args:
        num_latents: D, size of the latent vector.
        num_components: C, components.

    Raises:
        ValueError: a size is not a positive integer.

    References:
        Graves (2016), Stochastic backpropagation through mixture density distributions. Figurnov, Mohamed & Mnih
        (2018), Implicit reparameterization gradients.

    Example:
        >>> family = MixtureOfGaussians(2, num_components=3)
        >>> family.num_params, family.num_noise
        (19, 3)
        >>> family(family.initial_params(1, like=torch.zeros(0))).variance.round(decimals=6)
        tensor([[1., 1.]])
    """

    def __init__(self, num_latents: int, *, num_components: int = 3) -> None:
        size, count = self._size("num_latents", num_latents), self._size("num_components", num_components)
        distance = directions(count, size)
        distance = distance - distance.mean(0)
        distance = distance * (_SPREAD / distance.square().mean(0).sqrt()) if count > 1 else 0 * distance
        relative = 0.5 * (1 - distance.square().mean(0)).log().expand(count, size)
        raw = [
            release(distance, _DISTANCE, what="start"),
            release(relative, _LOG_RELATIVE, what="start"),
            torch.zeros(count, dtype=distance.dtype),
        ]
        super().__init__(size, torch.cat([part.flatten() for part in raw]))
        self.num_components = count

    @property
    def num_noise(self) -> int:
        """R = D + 1: the last number chooses the component."""
        return self.num_latents + 1

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        size, count = self.num_latents, self.num_components
        loc, scale, rest = self._split(params)
        distance, relative, odds = rest.split([count * size, count * size, count], dim=-1)
        distance = confine(distance, _DISTANCE).unflatten(-1, (count, size))
        relative = confine(relative, _LOG_RELATIVE).unflatten(-1, (count, size))
        loc, scale = loc.unsqueeze(-2), scale.unsqueeze(-2)
        return DiagonalMixture(loc + scale * distance, scale * relative.exp(), confine(odds, LOG_SCALE))

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or has its means and variances with components that coincide."""
        self._check_event(q)
        if not isinstance(q, dist.MixtureOfDiagNormals) or q.locs.shape[-2] > self.num_components:
            loc, tril = self._moments(q)
            return self._row(loc, raw_of(tril.norm(dim=-1)), torch.zeros_like(self._start).to(loc))
        locs, scales, log_weights = q.locs, q.coord_scale, q.component_logits.log_softmax(-1)
        missing = self.num_components - locs.shape[-2]
        if missing:
            # The last component in equal parts.
            index = torch.arange(self.num_components, device=locs.device).clamp_max(locs.shape[-2] - 1)
            parts = torch.ones(self.num_components, dtype=locs.dtype, device=locs.device)
            parts[index == locs.shape[-2] - 1] = 1 + missing
            locs, scales = locs[..., index, :], scales[..., index, :]
            log_weights = log_weights[..., index] - parts.log()
        loc, scale = _mean_and_scale(locs, scales, log_weights.exp())
        distance = (locs - loc.unsqueeze(-2)) / scale.unsqueeze(-2)
        relative = (scales / scale.unsqueeze(-2)).log()
        # A weight below e^-23 of the largest is none, as a certain q(y | x) makes them.
        log_weights = torch.maximum(log_weights, log_weights.amax(-1, keepdim=True) - _LOG_RANGE)
        odds = log_weights - 0.5 * (log_weights.amax(-1, keepdim=True) + log_weights.amin(-1, keepdim=True))
        return self._row(
            loc,
            raw_of(scale),
            release(distance, _DISTANCE, what="distance of q's components").flatten(-2),
            release(relative, _LOG_RELATIVE, what="log relative scale of q's components").flatten(-2),
            release(odds, LOG_SCALE, what="log odds of q's components"),
        )

    def extra_repr(self) -> str:
        """Its size and components."""
        return f"{self.num_latents}, num_components={self.num_components}"


def _mean_and_scale(locs: Tensor, scales: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (*B, D) of a mixture."""
    weights = weights.unsqueeze(-1)
    mean = (weights * locs).sum(-2)
    return mean, (weights * (scales.square() + (locs - mean.unsqueeze(-2)).square())).sum(-2).sqrt()


class DiagonalMixture(dist.MixtureOfDiagNormals):
    """Pyro's mixture, for any D, any weights and components that coincide."""

    def __init__(self, locs: Float[Tensor, "*B C D"], coord_scale: Tensor, component_logits: Tensor) -> None:
        self.batch_mode = True
        self.locs = locs
        self.coord_scale = coord_scale
        self.component_logits = component_logits
        self.dim = locs.shape[-1]
        self.categorical = dist.Categorical(logits=component_logits, validate_args=False)
        self.probs = self.categorical.probs
        Distribution.__init__(self, locs.shape[:-2], locs.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean (*B, D)."""
        return _mean_and_scale(self.locs, self.coord_scale, self.probs)[0]

    @property
    def variance(self) -> Tensor:
        """Variances (*B, D)."""
        return _mean_and_scale(self.locs, self.coord_scale, self.probs)[1].square()

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiagonalMixture:
        """The same distribution with a larger batch."""
        parts = (self.locs, self.coord_scale, self.component_logits)
        dims = (2, 2, 1)
        return type(self)(
            *(part.expand(*batch_shape, *part.shape[part.dim() - d :]) for part, d in zip(parts, dims, strict=True))
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        return _log_density(self, value)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (Pyro's signature)
        """Draws, differentiable in locations, scales and weights."""
        shape = (*sample_shape, *self.batch_shape, self.dim + 1)
        return _draw(self, torch.randn(shape, dtype=self.locs.dtype, device=self.locs.device))


def _log_density(q: dist.MixtureOfDiagNormals, z: Tensor) -> Tensor:
    distance = (z.unsqueeze(-2) - q.locs) / q.coord_scale
    each = (-0.5 * (distance.square() + math.log(2 * math.pi)) - q.coord_scale.log()).sum(-1)
    return (q.component_logits.log_softmax(-1) + each).logsumexp(-1)


def _draw(q: dist.MixtureOfDiagNormals, noise: Float[Tensor, "S *B D+1"]) -> Float[Tensor, "S *B D"]:
    with torch.no_grad():
        # The normal distribution function makes the last number uniform.
        edges = q.component_logits.softmax(-1).cumsum(-1)[..., :-1]
        chosen = (torch.special.ndtr(noise[..., -1:]) > edges).sum(-1, keepdim=True).unsqueeze(-1)
        shape = (*noise.shape[:-1], *q.locs.shape[-2:])
        index = chosen.expand(*noise.shape[:-1], 1, q.locs.shape[-1])
        loc, scale = (part.expand(shape).gather(-2, index).squeeze(-2) for part in (q.locs, q.coord_scale))
        z = loc + scale * noise[..., :-1]
    leaves = (q.locs, q.coord_scale, q.component_logits)
    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
        return _differentiable(q, z)
    return z


def _differentiable(q: dist.MixtureOfDiagNormals, z: Float[Tensor, "S *B D"]) -> Float[Tensor, "S *B D"]:
    r"""The same z, with the derivative of a draw in the parameters.

    Held fixed are the uniform numbers F_d(z_d | z_<d), the conditional distribution functions. So
    :math:`dz = -J^{-1} \partial_\theta F`, with J the lower triangular matrix of derivatives of F in z.
    """
    distance = (z.unsqueeze(-2) - q.locs) / q.coord_scale  # (S, *B, C, D)
    log_density = -0.5 * (distance.square() + math.log(2 * math.pi)) - q.coord_scale.log()
    before = torch.nn.functional.pad(log_density.cumsum(-1)[..., :-1], (1, 0))
    # The weights of the components in the distribution of z_d given those before it.
    weights = (q.component_logits.log_softmax(-1).unsqueeze(-1) + before).softmax(-2)
    below = torch.special.ndtr(distance)
    functions = (weights * below).sum(-2)
    with torch.no_grad():
        density = (weights * log_density.exp()).sum(-2).clamp_min(torch.finfo(z.dtype).tiny)
        excess = weights * (below - functions.unsqueeze(-2))
        scores = -distance / q.coord_scale
        jacobian = torch.einsum("...cd,...ce->...de", excess, scores).tril(-1) / density.unsqueeze(-1)
    change = ((functions - functions.detach()) / density).unsqueeze(-1)
    change = torch.linalg.solve_triangular(jacobian, change, upper=False, unitriangular=True).squeeze(-1)
    return z - change


@from_noise.register
def _(q: dist.MixtureOfDiagNormals, noise: Tensor) -> tuple[Tensor, Tensor]:
    z = _draw(q, noise)
    return z, _log_density(q, z)


@noise_size.register
def _(q: dist.MixtureOfDiagNormals) -> int:
    return q.event_shape[0] + 1


@loc_and_tril.register
def _(q: dist.MixtureOfDiagNormals) -> tuple[Tensor, Tensor]:
    locs, scales = q.locs.double(), q.coord_scale.double()
    weights = q.component_logits.double().softmax(-1).unsqueeze(-1)
    loc = (weights * locs).sum(-2)
    root = weights.sqrt() * (locs - loc.unsqueeze(-2))
    covariance = root.mT @ root + torch.diag_embed((weights * scales.square()).sum(-2))
    return loc.to(q.locs.dtype), cholesky(covariance).to(q.locs.dtype)


@family_of.register
def _(q: dist.MixtureOfDiagNormals) -> Family:
    return MixtureOfGaussians(q.event_shape[0], num_components=q.locs.shape[-2])
