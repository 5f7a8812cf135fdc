"""On a GPU, a call as one launch: what it asks of the device is recorded once, and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import eq

import torch
from torch import Tensor

__all__ = ["Replayed", "replayable"]

Run = Callable[..., Sequence[Tensor]]

# Runs before the recording: libraries take their workspaces and choose their kernels in the first ones.
WARM_RUNS = 2


def replayable(inputs: Sequence[Tensor]) -> bool:
    """Whether a run on these can be recorded: all of them are on one GPU."""
    devices = {value.device for value in inputs}
    return len(devices) == 1 and devices.pop().type == "cuda"


class Replayed:
    """A compiled function whose kernels were recorded as a CUDA graph.

    A small step is some forty kernels of a few microseconds each, and launching one takes as long as running it.
    Replaying launches all at once. The captured tensors are read where they lie, so what an optimiser wrote is seen;
    the others are copied to where they were when it was recorded. What comes out is a copy, which later calls leave
    alone.

    Args:
        run: of the fresh inputs, then the captured tensors, then more fresh inputs; it draws no random numbers.
        inputs: examples, in this order.
        still: the captured tensors among them, by place. What the runs here write into them is undone.
    """

    def __init__(self, run: Run, inputs: Sequence[Tensor], still: slice) -> None:
        self._run = run
        self._still = still
        captured = inputs[still]
        before = [tensor.clone() for tensor in captured]
        self._inputs = [*(value.clone() for value in inputs[: still.start]), *captured]
        self._inputs += [value.clone() for value in inputs[still.stop :]]
        self._places = [tensor.data_ptr() for tensor in captured]
        self._graph = torch.cuda.CUDAGraph()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        try:
            with torch.cuda.stream(aside):
                for _ in range(WARM_RUNS):
                    run(*self._inputs)
            here.wait_stream(aside)
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = list(run(*self._inputs))
        finally:
            for tensor, value in zip(captured, before, strict=True):
                tensor.copy_(value)
        self._are_floats = all(output.is_floating_point() for output in self._outputs)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What the function makes of these."""
        if not all(map(eq, map(Tensor.data_ptr, inputs[self._still]), self._places)):
            # Somebody has put another tensor's memory into a parameter.
            return self._run(*inputs)
        fresh = [*inputs[: self._still.start], *inputs[self._still.stop :]]
        if fresh:
            torch._foreach_copy_([*self._inputs[: self._still.start], *self._inputs[self._still.stop :]], fresh)
        self._graph.replay()
        # All copies in one launch; times one changes no bit.
        return (
            torch._foreach_mul(self._outputs, 1) if self._are_floats else [output.clone() for output in self._outputs]
        )
