"""Whether a guide's draws are draws from the posterior, judged on data simulated from the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from inference.results.summary import one_line

__all__ = ["Calibration"]

# Quantities that are printed.
_SHOWN = 12


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """Ranks of the true z among a guide's draws, for several test quantities, and whether they are uniform.

    Attributes:
        names: (T,) test quantities: each dimension of z, then log p(x, z).
        ranks: (N, T) how many of the draws lie below the true value; ties are broken at random.
        num_draws: L, draws at each simulated datapoint: ranks are 0, ..., L.
        alpha: probability that an exact guide fails in any quantity.
        lower: (L,) least value inside the band, of the share of ranks below i less i / (L + 1), i = 1, ..., L.
        upper: (L,) largest such value. All L shares of all quantities lie inside with probability 1 - alpha or more.
        p_values: (T,) of each quantity alone: the probability that uniform ranks look as improbable, or more.
        settings: everything needed to run it again.

    References:
        Talts, Betancourt, Simpson, Vehtari & Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration.
        Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari (2023), Simulation-based calibration checking
        for Bayesian computation: the choice of test quantities shapes sensitivity.
    """

    JOINT: ClassVar[str] = "log p(x, z)"

    names: tuple[str, ...]
    ranks: Int[Tensor, "N T"]
    num_draws: int
    alpha: float
    lower: Float[Tensor, " L"]
    upper: Float[Tensor, " L"]
    p_values: Float[Tensor, " T"]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def difference(self) -> Float[Tensor, "T L"]:
        """The share of ranks below i, less i / (L + 1), for i = 1, ..., L: what the band is around."""
        below = torch.stack([torch.bincount(ranks, minlength=self.num_draws + 1) for ranks in self.ranks.T]).cumsum(-1)
        expected = torch.arange(1, self.num_draws + 1, dtype=torch.float64) / (self.num_draws + 1)
        return below[:, :-1].double() / len(self.ranks) - expected

    @property
    def distance(self) -> Float[Tensor, " T"]:
        """The largest absolute difference of each quantity: how far from uniform, however many the simulations."""
        return self.difference.abs().amax(-1)

    @property
    def passes_by_quantity(self) -> Bool[Tensor, " T"]:
        """Whether each quantity's differences lie inside the band."""
        inside = (self.difference >= self.lower - 1e-12) & (self.difference <= self.upper + 1e-12)
        return inside.all(-1)

    @property
    def passes(self) -> bool:
        """Whether all of them do: nothing here tells the guide from the posterior."""
        return bool(self.passes_by_quantity.all())

    @property
    def shapes(self) -> tuple[str, ...]:
        """What the ranks of each quantity look like, in words; "uniform" where they pass."""
        return tuple(
            "uniform" if passed else _shape(ranks, self.num_draws, joint=name == self.JOINT)
            for name, ranks, passed in zip(self.names, self.ranks.T, self.passes_by_quantity.tolist(), strict=True)
        )

    def __repr__(self) -> str:
        """One line."""
        return one_line(
            self, N=len(self.ranks), quantities=len(self.names), num_draws=self.num_draws, passes=self.passes
        )

    def __str__(self) -> str:
        """The verdict, and a line for each quantity: of many, for those furthest from uniform."""
        failed = [name for name, passed in zip(self.names, self.passes_by_quantity.tolist(), strict=True) if not passed]
        where = ", ".join(failed) if len(failed) <= _SHOWN else f"{len(failed)} of {len(self.names)} quantities"
        width = max(map(len, self.names)) + 2
        shown = sorted(self.distance.argsort(descending=True)[:_SHOWN].tolist())
        shapes, p_values, distances = self.shapes, self.p_values.tolist(), self.distance.tolist()
        lines = [
            f"Simulation-based calibration: the guide {f'fails in {where}' if failed else 'passes'}.",
            f"{'quantity':<{width}}{'p':>10}{'distance':>10}  ranks of the true value",
            *(f"{self.names[t]:<{width}}{p_values[t]:>10.2g}{distances[t]:>10.3f}  {shapes[t]}" for t in shown),
        ]
        if len(shown) < len(self.names):
            lines.append(f"and {len(self.names) - len(shown)} more, closer to uniform")
        return "\n".join(
            [
                *lines,
                "",
                f"{len(self.ranks)} simulated datapoints, {self.num_draws} draws each.",
                f"An exact guide fails with probability {self.alpha:g} at most (Bonferroni over {len(self.names)} "
                "quantities).",
                "distance: the largest difference between the distribution of the ranks and the uniform one.",
            ]
        )


def _shape(ranks: Int[Tensor, " N"], num_draws: int, *, joint: bool) -> str:
    """Slope, U or hump: which of the outer quarters hold too many ranks, in standard errors."""
    quarter = max(1, (num_draws + 1) // 4)
    share = quarter / (num_draws + 1)
    low = float((ranks < quarter).double().mean()) - share
    high = float((ranks > num_draws - quarter).double().mean()) - share
    root = math.sqrt(len(ranks))
    slope = root * (high - low) / math.sqrt(2 * share)
    bend = root * (high + low) / math.sqrt(2 * share * max(1 - 2 * share, share))
    if max(abs(slope), abs(bend)) < 2:
        return "neither sloped, nor a U, nor a hump: look at the differences"
    if abs(slope) < abs(bend):
        return "a U: the guide is too narrow" if bend > 0 else "a hump: the guide is too wide"
    if joint:
        return (
            "low: the draws lie where the joint density is too high; the guide is too narrow"
            if slope < 0
            else "high: the draws lie where the joint density is too low; the guide is too wide, shifted or misses a "
            "correlation"
        )
    return f"sloped: the guide is shifted {'up' if slope < 0 else 'down'}"
