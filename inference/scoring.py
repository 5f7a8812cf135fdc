"""Measuring at datapoints: checks before a number is believed, log weights on common draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from inference.batches import Data, chunks, fetch
from inference.counts import is_number
from inference.densities import (
    densities,
    guide_distribution,
    latent_prior,
    observed_log_prob,
    require_observed,
)
from inference.devices import send
from inference.families import Family, from_noise, noise_size
from inference.guides import Local
from inference.independence import require_rowwise
from inference.isolation import eval_mode, running
from inference.memory import VALUES_AT_ONCE, draws_for
from inference.noise import BLOCK, derive_seed, like, measured, normal_noise, own_random_state, seeded
from inference.objectives import LocalLoss
from inference.progress import progress_bar
from inference.supports import describe, same_support


def chunk_size(data: Data, num_particles: int) -> int:
    """How many datapoints, in whole blocks, are small enough for `num_particles` of each at once."""
    num_values = fetch(data, torch.tensor([0])).shape[1]
    return BLOCK * max(1, VALUES_AT_ONCE // (num_particles * num_values * BLOCK))


def read_chunks(
    model: Callable[..., Any], data: Data, num_data: int, num_particles: int, label: str, *, device: torch.device
) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B P"]]]:
    """Chunks of consecutive datapoints, as (index, x), small enough for `num_particles` of them at once.

    A progress bar under `label` counts the datapoints that are done, where there is more than one chunk.

    Raises:
        ValueError: a datapoint holds infinity, or NaN that the model does not take for an unobserved value.
    """
    size = chunk_size(data, num_particles)
    # One chunk is no news until it is done.
    with progress_bar(num_data, label, "datapoint") if num_data > size else nullcontext() as bar:
        for start, stop in chunks(num_data, size):
            index = torch.arange(start, stop)
            x = fetch(data, index, device=device)
            require_readable(model, x, index)
            yield index, x
            if bar is not None:
                bar.update(stop - start)


def require_readable(
    model: Callable[..., Any], x: Float[Tensor, "B P"], index: Int[Tensor, " B"], *, name: str = "data"
) -> None:
    """Refuse datapoints that hold infinity, or NaN where the model does not take NaN for an unobserved value.

    Raises:
        ValueError: the message names the first such datapoint.
    """
    incomplete = x.isnan().any(-1)
    if bool(incomplete.any()) and not bool(x.isinf().any()):
        with eval_mode(model), own_random_state(), torch.no_grad(), pyro.validation_enabled(is_validate=False):
            log_p = observed_log_prob(model, x[incomplete]).cpu()
        if bool(log_p.isfinite().all()):
            return
        if not bool(log_p.isnan().any()):
            worst = int(index[incomplete.cpu()][~log_p.isfinite()][0])
            raise ValueError(
                f"{name}: expected values that the model's density can hold; that of datapoint {worst} is 0 at the "
                "values that were observed. Look for values far from those of the fit, or outside the model's support."
            )
    require_finite(x, index, name=name)


def require_finite(x: Float[Tensor, "B P"], index: Int[Tensor, " B"], *, name: str = "data") -> None:
    """Refuse datapoints that hold NaN or infinity.

    Raises:
        ValueError: the message names the first such datapoint.
    """
    finite = x.isfinite().all(-1).cpu()
    if bool(finite.all()):
        return
    worst = int(index[~finite][0])
    raise ValueError(
        f"{name}: expected finite numbers; datapoint {worst} holds NaN or infinity. Drop or fill it; or, where NaN "
        "means unobserved, choose a likelihood that leaves such values out (mask=True)."
    )


def guide_of(guide: Callable[..., Any], index: Int[Tensor, " B"], *, num_data: int) -> Callable[..., Any]:
    """The guide of these datapoints: itself, or the rows of a `Local` one.

    Raises:
        ValueError: a `Local` guide has not one row a datapoint.
    """
    if not isinstance(guide, Local):
        return guide
    if len(guide.table) != num_data:
        raise ValueError(
            f"guide: expected one row a datapoint, {num_data}; got {len(guide.table)} rows. Pass the data they belong "
            "to."
        )
    return guide.rows(send(index, guide.table.device))


def same_family(own: object, family: Family) -> bool:
    """Whether rows of the one are rows of the other, with the same meaning."""
    # Weights that were frozen are buffers: no weights at all means that nothing is remembered of them either.
    return own is family or (isinstance(own, Family) and repr(own) == repr(family) and not own.has_weights)


@torch.no_grad()
def guide_rows(
    guide: Callable[..., Any], family: Family, x: Tensor, *, site: str | None, seed: int
) -> Float[Tensor, "B K"]:
    """The guide's rows of `family`'s parameters: its own where it has that family, else those of its distribution.

    Raises:
        ValueError: the family does not contain the guide's distribution.
    """
    if same_family(getattr(guide, "family", None), family) and hasattr(guide, "params"):
        return guide.params(x)
    _, q = guide_distribution(guide, x, site=site)
    rows = family.params_from(q)
    if family.has_log_prob:
        with seeded(derive_seed(seed, "contained")):
            z = q.sample((4,))
        theirs, ours = q.log_prob(z), family(rows).log_prob(z)
    else:
        noise = normal_noise(seed, "contained", torch.arange(len(x)), (4, family.num_noise), like=like(x))
        (z, theirs), (_, ours) = from_noise(q, noise), from_noise(family(rows), noise)
    tolerance = 1e-6 if z.dtype == torch.float64 else 1e-2
    if not torch.allclose(theirs, ours, rtol=tolerance, atol=tolerance):
        worst = float((theirs - ours).abs().max())
        raise ValueError(
            f"family: {family!r} does not contain the guide's distribution: log q(z) differs by up to {worst:.3g} "
            "nats at "
            "the guide's own draws. Pass family= a family that contains it."
        )
    return rows


def score(
    objective: LocalLoss,
    x: Float[Tensor, "B P"],
    index: Int[Tensor, " B"],
    rows: Float[Tensor, "B K"],
    *,
    num_draws: int,
    seed: int,
    stage: str = "score",
) -> Float[Tensor, "S B"]:
    """Log weights at these rows on `num_draws` draws in antithetic pairs."""
    noise = scoring_noise(x, index, objective.family, num_draws, seed=seed, stage=stage)
    with pyro.validation_enabled(is_validate=False):
        return torch.cat([objective.log_weights(x, rows, part) for part in noise])


def score_bound(
    objective: LocalLoss,
    x: Float[Tensor, "B P"],
    index: Int[Tensor, " B"],
    rows: Float[Tensor, "B K"],
    *,
    num_values: int,
    seed: int,
    stage: str,
) -> Float[Tensor, "S B"]:
    """Values at these rows of the bound that is searched, in antithetic pairs: log weights where it is the ELBO."""
    noise = bound_noise(objective, x, index, num_values, seed=seed, stage=stage)
    with pyro.validation_enabled(is_validate=False):
        return torch.cat([objective.bounds(x, rows, part) for part in noise])


def bound_noise(
    objective: LocalLoss, x: Tensor, index: Tensor, num_values: int, *, seed: int, stage: str, step: int = 0
) -> Iterator[Float[Tensor, "S B R"]]:
    """The noise of `scoring_noise` for so many values of the objective's bound, each part a whole number of them."""
    size = objective.loss.num_particles
    return scoring_noise(x, index, objective.family, num_values * size, seed=seed, stage=stage, step=step, whole=size)


