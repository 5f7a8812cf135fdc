"""What amortization cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.axes import Axes

from inference.results import Gaps
from pyro_vae.plots._style import COLORS, above, drawing, minus, require_some, to_numpy, words

__all__ = ["plot_gap_histogram", "plot_gaps"]

Term = Literal["approximation_gap", "amortization_gap", "inference_gap"]
ErrorKind = Literal["se", "mc_se"]

_GAP_COLORS = {"approximation_gap": "#56B4E9", "amortization_gap": "#D55E00", "inference_gap": "#333333"}
_ERRORS = {"se": "another sample of datapoints", "mc_se": "another seed of the measurement"}


def plot_gaps(gaps: Mapping[str, Gaps], *, error: ErrorKind = "se", ax: Axes | None = None) -> Axes:
    """Mean gaps of each model: the approximation gap, the amortization gap stacked on it, and their sum.

    The amortization gap starts where the approximation gap ends, so the two add up to the inference gap beside them,
    and each of the three has an error bar of its own.

    Args:
        gaps: `{name: Gaps}`.
        error: which standard error the bars show: `"se"`, what another sample of datapoints would change, or `"mc_se"`,
            what another seed of the measurement would.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, with one bar container a term.

    Raises:
        ValueError: no gaps are given, or `error` is neither.
    """
    require_some("gaps", gaps)
    if error not in _ERRORS:
        raise ValueError(f"error: expected 'se' or 'mc_se'; got {error!r}.")
    width = 0.27
    summaries = [record.summary() for record in gaps.values()]
    means = {term: np.array([summary[term]["mean"] for summary in summaries]) for term in _GAP_COLORS}
    errors = {term: np.array([summary[term][error] for summary in summaries]) for term in _GAP_COLORS}
    centre = np.arange(len(gaps), dtype=float)
    bottoms = {"amortization_gap": means["approximation_gap"]}
    with drawing(ax, (max(4.0, 1.6 + 1.7 * len(gaps)), 3.6)) as ax:
        for offset, (term, color) in zip((-1, 0, 1), _GAP_COLORS.items(), strict=True):
            bottom = bottoms.get(term, np.zeros(len(gaps)))
            position = centre + offset * width
            bars = ax.bar(
                position,
                means[term],
                width * 0.94,
                bottom=bottom,
                yerr=errors[term],
                color=color,
                label=words(term),
                error_kw={"elinewidth": 1.1, "capsize": 3, "ecolor": "black"},
            )
            for bar, base, value, half in zip(bars, bottom, means[term], errors[term], strict=True):
                top = base + max(value, 0.0) + (half if np.isfinite(half) else 0.0)
                ax.annotate(
                    minus(f"{value:.2f}"),
                    (bar.get_x() + bar.get_width() / 2, top),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
        ax.axhline(0.0, color="black", linewidth=0.8)
        names = [f"{name}\n{record.family}, N = {len(record)}" for name, record in gaps.items()]
        ax.set_xticks(centre, names)
        ax.set_xlim(-0.6, len(gaps) - 0.4)
        ax.margins(y=0.12)
        ax.grid(visible=False, axis="x")
        ax.set_ylabel("gap (nats per datapoint)")
        ax.legend(title=f"error bars: ± 1 {error} ({_ERRORS[error]})", title_fontsize=8, **above(3))
    return ax


def plot_gap_histogram(
    gaps: Mapping[str, Gaps], *, term: Term = "amortization_gap", bins: int = 40, ax: Axes | None = None
) -> Axes:
    """How one gap spreads over datapoints, one outline a model, on common bins, with the mean of each.

    Values below zero are Monte Carlo noise: they are shown, not clipped.

    Args:
        gaps: `{name: Gaps}`.
        term: `"amortization_gap"`, `"approximation_gap"` or `"inference_gap"`.
        bins: number of bins.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Heights are percentages of datapoints, so that models measured on different numbers of them compare.

    Raises:
        ValueError: no gaps are given, no such term, or `bins` is not positive.
    """
    require_some("gaps", gaps)
    if term not in get_args(Term):
        raise ValueError(f"term: expected one of {', '.join(get_args(Term))}; got {term!r}.")
    if bins < 1:
        raise ValueError(f"bins: expected at least 1; got {bins}.")
    values = {name: to_numpy(getattr(record, term)).astype(float) for name, record in gaps.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=bins).tolist()
    with drawing(ax, (6.0, 3.4)) as ax:
        for index, (name, value) in enumerate(values.items()):
            color = COLORS[index % len(COLORS)]
            mean = gaps[name].summary()[term]["mean"]
            percent = np.full(len(value), 100 / len(value))
            label = minus(f"{name}: mean {mean:.2f}, N = {len(value)}")
            fill: dict[str, Any] = {"color": color, "alpha": 0.25, "histtype": "stepfilled"}
            ax.hist(value, edges, weights=percent, **fill)
            ax.hist(value, edges, weights=percent, color=color, histtype="step", linewidth=1.4, label=label)
            ax.axvline(mean, color=color, linestyle=(0, (4, 1.5)), linewidth=1.2)
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.set(xlabel=f"{words(term)} of a datapoint (nats)", ylabel="% of datapoints")
        ax.legend(loc="upper right", title="dashed: mean", title_fontsize=8)
    return ax
