"""What amortization cost, datapoint by datapoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from inference.results.evidence import Evidence
from inference.results.html import html_table
from inference.results.note import Note
from inference.results.summary import HEADER, fixed, one_line, summarise, table_row

__all__ = ["Gaps"]

# Errors beyond which a gap is told from 0.
_CLEAR = 2.0
# Datapoints that a note names.
_NAMED = 5
# An error of log p(x) of more than this share of the approximation gap is one that a reader must know of.
TIGHT = 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class Gaps:
    r"""What amortization cost, datapoint by datapoint.

    .. math::
        \log p(x) - L[q] = (\log p(x) - L[q^*]) + (L[q^*] - L[q])

    Every term has a value (N,) and a Monte Carlo standard error `<term>_se` (N,), in nats.

    Attributes:
        log_evidence: log p(x), or a lower bound on it.
        elbo_local: L[q*], q* the best member of the family found for this x.
        elbo_amortized: L[q], q the guide.
        approximation_gap: log p(x) - L[q*].
        amortization_gap: L[q*] - L[q]; its error is that of the paired differences.
        inference_gap: log p(x) - L[q].
        converged: (N,) whether the search for q* ended within tolerance.
        start_gap: (N,) |L[warm] - L[cold]|, nats: a check on local optima.
        pareto_k: (N,) tail index of the importance weights behind `log_evidence`, or None.
        ess: (N,) effective number of those draws, or None.
        estimates: every estimator of log p(x), per datapoint and on all its draws, by name; `log_evidence` is that of
            one of them, chosen on half of its draws and scored on the other half. Empty where it was given.
        is_lower_bound: whether `log_evidence` is a lower bound in expectation.
        width: mean distance of the bounds of bidirectional Monte Carlo on simulated data, nats, and its standard error,
            or None.
        family: the guide's family, in words.
        families: the further families, in words.
        elbo_local_by_family: (F, N) L[q*] in each further family, and its error.
        evidence_method: where `log_evidence` comes from.
        seconds: wall-clock seconds of each part.
        settings: everything needed to run it again.

    References:
        Cremer, Li & Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.
    """

    LABELS: ClassVar[Mapping[str, str]] = {
        "log_evidence": "log p(x)",
        "elbo_local": "L[q*]",
        "elbo_amortized": "L[q]",
        "approximation_gap": "approximation gap",
        "amortization_gap": "amortization gap",
        "inference_gap": "inference gap",
    }
    TERMS: ClassVar[tuple[str, ...]] = tuple(LABELS)
    GAPS: ClassVar[tuple[str, ...]] = ("approximation_gap", "amortization_gap", "inference_gap")

    log_evidence: Float[Tensor, " N"]
    log_evidence_se: Float[Tensor, " N"]
    elbo_local: Float[Tensor, " N"]
    elbo_local_se: Float[Tensor, " N"]
    elbo_amortized: Float[Tensor, " N"]
    elbo_amortized_se: Float[Tensor, " N"]
    approximation_gap: Float[Tensor, " N"]
    approximation_gap_se: Float[Tensor, " N"]
    amortization_gap: Float[Tensor, " N"]
    amortization_gap_se: Float[Tensor, " N"]
    inference_gap: Float[Tensor, " N"]
    inference_gap_se: Float[Tensor, " N"]
    converged: Bool[Tensor, " N"]
    start_gap: Float[Tensor, " N"]
    pareto_k: Float[Tensor, " N"] | None
    ess: Float[Tensor, " N"] | None
    family: str
    evidence_method: str
    families: tuple[str, ...] = ()
    elbo_local_by_family: Float[Tensor, "F N"] | None = None
    elbo_local_by_family_se: Float[Tensor, "F N"] | None = None
    estimates: Mapping[str, Evidence] = field(default_factory=dict)
    is_lower_bound: bool = False
    width: tuple[float, float] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of datapoints."""
        return len(self.log_evidence)

    def summary(self) -> dict[str, Any]:
        """Means over datapoints with their two standard errors, the same as the command line's `--json`.

        Returns:
            For each term `{"mean", "se", "mc_se"}` in nats per datapoint, where `mc_se = sqrt(sum se_n^2) / N` is what
            another seed would change and `se = sd_n(value_n) / sqrt(N)` what another sample of datapoints would; then
            `num_data`, `num_unconverged` and `num_untrusted` (Pareto k above 0.7; None where no k is known);
            `families`, by name `elbo_local` and `less_own`, the same of `family_differences`; `notes`, as printed under
            the table; `family`, `evidence_method`, `seed` and `settings`.
        """
        families: dict[str, Any] = {}
        if self.elbo_local_by_family is not None and self.elbo_local_by_family_se is not None:
            found = zip(self.families, self.elbo_local_by_family, self.elbo_local_by_family_se, strict=True)
            less_own = self.family_differences()
            families = {
                name: {"elbo_local": summarise(value, se), "less_own": less_own[name]} for name, value, se in found
            }
        return {
            **self._summarise(slice(None)),
            "families": families,
            "notes": list(map(str, self.notes())),
            "family": self.family,
            "evidence_method": self.evidence_method,
            "seed": self.settings.get("seed"),
            "settings": dict(self.settings),
        }

    def family_differences(self) -> dict[str, dict[str, float]]:
        """L[q*] in each further family less L[q*] in the guide's own, over the same datapoints.

        Returns:
            By name `{"mean", "se", "mc_se"}`, nats per datapoint. `se` is that of the differences, datapoint by
            datapoint. `mc_se` takes the two scores as independent: which draws they share is not kept.
        """
        if self.elbo_local_by_family is None or self.elbo_local_by_family_se is None:
            return {}
        found = zip(self.families, self.elbo_local_by_family, self.elbo_local_by_family_se, strict=True)
        return {name: summarise(value - self.elbo_local, se.hypot(self.elbo_local_se)) for name, value, se in found}

    def _summarise(self, rows: slice | Tensor) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for term in self.TERMS:
            table[term] = summarise(getattr(self, term)[rows], getattr(self, f"{term}_se")[rows])
        converged = self.converged[rows]
        table["num_data"] = converged.numel()
        table["num_unconverged"] = int((~converged).sum())
        table["num_untrusted"] = None if self.pareto_k is None else int((self.pareto_k[rows] > 0.7).sum())
        return table

    def worst(self, k: int = 10) -> Int[Tensor, " k"]:
        """Indices of the `k` datapoints with the largest amortization gap, largest first."""
        return self.amortization_gap.argsort(descending=True)[:k]

    def by(self, labels: Int[Tensor, " N"] | Sequence[int]) -> dict[int, dict[str, Any]]:
        """The summary of each group of datapoints.

        Args:
            labels: (N,) one label a datapoint.

        Returns:
            The summary of each label, labels in increasing order.

        Raises:
            ValueError: `labels` has not one integer a datapoint.
        """
        labels = torch.as_tensor(labels).cpu()
        if labels.shape != (len(self),) or labels.is_floating_point():
            raise ValueError(
                f"labels: expected integers of shape ({len(self)},), one a datapoint; got {labels.dtype} of shape "
                f"{tuple(labels.shape)}. Pass the labels of the rows that were measured."
            )
        return {int(label): self._summarise(labels == label) for label in labels.unique()}

    def table_by(self, labels: Int[Tensor, " N"] | Sequence[int]) -> str:
        """The three gaps of each group of datapoints, each with its sampling error, as a table a person can read.

        Args:
            labels: (N,) one label a datapoint.

        Raises:
            ValueError: `labels` has not one integer a datapoint.
        """
        lines = [f"{'label':>7}{'N':>7}" + "".join(f"{self.LABELS[gap]:>19}{'se':>8}" for gap in self.GAPS)]
        for label, summary in self.by(labels).items():
            gaps = "".join(
                f"{fixed(summary[gap]['mean'], 19, 4)}{fixed(summary[gap]['se'], 8, 4)}" for gap in self.GAPS
            )
            lines.append(f"{label:>7}{summary['num_data']:>7}{gaps}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """One line, without the numbers of every datapoint."""
        means = {gap: f"{float(getattr(self, gap).double().mean()):.4f}" for gap in self.GAPS}
        return one_line(self, N=len(self), family=repr(self.family), **means)

    def __str__(self) -> str:
        """A table a person can read, with the signs of what is left under it."""
        rows = [table_row(label, **row) for label, row in self.rows().items()]
        return "\n".join([HEADER, *rows, "", *map(str, self.notes())])

    def _repr_html_(self) -> str:
        """The same table in a notebook."""
        rows = [
            [label, *(f"{row[column]:.4f}" for column in ("mean", "se", "mc_se"))] for label, row in self.rows().items()
        ]
        return html_table(["nats per datapoint", "mean", "se", "mc_se"], rows, map(str, self.notes()))

    def rows(self) -> dict[str, dict[str, float]]:
        """Every term's mean and errors by its name in words, and L[q*] in each further family."""
        rows = {
            label: summarise(getattr(self, term), getattr(self, f"{term}_se")) for term, label in self.LABELS.items()
        }
        if self.elbo_local_by_family is not None and self.elbo_local_by_family_se is not None:
            found = zip(self.families, self.elbo_local_by_family, self.elbo_local_by_family_se, strict=True)
            rows |= {f"L[q*] in {name}": summarise(value, se) for name, value, se in found}
        return rows

    def notes(self) -> list[Note]:
        """What a reader of the numbers must know: the signs of what is left, and where not to trust them."""
        num_data, num_unconverged = len(self), int((~self.converged).sum())
        remarks = [
            *self._verdict(),
            f"N = {num_data}; q in {self.family}.",
            f"log p(x): {self.evidence_method}.",
            "se: another sample of datapoints; mc_se: another seed.",
            "The search for q* can only fall short: the amortization gap is under-estimated.",
        ]
        if self.is_lower_bound:
            remarks.append(
                "log p(x) can only fall short (a lower bound in expectation): the inference gap is under-estimated."
            )
        remarks.append("The approximation gap can err either way.")
        notes = [Note(text=remark) for remark in remarks]
        if num_unconverged:
            text = f"Not converged: {num_unconverged} of {num_data} searches for q*."
            notes.append(Note(severity="caution", text=text))
        starts = self.start_gap[self.start_gap.isfinite()]
        if len(starts) and (num_apart := int((starts > 0.1).sum())):
            text = f"Warm and cold search end more than 0.1 nat apart at {num_apart} of {num_data} datapoints."
            notes.append(Note(severity="caution", text=text))
        return notes + self._evidence_notes()

    def _verdict(self) -> list[str]:
        """Which of encoder and family costs more, and what a further family would win; nothing not told from 0."""
        approximation, amortization, inference = (
            summarise(getattr(self, gap), getattr(self, f"{gap}_se")) for gap in self.GAPS
        )
        said = []
        # One datapoint has no sampling error: NaN compares as false.
        if _is_clear(inference):
            if _is_clear(approximation) and _is_clear(amortization):
                share = amortization["mean"] / inference["mean"]
                # Of a ratio of means, by the delta method.
                rest = self.amortization_gap.double() - share * self.inference_gap.double()
                se = float(rest.std()) / math.sqrt(len(self)) / inference["mean"]
                said.append(
                    f"{share:.0%} of the inference gap is amortization (the encoder), {1 - share:.0%} approximation "
                    f"(the family); se {se:.1%}."
                )
            elif _is_clear(amortization):
                said.append(
                    "The inference gap is amortization (the encoder): approximation is not told from 0 by its errors."
                )
            elif _is_clear(approximation):
                said.append(
                    "The inference gap is approximation (the family): amortization is not told from 0 by its errors."
                )
        for name, apart in self.family_differences().items():
            mean, side = abs(apart["mean"]), "above" if apart["mean"] >= 0 else "below"
            said.append(
                f"L[q*] in {name} is {mean:.4f} {side} that in {self.family} (se {apart['se']:.4f}, paired by "
                f"datapoint; mc_se {apart['mc_se']:.4f}, unpaired)."
            )
        return said

    def _evidence_notes(self) -> list[Note]:
        """Where log p(x) is not tight enough for the gap it is reported with."""
        notes = []
        num_data = len(self)
        gap = abs(float(self.approximation_gap.mean()))
        if self.pareto_k is not None:
            if unreliable := int((self.pareto_k > 0.5).sum()):
                text = f"Pareto k > 0.5 {{}}: the error of log p(x) is unreliable there {_named(self.pareto_k, 0.5)}."
                notes.append(Note(severity="caution", text=text, share=(unreliable, num_data)))
            if untrusted := int((self.pareto_k > 0.7).sum()):
                text = (
                    f"Pareto k > 0.7 {{}}: do not trust log p(x) there {_named(self.pareto_k, 0.7)}. Try more "
                    "num_evidence_draws, or a richer family in families."
                )
                notes.append(Note(severity="warning", text=text, share=(untrusted, num_data)))
        for name, estimate in self.estimates.items():
            if estimate.acceptance is not None and estimate.ess is not None and (few := int((estimate.ess < 2).sum())):
                text = (
                    f"one chain carries the weight of {name} at {few} of {num_data} datapoints "
                    f"{_named(-estimate.ess, -2)}. Raise num_chains or num_temperatures of annealing."
                )
                notes.append(Note(severity="warning", text=text))
        if len(self.estimates) > 1:
            means = {name: summarise(estimate.value, estimate.se) for name, estimate in self.estimates.items()}
            found = "; ".join(f"{name} {row['mean']:.4f}" for name, row in means.items())
            notes.append(Note(text=f"Estimators: {found}."))
            apart = max(row["mean"] for row in means.values()) - min(row["mean"] for row in means.values())
            if apart > TIGHT * gap and apart > 3 * math.hypot(*(row["mc_se"] for row in means.values())):
                text = (
                    f"the estimators of log p(x) are {apart:.3f} nats apart, beside an approximation gap of {gap:.3f}: "
                    "the lower falls short by that much, the higher by an unknown rest."
                )
                notes.append(Note(severity="warning", text=text))
        if self.width is not None and self.width[0] > TIGHT * gap:
            text = (
                f"on simulated data AIS can be {self.width[0]:.3f} nats off (se {self.width[1]:.3f}), beside an "
                f"approximation gap of {gap:.3f}: log p(x) is not tight enough. Raise num_temperatures."
            )
            notes.append(Note(severity="warning", text=text))
        return notes


def _is_clear(gap: Mapping[str, float]) -> bool:
    return gap["mean"] > _CLEAR * max(gap["se"], gap["mc_se"])


def _named(values: Tensor, threshold: float) -> str:
    """The datapoints whose values lie above, the worst first."""
    worst = values.nan_to_num(-math.inf).argsort(descending=True)[: int((values > threshold).sum())].tolist()
    more = ", ..." if len(worst) > _NAMED else ""
    return f"(datapoint{'s' * (len(worst) > 1)} {', '.join(map(str, worst[:_NAMED]))}{more})"
