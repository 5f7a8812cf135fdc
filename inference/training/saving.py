"""What a run needs in order to go on: gathered for a file, and put back."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from inference.noise import random_states, set_random_states
from inference.processes import is_first, largest
from inference.resuming import Sharded, Snapshots, Stateful, Stopped
from inference.training.blame import blame_leaf
from inference.training.minibatches import Pass, Plan
from inference.training.settings import LoopState

__all__ = ["Best", "Saver"]


class Best:
    """The parameters and buffers of the best epoch so far.

    Args:
        leaves: what is trained, by name.
        modules: whose buffers belong to it.
    """

    def __init__(self, leaves: Mapping[str, Tensor], modules: Sequence[nn.Module]) -> None:
        self.tensors = [*leaves.values(), *(buffer for module in modules for buffer in module.buffers())]
        self.saved: list[Tensor] = []
        self.elbo = -math.inf
        self.epoch = 0

    def update(self, elbo: float, epoch: int) -> None:
        """Keep the tensors as they are now, where they are the best so far."""
        if elbo > self.elbo or not self.saved:
            self.elbo, self.epoch = elbo, epoch
            self.saved = [tensor.detach().clone() for tensor in self.tensors]

    def restore(self) -> int | None:
        """Go back to the best epoch; returns it, or None where none was kept."""
        if not self.saved:
            return None
        put(self.tensors, self.saved)
        return self.epoch


class Saver:
    """Saves a loop's state between steps, where it is time or a signal has come.

    Args:
        snapshots: where the state goes; None: nowhere.
        state: what callbacks see.
        schedule: of the step size.
        best: the best so far.
        parts: what else changes, by name.
        tables: what is kept of every datapoint, by name.
        plan: of the minibatches.

    Attributes:
        seconds: that the run took before it went on here.
    """

    def __init__(
        self,
        snapshots: Snapshots | None,
        state: LoopState,
        schedule: LRScheduler,
        best: Best,
        parts: Mapping[str, Stateful],
        tables: Mapping[str, Sharded],
        plan: Plan,
    ) -> None:
        self.snapshots = snapshots
        self.state = state
        self.schedule = schedule
        self.best = best
        self.parts = parts
        self.tables = tables
        self.plan = plan
        self.seconds = 0.0
        self.saved_step: int | None = None
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds of the whole run."""
        return self.seconds + time.perf_counter() - self._began

    def load(self) -> Pass | None:
        """Go on from the newest state that was saved; returns where it stands within an epoch.

        Raises:
            ValueError: it is that of another run.
        """
        found = None if self.snapshots is None else self.snapshots.load()
        if found is None:
            return None
        content, rows = found
        state = self.state
        state.epoch, state.step, state.stop = (content["loop"][name] for name in ("epoch", "step", "stop"))
        state.elbo[:], state.elbo_validation[:] = content["loop"]["elbo"], content["loop"]["elbo_validation"]
        self.seconds, self.saved_step = content["seconds"], state.step
        state.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        put(self.best.tensors, content["tensors"])
        self.best.elbo, self.best.epoch, self.best.saved = content["best"]
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        for shard, tables in rows.items():
            for name, table in self.tables.items():
                table.load_shard(shard, tables[name])
        set_random_states(content["random"])
        if content["pass"] is None:
            return None
        within = Pass(**content["pass"])
        # Of shards they follow from the epoch, and which of them are this process's may have changed.
        return within if within.orders else replace(within, orders=self.plan.orders(state.epoch))

    def between(self, within: Pass | None, came: int | None) -> None:
        """Save, where it is time or a signal has come.

        Args:
            within: where the loop stands within an epoch; None: between two.
            came: the signal.

        Raises:
            Stopped: a signal has come.
        """
        if self.snapshots is None:
            return
        # All processes stop and save at one step: where any has been told to stop, where the first one says it is time.
        came = largest(came or 0)
        if came:
            saved = self.save(within)
            where = f"saved in {self.snapshots.folder}; the same call goes on from there" if saved else "not saved"
            raise Stopped(came, f"stopped by {signal.Signals(came).name} after step {self.state.step}: {where}")
        if largest(self.snapshots.due() and is_first()):
            self.save(within)

    def save(self, within: Pass | None) -> bool:
        """Save now; whether that was possible. A state that is not finite does not replace one that is."""
        if self.snapshots is None or blame_leaf(self.state.leaves) is not None:
            return False
        state = self.state
        shards = self.plan.shards
        # Of shards they follow from the epoch.
        done = within and {**vars(within), "orders": within.orders if shards.count == 1 else []}
        saved = self.snapshots.save(
            state.step,
            {
                "loop": {name: getattr(state, name) for name in ("epoch", "step", "stop", "elbo", "elbo_validation")},
                "pass": done,
                "seconds": self.elapsed,
                "tensors": [tensor.detach() for tensor in self.best.tensors],
                "optimizer": state.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "best": (self.best.elbo, self.best.epoch, self.best.saved),
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "random": random_states(),
            },
            {
                shard: {name: table.shard_state(shard) for name, table in self.tables.items()}
                for shard in (shards.own if self.tables else ())
            },
        )
        if saved:
            self.saved_step = state.step
        return saved

    def where(self) -> str:
        """A sentence on the last good state, for an error."""
        if self.snapshots is None or self.saved_step is None:
            return ""
        return f" The last good state, of step {self.saved_step}, is in {self.snapshots.folder}."


@torch.no_grad()
def put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into tensors in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
