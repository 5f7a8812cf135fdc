"""Posterior, prior and predictive draws of a model and its guide, as one `xarray.DataTree` in the ArviZ schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.batches import Data, fetch, require_fixed
from inference.counts import require_count, require_kind
from inference.densities import densities, guide_distribution
from inference.draws.gaps import gaps_dataset
from inference.draws.schema import Axes, per_datapoint
from inference.independence import require_rowwise
from inference.isolation import eval_mode, modules_of, private_store, require_finite_parameters
from inference.noise import derive_seed, measured, resolve_seed, seeded
from inference.progress import track
from inference.results import Gaps

__all__ = ["to_datatree"]

# Predictive draws alone grow with S x N x P: 100 images of 784 pixels at 1000 draws would be 78 million values. This
# many (40 MB in memory, less on disk) is plenty for a predictive check.
PREDICTIVE_VALUES = 10_000_000
# Datapoints, and draws of each at most, in one pass of the model: bounds the memory of a decoder's hidden layers. Few
# datapoints, since the last block is filled up: of 6 datapoints 8 are computed.
BLOCK, PIECE = 8, 250
# Observed values of a pass at most, of as many draws as hold them.
PASS_VALUES = 4_000_000

_CONDITIONAL = (
    "log p(x | z) at each draw of that datapoint's own latent z. Leave-one-out or WAIC on it misleads, because z is "
    "fitted to the very x that is left out: compare models by held-out log p(x)."
)

_METHOD = "variational"
_SAMPLING = "independent draws from a variational guide, split into chains for convenience"
_WEIGHTS = (
    "draws of q(z | x), not of the posterior: lp - log_q are their log importance weights, for each datapoint on its "
    "own. The log of their mean estimates log p(x)."
)

Program = Callable[..., Any]


@dataclass(frozen=True)
class _Layout:
    """What one trace says about a model and its guide: site names, shapes, and which values are counts."""

    site: str
    num_latents: int
    latent_dtype: np.dtype
    observed: dict[str, tuple[int, ...]]
    discrete: dict[str, bool]
    restored: frozenset[str]
    double: frozenset[str]
    large: frozenset[str]

    @property
    def num_values(self) -> int:
        """Observed values a datapoint."""
        return sum(int(np.prod(shape)) for shape in self.observed.values())

    def value_dtype(self, name: str) -> np.dtype:
        """Counts as int32 (ArviZ refuses unsigned ones, and small ones overflow in arithmetic), else the type of x."""
        if name in self.large:
            return np.dtype(np.int64)
        if name in self.restored or name in self.double and not self.discrete[name]:
            # Single precision would lose the digits behind a large offset.
            return np.dtype(np.float64)
        return np.dtype(np.int32 if self.discrete[name] else np.float32)


def to_datatree(
    model: Program,
    guide: Program,
    data: Data,
    *,
    site: str | None = None,
    num_draws: int = 250,
    num_chains: int = 4,
    max_data: int | None = 100,
    num_predictive: int | None = None,
    seed: int | None = None,
    gaps: Gaps | None = None,
    obs_ids: Sequence[Any] | np.ndarray | Tensor | None = None,
    labels: Sequence[Any] | np.ndarray | Tensor | None = None,
    image_shape: Sequence[int] | None = None,
) -> xr.DataTree:
    """Draws from a model and its guide in the schema that ArviZ reads (0.2x as `InferenceData`, 1.x as `DataTree`).

    For each datapoint `x_n`, draws `z_ns ~ q(z | x_n)`, independent over s and stored as chains because ArviZ's
    summaries want chains, with `lp = log p(x_n, z_ns)` and `log_q = log q(z_ns | x_n)`, so that importance sampling can
    be redone outside. Groups, with dimensions:

    * `posterior` (chain, draw, obs_id, latent_dim): the draws, under the latent site's name; in the model's dtype.
    * `sample_stats` (chain, draw, obs_id): `lp` and `log_q`, float64, nats.
    * `log_likelihood` (chain, draw, obs_id): log p(x_n | z_ns) of each observed site, float64, nats. Conditional on z.
    * `posterior_predictive` (chain, draw, obs_id, ...): x ~ p(x | z_ns); draw s belongs to draw s of `posterior`.
    * `prior`, `prior_predictive`: z ~ p(z), and x ~ p(x | z) at the same draw.
    * `observed_data` (obs_id, ...), and `constant_data` (obs_id) with the labels if given.
    * `gaps` (obs_id): every term of the record with its error, for *all* of `data`, not only where draws were made.

    Counts and binary values are stored as int32 (int64 from 2**24 on), other values in the type of x, as are counts of
    which some were not observed (NaN). A site whose distribution has a method `restore(value)`, as that of a
    standardized VAE, is stored in the units that it returns, as float64. Predictive draws come from
    `pyro.poutine.uncondition(model)`. Model and guide run in eval mode without gradients, in chunks; their modes, the
    caller's parameter store and torch's random state are afterwards as they were (without a seed, one number is drawn).
    The draws of a datapoint depend on the seed and its index, not on how many datapoints follow.

    Attributes of the root say how the draws were made, `inference_method` ("variational"; also at `posterior` and
    `sample_stats`), `guide`, `site`, `seed` and `settings` (JSON), and by which versions of which libraries.

    Args:
        model: Pyro model; `model(x)` opens one plate over the datapoints at dim -1, with one latent site and the
            observed sites in it.
        guide: Pyro guide of the same latent site; a `Local` table of one row a datapoint of `data` serves too.
        data: (N, P) tensor, or anything with `len` and `data[index] -> (B, P)`.
        site: name of the latent site; default: read off the guide.
        num_draws: draws a chain.
        num_chains: chains.
        max_data: draw for this many datapoints, the first ones; None: for all.
        num_predictive: draws a chain in `posterior_predictive`, `prior` and `prior_predictive`. Default: `num_draws`,
            or as many as keep one group below ten million values.
        seed: one integer fixes every draw; None draws one from torch's generator. It is kept in the attributes.
        gaps: what amortization cost, measured on `data`.
        obs_ids: (N,) names of the datapoints, integers or strings; default 0, 1, ....
        labels: (N,) labels of the datapoints; beside `constant_data` they are a coordinate `label` in every group.
        image_shape: (height, width) or (height, width, channels) of an x that is an image; None for other x.
            The values of a site of that size get the dimensions `row`, `column` and `channel` instead of `x_dim_0`.

    Returns:
        The tree, one node a group, in memory.

    Raises:
        ValueError: a size is not positive, `gaps`, `obs_ids`, `labels` or `image_shape` do not match `data`, a site
            bears the name of a dimension, the data draw x anew at each access, or model and guide break the contract.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> tree = to_datatree(model, guide, torch.zeros(3, 2), num_draws=10, seed=0)
        >>> dict(tree["posterior"].sizes)
        {'chain': 4, 'draw': 10, 'obs_id': 3, 'latent_dim': 2}
    """
    for name, size in {"num_draws": num_draws, "num_chains": num_chains}.items():
        require_count(name, size)
    for name, limit in {"max_data": max_data, "num_predictive": num_predictive}.items():
        if limit is not None:
            require_count(name, limit)
    if image_shape is not None and not isinstance(image_shape, Sequence):
        raise TypeError(f"image_shape: expected (height, width) or (height, width, channels); got {image_shape!r}.")
    if gaps is not None:
        require_kind("gaps", gaps, Gaps)
    total = require_fixed(data, purpose="drawing from its posterior")
    num_data = total if max_data is None else min(total, max_data)
    ids = np.arange(total) if obs_ids is None else per_datapoint("obs_ids", obs_ids, total)
    names = None if labels is None else per_datapoint("labels", labels, total)
    if gaps is not None and len(gaps) != total:
        raise ValueError(
            f"gaps: expected one row for each of the {total} datapoints of data; got {len(gaps)}. "
            "Pass the data that the gaps were measured on."
        )
    seed = resolve_seed(seed)

    require_finite_parameters(model, guide)
    # The outer seed is for the draws that nothing keeps: a guide samples when it is asked for its distribution.
    with torch.no_grad(), eval_mode(model, guide), private_store(model, guide), seeded(derive_seed(seed, "draws")):
        device = _device(model, guide)
        layout = _layout(model, guide, data, site, device)
        axes = Axes(
            site=layout.site,
            obs_ids=ids[:num_data],
            labels=None if names is None else names[:num_data],
            image_shape=None if image_shape is None else tuple(image_shape),
        )
        axes.require_match(layout.observed)
        if num_predictive is None:
            per_draw = num_chains * num_data * max(layout.num_values, 1)
            num_predictive = max(1, PREDICTIVE_VALUES // per_draw)
        num_predictive = min(num_predictive, num_draws)
        groups = _allocate(layout, num_chains, num_draws, num_predictive, num_data)
        blocks = list(product(range(num_chains), range(0, num_data, BLOCK)))
        for chain, first in track(blocks, len(blocks), "draws", "block"):
            _fill_block(groups, layout, model, guide, data, seed, chain, first, device)
    for name, values in groups["observed_data"].items():
        # No integer says that a count was not observed.
        kind = layout.value_dtype(name)
        if np.isnan(values).any() and kind.kind == "i":
            kind = np.dtype(np.float64 if name in layout.double else np.float32)
        elif kind == np.int32 and values.size and np.abs(values).max() > np.iinfo(np.int32).max:
            kind = np.dtype(np.int64)
        groups["observed_data"][name] = values.astype(kind)
    if axes.labels is not None:
        groups["constant_data"] = {"labels": axes.labels}

    tree = {group: axes.dataset(group, arrays) for group, arrays in groups.items()}
    tree["posterior"].attrs |= {"inference_method": _METHOD, "sampling": _SAMPLING}
    tree["sample_stats"].attrs |= {"inference_method": _METHOD, "note": _WEIGHTS}
    tree["log_likelihood"].attrs["note"] = _CONDITIONAL
    if gaps is not None:
        tree["gaps"] = gaps_dataset(gaps, ids, names)
    settings = {
        "num_draws": num_draws,
        "num_chains": num_chains,
        "num_predictive": num_predictive,
        "max_data": max_data,
        "image_shape": axes.image_shape,
    }
    about = {
        "inference_method": _METHOD,
        "guide": _describe(guide),
        "site": layout.site,
        "seed": seed,
        "settings": json.dumps(settings),
        **_versions(),
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=about), **tree})


def _describe(guide: Program) -> str:
    family = getattr(guide, "family", None)
    return getattr(guide, "__qualname__", type(guide).__qualname__) if family is None else repr(family)


def _versions() -> dict[str, str]:
    """Names and versions of what made a tree, under the names that ArviZ's schema gives them."""
    try:
        own = version("pyro-vae")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "inference_library": "pyro",
        "inference_library_version": str(pyro.__version__),
        "creation_library": "pyro-vae",
        "creation_library_version": own,
        "creation_library_language": "Python",
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "xarray_version": xr.__version__,
    }


