"""Mixtures over whole latent vectors, for the priors that are one."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, constraints

from inference.families import Family, marginals, mixture_marginals
from pyro_vae.priors.base import Shape


class _Mixture(TorchDistribution):
    """Components with batch shape (C,) and event shape (D,), and their log weights."""

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, log_weights: Tensor, components: Distribution) -> None:
        self.log_weights = log_weights
        self.components = components
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.components.support  # type: ignore[return-value]

    @property
    def mean(self) -> Tensor:
        return self.log_weights.exp() @ self.components.mean

    @property
    def variance(self) -> Tensor:
        spread = (self.components.mean - self.mean).square()
        return self.log_weights.exp() @ (self.components.variance + spread)

    def log_prob(self, value: Tensor) -> Tensor:
        log_p = torch.logsumexp(self.log_weights + self._component_log_probs(value), dim=-1)
        return log_p.to(value.dtype)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            which = Categorical(logits=self.log_weights, validate_args=False).sample(torch.Size(sample_shape))
            return self._draw(which)

    def _component_log_probs(self, value: Tensor) -> Tensor:
        """(*B, C)."""
        raise NotImplementedError

    def _draw(self, which: Tensor) -> Tensor:
        """One draw (*B, D) of each of the components with these indices (*B,)."""
        raise NotImplementedError


class NormalMixture(_Mixture):
    """A mixture of diagonal normals, whose density costs two matrix products and no (*B, C, D) tensor.

    Args:
        log_weights: (C,) normalised.
        components: normals with batch shape (C,) and event shape (D,).
    """

    def __init__(self, log_weights: Tensor, components: Independent) -> None:
        super().__init__(log_weights, components)
        self.loc, self.scale = components.base_dist.loc, components.base_dist.scale

    def _component_log_probs(self, value: Tensor) -> Tensor:
        # The square is expanded, which cancels digits where scales are small beside the distances of the means: in
        # float32 that would cost whole nats. The product is a small part of a step, so float64 is affordable.
        centre = self.loc.detach().mean(0).double()
        z, loc, scale = value.double() - centre, self.loc.double() - centre, self.scale.double()
        precision = scale.pow(-2)
        exponents = torch.nn.functional.linear(
            torch.cat([z.square(), z], dim=-1),
            torch.cat([-0.5 * precision, loc * precision], dim=-1),
            -0.5 * (loc.square() * precision).sum(-1),
        )
        log_scales = scale.log().sum(-1) + 0.5 * math.log(2 * math.pi) * self.event_shape[0]
        # A square is not negative, whatever rounding says; and what float32 cannot hold carries no weight.
        return exponents.clamp(-1e30, 0).to(value.dtype) - log_scales.to(value.dtype)

    def _draw(self, which: Tensor) -> Tensor:
        return torch.normal(self.loc[which], self.scale[which])


@marginals.register
def _(q: NormalMixture) -> Distribution:
    return mixture_marginals(q.log_weights, q.loc, q.scale)


class FamilyMixture(_Mixture):
    """A mixture of the members of any variational family, by broadcasting: its density makes (*B, C, D) tensors.

    Args:
        log_weights: (C,) normalised.
        family: the family.
        params: (C, K) one row a component.
    """

    def __init__(self, log_weights: Tensor, family: Family, params: Tensor) -> None:
        super().__init__(log_weights, family(params))
        self.family, self.params = family, params

    def _component_log_probs(self, value: Tensor) -> Tensor:
        return self.components.log_prob(value.unsqueeze(-2))

    def _draw(self, which: Tensor) -> Tensor:
        return self.family(self.params[which]).sample()


def mixture(log_weights: Tensor, family: Family, params: Tensor) -> Distribution:
    """The mixture of a family's members at these rows, in the cheapest form.

    Args:
        log_weights: (C,) normalised.
        family: variational family.
        params: (C, K) one row a component.
    """
    components = family(params)
    if (
        isinstance(components, Independent)
        and isinstance(components.base_dist, Normal)
        and components.reinterpreted_batch_ndims == 1
    ):
        return NormalMixture(log_weights, components)
    return FamilyMixture(log_weights, family, params)
