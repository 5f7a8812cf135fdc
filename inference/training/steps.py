"""Optimisers and step-size schedules, as values that a record can hold."""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from inference.counts import is_number, require_count


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
        """Refuse what divides by zero, and what does not decay."""
        if not (is_number(self.eps) and self.eps > 0):
            raise ValueError(f"eps: expected a positive number; got {self.eps!r}. The default is 1e-8.")
        _require_lr(self.lr)
        betas = self.betas
        if not isinstance(betas, Sequence) or len(betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in betas):
            raise ValueError(f"betas: expected two numbers in [0, 1); got {betas!r}. The default is (0.9, 0.999).")

    def __call__(self, leaves: Iterable[Tensor]) -> Optimizer:
        """The optimiser over these parameters."""
        return FusedAdam(list(leaves), lr=self.lr, betas=self.betas, eps=self.eps)


class FusedAdam(torch.optim.Adam):
    """Torch's fused Adam, and a shorter way to its kernel: over small networks most of a step would be Python.

    Args:
        leaves: what is trained, of one dtype and on one device.
        lr: step size.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(self, leaves: list[Tensor], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(leaves, lr=lr, betas=betas, eps=eps, fused=True)
        self._counts = torch.zeros(0)
        self._views: tuple[Tensor, ...] = ()

    @property
    def hooks(self) -> list[Any]:
        """What waits for a step."""
        return [*self._optimizer_step_pre_hooks.values(), *self._optimizer_step_post_hooks.values()]

    @torch.no_grad()
    def descend(self, grads: Sequence[Tensor | None]) -> None:
        """One step down these gradients, those of the leaves in their order; where there is none, a leaf stays.

        It does what `step` does with the same numbers in `.grad`, and leaves the work to it where hooks wait for it.
        """
        (group,) = self.param_groups
        leaves = group["params"]
        if self.hooks:
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = grad
            self.step()
            self.zero_grad(set_to_none=True)
            return
        if not self.state:
            self._begin(leaves)
        given = [grad for grad in grads if grad is not None]
        if len(given) < len(leaves):
            leaves = [leaf for leaf, grad in zip(leaves, grads, strict=True) if grad is not None]
        states = [self.state[leaf] for leaf in leaves]
        steps = [state["step"] for state in states]
        if len(steps) == len(self._views) and all(map(operator.is_, steps, self._views)):
            self._counts.add_(1)
        else:  # Some leaves stay, or their state was loaded.
            torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            leaves,
            given,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        self._opt_called = True  # What schedules look for, so as to warn of steps in the wrong order.

    def _begin(self, leaves: Sequence[Tensor]) -> None:
        # All counts in one tensor, so that they are counted at once.
        self._counts = torch.zeros(len(leaves), dtype=torch.float32, device=leaves[0].device)
        self._views = self._counts.unbind()
        for leaf, count in zip(leaves, self._views, strict=True):
            moments = {name: torch.zeros_like(leaf) for name in ("exp_avg", "exp_avg_sq")}
            self.state[leaf] = {"step": count, **moments}


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent, as in Robbins & Monro (1951).

    Attributes:
        lr: step size.
        momentum: weight of the previous direction.
    """

    lr: float = 1e-3
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what does not descend."""
        _require_lr(self.lr)
        if not (is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"momentum: expected a number in [0, 1); got {self.momentum!r}. The default is 0.")

    def __call__(self, leaves: Iterable[Tensor]) -> Optimizer:
        """The optimiser over these parameters."""
        return torch.optim.SGD(list(leaves), lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same step size throughout."""

    def __call__(self, optimizer: Optimizer, num_steps: int) -> LRScheduler:  # noqa: ARG002
        """The schedule of this optimiser."""
        return _Counting(optimizer, lambda _: 1.0)


class _Counting(LambdaLR):
    """A schedule that changes nothing, in no time."""

    def step(self, epoch: int | None = None) -> None:  # noqa: ARG002
        self.last_epoch += 1


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
        if not (is_number(self.exponent) and 0.5 < self.exponent <= 1):
            raise ValueError(
                f"exponent: expected a number in (0.5, 1], so that the steps converge; got {self.exponent!r}. Try 0.6."
            )
        if not (is_number(self.delay) and self.delay > 0):
            raise ValueError(f"delay: expected a positive number of steps; got {self.delay!r}. Try 1000.")

    def __call__(self, optimizer: Optimizer, num_steps: int) -> LRScheduler:  # noqa: ARG002
        """The schedule of this optimiser."""
        return LambdaLR(optimizer, lambda step: (1 + step / self.delay) ** -self.exponent)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """From the full step size down to nearly none along half a cosine (Loshchilov & Hutter 2017)."""

    def __call__(self, optimizer: Optimizer, num_steps: int) -> LRScheduler:
        """The schedule of this optimiser."""
        return CosineAnnealingLR(optimizer, num_steps)


@dataclass(frozen=True, kw_only=True)
class Staircase:
    r"""Stages that grow in length while the step size falls from each to the next.

    .. math::
        \rho = \rho_0 \, f^i \quad \text{in stage } i = 0, \dots, n - 1, \text{ which takes a share } \propto g^i
        \text{ of the run}

    The defaults are the schedule of Burda et al. (2016): over 1 + 3 + 9 + ... + 3^7 = 3280 epochs, 10^(-i/7) of the
    first step size for 3^i epochs. A run of another length has the same stages in proportion.

    Attributes:
        num_stages: n.
        growth: g, how many times as long each stage is as the one before.
        factor: f, what the step size is multiplied by from one stage to the next.

    References:
        Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders.
    """

    num_stages: int = 8
    growth: int = 3
    factor: float = 10 ** (-1 / 7)

    def __post_init__(self) -> None:
        """Refuse what is no staircase."""
        for name in ("num_stages", "growth"):
            require_count(name, getattr(self, name))
        if not (is_number(self.factor) and 0 < self.factor <= 1):
            raise ValueError(f"factor: expected a number in (0, 1]; got {self.factor!r}. Try 10 ** (-1 / 7).")

    def __call__(self, optimizer: Optimizer, num_steps: int) -> LRScheduler:
        """The schedule of this optimiser."""
        shares = list(accumulate(self.growth**stage for stage in range(self.num_stages)))
        ends = [share * num_steps / shares[-1] for share in shares[:-1]]
        return LambdaLR(optimizer, lambda step: self.factor ** bisect_right(ends, step))


def _require_lr(lr: object) -> None:
    if not (is_number(lr) and 0 < lr < math.inf):
        raise ValueError(f"lr: expected a positive step size; got {lr!r}. Try 1e-3.")


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
