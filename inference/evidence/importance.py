"""Importance sampling: a lower bound on log p(x) in expectation, from a proposal wider than the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from inference.batches import Data, require_fixed
from inference.chunked import over_chunks
from inference.counts import is_number, require_kind
from inference.densities import densities, guide_distribution, latent_prior
from inference.families import (
    Family,
    FullCovariance,
    MeanField,
    family_of,
    from_noise,
    loc_and_tril,
    noise_size,
    on_support,
)
from inference.given import Given, over_draws
from inference.guides import Local
from inference.isolation import device_of, frozen
from inference.memory import draws_for
from inference.noise import BLOCK, derive_seed, measured, resolve_seed, seeded
from inference.objectives import LocalLoss
from inference.progress import track
from inference.results import Evidence
from inference.resuming import Journal, Resume
from inference.scoring import first_distribution, guide_of, require_draws, require_sound
from inference.search import Search, best_rows
from inference.supports import bijection
from inference.weights import Weighed, weigh

__all__ = ["Defensive", "iwae", "proposal_draws", "proposal_family", "proposal_rows"]

# Above this a dense covariance a datapoint costs more than it brings.
MAX_DENSE_LATENTS = 64
# A proposal need not be the best member of its family, only close to it.
PROPOSAL_TOL = 0.1
# Part of the seeding: another number is other draws.
DRAWS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Defensive:
    r"""A proposal wider than the posterior, so that importance weights are bounded.

    .. math::
        r(z) = (1 - \epsilon) \, N(z; \mu, c^2 \Sigma) + \epsilon \, p(z)

    where mu and Sigma are those of the best member of the family of full covariance where D is at most 64, else of the
    guide's own, or of mean-field where that is not normal. A latent vector that is constrained is proposed in the
    coordinates of R^D, and log r holds the Jacobian.

    Attributes:
        widen: c, factor on the scales.
        prior_weight: epsilon, share of draws from the prior.

    References:
        Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions.
    """

    widen: float = 1.2
    prior_weight: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what is not a proposal."""
        if not (is_number(self.widen) and 0 < self.widen < math.inf):
            raise ValueError(f"widen: expected a positive factor; got {self.widen!r}. The default is 1.2.")
        if not (is_number(self.prior_weight) and 0 <= self.prior_weight < 1):
            raise ValueError(
                f"prior_weight: expected a share in [0, 1); got {self.prior_weight!r}. The default is 0.05."
            )


def iwae(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    site: str | None = None,
    num_draws: int = 5000,
    proposal: Defensive | None = Defensive(),  # noqa: B008 (frozen)
    search: Search = Search(),  # noqa: B008
    given: Given | None = None,
    resume: Resume | None = None,
    seed: int | None = None,
) -> Evidence:
    r"""The importance-weighted bound on log p(x), per datapoint: a lower bound in expectation.

    .. math::
        \log \hat p(x) = \log \frac1S \sum_s \frac{p(x, z_s)}{r(z_s)}, \qquad z_s \sim r

    All S draws of a datapoint come from one proposal r. By default r is `Defensive()`: the guide's distribution is
    first refined (a `Local` guide of normals is taken as it is; of a flow or a mixture the search starts at the
    moments), then widened and mixed with the prior.

    Args:
        model: Pyro model.
        guide: Pyro guide, amortized or `Local`.
        data: (N, P) datapoints, each with a fixed x.
        site: name of the latent site; read off the guide by default.
        num_draws: S.
        proposal: how r is made; None: draw from the guide itself.
        search: how the search for the proposal runs.
        given: draws (M, *shape) of each latent site outside the data plate: the value bounds log p(x | w), averaged
            over the draws of w, which is not log p(x).
        resume: where each chunk's results are kept, so that the same call goes on after it was killed.
        seed: of the draws.

    Returns:
        Value, standard error, effective number of draws and tail index, each (N,).

    Raises:
        ValueError: the program breaks the contract, or `data` draws x anew at each access.

    References:
        Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders.

    Example:
        >>> from inference import Local, MeanField
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Local(MeanField(2), torch.zeros(5, 4))
        >>> evidence = iwae(model.model, guide, torch.zeros(5, 2), num_draws=100, seed=0)
        >>> evidence.ess.shape
        torch.Size([5])
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="iwae")
    require_draws(num_draws, least=50)
    require_kind("search", search, Search)
    if proposal is not None:
        require_kind("proposal", proposal, Defensive)
    if given is not None:
        options: dict[str, Any] = {"site": site, "num_draws": num_draws, "proposal": proposal, "search": search}
        return over_draws(
            lambda p, q, seed: iwae(p, q, data, seed=seed, **options), given, data, model, guide, seed=seed
        )
    settings = {
        "num_draws": num_draws,
        "proposal": None if proposal is None else asdict(proposal),
        "search": asdict(search),
        "seed": seed,
    }
    device = device_of(model, guide)
    with frozen(model, guide), seeded(seed):
        name, q = first_distribution(model, guide, data, site=site, device=device)
        searched = proposal is not None and not (isinstance(guide, Local) and _is_normal(q))
        family = proposal_family(q) if searched else guide.family if isinstance(guide, Local) else None

        def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:
            part = guide_of(guide, index, num_data=num_data)
            with torch.no_grad():
                _, q = guide_distribution(part, x, site=name)
                require_sound(model, guide, q, x, site=name)
            if searched and family is not None:
                rows = proposal_rows(model, x, index, q, family, site=name, search=search, seed=seed)
                part = Local(family.to(x.device), rows, name)
            columns: list[Weighed] = []
            blocks = torch.arange(len(index)).split(BLOCK)
            for within in track(blocks, len(blocks), "importance sampling", "block"):
                with torch.no_grad():
                    _, q = guide_distribution(guide_of(part, within, num_data=len(index)), x[within], site=name)
                block = int(index[within[0]]) // BLOCK
                drawn = proposal_draws(model, x[within], block, q, proposal, site=name, num_draws=num_draws, seed=seed)
                columns.append(weigh(torch.cat([log_w for _, log_w in drawn])))
            # (.., B) to (B, ..)
            rows_of = zip(Weighed._fields, zip(*columns, strict=True), strict=True)
            return {field: torch.cat(column, dim=-1).movedim(-1, 0) for field, column in rows_of}

        columns = over_chunks(
            work,
            model,
            data,
            search.num_particles,
            "log p(x)",
            device=device,
            journal=Journal.of(resume, model, guide, site=name, **settings),
        )
    method = (
        f"IWAE, {num_draws} draws from "
        + (f"a widened q{'' if family is None else f' in {family!r}'}" if proposal else "the guide")
        + " (a lower bound in expectation)"
    )
    weighed = {field: column.movedim(0, -1).contiguous() for field, column in columns.items()}
    return Evidence(**weighed, method=method, bound="lower", settings=settings)


def proposal_family(q: Distribution) -> Family:
    """The family that a proposal near q is made in."""
    size = q.event_shape[0]
    family: Family
    if size <= MAX_DENSE_LATENTS:
        family = FullCovariance(size)
    else:
        family = family_of(getattr(q, "unconstrained", q)) if _is_normal(q) else MeanField(size)
    return on_support(family, q.support)


def proposal_rows(
    model: Callable[..., Any],
    x: Tensor,
    index: Tensor,
    q: Distribution,
    family: Family,
    *,
    site: str,
    search: Search,
    seed: int,
) -> Float[Tensor, "B K"]:
    """The refined rows of a proposal, started at q's moments."""
    family = family.to(x.device)
    objective = LocalLoss(model, family, site)
    with torch.no_grad():
        start = family.params_from(q)
    found = best_rows(
        objective, x, index, start, tol=PROPOSAL_TOL, search=search, seed=derive_seed(seed, "proposal"), cold=False
    )
    return found.params


