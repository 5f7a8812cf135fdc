"""The E-step: the best member of a family for each datapoint, at a frozen model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from inference.batches import Data, require_fixed
from inference.families import Family, from_noise
from inference.given import Given, describe_one, one_draw
from inference.isolation import device_of, frozen
from inference.noise import antithetic, like, normal_noise, resolve_seed, seeded
from inference.objectives import LocalLoss, Loss
from inference.results import Refined
from inference.rows import RowAdam
from inference.scoring import (
    bound_noise,
    guide_of,
    guide_rows,
    pair_means,
    read_chunks,
    require_contract,
    require_draws,
    require_tol,
    score,
    score_bound,
)
from inference.weights import mean_and_se

__all__ = ["Search", "refine"]

# Share of the judge's draws at each look; most rounds are decided at the first.
LOOKS = (1 / 16, 1 / 4, 1)


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the search for q* runs. Rounds double in length; what the last round gained estimates what is still to gain.

    A draw is a value of the bound that is searched: k draws of q where the loss makes one of k.

    Attributes:
        lr: step size of the first round; halved for a datapoint whenever a round gains it less than `settle`.
        settle: nats.
        num_particles: draws a step and datapoint, in antithetic pairs.
        first_round: steps of the first round.
        max_rounds: rounds at most; rows that have not converged by then are said so.
        num_judge_draws: fresh draws at most, in antithetic pairs, that decide whether a round's result is taken and
            whether it converged; where a sixteenth or a quarter of them leaves no doubt, they are all that is drawn.
        num_select_draws: fresh draws, in antithetic pairs, that choose between the candidates.
    """

    lr: float = 0.1
    settle: float = 1.0
    num_particles: int = 8
    first_round: int = 50
    max_rounds: int = 7
    num_judge_draws: int = 1024
    num_select_draws: int = 512

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"search.{name}: expected a positive number; got {value!r}.")
        for name in ("first_round", "max_rounds"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"search.{name}: expected an integer; got {getattr(self, name)!r}.")
        if self.first_round < 4:
            raise ValueError(f"search.first_round: expected at least 4 steps, to average over; got {self.first_round}.")
        for name, least in (("num_particles", 2), ("num_judge_draws", 64), ("num_select_draws", 4)):
            require_draws(getattr(self, name), name=f"search.{name}", least=least)


class Candidates(NamedTuple):
    """What a search over one chunk of datapoints found."""

    params: Float[Tensor, "B K"]
    remaining: Float[Tensor, " B"]
    start_gap: Float[Tensor, " B"]


class Average(NamedTuple):
    """The mean of a run of iterates, and the means of its first and second half."""

    mean: Float[Tensor, "B K"]
    first: Float[Tensor, "B K"]
    second: Float[Tensor, "B K"]