def _device(*programs: Program) -> torch.device | None:
    return next((p.device for module in modules_of(*programs) for p in module.parameters()), None)


def _guide_at(guide: Program, index: Tensor) -> Program:
    rows = getattr(guide, "rows", None)
    return guide if rows is None else rows(index)


def _trace(program: Program, x: Tensor, num_draws: int) -> poutine.Trace:
    with pyro.plate("_particles", num_draws, dim=-2):
        return poutine.trace(program).get_trace(x)


def _sample_sites(trace: poutine.Trace) -> dict[str, Any]:
    return {
        name: node for name, node in trace.nodes.items() if node["type"] == "sample" and not site_is_subsample(node)
    }


def _layout(model: Program, guide: Program, data: Data, site: str | None, device: torch.device | None) -> _Layout:
    """Read sites and shapes off one trace of two draws; `guide_distribution` and `densities` check the contract."""
    index = torch.arange(min(8, len(data)))
    x = fetch(data, index, device=device)
    site, q = guide_distribution(_guide_at(guide, index), x, site=site)
    z = q.sample((3,))
    densities(model, x, z, site=site)
    require_rowwise(model, x, z, site=site, guide=None if hasattr(guide, "rows") else guide)
    x, z = x[:2], z[:2, :2]
    nodes = _sample_sites(_trace(poutine.condition(model, {site: z}), x, 2))
    # `pyro.deterministic` and `pyro.factor` are observed sites to Pyro, but nobody observed them.
    observed = {
        name: node
        for name, node in nodes.items()
        if name != site and not node["infer"].get("_deterministic") and node["value"].numel()
    }
    if not observed:
        raise ValueError("model: expected an observed site; got none. Pass obs=x to pyro.sample in the model.")
    return _Layout(
        site=site,
        num_latents=z.shape[-1],
        latent_dtype=z.cpu().numpy().dtype,
        observed={name: tuple(node["fn"].event_shape) for name, node in observed.items()},
        discrete={name: _is_discrete(node) for name, node in observed.items()},
        restored=frozenset(name for name, node in observed.items() if hasattr(node["fn"], "restore")),
        double=frozenset(name for name, node in observed.items() if node["value"].dtype == torch.float64),
        large=frozenset(
            name for name, node in observed.items() if _is_discrete(node) and bool((node["value"].abs() > 2**24).any())
        ),
    )


