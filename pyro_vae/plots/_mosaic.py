"""Images beside each other on one gray scale: what every picture of datapoints is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from pyro_vae.plots._style import Array, minus, to_numpy

# The gray between images, so that a white border is seen as part of an image.
GROUND = 0.88
# Values that were not observed: no gray, since every gray is a value.
MISSING = "#a6cee3"


def matrix(name: str, values: Array) -> np.ndarray:
    array = to_numpy(values)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: expected shape (N, P) with at least one datapoint; got {array.shape}.")
    require_values(name, array)
    return array


def require_values(name: str, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).any():
        came = "NaN" if np.isnan(array).all() else "NaN or infinity"
        raise ValueError(f"{name}: expected values; got {came} everywhere. Leave out what was not observed at all.")


def as_images(name: str, x: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """(N, P) as (N, height, width) or (N, height, width, 3); other channels lie beside each other, in gray."""
    shape = tuple(image_shape)
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"image_shape: expected (height, width), or (height, width, channels); got {shape}.")
    if int(np.prod(shape)) != x.shape[1]:
        raise ValueError(
            f"image_shape: expected {x.shape[1]} pixels, the length of a row of {name}; {shape} has {np.prod(shape)}."
        )
    # Infinities are beyond the scale; what `tile` marks as minus infinity is missing.
    images = np.nan_to_num(x.reshape(-1, *shape[:2], channels).astype(float), nan=np.nan)
    if channels == 3:
        return images
    # As near to a square of channels as their number divides.
    rows = max(rows for rows in range(1, math.isqrt(channels) + 1) if channels % rows == 0)
    apart = images.reshape(-1, *shape[:2], rows, channels // rows).transpose(0, 3, 1, 4, 2)
    return apart.reshape(-1, rows * shape[0], channels // rows * shape[1])


def gap_between(images: np.ndarray) -> int:
    return max(1, round(0.06 * images.shape[2]))


def tile(images: np.ndarray, num_columns: int, *, gaps_below: int = 1) -> np.ndarray:
    """One row of images, NaN between and below them, as where there are none at the end; NaN of an image is -inf."""
    height, width = images.shape[1:3]
    gap = gap_between(images)
    row = np.full((height + gaps_below * gap, num_columns * (width + gap) - gap, *images.shape[3:]), np.nan)
    for index, image in enumerate(images):
        start = index * (width + gap)
        row[:height, start : start + width] = np.where(np.isnan(image), -np.inf, image)
    return row


def mosaic_size(mosaic: np.ndarray) -> tuple[float, float]:
    height, width = mosaic.shape[:2]
    scale = min(6.0 / width, 7.0 / height)
    return width * scale + 0.9, height * scale + 0.45


def show(ax: Axes, mosaic: np.ndarray, limits: tuple[float, float], *, ink: bool, **options: Any) -> None:
    """A mosaic on its gray scale, or in colour, without ticks."""
    low, high = limits
    span = (high - low) or 1.0
    missing = np.isneginf(mosaic)
    mosaic = np.clip(mosaic, low, high)
    if mosaic.ndim == 3:
        mosaic = np.where(np.isnan(mosaic), GROUND, (mosaic - low) / span)
        mosaic[missing.any(-1)] = to_rgb(MISSING)
    else:
        # Below the scale, for the colour of what is below it; infinities would be masked as NaN is.
        mosaic[missing] = low - span
    gray = plt.get_cmap("gray_r" if ink else "gray").with_extremes(bad=(GROUND,) * 3, under=MISSING)
    ax.imshow(mosaic, cmap=gray, vmin=low, vmax=high, **options)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def scale_note(limits: tuple[float, float], images: np.ndarray, image_shape: Sequence[int], *, ink: bool) -> str:
    # A mean of 7e-8 on a scale up to 16 is a nought.
    low, high = (f"{limit if abs(limit) > 1e-3 * (limits[1] - limits[0]) else 0:.3g}" for limit in limits)
    first, last = ("white", "black") if ink else ("black", "white")
    note = minus(f"{low} ({first}) to {high} ({last})" if images.ndim == 3 else f"each channel: {low} to {high}")
    channels = tuple(image_shape)[2:]
    if channels and channels[0] not in (1, 3):
        note += f"; the {channels[0]} channels of each beside one another"
    return f"{note}; pale blue: missing" if np.isnan(images).any() else note
