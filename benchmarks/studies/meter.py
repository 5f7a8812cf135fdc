"""A clock and a counter for a fit, which end it when the budget is spent."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from inference import Adam


class BudgetSpent(Exception):
    """Ends a fit in the middle of an epoch: one epoch may be longer than the budget."""


class Meter:
    """Times a fit, counts its decoder evaluations, keeps its decoder at set times, and ends it at the last.

    The clock stands still while a model is copied.

    Args:
        decoder: the module that is watched.
        times: seconds at which it is kept, ascending.
        rate: step size of the optimiser.

    Attributes:
        snapshots: by number of the time: seconds, evaluations, and the decoder's weights.
        evaluations: rows sent through the decoder, forward and backward.
        seconds: what the fit took, to the last snapshot or to where it diverged.
    """

    def __init__(self, decoder: nn.Module, *, times: Sequence[float], rate: float) -> None:
        self.decoder = decoder
        self.times = list(times)
        self.rate = rate
        self.snapshots: dict[int, dict[str, Any]] = {}
        self.evaluations = 0
        self.seconds = 0.0
        self._paused = 0.0

    def __enter__(self) -> Self:
        self._hook = self.decoder.register_forward_hook(self._count)
        self._began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> bool:
        self._hook.remove()
        if kind is not BudgetSpent:
            self.seconds = time.perf_counter() - self._began - self._paused
        # A diverged fit has what it had until then.
        return kind is not None and issubclass(kind, BudgetSpent | FloatingPointError)

    def optimizer(self, leaves: Iterable[Tensor]) -> Optimizer:
        """Adam, which looks at the clock after every step: `Training(optimizer=meter.optimizer)`."""
        made = Adam(lr=self.rate)(leaves)
        made.register_step_post_hook(self._look)
        return made

    def _look(self, *_: object) -> None:
        now = time.perf_counter()
        seconds = now - self._began - self._paused
        number = bisect_right(self.times, seconds) - 1
        if number < 0 or number in self.snapshots:
            return
        weights = {name: value.detach().cpu().clone() for name, value in self.decoder.state_dict().items()}
        self.snapshots[number] = {"seconds": seconds, "evaluations": self.evaluations, "weights": weights}
        if number == len(self.times) - 1:
            self.seconds = seconds
            raise BudgetSpent
        self._paused += time.perf_counter() - now

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG002
        rows = len(output)
        self.evaluations += rows
        if output.requires_grad:
            output.register_hook(lambda _: self._count_backward(rows))

    def _count_backward(self, rows: int) -> None:
        self.evaluations += rows
