"""Gaps beside gaps: training against held-out data, real data against simulated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from inference.results.gaps import Gaps
from inference.results.summary import difference, fixed

__all__ = ["Generalization", "SimulatedGaps"]

# Standard errors beyond which a difference is read as one; two terms are looked at.
_CLEAR = 3.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Generalization:
    """How much larger each gap is on held-out data than on the data trained on.

    Attributes:
        training: gaps of training data.
        test: gaps of held-out data, at the same model and guide.
    """

    training: Gaps
    test: Gaps

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """For each term `{"training", "test", "generalization"}`, each with its mean, se and mc_se.

        The generalization is the test mean less the training mean. Its `se` is what other samples of both sets of
        datapoints would change, its `mc_se` what other seeds would.
        """
        return _compare(training=self.training, test=self.test, less="training", difference_name="generalization")

    def __str__(self) -> str:
        """A line for each gap: test = training + generalization."""
        summary = self.summary()
        lines = []
        for gap in Gaps.GAPS:
            training, test, more = summary[gap].values()
            lines.append(
                f"{Gaps.LABELS[gap]}: test {test['mean']:.4f} = training {training['mean']:.4f} + generalization "
                f"{more['mean']:.4f} (se {more['se']:.4f}, mc_se {more['mc_se']:.4f})"
            )
        sizes = f"N = {len(self.training)} training, {len(self.test)} test; nats per datapoint."
        return "\n".join([*lines, sizes, *_notes(self.training, self.test)])


@dataclass(frozen=True, eq=False, kw_only=True)
class SimulatedGaps:
    """Gaps of real data beside those of data simulated from the model.

    Where they differ, real x are not such as the model draws. Where they agree, a large gap is the encoder's.

    Attributes:
        real: gaps of the data.
        simulated: gaps of as many datapoints, or another number, drawn from the model.
    """

    real: Gaps
    simulated: Gaps

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """For each term `{"real", "simulated", "difference"}`, each with its mean, se and mc_se."""
        return _compare(real=self.real, simulated=self.simulated, less="simulated", difference_name="difference")

    @property
    def reading(self) -> str:
        """What the differences say, in a sentence: of those above three standard errors, and the search's tolerance."""
        summary = self.summary()
        gap, log_p = (summary[term]["difference"] for term in ("amortization_gap", "log_evidence"))
        if not math.isfinite(gap["se"] + log_p["se"]):
            return "One datapoint alone has no sampling error: nothing can be read off the differences."
        if _is_clear(gap, tol=self.real.settings.get("tol", 0.0)):
            more = "larger" if gap["mean"] > 0 else "smaller"
            return (
                f"The amortization gap is {more} on real data by {abs(gap['mean']):.4f} (se {gap['se']:.4f}): the "
                "model is misspecified, and the encoder does not do the same on its x as on real ones."
            )
        if _is_clear(log_p):
            less = "less" if log_p["mean"] < 0 else "more"
            return (
                "The amortization gap is the same on real and on simulated data, so it is the encoder's; the model is "
                f"misspecified all the same: log p(x) of real x is {abs(log_p['mean']):.4f} (se {log_p['se']:.4f}) "
                f"nats {less}."
            )
        return (
            "Real and simulated data differ by less than three standard errors (amortization gap "
            f"{gap['mean']:.4f}, se {gap['se']:.4f}; log p(x) {log_p['mean']:.4f}, se {log_p['se']:.4f}): as far as so "
            "many datapoints can tell, the gap is the encoder's and the model is not misspecified."
        )

    def __str__(self) -> str:
        """Both side by side with the difference and its errors, and what to read off them."""
        lines = [f"{'nats per datapoint':<20}{'real':>12}{'simulated':>12}{'difference':>12}{'se':>10}{'mc_se':>10}"]
        for term, row in self.summary().items():
            real, simulated, apart = row.values()
            lines.append(
                f"{Gaps.LABELS[term]:<20}{fixed(real['mean'], 12, 4)}{fixed(simulated['mean'], 12, 4)}"
                f"{fixed(apart['mean'], 12, 4)}{fixed(apart['se'], 10, 4)}{fixed(apart['mc_se'], 10, 4)}"
            )
        lines += ["", f"N = {len(self.real)} real, {len(self.simulated)} simulated.", self.reading]
        return "\n".join([*lines, *_notes(self.real, self.simulated)])


def _compare(*, less: str, difference_name: str, **records: Gaps) -> dict[str, dict[str, Any]]:
    """Each term of two records, and the one that is not `less` less the other."""
    summaries = {name: record.summary() for name, record in records.items()}
    (other,) = (name for name in records if name != less)
    return {
        term: {name: summary[term] for name, summary in summaries.items()}
        | {difference_name: difference(summaries[other][term], summaries[less][term])}
        for term in Gaps.TERMS
    }


def _is_clear(apart: dict[str, float], *, tol: float = 0.0) -> bool:
    return abs(apart["mean"]) > max(_CLEAR * apart["se"], tol)


def _notes(*records: Gaps) -> list[str]:
    unconverged = [int((~record.converged).sum()) for record in records]
    if not any(unconverged):
        return []
    counts = " and ".join(f"{count} of {len(record)}" for count, record in zip(unconverged, records, strict=True))
    return [f"Not converged: {counts} searches for q*."]
