"""The search for the best member of a family at each datapoint of a chunk, judged on draws that it did not see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference.compiled import Compile, Precision, require_precision, worthwhile
from inference.counts import is_number, require_count
from inference.families import Family, from_noise
from inference.noise import BLOCK, OrthogonalNoise, antithetic, like, normal_noise
from inference.objectives import LocalLoss, Loss
from inference.progress import track
from inference.rows import RowNatural, RowOptimizer, optimizer_for
from inference.scoring import bound_noise, pair_means, require_contract, require_draws

__all__ = ["Candidates", "Search", "best_rows"]

# Share of the judge's draws at each look; most rounds are decided at the first.
LOOKS = (1 / 64, 1 / 16, 1 / 4, 1)
# Units within which two rows are near each other.
NEAR = 2.0
# What a search is taken to last, warm and cold together, in lengths of the first round; and how many datapoints it
# moves at once. Only whether to compile depends on these.
USUAL_ROUNDS = 8
USUAL_CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the search for q* runs. Each round is as long as all before it, and gains about as much as it leaves.

    A draw is a value of the bound that is searched: k draws of q where the loss makes one of k.

    Attributes:
        lr: step size of the first round in units of the usual one, which is that of `RowNatural` where the family
            offers natural gradients and the loss is the ELBO, and 0.1 of Adam elsewhere; halved for a datapoint
            whenever a round fails to gain, or, by Adam, gains less than `settle`.
        settle: nats.
        num_particles: draws a step and datapoint, in antithetic pairs.
        first_round: steps of the first round, and of the second along the natural gradient; from then on they double.
        max_rounds: rounds at most; rows that have not converged by then are said so.
        num_judge_draws: fresh draws at most, in antithetic pairs, that decide whether a round's result is taken and
            whether it converged. They are drawn in looks of 1/64, 1/16, 1/4 of them and all, until no doubt is left.
        num_select_draws: fresh draws at most, in antithetic pairs, that choose between the candidates, in such looks.
        natural: follow the natural gradient where the family offers it and the loss is the ELBO; else Adam, which takes
            more steps and is less easily led out of a mode that is narrower than q.
        compile: run gradients and log weights as compiled code, which gives the same numbers: True, False, or "auto",
            where there are datapoints enough to win back the seconds that compiling takes.
        precision: of matrix products in the gradients, "float32" (that of the model) or "bfloat16". What is judged,
            compared and scored keeps the model's.
    """

    lr: float = 1.0
    settle: float = 1.0
    num_particles: int = 2
    first_round: int = 48
    max_rounds: int = 8
    num_judge_draws: int = 1024
    num_select_draws: int = 512
    natural: bool = True
    compile: Compile = "auto"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        worthwhile(self.compile, 0)
        require_precision(self.precision)
        for name, value in asdict(self).items():
            if name not in ("natural", "compile", "precision") and not (is_number(value) and value > 0):
                raise ValueError(f"search.{name}: expected a positive number; got {value!r}.")
        require_count("search.first_round", self.first_round, least=4, hint="Its second half is averaged over.")
        require_count("search.max_rounds", self.max_rounds)
        for name, least in (("num_particles", 2), ("num_judge_draws", 64), ("num_select_draws", 4)):
            require_draws(getattr(self, name), name=f"search.{name}", least=least)

    def objective(
        self, model: Callable[..., Any], family: Family, site: str, *, num_data: int, loss: Loss | None = None
    ) -> LocalLoss:
        """The loss at a row of so many datapoints, compiled where that pays."""
        num_calls = USUAL_ROUNDS * self.first_round * math.ceil(num_data / USUAL_CHUNK)
        compile = worthwhile(self.compile, num_calls)
        return LocalLoss(model, family, site, loss=loss, compile=compile, precision=self.precision)


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


