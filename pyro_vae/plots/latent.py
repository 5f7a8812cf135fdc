"""Where the datapoints lie in the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pyro_vae.plots._style import COLORS, Array, drawing, to_numpy

__all__ = ["plot_latent"]

# Ten classes are more than colour alone can tell apart: the markers tell too, and short labels are their own markers.
CLASS_COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#000000",
    "#832db6",
    "#a96b59",
    "#94a4a2",
)
CLASS_MARKERS = "os^vDP<>X*"


def plot_latent(z: Array, labels: Array | Sequence[Any] | None = None, *, ax: Axes | None = None) -> Axes:
    """Where the datapoints lie in a 2-D latent space, one colour and marker a label.

    Args:
        z: (N, 2) one latent vector a datapoint, for example the mean of q.
        labels: (N,) labels, or None.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, with one collection a label.

    Raises:
        ValueError: z is not (N, 2), or `labels` has another length.
    """
    points = to_numpy(z)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"z: expected shape (N, 2); got {points.shape}. This picture is for a latent space of two dimensions."
        )
    names = None if labels is None else to_numpy(labels)
    if names is not None and names.shape != (len(points),):
        raise ValueError(f"labels: expected shape ({len(points)},), one a datapoint; got {names.shape}.")
    size = float(np.clip(30000 / max(len(points), 1), 14, 40))
    with drawing(ax, (5.6, 4.8)) as ax:
        if names is None:
            ax.scatter(points[:, 0], points[:, 1], s=size / 2, color=COLORS[0], alpha=0.7, linewidths=0)
        else:
            for index, name in enumerate(np.unique(names)):
                rows = points[names == name]
                color = CLASS_COLORS[index % len(CLASS_COLORS)]
                marker = _marker(str(name), index)
                ax.scatter(rows[:, 0], rows[:, 1], s=size, color=color, marker=marker, label=str(name), linewidths=0)
            ax.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=(40 / size) ** 0.5)
        ax.set_aspect("equal", adjustable="datalim")
        ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax


def _marker(name: str, index: int) -> str:
    """The label itself where it is a letter or two: read without a legend, and in print. Else a shape."""
    if len(name) <= 2 and name.isascii() and name.isalnum():
        return rf"$\mathbf{{{name}}}$"
    return CLASS_MARKERS[(index + index // len(CLASS_COLORS)) % len(CLASS_MARKERS)]
