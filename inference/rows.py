"""Optimisation of a table of parameters, one row a datapoint."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from inference.families import Family
from inference.memory import available_memory, in_words

__all__ = ["RowAdam", "RowNatural", "RowOptimizer", "optimizer_for", "room_for_rows"]

_log = logging.getLogger(__name__)

# Of the memory that is free: a larger array goes into a file. A table is three arrays, and other things need some too.
SHARE = 0.125

# A step of the natural gradient moves no location further than REACH standard deviations, and changes no scale by more
# than a factor e^STRETCH.
REACH = 1.0
STRETCH = 0.4
# Of locations: the size of a natural step, and how much of the last one it carries along. Stable while no direction is
# more than 2 (1 + MOMENTUM) / LOC_STEP = 11 times as curved as q's own precision says.
LOC_STEP = 0.3
MOMENTUM = 0.7
# Of scales and correlations: step t is SHAPE_STEP / (t + delay), so that they average over the steps so far; the delay
# is SHAPE_DELAY for each of them that there is to a number of noise. A draw says D numbers about D^2 / 2 correlations.
SHAPE_STEP = 1.5
SHAPE_DELAY = 3.0
# A row with a location that moves further than this, in units, in one step travels.
TRAVEL = 0.5
# Of the averages that say whether the steps of a shape agree.
MEMORY = 0.9


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
        self.first = room_for_rows(num_rows, num_params, like=like)
        self.second = room_for_rows(num_rows, num_params, like=like)
        self.count = room_for_rows(num_rows, 1, like=like)

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

    def state_dict(self) -> dict[str, Tensor]:
        """The moments and step counts of every row."""
        return {"first": self.first, "second": self.second, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to them."""
        for name, values in self.state_dict().items():
            values.copy_(state[name])

    def forget(self, index: Int[Tensor, " B"]) -> None:
        """Start these rows' state afresh."""
        self.first[index] = 0
        self.second[index] = 0
        self.count[index] = 0


