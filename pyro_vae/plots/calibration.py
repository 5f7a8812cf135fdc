"""Ranks of the true z among a guide's draws, which are uniform where the guide is the posterior.

ArviZ's `plot_rank` ranks the draws of chains among each other. It draws the differences, too, from ranks / L, by
`plot_ecdf` in 0.2x and `plot_ecdf_pit` in 1.x, with a simulated band for one quantity. Here the bands are exact, of
ranks on 0, ..., L and for all quantities together: those that the verdict of `sbc` is made of.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from inference.results import Calibration
from pyro_vae.plots._style import COLORS, DASHES, above, cycle, drawing, to_numpy, whole_ticks

__all__ = ["plot_rank_differences", "plot_ranks"]

# Lines that can be told apart.
MOST_LINES = 6


def plot_ranks(calibration: Calibration, quantity: str, *, bins: int | None = None, ax: Axes | None = None) -> Axes:
    """The histogram of one quantity's ranks, and where bars would lie if they were uniform.

    A U says that the guide is too narrow, a hump that it is too wide, a slope that it is shifted; `calibration.shapes`
    says which.

    Args:
        calibration: what `sbc` returns.
        quantity: one of `calibration.names`.
        bins: number of bins; by default 20 that hold equally many ranks, or as nearly as can be.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. The band holds each bar by itself with a probability of 0.99 or a little more: counts are whole.

    Raises:
        ValueError: there is no such quantity, or ranks cannot be put into so many bins.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from inference import Amortized, MeanField, sbc
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> calibration = sbc(exact.model, guide, torch.zeros(1, 2), num_simulations=128, num_draws=19, seed=0)
        >>> ax = plot_ranks(calibration, "z[0]")
        >>> ax.get_xlabel(), len(ax.patches)
        ('rank of the true z[0] among 19 draws', 20)
        >>> plt.close(ax.figure)
    """
    if quantity not in calibration.names:
        raise ValueError(f"quantity: expected one of {', '.join(calibration.names)}; got {quantity!r}.")
    num_ranks = calibration.num_draws + 1
    bins = min(20, num_ranks) if bins is None else bins
    if not 0 < bins <= num_ranks:
        raise ValueError(f"bins: expected 1 to {num_ranks}, the number of ranks; got {bins}.")
    ranks = to_numpy(calibration.ranks[:, calibration.names.index(quantity)])
    # Bins may hold different numbers of ranks: heights are what a bin holds over what it would hold.
    edges = np.round(np.linspace(0, num_ranks, bins + 1)).astype(int)
    counts = np.histogram(ranks, edges - 0.5)[0]
    expected = len(ranks) * np.diff(edges) / num_ranks
    low, high = (
        np.array([_quantile(tail, len(ranks), one / len(ranks)) for one in expected]) / expected
        for tail in (0.005, 0.995)
    )
    with drawing(ax, (4.6, 3.4)) as ax:
        middle, width = (edges[:-1] + edges[1:] - 1) / 2, np.diff(edges)
        ax.bar(middle, counts / expected, width * 0.94, color=COLORS[0])
        band: dict[str, Any] = {"step": "post", "facecolor": "black", "alpha": 0.2, "linewidth": 0}
        lower, upper = (np.append(end, end[-1]) for end in (low, high))
        ax.fill_between(edges - 0.5, lower, upper, label="where 99 % of bars would lie", **band)
        ax.axhline(1.0, color="black", linewidth=0.9, label="uniform")
        ax.set(xlabel=f"rank of the true {quantity} among {calibration.num_draws} draws")
        ax.set(ylabel="share of ranks / uniform share", xlim=(-0.5, num_ranks - 0.5))
        whole_ticks(ax.xaxis)
        ax.legend(**above(2))
        ax.grid(visible=False, axis="x")
    return ax


def plot_rank_differences(calibration: Calibration, *, ax: Axes | None = None) -> Axes:
    """The distribution of ranks less the uniform one, a line a quantity, with the band that holds all of them.

    Of many quantities the six furthest from uniform are drawn, and the legend says of how many.

    Args:
        calibration: what `sbc` returns.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Lines are labelled "<quantity>: <what is wrong with the guide>".

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from inference import Amortized, MeanField, sbc
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> calibration = sbc(exact.model, guide, torch.zeros(1, 2), num_simulations=128, num_draws=19, seed=0)
        >>> ax = plot_rank_differences(calibration)
        >>> len(ax.get_legend().get_texts())
        4
        >>> plt.close(ax.figure)
    """
    share = np.arange(1, calibration.num_draws + 1) / (calibration.num_draws + 1)
    difference = to_numpy(calibration.difference)
    furthest = sorted(np.argsort(-to_numpy(calibration.distance), kind="stable")[:MOST_LINES].tolist())
    with drawing(ax, (6.0, 3.2 + 0.16 * len(furthest))) as ax:
        lower, upper = to_numpy(calibration.lower), to_numpy(calibration.upper)
        label = f"where all lines of an exact guide lie, with probability {1 - calibration.alpha:g}"
        ax.fill_between(share, lower, upper, facecolor="black", alpha=0.15, linewidth=0, label=label)
        for color, dash, t in zip(cycle(COLORS), cycle(DASHES), furthest, strict=False):
            name = f"{calibration.names[t]}: {_verdict(calibration.shapes[t])}"
            ax.plot(share, difference[t], color=color, linestyle=dash, label=name)
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set(xlabel="rank / number of ranks", ylabel="share of ranks below,\nless the uniform share", xlim=(0, 1))
        total = len(calibration.names)
        title = (
            f"the {len(furthest)} of {total} quantities that are furthest from uniform" if total > MOST_LINES else None
        )
        ax.legend(title=title, title_fontsize=8, **above(1))
    return ax


def _verdict(shape: str) -> str:
    """The last part of what a record says of a shape: "a U: the guide is too narrow" is seen, the rest is news."""
    return "not uniform" if shape.startswith("neither") else shape.split(": ")[-1].split("; ")[-1]


def _quantile(probability: float, num_ranks: int, share: float) -> int:
    """The least count that Bin(num_ranks, share) exceeds with a probability of at most 1 - `probability`."""
    if share >= 1:
        return num_ranks
    total = 0.0
    for count in range(num_ranks + 1):
        ways = math.lgamma(num_ranks + 1) - math.lgamma(count + 1) - math.lgamma(num_ranks - count + 1)
        total += math.exp(ways + count * math.log(share) + (num_ranks - count) * math.log1p(-share))
        if total >= probability:
            return count
    return num_ranks
