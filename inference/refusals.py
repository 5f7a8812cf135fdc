"""Refusals before the first step: whatever would end a fit later is said while nothing has moved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.batches import Data, fetch
from inference.densities import in_data_plate, is_factor, listed, mask_of, sample_sites, speaks
from inference.exclusive import exclusively
from inference.isolation import eval_mode, modules_of, running
from inference.noise import own_random_state, random_states, set_random_states
from inference.objectives import Objective
from inference.processes import Shards, alone
from inference.scoring import require_readable
from inference.training import Training, require_valid

__all__ = [
    "buffers_kept",
    "refuse_early",
    "require_data_fit",
    "require_last_batch",
    "require_pair",
    "unmoved",
    "without_factors",
]

Program = Callable[..., Any]

# Rows that a dry run of a measurement looks at.
FEW = 4
# Rows that are looked at together.
AT_ONCE = 1024
# Further runs of a program, on other random numbers, that show whether its sites are always the same.
RUNS = 4


def refuse_early(
    model: Program,
    guide: Program,
    data: Data,
    first: Tensor,
    training: Training,
    *,
    step: Objective,
    objective: Objective | None,
    factors: list[str],
    scored: Callable[[Tensor], object] | None,
    validation: Data | None,
    held_out: Callable[[Data, Shards], float],
    device: torch.device,
) -> None:
    """Refuse before the first step whatever would end the run after it, or make its numbers wrong.

    Parameters, buffers and random states are afterwards as they were.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        data: (N, P) training data.
        first: (B, P) the first of them.
        training: settings.
        step: the loss of a minibatch.
        objective: the same, where it is one of this package, which asks more of a guide.
        factors: names of the guide's factors.
        scored: the ELBO at each datapoint, where steps measure it beside their loss.
        validation: held-out data.
        held_out: the held-out ELBO of such data.
        device: where minibatches go.

    Raises:
        ValueError: the message names the argument or the site.
    """
    if objective is not None and factors:
        raise ValueError(
            f"guide: expected one without pyro.factor, as {type(objective.loss).__name__} looks at its distribution "  # type: ignore[union-attr]
            f"alone and would leave '{factors[0]}' out of the loss. Use Trace_ELBO(), or remove it."
        )
    with unmoved(model, guide):
        with eval_mode(model, guide), pyro.validation_enabled(is_validate=False), torch.no_grad():
            if objective is not None:
                objective(first)
            if scored is not None:
                scored(first[:FEW])
        require_last_batch(lambda: step(first[:1]), len(data), training)
        # In the modes that they are trained in: a site may be there in one and not in the other.
        with pyro.validation_enabled(is_validate=False), torch.no_grad():
            _require_same_latents(_sites(model, first), _sites(guide, first))
        shards = training.sharding()
        require_data_fit(model, data, first, shards=shards, device=device)
        if validation is not None:
            require_data_fit(model, validation, first, shards=shards, device=device, name="validation")
            few = fetch(validation, torch.arange(min(len(validation), FEW)), device=device)
            try:
                with alone(), pyro.validation_enabled(is_validate=False):
                    held_out(few, Shards())
            except ValueError as error:
                raise ValueError(
                    f"validation: expected programs whose ELBO is known at each datapoint by itself. {error} Or leave "
                    "validation out."
                ) from error


@contextmanager
@exclusively
def unmoved(*programs: Program | None) -> Iterator[None]:
    """Leave the random states, and the buffers of the programs' modules, as they were."""
    states = random_states()
    try:
        with buffers_kept(*programs), poutine.block():
            yield
    finally:
        set_random_states(states)


