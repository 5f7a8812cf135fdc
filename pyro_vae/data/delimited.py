"""Text files with separators: checked line by line before pandas reads them."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.data.arrays import Refused

__all__ = ["Form", "read_csv", "unlike_numbers"]

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas", " ": "spaces"}
_WORDS = {"tab": "\t", "\\t": "\t"}


@dataclass(frozen=True, kw_only=True)
class Form:
    r"""How a text file writes a table.

    Args:
        separator: the character between columns; None: a comma. "tab" is a tab.
        decimal: what stands before the decimals, "." or ","; None: a point.
        prefix: what the command line puts before the names of the two options, for errors.

    Raises:
        ValueError: one of them is something else.

    Example:
        >>> Form(separator="tab").separator
        '\t'
    """

    separator: str | None = None
    decimal: str | None = None
    prefix: str = "--data."

    def __post_init__(self) -> None:
        """Check both, and take the defaults."""
        asked = "," if self.separator is None else self.separator
        separator = _WORDS.get(asked, asked) if isinstance(asked, str) else asked
        usable = isinstance(separator, str) and len(separator) == 1 and separator.isascii()
        if not usable or separator.isalnum() or (separator != "\t" and not separator.isprintable()):
            usable = False
        if not usable or separator in "\"'+-._":
            raise ValueError(
                f"separator={self.separator!r}: expected one character that stands between columns, such as ',', ';', "
                "'|' or 'tab'; choose one"
            )
        decimal = "." if self.decimal is None else self.decimal
        if decimal not in (".", ","):
            raise ValueError(f"decimal={self.decimal!r}: expected '.' or ','; choose one")
        object.__setattr__(self, "separator", separator)
        object.__setattr__(self, "decimal", decimal)

    def option(self, separator: str | None = None, decimal: str | None = None) -> str:
        """How to ask for another form, in Python and on the command line."""
        in_python, in_words = [], []
        if separator is not None:
            word = "tab" if separator == "\t" else separator
            in_python.append(f'separator="{word}"')
            in_words.append(f"{self.prefix}separator {word if word.isalnum() or word == ',' else repr(word)}")
        if decimal is not None:
            in_python.append(f'decimal="{decimal}"')
            in_words.append(f"{self.prefix}decimal {decimal}")
        return f"{', '.join(in_python)} ({' '.join(in_words)})"


def read_csv(path: Path, form: Form) -> Any:  # noqa: ANN401
    """A text file as pandas reads it, once every row has as many fields as the first line has names.

    pandas takes the fields that are too many for an index and fills up those that are too few, so that values stand in
    columns of another name.

    Args:
        path: the file.
        form: its separator and its decimals.

    Raises:
        ValueError: the rows or the names do not fit, or the file is no text.
    """
    # Imported here: pandas takes a second, and only tables need it.
    import pandas as pd  # type: ignore[import-untyped]

    header, num_rows = _checked(path, form)
    # In one piece, and to the last digit, which is the default since pandas 3.1.
    is_exact = tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1)
    frame = pd.read_csv(
        path,
        sep=form.separator,
        decimal=form.decimal,
        index_col=False,
        low_memory=False,
        **({} if is_exact else {"float_precision": "round_trip"}),
    )
    if frame.shape != (num_rows, len(header)):
        raise Refused(
            f"{path}: expected {num_rows} rows of {len(header)} fields, as its lines and quotation marks say; pandas "
            f"reads {frame.shape[0]} of {frame.shape[1]}. Look for a quotation mark without a second one."
        )
    return frame


def _checked(path: Path, form: Form) -> tuple[list[str], int]:
    """The names in the first line, and the number of rows after it."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, delimiter=str(form.separator))
            header = next((row for row in reader if not _is_blank(row)), [])
            if not header:
                raise Refused(
                    f"{path} cannot be read (it is empty): expected a table with named columns, written by "
                    "to_csv(index=False)"
                )
            wanted, num_rows, start = len(header), 0, reader.line_num + 1
            for row in reader:
                if len(row) != wanted or wanted == 1:
                    if _is_blank(row):
                        start = reader.line_num + 1
                        continue
                    if len(row) != wanted or not num_rows:
                        _check_row(path, form, header, row, start)
                num_rows += 1
                start = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise Refused(
            f"{path} cannot be read (byte {error.object[error.start]:#04x} is no UTF-8): expected a table with named "
            "columns, as text in UTF-8. Of another encoding, such as latin-1 or utf-16, save it again: "
            "pd.read_csv(path, encoding=...).to_csv(path, index=False)."
        ) from error
    finally:
        csv.field_size_limit(limit)
    _check_names(path, header)
    return header, num_rows


def _is_blank(row: list[str]) -> bool:
    """A line that pandas passes over."""
    return not row or (len(row) == 1 and row[0] != "" and not row[0].strip(" \t"))


