"""The page of a run: what it is and what it found, to be sent and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from inference import Gaps
from pyro_vae.engines import ENGINES
from pyro_vae.folders import FIGURES
from pyro_vae.report.missing import missing_from, trains_longer
from pyro_vae.report.page import commands, details, figures, number_table, page, paragraphs, warnings_of, word_table
from pyro_vae.run import Run
from pyro_vae.study.words import words

__all__ = ["run_page"]

# What is shown of a run's pictures, in this order, and what a reader sees there.
CAPTIONS = {
    "elbo": "ELBO over training, on the training data and on held-out data.",
    "elbo_terms": "The two terms of the ELBO over training.",
    "gaps": "What approximation and amortization cost: means over datapoints, with standard errors.",
    "gap_histogram": "The amortization gap of each datapoint.",
    "gap_scatter": "The amortization gap of each datapoint against its log p(x).",
    "worst": "The datapoints with the largest amortization gaps, with their reconstructions.",
    "pareto_k": "How far to trust log p(x): the tail index of the importance weights at each datapoint.",
    "kl_per_dim": "The KL divergence from the prior in each latent dimension, and which of them are active.",
    "reconstructions": "Held-out datapoints and their reconstructions.",
    "samples": "Means of x at draws of z from the prior.",
    "interpolations": "What lies between pairs of held-out datapoints.",
    "traversals": "What each latent dimension changes.",
    "aggregate": "The prior against the aggregate posterior, by dimension.",
    "manifold": "What a grid of latent points decodes to.",
    "latent": "Where held-out datapoints lie.",
    "posterior": "The posterior of one datapoint, and the q that approximates it.",
}


def run_page(run: Run) -> str:
    """The page of a run, as HTML.

    Args:
        run: the run; what its folder lacks is named, with the command that makes it.
    """
    config, gaps = run.config, run.gaps
    missing = missing_from(run.folder, config, measured=gaps is not None)
    lacks = [f"{name} is missing ({what}). To make it:" for name, (what, _) in missing.items()]
    findings = commands(zip(lacks, (command for _, command in missing.values()), strict=True), warn=True)
    findings += paragraphs([run.fit.headline]) + warnings_of(note.in_full for note in run.fit.notes())
    if longer := trains_longer(run.folder, config, run.fit):
        findings += commands([("To train longer:", longer)], warn=False)
    if gaps is not None:
        findings += _gaps_table(gaps)
    else:
        folder = quote(str(run.folder))
        findings += commands([("Gaps were not measured. To measure them:", f"pyro-vae gaps {folder}")], warn=False)
    sections = [("What was found", findings), ("Pictures", figures(run.folder / FIGURES, CAPTIONS))]
    if gaps is not None and (table := _by_label(run, gaps)):
        sections.append(("Gaps by label, nats per datapoint", table))
    sections.append(("How it was made", _settings(config)))
    data = Path(config["data"]["load"]["name_or_path"])
    subtitle = f"{data.name}, by {ENGINES.get(run.engine, run.engine)}"
    return page(f"Run {run.folder.resolve().name}", subtitle, sections)


def _gaps_table(gaps: Gaps) -> str:
    rows: list[Sequence[str | float]] = [
        [label, row["mean"], row["se"], row["mc_se"]] for label, row in gaps.rows().items()
    ]
    notes = gaps.notes()
    return "".join(
        [
            warnings_of(note.in_full for note in notes if note.is_grave),
            number_table(["nats per datapoint", "mean", "se", "mc_se"], rows, sortable=False),
            paragraphs((str(note) for note in notes if not note.is_grave), pale=True),
        ]
    )


def _by_label(run: Run, gaps: Gaps) -> str | None:
    """A line a label, where the measured datapoints have some."""
    data = run.results["gaps"].dataset
    if "labels" not in data or data["labels"].dtype.kind not in "iu":
        return None
    head = ["label", "N"]
    for gap in gaps.GAPS:
        head += [gaps.LABELS[gap], "se"]
    rows: list[Sequence[str | float]] = []
    for label, summary in gaps.by(data["labels"].values.tolist()).items():
        numbers = [summary[gap][statistic] for gap in gaps.GAPS for statistic in ("mean", "se")]
        rows.append([label, summary["num_data"], *numbers])
    return number_table(head, rows)


def _settings(config: Mapping[str, Any]) -> str:
    objective = config.get("objective")
    load = config["data"]["load"]
    units = ", columns standardized; all numbers and pictures in the data's own units" * bool(load.get("standardize"))
    shown = {
        "data": f"{load['name_or_path']} (fingerprint {config['data']['fingerprint'][:12]}){units}",
        "engine": ENGINES.get(config["engine"], config["engine"]),
        "objective": "the engine's own" if objective is None else words(objective),
        **{kind: words(chosen) for kind, chosen in config["parts"].items()},
        "latent size": config["sizes"]["num_latents"],
        "epochs at most": config["training"]["epochs"],
        "seed": config["seed"],
        "versions": ", ".join(f"{name} {number}" for name, number in config["versions"].items()),
    }
    return word_table(shown) + details("all settings", config)
