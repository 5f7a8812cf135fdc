"""Datapoints, reconstructions and draws: images where x is one, lines or dots where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pyro_vae.plots._mosaic import as_images, gap_between, matrix, mosaic_size, require_values, scale_note, show, tile
from pyro_vae.plots._ridges import are_variables, beside, dot_area, ridges, ridges_size, value_axis
from pyro_vae.plots._style import COLORS, Array, drawing, finite_limits, minus, require_positive, to_numpy

__all__ = ["plot_manifold", "plot_reconstructions", "plot_samples"]


def plot_reconstructions(
    x: Array,
    mean: Array,
    image_shape: Sequence[int] | None = None,
    *,
    num_columns: int = 10,
    ink: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Originals above their reconstructions, on the gray scale of the originals.

    Args:
        x: (N, P) originals.
        mean: (N, P) the mean of x under q and the decoder.
        image_shape: (height, width) or (height, width, channels) (3 are a colour); None draws each datapoint as
            dots and its reconstruction as a line, or, of up to 40 values, as hollow markers.
        num_columns: images a row.
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: shapes do not match, or nothing is given.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> x = np.arange(24.0).reshape(4, 6)
        >>> ax = plot_reconstructions(x, x / 2, (2, 3))
        >>> [label.get_text() for label in ax.get_yticklabels()], ax.get_xlabel()
        (['original', 'reconstruction'], '0 (white) to 23 (black)')
        >>> plt.close(ax.figure)
    """
    x, mean = matrix("x", x), matrix("mean", mean)
    if x.shape != mean.shape:
        raise ValueError(
            f"mean: expected the shape of x, {x.shape}; got {mean.shape}. Pass one reconstruction a datapoint."
        )
    require_positive("num_columns", num_columns)
    limits = finite_limits(x)
    if image_shape is None:
        with drawing(ax, ridges_size(len(x))) as ax:
            labels = [str(index) for index in range(len(x))]
            ridges(ax, ("original", x), {"reconstruction": mean}, labels, "datapoint")
        return ax
    originals, reconstructed = as_images("x", x, image_shape), as_images("mean", mean, image_shape)
    num_columns = min(num_columns, len(x))
    strips = []
    for first in range(0, len(x), num_columns):
        rows = slice(first, first + num_columns)
        strips += [tile(originals[rows], num_columns), tile(reconstructed[rows], num_columns, gaps_below=3)]
    mosaic = np.concatenate(strips)[: -3 * gap_between(originals)]
    starts = np.cumsum([0, *(len(strip) for strip in strips[:-1])])
    with drawing(ax, mosaic_size(mosaic)) as ax:
        show(ax, mosaic, limits, ink=ink)
        ax.set_yticks(starts + (originals.shape[1] - 1) / 2, ["original", "reconstruction"] * (len(strips) // 2))
        ax.set_xlabel(scale_note(limits, np.concatenate([originals, reconstructed]), image_shape, ink=ink))
    return ax


def plot_samples(
    x: Array,
    image_shape: Sequence[int] | None = None,
    *,
    num_columns: int | None = None,
    ink: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draws of x from the prior, as a square of images.

    Args:
        x: (N, P) draws, or their means.
        image_shape: (height, width) or (height, width, channels) (3 are a colour); None draws each as a line,
            or, of up to 40 values, as dots.
        num_columns: images a row; default: a square.
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: `image_shape` does not fit x, or nothing is given.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> ax = plot_samples(np.arange(24.0).reshape(4, 6), (2, 3))
        >>> ax.get_xlabel()
        '0 (white) to 23 (black)'
        >>> plt.close(ax.figure)
    """
    x = matrix("x", x)
    if num_columns is not None:
        require_positive("num_columns", num_columns)
    if image_shape is None:
        with drawing(ax, (6.0, 3.4)) as ax:
            look: dict[str, Any] = {"alpha": max(0.15, min(1.0, 8 / len(x)))}
            if are_variables(x.shape[1]):
                look = {"alpha": 0.6, "linewidths": 0, "s": dot_area(x.size)}
                ax.scatter(*beside(x).reshape(-1, 2).T, color=COLORS[0], **look)
            else:
                lines = [np.column_stack([np.arange(x.shape[1]), row]) for row in x]
                ax.add_collection(LineCollection(lines, colors=COLORS[0], linewidths=0.9, **look))
            ax.autoscale_view()
            value_axis(ax, x.shape[1])
            each = "one dot a draw at each variable" if are_variables(x.shape[1]) else "one line each"
            ax.set(ylabel="data value", title=f"{len(x)} draws, {each}")
        return ax
    images = as_images("x", x, image_shape)
    columns = num_columns or int(np.ceil(np.sqrt(len(x))))
    mosaic = np.concatenate([tile(images[first : first + columns], columns) for first in range(0, len(x), columns)])
    mosaic = mosaic[: -gap_between(images)]
    limits = finite_limits(x)
    with drawing(ax, mosaic_size(mosaic)) as ax:
        show(ax, mosaic, limits, ink=ink)
        ax.set_xlabel(scale_note(limits, images, image_shape, ink=ink))
    return ax


def plot_manifold(
    images: Array,
    image_shape: Sequence[int] | None = None,
    *,
    grid: Array | Sequence[float] | None = None,
    ink: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """What a 2-D latent space decodes to: one image a grid point, laid out like the plane it came from.

    Args:
        images: (n, n, P); `images[i, j]` is decoded at z = (grid[i], grid[j]): i runs to the right, j upwards.
        image_shape: (height, width) or (height, width, channels) (3 are a colour); None draws lines, or, of
            up to 40 values, dots.
        grid: (n,) the latent values, for the ticks.
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: `images` is not (n, n, P), or `image_shape` or `grid` does not fit.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> grid = torch.tensor([-1.0, 0.0, 1.0])
        >>> decoded = torch.cartesian_prod(grid, grid).repeat(1, 3)  # in place of vae.decode(...).mean
        >>> ax = plot_manifold(decoded.unflatten(0, (3, 3)), (2, 3), grid=grid)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['−1', '0', '1']
        >>> plt.close(ax.figure)
    """
    values = to_numpy(images)
    if values.ndim != 3 or values.shape[0] != values.shape[1] or not values.size:
        raise ValueError(f"images: expected shape (n, n, P), one decoded datapoint a grid point; got {values.shape}.")
    require_values("images", values)
    n = len(values)
    ticks = None if grid is None else to_numpy(grid)
    if ticks is not None and ticks.shape != (n,):
        raise ValueError(f"grid: expected shape ({n},), the latent values of one axis; got {ticks.shape}.")
    limits = finite_limits(values)
    with drawing(ax, (5.0, 5.0)) as ax:
        if image_shape is None:
            span = (limits[1] - limits[0]) or 1.0
            across = np.linspace(0.08, 0.92, values.shape[2])
            up = 0.08 + 0.84 * (values - limits[0]) / span
            lines = [np.column_stack([i + across, j + up[i, j]]) for i in range(n) for j in range(n)]
            if are_variables(values.shape[2]):
                ax.plot(*np.concatenate(lines).T, "o", color=COLORS[0], markersize=1.5)
            else:
                ax.add_collection(LineCollection(lines, colors=COLORS[0], linewidths=0.8))
            for border in range(1, n):
                ax.axvline(border, color="#dddddd", linewidth=0.6)
                ax.axhline(border, color="#dddddd", linewidth=0.6)
            ax.set(xlim=(0, n), ylim=(0, n), aspect="equal")
        else:
            tiles = as_images("images", values.reshape(n * n, -1), image_shape)
            tiles = tiles.reshape(n, n, *tiles.shape[1:])
            # Rows of a picture run downwards, z2 upwards.
            rows = [np.concatenate(list(tiles[:, j]), axis=1) for j in reversed(range(n))]
            mosaic = np.concatenate(rows)
            show(
                ax,
                mosaic,
                limits,
                ink=ink,
                extent=(0.0, float(n), 0.0, float(n)),
                aspect=tiles.shape[2] / tiles.shape[3],
            )
        if ticks is not None:
            shown = np.arange(0, n, -(-n // 8))
            labels = [minus(f"{ticks[i]:.2g}") for i in shown]
            ax.set_xticks(shown + 0.5, labels)
            ax.set_yticks(shown + 0.5, labels)
        else:
            ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax
