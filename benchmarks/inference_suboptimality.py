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

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from records import provenance, write
from studies.common import kept, one_line_errors, open_folder, parser_of, say, slug
from studies.gap_table import draw, record_of, text_of
from studies.suboptimality import DATASETS, PRESETS, VARIANTS, Preset, Variant, build, dry, further
from torch import Tensor

from inference import Evidence, Gaps, fit_svi, measure_gaps
from pyro_vae import Dataset, load

# Read in secondary sources: for the directions, not for the digits.
PUBLISHED = {
    "source": "Cremer, Li & Duvenaud (2018), as quoted elsewhere; mean-field guide, nats per datapoint",
    "mnist": {"log_p": -89.80, "elbo_flow": -90.80, "elbo_mean_field": -91.23, "elbo_amortized": -92.57},
    "fashion-mnist": {"log_p": -97.47, "elbo_flow": -98.92, "elbo_mean_field": -100.53, "elbo_amortized": -104.75},
}


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
    write({"preset": arguments.preset, "dry_run": arguments.dry_run, **record}, arguments.out / "record.json")


if __name__ == "__main__":
    one_line_errors(main)
