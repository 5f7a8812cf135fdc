"""The regularised horseshoe, as one distribution of unconstrained coordinates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.priors.base import Prior, Shape, check_number, check_scale, log_normal

__all__ = ["Horseshoe"]


class Horseshoe(Prior):
    r"""The regularised horseshoe: almost all coefficients shrink to 0, a few stay free.

    .. math::
        \beta_j = \epsilon_j \, \tau \tilde\lambda_j, \qquad
        \tilde\lambda_j^2 = \frac{c^2 \lambda_j^2}{c^2 + \tau^2 \lambda_j^2}, \qquad j = 1 \dots F

    .. math::
        \epsilon_j \sim N(0, 1), \quad \lambda_j \sim C^+(0, 1), \quad \tau \sim C^+(0, \tau_0), \quad
        c^2 \sim \mathrm{Inv\text{-}Gamma}(\nu / 2, \nu s^2 / 2)

    The latent vector is :math:`z = (\epsilon, \log \lambda, \log \tau, \log c^2)` and its density is the joint one, in
    closed form, with the Jacobians of the logarithms. D = 2 F + 2: a family has one such vector for each datapoint, and
    all of its numbers are real. The decoder reads :math:`\beta`, which is `features(z)`.

    Args:
        num_latents: F, number of coefficients beta.
        global_scale: tau_0, typical size of tau: the smaller, the fewer coefficients stay free.
        slab_scale: s, typical size of the coefficients that stay free.
        slab_df: nu, degrees of freedom of their tails, from 1 to 100.

    Attributes:
        num_latents: D = 2 F + 2.
        num_features: F.

    Raises:
        ValueError: the size is not a positive integer, or an option out of range.

    References:
        Piironen & Vehtari (2017), Sparsity information and regularization in the horseshoe and other shrinkage priors.

    Example:
        >>> prior = Horseshoe(8)
        >>> z = prior().sample((5,))
        >>> z.shape, prior.features(z).shape
        (torch.Size([5, 18]), torch.Size([5, 8]))
    """

    _like: Tensor
    _shown = ("global_scale", "slab_scale", "slab_df")

    def __init__(
        self, num_latents: int, *, global_scale: float = 1.0, slab_scale: float = 2.0, slab_df: float = 4.0
    ) -> None:
        super().__init__(num_latents)
        self.num_latents = 2 * self.num_features + 2
        self.global_scale = check_scale(self, "global_scale", global_scale)
        self.slab_scale = check_scale(self, "slab_scale", slab_scale)
        self.slab_df = check_number(self, "slab_df", slab_df, 1.0, 100.0, fix="The default is 4.")
        self.register_buffer("_like", torch.zeros(self.num_latents), persistent=False)

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        concentration = self.slab_df / 2
        return _HorseshoeCoordinates(
            self._like, math.log(self.global_scale), concentration, concentration * self.slab_scale**2
        )

    def features(self, z: Float[Tensor, "*B D"]) -> Float[Tensor, "*B F"]:
        """The coefficients beta.

        Args:
            z: latent vectors, (*B, D).
        """
        noise, log_local, log_global, log_slab = split(z)
        # 1 / (tau lambda~)^2 = 1 / (tau lambda)^2 + 1 / c^2, in logarithms.
        return noise * torch.exp(-0.5 * torch.logaddexp(-2 * (log_local + log_global), -log_slab))


def split(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The parts of z: epsilon (*B, F), log lambda (*B, F), log tau (*B, 1), log c^2 (*B, 1)."""
    size = (z.shape[-1] - 2) // 2
    noise, log_local, log_global, log_slab = z.split([size, size, 1, 1], dim=-1)
    return noise, log_local, log_global, log_slab


class _HorseshoeCoordinates(TorchDistribution):
    """The joint distribution of the coordinates z."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, like: Tensor, log_global_scale: float, concentration: float, rate: float) -> None:
        self._like = like
        self.log_global_scale = log_global_scale
        self.concentration = concentration
        self.rate = rate
        super().__init__(torch.Size(), like.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        noise, log_local, log_global, log_slab = split(value)
        constant = self.concentration * math.log(self.rate) - math.lgamma(self.concentration)
        log_p_slab = constant - self.concentration * log_slab - self.rate * torch.exp(-log_slab)
        return (
            (log_normal(noise) + _log_half_cauchy(log_local)).sum(-1)
            + _log_half_cauchy(log_global - self.log_global_scale).squeeze(-1)
            + log_p_slab.squeeze(-1)
        )

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        z = self._like.new_empty(self._extended_shape(torch.Size(sample_shape))).normal_()
        _, log_local, log_global, log_slab = split(z)
        # The ratio of two normals is Cauchy.
        for log_scale in (log_local, log_global):
            log_scale.copy_(_log_abs(log_scale) - _log_abs(torch.randn_like(log_scale)))
        log_global += self.log_global_scale
        gamma = torch._standard_gamma(torch.full_like(log_slab, self.concentration))
        log_slab.copy_(math.log(self.rate) - gamma.log())
        return z


def _log_half_cauchy(log_scale: Tensor) -> Tensor:
    """Log density of the logarithm of a half-Cauchy variable of scale 1: 1 / (pi cosh u)."""
    return math.log(2 / math.pi) - torch.logaddexp(log_scale, -log_scale)


def _log_abs(noise: Tensor) -> Tensor:
    return noise.abs().clamp_min(torch.finfo(noise.dtype).tiny).log()
