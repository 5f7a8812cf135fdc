"""What a loss is: minus a bound on log p(x), for each datapoint by itself, and an estimator of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from inference.counts import require_count
from inference.densities import Densities, densities, prior_alone
from inference.families import from_noise
from inference.simulation import Layout, draw_pairs, read_layout

__all__ = ["Joint", "Loss", "along_path", "log_prob_at", "surrogate"]


@dataclass(frozen=True)
class Joint:
    """A model at a minibatch: log p(x, z) as a function of z.

    Args:
        model: Pyro model.
        x: (B, P) datapoints.
        site: name of the latent site.
        layout: where the observed sites stand in x; looked for where it is asked for and not given.
    """

    model: Callable[..., Any]
    x: Float[Tensor, "B P"]
    site: str
    layout: Layout | None = None

    def __call__(self, z: Float[Tensor, "S B D"]) -> Densities:
        """The two terms of log p(x, z), each (S, B)."""
        return densities(self.model, self.x, z, site=self.site)

    def prior(self) -> Distribution:
        """The prior of z: batch shape (B,), event shape (D,)."""
        return prior_alone(self.model, self.x, site=self.site)

    def simulate(self) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P"]]:
        """As many pairs (z, x) drawn from the model as there are datapoints."""
        layout = self.layout or read_layout(self.model, self.x, site=self.site)
        return draw_pairs(self.model, self.x, layout, site=self.site)


@dataclass(frozen=True)
class Loss:
    r"""Minus a bound on log p(x), for each datapoint by itself.

    One value of the bound is made of k independent draws of q. While the weight :math:`\beta` of the KL is below 1, the
    weights of those draws are

    .. math::
        w = p(x \mid z) \left( p(z) / q(z) \right)^\beta

    a surrogate, on which training runs and which no engine reports.

    Subclasses define `bound`, and where the gradient is not that of the bound on reparametrised draws, `__call__`.

    Args:
        num_particles: k, draws that one value of the bound is made of.

    Attributes:
        is_elbo: whether minus the loss estimates the true ELBO while the weight of the KL is 1.
        amortized_only: whether it asks for a guide that can be run on other datapoints.

    Raises:
        ValueError: k is not a positive integer.
    """

    num_particles: int = 1

    is_elbo: ClassVar[bool] = False
    amortized_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        require_count(f"{type(self).__name__}: num_particles", self.num_particles, hint="Try 8.")

    def __call__(
        self,
        log_p: Joint,
        q: Distribution,
        noise: Float[Tensor, "G*k B R"],
        *,
        kl_weight: float | Tensor = 1.0,
        still: Distribution | None = None,
    ) -> Float[Tensor, " B"]:
        """The loss of each datapoint, nats; its gradient is this estimator's.

        Args:
            log_p: the model at these datapoints.
            q: batch shape (B,), event shape (D,).
            noise: standard normal, k draws in a row for each of G values, of which the mean is taken. Draws of one
                value must be independent; two values may mirror each other.
            kl_weight: weight of the whole KL, log q(z) - log p(z).
            still: q with its parameters detached, where there is such a copy.
        """
        z, log_q = from_noise(q, noise)
        return -self.mean(surrogate(log_p(z), log_q, kl_weight))

    def bound(self, log_w: Float[Tensor, "G k *B"]) -> Float[Tensor, " G *B"]:
        """Values of the bound.

        Args:
            log_w: log weights log p(x, z) - log q(z), k independent draws for each of G values, nats.
        """
        raise NotImplementedError(f"loss: expected one with a bound, such as IWAE(8); {type(self).__name__} has none.")

    def mean(self, log_w: Float[Tensor, "G*k B"]) -> Float[Tensor, " B"]:
        """The mean of the bound's values, k draws in a row for each."""
        return self.bound(self.grouped(log_w)).mean(0)

    def grouped(self, draws: Float[Tensor, " G*k *B"]) -> Float[Tensor, "G k *B"]:
        """The draws of each value."""
        return draws.unflatten(0, (-1, self.num_particles))

    @property
    def keeping_score(self) -> Loss:
        """A loss of the same value whose gradient counts all of q: for parameters that move more than q alone."""
        return self


def surrogate(terms: Densities, log_q: Tensor, kl_weight: float | Tensor) -> Float[Tensor, "S B"]:
    """Log weights of draws, the KL weighted: the true ones where its weight is 1."""
    return terms.log_likelihood + kl_weight * (terms.log_prior - log_q)


def along_path(
    loss: Loss, q: Distribution, z: Float[Tensor, "S B D"], log_q: Float[Tensor, "S B"], still: Distribution | None
) -> Float[Tensor, "S B"]:
    """The value `log_q`, with the gradient of log q(z) through z alone: the score of q is left out.

    Without a copy of q that stands still, the score is the gradient at z held still, and is subtracted. So what shares
    parameters with q, as a prior that is made from the guide does, keeps its own gradient.
    """
    if still is None:
        score = log_prob_at(loss, q, z.detach())
        path = log_prob_at(loss, q, z) - (score - score.detach())
    else:
        path = log_prob_at(loss, still, z)
    return log_q.detach() + (path - path.detach())


def log_prob_at(loss: Loss, q: Distribution, z: Float[Tensor, "*S B D"]) -> Float[Tensor, "*S B"]:
    """The density log q(z), for a loss that cannot do without.

    Raises:
        ValueError: q's density is known at its own draws alone.
    """
    try:
        return q.log_prob(z)
    except NotImplementedError as error:
        name = repr(getattr(q, "family", type(q).__name__))
        raise ValueError(
            f"loss: {type(loss).__name__} needs log q(z) as a function of z; got {name}, whose density is known at its "
            "own draws alone. Take PathwiseELBO or IWAE, or a family with has_log_prob."
        ) from error
