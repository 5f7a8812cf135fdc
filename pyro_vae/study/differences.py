"""Is A better than B? The difference, with an error over datapoints and one over seeds; or why there is none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from inference.results import summarise
from pyro_vae.comparison import Scored, paired_difference
from pyro_vae.study.words import where

__all__ = ["ENOUGH_SEEDS", "Difference", "Refusal", "difference_of"]

# Seeds from which on a spread over seeds is worth reporting.
ENOUGH_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Held-out log p(x) at one value of an axis less that at another, all else equal.

    Attributes:
        axis: the axis.
        value: the one value.
        baseline: the other.
        elsewhere: where on the other axes, but for the seed.
        mean: nats per datapoint, over datapoints and seeds.
        se: what another sample of datapoints would change, the fitted models as they are.
        mc_se: what another seed of the measurement would.
        seed_se: what other training seeds would; NaN for fewer than three.
        by_seed: the mean over datapoints for each training seed that both were fitted with.
    """

    axis: str
    value: str
    baseline: str
    elsewhere: Mapping[str, str]
    mean: float
    se: float
    mc_se: float
    seed_se: float
    by_seed: Mapping[str, float]

    @property
    def num_seeds(self) -> int:
        """Training seeds that both were fitted with."""
        return len(self.by_seed)

    @property
    def title(self) -> str:
        """What is compared, and where."""
        place = f" ({where(self.elsewhere)})" if self.elsewhere else ""
        return f"{self.axis}: {self.value} - {self.baseline}{place}"

    @property
    def scope(self) -> str:
        """What the number speaks of: training runs in general, or those that were made."""
        if self.num_seeds >= ENOUGH_SEEDS:
            return f"seed_se {self.seed_se:.3f}, {self.num_seeds} seeds"
        if self.num_seeds == 1:
            return "these two fits only"
        return f"{self.num_seeds} seeds, too few for an error over seeds: these fits only"

    def summary(self) -> dict[str, Any]:
        """As plain values; None for what is not finite."""
        values = dataclasses.asdict(self) | {"num_seeds": self.num_seeds}
        values["by_seed"] = {seed: _known(value) for seed, value in self.by_seed.items()}
        return {name: _known(value) for name, value in values.items()}

    def __str__(self) -> str:
        """A line."""
        errors = f"se {self.se:.3f}, mc_se {self.mc_se:.3f}; {self.scope}"
        return f"{self.title}: {self.mean:+.3f} nats per datapoint ({errors})"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why there is no difference between one value of an axis and another.

    Attributes:
        kind: "base measure": masses against densities; "data": not the same datapoints.
        axis: the axis.
        value: the one value.
        baseline: the other.
        reason: what does not compare, at the first of the places.
        places: where on the other axes, but for the seed, it is so.
    """

    kind: Literal["base measure", "data"]
    axis: str
    value: str
    baseline: str
    reason: str
    places: tuple[Mapping[str, str], ...]

    def summary(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A sentence for all places."""
        others = len(self.places) - 1
        more = f" So at {others} other place{'s' * (others > 1)}." if others else ""
        return f"{self.axis}: {self.value} - {self.baseline} is refused: {self.reason}{more}"


def difference_of(
    pairs: Mapping[str, tuple[Scored, Scored]],
    *,
    axis: str,
    value: str,
    baseline: str,
    elsewhere: Mapping[str, str],
) -> Difference | Refusal:
    r"""The mean over seeds s and datapoints n of log p(x) of the one less that of the other, with its errors.

    .. math::
        d_{sn} = \log p_s(x_n) - \log p'_s(x_n), \qquad \mathrm{se} = \mathrm{sd}_n(\bar d_{\cdot n}) / \sqrt N, \qquad
        \mathrm{seed\_se} = \mathrm{sd}_s(\bar d_{s \cdot}) / \sqrt S

    `mc_se` takes the Monte Carlo errors of all cells as independent, as they are where each has a measurement seed of
    its own.

    Args:
        pairs: by training seed, the scores of both.
        axis: on which they differ.
        value: the one's value there.
        baseline: the other's.
        elsewhere: where both lie on the other axes, but for the seed.

    Returns:
        The difference; or the refusal of masses against densities, and of other datapoints, of one seed or of several.
    """
    refused = _refused(pairs)
    if refused is not None:
        kind, reason = refused
        return Refusal(kind=kind, axis=axis, value=value, baseline=baseline, reason=reason, places=(elsewhere,))
    # (S, N): the same datapoints for all seeds.
    values = torch.stack([one.log_p.value.double() - other.log_p.value.double() for one, other in pairs.values()])
    errors = torch.stack([one.log_p.se.double().hypot(other.log_p.se.double()) for one, other in pairs.values()])
    over_data = summarise(values.mean(0), errors.square().sum(0).sqrt() / len(pairs))
    by_seed = values.mean(1)
    return Difference(
        axis=axis,
        value=value,
        baseline=baseline,
        elsewhere=elsewhere,
        mean=over_data["mean"],
        se=over_data["se"],
        mc_se=over_data["mc_se"],
        seed_se=summarise(by_seed, torch.zeros_like(by_seed))["se"] if len(pairs) >= ENOUGH_SEEDS else math.nan,
        by_seed=dict(zip(pairs, by_seed.tolist(), strict=True)),
    )


def _refused(pairs: Mapping[str, tuple[Scored, Scored]]) -> tuple[Literal["base measure", "data"], str] | None:
    """What does not compare: within a pair, or from one seed to another, over which datapoints are paired, too."""
    first, _ = next(iter(pairs.values()))
    for pair in pairs.values():
        for scored in pair:
            try:
                paired_difference(first, scored)
            except ValueError as error:
                return "base measure" if scored.base_measure != first.base_measure else "data", str(error)
    return None


def _known(value: Any) -> Any:  # noqa: ANN401
    return None if isinstance(value, float) and not math.isfinite(value) else value
