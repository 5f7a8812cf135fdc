"""Rows of an array that stays in its file, read when they are asked for.

They are read, not mapped: a mapped file that another program cuts short ends the process by a signal (SIGBUS), and what
was touched of it counts as this process's memory. A read that comes back short is an error like any other.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

__all__ = [
    "DrawnRows",
    "FileRows",
    "Rows",
    "SparseArray",
    "SparseRows",
    "StoredArray",
    "State",
    "blocks",
    "fill",
    "opened",
    "take",
    "to_tensor",
]

# Bytes of a block of rows: large enough that the loop costs nothing, small beside any memory.
_BLOCK_BYTES = 2**23


class State(NamedTuple):
    """What tells a file from one that was written since.

    Args:
        size: bytes.
        written: nanoseconds since 1970.
        inode: its number in the file system.
    """

    size: int
    written: int
    inode: int


@contextmanager
def opened(path: Path, state: State | None = None) -> Iterator[tuple[int, State]]:
    """A file to be read by its descriptor, that stays as it is meanwhile; and its state.

    Args:
        path: the file.
        state: what it must be, where it was opened before.

    Raises:
        FileNotFoundError: it is gone.
        ValueError: it is no file, or has changed since, or while it was read.
        OSError: it cannot be read.
    """
    try:
        # A named pipe would wait for somebody who writes.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is gone: expected the file to stay while its rows are read; bring it back, or load other data"
        ) from error
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}): expected a file that you may read") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} cannot be read (it is no regular file): expected a data file, check the path")
        first = State(found.st_size, found.st_mtime_ns, found.st_ino)
        _require_same(path, state or first, first)
        yield handle, first
        after = os.fstat(handle)
        _require_same(path, first, State(after.st_size, after.st_mtime_ns, after.st_ino))
    finally:
        os.close(handle)


def fill(handle: int, path: Path, array: np.ndarray, position: int) -> None:
    """Read the bytes of a contiguous array from a place in a file.

    Raises:
        ValueError: the file ends before.
        OSError: it cannot be read.
    """
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    while len(view):
        try:
            count = os.preadv(handle, [view], position)
        except OSError as error:
            raise OSError(f"{path} cannot be read ({error.strerror}): expected {len(view)} more bytes") from error
        if not count:
            raise _changed(path, "it has become shorter")
        view, position = view[count:], position + count


def _require_same(path: Path, before: State, now: State) -> None:
    if now != before:
        names = ("size", "time of writing", "inode")
        changed = [name for name, one, other in zip(names, before, now, strict=True) if one != other]
        raise _changed(path, f"another {' and '.join(changed)}")


def _changed(path: Path, how: str) -> ValueError:
    return ValueError(
        f"{path} has changed while it was in use ({how}): expected the same data throughout; do not write to it, and "
        "load it again"
    )


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, with rows one after the other.

    Args:
        path: the file.
        state: of the file when its header was read; a file in any other state is refused.
        dtype: of the values.
        shape: (M, ...).
        offset: where the first row begins, in bytes.
        stride: from one row to the next, in bytes.
        by_row: whether a row is in one piece; else the array is stored column by column.
    """

    path: Path
    state: State
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    stride: int
    by_row: bool = True

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def read(self, rows: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n P"]:
        """The values in these rows, each flattened.

        Raises:
            FileNotFoundError: the file is gone.
            ValueError: it has changed.
        """
        wanted, places = np.unique(rows, return_inverse=True)
        values = np.empty((len(wanted), prod(self.shape[1:])), self.dtype)
        # Rows that lie one after the other are read at once.
        in_one_piece = self.stride == values.itemsize * values.shape[1]
        begins = np.flatnonzero(np.diff(wanted, prepend=-2) != 1) if in_one_piece else np.arange(len(wanted))
        ends = np.append(begins, len(wanted))[1:]
        with opened(self.path, self.state) as (handle, _):
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
                fill(handle, self.path, values[begin:end], self.offset + int(wanted[begin]) * self.stride)
        in_order = len(wanted) == len(rows) and bool((np.diff(rows) > 0).all())
        return values if in_order else values[places.reshape(-1)]

    @classmethod
    def of(cls, array: np.memmap) -> StoredArray | None:
        """What a memory map shows; None where its rows are no pieces of a file, or changes are not written there."""
        name, own = getattr(array, "filename", None), getattr(array, "_mmap", None)
        rows_are_pieces = array.ndim > 1 and array.shape[0] > 0 and array[0].flags.c_contiguous
        if name is None or own is None or array.mode == "c" or not rows_are_pieces:
            return None
        # A view keeps the offset of the whole map, which begins at a multiple of the granularity.
        base = np.frombuffer(own, np.uint8).ctypes.data - (array.offset - array.offset % mmap.ALLOCATIONGRANULARITY)
        with opened(Path(name).absolute()) as (_, state):
            return cls(
                Path(name).absolute(), state, array.dtype, array.shape, array.ctypes.data - base, array.strides[0]
            )


class FileRows:
    """Some rows of an array that stays in its file, in any order; an index reads those rows alone.

    Args:
        array: the array, shape (M, ...), as stored.
        rows: row number of each datapoint, shape (N,).
    """

    def __init__(self, array: StoredArray, rows: Int[Tensor, " N"]) -> None:
        self.array = array
        self.rows = rows
        self.shape = torch.Size((len(rows), prod(array.shape[1:])))
        self.dtype = to_tensor(np.empty(0, array.dtype)).dtype

    def __getitem__(self, index: Int[Tensor, " B"] | slice) -> Shaped[Tensor, "B P"]:
        rows = self.rows[index]
        read = to_tensor(self.array.read(rows.reshape(-1).numpy()))
        if read.dtype != self.dtype:
            raise ValueError(
                f"{self.array.path}: x: expected whole numbers below 2**63; got larger ones, {self.array.dtype}. "
                "Subtract an offset, or save x.astype(float) if rounding them loses nothing."
            )
        return read.reshape(*rows.shape, self.shape[1])

    def take(self, index: Int[Tensor, " n"] | slice) -> FileRows:
        """These of the rows, unread."""
        return FileRows(self.array, self.rows[index])


class SparseArray:
    """A table of which the values that are not 0 are kept.

    Args:
        matrix: a matrix or an array of `scipy.sparse` in CSR layout, one value a place.
    """

    ndim = 2

    def __init__(self, matrix: Any) -> None:  # noqa: ANN401
        self.matrix = matrix
        self.dtype: np.dtype = matrix.dtype
        self.shape: tuple[int, ...] = tuple(map(int, matrix.shape))

    @property
    def size(self) -> int:
        """Number of values, zeros included."""
        return prod(self.shape)


class SparseRows:
    """Some rows of a sparse table, in any order; an index makes those rows alone dense.

    Args:
        array: the table, shape (M, P).
        rows: row number of each datapoint, shape (N,).
    """

    def __init__(self, array: SparseArray, rows: Int[Tensor, " N"]) -> None:
        self.array = array
        self.rows = rows
        self.shape = torch.Size((len(rows), array.shape[1]))
        self.dtype = to_tensor(np.empty(0, array.dtype)).dtype

    def __getitem__(self, index: Int[Tensor, " B"] | slice) -> Shaped[Tensor, "B P"]:
        rows = self.rows[index]
        dense = self.array.matrix[rows.reshape(-1).numpy()].toarray()
        return to_tensor(dense).reshape(*rows.shape, self.shape[1])

    def take(self, index: Int[Tensor, " n"] | slice) -> SparseRows:
        """These of the rows, still sparse."""
        return SparseRows(self.array, self.rows[index])


class DrawnRows:
    """Fixed bits drawn from rows that stay on disk, or sparse: x = 1 where u < value / divisor.

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
        self, values: FileRows | SparseRows, divisor: float, seed: list[int], positions: Int[Tensor, " N"] | None = None
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


Rows = Tensor | FileRows | SparseRows | DrawnRows


def to_tensor(array: np.ndarray) -> Shaped[Tensor, "*N"]:
    """The values in the type that they are kept in: 8-bit as it is, floating as it is, other integers as int64.

    Unsigned numbers from 2**63 on become float64 where that holds all of them to the last digit, else they are refused.

    Booleans become int8, because uint8 means gray levels from here on. Every NaN gets the same bits.
    """
    kinds: dict[str, type] = {"b": np.int8, "u": np.int64, "i": np.int64, "f": np.float64}
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and int(array.max()) > 2**63 - 1:
        # As int64 it would wrap around to a negative number; float64 holds it, perhaps to the last digit.
        wide = array.astype(np.float64)
        # 2**64 itself has no uint64.
        if float(wide.max()) == 2.0**64 or not np.array_equal(wide.astype(np.uint64), array):
            raise ValueError(
                f"x: expected whole numbers below 2**63, or those that float64 holds exactly; got {int(array.max())} "
                f"of type {array.dtype}. Subtract an offset, or pass x.astype(float) if rounding them loses nothing."
            )
        array = wide
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
