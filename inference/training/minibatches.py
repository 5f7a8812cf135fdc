"""Which datapoints each step visits, and what the visits of a step come to: in one piece, or in shards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from inference.noise import derive_seed, seeded
from inference.objectives import Step
from inference.processes import Shards, add_up, num_processes

__all__ = ["Pass", "Plan", "require_one_shard", "require_shardable"]


@dataclass
class Pass:
    """Where the loop stands within an epoch.

    Attributes:
        orders: of each shard of this process, the order in which its datapoints are visited.
        before: the parameters at the start of the epoch, where something compares them with those at its end.
        elbos: the true ELBO of each minibatch so far; on a GPU they stay there.
    """

    orders: list[Tensor]
    before: list[Tensor]
    elbos: list[float | Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The minibatches of a run.

    In one shard, an epoch's order and all that a step draws come from torch's global generator, one after the other. In
    k shards they come from a generator that is seeded by the seed, the epoch or step, and the shard: whoever visits a
    shard draws the same numbers, so that a step is the same sum whether one process visits the shards in turn or k
    processes one each.

    Attributes:
        num_data: N.
        batch_size: B, over all shards.
        shards: how the datapoints are divided.
        seed: of the run.
    """

    num_data: int
    batch_size: int
    shards: Shards
    seed: int

    def __post_init__(self) -> None:
        """Refuse minibatches that cannot be divided."""
        count = self.shards.count
        if self.batch_size % count:
            raise ValueError(
                f"batch_size: expected a multiple of the number of shards, {count}; got {self.batch_size}. Try "
                f"{-(-self.batch_size // count) * count}."
            )
        if self.num_data < count:
            raise ValueError(f"shards: expected at most one a datapoint, {self.num_data}; got {count}.")

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_data // self.batch_size)

    def orders(self, epoch: int) -> list[Tensor]:
        """In which the datapoints of each own shard are visited."""
        if self.shards.count == 1:
            return [torch.randperm(self.num_data)]
        orders = []
        for shard in self.shards.own:
            start, stop = self.shards.rows(self.num_data, shard)
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch, shard))
            orders.append(start + torch.randperm(stop - start, generator=generator))
        return orders

    def pieces(self, orders: Sequence[Tensor], step: int) -> list[tuple[int, Tensor]]:
        """The shards, and indices of their datapoints, that this process visits at a step of the epoch."""
        size = self.batch_size // self.shards.count
        cut = [order[step * size : (step + 1) * size] for order in orders]
        return [(shard, index) for shard, index in zip(self.shards.own, cut, strict=True) if len(index)]

    def size(self, step: int) -> int:
        """Datapoints that all shards visit together at a step of the epoch."""
        each = self.batch_size // self.shards.count
        sizes = (stop - start for start, stop in (self.shards.rows(self.num_data, s) for s in range(self.shards.count)))
        return sum(min(max(size - step * each, 0), each) for size in sizes)

    def drawing(self, step: int, shard: int) -> AbstractContextManager[None]:
        """What a visit's random numbers come from."""
        if self.shards.count == 1:
            return nullcontext()
        return seeded(derive_seed(self.seed, "visit", step, shard))

    def together(self, visits: Sequence[tuple[int, Step]], size: int, leaves: Sequence[Tensor]) -> Step:
        """The step of a whole minibatch: means over all its datapoints, whoever visited them.

        Args:
            visits: numbers of datapoints, and what their visits gave; of this process.
            size: datapoints of the whole minibatch.
            leaves: what is trained.
        """
        if self.shards.count == 1:
            return visits[0][1]
        given = torch.zeros(len(leaves), dtype=leaves[0].dtype, device=leaves[0].device)
        means = torch.zeros(2, dtype=leaves[0].dtype, device=leaves[0].device)
        totals = [torch.zeros_like(leaf) for leaf in leaves]
        for count, visit in visits:
            share = count / size
            means += share * torch.stack([visit.loss, visit.elbo]).to(means)
            for place, grad in enumerate(visit.grads):
                if grad is not None:
                    given[place] = 1
                    totals[place] += share * grad
        add_up([given, means, *totals])
        some = given.tolist()
        return Step(means[0], means[1], [total if here else None for total, here in zip(totals, some, strict=True)])


def require_shardable(shards: Shards, modules: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Refuse programs whose steps are no sums over datapoints, or whose parameters no process shares with another.

    Args:
        shards: how the datapoints are divided.
        modules: of the programs.
        names: of what is trained, as Pyro names its `param` sites.

    Raises:
        ValueError: the message names the module or the site.
    """
    if shards.count == 1:
        return
    for module in (part for root in modules for part in root.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"shards: {type(module).__name__} normalises a shard by itself, so the numbers would depend on how "
                "minibatches are divided. Use nn.LayerNorm or nn.GroupNorm."
            )
    bare = [name for name in names if "$$$" not in name and not name.startswith("family.")]
    if bare and num_processes() > 1:
        raise ValueError(
            f"site '{bare[0]}': expected parameters of modules where {num_processes()} processes train together; got a "
            "bare pyro.param, which each would keep for itself. Make it an nn.Parameter of a PyroModule."
        )


def require_one_shard(shards: Shards, engine: str) -> None:
    """Refuse shards where an engine does not know them.

    Raises:
        ValueError: there are several.
    """
    if shards.count > 1:
        raise ValueError(
            f"shards: {engine} runs in one process and one shard; got {shards.count}. Take fit_svi or fit_em, which "
            "several processes can share."
        )
