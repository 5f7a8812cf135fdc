"""The distribution of each coordinate of a distribution over vectors."""

from __future__ import annotations

from functools import singledispatch

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal

from inference.families.constrained import ConstrainedDistribution
from inference.families.householder import HouseholderNormal

__all__ = ["marginals"]


@singledispatch
def marginals(q: Distribution) -> Distribution:
    """The distribution of each coordinate: batch shape (*B, D), event shape ().

    Exact for vectors of independent numbers, normals, mixtures of independent normals, and any of these pushed onto a
    constrained support.

    Args:
        q: distribution with batch shape `*B` and event shape (D,).

    Raises:
        NotImplementedError: nobody has said what the marginals of such a distribution are.

    Example:
        >>> import torch
        >>> q = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 4.0]]))
        >>> marginals(q)
        Normal(loc: torch.Size([2]), scale: torch.Size([2]))
    """
    raise NotImplementedError(
        f"q: the marginals of a {type(q).__name__} have no density that is known. Register a rule for its type: "
        "@inference.families.marginals.register."
    )


@marginals.register
def _(q: Independent) -> Distribution:
    if q.reinterpreted_batch_ndims != 1 or q.base_dist.event_shape:
        raise NotImplementedError("q: expected numbers declared a vector by .to_event(1).")
    return q.base_dist


@marginals.register(MultivariateNormal)
@marginals.register(LowRankMultivariateNormal)
@marginals.register(HouseholderNormal)
def _(q: Distribution) -> Distribution:
    return dist.Normal(q.mean, q.stddev, validate_args=False)


@marginals.register
def _(q: dist.MixtureOfDiagNormals) -> Distribution:
    return mixture_marginals(q.component_logits, q.locs, q.coord_scale)


@marginals.register
def _(q: ConstrainedDistribution) -> Distribution:
    # Its bijection acts on each number by itself.
    return dist.TransformedDistribution(marginals(q.unconstrained), [q.transforms[0].onto], validate_args=False)


@marginals.register
def _(q: ExpandedDistribution) -> Distribution:
    return marginals(q.base_dist).expand(q.batch_shape + q.event_shape)


def mixture_marginals(
    logits: Float[Tensor, "*B C"], locs: Float[Tensor, "*B C D"], scales: Float[Tensor, "*B C D"]
) -> Distribution:
    """The marginals of a mixture of independent normals."""
    locs, scales = locs.mT, scales.mT
    logits = logits.unsqueeze(-2).expand(locs.shape)
    return dist.MixtureSameFamily(
        dist.Categorical(logits=logits, validate_args=False),
        dist.Normal(locs, scales, validate_args=False),
        validate_args=False,
    )
