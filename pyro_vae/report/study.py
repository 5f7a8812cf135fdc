"""The page of a study: which differences there are, the cells behind them, and what failed."""

from __future__ import annotations

import math
from html import escape
from shlex import quote

from inference import Gaps
from pyro_vae.plots import plot_differences
from pyro_vae.report.page import (
    commands,
    details,
    drawing,
    number_table,
    page,
    paragraphs,
    warnings_of,
    word_table,
)
from pyro_vae.study import Difference, Refusal, StudyResults
from pyro_vae.study.differences import ENOUGH_SEEDS
from pyro_vae.study.words import where, words

__all__ = ["study_page"]

# A picture with more rows than this says less than the table under it.
MAX_ROWS = 40


def study_page(results: StudyResults) -> str:
    """The page of a study, as HTML.

    Args:
        results: the study; cells that are not done are counted, with the command that goes on.
    """
    differences, refused = results.comparisons()
    sections = [("What was found", _findings(results, differences, refused))]
    if results.cells:
        sections.append(("Cells", _cells(results)))
    if results.failures:
        sections.append(("What failed", _failures(results)))
    sections.append(("How it was made", _settings(results)))
    count = f"{len(results.cells)} of {results.num_cells} cells"
    axes = " × ".join(results.study["axes"])
    subtitle = f"{results.study['data']['name_or_path']}: {axes}; {count}"
    return page(f"Study {results.folder.resolve().name}", subtitle, sections)


def _findings(results: StudyResults, differences: list[Difference], refused: list[Refusal]) -> str:
    html = ""
    if results.num_open:
        told = f"{results.num_open} of {results.num_cells} cells are not done. To go on, with the study's file:"
        html += commands([(told, f"pyro-vae study FILE --out {quote(str(results.folder))}")], warn=True)
    if results.failures:
        html += warnings_of([f"{len(results.failures)} of {results.num_cells} cells failed: see below."])
    notes = results.notes()
    html += warnings_of([*(note.in_full for note in notes if note.is_grave), *map(str, refused)])
    if differences:
        html += paragraphs(["Differences of held-out log p(x), nats per datapoint; above 0 the first is the better."])
        html += _picture(differences) + _table(differences)
        few = min(difference.num_seeds for difference in differences)
        if few < ENOUGH_SEEDS:
            html += paragraphs(
                [
                    f"Where there are fewer than {ENOUGH_SEEDS} training seeds a difference is one of these fits only: "
                    "other seeds may change it by more than se."
                ],
                pale=True,
            )
    elif not results.cells:
        html += paragraphs(["No cell is done yet."])
    elif not refused:
        html += paragraphs(
            ["There is nothing to compare yet: no axis but the seed has cells at two values, all else equal."]
        )
    return html + paragraphs((str(note) for note in notes if not note.is_grave), pale=True)


def _picture(differences: list[Difference]) -> str:
    shown = differences[:MAX_ROWS]
    several = any(one.num_seeds > 1 for one in differences)
    means = "over datapoints and seeds; rings: single training seeds" if several else "over datapoints"
    caption = f"Dots: means {means}; bars: ± 1 standard error."
    if len(shown) < len(differences):
        caption += f" The first {MAX_ROWS} of {len(differences)} differences."
    return drawing(plot_differences({one.title: one for one in shown}), caption)


def _table(differences: list[Difference]) -> str:
    head = ["axis", "value", "less that of", "elsewhere", "mean", "se", "mc_se", "seed_se", "seeds"]
    rows: list[list[str | float]] = [
        [
            one.axis,
            one.value,
            one.baseline,
            where(one.elsewhere) or "–",
            one.mean,
            one.se,
            one.mc_se,
            one.seed_se,
            one.num_seeds,
        ]
        for one in differences
    ]
    return number_table(head, rows)


def _cells(results: StudyResults) -> str:
    """A row a cell, its numbers by one estimator."""
    table = results.table()
    terms = {"log_p": "log p(x)", **{term: label for term, label in Gaps.LABELS.items() if term != "log_evidence"}}
    columns: dict[str, str] = {}
    for term, label in terms.items():
        columns[term] = label
        # The table's files have them all.
        if term == "log_p" or term in Gaps.GAPS:
            columns[f"{term}_se"] = "se"
        if term == "log_p":
            columns["log_p_mc_se"] = "mc_se"
    counts = {"num_unconverged": "not converged", "num_untrusted": "k > 0.7", "num_data": "N", "seconds": "seconds"}
    places = [list(cell.place.values()) for cell in results.cells]
    numbers = table[list(columns)].to_numpy().tolist()
    whole = table[list(counts)].round().astype(int).to_numpy().tolist()
    rows = [[*place, *row, *count] for place, row, count in zip(places, numbers, whole, strict=True)]
    html = number_table([*results.study["axes"], *columns.values(), *counts.values()], rows)
    text = (
        "Nats per datapoint. Not converged, k > 0.7: datapoints whose q* the search did not reach, and whose log p(x) "
        "is not to be trusted. Each cell is a run of its own: pyro-vae report works on its folder in cells/."
    )
    return html + paragraphs([text], pale=True)


def _failures(results: StudyResults) -> str:
    parts = []
    for failure in results.failures:
        parts.append(warnings_of([f"{where(failure['place'])}: {failure['error']}"], label="Failed"))
        if failure.get("traceback"):
            text = escape(failure["traceback"])
            parts.append(f"<details><summary>where</summary><pre>{text}</pre></details>")
    told = "They are tried again by the same command. To go on, with the study's file:"
    return "".join(parts) + commands([(told, f"pyro-vae study FILE --out {quote(str(results.folder))}")], warn=False)


def _settings(results: StudyResults) -> str:
    study = results.study
    # What is an axis is not shared; a network is both of its halves.
    axes = {*study["axes"], *(("decoder", "encoder") if "network" in study["axes"] else ())}
    shown = {
        "data": study["data"]["name_or_path"],
        **{f"axis {axis}": ", ".join(map(words, values)) for axis, values in study["axes"].items()},
        **{kind: words(value) for kind, value in study["parts"].items() if kind not in axes},
        **{
            name.replace("_", " "): words(study[name])
            for name in ("engine", "objective", "num_latents", "seed")
            if name not in axes and study[name] is not None
        },
        "scored on": "all test datapoints" if study["num_data"] is None else f"{study['num_data']} test datapoints",
    }
    if results.cells:
        versions = {
            ", ".join(f"{name} {number}" for name, number in cell.config["versions"].items()) for cell in results.cells
        }
        shown["versions"] = "; ".join(sorted(versions))
        seconds = math.fsum(cell.seconds for cell in results.cells)
        shown["fitting took"] = f"{seconds:.0f} seconds in all"
    asked = {name: value for name, value in study.items() if name != "cells"}
    return word_table(shown) + details("all settings", asked)