@torch.no_grad()
def score_distribution(
    model: Callable[..., Any],
    x: Float[Tensor, "B P"],
    index: Int[Tensor, " B"],
    q: Distribution,
    *,
    site: str,
    num_draws: int,
    seed: int,
) -> Float[Tensor, "S B"]:
    """Log weights of draws of `q` on the noise that `score` uses, so that they pair with those of any row."""
    parts = []
    with pyro.validation_enabled(is_validate=False):
        for noise in scoring_noise(x, index, q, num_draws, seed=seed, stage="score"):
            z, log_q = from_noise(q, noise)
            for few_z, few_q in zip(z.split(draws_for(x)), log_q.split(draws_for(x)), strict=True):
                parts.append(densities(model, x, few_z, site=site).log_joint - few_q)
    return torch.cat(parts)


def scoring_noise(
    x: Tensor,
    index: Tensor,
    drawn: Family | Distribution,
    num_draws: int,
    *,
    seed: int,
    stage: str,
    step: int = 0,
    whole: int = 1,
) -> Iterator[Float[Tensor, "S B R"]]:
    """Noise in which draw s + 1 mirrors draw s for even s, in parts small enough for memory.

    The parts' size is fixed, a multiple of `whole` pairs, so that the numbers do not depend on the chunk. What needs
    more numbers than D gets the rest from elsewhere: its first D are those of every other family.
    """
    if isinstance(drawn, Family):
        size, extra = drawn.num_latents, drawn.num_noise - drawn.num_latents
    else:
        size, extra = drawn.event_shape[0], noise_size(drawn) - drawn.event_shape[0]
    part = whole * max(1, 16 // whole)  # pairs
    for first in range(0, num_draws // 2, part):
        pairs = min(part, num_draws // 2 - first)
        noise = normal_noise(seed, f"{stage}/{first}", index, (pairs, size), step=step, like=like(x))
        if extra:
            more = normal_noise(seed, f"{stage}/{first}/extra", index, (pairs, extra), step=step, like=like(x))
            noise = torch.cat([noise, more], dim=-1)
        yield torch.stack([noise, -noise], dim=1).flatten(0, 1)


def pair_means(draws: Float[Tensor, "S B"]) -> Float[Tensor, "S/2 B"]:
    """Means of antithetic pairs: these are independent, their members are not."""
    return draws.unflatten(0, (-1, 2)).double().mean(1)


def prior_draws(
    model: Callable[..., Any],
    x: Float[Tensor, "B P"],
    index: Int[Tensor, " B"],
    num_draws: int,
    *,
    site: str,
    seed: int,
    stage: str,
) -> Float[Tensor, "S B D"]:
    """Draws of z from the prior that belong to datapoints: a full block is always drawn.

    Args:
        model: Pyro model.
        x: (B, P) consecutive datapoints, the first of which begins a block.
        index: (B,) their indices.
        num_draws: S.
        site: name of the latent site.
        seed: of the run.
        stage: what the draws are for; two stages share nothing.
    """
    parts = []
    for rows in torch.arange(len(x)).split(BLOCK):
        here = x[rows]
        padded = torch.cat([here, here[-1:].expand(BLOCK - len(here), -1)])
        with measured(derive_seed(seed, stage, int(index[rows[0]]) // BLOCK)), torch.no_grad():
            parts.append(latent_prior(model, padded, site=site).sample((num_draws,))[:, : len(here)])
    return torch.cat(parts, dim=1)


@torch.no_grad()
def first_distribution(
    model: Callable[..., Any], guide: Callable[..., Any], data: Data, *, site: str | None, device: torch.device
) -> tuple[str, Distribution]:
    """The guide's site, and its distributions at the first few datapoints: of what kind they are."""
    index = torch.arange(min(len(data), 4))
    x = fetch(data, index, device=device)
    require_readable(model, x, index)
    return guide_distribution(guide_of(guide, index, num_data=len(data)), x, site=site)


@torch.no_grad()
def require_contract(objective: LocalLoss, x: Tensor, index: Tensor, *, seed: int) -> None:
    """Run the model once on all of `x`, under validation, and refuse what would make a measurement wrong."""
    family = objective.family
    _require_fit(objective.model, x, family.num_latents, family.support, what=repr(family), site=objective.site)
    noise = normal_noise(seed, "contract", index, (3, family.num_noise), like=like(x))
    z, _ = from_noise(family(family.initial_params(len(x), like=like(x))), noise)
    densities(objective.model, x, z[:1], site=objective.site)
    require_rowwise(objective.model, x, z, site=objective.site)


@torch.no_grad()
def require_sound(
    model: Callable[..., Any], guide: Callable[..., Any], q: Distribution, x: Tensor, *, site: str
) -> None:
    """Run the model once on all of `x`, under validation; refuse a pair in which a row depends on those beside it."""
    _require_fit(model, x, q.event_shape[0], q.support, what="the guide's distribution", site=site)
    with running(guide, x):
        z = q.sample()
    if not bool(z.isfinite().all()):
        worst = int((~z.isfinite().all(-1)).nonzero()[0])
        raise ValueError(
            f"site '{site}': expected the guide to draw finite numbers; got NaN or infinity for datapoint {worst} of "
            "this batch. Look for parameters that are not finite, and for data far from those it was fitted to."
        )
    densities(model, x, z.unsqueeze(0), site=site)
    with own_random_state():
        more = q.sample((2,))
    particles = torch.cat([z.unsqueeze(0), more])
    require_rowwise(model, x, particles, site=site, guide=None if isinstance(guide, Local) else guide)


@torch.no_grad()
def require_guide(guide: Callable[..., Any], x: Tensor, *, site: str) -> None:
    """Refuse a guide in which a row depends on those beside it."""
    with own_random_state():
        require_rowwise(None, x, guide_distribution(guide, x, site=site)[1].sample((3,)), site=site, guide=guide)


def _require_fit(
    model: Callable[..., Any], x: Tensor, num_latents: int, support: Constraint | None, *, what: str, site: str
) -> None:
    prior = latent_prior(model, x[:4], site=site)
    require_observed(model, x, site=site)
    (expected,) = prior.event_shape
    if num_latents != expected:
        raise ValueError(
            f"site '{site}': expected num_latents = {expected}, as in the model; got {what} of size {num_latents}."
        )
    if not same_support(support, prior.support):
        raise ValueError(
            f"site '{site}': expected a family on {describe(prior.support)}, where the model's prior lives; got {what} "
            f"on {describe(support)}. Push the family through a bijection: Constrained(family, prior.support)."
        )


def require_tol(tol: float) -> None:
    """Refuse a tolerance that no search could meet."""
    if not (is_number(tol) and tol > 0):
        raise ValueError(f"tol: expected a positive number of nats per datapoint; got {tol!r}. The default is 0.01.")


def require_draws(num_draws: int, *, least: int, name: str = "num_draws") -> None:
    """Refuse a number of draws that does not come in pairs, or is too small for an error."""
    if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < least or num_draws % 2:
        raise ValueError(
            f"{name}: expected an even number of at least {least} (draws come in pairs); got {num_draws!r}."
        )
