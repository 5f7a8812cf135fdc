"""Records as the tables and sentences of docs/speed.md, one run or several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timing import race
from timing.picture import ORDER

Record = Mapping[str, Any]


def rows_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def targets_table(records: Sequence[Record]) -> str:
    """A line a target: the worst case's ratio in each run."""
    head = ["ratio", "target", "at least", *(f"run {number + 1}" for number in range(len(records)))]
    rows = []
    for lines in zip(*(record["targets"] for record in records), strict=True):
        first = lines[0]
        rows.append([first["line"], f"{first['target']:g}", f"{first['least']:g}", *map(_measured, lines)])
    return rows_of(head, rows)


def _measured(line: Mapping[str, Any]) -> str:
    known = [value for value in line["measured"].values() if value is not None]
    if not known:
        return "–"
    values = " / ".join(f"{value:.3g}" for value in known)
    return f"{'> ' if line['lower_bound'] else ''}{values} ({line['verdict']})"


def training_table(table: Record) -> str:
    """Milliseconds a step, median (best), a line a method and a column a cell."""
    cells = table["cells"]
    head = ["ms a step", *(f"{'-'.join(map(str, cell['widths']))}, B = {cell['batch']}" for cell in cells)]
    rows = [
        [name, *(_time(cell["ms"].get(name)) for cell in cells)]
        for name in ORDER
        if any(name in cell["ms"] for cell in cells)
    ]
    return rows_of(head, rows)


def _time(ms: Mapping[str, float] | None) -> str:
    return "–" if ms is None else f"{ms['median']:.3g} ({ms['best']:.3g})"


def race_table(parts: Record) -> str:
    """Seconds to each threshold, median (best), a line a data set and method."""
    rows = []
    for name, part in parts.items():
        rows += [[name, key, _time(times)] for key, times in part["seconds"].items()]
        if race.SLOW not in part:
            continue
        slow = part[race.SLOW]
        bound = "" if slow["reached"] else "> "
        rows.append([name, f"{race.SLOW} < {slow['below']}", f"{bound}{slow['seconds']:.3g}"])
    return rows_of(["images", "method, mean gap in nats", "seconds"], rows)


def annealing_table(part: Record) -> str:
    """Leapfrog rows a second, and seconds to the width."""
    rates, widths = part["leapfrogs"], part["widths"]
    rows = [[f"{name}: leapfrog rows a second", f"{rate:,.0f}"] for name, rate in rates["rows_a_second"].items()]
    for start, ladder in widths["ladders"].items():
        times = widths["seconds"].get(start)
        if times:
            label = f"from {start}, {ladder[-1]['temperatures']} temperatures: seconds to a width of {widths['width']}"
            rows.append([label, _time(times)])
    return rows_of(["annealing", ""], rows)


def sentences(record: Record) -> list[str]:
    """What one number says: the effect of bf16, and the cost of a sweep."""
    found = []
    if "precision" in record:
        one = record["precision"]
        effect, number = one["difference"], len(one["elbo"]["float32"])
        found.append(
            f"Held-out ELBO after a fit in bf16 less that in float32: {effect['mean']:+.2f} nats (standard error "
            f"{effect['se']:.2f} over {number} seeds; {one['epochs']} epochs, {one['num_images']} images)."
        )
    if "em" in record:
        one = record["em"]
        found += [
            f"Variational EM, N = {one['num_data']}, {name} a visit: {value['us_a_datapoint']:.0f} us a datapoint and "
            f"sweep, {value['seconds_a_sweep']:.1f} s a sweep."
            for name, value in one.items()
            if isinstance(value, Mapping)
        ]
    return found


def tables(records: Sequence[Record]) -> str:
    """All tables: the targets of every run, and the rest of the first."""
    first = records[0]
    parts = [targets_table(records)]
    if "training" in first:
        parts.append(training_table(first["training"]))
        parts.append(training_table({"cells": [first["training"]["fixed_overhead"]]}))
    if "estep" in first:
        parts.append(race_table(first["estep"]))
    if "ais" in first:
        parts.append(annealing_table(first["ais"]))
    parts += sentences(first)
    return "\n\n".join(parts)
