"""Tables with named columns: .csv and .parquet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pyro_vae.data.arrays import Refused, require_memory
from pyro_vae.data.sources import Found, Missing, Source, make_source
from pyro_vae.data.streams import opened
from pyro_vae.names import did_you_mean

__all__ = ["numbers_of", "read_frame", "read_table"]


def read_table(path: Path, *, missing: Missing, columns: Sequence[str] | None, label: str | None) -> Source:
    """The numeric columns of a table as x, one row a datapoint.

    Integers stay counts (none are taken for gray levels); labels that are no integers are numbered in sorted order.

    Args:
        path: the file; a .csv file has the names of its columns in the first line.
        missing: whether empty cells are refused, or kept as values that were not observed.
        columns: the columns of x, in this order; None: all but the labels.
        label: the column of the labels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no such columns, or a column of x holds no numbers.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: expected a .csv or .parquet file, check the path")
    with opened(path):
        frame = read_frame(path)
    names = list(frame.columns)
    if isinstance(columns, str):
        raise ValueError(f"columns={columns!r}: expected a list of names, try columns=[{columns!r}]")
    for argument, asked in (("columns", list(columns or ())), ("label", [] if label is None else [label])):
        for name in asked:
            if name not in names:
                raise ValueError(
                    f"{argument}: {path} has no column {name!r}.{did_you_mean(name, names)} Expected some of "
                    f"{', '.join(names)}."
                )
    if columns is None:
        _check_header(path, names)
    chosen = [name for name in names if name != label] if columns is None else list(columns)
    if not chosen or len(set(chosen)) < len(chosen) or label in chosen:
        raise ValueError(
            f"{path}: columns: expected different columns, at least one, and not the label {label!r} among them; got "
            f"{', '.join(chosen) or 'none'}; choose others"
        )
    arrays = {name: numbers_of(frame[name]) for name in chosen}
    other = [repr(name) for name, array in arrays.items() if array is None]
    if other:
        raise ValueError(
            f"{path}: no numbers in column{'s' if len(other) > 1 else ''} {', '.join(other)}: expected numeric "
            "columns; leave them out with columns=, name one as label=, or write their values as numbers"
        )
    x = _stacked(path, {name: array for name, array in arrays.items() if array is not None})
    labels = None if label is None else _labels(path, label, frame[label])
    found = Found(f"{path}: the table", x, labels)
    source = make_source(str(path), {"all": found}, missing=missing, remedy="frame.dropna()")
    return replace(source, columns=tuple(chosen))


