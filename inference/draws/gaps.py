"""The group `gaps` of a tree: what amortization cost, datapoint by datapoint, written and read again."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from inference.results import Evidence, Gaps

__all__ = ["gaps_dataset", "gaps_from_datatree"]

_GAPS_ATTRIBUTES = (
    "family",
    "families",
    "evidence_method",
    "is_lower_bound",
    "width",
    "estimates",
    "settings",
    "seconds",
)
_ESTIMATE_COLUMNS = ("value", "se", "bias", "ess", "pareto_k", "acceptance")
# The values on two halves of the draws: what is chosen among estimators on one is scored on the other.
_ESTIMATE_HALVES = ("halves", "halves_se")
_WITHOUT_UNIT = (
    "converged",
    "labels",
    *(f"{prefix}{name}" for prefix in ("", "estimate_") for name in ("pareto_k", "ess", "acceptance")),
)


def gaps_dataset(gaps: Gaps, obs_ids: np.ndarray | None = None, labels: np.ndarray | None = None) -> xr.Dataset:
    """The group `gaps` of a tree.

    Args:
        gaps: the record.
        obs_ids: (N,) names of the datapoints; default 0, 1, ....
        labels: (N,) labels of the datapoints: a variable `labels` and a coordinate `label`.
    """

    def array(value: Tensor) -> np.ndarray:
        return value.detach().cpu().numpy()

    terms = [name for term in Gaps.TERMS for name in (term, f"{term}_se")]
    optional = [name for name in ("pareto_k", "ess") if getattr(gaps, name) is not None]
    variables: dict[str, Any] = {
        name: ("obs_id", array(getattr(gaps, name))) for name in [*terms, "converged", "start_gap", *optional]
    }
    coords: dict[str, Any] = {"obs_id": np.arange(len(gaps)) if obs_ids is None else obs_ids}
    if gaps.elbo_local_by_family is not None and gaps.elbo_local_by_family_se is not None:
        variables["elbo_local_by_family"] = (("family", "obs_id"), array(gaps.elbo_local_by_family))
        variables["elbo_local_by_family_se"] = (("family", "obs_id"), array(gaps.elbo_local_by_family_se))
        coords["family"] = np.asarray(gaps.families, dtype=str)
    for name in (*_ESTIMATE_COLUMNS, *_ESTIMATE_HALVES):
        # Of some estimators a column may be unknown.
        columns = [getattr(estimate, name) for estimate in gaps.estimates.values()]
        known = [column for column in columns if column is not None]
        if known:
            unknown = torch.full_like(known[0], torch.nan)
            stacked = torch.stack([unknown if column is None else column for column in columns])
            dims = ("estimator", "half", "obs_id") if name in _ESTIMATE_HALVES else ("estimator", "obs_id")
            variables[f"estimate_{name}"] = (dims, array(stacked))
            coords["estimator"] = np.asarray(list(gaps.estimates), dtype=str)
    if labels is not None:
        variables["labels"] = coords["label"] = ("obs_id", labels)
    for name, variable in variables.items():
        if name not in _WITHOUT_UNIT:
            variables[name] = (*variable, {"units": "nats"})
    attrs = {
        "family": gaps.family,
        "evidence_method": gaps.evidence_method,
        "is_lower_bound": int(gaps.is_lower_bound),
        "width": json.dumps(gaps.width),
        "estimates": json.dumps(
            {
                name: {"method": estimate.method, "bound": estimate.bound, "settings": dict(estimate.settings)}
                for name, estimate in gaps.estimates.items()
            },
            default=str,
        ),
        "settings": json.dumps(dict(gaps.settings), default=str),
        "seconds": json.dumps(dict(gaps.seconds)),
        "note": "<term>_se is the Monte Carlo standard error at that datapoint",
    }
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def gaps_from_datatree(tree: xr.DataTree) -> Gaps | None:
    """The `Gaps` record that a tree holds, or None.

    Args:
        tree: what `to_datatree` returned, or a file opened by `xarray.open_datatree`.

    Raises:
        ValueError: its group `gaps` is not what `to_datatree` writes.
    """
    if "gaps" not in tree.children:
        return None
    group = tree["gaps"].to_dataset()
    _require_schema(group)
    try:
        return _read(group)
    # What else a stranger's file can hold raises many kinds.
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"group 'gaps': expected what to_datatree writes; it has something missing or unknown ({error!r}). Measure "
            "the gaps again."
        ) from error


def _require_schema(group: xr.Dataset) -> None:
    """Refuse a group without the variables, dimensions and attributes that are read from it."""
    columns = {"obs_id": [name for term in Gaps.TERMS for name in (term, f"{term}_se")] + ["converged", "start_gap"]}
    lacking = [name for name in columns["obs_id"] if name not in group] + [
        f"attribute {name}" for name in _GAPS_ATTRIBUTES if name != "families" and name not in group.attrs
    ]
    if lacking:
        raise ValueError(
            f"group 'gaps': expected every term with its error, and how it was measured; it lacks "
            f"{', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}. Measure the gaps again."
        )
    columns["obs_id"] += ["pareto_k", "ess", "labels"]
    columns["family, obs_id"] = ["elbo_local_by_family", "elbo_local_by_family_se"]
    columns["estimator, obs_id"] = [f"estimate_{name}" for name in _ESTIMATE_COLUMNS]
    columns["estimator, half, obs_id"] = [f"estimate_{name}" for name in _ESTIMATE_HALVES]
    for dims, names in columns.items():
        for name in names:
            if name not in group:
                continue
            came = ", ".join(map(str, group[name].dims))
            numeric = name == "labels" or group[name].dtype.kind in "buif"
            if came != dims or not numeric or not group.sizes["obs_id"]:
                raise ValueError(
                    f"group 'gaps': expected {name} to be numbers of dimensions ({dims}); it is {group[name].dtype} of "
                    f"({came}), sizes {tuple(group[name].shape)}. Measure the gaps again."
                )


def _read(group: xr.Dataset) -> Gaps:
    """The record in a group."""

    def tensor(name: str) -> Tensor | None:
        return torch.as_tensor(np.array(group[name].values)) if name in group else None

    def estimate(number: int) -> dict[str, Tensor | None]:
        stacked = {name: tensor(f"estimate_{name}") for name in (*_ESTIMATE_COLUMNS, *_ESTIMATE_HALVES)}
        rows = {name: None if values is None else values[number] for name, values in stacked.items()}
        if rows["value"] is None or rows["se"] is None:
            raise KeyError("estimate_value, estimate_se")
        return {name: None if row is None or bool(row.isnan().all()) else row for name, row in rows.items()}

    stored = [field.name for field in dataclasses.fields(Gaps) if field.name not in _GAPS_ATTRIBUTES]
    values: dict[str, Any] = {name: tensor(name) for name in stored}
    values["converged"] = values["converged"].bool()
    return Gaps(
        **values,
        family=group.attrs["family"],
        families=tuple(map(str, group["family"].values)) if "family" in group.coords else (),
        evidence_method=group.attrs["evidence_method"],
        is_lower_bound=bool(group.attrs["is_lower_bound"]),
        width=None if (width := json.loads(group.attrs["width"])) is None else tuple(width),
        estimates={
            name: Evidence(**estimate(number), **about)  # type: ignore[arg-type]
            for number, (name, about) in enumerate(json.loads(group.attrs["estimates"]).items())
        },
        settings=json.loads(group.attrs["settings"]),
        seconds=json.loads(group.attrs["seconds"]),
    )
