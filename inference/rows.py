"""Optimisation of a table of parameters, one row a datapoint."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference.families import Family

__all__ = ["RowAdam", "RowNatural", "RowOptimizer", "optimizer_for"]

# A step of the natural gradient moves nothing further than this, in the family's `step_units`.
REACH = 1.0
# Of locations: the size of a natural step, and how much of the last one it carries along. Stable while no direction is
# more than 2 (1 + MOMENTUM) / LOC_STEP = 8.5 times as curved as q's own precision says.
LOC_STEP = 0.4
MOMENTUM = 0.7
# Of scales and correlations: step t is SHAPE_STEP / (t + SHAPE_DELAY), so that they average over the steps so far.
SHAPE_STEP = 3.0
SHAPE_DELAY = 5.0


class RowOptimizer(Protocol):
    """What moves the rows of a table; each row has a state of its own."""

    def step(
        self,
        rows: Float[Tensor, "B K"],
        grad: Float[Tensor, "B K"],
        index: Int[Tensor, " B"],
        *,
        lr: float | Float[Tensor, "B 1"],
    ) -> Float[Tensor, "B K"]:
        """The rows after one step down the gradient."""

    def forget(self, index: Int[Tensor, " B"]) -> None:
        """Start these rows' state afresh."""


class RowAdam:
    r"""Adam whose state belongs to rows: a row that is not visited does not move and does not age.

    Dense Adam on a table moves the rows outside the minibatch through stale momentum; here each row has its own moments
    and its own step count.

    Args:
        num_rows: N.
        num_params: K.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        like: tensor whose dtype and device the state takes.

    References:
        Kingma & Ba (2015), Adam: a method for stochastic optimization.

    Example:
        >>> table = torch.zeros(5, 2)
        >>> optimizer = RowAdam(5, 2, like=table)
        >>> index = torch.tensor([1, 3])
        >>> optimizer.step(table[index], torch.ones(2, 2), index, lr=0.1)
        tensor([[-0.1000, -0.1000],
                [-0.1000, -0.1000]])
    """

    def __init__(
        self,
        num_rows: int,
        num_params: int,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        like: Tensor,
    ) -> None:
        self.betas = betas
        self.eps = eps
        self.first = like.new_zeros(num_rows, num_params)
        self.second = like.new_zeros(num_rows, num_params)
        self.count = like.new_zeros(num_rows, 1)

    def step(
        self,
        rows: Float[Tensor, "B K"],
        grad: Float[Tensor, "B K"],
        index: Int[Tensor, " B"],
        *,
        lr: float | Float[Tensor, "B 1"],
    ) -> Float[Tensor, "B K"]:
        """The rows after one step down the gradient.

        Args:
            rows: (B, K) the visited rows.
            grad: (B, K) gradient of the loss at them.
            index: (B,) their positions in the table.
            lr: step size, one for all or one a row.
        """
        beta1, beta2 = self.betas
        first = torch.lerp(grad, self.first[index], beta1)
        second = torch.lerp(grad.square(), self.second[index], beta2)
        count = self.count[index] + 1
        self.first[index], self.second[index], self.count[index] = first, second, count
        direction = (first / (1 - beta1**count)) / ((second / (1 - beta2**count)).sqrt() + self.eps)
        return rows - lr * direction

    def forget(self, index: Int[Tensor, " B"]) -> None:
        """Start these rows' state afresh."""
        self.first[index] = 0
        self.second[index] = 0
        self.count[index] = 0


