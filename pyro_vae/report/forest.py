"""The picture of a study: every difference with its two errors, about zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from pyro_vae.plots import COLORS, STYLE
from pyro_vae.study import Difference
from pyro_vae.study.words import where

__all__ = ["plot_differences"]

# Inches, and letters on a line: narrow, so that a phone shows them large enough to read.
_WIDTH, _ROW, _LINE = 4.8, 0.42, 0.15
_MEASURE = 66


def plot_differences(differences: Sequence[Difference], *, ax: Axes | None = None) -> Axes:
    """Differences of held-out log p(x), one a row: the mean, an error over datapoints and one over training seeds.

    A ring is what one training seed says. Where there are too few seeds for an error over them, there is no such bar.

    Args:
        differences: what `StudyResults.comparisons` found.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, the first difference at the top.

    Raises:
        ValueError: there is no difference.
    """
    if not differences:
        raise ValueError("differences: expected at least one; got none. A study has some along an axis of two values.")
    labels = [_label(one) for one in differences]
    # From the top of a row: its words, then its bars.
    heights = [_ROW + _LINE * len(label) for label in labels]
    ends = [math.fsum(heights[: number + 1]) for number in range(len(heights))]
    bars = [end - _ROW / 2 for end in ends]
    with plt.rc_context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(_WIDTH, 1.0 + ends[-1]))[1]
        ax.axvline(0.0, color="black", linewidth=0.8)
        for position, one, label, height in zip(bars, differences, labels, heights, strict=True):
            _draw(ax, position, one)
            text: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "top", "fontsize": 8}
            # Over the lines, not under them.
            text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            ax.annotate("\n".join(label), (0.0, position + _ROW / 2 - height + 0.06), **text)
        ax.set_ylim(ends[-1] + 0.06, 0.0)
        ax.set_yticks([])
        ax.grid(visible=False, axis="y")
        ax.spines["left"].set_visible(False)
        ax.margins(x=0.08)
        ax.set_xlabel("difference of held-out log p(x), nats per datapoint\n(right of 0: the first is the better)")
        ax.plot([], [], color=COLORS[0], linewidth=4, label="± se, datapoints")
        if any(math.isfinite(one.seed_se) for one in differences):
            ax.plot([], [], color=COLORS[1], linewidth=1.4, label="± seed_se, training seeds")
        if any(one.num_seeds > 1 for one in differences):
            ax.plot([], [], "o", color="black", fillstyle="none", markersize=4, label="one seed")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax


def _draw(ax: Axes, position: float, one: Difference) -> None:
    if math.isfinite(one.se):
        ax.plot([one.mean - one.se, one.mean + one.se], [position] * 2, color=COLORS[0], linewidth=4, alpha=0.9)
    if math.isfinite(one.seed_se):
        below = position + 0.1
        style: dict[str, Any] = {"color": COLORS[1], "elinewidth": 1.4, "capsize": 3}
        ax.errorbar(one.mean, below, xerr=one.seed_se, fmt="none", **style)
    if one.num_seeds > 1:
        rings = list(one.by_seed.values())
        ax.plot(
            rings, [position - 0.1] * len(rings), "o", color="black", fillstyle="none", markersize=4, linestyle="none"
        )
    ax.plot([one.mean], [position], "o", color="black", markersize=5)


def _label(one: Difference) -> list[str]:
    first = wrap(f"{one.axis}: {one.value} − {one.baseline}", _MEASURE)
    return first + (wrap(where(one.elsewhere), _MEASURE) if one.elsewhere else [])
