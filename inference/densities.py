"""Log densities per datapoint and per particle, read off a model/guide pair.

Pyro's own estimators sum over the data plate before anything else; a gap, an importance weight or a tail index belongs
to one datapoint, so these keep the plate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import NonlocalExit
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from inference.batches import require_rows
from inference.counts import require_count
from inference.families import from_noise
from inference.isolation import private_store, require_program, running
from inference.noise import own_random_state

__all__ = [
    "Densities",
    "densities",
    "guide_distribution",
    "in_data_plate",
    "is_factor",
    "is_unscaled",
    "latent_prior",
    "listed",
    "log_joint",
    "log_weights",
    "mask_of",
    "observed_log_prob",
    "prior_alone",
    "require_observed",
    "sample_sites",
    "site_log_probs",
    "speaks",
    "weights_from_noise",
]

Program = Callable[..., Any]


class Densities(NamedTuple):
    """The two terms of log p(x, z), each (S, B), nats."""

    log_prior: Float[Tensor, "S B"]
    log_likelihood: Float[Tensor, "S B"]

    @property
    def log_joint(self) -> Float[Tensor, "S B"]:
        """Their sum, log p(x, z)."""
        return self.log_prior + self.log_likelihood


def densities(model: Program, x: Float[Tensor, "B P"], z: Float[Tensor, "S B D"], *, site: str = "z") -> Densities:
    """The two terms of log p(x, z), log p(z) and log p(x | z), of every datapoint and particle.

    Args:
        model: Pyro model: one plate "data", the latent site and the observed sites inside it.
        x: (B, P) datapoints.
        z: (S, B, D) particles.
        site: name of the latent site.

    Raises:
        ValueError: the model breaks the contract; the message names the site.
    """
    terms = site_log_probs(model, x, z, site=site)
    log_prior = terms.pop(site)
    log_likelihood = torch.zeros_like(log_prior)
    for log_prob in terms.values():
        log_likelihood = log_likelihood + log_prob
    return Densities(log_prior, log_likelihood)


def site_log_probs(
    model: Program, x: Float[Tensor, "B P"], z: Float[Tensor, "*S B D"], *, site: str
) -> dict[str, Float[Tensor, "*S B"]]:
    """The log density of the latent site and of every observed one, at each datapoint and particle.

    Args:
        model: Pyro model.
        x: (B, P) datapoints.
        z: (S, B, D) particles; or (B, D), which run without a particle dimension.
        site: name of the latent site.

    Raises:
        ValueError: the model breaks the contract; the message names the site.
    """
    require_program(model)
    with ExitStack() as stack:
        if z.dim() == 3:
            stack.enter_context(pyro.plate("_particles", z.shape[0], dim=-2))
        stack.enter_context(_RefuseGlobal(site))
        trace = _trace(poutine.condition(model, {site: z}), x)
    if site not in sample_sites(trace):
        raise ValueError(_no_such_site("model", site, sample_sites(trace)))
    shape = torch.Size(z.shape[:-1])
    sites = sample_sites(trace)
    for name, node in sites.items():
        if name != site and not node["is_observed"]:
            raise ValueError(
                f"site '{name}': expected one latent site, '{site}', inside the data plate; the model samples '{name}' "
                "as well. Put all local latent variables into one site (one distribution over the concatenated "
                "vector), or make it a parameter."
            )
    event_shape = tuple(sites[site]["fn"].event_shape)
    if event_shape != tuple(z.shape[-1:]):
        raise ValueError(
            f"site '{site}': expected event shape {tuple(z.shape[-1:])}, that of the particles; got {event_shape}. "
            f"{_ADVICE}"
        )
    if len(sites) == 1:
        raise ValueError(_nothing_observed(site))
    return {name: _site_log_prob(node, name, shape) for name, node in sites.items()}


def log_joint(
    model: Program, x: Float[Tensor, "B P"], z: Float[Tensor, "S B D"], *, site: str = "z"
) -> Float[Tensor, "S B"]:
    """The joint log density log p(x, z) of every datapoint and particle.

    Args:
        model: Pyro model.
        x: (B, P) datapoints.
        z: (S, B, D) particles.
        site: name of the latent site.

    Returns:
        (S, B) nats, constants included.

    Raises:
        ValueError: the model breaks the contract; the message names the site.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> log_joint(model, torch.zeros(3, 2), torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3])
    """
    require_rows(x)
    if not isinstance(z, Tensor) or z.dim() != 3 or z.shape[1] != len(x) or not len(z):
        came = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"z: expected a tensor of shape (S, {len(x)}, D), S particles a datapoint; got {came}.")
    with private_store(model):
        return densities(model, x, z, site=site).log_joint


def log_weights(
    model: Program, guide: Program, x: Float[Tensor, "B P"], *, num_particles: int = 1, site: str | None = None
) -> Float[Tensor, "S B"]:
    r"""Log importance weights of the guide's draws.

    .. math::
        \log w_{sn} = \log p(x_n, z_{sn}) - \log q(z_{sn} \mid x_n), \qquad z_{sn} \sim q(\cdot \mid x_n)

    Their mean over s estimates L[q], their log-mean-exp log p(x).

    Args:
        model: Pyro model.
        guide: Pyro guide.
        x: (B, P) datapoints.
        num_particles: S.
        site: name of the latent site; read off the guide by default.

    Returns:
        (S, B) nats.

    Raises:
        ValueError: the pair breaks the contract; the message names the site.
    """
    require_rows(x)
    require_count("num_particles", num_particles)
    with private_store(model, guide):
        site, q = guide_distribution(guide, x, site=site)
        z = q.rsample((num_particles,)) if q.has_rsample else q.sample((num_particles,))
        return densities(model, x, z, site=site).log_joint - q.log_prob(z)


def weights_from_noise(
    model: Program, x: Float[Tensor, "B P"], q: Distribution, noise: Float[Tensor, "S B D"], *, site: str
) -> Float[Tensor, "S B"]:
    """Log importance weights of the draws that `q` makes from this noise."""
    z, log_q = from_noise(q, noise)
    return densities(model, x, z, site=site).log_joint - log_q


def guide_distribution(guide: Program, x: Float[Tensor, "B P"], *, site: str | None = None) -> tuple[str, Distribution]:
    """The guide's latent site and its distribution q(z | x), batch shape (B,), event shape (D,).

    Args:
        guide: Pyro guide.
        x: (B, P) datapoints.
        site: name of the latent site; by default `guide.site`, or else the one site that the guide samples.

    Raises:
        ValueError: no such site, several sites, or a site outside the data plate.
    """
    site = site or getattr(guide, "site", None)
    # A factor changes the loss that the guide is trained by, and not the distribution that it draws from.
    sites = {name: node for name, node in sample_sites(_trace(guide, x)).items() if not is_factor(node)}
    _require_local("guide", site or next((name for name in sites if in_data_plate(sites[name])), None), sites)
    if site is None:
        if len(sites) != 1:
            raise ValueError(
                f"guide: expected one latent site; it samples {listed(sites)}. Put all local latent variables into "
                "one site."
            )
        (site,) = sites
    if site not in sites:
        raise ValueError(_no_such_site("guide", site, sites))
    extra = [name for name in sites if name != site]
    if extra:
        raise ValueError(
            f"guide: expected one latent site, '{site}'; it samples {listed(extra)} as well. Put all local latent "
            "variables into one site."
        )
    node = sites[site]
    if node["mask"] is not None:
        raise ValueError(
            f"site '{site}': expected the guide to sample every datapoint; it is masked. Mask the observed sites of "
            "the model instead."
        )
    _require_unscaled(node, site)
    return site, _local_distribution(node, site, len(x))


def latent_prior(model: Program, x: Float[Tensor, "B P"], *, site: str) -> Distribution:
    """The prior of the latent site, batch shape (B,), event shape (D,).

    Raises:
        ValueError: the model has no such site, or samples it or another latent one outside the data plate.
    """
    trace = _trace(model, x)
    sites = sample_sites(trace)
    if site not in sites or sites[site]["is_observed"]:
        latent = {name: node for name, node in sites.items() if not node["is_observed"]}
        raise ValueError(_no_such_site("model", site, latent))
    _require_local("model", site, sites)
    return _local_distribution(sites[site], site, len(x))


def prior_alone(model: Program, x: Float[Tensor, "B P"], *, site: str) -> Distribution:
    """As `latent_prior`, for a model known to keep the contract: it is left where it samples z, and draws nothing.

    Raises:
        ValueError: the model has no such site.
    """
    try:
        poutine.escape(model, escape_fn=lambda message: message["name"] == site)(x)
    except NonlocalExit as reached:
        return _local_distribution(reached.site, site, len(x))  # type: ignore[arg-type]
    raise ValueError(_no_such_site("model", site, {}))


def observed_log_prob(model: Program, x: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
    """The log likelihood (B,) at one draw of z from the prior, summed over the observed sites."""
    sites = sample_sites(_trace(model, x)).items()
    shape = torch.Size((len(x),))
    return sum(
        (_site_log_prob(node, name, shape) for name, node in sites if node["is_observed"]), torch.zeros_like(x[:, 0])
    )


def _trace(program: Program, x: Tensor) -> poutine.Trace:
    try:
        with running(program, x):
            return poutine.trace(program).get_trace(x)
    except _GlobalSite as error:
        # Pyro has put the shapes of the trace so far under it.
        raise ValueError(str(error).splitlines()[0]) from None
    except ValueError as error:
        if str(error).startswith("Expected more than 1 value per channel"):
            # Torch's words for batch norm on one row.
            raise ValueError(
                f"data: expected more than one row for a program that normalises over the batch; got {len(x)} "
                f"({str(error).splitlines()[0]}). Call .eval() on its batch norm, or replace that by LayerNorm."
            ) from error
        # Where sizes differ, Pyro itself refuses a site that does not fit its plate, and shows the trace but no remedy.
        if "inside plate(" not in str(error):
            raise
        raise ValueError(f"{str(error).splitlines()[0]}. {_ADVICE}") from error


def sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Sites that have a density: neither plates nor `pyro.deterministic`."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not site_is_subsample(node)  # type: ignore[arg-type]
        and not node["infer"].get("_deterministic")  # type: ignore[union-attr]
    }


def is_factor(node: Any) -> bool:  # noqa: ANN401 (Pyro's)
    """Whether a site is a `pyro.factor`: a log density of nothing that is drawn or observed."""
    fn = node["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, Unit)


def speaks(node: Any) -> bool:  # noqa: ANN401
    """Whether an observed site says something of the rows that the program was run on.

    Not so one that is masked at all of them, or one that observes what it is fixed at. Where values are missing, other
    rows may have some.
    """
    mask, fn = mask_of(node), node["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    if isinstance(fn, Delta) and bool((fn.v == node["value"]).all()) and not bool(fn.log_density.any()):
        return False
    return mask is None or bool(mask.any()) or bool(node["value"].isnan().any())


def mask_of(node: Any) -> Tensor | None:  # noqa: ANN401
    """The mask of a site's log density, that of the program and that of the distribution; None: all of it counts."""
    masks = [node["mask"], getattr(node["fn"], "_mask", None)]
    found = [torch.as_tensor(mask) for mask in masks if mask is not None and mask is not True]
    return None if not found else found[0] if len(found) == 1 else found[0] & found[1]


