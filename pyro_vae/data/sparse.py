"""Sparse matrices, whose rows are made dense when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_vae.data.arrays import Refused, require_memory
from pyro_vae.data.streams import SparseArray

__all__ = ["MEMBERS", "is_archive", "is_sparse", "read_sparse", "unpack_sparse"]

# The arrays of a file by `scipy.sparse.save_npz`.
MEMBERS = ("format", "shape", "data", "indices", "indptr", "row", "col", "offsets")
# What the constructor of each layout takes.
_LAYOUTS = {
    "csr": ("indices", "indptr"),
    "csc": ("indices", "indptr"),
    "bsr": ("indices", "indptr"),
    "coo": ("row", "col"),
    "dia": ("offsets",),
}


def is_sparse(data: Any) -> bool:  # noqa: ANN401
    """Whether this is a matrix or an array of `scipy.sparse`, or of a class that inherits from one."""
    return any(each.__module__.startswith("scipy.sparse") for each in type(data).__mro__)


def is_archive(names: Mapping[str, Any] | tuple[str, ...]) -> bool:
    """Whether these are the arrays of a file by `scipy.sparse.save_npz`."""
    return {"format", "shape", "data"} <= set(names)


def read_sparse(where: str, matrix: Any) -> SparseArray:  # noqa: ANN401
    """The rows of a sparse matrix, of any layout. Values at one place are added up, as `toarray` does.

    Args:
        where: its name in errors.
        matrix: a matrix or an array of `scipy.sparse`; it is copied.

    Raises:
        ValueError: it is no table of real numbers, or even its row numbers do not fit in memory.
    """
    if len(matrix.shape) != 2:
        raise ValueError(f"{where} has shape {matrix.shape}: expected sparse rows (N, P), try x.reshape(num_data, -1)")
    if matrix.dtype.kind not in "buif":
        raise ValueError(f"{where} has type {matrix.dtype}: expected real numbers, try x.astype(float)")
    # A row number takes 8 bytes, and a row is made dense in a type of up to 8.
    require_memory(where, 8 * (matrix.shape[0] + matrix.shape[1]), "takes", "leave out empty rows and columns")
    rows = matrix.tocsr(copy=True)
    rows.sum_duplicates()
    return SparseArray(rows)


def unpack_sparse(where: str, arrays: Mapping[str, np.ndarray]) -> SparseArray:
    """The matrix that `scipy.sparse.save_npz` wrote. Its indices are compared with its shape before they are used.

    Args:
        where: its name in errors.
        arrays: the arrays of the file, `MEMBERS` as far as they are there.

    Raises:
        ValueError: they make no matrix.
    """
    # Imported here: SciPy's sparse matrices take a third of a second, and few data are sparse.
    from scipy import sparse

    try:
        layout = np.asarray(arrays["format"]).item()
        layout = layout.decode("ascii") if isinstance(layout, bytes) else str(layout)
        shape = tuple(int(size) for size in arrays["shape"])
        if layout not in _LAYOUTS or len(shape) != 2 or min(shape) < 0:
            raise ValueError(f"layout {layout[:20]!r}, shape {shape}")
        require_memory(where, 8 * sum(shape), "takes", "leave out empty rows and columns")
        kept = [arrays[name] for name in _LAYOUTS[layout]]
        if any(each.dtype.kind not in "iu" for each in kept):
            raise ValueError("indices that are no integers")
        values = arrays["data"]
        make = getattr(sparse, f"{layout}_array")
        matrix = make(
            (values, tuple(kept) if layout == "coo" else kept[0])
            if len(kept) == 1 or layout == "coo"
            else (values, *kept),
            shape=shape,
        )
        if layout in ("csr", "csc", "bsr"):
            matrix.check_format(full_check=True)
        return read_sparse(where, matrix)
    except Refused:
        raise
    # Damaged indices make SciPy raise many types.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{where} cannot be read ({reason}): expected a file written by scipy.sparse.save_npz, or by np.savez"
        ) from error
