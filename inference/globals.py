"""Global sites: latent sites outside the data plate, such as the weights of a decoder that has a prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.batches import Data, fetch, require_data
from inference.counts import require_count
from inference.isolation import device_of, frozen
from inference.noise import BLOCK, own_random_state, resolve_seed, seeded

__all__ = ["GlobalSites", "draw_globals", "find_globals", "whole_data"]

Program = Callable[..., Any]

# They are linear in the log densities, so that a minibatch scaled up to the data stands for the data.
_LINEAR = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO)


class GlobalSites(NamedTuple):
    """Where a model's latent variables live.

    Attributes:
        names: the model's latent sites outside the data plate, in the order in which it samples them.
        plates: names of the plates at dim -1 that hold the datapoints, in the model and in the guide.
    """

    names: tuple[str, ...]
    plates: frozenset[str]


def find_globals(model: Program, x: Float[Tensor, "B P"], *, guide: Program | None = None) -> GlobalSites:
    """The model's global sites: those that it samples outside the plate of the observed sites.

    Args:
        model: Pyro model.
        x: (B, P) a few datapoints to run it on.
        guide: Pyro guide, whose data plate may have another name; checked where given.

    Raises:
        ValueError: the guide does not sample a global site of the model.
    """
    sites = dict(_samples(model, x))
    latent = {name: node for name, node in sites.items() if not node["is_observed"]}
    observed = [node for node in sites.values() if node["is_observed"]]
    plates = {name for node in observed or latent.values() for name in _last_plates(node)}
    names = tuple(name for name, node in latent.items() if not plates.intersection(_last_plates(node)))
    if names and guide is not None:
        guided = dict(_samples(guide, x))
        for name in names:
            if name not in guided:
                raise ValueError(
                    f"guide: expected it to sample '{name}', which the model samples outside the data plate; it "
                    f"samples {', '.join(map(repr, guided)) or 'none'}. Add it, for example by "
                    "pyro.infer.autoguide.AutoNormal."
                )
        local = latent.keys() - set(names)
        plates |= {plate for name in local & guided.keys() for plate in _last_plates(guided[name])}
    return GlobalSites(names, frozenset(plates))


def draw_globals(
    model: Program, guide: Program, data: Data, *, num_draws: int, seed: int | None = None
) -> dict[str, Float[Tensor, "M ..."]]:
    """Draws of the model's global sites from the guide, to be passed as `given=`.

    Args:
        model: Pyro model.
        guide: Pyro guide, fitted.
        data: (N, P) data to run the programs on; the draws do not depend on them where the guide's do not.
        num_draws: M.
        seed: of the draws.

    Returns:
        For each global site its draws, (M, *shape).

    Raises:
        ValueError: the model has no global site, or the guide does not sample it.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z + w, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.sample("w", dist.Normal(torch.ones(2), 0.1).to_event(1))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(x, 1.0).to_event(1))
        >>> draw_globals(model, guide, torch.zeros(5, 2), num_draws=3, seed=0)["w"].shape
        torch.Size([3, 2])
    """
    seed = resolve_seed(seed)
    require_count("num_draws", num_draws)
    few = torch.arange(min(require_data(data), BLOCK))
    with frozen(model, guide), seeded(seed), torch.no_grad():
        x = fetch(data, few, device=device_of(model, guide))
        try:
            found = find_globals(model, x, guide=guide)
        except (RuntimeError, ValueError):
            if len(data) <= BLOCK:
                raise
            # A guide with a row for each datapoint takes no others.
            x = fetch(data, torch.arange(len(data)), device=device_of(model, guide))
            found = find_globals(model, x, guide=guide)
        if not found.names:
            raise ValueError("model: expected a latent site outside the data plate; it has none, so nothing to draw.")
        draws = [values_of(guide, x, found.names) for _ in range(num_draws)]
    return {name: torch.stack([draw[name] for draw in draws]) for name in found.names}


def values_of(guide: Program, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """One draw of these sites of the guide."""
    nodes: Mapping[str, Any] = poutine.trace(guide).get_trace(x).nodes
    return {name: nodes[name]["value"].detach() for name in names}


def whole_data(program: Program, num_data: int, plates: frozenset[str]) -> Program:
    r"""The program with everything inside the data plate scaled by N / B: a minibatch that stands for all data.

    .. math::
        \log p(w) + \sum_{n=1}^N \log p(x_n, z_n \mid w)
        \approx \log p(w) + \frac NB \sum_{b=1}^B \log p(x_b, z_b \mid w)

    Args:
        program: Pyro model or guide.
        num_data: N; B is the length of the minibatch it is run on.
        plates: names of the plates that hold the datapoints.
    """

    def scaled(x: Tensor) -> Any:  # noqa: ANN401
        with _ScaleInside(plates, num_data / len(x)):
            return program(x)

    return scaled


def require_scalable(found: GlobalSites, loss: ELBO, scaled: str | None) -> None:
    """Refuse what a minibatch scaled up to the data would make wrong.

    Raises:
        ValueError: the loss is not linear in the log densities, or the programs are scaled already.
    """
    if type(loss) not in _LINEAR:
        raise ValueError(
            f"loss: with a latent site outside the data plate, '{found.names[0]}', everything inside the plate is "
            f"scaled by N / B, under which {type(loss).__name__} is wrong. Use Trace_ELBO, TraceMeanField_ELBO or "
            "TraceGraph_ELBO."
        )
    if scaled is not None:
        raise ValueError(
            f"{scaled}: expected an unscaled program. With a latent site outside the data plate, '{found.names[0]}', "
            "fit_svi itself scales what is inside the plate by N / B: remove poutine.scale, and pass minibatches as x "
            "instead of subsampling."
        )


class _ScaleInside(Messenger):
    def __init__(self, plates: frozenset[str], factor: float) -> None:
        super().__init__()
        self.plates = plates
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401
        if any(frame.name in self.plates for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.factor


def _samples(program: Program, x: Tensor) -> Iterator[tuple[str, Any]]:
    """The sites of one run that have a density."""
    # Looking at a program must not change what is drawn after it.
    with own_random_state():
        nodes: Mapping[str, Any] = poutine.trace(program).get_trace(x).nodes
    for name, node in nodes.items():
        if node["type"] == "sample" and not site_is_subsample(node) and not node["infer"].get("_deterministic"):
            yield name, node


def _last_plates(node: Any) -> set[str]:  # noqa: ANN401
    return {frame.name for frame in node["cond_indep_stack"] if frame.dim == -1}