def require_observed(model: Program, x: Float[Tensor, "B P"], *, site: str) -> None:
    """Refuse a model that says nothing of these datapoints.

    Raises:
        ValueError: no observed site has a log density at any of them.
    """
    with own_random_state(), torch.no_grad():
        sites = sample_sites(_trace(model, x))
    if not any(speaks(node) for node in sites.values() if node["is_observed"]):
        raise ValueError(_nothing_observed(site))


def is_unscaled(node: Any) -> bool:  # noqa: ANN401
    """Whether the log density of a site counts once: a scale of 1, as a number, a tensor or an array."""
    scale = node["scale"]
    return bool((scale == 1).all()) if hasattr(scale, "all") else bool(scale == 1)


def _site_log_prob(node: dict[str, Any], name: str, shape: torch.Size) -> Tensor:
    _require_unscaled(node, name)
    try:
        log_prob = node["fn"].log_prob(node["value"])
    except NotImplementedError as error:
        raise ValueError(
            f"site '{name}': expected a distribution whose density is known; got {type(node['fn']).__name__}, whose "
            f"log_prob is not implemented{f' ({error})' if str(error) else ''}."
        ) from error
    if log_prob.shape != shape or not in_data_plate(node):
        raise ValueError(
            f"site '{name}': expected log_prob of shape {tuple(shape)} (particles, datapoints) inside plate 'data'; "
            f"got {tuple(log_prob.shape)} {_where(node)}: value {tuple(node['value'].shape)}, batch shape "
            f"{tuple(node['fn'].batch_shape)}, event shape {tuple(node['fn'].event_shape)}. {_ADVICE}"
        )
    return scale_and_mask(log_prob, mask=node["mask"])


