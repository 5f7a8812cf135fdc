"""Columns around 0 and of unit spread, by the statistics of the training split, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor

from pyro_vae.data.streams import Rows, blocks

__all__ = ["ColumnStatistics", "Standardization", "column_statistics", "constant_note", "scale_note", "with_block"]

# A column whose standard deviation or size is further from 1 than by this factor slows a fit down; so do columns whose
# standard deviations differ by more. A decoder's bias moves by about one step size a step, 0.001 by default.
FAR = 30.0
# Columns that a sentence names.
_NAMED = 6


@dataclass(frozen=True, eq=False)
class Standardization:
    r"""An affine map for each data value, from the data's own units to values around 0 of unit spread.

    .. math::
        u_p = (x_p - m_p) / s_p, \qquad \log p(x) = \log p(u) - \sum_{p\ \mathrm{observed}} \log s_p

    Args:
        location: m, (P,) means of the training split in the units of x.
        scale: s, (P,) standard deviations of the training split in the units of x.

    Raises:
        ValueError: the two differ in shape, are not finite, or a scale is not positive.

    Example:
        >>> units = Standardization(torch.tensor([45.0, 60_000.0]), torch.tensor([12.0, 25_000.0]))
        >>> units.apply(torch.tensor([[57.0, 35_000.0]]))
        tensor([[ 1., -1.]])
        >>> units.invert(torch.tensor([[1.0, -1.0]]))
        tensor([[   57., 35000.]], dtype=torch.float64)
    """

    location: Float[Tensor, " P"]
    scale: Float[Tensor, " P"]

    def __post_init__(self) -> None:
        """Keep both in double precision: single precision loses the digits of a location far from 0."""
        for name in ("location", "scale"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64).detach())
        if self.location.dim() != 1 or self.location.shape != self.scale.shape:
            raise ValueError(
                f"location, scale: expected one shape (P,); got {tuple(self.location.shape)} and "
                f"{tuple(self.scale.shape)}. load(..., standardize=True) makes both."
            )
        if not bool((self.location.isfinite() & self.scale.isfinite() & (self.scale > 0)).all()):
            raise ValueError(
                "location, scale: expected finite locations and positive scales; got others. Rescale the columns that "
                "overflow, or leave them out."
            )

    @property
    def num_values(self) -> int:
        """Number of data values in one datapoint, P."""
        return len(self.location)

    def apply(self, x: Real[Tensor, "*B P"], *, dtype: torch.dtype | None = None) -> Float[Tensor, "*B P"]:
        """Standardize rows, new ones as those of the fit.

        Args:
            x: values in the data's own units, (*B, P). NaN, a value that was not observed, stays NaN.
            dtype: floating-point type of the result, narrowed after the arithmetic; None: torch's default.

        Raises:
            ValueError: another number of values.
        """
        wide = self._wide(x)
        return ((wide - self.location.to(wide.device)) / self.scale.to(wide.device)).to(
            torch.get_default_dtype() if dtype is None else dtype
        )

    def invert(self, rows: Real[Tensor, "*B P"]) -> Float[Tensor, "*B P"]:
        """Bring standardized rows back to the data's own units, in double precision.

        Args:
            rows: standardized values, (*B, P).

        Raises:
            ValueError: another number of values.
        """
        wide = self._wide(rows)
        return wide * self.scale.to(wide.device) + self.location.to(wide.device)

    def log_jacobian(self, rows: Real[Tensor, "*B P"]) -> Float[Tensor, "*B"]:
        """The sum of log scales over the observed values of each row: log p(x) = log p(rows) - `log_jacobian(rows)`.

        Args:
            rows: values in either unit, (*B, P); NaN is not observed.

        Raises:
            ValueError: another number of values.
        """
        wide = self._wide(rows)
        return torch.where(wide.isnan(), 0.0, self.scale.log().to(wide.device)).sum(-1)

    def _wide(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.dim() or x.shape[-1] != self.num_values:
            came = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: expected a tensor of shape (..., {self.num_values}); got {came}.")
        return x.double()


class ColumnStatistics(NamedTuple):
    """What the observed values of each column show, (P,) each, float64, in the units of x.

    Attributes:
        num_observed: number of observed values.
        mean: mean.
        variance: mean squared distance from it.
        low: smallest value.
        high: largest value.
        is_whole: whether every value is a whole number.
    """

    num_observed: Tensor
    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    is_whole: Tensor

    @property
    def spread(self) -> Tensor:
        """Standard deviations, (P,)."""
        return self.variance.sqrt()

    @property
    def is_constant(self) -> Tensor:
        """Which columns hold one value, up to rounding, or none at all."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        rounding = 4 * torch.finfo(torch.float64).eps * size
        return (self.num_observed == 0) | ~(self.high > self.low) | (self.spread <= rounding)

    def pooled(self, num_channels: int) -> ColumnStatistics:
        """The statistics of all values of a channel, given to each of its columns; channels alternate."""
        count, mean, variance, low, high, whole = (values.reshape(-1, num_channels) for values in self)
        total = count.sum(0)
        weight = count / total.clamp(min=1)
        centre = (weight * mean).sum(0)
        pooled = (weight * (variance + (mean - centre).square())).sum(0)
        each = (total, centre, pooled, low.amin(0), high.amax(0), whole.all(0))
        return ColumnStatistics(*(values.repeat(len(count)) for values in each))

    def head(self, num_columns: int) -> ColumnStatistics:
        """Those of the first columns."""
        return ColumnStatistics(*(values[:num_columns] for values in self))

    def standardization(self) -> Standardization:
        """The map that these statistics make; a column that is constant is moved to 0 and not scaled.

        Raises:
            ValueError: a standard deviation is not finite.
        """
        return Standardization(
            torch.where(self.num_observed > 0, self.mean, 0.0), torch.where(self.is_constant, 1.0, self.spread)
        )


