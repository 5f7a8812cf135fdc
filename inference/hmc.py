"""Hamiltonian Monte Carlo on all datapoints and chains at once: a kernel, and the step size that suits each datapoint.

The engines and estimators that move chains (`ais`, `bdmc`, `sample_posterior`, `fit_mcem`) share this one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from inference.compiled import Compile, Compiled, Precision, require_precision, undisturbed, worthwhile
from inference.counts import is_number, require_count

__all__ = ["HMC", "Energy", "Metric", "Point", "StepSize", "noise_dims", "transition"]

# Beyond, a trajectory has left the range in which its energy means anything.
_DIVERGED = 1000.0


@dataclass(frozen=True, kw_only=True)
class HMC:
    r"""Settings of a Hamiltonian Monte Carlo transition.

    A trajectory of L leapfrog steps of size epsilon, accepted with probability :math:`\min(1, e^{-\Delta H})`.

    Attributes:
        num_leapfrog: L, steps of a trajectory; each costs one gradient of log p(x, z).
        target_accept: mean acceptance probability that step sizes are adapted to. Between 0.6 and 0.9 a transition's
            worth for the mean over draws changes little; annealing gains from the upper half of it.
        jitter: j, each trajectory's step size is multiplied by a number uniform in [1 - j, 1 + j], so that no
            trajectory keeps returning to where it began.
        compile: run log densities and forces as compiled code, which gives the same numbers: True, False, or "auto",
            where there are transitions enough to win back the seconds that compiling takes.
        precision: of the matrix products that forces are made of, "float32" (that of the model) or "bfloat16".
            Energies, which decide what is accepted, keep the model's: the density that is sampled is the same.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics.
        Beskos, Pillai, Roberts, Sanz-Serna & Stuart (2013), Optimal tuning of the hybrid Monte Carlo algorithm.
        Betancourt, Byrne & Girolami (2014), Optimizing the integrator step size for Hamiltonian Monte Carlo.
    """

    num_leapfrog: int = 5
    target_accept: float = 0.8
    jitter: float = 0.2
    compile: Compile = "auto"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        require_count("num_leapfrog", self.num_leapfrog, hint="Try 5.")
        if not (is_number(self.target_accept) and 0 < self.target_accept < 1):
            raise ValueError(f"target_accept: expected a probability in (0, 1); got {self.target_accept!r}. Try 0.8.")
        if not (is_number(self.jitter) and 0 <= self.jitter < 1):
            raise ValueError(f"jitter: expected a number in [0, 1); got {self.jitter!r}. Try 0.2.")
        worthwhile(self.compile, 0)
        require_precision(self.precision)


class Point(NamedTuple):
    """Where chains are, and what is known there.

    Attributes:
        z: (C, B, D) positions.
        terms: (T, C, B) terms of the log density, nats.
        grads: (T, C, B, D) gradient of each term in z.
    """

    z: Float[Tensor, "C B D"]
    terms: Float[Tensor, "T C B"]
    grads: Float[Tensor, "T C B D"]


class Metric(NamedTuple):
    """The shape of the target that HMC is told of: momenta are drawn as if the target had covariance A A'.

    Attributes:
        factor: A: (B, D) scales, or (B, D, D) lower Cholesky factors.
    """

    factor: Tensor

    def forward(self, u: Float[Tensor, "C B D"]) -> Float[Tensor, "C B D"]:
        """A u."""
        if self.factor.dim() == 2:
            return self.factor * u
        return (self.factor @ u.movedim(0, -1)).movedim(-1, 0)

    def transpose(self, g: Float[Tensor, "C B D"]) -> Float[Tensor, "C B D"]:
        """A' g."""
        if self.factor.dim() == 2:
            return self.factor * g
        return (self.factor.mT @ g.movedim(0, -1)).movedim(-1, 0)


class Moving(NamedTuple):
    """Chains on their way: (C, B, D) positions, momenta, and the force there."""

    z: Float[Tensor, "C B D"]
    r: Float[Tensor, "C B D"]
    force: Float[Tensor, "C B D"]


class Course(NamedTuple):
    """What does not change on the way.

    Attributes:
        weights: (T,) of the terms of the log density.
        size: (C, B, 1) step size.
        factor: of the metric.
    """

    weights: Float[Tensor, " T"]
    size: Float[Tensor, "C B 1"]
    factor: Tensor


