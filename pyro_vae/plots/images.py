"""Datapoints, reconstructions and draws: images where x is one, lines where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pyro_vae.plots._style import COLORS, Array, above, drawing, minus, require_positive, to_numpy

__all__ = ["plot_manifold", "plot_reconstructions", "plot_samples"]

# The gray between images, so that a white border is seen as part of an image.
GROUND = 0.88


def plot_reconstructions(
    x: Array,
    mean: Array,
    image_shape: Sequence[int] | None = None,
    *,
    num_columns: int = 10,
    ink: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Originals above their reconstructions, on one gray scale.

    Args:
        x: (N, P) originals.
        mean: (N, P) the mean of x under q and the decoder.
        image_shape: (height, width) or (height, width, channels) with 1 or 3 channels; None draws each datapoint as
            dots and its reconstruction as a line.
        num_columns: images a row.
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: shapes do not match, or nothing is given.
    """
    x, mean = _matrix("x", x), _matrix("mean", mean)
    if x.shape != mean.shape:
        raise ValueError(
            f"mean: expected the shape of x, {x.shape}; got {mean.shape}. Pass one reconstruction a datapoint."
        )
    require_positive("num_columns", num_columns)
    limits = (float(np.nanmin(x)), float(np.nanmax(x)))
    if image_shape is None:
        with drawing(ax, (6.0, min(8.0, 0.8 + 0.5 * len(x)))) as ax:
            _ridges(ax, x, mean)
        return ax
    originals, reconstructed = _images("x", x, image_shape), _images("mean", mean, image_shape)
    num_columns = min(num_columns, len(x))
    strips = []
    for first in range(0, len(x), num_columns):
        rows = slice(first, first + num_columns)
        strips += [_tile(originals[rows], num_columns), _tile(reconstructed[rows], num_columns, gaps_below=3)]
    mosaic = np.concatenate(strips)[: -3 * _gap(originals)]
    starts = np.cumsum([0, *(len(strip) for strip in strips[:-1])])
    with drawing(ax, _mosaic_size(mosaic)) as ax:
        _show(ax, mosaic, limits, ink=ink)
        ax.set_yticks(starts + (originals.shape[1] - 1) / 2, ["original", "reconstruction"] * (len(strips) // 2))
        ax.set_xlabel(_scale_note(limits, originals, ink=ink))
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
        image_shape: (height, width) or (height, width, channels) with 1 or 3 channels; None draws each as a line.
        num_columns: images a row; default: a square.
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: `image_shape` does not fit x, or nothing is given.
    """
    x = _matrix("x", x)
    if num_columns is not None:
        require_positive("num_columns", num_columns)
    if image_shape is None:
        with drawing(ax, (6.0, 3.4)) as ax:
            value = np.arange(x.shape[1])
            lines = [np.column_stack([value, row]) for row in x]
            ax.add_collection(
                LineCollection(lines, colors=COLORS[0], linewidths=0.9, alpha=max(0.15, min(1.0, 8 / len(x))))
            )
            ax.autoscale_view()
            ax.set(xlabel="index of the data value", ylabel="data value", title=f"{len(x)} draws, one line each")
        return ax
    images = _images("x", x, image_shape)
    columns = num_columns or int(np.ceil(np.sqrt(len(x))))
    mosaic = np.concatenate([_tile(images[first : first + columns], columns) for first in range(0, len(x), columns)])
    mosaic = mosaic[: -_gap(images)]
    limits = (float(np.nanmin(x)), float(np.nanmax(x)))
    with drawing(ax, _mosaic_size(mosaic)) as ax:
        _show(ax, mosaic, limits, ink=ink)
        ax.set_xlabel(_scale_note(limits, images, ink=ink))
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
        image_shape: (height, width) or (height, width, channels) with 1 or 3 channels; None draws lines.
        grid: (n,) the latent values, for the ticks.
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: `images` is not (n, n, P), or `image_shape` or `grid` does not fit.
    """
    values = to_numpy(images)
    if values.ndim != 3 or values.shape[0] != values.shape[1]:
        raise ValueError(f"images: expected shape (n, n, P), one decoded datapoint a grid point; got {values.shape}.")
    n = len(values)
    ticks = None if grid is None else to_numpy(grid)
    if ticks is not None and ticks.shape != (n,):
        raise ValueError(f"grid: expected shape ({n},), the latent values of one axis; got {ticks.shape}.")
    limits = (float(values.min()), float(values.max()))
    with drawing(ax, (5.0, 5.0)) as ax:
        if image_shape is None:
            span = (limits[1] - limits[0]) or 1.0
            across = np.linspace(0.08, 0.92, values.shape[2])
            up = 0.08 + 0.84 * (values - limits[0]) / span
            lines = [np.column_stack([i + across, j + up[i, j]]) for i in range(n) for j in range(n)]
            ax.add_collection(LineCollection(lines, colors=COLORS[0], linewidths=0.8))
            ax.set(xlim=(0, n), ylim=(0, n), aspect="equal")
        else:
            tiles = _images("images", values.reshape(n * n, -1), image_shape)
            tiles = tiles.reshape(n, n, *tiles.shape[1:])
            # Rows of a picture run downwards, z2 upwards.
            rows = [np.concatenate(list(tiles[:, j]), axis=1) for j in reversed(range(n))]
            mosaic = np.concatenate(rows)
            _show(
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


def _matrix(name: str, values: Array) -> np.ndarray:
    array = to_numpy(values)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: expected shape (N, P) with at least one datapoint; got {array.shape}.")
    return array


def _images(name: str, x: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """(N, P) as (N, height, width) or (N, height, width, 3)."""
    shape = tuple(image_shape)
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3):
        raise ValueError(f"image_shape: expected (height, width), or (height, width, 1 or 3); got {shape}.")
    if int(np.prod(shape)) != x.shape[1]:
        raise ValueError(
            f"image_shape: expected {x.shape[1]} pixels, the length of a row of {name}; {shape} has {np.prod(shape)}."
        )
    return x.reshape(-1, *(shape if channels == 3 else shape[:2])).astype(float)


def _gap(images: np.ndarray) -> int:
    return max(1, round(0.06 * images.shape[2]))


def _tile(images: np.ndarray, num_columns: int, *, gaps_below: int = 1) -> np.ndarray:
    """One row of images, blank between and below them; missing ones at the end stay blank."""
    height, width = images.shape[1:3]
    gap = _gap(images)
    row = np.full((height + gaps_below * gap, num_columns * (width + gap) - gap, *images.shape[3:]), np.nan)
    for index, image in enumerate(images):
        start = index * (width + gap)
        row[:height, start : start + width] = image
    return row


def _mosaic_size(mosaic: np.ndarray) -> tuple[float, float]:
    height, width = mosaic.shape[:2]
    scale = min(6.0 / width, 7.0 / height)
    return width * scale + 0.9, height * scale + 0.45


def _show(ax: Axes, mosaic: np.ndarray, limits: tuple[float, float], *, ink: bool, **options: Any) -> None:
    """A mosaic on its gray scale, or in colour, without ticks."""
    low, high = limits
    if mosaic.ndim == 3:
        mosaic = np.clip((mosaic - low) / ((high - low) or 1.0), 0.0, 1.0)
        mosaic = np.where(np.isnan(mosaic), GROUND, mosaic)
    gray = plt.get_cmap("gray_r" if ink else "gray").with_extremes(bad=(GROUND,) * 3)
    ax.imshow(mosaic, cmap=gray, vmin=low, vmax=high, **options)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _scale_note(limits: tuple[float, float], images: np.ndarray, *, ink: bool) -> str:
    # A mean of 7e-8 on a scale up to 16 is a nought.
    low, high = (f"{limit if abs(limit) > 1e-3 * (limits[1] - limits[0]) else 0:.3g}" for limit in limits)
    first, last = ("white", "black") if ink else ("black", "white")
    return minus(f"{low} ({first}) to {high} ({last})" if images.ndim == 3 else f"each channel: {low} to {high}")


def _ridges(ax: Axes, x: np.ndarray, mean: np.ndarray) -> None:
    """Datapoints below each other, each as dots with its reconstruction as a line."""
    spacing = 1.15 * float(max(np.nanmax(x) - np.nanmin(x), np.ptp(mean))) or 1.0
    value = np.arange(x.shape[1])
    marker = float(np.clip(200 / len(value), 1.0, 4.0))
    for index, (row, fitted) in enumerate(zip(x, mean, strict=True)):
        shift = -index * spacing
        first = index == 0
        ax.plot(value, row + shift, "o", color=COLORS[0], markersize=marker, label="original" if first else None)
        ax.plot(value, fitted + shift, color=COLORS[1], linewidth=1.1, label="reconstruction" if first else None)
    ax.set_yticks(-np.arange(len(x)) * spacing, [str(index) for index in range(len(x))])
    ax.set(xlabel="index of the data value", ylabel=f"datapoint (its zero line; {spacing:.3g} apart)")
    ax.legend(**above(2))
