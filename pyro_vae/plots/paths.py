"""Ways through the latent space, decoded: from datapoint to datapoint, and along one dimension at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from pyro_vae.plots._mosaic import as_images, gap_between, mosaic_size, require_values, scale_note, show, tile
from pyro_vae.plots._ridges import are_variables, beside, dot_area, name_rows, value_axis
from pyro_vae.plots._style import COLORS, Array, drawing, finite_limits, minus, to_numpy

__all__ = ["plot_interpolations", "plot_traversals"]


def plot_interpolations(
    x: Array, image_shape: Sequence[int] | None = None, *, ink: bool = True, ax: Axes | None = None
) -> Axes:
    """What lies between two datapoints, one way a row.

    Args:
        x: (R, T, P); `x[r, t]` is decoded at step t of way r.
        image_shape: (height, width) or (height, width, channels) (3 are a colour); None draws lines, from dark to
            light along the way, or, of up to 40 values, dots at each variable, from left to right.
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: x is not (R, T, P), or `image_shape` does not fit.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> share = torch.linspace(0, 1, 5)[:, None]
        >>> way = torch.lerp(torch.zeros(6), torch.ones(6), share)  # in place of vae.decode(...).mean
        >>> ax = plot_interpolations(way[None], (2, 3))
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['start', 'end']
        >>> plt.close(ax.figure)
    """
    values = _ways(x)
    labels = [f"{index + 1}" for index in range(len(values))]
    return _draw(values, image_shape, labels, {0: "start", values.shape[1] - 1: "end"}, "pair", ink=ink, ax=ax)


def plot_traversals(
    x: Array,
    image_shape: Sequence[int] | None = None,
    *,
    steps: Array | Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    ink: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """What each latent dimension changes: one dimension a row, all others held where they are.

    Args:
        x: (R, T, P); `x[r, t]` is decoded with dimension r at its step t.
        image_shape: (height, width) or (height, width, channels) (3 are a colour); None draws lines, from dark to
            light along the way, or, of up to 40 values, dots at each variable, from left to right.
        steps: (T,) the values that every dimension takes, for the ticks; default: "low" and "high".
        names: (R,) names of the dimensions; default $z_1$, $z_2$, ....
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: x is not (R, T, P), or `image_shape`, `steps` or `names` does not fit.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> decoded = torch.rand(2, 3, 6)  # in place of vae.decode(...).mean
        >>> ax = plot_traversals(decoded, (2, 3), steps=[-2.0, 0.0, 2.0])
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['−2', '0', '2']
        >>> plt.close(ax.figure)
    """
    values = _ways(x)
    names = [f"$z_{{{index + 1}}}$" for index in range(len(values))] if names is None else list(names)
    if len(names) != len(values):
        raise ValueError(f"names: expected {len(values)}, one a row of x; got {len(names)}.")
    ticks = {0: "low", values.shape[1] - 1: "high"}
    if steps is not None:
        taken = to_numpy(steps)
        if taken.shape != (values.shape[1],):
            raise ValueError(f"steps: expected shape ({values.shape[1]},), one a column of x; got {taken.shape}.")
        ticks = {index: minus(f"{value:.2g}") for index, value in enumerate(taken)}
    return _draw(values, image_shape, names, ticks, "latent dimension", ink=ink, ax=ax)


def _ways(x: Array) -> np.ndarray:
    values = to_numpy(x)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"x: expected shape (R, T, P), one decoded datapoint a step of each way; got {values.shape}.")
    require_values("x", values)
    return values


def _draw(
    values: np.ndarray,
    image_shape: Sequence[int] | None,
    labels: Sequence[str],
    ticks: Mapping[int, str],
    what: str,
    *,
    ink: bool,
    ax: Axes | None,
) -> Axes:
    num_ways, num_steps, num_values = values.shape
    if image_shape is None:
        with drawing(ax, (6.0, min(8.0, 0.8 + 0.6 * num_ways))) as ax:
            spacing = name_rows(ax, labels, what, values)
            shades = [to_rgba(COLORS[0], alpha) for alpha in np.linspace(1.0, 0.2, num_steps)]
            first, last = (ticks[step] for step in (min(ticks), max(ticks)))
            for way, rows in enumerate(values):
                shifted = rows - way * spacing
                if are_variables(num_values):
                    look: dict[str, Any] = {"c": np.repeat(shades, num_values, axis=0), "linewidths": 0}
                    x, y = beside(shifted).reshape(-1, 2).T
                    ax.scatter(x, y, s=dot_area(num_steps * num_values), **look)
                else:
                    lines = [np.column_stack([np.arange(num_values), row]) for row in shifted]
                    ax.add_collection(LineCollection(lines, colors=shades, linewidths=1.1))
            ax.autoscale_view()
            if are_variables(num_values):
                value_axis(ax, num_values, f"; in each, left (dark) to right (light): {first} to {last}")
            else:
                value_axis(ax, num_values, f"; dark: {first}, light: {last}")
        return ax
    images = as_images("x", values.reshape(num_ways * num_steps, num_values), image_shape)
    strips = [tile(images[way * num_steps :][:num_steps], num_steps) for way in range(num_ways)]
    mosaic = np.concatenate(strips)[: -gap_between(images)]
    limits = finite_limits(values)
    gap, height = gap_between(images), images.shape[1]
    with drawing(ax, mosaic_size(mosaic)) as ax:
        show(ax, mosaic, limits, ink=ink)
        ax.set_yticks(np.arange(num_ways) * (height + gap) + (height - 1) / 2, labels)
        middle = (images.shape[2] - 1) / 2
        ax.set_xticks([step * (images.shape[2] + gap) + middle for step in ticks], list(ticks.values()))
        ax.set(ylabel=what, xlabel=scale_note(limits, images, image_shape, ink=ink))
    return ax