def _restored(node: Mapping[str, Any]) -> Tensor:
    """A site's value in the data's own units, where its distribution is over standardized values."""
    restore = getattr(node["fn"], "restore", None)
    return node["value"] if restore is None else restore(node["value"])


def _is_discrete(node: Mapping[str, Any]) -> bool:
    # Gray values scored by a Bernoulli without validation must not be rounded away.
    value = node["value"]
    return bool(node["fn"].support.is_discrete) and bool(((value == value.round()) | value.isnan()).all())


def _allocate(
    layout: _Layout, num_chains: int, num_draws: int, num_predictive: int, num_data: int
) -> dict[str, dict[str, np.ndarray]]:
    draws = (num_chains, num_draws, num_data)
    few = (num_chains, num_predictive, num_data)

    def values(leading: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {name: np.empty(leading + shape, layout.value_dtype(name)) for name, shape in layout.observed.items()}

    return {
        "posterior": {layout.site: np.empty(draws + (layout.num_latents,), layout.latent_dtype)},
        "sample_stats": {"lp": np.empty(draws), "log_q": np.empty(draws)},
        "log_likelihood": {name: np.empty(draws) for name in layout.observed},
        "posterior_predictive": values(few),
        "prior": {layout.site: np.empty(few + (layout.num_latents,), layout.latent_dtype)},
        "prior_predictive": values(few),
        "observed_data": {name: np.empty((num_data, *shape)) for name, shape in layout.observed.items()},
    }


def _fill_block(
    groups: dict[str, dict[str, np.ndarray]],
    layout: _Layout,
    model: Program,
    guide: Program,
    data: Data,
    seed: int,
    chain: int,
    first: int,
    device: torch.device | None,
) -> None:
    """Every draw of one chain for the datapoints `first : first + BLOCK`."""
    site = layout.site
    _, num_draws, num_data = groups["sample_stats"]["lp"].shape
    num_predictive = groups["prior"][site].shape[1]
    # A full block whatever follows: the random numbers of a datapoint must not depend on how many come after it.
    index = torch.arange(first, first + BLOCK).clamp(max=num_data - 1)
    kept = min(BLOCK, num_data - first)
    x = fetch(data, index, device=device)
    _, q = guide_distribution(_guide_at(guide, index), x, site=site)
    free = poutine.uncondition(model)

    def put(group: str, name: str, start: int, value: Tensor) -> None:
        target = groups[group][name][chain, start : start + len(value), first : first + kept]
        target[...] = value[:, :kept].cpu().numpy()

    piece = min(PIECE, max(1, PASS_VALUES // (BLOCK * max(layout.num_values, 1))))
    for start in range(0, num_draws, piece):
        size = min(piece, num_draws - start)
        keys = ("draws", chain, start, first // BLOCK)
        with measured(derive_seed(seed, "posterior", *keys)):
            z = q.sample((size,))
        with measured(derive_seed(seed, "model", *keys)):
            nodes = _sample_sites(_trace(poutine.condition(model, {site: z}), x, size))
        log_probs = {name: _log_prob(node) for name, node in nodes.items()}
        put("posterior", site, start, z)
        put("sample_stats", "log_q", start, q.log_prob(z))
        put("sample_stats", "lp", start, torch.stack(torch.broadcast_tensors(*log_probs.values())).sum(0))
        for name in layout.observed:
            put("log_likelihood", name, start, log_probs[name])
            if chain == 0 and start == 0:
                node = nodes[name]
                value = _restored(node).expand(node["fn"].batch_shape + node["fn"].event_shape)[0, :kept]
                groups["observed_data"][name][first : first + kept] = value.cpu().numpy()

        size = min(size, num_predictive - start)
        if size <= 0:
            continue
        with measured(derive_seed(seed, "posterior_predictive", *keys)):
            predictive = _sample_sites(_trace(poutine.condition(free, {site: z[:size]}), x, size))
        with measured(derive_seed(seed, "prior", *keys)):
            prior = _sample_sites(_trace(free, x, size))
        put("prior", site, start, prior[site]["value"])
        for name in layout.observed:
            put("posterior_predictive", name, start, _restored(predictive[name]))
            put("prior_predictive", name, start, _restored(prior[name]))


def _log_prob(node: Mapping[str, Any]) -> Float[Tensor, "S B"]:
    """Log density of a site's value; what a mask hides (missing values) counts as zero."""
    return scale_and_mask(node["fn"].log_prob(node["value"]), mask=node["mask"])