class Judgement(NamedTuple):
    """What fresh draws say of a round."""

    gain: Float[Tensor, " B"]
    se: Float[Tensor, " B"]
    spread: Float[Tensor, " B"]


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
    found: list[tuple[Tensor, Tensor]] = []
    with pyro.validation_enabled(is_validate=False):
        problem = Problem(objective, x, index, tol=tol, search=search, seed=seed)
        if start is not None:
            found.append(problem.search(start, stage="warm"))
        if start is None or cold:
            found.append(problem.search(objective.family.initial_params(len(x), like=like(x)), stage="cold"))
        unknown = torch.full((len(x),), math.nan, dtype=torch.float64)
        if start is None:
            return Candidates(*found[0], unknown)
        rows = torch.stack([*(params for params, _ in found), start])
        bound = problem.compare(rows)
        columns = torch.arange(len(x))
        # What remains after the better search also remains at the untouched row, which is taken where neither beat it.
        remaining = torch.stack([left for _, left in found])[bound[:-1].argmax(0), columns]
        return Candidates(rows[bound.argmax(0), columns], remaining, (bound[0] - bound[1]).abs() if cold else unknown)


class Problem:
    """The search at the datapoints of one chunk.

    Model calls go through `LocalLoss.row_gradient` and `LocalLoss.bounds` alone, and in few shapes: the datapoints that
    are still searched are filled up to a half, a quarter, ... of the chunk.

    Args:
        objective: the loss at a row.
        x: (B, P) datapoints.
        index: (B,) their indices, which their noise belongs to.
        tol: nats.
        search: settings.
        seed: of all draws.
    """

    def __init__(
        self, objective: LocalLoss, x: Tensor, index: Tensor, *, tol: float, search: Search, seed: int
    ) -> None:
        self.objective = objective
        self.x = x
        self.index = index
        self.tol = tol
        self.settings = search
        self.seed = seed

    def search(self, rows: Float[Tensor, "B K"], *, stage: str) -> tuple[Float[Tensor, "B K"], Float[Tensor, " B"]]:
        """Rounds of ascent; returns the rows and the gain that is estimated to remain."""
        settings = self.settings
        rows = rows.detach().clone()
        iterates = rows.clone()
        remaining = torch.full((len(rows),), math.inf, dtype=torch.float64)
        family = self.objective.family
        # Correlations are learnt from few draws a step, which leads astray far from the best member.
        near = stage == "warm" or family.num_params <= 3 * family.num_latents
        optimizer, usual = optimizer_for(
            family, len(rows), like=rows, natural=settings.natural and self.objective.loss.is_elbo and near
        )
        lr = rows.new_full((len(rows), 1), usual * settings.lr)
        noise = self._noise(stage, like=rows)
        active = torch.arange(len(rows))
        step = 0
        for round_ in track(range(settings.max_rounds), settings.max_rounds, "search for q*", "round"):
            # Adam's steps shrink with the rounds, so those grow from the first on.
            length = settings.first_round * 2 ** (max(round_ - 1, 0) if isinstance(optimizer, RowNatural) else round_)
            where = filled(active, len(rows))
            average = self._ascend(iterates, where, optimizer, lr, noise, range(step, step + length))
            average = Average(*(part[: len(active)] for part in average))
            step += length
            gain, se, spread = self._judge(
                active, rows[active], average, stage=stage, step=round_, worth=length * settings.num_particles
            )
            # Along the natural gradient what is within its error of no change is taken: an average over more steps is
            # the better guess.
            better = gain > (-2 * se if isinstance(optimizer, RowNatural) else 0)
            rows[active[better]] = average.mean[better]
            iterates[active[~better]] = rows[active[~better]]
            optimizer.forget(active[~better])
            unsettled = gain >= settings.settle
            if isinstance(optimizer, RowNatural):
                keeps = better & (unsettled | ~optimizer.overshoots(active).cpu())
            else:
                keeps = unsettled
            lr[active[~keeps]] /= 2
            # What the average still lacks by its own noise; and, were it on its way, about what the round has gained.
            remaining[active] = (torch.maximum(gain, spread) + se).nan_to_num(math.inf)
            active = active[~(remaining[active] < self.tol)]
            if not len(active):
                break
        return rows, remaining

    def compare(self, rows: Float[Tensor, "C B K"]) -> Float[Tensor, "C B"]:
        """Bounds at each candidate less that at the first, on the same draws, in nats.

        More is drawn where the best is neither three standard errors above another nor within half of `tol` of it.
        """
        count = torch.zeros(len(self.x), dtype=torch.float64)
        total = torch.zeros(len(rows), len(self.x), dtype=torch.float64)
        squares = torch.zeros(len(rows), len(rows), len(self.x), dtype=torch.float64)
        doubt = torch.arange(len(self.x))
        drawn = 0
        for look, num_draws in enumerate(looks(self.settings.num_select_draws)):
            draws = [self._gains(doubt, rows[0], other, num_draws - drawn, f"select/{look}") for other in rows[1:]]
            values = torch.stack([torch.zeros_like(draws[0]), *draws])
            drawn = num_draws
            count[doubt] += values.shape[1]
            total[:, doubt] += values.sum(1)
            squares[:, :, doubt] += (values.unsqueeze(0) - values.unsqueeze(1)).square().sum(2)
            mean = total / count
            apart = mean.max(0).values - mean
            best = mean.argmax(0)
            se = standard_error(apart, squares[best, :, torch.arange(len(best))].mT, count)
            clear = (apart > 3 * se) | (apart + 2 * se < self.tol / 2)
            clear[best, torch.arange(len(best))] = True
            doubt = doubt[~clear.all(0)[doubt]]
            if not len(doubt):
                break
        lost = mean.isnan().any(0)
        if bool(lost.any()):
            # Against a row whose bound is not a number, or minus infinity as theirs is, no difference tells anything.
            mean[:, lost] = self._bounds(lost.nonzero().squeeze(-1), rows)
        return mean.nan_to_num(-math.inf, math.inf, -math.inf)

    def _bounds(self, active: Tensor, rows: Float[Tensor, "C B K"]) -> Float[Tensor, "C A"]:
        where = filled(active, len(self.x))
        noise = list(self._bound_noise(where, looks(self.settings.num_select_draws)[0], "select/bounds", 0))
        with torch.no_grad():
            values = [
                torch.cat([self.objective.bounds(self.x[where], row[where], part) for part in noise]) for row in rows
            ]
        return torch.stack(values).mean(1)[:, : len(active)].nan_to_num(-math.inf, math.inf, -math.inf).cpu()

    def _noise(self, stage: str, *, like: Tensor) -> Callable[[Tensor, int], Tensor]:
        """The noise of a step, as a function of the datapoints' indices and the step's number."""
        half, family = self.settings.num_particles // 2, self.objective.family
        size = self.objective.loss.num_particles
        if size > 1:
            # The draws that one value of the bound is made of must be independent.
            shape = (half * size, family.num_noise)
            return lambda index, step: antithetic(normal_noise(self.seed, stage, index, shape, step=step, like=like))
        sequence = OrthogonalNoise(self.seed, stage, family.num_noise, like=like)
        return lambda index, step: antithetic(sequence.draw(index, half, first=step * half))

    def _ascend(
        self,
        iterates: Tensor,
        where: Tensor,
        optimizer: RowOptimizer,
        lr: Tensor,
        noise: Callable[[Tensor, int], Tensor],
        steps: range,
    ) -> Average:
        """Steps on the rows at `where`, and the mean of the iterates (Polyak & Juditsky 1992), their start left out.

        `iterates` move on. A later round is averaged over in full: it is the last half of all steps.
        """
        x, index, rows, lr = self.x[where], self.index[where], iterates[where], lr[where]
        sums = rows.new_zeros(2, *rows.shape)
        half = len(steps) // 2 if steps.start else len(steps) // 3
        for t, step in enumerate(steps):
            grad = self.objective.row_gradient(x, rows, noise(index, step))
            rows = optimizer.step(rows, grad, where, lr=lr)
            if t >= len(steps) - 2 * half:
                sums[int(t >= len(steps) - half)] += rows
        iterates[where] = rows
        return Average(sums.sum(0) / (2 * half), *(sums / half))

    def _judge(self, active: Tensor, old: Tensor, average: Average, *, stage: str, step: int, worth: int) -> Judgement:
        """Gain of an average over the old rows, its standard error, and what the average lacks by its own noise.

        One look settles that a row has gained more than `tol` by three standard errors. Of the others the spread is
        found; where it leaves open whether they converged, looks follow until `tol` is two errors from the gain, or
        until they have cost about half of what the next round will: `worth` draws.
        """
        count, total, squares, spread = torch.zeros(4, len(active), dtype=torch.float64)
        doubt = torch.arange(len(active))
        drawn = 0
        for look, num_draws in enumerate(looks(self.settings.num_judge_draws)):
            draws = self._gains(
                active[doubt], old[doubt], average.mean[doubt], num_draws - drawn, f"{stage}/judge/{look}", step
            )
            drawn = num_draws
            count[doubt] += len(draws)
            total[doubt] += draws.sum(0)
            squares[doubt] += draws.square().sum(0)
            gain = total / count
            se = standard_error(gain, squares, count)
            if look == 0:
                doubt = doubt[~(gain > self.tol + 3 * se)]
                if len(doubt):
                    part = Average(*(rows[doubt] for rows in average))
                    spread[doubt] = self._spread(active[doubt], part, num_draws, stage=stage, step=step)
                doubt = doubt[spread[doubt] < self.tol]
            else:
                doubt = doubt[((gain - self.tol).abs() < 2 * se)[doubt]]
            if not len(doubt) or 2 * num_draws > worth:
                break
        return Judgement(gain, se, spread)

    @torch.no_grad()
    def _spread(
        self, active: Tensor, average: Average, num_draws: int, *, stage: str, step: int
    ) -> Float[Tensor, " B"]:
        """Bound of an average less the mean bound of its halves.

        Where the bound is quadratic and the halves err independently, this is what the average itself still lacks: it
        is wrong by half the variance of a half, and its halves differ by twice that variance.
        """
        where = filled(active, len(self.x))
        wide = [filled(rows, len(self.x)) for rows in average]
        total = torch.zeros(len(where), dtype=torch.float64, device=self.x.device)
        for part in self._bound_noise(where, num_draws, f"{stage}/spread", step):
            bound = [self.objective.bounds(self.x[where], rows, part).sum(0) for rows in wide]
            total += bound[0] - (bound[1] + bound[2]) / 2
        return (total / num_draws).cpu()[: len(active)]

    def _gains(
        self, active: Tensor, old: Tensor, new: Tensor, num_draws: int, stage: str, step: int = 0
    ) -> Float[Tensor, "S/2 B"]:
        """Means of antithetic pairs of differences of the bound; rows of the whole chunk are read at `active`."""
        if len(old) != len(active):
            old, new = old[active], new[active]
        where = filled(active, len(self.x))
        old, new = filled(old, len(self.x)), filled(new, len(self.x))
        noise = self._bound_noise(where, num_draws, stage, step)
        return pair_means(gains(self.objective, self.x[where], old, new, noise)).cpu()[:, : len(active)]

    def _bound_noise(self, where: Tensor, num_draws: int, stage: str, step: int) -> Iterator[Tensor]:
        return bound_noise(
            self.objective, self.x[where], self.index[where], num_draws, seed=self.seed, stage=stage, step=step
        )


