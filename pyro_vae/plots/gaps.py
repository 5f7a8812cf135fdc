"""What amortization cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import SymmetricalLogLocator

from inference.results import Gaps
from pyro_vae.plots._mosaic import as_images, gap_between, matrix, mosaic_size, scale_note, show, tile
from pyro_vae.plots._ridges import ridges, ridges_size
from pyro_vae.plots._style import (
    COLORS,
    DASHES,
    MARKERS,
    Array,
    above,
    cycle,
    drawing,
    finite_limits,
    minus,
    require_positive,
    require_some,
    to_numpy,
    words,
)

__all__ = ["plot_gap_histogram", "plot_gap_scatter", "plot_gaps", "plot_worst"]

Term = Literal["approximation_gap", "amortization_gap", "inference_gap"]
ErrorKind = Literal["se", "mc_se"]

_GAP_COLORS = {"approximation_gap": COLORS[5], "amortization_gap": COLORS[1], "inference_gap": "#333333"}
_PATHS = {marker: (style := MarkerStyle(marker)).get_path().transformed(style.get_transform()) for marker in MARKERS}
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

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from inference import Amortized, MeanField, measure_gaps
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> x = torch.ones(3, 2)
        >>> gaps = measure_gaps(exact.model, guide, x, log_evidence=exact.log_evidence(x), seed=0)
        >>> ax = plot_gaps({"untrained": gaps})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['approximation gap', 'amortization gap', 'inference gap']
        >>> plt.close(ax.figure)
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
        names = [f"{fill(name, 28)}\n{record.family}, N = {len(record)}" for name, record in gaps.items()]
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

    Values below zero are shown, not clipped: they are Monte Carlo noise or, of the approximation and the inference gap,
    where log p(x) was estimated too low.

    Args:
        gaps: `{name: Gaps}`.
        term: `"amortization_gap"`, `"approximation_gap"` or `"inference_gap"`.
        bins: number of bins.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Heights are percentages of datapoints, so that models measured on different numbers of them compare.

    Raises:
        ValueError: no gaps are given, no such term, or `bins` is not positive.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from inference import Amortized, MeanField, measure_gaps
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> x = torch.ones(3, 2)
        >>> gaps = measure_gaps(exact.model, guide, x, log_evidence=exact.log_evidence(x), seed=0)
        >>> ax = plot_gap_histogram({"untrained": gaps}, term="inference_gap", bins=5)
        >>> ax.get_xlabel()
        'inference gap of a datapoint (nats)'
        >>> plt.close(ax.figure)
    """
    _require_term(gaps, term)
    require_positive("bins", bins)
    values = {name: to_numpy(getattr(record, term)).astype(float) for name, record in gaps.items()}
    every = np.concatenate(list(values.values()))
    edges = np.histogram_bin_edges(every[np.isfinite(every)], bins=bins).tolist()
    with drawing(ax, (6.0, 3.4)) as ax:
        for color, dash, (name, value) in zip(cycle(COLORS), cycle(DASHES), values.items(), strict=False):
            mean = gaps[name].summary()[term]["mean"]
            percent = np.full(len(value), 100 / len(value))
            label = f"{name}: mean {minus(f'{mean:.2f}')}, N = {len(value)}"
            num_infinite = int((~np.isfinite(value)).sum())
            label += f", {num_infinite} not finite" if num_infinite else ""
            area: dict[str, Any] = {"color": color, "alpha": 0.25, "histtype": "stepfilled"}
            ax.hist(value, edges, weights=percent, **area)
            outline: dict[str, Any] = {"color": color, "histtype": "step", "linewidth": 1.4, "linestyle": dash}
            ax.hist(value, edges, weights=percent, label=label, **outline)
            if np.isfinite(mean):
                ax.axvline(mean, color=color, linestyle=dash, linewidth=1.2)
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.set(xlabel=f"{words(term)} of a datapoint (nats)", ylabel="% of datapoints")
        handles, _ = ax.get_legend_handles_labels()
        ax.legend(title="vertical lines: means", title_fontsize=8, **above(_columns(handles, 2)))
    return ax