@torch.no_grad()
def proposal_draws(
    model: Callable[..., Any],
    x: Tensor,
    block: int,
    q: Distribution,
    proposal: Defensive | None,
    *,
    site: str,
    num_draws: int,
    seed: int,
) -> Iterator[tuple[Float[Tensor, "S B D"], Float[Tensor, "S B"]]]:
    """Draws of the proposal at one block of datapoints and their log importance weights, a few draws at a time.

    Args:
        model: Pyro model.
        x: (B, P) datapoints of the block, B at most 64.
        block: number of the block.
        q: distribution that the proposal is made of, batch shape (B,).
        proposal: how it is widened and mixed with the prior; None: draw from `q`.
        site: name of the latent site.
        num_draws: draws in all.
        seed: of the draws.
    """
    num_noise = noise_size(q) if proposal is None else q.event_shape[0]
    with pyro.validation_enabled(is_validate=False):
        # A full block is always drawn, so that a datapoint's draws do not depend on what follows it.
        prior = latent_prior(model, torch.cat([x, x[-1:].expand(BLOCK - len(x), -1)]), site=site)
        for first in range(0, num_draws, DRAWS_AT_ONCE):
            size = (min(DRAWS_AT_ONCE, num_draws - first), BLOCK)
            with measured(derive_seed(seed, "evidence", block, first)):
                noise = torch.randn(*size, num_noise, dtype=torch.float64)[:, : len(x)].to(x.device)
                choice = torch.rand(size, dtype=torch.float64)[:, : len(x)].to(x.device)
                prior_draws = prior.sample(size[:1])[:, : len(x)]
            z, log_r = _propose(q, proposal, noise, choice, prior_draws)
            for few_z, few_r in zip(*(values.split(draws_for(x)) for values in (z, log_r)), strict=True):
                terms = densities(model, x, few_z, site=site)
                if proposal is not None and proposal.prior_weight:
                    share = math.log(proposal.prior_weight)
                    few_r = torch.logaddexp(few_r, share + terms.log_prior.double())
                yield few_z, terms.log_joint.double() - few_r


def _propose(
    q: Distribution, proposal: Defensive | None, noise: Tensor, choice: Tensor, prior_draws: Tensor
) -> tuple[Float[Tensor, "S B D"], Float[Tensor, "S B"]]:
    """Draws of r, and the share of its log density that is not the prior's."""
    if proposal is None:
        z, log_q = from_noise(q, noise.to(prior_draws.dtype))
        return z, log_q.double()
    onto = bijection(q.support)
    loc, tril = (moment.double() for moment in loc_and_tril(getattr(q, "unconstrained", q)))
    tril = proposal.widen * tril
    free = loc + (tril @ noise.movedim(0, -1)).movedim(-1, 0)
    from_prior = (choice < proposal.prior_weight).unsqueeze(-1)
    # The model sees z rounded to its own dtype; the proposal's density is taken at exactly that z, in float64. Not so
    # of a bounded z: near its bounds what is rounded by an ulp lies elsewhere in R^D altogether.
    if onto is None:
        z = torch.where(from_prior, prior_draws.double(), free).to(prior_draws.dtype)
        free = z.double()
    else:
        free = torch.where(from_prior, onto.inv(prior_draws.double()), free)
        z = torch.where(from_prior, prior_draws, onto(free).to(prior_draws.dtype))
    whitened = torch.linalg.solve_triangular(tril, (free - loc).movedim(0, -1), upper=False)  # (B, D, S)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_r = (-0.5 * whitened.square().sum(-2)).T - log_det - 0.5 * z.shape[-1] * math.log(2 * math.pi)
    if onto is not None:
        log_r = log_r - onto.log_abs_det_jacobian(free, onto(free))
    return z, math.log1p(-proposal.prior_weight) + log_r


def _is_normal(q: Distribution) -> bool:
    """Whether q is fully described by its moments, in the coordinates of R^D."""
    free = getattr(q, "unconstrained", q)
    free = free.base_dist if isinstance(free, Independent) else free
    return isinstance(free, Normal | MultivariateNormal | LowRankMultivariateNormal)
