"""Differences between fitted models, each with its two errors, about zero."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes

from pyro_vae.plots._style import COLORS, above, drawing, require_some

__all__ = ["plot_differences"]

# Inches, and letters on a line: narrow, so that a phone shows them large enough to read.
_WIDTH, _ROW, _LINE = 4.8, 0.42, 0.15
_MEASURE = 66


class Difference(Protocol):
    """What is drawn of a difference, such as one that `StudyResults.comparisons` found; nats per datapoint."""

    @property
    def mean(self) -> float:
        """Over datapoints and seeds."""

    @property
    def se(self) -> float:
        """What another sample of datapoints would change."""

    @property
    def seed_se(self) -> float:
        """What other training seeds would; NaN for too few of them."""

    @property
    def by_seed(self) -> Mapping[str, float]:
        """The mean over datapoints for each training seed."""


def plot_differences(differences: Mapping[str, Difference], *, ax: Axes | None = None) -> Axes:
    """Differences of held-out log p(x), one a row: the mean, an error over datapoints and one over training seeds.

    A ring is what one training seed says. Where there are too few seeds for an error over them, there is no such bar.

    Args:
        differences: `{name: difference}`, such as `{one.title: one for one in differences}` of what
            `StudyResults.comparisons` found. Names stand above their rows.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, the first difference at the top.

    Raises:
        ValueError: no difference is given.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from types import SimpleNamespace
        >>> one = SimpleNamespace(mean=0.3, se=0.1, seed_se=0.12, by_seed={"0": 0.1, "1": 0.3, "2": 0.5})
        >>> ax = plot_differences({"prior: laplace - normal": one})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['one seed', '± se, datapoints', '± seed_se, training seeds']
        >>> plt.close(ax.figure)
    """
    require_some("differences", differences)
    names = [wrap(name, _MEASURE) for name in differences]
    # From the top of a row: its name, then its bars.
    heights = np.array([_ROW + _LINE * len(name) for name in names])
    ends = heights.cumsum()
    middles = ends - _ROW / 2
    means = np.array([one.mean for one in differences.values()])
    # Bars beside each other, and rings above them, so that none hides another.
    bars: dict[str, tuple[str, float, dict[str, Any]]] = {
        "se": ("± se, datapoints", 0.0, {"color": COLORS[0], "elinewidth": 4}),
        "seed_se": ("± seed_se, training seeds", 0.1, {"color": COLORS[1], "elinewidth": 1.4, "capsize": 3}),
    }
    several = [list(one.by_seed.values()) if len(one.by_seed) > 1 else [] for one in differences.values()]
    with drawing(ax, (_WIDTH, 1.0 + ends[-1])) as ax:
        ax.axvline(0.0, color="black", linewidth=0.8)
        for kind, (label, below, look) in bars.items():
            errors = np.array([getattr(one, kind) for one in differences.values()])
            known = np.isfinite(errors)
            if known.any():
                ax.errorbar(means[known], middles[known] + below, xerr=errors[known], fmt="none", label=label, **look)
        if any(several):
            above_bars = np.repeat(middles, [len(rings) for rings in several]) - 0.1
            ring: dict[str, Any] = {"color": "black", "fillstyle": "none", "markersize": 4, "linestyle": "none"}
            ax.plot(np.concatenate(several), above_bars, marker="o", label="one seed", **ring)
        ax.plot(means, middles, "o", color="black", markersize=5)
        for name, top in zip(names, ends - heights, strict=True):
            text: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "top", "fontsize": 8}
            # Over the grid's lines, not under them.
            text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            ax.annotate("\n".join(name), (0.0, top + 0.06), **text)
        ax.set_ylim(ends[-1] + 0.06, 0.0)
        ax.set_yticks([])
        ax.grid(visible=False, axis="y")
        ax.spines["left"].set_visible(False)
        ax.margins(x=0.08)
        ax.set_xlabel("difference of held-out log p(x), nats per datapoint\n(right of 0: the first is the better)")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(**above(3))
    return ax
