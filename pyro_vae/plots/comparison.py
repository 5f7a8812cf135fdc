"""Baselines and autoencoders side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyro_vae.comparison import Compared, Comparison
from pyro_vae.plots._style import COLORS, above, drawing, minus, styled

__all__ = ["plot_comparison", "plot_log_p", "plot_squared_error"]

_LINEAR = ("PCA", "pPCA", "FA", "linear VAE")
# Linear models, and networks: told apart in gray print by hatches, and by dots that are hollow.
_KINDS = {"linear": COLORS[0], "with hidden layers": COLORS[1]}
_HATCHES = {"linear": "", "with hidden layers": "////"}
_FILLS = {"linear": COLORS[0], "with hidden layers": "white"}


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
    with drawing(ax, (5.0, _height(comparison))) as ax:
        rows = [model.summary()["squared_error"] for model in comparison.models]
        means, errors = [row["mean"] for row in rows], [row["se"] for row in rows]
        _models(ax, comparison.models)
        kinds = [_kind(model) for model in comparison.models]
        look: dict[str, Any] = {"color": [_KINDS[kind] for kind in kinds], "hatch": [_HATCHES[kind] for kind in kinds]}
        look |= {"edgecolor": "white", "linewidth": 0, "error_kw": {"elinewidth": 1.1, "capsize": 3}}
        ax.barh(range(len(means)), means, 0.66, xerr=errors, **look)
        _write(ax, means, errors, lambda mean: f"{mean:.3g}", from_zero=True)
        ax.set_xlabel("squared error of the reconstruction,\nmean over data values (lower is better)")
        known = [kind for kind in _KINDS if kind in kinds]
        _legend(ax, [Patch(fc=_KINDS[kind], hatch=_HATCHES[kind], ec="white", lw=0, label=kind) for kind in known])
    return ax


def plot_log_p(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Mean held-out log p(x) of each model that has a density, with its standard error over datapoints.

    Args:
        comparison: what `compare` found.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, with one dot a model; where there is no density the row says so. A square is a model whose noise is of
        another form, which its `mark` names.

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
    with drawing(ax, (5.0, _height(comparison))) as ax:
        _models(ax, comparison.models)
        means, errors, kinds = [], [], set()
        for position, model in enumerate(comparison.models):
            row = model.summary()["log_p"]
            means.append(np.nan if row is None else row["mean"])
            errors.append(np.nan if row is None else row["se"])
            if row is None:
                words: dict[str, Any] = {"fontsize": 8, "color": "#666666", "va": "center", "ha": "center"}
                ax.annotate("no density", (0.5, position), xycoords=("axes fraction", "data"), **words)
                continue
            kind = _kind(model)
            kinds.add(kind)
            style: dict[str, Any] = {"color": _KINDS[kind], "markerfacecolor": _FILLS[kind], "markersize": 7}
            style |= {"capsize": 3, "elinewidth": 1.1}
            ax.errorbar(means[-1], position, xerr=errors[-1], fmt="s" if model.mark else "o", **style)
        _write(ax, means, errors, lambda mean: minus(f"{mean:.1f}"), from_zero=False)
        ax.margins(x=0.16)
        ax.set_xlabel("log p(x) of test data,\nnats per datapoint (higher is better)")
        known = [kind for kind in _KINDS if kind in kinds]
        dots = [Line2D([], [], c=_KINDS[kind], mfc=_FILLS[kind], marker="o", ls="none", label=kind) for kind in known]
        if any(model.mark and model.log_p is not None for model in comparison.models):
            square: dict[str, Any] = {"color": "#333333", "marker": "s", "markersize": 5, "linestyle": "none"}
            dots.append(Line2D([], [], label="noise of another form", **square))
        _legend(ax, dots)
    return ax


def plot_comparison(comparison: Comparison, *, axes: Sequence[Axes] | None = None) -> tuple[Axes, Axes]:
    """Both panels side by side: reconstruction error, and log p(x) where there is a density.

    Args:
        comparison: what `compare` found.
        axes: two Axes to draw on; default: a new figure.

    Returns:
        The two Axes. Models are scored on the same datapoints: of two whose bars overlap the difference may still be
        sure, as `paired_difference` tells.

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
            figure, axes = plt.subplots(1, 2, figsize=(8.4, 0.3 + _height(comparison)), sharey=True)
            title = f"{comparison.data}, D = {comparison.num_latents}, N = {comparison.num_data}"
            figure.suptitle(title, fontsize=10)
        left, right = axes
        plot_squared_error(comparison, ax=left)
        plot_log_p(comparison, ax=right)
    return left, right


def _models(ax: Axes, models: Sequence[Compared]) -> None:
    ax.set_yticks(range(len(models)), [model.name for model in models])
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _height(comparison: Comparison) -> float:
    return 1.4 + 0.3 * len(comparison.models)


def _kind(model: Compared) -> str:
    return "linear" if model.name in _LINEAR else "with hidden layers"


def _legend(ax: Axes, handles: Sequence[Artist]) -> None:
    if handles:
        ax.legend(handles=handles, title="error bars: ± 1 se over datapoints", title_fontsize=8, **above(2))


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
