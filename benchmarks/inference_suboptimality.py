"""Where does an encoder lose its nats? A repetition of Cremer, Li & Duvenaud (2018) on MNIST and Fashion-MNIST.

`python benchmarks/inference_suboptimality.py --preset quick --out FOLDER` fits one model a variant on each data set,
measures log p(x), L[q*] and L[q] of the same training and test images under each, and writes `FOLDER/record.json` (the
table, the directions that the paper leads one to expect, each with a verdict, settings, seconds and versions) and
`FOLDER/gaps.png`. Fits and measurements are kept in `FOLDER/kept`, so that an interrupted run goes on where it was.

Images are binarized once, with the data set's own seed (not Larochelle's file). L[q*] of the flow has all weights of
the flow a datapoint's own; the flow guide shares them between datapoints, so its own q* is the best context given the
trained weights, and its amortization gap is given in both senses.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from records import provenance, write
from studies import Column, difference, kept, one_line_errors, open_folder, parser_of, say, slug, verdict
from torch import Tensor

from inference import (
    Adam,
    Annealing,
    Cosine,
    CouplingFlow,
    Evidence,
    Family,
    Gaps,
    MeanField,
    Search,
    Staircase,
    Training,
    fit_svi,
    measure_gaps,
)
from inference.results import summarise
from pyro_vae import MLP, VAE, Dataset, load
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.plots import STYLE
from pyro_vae.priors import StandardNormal

DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
SPLITS = ("train", "test")
NUM_LATENTS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One model and guide.

    Attributes:
        flow: whether q is a coupling flow; else it is mean-field.
        encoder: widths of its hidden layers.
        decoder: widths of its hidden layers.
        decoder_of: variant whose fitted decoder this one has; only the encoder is then trained.
        both_families: whether q* is searched for in both families, and not in the guide's alone.
    """

    flow: bool = False
    encoder: tuple[int, ...] = (200, 200)
    decoder: tuple[int, ...] = (200, 200)
    decoder_of: str | None = None
    both_families: bool = False


