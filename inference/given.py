"""Measuring at draws of the global sites: programs that take them as given, and the mean of what is measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.batches import Data, fetch
from inference.globals import find_globals
from inference.guides import Local
from inference.isolation import device_of, frozen
from inference.noise import derive_seed
from inference.results import Evidence, Gaps

__all__ = ["Given", "conditioned", "describe_one", "known_for_one", "one_draw", "over_draws"]

Program = Callable[..., Any]
Given = Mapping[str, Float[Tensor, "M ..."]]
Record = TypeVar("Record", Evidence, Gaps)


def conditioned(program: Program, draw: Mapping[str, Tensor]) -> Program:
    r"""A Pyro program in which these sites have the given values and no density.

    .. math::
        p(x, z, w) \to p(x, z \mid w), \qquad q(z, w \mid x) \to q(z \mid x, w)

    It serves models and guides: where the program samples the sites, it gets the values instead, unexpanded under any
    plate of particles. The auxiliary sites that Pyro's automatic guides draw them from are hidden too.

    Args:
        program: Pyro model or guide.
        draw: the value of each site.

    Raises:
        TypeError: the program cannot be called, or `draw` is no mapping.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from inference import log_joint
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z + w, 1.0).to_event(1), obs=x)
        >>> log_joint(conditioned(model, {"w": torch.ones(2)}), torch.zeros(3, 2), torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3])
    """
    if not callable(program):
        raise TypeError(f"program: expected a Pyro function; got {program!r}.")
    if not isinstance(draw, Mapping):
        raise TypeError(f"draw: expected the value of each site by its name; got {type(draw).__name__}.")
    fixed = _Fix(draw)(program)
    for name in ("family", "site"):
        if hasattr(program, name):
            setattr(fixed, name, getattr(program, name))
    return fixed


class _Fix(Messenger):
    """Give sites their values, and hide them from everything outside."""

    def __init__(self, draw: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.draw = dict(draw)

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401
        if msg["name"] in self.draw:
            msg["value"] = self.draw[msg["name"]]
            msg["is_observed"] = True
            msg["stop"] = True
        elif msg["infer"].get("is_auxiliary") and self._makes_given(msg):
            msg["stop"] = True

    def _makes_given(self, msg: Any) -> bool:  # noqa: ANN401
        outside = not any(frame.dim == -1 for frame in msg["cond_indep_stack"])
        return outside or msg["name"].removesuffix("_unconstrained") in self.draw


def over_draws(
    measure: Callable[[Program, Any, int], Record],
    given: Given,
    data: Data,
    model: Program,
    guide: Program | None = None,
    *,
    seed: int | None = None,
) -> Record:
    r"""Measure conditional on each draw of the global sites, and average.

    .. math::
        \bar v_n = \frac1M \sum_m v_n(w_m), \qquad \mathrm{se}_n = \frac1M \sqrt{\sum_m \mathrm{se}_n(w_m)^2}

    The draws are measured on independent random numbers, the first on the seed itself: one draw is measured exactly as
    the program with its values put in by hand. The error is that of the mean over *these* draws. The mean of log p(x |
    w) over draws of w is not log p(x): by Jensen's inequality it is below the logarithm of the mean.

    Args:
        measure: makes the record of one model and guide with one seed.
        given: draws (M, *shape) of each global site.
        data: (N, P) datapoints.
        model: Pyro model.
        guide: Pyro guide, if any; one without the global sites is left as it is.
        seed: of the whole measurement; None: it draws nothing.

    Returns:
        The record of the means; its `pareto_k` and `start_gap` are the largest over the draws, its `ess` the smallest,
        and a search counts as converged where it was at every draw. Settings that differ between draws are listed.

    Raises:
        ValueError: `given` does not fit the model; the message names the site.
    """
    draws = _draws(given, data, model, guide)
    records = []
    for number, draw in enumerate(draws):
        part = _conditioned_guide(guide, draw, data)
        own_seed = derive_seed(seed or 0, "given", number) if number else seed or 0
        records.append(measure(conditioned(model, draw), part, own_seed))
    return _mean_record(records, tuple(given), seed=seed)


def one_draw(given: Given, data: Data, model: Program, init: object, *, purpose: str) -> tuple[Program, Any]:
    """The model, and the guide that a search starts at, conditional on the only draw.

    Args:
        given: draws of each global site, (1, *shape).
        data: (N, P) datapoints.
        model: Pyro model.
        init: a guide, rows, or None: what is no guide is handed back as it is.
        purpose: whose rows these are.

    Raises:
        ValueError: there are several draws, or `given` does not fit the model.
    """
    guide = init if callable(init) else None
    draws = _draws(given, data, model, guide)
    if len(draws) != 1:
        name = next(iter(given))
        raise ValueError(
            f"given: expected one draw, as the rows of {purpose} are the best at one value of the global sites; got "
            f"{len(draws)}. Pass one, {{'{name}': draws[:1]}}, and call it once for each."
        )
    return conditioned(model, draws[0]), init if guide is None else _conditioned_guide(guide, draws[0], data)


def describe_one(given: Given | None) -> dict[str, Any]:
    """What the record of rows made at one draw says of it."""
    return {} if given is None else {"given": 1, "given_sites": list(given)}


def known_for_one(log_evidence: Record | Tensor | None, given: Given) -> Any:  # noqa: ANN401
    """Known evidence, where there is one draw that it belongs to.

    Raises:
        ValueError: there are several draws: their log p(x | w) differ.
    """
    if log_evidence is not None and any(len(values) != 1 for values in given.values()):
        raise ValueError(
            "log_evidence: expected None with several draws in given=, as log p(x | w) differs between them. Leave it "
            "out, or measure one draw at a time."
        )
    return log_evidence


def _conditioned_guide(guide: Program | None, draw: Mapping[str, Tensor], data: Data) -> Program | None:
    """The guide given the draw; one that samples none of the sites stays what it is, its rows and family at hand."""
    if guide is None or not _sampled(guide, data).intersection(draw):
        return guide
    return conditioned(guide, draw)


def _sampled(guide: Program, data: Data) -> set[str]:
    # It accepts the datapoints it has rows for alone, and samples nothing but its own site.
    if isinstance(guide, Local):
        return set()
    with frozen(guide), torch.no_grad():
        return set(poutine.trace(guide).get_trace(_few(data, guide)).nodes)


def _few(data: Data, *programs: Program | None) -> Tensor:
    return fetch(data, torch.arange(min(len(data), 4)), device=device_of(*programs))


def _draws(given: Given, data: Data, model: Program, guide: Program | None) -> list[dict[str, Tensor]]:
    """One dictionary a draw, on the model's device; refuses what does not fit the model's global sites."""
    if not isinstance(given, Mapping) or not all(isinstance(values, Tensor) for values in given.values()):
        raise TypeError(
            "given: expected a dictionary from the name of each global site to draws of it, a tensor (M, *shape); got "
            f"{type(given).__name__}. `draw_globals` makes it."
        )
    with frozen(model, guide), torch.no_grad():
        x = _few(data, model, guide)
        names = find_globals(model, x).names
        nodes: Mapping[str, Any] = poutine.trace(model).get_trace(x).nodes
    if not names:
        raise ValueError("given: the model samples nothing outside the data plate. Leave given out.")
    if set(given) != set(names):
        raise ValueError(
            f"given: expected draws of {_listed(names)}, all that the model samples outside the data plate; got "
            f"{_listed(given)}."
        )
    num_draws = {name: len(values) if values.dim() else 0 for name, values in given.items()}
    if len(set(num_draws.values())) != 1:
        raise ValueError(
            f"given: expected the same number of draws of every site; got {_listed(num_draws, num_draws)}."
        )
    columns = {}
    for name in names:
        site, values = nodes[name], given[name].detach()
        shape = tuple(site["value"].shape)
        if tuple(values.shape[1:]) != shape or len(values) < 1:
            raise ValueError(
                f"given: '{name}': expected draws of shape (M, *{shape}), M at least 1; got {tuple(values.shape)}. One "
                "value alone: value[None]."
            )
        columns[name] = values.to(site["value"].device)
        if not bool(values.isfinite().all() & site["fn"].support.check(columns[name]).all()):
            raise ValueError(
                f"given: '{name}': expected values in the support of the site, {site['fn'].support}; got others. Take "
                "draws from the fitted guide."
            )
    return [{name: values[m] for name, values in columns.items()} for m in range(len(columns[names[0]]))]


def _listed(names: Any, values: Mapping[str, int] | None = None) -> str:  # noqa: ANN401
    listed = (f"'{name}'" if values is None else f"{values[name]} of '{name}'" for name in names)
    return ", ".join(listed) or "none"


def _mean_record(records: Sequence[Record], names: tuple[str, ...], *, seed: int | None) -> Record:
    first, count = records[0], len(records)
    sites = _listed(names) if len(names) < 4 else f"{_listed(names[:2])} and {len(names) - 2} more sites"
    words = f"conditional on {count} draw{'s' * (count > 1)} of {sites}" + ", averaged" * (count > 1)
    settings = _settings(records) | {"given": count, "given_sites": list(names)}
    changes: dict[str, Any] = {"settings": settings if seed is None else settings | {"seed": seed}}

    def column(name: str) -> Tensor | None:
        values = [getattr(record, name) for record in records]
        return None if values[0] is None else torch.stack(values)

    if isinstance(first, Evidence):
        terms = {"value": "se", "halves": "halves_se"}
        changes |= {name: _mean(column(name)) for name in ("bias", "acceptance")}
        changes["method"] = f"{first.method}, {words}"
    else:
        terms = {term: f"{term}_se" for term in (*Gaps.TERMS, "elbo_local_by_family")}
        changes["evidence_method"] = f"{first.evidence_method}; everything {words}"
        changes["estimates"] = {
            name: _mean_record([record.estimates[name] for record in records], names, seed=seed)
            for name in first.estimates
        }
        changes["converged"] = torch.stack([record.converged for record in records]).all(0)
        changes["start_gap"] = _largest(column("start_gap"))
        changes["seconds"] = {
            part: sum(record.seconds[part] for record in records if part in record.seconds) for part in first.seconds
        }
    for term, error in terms.items():
        values, errors = column(term), column(error)
        if values is not None and errors is not None:
            changes[term] = values.mean(0)
            changes[error] = errors.square().sum(0).sqrt() / count
    changes["pareto_k"] = _largest(column("pareto_k"))
    effective = column("ess")
    changes["ess"] = None if effective is None else effective.amin(0)
    return dataclasses.replace(first, **changes)


def _mean(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.mean(0)


def _largest(values: Tensor | None) -> Tensor | None:
    """The largest over the draws; NaN, where there is nothing to say, only if no draw has a number."""
    if values is None:
        return None
    return torch.where(values.isnan().all(0), math.nan, values.nan_to_num(-math.inf, math.inf, -math.inf).amax(0))


def _settings(records: Sequence[Record]) -> dict[str, Any]:
    rows = [record.settings for record in records]
    return {
        key: value if all(row[key] == value for row in rows) else [row[key] for row in rows]
        for key, value in rows[0].items()
    }
