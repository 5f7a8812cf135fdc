"""How a cost grows: the slope of its logarithm in that of the size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Growth(NamedTuple):
    """A series of measurements along an axis.

    Attributes:
        engine: what was measured.
        axis: "N", "S" or "D".
        sizes: along it.
        seconds: at each.
        cpu_seconds: of all cores together, which other processes disturb less.
        mib: of memory that the work took at each.
    """

    engine: str
    axis: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    mib: tuple[float, ...]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The b of cost ~ size^b that fits best on logarithms, or None where a cost is nothing or there is one alone."""
    if len(sizes) < 2 or min(costs) <= 0:
        return None
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def last_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """That of the two largest sizes alone, where what costs the same at every size weighs least."""
    return exponent(sizes[-2:], costs[-2:])


def growths(measured: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Iterator[Growth]:
    """The series of a record: by engine and axis, the measurements with their size."""
    for engine, by_axis in measured.items():
        for axis, rows in by_axis.items():
            names = ("size", "seconds", "cpu_seconds", "mib")
            yield Growth(engine, axis, *(tuple(row[name] for row in rows) for name in names))


def table(measured: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """The series in words, with the exponents over all sizes and over the last two."""
    lines = [
        "| engine | against | sizes | seconds | core seconds | exponent (last two) | MiB beyond the start | exponent "
        "(last two) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for growth in growths(measured):
        cells = [growth.engine, growth.axis, " / ".join(map(_size, growth.sizes))]
        cells.append(" / ".join(f"{cost:.3g}" for cost in growth.seconds))
        for costs in (growth.cpu_seconds, growth.mib):
            both = (exponent(growth.sizes, costs), last_exponent(growth.sizes, costs))
            cells += [" / ".join(f"{cost:.3g}" for cost in costs), "{} ({})".format(*map(_two_digits, both))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(size: int) -> str:
    power = round(math.log10(size)) if size > 0 else 0
    return f"10^{power}" if size >= 1000 and size == 10**power else f"{size}"


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
