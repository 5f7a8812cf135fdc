"""The table of the study of inference suboptimality: terms, directions with verdicts, record, text and picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from inference import Gaps
from inference.results import summarise
from pyro_vae.plots import STYLE
from studies.common import Column, difference, read, slug, verdict
from studies.suboptimality import DATASETS, FIRST, SPLITS, VARIANTS, Preset, Variant, further

OWN_WEIGHTS = "the same, against q* with flow weights of its own"
# Share of searches that may end unconverged.
FEW = 0.1


def columns(variant: Variant, preset: Preset, gaps: Gaps, first: Gaps | None) -> dict[str, Column]:
    """Every term of a variant, per datapoint, and its Monte Carlo error.

    L[q*] of the flow is the larger of what two searches found, where there are two: with weights of a datapoint's own,
    and with those of the flow guide. A search of so many weights falls short easily.

    Args:
        variant: what was measured.
        preset: how it was measured.
        gaps: what was found.
        first: what was found with the model whose decoder this one has: q* there is q* here.
    """
    terms = {"log_p": (gaps.log_evidence, gaps.log_evidence_se)}
    sources = [(variant, gaps)] if first is None else [(variant, gaps), (VARIANTS[variant.decoder_of or ""], first)]
    for owner, measured in sources:
        if not owner.flow:
            terms.setdefault("elbo_mean_field", (measured.elbo_local, measured.elbo_local_se))
        if measured.elbo_local_by_family is not None and measured.elbo_local_by_family_se is not None:
            pairs = zip(measured.elbo_local_by_family, measured.elbo_local_by_family_se, strict=True)
            for column, pair in zip(further(owner, preset), pairs, strict=True):
                terms.setdefault(column, pair)
    for term in ("elbo_local", "elbo_amortized", "approximation_gap", "amortization_gap", "inference_gap"):
        terms[term] = (getattr(gaps, term), getattr(gaps, f"{term}_se"))
    if "elbo_flow" in terms:
        if variant.flow and gaps.elbo_local.mean() > terms["elbo_flow"][0].mean():
            terms["elbo_flow"] = terms["elbo_local"]
        terms["approximation_gap_flow"] = _less(terms["log_p"], terms["elbo_flow"])
        terms["amortization_gap_flow"] = _less(terms["elbo_flow"], terms["elbo_amortized"])
    return terms


def _less(first: Column, second: Column) -> Column:
    return first[0] - second[0], first[1].hypot(second[1])


def directions(
    name: str, table: Mapping[str, Mapping[str, Column]], num_images: int, *, flow_converged: bool
) -> list[dict[str, Any]]:
    """What one is led to expect, each as a paired difference that would be positive, and what was found.

    Args:
        name: of the data set.
        table: the columns of each variant.
        num_images: of each split.
        flow_converged: whether the searches for flows with weights of their own came to an end. One that falls short
            makes the gap to it look smaller: it cannot confirm that it is.
    """
    first, fixed = table[FIRST], table["fixed decoder, mean-field guide"]
    fixed_flow = table["fixed decoder, flow guide"]
    expected = {
        "a wider encoder has the smaller amortization gap": (
            first["amortization_gap"],
            table["wider encoder"]["amortization_gap"],
        ),
        "on one model the richer family has the smaller approximation gap": (
            first["approximation_gap"],
            first["approximation_gap_flow"],
        ),
        "a model trained with the richer family has the smaller approximation gap": (
            first["approximation_gap"],
            table["flow guide"]["approximation_gap"],
        ),
        "on a fixed decoder the flow guide has the smaller amortization gap": (
            fixed["amortization_gap"],
            fixed_flow["amortization_gap"],
        ),
        OWN_WEIGHTS: (
            fixed["amortization_gap"],
            fixed_flow["amortization_gap_flow"],
        ),
    }
    if name == "fashion-mnist":
        expected["amortization dominates: it costs more than the approximation"] = (
            first["amortization_gap"],
            first["approximation_gap"],
        )
    claims = []
    for claim, pair in expected.items():
        found: dict[str, Any] = {"expected": claim}
        for split, rows in rows_of(num_images).items():
            apart = difference(*pair, rows=rows)
            word = verdict(apart)
            if claim == OWN_WEIGHTS and word == "as expected" and not flow_converged:
                word = "undecided"
            found[split] = {"difference": apart, "verdict": word}
        claims.append(found)
    return claims


def rows_of(num_images: int) -> dict[str, slice]:
    """Which rows of a column belong to which split."""
    return {split: slice(i * num_images, (i + 1) * num_images) for i, split in enumerate(SPLITS)}


def record_of(name: str, preset: Preset, folder: Path) -> dict[str, Any]:
    """The table of one data set, and its directions, from what is kept."""
    found = {title: read(folder / name / f"{slug(title)}.pt") for title in VARIANTS}
    table = {
        title: columns(
            variant, preset, found[title]["gaps"], found[variant.decoder_of]["gaps"] if variant.decoder_of else None
        )
        for title, variant in VARIANTS.items()
    }
    variants = {}
    for title in VARIANTS:
        gaps: Gaps = found[title]["gaps"]
        record = {**found[title]["record"], "log_p": gaps.evidence_method, "splits": {}}
        for split, rows in rows_of(preset.num_images).items():
            record["splits"][split] = {
                **{term: summarise(value[rows], se[rows]) for term, (value, se) in table[title].items()},
                "estimates": {
                    estimator: summarise(estimate.value[rows], estimate.se[rows])
                    for estimator, estimate in gaps.estimates.items()
                },
                "num_unconverged": int((~gaps.converged[rows]).sum()),
                "pareto_k_above_0.7": None if gaps.pareto_k is None else int((gaps.pareto_k[rows] > 0.7).sum()),
            }
        record["num_unconverged_by_family"] = gaps.settings["num_unconverged_by_family"]
        variants[title] = record
    unconverged = variants[FIRST]["num_unconverged_by_family"]
    converged = all(number <= FEW * len(SPLITS) * preset.num_images for number in unconverged)
    found_directions = directions(name, table, preset.num_images, flow_converged=converged)
    return {"variants": variants, "directions": found_directions}


COLUMNS = {
    "log_p": "log p(x)",
    "elbo_flow": "L[q*] flow",
    "elbo_mean_field": "L[q*] m.-f.",
    "elbo_amortized": "L[q]",
    "approximation_gap": "approx.",
    "amortization_gap": "amort.",
    "inference_gap": "inference",
}


def text_of(record: Mapping[str, Any]) -> str:
    """The table as a person reads it: means, and the standard errors of the gaps over images."""
    lines = []
    for name, found in record["datasets"].items():
        for split in SPLITS:
            lines += [f"{DATASETS[name]}, {record['settings']['num_images']} {split} images, nats per datapoint"]
            lines += [f"{'':<32}" + "".join(f"{label:>16}" for label in COLUMNS.values())]
            for title, variant in found["variants"].items():
                cells = (_cell(term, variant["splits"][split].get(term)) for term in COLUMNS)
                lines += [f"{title:<32}" + "".join(f"{cell:>16}" for cell in cells)]
            lines += [""]
        for direction in found["directions"]:
            parts = (
                f"{split}: {direction[split]['verdict']} ({direction[split]['difference']['mean']:+.3f} ± "
                f"{direction[split]['difference']['se']:.3f})"
                for split in SPLITS
            )
            lines += [f"{direction['expected']}: " + ", ".join(parts)]
        lines += [""]
    return "\n".join(lines)


def _cell(term: str, found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:.2f} ± {found['se']:.2f}" if term.endswith("gap") else f"{found['mean']:.2f}"


def draw(record: Mapping[str, Any], file: Path) -> None:
    """One panel a data set: the two gaps stacked, of training and test images, for each variant."""
    gaps = {"approximation_gap": ("#56B4E9", "approximation"), "amortization_gap": ("#D55E00", "amortization")}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(record["datasets"]), 1, figsize=(8.4, 6.4), sharex=True, squeeze=False)
        for ax, (name, found) in zip(axes.flat, record["datasets"].items(), strict=True):
            for number, variant in enumerate(found["variants"].values()):
                for offset, split in zip((-0.2, 0.2), SPLITS, strict=True):
                    _bar(ax, number + offset, variant["splits"][split], gaps, hatched=split == "train")
            ax.set_ylabel("gap (nats per datapoint)")
            ax.set_title(f"{DATASETS[name]}, the first {record['settings']['num_images']} images of each split")
            ax.grid(visible=False, axis="x")
            ax.margins(y=0.14)
        names = [title.replace(", ", ",\n").replace(" ", "\n", 1) for title in VARIANTS]
        axes[-1, 0].set_xticks(range(len(names)), names)
        for color, label in gaps.values():
            axes[0, 0].bar([0], [0], color=color, label=f"{label} gap")
        for split, hatch in zip(("training", "test"), ("////", ""), strict=True):
            axes[0, 0].bar([0], [0], color="#dddddd", edgecolor="white", hatch=hatch, label=f"{split} images")
        figure.legend(loc="outside upper center", ncols=4, title="error bars: ± 1 standard error over images")
        figure.savefig(file)
        plt.close(figure)


def _bar(ax: Any, x: float, terms: Mapping[str, Any], gaps: Mapping[str, tuple[str, str]], *, hatched: bool) -> None:
    """The gaps of one variant on one split, stacked, and their sum as a number."""
    bottom = 0.0
    for term, (color, _) in gaps.items():
        style = {"color": color, "edgecolor": "white", "linewidth": 0.5, "hatch": "////" if hatched else ""}
        errors = {"elinewidth": 1.0, "capsize": 2.5, "ecolor": "black"}
        ax.bar(x, terms[term]["mean"], 0.36, bottom=bottom, yerr=terms[term]["se"], error_kw=errors, **style)
        bottom += terms[term]["mean"]
    top = bottom + terms["amortization_gap"]["se"]
    ax.annotate(f"{bottom:.1f}", (x, top), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7)
