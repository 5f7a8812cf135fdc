"""What the latent dimensions are used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from inference.results import Surgery
from pyro_vae.plots._style import COLORS, MARKERS, above, cycle, drawing, require_some, to_numpy, whole_ticks

__all__ = ["plot_kl_per_dim"]

# Names of dimensions that fit below an axis.
MOST_NAMES = 20


def plot_kl_per_dim(surgeries: Mapping[str, Surgery], *, ax: Axes | None = None) -> Axes:
    """Mean KL of each latent dimension, the largest first, and which of them are active.

    Dimensions have no order of their own, so those of several models compare by rank; of one model the axis names them.

    Args:
        surgeries: `{name: Surgery}`, as `elbo_surgery` makes them.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The Axes. Active dimensions (the variance of E[z | x] is more than a small part of the prior's) are filled,
        the others hollow.

    Raises:
        ValueError: no record is given, or the KL of one cannot be told apart by dimension; the message says why.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from inference import Local, MeanField, elbo_surgery
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> rows = torch.tensor([[0.0, -3.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
        >>> surgery = elbo_surgery(model.model, Local(MeanField(2), rows), torch.zeros(2, 2), seed=0)
        >>> ax = plot_kl_per_dim({"SVI": surgery})
        >>> [label.get_text() for label in ax.get_xticklabels()], ax.get_legend().get_texts()[0].get_text()
        (['$z_{2}$', '$z_{1}$'], 'SVI: 1 of 2 active')
        >>> plt.close(ax.figure)
    """
    require_some("surgeries", surgeries)
    means: dict[str, np.ndarray] = {}
    for name, surgery in surgeries.items():
        if surgery.kl_per_dim is None:
            raise ValueError(
                f"surgeries: expected KL by dimension; that of {name!r} is not known ({surgery.kl_per_dim_method}). "
                "Leave it out, or read its `activity`."
            )
        means[name] = to_numpy(surgery.kl_per_dim).mean(0)
    with drawing(ax, (6.0, 3.4)) as ax:
        for color, marker, (name, surgery) in zip(cycle(COLORS), cycle(MARKERS), surgeries.items(), strict=False):
            kl, active = means[name], to_numpy(surgery.active_units)
            order = np.argsort(-kl, kind="stable")
            rank = np.arange(1, len(kl) + 1)
            kl, active = kl[order], active[order]
            label = f"{name}: {int(active.sum())} of {len(kl)} active"
            look: dict[str, Any] = {"marker": marker, "color": color, "markersize": 5, "linestyle": "none"}
            ax.plot(rank, kl, color=color, linewidth=0.9)
            ax.plot(rank[active], kl[active], label=label, **look)
            ax.plot(rank[~active], kl[~active], markerfacecolor="white", **look)
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set(xlabel="latent dimension, by its KL (hollow: not active)", ylabel="mean KL (nats per datapoint)")
        if len(surgeries) == 1 and len(order) <= MOST_NAMES:
            ax.set_xticks(np.arange(1, len(order) + 1), [f"$z_{{{dim + 1}}}$" for dim in order])
        else:
            whole_ticks(ax.xaxis)
        ax.legend(**above(min(len(surgeries), 3)))
    return ax
