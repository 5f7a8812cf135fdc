"""What amortization costs on real data, and how long it takes to find out.

`python benchmarks/gaps.py mnist --out gaps.json` writes one JSON record: the case, the terms with their errors, seconds
of each part, seed, versions and hardware. `reference/` holds records of earlier runs, to compare with; they are
measurements of one machine, not targets.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from records import provenance, write

from inference import Adam, MeanField, Training, fit_svi, measure_gaps
from pyro_vae import MLP, VAE, load
from pyro_vae.likelihoods import Bernoulli, Binomial, Likelihood
from pyro_vae.priors import StandardNormal

CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "data": {"name_or_path": "digits"},
        "likelihood": lambda: Binomial(16),
        "num_latents": 8,
        "hidden": (128, 128),
        "training": {"epochs": 150, "batch_size": 100, "optimizer": Adam(lr=2e-3)},
        "num_data": 400,
    },
    "mnist": {
        "data": {"name_or_path": "mnist", "binarize": "fixed"},
        "likelihood": Bernoulli,
        "num_latents": 50,
        "hidden": (200, 200),
        "training": {"epochs": 20, "batch_size": 128},
        "num_data": 1000,
    },
}


def run(name: str, *, seed: int) -> dict[str, Any]:
    """Fit one case by SVI and measure its gaps on the first test datapoints."""
    case = CASES[name]
    data = load(**case["data"])
    torch.manual_seed(seed)
    family = MeanField(case["num_latents"])
    likelihood: Likelihood = case["likelihood"]()
    vae = VAE(
        prior=StandardNormal(case["num_latents"]),
        likelihood=likelihood,
        decoder=MLP(case["num_latents"], *case["hidden"], data.num_values * likelihood.num_params),
        family=family,
        encoder=MLP(data.num_values, *case["hidden"], family.num_params),
    )
    training = Training(**case["training"])
    fit = fit_svi(vae.model, vae.guide, data.train, training=training, validation=data.validation, seed=seed)
    test = data.test.head(case["num_data"])
    began = time.perf_counter()
    gaps = measure_gaps(vae.model, vae.guide, test, seed=seed)
    measured = time.perf_counter() - began
    z = gaps.amortization_gap / gaps.amortization_gap_se.clamp_min(1e-12)
    return {
        "case": name,
        "seed": seed,
        "model": repr(vae).splitlines(),
        "training": training.describe(),
        "fingerprint": data.fingerprint,
        "elbo": {"train": fit.elbo[-1].item(), "validation": fit.elbo_validation[-1].item()},  # type: ignore[index]
        "gaps": gaps.summary(),
        "smallest_amortization_gap": {"nats": gaps.amortization_gap.min().item(), "in_its_se": z.min().item()},
        "pareto_k_above": {str(k): int((gaps.pareto_k > k).sum()) for k in (0.5, 0.7)},  # type: ignore[operator]
        "start_gap_above_0.1": int((gaps.start_gap > 0.1).sum()),
        "seconds": {"fit": fit.seconds, "gaps": measured, **gaps.seconds},
        "num_steps": fit.num_steps,
        **provenance(),
    }


def main() -> None:
    """Run one case and print its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the record to this file")
    arguments = parser.parse_args()
    write(run(arguments.case, seed=arguments.seed), arguments.out)


if __name__ == "__main__":
    main()
