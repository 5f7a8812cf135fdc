"""Held-out log p(x) of designs that differ in one part, on real data, under one budget.

`python benchmarks/held_out.py priors --seeds 0 1 2 --out priors.json` fits every design of a case once a seed, scores
all of them on the same test datapoints by importance sampling, and writes one JSON record: log p(x) of each, and each
one's paired difference from the first, with three errors. `se` is what other datapoints would change, `mc_se` other
draws, `seed_se` other training seeds (initial weights, order, noise).

The data: `priors` reads MNIST as `pyro_vae.load` does; `faces` and `cifar10` take the files named by --data
(.npz with an array x, or x_train and x_test, of 8-bit images); `counts` brings its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from records import over_seeds, provenance, write

from inference import Adam, Defensive, Evidence, Training, fit_svi, iwae
from pyro_vae import VAE, load, paired_difference
from pyro_vae.comparison import Scored
from pyro_vae.jobs import start_at_data
from pyro_vae.parts import Options, Parts, Sizes, options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Designs to compare, the first of which is the standard.

    Attributes:
        data: arguments of `load`; a case whose data are a file has none, and takes the path from --data.
        designs: by name; what a design leaves open is `base`'s.
        base: parts in common.
        num_latents: size of what the decoder reads.
        training: the budget.
        num_data: test datapoints scored.
        num_draws: draws behind each log p(x).
        proposal: how they are proposed; None: by the guide itself, where a search would take hours.
    """

    data: dict[str, Any]
    designs: dict[str, dict[str, Options]]
    base: dict[str, Options]
    num_latents: int
    training: Training
    num_data: int
    num_draws: int = 2000
    proposal: Defensive | None = Defensive()


CASES = {
    "priors": Case(
        data={"name_or_path": "mnist", "binarize": "fixed"},
        designs={
            "standard normal": {},
            "Gaussian mixture": {"prior": options("prior", "gaussian-mixture", num_components=100)},
            "VampPrior": {"prior": options("prior", "vamp-prior", num_components=500)},
            "flow prior": {"prior": options("prior", "flow-prior")},
        },
        base={"likelihood": options("likelihood", "bernoulli")},
        num_latents=40,
        training=Training(epochs=15, batch_size=128),
        num_data=320,
    ),
    "faces": Case(
        data={},
        designs={
            "learned shared scale": {"likelihood": options("likelihood", "gaussian-shared-scale", init_scale=0.2)},
            "learned scale, Gaussian mixture": {
                "likelihood": options("likelihood", "gaussian-shared-scale", init_scale=0.2),
                "prior": options("prior", "gaussian-mixture", num_components=20),
            },
        },
        base={},
        num_latents=20,
        training=Training(epochs=150, batch_size=64),
        num_data=200,
    ),
    "cifar10": Case(
        data={},
        designs={
            "discretized logistic": {"likelihood": options("likelihood", "discretized-logistic")},
            "mixture of 3": {"likelihood": options("likelihood", "discretized-logistic-mixture", num_components=3)},
        },
        base={"encoder": options("encoder", "conv-encoder"), "decoder": options("decoder", "conv-decoder")},
        num_latents=48,
        training=Training(epochs=30, batch_size=64),
        num_data=100,
        num_draws=500,
        proposal=None,
    ),
    "counts": Case(
        data={"name_or_path": "digits"},
        designs={
            "binomial": {"likelihood": options("likelihood", "binomial")},
            "discretized Gaussian": {"likelihood": options("likelihood", "discretized-gaussian")},
        },
        base={kind: options(kind, "mlp", hidden=(128, 128)) for kind in ("decoder", "encoder")},
        num_latents=8,
        training=Training(epochs=150, batch_size=100, optimizer=Adam(lr=2e-3)),
        num_data=400,
    ),
}


