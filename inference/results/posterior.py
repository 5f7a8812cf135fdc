"""Draws from the posterior of each datapoint, and what says whether to trust them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from inference.results.note import Note
from inference.results.summary import fixed, one_line, summarise

__all__ = ["PosteriorDraws"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PosteriorDraws:
    """Draws from p(z | x) of each datapoint by Markov chains: exact as the chains grow long, and never before.

    Chains are ordered by superchain: the first `num_chains / num_superchains` of them started at one point, and so on.

    Attributes:
        z: (C, S, N, D) draws, on the prior's support.
        log_joint: (C, S, N) log p(x, z) at each, nats.
        nested_rhat: (N,) the largest nested R-hat over the dimensions of the chains and log p(x, z).
        ess: (N,) effective number of draws of all chains together, the smallest over the same.
        drift: (N,) mean log p(x, z) over the second half of the draws, less that over the first, nats.
        drift_se: (N,) its standard error over chains.
        acceptance: (N,) mean acceptance probability over the draws.
        step_size: (N,) the frozen step size, in units of the frozen metric.
        num_superchains: K.
        seconds: wall-clock seconds.
        settings: everything needed to run it again.
    """

    MAX_RHAT: ClassVar[float] = 1.01
    ACCEPTANCE: ClassVar[tuple[float, float]] = (0.3, 0.95)

    z: Float[Tensor, "C S N D"]
    log_joint: Float[Tensor, "C S N"]
    nested_rhat: Float[Tensor, " N"]
    ess: Float[Tensor, " N"]
    drift: Float[Tensor, " N"]
    drift_se: Float[Tensor, " N"]
    acceptance: Float[Tensor, " N"]
    step_size: Float[Tensor, " N"]
    num_superchains: int
    seconds: float = math.nan
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of datapoints."""
        return len(self.ess)

    @property
    def converged(self) -> Bool[Tensor, " N"]:
        """(N,) whether nested R-hat is within 1.01. It can show that chains have not mixed, never that they have."""
        return self.nested_rhat <= self.MAX_RHAT

    def __repr__(self) -> str:
        """One line."""
        return one_line(
            self,
            z=tuple(self.z.shape),
            num_superchains=self.num_superchains,
            converged=f"{int(self.converged.sum())} of {len(self)}",
        )

    def __str__(self) -> str:
        """A table a person can read, with warnings under it."""
        num_chains, num_draws = self.log_joint.shape[:2]
        drift, se, mc_se = summarise(self.drift, self.drift_se).values()
        chains = f"{num_chains} chains ({self.num_superchains} starting points a datapoint)"
        lines = [
            f"asymptotically exact draws: {chains} x {num_draws} draws, N = {len(self)}, {self.seconds:.1f} s",
            f"{'':<28}{'median':>12}{'worst':>12}",
            _row("nested R-hat", self.nested_rhat.median(), self.nested_rhat.max()),
            _row("effective draws", self.ess.median(), self.ess.min(), digits=0),
            _row("acceptance", self.acceptance.median(), self.acceptance.min()),
            f"drift of log p(x, z): {drift:.4f} nats per datapoint, se {se:.4f} (Monte Carlo {mc_se:.4f})",
        ]
        return "\n".join([*lines, *map(str, self.notes())])

    def notes(self) -> list[Note]:
        """Warnings; none where nothing was found."""
        num_data, found = len(self), []
        if apart := int((~self.converged).sum()):
            found.append(
                f"nested R-hat above {self.MAX_RHAT} at {apart} of {num_data} datapoints: chains still depend "
                "on where they started, or are too short to tell. Raise num_warmup or num_draws."
            )
        errors = _three_errors(num_data)
        drifting = int((self.drift.abs() > errors * self.drift_se).sum())
        mean, _, mc_se = summarise(self.drift, self.drift_se).values()
        if drifting or abs(mean) > 3 * mc_se:
            found.append(
                f"log p(x, z) drifts by {mean:.4f} nats on average (Monte Carlo error {mc_se:.4f}), and by "
                f"more than {errors:.1f} of its errors at {drifting} of {num_data} datapoints: the warm-up was too "
                "short. Raise num_warmup."
            )
        low, high = self.ACCEPTANCE
        if outside := int(((self.acceptance < low) | (self.acceptance > high)).sum()):
            found.append(
                f"acceptance outside [{low}, {high}] at {outside} of {num_data} datapoints: the step size did "
                "not settle. Raise num_warmup."
            )
        return [Note(severity="warning", text=text) for text in found]


def _three_errors(num_data: int) -> float:
    """As many errors as the largest of `num_data` drifts of 0 exceeds no more often than one of them exceeds three."""
    normal = NormalDist()
    return -normal.inv_cdf(normal.cdf(-3.0) / num_data)


def _row(label: str, median: Tensor, worst: Tensor, *, digits: int = 4) -> str:
    shown = f"{float(worst):.{digits}f}" if abs(float(worst)) < 1e6 else f"{float(worst):.1e}"
    return f"{label:<28}{fixed(float(median), 12, digits)}{shown:>12}"
