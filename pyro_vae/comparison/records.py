"""What a comparison found: scores that know what they may be compared with, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from inference import Evidence
from inference.counts import require_kind
from inference.results import summarise
from inference.results.summary import fixed

__all__ = ["EXACT", "Compared", "Comparison", "Scored", "paired_difference"]

BaseMeasure = Literal["counting", "lebesgue"]
# `Evidence.method` of what needs no estimate.
EXACT = "closed form"


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """log p(x) of the same datapoints under one fitted model, with what decides whether two of them compare.

    Attributes:
        name: of the model.
        log_p: log p(x) of each datapoint, exact or estimated.
        base_measure: "counting" (probability masses) or "lebesgue" (densities), as the likelihood says.
        fingerprint: what the datapoints are: equal ones promise the same x in the same order. `Dataset.fingerprint`,
            and the split where several are scored.
    """

    name: str
    log_p: Evidence
    base_measure: BaseMeasure
    fingerprint: str


def paired_difference(a: Scored, b: Scored) -> dict[str, float]:
    r"""Mean of log p_a(x) - log p_b(x) over the same datapoints, with both errors.

    .. math::
        d_n = \log p_a(x_n) - \log p_b(x_n), \qquad \mathrm{se} = \mathrm{sd}_n(d_n) / \sqrt N, \qquad
        \mathrm{mc\_se} = \sqrt{\textstyle\sum_n \mathrm{se}_{a,n}^2 + \mathrm{se}_{b,n}^2} \, / N

    Datapoints that are hard for every model cancel, so the error of a difference is smaller than that of either mean.
    `mc_se` takes the Monte Carlo errors of the two as independent.

    Args:
        a: one model's scores.
        b: the other's.

    Returns:
        `{"mean", "se", "mc_se"}`, nats per datapoint.

    Raises:
        ValueError: masses against densities, other data, or another number of datapoints: such numbers do not compare.

    Example:
        >>> def scored(name, value):
        ...     log_p = Evidence(value=value, se=torch.zeros_like(value), method="exact")
        ...     return Scored(name=name, log_p=log_p, base_measure="lebesgue", fingerprint="digits/test")
        >>> paired_difference(scored("a", torch.tensor([1.0, 3.0])), scored("b", torch.tensor([0.0, 0.0])))
        {'mean': 2.0, 'se': 1.0, 'mc_se': 0.0}
    """
    for name, scored in (("a", a), ("b", b)):
        require_kind(name, scored, Scored, hint="A comparison makes it: comparison.scored(name).")
    names = f"{a.name!r} and {b.name!r}"
    if a.base_measure != b.base_measure:
        raise ValueError(
            f"base_measure: expected one for {names}; got {a.base_measure!r} and {b.base_measure!r}: probability "
            "masses and densities do not compare. Fit both with likelihoods of one base measure."
        )
    if a.fingerprint != b.fingerprint:
        raise ValueError(
            f"fingerprint: expected the same data for {names}; got {_short(a.fingerprint)} and "
            f"{_short(b.fingerprint)}. Score both on one split of one data set, with the same binarization."
        )
    if a.log_p.value.shape != b.log_p.value.shape:
        raise ValueError(
            f"log_p: expected the same datapoints for {names}; got {len(a.log_p.value)} and {len(b.log_p.value)}. "
            "Score both on the same rows."
        )
    ours, theirs = (scored.log_p.value.detach().double().cpu() for scored in (a, b))
    errors = (scored.log_p.se.detach().double().cpu() for scored in (a, b))
    return summarise(ours - theirs, torch.hypot(*errors))


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """One model of a comparison, measured on the test split.

    Attributes:
        name: of the model.
        squared_error: (N,) mean over data values of the squared reconstruction error, in squared units of x.
        log_p: log p(x), exact where that is possible, else by IWAE; None where the model has no density.
        log_p_iwae: log p(x) by IWAE, or None.
        scale: noise standard deviation, in the units of x; the mean over data values where each has its own; None where
            there is none.
        seconds: wall-clock seconds of the fit.
        how: how the fit ended, one phrase.
        mark: what a reader of the table must know of this row, or None.
    """

    name: str
    squared_error: Float[Tensor, " N"]
    log_p: Evidence | None = None
    log_p_iwae: Evidence | None = None
    scale: float | None = None
    seconds: float
    how: str
    mark: str | None = None

    def summary(self) -> dict[str, Any]:
        """Means over datapoints with their errors, as plain numbers."""
        error = summarise(self.squared_error, torch.zeros_like(self.squared_error))
        return {
            "squared_error": {"mean": error["mean"], "se": error["se"]},
            "log_p": None if self.log_p is None else summarise(self.log_p.value, self.log_p.se),
            "log_p_method": None if self.log_p is None else self.log_p.method,
            "log_p_iwae": None if self.log_p_iwae is None else summarise(self.log_p_iwae.value, self.log_p_iwae.se),
            "scale": self.scale,
            "seconds": self.seconds,
            "fit": self.how,
            "mark": self.mark,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """What `compare` found. Printing it shows the table.

    Attributes:
        models: one a fitted model, in the order of the table.
        data: name of the data set.
        fingerprint: of the data set.
        num_data: test datapoints measured.
        num_latents: D.
        settings: everything needed to run it again.
    """

    models: Sequence[Compared]
    data: str
    fingerprint: str
    num_data: int
    num_latents: int
    settings: Mapping[str, Any]

    def __getitem__(self, name: str) -> Compared:
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(f"{name!r}: expected one of {', '.join(repr(model.name) for model in self.models)}.")

    def scored(self, name: str) -> Scored:
        """The scores of one model, for `paired_difference`.

        Args:
            name: of the model.

        Raises:
            KeyError: there is no such model.
            ValueError: it has no density.
        """
        log_p = self[name].log_p
        if log_p is None:
            raise ValueError(f"{name!r}: expected a model with a density; it has none, so no log p(x).")
        return Scored(name=name, log_p=log_p, base_measure="lebesgue", fingerprint=f"{self.fingerprint}/test")

    def difference(self, a: str, b: str) -> dict[str, float]:
        """Log p(x) of model `a` minus that of `b`, paired by datapoint: `{"mean", "se", "mc_se"}`.

        Args:
            a: name of a model with a density.
            b: name of another.
        """
        return paired_difference(self.scored(a), self.scored(b))

    def summary(self) -> dict[str, Any]:
        """What `--json` prints: every model's numbers, and each difference to the first with a density."""
        dense = [model.name for model in self.models if model.log_p is not None]
        return {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "num_data": self.num_data,
            "num_latents": self.num_latents,
            "models": {model.name: model.summary() for model in self.models},
            "log_p_difference": {f"{name} - {dense[0]}": self.difference(name, dense[0]) for name in dense[1:]},
            "settings": dict(self.settings),
        }

    def __str__(self) -> str:
        """An aligned table, and under it what its reader must know."""
        lines = [
            f"{self.data}, D = {self.num_latents}, N = {self.num_data} test datapoints",
            "",
            f"{'':<14}{'squared error':>20}{'log p(x), nats per datapoint':>38}{'':>8}{'':>9}{'':>9}",
            f"{'':<14}{'mean':>12}{'se':>8}{'mean':>16}{'se':>9}{'mc_se':>9}{'':>12}{'scale':>9}{'seconds':>9}",
        ]
        marks: dict[str, str] = {}
        for model in self.models:
            row = model.summary()
            error, log_p = row["squared_error"], row["log_p"]
            sign = marks.setdefault(model.mark, "*†‡§"[len(marks)]) if model.mark else ""
            name = f"{model.name}{sign}"
            density = "–".rjust(16) + "–".rjust(9) * 2 + " " * 12
            if model.log_p is not None:
                how = "exact" if model.log_p.method == EXACT else "IWAE"
                density = (
                    f"{fixed(log_p['mean'], 16, 3)}{fixed(log_p['se'], 9, 3)}{fixed(log_p['mc_se'], 9, 4)}   {how:<9}"
                )
            scale = "–" if model.scale is None else f"{model.scale:.3f}"
            lines.append(
                f"{name:<14}{error['mean']:>12.4g}{error['se']:>8.2g}{density}{scale:>9}{fixed(model.seconds, 9, 1)}"
            )
        lines += ["", *(f"{sign} {mark}" for mark, sign in marks.items()), *self._notes()]
        return "\n".join(line.rstrip() for line in lines)

    def _notes(self) -> list[str]:
        notes = [
            "Squared error: of the reconstruction, mean over data values, in squared units of x. Scale: of the noise.",
            "se: another sample of datapoints; mc_se: another seed of the estimate of log p(x).",
        ]
        dense = [model for model in self.models if model.log_p is not None]
        for model in dense[1:]:
            row = self.difference(model.name, dense[0].name)
            notes.append(
                f"log p(x) of {model.name} - {dense[0].name}, paired: {row['mean']:.3f} (se {row['se']:.3f}, mc_se "
                f"{row['mc_se']:.4f})."
            )
        for model in dense:
            if model.log_p_iwae is None:
                continue
            if model.log_p is not None and model.log_p.method == EXACT:
                row = summarise(model.log_p_iwae.value - model.log_p.value, model.log_p_iwae.se)
                notes.append(
                    f"A check: IWAE - exact log p(x) of {model.name}: {row['mean']:.4f} (mc_se {row['mc_se']:.4f})."
                )
            k = model.log_p_iwae.pareto_k
            if k is not None and bool((k > 0.7).any()):
                notes.append(f"Warning: {model.name}: Pareto k > 0.7 at {int((k > 0.7).sum())} of {len(k)} datapoints.")
        return [*notes, "One seed of training: another may change the networks' rows by more than se."]


def _short(fingerprint: str) -> str:
    """A digest by its first characters, with what follows it."""
    digest, slash, rest = fingerprint.partition("/")
    return f"{digest[:12]}{slash}{rest}"
