"""What amortization cost: the decomposition of log p(x) - L[q], per datapoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from inference.batches import Data, fetch, require_fixed
from inference.chunked import over_chunks
from inference.counts import require_kind
from inference.densities import guide_distribution
from inference.evidence import Annealing, ais, iwae, proposal_family, proposal_rows
from inference.families import Family, FullCovariance, LowRank, family_of
from inference.given import Given, known_for_one, over_draws
from inference.guides import Local
from inference.isolation import device_of, frozen
from inference.noise import derive_seed, like, resolve_seed, seeded
from inference.results import Bidirectional, Evidence, Gaps, summarise
from inference.resuming import Journal, Resume
from inference.scoring import (
    first_distribution,
    guide_of,
    guide_rows,
    pair_means,
    require_draws,
    require_sound,
    require_tol,
    score,
    score_distribution,
)
from inference.search import Search, best_rows
from inference.weights import mean_and_se

__all__ = ["by_one_estimator", "measure_gaps"]


def measure_gaps(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    family: Family | None = None,
    site: str | None = None,
    families: Sequence[Family] = (),
    log_evidence: Evidence | Float[Tensor, " N"] | None = None,
    tol: float = 0.01,
    num_draws: int = 1000,
    num_evidence_draws: int = 5000,
    annealing: Annealing | None = Annealing(num_temperatures=50),  # noqa: B008 (frozen)
    bounds: Bidirectional | None = None,
    search: Search = Search(),  # noqa: B008 (frozen)
    given: Given | None = None,
    resume: Resume | None = None,
    seed: int | None = None,
) -> Gaps:
    r"""Split log p(x) - L[q] into what the family cost and what the encoder cost, per datapoint.

    .. math::
        \underbrace{\log p(x) - L[q]}_{\text{inference gap}} = \underbrace{\log p(x) - L[q^*]}_{\text{approximation
        gap}} + \underbrace{L[q^*] - L[q]}_{\text{amortization gap}}

    q* is the best of the guide's own row, a search from it and a cold search, chosen on draws of their own. L[q] and
    L[q*] are scored by one estimator on the same fresh draws. Unless it is given, log p(x) comes from `iwae` with a
    defensive proposal and from `ais`, both started at the richest q* found and each on draws of its own. Both are lower
    bounds in expectation: the one with the larger mean is taken, chosen on one half of their draws and scored on the
    other; that is `ais` where its mean is larger by more than two Monte Carlo errors, else `iwae`, whose errors are
    smaller. Model and guide run in eval mode; their parameters and buffers have the same bits after.

    Args:
        model: Pyro model.
        guide: Pyro guide: `Amortized`, or written by hand (then its family is read off its latent site).
        data: (N, P) datapoints, each with a fixed x.
        family: variational family that contains the guide's distributions; read off the guide by default.
        site: name of the latent site; read off the guide by default.
        families: further families to find q* in.
        log_evidence: known evidence: a record, or exact values (N,) in nats.
        tol: a search has converged when its estimated remaining gain is below this, nats.
        num_draws: draws, in antithetic pairs, that score L[q] and L[q*].
        num_evidence_draws: draws of `iwae` behind log p(x).
        annealing: how `ais` runs; None leaves it out.
        bounds: what `bdmc` found for this model with this `annealing`: how far AIS can be off on simulated data. It is
            kept, and a warning where the gap is not large beside it.
        search: how the searches run.
        given: draws (M, *shape) of each latent site outside the data plate: every term is conditional on w and averaged
            over its draws. The mean of log p(x | w) is not log p(x).
        resume: where each chunk's results are kept, so that the same call goes on after it was killed.
        seed: of all draws.

    Returns:
        Every term with its Monte Carlo error; printing it shows a table.

    Raises:
        ValueError: the program breaks the contract, the family does not contain the guide's distributions, or `data`
            draws x anew at each access.

    References:
        Cremer, Li & Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.

    Example:
        >>> from inference import Amortized, MeanField
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> gaps = measure_gaps(exact.model, guide, torch.ones(3, 2), seed=0)
        >>> gaps.summary()["num_data"]
        3
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="measure_gaps")
    require_tol(tol)
    require_draws(num_draws, least=4)
    require_draws(num_evidence_draws, least=50, name="num_evidence_draws")
    require_kind("search", search, Search)
    if annealing is not None:
        require_kind("annealing", annealing, Annealing)
    if bounds is not None:
        require_kind("bounds", bounds, Bidirectional)
    if family is not None:
        several = isinstance(family, Sequence) and not isinstance(family, str)
        require_kind("family", family, Family, hint="Did you mean families=?" if several else "Pass MeanField(D), say.")
    if not isinstance(families, Sequence) or isinstance(families, str):
        raise TypeError(f"families: expected a list of families; got {families!r}. Write families=[FullCovariance(D)].")
    for further in families:
        require_kind("families", further, Family)
    if given is not None:
        options: dict[str, Any] = {"family": family, "site": site, "families": families, "tol": tol, "search": search}
        options |= {"num_draws": num_draws, "num_evidence_draws": num_evidence_draws, "annealing": annealing}
        options["bounds"] = bounds
        options["log_evidence"] = known_for_one(log_evidence, given)
        return over_draws(
            lambda p, q, seed: measure_gaps(p, q, data, seed=seed, **options), given, data, model, guide, seed=seed
        )
    evidence = _known_evidence(log_evidence, num_data)
    estimates: dict[str, Evidence] = {}
    for further in families:
        if not further.is_fitted:
            raise ValueError(
                f"families: expected families whose shared weights are fitted; {further!r} has {further.num_shared} "
                "that are as they were made, so its best member says nothing. Train it as a guide's family, or take "
                "shared=False: all its weights are then a datapoint's own."
            )
    clock = _Clock()
    device = device_of(model, guide)
    settings: dict[str, Any] = {
        "tol": tol,
        "num_draws": num_draws,
        "num_evidence_draws": num_evidence_draws,
        "annealing": None if annealing is None else annealing.describe(),
        "search": asdict(search),
        "seed": seed,
    }
    searching: dict[str, Any] = {"tol": tol, "search": search, "seed": seed}
    scoring: dict[str, Any] = {"num_draws": num_draws, "seed": seed}
    with frozen(model, guide), seeded(seed):
        name, first = first_distribution(model, guide, data, site=site, device=device)
        settings = {"site": name, **settings}
        own = _own_family(guide, first, family).to(device)
        widest, rich = _widest(own, families, fetch(data, torch.tensor([0]), device=device))

        def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
            here = guide_of(guide, index, num_data=num_data)
            with torch.no_grad():
                _, q = guide_distribution(here, x, site=name)
            require_sound(model, guide, q, x, site=name)
            start = guide_rows(here, own, x, site=name, seed=seed)
            objective = search.objective(model, own, name, num_data=num_data)
            with clock("search"):
                found = best_rows(objective, x, index, start, **searching)
            with clock("score"):
                amortized = pair_means(score_distribution(model, x, index, q, site=name, **scoring))
                local = pair_means(score(objective, x, index, found.params, **scoring))
            part = {"converged": found.remaining < tol, "start_gap": found.start_gap}
            part |= _value_and_se("elbo_local", local) | _value_and_se("elbo_amortized", amortized)
            part |= _value_and_se("amortization_gap", local - amortized)
            richest: Distribution = own(found.params)
            for number, further in enumerate(families):
                with clock("further families"):
                    wider, best, remaining = _further(
                        model, further.to(x.device), own(found.params), x, index, name, searching, scoring
                    )
                part |= _value_and_se(f"family_{number}", wider) | {f"converged_{number}": remaining < tol}
                if number == widest:
                    richest = best
            if evidence is None:
                with clock("evidence"):
                    part["proposal"] = proposal_rows(
                        model, x, index, richest, rich, site=name, search=search, seed=seed
                    )
            return part

        kept = {"family": repr(own), "families": [repr(further) for further in families], **settings}
        columns = over_chunks(
            work,
            model,
            data,
            search.num_particles,
            "gaps",
            device=device,
            journal=Journal.of(resume, model, guide, *families, known=evidence is not None, **kept),
        )
        if evidence is None:
            proposal = Local(rich, columns.pop("proposal").to(device), name)
            own_seed = derive_seed(seed, "evidence")
            parts = {part: resume and resume.part(part) for part in ("iwae", "ais")}
            with clock("evidence"):
                estimates["IWAE"] = iwae(
                    model, proposal, data, num_draws=num_evidence_draws, resume=parts["iwae"], seed=own_seed
                )
            if annealing is not None:
                with clock("annealing"):
                    estimates["AIS"] = ais(
                        model, data, start=proposal, annealing=annealing, resume=parts["ais"], seed=own_seed
                    )
            evidence = _larger(estimates)
    settings["num_unconverged_by_family"] = [
        int((~columns[f"converged_{number}"]).sum()) for number in range(len(families))
    ]
    gaps = _assemble(columns, evidence, own, families, clock.seconds, settings)
    width = None if bounds is None else bounds.summary()["width"]
    return replace(gaps, estimates=estimates, width=None if width is None else (width["mean"], width["se"]))


