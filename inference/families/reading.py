"""The family that a distribution is a member of."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING

from torch.distributions import Distribution

if TYPE_CHECKING:
    from inference.families.family import Family


@singledispatch
def family_of(q: Distribution) -> Family:
    """The family that a distribution over vectors is a member of.

    Args:
        q: distribution with event shape (D,), as a hand-written guide samples it.

    Raises:
        ValueError: the family cannot be read off the distribution.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> family_of(dist.Normal(torch.zeros(5, 3), 1.0).to_event(1))
        MeanField(3)
    """
    raise ValueError(
        f"family: cannot be read off a {type(q).__name__} with event shape {tuple(q.event_shape)}; expected "
        "independent normals (Normal(...).to_event(1)), a MultivariateNormal, a LowRankMultivariateNormal, a "
        "MixtureOfDiagNormals, or what a family of this package made. Pass family= a family that contains it."
    )
