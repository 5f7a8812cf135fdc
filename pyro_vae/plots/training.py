"""How a fit went."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from inference.results import Fit
from pyro_vae.plots._style import COLORS, cycle, drawing, minus, require_some, to_numpy

__all__ = ["plot_elbo"]


def plot_elbo(fits: Mapping[str, Fit], *, ax: Axes | None = None) -> Axes:
    """Training and held-out ELBO per epoch, one colour a fit, with the epoch that was kept.

    The first tenth of the epochs does not stretch the axis; where it is cut, a note says so. Of Monte Carlo EM the
    held-out ELBO alone is drawn: on its training data it has none.

    Args:
        fits: `{name: Fit}`.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Lines are labelled "<name>, training" and "<name>, held-out".

    Raises:
        ValueError: no fit is given.
    """
    require_some("fits", fits)
    with drawing(ax, (6.0, 3.6)) as ax:
        shown, everything = [], []
        for color, (name, fit) in zip(cycle(COLORS), fits.items(), strict=False):
            curves = {} if fit.elbo is None else {"training": to_numpy(fit.elbo)}
            if fit.elbo_validation is not None:
                curves["held-out"] = to_numpy(fit.elbo_validation)
            for kind, values in curves.items():
                epochs = np.arange(1, len(values) + 1)
                style = "-" if kind == "training" else (0, (4, 1.5))
                ax.plot(epochs, values, color=color, linestyle=style, label=f"{name}, {kind}")
                shown.append(values[_settled(len(values)) :])
                everything.append(values)
            if fit.best_epoch is not None:
                best = list(curves.values())[-1][fit.best_epoch]
                label = f"{name}, epoch kept ({fit.best_epoch + 1})"
                ax.plot(fit.best_epoch + 1, best, "o", color=color, markeredgecolor="white", markersize=7, label=label)
        if shown:
            _limit_from_below(ax, np.concatenate(shown), np.concatenate(everything))
            ax.legend(loc="lower right")
        ax.set(xlabel="epoch", ylabel="ELBO (nats per datapoint)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return ax


def _settled(num_epochs: int) -> int:
    """The first epoch that the axis has to show."""
    return 0 if num_epochs < 5 else -(-num_epochs // 10)


def _limit_from_below(ax: Axes, shown: np.ndarray, everything: np.ndarray) -> None:
    shown, everything = shown[np.isfinite(shown)], everything[np.isfinite(everything)]
    if not len(shown):
        return
    low, high = float(shown.min()), float(everything.max())
    margin = 0.06 * (high - low) or 0.5
    if everything.min() >= low - margin:
        return
    ax.set_ylim(low - margin, high + margin)
    note = minus(f"first epochs below the axis, from {everything.min():.0f}")
    ax.annotate(note, (0, 1), xycoords="axes fraction", xytext=(2, 3), textcoords="offset points", fontsize=7)
