"""How far to trust log p(x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from inference.results import Evidence, Gaps
from pyro_vae.plots._style import COLORS, DASHES, MARKERS, above, cycle, drawing, require_some, to_numpy, whole_ticks

__all__ = ["plot_pareto_k"]

# Vehtari, Simpson, Gelman, Yao & Gabry (2024).
LIMITS = {0.5: "above 0.5 the standard error is unreliable", 0.7: "above 0.7 so is log p(x)"}


def plot_pareto_k(records: Mapping[str, Evidence | Gaps], *, ax: Axes | None = None) -> Axes:
    r"""The tail index :math:`\hat k` of the importance weights behind log p(x), a point a datapoint.

    ArviZ's `plot_khat` draws those of leave-one-out cross-validation, from an `ELPDData`, one model a picture.

    Args:
        records: `{name: Evidence or Gaps}`, each with a `pareto_k`.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes, with one line of points a record and the limits 0.5 and 0.7. Where there is no tail to speak of (NaN)
        there is no point: the legend counts them.

    Raises:
        ValueError: no record is given, or one has no tail index.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> k = torch.tensor([0.2, 0.9, torch.nan])
        >>> iwae = Evidence(value=torch.zeros(3), se=torch.zeros(3), method="IWAE", pareto_k=k)
        >>> ax = plot_pareto_k({"IWAE": iwae})
        >>> ax.get_legend().get_texts()[0].get_text()
        'IWAE: 1 of 3 above 0.7, 1 without a tail'
        >>> plt.close(ax.figure)
    """
    require_some("records", records)
    tails: dict[str, np.ndarray] = {}
    for name, record in records.items():
        if record.pareto_k is None:
            raise ValueError(
                f"records: expected a tail index; {name!r} has none: its log p(x) is no importance-sampling "
                "estimate, or one of too few weights. Leave it out."
            )
        tails[name] = to_numpy(record.pareto_k).astype(float)
    with drawing(ax, (6.0, 3.6)) as ax:
        highest = max(LIMITS)
        for color, marker, (name, k) in zip(cycle(COLORS), cycle(MARKERS), tails.items(), strict=False):
            unseen = int(np.isnan(k).sum())
            label = f"{name}: {int((k > highest).sum())} of {len(k)} above {highest}"
            label += f", {unseen} without a tail" if unseen else ""
            look: dict[str, Any] = {
                "marker": marker,
                "color": color,
                "markersize": 3.5,
                "linestyle": "none",
                "alpha": 0.8,
            }
            ax.plot(np.arange(len(k)), k, label=label, **look)
        for style, (limit, says) in zip((DASHES[1], "-"), LIMITS.items(), strict=True):
            ax.axhline(limit, color="black", linewidth=0.9, linestyle=style, label=says)
        low, high = ax.get_ylim()
        # Both limits on the axis, however good the weights.
        ax.set_ylim(low, max(high, highest + 0.1))
        ax.set(xlabel="datapoint (index)", ylabel=r"Pareto $\hat k$")
        whole_ticks(ax.xaxis)
        ax.legend(**above(1))
    return ax
