"""Levels without an order."""

from __future__ import annotations

from typing import ClassVar, Self

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vae.likelihoods.levels import Levels, _OnLevels, known_levels, level_of
from pyro_vae.likelihoods.shapes import NO_SHAPE, Shape

__all__ = ["Categorical"]


class Categorical(_OnLevels):
    r"""A free probability for each level, from logits.

    .. math::
        p(x \mid l) = \prod_p \frac{e^{l_{p k_p}}}{\sum_j e^{l_{pj}}}, \qquad x_p = k_p \, \mathrm{step}

    It knows no order of the levels: any distribution on them can be had, for L outputs of the decoder a data value.
    The decoder's first P outputs are the logits of level 0.

    Args:
        num_levels: L, the levels 0, step, ..., (L - 1) step.
        level_step: distance between levels, in the units of x.
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: there are fewer than 2 levels, or `level_step` is not positive.

    Example:
        >>> Categorical(5, 0.25)(torch.zeros(5 * 3)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    def __init__(self, num_levels: int, level_step: float, *, mask: bool = False) -> None:
        super().__init__(num_levels, level_step, mask=mask)
        self.num_params = self.num_levels

    @classmethod
    def from_context(
        cls, num_levels: int | None = None, level_step: float | None = None, *, mask: bool = False
    ) -> Self:
        """The likelihood of the data's levels.

        Args:
            num_levels: L, levels of the data, where they are known.
            level_step: distance between levels, in the units of x.
            mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

        Raises:
            ValueError: the data have no levels.
        """
        return cls(*known_levels(cls.__name__, num_levels, level_step), mask=mask)

    def forward(self, decoder_output: Float[Tensor, "*B R"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        return _CategoricalLevels(self.blocks(decoder_output).movedim(-2, -1), self.level_step).to_event(1)


class _CategoricalLevels(TorchDistribution):
    """A categorical distribution of x = level * step."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, logits: Tensor, step: float) -> None:
        self.levels, self.step = dist.Categorical(logits=logits, validate_args=False), step
        super().__init__(logits.shape[:-1], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return Levels(self.levels.logits.shape[-1], self.step)

    @property
    def mean(self) -> Tensor:
        probs = self.levels.probs
        return probs @ (self.step * torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device))

    def expand(self, batch_shape: Shape, _instance: Distribution | None = None) -> Self:
        logits = self.levels.logits
        return type(self)(logits.expand(torch.Size(batch_shape) + logits.shape[-1:]), self.step)

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        return self.step * self.levels.sample(torch.Size(sample_shape)).to(self.levels.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.levels.log_prob(level_of(value, self.step).long())