def column_statistics(rows: Rows, divisor: float = 1.0) -> ColumnStatistics:
    """The statistics of each column in one pass, a block at a time.

    Args:
        rows: stored values, (N, P); NaN is not observed.
        divisor: `rows / divisor` is x.

    References:
        Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    found: ColumnStatistics | None = None
    for _, stored in blocks(rows):
        found = with_block(found, stored.double() / divisor if divisor != 1.0 else stored.double())
    return _nothing_of(rows.shape[1]) if found is None else found


def with_block(found: ColumnStatistics | None, block: Float[Tensor, "B P"]) -> ColumnStatistics:
    """The statistics of some rows and of further ones.

    Args:
        found: those of the rows before; None: there are none.
        block: further rows in double precision; NaN is not observed.
    """
    count, mean, variance, low, high, whole = _nothing_of(block.shape[1]) if found is None else found
    squares = variance * count
    observed = ~block.isnan()
    number = observed.sum(0).double()
    whole = whole & ((block == block.round()) | ~observed).all(0)
    low = torch.minimum(low, block.masked_fill(~observed, math.inf).amin(0))
    high = torch.maximum(high, block.masked_fill(~observed, -math.inf).amax(0))
    # Around a value of the column, so that sums do not lose the digits of a location far from 0.
    centre = torch.where(count > 0, mean, low.masked_fill(~low.isfinite(), 0.0))
    shifted = torch.where(observed, block - centre, 0.0)
    shift = shifted.sum(0) / number.clamp(min=1)
    own = torch.where(observed, shifted - shift, 0.0).square().sum(0)
    both = (count + number).clamp(min=1)
    step = centre + shift - mean
    squares = squares + own + torch.where(count > 0, step.square() * count * number / both, 0.0)
    mean = torch.where(count > 0, mean + step * number / both, centre + shift)
    count = count + number
    return ColumnStatistics(count, mean, squares / count.clamp(min=1), low, high, whole)


def _nothing_of(num_columns: int) -> ColumnStatistics:
    empty = torch.zeros(num_columns, dtype=torch.float64)
    return ColumnStatistics(
        empty, empty, empty, empty + math.inf, empty - math.inf, torch.ones_like(empty, dtype=torch.bool)
    )


def constant_note(name: str, found: ColumnStatistics, names: Sequence[str], *, remedy: str, scaled: bool) -> str | None:
    """One line that names the columns that are constant in the training split; None where there are none.

    Args:
        name: name of the data.
        found: statistics of the training split.
        names: names of the columns.
        remedy: how columns are left out, in brackets; or nothing.
        scaled: whether the data were standardized.
    """
    constant = found.is_constant.nonzero().flatten().tolist()
    if not constant:
        return None
    one = len(constant) == 1
    named = [
        f"{names[p]} ({f'{float(found.mean[p]):.6g}' if found.num_observed[p] else 'never observed'})"
        for p in constant[:_NAMED]
    ]
    scale = "" if not scaled else "; its scale is taken as 1" if one else "; their scales are taken as 1"
    return (
        f"{name}: constant in the training split: {_listed(named, len(constant))}{scale}. "
        f"{'It does' if one else 'They do'} not tell datapoints apart, and log p(x) then depends on the floor of the "
        f"noise: leave {'it' if one else 'them'} out{remedy}."
    )


def scale_note(name: str, found: ColumnStatistics, names: Sequence[str]) -> str | None:
    """One line on columns whose scales differ by orders of magnitude or are far from 1; None where none are.

    Args:
        name: name of the data.
        found: statistics of the training split.
        names: names of the columns.
    """
    varies = (~found.is_constant).nonzero().flatten()
    if not len(varies):
        return None
    spread, mean = found.spread[varies], found.mean[varies]
    named = [names[p] for p in varies.tolist()]
    order = spread.argsort(stable=True).tolist()
    factor = float(spread[order[-1]] / spread[order[0]])
    far = (torch.maximum(spread, mean.abs()) > FAR) | (spread < 1 / FAR)
    reason = "a fit starts at order 1, and its ELBO may stay far below what the model can reach"
    fix = "Standardize them: load(..., standardize=True), --data.standardize."
    if factor > FAR:
        all_shown = len(order) <= _NAMED
        shown = order if all_shown else [order[0], order[-1]]
        said = (", " if all_shown else " to ").join(f"{named[p]} {float(spread[p]):.3g}" for p in shown)
        return f"{name}: the columns' standard deviations differ by a factor of {factor:.2g} ({said}): {reason}. {fix}"
    if bool(far.any()):
        places = far.nonzero().flatten().tolist()
        said = _listed(
            [f"{named[p]} {float(mean[p]):.3g} +- {float(spread[p]):.3g}" for p in places[:_NAMED]], len(places)
        )
        return f"{name}: mean +- standard deviation far from order 1: {said}: {reason}. {fix}"
    return None


def _listed(named: Sequence[str], total: int) -> str:
    more = f" and {total - len(named)} more" if total > len(named) else ""
    return ", ".join(named) + more
