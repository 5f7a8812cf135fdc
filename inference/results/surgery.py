"""The ELBO taken apart: what the rate is spent on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from inference.results.summary import HEADER, one_line, summarise, table_row

__all__ = ["Surgery"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Surgery:
    r"""The ELBO taken apart, datapoint by datapoint.

    .. math::
        \frac1N \sum_n L[q_n] = \text{reconstruction} - I(n; z) - \mathrm{KL}(\bar q(z) \,\|\, p(z)), \qquad
        \bar q(z) = \frac1N \sum_n q(z \mid x_n)

    Every term has a value (N,) whose mean it is, and a Monte Carlo standard error `<term>_se` (N,), in nats. They are
    unbiased for these N datapoints. For the population that the datapoints come from, I(n; z) is under-estimated (it is
    log N at most) and KL(q̄ || p) over-estimated, by as much: mutual information is concave in the distribution of x.

    Attributes:
        elbo: L[q].
        reconstruction: E_q log p(x | z).
        kl: KL(q(z | x_n) || p(z)), the sum of the next two.
        mutual_information: KL(q(z | x_n) || q̄(z)), whose mean is I(n; z).
        marginal_kl: E_{q(z | x_n)}[log q̄(z) - log p(z)], whose mean is KL(q̄ || p).
        kl_per_dim: (N, D) KL of each coordinate's marginals, KL(q(z_d | x_n) || p(z_d)), or None where they have no
            known density. They sum to `kl` where q and p both have independent coordinates, not otherwise.
        kl_per_dim_method: where they come from, or why there are none.
        activity: (D,) Var_n(E_q[z_d | x_n]) / Var_p(z_d).
        threshold: a dimension is active above this activity.
        settings: everything needed to run it again.

    References:
        Hoffman & Johnson (2016), ELBO surgery: yet another way to carve up the variational evidence lower bound.
        Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders (active units).
    """

    LABELS: ClassVar[Mapping[str, str]] = {
        "elbo": "ELBO",
        "reconstruction": "reconstruction",
        "kl": "KL(q(z|x) || p(z))",
        "mutual_information": "  I(n; z)",
        "marginal_kl": "  KL(mean q || p)",
    }
    TERMS: ClassVar[tuple[str, ...]] = tuple(LABELS)

    elbo: Float[Tensor, " N"]
    elbo_se: Float[Tensor, " N"]
    reconstruction: Float[Tensor, " N"]
    reconstruction_se: Float[Tensor, " N"]
    kl: Float[Tensor, " N"]
    kl_se: Float[Tensor, " N"]
    mutual_information: Float[Tensor, " N"]
    mutual_information_se: Float[Tensor, " N"]
    marginal_kl: Float[Tensor, " N"]
    marginal_kl_se: Float[Tensor, " N"]
    kl_per_dim: Float[Tensor, "N D"] | None
    kl_per_dim_method: str
    activity: Float[Tensor, " D"]
    threshold: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of datapoints."""
        return len(self.elbo)

    @property
    def active_units(self) -> Bool[Tensor, " D"]:
        """Which dimensions of z are used: the variance of their mean is more than a small part of the prior's."""
        return self.activity > self.threshold

    def summary(self) -> dict[str, Any]:
        """Means over datapoints with their two standard errors, then `num_data`, `num_latents` and `num_active`.

        `se` treats the terms that hold q̄ as if it were known: right to first order in 1 / N, the bias aside.
        """
        table: dict[str, Any] = {
            term: summarise(getattr(self, term), getattr(self, f"{term}_se")) for term in self.TERMS
        }
        active = self.active_units
        return table | {"num_data": len(self), "num_latents": len(active), "num_active": int(active.sum())}

    def __repr__(self) -> str:
        """One line."""
        return one_line(
            self,
            N=len(self),
            elbo=f"{float(self.elbo.double().mean()):.4f}",
            kl=f"{float(self.kl.double().mean()):.4f}",
        )

    def __str__(self) -> str:
        """A table a person can read, with the signs of the biases under it."""
        summary = self.summary()
        num_data = len(self)
        lines = [
            HEADER,
            *(table_row(label, **summary[term]) for term, label in self.LABELS.items()),
            "",
            f"N = {num_data}; ELBO = reconstruction - I(n; z) - KL(mean q || p), exactly.",
            "se: another sample of datapoints; mc_se: another seed.",
            f"Of the population, I is under-estimated (here it is at most log N = {math.log(num_data):.2f}) and the "
            "KL of the",
            "mean of q over-estimated, by as much.",
            f"Active units: {summary['num_active']} of {summary['num_latents']} (the variance of E[z|x] is above "
            f"{self.threshold:g} of the prior's).",
        ]
        if num_data > 1 and summary["mutual_information"]["mean"] > 0.95 * math.log(num_data):
            lines.append("I is at that bound: z tells every datapoint from every other, and I(x; z) may be far larger.")
        unknown = int((~self.activity.isfinite()).sum())
        if unknown:
            lines.append(f"The prior has no variance in {unknown} dimensions: they are not counted.")
        return "\n".join(lines)
