"""The curves of the study of a fixed budget: over seeds, compared, as text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from records import over_seeds
from torch import Tensor

from pyro_vae.plots import COLORS, STYLE
from studies.common import read, slug
from studies.engines import Preset

SCORES = ("log_p", "elbo")


def curve(preset: Preset, own: Path) -> dict[str, Any]:
    """The scores of one engine along its budget: over seeds, at the times that all of them reached."""
    tuned = read(own / "tuned.pt")
    fits = [read(own / f"fit-{seed}.pt") for seed in preset.seeds]
    scores = [read(own / f"scores-{seed}.pt") for seed in preset.seeds]
    points = []
    for number in range(len(preset.times)):
        reached = [found["snapshots"].get(number) for found in fits]
        if None in reached:
            continue
        point: dict[str, Any] = {
            cost: tuned[cost] + sum(snapshot[cost] for snapshot in reached) / len(reached)
            for cost in ("seconds", "evaluations")
        }
        for term in SCORES:
            value, se = (torch.stack([found[number][term][part] for found in scores]) for part in (0, 1))
            point[term] = over_seeds(value, se) | {"by_seed": value.mean(1).tolist()}
        points.append(point)
    return {"tuned": tuned, "points": points}


def at(points: Sequence[Mapping[str, Any]], cost: str, spent: float, term: str) -> float:
    """The mean score when so much is spent: interpolated in the logarithm of the cost; NaN before the first point."""
    costs = [math.log(point[cost]) for point in points]
    if not costs or math.log(spent) < costs[0]:
        return math.nan
    return float(np.interp(math.log(spent), costs, [point[term]["mean"] for point in points]))


def compare(
    engines: Mapping[str, Mapping[str, Any]], kept_scores: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """What the budget bought: each engine against SVI at the end, and all at equal decoder evaluations.

    Args:
        engines: the curve of each.
        kept_scores: log p(x) at the end, (seeds, images), and its Monte Carlo errors.
    """
    ends = [engine["points"][-1]["evaluations"] for engine in engines.values() if engine["points"]]
    spent = min(ends, default=math.nan)
    first = "SVI" if "SVI" in kept_scores else next(iter(kept_scores), "SVI")
    against = {
        name: over_seeds(value - kept_scores[first][0], se.hypot(kept_scores[first][1]))
        for name, (value, se) in kept_scores.items()
    }
    return {
        f"log_p_less_that_of_{first}": against,
        "at_equal_evaluations": {
            "evaluations": spent,
            "log_p": {name: at(engine["points"], "evaluations", spent, "log_p") for name, engine in engines.items()},
        },
    }


def record_of(preset: Preset, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Curves and comparisons for every N, from what is kept."""
    sizes = {}
    for size in preset.sizes:
        engines, last = {}, {}
        for name in names:
            own = folder / str(size) / slug(name)
            engines[name] = curve(preset, own)
            ends = [read(own / f"scores-{seed}.pt").get(len(preset.times) - 1) for seed in preset.seeds]
            if None not in ends:
                value, se = (torch.stack([end["log_p"][part] for end in ends]) for part in (0, 1))
                last[name] = (value, se)
        sizes[str(size)] = {"engines": engines, "comparison": compare(engines, last)}
    return sizes


def text_of(record: Mapping[str, Any]) -> str:
    """What each engine had reached when the budget was spent."""
    lines = []
    for size, found in record["sizes"].items():
        equal = found["comparison"]["at_equal_evaluations"]
        lines += [
            f"N = {size}: held-out nats per datapoint after {record['settings']['seconds']:.0f} s, tuning included",
            f"{'':<26}{'step size':>10}{'log p(x)':>20}{'ELBO at q*':>12}{'evaluations':>13}"
            f"{'log p(x) at ' + format(equal['evaluations'], '.1e'):>22}",
        ]
        for name, engine in found["engines"].items():
            if not engine["points"]:
                lines += [f"{name:<26} finished no step within the budget"]
                continue
            end = engine["points"][-1]
            score = f"{end['log_p']['mean']:.2f} ± {end['log_p']['seed_se']:.2f}"
            lines += [
                f"{name:<26}{engine['tuned']['rate']:>10g}{score:>20}{end['elbo']['mean']:>12.2f}"
                f"{end['evaluations']:>13.1e}{equal['log_p'][name]:>22.2f}"
            ]
        lines += ["(± standard error over training seeds)", ""]
    return "\n".join(lines)


def _window(engines: Mapping[str, Mapping[str, Any]], term: str) -> tuple[float | None, float | None]:
    """Where the ends of the curves are: early models, hundreds of nats below, would press them together."""
    ends = [score for engine in engines.values() for point in engine["points"][-1:] for score in point[term]["by_seed"]]
    if not ends:
        return None, None
    margin = 0.15 * max(max(ends) - min(ends), 10.0)
    return min(ends) - margin, max(ends) + margin


def draw(record: Mapping[str, Any], term: str, file: Path) -> None:
    """A score against seconds and against decoder evaluations, one row an N; bands reach from seed to seed."""
    words = {"log_p": "held-out log p(x)", "elbo": "held-out ELBO at q*"}[term]
    axes_of = {"seconds": "seconds, tuning included", "evaluations": "decoder evaluations, tuning included"}
    markers = "os^vDPX"
    with plt.rc_context(STYLE):
        rows = len(record["sizes"])
        figure, axes = plt.subplots(rows, 2, figsize=(8.4, 0.9 + 2.9 * rows), sharey="row", squeeze=False)
        for row, (size, found) in zip(axes, record["sizes"].items(), strict=True):
            for ax, (cost, label) in zip(row, axes_of.items(), strict=True):
                for number, (name, engine) in enumerate(found["engines"].items()):
                    style = {"marker": markers[number], "markersize": 4, "color": [*COLORS, "#333333"][number]}
                    points = engine["points"]
                    spent = [point[cost] for point in points]
                    ax.plot(spent, [point[term]["mean"] for point in points], label=name, **style)
                    low, high = ([edge(point[term]["by_seed"]) for point in points] for edge in (min, max))
                    ax.fill_between(spent, low, high, color=style["color"], alpha=0.2, linewidth=0)
                ax.set_xlabel(label)
            row[1].set_xscale("log")
            row[1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            row[1].xaxis.set_major_formatter(EngFormatter(sep=""))
            row[1].xaxis.set_minor_formatter(NullFormatter())
            row[0].set_ylim(*_window(found["engines"], term))
            row[0].set_ylabel(f"{words}\n(nats per datapoint)")
            row[0].set_title(f"N = {size}", loc="left")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        title = (
            f"lines: mean of {len(record['settings']['seeds'])} training seeds; bands: from the lowest to the highest"
        )
        figure.legend(handles, labels, loc="outside upper center", ncols=4, title=title)
        figure.savefig(file)
        plt.close(figure)
