"""Schedules of inverse temperatures for annealing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from inference.counts import is_number

__all__ = ["GeometricSchedule", "LinearSchedule", "Schedule", "SigmoidalSchedule"]


class Schedule(Protocol):
    """Where the path from the start to the posterior is looked at."""

    def __call__(self, num_temperatures: int, /) -> Float[Tensor, " T+1"]:
        """Inverse temperatures, increasing from 0 to 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class LinearSchedule:
    r"""Evenly spaced inverse temperatures, :math:`\beta_t = t / T`."""

    def __call__(self, num_temperatures: int) -> Float[Tensor, " T+1"]:
        """Inverse temperatures, increasing from 0 to 1."""
        return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class SigmoidalSchedule:
    r"""Inverse temperatures that are dense at both ends.

    .. math::
        \beta_t = \frac{\tilde\beta_t - \tilde\beta_0}{\tilde\beta_T - \tilde\beta_0}, \qquad
        \tilde\beta_t = \operatorname{logistic}\big(\delta (2 t / T - 1)\big)

    Attributes:
        delta: how dense.

    References:
        Grosse, Ghahramani & Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
    """

    delta: float = 4.0

    def __post_init__(self) -> None:
        """Refuse what does not increase."""
        if not (is_number(self.delta) and 0 < self.delta < math.inf):
            raise ValueError(f"delta: expected a positive number; got {self.delta!r}. Try 4.")

    def __call__(self, num_temperatures: int) -> Float[Tensor, " T+1"]:
        """Inverse temperatures, increasing from 0 to 1."""
        raw = torch.sigmoid(self.delta * torch.linspace(-1, 1, num_temperatures + 1, dtype=torch.float64))
        return ((raw - raw[0]) / (raw[-1] - raw[0])).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class GeometricSchedule:
    r"""Inverse temperatures that grow by a constant factor, :math:`\beta_t = \beta_1^{(T - t) / (T - 1)}`.

    Attributes:
        first: beta_1, the first above 0.
    """

    first: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what does not increase."""
        if not (is_number(self.first) and 0 < self.first < 1):
            raise ValueError(f"first: expected an inverse temperature in (0, 1); got {self.first!r}. Try 1e-3.")

    def __call__(self, num_temperatures: int) -> Float[Tensor, " T+1"]:
        """Inverse temperatures, increasing from 0 to 1."""
        # From the end backwards: of a single temperature that is 1, and nothing lies between.
        exponent = torch.linspace(0, 1, num_temperatures, dtype=torch.float64).flip(0)
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.first**exponent])