@contextmanager
def buffers_kept(*programs: Program | None) -> Iterator[None]:
    """Leave the buffers of the programs' modules, such as running statistics, as they were."""
    buffers = [buffer for module in modules_of(*programs) for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in zip(buffers, before, strict=True):
                buffer.copy_(values)


def require_last_batch(run: Callable[[], object], num_data: int, training: Training) -> None:
    """Refuse minibatches of one row that a module in training mode cannot normalise.

    Args:
        run: a step on one row.
        num_data: N.
        training: settings, with B.

    Raises:
        ValueError: the message names N and B.
    """
    size = min(training.batch_size, num_data)
    if size > 1 and num_data % size != 1:
        return
    try:
        with torch.no_grad(), pyro.validation_enabled(is_validate=False):
            run()
    except Exception as error:  # noqa: BLE001 (what else is wrong is said by the step itself)
        if "more than 1 value per channel" not in str(error):
            return
        other = next((b for b in range(size + 1, num_data + 1) if num_data % b != 1), None)
        fix = "" if other is None else f"Take batch_size={other}, or "
        raise ValueError(
            f"batch_size: expected minibatches of at least 2 datapoints, as batch norm in training mode cannot "
            f"normalise one; got N = {num_data} datapoints in batches of B = {training.batch_size}, the last of them "
            f"of 1. {fix or 'Use '}layer norm."
        ) from error


def require_data_fit(
    model: Program, data: Data, first: Tensor, *, shards: Shards, device: torch.device, name: str = "data"
) -> None:
    """Look at every row once, and refuse those that the model cannot take.

    These are rows of another width or type than the training data's, and values that have no density. Of data that are
    drawn anew at each access the first rows are looked at; the others are as they come.

    Args:
        model: Pyro model.
        data: (N, P) data.
        first: (B, P) the first training data.
        shards: how the datapoints are divided.
        device: where they go.
        name: what the data are called.

    Raises:
        ValueError: the message names the data and the datapoint.
    """
    if getattr(data, "resamples", False):
        rows = iter([(0, min(len(data), FEW))])
    else:
        rows = iter(shards.chunks(len(data), AT_ONCE))
    for start, stop in rows:
        index = torch.arange(start, stop)
        try:
            x = fetch(data, index, device=device)
        except (TypeError, ValueError) as error:
            if name == "data" or not str(error).startswith("data: "):
                raise
            raise type(error)(f"{name}: {str(error).removeprefix('data: ')}") from error
        if x.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{name}: expected rows of {first.shape[1]} values, as in the training data; got rows of {x.shape[1]}. "
                "Pass the same columns."
            )
        if x.dtype != first.dtype and x.is_floating_point() and first.is_floating_point():
            raise ValueError(
                f"{name}: expected {first.dtype} like the training data; got {x.dtype}. Pass {name}.to({first.dtype})."
            )
        require_readable(model, x, index, name=name)
        if x.dtype != first.dtype and not start:
            with eval_mode(model), torch.no_grad(), pyro.validation_enabled(is_validate=False):
                with running(model, x[:FEW], name=name):
                    poutine.trace(model).get_trace(x[:FEW])
        if (refused := _refused(model, x)) is not None:
            row, said = refused
            raise ValueError(
                f"{name}: expected values that the model has a density for; datapoint {start + row}: {said}"
            )


def _refused(model: Program, x: Tensor) -> tuple[int, str] | None:
    """The first of these rows that Pyro's validation finds outside a support, and what it says of it."""

    def said(rows: Tensor) -> str | None:
        try:
            require_valid(model, rows)
        except ValueError as error:
            # Of parameters that are not finite the first step says more.
            return _in_one_line(str(error)) if "Expected value argument" in str(error) else None
        except Exception:  # noqa: BLE001 (the first step says what else is wrong)
            return None
        return None

    if not dist.is_validation_enabled() or (message := said(x)) is None:
        return None
    low, high = 0, len(x)
    while high - low > 1:
        middle = (low + high) // 2
        if (found := said(x[low:middle])) is not None:
            high, message = middle, found
        else:
            low = middle
    return low, said(x[low : low + 1]) or message


def _in_one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.partition("Trace Shapes")[0]).strip()


