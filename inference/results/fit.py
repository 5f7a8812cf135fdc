"""What fitting returns: how training went, and the rows that a search found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from inference.convergence import still_rising
from inference.results.html import html_table
from inference.results.note import Note
from inference.results.summary import one_line, summarise

__all__ = ["Fit", "Refined"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
    """How a training run went. The modules themselves are fitted in place.

    Attributes:
        elbo: (E,) the true ELBO (never the warmed-up objective) on the training data, one value an epoch, nats per
            datapoint, averaged over the epoch's minibatches at the parameters each was visited with. For variational EM
            it is taken after each visit's E-step. None where there is no q, hence no ELBO (Monte Carlo EM).
        elbo_validation: (E,) the ELBO on the held-out data at the end of each epoch, nats per datapoint, or None.
        seconds: wall-clock seconds of the whole run.
        num_steps: number of optimiser steps on shared parameters.
        stopped_because: one phrase: why the run ended.
        best_epoch: 0-based epoch whose parameters were kept (early stopping), or None: the last ones.
        settings: everything needed to run it again.
        params: (N, K) rows of variational parameters of the training data (variational EM only), else None.
        elbo_start: (E,) of semi-amortized inference, else None: the true ELBO on the training data at the encoder's
            rows, before the steps of each visit; `elbo` and `elbo_validation` are those after the steps.
        elbo_start_validation: (E,) the same on the held-out data at the end of each epoch, or None.
        elbo_best_validation: (E,) of semi-amortized inference: the held-out ELBO at q*, rows that have come to rest, at
            the end of each epoch, or None.
        elbo_best: () of variational EM: the training ELBO at q*, the rows in `params`, at the final model on fresh
            draws, else None.
        log_joint: (E,) mean log p(x, z) over the chains of the training data (Monte Carlo EM only), one value an epoch,
            nats per datapoint, else None. It bounds nothing, and compares with no ELBO.
    """

    elbo: Float[Tensor, " E"] | None
    elbo_validation: Float[Tensor, " E"] | None
    seconds: float
    num_steps: int
    stopped_because: str
    best_epoch: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    params: Float[Tensor, "N K"] | None = None
    elbo_start: Float[Tensor, " E"] | None = None
    elbo_start_validation: Float[Tensor, " E"] | None = None
    elbo_best_validation: Float[Tensor, " E"] | None = None
    elbo_best: Float[Tensor, ""] | None = None
    log_joint: Float[Tensor, " E"] | None = None

    @property
    def history(self) -> dict[str, Float[Tensor, " E"]]:
        """What was measured each epoch, by the name of its attribute; what was not is left out."""
        columns = {
            "elbo": self.elbo,
            "log_joint": self.log_joint,
            "elbo_validation": self.elbo_validation,
            "elbo_start": self.elbo_start,
            "elbo_start_validation": self.elbo_start_validation,
            "elbo_best_validation": self.elbo_best_validation,
        }
        return {name: values for name, values in columns.items() if values is not None}

    def _repr_html_(self) -> str:
        """The epoch whose parameters were kept, in a notebook."""
        rows = [[name, f"{values[self._kept]:.4f}"] for name, values in self.history.items() if len(values)]
        when = "after the last epoch" if self.best_epoch is None else f"at the kept epoch {self.best_epoch + 1}"
        return html_table([when, "nats per datapoint"], rows, str(self).split("\n"))

    def __repr__(self) -> str:
        """One line, without the numbers of every epoch."""
        reached = {name: f"{values[self._kept]:.3f}" for name, values in self.history.items() if len(values)}
        num_epochs = max(map(len, self.history.values()), default=0)
        return one_line(self, epochs=num_epochs, **reached, stopped_because=repr(self.stopped_because))

    def __str__(self) -> str:
        """Length, what was reached, and why it stopped, in one line; under it what a reader must know."""
        return "\n".join([self.headline, *map(str, self.notes())])

    def notes(self) -> list[Note]:
        """What a reader must know of the fit, and of all that is measured at it: that training was cut short.

        It was where the epochs that the settings allow were all used, and the curve still rises by the rule of
        `inference.convergence.still_rising`: the mean over the last tenth of the epochs exceeds that over the tenth
        before by 0.1 nats and three of its errors, the noise from epoch to epoch. The curve is the held-out ELBO where
        it was measured, since where that no longer rises more training is not the advice; else the ELBO on the
        training data, or the mean of log p(x, z). Epochs of the KL warm-up are left out. Of fewer than 5 epochs it says
        nothing.
        """
        labels = {"elbo_validation": "the held-out ELBO", "elbo": "the ELBO", "log_joint": "the mean of log p(x, z)"}
        name = next((name for name in labels if name in self.history), None)
        if name is None:
            return []
        curve, training = self.history[name], self.settings.get("training", {})
        # What ended before its budget was ended by a criterion that the user chose.
        if len(curve) < training.get("epochs", 0):
            return []
        found = still_rising(curve[training.get("warm_up", 0) :])
        if found is None:
            return []
        rise, num_epochs = found
        text = (
            f"{labels[name]} was still rising, by about {rise:.2g} nats over the last {num_epochs} epochs, when the "
            f"budget of {len(curve)} ended: what is measured is of an unfinished fit. Train longer."
        )
        return [Note(severity="warning", text=text)]

    @property
    def headline(self) -> str:
        """One line: length, what the epoch that was kept had reached, and why it stopped."""
        lengths = [len(values) for values in self.history.values()]
        if not any(lengths):
            return f"no epoch finished; stopped because: {self.stopped_because}"
        names = {"elbo": "ELBO", "log_joint": "mean log p(x, z)", "elbo_validation": "held-out ELBO"}
        if self.elbo is not None:
            names["elbo_validation"] = "held-out"
        stages = ""
        if self.elbo_start is not None and self.elbo_best is not None:
            stages = f" ({self.elbo_start[self._kept]:.3f} before the steps, {self.elbo_best:.3f} at q*)"
        reached = ", ".join(
            f"{label} {self.history[name][self._kept]:.3f}{stages * (name == 'elbo')}"
            for name, label in names.items()
            if name in self.history
        )
        kept = "" if self.best_epoch is None else f" at the kept epoch {self.best_epoch + 1}"
        return (
            f"{lengths[0]} epochs, {self.num_steps} steps, {self.seconds:.1f} s: {reached} nats per datapoint{kept}; "
            f"stopped because: {self.stopped_because}"
        )

    @property
    def _kept(self) -> int:
        """The epoch whose parameters the model has now, in the history."""
        return -1 if self.best_epoch is None else self.best_epoch


@dataclass(frozen=True, eq=False, kw_only=True)
class Refined:
    """The best member of a family for each datapoint, as far as the search came.

    `Local(family, refined.params)` is its guide.

    Attributes:
        params: (N, K) rows of variational parameters.
        elbo: (N,) ELBO at those rows on draws that chose nothing, nats.
        elbo_se: (N,) its Monte Carlo standard error.
        remaining: (N,) estimated gain, in nats, that further search would still bring.
        converged: (N,) whether `remaining` is below the tolerance.
        start_gap: (N,) |L[warm] - L[cold]| after the search, nats; NaN where the search had one start only.
        settings: everything needed to run it again.
    """

    params: Float[Tensor, "N K"]
    elbo: Float[Tensor, " N"]
    elbo_se: Float[Tensor, " N"]
    remaining: Float[Tensor, " N"]
    converged: Bool[Tensor, " N"]
    start_gap: Float[Tensor, " N"]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line, without the rows."""
        elbo = summarise(self.elbo, self.elbo_se)["mean"]
        return one_line(self, N=len(self.elbo), elbo=f"{elbo:.4f}", num_unconverged=int((~self.converged).sum()))