def refine(
    model: Callable[..., Any],
    family: Family,
    data: Data,
    *,
    site: str | None = None,
    init: Callable[..., Any] | Float[Tensor, "N K"] | None = None,
    loss: Loss | None = None,
    tol: float = 0.01,
    num_draws: int = 1000,
    search: Search = Search(),  # noqa: B008 (frozen)
    given: Given | None = None,
    seed: int | None = None,
) -> Refined:
    r"""Find the best member of a family for each datapoint, at a frozen model.

    .. math::
        \lambda_n^* = \arg\max_\lambda \; E_{q_\lambda}[\log p(x_n, z) - \log q_\lambda(z)]

    Stochastic gradient ascent on all datapoints of a chunk at once, with averaging of iterates. Rounds double in length
    until, at that datapoint and on fresh draws, two estimates of what remains are below `tol` with a standard error
    added: the last round's gain (the error of an average falls as one over its length, so a round as long as all
    before it gains about as much as it leaves), and what the average gains over its two halves. With `init` given, the
    start row untouched, the search from it (warm) and the search from the standard normal (cold) compete on fresh
    draws.

    The model runs in eval mode; its parameters and buffers, and the guide's, have the same bits after.

    Args:
        model: Pyro model.
        family: variational family.
        data: (N, P) datapoints, each with a fixed x.
        site: name of the latent site; by default that of `init`, else "z".
        init: a guide whose distributions lie in `family`, (N, K) rows of parameters, or None for a cold start alone.
        loss: minus the bound that q* is best for, and the estimator of its gradient; by default `StickingTheLanding()`,
            or `PathwiseELBO()` in a family whose densities are known at its own draws alone. It is what the search, the
            choice between its results and `remaining` go by; `elbo` is always the ELBO.
        tol: nats per datapoint.
        num_draws: draws, in antithetic pairs, that score the result; they chose nothing.
        search: how the search runs.
        given: one draw (1, *shape) of each latent site outside the data plate: the rows are best at that value.
        seed: of all draws. A datapoint's result depends on the seed and its own index alone.

    Returns:
        Rows of parameters, their ELBO, and whether each search converged.

    Raises:
        ValueError: the program breaks the contract, `init` does not fit, or `data` draws x anew at each access.

    Example:
        >>> from pyro_vae.linear import LinearGaussian
        >>> from inference.families import MeanField
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> refined = refine(exact.model, MeanField(2), torch.ones(3, 2), seed=0)
        >>> bool(refined.converged.all())
        True
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="refine")
    require_tol(tol)
    require_draws(num_draws, least=4)
    site = site or getattr(init, "site", None) or "z"
    if given is not None:
        model, init = one_draw(given, data, model, init, purpose="refine")
    guide = init if callable(init) else None
    parts, elbos = [], []
    with frozen(model, guide), seeded(seed):
        objective = LocalLoss(model, family, site, loss=loss)
        num_particles = search.num_particles * objective.loss.num_particles
        for index, x in read_chunks(model, data, num_data, num_particles, device=device_of(model, guide)):
            start = start_rows(init, family, x, index, site=site, num_data=num_data, seed=seed)
            found = best_rows(objective, x, index, start, tol=tol, search=search, seed=seed)
            draws = score(objective, x, index, found.params, num_draws=num_draws, seed=seed)
            parts.append([column.cpu() for column in found])
            elbos.append([column.cpu() for column in mean_and_se(pair_means(draws))])
    params, remaining, start_gap = (torch.cat(column) for column in zip(*parts, strict=True))
    elbo, elbo_se = (torch.cat(column) for column in zip(*elbos, strict=True))
    return Refined(
        params=params,
        elbo=elbo,
        elbo_se=elbo_se,
        remaining=remaining,
        converged=remaining < tol,
        start_gap=start_gap,
        settings={
            "family": repr(family),
            "site": site,
            "loss": repr(objective.loss),
            "tol": tol,
            "num_draws": num_draws,
            "search": asdict(search),
            "seed": seed,
            **describe_one(given),
        },
    )


def start_rows(
    init: Callable[..., Any] | Tensor | None,
    family: Family,
    x: Tensor,
    index: Tensor,
    *,
    site: str,
    num_data: int,
    seed: int,
) -> Float[Tensor, "B K"] | None:
    """The rows a warm search starts from: the guide's, those given, or None."""
    if init is None:
        return None
    if isinstance(init, Tensor):
        expected = (num_data, family.num_params)
        if tuple(init.shape) != expected or not bool(init.isfinite().all()):
            came = f"shape {tuple(init.shape)}" if tuple(init.shape) != expected else "NaN or infinity"
            raise ValueError(f"init: expected finite rows of shape {expected} for {family!r}; got {came}.")
        return init[index].detach().to(like(x))
    return guide_rows(guide_of(init, index, num_data=num_data), family, x, site=site, seed=seed)


def best_rows(
    objective: LocalLoss,
    x: Float[Tensor, "B P"],
    index: Int[Tensor, " B"],
    start: Float[Tensor, "B K"] | None,
    *,
    tol: float,
    search: Search,
    seed: int,
    cold: bool = True,
) -> Candidates:
    """The best of: the start row untouched, the search from it, and, unless told otherwise, the cold search."""
    require_contract(objective, x, index, seed=seed)
    searched: list[tuple[Tensor, Tensor]] = []
    with pyro.validation_enabled(is_validate=False):
        if start is not None:
            searched.append(_search(objective, x, index, start, tol=tol, search=search, seed=seed, stage="warm"))
        if start is None or cold:
            initial = objective.family.initial_params(len(x), like=like(x))
            searched.append(_search(objective, x, index, initial, tol=tol, search=search, seed=seed, stage="cold"))
        unknown = torch.full((len(x),), math.nan, dtype=torch.float64)
        if start is None:
            return Candidates(*searched[0], unknown)
        rows = torch.stack([*(params for params, _ in searched), start])
        bound = torch.stack(
            [
                score_bound(
                    objective, x, index, params, num_values=search.num_select_draws, seed=seed, stage="select"
                ).mean(0)
                for params in rows
            ]
        )
        bound = bound.nan_to_num(-math.inf, math.inf, -math.inf).cpu()
        columns = torch.arange(len(x))
        # What remains after the better search also remains at the untouched row, which is taken where neither beat it.
        remaining = torch.stack([left for _, left in searched])[bound[:-1].argmax(0), columns]
        return Candidates(rows[bound.argmax(0), columns], remaining, (bound[0] - bound[1]).abs() if cold else unknown)


def _search(
    objective: LocalLoss, x: Tensor, index: Tensor, rows: Tensor, *, tol: float, search: Search, seed: int, stage: str
) -> tuple[Float[Tensor, "B K"], Float[Tensor, " B"]]:
    """Rounds of ascent that double in length; returns the rows and the gain that is estimated to remain."""
    rows = rows.detach().clone()
    remaining = torch.full((len(rows),), math.inf, dtype=torch.float64)
    lr = rows.new_full((len(rows), 1), search.lr)
    active = torch.arange(len(rows))
    optimizer = RowAdam(len(rows), rows.shape[1], betas=(0.9, 0.99), like=rows)
    step = 0
    for round_ in range(search.max_rounds):
        here, where, before = x[active], index[active], rows[active]
        length = search.first_round * 2**round_
        proposed = _ascend(
            objective,
            here,
            where,
            before,
            optimizer,
            active,
            lr[active],
            length,
            num_particles=search.num_particles,
            seed=seed,
            stage=stage,
            step=step,
        )
        step += length
        spread = _spread(objective, here, where, proposed, search=search, seed=seed, stage=stage, step=round_)
        gain, se = _judge(
            objective,
            here,
            where,
            before,
            proposed.mean,
            tol=tol,
            undecided=spread < tol,
            search=search,
            seed=seed,
            stage=stage,
            step=round_,
        )
        better = gain > 0
        rows[active[better]] = proposed.mean[better]
        optimizer.forget(active[~better])
        lr[active[~(gain >= search.settle)]] /= 2
        # What the average still lacks by its own noise; and, were it still on its way, about what the round has gained.
        remaining[active] = (torch.maximum(gain, spread) + se).nan_to_num(math.inf)
        active = active[~(remaining[active] < tol)]
        if not len(active):
            break
    return rows, remaining


