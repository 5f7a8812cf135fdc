"""Pictures: a record or arrays in, matplotlib `Axes` out. Nothing is computed beyond binning, and nothing is shown.

Every function draws on the `ax` it is given, or on a new figure, and returns the Axes: `ax.figure.savefig("gaps.png")`.
The style is local: the caller's matplotlib settings stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from inference.results import Fit, Gaps

__all__ = [
    "plot_elbo",
    "plot_gap_histogram",
    "plot_gaps",
    "plot_latent",
    "plot_manifold",
    "plot_reconstructions",
    "plot_samples",
]

Array = Tensor | np.ndarray
Term = Literal["approximation_gap", "amortization_gap", "inference_gap"]
ErrorKind = Literal["se", "mc_se"]

# Okabe & Ito (2008): told apart under every common colour blindness, and in this order by lightness in print as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Ten classes are more than colour alone can tell apart: the markers tell too, and short labels are their own markers.
CLASS_COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#000000",
    "#832db6",
    "#a96b59",
    "#94a4a2",
)
CLASS_MARKERS = "os^vDP<>X*"
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "image.interpolation": "nearest",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
# The gray between images, so that a white border is seen as part of an image.
GROUND = 0.88
_GAP_COLORS = {"approximation_gap": "#56B4E9", "amortization_gap": "#D55E00", "inference_gap": "#333333"}
_ERRORS = {"se": "another sample of datapoints", "mc_se": "another seed of the measurement"}


def plot_elbo(fits: Mapping[str, Fit], *, ax: Axes | None = None) -> Axes:
    """Training and held-out ELBO per epoch, one colour a fit, with the epoch that was kept.

    The first tenth of the epochs does not stretch the axis; where it is cut, a note says so.

    Args:
        fits: `{name: Fit}`.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Lines are labelled "<name>, training" and "<name>, held-out".

    Raises:
        ValueError: no fit is given.
    """
    _require_some("fits", fits)
    with _drawing(ax, (6.0, 3.6)) as ax:
        shown, everything = [], []
        for color, (name, fit) in zip(_cycle(COLORS), fits.items(), strict=False):
            curves = {"training": _numpy(fit.elbo)}
            if fit.elbo_validation is not None:
                curves["held-out"] = _numpy(fit.elbo_validation)
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
        _limit_from_below(ax, np.concatenate(shown), np.concatenate(everything))
        ax.set(xlabel="epoch", ylabel="ELBO (nats per datapoint)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        ax.legend(loc="lower right")
    return ax


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
    _require_some("gaps", gaps)
    if error not in _ERRORS:
        raise ValueError(f"error: expected 'se' or 'mc_se'; got {error!r}.")
    width = 0.27
    summaries = [record.summary() for record in gaps.values()]
    means = {term: np.array([summary[term]["mean"] for summary in summaries]) for term in _GAP_COLORS}
    errors = {term: np.array([summary[term][error] for summary in summaries]) for term in _GAP_COLORS}
    centre = np.arange(len(gaps), dtype=float)
    bottoms = {"amortization_gap": means["approximation_gap"]}
    with _drawing(ax, (max(4.0, 1.6 + 1.7 * len(gaps)), 3.6)) as ax:
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
                label=_words(term),
                error_kw={"elinewidth": 1.1, "capsize": 3, "ecolor": "black"},
            )
            for bar, base, value, half in zip(bars, bottom, means[term], errors[term], strict=True):
                top = base + max(value, 0.0) + (half if np.isfinite(half) else 0.0)
                ax.annotate(
                    _minus(f"{value:.2f}"),
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
        ax.legend(title=f"error bars: ± 1 {error} ({_ERRORS[error]})", title_fontsize=8, **_above(3))
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
    _require_some("gaps", gaps)
    if term not in get_args(Term):
        raise ValueError(f"term: expected one of {', '.join(get_args(Term))}; got {term!r}.")
    if bins < 1:
        raise ValueError(f"bins: expected at least 1; got {bins}.")
    values = {name: _numpy(getattr(record, term)).astype(float) for name, record in gaps.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=bins).tolist()
    with _drawing(ax, (6.0, 3.4)) as ax:
        for index, (name, value) in enumerate(values.items()):
            color = COLORS[index % len(COLORS)]
            mean = gaps[name].summary()[term]["mean"]
            percent = np.full(len(value), 100 / len(value))
            label = _minus(f"{name}: mean {mean:.2f}, N = {len(value)}")
            fill: dict[str, Any] = {"color": color, "alpha": 0.25, "histtype": "stepfilled"}
            ax.hist(value, edges, weights=percent, **fill)
            ax.hist(value, edges, weights=percent, color=color, histtype="step", linewidth=1.4, label=label)
            ax.axvline(mean, color=color, linestyle=(0, (4, 1.5)), linewidth=1.2)
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.set(xlabel=f"{_words(term)} of a datapoint (nats)", ylabel="% of datapoints")
        ax.legend(loc="upper right", title="dashed: mean", title_fontsize=8)
    return ax


def plot_reconstructions(
    x: Array,
    mean: Array,
    image_shape: Sequence[int] | None = None,
    *,
    num_columns: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Originals above their reconstructions, on one gray scale.

    Args:
        x: (N, P) originals.
        mean: (N, P) the mean of x under q and the decoder.
        image_shape: (height, width) or (channels, height, width) with 1 or 3 channels; None draws each datapoint as
            dots and its reconstruction as a line.
        num_columns: images a row.
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
    _require_positive("num_columns", num_columns)
    limits = (float(x.min()), float(x.max()))
    if image_shape is None:
        with _drawing(ax, (6.0, min(8.0, 0.8 + 0.5 * len(x)))) as ax:
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
    with _drawing(ax, _mosaic_size(mosaic)) as ax:
        _show(ax, mosaic, limits)
        ax.set_yticks(starts + (originals.shape[1] - 1) / 2, ["original", "reconstruction"] * (len(strips) // 2))
        ax.set_xlabel(_scale_note(limits, originals))
    return ax


def plot_samples(
    x: Array, image_shape: Sequence[int] | None = None, *, num_columns: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draws of x from the prior, as a square of images.

    Args:
        x: (N, P) draws, or their means.
        image_shape: (height, width) or (channels, height, width) with 1 or 3 channels; None draws each as a line.
        num_columns: images a row; default: a square.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: `image_shape` does not fit x, or nothing is given.
    """
    x = _matrix("x", x)
    if num_columns is not None:
        _require_positive("num_columns", num_columns)
    if image_shape is None:
        with _drawing(ax, (6.0, 3.4)) as ax:
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
    limits = (float(x.min()), float(x.max()))
    with _drawing(ax, _mosaic_size(mosaic)) as ax:
        _show(ax, mosaic, limits)
        ax.set_xlabel(_scale_note(limits, images))
    return ax


