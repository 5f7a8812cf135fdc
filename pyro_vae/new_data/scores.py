"""Estimates of log p(x) for each new row."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from inference import Amortized, Annealing, Local, Resume, ais, elbo, iwae, measure_gaps
from inference.noise import resolve_seed
from pyro_vae.data.preprocessing import NewRows
from pyro_vae.new_data.proposals import proposal, searched
from pyro_vae.new_data.records import Scores
from pyro_vae.vae import VAE

__all__ = ["Estimator", "score"]

Estimator = Literal["iwae", "ais"]


def score(
    vae: VAE,
    rows: NewRows,
    *,
    gaps: bool = False,
    estimator: Estimator = "iwae",
    num_draws: int = 5000,
    num_temperatures: int = 100,
    resume: Resume | None = None,
    seed: int = 0,
) -> Scores:
    """Estimate log p(x) of each row, with its error and with what says how far to trust it.

    Args:
        vae: the fitted model.
        rows: as `Preprocessing.read` returns them.
        gaps: whether log p(x) - L[q] is split into what the encoder and the family cost.
        estimator: "iwae", importance sampling from a proposal near the posterior; "ais", annealed importance sampling
            from the same proposal. With `gaps` both are run, and the one with the larger mean is taken.
        num_draws: draws behind the estimate.
        num_temperatures: temperatures of annealing.
        resume: where each chunk's results are kept, so that the same call goes on after it was killed.
        seed: of all draws. A row's numbers depend on the seed, its values and its number alone, but for rounding;
            in another order they differ by their Monte Carlo error.

    Raises:
        ValueError: `gaps` were asked of a model without an encoder, or a number is out of range.

    Example:
        >>> from inference import MeanField
        >>> from pyro_vae.data import Preprocessing
        >>> from pyro_vae.likelihoods import GaussianSharedScale
        >>> from pyro_vae.networks import Linear
        >>> from pyro_vae.priors import StandardNormal
        >>> vae = VAE(
        ...     prior=StandardNormal(2),
        ...     likelihood=GaussianSharedScale(mask=True),
        ...     decoder=Linear(2, 5),
        ...     family=MeanField(2),
        ...     encoder=Linear(5, 4),
        ... )
        >>> dtype = next(vae.parameters()).dtype
        >>> rows = Preprocessing(num_values=5).read(torch.ones(3, 5), dtype=dtype)
        >>> score(vae, rows, num_draws=100).log_evidence.shape
        torch.Size([3])
    """
    seed = resolve_seed(seed)
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator: expected one of {', '.join(get_args(Estimator))}; got {estimator!r}.")
    x, guide = rows.x, vae.guide
    common: dict[str, Any] = {"where": rows.where, "id_name": rows.id_name, "ids": rows.ids, "remarks": rows.notes}
    common["precision"] = torch.finfo(x.dtype).eps
    settings: dict[str, Any] = {"num_draws": num_draws, "seed": seed}
    own: Amortized | Local
    start: Amortized | Local
    if gaps:
        if guide is None:
            raise ValueError(
                "gaps: expected a run with an encoder; a run of EM has none until one is fitted to it, which pyro-vae "
                "gaps RUN does. Leave them out, or fit one."
            )
        found = measure_gaps(
            vae.model,
            guide,
            x,
            num_evidence_draws=num_draws,
            annealing=Annealing(num_temperatures=num_temperatures),
            resume=resume,
            seed=seed,
        )
        return Scores(
            log_evidence=found.log_evidence,
            log_evidence_se=found.log_evidence_se,
            elbo=found.elbo_amortized,
            elbo_se=found.elbo_amortized_se,
            ess=found.ess,
            pareto_k=found.pareto_k,
            gaps=found,
            method=f"log p(x): {found.evidence_method}; L[q] of the encoder, in {found.family}",
            settings={**settings, "num_temperatures": num_temperatures},
            **common,
        )
    if guide is None:
        own, _ = searched(vae, x, seed=seed)
        of = f"the best q found for each row, in {own.family!r}: the run has no encoder"
        start = proposal(vae, x, seed=seed)
    else:
        own, of, start = guide, f"the encoder, in {guide.family!r}", guide
    bound = elbo(vae.model, own, x, seed=seed)
    if estimator == "iwae":
        evidence = iwae(vae.model, start, x, num_draws=num_draws, resume=resume, seed=seed)
    else:
        annealing = Annealing(num_temperatures=num_temperatures)
        start = start if guide is None else proposal(vae, x, seed=seed)
        evidence = ais(vae.model, x, start=start, annealing=annealing, resume=resume, seed=seed)
        settings = {"num_temperatures": num_temperatures, "seed": seed}
    return Scores(
        log_evidence=evidence.value.double(),
        log_evidence_se=evidence.se.double(),
        elbo=bound.value.double(),
        elbo_se=bound.se.double(),
        ess=evidence.ess,
        pareto_k=evidence.pareto_k,
        method=f"log p(x): {evidence.method}; L[q] of {of}",
        settings={"estimator": estimator, **settings},
        **common,
    )