def _ascend(
    objective: LocalLoss,
    x: Tensor,
    index: Tensor,
    rows: Tensor,
    optimizer: RowAdam,
    positions: Tensor,
    lr: Tensor,
    num_steps: int,
    *,
    num_particles: int,
    seed: int,
    stage: str,
    step: int,
) -> Average:
    """`num_steps` of Adam on the rows, and the mean of the second half of the iterates (Polyak & Juditsky 1992)."""
    shape = (num_particles // 2 * objective.loss.num_particles, objective.family.num_noise)
    sums = rows.new_zeros(2, *rows.shape)
    quarter = num_steps // 4
    for t in range(num_steps):
        noise = antithetic(normal_noise(seed, stage, index, shape, step=step + t, like=rows))
        rows = optimizer.step(rows, objective.row_gradient(x, rows, noise), positions, lr=lr)
        if t >= num_steps - 2 * quarter:
            sums[int(t >= num_steps - quarter)] += rows
    return Average(sums.sum(0) / (2 * quarter), *(sums / quarter))


def _judge(
    objective: LocalLoss,
    x: Tensor,
    index: Tensor,
    old: Tensor,
    new: Tensor,
    *,
    tol: float,
    undecided: Bool[Tensor, " B"],
    search: Search,
    seed: int,
    stage: str,
    step: int,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Gain of the new rows over the old, and its standard error.

    A second and third look are taken where the gain could still decide (`undecided`), and `tol` is within two errors
    of it.
    """
    count, total, squares = torch.zeros(3, len(x), dtype=torch.float64)
    doubt = torch.arange(len(x))
    drawn = 0
    for look, share in enumerate(LOOKS):
        num_draws = 2 * round(share * search.num_judge_draws / 2) - drawn
        noise = bound_noise(objective, x, index[doubt], num_draws, seed=seed, stage=f"{stage}/judge/{look}", step=step)
        draws = pair_means(_gains(objective, x[doubt], old[doubt], new[doubt], noise)).cpu()
        drawn += num_draws
        count[doubt] += len(draws)
        total[doubt] += draws.sum(0)
        squares[doubt] += draws.square().sum(0)
        gain = total / count
        se = ((squares / count - gain.square()).clamp_min(0) / (count - 1)).sqrt()
        doubt = doubt[(undecided & ((gain - tol).abs() < 2 * se))[doubt]]
        if not len(doubt):
            break
    return gain, se


@torch.no_grad()
def _spread(
    objective: LocalLoss,
    x: Tensor,
    index: Tensor,
    average: Average,
    *,
    search: Search,
    seed: int,
    stage: str,
    step: int,
) -> Float[Tensor, " B"]:
    """Bound of an average less the mean bound of its halves.

    Where the bound is quadratic and the halves err independently, this is what the average itself still lacks: it is
    wrong by half the variance of a half, and its halves differ by twice that variance.
    """
    num_draws = 2 * round(LOOKS[0] * search.num_judge_draws / 2)
    noise = bound_noise(objective, x, index, num_draws, seed=seed, stage=f"{stage}/spread", step=step)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for part in noise:
        bound = [objective.bounds(x, rows, part).sum(0) for rows in average]
        total += bound[0] - (bound[1] + bound[2]) / 2
    return (total / num_draws).cpu()


@torch.no_grad()
def _gains(objective: LocalLoss, x: Tensor, old: Tensor, new: Tensor, noise: Iterator[Tensor]) -> Float[Tensor, "S B"]:
    """Differences of the bound between two sets of rows on the same noise, with most of their noise taken out.

    The score of q half way between the rows, along their difference, has mean zero; added, it leaves of the difference
    what the gradient without the score would integrate to, which at q = posterior has no variance.
    """
    family, middle, nudge = objective.family, (old + new) / 2, 0.05 * (new - old)
    parts = []
    for part in noise:
        gain = objective.bounds(x, new, part) - objective.bounds(x, old, part)
        if family.has_log_prob:
            z, _ = from_noise(family(middle), part)
            score = (family(middle + nudge).log_prob(z) - family(middle - nudge).log_prob(z)) / 0.1
            gain += objective.pairwise(score, lambda draws: draws.mean(1))
        parts.append(gain)
    return torch.cat(parts)