def _local_distribution(node: dict[str, Any], name: str, num_rows: int) -> Distribution:
    distribution = node["fn"]
    batch_shape, event_shape = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    if batch_shape != (num_rows,) or len(event_shape) != 1 or not in_data_plate(node):
        raise ValueError(
            f"site '{name}': expected batch shape ({num_rows},) and event shape (D,) inside plate 'data'; got batch "
            f"shape {batch_shape} and event shape {event_shape} {_where(node)}. {_ADVICE}"
        )
    if missing := _lacks(distribution):
        raise ValueError(
            f"site '{name}': expected a distribution with a support and draws; got {type(distribution).__name__} "
            f"without `{missing}`. Write a subclass that defines `support`, such as constraints.real_vector of "
            "torch.distributions, and `sample(shape)`, which may return self(shape)."
        )
    return distribution


def _lacks(distribution: Distribution) -> str | None:
    """The name of a part that every measurement asks for and that this distribution does not have, if any."""
    try:
        if distribution.support is None:
            return "support"
    except NotImplementedError:
        return "support"
    kind = type(distribution)
    return "sample" if (kind.sample, kind.rsample) == (Distribution.sample, Distribution.rsample) else None


_ADVICE = "Sample it inside pyro.plate('data', len(x), dim=-1), and declare its own dimension with .to_event(1)."


