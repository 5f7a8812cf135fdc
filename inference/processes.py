"""Several processes on one fit: torch's rendezvous and reductions, and who does what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = [
    "LostProcessError",
    "Shards",
    "add_up",
    "agree",
    "alone",
    "gather_rows",
    "is_first",
    "largest",
    "num_processes",
    "own_range",
    "process_group",
    "rank",
    "start_alike",
]


class LostProcessError(RuntimeError):
    """Another process of the group has ended, so that this one cannot go on."""


@contextmanager
def process_group() -> Iterator[None]:
    """The group of processes that torchrun has started this one in; nothing where it was started alone.

    Reductions run over NCCL where there are GPUs, each process on one of its own, else over gloo.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl"
    distributed.init_process_group(backend)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _together(what: str) -> Iterator[None]:
    """Say in one line that another process is gone, where torch says it in many."""
    try:
        yield
    except distributed.DistError as error:
        raise _lost(what) from error
    except RuntimeError as error:
        if "gloo" not in str(error).lower() and "connection" not in str(error).lower():
            raise
        raise _lost(what) from error


def _lost(what: str) -> LostProcessError:
    return LostProcessError(
        f"process {rank()} of {num_processes()}: another process has ended, so {what} cannot be shared. Where a "
        "state was saved, the same call goes on from there."
    )


_is_alone: ContextVar[bool] = ContextVar("_is_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Work by this process alone, which shares nothing with the others inside."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def _in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized() and not _is_alone.get()


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if _in_group() else 0


def num_processes() -> int:
    """How many work together: 1 where nobody has started a process group."""
    return distributed.get_world_size() if _in_group() else 1


def is_first() -> bool:
    """Whether it is the process that writes files and prints."""
    return rank() == 0


def own_range(total: int) -> tuple[int, int]:
    """The part [start, stop) of so many things that is this process's."""
    return total * rank() // num_processes(), total * (rank() + 1) // num_processes()


@dataclass(frozen=True)
class Shards:
    """How the datapoints are divided, whatever the number of processes: shard s has a consecutive range of them.

    Attributes:
        count: k, how many there are; a multiple of the number of processes.
    """

    count: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be divided among the processes."""
        if self.count % num_processes():
            raise ValueError(
                f"shards: expected a multiple of the number of processes, {num_processes()}; got {self.count}. Leave "
                "it out: one for each process."
            )

    @property
    def own(self) -> range:
        """Those of this process."""
        return range(*own_range(self.count))

    def rows(self, num_data: int, shard: int) -> tuple[int, int]:
        """The datapoints [start, stop) of a shard: numbers that differ by one at most."""
        return num_data * shard // self.count, num_data * (shard + 1) // self.count

    def own_rows(self, num_data: int) -> tuple[int, int]:
        """The datapoints [start, stop) of this process."""
        return self.rows(num_data, self.own.start)[0], self.rows(num_data, self.own.stop - 1)[1]

    def chunks(self, num_data: int, size: int) -> Iterator[tuple[int, int]]:
        """This process's datapoints in ranges of at most `size`, none of which crosses a shard."""
        for shard in self.own:
            first, last = self.rows(num_data, shard)
            for start in range(first, last, size):
                yield start, min(start + size, last)


@torch.no_grad()
def start_alike(tensors: Sequence[Tensor]) -> None:
    """Give all processes the first one's parameters and buffers."""
    if num_processes() == 1:
        return
    with _together("the start"):
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over processes: one reduction for all of them."""
    if num_processes() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(_device())
    with _together("a sum"):
        distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def largest(value: int) -> int:
    """The largest that any process says, for all: of flags, whether any is raised."""
    if num_processes() == 1:
        return value
    said = torch.tensor(int(value), device=_device())
    with _together("a decision"):
        distributed.all_reduce(said, op=distributed.ReduceOp.MAX)
    return int(said)


def agree(value: Any) -> Any:  # noqa: ANN401
    """What the first process says, for all: plain values."""
    if num_processes() == 1:
        return value
    said = [value]
    with _together("a decision"):
        distributed.broadcast_object_list(said, src=0)
    return said[0]


def _device() -> torch.device:
    """Where the process group reduces: NCCL on GPUs alone."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")


def gather_rows(columns: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The columns of all processes, one after the other, on the CPU: each of them gets all.

    Args:
        columns: this process's, with a row a datapoint; None where it has none.
    """
    if num_processes() == 1:
        assert columns is not None
        return dict(columns)
    parts: list[Any] = [None] * num_processes()
    own = None if columns is None else {name: column.cpu() for name, column in columns.items()}
    with _together("the results"):
        distributed.all_gather_object(parts, own)
    given = [part for part in parts if part is not None]
    return {name: torch.cat([part[name] for part in given]) for name in given[0]}
