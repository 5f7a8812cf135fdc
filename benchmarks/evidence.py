"""How far an estimate of log p(x) can be off, on VAEs fitted to MNIST.

`python benchmarks/evidence.py quadrature` fits a VAE with two latent dimensions, where log p(x) is known by quadrature,
and compares importance sampling and annealed importance sampling with it. `python benchmarks/evidence.py bounds` fits
one with 50, and encloses log p(x) of data simulated from it between the bounds of bidirectional Monte Carlo, from the
prior and from the best q of full covariance. Each writes one JSON record; `reference/` holds records of earlier runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from records import provenance, write

from inference import Annealing, Evidence, FullCovariance, MeanField, Training, ais, bdmc, fit_svi, iwae, quadrature
from pyro_vae import MLP, VAE, load
from pyro_vae.data import Dataset
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal

# Datapoints; of quadrature fewer, as each of them has a grid of its own.
NUM_DATA = {"quadrature": 40, "bounds": 100}


def fitted(data: Dataset, num_latents: int, *, epochs: int, seed: int) -> tuple[VAE, dict[str, Any]]:
    """A 784-200-200-D VAE fitted by SVI, and how the fit went."""
    torch.manual_seed(seed)
    family = MeanField(num_latents)
    vae = VAE(
        prior=StandardNormal(num_latents),
        likelihood=Bernoulli(),
        decoder=MLP(num_latents, 200, 200, data.num_values),
        family=family,
        encoder=MLP(data.num_values, 200, 200, family.num_params),
    )
    training = Training(epochs=epochs)
    fit = fit_svi(vae.model, vae.guide, data.train, training=training, validation=data.validation, seed=seed)
    elbo = {"train": fit.elbo[-1].item(), "validation": fit.elbo_validation[-1].item()}  # type: ignore[index]
    return vae, {"model": repr(vae).splitlines(), "training": training.describe(), "elbo": elbo, "seconds": fit.seconds}


def against_quadrature(data: Dataset, *, epochs: int, seed: int) -> dict[str, Any]:
    """Each estimator's difference from quadrature, nats, on the first test images."""
    vae, fit = fitted(data, 2, epochs=epochs, seed=seed)
    x = data.test.head(NUM_DATA["quadrature"]).tensor()
    began = time.perf_counter()
    exact = quadrature(vae.model, x, tol=1e-3)
    record: dict[str, Any] = {
        "log_p": exact.value.mean().item(),
        "seconds": {"quadrature": time.perf_counter() - began},
    }
    estimates = {
        "IWAE, 5000 draws": lambda: iwae(vae.model, vae.guide, x, seed=seed),
        "AIS from the prior, 64 chains x 1000 temperatures": lambda: ais(
            vae.model, x, annealing=Annealing(num_chains=64), seed=seed
        ),
        "AIS from q*, 32 chains x 200 temperatures": lambda: ais(
            vae.model, x, start=FullCovariance(2), annealing=Annealing(num_temperatures=200, num_chains=32), seed=seed
        ),
    }
    for name, estimate in estimates.items():
        began = time.perf_counter()
        record[name] = difference(estimate(), exact)
        record["seconds"][name] = time.perf_counter() - began
    return {"fit": fit, "num_data": len(x), "difference_from_quadrature": record}


def difference(estimate: Evidence, exact: Evidence) -> dict[str, Any]:
    """How far an estimate is from the truth, over datapoints, nats."""
    error = estimate.value - exact.value
    k = estimate.pareto_k
    return {
        "mean": error.mean().item(),
        "mc_se": estimate.se.square().sum().sqrt().item() / len(error),
        "largest": error.abs().max().item(),
        "beyond_0.05": int((error.abs() > 0.05).sum()),
        "pareto_k_above_0.7": None if k is None else int((k > 0.7).sum()),
    }


def between_bounds(data: Dataset, *, epochs: int, seed: int) -> dict[str, Any]:
    """The width of the bounds on simulated data, and how like real data those are."""
    vae, fit = fitted(data, 50, epochs=epochs, seed=seed)
    record: dict[str, Any] = {}
    cases = {
        "from q* in FullCovariance(50)": (FullCovariance(50), Annealing(num_temperatures=100)),
        "from the prior": (None, Annealing(num_temperatures=1000)),
    }
    for name, (start, annealing) in cases.items():
        began = time.perf_counter()
        bounds = bdmc(vae.model, data.test, start=start, num_data=NUM_DATA["bounds"], annealing=annealing, seed=seed)
        record[name] = {
            **bounds.summary(),
            "annealing": annealing.describe(),
            "acceptance": bounds.lower.acceptance.mean().item(),  # type: ignore[union-attr]
            "effective_chains": {
                "lower": bounds.lower.ess.mean().item(),  # type: ignore[union-attr]
                "upper": bounds.upper.ess.mean().item(),  # type: ignore[union-attr]
            },
            "simulated": bounds.simulated.describe(),
            "real": bounds.real.describe(),
            "seconds": time.perf_counter() - began,
        }
    return {"fit": fit, "num_data": NUM_DATA["bounds"], "bounds": record}


CASES = {"quadrature": against_quadrature, "bounds": between_bounds}


def main() -> None:
    """Run one case and print its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--epochs", type=int, default=20, help="of the fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the record to this file")
    arguments = parser.parse_args()
    data = load("mnist", binarize="fixed")
    record = CASES[arguments.case](data, epochs=arguments.epochs, seed=arguments.seed)
    write(
        {"case": arguments.case, "seed": arguments.seed, "fingerprint": data.fingerprint, **record, **provenance()},
        arguments.out,
    )


if __name__ == "__main__":
    main()