def _check_row(path: Path, form: Form, header: list[str], row: list[str], line: int) -> None:
    """Refuse a row of another length than the header, by its line, with the likely cause."""
    used = str(form.separator)
    if len(header) == 1:
        for other in _SEPARATORS:
            num = header[0].count(other)
            if other != used and num and used.join(row).count(other) == num:
                fields = used.join(row).split(other)
                commas = other != "," and any(re.fullmatch(r"\s*[-+]?\d*,\d+\s*", field) for field in fields)
                decimal = "," if commas else "." if form.decimal == "," else None
                raise Refused(
                    f"{path}: expected {_SEPARATORS.get(used, repr(used))} between columns; the first line has none, "
                    f"but {_SEPARATORS[other]}{', and its numbers have decimal commas' if commas else ''}: "
                    f"{header[0][:60]!r}. Read it with {form.option(other, decimal)}."
                )
    if len(row) == len(header):
        return
    extra = len(row) - len(header)
    if any("\n" in field for field in row):
        cause = "Perhaps a quotation mark lacks its second one; close it."
    elif extra == 1 and not row[-1]:
        cause = (
            f"Perhaps a separator {used!r} at the end of each row; take it away, or add a name to the first line, "
            "and choose columns=."
        )
    elif extra > 0 and used == "," and sum(bool(re.fullmatch(r"\d+", field.strip())) for field in row) > extra:
        cause = (
            "Perhaps decimal commas, which cannot be told from the separator; write decimal points, or another "
            f"separator, and read it with {form.option(';', ',')}. Or values without a name; name them all."
        )
    elif extra == 1:
        cause = (
            "Perhaps names of rows, for which the first line has no name (of R: write.csv(row.names=FALSE)); leave "
            "them out, or name them."
        )
    elif extra > 0:
        cause = f"Perhaps {used!r} within a text without quotation marks; put such texts in quotation marks."
    elif not header[-1]:
        cause = f"Perhaps a separator {used!r} at the end of the first line; take it away."
    else:
        cause = "Perhaps the line was cut short, or is no row of the table; complete it, or take it away."
    raise Refused(
        f"{path} cannot be read (line {line} has {len(row)} fields, the first line {len(header)} names): expected a "
        f"table with named columns, with as many fields in each row. {cause}"
    )


def _check_names(path: Path, header: Sequence[str]) -> None:
    """Refuse names that occur twice, for which pandas would make up others."""
    named = [name for name in header if name.strip()]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        if all(_WHOLE.fullmatch(name) or any(mark.fullmatch(name) for mark in _DECIMAL.values()) for name in named):
            raise Refused(
                f"{path}: the first line holds numbers ({', '.join(named[:3])}, ...) and not the names of the columns: "
                "expected names there; add a first line"
            )
        raise Refused(f"{path}: expected columns of different names; {twice!r} is there twice. Rename one.")


_GROUPS = re.compile(r"[-+]?\d{1,3}(?:([.,' \u00a0\u202f])\d{3})(?:\1\d{3})*(?:[.,]\d*)?")
_DECIMAL = {
    mark: re.compile(rf"[-+]?(?:\d+{re.escape(mark)}\d*|{re.escape(mark)}\d+)(?:[eE][-+]?\d+)?") for mark in ".,"
}
_WHOLE = re.compile(r"[-+]?\d+(?:[eE][-+]?\d+)?")


def unlike_numbers(column: Any, form: Form | None) -> str | None:  # noqa: ANN401
    """What makes a column of numbers one of text: decimal commas, or marks between thousands.

    Args:
        column: a column of a table that holds text.
        form: the form of its file; None where it has none that could be chosen.

    Returns:
        A value with what it has, and what to do, in words; None where it has neither.
    """
    values = [value.strip() for value in column.dropna() if isinstance(value, str) and value.strip()]
    odd = [value for value in values if not _WHOLE.fullmatch(value)]
    if not odd:
        return None
    read = "." if form is None else form.decimal
    other = "," if read == "." else "."
    # Of all values, so that names with a comma are no numbers.
    if all(
        _GROUPS.fullmatch(value) or _DECIMAL["."].fullmatch(value) or _DECIMAL[","].fullmatch(value) for value in odd
    ):
        grouped = [value for value in odd if _GROUPS.fullmatch(value)]
        decimals = [value for value in odd if _DECIMAL[other].fullmatch(value)]
        plain = [value for value in decimals if not _GROUPS.fullmatch(value)]
        mark = "comma" if other == "," else "point"
        fix = f"read it with {form.option(decimal=other)}" if form is not None else "write decimal points"
        if len(decimals) == len(odd) and plain:
            return f"{plain[0]!r}, with a decimal {mark}: {fix}"
        if len(decimals) == len(odd):
            return (
                f"{odd[0]!r}, with a decimal {mark} or a mark between thousands: {fix} if the first, else write the "
                "numbers without marks between thousands"
            )
        if grouped:
            return f"{grouped[0]!r}, with a mark between thousands: write the numbers without such marks"
        clash = next((value for value in odd if _DECIMAL[other].fullmatch(value)), odd[0])
        return f"{clash!r} among numbers with another decimal mark: write all with one"
    return None
