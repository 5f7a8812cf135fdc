"""What the distributions written here share: one number each, parameters of one shape, draws without gradients."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.likelihoods.shapes import NO_SHAPE, Shape

__all__ = ["Elementwise"]


class Elementwise(TorchDistribution):
    """A distribution of one number. A subclass writes `log_prob`, `mean` and `draw`.

    Args:
        *parameters: tensors that broadcast to the batch shape.
        **settings: what does not depend on the batch.

    Attributes:
        parameters: the tensors, all of the batch shape.
        settings: the rest.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, *parameters: Tensor, **settings: Any) -> None:
        self.parameters = torch.broadcast_tensors(*parameters)
        self.settings = settings
        super().__init__(self.parameters[0].shape, validate_args=False)

    def expand(self, batch_shape: Shape, _instance: Distribution | None = None) -> Self:
        """The same with another batch shape."""
        return type(self)(*(parameter.expand(batch_shape) for parameter in self.parameters), **self.settings)

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Draws, (*sample_shape, *batch_shape)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return self.draw(*(parameter.expand(shape) for parameter in self.parameters))

    def draw(self, *parameters: Tensor) -> Tensor:
        """One draw for each element of the parameters."""
        raise NotImplementedError
