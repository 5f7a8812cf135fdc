"""One picture of a record: the training table, the E-step race, and annealing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pyro_vae.plots import COLORS, STYLE
from timing import race, training

ORDER = (
    training.PYTHAE,
    training.PYRO,
    training.EAGER,
    training.COMPILED,
    training.NUMPYRO,
    training.OURS,
    training.OURS_BF16,
    training.PRODUCTS,
    training.PRODUCTS_BF16,
)


def draw(record: Mapping[str, Any], file: Path) -> None:
    """Draw what the record holds."""
    widths = list(dict.fromkeys(tuple(cell["widths"]) for cell in record.get("training", {}).get("cells", [])))
    sets = list(record.get("estep", {}))
    ladders = record.get("ais", {}).get("widths", {}).get("ladders", {})
    count = len(widths) + len(sets) + bool(ladders)
    if not count:
        return
    columns = min(count, 3)
    rows = -(-count // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False)
        axes = iter(grid.flat)
        for one in widths:
            _training(next(axes), [cell for cell in record["training"]["cells"] if tuple(cell["widths"]) == one])
        for name in sets:
            _race(next(axes), name, record["estep"][name])
        if ladders:
            _annealing(next(axes), record["ais"]["widths"])
        for ax in figure.axes:
            for axis in (ax.xaxis, ax.yaxis):
                plain_numbers(axis)
        for ax in axes:
            ax.set_axis_off()
        figure.savefig(file)
        plt.close(figure)


def plain_numbers(axis: Axis) -> None:
    """1, 2 and 5 of each power of ten, as people write them."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _training(ax: Axes, cells: list[Mapping[str, Any]]) -> None:
    colors = dict(zip(ORDER, [*COLORS, "#000000"], strict=False))
    for name in ORDER:
        points = [(cell["batch"], cell["ms"][name]["median"]) for cell in cells if name in cell["ms"]]
        if points:
            style = "--" if name.startswith("matrix") else "-"
            color = "#888888" if name.startswith("matrix") else colors[name]
            marker = "s" if name.endswith("bf16") else "o"
            ax.plot(*zip(*points, strict=True), style, marker=marker, markersize=3, color=color, label=name)
    ax.set(xscale="log", yscale="log", xlabel="batch size", ylabel="ms a step (median)")
    ax.set_title(f"training {'-'.join(map(str, cells[0]['widths']))}", loc="left")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3, fontsize=6)


def _race(ax: Axes, name: str, found: Mapping[str, Any]) -> None:
    lines = {}
    for method, points in found["ladders"].items():
        for point in points:
            reduced = isinstance(point["budget"], Mapping) and point["budget"].get("precision") == "bfloat16"
            lines.setdefault(f"{method}, bf16" if reduced else method, []).append(point)
    if race.SLOW in found:
        lines[race.SLOW] = found[race.SLOW]["snapshots"]
    for number, (method, points) in enumerate(lines.items()):
        known = [(point["seconds"], max(point["gap"], 1e-4)) for point in points]
        if known:
            ax.plot(*zip(*known, strict=True), "o-", markersize=3, color=COLORS[number], label=method)
    ax.axhline(0.05, color="#888888", linestyle="--", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel="seconds", ylabel="mean gap to q* (nats)")
    ax.set_title(f"E-step, {found['num_images']} images, {name}", loc="left")
    ax.legend()


def _annealing(ax: Axes, found: Mapping[str, Any]) -> None:
    for number, (start, points) in enumerate(found["ladders"].items()):
        known = [(point["seconds"], max(point["width"]["mean"], 1e-2)) for point in points]
        ax.plot(*zip(*known, strict=True), "o-", markersize=3, color=COLORS[number], label=f"from {start}")
    ax.axhline(found["width"], color="#888888", linestyle="--", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel="seconds", ylabel="mean width of the bounds (nats)")
    ax.set_title("annealed importance sampling", loc="left")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, fontsize=6)
