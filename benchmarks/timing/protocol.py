"""What a timing worker and the benchmark say to each other: lines of JSON over pipes.

It needs nothing but the standard library, for it also runs under interpreters that have neither torch nor Pyro.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of the training table: what is trained, and how many steps a timing block has.

    Attributes:
        data: a .npy file of zeros and ones, (N, P), of which the first `steps * batch` rows are trained on.
        widths: P, the encoder's hidden widths, and D; the decoder mirrors them.
        batch: B, datapoints a step.
        steps: optimiser steps of a block, which is one pass over the data.
        device: "cpu" or "cuda".
        lr: step size of Adam.
        options: what the method alone knows, such as a precision.
    """

    data: str
    widths: tuple[int, ...]
    batch: int
    steps: int
    device: str = "cpu"
    lr: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)


class Pipe:
    """The worker's side: it answers, and then waits, idle, to be asked for the next block."""

    def __init__(self, asked: TextIO, answers: TextIO) -> None:
        self._asked = asked
        self._answers = answers

    def receive(self) -> dict[str, Any] | None:
        """The next request, or None where there will be no more."""
        line = self._asked.readline()
        return json.loads(line) if line else None

    def send(self, answer: dict[str, Any]) -> None:
        """Answer a request."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def ask(self, answer: dict[str, Any]) -> bool:
        """Answer, and wait: whether another block is wanted."""
        self.send(answer)
        request = self.receive()
        return request is not None and request["do"] == "block"


# Blocks before the first that counts: they compile, check and fill caches.
WARM_BLOCKS = 2


def run_blocks(cell: Cell, pipe: Pipe, block: Callable[[], float]) -> None:
    """Serve timing blocks, for methods whose loop is their caller's.

    Args:
        cell: what is trained.
        pipe: who asks.
        block: takes `cell.steps` steps, waits until they are done, and returns the mean loss, nats per datapoint.
    """
    for _ in range(WARM_BLOCKS):
        loss = block()
    answer = {"loss": loss}
    while pipe.ask(answer):
        began, worked = time.perf_counter(), time.process_time()
        loss = block()
        ms = 1e3 * (time.perf_counter() - began) / cell.steps
        answer = {"ms": ms, "loss": loss, "core_seconds": time.process_time() - worked}


class EpochClock:
    """Serves timing blocks from inside a trainer that owns its loop: called after every epoch, it blocks there.

    Args:
        cell: what is trained.
        pipe: who asks.
    """

    def __init__(self, cell: Cell, pipe: Pipe) -> None:
        self._cell = cell
        self._pipe = pipe
        self._epochs = 0
        self._start()

    def _start(self) -> None:
        self._began, self._worked = time.perf_counter(), time.process_time()

    def __call__(self, loss: float) -> bool:
        """Whether the trainer is to go on."""
        ms = 1e3 * (time.perf_counter() - self._began) / self._cell.steps
        worked = time.process_time() - self._worked
        self._epochs += 1
        wanted = True
        if self._epochs == WARM_BLOCKS:
            wanted = self._pipe.ask({"loss": loss})
        elif self._epochs > WARM_BLOCKS:
            wanted = self._pipe.ask({"ms": ms, "loss": loss, "core_seconds": worked})
        self._start()
        return wanted
