"""Baselines and autoencoders side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pyro_vae.comparison import Compared, Comparison
from pyro_vae.plots._style import COLORS, above, drawing, minus, styled

__all__ = ["plot_comparison", "plot_log_p", "plot_squared_error"]

# Linear models in one colour, networks in the other.
_LINEAR = ("PCA", "pPCA", "FA", "linear VAE")


def plot_squared_error(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Mean squared reconstruction error of each model, with its standard error over datapoints.

    Args:
        comparison: what `compare` found.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, with one bar a model, the first at the top.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> def model(name, error):
        ...     error = torch.tensor(error)
        ...     return Compared(name=name, squared_error=error, log_p=None, seconds=0.1, how="closed form")
        >>> models = [model("PCA", [2.0, 4.0]), model("FA", [3.0, 5.0])]
        >>> found = Comparison(
        ...     models=models, data="digits", fingerprint="f", num_data=2, num_latents=8, settings={}
        ... )
        >>> ax = plot_squared_error(found)
        >>> [float(bar.get_width()) for bar in ax.patches]
        [3.0, 4.0]
        >>> plt.close(ax.figure)
    """
    with drawing(ax, (5.0, 2.9)) as ax:
        rows = [model.summary()["squared_error"] for model in comparison.models]
        means, errors = [row["mean"] for row in rows], [row["se"] for row in rows]
        _models(ax, comparison.models)
        colors = [_color(model.name) for model in comparison.models]
        ax.barh(range(len(means)), means, 0.66, xerr=errors, color=colors, error_kw={"elinewidth": 1.1, "capsize": 3})
        _write(ax, means, errors, lambda mean: f"{mean:.3g}", from_zero=True)
        ax.set_xlabel("squared error of the reconstruction,\nmean over data values (lower is better)")
        for color, label in zip(COLORS, ("linear", "with hidden layers"), strict=False):
            ax.plot([], [], "s", color=color, markersize=6, label=label)
        ax.legend(**above(2))
    return ax


def plot_log_p(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Mean held-out log p(x) of each model that has a density, with its standard error over datapoints.

    Args:
        comparison: what `compare` found.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, with one dot a model; where there is no density the row says so.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> def model(name, error):
        ...     error = torch.tensor(error)
        ...     return Compared(name=name, squared_error=error, log_p=None, seconds=0.1, how="closed form")
        >>> models = [model("PCA", [2.0, 4.0]), model("FA", [3.0, 5.0])]
        >>> found = Comparison(
        ...     models=models, data="digits", fingerprint="f", num_data=2, num_latents=8, settings={}
        ... )
        >>> ax = plot_log_p(found)
        >>> [text.get_text() for text in ax.texts]
        ['no density', 'no density']
        >>> plt.close(ax.figure)
    """
    with drawing(ax, (5.0, 2.9)) as ax:
        _models(ax, comparison.models)
        means, errors = [], []
        for position, model in enumerate(comparison.models):
            row = model.summary()["log_p"]
            means.append(np.nan if row is None else row["mean"])
            errors.append(np.nan if row is None else row["se"])
            if row is None:
                words: dict[str, Any] = {"fontsize": 8, "color": "#666666", "va": "center", "ha": "center"}
                ax.annotate("no density", (0.5, position), xycoords=("axes fraction", "data"), **words)
                continue
            style: dict[str, Any] = {"color": _color(model.name), "markersize": 7, "capsize": 3, "elinewidth": 1.1}
            ax.errorbar(means[-1], position, xerr=errors[-1], fmt="s" if model.mark else "o", **style)
        _write(ax, means, errors, lambda mean: minus(f"{mean:.1f}"), from_zero=False)
        ax.margins(x=0.16)
        ax.set_xlabel("log p(x) of test data,\nnats per datapoint (higher is better)")
        if any(model.mark and model.log_p is not None for model in comparison.models):
            ax.plot([], [], "s", color="#333333", markersize=5, label="noise of another form: see the table")
            ax.legend(**above(1))
    return ax


def plot_comparison(comparison: Comparison, *, axes: Sequence[Axes] | None = None) -> tuple[Axes, Axes]:
    """Both panels side by side: reconstruction error, and log p(x) where there is a density.

    Args:
        comparison: what `compare` found.
        axes: two Axes to draw on; default: a new figure.

    Returns:
        The two Axes.

    Raises:
        ValueError: `axes` are not two.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> def model(name, error):
        ...     error = torch.tensor(error)
        ...     return Compared(name=name, squared_error=error, log_p=None, seconds=0.1, how="closed form")
        >>> models = [model("PCA", [2.0, 4.0]), model("FA", [3.0, 5.0])]
        >>> found = Comparison(
        ...     models=models, data="digits", fingerprint="f", num_data=2, num_latents=8, settings={}
        ... )
        >>> left, right = plot_comparison(found)
        >>> [label.get_text() for label in left.get_yticklabels()]
        ['PCA', 'FA']
        >>> plt.close(left.figure)
    """
    if axes is not None and len(axes) != 2:
        raise ValueError(f"axes: expected two Axes, one a panel; got {len(axes)}.")
    with styled():
        if axes is None:
            figure, axes = plt.subplots(1, 2, figsize=(8.4, 0.9 + 0.36 * len(comparison.models)), sharey=True)
            title = f"{comparison.data}, D = {comparison.num_latents}, N = {comparison.num_data}; bars: ± 1 se over x"
            figure.suptitle(title, fontsize=10)
        left, right = axes
        plot_squared_error(comparison, ax=left)
        plot_log_p(comparison, ax=right)
    return left, right


def _models(ax: Axes, models: Sequence[Compared]) -> None:
    ax.set_yticks(range(len(models)), [model.name for model in models])
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _color(name: str) -> str:
    return COLORS[0] if name in _LINEAR else COLORS[1]


def _write(
    ax: Axes, means: Sequence[float], errors: Sequence[float], words: Callable[[float], str], *, from_zero: bool
) -> None:
    """Each mean as a number: behind its error bar, or above its dot."""
    for position, (mean, error) in enumerate(zip(means, errors, strict=True)):
        if not np.isfinite(mean):
            continue
        half = error if np.isfinite(error) else 0.0
        where: dict[str, Any] = {"xytext": (5, 0), "va": "center"} if from_zero else {"xytext": (0, 6), "ha": "center"}
        at = (mean + half, position) if from_zero else (mean, position)
        ax.annotate(words(mean), at, textcoords="offset points", fontsize=8, **where)
    if from_zero:
        ax.margins(x=0.14)
        ax.set_xlim(left=0.0)