FIRST = "mean-field guide"
VARIANTS = {
    FIRST: Variant(both_families=True),
    "flow guide": Variant(flow=True, both_families=True),
    "wider encoder": Variant(encoder=(500, 500)),
    "deeper decoder": Variant(decoder=(200, 200, 200, 200)),
    "linear decoder": Variant(decoder=()),
    "fixed decoder, mean-field guide": Variant(decoder_of=FIRST),
    "fixed decoder, flow guide": Variant(flow=True, decoder_of=FIRST),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything.

    Attributes:
        training: of each fit.
        num_train: training images, the first ones, that models are fitted to.
        num_images: first images of the training and of the test split that are measured.
        hidden: width of the flows' networks; each flow has two layers.
        tol: of the searches, nats.
        num_draws: behind each L.
        num_evidence_draws: behind IWAE.
        annealing: of AIS.
        search: for q*.
    """

    training: Training
    num_train: int
    num_images: int
    hidden: tuple[int, ...]
    tol: float
    num_draws: int
    num_evidence_draws: int
    annealing: Annealing
    search: Search

    def describe(self) -> dict[str, Any]:
        """The settings as plain values."""
        values = dataclasses.asdict(dataclasses.replace(self, training=None))  # type: ignore[arg-type]
        return {**values, "training": self.training.describe(), "annealing": self.annealing.describe()}


PRESETS = {
    "quick": Preset(
        training=Training(epochs=6, batch_size=200, optimizer=Adam(lr=3e-3, eps=1e-4), schedule=Cosine()),
        num_train=50_000,
        num_images=48,
        hidden=(8,),
        tol=0.1,
        num_draws=200,
        num_evidence_draws=1000,
        annealing=Annealing(num_temperatures=50, num_chains=8, num_pilot_chains=4),
        search=Search(num_particles=2, max_rounds=4, num_judge_draws=128, num_select_draws=128),
    ),
    "paper": Preset(
        training=Training(epochs=3280, batch_size=100, optimizer=Adam(lr=1e-3, eps=1e-4), schedule=Staircase()),
        num_train=50_000,
        num_images=1000,
        hidden=(100,),
        tol=0.01,
        num_draws=1000,
        num_evidence_draws=5000,
        annealing=Annealing(num_temperatures=10_000, num_chains=100),
        search=Search(max_rounds=9),
    ),
}

# Read in secondary sources: for the directions, not for the digits.
PUBLISHED = {
    "source": "Cremer, Li & Duvenaud (2018), as quoted elsewhere; mean-field guide, nats per datapoint",
    "mnist": {"log_p": -89.80, "elbo_flow": -90.80, "elbo_mean_field": -91.23, "elbo_amortized": -92.57},
    "fashion-mnist": {"log_p": -97.47, "elbo_flow": -98.92, "elbo_mean_field": -100.53, "elbo_amortized": -104.75},
}


def dry(preset: Preset) -> Preset:
    """The same design at a tiny size."""
    return dataclasses.replace(
        preset,
        training=dataclasses.replace(preset.training, epochs=1),
        num_train=200,
        num_images=2,
        tol=1.0,
        num_draws=16,
        num_evidence_draws=50,
        annealing=dataclasses.replace(preset.annealing, num_temperatures=4, num_chains=2, num_pilot_chains=2),
        search=Search(num_particles=2, first_round=4, max_rounds=1, num_judge_draws=64, num_select_draws=8),
    )


def flow(preset: Preset, *, shared: bool) -> Family:
    """The flow of a guide, or that of a datapoint by itself."""
    return CouplingFlow(NUM_LATENTS, num_layers=2, hidden=preset.hidden, shared=shared)


def build(variant: Variant, preset: Preset, data: Dataset) -> VAE:
    """A model and its guide, with weights from torch's global generator."""
    family = flow(preset, shared=True) if variant.flow else MeanField(NUM_LATENTS)
    return VAE(
        prior=StandardNormal(NUM_LATENTS),
        likelihood=Bernoulli(),
        decoder=MLP(NUM_LATENTS, *variant.decoder, data.num_values),
        family=family,
        encoder=MLP(data.num_values, *variant.encoder, family.num_params),
    )


def further(variant: Variant, preset: Preset) -> dict[str, Family]:
    """Families beside the guide's own in which q* is searched for, by their column."""
    if not variant.both_families:
        return {}
    own_weights = {"elbo_flow": flow(preset, shared=False)}
    return {"elbo_mean_field": MeanField(NUM_LATENTS), **own_weights} if variant.flow else own_weights


def images(data: Dataset, num_images: int) -> Tensor:
    """The first training images, and behind them as many test images: measured at once."""
    return torch.cat([data.train[:num_images], data.test[:num_images]])


def make(
    variant: Variant, preset: Preset, data: Dataset, first: Mapping[str, Any] | None, *, seed: int, device: str
) -> dict[str, Any]:
    """Fit one variant and measure it.

    Args:
        variant: what is fitted.
        preset: how much.
        data: to fit, and to measure.
        first: what was kept of the variant whose decoder this one has.
        seed: of everything but the data.
        device: where.
    """
    torch.manual_seed(seed)
    vae = build(variant, preset, data)
    if first is not None:
        decoder = {name: value for name, value in first["weights"].items() if name.startswith("decoder.")}
        vae.load_state_dict(decoder, strict=False)
    vae.to(device)
    train = data.train.head(preset.num_train)
    what = "all" if first is None else "guide"
    fit = fit_svi(vae.model, vae.guide, train, train=what, training=preset.training, seed=seed)  # type: ignore[arg-type]
    began = time.perf_counter()
    gaps = measure_gaps(
        vae.model,
        vae.guide,  # type: ignore[arg-type]
        images(data, preset.num_images),
        families=list(further(variant, preset).values()),
        # The same model, the same images: the same log p(x).
        log_evidence=None if first is None else evidence_of(first["gaps"]),
        tol=preset.tol,
        num_draws=preset.num_draws,
        num_evidence_draws=preset.num_evidence_draws,
        annealing=preset.annealing,
        search=preset.search,
        seed=seed,
    )
    return {
        "weights": vae.cpu().state_dict(),
        "gaps": gaps,
        "record": {
            "model": repr(vae).splitlines(),
            "trained": what,
            "elbo_while_training": fit.elbo[-1].item(),
            "num_steps": fit.num_steps,
            "seconds": {"fit": fit.seconds, "measure": time.perf_counter() - began, **gaps.seconds},
        },
    }


def evidence_of(gaps: Gaps) -> Evidence:
    """The evidence that gaps were measured with."""
    return Evidence(
        value=gaps.log_evidence,
        se=gaps.log_evidence_se,
        method=gaps.evidence_method,
        bound="lower" if gaps.is_lower_bound else None,
        pareto_k=gaps.pareto_k,
        ess=gaps.ess,
    )


def study(name: str, preset: Preset, seed: int, folder: Path, device: str) -> None:
    """Every variant on one data set, each kept in the folder when it is done."""
    # These matrices are too small for a second thread to help.
    torch.set_num_threads(1)
    data = load(name, binarize="fixed")
    found: dict[str, Any] = {}
    for title, variant in VARIANTS.items():
        first = found.get(variant.decoder_of or "")
        found[title] = kept(
            folder / name / f"{slug(title)}.pt",
            lambda variant=variant, first=first: make(variant, preset, data, first, seed=seed, device=device),
        )
        seconds = found[title]["record"]["seconds"]
        say(f"{DATASETS[name]}, {title}: fitted in {seconds['fit']:.0f} s, measured in {seconds['measure']:.0f} s")


def columns(variant: Variant, preset: Preset, gaps: Gaps, first: Gaps | None) -> dict[str, Column]:
    """Every term of a variant, per datapoint, and its Monte Carlo error.

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
        terms["approximation_gap_flow"] = _less(terms["log_p"], terms["elbo_flow"])
        terms["amortization_gap_flow"] = _less(terms["elbo_flow"], terms["elbo_amortized"])
    return terms


def _less(first: Column, second: Column) -> Column:
    return first[0] - second[0], first[1].hypot(second[1])


def directions(name: str, table: Mapping[str, Mapping[str, Column]], num_images: int) -> list[dict[str, Any]]:
    """What one is led to expect, each as a paired difference that would be positive, and what was found."""
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
        "the same, against q* with flow weights of its own": (
            fixed["amortization_gap"],
            fixed_flow["amortization_gap_flow"],
        ),
    }
    if name == "fashion-mnist":
        expected["amortization dominates: it costs more than the approximation"] = (
            first["amortization_gap"],
            first["approximation_gap"],
        )
    return [
        {"expected": claim}
        | {split: {"difference": found, "verdict": verdict(found)} for split, found in _by_split(pair, num_images)}
        for claim, pair in expected.items()
    ]


def _by_split(pair: tuple[Column, Column], num_images: int) -> list[tuple[str, dict[str, float]]]:
    return [(split, difference(*pair, rows=rows)) for split, rows in rows_of(num_images).items()]


def rows_of(num_images: int) -> dict[str, slice]:
    """Which rows of a column belong to which split."""
    return {split: slice(i * num_images, (i + 1) * num_images) for i, split in enumerate(SPLITS)}


def record_of(name: str, preset: Preset, folder: Path) -> dict[str, Any]:
    """The table of one data set, and its directions, from what is kept."""
    found = {
        title: torch.load(folder / name / f"{slug(title)}.pt", weights_only=True, map_location="cpu")
        for title in VARIANTS
    }
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
    return {"variants": variants, "directions": directions(name, table, preset.num_images)}


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


def run(preset: Preset, *, names: Sequence[str], seed: int, out: Path, device: str, jobs: int) -> dict[str, Any]:
    """Every variant on every data set, and the record of them all."""
    began = time.perf_counter()
    settings = {"seed": seed, "datasets": list(names), **preset.describe()}
    open_folder(out, settings)
    work = [(name, preset, seed, out / "kept", device) for name in names]
    if jobs == 1:
        for arguments in work:
            study(*arguments)
    else:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            pool.starmap(study, work)
    return {
        "study": "inference suboptimality",
        "settings": settings,
        "datasets": {
            name: {"fingerprint": load(name, binarize="fixed").fingerprint, **record_of(name, preset, out / "kept")}
            for name in names
        },
        "errors": "se: other images; mc_se: other draws of the measurement. One training seed: another may change "
        "differences between models by more.",
        "published": PUBLISHED,
        "seconds_of_this_run": time.perf_counter() - began,
        "processes": jobs,
        "device": device,
        **provenance(),
    }


def main() -> None:
    """Run the study and write its record and picture."""
    parser = parser_of(__doc__, PRESETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one a data set (default 2)")
    arguments = parser.parse_args()
    preset = dry(PRESETS[arguments.preset]) if arguments.dry_run else PRESETS[arguments.preset]
    record = run(
        preset,
        names=arguments.datasets,
        seed=arguments.seed,
        out=arguments.out,
        device=arguments.device,
        jobs=arguments.jobs,
    )
    say(text_of(record))
    draw(record, arguments.out / "gaps.png")
    write({"preset": arguments.preset, **record}, arguments.out / "record.json")


if __name__ == "__main__":
    one_line_errors(main)
