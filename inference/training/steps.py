"""Optimisers and step-size schedules, as values that a record can hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma & Ba 2015), one fused optimiser over all parameters.

    Attributes:
        lr: step size.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment, in units of a gradient.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse what divides by zero."""
        if not self.eps > 0:
            raise ValueError(f"eps: expected a positive number; got {self.eps!r}. The default is 1e-8.")

    def __call__(self, leaves: Iterable[Tensor]) -> Optimizer:
        """The optimiser over these parameters."""
        return torch.optim.Adam(list(leaves), lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent, as in Robbins & Monro (1951).

    Attributes:
        lr: step size.
        momentum: weight of the previous direction.
    """

    lr: float = 1e-3
    momentum: float = 0.0

    def __call__(self, leaves: Iterable[Tensor]) -> Optimizer:
        """The optimiser over these parameters."""
        return torch.optim.SGD(list(leaves), lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same step size throughout."""

    def __call__(self, optimizer: Optimizer, num_steps: int) -> LRScheduler:  # noqa: ARG002
        """The schedule of this optimiser."""
        return LambdaLR(optimizer, lambda _: 1.0)


@dataclass(frozen=True, kw_only=True)
class RobbinsMonro:
    r"""Step sizes whose sum diverges and whose sum of squares converges.

    .. math::
        \rho_t = \rho_0 (1 + t / \tau)^{-\kappa}, \qquad \kappa \in (1/2, 1]

    Attributes:
        exponent: kappa.
        delay: tau, optimiser steps.

    References:
        Robbins & Monro (1951), A stochastic approximation method.
        Hoffman, Blei, Wang & Paisley (2013), Stochastic variational inference.
    """

    exponent: float = 0.6
    delay: float = 1000.0

    def __post_init__(self) -> None:
        """Refuse exponents under which the schedule does not converge."""
        if not 0.5 < self.exponent <= 1:
            raise ValueError(
                f"exponent: expected a number in (0.5, 1], so that the steps converge; got {self.exponent}. Try 0.6."
            )
        if not self.delay > 0:
            raise ValueError(f"delay: expected a positive number of steps; got {self.delay}. Try 1000.")

    def __call__(self, optimizer: Optimizer, num_steps: int) -> LRScheduler:  # noqa: ARG002
        """The schedule of this optimiser."""
        return LambdaLR(optimizer, lambda step: (1 + step / self.delay) ** -self.exponent)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """From the full step size down to nearly none along half a cosine (Loshchilov & Hutter 2017)."""

    def __call__(self, optimizer: Optimizer, num_steps: int) -> LRScheduler:
        """The schedule of this optimiser."""
        return CosineAnnealingLR(optimizer, num_steps)


class OptimizerFactory(Protocol):
    """Makes the one optimiser of a run."""

    def __call__(self, leaves: Iterable[Tensor], /) -> Optimizer:
        """The optimiser over these parameters."""
        ...


class ScheduleFactory(Protocol):
    """Makes the step-size schedule of a run; it advances once an optimiser step."""

    def __call__(self, optimizer: Optimizer, num_steps: int, /) -> LRScheduler:
        """The schedule of this optimiser, for a run of `num_steps`."""
        ...
