"""What is measured: engines, and along each axis a series of sizes that differ in it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

ENGINES = ("em", "iwae", "ais", "gaps")
# Of a point, what each axis is.
AXES = {"N": "num_data", "S": "num_draws", "D": "num_latents"}


@dataclass(frozen=True)
class Point:
    """One measurement, in a process of its own.

    Attributes:
        num_data: N.
        num_draws: S: particles of variational EM, draws of importance sampling and of gaps, chains of annealing.
        num_latents: D.
        num_values: P, bytes of a datapoint.
    """

    num_data: int
    num_draws: int
    num_latents: int = 10
    num_values: int = 784

    def describe(self) -> dict[str, int]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Series:
    """The sizes of one engine.

    Attributes:
        start: the point that the series of draws and of latent sizes vary; that of datapoints has its S and D.
        values: by axis, ascending.
    """

    start: Point
    values: Mapping[str, tuple[int, ...]]

    def points(self, axis: str) -> list[Point]:
        """The points along an axis."""
        return [replace(self.start, **{AXES[axis]: value}) for value in self.values[axis]]

    def without_largest(self) -> Series:
        """The same without the last size along each axis, which takes most of the time."""
        return Series(self.start, {axis: sizes[:-1] for axis, sizes in self.values.items()})

    def all_points(self) -> list[Point]:
        """Each point once, the small ones first."""
        found = {point for axis in self.values for point in self.points(axis)}
        return sorted(found, key=lambda point: (point.num_data * point.num_draws, point.num_latents))


# About a quarter of an hour on two quiet cores; without the largest sizes two minutes.
FULL: dict[str, Series] = {
    "em": Series(Point(10**4, 2), {"N": (10**4, 10**5, 10**6), "S": (2, 8, 32), "D": (5, 10, 20, 40)}),
    # Fewer values a datapoint: what is asked is how costs grow, and these take longer a datapoint.
    "iwae": Series(Point(10**4, 50, 10, 64), {"N": (10**4, 10**5, 10**6), "S": (50, 200, 800), "D": (5, 10, 20, 40)}),
    "ais": Series(Point(10**3, 4, 10, 64), {"N": (10**3, 10**4, 10**5), "S": (4, 16, 64), "D": (5, 10, 20, 40)}),
    "gaps": Series(
        Point(10**3, 100, 10, 64), {"N": (10**3, 10**4, 4 * 10**4), "S": (100, 400, 1600), "D": (5, 10, 20)}
    ),
}
TINY: dict[str, Series] = {
    engine: Series(Point(64, draws, 2, 12), {"N": (64, 128), "S": (draws, 2 * draws), "D": (2, 3)})
    for engine, draws in (("em", 2), ("iwae", 50), ("ais", 2), ("gaps", 100))
}


def described(series: Series) -> dict[str, Any]:
    """The sizes as plain values, for a record."""
    return {"start": series.start.describe(), **series.values}