def filled(rows: Tensor, size: int) -> Tensor:
    """The rows, and copies of them up to the next of size, size / 2, size / 4, ... (no less than a block)."""
    target = size
    while target // 2 >= max(len(rows), BLOCK):
        target //= 2
    if len(rows) >= target:
        return rows
    return rows.repeat(-(-target // len(rows)), *[1] * (rows.dim() - 1))[:target]


def looks(num_draws: int) -> list[int]:
    """How many draws have been made after each look: even numbers, at least 8 where there are as many."""
    return sorted({max(min(8, num_draws), 2 * round(share * num_draws / 2)) for share in LOOKS})


def standard_error(mean: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    """Standard error of means over `count` draws whose squares sum to `squares`."""
    return ((squares / count - mean.square()).clamp_min(0) / (count - 1)).sqrt()


@torch.no_grad()
def gains(objective: LocalLoss, x: Tensor, old: Tensor, new: Tensor, noise: Iterator[Tensor]) -> Float[Tensor, "S B"]:
    """Differences of the bound between two sets of rows on the same noise, with most of their noise taken out.

    Where the rows are near each other, the score of q half way between them, along their difference, has mean zero;
    added, it leaves of the difference what the gradient without the score would integrate to, which at q = posterior
    has no variance.
    """
    family, middle, nudge = objective.family, (old + new) / 2, 0.05 * (new - old)
    # Of rows far apart the difference quotient is no score, and there is nothing to gain.
    near = ((new - old).abs() / family.step_units(middle)).amax(-1) < NEAR
    parts = []
    for part in noise:
        gain = objective.bounds(x, new, part) - objective.bounds(x, old, part)
        if family.has_log_prob and bool(near.any()):
            z, _ = from_noise(family(middle), part)
            score = (family(middle + nudge).log_prob(z) - family(middle - nudge).log_prob(z)) / 0.1
            gain += objective.pairwise(torch.where(near, score, 0), lambda draws: draws.mean(1))
        parts.append(gain)
    return torch.cat(parts)
