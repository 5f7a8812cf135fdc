"""Datapoints that are no images: their values as dots and lines, one datapoint below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pyro_vae.plots._style import COLORS, DASHES, above, cycle


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
    highest = max(float(np.nanmax(values)) for values in (x, *lines.values()))
    lowest = min(float(np.nanmin(values)) for values in (x, *lines.values()))
    spacing = 1.15 * (highest - lowest) or 1.0
    value = np.arange(x.shape[1])
    marker = float(np.clip(200 / len(value), 1.0, 4.0))
    for index, row in enumerate(x):
        shift, first = -index * spacing, index == 0
        ax.plot(value, row + shift, "o", color=COLORS[0], markersize=marker, label=name if first else None)
        for color, dash, (fitted, values) in zip(cycle(COLORS[1:]), cycle(DASHES), lines.items(), strict=False):
            look: dict[str, Any] = {"color": color, "linestyle": dash, "linewidth": 1.1}
            ax.plot(value, values[index] + shift, label=fitted if first else None, **look)
    ax.set_yticks(-np.arange(len(x)) * spacing, labels)
    ax.set(xlabel="index of the data value", ylabel=f"{what}\n(its zero line; {spacing:.3g} apart)")
    ax.legend(**above(1 + len(lines)))


def ridges_size(num_data: int) -> tuple[float, float]:
    return 6.0, min(8.0, 0.8 + 0.5 * num_data)
