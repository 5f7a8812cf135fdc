"""A check that values keep their digits in the floating-point type that the model takes them in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from pyro_vae.data.standardization import ColumnStatistics, Standardization, with_block

__all__ = ["Narrowing", "count_different", "is_exact"]

# Root mean square rounding, in standard deviations, that a measured column may lose without a word.
_TOLERANCE = 1e-4
# Values of the training split in which different ones are counted, and the rows that they are taken from at most.
_SAMPLED = 2**21
_SAMPLED_ROWS = 4096
# Columns that a message names.
_NAMED = 4


def is_exact(stored: Shaped[Tensor, "*N"], dtype: torch.dtype) -> Shaped[Tensor, "*N"]:
    """Which whole numbers a floating-point type holds to the last digit.

    Args:
        stored: integers, or real numbers that are whole.
        dtype: the type.
    """
    narrow = stored.to(dtype)
    if stored.is_floating_point():
        return narrow.to(stored.dtype) == stored
    # 2**63 itself has no int64, and what rounding made of it was another number.
    return torch.where(narrow < 2.0**63, narrow, 0).to(torch.int64) == stored


def count_different(
    values: Shaped[Tensor, "N P"], dtype: torch.dtype
) -> tuple[Shaped[Tensor, " P"], Shaped[Tensor, " P"]]:
    """Numbers of different values of each column, as they are and in another type; NaN is passed over.

    Args:
        values: rows.
        dtype: the other type.
    """
    ordered = values.sort(0).values
    narrow = ordered.to(dtype)

    def different(rows: Tensor) -> Tensor:
        # NaN is sorted to the end, and different from itself.
        seen = ~rows.isnan()
        return (rows[1:] != rows[:-1]).logical_and(seen[1:]).sum(0) + seen[0]

    return different(ordered), different(narrow)


class Narrowing:
    """What one pass over the rows shows of the digits that a type loses.

    Args:
        dtype: floating-point type of x.
        num_columns: P; of images the number of channels, whose values are judged together.
        standardized: whether the rows are going to be standardized, in double precision, before they are narrowed.
    """

    def __init__(self, dtype: torch.dtype, num_columns: int, *, standardized: bool) -> None:
        self.dtype = dtype
        self.num_columns = num_columns
        self.standardized = standardized
        self._train: ColumnStatistics | None = None
        self._is_whole = torch.ones(num_columns, dtype=torch.bool)
        self._lost, self._large, self._small = torch.zeros(3, num_columns, dtype=torch.bool)
        self._squares = torch.zeros(num_columns, dtype=torch.float64)
        self._low = torch.full((num_columns,), torch.inf, dtype=torch.float64)
        self._high = -self._low
        self._examples: dict[tuple[str, int], int | float] = {}
        self._sample: list[Tensor] = []
        self._num_sampled = 0

    def add(self, block: Shaped[Tensor, "B P"], *, is_train: bool) -> None:
        """Look at some rows.

        Args:
            block: values as they are stored.
            is_train: whether they belong to the training split.
        """
        is_real = block.is_floating_point()
        if not is_real and block.dtype.itemsize < 8:
            # Gray levels and bits.
            return
        # Rows of images are rows of channels.
        block = block.reshape(-1, self.num_columns)
        if self.standardized:
            self._add_standardized(block, is_train=is_train)
        elif not is_real:
            least, most = block.aminmax()
            if max(-int(least), int(most)) > 2 / torch.finfo(self.dtype).eps:
                lost = ~is_exact(block, self.dtype)
                self._lost |= self._note("lost", lost, block)
        elif block.dtype.itemsize > self.dtype.itemsize:
            self._add_real(block, is_train=is_train)

    def _add_standardized(self, block: Tensor, *, is_train: bool) -> None:
        wide = block.double()
        observed = ~wide.isnan()
        self._low = torch.minimum(self._low, wide.masked_fill(~observed, torch.inf).amin(0))
        self._high = torch.maximum(self._high, wide.masked_fill(~observed, -torch.inf).amax(0))
        if is_train and not block.is_floating_point():
            self._train = with_block(self._train, wide)
            back = torch.where(wide < 2.0**63, wide, 0.0).to(torch.int64)
            self._squares += torch.where(wide < 2.0**63, block - back, 0).double().square().sum(0)

    def _add_real(self, block: Tensor, *, is_train: bool) -> None:
        wide, narrow = block.double(), block.to(self.dtype)
        observed = ~wide.isnan()
        # Beyond, all real numbers are whole; from 2**63 on they may have been unsigned integers.
        sized = (wide.abs() < 2.0**53) | ((wide >= 2.0**63) & (wide < 2.0**64))
        whole = (wide == wide.round()) & sized
        self._is_whole &= (whole | ~observed).all(0)
        self._lost |= self._note("lost", whole & (narrow.double() != wide), block)
        self._large |= self._note("large", narrow.isinf(), block)
        tiny = narrow.abs() < torch.finfo(self.dtype).tiny
        self._small |= self._note("small", (wide != 0) & tiny, block)
        if not is_train:
            return
        self._train = with_block(self._train, wide)
        self._squares += torch.where(observed & ~narrow.isinf(), narrow.double() - wide, 0.0).square().sum(0)
        room = min(_SAMPLED_ROWS, max(_SAMPLED // self.num_columns, 2)) - self._num_sampled
        if room > 0:
            self._sample.append(block[:room].clone())
            self._num_sampled += len(self._sample[-1])

    def _note(self, kind: str, wrong: Tensor, block: Tensor) -> Tensor:
        """Which columns hold such values; the first of each is kept for the message."""
        found = wrong.any(0)
        for column in found.nonzero().flatten().tolist()[: 4 * _NAMED]:
            if (kind, column) not in self._examples:
                self._examples[kind, column] = block[wrong[:, column], column][0].item()
        return found

    def refuse(self, name: str, names: Sequence[str], standardization: Standardization | None = None) -> None:
        """Refuse columns that lose what tells their values apart, or whose values are others afterwards.

        Args:
            name: what is loaded.
            names: names of the columns, in words.
            standardization: the map to x; None where x has the unit of the data.

        Raises:
            ValueError: there are such columns; the message names them.
        """
        said: dict[int, str] = {}
        kind = str(self.dtype).removeprefix("torch.")
        for column in self._large.nonzero().flatten().tolist():
            said[column] = f"{self._example('large', column)} is too large for {kind}"
        for column in (self._lost & self._is_whole).nonzero().flatten().tolist():
            value = self._example("lost", column)
            said.setdefault(column, f"{value} becomes {self._rounded('lost', column)}")
        for column in self._small.nonzero().flatten().tolist():
            said.setdefault(column, f"{self._example('small', column)} becomes 0")
        if standardization is not None:
            ends = torch.stack([self._low, self._high])
            ends = torch.where(ends.isfinite(), ends, standardization.location[: self.num_columns])
            moved = (ends - standardization.location[: self.num_columns]) / standardization.scale[: self.num_columns]
            for column in moved.to(self.dtype).isinf().any(0).nonzero().flatten().tolist():
                said[column] = f"a value is {float(moved[:, column].abs().max()):.3g} standard deviations from the mean"
        for column, words in self._coarse().items():
            said.setdefault(column, words)
        if not said:
            return
        shown = [f"{names[column]}: {words}" for column, words in sorted(said.items())[:_NAMED]]
        more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
        fixes = ["keep them by dtype='float64' (--dtype float64)"] if self.dtype != torch.float64 else []
        if not self.standardized:
            fixes.append("standardize=True (--data.standardize), which subtracts the mean before digits are lost")
        raise ValueError(
            f"{name}: expected values that keep their digits as {kind}, the type of x; got {'; '.join(shown)}{more}. "
            f"Choose one: {'; '.join([*fixes, 'subtract an offset, or rescale the values'])}."
        )

    def _example(self, kind: str, column: int) -> str:
        value = self._examples.get((kind, column))
        if value is None:
            return "a value"
        return str(int(value)) if kind == "lost" else f"{value:g}"

    def _rounded(self, kind: str, column: int) -> str:
        value = self._examples.get((kind, column))
        if value is None:
            return "another"
        made = torch.tensor(value).to(self.dtype).double().item()
        return str(int(made)) if abs(made) < torch.inf else "infinite"

    def _coarse(self) -> dict[int, str]:
        """Columns that lose their variation, with what becomes of it."""
        if self._train is None:
            return {}
        found, said = self._train, {}
        spread = found.spread
        rounding = (self._squares / found.num_observed.clamp(min=1)).sqrt()
        # Real numbers that differ by their last digits alone are one number; integers are not.
        varies = found.high > found.low if self.standardized else ~found.is_constant
        coarse = (rounding > _TOLERANCE * spread) & varies
        if self._sample:
            sample = torch.cat(self._sample)
            before, after = count_different(sample, self.dtype)
            coarse |= (2 * after < before) & varies
        for column in coarse.nonzero().flatten().tolist():
            size = max(abs(float(found.low[column])), abs(float(found.high[column])))
            dtype = torch.float64 if self.standardized else self.dtype
            step = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(size))
            said[column] = (
                f"steps of {step:.3g} at {size:.6g}, with a standard deviation of {float(spread[column]):.3g}"
            )
            if self._sample and after[column] < before[column]:
                said[column] += f" ({int(before[column])} different values become {int(after[column])})"
        return said
