"""Two bounds on log p(x) that enclose it in expectation, on data simulated from the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inference.results.evidence import Evidence
from inference.results.summary import fixed, one_line, summarise

__all__ = ["Bidirectional", "Side"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Side:
    """What ordinary estimators say on one set of data: simulated ones, or real ones to compare with.

    Attributes:
        elbo: the ELBO at the q that chains start from, or near it.
        iwae: importance sampling with a defensive proposal made of it, with its tail indices.
    """

    elbo: Evidence
    iwae: Evidence

    def describe(self) -> dict[str, float]:
        """Mean ELBO and what IWAE adds to it, nats; the median tail index, and the share of those above 0.7."""
        k = self.iwae.pareto_k
        known = torch.zeros(0) if k is None else k[~k.isnan()]
        return {
            "ELBO": float(self.elbo.value.mean()),
            "IWAE - ELBO": float((self.iwae.value - self.elbo.value).mean()),
            "median Pareto k": float(known.median()) if len(known) else float("nan"),
            "share of k > 0.7": float((known > 0.7).double().mean()) if len(known) else 0.0,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Bidirectional:
    r"""A lower and an upper bound on log p(x), both in expectation, for data simulated from the model.

    Their distance bounds how far AIS falls short there, in expectation. On real data there is no upper bound:
    `simulated` and `real` say how alike the two sets of data are to the same estimators.

    Attributes:
        z: (N, D) the latent vectors that the data were simulated with.
        x: (N, P) the simulated data.
        lower: AIS, chains from the start to the posterior.
        upper: chains from z back to the start.
        simulated: the ELBO and IWAE on the simulated data.
        real: the same on real data.

    References:
        Grosse, Ghahramani & Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
        Wu, Burda, Salakhutdinov & Grosse (2017), On the quantitative analysis of decoder-based generative models.
    """

    z: Float[Tensor, "N D"]
    x: Float[Tensor, "N P"]
    lower: Evidence
    upper: Evidence
    simulated: Side
    real: Side

    @property
    def width(self) -> Float[Tensor, " N"]:
        """(N,) upper less lower bound, nats. Below 0 by chance alone."""
        return self.upper.value - self.lower.value

    @property
    def width_se(self) -> Float[Tensor, " N"]:
        """(N,) its Monte Carlo standard error, nats; unreliable where few chains carry the weight."""
        return self.upper.se.hypot(self.lower.se)

    def summary(self) -> dict[str, dict[str, float]]:
        """`{"mean", "se", "mc_se"}` of the two bounds and of their distance, nats per datapoint."""
        return {
            "lower": summarise(self.lower.value, self.lower.se),
            "upper": summarise(self.upper.value, self.upper.se),
            "width": summarise(self.width, self.width_se),
        }

    def __repr__(self) -> str:
        """One line."""
        return one_line(self, N=len(self.x), width=f"{float(self.width.double().mean()):.4f}")

    def __str__(self) -> str:
        """The bounds, and the two sets of data side by side."""
        lines = [f"{'simulated data, nats per datapoint':<40}{'mean':>12}{'se':>10}{'mc_se':>10}"]
        labels = {"lower": "lower bound (AIS)", "upper": "upper bound (backward chains)", "width": "width"}
        for name, row in self.summary().items():
            lines.append(
                f"{labels[name]:<40}{fixed(row['mean'], 12, 4)}{fixed(row['se'], 10, 4)}{fixed(row['mc_se'], 10, 4)}"
            )
        simulated, real = self.simulated.describe(), self.real.describe()
        lines += ["", f"{'the same estimators on':<40}{'simulated':>12}{'real':>10}"]
        lines += [f"{name:<40}{fixed(simulated[name], 12, 4)}{fixed(real[name], 10, 4)}" for name in simulated]
        lines += [
            "",
            f"N = {len(self.x)}; {self.lower.method}.",
            "The width bounds in expectation how far AIS falls short on simulated data. It is evidence for real data, "
            "not a bound:",
            "the more so the closer the two columns are.",
        ]
        return "\n".join(lines)
