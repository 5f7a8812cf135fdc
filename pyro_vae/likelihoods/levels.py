"""Data on equally spaced levels: 8-bit images, digits, ratings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.scales import check_scale
from pyro_vae.networks import check_size

__all__ = ["Levels", "known_levels", "level_of"]


class _OnLevels(Likelihood):
    """A likelihood of the levels 0, step, ..., (L - 1) step."""

    base_measure = "counting"
    advice = (
        "Keep the data on the levels they came on, neither rescaled nor with noise added; for real numbers choose "
        "Gaussian."
    )
    counts_advice = (
        "Raise num_levels to the number of levels possible, or for counts choose NegativeBinomial or Poisson, which "
        "have no largest."
    )

    def __init__(self, num_levels: int, level_step: float, *, mask: bool) -> None:
        super().__init__(mask=mask)
        name = type(self).__name__
        self.num_levels = check_size(name, "num_levels", num_levels)
        if num_levels == 1:
            raise ValueError(f"{name}: num_levels: expected at least 2 levels; got 1. Drop values that never vary.")
        self.level_step = check_scale(name, "level_step", level_step)
        self.support = Levels(self.num_levels, self.level_step)
        self.expected = f"levels 0, {self.level_step:g}, ..., {(self.num_levels - 1) * self.level_step:g}"

    def settings(self) -> list[str]:
        """Its levels."""
        return [str(self.num_levels), f"{self.level_step:.6g}"]


class Levels(constraints.Constraint):
    """The levels 0, step, ..., (L - 1) step, to within rounding.

    Args:
        num_levels: L.
        step: distance between levels.
    """

    def __init__(self, num_levels: int, step: float) -> None:
        self.num_levels, self.step = num_levels, step
        # "Discrete" is what can be kept in integers; gray values from 0 to 1 cannot.
        self.is_discrete = float(step).is_integer()
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Which values are levels."""
        exact = value / self.step
        level = exact.round()
        tolerance = 1e-3 + 4 * self.num_levels * torch.finfo(value.dtype).eps if value.is_floating_point() else 1e-3
        return ((exact - level).abs() <= tolerance) & (level >= 0) & (level < self.num_levels)


def level_of(value: Tensor, step: float) -> Tensor:
    """The level of each value, counted from 0, as a floating point number."""
    return torch.round(value / step)


def known_levels(owner: str, num_levels: int | None, level_step: float | None) -> tuple[Any, Any]:
    """The levels that the context knows.

    Raises:
        ValueError: it knows none.
    """
    if num_levels is None or level_step is None:
        raise ValueError(
            f"{owner}: num_levels, level_step: expected data on levels, such as 8-bit images or digits; got data that "
            "has none that are known. Choose Gaussian for real numbers, ContinuousBernoulli for numbers from 0 to 1."
        )
    return num_levels, level_step