class RowNatural:
    r"""Natural gradient descent whose state belongs to rows.

    .. math::
        u = \mathrm{clip}(F^{-1} g / s), \qquad v \leftarrow \beta v + 0.4 \, u, \quad \mu \leftarrow \mu - s v, \qquad
        \rho \leftarrow \rho - \frac{3}{t + 5} \, u_\rho

    with s the family's `step_units` (a standard deviation of q for a location mu) and rho all that is no location.
    Under antithetic noise the gradient in a location has little noise, and its curvature many scales: heavy ball. In a
    scale or a correlation it has much noise and, in these units, about unit curvature near the best member: steps that
    shrink as 1/t, which average. No step exceeds one unit (a trust region). A row that hits the trust region twice in a
    row on opposite sides has overshot: its steps in locations halve, and recover slowly.

    Args:
        family: a family that offers `natural_direction`.
        num_rows: N.
        like: tensor whose dtype and device the state takes.

    References:
        Amari (1998), Natural gradient works efficiently in learning. Polyak (1964), Some methods of speeding up the
        convergence of iteration methods. Khan & Nielsen (2018), Fast yet simple natural-gradient descent for
        variational inference in complex models.

    Example:
        >>> from inference.families import MeanField
        >>> table = torch.zeros(3, 2)
        >>> optimizer = RowNatural(MeanField(1), 3, like=table)
        >>> optimizer.step(table[:1], torch.tensor([[0.5, -0.2]]), torch.tensor([0]), lr=1.0)
        tensor([[-0.2000,  0.0500]])
    """

    def __init__(self, family: Family, num_rows: int, *, like: Tensor) -> None:
        self.family = family
        self.velocity = like.new_zeros(num_rows, family.num_locations)
        self.hits = like.new_zeros(num_rows, family.num_locations)
        self.damping = like.new_ones(num_rows, 1)
        self.count = like.new_zeros(num_rows, 1)

    def step(
        self,
        rows: Float[Tensor, "B K"],
        grad: Float[Tensor, "B K"],
        index: Int[Tensor, " B"],
        *,
        lr: float | Float[Tensor, "B 1"],
    ) -> Float[Tensor, "B K"]:
        """The rows after one step down the natural gradient.

        Args:
            rows: (B, K) the visited rows.
            grad: (B, K) gradient of the loss at them.
            index: (B,) their positions in the table.
            lr: factor on all steps, one for all or one a row.
        """
        units = self.family.step_units(rows)
        direction = self.family.natural_direction(rows, grad)
        if direction is None:
            raise ValueError(f"family: expected one that offers natural gradients; got {self.family!r}. Take RowAdam.")
        move = (direction / units).nan_to_num(0.0).clamp(-REACH, REACH)
        loc, shape = move.split([self.family.num_locations, rows.shape[-1] - self.family.num_locations], dim=-1)
        hits = torch.where(loc.abs() >= REACH, loc.sign(), 0.0)
        overshot = ((hits * self.hits[index]) < 0).any(-1, keepdim=True)
        damping = self.damping[index]
        damping = torch.where(overshot, damping / 2, (damping * 1.05).clamp_max(1.0))
        velocity = (MOMENTUM * self.velocity[index] + lr * LOC_STEP * damping * loc).clamp(-REACH, REACH)
        count = self.count[index]
        self.hits[index], self.damping[index], self.velocity[index] = hits, damping, velocity
        self.count[index] = count + 1
        return rows - units * torch.cat([velocity, (lr * SHAPE_STEP / (count + 1 + SHAPE_DELAY)) * shape], dim=-1)

    def forget(self, index: Int[Tensor, " B"]) -> None:
        """Start these rows' state afresh."""
        self.velocity[index] = 0
        self.hits[index] = 0
        self.damping[index] = 1
        self.count[index] = 0


def optimizer_for(family: Family, num_rows: int, *, like: Tensor) -> tuple[RowOptimizer, float]:
    """The optimiser of a search for rows that are best at a model that stands still, and its usual step size.

    Natural gradient where the family offers it; Adam elsewhere.
    """
    probe = family.initial_params(1, like=like)
    if family.natural_direction(probe, torch.zeros_like(probe)) is None:
        return RowAdam(num_rows, family.num_params, betas=(0.9, 0.99), like=like), 0.1
    return RowNatural(family, num_rows, like=like), 1.0
