"""NumPy's formats, read as what a stranger may have sent: nothing is executed, and no header is believed."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format

from inference.memory import available_memory, in_words
from pyro_vae.data.streams import State, StoredArray, fill, opened

__all__ = ["Refused", "find_array", "read_archive", "read_whole", "require_memory"]

# Bytes that are unpacked at once.
_PIECE = 2**20
# Bytes that hold any header that NumPy reads.
_HEADER = 2**14


class Refused(ValueError):
    """What is wrong with a file, in a sentence that needs no other."""


class _Header(NamedTuple):
    """What stands before the values of an array, and how many bytes it takes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    by_column: bool
    length: int

    @property
    def num_bytes(self) -> int:
        """Of the values."""
        return prod(self.shape) * self.dtype.itemsize


def _read_header(stream: IO[bytes], where: str) -> _Header:
    """The header of an array, written by np.save; what it says is not believed yet."""
    # NumPy would take as much memory as the header says it is long.
    stream = io.BytesIO(stream.read(_HEADER))
    try:
        version = format.read_magic(stream)
    except ValueError as error:
        raise ValueError("not a NumPy file") from error
    # A header of version 3.0 differs in how it writes the names of columns, which no data here have.
    read = format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0
    shape, by_column, dtype = read(stream)
    if dtype.hasobject:
        raise Refused(
            f"{where} holds pickled Python objects, which could run code and are refused: expected numbers, try "
            "np.save(path, np.stack(list(x)))"
        )
    if dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"its header has shape {shape} and type {dtype}")
    return _Header(dtype, shape, by_column, stream.tell())


@contextmanager
def _reading(path: Path) -> Iterator[tuple[IO[bytes], State]]:
    """A file, open for reading; whatever is wrong with what it holds is said in one line."""
    with opened(path) as (handle, state), os.fdopen(os.dup(handle), "rb") as stream:
        try:
            yield stream, state
        except Refused:
            raise
        # Damaged headers make NumPy's reader raise many types, SyntaxError and zlib.error among them.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{path} cannot be read ({reason}): expected a file written by np.save or np.savez"
            ) from error


def find_array(path: Path) -> StoredArray | None:
    """The one array of a .npy file, unread; None where the file is an archive.

    Raises:
        ValueError: it is none, holds pickled objects, or less than its header says.
    """
    with _reading(path) as (stream, state):
        if stream.read(2) == b"PK":
            return None
        stream.seek(0)
        header = _read_header(stream, str(path))
        if header.length + header.num_bytes > state.size:
            raise ValueError(
                f"its header promises {in_words(header.num_bytes)} of values, of which it holds "
                f"{in_words(state.size - header.length)}"
            )
    stride = prod(header.shape[1:]) * header.dtype.itemsize
    by_row = not header.by_column or sum(size > 1 for size in header.shape) < 2
    return StoredArray(path.absolute(), state, header.dtype, header.shape, header.length, stride, by_row)


def read_whole(array: StoredArray) -> np.ndarray:
    """An array, read into memory.

    Raises:
        ValueError: it does not fit, or its file has changed.
    """
    num_bytes = array.size * array.dtype.itemsize
    require_memory(str(array.path), num_bytes, "holds", "leave stream=False out: rows are then read as needed")
    values = np.empty(array.size, array.dtype)
    with opened(array.path, array.state) as (handle, _):
        fill(handle, array.path, values, array.offset)
    return values.reshape(array.shape, order="C" if array.by_row else "F")


def read_archive(path: Path, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The wanted arrays of a .npz file, and the names of all. Nothing is unpacked to disk.

    Raises:
        ValueError: it is no archive of arrays, is damaged, or unpacks to more than there is memory.
    """
    with _reading(path) as (stream, _), ZipFile(stream) as archive:
        members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        chosen = {name: entry for name, entry in members.items() if name in wanted}
        for entry in chosen.values():
            if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise ValueError(f"{_shown(entry.filename)} is compressed in a way that NumPy does not use")
        require_memory(
            str(path), sum(entry.file_size for entry in chosen.values()), "unpacks to", "save x alone with np.save"
        )
        arrays = {name: _unpack(archive, entry, f"{path}: {name}") for name, entry in chosen.items()}
    return arrays, tuple(map(_shown, members))


def _unpack(archive: ZipFile, entry: ZipInfo, where: str) -> np.ndarray:
    """One array, read as it is unpacked: no more than it says it holds, and its checksum compared at the end."""
    with archive.open(entry) as member:
        header = _read_header(member, where)
    with archive.open(entry) as member:
        member.read(header.length)
        if header.length + header.num_bytes != entry.file_size:
            raise ValueError(
                f"{_shown(entry.filename)}: its header promises {in_words(header.num_bytes)} of values, of which it "
                f"holds {in_words(entry.file_size - header.length)}"
            )
        values = np.empty(prod(header.shape), header.dtype)
        room = values.view(np.uint8)
        while len(room):
            piece = member.read(min(len(room), _PIECE))
            if not piece:
                raise ValueError(f"{_shown(entry.filename)} ends before its last value")
            room[: len(piece)] = np.frombuffer(piece, np.uint8)
            room = room[len(piece) :]
    return values.reshape(header.shape, order="F" if header.by_column else "C")


def require_memory(name: str, num_bytes: int, does: str, fix: str) -> None:
    """Refuse what does not fit into the memory there is, before any of it is read.

    Raises:
        ValueError: it does not.
    """
    room = available_memory()
    if room is not None and num_bytes > room:
        raise Refused(
            f"{name} {does} {in_words(num_bytes)}, and {in_words(room)} of memory are free: expected data that fit; "
            f"{fix}"
        )


def _shown(name: str) -> str:
    """A name from a file, which may hold anything."""
    return name if name.isprintable() and len(name) < 80 else f"{name[:80]!r}"
