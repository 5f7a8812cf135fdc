"""Alternation: every method once a round, in an order that turns, so that a slow minute falls on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from timing.machine import Probe


def turning(names: Sequence[str], num_rounds: int, probe: Probe) -> Iterator[str]:
    """The names, `num_rounds` times over, each round beginning with another one; the probe runs before each round."""
    for number in range(num_rounds):
        probe()
        first = number % len(names) if names else 0
        yield from [*names[first:], *names[:first]]


def alternate(blocks: Mapping[str, Callable[[], float]], num_rounds: int, probe: Probe) -> dict[str, list[float]]:
    """What each block returns, round after round."""
    found: dict[str, list[float]] = {name: [] for name in blocks}
    for name in turning(list(blocks), num_rounds, probe):
        found[name].append(probe.watch(blocks[name]))
    return found


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, best (lowest) and worst of some times."""
    return {"median": median(values), "best": min(values), "worst": max(values), "rounds": len(values)}


def ratio(slow: Mapping[str, Any] | None, fast: Mapping[str, Any] | None) -> dict[str, float] | None:
    """How many times faster: of the medians, which are judged, and of the best; None where one was not measured."""
    if not slow or not fast or "median" not in slow or "median" not in fast:
        return None
    return {"median": slow["median"] / fast["median"], "best": slow["best"] / fast["best"]}
