"""The plain PyTorch VAE that the other ways train: what the usual examples define."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from timing.protocol import Cell


def layers(*widths: int) -> nn.Sequential:
    """Affine layers with ELU between them."""
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*parts[:-1])


class PlainVAE(nn.Module):
    """An encoder to mean and log variance, and the decoder that mirrors it, up to its logits."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        *seen, num_latents = widths
        self.num_latents = num_latents
        self.encoder = layers(*seen, 2 * num_latents)
        self.decoder = layers(num_latents, *reversed(seen))


def read(cell: Cell) -> Tensor:
    """The rows that a cell trains on, in memory, on its device."""
    rows = np.load(cell.data, mmap_mode="r")[: cell.steps * cell.batch]
    if len(rows) < cell.steps * cell.batch:
        raise ValueError(f"data: expected {cell.steps * cell.batch} rows for this cell; got {len(rows)}.")
    return torch.from_numpy(np.array(rows, dtype=np.float32)).to(cell.device)


def batches(x: Tensor, size: int) -> Iterator[Tensor]:
    """One pass in random order. Every method gathers from memory: a loader would be what is measured."""
    for index in torch.randperm(len(x), device=x.device).split(size):
        yield x[index]


def synchronise(cell: Cell) -> None:
    """Wait for the device."""
    if cell.device == "cuda":
        torch.cuda.synchronize()
