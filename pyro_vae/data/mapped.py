"""Rows of an array that stays on disk, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

__all__ = ["DrawnRows", "MappedRows", "Rows", "blocks", "take", "to_tensor"]

# Bytes of a block of rows: large enough that the loop costs nothing, small beside any memory.
_BLOCK_BYTES = 2**23


class MappedRows:
    """Some rows of a memory-mapped array, in any order; an index reads those rows alone.

    Args:
        array: the array, shape (M, P), as stored.
        rows: row number of each datapoint, shape (N,).
    """

    def __init__(self, array: np.ndarray, rows: Int[Tensor, " N"]) -> None:
        self.array = array
        self.rows = rows
        self.shape = torch.Size((len(rows), array.shape[1]))
        self.dtype = to_tensor(array[:0]).dtype

    def __getitem__(self, index: Int[Tensor, " B"] | slice) -> Shaped[Tensor, "B P"]:
        return to_tensor(self.array[self.rows[index].numpy()])

    def take(self, index: Int[Tensor, " n"] | slice) -> MappedRows:
        """These of the rows, unread."""
        return MappedRows(self.array, self.rows[index])


class DrawnRows:
    """Fixed bits drawn from rows that stay on disk: x = 1 where u < value / divisor.

    The uniforms u are those of one stream, read row after row, entered where the row is: the bits are those that
    drawing all rows at once would give, and nothing is kept.

    Args:
        values: the rows, shape (N, P).
        divisor: `values / divisor` is the probability that x is 1.
        seed: seed of the stream.
        positions: place of each row in the stream, shape (N,); by default they are its first rows.
    """

    dtype = torch.uint8

    def __init__(
        self, values: MappedRows, divisor: float, seed: list[int], positions: Int[Tensor, " N"] | None = None
    ) -> None:
        self.values = values
        self.divisor = divisor
        self.seed = seed
        self.positions = torch.arange(values.shape[0]) if positions is None else positions
        self.shape = values.shape

    def __getitem__(self, index: Int[Tensor, " B"] | slice) -> Int[Tensor, "B P"]:
        positions = self.positions[index].numpy()
        probability = self.values[index].double() / self.divisor
        drawn = torch.from_numpy(self._uniforms(np.atleast_1d(positions))).reshape(probability.shape)
        return (drawn < probability).to(torch.uint8)

    def take(self, index: Int[Tensor, " n"] | slice) -> DrawnRows:
        """These of the rows, with the bits they have here."""
        return DrawnRows(self.values.take(index), self.divisor, self.seed, self.positions[index])

    def _uniforms(self, positions: np.ndarray) -> np.ndarray:
        width = self.shape[1]
        runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
        drawn = np.empty((len(positions), width))
        start = 0
        for run in runs:
            if len(run):
                # A uniform takes one step of the generator.
                generator = np.random.Generator(np.random.PCG64(self.seed).advance(int(run[0]) * width))
                generator.random(out=drawn[start : start + len(run)])
                start += len(run)
        return drawn


Rows = Tensor | MappedRows | DrawnRows


def to_tensor(array: np.ndarray) -> Shaped[Tensor, "*N"]:
    """The values in the type that they are kept in: 8-bit as it is, floating as it is, other integers as int64.

    Booleans become int8, because uint8 means gray levels from here on. Every NaN gets the same bits.
    """
    kinds: dict[str, type] = {"b": np.int8, "u": np.int64, "i": np.int64, "f": np.float64}
    stays = array.dtype == np.uint8 or (array.dtype.kind == "f" and array.dtype.itemsize <= 8)
    wanted = array.dtype.newbyteorder("=") if stays else kinds[array.dtype.kind]
    own = np.ascontiguousarray(array, dtype=wanted)
    # A tensor cannot be read-only.
    values = torch.from_numpy(own if own.flags.writeable else own.copy())
    if values.is_floating_point() and bool((missing := values.isnan()).any()):
        values = values.masked_fill(missing, torch.nan)
    return values


def blocks(rows: Rows) -> Iterator[tuple[int, Shaped[Tensor, "B P"]]]:
    """Consecutive rows, each block with the number of its first row."""
    size = max(1, _BLOCK_BYTES // (8 * rows.shape[1]))
    for start in range(0, rows.shape[0], size):
        yield start, rows[start : start + size]


def take(rows: Rows, index: Int[Tensor, " n"] | slice) -> Rows:
    """These of the rows, read only where they are in memory already."""
    return rows[index] if isinstance(rows, Tensor) else rows.take(index)
