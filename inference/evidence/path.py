"""The path of densities from a start to the posterior, and chains that run along it, forward and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from inference.counts import require_count, require_kind
from inference.densities import densities, guide_distribution
from inference.evidence.schedules import Schedule, SigmoidalSchedule
from inference.families import from_noise, noise_size
from inference.hmc import HMC, Energy, Metric, Point, StepSize, noise_dims, transition
from inference.mcmc.target import Target, normal_of
from inference.noise import like, normal_noise
from inference.progress import track
from inference.scoring import guide_of, prior_draws, require_sound

__all__ = ["Annealing", "Path", "Plan", "path_at"]

# Transitions of the pilot chains: at the first temperature, where the step size comes from nowhere, and at all others
# together. From the prior at least one at each, since on a short path the next is far from the last; from a start near
# the posterior, whose scales are known and whose step sizes change little on the way, a few suffice: so many, or one
# at every tenth temperature.
PILOT = (20, 100)
PILOT_NEAR = (8, 10)


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """How annealed importance sampling runs.

    Attributes:
        num_temperatures: T, steps from the start to the posterior; between two of them lies one HMC transition.
        num_chains: C, weighted chains of each datapoint.
        num_pilot_chains: chains that step sizes and scales are adapted on; they carry no weight.
        schedule: inverse temperatures.
        hmc: the transition.
    """

    num_temperatures: int = 1000
    num_chains: int = 16
    num_pilot_chains: int = 8
    schedule: Schedule = SigmoidalSchedule()  # noqa: RUF009 (frozen)
    hmc: HMC = HMC()  # noqa: RUF009

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("num_temperatures", "num_chains", "num_pilot_chains"):
            require_count(name, getattr(self, name), least=2)
        require_kind("hmc", self.hmc, HMC)
        if isinstance(self.schedule, type) or not callable(self.schedule):
            raise TypeError(
                f"schedule: expected one such as SigmoidalSchedule(), a function of the number of temperatures; got "
                f"{self.schedule!r}."
            )

    def describe(self) -> dict[str, Any]:
        """The settings as plain values, for a record."""
        return asdict(self) | {"schedule": repr(self.schedule)}


class Plan(NamedTuple):
    """What the pilot chains found, frozen.

    Attributes:
        betas: (T + 1,) inverse temperatures.
        step_sizes: (T, B) step size of the transition at each inverse temperature but the last; row 0 is not used.
        metrics: T metrics, likewise.
    """

    betas: Float[Tensor, " T+1"]
    step_sizes: Float[Tensor, "T B"]
    metrics: list[Metric]


@dataclass(frozen=True, eq=False)
class Path:
    r"""The densities between r and the posterior of a chunk of datapoints, in the coordinates of R^D.

    .. math::
        \log \pi_\beta(z) = \log r(z) + \beta \log \frac{p(x, z)}{r(z)}

    Attributes:
        target: the posterior of the datapoints.
        index: (B,) their indices.
        start: r, batch shape (B,), or None: the prior.
        annealing: how chains run.
    """

    target: Target
    index: Int[Tensor, " B"]
    start: Distribution | None
    annealing: Annealing

    @cached_property
    def energy(self) -> Energy:
        """What the chains move in."""
        hmc, num_transitions = self.annealing.hmc, self.annealing.num_temperatures
        return Energy(self, self.target.model, hmc=hmc, num_transitions=num_transitions)

    def __call__(self, free: Float[Tensor, "C B D"]) -> tuple[Float[Tensor, "C B"], Float[Tensor, "C B"]]:
        """Log r and log p(x, z) - log r, the two terms that HMC weighs by 1 and beta."""
        target = self.target
        z, log_slope = target.constrain(free)
        terms = densities(target.model, target.x, z, site=target.site)
        if self.start is None:
            return terms.log_prior + log_slope, terms.log_likelihood
        log_r = self.start.log_prob(z)
        return log_r + log_slope, terms.log_joint - log_r

    def draw_start(self, num_chains: int, *, stage: str, seed: int) -> Float[Tensor, "C B D"]:
        """Draws of r."""
        model, x, site = self.target.model, self.target.x, self.target.site
        if self.start is None:
            z = prior_draws(model, x, self.index, num_chains, site=site, seed=seed, stage=stage)
        else:
            shape = (num_chains, noise_size(self.start))
            z, _ = from_noise(self.start, normal_noise(seed, stage, self.index, shape, like=like(x)))
        return self.target.unconstrain(z)

    def noise(self, num_chains: int, num_latents: int, *, stage: str, step: int, seed: int) -> Tensor:
        """What one transition is made of."""
        shape = (num_chains, noise_dims(num_latents))
        return normal_noise(seed, stage, self.index, shape, step=step, like=like(self.target.x))

    @torch.no_grad()
    def plan(self, *, seed: int) -> Plan:
        """Step sizes and scales, adapted on pilot chains that run the whole path once."""
        annealing = self.annealing
        free = self.draw_start(annealing.num_pilot_chains, stage="ais/pilot/start", seed=seed)
        betas = annealing.schedule(annealing.num_temperatures)
        fixed = None if self.start is None else _metric_of(self.start)
        # The size that suits a standard normal shrinks slowly with its dimension.
        size = free.new_full((len(self.index),), free.shape[-1] ** -0.25)
        steps = StepSize(size, target=annealing.hmc.target_accept)
        point = self.energy.point(free)
        centre, square = free.mean(0), free.var(0)
        step_sizes, metrics = [steps.value], [fixed or Metric(square.sqrt())]
        number = 0
        counts = _pilot_transitions(annealing.num_temperatures, is_near=fixed is not None)
        for t, count in enumerate(track(counts, len(counts), "pilot chains", "temperature"), start=1):
            metric = fixed or Metric(square.sqrt())
            for repeat in range(count):
                noise = self.noise(len(free), free.shape[-1], stage="ais/pilot", step=number, seed=seed)
                number += 1
                point, accept = self._move(point, betas[t], noise, steps.value, metric)
                steps.update(accept, gain=0.5 / (1 + repeat) ** 0.5 if t == 1 else 0.2)
            # Means of few chains, over the last temperatures.
            centre = centre.lerp(point.z.mean(0), 0.1)
            square = square.lerp((point.z - centre).square().mean(0), 0.05)
            step_sizes.append(steps.value)
            metrics.append(metric)
        return Plan(betas, torch.stack(step_sizes), metrics)

    @torch.no_grad()
    def forward(self, plan: Plan, *, seed: int) -> dict[str, Tensor]:
        """Log weights "log_w" (B, C) of chains from r to the posterior, and mean "acceptance" (B,)."""
        point = self.energy.point(self.draw_start(self.annealing.num_chains, stage="ais/start", seed=seed))
        log_w, accepted = self._weight(plan, 1, point), []
        for t in self._track(range(1, self.annealing.num_temperatures), "annealing"):
            point, accept = self._step(point, plan, t, stage="ais/forward", seed=seed)
            accepted.append(accept.mean(0))
            log_w = log_w + self._weight(plan, t + 1, point)
        return {"log_w": log_w.T, "acceptance": torch.stack(accepted).mean(0)}

    @torch.no_grad()
    def backward(self, z: Float[Tensor, "B D"], plan: Plan, *, seed: int) -> dict[str, Tensor]:
        """The same log weights of chains from one exact draw z of each posterior back to r, and mean acceptance."""
        free = self.target.unconstrain(z)
        num_temperatures = self.annealing.num_temperatures
        point = self.energy.point(free.expand(self.annealing.num_chains, *free.shape))
        log_w, accepted = self._weight(plan, num_temperatures, point), []
        for t in self._track(range(num_temperatures - 1, 0, -1), "annealing back"):
            point, accept = self._step(point, plan, t, stage="ais/backward", seed=seed)
            accepted.append(accept.mean(0))
            log_w = log_w + self._weight(plan, t, point)
        return {"log_w": log_w.T, "acceptance": torch.stack(accepted).mean(0)}

    def _track(self, temperatures: range, label: str) -> Iterator[int]:
        return track(temperatures, len(temperatures), label, "temperature")

    def _weight(self, plan: Plan, t: int, point: Point) -> Float[Tensor, "C B"]:
        return (plan.betas[t] - plan.betas[t - 1]) * point.terms[1].double()

    def _step(self, point: Point, plan: Plan, t: int, *, stage: str, seed: int) -> tuple[Point, Tensor]:
        num_chains, _, num_latents = point.z.shape
        noise = self.noise(num_chains, num_latents, stage=stage, step=t, seed=seed)
        return self._move(point, plan.betas[t], noise, plan.step_sizes[t], plan.metrics[t])

    def _move(
        self, point: Point, beta: Tensor, noise: Tensor, step_size: Tensor, metric: Metric
    ) -> tuple[Point, Tensor]:
        weights = torch.stack([torch.ones_like(beta), beta]).to(point.z.device)
        with pyro.validation_enabled(is_validate=False):
            hmc = self.annealing.hmc
            return transition(self.energy, point, weights, noise, step_size=step_size, metric=metric, hmc=hmc)


def _pilot_transitions(num_temperatures: int, *, is_near: bool) -> list[int]:
    """How many the pilot chains make at each inverse temperature but the first and the last."""
    first, others = PILOT_NEAR if is_near else PILOT
    rest = num_temperatures - 2
    if not is_near:
        return [first] + [-(-others // num_temperatures)] * rest
    others = max(others, rest // 10)
    # Evenly, and the last of them at the end.
    return [first] + [(n + 1) * others // rest - n * others // rest for n in range(rest)]


@torch.no_grad()
def path_at(
    model: Callable[..., Any],
    index: Int[Tensor, " B"],
    x: Float[Tensor, "B P"],
    start: Callable[..., Any] | None,
    *,
    num_data: int,
    site: str,
    annealing: Annealing,
    seed: int,
) -> Path:
    """The path of a chunk of datapoints, after a look at whether the program keeps its contract."""
    target = Target.of(model, x, site)
    if start is None:
        z = prior_draws(model, x, index, 3, site=site, seed=seed, stage="ais/contract")
        target.check(target.unconstrain(z))
        return Path(target, index, None, annealing)
    _, q = guide_distribution(guide_of(start, index, num_data=num_data), x, site=site)
    require_sound(model, start, q, x, site=site)
    _require_density(q)
    return Path(target, index, q, annealing)


def _require_density(q: Distribution) -> None:
    try:
        # A copy: some distributions know the density of their own last draw alone.
        q.log_prob(q.sample().clone())
    except NotImplementedError as error:
        raise ValueError(
            f"start: expected a distribution whose density is known everywhere; got a {type(q).__name__} ({error}). "
            "Start from the prior, or from another family."
        ) from error


def _metric_of(q: Distribution) -> Metric:
    """The shape of q in R^D."""
    free = getattr(q, "unconstrained", q)
    if isinstance(free, Independent) and isinstance(free.base_dist, Normal):
        return Metric(free.base_dist.scale)
    return Metric(normal_of(q)[1])
