"""Quadrature, where the latent space has one dimension or two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform

from inference import scoring
from inference.batches import Data, require_fixed
from inference.chunked import over_chunks
from inference.counts import require_count
from inference.densities import densities, latent_prior
from inference.given import Given, over_draws
from inference.independence import require_rowwise
from inference.isolation import device_of, frozen
from inference.memory import draws_for
from inference.noise import like, seeded
from inference.results import Evidence
from inference.supports import bijection

__all__ = ["quadrature"]


def quadrature(
    model: Callable[..., Any],
    data: Data,
    *,
    site: str = "z",
    tol: float = 1e-4,
    max_points: int = 2**21,
    given: Given | None = None,
) -> Evidence:
    r"""Log p(x) by integration over a latent space of one or two dimensions.

    .. math::
        \log p(x) = \log \int p(x, z) \, dz \approx \log \sum_g h_1 \cdots h_D \, p(x, z_g)

    The box starts at twice the range of prior draws; for each datapoint it grows or shrinks to where the integrand may
    be within e^-30 of its maximum; the grid is then halved until log p(x) is stable to `tol`. For smooth integrands
    the rule converges faster than any power of h. A constrained latent space is integrated over in the coordinates of
    R^D.

    Args:
        model: Pyro model with D = 1 or 2.
        data: (N, P) datapoints, each with a fixed x.
        site: name of the latent site.
        tol: nats.
        max_points: grid points at most.
        given: draws (M, *shape) of each latent site outside the data plate: the value is log p(x | w), averaged over
            the draws of w, which is not log p(x).

    Returns:
        Value (N,), nats; the standard error is 0.

    Raises:
        ValueError: D is above 2, the program breaks the contract, or the value is not stable with the finest grid.

    Example:
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 1), torch.zeros(3), 1.0)
        >>> x = torch.ones(2, 3)
        >>> bool((quadrature(model.model, x).value - model.log_evidence(x)).abs().max() < 1e-3)
        True
    """
    num_data = require_fixed(data, purpose="quadrature")
    scoring.require_tol(tol)
    require_count("max_points", max_points)
    if given is not None:
        options: dict[str, Any] = {"site": site, "tol": tol, "max_points": max_points}
        return over_draws(lambda p, _, __: quadrature(p, data, **options), given, data, model)

    def work(index: Tensor, x: Tensor) -> dict[str, Tensor]:  # noqa: ARG001
        prior = latent_prior(model, x, site=site)
        if prior.event_shape[0] > 2:
            raise ValueError(
                f"site '{site}': quadrature needs 1 or 2 latent dimensions; got {prior.event_shape[0]}. Use iwae "
                "instead."
            )
        draws = prior.sample((1000,))
        densities(model, x, draws[:1], site=site)
        require_rowwise(model, x, draws[:3], site=site)
        onto = bijection(prior.support)
        return {"value": _integrate(model, x, draws, onto, site=site, tol=tol, max_points=max_points)}

    # Draws only place the first box, so the result does not depend on this seed.
    with frozen(model), seeded(0), torch.no_grad():
        # A block at a time: each has its own box.
        columns = over_chunks(work, model, data, scoring.VALUES_AT_ONCE, "quadrature", device=device_of(model))
    return Evidence(
        value=columns["value"],
        se=torch.zeros(num_data, dtype=torch.float64),
        method="quadrature",
        settings={"tol": tol, "max_points": max_points},
    )


def _integrate(
    model: Callable[..., Any],
    x: Tensor,
    draws: Tensor,
    onto: Transform | None,
    *,
    site: str,
    tol: float,
    max_points: int,
) -> Float[Tensor, " B"]:
    draws = draws if onto is None else onto.inv(draws)
    low, high = draws.amin(0).double(), draws.amax(0).double()  # (B, D)
    low, high = 1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low
    points = 129 if low.shape[1] == 1 else 65
    for _ in range(60):
        log_p, _ = _grid(model, x, low, high, points, onto, site=site)
        new_low, new_high = _box(log_p, low, high)
        moved = torch.maximum((new_low - low).abs(), (new_high - high).abs()) > 3 * (high - low) / (points - 1)
        if not moved.any():
            break
        low, high = torch.where(moved, new_low, low), torch.where(moved, new_high, high)
    previous = None
    while points ** low.shape[1] <= max_points:
        log_p, log_cell = _grid(model, x, low, high, points, onto, site=site)
        value = log_p.flatten(0, -2).logsumexp(0) + log_cell
        if previous is not None and bool(((value - previous).abs() < tol).all()):
            return value
        previous = value
        points = 2 * points - 1
    raise ValueError(
        f"quadrature: log p(x) is not stable to {tol:g} nats with {max_points} grid points. Raise max_points or tol, "
        "or use iwae."
    )


def _box(log_p: Float[Tensor, "*G B"], low: Tensor, high: Tensor) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """A box that holds all that matters as far as this grid can tell; wider where the integrand matters at an edge."""
    # Between grid points log p may be higher than at them by about as much as it changes from one to the next.
    reach = torch.zeros_like(log_p)
    num_dims = log_p.dim() - 1
    for dim in range(num_dims):
        step = log_p.diff(dim=dim).abs().nan_to_num(0.0, 0.0)
        edge = torch.zeros_like(step.narrow(dim, 0, 1))
        reach = torch.maximum(reach, torch.maximum(torch.cat([edge, step], dim), torch.cat([step, edge], dim)))
    matters = log_p + reach > log_p.flatten(0, -2).amax(0) - 30
    lows, highs = [], []
    for dim in range(num_dims):
        points = log_p.shape[dim]
        along = matters.movedim(dim, 0).reshape(points, -1, log_p.shape[-1]).any(1)  # (G, B)
        position = torch.arange(points, device=log_p.device).unsqueeze(-1)
        first = torch.where(along, position, points).amin(0).to(low)
        last = torch.where(along, position, -1).amax(0).to(low)
        at_low, at_high = first == 0, last == points - 1
        # While one edge moves out the other stays: a box that follows the integrand must not shrink on its way.
        first, last = torch.where(at_high, 2, first), torch.where(at_low, points - 3, last)
        cell = (high - low)[:, dim] / (points - 1)
        lows.append(low[:, dim] + cell * torch.where(at_low, -points / 2, first - 2))
        highs.append(low[:, dim] + cell * torch.where(at_high, 1.5 * points, last + 2))
    return torch.stack(lows, -1), torch.stack(highs, -1)


def _grid(
    model: Callable[..., Any], x: Tensor, low: Tensor, high: Tensor, points: int, onto: Transform | None, *, site: str
) -> tuple[Tensor, Tensor]:
    """Log p(x, z) on a grid in R^D between low and high, (G a dimension, B), and a cell's log volume (B,)."""
    unit = torch.linspace(0, 1, points, dtype=low.dtype, device=low.device)
    unit = torch.cartesian_prod(*[unit] * low.shape[1]).reshape(-1, 1, low.shape[1])
    free = (low + unit * (high - low)).to(like(x))
    z = free if onto is None else onto(free)
    with pyro.validation_enabled(is_validate=False):
        log_p = torch.cat([densities(model, x, part, site=site).log_joint.double() for part in z.split(draws_for(x))])
    if onto is not None:
        log_p = log_p + onto.log_abs_det_jacobian(free, z).double()
    shape = (points,) * low.shape[1]
    return log_p.reshape(*shape, -1), ((high - low) / (points - 1)).log().sum(-1)
