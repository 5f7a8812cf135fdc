"""The matrix products of one step and nothing else, forward and both of backward: what no use of torch can undercut."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from timing.methods.networks import synchronise
from timing.protocol import Cell, Pipe, run_blocks


def versions() -> dict[str, str]:
    """Of what is used."""
    return {"torch": torch.__version__}


def shapes(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Inputs and outputs of every layer, the encoder's and then the decoder's."""
    *seen, num_latents = widths
    return [*itertools.pairwise([*seen, 2 * num_latents]), *itertools.pairwise([num_latents, *reversed(seen)])]


def products(cell: Cell, dtype: torch.dtype) -> Callable[[], None]:
    """One step's products: x W', then x' g for the weights and g W for x, but for the first layer, where x is data."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=cell.device).to(dtype)

    work: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, (num_inputs, num_outputs) in enumerate(shapes(cell.widths)):
        x, g, weight = normal(cell.batch, num_inputs), normal(cell.batch, num_outputs), normal(num_outputs, num_inputs)
        work += [(x, weight.t(), torch.empty_like(g)), (g.t(), x, torch.empty_like(weight))]
        if number:
            work.append((g, weight, torch.empty_like(x)))

    def step() -> None:
        for first, second, out in work:
            torch.mm(first, second, out=out)

    return step


def run(cell: Cell, pipe: Pipe) -> None:
    """Serve timing blocks."""
    step = products(cell, getattr(torch, cell.options.get("precision", "float32")))

    def block() -> float:
        with torch.no_grad():
            for _ in range(cell.steps):
                step()
        synchronise(cell)
        return float("nan")

    run_blocks(cell, pipe, block)
