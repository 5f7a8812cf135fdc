"""Where the datapoints lie in the latent space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pyro_vae.plots._style import COLORS, Array, above, drawing, to_numpy

__all__ = ["plot_aggregate", "plot_latent"]

# Okabe and Ito's, and three darker ones: no two nearer to each other, to a deuteranope or a protanope, than some of
# those. Ten are more than colour alone can tell apart: the markers tell too, and short labels are their own markers.
CLASS_COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#000000",
    "#332288",
    "#5c3d00",
    "#882255",
)
CLASS_MARKERS = "os^vDP<>X*"
# The colours of prior and aggregate posterior, and how many dimensions are shown unless asked for.
HALVES = ("#999999", COLORS[0])
MOST_DIMS = 12


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

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> ax = plot_latent(torch.randn(6, 2), ["a", "b", "b", "a", "a", "b"])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['a', 'b']
        >>> plt.close(ax.figure)
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


def plot_aggregate(
    prior: Array,
    aggregate: Array,
    *,
    dims: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The prior against the aggregate posterior, the mean of q(z | x) over datapoints: two halves a dimension.

    The prior is on the left. Where the halves differ, draws from it decode to what no datapoint looks like, or it could
    fit better. Heavy tails do not stretch the axis: it goes twice as far from the median as the middle 90 % of the
    draws, which is all of a normal distribution, and a note says how much lies beyond.

    Args:
        prior: (S, D) draws of p(z).
        aggregate: (M, D) draws of q(z | x), of many datapoints.
        dims: which dimensions, counted from 0; default: the first twelve.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Widths are densities, on one scale for both halves of a dimension; what lies beyond the axis counts.

    Raises:
        ValueError: the draws are not (S, D) and (M, D), not finite, or `dims` names a dimension that there is not.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> ax = plot_aggregate(torch.randn(500, 3), 0.5 * torch.randn(500, 3))
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['$z_{1}$', '$z_{2}$', '$z_{3}$']
        >>> plt.close(ax.figure)
    """
    draws = {"prior": to_numpy(prior).astype(float), "aggregate posterior": to_numpy(aggregate).astype(float)}
    num_dims = draws["prior"].shape[-1] if draws["prior"].ndim else 0
    for name, values in zip(("prior", "aggregate"), draws.values(), strict=True):
        if values.ndim != 2 or values.shape[1] != num_dims or len(values) < 2:
            raise ValueError(f"{name}: expected two draws or more, (S, {num_dims}); got shape {values.shape}.")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite draws; got {int((~np.isfinite(values)).sum())} that are not.")
    chosen = list(range(min(num_dims, MOST_DIMS))) if dims is None else list(dims)
    if not chosen or any(not 0 <= dim < num_dims for dim in chosen):
        raise ValueError(f"dims: expected dimensions from 0 to {num_dims - 1}; got {chosen}.")
    draws = {name: values[:, chosen] for name, values in draws.items()}
    low, high = _ends(draws.values())
    with drawing(ax, (max(4.0, 1.2 + 0.55 * len(chosen)), 3.6)) as ax:
        for position in range(len(chosen)):
            halves = {name: _density(values[:, position], low, high) for name, values in draws.items()}
            widest = max(density.max() for _, density in halves.values())
            for side, color, (name, (z, density)) in zip((-1, 1), HALVES, halves.items(), strict=True):
                edge = position + side * 0.44 * density / widest
                label = name if not position else None
                ax.fill_betweenx(z, position, edge, color=color, linewidth=0, label=label)
        ax.set_xticks(range(len(chosen)), [f"$z_{{{dim + 1}}}$" for dim in chosen])
        ax.set(xlim=(-0.6, len(chosen) - 0.4), ylim=(low, high), xlabel="latent dimension", ylabel="value")
        ax.grid(visible=False, axis="x")
        beyond = {name: ((values < low) | (values > high)).mean(0).max() for name, values in draws.items()}
        if max(beyond.values()) > 0.01:
            note = ", ".join(f"{100 * share:.0f} % of the {name}" for name, share in beyond.items())
            ax.legend(title=f"beyond the axis, at most: {note}", title_fontsize=7, **above(2))
        else:
            ax.legend(**above(2))
    return ax


def _ends(draws: Iterable[np.ndarray]) -> tuple[float, float]:
    ends = []
    for values in draws:
        low, median, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
        ends.append(np.maximum(values.min(0), 2 * low - median))
        ends.append(np.minimum(values.max(0), 2 * high - median))
    first, last = float(np.min(ends)), float(np.max(ends))
    margin = 0.03 * (last - first) or 0.5
    return first - margin, last + margin


def _density(values: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Density of the values from `low` to `high` at the edges of a histogram's bins, smoothed over neighbours."""
    first, last = max(low, values.min()), min(high, values.max())
    least = (high - low) / 200
    if last - first < least:
        # All alike, or as good as.
        middle = (first + last) / 2
        first, last = middle - least / 2, middle + least / 2
    # Freedman and Diaconis's width; of what is cut off by the axis it takes no notice.
    quartiles = np.quantile(values, (0.25, 0.75))
    width = max(least, 2 * float(np.ptp(quartiles)) / len(values) ** (1 / 3))
    counts, edges = np.histogram(values, max(1, round((last - first) / width)), (first, last))
    padded = np.pad(counts / (len(values) * (edges[1] - edges[0])), 1)
    return edges, (padded[1:] + padded[:-1]) / 2


def _marker(name: str, index: int) -> str:
    """The label itself where it is a letter or two: read without a legend, and in print. Else a shape."""
    if len(name) <= 2 and name.isascii() and name.isalnum():
        return rf"$\mathbf{{{name}}}$"
    return CLASS_MARKERS[(index + index // len(CLASS_COLORS)) % len(CLASS_MARKERS)]