@torch.no_grad()
def require_pair(model: Program, guide: Program, x: Tensor, *, num_data: int) -> list[str]:
    """Refuse a model and a guide that do not belong together.

    That is a model that observes nothing, or something outside the data plate, and a guide that samples nothing,
    observes x, keeps a row a datapoint (minibatches are shuffled: it would be fitted to another datapoint at every
    epoch), leaves out a latent site of the model or adds one, or draws it in another shape. Latent sites outside the
    data plate are left to `find_globals`.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        x: (B, P) the first datapoints.
        num_data: N.

    Returns:
        The names of the guide's factors.

    Raises:
        ValueError: the message names the site.
    """
    with own_random_state(), poutine.block():
        sites, guided = _sites(model, x), _sites(guide, x)
        observed = {name: node for name, node in sites.items() if node["is_observed"]}
        drawn = {name: node for name, node in guided.items() if not node["is_observed"]}
        if not any(map(speaks, observed.values())):
            seen = f"nothing is known of {listed(observed)}" if observed else "it observes none"
            raise ValueError(
                f"model: expected at least one observed site, pyro.sample(name, distribution, obs=x); {seen}. Is it "
                "the guide?"
            )
        _require_inside(sites, observed, lambda: _sites(model, torch.cat([x, x])))
        if doubled := [name for name, node in guided.items() if node["is_observed"] and name in observed]:
            raise ValueError(
                f"guide: expected one that samples the latent sites alone; it observes '{doubled[0]}', as the model "
                "does. Is it the model?"
            )
        if not drawn:
            raise ValueError(
                f"guide: expected a Pyro function that samples the model's latent sites; got {type(guide).__name__}, "
                "which samples none. Pass Amortized(family, encoder), or use fit_em, which takes a family."
            )
        if num_data > 1 and (kept := _keeps_rows(guide, x)) is not None:
            raise ValueError(
                f"guide: expected one that serves any minibatch; of {len(x) + 1} datapoints after {len(x)}, {kept}. "
                "Parameters for each datapoint are fitted by fit_em(model, family, data) or refine; a guide for "
                "fit_svi computes them from x: Amortized(family, encoder)."
            )
        _require_same_latents(sites, guided)
        # Sites may come and go with the random numbers, with the rows, and with the mode of the modules.
        torch.default_generator.manual_seed(0)
        with buffers_kept(model, guide):
            for run in range(RUNS):
                few = x[: 1 + len(x) // 2] if run % 2 else x.flip(0)
                _require_same_latents(_sites(model, few), _sites(guide, few))
    return [name for name, node in guided.items() if node["is_observed"] and is_factor(node)]


def _require_inside(
    sites: Mapping[str, Any], observed: Mapping[str, Any], of_twice_the_rows: Callable[[], Mapping[str, Any]]
) -> None:
    """Refuse observed sites outside the data plate: a loss that sums over minibatches would count them once in each.

    Beside a global latent site they count once for all data, as it does. A `pyro.factor` may stand outside where it is
    in proportion to the number of rows, as a penalty times len(x) / N is: the minibatches of an epoch add up to it.
    """
    has_globals = any(not node["is_observed"] and not in_data_plate(node) for node in sites.values())
    outside = [name for name, node in observed.items() if not in_data_plate(node)]
    if not outside or (has_globals and len(outside) < len(observed)):
        return
    twice = of_twice_the_rows()
    for name in outside:
        node, other = observed[name], twice.get(name)
        if len(outside) < len(observed) and is_factor(node) and other is not None:
            once, doubled = (one["fn"].log_prob(one["value"]).sum().double() for one in (node, other))
            if torch.isclose(2 * once, doubled, rtol=1e-5, atol=0.0):
                continue
        fix = " Of a penalty, multiply pyro.factor by len(x) / N." if is_factor(node) else ""
        raise ValueError(
            f"site '{name}': expected observed sites inside the data plate; it is outside, so that the ELBO of a "
            "datapoint would depend on the size of minibatches. Observe it inside pyro.plate('data', len(x), dim=-1), "
            f"and declare its own dimensions with .to_event.{fix}"
        )


def _require_same_latents(sites: Mapping[str, Any], guided: Mapping[str, Any]) -> None:
    """Refuse a guide that leaves out a latent site of the model's data plate, adds one, or draws it otherwise."""
    latent = {name: node for name, node in sites.items() if not node["is_observed"]}
    drawn = {name: node for name, node in guided.items() if not node["is_observed"]}
    if missing := [name for name in latent if name not in drawn and in_data_plate(latent[name])]:
        raise ValueError(_missing(missing, latent, guided, sites))
    for name, node in drawn.items():
        # What Pyro's automatic guides draw all global sites from is auxiliary, and lies outside the plate.
        auxiliary = node["infer"].get("is_auxiliary") and not in_data_plate(node)
        if name not in latent and not auxiliary:
            how = "observes" if name in sites else "does not have"
            raise ValueError(
                f"guide: expected sites of the model alone; it samples '{name}', which the model {how}: the ELBO would "
                f"lose its log density. Remove it, or sample it in the model too."
            )
    for name in (name for name in latent if name in drawn):
        ours, theirs = latent[name], drawn[name]
        if in_data_plate(ours) != in_data_plate(theirs):
            inside = ("inside", "outside") if in_data_plate(ours) else ("outside", "inside")
            raise ValueError(
                f"site '{name}': expected the guide to sample it {inside[0]} the data plate, as the model does; it is "
                f"{inside[1]}. Sample both inside pyro.plate('data', len(x), dim=-1)."
            )
        if ours["value"].shape != theirs["value"].shape or _plates(ours) != _plates(theirs):
            raise ValueError(
                f"site '{name}': expected the guide to draw {_shaped(ours)}, as the model does; got {_shaped(theirs)}."
            )
        if not _same_mask(mask_of(ours), mask_of(theirs)):
            raise ValueError(
                f"site '{name}': expected the guide and the model to sample the same datapoints; they are masked "
                "differently, so that the ELBO would lose log densities. Mask the observed sites of the model instead."
            )


def _missing(missing: list[str], latent: Mapping[str, Any], guided: Mapping[str, Any], sites: Mapping[str, Any]) -> str:
    hint = "Sample it in the guide."
    if len(missing) > 1:
        hint = "Sample them in the guide."
    elif latent[missing[0]]["fn"].has_enumerate_support:
        hint = "Sample it in the guide, or sum it out in the model's density, as dist.MixtureSameFamily does."
    elif missing[0].endswith("_unobserved"):
        hint = "It stands for the values that obs_mask leaves unobserved: sample it in the guide, or mask the site."
    elif missing[0] in guided:
        hint = "The guide observes it: leave obs= out."
    drawn = [name for name, node in guided.items() if not node["is_observed"]]
    return (
        f"guide: expected it to sample {listed(missing)}, which the model samples inside the data plate; it samples "
        f"{listed(drawn)}. Without it the ELBO is another number. {hint}"
    )


def _sites(program: Program, x: Tensor) -> dict[str, Any]:
    return sample_sites(poutine.trace(program).get_trace(x))


def _same_mask(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None and other is None:
        return True
    pair = [torch.ones((), dtype=torch.bool) if mask is None else mask.cpu().bool() for mask in (one, other)]
    return bool((pair[0] == pair[1]).all())


def _plates(node: Mapping[str, Any]) -> set[tuple[int, int]]:
    return {(frame.dim, frame.size) for frame in node["cond_indep_stack"] if frame.dim is not None}


def _shaped(node: Mapping[str, Any]) -> str:
    plates = ", ".join(f"{size} at dim {dim}" for dim, size in sorted(_plates(node), reverse=True))
    return f"values of shape {tuple(node['value'].shape)} in plates of {plates or 'no size'}"


def _keeps_rows(guide: Program, x: Tensor) -> str | None:
    """What shows that a guide, run on x before, has parameters for each of its rows; or None."""
    try:
        nodes: Mapping[str, Any] = poutine.trace(guide).get_trace(torch.cat([x, x[:1]])).nodes
    except (RuntimeError, ValueError) as error:
        return f"it fails ({str(error).splitlines()[0]})"
    for name, node in nodes.items():
        if node["type"] == "sample" and any(frame.dim == -1 for frame in node["cond_indep_stack"]):
            if node["fn"].batch_shape[-1:] == (len(x),):
                return f"site '{name}' keeps {len(x)} rows"
    return None


def without_factors(guide: Program) -> Program:
    """The guide as it draws: what `pyro.factor` adds to its log density is the loss's own."""
    return _WithoutFactors()(guide)


class _WithoutFactors(Messenger):
    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401
        if msg["is_observed"] and is_factor(msg):
            msg["stop"] = True
