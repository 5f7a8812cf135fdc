"""Simulation-based calibration: are the guide's draws draws from the posterior?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference.batches import Data
from inference.counts import is_number, require_count
from inference.densities import densities, guide_distribution
from inference.diagnostics.bands import critical_level, limits, p_value, tail_probabilities
from inference.isolation import device_of, frozen
from inference.memory import draws_for
from inference.noise import BLOCK, derive_seed, measured, resolve_seed, seeded
from inference.results import Calibration
from inference.scoring import require_sound
from inference.simulation import simulate, site_for_any_x

__all__ = ["judge", "sbc"]


def sbc(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data_like: Data,
    *,
    num_simulations: int = 1000,
    num_draws: int = 99,
    site: str | None = None,
    alpha: float = 0.05,
    seed: int | None = None,
) -> Calibration:
    r"""Simulation-based calibration of a guide.

    .. math::
        z \sim p(z), \quad x \sim p(x \mid z), \quad z_1, \dots, z_L \sim q(z \mid x), \qquad
        r_t = \#\{l : t(x, z_l) < t(x, z)\}

    Were the guide the posterior, z and its draws would be exchangeable given x, and each rank uniform on 0, ..., L. The
    test quantities t are every dimension of z, and log p(x, z), which sees what no marginal can: a wrong correlation,
    or a guide that ignores x. Ranks are compared with the uniform distribution by bands that hold at every rank at once
    (Säilynoja, Bürkner & Vehtari 2022), found exactly, and by Bonferroni over the D + 1 quantities.

    What fails is the guide on the model's own data, averaged over x; nothing is said about whether real data are like
    these. With enough simulations every guide that is not exact fails: `distance` says by how much.

    Args:
        model: Pyro model, one that can be simulated (see `simulate`).
        guide: Pyro guide from x to z: `Amortized`, or written by hand.
        data_like: (N', P) data of the kind that the model is for. Of the columns that the model observes only shape and
            dtype are used; those that it is given are kept.
        num_simulations: N, pairs (z, x) drawn from the model.
        num_draws: L, draws of the guide at each x.
        site: name of the latent site; read off the guide by default.
        alpha: probability that an exact guide fails.
        seed: of all draws.

    Returns:
        Ranks, bands and a verdict; printing it says in words what is wrong.

    Raises:
        ValueError: the guide is `Local`, the model cannot be simulated, or the pair breaks the contract.

    References:
        Talts, Betancourt, Simpson, Vehtari & Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration.
        Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari (2023), Simulation-based calibration checking
        for Bayesian computation: the choice of test quantities shapes sensitivity.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> sbc(model, guide, torch.zeros(1, 2), num_simulations=200, seed=0).passes
        True
    """
    seed = resolve_seed(seed)
    require_count("num_simulations", num_simulations, least=10)
    require_count("num_draws", num_draws)
    if not (is_number(alpha) and 0 < alpha < 1):
        raise ValueError(f"alpha: expected a probability in (0, 1); got {alpha!r}. Try 0.05.")
    site = site_for_any_x(guide, data_like, site=site)
    # Whole blocks: what is drawn at a datapoint does not depend on how many follow it.
    whole = -(-num_simulations // BLOCK) * BLOCK
    z, x = simulate(model, data_like, num_data=whole, site=site, seed=derive_seed(seed, "sbc"))
    device = device_of(model, guide)
    with frozen(model, guide), torch.no_grad():
        ranks = torch.cat(
            [
                _ranks(
                    model, guide, x[rows].to(device), z[rows].to(device), num_draws, site=site, seed=seed, block=block
                )
                for block, rows in enumerate(torch.arange(whole).split(BLOCK))
            ]
        )[:num_simulations]
    return judge(
        ranks,
        names=(*(f"{site}[{d}]" for d in range(z.shape[-1])), Calibration.JOINT),
        num_draws=num_draws,
        alpha=alpha,
        settings={"num_simulations": num_simulations, "num_draws": num_draws, "site": site, "seed": seed},
    )


def judge(
    ranks: Int[Tensor, "N T"],
    *,
    names: tuple[str, ...],
    num_draws: int,
    alpha: float = 0.05,
    settings: Mapping[str, Any] | None = None,
) -> Calibration:
    """Whether ranks are uniform: the bands of N ranks, and each quantity's p-value.

    Args:
        ranks: (N, T) numbers from 0 to L, independent over datapoints.
        names: (T,) the test quantities.
        num_draws: L.
        alpha: probability that uniform ranks leave the band in any quantity, whatever their dependence.
        settings: kept in the record.
    """
    num_ranks, num_quantities = ranks.shape
    tails = tail_probabilities(num_ranks, num_draws)
    lower, upper = limits(tails, critical_level(tails, alpha / num_quantities))
    expected = torch.arange(1, num_draws + 1, dtype=torch.float64) / (num_draws + 1)
    return Calibration(
        names=names,
        ranks=ranks,
        num_draws=num_draws,
        alpha=alpha,
        lower=lower / num_ranks - expected,
        upper=upper / num_ranks - expected,
        p_values=torch.tensor([p_value(column, tails) for column in ranks.T], dtype=torch.float64),
        settings=settings or {},
    )


def _ranks(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Float[Tensor, "B P"],
    z: Float[Tensor, "B D"],
    num_draws: int,
    *,
    site: str,
    seed: int,
    block: int,
) -> Int[Tensor, "B T"]:
    """Ranks of one block of simulated datapoints: of each dimension of z, then of log p(x, z)."""
    _, q = guide_distribution(guide, x, site=site)
    if not block:
        require_sound(model, guide, q, x, site=site)
    with measured(derive_seed(seed, "sbc", "draws", block)):
        draws = torch.cat([z.unsqueeze(0), q.sample((num_draws,)).to(z.dtype)])
    with pyro.validation_enabled(is_validate=False):
        log_p_xz = torch.cat(
            [densities(model, x, few, site=site).log_joint for few in draws.split(draws_for(x))], dim=0
        )
    values = torch.cat([draws, log_p_xz.unsqueeze(-1).to(draws.dtype)], dim=-1).cpu()
    below, ties = ((values[1:] < values[0]).sum(0), (values[1:] == values[0]).sum(0))
    with seeded(derive_seed(seed, "sbc", "ties", block)):
        return below + (torch.rand(ties.shape) * (ties + 1)).long()