class Energy:
    """A log density in terms, of which it is a weighted sum, and their gradients: all that chains ask of a target.

    Args:
        terms: maps z (C, B, D), and `inputs`, to T terms, each (C, B). Rows do not depend on each other.
        programs: models and others that it reaches.
        inputs: tensors that differ from one use to the next, such as a minibatch: no constants of compiled code.
        hmc: settings.
        num_transitions: how many transitions are going to be made.
    """

    def __init__(
        self,
        terms: Callable[..., tuple[Tensor, ...]],
        *programs: Any,
        inputs: tuple[Tensor, ...] = (),
        hmc: HMC,
        num_transitions: int,
    ) -> None:
        self.inputs = inputs
        self.is_reduced = hmc.precision != "float32"
        self._terms = terms
        compile = worthwhile(hmc.compile, num_transitions * hmc.num_leapfrog)
        # Pilot chains are fewer than those that count, and both are called often.
        often: dict[str, Any] = {"compile": compile, "patience": 1}
        self._leap = Compiled(self._one_leap, *programs, name="the force of HMC", precision=hmc.precision, **often)
        self._last = Compiled(self._last_leap, *programs, name="the log density of HMC", **often)
        self._values = Compiled(self._terms_alone, *programs, name="the energy of HMC", **often)
        # Where chains begin, which many transitions share.
        seldom: dict[str, Any] = {"compile": compile, "at_once": False}
        self._point = Compiled(self._terms_and_slopes, *programs, name="the log density where HMC begins", **seldom)
        self._slopes = Compiled(
            self._slopes_alone, *programs, name="the force where HMC begins", precision=hmc.precision, **seldom
        )

    @property
    def compiled(self) -> dict[str, Compiled]:
        """What runs as compiled code, by name."""
        return {part.name: part for part in (self._leap, self._last, self._values, self._point, self._slopes)}

    def at(self, *inputs: Tensor) -> Energy:
        """The same log density at other inputs."""
        energy = copy(self)
        energy.inputs = inputs
        return energy

    def point(self, z: Float[Tensor, "C B D"]) -> Point:
        """The terms and their gradients at z. A gradient that is not finite is 0: its trajectory is refused anyway."""
        if self.is_reduced:
            (grads,) = self._slopes(z, *self.inputs)
            return Point(z.detach(), self.values(z), grads)  # type: ignore[arg-type]
        values, grads = self._point(z, *self.inputs)
        return Point(z.detach(), values, grads)  # type: ignore[arg-type]

    def values(self, z: Float[Tensor, "C B D"]) -> Float[Tensor, "T C B"]:
        """The terms alone, at full precision."""
        (values,) = self._values(z, *self.inputs)
        return values  # type: ignore[return-value]

    def leap(self, moving: Moving, course: Course) -> Moving:
        """One leapfrog step; on the way only forces count."""
        return Moving(*self._leap(*moving, *course, *self.inputs)[:3])  # type: ignore[arg-type]

    def last_leap(self, moving: Moving, course: Course) -> tuple[Point, Float[Tensor, "C B D"]]:
        """The step that ends a trajectory: where it ends, with its terms at full precision, and the momentum there."""
        if self.is_reduced:
            z, r, _, grads = self._leap(*moving, *course, *self.inputs)
            return Point(z, self.values(z), grads), r  # type: ignore[arg-type, return-value]
        z, r, _, grads, values = self._last(*moving, *course, *self.inputs)
        return Point(z, values, grads), r  # type: ignore[arg-type, return-value]

    def _one_leap(self, *args: Tensor) -> tuple[Tensor, ...]:
        return self._last_leap(*args)[:4]

    def _last_leap(
        self, z: Tensor, r: Tensor, force: Tensor, weights: Tensor, size: Tensor, factor: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Kick, drift, kick: r + eps A'f / 2, then z + eps A r, then r + eps A'f / 2 with the force there."""
        metric = Metric(factor)
        # Forces alone may be reduced, not where they lead.
        with torch.autocast(z.device.type, enabled=False):
            r = r + 0.5 * size * metric.transpose(force)
            z = z + size * metric.forward(r)
        values, grads = self._terms_and_slopes(z, *inputs)
        with torch.autocast(z.device.type, enabled=False):
            force = _weighted(weights, grads)
            r = r + 0.5 * size * metric.transpose(force)
        return z, r, force, grads, values

    def _terms_and_slopes(self, z: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        values = self._terms(z, *inputs)
        # Of each by itself: through their stack every gradient would take the way of all.
        grads = [
            torch.autograd.grad(value.sum(), z, retain_graph=n + 1 < len(values))[0] for n, value in enumerate(values)
        ]
        return torch.stack(values), torch.stack(grads).nan_to_num(0.0, 0.0, 0.0)

    def _slopes_alone(self, z: Tensor, *inputs: Tensor) -> tuple[Tensor]:
        return (self._terms_and_slopes(z, *inputs)[1],)

    @torch.no_grad()
    def _terms_alone(self, z: Tensor, *inputs: Tensor) -> tuple[Tensor]:
        return (torch.stack(self._terms(z, *inputs)),)


def noise_dims(num_latents: int) -> int:
    """Standard normal numbers that a transition takes, a chain and datapoint: momenta, jitter, acceptance."""
    return num_latents + 2


def transition(
    energy: Energy,
    point: Point,
    weights: Float[Tensor, " T"],
    noise: Float[Tensor, "C B D+2"],
    *,
    step_size: Float[Tensor, " B"],
    metric: Metric,
    hmc: HMC,
) -> tuple[Point, Float[Tensor, "C B"]]:
    r"""One HMC transition of every chain at every datapoint, which leaves the weighted density invariant.

    .. math::
        \log \pi(z) = \sum_t w_t f_t(z) + \text{const.}

    The trajectory runs in u, z = z_0 + A u, with unit mass: u' = r, r' = A' grad log pi.

    Args:
        energy: the terms f_t of the log density.
        point: where the chains are.
        weights: (T,) w.
        noise: (C, B, D + 2) standard normal.
        step_size: (B,) epsilon, in units of the metric.
        metric: A of each datapoint.
        hmc: settings.

    Returns:
        Where the chains are then, and the acceptance probability of each, (C, B).
    """
    momentum, jitter, accept = noise.split([noise.shape[-1] - 2, 1, 1], dim=-1)
    size = step_size.unsqueeze(-1) * (1 + hmc.jitter * torch.erf(jitter / math.sqrt(2)))
    course = Course(weights.to(point.z), size, metric.factor)
    moving = Moving(point.z, momentum, _weighted(weights, point.grads))
    with undisturbed():
        for _ in range(hmc.num_leapfrog - 1):
            moving = energy.leap(moving, course)
        now, r = energy.last_leap(moving, course)
    gain = _weighted(weights, now.terms) - _weighted(weights, point.terms)
    log_ratio = gain + 0.5 * (momentum.square().sum(-1) - r.square().sum(-1))
    # From a start without density anything is better; to an end without one, or past all bounds, nothing goes.
    log_ratio = torch.where(log_ratio > -_DIVERGED, log_ratio, -math.inf)
    # Phi(noise) is uniform; in float32 its logarithm would be -inf from -5.6 on.
    log_u = torch.special.log_ndtr(accept.squeeze(-1).double()).to(log_ratio)
    taken = log_u < log_ratio
    moved = Point(
        torch.where(taken.unsqueeze(-1), now.z, point.z),
        torch.where(taken, now.terms, point.terms),
        torch.where(taken.unsqueeze(-1), now.grads, point.grads),
    )
    return moved, log_ratio.clamp_max(0).exp()


class StepSize:
    r"""A step size for every datapoint, steered towards a target acceptance probability (Robbins & Monro 1951).

    .. math::
        \log \epsilon \leftarrow \log \epsilon + \gamma_t (\bar a - a^*), \qquad \bar a \text{ the mean over chains}

    It is for pilot or warm-up chains alone: chains whose draws count run at frozen step sizes.

    Args:
        start: (B,) first step sizes.
        target: a*.
    """

    def __init__(self, start: Float[Tensor, " B"], *, target: float) -> None:
        self.log_size = start.log()
        self.target = target

    @property
    def value(self) -> Float[Tensor, " B"]:
        """(B,) the step sizes now."""
        return self.log_size.exp()

    def update(self, accept: Float[Tensor, "C B"], *, gain: float | Float[Tensor, " B"]) -> None:
        """Move towards the target, given the acceptance probabilities of one transition."""
        self.log_size = self.log_size + gain * (accept.mean(0) - self.target)


def _weighted(weights: Float[Tensor, " T"], values: Float[Tensor, "T ..."]) -> Tensor:
    return sum(weight * value for weight, value in zip(weights.to(values), values, strict=True))  # type: ignore[return-value]
