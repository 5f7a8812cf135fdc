"""One picture of a record: seconds and memory against each axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from timing.picture import plain_numbers

from pyro_vae.plots import COLORS, STYLE
from scaling.exponents import Growth, growths, last_exponent
from scaling.grid import AXES, ENGINES

NAMES = {"em": "fit_em", "iwae": "iwae", "ais": "ais", "gaps": "measure_gaps"}
WORDS = {"N": "datapoints, N", "S": "draws, particles or chains, S", "D": "latent size, D"}
COSTS = {"cpu_seconds": "core seconds", "mib": "MiB beyond the start"}


def draw(record: Mapping[str, Any], file: Path) -> None:
    """Draw what the record holds."""
    found = list(growths(record["measured"]))
    if not found:
        return
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(len(COSTS), len(AXES), figsize=(11.5, 6.6), squeeze=False, layout="constrained")
        for axes, (cost, label) in zip(grid, COSTS.items(), strict=True):
            for ax, axis in zip(axes, AXES, strict=True):
                own = [growth for growth in found if growth.axis == axis]
                _panel(ax, own, cost)
                ax.set(xlabel=WORDS[axis], ylabel=label)
        figure.savefig(file)
        plt.close(figure)


def _panel(ax: plt.Axes, series: list[Growth], cost: str) -> None:
    sizes: set[int] = set()
    for growth in series:
        costs = getattr(growth, cost)
        slope = last_exponent(growth.sizes, costs)
        color = COLORS[ENGINES.index(growth.engine)]
        label = NAMES[growth.engine] + ("" if slope is None else f": {slope:.2f}")
        # A logarithm has no place for what took nothing.
        ax.plot(growth.sizes, [max(value, 1e-2) for value in costs], "o-", markersize=3, color=color, label=label)
        sizes |= set(growth.sizes)
    ax.set(xscale="log", yscale="log")
    low, high = ax.get_ylim()
    # A few percent would look like a cliff.
    ax.set_ylim(min(low, high / 20), high * 1.5)
    plain_numbers(ax.yaxis)
    if max(sizes, default=1) < 1000:
        ax.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    if series:
        ax.legend(title="exponent of the last two", fontsize=7, title_fontsize=7)
