"""Datapoints that are no images: many values as lines, a few as dots, one datapoint below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pyro_vae.plots._style import COLORS, DASHES, MARKERS, above, cycle, finite_limits, minus, whole_ticks

# Values of a datapoint that are taken as variables, columns of a table, which have no order: no line joins them.
MOST_VARIABLES = 40


def ridges(
    ax: Axes, dots: tuple[str, np.ndarray], lines: Mapping[str, np.ndarray], labels: Sequence[str], what: str
) -> None:
    """Rows of `dots` below each other, each with the same row of every matrix in `lines`: hollow markers of variables.

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
    joined = not are_variables(len(value))
    for index, row in enumerate(x):
        shift, first = -index * spacing, index == 0
        ax.plot(value, row + shift, "o", color=COLORS[0], markersize=marker, label=name if first else None)
        looks = zip(cycle(COLORS[1:]), cycle(DASHES), cycle(MARKERS[1:]), lines.items(), strict=False)
        for color, dash, symbol, (fitted, values) in looks:
            look: dict[str, Any] = {"color": color, "linestyle": dash, "linewidth": 1.1}
            if not joined:
                look = {"color": color, "linestyle": "none", "marker": symbol, "markerfacecolor": "none"}
                look |= {"markersize": marker + 2}
            ax.plot(value, values[index] + shift, label=fitted if first else None, **look)
    value_axis(ax, len(value))
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
    lowest, highest = finite_limits(*values)
    spacing = 1.15 * (highest - lowest) or 1.0
    # A tick among the values of another row would name that one.
    level = 0.0 if highest - spacing <= 0 <= highest else lowest
    ax.set_yticks(level - np.arange(len(labels)) * spacing, labels)
    ax.set_ylabel(f"{what}\n(at its value {minus(f'{level:.3g}')}; {spacing:.3g} apart)")
    return spacing


def are_variables(num_values: int) -> bool:
    return num_values <= MOST_VARIABLES


def value_axis(ax: Axes, num_values: int, note: str = "") -> None:
    """Name what runs to the right, variables or the values of a curve, with whole ticks."""
    ax.set_xlabel(("variable (index)" if are_variables(num_values) else "index of the data value") + note)
    whole_ticks(ax.xaxis)


def beside(rows: np.ndarray, width: float = 0.7) -> np.ndarray:
    """Points (T, P, 2) of T rows of P variables: in the room of each variable the rows, from left to right."""
    share = np.linspace(-width / 2, width / 2, len(rows)) if len(rows) > 1 else np.zeros(1)
    return np.stack([share[:, None] + np.arange(rows.shape[1]), rows], axis=-1)


def dot_area(num_dots: int) -> float:
    """Of dots that lie beside each other over the width of a picture, in square points."""
    return float(np.clip((300 / num_dots) ** 2, 3.0, 9.0))


def ridges_size(num_data: int) -> tuple[float, float]:
    return 6.0, min(8.0, 0.8 + 0.5 * num_data)