def plot_manifold(
    images: Array,
    image_shape: Sequence[int] | None = None,
    *,
    grid: Array | Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What a 2-D latent space decodes to: one image a grid point, laid out like the plane it came from.

    Args:
        images: (n, n, P); `images[i, j]` is decoded at z = (grid[i], grid[j]): i runs to the right, j upwards.
        image_shape: (height, width) or (channels, height, width) with 1 or 3 channels; None draws lines.
        grid: (n,) the latent values, for the ticks.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: `images` is not (n, n, P), or `image_shape` or `grid` does not fit.
    """
    values = _numpy(images)
    if values.ndim != 3 or values.shape[0] != values.shape[1]:
        raise ValueError(f"images: expected shape (n, n, P), one decoded datapoint a grid point; got {values.shape}.")
    n = len(values)
    ticks = None if grid is None else _numpy(grid)
    if ticks is not None and ticks.shape != (n,):
        raise ValueError(f"grid: expected shape ({n},), the latent values of one axis; got {ticks.shape}.")
    limits = (float(values.min()), float(values.max()))
    with _drawing(ax, (5.0, 5.0)) as ax:
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
            _show(ax, mosaic, limits, extent=(0.0, float(n), 0.0, float(n)), aspect=tiles.shape[2] / tiles.shape[3])
        if ticks is not None:
            shown = np.arange(0, n, -(-n // 8))
            labels = [_minus(f"{ticks[i]:.2g}") for i in shown]
            ax.set_xticks(shown + 0.5, labels)
            ax.set_yticks(shown + 0.5, labels)
        else:
            ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax


def plot_latent(z: Array, labels: Array | Sequence[Any] | None = None, *, ax: Axes | None = None) -> Axes:
    """Where the datapoints lie in a 2-D latent space, one colour and marker a label.

    Args:
        z: (N, 2) one latent vector a datapoint, for example the mean of q.
        labels: (N,) labels, or None.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, with one collection a label.

    Raises:
        ValueError: z is not (N, 2), or `labels` has another length.
    """
    points = _numpy(z)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"z: expected shape (N, 2); got {points.shape}. This picture is for a latent space of two dimensions."
        )
    names = None if labels is None else _numpy(labels)
    if names is not None and names.shape != (len(points),):
        raise ValueError(f"labels: expected shape ({len(points)},), one a datapoint; got {names.shape}.")
    size = float(np.clip(30000 / max(len(points), 1), 14, 40))
    with _drawing(ax, (5.6, 4.8)) as ax:
        if names is None:
            ax.scatter(points[:, 0], points[:, 1], s=size / 2, color=COLORS[0], alpha=0.7, linewidths=0)
        else:
            for index, name in enumerate(np.unique(names)):
                rows = points[names == name]
                color = CLASS_COLORS[index % len(CLASS_COLORS)]
                marker = _marker(str(name), index)
                ax.scatter(rows[:, 0], rows[:, 1], s=size, color=color, marker=marker, label=str(name), linewidths=0)
            ax.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=(40 / size) ** 0.5)
        ax.set_aspect("equal", adjustable="datalim")
        ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax


@contextmanager
def _drawing(ax: Axes | None, size: tuple[float, float]) -> Iterator[Axes]:
    """The style, and a new figure where no Axes are given; the caller's settings are untouched."""
    with plt.rc_context(STYLE):
        yield plt.subplots(figsize=size)[1] if ax is None else ax


def _marker(name: str, index: int) -> str:
    """The label itself where it is a letter or two: read without a legend, and in print. Else a shape."""
    if len(name) <= 2 and name.isascii() and name.isalnum():
        return rf"$\mathbf{{{name}}}$"
    return CLASS_MARKERS[(index + index // len(CLASS_COLORS)) % len(CLASS_MARKERS)]


def _cycle(colors: Sequence[str]) -> Iterator[str]:
    while True:
        yield from colors


def _above(num_columns: int) -> dict[str, Any]:
    """A legend above the Axes, where no bar can reach it."""
    return {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": num_columns}


def _minus(text: str) -> str:
    """With the sign that matplotlib's own tick labels have."""
    return text.replace("-", "\N{MINUS SIGN}")


def _words(term: str) -> str:
    return term.replace("_", " ")


def _numpy(values: Array | Sequence[Any]) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _matrix(name: str, values: Array) -> np.ndarray:
    array = _numpy(values)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: expected shape (N, P) with at least one datapoint; got {array.shape}.")
    return array


def _require_some(name: str, records: Mapping[str, Any]) -> None:
    if not isinstance(records, Mapping) or not records:
        came = "an empty one" if isinstance(records, Mapping) else type(records).__name__
        raise ValueError(
            f"{name}: expected a mapping of at least one name to a record; got {came}. Pass {{'svi': record}}."
        )


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1; got {value}.")


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
    note = _minus(f"first epochs below the axis, from {everything.min():.0f}")
    ax.annotate(note, (0, 1), xycoords="axes fraction", xytext=(2, 3), textcoords="offset points", fontsize=7)


def _images(name: str, x: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """(N, P) as (N, height, width) or (N, height, width, 3)."""
    shape = tuple(image_shape)
    channels = shape[0] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3):
        raise ValueError(f"image_shape: expected (height, width), or (1 or 3, height, width); got {shape}.")
    if int(np.prod(shape)) != x.shape[1]:
        raise ValueError(
            f"image_shape: expected {x.shape[1]} pixels, the length of a row of {name}; {shape} has {np.prod(shape)}."
        )
    if channels == 3:
        return x.reshape(-1, *shape).transpose(0, 2, 3, 1).astype(float)
    return x.reshape(-1, *shape[-2:]).astype(float)


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


def _show(ax: Axes, mosaic: np.ndarray, limits: tuple[float, float], **options: Any) -> None:
    """A mosaic on its gray scale (ink on paper), or in colour, without ticks."""
    low, high = limits
    if mosaic.ndim == 3:
        mosaic = np.clip((mosaic - low) / ((high - low) or 1.0), 0.0, 1.0)
        mosaic = np.where(np.isnan(mosaic), GROUND, mosaic)
    gray = plt.get_cmap("gray_r").with_extremes(bad=(GROUND,) * 3)
    ax.imshow(mosaic, cmap=gray, vmin=low, vmax=high, **options)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _scale_note(limits: tuple[float, float], images: np.ndarray) -> str:
    # A mean of 7e-8 on a scale up to 16 is a nought.
    low, high = (f"{limit if abs(limit) > 1e-3 * (limits[1] - limits[0]) else 0:.3g}" for limit in limits)
    return _minus(f"{low} (white) to {high} (black)" if images.ndim == 3 else f"each channel: {low} to {high}")


def _ridges(ax: Axes, x: np.ndarray, mean: np.ndarray) -> None:
    """Datapoints below each other, each as dots with its reconstruction as a line."""
    spacing = 1.15 * float(max(np.ptp(x), np.ptp(mean))) or 1.0
    value = np.arange(x.shape[1])
    marker = float(np.clip(200 / len(value), 1.0, 4.0))
    for index, (row, fitted) in enumerate(zip(x, mean, strict=True)):
        shift = -index * spacing
        first = index == 0
        ax.plot(value, row + shift, "o", color=COLORS[0], markersize=marker, label="original" if first else None)
        ax.plot(value, fitted + shift, color=COLORS[1], linewidth=1.1, label="reconstruction" if first else None)
    ax.set_yticks(-np.arange(len(x)) * spacing, [str(index) for index in range(len(x))])
    ax.set(xlabel="index of the data value", ylabel=f"datapoint (its zero line; {spacing:.3g} apart)")
    ax.legend(**_above(2))
