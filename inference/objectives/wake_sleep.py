"""Wake-sleep: a guide trained towards the posterior, not towards a bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from inference.counts import is_number
from inference.densities import guide_distribution
from inference.families import from_noise
from inference.objectives.importance import IWAE
from inference.objectives.loss import Joint, log_prob_at, surrogate

__all__ = ["WakeSleep"]


@dataclass(frozen=True)
class WakeSleep(IWAE):
    r"""Reweighted wake-sleep, the weights normalised for each datapoint by itself.

    .. math::
        \text{wake } \theta &: -\log \frac1k \sum_i w_i, \qquad
        \text{wake } \phi : -\sum_i \tilde w_i \log q_\phi(z_i \mid x), \qquad z_i \sim q_\phi(\cdot \mid x) \\
        \text{sleep } \phi &: -\log q_\phi(z' \mid x'), \qquad (z', x') \sim p_\theta

    The model is trained by the first; the guide by `insomnia` times the second plus the rest times the third. Draws are
    not differentiated. The value is that of the first, minus the importance-weighted bound. For amortized inference
    alone: the guide is run on simulated datapoints.

    Args:
        num_particles: k, draws.
        insomnia: share of wake in the guide's loss, 0 to 1; 0 is the wake-sleep algorithm.

    Raises:
        ValueError: k is not a positive integer, or `insomnia` not a number from 0 to 1.

    References:
        Hinton, Dayan, Frey & Neal (1995), The wake-sleep algorithm for unsupervised neural networks.
        Bornschein & Bengio (2015), Reweighted wake-sleep.
        Le, Kosiorek, Siddharth, Teh & Wood (2019), Revisiting reweighted wake-sleep.

    Example:
        >>> WakeSleep(8, insomnia=0.5)
        WakeSleep(num_particles=8, insomnia=0.5)
    """

    insomnia: float = field(default=1.0, kw_only=True)

    amortized_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        super().__post_init__()
        if not (is_number(self.insomnia) and 0 <= self.insomnia <= 1):
            raise ValueError(f"WakeSleep: insomnia: expected a number from 0 to 1; got {self.insomnia!r}.")

    def __call__(
        self,
        log_p: Joint,
        q: Distribution,
        noise: Float[Tensor, "G*k B R"],
        *,
        kl_weight: float | Tensor = 1.0,
        still: Distribution | None = None,  # noqa: ARG002
    ) -> Float[Tensor, " B"]:
        """The two wake phases, as `Loss`.

        Raises:
            ValueError: q's density is known at its own draws alone.
        """
        with torch.no_grad():
            z, log_q = from_noise(q, noise)
        log_w = surrogate(log_p(z), log_q, kl_weight)
        loss = -self.mean(log_w)
        if self.insomnia:
            weights = self.grouped(log_w.detach()).softmax(1)
            loss = loss + self.insomnia * _gradient_of(
                -(weights * self.grouped(log_prob_at(self, q, z))).sum(1).mean(0)
            )
        return loss

    def sleep(self, log_p: Joint, guide: Callable[..., Any]) -> Float[Tensor, " B"]:
        """The sleep phase, one simulated pair for each datapoint: 0, with the gradient of its loss.

        Args:
            log_p: the model at a minibatch.
            guide: Pyro guide.

        Raises:
            ValueError: x cannot be simulated, or q's density is known at its own draws alone.
        """
        if self.insomnia == 1:
            return log_p.x.new_zeros(len(log_p.x))
        z, x = log_p.simulate()
        _, q = guide_distribution(guide, x, site=log_p.site)
        return (1 - self.insomnia) * _gradient_of(-log_prob_at(self, q, z))


def _gradient_of(loss: Tensor) -> Tensor:
    """0, with this gradient."""
    return loss - loss.detach()