def in_data_plate(node: Any) -> bool:  # noqa: ANN401 (Pyro's)
    """Whether a site lies in a plate at dim -1, that of the datapoints."""
    return any(frame.dim == -1 for frame in node["cond_indep_stack"])


class _GlobalSite(ValueError):
    """A latent site outside the data plate, where plain numbers were expected."""


class _RefuseGlobal(Messenger):
    """Refuse a global site as soon as it is sampled: under a plate of particles the model may fail on its shape."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def _pyro_sample(self, msg: Any) -> None:
        deterministic = msg["infer"].get("_deterministic")
        if not (msg["name"] == self.site or msg["is_observed"] or site_is_subsample(msg) or deterministic):
            _require_local("model", self.site, {msg["name"]: msg})


def _require_local(where: str, site: str | None, sites: dict[str, Any]) -> None:
    """Refuse latent sites beside `site` that lie outside the data plate: no datapoint has a density of its own."""
    extra = [
        name
        for name, node in sites.items()
        if name != site and not node["is_observed"] and not node["infer"].get("is_auxiliary")
        if not in_data_plate(node)
    ]
    if site is None or not extra:
        return
    raise _GlobalSite(
        f"site '{extra[0]}': expected one latent site, '{site}', inside the data plate; the {where} samples "
        f"{listed(extra)} outside it. Numbers per datapoint are conditional on such global sites: pass "
        f"given={{'{extra[0]}': draws}} of shape (M, *shape), wrap model and guide in inference.conditioned, or "
        "make it a parameter."
    )


def _where(node: dict[str, Any]) -> str:
    return "inside" if in_data_plate(node) else "outside any plate at dim=-1"


def _require_unscaled(node: dict[str, Any], name: str) -> None:
    if not is_unscaled(node):
        raise ValueError(
            f"site '{name}': expected an unscaled log density; it is scaled by {node['scale']}. Remove poutine.scale, "
            "and pass minibatches as x instead of subsampling inside the model."
        )


def _nothing_observed(site: str) -> str:
    return (
        f"model: expected at least one observed site, pyro.sample(name, distribution, obs=x); it samples '{site}' and "
        "observes nothing. Is it the guide?"
    )


def _no_such_site(where: str, site: str, sites: dict[str, Any]) -> str:
    return (
        f"site '{site}': expected a latent site of this name in the {where}; it has {listed(sites)}. Pass site= the "
        "latent site's name."
    )


def listed(names: Iterable[str]) -> str:
    """Names of sites for an error, in quotation marks; "none" where there are none."""
    return ", ".join(f"'{name}'" for name in names) or "none"