def _stacked(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The columns side by side in a type that holds all of them; whole numbers that it does not hold are refused."""
    if all(array.dtype.kind != "u" or int(array.max()) < 2**63 for array in arrays.values()):
        arrays = {name: array.astype(np.int64) if array.dtype.kind == "u" else array for name, array in arrays.items()}
    x = np.column_stack(list(arrays.values()))
    if x.dtype.kind == "f":
        lost = {name: array for name, array in arrays.items() if array.dtype.kind in "ui" and _loses(array)}
        if lost:
            name, array = next(iter(lost.items()))
            raise ValueError(
                f"{path}: column{'s' if len(lost) > 1 else ''} {', '.join(map(repr, lost))}: expected whole numbers "
                f"that float64 holds, beside columns of real numbers or from 2**63 on; got {int(array.max())} in "
                f"{name!r}. Subtract an offset, or leave the column out with columns=."
            )
    return x


def _loses(array: np.ndarray) -> bool:
    """Whether whole numbers lose, as float64, what tells them apart: more than a little of their spread."""
    if int(array.max()) <= 2**53 and int(array.min()) >= -(2**53):
        return False
    wide = array.astype(np.float64)
    rounding = np.array([int(one) - int(other) for one, other in zip(array, wide, strict=True)], dtype=float)
    return bool(np.abs(rounding).max() > 1e-4 * wide.std())


def read_frame(path: Path) -> Any:  # noqa: ANN401
    """A table as pandas reads it, its columns named by words.

    Args:
        path: a .csv or .parquet file.

    Raises:
        ValueError: it cannot be read, or has no rows.
    """
    frame = _read(path)
    if not len(frame):
        raise ValueError(f"{path}: the table has no rows: expected at least one; check how it was written")
    frame.columns = [str(name) for name in frame.columns]
    return frame


def _read(path: Path) -> Any:
    # Imported here: pandas takes a second, and only tables need it.
    import pandas as pd  # type: ignore[import-untyped]

    try:
        if path.suffix == ".csv":
            # In one piece, and to the last digit, which is the default since pandas 3.1.
            is_exact = tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1)
            frame = pd.read_csv(path, low_memory=False, **({} if is_exact else {"float_precision": "round_trip"}))
            names = [str(name) for name in frame.columns]
            if not isinstance(frame.index, pd.RangeIndex) or any(";" in name or "\t" in name for name in names):
                # pandas takes the fields that are too many for an index, and shifts the columns.
                raise Refused(
                    f"{path}: expected commas between columns, decimal points, and as many fields in a row as names; "
                    f"got the first line {','.join(names)[:80]!r} with other separators, decimal commas or a trailing "
                    "comma in each row. Write it by pd.read_csv(path, sep=';', decimal=',', index_col=False)"
                    ".to_csv(path, index=False)."
                )
            return frame
        _require_room(path)
        return pd.read_parquet(path)
    except Refused:
        raise
    except ImportError as error:
        raise ValueError(
            f"{path}: reading .parquet needs pyarrow, which is not installed: try pip install pyarrow, or save the "
            "table as .csv"
        ) from error
    # What the readers raise for damaged files has no common type.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read ({reason}): expected a table with named columns, written by to_csv(index=False) or "
            "to_parquet"
        ) from error


def _require_room(path: Path) -> None:
    """A few bytes of a .parquet file can stand for any number of rows."""
    try:
        from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]

        about = read_metadata(path)
    except (ImportError, OSError, ValueError):
        # Reading it says what is wrong.
        return
    require_memory(str(path), 8 * about.num_rows * about.num_columns, "unpacks to", "save fewer rows or columns")


def _check_header(path: Path, names: list[str]) -> None:
    """A first line that names nothing: a row of data taken for names, or an index that was written along."""
    if unnamed := [name for name in names if re.fullmatch(r"Unnamed: \d+", name)]:
        raise ValueError(
            f"{path}: a column without a name ({unnamed[0]}), perhaps an index: write the table with "
            "to_csv(index=False), or choose columns="
        )
    if all(_is_number(name) for name in names) and names != [str(i) for i in range(len(names))]:
        raise ValueError(
            f"{path}: the first line holds numbers ({', '.join(names[:3])}, ...) and not the names of the columns: "
            "expected names there; add a first line, or choose columns="
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def numbers_of(column: Any) -> np.ndarray | None:  # noqa: ANN401
    """The column as numbers, or None where it has none."""
    from pandas.api import types  # type: ignore[import-untyped]

    if types.is_bool_dtype(column.dtype) and not column.isna().any():
        return column.to_numpy(dtype=bool)
    if types.is_integer_dtype(column.dtype) and not column.isna().any():
        # The cast would wrap numbers from 2**63 on around to negative ones.
        return column.to_numpy(dtype=np.uint64 if types.is_unsigned_integer_dtype(column.dtype) else np.int64)
    if types.is_integer_dtype(column.dtype):
        # Numbers with gaps become real numbers, which hold whole ones up to 2**53 alone.
        seen = column.dropna()
        whole = seen.to_numpy(dtype=np.uint64 if types.is_unsigned_integer_dtype(column.dtype) else np.int64)
        if len(whole) and _loses(whole):
            raise ValueError(
                f"column {column.name!r}: expected whole numbers below 2**53 beside missing values; got "
                f"{int(whole.max())}. Subtract an offset, or fill the gaps in."
            )
    if types.is_numeric_dtype(column.dtype) and not types.is_complex_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return None


def _labels(path: Path, label: str, column: Any) -> Int[Tensor, " N"]:
    from pandas.api import types  # type: ignore[import-untyped]

    if column.isna().any():
        raise ValueError(
            f"{path}: label {label!r} is empty in {int(column.isna().sum())} rows: expected a label in each; fill "
            "them in, or leave label= out"
        )
    if types.is_float_dtype(column.dtype):
        raise ValueError(
            f"{path}: label {label!r} holds real numbers: expected integers or names of classes; name another column"
        )
    if types.is_unsigned_integer_dtype(column.dtype) and int(column.max()) > 2**63 - 1:
        raise ValueError(
            f"{path}: label {label!r}: expected whole numbers below 2**63; got {int(column.max())}. Number the classes "
            "from 0 on."
        )
    if types.is_integer_dtype(column.dtype) or types.is_bool_dtype(column.dtype):
        return torch.tensor(column.to_numpy(dtype=np.int64))
    return torch.from_numpy(np.unique(column.astype(str).to_numpy(dtype=str), return_inverse=True)[1])
