"""How a fit went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from inference.results import Fit
from inference.tracking import TermTracker
from pyro_vae.plots._style import (
    COLORS,
    DASH_WORDS,
    DASHES,
    MARKERS,
    above,
    cycle,
    drawing,
    minus,
    require_some,
    to_numpy,
    whole_ticks,
)

__all__ = ["plot_elbo", "plot_elbo_terms"]


def plot_elbo(fits: Mapping[str, Fit], *, ax: Axes | None = None) -> Axes:
    """Training and held-out ELBO per epoch, one colour and marker a fit, with the epoch that was kept.

    A held-out curve is of the q that the engine has there, which its label names: the encoder's, or q*, which every
    engine that fits rows of its own searches for. L[q*] lies above L[q] of the same model, so curves of different q
    do not rank models. The first tenth of the epochs does not stretch the axis; where it is cut, a note says so. Of
    Monte Carlo EM the held-out ELBO alone is drawn: on its training data it has none.

    Args:
        fits: `{name: Fit}`.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Lines are labelled "<name>, training" and "<name>, held-out (<q>)", the latter without q where the
        fit's settings name no engine.

    Raises:
        ValueError: no fit is given.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> elbo = torch.tensor([-300.0, -150.0, -120.0, -118.0])
        >>> common = {"seconds": 1.0, "num_steps": 40, "stopped_because": "epochs", "settings": {"engine": "svi"}}
        >>> ax = plot_elbo({"SVI": Fit(elbo=elbo, elbo_validation=elbo - 3, **common)})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['SVI, training', 'SVI, held-out (encoder)']
        >>> plt.close(ax.figure)
    """
    require_some("fits", fits)
    # Room for the legend's rows.
    with drawing(ax, (6.0, 3.4 + 0.24 * len(fits))) as ax:
        shown, everything = [], []
        for color, marker, (name, fit) in zip(cycle(COLORS), cycle(MARKERS), fits.items(), strict=False):
            curves = {} if fit.elbo is None else {"training": to_numpy(fit.elbo)}
            if fit.elbo_validation is not None:
                curves[_held_out(fit)] = to_numpy(fit.elbo_validation)
            # Of several fits the markers tell which, where colours cannot.
            look: dict[str, Any] = {"color": color}
            look |= {"marker": marker, "markersize": 3.5, "markevery": 0.12} if len(fits) > 1 else {}
            for kind, values in curves.items():
                epochs = np.arange(1, len(values) + 1)
                dash = DASHES[0] if kind == "training" else DASHES[1]
                ax.plot(epochs, values, linestyle=dash, label=f"{name}, {kind}", **look)
                shown.append(values[_settled(len(values)) :])
                everything.append(values)
            if fit.best_epoch is not None and curves:
                best = list(curves.values())[-1][fit.best_epoch]
                label = f"{name}, epoch kept ({fit.best_epoch + 1})"
                dot: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white", "markersize": 8, "zorder": 3}
                ax.plot(fit.best_epoch + 1, best, marker=marker, color=color, label=label, **dot)
        if shown:
            _limit_from_below(ax, np.concatenate(shown), np.concatenate(everything))
            # A long name three times in one row would be wider than the Axes.
            _legend(ax, 3 if len(fits) == 1 and len(name) < 10 else 2)
        _epochs(ax)
        ax.set_ylabel("ELBO (nats per datapoint)")
    return ax


def plot_elbo_terms(tracker: TermTracker, *, ax: Axes | None = None) -> Axes:
    """The two terms of the ELBO over training, on one scale: what the decoder says of x, and below it what z costs.

    The upper line is E[log p(x | z)], the lower one the ELBO; the distance between them is KL(q || p). Lines that meet
    are a posterior that has collapsed. The first tenth of the epochs does not stretch the axis; where it is cut, a note
    says so.

    Args:
        tracker: a callback that saw the run, perhaps on held-out data, too.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Lines are labelled "E[log p(x | z)], <data>" and "ELBO, <data>"; between those of the first data the
        KL is shaded. The legend tells the terms by colour; its title tells the data by dash.

    Raises:
        ValueError: it saw no epoch.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from inference import Amortized, MeanField, Training, fit_svi
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> x = torch.randn(64, 2)
        >>> tracker = TermTracker(model.model, guide, {"training": x[:50], "held-out": x[50:]})
        >>> fit = fit_svi(model.model, guide, x[:50], training=Training(epochs=3, callbacks=[tracker]), seed=0)
        >>> ax = plot_elbo_terms(tracker)
        >>> [line.get_label() for line in ax.lines]
        ['E[log p(x | z)], training', 'ELBO, training', 'E[log p(x | z)], held-out', 'ELBO, held-out']
        >>> plt.close(ax.figure)
    """
    if not tracker.epochs or not tracker.data:
        raise ValueError(
            "tracker: expected one that saw an epoch, on some data; got none. Pass it to "
            "Training(callbacks=[tracker]), and fit."
        )
    with drawing(ax, (6.0, 3.6)) as ax:
        shown, everything = [], []
        ends: list[str] = []
        epochs = np.asarray(tracker.epochs)
        several = len(tracker.data) > 1
        for dash, words, name in zip(cycle(DASHES), cycle(DASH_WORDS), tracker.data, strict=False):
            reconstruction, kl = np.asarray(tracker.reconstruction[name]), np.asarray(tracker.kl[name])
            elbo = reconstruction - kl
            ax.plot(epochs, reconstruction, color=COLORS[1], linestyle=dash, label=f"E[log p(x | z)], {name}")
            ax.plot(epochs, elbo, color=COLORS[0], linestyle=dash, label=f"ELBO, {name}")
            if not ends:
                # Shades of several would lie over each other.
                shade: dict[str, Any] = {"color": "black", "alpha": 0.08, "linewidth": 0}
                ax.fill_between(epochs, elbo, reconstruction, label=f"KL(q || p), {name}", **shade)
            ends.append(minus(f"{kl[-1]:.3g}") + (f" ({name}, {words})" if several else ""))
            start = _settled(len(epochs))
            shown += [elbo[start:], reconstruction[start:]]
            everything += [elbo, reconstruction]
        _limit_from_below(ax, np.concatenate(shown), np.concatenate(everything))
        _epochs(ax)
        ax.set_ylabel("nats per datapoint")
        # What a colour is in the legend, what a dash is in its title: every line by name would be twice as many.
        upper, lower, *_ = ax.lines
        handles = {"E[log p(x | z)]": upper, "KL(q || p)": ax.collections[0], "ELBO": lower}
        ends = [", ".join(ends[first : first + 2]) for first in range(0, len(ends), 2)]
        _legend(ax, 3, handles.values(), handles, title="KL at the end: " + ",\n".join(ends), title_fontsize=8)
    return ax


def _held_out(fit: Fit) -> str:
    """What a fit's held-out curve is called: with the q it is of, where its engine is known."""
    if fit.elbo_start_validation is not None:
        return "held-out (after the steps)"
    q = {"svi": "encoder", "em": "q*", "mcem": "q*"}.get(fit.settings.get("engine", ""))
    return "held-out" if q is None else f"held-out ({q})"


def _epochs(ax: Axes) -> None:
    ax.set_xlabel("epoch")
    whole_ticks(ax.xaxis)


def _legend(ax: Axes, num_columns: int, *handles: Iterable[Any], **look: Any) -> None:
    """Over the note on the first epochs; inside, it would lie on the lines of an overfitted model."""
    ax.legend(*handles, **{**above(num_columns), "bbox_to_anchor": (0.5, 1.05)}, **look)


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
    lowest = float(everything.min())
    shortly = f"{lowest:.0f}" if lowest > -1e6 else f"{lowest:.3g}"
    note = minus(f"first epochs below the axis, from {shortly}")
    # To the right: an exponent of the axis stands at its left end.
    where: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (-2, 3), "textcoords": "offset points"}
    ax.annotate(note, (1, 1), ha="right", fontsize=7, **where)
