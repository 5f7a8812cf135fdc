"""The evidence lower bound, under estimators of its gradient that differ in variance and in what they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from inference.families import from_noise
from inference.objectives.loss import Joint, Loss, along_path, log_prob_at, surrogate

__all__ = ["AnalyticKL", "PathwiseELBO", "ScoreFunctionELBO", "StickingTheLanding"]


@dataclass(frozen=True)
class PathwiseELBO(Loss):
    r"""Minus the ELBO, differentiated along the path of reparametrised draws.

    .. math::
        -L = -\frac1k \sum_i \left[ \log p(x \mid z_i) + \beta (\log p(z_i) - \log q(z_i)) \right], \qquad
        z_i = z(\epsilon_i; \lambda)

    Args:
        num_particles: k, draws.

    References:
        Kingma & Welling (2014), Auto-encoding variational Bayes.
        Rezende, Mohamed & Wierstra (2014), Stochastic backpropagation.

    Example:
        >>> PathwiseELBO().bound(torch.tensor([[1.0, 3.0]]))
        tensor([2.])
    """

    is_elbo: ClassVar[bool] = True

    def bound(self, log_w: Float[Tensor, "G k *B"]) -> Float[Tensor, " G *B"]:
        """The mean of each k log weights."""
        return log_w.mean(1)


@dataclass(frozen=True)
class StickingTheLanding(PathwiseELBO):
    r"""Minus the ELBO; the gradient in q's parameters leaves out the score of q, whose mean is zero.

    .. math::
        \nabla_\lambda \approx -\frac1k \sum_i \frac{\partial z_i}{\partial \lambda}^{\!\top} \nabla_z
        \left[ \log p(x \mid z_i) + \beta (\log p(z_i) - \log q(z_i)) \right]

    At q = posterior it vanishes draw by draw. The model's gradient is `PathwiseELBO`'s.

    Args:
        num_particles: k, draws.

    References:
        Roeder, Wu & Duvenaud (2017), Sticking the landing.

    Example:
        >>> StickingTheLanding()
        StickingTheLanding(num_particles=1)
    """

    def __call__(
        self,
        log_p: Joint,
        q: Distribution,
        noise: Float[Tensor, "G*k B R"],
        *,
        kl_weight: float | Tensor = 1.0,
        still: Distribution | None = None,
    ) -> Float[Tensor, " B"]:
        """As `Loss`.

        Raises:
            ValueError: q's density is known at its own draws alone.
        """
        z, log_q = from_noise(q, noise)
        return -self.mean(surrogate(log_p(z), along_path(self, q, z, log_q, still), kl_weight))

    @property
    def keeping_score(self) -> Loss:
        """The pathwise gradient."""
        return PathwiseELBO(self.num_particles)


@dataclass(frozen=True)
class ScoreFunctionELBO(PathwiseELBO):
    r"""Minus the ELBO; the gradient in q's parameters is the score of q times how good each draw was.

    .. math::
        \nabla_\lambda \approx -\frac1k \sum_i (f_i - b_i) \nabla_\lambda \log q_\lambda(z_i), \qquad
        f = \log p(x \mid z) + \beta (\log p(z) - \log q(z)), \quad b_i = \frac{1}{k - 1} \sum_{j \ne i} f_j

    The draws are not differentiated, so the model need not be differentiable in z. The baseline of a draw is the mean
    of the datapoint's other draws: they are independent of it, so the gradient stays unbiased. The model's gradient, a
    prior that shares weights with the guide included, is that of log p(x, z) at the draws.

    Args:
        num_particles: k, draws, each other's baseline; 1: no baseline.

    References:
        Ranganath, Gerrish & Blei (2014), Black box variational inference.
        Mnih & Rezende (2016), Variational inference for Monte Carlo objectives.
        Kool, van Hoof & Welling (2019), Buy 4 REINFORCE samples, get a baseline for free!

    Example:
        >>> ScoreFunctionELBO().num_particles
        4
    """

    num_particles: int = 4

    def __call__(
        self,
        log_p: Joint,
        q: Distribution,
        noise: Float[Tensor, "G*k B R"],
        *,
        kl_weight: float | Tensor = 1.0,
        still: Distribution | None = None,  # noqa: ARG002
    ) -> Float[Tensor, " B"]:
        """As `Loss`.

        Raises:
            ValueError: q's density is known at its own draws alone.
        """
        with torch.no_grad():
            z, log_q = from_noise(q, noise)
        log_w = surrogate(log_p(z), log_q, kl_weight)
        score = log_prob_at(self, q, z)
        return -self.mean(log_w + self._advantage(log_w.detach()) * (score - score.detach()))

    def _advantage(self, signal: Float[Tensor, "G*k B"]) -> Float[Tensor, "G*k B"]:
        """Every draw's signal less the mean of the others of its value."""
        if self.num_particles == 1:
            return signal
        draws = self.grouped(signal)
        others = self.num_particles / (self.num_particles - 1)
        return (others * (draws - draws.mean(1, keepdim=True))).flatten(0, 1)


@dataclass(frozen=True)
class AnalyticKL(PathwiseELBO):
    r"""Minus the ELBO, its KL in closed form: only the likelihood is averaged over draws.

    .. math::
        -L = -\frac1k \sum_i \log p(x \mid z_i) + \beta \, \mathrm{KL}(q \,\|\, p)

    Args:
        num_particles: k, draws.

    References:
        Kingma & Welling (2014), Auto-encoding variational Bayes.

    Example:
        >>> AnalyticKL(2)
        AnalyticKL(num_particles=2)
    """

    def __call__(
        self,
        log_p: Joint,
        q: Distribution,
        noise: Float[Tensor, "G*k B R"],
        *,
        kl_weight: float | Tensor = 1.0,
        still: Distribution | None = None,  # noqa: ARG002
    ) -> Float[Tensor, " B"]:
        """As `Loss`.

        Raises:
            ValueError: nobody has registered a closed form for this pair of distributions.
        """
        z, _ = from_noise(q, noise)
        return kl_weight * self._kl(q, log_p.prior()) - self.mean(log_p(z).log_likelihood)

    def _kl(self, q: Distribution, prior: Distribution) -> Float[Tensor, " B"]:
        try:
            return kl_divergence(q, prior)
        except NotImplementedError as error:
            raise ValueError(
                f"loss: AnalyticKL needs KL(q || p) in closed form; there is none of {_named(q)} from the prior "
                f"{_named(prior)}. Register one with torch.distributions.kl.register_kl, or take PathwiseELBO."
            ) from error


def _named(distribution: Distribution) -> str:
    base = getattr(distribution, "base_dist", None)
    return type(distribution).__name__ + (f" of {_named(base)}" if base is not None else "")
