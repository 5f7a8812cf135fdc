"""Data drawn from a model, each datapoint with the z that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.batches import Data, fetch, require_data
from inference.counts import require_count
from inference.densities import densities, guide_distribution, latent_prior
from inference.guides import Local
from inference.independence import require_rowwise
from inference.isolation import device_of, frozen
from inference.noise import BLOCK, derive_seed, like, measured, resolve_seed, seeded

__all__ = ["Layout", "draw_pairs", "read_layout", "simulate", "site_for_any_x"]


def simulate(
    model: Callable[..., Any], data: Data, *, num_data: int, site: str = "z", seed: int | None = None
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N P"]]:
    r"""Datapoints drawn from the model, each with the latent vector that made it.

    .. math::
        z_n \sim p(z), \qquad x_n \sim p(x \mid z_n)

    So z_n is an exact draw from the posterior p(z | x_n). Columns of x that no site observes are given (covariates,
    labels) and stay as they are in the data. Datapoint n depends on the seed, n and its given columns alone, not on
    `num_data`. The model runs in eval mode, and its parameters and buffers have the same bits after.

    Args:
        model: Pyro model whose observed sites observe columns of x, unchanged, each column in one site at most.
        data: (N', P) data of the kind that the model is for: it is run on them, over and over where N' is less than N.
            Of the observed columns only shape and dtype are used, and where they are NaN, unobserved: so are the draws.
        num_data: N, datapoints to draw.
        site: name of the latent site.
        seed: of the draws.

    Returns:
        z and x, on the CPU.

    Raises:
        ValueError: the model observes x whatever it is asked, scores x without a distribution that can be drawn from,
            observes something else than columns of x, or breaks the contract; the message names the site.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> z, x = simulate(model, torch.zeros(1, 2), num_data=100, seed=0)
        >>> z.shape, x.shape
        (torch.Size([100, 2]), torch.Size([100, 2]))
    """
    seed = resolve_seed(seed)
    available = require_data(data)
    require_count("num_data", num_data)
    latents, values = [], []
    with frozen(model), torch.no_grad():
        for first in range(0, num_data, BLOCK):
            # A full block is always drawn, so that a datapoint's draws do not depend on what follows it.
            x = fetch(data, torch.arange(first, first + BLOCK) % available, device=device_of(model))
            if not first:
                latent_prior(model, x, site=site)
                layout = read_layout(model, x, site=site)
            with measured(derive_seed(seed, "simulate", first // BLOCK)):
                z, drawn = draw_pairs(model, x, layout, site=site)
            if not first:
                densities(model, drawn, z.unsqueeze(0), site=site)
            latents.append(z.cpu())
            values.append(drawn.cpu())
    return torch.cat(latents)[:num_data], torch.cat(values)[:num_data]


@dataclass(frozen=True)
class Layout:
    """Where the values of the observed sites stand in x.

    Attributes:
        columns: for each observed site the column of x that each of its values is, in the order of its flat values.
        source: (P,) for each column of x its place among the columns of x, followed by the values of all sites.
        rounds: further runs, after which sites that depend on other observed columns have been drawn at these.
    """

    columns: Mapping[str, Int[Tensor, " E"]]
    source: Int[Tensor, " P"]
    rounds: int = 0

    @classmethod
    def of(cls, columns: Mapping[str, Int[Tensor, " E"]], num_columns: int) -> Layout:
        """The layout with these columns of x, of which there are so many."""
        observed = torch.cat(list(columns.values()))
        source = torch.arange(num_columns, device=observed.device)
        source[observed] = num_columns + torch.arange(len(observed), device=observed.device)
        return cls(columns, source)

    def place(self, x: Float[Tensor, "B P"], nodes: Mapping[str, Any]) -> Float[Tensor, "B P"]:
        """The data with the sites' values in place of the observed columns; what is NaN, unobserved, stays so."""
        drawn = [nodes[name]["value"].reshape(len(x), -1).to(like(x)) for name in self.columns]
        return torch.where(x.isnan(), x, torch.cat([x, *drawn], dim=1).index_select(1, self.source))


@torch.no_grad()
def draw_pairs(
    model: Callable[..., Any], x: Float[Tensor, "B P"], layout: Layout, *, site: str
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P"]]:
    """As many pairs (z, x) from the model as there are datapoints, as incomplete, from torch's global generator.

    Args:
        model: Pyro model, known to have the latent site.
        x: (B, P) data of the kind that the model is for.
        layout: where its observed sites stand in x.
        site: name of the latent site.
    """
    nodes, drawn = _draw(model, x, layout, site=site)
    return nodes[site]["value"], drawn


def _draw(
    model: Callable[..., Any], x: Tensor, layout: Layout, *, site: str
) -> tuple[dict[str, Any], Float[Tensor, "B P"]]:
    """The sites that were drawn, each with the distribution it was drawn from, and the new x."""
    free = poutine.uncondition(model)
    nodes: dict[str, Any] = dict(poutine.trace(free).get_trace(x).nodes)
    drawn = layout.place(x, nodes)
    names = list(layout.columns)
    for count in range(1, layout.rounds + 1):
        # Site by site: the values before it are in x by now, and those after it are drawn anew.
        known = {name: nodes[name]["value"] for name in (site, *names[:count])}
        again: Mapping[str, Any] = poutine.trace(poutine.condition(free, known)).get_trace(drawn).nodes
        nodes |= {name: again[name] for name in names[count:]}
        drawn = layout.place(x, nodes)
    return nodes, drawn


@torch.no_grad()
def read_layout(model: Callable[..., Any], x: Float[Tensor, "B P"], *, site: str) -> Layout:
    """Find the columns of x that the model's sites observe, and try out that they can be simulated.

    Args:
        model: Pyro model, known to have the latent site.
        x: (B, P) data of the kind that the model is for.
        site: name of the latent site.

    Raises:
        ValueError: x cannot be simulated; the message names the site.
    """
    with seeded(0), pyro.validation_enabled(is_validate=False):
        # Many rows, so that values of few kinds, such as yes and no, differ in some.
        x = x[torch.arange(max(len(x), BLOCK), device=x.device) % len(x)]
        nodes: Mapping[str, Any] = poutine.trace(poutine.uncondition(model)).get_trace(x).nodes
        names = _observed_sites(nodes, site, x)
        require_rowwise(model, x, nodes[site]["fn"].sample((3,)), site=site)
        layout = Layout.of(_columns(model, x, names), x.shape[1])
        for rounds in {0, len(names) - 1}:
            layout = Layout(layout.columns, layout.source, rounds)
            refusal = _tried(model, x, layout, site=site)
            if refusal is None:
                return layout
    raise ValueError(refusal)


def site_for_any_x(guide: Callable[..., Any], data: Data, *, site: str | None) -> str:
    """The latent site of a guide that is asked about simulated x.

    Raises:
        ValueError: the guide is `Local`.
    """
    if isinstance(guide, Local):
        raise ValueError(
            "guide: expected one that maps any x to q(z | x); got a Local one, whose rows belong to fixed x and say "
            "nothing of simulated ones. Pass an Amortized guide, or one written by hand."
        )
    with frozen(guide), torch.no_grad():
        few = fetch(data, torch.arange(min(require_data(data), 2)), device=device_of(guide))
        return guide_distribution(guide, few, site=site)[0]


def _observed_sites(nodes: Mapping[str, Any], site: str, x: Tensor) -> list[str]:
    """The sites that stand for x, drawn; refuses a model that does not draw them."""
    sites = {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node) and not node["infer"].get("_deterministic")
    }
    for name, node in sites.items():
        # What pyro.factor scores has no values; what a point mass at x draws is x itself.
        given = node["is_observed"] or node["value"].data_ptr() == x.data_ptr()
        if given or (node["infer"].get("was_observed") and not node["value"].numel()):
            raise ValueError(
                f"site '{name}': expected the model to draw it under poutine.uncondition, so that x can be simulated; "
                "it observes or scores x all the same. Write it as pyro.sample(name, distribution, obs=x)."
            )
    drawn = [name for name, node in sites.items() if name != site and node["infer"].get("was_observed")]
    if not drawn:
        raise ValueError(
            "model: expected observed sites, whose draws are new x; got none. Observe x, or columns of it, in a site: "
            "pyro.sample(name, distribution, obs=x)."
        )
    for name in drawn:
        if len(sites[name]["value"]) != len(x):
            raise ValueError(
                f"site '{name}': expected a value for each of the {len(x)} rows of x; got shape "
                f"{tuple(sites[name]['value'].shape)}. Sample it inside pyro.plate('data', len(x), dim=-1)."
            )
    return drawn


def _columns(model: Callable[..., Any], x: Tensor, names: list[str]) -> dict[str, Int[Tensor, " E"]]:
    """The column of x that each value of each site follows.

    Column j is replaced in the runs in which its number j + 1 has a binary digit 1; the runs that change a value spell
    the number of its column.
    """
    num_columns = x.shape[1]
    observed: dict[str, Tensor] = {}
    failed: Exception | None = None
    for turn in range(_TURNS):
        try:
            codes = _codes(model, x, names, turn)
        except (RuntimeError, ValueError, IndexError) as error:
            # The values made up may be no labels of this model, say.
            failed = error
            continue
        # A value that is the same for all of these may change for others, as one that is cut at a threshold.
        observed = {name: torch.where(observed[name] == 0, codes[name], observed[name]) for name in observed} or codes
        if not any(bool((numbers == 0).any()) for numbers in observed.values()):
            break
    if not observed:
        raise ValueError(
            "model: expected one that runs on other values of the observed columns, so that x can be simulated; got an "
            f"error: {str(failed).splitlines()[0]}"
        ) from failed
    for name, numbers in observed.items():
        if bool((numbers == 0).any() | (numbers > num_columns).any()):
            raise ValueError(f"site '{name}': {_NOT_COLUMNS}")
    columns = {name: numbers - 1 for name, numbers in observed.items()}
    counts = torch.cat(list(columns.values())).bincount(minlength=num_columns)
    if bool((counts > 1).any()):
        twice = int(counts.argmax())
        by = ", ".join(f"'{name}'" for name, own in columns.items() if bool((own == twice).any()))
        raise ValueError(
            f"model: expected each column of x in one site, once, so that x can be simulated; got column {twice} more "
            f"than once (site {by}). Observe each column once, as it is."
        )
    return columns


def _codes(model: Callable[..., Any], x: Tensor, names: list[str], turn: int) -> dict[str, Int[Tensor, " E"]]:
    """The number of the column, counted from 1, that each value follows; 0 where it follows none."""
    one, other = _markers(x, turn), _markers(x, turn)
    before = _values(model, one, names)
    numbers = torch.arange(1, x.shape[1] + 1, device=x.device)
    codes = {name: torch.zeros_like(values[0], dtype=torch.long) for name, values in before.items()}
    for digit in range(x.shape[1].bit_length()):
        found = _values(model, torch.where((numbers >> digit) % 2 == 1, other, one), names)
        for name, values in found.items():
            codes[name] += (values != before[name]).any(0).long() << digit
    return codes


_TURNS = 3
_NOT_COLUMNS = (
    "expected columns of x as they are, obs=x[:, a:b], so that x can be simulated; it observes something computed from "
    "x, or not in x at all. Transform the data before they reach the model, or give the distribution the "
    "transformation (TransformedDistribution)."
)


def _markers(x: Tensor, turn: int) -> Float[Tensor, "B P"]:
    """Random values of the kind that each column has: whole numbers or others, in its range."""
    present = torch.where(x.isnan(), x.nanmedian(0).values, x).nan_to_num(0.0)
    low, high = present.amin(0), present.amax(0)
    whole = (present == present.round()).all(0)
    # A constant column gets a second value: the one before, the next, or another sign.
    up = torch.where(low == 0, 1, -1)
    second = torch.where(whole, low + (up, -up, -2)[turn], low * (0.5, 2.0, -1.0)[turn])
    low, high = (
        torch.where(low == high, torch.minimum(low, second), low),
        torch.where(low == high, torch.maximum(low, second), high),
    )
    share = torch.rand(x.shape, dtype=torch.float64, device=x.device)
    counts = (low + (share * (high - low + 1)).floor()).clamp(max=high)
    return torch.where(whole, counts, low + share * (high - low)).to(x.dtype)


def _values(model: Callable[..., Any], x: Tensor, names: list[str]) -> dict[str, Float[Tensor, "B E"]]:
    nodes: Mapping[str, Any] = poutine.trace(model).get_trace(x).nodes
    return {name: nodes[name]["value"].reshape(len(x), -1) for name in names}


def _tried(model: Callable[..., Any], x: Tensor, layout: Layout, *, site: str) -> str | None:
    """The reason why draws in this layout are not draws of the model, or None.

    On the new x the model must observe the values that were drawn, by the distributions that they were drawn from.
    """
    nodes, drawn = _draw(model, x, layout, site=site)
    given = poutine.condition(model, {site: nodes[site]["value"]})
    again: Mapping[str, Any] = poutine.trace(given).get_trace(drawn).nodes
    for name in layout.columns:
        ours, theirs = (run[name]["value"].reshape(len(x), -1).to(like(x)) for run in (nodes, again))
        missing = x.isnan()[:, layout.columns[name]]
        if not bool((torch.isclose(ours, theirs, rtol=1e-4, atol=1e-6, equal_nan=True) | missing).all()):
            return f"site '{name}': {_NOT_COLUMNS}"
    for name in (site, *layout.columns):
        value = again[name]["value"]
        ours, theirs = (run[name]["fn"].log_prob(value) for run in (nodes, again))
        if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True):
            return (
                f"site '{name}': expected a distribution that depends on z, on given columns of x and on columns "
                "observed in earlier sites, so that x can be simulated; it changes with columns that it, or a later "
                "site, observes itself. Leave these out of what it is computed from."
            )
    return None