def plot_gap_scatter(gaps: Mapping[str, Gaps], *, term: Term = "amortization_gap", ax: Axes | None = None) -> Axes:
    """One gap of each datapoint against its log p(x): which datapoints pay.

    Points of several models are drawn in turn, so that no model hides another. Where the largest gap is more than ten
    times the median (or twice that of its standard errors), gaps are on a log scale above a power of ten that the axis
    names, and linear below it.

    Args:
        gaps: `{name: Gaps}`.
        term: `"amortization_gap"`, `"approximation_gap"` or `"inference_gap"`.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, with one error bar container a model; bars are one Monte Carlo standard error, often shorter than a
        point, so the legend names their median.

    Raises:
        ValueError: no gaps are given, or no such term.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from inference import Amortized, MeanField, measure_gaps
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> x = torch.ones(3, 2)
        >>> gaps = measure_gaps(exact.model, guide, x, log_evidence=exact.log_evidence(x), seed=0)
        >>> ax = plot_gap_scatter({"untrained": gaps})
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('log p(x) (nats)', 'amortization gap (nats)')
        >>> plt.close(ax.figure)
    """
    _require_term(gaps, term)
    values = {name: to_numpy(getattr(record, term)).astype(float) for name, record in gaps.items()}
    errors = {name: to_numpy(getattr(record, f"{term}_se")).astype(float) for name, record in gaps.items()}
    label = f"{words(term)} (nats)"
    with drawing(ax, (5.6, 3.8)) as ax:
        points, handles = [], []
        for color, marker, (name, record) in zip(cycle(COLORS), cycle(MARKERS), gaps.items(), strict=False):
            log_p = to_numpy(record.log_evidence)
            bars: dict[str, Any] = {"fmt": "none", "ecolor": color, "elinewidth": 0.7, "alpha": 0.6}
            ax.errorbar(log_p, values[name], yerr=errors[name], label=name, **bars)
            share = np.arange(len(record)) / len(record)
            points += [(*one, color, marker) for one in zip(share, log_p, values[name], strict=True)]
            look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "linestyle": "none"}
            handles.append(Line2D([], [], label=f"{name}, N = {len(record)}", **look))
        _, x, y, colors, markers = zip(*sorted(points, key=lambda one: one[0]), strict=True)
        dots = ax.scatter(x, y, s=11, c=colors, alpha=0.6, linewidths=0, zorder=2.5)
        # `scatter` has one marker for all, but a collection takes a path for each of its points.
        dots.set_paths([_PATHS[marker] for marker in markers])
        every, known = np.abs(np.concatenate(list(values.values()))), np.concatenate(list(errors.values()))
        error = np.median(known[np.isfinite(known)]) if np.isfinite(known).any() else np.nan
        # A log scale of what is noise would stretch it.
        every = every[np.isfinite(every)]
        usual = np.nanmax([np.median(every), 2 * error]) if every.size else 0.0
        if usual > 0 and every.max() > 10 * usual:
            linear = 10.0 ** np.floor(np.log10(usual))
            ax.set_yscale("symlog", linthresh=linear, linscale=0.5)
            ax.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=[1, 2, 5]))
            ax.yaxis.set_major_formatter(lambda value, _: minus(f"{value:g}"))
            label += f", log scale above {linear:g}"
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set(xlabel="log p(x) (nats)", ylabel=label)
        title = "bars: ± 1 Monte Carlo standard error" + (f", median {error:.2g}" if np.isfinite(error) else "")
        ax.legend(handles=handles, title=title, title_fontsize=8, **above(_columns(handles, 3)))
    return ax


def plot_worst(
    gaps: Gaps,
    x: Array,
    image_shape: Sequence[int] | None = None,
    *,
    means: Mapping[str, Array] = MappingProxyType({}),
    k: int = 10,
    ink: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """The datapoints with the largest amortization gaps, each with its gap, and what q makes of them.

    Args:
        gaps: the record.
        x: (N, P) the datapoints that were measured.
        image_shape: (height, width) or (height, width, channels) (3 are a colour); None draws each datapoint as
            dots and its means as lines, or, of up to 40 values, as hollow markers.
        means: `{name: (N, P)}` rows to show below, such as reconstructions from q and from q*.
        k: how many.
        ink: draw gray values as ink on paper, the largest black; otherwise as light, the largest white.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, the largest gap on the left (or at the top). The gray scale is that of all of x.

    Raises:
        ValueError: x or one of `means` has another number of rows than `gaps`, or `image_shape` does not fit.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from inference import Amortized, MeanField, measure_gaps
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(4), torch.zeros(4), 1.0)
        >>> guide = Amortized(MeanField(4), torch.nn.Linear(4, 8))
        >>> x = torch.eye(4)[:3]
        >>> gaps = measure_gaps(exact.model, guide, x, log_evidence=exact.log_evidence(x), seed=0)
        >>> ax = plot_worst(gaps, x, (2, 2), means={"E[x | z]": 0.5 * x}, k=2)
        >>> [label.get_text() for label in ax.get_yticklabels()], len(ax.get_xticklabels())
        (['x', 'E[x | z]'], 2)
        >>> plt.close(ax.figure)
    """
    names = ["x", *(f"means[{name!r}]" for name in means)]
    rows = [matrix(name, values) for name, values in zip(names, (x, *means.values()), strict=True)]
    expected = (len(gaps), rows[0].shape[1])
    for name, values in zip(names, rows, strict=True):
        if values.shape != expected:
            raise ValueError(
                f"{name}: expected shape {expected}, one row a datapoint that was measured; got {values.shape}. Pass "
                "the rows that `gaps` are of, in their order."
            )
    require_positive("k", k)
    worst = to_numpy(gaps.worst(k))
    labels = [minus(f"{float(gaps.amortization_gap[index]):.2f}") for index in worst]
    shown = [values[worst] for values in rows]
    if image_shape is None:
        with drawing(ax, ridges_size(len(worst))) as ax:
            lines = dict(zip(means, shown[1:], strict=True))
            ridges(ax, ("x", shown[0]), lines, labels, "amortization gap, nats")
        return ax
    images = [as_images(name, values, image_shape) for name, values in zip(names, shown, strict=True)]
    strips = [tile(one, len(worst)) for one in images]
    gap, (height, width) = gap_between(images[0]), images[0].shape[1:3]
    mosaic = np.concatenate(strips)[:-gap]
    limits = finite_limits(rows[0])
    size = mosaic_size(mosaic)
    with drawing(ax, (size[0], size[1] + 0.3)) as ax:
        show(ax, mosaic, limits, ink=ink)
        ax.set_yticks(np.arange(len(strips)) * (height + gap) + (height - 1) / 2, ["x", *means])
        ax.set_xticks(np.arange(len(worst)) * (width + gap) + (width - 1) / 2, labels)
        ax.set_xlabel(f"amortization gap (nats)\n{scale_note(limits, np.concatenate(images), image_shape, ink=ink)}")
    return ax


def _columns(handles: Sequence[Artist], most: int) -> int:
    """Of a legend: one where names are too long to lie beside each other."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return min(len(handles), most) if longest * most <= 100 else 1


def _require_term(gaps: Mapping[str, Gaps], term: str) -> None:
    require_some("gaps", gaps)
    if term not in get_args(Term):
        raise ValueError(f"term: expected one of {', '.join(get_args(Term))}; got {term!r}.")
