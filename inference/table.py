"""A table with a row of variational parameters for each datapoint, and what E-steps at a given model do with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inference.batches import Data, fetch
from inference.devices import send
from inference.isolation import eval_mode
from inference.noise import antithetic, derive_seed, seeded
from inference.objectives import LocalLoss
from inference.processes import Shards, add_up
from inference.rows import RowAdam
from inference.scoring import require_readable

__all__ = ["FIRST_STEPS", "HeldOut", "Table", "pairs_of_noise", "passes"]

# E-steps that bring a row to rest from wherever it starts.
FIRST_STEPS = 300
# E-steps on held-out rows at the end of an epoch, once they are warm.
HELD_OUT_STEPS = 50


class Table:
    """Rows of variational parameters with their own optimiser state, moved by E-steps at a given model.

    Args:
        objective: the loss at a row.
        params: (N, K) rows to start from; of several processes, those of the own shards.
        lr: step size, in the family's `step_units`.
        num_particles: values of the loss a step and datapoint, in antithetic pairs.
        num_rows: of all processes.
        shards: how the datapoints are divided.
    """

    def __init__(
        self,
        objective: LocalLoss,
        params: Float[Tensor, "N K"],
        *,
        lr: float,
        num_particles: int,
        num_rows: int,
        shards: Shards,
    ) -> None:
        self.objective = objective
        self.num_rows = num_rows
        self.shards = shards
        # The datapoint that the first row belongs to.
        self.first, _ = shards.own_rows(num_rows)
        self.params = params
        self.lr = lr
        self.num_particles = num_particles
        self.optimizer = RowAdam(*params.shape, betas=(0.9, 0.99), like=params)

    def shard_state(self, shard: int) -> dict[str, Tensor]:
        """The rows of a shard, and their optimiser's state, to be written before the next step."""
        start, stop = self.shards.rows(self.num_rows, shard)
        if stop - start == len(self.params):
            return self._columns()
        # Of a part of a tensor the whole would be written.
        return {name: rows[start - self.first : stop - self.first].clone() for name, rows in self._columns().items()}

    def load_shard(self, shard: int, state: Mapping[str, Tensor]) -> None:
        """Go back to them."""
        start, stop = self.shards.rows(self.num_rows, shard)
        for name, rows in self._columns().items():
            rows[start - self.first : stop - self.first] = state[name]

    def _columns(self) -> dict[str, Tensor]:
        return {"params": self.params, **self.optimizer.state_dict()}

    def noise(self, num_rows: int) -> Float[Tensor, "S B R"]:
        """Fresh antithetic noise from torch's global generator."""
        return pairs_of_noise(self.objective, num_rows, self.num_particles, like=self.params)

    def e_step(self, x: Tensor, index: Tensor, num_steps: int, *, lr_factor: float = 1.0) -> Float[Tensor, "B K"]:
        """Move the rows at `index` by `num_steps`, asking gradients for them alone; returns them."""
        index = send(index - self.first, self.params.device)
        rows = self.params[index]
        for _ in range(num_steps):
            grad = self.objective.row_gradient(x, rows, self.noise(len(x)))
            rows = self.optimizer.step(
                rows, grad, index, lr=self.lr * lr_factor * self.objective.family.step_units(rows)
            )
        self.params[index] = rows
        return rows

    def settle(self, x: Tensor, index: Tensor, num_steps: int) -> Float[Tensor, "B K"]:
        """As `e_step`, with steps that shrink to nothing: at a model that stands still, the rows come to rest."""
        for step in range(num_steps):
            rows = self.e_step(x, index, 1, lr_factor=math.cos(math.pi / 2 * step / num_steps) ** 2)
        return rows

    def total_elbo(self, x: Tensor, *tables: Float[Tensor, "B K"]) -> list[float]:
        """The true ELBO at each of these rows, summed over datapoints, on the same fresh draws."""
        totals = [0.0] * len(tables)
        for _ in range(8):
            noise = self.noise(len(x))
            for i, rows in enumerate(tables):
                totals[i] += float(self.objective.log_weights(x, rows, noise).double().mean(0).sum())
        return [total / 8 for total in totals]


class HeldOut:
    """The held-out ELBO of a model: rows of their own, refined at the frozen model, warm from one epoch to the next.

    Args:
        table: rows of the held-out data.
        data: held-out data.
        programs: model and guide, which run in eval mode.
        device: where the data go.
        seed: of all draws.
    """

    def __init__(
        self, table: Table, data: Data, *programs: Callable[..., Any] | None, device: torch.device, seed: int
    ) -> None:
        self.table = table
        self.data = data
        self.programs = programs
        self.device = device
        self.seed = seed
        self.num_steps = FIRST_STEPS

    def state_dict(self) -> dict[str, Any]:
        """How many steps the rows take next; the rows are a table."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to it."""
        self.num_steps = state["num_steps"]

    def __call__(self, *others: Callable[[Tensor], Tensor]) -> list[float]:
        """The ELBO at rows that have come to rest, and at those that each of `others` makes of x, on the same draws."""
        totals = torch.zeros(1 + len(others), dtype=torch.float64)
        objective = self.table.objective
        weight, objective.kl_weight = objective.kl_weight, 1.0
        model = self.programs[0]
        with eval_mode(*self.programs):
            for index, x in passes(model, self.data, self.table.shards, device=self.device):  # type: ignore[arg-type]
                with seeded(derive_seed(self.seed, "validation", int(index[0]), self.num_steps)):
                    rows = [self.table.settle(x, index, self.num_steps), *(rows_of(x) for rows_of in others)]
                # The same draws every epoch, so that epochs compare; and none that chose the rows.
                with seeded(derive_seed(self.seed, "validation/score", int(index[0]))):
                    totals += torch.tensor(self.table.total_elbo(x, *rows), dtype=torch.float64)
        add_up([totals])
        self.num_steps = HELD_OUT_STEPS
        objective.kl_weight = weight
        return (totals / len(self.data)).tolist()


def pairs_of_noise(objective: LocalLoss, num_rows: int, num_values: int, *, like: Tensor) -> Float[Tensor, "S B R"]:
    """Fresh noise for so many values of the objective's loss, in antithetic pairs, from torch's global generator."""
    shape = (num_values // 2 * objective.loss.num_particles, num_rows, objective.family.num_noise)
    return antithetic(torch.randn(shape, dtype=like.dtype, device=like.device))


def passes(
    model: Callable[..., Any], data: Data, shards: Shards, *, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """All datapoints of the own shards once, in order, as (index, x)."""
    for start, stop in shards.chunks(len(data), 1024):
        index = torch.arange(start, stop)
        x = fetch(data, index, device=device)
        require_readable(model, x, index)
        yield index, x