class _Clock:
    """Seconds spent on each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def _further(
    model: Callable[..., Any],
    family: Family,
    start: Distribution,
    x: Tensor,
    index: Tensor,
    site: str,
    searching: Mapping[str, Any],
    scoring: Mapping[str, Any],
) -> tuple[Tensor, Distribution, Tensor]:
    """q* in a further family, searched from the own family's q* and from the standard normal.

    Returns:
        Its scores (S / 2, B), itself, and what remains to be gained (B,).
    """
    objective = searching["search"].objective(model, family, site, num_data=len(x))
    with torch.no_grad():
        rows = family.params_from(start)
    found = best_rows(objective, x, index, rows, **searching)
    return pair_means(score(objective, x, index, found.params, **scoring)), family(found.params), found.remaining


def _widest(own: Family, families: Sequence[Family], x: Float[Tensor, "1 P"]) -> tuple[int | None, Family]:
    """Which of the further families, or None: the own one, a proposal is started from; and the family it is made in."""

    def member(family: Family) -> Distribution:
        return family.to(x.device)(family.initial_params(1, like=like(x)))

    widest, richest = None, member(own)
    for number, further in enumerate(families):
        # Dense where there is one, else the widest normal there is.
        if isinstance(further, FullCovariance | LowRank) and not isinstance(richest, MultivariateNormal):
            widest, richest = number, member(further)
    return widest, proposal_family(richest).to(x.device)


def _value_and_se(name: str, draws: Tensor) -> dict[str, Tensor]:
    value, se = mean_and_se(draws)
    return {name: value, f"{name}_se": se}


def _own_family(guide: Callable[..., Any], q: Distribution, family: Family | None) -> Family:
    if family is not None:
        return family
    own = getattr(guide, "family", None)
    return own if isinstance(own, Family) else family_of(q)


def _known_evidence(log_evidence: Evidence | Tensor | None, num_data: int) -> Evidence | None:
    if log_evidence is None:
        return None
    if not isinstance(log_evidence, Evidence):
        if not isinstance(log_evidence, Tensor | np.ndarray | Sequence) or isinstance(log_evidence, str):
            raise TypeError(
                f"log_evidence: expected exact values, a tensor ({num_data},), or a record such as iwae returns; got "
                f"{log_evidence!r}."
            )
        value = torch.as_tensor(log_evidence).detach().double().cpu()
        _require_one_each(value, num_data)
        log_evidence = Evidence(value=value, se=torch.zeros_like(value), method="given, taken as exact")
    _require_one_each(log_evidence.value, num_data)
    if not bool(log_evidence.value.isfinite().all()):
        raise ValueError(
            "log_evidence: expected finite values; got NaN or infinity. Leave it out to have it estimated."
        )
    return log_evidence


def _require_one_each(log_evidence: Tensor, num_data: int) -> None:
    if log_evidence.shape != (num_data,):
        raise ValueError(
            f"log_evidence: expected one value a datapoint, shape ({num_data},); got {tuple(log_evidence.shape)}. Pass "
            "those of the data measured."
        )


def by_one_estimator(*measured: Gaps) -> list[Evidence]:
    """Log p(x) of several models by the same estimator, so that their difference is one of models alone.

    Of the estimators that all records keep, with halves of their draws, it is the one with the larger mean over all of
    them, chosen on one half and scored on the other; where they keep none in common, it is what each reports.

    Args:
        measured: the gaps of each model, on the same datapoints.

    Raises:
        TypeError: one is no record of gaps.
        ValueError: there is none.
    """
    for gaps in measured:
        require_kind("measured", gaps, Gaps, hint="Pass the gaps one by one: by_one_estimator(a, b).")
    if not measured:
        raise ValueError("measured: expected the gaps of at least one model; got none.")
    names = [
        name
        for name in measured[0].estimates
        if all(name in gaps.estimates and gaps.estimates[name].halves is not None for gaps in measured)
    ]
    if not names:
        return [
            Evidence(value=gaps.log_evidence, se=gaps.log_evidence_se, method=gaps.evidence_method) for gaps in measured
        ]
    best = _best({name: [gaps.estimates[name] for gaps in measured] for name in names})
    return [_scored(best, gaps.estimates, names) for gaps in measured]


def _larger(estimates: Mapping[str, Evidence]) -> Evidence:
    """The lower bound with the larger mean, chosen on the first halves of their draws, with its value on the second."""
    best = _best({name: [estimate] for name, estimate in estimates.items()})
    return _scored(best, estimates, list(estimates))


def _best(estimates: Mapping[str, Sequence[Evidence]]) -> str:
    """The first estimator, unless another one's mean is larger by two Monte Carlo errors; on the first halves."""
    halves = {
        name: [torch.cat([getattr(part, column)[0] for part in parts]) for column in ("halves", "halves_se")]
        for name, parts in estimates.items()
    }
    best, *others = halves
    for other in others:
        lead = summarise(halves[other][0] - halves[best][0], halves[other][1].hypot(halves[best][1]))
        if lead["mean"] > 2 * lead["mc_se"]:
            best = other
    return best


