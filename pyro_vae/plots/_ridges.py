"""Datapoints that are no images: their values as dots and lines, one datapoint below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pyro_vae.plots._style import COLORS, DASHES, above, cycle, minus, whole_ticks


def ridges(
    ax: Axes, dots: tuple[str, np.ndarray], lines: Mapping[str, np.ndarray], labels: Sequence[str], what: str
) -> None:
    """Rows of `dots` below each other, each with the same row of every matrix in `lines`.

    Args:
        ax: Axes to draw on.
        dots: name and (N, P) values.
        lines: `{name: (N, P)}`.
        labels: (N,) ticks.
        what: what the ticks say.
    """
    name, x = dots
    spacing = name_rows(ax, labels, what, x, *lines.values())
    value = np.arange(x.shape[1])
    marker = float(np.clip(200 / len(value), 1.0, 4.0))
    for index, row in enumerate(x):
        shift, first = -index * spacing, index == 0
        ax.plot(value, row + shift, "o", color=COLORS[0], markersize=marker, label=name if first else None)
        for color, dash, (fitted, values) in zip(cycle(COLORS[1:]), cycle(DASHES), lines.items(), strict=False):
            look: dict[str, Any] = {"color": color, "linestyle": dash, "linewidth": 1.1}
            ax.plot(value, values[index] + shift, label=fitted if first else None, **look)
    ax.set_xlabel("index of the data value")
    ax.legend(**above(1 + len(lines)))


def name_rows(ax: Axes, labels: Sequence[str], what: str, *values: np.ndarray) -> float:
    """Ticks for rows that lie below each other, and what they stand for.

    Args:
        ax: Axes to draw on.
        labels: (N,) ticks.
        what: what the ticks say.
        *values: all that is drawn, of which no row reaches into the next.

    Returns:
        How far apart rows lie.
    """
    lowest = min(float(np.nanmin(some)) for some in values)
    highest = max(float(np.nanmax(some)) for some in values)
    spacing = 1.15 * (highest - lowest) or 1.0
    # A tick among the values of another row would name that one.
    level = 0.0 if highest - spacing <= 0 <= highest else lowest
    ax.set_yticks(level - np.arange(len(labels)) * spacing, labels)
    ax.set_ylabel(f"{what}\n(at its value {minus(f'{level:.3g}')}; {spacing:.3g} apart)")
    whole_ticks(ax.xaxis)
    return spacing


def ridges_size(num_data: int) -> tuple[float, float]:
    return 6.0, min(8.0, 0.8 + 0.5 * num_data)
