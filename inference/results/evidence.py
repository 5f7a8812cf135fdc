"""An estimate of log p(x) for each datapoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from inference.results.html import html_table
from inference.results.summary import one_line, summarise

__all__ = ["Evidence"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """An estimate of log p(x), or a bound on it, for each datapoint.

    Attributes:
        value: (N,) nats.
        se: (N,) Monte Carlo standard error, nats (0 for quadrature and closed forms).
        method: what it is, in words.
        bound: "lower" or "upper", where `value` is such a bound on log p(x) in expectation, else None.
        ess: (N,) effective number of draws or chains, or None.
        pareto_k: (N,) tail index of the importance weights, or None. Above 0.5 `se` is unreliable, above 0.7 `value`
            is too. NaN where there is no tail to speak of, or too few weights to see one.
        bias: (N,) estimated expectation of `value` less log p(x), nats, or None. `value` is not corrected by it.
        acceptance: (N,) mean acceptance probability of the Markov transitions behind it, or None.
        halves: (2, N) the values on two halves of the draws, or None: what is chosen on one can be scored on the other.
        halves_se: (2, N) their standard errors.
        settings: everything needed to run it again.
    """

    value: Float[Tensor, " N"]
    se: Float[Tensor, " N"]
    method: str
    bound: Literal["lower", "upper"] | None = None
    ess: Float[Tensor, " N"] | None = None
    pareto_k: Float[Tensor, " N"] | None = None
    bias: Float[Tensor, " N"] | None = None
    acceptance: Float[Tensor, " N"] | None = None
    halves: Float[Tensor, "2 N"] | None = None
    halves_se: Float[Tensor, "2 N"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an error that belongs to other values: their means would be taken over different datapoints."""
        if not isinstance(self.value, Tensor) or not isinstance(self.se, Tensor):
            came = next(type(given).__name__ for given in (self.value, self.se) if not isinstance(given, Tensor))
            raise TypeError(f"Evidence: expected value and se as tensors (N,); got {came}. Try torch.as_tensor.")
        if self.value.dim() != 1 or self.se.shape != self.value.shape:
            raise ValueError(
                f"Evidence: expected value and se of one shape (N,); got {tuple(self.value.shape)} and "
                f"{tuple(self.se.shape)}."
            )

    def __repr__(self) -> str:
        """One line."""
        return one_line(
            self, N=len(self.value), mean=f"{summarise(self.value, self.se)['mean']:.4f}", method=repr(self.method)
        )

    def _repr_html_(self) -> str:
        """The mean and its errors in a notebook."""
        row = summarise(self.value, self.se)
        cells = [self.method, *(f"{row[column]:.4f}" for column in ("mean", "se", "mc_se"))]
        return html_table(["nats per datapoint", "mean", "se", "mc_se"], [cells], [", ".join(self._trust())])

    def __str__(self) -> str:
        """One line: the mean with both standard errors, and what says how far to trust it."""
        mean, se, mc_se = summarise(self.value, self.se).values()
        errors = f"se {se:.4f} (Monte Carlo {mc_se:.4f})"
        return ", ".join([f"{self.method}: {mean:.4f} nats per datapoint", errors, *self._trust()])

    def _trust(self) -> list[str]:
        """What says how far to trust it."""
        parts = [f"N = {len(self.value)}"]
        if self.ess is not None:
            parts.append(f"effective number {self.ess.median():.1f} (median)")
        if self.acceptance is not None:
            parts.append(f"acceptance {self.acceptance.mean():.2f}")
        if self.pareto_k is not None and (high := int((self.pareto_k > 0.7).sum())):
            parts.append(f"Pareto k > 0.7 at {high}: do not trust it there")
        return parts