class RowNatural:
    r"""Natural gradient descent whose state belongs to rows.

    .. math::
        u = F^{-1} g / s, \qquad v \leftarrow 0.7 v + 0.3 \, u, \quad \mu \leftarrow \mu - s v, \qquad
        \rho \leftarrow \rho - \frac{1.5}{t + d} \, u_\rho

    with s the family's `step_units` (a standard deviation of q for a location mu), rho all that is no location, and d
    three times the size of rho over that of the noise.
    Under antithetic noise the gradient in a location has little noise, and its curvature many scales: heavy ball. In a
    scale or a correlation it has much noise and, in these units, about unit curvature near the best member: steps that
    shrink as 1/t, which average; t counts from the last step on which the row
    travelled: a location moved by more than half a unit, or the steps in rho agreed more than they differed. A
    trust region cuts the steps: no location moves by more than one standard deviation, no scale by more than a
    factor 1.5. A location that hits the trust region twice in a row on opposite sides has
    overshot: its steps halve, and recover.

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
        tensor([[-0.1500,  0.0375]])
    """

    def __init__(self, family: Family, num_rows: int, *, like: Tensor) -> None:
        self.family = family
        self.delay = SHAPE_DELAY * (family.num_params - family.num_locations) / family.num_noise
        self.velocity = like.new_zeros(num_rows, family.num_locations)
        self.hits = like.new_zeros(num_rows, family.num_locations)
        self.damping = like.new_ones(num_rows, family.num_locations)
        self.drift = like.new_zeros(num_rows, family.num_params - family.num_locations)
        self.size = like.new_zeros(num_rows, 1)
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
        rate = lr * SHAPE_STEP / (self.count[index] + 1 + self.delay)
        direction = self.family.natural_direction(rows, grad, reach=REACH, stretch=STRETCH / rate)
        if direction is None:
            raise ValueError(f"family: expected one that offers natural gradients; got {self.family!r}. Take RowAdam.")
        move = (direction / units).nan_to_num(0.0)
        loc, shape = move.split([self.family.num_locations, rows.shape[-1] - self.family.num_locations], dim=-1)
        hits = torch.where(loc.abs() > 0.9 * REACH, loc.sign(), 0.0)
        damping = self.damping[index]
        damping = torch.where(hits * self.hits[index] < 0, damping / 2, (damping * 1.1).clamp_max(1.0))
        velocity = (MOMENTUM * self.velocity[index] + lr * LOC_STEP * damping * loc).clamp(-REACH, REACH)
        # While the row travels there is nothing to average over: a location moves far, or the steps of the shape agree
        # more than they differ.
        drift = torch.lerp(shape, self.drift[index], MEMORY)
        size = torch.lerp(shape.square().sum(-1, keepdim=True), self.size[index], MEMORY)
        travels = (velocity.abs() > TRAVEL).any(-1, keepdim=True) | (drift.square().sum(-1, keepdim=True) > 0.5 * size)
        count = torch.where(travels, 0.0, self.count[index] + 1)
        self.hits[index], self.damping[index], self.velocity[index] = hits, damping, velocity
        self.drift[index], self.size[index], self.count[index] = drift, size, count
        return rows - units * torch.cat([velocity, rate * shape], dim=-1)

    def forget(self, index: Int[Tensor, " B"]) -> None:
        """Start these rows' state afresh."""
        self.velocity[index] = 0
        self.hits[index] = 0
        self.damping[index] = 1
        self.drift[index] = 0
        self.size[index] = 0
        self.count[index] = 0

    def overshoots(self, index: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Whether locations of these rows have lately overshot."""
        return self.damping[index].amin(-1) < 0.5


def optimizer_for(family: Family, num_rows: int, *, like: Tensor, natural: bool = True) -> tuple[RowOptimizer, float]:
    """The optimiser of a search for rows that are best at a model that stands still, and its usual step size.

    Natural gradient where the family offers it and the loss is the ELBO (`natural`), whose curvature is known near the
    best member; Adam elsewhere.
    """
    probe = family.initial_params(1, like=like)
    if not natural or family.natural_direction(probe, torch.zeros_like(probe)) is None:
        return RowAdam(num_rows, family.num_params, betas=(0.9, 0.99), like=like), 0.1
    return RowNatural(family, num_rows, like=like), 1.0


def room_for_rows(num_rows: int, num_params: int, *, like: Tensor) -> Float[Tensor, "N K"]:
    """Zeros for a row a datapoint: in memory, or, where they would take much of what is free, in a file.

    The file lies in the folder of temporary files (`TMPDIR`), has no name, and goes with the tensor. The system keeps
    in memory what of it there is room for.

    Args:
        num_rows: N.
        num_params: K.
        like: tensor whose dtype and device they take; those of a GPU stay there.

    Raises:
        OSError: there is no room in that folder either.

    Example:
        >>> room_for_rows(2, 3, like=torch.zeros(()))
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """
    num_bytes, room = num_rows * num_params * like.element_size(), available_memory()
    if like.device.type != "cpu" or room is None or num_bytes <= SHARE * room:
        return like.new_zeros(num_rows, num_params)
    folder = tempfile.gettempdir()
    _log.info("%s of rows go into a file in %s: %s of memory are free.", in_words(num_bytes), folder, in_words(room))
    with tempfile.NamedTemporaryFile(prefix="rows-") as file:
        try:
            # Where the room is not taken now, a disk that is full later ends the process by a signal.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise OSError(
                f"{in_words(num_bytes)} of rows fit neither into memory ({in_words(room)} are free) nor into {folder} "
                f"({error.strerror}). Set TMPDIR to a folder on a larger disk."
            ) from error
        return torch.from_file(file.name, shared=True, size=num_rows * num_params, dtype=like.dtype).view(
            num_rows, num_params
        )
