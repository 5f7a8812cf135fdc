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
from pyro_vae.data.delimited import Form, read_csv, unlike_numbers
from pyro_vae.data.sources import Found, Missing, Source, make_source
from pyro_vae.data.streams import opened
from pyro_vae.names import did_you_mean

__all__ = ["check_header", "numbers_of", "read_frame", "read_table"]


def read_table(
    path: Path,
    *,
    missing: Missing,
    columns: Sequence[str] | None,
    label: str | None,
    separator: str | None = None,
    decimal: str | None = None,
) -> Source:
    """The numeric columns of a table as x, one row a datapoint.

    Integers stay counts (none are taken for gray levels); labels that are no integers are numbered in sorted order.

    Args:
        path: the file; a .csv file has the names of its columns in the first line.
        missing: whether empty cells are refused, or kept as values that were not observed.
        columns: the columns of x, in this order; None: all but the labels.
        label: the column of the labels.
        separator: of a .csv file, the character between columns; None: a comma.
        decimal: of a .csv file, the decimal mark, "." or ","; None: a point.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no such columns, or a column of x holds no numbers.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: expected a .csv or .parquet file, check the path")
    form = Form(separator=separator, decimal=decimal)
    with opened(path):
        frame = read_frame(path, form)
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
        check_header(path, names)
    chosen = [name for name in names if name != label] if columns is None else list(columns)
    if not chosen or len(set(chosen)) < len(chosen) or label in chosen:
        raise ValueError(
            f"{path}: columns: expected different columns, at least one, and not the label {label!r} among them; got "
            f"{', '.join(chosen) or 'none'}; choose others"
        )
    arrays = {name: numbers_of(frame[name]) for name in chosen}
    for name in (*chosen, *([] if label is None else [label])):
        _check_values(path, name, frame[name], form)
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


def read_frame(path: Path, form: Form | None = None) -> Any:  # noqa: ANN401
    """A table as pandas reads it, its columns named by words.

    Args:
        path: a .csv or .parquet file.
        form: how a .csv file is written; None: with commas and decimal points.

    Raises:
        ValueError: it cannot be read, or has no rows.
    """
    frame = _read(path, Form() if form is None else form)
    if not len(frame):
        raise ValueError(f"{path}: the table has no rows: expected at least one; check how it was written")
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: expected columns of different names; {twice!r} is there twice. Rename one.")
    frame.columns = names
    return frame


def _check_values(path: Path, name: str, column: Any, form: Form) -> None:
    """Refuse numbers that are text to pandas."""
    if numbers_of(column) is None and (found := unlike_numbers(column, form if path.suffix == ".csv" else None)):
        raise ValueError(f"{path}: column {name!r}: expected numbers; got {found}.")


def _read(path: Path, form: Form) -> Any:
    # Imported here: pandas takes a second, and only tables need it.
    import pandas as pd  # type: ignore[import-untyped]

    try:
        if path.suffix == ".csv":
            return read_csv(path, form)
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


def check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a first line that names nothing: a row of data taken for names, or an index that was written along.

    Args:
        path: the file.
        names: what its first line holds.

    Raises:
        ValueError: a name is empty or that of an index, or all of them are numbers.
    """
    # What pandas calls a column without a name, and Arrow the index of a table.
    unnamed = [place for place, name in enumerate(names) if re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name)]
    given = [name for place, name in enumerate(names) if place not in unnamed]
    if given and all(_is_number(name) for name in given) and list(names) != [str(i) for i in range(len(names))]:
        raise ValueError(
            f"{path}: the first line holds numbers ({', '.join(given[:3])}, ...) and not the names of the columns: "
            "expected names there; add a first line, or choose columns= if they are names"
        )
    if unnamed:
        is_last = names[-1] == f"Unnamed: {len(names) - 1}" and len(names) > 1
        cause = "a separator at the end of each line" if is_last else "an index"
        raise ValueError(
            f"{path}: a column without a name (number {unnamed[-1] + 1} of {len(names)}), perhaps {cause}: write the "
            "table with to_csv(index=False), name it in the first line, or choose columns= (--data.columns)"
        )


def _is_number(text: str) -> bool:
    # With decimal commas, too.
    return re.fullmatch(r"\s*[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?\s*", text) is not None


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
