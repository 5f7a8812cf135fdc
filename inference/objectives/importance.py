"""Bounds made of several draws: importance-weighted and Renyi's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from inference.counts import is_number
from inference.families import from_noise
from inference.objectives.loss import Joint, Loss, along_path, surrogate

__all__ = ["IWAE", "DReG", "Renyi"]


@dataclass(frozen=True)
class IWAE(Loss):
    r"""Minus the importance-weighted bound.

    .. math::
        -L_k = -\log \frac1k \sum_i w_i, \qquad w_i = \frac{p(x, z_i)}{q(z_i)}

    Args:
        num_particles: k, draws; 1 is the ELBO, and more come closer to log p(x).

    References:
        Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders.

    Example:
        >>> import torch
        >>> IWAE(2).bound(torch.tensor([[1.0, 3.0]]).log())
        tensor([0.6931])
    """

    num_particles: int

    def bound(self, log_w: Float[Tensor, "G k *B"]) -> Float[Tensor, " G *B"]:
        """The log of the mean of each k weights."""
        return log_w.logsumexp(1) - math.log(log_w.shape[1])


@dataclass(frozen=True)
class DReG(IWAE):
    r"""Minus the importance-weighted bound, with the doubly reparametrised gradient in q's parameters.

    .. math::
        \nabla_\lambda \approx -\sum_i \left( \beta \tilde w_i^2 + (1 - \beta) \tilde w_i \right)
        \frac{\partial z_i}{\partial \lambda}^{\!\top} \nabla_z \log w_i, \qquad \tilde w_i = \frac{w_i}{\sum_j w_j}

    Its signal does not drown in noise as k grows, as that of `IWAE` does. The model's gradient is `IWAE`'s.

    Args:
        num_particles: k, draws; with 1 it is `StickingTheLanding`.

    References:
        Tucker, Lawson, Gu & Maddison (2019), Doubly reparameterized gradient estimators for Monte Carlo objectives.

    Example:
        >>> DReG(8)
        DReG(num_particles=8)
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
        log_w = surrogate(log_p(z), along_path(self, q, z, log_q, still), kl_weight)
        weights = self.grouped(log_w.detach()).softmax(1).flatten(0, 1).unsqueeze(-1)
        # Of the score of q, only the part that the weight of the KL multiplies was left out and comes back by the path.
        share = kl_weight * weights + (1 - kl_weight)
        if z.requires_grad:
            # Between z and q alone: the gradient in the model's parameters, a shared prior's too, has the weight once.
            z.register_hook(lambda grad: share * grad)
        return -self.mean(log_w)

    @property
    def keeping_score(self) -> Loss:
        """The importance-weighted bound's own gradient."""
        return IWAE(self.num_particles)


@dataclass(frozen=True)
class Renyi(Loss):
    r"""Minus the variational Renyi bound.

    .. math::
        -L_\alpha = -\frac{1}{1 - \alpha} \log \frac1k \sum_i w_i^{1 - \alpha}, \qquad w_i = \frac{p(x, z_i)}{q(z_i)}

    Alpha 0 is the importance-weighted bound; alpha towards 1 the ELBO. With negative alpha and enough draws it exceeds
    log p(x).

    Args:
        num_particles: k, draws.
        alpha: order of the divergence, any number but 1.

    Raises:
        ValueError: k is not a positive integer, or alpha is 1 or not finite.

    References:
        Li & Turner (2016), Renyi divergence variational inference.

    Example:
        >>> import torch
        >>> Renyi(2, alpha=0.5).bound(torch.tensor([[1.0, 9.0]]).log())
        tensor([1.3863])
    """

    num_particles: int
    alpha: float = field(kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what is no bound."""
        super().__post_init__()
        if not is_number(self.alpha) or self.alpha == 1 or not math.isfinite(self.alpha):
            raise ValueError(
                f"Renyi: alpha: expected a finite number other than 1; got {self.alpha!r}. At 1 it is PathwiseELBO."
            )

    def bound(self, log_w: Float[Tensor, "G k *B"]) -> Float[Tensor, " G *B"]:
        """The log of the power mean of each k weights."""
        power = 1 - self.alpha
        return ((power * log_w).logsumexp(1) - math.log(log_w.shape[1])) / power
