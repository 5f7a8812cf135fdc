"""The true posterior of one datapoint in two dimensions, and the members of a family that approximate it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyro_vae.plots._style import COLORS, DASHES, Array, above, cycle, drawing, to_numpy

__all__ = ["plot_posterior"]

# Contours enclose these shares of the mass, the outer first.
MASSES = (0.9, 0.5)
# Pale: to a deuteranope the third colour of a contour is a gray, too.
SHADES = ("#e8e8e8", "#cccccc")
# A share of q off the grid that a reader must know of.
LEFT_OUT = 0.05


def plot_posterior(
    grid: Array,
    log_joint: Array,
    log_q: Mapping[str, Array],
    *,
    ax: Axes | None = None,
) -> Axes:
    r"""The true posterior of one datapoint as shades, and approximations of it as contours.

    The posterior is :math:`p(x, z)` normalised on the grid. Shades and contours end where they enclose 50 % and 90 % of
    the mass on the grid; the axes show the part of the grid where any of them lie. The legend says how much of a q lies
    elsewhere, if it is more than 5 %; of a posterior that leaves the grid nothing is known.

    Args:
        grid: (n,) evenly spaced values of both latent dimensions, or (2, n) those of each.
        log_joint: (n, n) log p(x, z) at z = (grid[i], grid[j]), up to a constant, nats.
        log_q: `{name: (n, n)}` normalised log densities there.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: the shapes do not fit, the grid does not rise evenly, or there is no mass on it.

    References:
        Cremer, Li & Duvenaud (2018), Inference Suboptimality in Variational Autoencoders, figure 2.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> grid = np.linspace(-4, 4, 81)
        >>> z1, z2 = np.meshgrid(grid, grid, indexing="ij")
        >>> log_joint = -0.5 * (z1**2 + (z2 - 0.5 * z1**2) ** 2 / 0.2)
        >>> log_q = -0.5 * (z1**2 + z2**2 / 0.2) - np.log(2 * np.pi * 0.2**0.5)
        >>> ax = plot_posterior(grid, log_joint, {"q": log_q})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['posterior', 'q']
        >>> plt.close(ax.figure)
    """
    z1, z2 = _axes(to_numpy(grid).astype(float))
    surfaces = {"log_joint": log_joint} | {f"log_q[{name!r}]": values for name, values in log_q.items()}
    shares = [_share(name, to_numpy(values).astype(float), len(z1)) for name, values in surfaces.items()]
    levels = [_levels(share) for share in shares]
    cell = (z1[1] - z1[0]) * (z2[1] - z2[0])
    names = []
    for name, values in log_q.items():
        elsewhere = 1 - float(np.exp(to_numpy(values).astype(float)).sum()) * cell
        names.append(f"{name} ({100 * elsewhere:.0f} % off the grid)" if elsewhere > LEFT_OUT else name)
    with drawing(ax, (4.6, 4.9)) as ax:
        # Arrays run over z1 first, pictures over z2.
        ax.contourf(z1, z2, shares[0].T, levels=[*levels[0], shares[0].max() * 1.001], colors=SHADES)
        handles: list[Patch | Line2D] = [Patch(color=SHADES[-1], label="posterior")]
        looks = zip(cycle(COLORS), cycle(DASHES), names, shares[1:], levels[1:], strict=False)
        for color, dash, name, share, level in looks:
            # The outer line thinner: where there are several, it tells which line is which.
            ax.contour(z1, z2, share.T, levels=level, colors=color, linewidths=(1.0, 1.7), linestyles=[dash])
            handles.append(Line2D([], [], color=color, linestyle=dash, linewidth=1.7, label=name))
        masses = " and ".join(f"{100 * mass:g} %" for mass in sorted(MASSES))
        title: dict[str, Any] = {"title": f"{masses} of the mass", "title_fontsize": 8}
        ax.legend(handles=handles, **title, **above(3 if len(handles) == 3 else min(len(handles), 2)))
        ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
        ax.set(**_window(z1, z2, np.any([share >= level[0] for share, level in zip(shares, levels, strict=True)], 0)))
        ax.grid(visible=False)
    return ax


def _axes(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if grid.ndim not in (1, 2) or (grid.ndim == 2 and len(grid) != 2) or grid.shape[-1] < 2:
        raise ValueError(f"grid: expected shape (n,) or (2, n) with n at least 2; got {grid.shape}.")
    steps = np.diff(grid)
    if not (steps > 0).all() or np.ptp(steps, axis=-1).max() > 1e-3 * steps.max():
        raise ValueError("grid: expected evenly spaced, rising values: cells of one size; got others. Try linspace.")
    return (grid, grid) if grid.ndim == 1 else (grid[0], grid[1])


def _share(name: str, log_density: np.ndarray, size: int) -> np.ndarray:
    """The mass of each cell, of all on the grid."""
    if log_density.shape != (size, size):
        raise ValueError(f"{name}: expected shape ({size}, {size}), one value a grid point; got {log_density.shape}.")
    largest = np.max(log_density)
    if not np.isfinite(largest):
        raise ValueError(f"{name}: expected log densities, finite somewhere on the grid; the largest is {largest}.")
    mass = np.exp(log_density - largest)
    return mass / mass.sum()


def _levels(share: np.ndarray) -> list[float]:
    """Values of `share` above which lie the masses, rising."""
    falling = np.sort(share, axis=None)[::-1]
    enclosed = np.cumsum(falling)
    ends = np.minimum(np.searchsorted(enclosed, MASSES), len(falling) - 1)
    levels = [float(level) for level in falling[ends]]
    # On a coarse grid one cell may hold both.
    return levels if levels[0] < levels[1] else [levels[1] * 0.5, levels[1]]


def _window(z1: np.ndarray, z2: np.ndarray, inside: np.ndarray) -> dict[str, tuple[float, float]]:
    """A square around what is drawn, with a margin, moved onto the grid where it would leave it."""
    boxes = [values[inside.any(axis)] for values, axis in ((z1, 1), (z2, 0))]
    side = 1.3 * max(float(np.ptp(box)) for box in boxes) or float(z1[1] - z1[0])
    limits = {}
    for name, values, box in zip(("xlim", "ylim"), (z1, z2), boxes, strict=True):
        low = (float(box[0] + box[-1]) - side) / 2
        low = max(float(values[0]), min(low, float(values[-1]) - side))
        limits[name] = (low, min(low + side, float(values[-1])))
    return limits
