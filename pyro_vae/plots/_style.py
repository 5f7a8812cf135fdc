"""What all pictures share: style, colours, words, and the checks of their arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator
from torch import Tensor

Array = Tensor | np.ndarray
T = TypeVar("T")


# Okabe & Ito (2008): told apart under every common colour blindness. In gray print some are alike, so whatever a colour
# tells is told by a marker, a dash or a place as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "o^sDvPX"  # One more than colours, so that the seventh of several looks unlike the first.
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
DASH_WORDS = ("solid", "dashed", "dotted", "dash-dotted")
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


@contextmanager
def styled() -> Iterator[None]:
    """The style; the caller's settings are untouched."""
    with plt.rc_context(STYLE):
        yield
        interactive = matplotlib.is_interactive()
    # A notebook's backend turns this on when the first figure wakes it. To undo that with the style would hide every
    # picture after the first.
    matplotlib.interactive(interactive)


@contextmanager
def drawing(ax: Axes | None, size: tuple[float, float]) -> Iterator[Axes]:
    """The style, and a new figure where no Axes are given; the caller's settings are untouched."""
    with styled():
        yield plt.subplots(figsize=size)[1] if ax is None else ax


def cycle(looks: Sequence[T]) -> Iterator[T]:
    """Over and over again: for `zip` with what is drawn."""
    while True:
        yield from looks


def above(num_columns: int) -> dict[str, Any]:
    """A legend above the Axes, where no bar can reach it."""
    return {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": num_columns}


def whole_ticks(axis: Axis) -> None:
    """Ticks at whole numbers only, for what has no halves: an epoch, a rank, an index."""
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def minus(text: str) -> str:
    """With the sign that matplotlib's own tick labels have."""
    return text.replace("-", "\N{MINUS SIGN}")


def words(term: str) -> str:
    return term.replace("_", " ")


def to_numpy(values: Array | Sequence[Any]) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def finite_limits(*arrays: np.ndarray) -> tuple[float, float]:
    """The least and the largest finite value; 0 and 1 where there is none."""
    ends = [(float(known.min()), float(known.max())) for array in arrays if (known := array[np.isfinite(array)]).size]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0.0, 1.0)


def require_some(name: str, records: Mapping[str, Any]) -> None:
    if not isinstance(records, Mapping) or not records:
        came = "an empty one" if isinstance(records, Mapping) else type(records).__name__
        raise ValueError(
            f"{name}: expected a mapping of at least one name to a record; got {came}. Pass {{'svi': record}}."
        )


def require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1; got {value}.")
