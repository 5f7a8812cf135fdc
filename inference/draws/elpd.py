"""Held-out log p(x) in the form in which ArviZ ranks models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import xarray as xr
from torch import Tensor

from inference.draws.schema import per_datapoint
from inference.results import Evidence

if TYPE_CHECKING:
    import arviz

__all__ = ["to_elpd"]

# Above it the library warns of an estimate, whatever the number of draws.
GOOD_K = 0.7


def to_elpd(evidence: Evidence, *, obs_ids: Sequence[Any] | np.ndarray | Tensor | None = None) -> arviz.ELPDData:
    r"""Held-out log p(x) as the `ELPDData` that `arviz.compare` ranks models by.

    .. math::
        \mathrm{elpd} = \sum_n \log \hat p(x_n), \qquad \mathrm{se} = \sqrt{N \, \mathrm{Var}_n(\log \hat p(x_n))}

    By ArviZ's conventions it is a sum over the N datapoints, where the library reports means, and Var divides by N.
    ArviZ knows two kinds of elpd, "loo" and "waic", and this one goes by "loo", but nothing is left out one by one:
    the model must not have seen these datapoints at all. So there is no effective number of parameters (`p` is NaN).
    Monte Carlo errors have no place in an `ELPDData`, apart from what they add to the spread over datapoints; the
    warning is set where a Pareto k is above 0.7.

    Score all models by one estimator (`by_one_estimator`), on the same datapoints in the same order, under likelihoods
    of one base measure. ArviZ checks none of this; `pyro_vae.comparison.paired_difference` does.

    Args:
        evidence: log p(x) of each held-out datapoint.
        obs_ids: (N,) names of the datapoints; default 0, 1, ....

    Returns:
        One value a datapoint, with its Pareto k where the record has one.

    Raises:
        ValueError: `evidence` is no such record, an upper bound, of fewer than two datapoints or not finite, or
            `obs_ids` has another length.

    Example:
        >>> import torch
        >>> def exact(value):
        ...     return Evidence(value=value, se=torch.zeros_like(value), method="closed form")
        >>> a = to_elpd(exact(torch.tensor([-1.0, -3.0])))
        >>> float(a["se"])
        1.4142135623730951
    """
    import arviz  # slow, and needed by nothing else here

    value = _checked(evidence)
    ids = np.arange(len(value)) if obs_ids is None else per_datapoint("obs_ids", obs_ids, len(value))

    def array(values: np.ndarray, name: str) -> xr.DataArray:
        return xr.DataArray(values, dims=["obs_id"], coords={"obs_id": ids}, name=name)

    k = None if evidence.pareto_k is None else evidence.pareto_k.detach().double().cpu().numpy()
    if k is not None and np.isnan(k).all():
        k = None  # no tail anywhere, as under an exact posterior: nothing to count
    entries: dict[str, Any] = {
        "elpd": float(value.sum()),
        "se": float(np.sqrt(len(value) * np.var(value))),
        "p": np.nan,
        "n_samples": _num_samples(evidence),
        "n_data_points": len(value),
        "warning": k is not None and bool((k > GOOD_K).any()),
        "elpd_i": array(value, "elpd_i"),
        "pareto_k": None if k is None else array(k, "pareto_k"),
        "scale": "log",
        "good_k": GOOD_K,
    }
    made: Any = arviz.ELPDData
    if not issubclass(made, pd.Series):  # ArviZ 1.x
        # Its first releases have one class for all kinds.
        own = getattr(arviz, "ELPDDataLOO", None)
        return made(kind="loo", **entries) if own is None else own(**entries)
    # A `pandas.Series`, printed by position and told apart from WAIC by the name of its first entry.
    old = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
    series = {old.get(name, name): entry for name, entry in entries.items() if entry is not None}
    return made(data=list(series.values()), index=list(series))


def _checked(evidence: Evidence) -> np.ndarray:
    """The values, (N,), of a record that models can be ranked by."""
    if not isinstance(evidence, Evidence):
        raise ValueError(
            f"evidence: expected an Evidence, as iwae and ais return; got {type(evidence).__name__}. Of several Gaps, "
            "pass what by_one_estimator makes of them."
        )
    if evidence.bound == "upper":
        raise ValueError(
            f"evidence: expected an estimate of log p(x) or a lower bound; got an upper bound ({evidence.method}), "
            "which favours the model with the looser one. Pass the lower bound."
        )
    value = evidence.value.detach().double().cpu().numpy()
    if len(value) < 2:
        raise ValueError(
            f"evidence: expected at least 2 datapoints, over which an error can be told; got {len(value)}. Score more."
        )
    bad = np.flatnonzero(~np.isfinite(value))
    if len(bad):
        raise ValueError(
            f"evidence: expected finite values; got {value[bad[0]]:g} at datapoint {bad[0]} ({len(bad)} of "
            f"{len(value)} are not finite). Find out why the model gives that x no finite density before ranking it."
        )
    return value


def _num_samples(evidence: Evidence) -> int:
    """Draws or chains behind each value; 0 where nothing was drawn, or the record does not say."""
    settings = evidence.settings
    return int(settings.get("num_draws") or settings.get("annealing", {}).get("num_chains", 0))