def _scored(best: str, estimates: Mapping[str, Evidence], among: Sequence[str]) -> Evidence:
    """Its value on the second half of its draws; on all of them where there was nothing to choose."""
    estimate = estimates[best]
    if len(among) == 1 or estimate.halves is None or estimate.halves_se is None:
        return estimate
    others = " and ".join(name for name in among if name != best)
    method = f"{estimate.method}; chosen over {others} on half of its draws, scored on the other half"
    return replace(estimate, value=estimate.halves[1], se=estimate.halves_se[1], method=method)


def _assemble(
    columns: Mapping[str, Tensor],
    evidence: Evidence,
    family: Family,
    families: Sequence[Family],
    seconds: dict[str, float],
    settings: dict[str, Any],
) -> Gaps:
    log_p, log_p_se = evidence.value.double(), evidence.se.double()
    local, amortized = columns["elbo_local"], columns["elbo_amortized"]
    by_family = range(len(families))
    return Gaps(
        log_evidence=log_p,
        log_evidence_se=log_p_se,
        elbo_local=local,
        elbo_local_se=columns["elbo_local_se"],
        elbo_amortized=amortized,
        elbo_amortized_se=columns["elbo_amortized_se"],
        # Evidence has draws of its own, so the errors are independent; those of the two ELBOs are not.
        approximation_gap=log_p - local,
        approximation_gap_se=log_p_se.hypot(columns["elbo_local_se"]),
        amortization_gap=columns["amortization_gap"],
        amortization_gap_se=columns["amortization_gap_se"],
        inference_gap=log_p - amortized,
        inference_gap_se=log_p_se.hypot(columns["elbo_amortized_se"]),
        converged=columns["converged"],
        start_gap=columns["start_gap"],
        pareto_k=evidence.pareto_k,
        ess=evidence.ess,
        family=repr(family),
        evidence_method=evidence.method,
        is_lower_bound=evidence.bound == "lower",
        families=tuple(repr(further) for further in families),
        elbo_local_by_family=torch.stack([columns[f"family_{f}"] for f in by_family]) if families else None,
        elbo_local_by_family_se=torch.stack([columns[f"family_{f}_se"] for f in by_family]) if families else None,
        seconds=seconds,
        settings=settings,
    )
