"""Columns of numbers as files: .csv, .parquet and .npz, written whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inference.checkpoint import atomic_write
from inference.memory import available_memory, in_words

__all__ = ["SUFFIXES", "require_room", "require_target", "write_columns"]

SUFFIXES = (".csv", ".parquet", ".npz")


def require_target(out: Path, *, overwrite: bool = False, source: Any = None) -> None:  # noqa: ANN401
    """Refuse a file that cannot be written, before the work whose results it is to hold.

    Args:
        out: the file to write.
        overwrite: whether a file that is there is replaced.
        source: the path that rows are read from, which is never replaced.

    Raises:
        ValueError: its ending is unknown, it is there already, or its folder is not there or cannot be written to.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out}: expected a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"--out {out}: writing .parquet needs pyarrow, which is not installed. Take .csv or .npz.")
    if isinstance(source, str | os.PathLike) and out.exists() and out.samefile(source):
        raise ValueError(f"--out {out}: expected another file than the rows are read from. Choose another.")
    if out.is_dir():
        raise ValueError(f"--out {out}: expected a file; it is a folder. Name a file in it.")
    if out.exists() and not overwrite:
        raise ValueError(
            f"--out {out}: the file is there already; nothing was touched. Choose another, or --overwrite "
            "(overwrite=True)."
        )
    if not out.parent.is_dir():
        raise ValueError(
            f"--out {out}: expected a file in an existing folder; there is no {out.parent}. Make it first."
        )
    try:
        # Tried, because permissions alone do not tell.
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}). Choose another folder.") from error


def write_columns(
    out: Path, columns: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], *, overwrite: bool = False
) -> None:
    """Write a table as .csv or .parquet, or arrays as .npz.

    Args:
        out: the file.
        columns: columns of the table, all of one length, by name.
        arrays: what an .npz file holds instead.
        overwrite: whether a file that is there is replaced.

    Raises:
        ValueError: it is there already, or cannot be written; a file that was there is as it was.
    """
    require_target(out, overwrite=overwrite)
    with atomic_write(out) as temporary:
        if out.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            return
        # Imported here: pandas takes a second.
        import pandas as pd  # type: ignore[import-untyped]

        frame = pd.DataFrame(dict(columns))
        if out.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)


def require_room(num_values: int, of: str) -> None:
    """Refuse float64 numbers that do not fit into the memory that is free.

    Args:
        num_values: how many.
        of: what they are, in the plural.

    Raises:
        ValueError: they do not fit.
    """
    room = available_memory()
    if room is not None and 8 * num_values > room:
        raise ValueError(
            f"num_draws: expected {of} to fit into memory; they take {in_words(8 * num_values)}, and {in_words(room)} "
            "are free. Take fewer draws, or apply the run to a part of the rows."
        )
