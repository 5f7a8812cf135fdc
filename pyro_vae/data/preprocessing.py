"""The preprocessing of a fit's data, applied to rows that were not there when the model was fitted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.data.arrays import find_array, read_archive, read_whole, require_memory
from pyro_vae.data.delimited import Form, unlike_numbers
from pyro_vae.data.narrowing import count_different
from pyro_vae.data.records import Binarize, Dataset, Split
from pyro_vae.data.sparse import MEMBERS, is_archive, unpack_sparse
from pyro_vae.data.standardization import Standardization
from pyro_vae.data.streams import opened
from pyro_vae.data.tables import check_header, numbers_of, read_frame
from pyro_vae.names import did_you_mean

__all__ = ["NewRows", "Preprocessing"]

_FILES = (".csv", ".parquet", ".npy", ".npz")
# Columns that a message names.
_NAMED = 8


@dataclass(frozen=True, eq=False)
class NewRows:
    """Rows to which a fitted model is applied, in the order of their file.

    Args:
        where: name of the file or the object, for errors.
        x: (N, P) values as the model takes them.
        columns: the values as the file holds them, by the name of their column.
        scale: (P,) factor from `x` back to the file's unit.
        shift: (P,) offset from `x` back to the file's unit, added after the factor.
        shape: shape of a datapoint.
        id_name: name of the column that identifies rows, or None.
        ids: (N,) its values, or None.
        notes: sentences on how the values were read.
    """

    where: str
    x: Float[Tensor, "N P"]
    columns: Mapping[str, np.ndarray]
    scale: Float[Tensor, " P"]
    shift: Float[Tensor, " P"]
    shape: tuple[int, ...]
    id_name: str | None = None
    ids: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.x)

    def in_file_units(self, x: Float[Tensor, "*N P"]) -> Float[Tensor, "*N P"]:
        """Values of x in the unit of the file, float64.

        Args:
            x: values as the model has them, (*N, P).
        """
        return x.double() * self.scale + self.shift

    def require(self, right: Tensor, expected: str, fix: str) -> None:
        """Refuse values, and name the row and the column of the first of them.

        Args:
            right: (N, P) which values are as expected.
            expected: the expectation, in words.
            fix: what to do about the others, a sentence.

        Raises:
            ValueError: some are not.
        """
        if bool(right.all()):
            return
        row, place = torch.nonzero(~right)[0].tolist()
        name, values = list(self.columns.items())[place]
        wrong = int((~right).any(1).sum())
        more = f" ({wrong} such rows)" if wrong > 1 else ""
        raise ValueError(
            f"{self.where}: row {row}, column {name!r}: expected {expected}; got {_shown(values[row])}{more}. {fix}"
        )


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the data of a fit were read: all that is needed to read further rows in the same way, without those data.

    Args:
        num_values: P, values in a datapoint.
        image_shape: shape of a datapoint that is an image, else None.
        columns: names of the values, where the fit's file was a table.
        divisor: `value / divisor` is x, or, where x is binarized, the probability that it is 1.
        is_real: whether the fit's values were real numbers, and not integers or booleans.
        binarize: the fit's choice.
        binarize_seed: seed of the draws.
        standardization: the map from the unit of the fit's data, divided, to x; None where x has that unit.

    Example:
        >>> from pyro_vae import load
        >>> how = Preprocessing.of(load("digits"))
        >>> how.read(np.full((2, 64), 3), dtype=torch.float32).x.shape
        torch.Size([2, 64])
    """

    num_values: int
    image_shape: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None
    divisor: float = 1.0
    is_real: bool = True
    binarize: Binarize = "none"
    binarize_seed: int = 0
    standardization: Standardization | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The preprocessing of a data set.

        Args:
            dataset: as `load` returned it.
        """
        return cls(
            num_values=dataset.num_values,
            image_shape=dataset.image_shape,
            columns=dataset.columns,
            divisor=dataset.divisor,
            is_real=dataset.is_real,
            binarize=dataset.binarize,
            binarize_seed=dataset.binarize_seed,
            standardization=dataset.standardization,
        )

    def to_config(self) -> dict[str, Any]:
        """The same as a dictionary that JSON can hold."""
        units = self.standardization
        kept = None if units is None else {"location": units.location.tolist(), "scale": units.scale.tolist()}
        return {**asdict(replace(self, standardization=None)), "standardization": kept}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """What `to_config` wrote.

        Args:
            config: a run's `config["data"]["preprocessing"]`.
        """
        # JSON has no tuples.
        kept: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
        }
        if (units := kept.get("standardization")) is not None:
            kept["standardization"] = Standardization(
                torch.tensor(units["location"], dtype=torch.float64), torch.tensor(units["scale"], dtype=torch.float64)
            )
        return cls(**kept)

    def read(
        self,
        data: Any,  # noqa: ANN401
        *,
        dtype: torch.dtype,
        allow_missing: bool = False,
        key: str | None = None,
        id_column: str | None = None,
        separator: str | None = None,
        decimal: str | None = None,
    ) -> NewRows:
        """Read rows as those of the fit were read; one row is enough, and labels need not be there.

        Columns of a table are found by name, in any order. Whether values are divided, and by how much, was decided by
        the fit's data: the type and the range of the new values decide nothing, and where they contradict it they are
        refused. A binarized row depends on the seed and its own values alone.

        Args:
            data: a path that ends in .csv, .parquet, .npy or .npz; a tensor, an array or a pandas DataFrame, whose
                values are in the unit of the fit's file; or a `Split` of the fit's data set.
            dtype: floating-point type of x.
            allow_missing: whether NaN stands for a value that was not observed; it is refused otherwise.
            key: array of a .npz file that holds the rows; None: x.
            id_column: column of a table that identifies its rows.
            separator: of a .csv file, the character between columns, such as ";" or "tab"; None: a comma.
            decimal: of a .csv file, the decimal mark, "." or ","; None: a point.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the rows cannot be read, lack a column, have another shape, or hold values that the fit's data
                could not; the message names row and column.
        """
        form = Form(separator=separator, decimal=decimal, prefix="--")
        if not (isinstance(data, str | os.PathLike) and os.fspath(data).endswith(".csv")):
            where = data if isinstance(data, str | os.PathLike) else type(data).__name__
            _refuse_option("separator", separator, where, ".csv files")
            _refuse_option("decimal", decimal, where, ".csv files")
        found = self._find(data, key=key, id_column=id_column, form=form)
        found.require(
            ~found.x.isinf() if allow_missing else found.x.isfinite(),
            "a finite number" + (", or nothing where a value was not observed" if allow_missing else ""),
            "Correct the value, or drop the row."
            if allow_missing
            else "Fill the value in, or drop the row; only a run whose likelihood has mask=True (--likelihood.mask) "
            "takes rows with missing values.",
        )
        scale, notes = (1.0, []) if isinstance(data, Split) else self._unit(found)
        # What is filled in for a bit is a probability: in the unit of the file it is one of the levels between.
        factor = torch.full((self.num_values,), scale, dtype=torch.float64)
        wide = found.x / scale
        if self.binarize != "none" and not isinstance(data, Split):
            inside = (wide >= 0) & (wide <= 1) | wide.isnan()
            found.require(inside, f"a number from 0 to {scale:g}", "Bring the values in the unit of the fit's data.")
            wide = self._binarized(found.x, wide)
            notes.append(
                f"x was drawn as 0 or 1 with probability value / {scale:g}, seed {self.binarize_seed}: what is "
                "computed is about this draw."
            )
            scale = 1.0
        # As a split divides: in the type of x.
        shift = torch.zeros_like(factor)
        if self.standardization is not None:
            x = self.standardization.apply(wide, dtype=dtype)
            factor, shift = scale * self.standardization.scale, scale * self.standardization.location
        else:
            x = wide.to(dtype) if scale == 1.0 else found.x.to(dtype) / scale
        found.require(x.isfinite() | wide.isnan(), f"a number within the range of {dtype}", "Rescale the values.")
        if self.standardization is None and self.binarize == "none":
            notes += self._narrowed(found, wide, x)
        return replace(found, x=x, scale=factor, shift=shift, notes=(*found.notes, *notes))

    def _narrowed(self, found: NewRows, wide: Tensor, x: Tensor) -> list[str]:
        """Refuse values that became others as x, and columns that lost what tells them apart; a note on the rest."""
        fix = (
            "Fit in the type that holds them, load(..., dtype='float64') (--dtype float64), or with standardize=True "
            "(--data.standardize)."
        )
        tiny = torch.finfo(x.dtype).tiny
        found.require((wide == 0) | ~(x.abs() < tiny), f"0, or a number that {x.dtype} tells from 0", fix)
        rounded = (x.double() != wide) & (wide == wide.round())
        if not self.is_real:
            found.require(~rounded, f"a whole number that {x.dtype}, the type of the run, holds to the last digit", fix)
        before, after = count_different(wide, x.dtype)
        names = list(found.columns)
        if collapsed := [names[p] for p in (2 * after < before).nonzero().flatten().tolist()]:
            place = names.index(collapsed[0])
            raise ValueError(
                f"{found.where}: expected columns that keep their digits as {x.dtype}, the type of the run; got "
                f"{_listed(collapsed)}: {int(before[place])} different values of {collapsed[0]!r} become "
                f"{int(after[place])}. {fix}"
            )
        if lossy := [name for name, lost in zip(names, rounded.any(0).tolist(), strict=True) if lost]:
            return [
                f"Whole numbers in {_listed(lossy)} have more digits than {x.dtype} holds, the type of the run: they "
                "were rounded. A fit by --data.standardize or --dtype float64 keeps them apart."
            ]
        return []

    def _find(self, data: Any, *, key: str | None, id_column: str | None, form: Form) -> NewRows:  # noqa: ANN401
        """The rows as they are stored, as float64, with the notes on their columns."""
        if isinstance(data, str | os.PathLike):
            path = Path(data).expanduser()
            if path.suffix not in _FILES:
                raise ValueError(
                    f"{data}: expected a file of rows, a path ending in {', '.join(_FILES[:-1])} or {_FILES[-1]}; got "
                    f"{path.suffix or 'a name without an ending'}. Save the rows as one of these."
                )
            if not path.exists():
                raise FileNotFoundError(f"{path}: expected a file of rows; there is none. Check the path.")
            if path.suffix in (".csv", ".parquet"):
                _refuse_option("key", key, path, ".npz files")
                with opened(path):
                    frame = read_frame(path, form)
                return self._from_frame(str(path), frame, id_column, form if path.suffix == ".csv" else None)
            _refuse_option("id_column", id_column, path, "tables")
            return self._from_array(str(path), _read_array(path, key))
        name = type(data).__name__
        _refuse_option("key", key, name, ".npz files")
        if hasattr(data, "iloc") and hasattr(data, "columns"):
            frame = data.copy(deep=False)
            frame.columns = [str(column) for column in frame.columns]
            return self._from_frame(name, frame, id_column)
        _refuse_option("id_column", id_column, name, "tables")
        if isinstance(data, Split):
            units, data = data.standardization, data.fix().tensor()
            data = data if units is None else units.invert(data)
        if isinstance(data, Tensor):
            if data.layout is not torch.strided or data.is_meta or data.is_complex():
                raise ValueError(f"x: expected a dense tensor of real numbers; got {data.dtype}, {data.layout}.")
            data = (data.float() if data.dtype == torch.bfloat16 else data).detach().cpu().numpy()
        if hasattr(data, "toarray"):
            # A sparse matrix; its rows are needed whole.
            data = data.toarray()
        if isinstance(data, np.ma.MaskedArray):
            raise ValueError("x: expected plain values; got a masked array. Pass x.filled(np.nan).")
        if not isinstance(data, np.ndarray):
            raise TypeError(
                f"x: expected a path, a tensor, an array, a DataFrame or a Split; got a {name}. Stack its rows to "
                "an array (N, P)."
            )
        return self._from_array("x", data)

    def _from_array(self, where: str, array: np.ndarray) -> NewRows:
        if array.dtype.kind not in "buif":
            raise ValueError(f"{where}: expected real numbers; got type {array.dtype}. Try x.astype(float).")
        shape = self.image_shape or (self.num_values,)
        known = (shape, (*shape, 1), (self.num_values,))
        fits = array.shape[1:] in known or (self.image_shape is None and prod(array.shape[1:]) == self.num_values)
        if array.ndim < 2 or not fits:
            wanted = ", ".join(map(str, shape))
            hint = "Add the dimension of rows: x[None]." if array.shape in known else "Bring the values of the fit."
            raise ValueError(
                f"{where}: expected shape (N, {wanted}), {self.num_values} values a row as the run was fitted to; got "
                f"{array.shape}. {hint}"
            )
        if not len(array):
            raise ValueError(f"{where}: expected at least one row; got shape {array.shape}. Check how it was written.")
        array = array.reshape(len(array), -1)
        notes = []
        names = self.columns or tuple(f"x{place}" for place in range(self.num_values))
        if self.columns is not None:
            notes.append(f"The values have no names: they were taken in the order {_listed(self.columns)}.")
        return NewRows(
            where, _wide(array), dict(zip(names, array.T, strict=True)), *_same(array), shape, notes=tuple(notes)
        )

    def _from_frame(
        self,
        where: str,
        frame: Any,  # noqa: ANN401
        id_column: str | None,
        form: Form | None = None,
    ) -> NewRows:
        names = list(frame.columns)
        if not len(frame):
            raise ValueError(f"{where}: expected at least one row; the table has none. Check how it was written.")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{where}: expected columns of different names; {twice!r} is there twice. Rename one.")
        if id_column is not None and id_column not in names:
            raise ValueError(
                f"id: {where} has no column {id_column!r}.{did_you_mean(id_column, names)} Expected one of "
                f"{_listed(names)}."
            )
        notes = []
        by_name = self.columns
        numbered = [tuple(f"{prefix}{place}" for place in range(self.num_values)) for prefix in ("x", "")]
        if by_name is None:
            # Of values without names the number of the column is the name, in any order.
            by_name = next((known for known in numbered if set(known) <= set(names)), None)
        if by_name is not None:
            lacking = [name for name in by_name if name not in names]
            if lacking:
                raise ValueError(
                    f"{where}: expected the columns that the run was fitted to; it lacks {_listed(lacking)}."
                    f"{did_you_mean(lacking[0], names)} It has {_listed(names)}. Rename or add them."
                )
            chosen = list(by_name)
        else:
            chosen = [name for name in names if name != id_column]
            if form is not None:
                check_header(Path(where), chosen)
            if len(chosen) != self.num_values:
                raise ValueError(
                    f"{where}: expected {self.num_values} columns, as many values as the run was fitted to, which have "
                    f"no names; got {len(chosen)}: {_listed(chosen)}. Leave out the others, or save them with np.save."
                )
            notes.append(f"The fit's values have no names: columns were taken in the order {_listed(chosen)}.")
        arrays = {name: numbers_of(frame[name]) for name in chosen}
        for name, array in arrays.items():
            if array is None and (found := unlike_numbers(frame[name], form)):
                raise ValueError(f"{where}: column {name!r}: expected numbers; got {found}.")
            if array is None:
                raise ValueError(
                    f"{where}: column {name!r}: expected numbers; got {_first_text(frame[name])}. Write its values as "
                    "numbers."
                )
        columns = {name: array for name, array in arrays.items() if array is not None}
        if others := [name for name in names if name not in columns and name != id_column]:
            notes.append(f"Ignored: {_listed(others)}, which the run was not fitted to.")
        ids = None if id_column is None else frame[id_column].to_numpy()
        if ids is not None and ids.dtype == object:
            # Of several types they could be written to no file.
            ids = np.array([value if isinstance(value, str) else str(value) for value in ids], dtype=object)
        x = np.column_stack([array.astype(np.float64) for array in columns.values()])
        return NewRows(where, _wide(x), columns, *_same(x), (self.num_values,), id_column, ids, tuple(notes))

    def _unit(self, found: NewRows) -> tuple[float, list[str]]:
        """The divisor of these values, and notes on it."""
        kinds = {array.dtype.kind for array in found.columns.values()}
        eight_bits = {array.dtype for array in found.columns.values()} == {np.dtype(np.uint8)}
        values = found.x[~found.x.isnan()]
        high = float(values.max()) if len(values) else 0.0
        if self.divisor == 1.0:
            if eight_bits and high > 1 and self.is_real:
                raise ValueError(
                    f"{found.where}: expected real numbers, as the run was fitted to; got 8-bit integers up to "
                    f"{high:g}, which a fit divides by 255. Save x.astype(float), divided if the fit's values were."
                )
            return 1.0, []
        unit = f"{self.divisor:g}"
        if kinds == {"b"}:
            if self.binarize != "none":
                return 1.0, ["The values are booleans: taken as x itself."]
            raise ValueError(
                f"{found.where}: expected values from 0 to {unit}, as the run was fitted to; got booleans. Save "
                f"{unit} * x as integers."
            )
        if "f" in kinds and len(values):
            is_whole = bool((values == values.round()).all())
            if not is_whole and 0 <= float(values.min()) and high <= 1:
                return 1.0, [f"The values lie in [0, 1]: taken as divided by {unit} already, as the fit's were."]
            if not is_whole or high <= 1:
                raise ValueError(
                    f"{found.where}: expected integers from 0 to {unit}, or real numbers in [0, 1] with some between; "
                    f"got real numbers from {float(values.min()):g} to {high:g}, of which it is not known whether they "
                    f"are divided by {unit} already, as the fit's were. Save integers: np.uint8 of 0 to {unit}."
                )
        inside = (found.x >= 0) & (found.x <= self.divisor) | found.x.isnan()
        found.require(
            inside, f"a number from 0 to {unit}, as the run was fitted to", "Bring the unit of the fit's data."
        )
        notes = [f"The values were divided by {unit}, as the fit's were."]
        if high == 1:
            notes.append(f"Their largest is 1, which counts as 1 of {unit} and not as one bit.")
        return self.divisor, notes

    def _binarized(self, stored: Tensor, probability: Tensor) -> Tensor:
        """Zeros and ones, drawn row by row from the seed and the values of the row alone."""
        drawn = torch.empty_like(probability)
        for row, (values, p) in enumerate(zip(stored, probability, strict=True)):
            digest = hashlib.blake2b(values.numpy().tobytes(), digest_size=16).digest()
            generator = np.random.default_rng([self.binarize_seed, int.from_bytes(digest, "little")])
            drawn[row] = torch.from_numpy(generator.random(len(p))) < p
        return drawn.masked_fill(probability.isnan(), torch.nan)


def _read_array(path: Path, key: str | None) -> np.ndarray:
    if path.suffix == ".npy":
        _refuse_option("key", key, path, ".npz files")
        array = find_array(path)
        if array is not None:
            # Read, and held once more as x.
            require_memory(str(path), 2 * 8 * array.size, "takes", "apply the run to a part of the rows")
            return read_whole(array)
    name = key or "x"
    arrays, known = read_archive(path, (name,))
    if key is None and not arrays and is_archive(known):
        rows = unpack_sparse(str(path), read_archive(path, MEMBERS)[0])
        # Made dense, and held once more as x.
        require_memory(str(path), 2 * 8 * rows.size, "takes", "apply the run to a part of the rows")
        return rows.matrix.toarray()
    if name not in arrays:
        raise ValueError(
            f"{path}: expected an array {name}; the file has {', '.join(known) or 'nothing'}. Choose one with key= "
            "(--key)."
        )
    return arrays[name]


def _refuse_option(name: str, value: str | None, where: object, kind: str) -> None:
    if value is not None:
        raise ValueError(f"{name}: expected with {kind} alone; got {value!r} for {where}. Leave it out.")


def _wide(array: np.ndarray) -> Tensor:
    # A tensor cannot be read-only.
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _same(array: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.ones(array.shape[1], dtype=torch.float64), torch.zeros(array.shape[1], dtype=torch.float64)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _first_text(column: Any) -> str:  # noqa: ANN401
    """The first value of a column that is no number, with its row."""
    for row, value in enumerate(column):
        try:
            float(value)
        except (TypeError, ValueError):
            return f"{value!r} in row {row}"
    return f"type {column.dtype}"


def _shown(value: Any) -> str:  # noqa: ANN401
    return (
        "a missing value" if value != value else f"{value:g}" if isinstance(value, float | np.floating) else str(value)
    )