def score(case: Case, title: str, data: Any, seed: int) -> tuple[Scored, dict[str, Any]]:
    """Fit one design with one seed; log p(x) of the first test datapoints."""
    design = case.designs[title]
    torch.manual_seed(seed)
    sizes = Sizes(
        num_latents=case.num_latents,
        num_values=data.num_values,
        image_shape=data.image_shape,
        max_value=float(data.train.tensor().max()),
        num_levels=data.num_levels,
        level_step=data.level_step,
    )
    vae = VAE(**Parts(**{**case.base, **design}).build(sizes))
    start_at_data(vae.prior, data.train, seed=seed)
    fit = fit_svi(vae.model, vae.guide, data.train, training=case.training, validation=data.validation, seed=seed)
    began = time.perf_counter()
    test = data.test.head(case.num_data)
    evidence = iwae(vae.model, vae.guide, test, num_draws=case.num_draws, proposal=case.proposal, seed=seed)
    x = test.tensor()
    with torch.no_grad():
        on_floor = vae.likelihood.on_floor(vae.decoder_output(vae.prior().sample((256,)))).double().mean().item()
    scored = Scored(name=title, log_p=evidence, base_measure=vae.likelihood.base_measure, fingerprint=data.fingerprint)
    return scored, {
        "seed": seed,
        "elbo_validation": fit.elbo_validation[-1].item(),  # type: ignore[index]
        "num_parameters": sum(weight.numel() for weight in vae.parameters()),
        "log_p": evidence.value.mean().item(),
        "mean_squared_error": (vae.reconstruct(x) - x).square().mean().item(),
        "scales_on_floor": on_floor,
        "pareto_k_above_0.7": int((evidence.pareto_k > 0.7).sum()),  # type: ignore[operator]
        "seconds": {"fit": fit.seconds, "log_p": time.perf_counter() - began},
        "likelihood": repr(vae.likelihood),
    }


def summary(runs: list[Scored], base: list[Scored] | None = None) -> dict[str, float]:
    """Mean over datapoints and seeds, and its three errors; of the paired differences where `base` is given."""
    value = torch.stack([run.log_p.value for run in runs])
    error = torch.stack([run.log_p.se for run in runs]).square()
    if base is not None:
        for run, first in zip(runs, base, strict=True):
            paired_difference(run, first)  # Refuses masses against densities, and other data.
        value = value - torch.stack([run.log_p.value for run in base])
        error = error + torch.stack([run.log_p.se for run in base]).square()
    return over_seeds(value, error.sqrt())


def kept(folder: Path | None, case: Case, title: str, data: Any, seed: int) -> tuple[Scored, dict[str, Any]]:
    """The score of one design with one seed: from the folder where it is there, else made now and kept there."""
    if folder is None:
        return score(case, title, data, seed)
    file = folder / f"{title.replace(' ', '-')}-{seed}.pt"
    if not file.exists():
        scored, record = score(case, title, data, seed)
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"value": scored.log_p.value, "se": scored.log_p.se, "method": scored.log_p.method}
        torch.save({**vars(scored), "log_p": fields, "record": record}, file)
    found = torch.load(file, weights_only=True)
    record = found.pop("record")
    return Scored(**{**found, "log_p": Evidence(**found["log_p"])}), record


def run(name: str, *, seeds: list[int], path: str | None, folder: Path | None) -> dict[str, Any]:
    """Fit and score every design of a case."""
    case = CASES[name]
    data = load(**(case.data or {"name_or_path": path}))
    scored: dict[str, list[Scored]] = {}
    designs = {}
    for title, design in case.designs.items():
        runs = []
        for seed in seeds:
            one, record = kept(folder, case, title, data, seed)
            scored.setdefault(title, []).append(one)
            runs.append(record)
            print(f"{title}, seed {seed}: log p(x) {record['log_p']:.3f} {record['seconds']}", file=sys.stderr)
        log_p = summary(scored[title])
        designs[title] = {
            "parts": Parts(**{**case.base, **design}).to_config(),
            "log_p": log_p,
            "difference_from_first": summary(scored[title], scored[next(iter(scored))]),
            "runs": runs,
        }
        if scored[title][0].base_measure == "counting":
            designs[title]["bits_per_dimension"] = -log_p["mean"] / (data.num_values * math.log(2))
    return {
        "case": name,
        "seeds": seeds,
        "data": {"name": Path(data.name).name, "fingerprint": data.fingerprint, "num_scored": case.num_data},
        "training": case.training.describe(),
        "num_latents": case.num_latents,
        "num_draws": case.num_draws,
        "designs": designs,
        **provenance(),
    }


def main() -> None:
    """Run one case and print its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", help="path of the data file of a case that names none")
    parser.add_argument("--out", type=Path, help="also write the record to this file")
    parser.add_argument("--keep", type=Path, help="keep scores in this folder; those found there are not made again")
    arguments = parser.parse_args()
    if not CASES[arguments.case].data and not arguments.data:
        parser.error(f"{arguments.case}: --data: expected the path of its data file; got none.")
    write(run(arguments.case, seeds=arguments.seeds, path=arguments.data, folder=arguments.keep), arguments.out)


if __name__ == "__main__":
    main()
