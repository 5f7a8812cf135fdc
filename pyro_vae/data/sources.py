"""What was found, checked and not yet split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pyro_vae.data.streams import FileRows, Rows, SparseArray, SparseRows, StoredArray, blocks, to_tensor

__all__ = ["Found", "Missing", "Part", "Source", "check_labels", "check_part", "make_source"]

Missing = Literal["refuse", "keep"]


class Found(NamedTuple):
    """An array as it was found, or one that stays in its file or is sparse, its name in errors, and its labels."""

    where: str
    array: np.ndarray | SparseArray | StoredArray
    labels: Int[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Part:
    """Checked values (N, P), labels, and what one pass over the values showed.

    Args:
        values: values as stored.
        labels: class labels, shape (N,), or None.
        low: smallest stored value.
        high: largest stored value.
        has_missing: whether some are NaN.
    """

    values: Rows
    labels: Int[Tensor, " N"] | None
    low: float
    high: float
    has_missing: bool = False


@dataclass(frozen=True)
class Source:
    """What was found, not yet split.

    Args:
        parts: "train" (or "all", to be split), and perhaps "validation" and "test".
        image_shape: shape of a datapoint that is an image, else None.
        divisor: `values / divisor` is x.
        maximum: `values / maximum` is the probability that binarization takes.
        num_validation: default size of the validation split.
        num_test: default size of the test split.
        columns: name of each value in a datapoint.
    """

    parts: Mapping[str, Part]
    image_shape: tuple[int, ...] | None
    divisor: float = 1.0
    maximum: float = 1.0
    num_validation: int | None = None
    num_test: int | None = None
    columns: tuple[str, ...] | None = None

    @property
    def low(self) -> float:
        """The smallest stored value of all parts."""
        return min(part.low for part in self.parts.values())

    @property
    def high(self) -> float:
        """The largest stored value of all parts."""
        return max(part.high for part in self.parts.values())

    @property
    def has_missing(self) -> bool:
        """Whether some values are NaN."""
        return any(part.has_missing for part in self.parts.values())

    @property
    def levels(self) -> tuple[int, float] | tuple[None, None]:
        """Number of levels that x has by its type, and the step between them."""
        if next(iter(self.parts.values())).values.dtype.is_floating_point or self.low < 0:
            return None, None
        if self.divisor != 1.0:
            return round(self.divisor) + 1, 1 / self.divisor
        return max(round(self.high) + 1, 2), 1.0


def make_source(
    name: str,
    found: Mapping[str, Found],
    *,
    missing: Missing,
    remedy: str = "x[np.isfinite(x).reshape(len(x), -1).all(1)]",
) -> Source:
    """Arrays as a source: checked, flattened, gray levels told from counts.

    Args:
        name: what the arrays come from.
        found: the arrays by split: "train" or "all", ...
        missing: whether NaN is refused, or kept as a value that was not observed.
        remedy: code that leaves out rows with NaN or infinity.

    Raises:
        ValueError: an array has a wrong shape or type, is empty or not finite, or the arrays do not go together.
    """
    parts = {which: check_part(*each, missing=missing, remedy=remedy) for which, each in found.items()}
    shapes = {each.where.removeprefix(f"{name}: "): each.array.shape[1:] for each in found.values()}
    if len(set(shapes.values())) > 1 or len({part.values.dtype for part in parts.values()}) > 1:
        listed = ", ".join(f"{key} has (N, {', '.join(map(str, shape))})" for key, shape in shapes.items())
        raise ValueError(f"{name}: expected splits of one shape and type, {listed}; save them alike")
    shape = next(iter(shapes.values()))
    image_shape = None if len(shape) == 1 else (shape[:2] if shape[2:] == (1,) else shape)
    source = Source(parts, image_shape)
    gray = next(iter(parts.values())).values.dtype == torch.uint8 and source.high > 1
    maximum = 255.0 if gray else 1.0
    return Source(parts, image_shape, divisor=maximum, maximum=maximum)


def check_part(
    where: str,
    array: np.ndarray | SparseArray | StoredArray,
    labels: Int[Tensor, " N"] | None,
    *,
    missing: Missing,
    remedy: str,
) -> Part:
    """The array as rows (N, P), read once, or an error that says what is wrong with it.

    What a memory map shows stays in its file.

    Raises:
        ValueError: it has a wrong shape or type, is empty, or has values that are not finite.
    """
    shapes = "rows (N, P) or images (N, H, W) or (N, H, W, C)"
    if array.dtype.kind not in "buif":
        raise ValueError(f"{where} has type {array.dtype}: expected real numbers, try x.astype(float)")
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"{where} has shape {array.shape}: expected {shapes}, try x.reshape(num_data, -1)")
    if array.size == 0:
        raise ValueError(f"{where} has shape {array.shape}: expected {shapes} with at least one value")
    if array.ndim == 4 and array.shape[1] in (1, 3, 4) and array.shape[3] not in (1, 3, 4):
        raise ValueError(f"{where} has shape {array.shape}: expected channels last, try np.moveaxis(x, 1, -1)")
    if isinstance(array, np.memmap):
        array = StoredArray.of(array) or array
    num_data = array.shape[0]
    values: Rows
    if isinstance(array, StoredArray):
        values = FileRows(array, torch.arange(num_data))
    elif isinstance(array, SparseArray):
        values = SparseRows(array, torch.arange(num_data))
    else:
        values = to_tensor(array.reshape(num_data, -1))
    return Part(values, labels, *_survey(where, values, missing, remedy))


def check_labels(where: str, labels: np.ndarray, num_data: int) -> Int[Tensor, " N"]:
    """The labels as integers.

    Raises:
        ValueError: they are not one integer a row.
    """
    if labels.shape != (num_data,) or labels.dtype.kind not in "bui":
        raise ValueError(
            f"{where} has shape {labels.shape} and type {labels.dtype}: expected {num_data} integers, one a row, "
            "or leave the labels out"
        )
    if labels.dtype.kind == "u" and labels.size and int(labels.max()) > 2**63 - 1:
        # The cast would wrap it around to a negative number.
        raise ValueError(
            f"{where}: expected whole numbers below 2**63; got {int(labels.max())}. Number the classes: "
            "np.unique(labels, return_inverse=True)[1]."
        )
    return torch.from_numpy(labels.astype(np.int64))


def _survey(where: str, values: Rows, missing: Missing, remedy: str) -> tuple[float, float, bool]:
    """Smallest and largest value, and whether some are missing."""
    low, high, has_missing = np.inf, -np.inf, False
    num_bad, first_bad = 0, -1
    for start, block in blocks(values):
        observed = block
        if block.is_floating_point():
            absent = block.isnan()
            has_missing |= bool(absent.any())
            observed = block[~absent]
            wrong = block.isinf() | (absent if missing == "refuse" else False)
            bad = wrong.any(1).nonzero().flatten()
            if len(bad) and not num_bad:
                first_bad = start + int(bad[0])
            num_bad += len(bad)
        if observed.numel():
            least, most = observed.aminmax()
            low, high = min(low, float(least)), max(high, float(most))
    if num_bad:
        rows = f"{num_bad} row{'s' if num_bad > 1 else ''}, the first is row {first_bad}"
        if missing == "keep":
            raise ValueError(
                f"{where} has infinity in {rows}: expected finite values or NaN, try x[np.isinf(x)] = np.nan"
            )
        keep = ", or missing='keep', which takes NaN for values that were not observed" if has_missing else ""
        raise ValueError(f"{where} has NaN or infinity in {rows}: expected finite values, try {remedy}{keep}")
    if low > high:
        raise ValueError(f"{where} has no value that was observed: expected some numbers beside NaN; check the file")
    return low, high, has_missing
