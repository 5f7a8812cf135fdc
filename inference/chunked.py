"""Measuring datapoints chunk by chunk: what does not fit is halved, and what is done is kept."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference.batches import Data, fetch
from inference.noise import BLOCK
from inference.processes import gather_rows, own_range
from inference.progress import progress_bar
from inference.resuming import Journal, Stopped
from inference.scoring import chunk_size, require_readable

__all__ = ["Work", "over_chunks"]

_log = logging.getLogger(__name__)

# A chunk's rows, given their indices (B,) and x (B, P): columns with a row a datapoint.
Work = Callable[[Int[Tensor, " B"], Float[Tensor, "B P"]], Mapping[str, Tensor]]


def over_chunks(
    work: Work,
    model: Callable[..., Any],
    data: Data,
    num_particles: int,
    label: str,
    *,
    device: torch.device,
    journal: Journal | None = None,
) -> dict[str, Tensor]:
    """Columns of all datapoints, on the CPU, in their order.

    Chunks are consecutive, whole blocks of 64 datapoints but for the last, and small enough for `num_particles` values
    of each of their numbers at once. A chunk for which memory does not suffice is done in halves, down to a block;
    noise belongs to datapoints and blocks, so the numbers are the same but for rounding. A progress bar under `label`
    counts the datapoints that are done, where there is more than one chunk. Of several processes each takes a part, and
    gets all columns.

    Args:
        work: what is done with a chunk.
        model: Pyro model, which says whether NaN is an unobserved value.
        data: (N, P) datapoints.
        num_particles: values of a number of x that are in memory at once.
        label: of the progress bar.
        device: where the data go.
        journal: keeps each chunk's columns, and knows those of before.

    Raises:
        ValueError: a datapoint holds infinity, or NaN that the model does not take for an unobserved value.
        Stopped: Ctrl-C, where a journal keeps what is done.
    """
    # Whole blocks for each process.
    first, last = (min(BLOCK * block, len(data)) for block in own_range(-(-len(data) // BLOCK)))
    size = chunk_size(data, num_particles)
    parts: list[Mapping[str, Tensor]] = []
    start = first
    # One chunk is no news until it is done.
    with progress_bar(last - first, label, "datapoint") if last - first > size else nullcontext() as bar:
        while start < last:
            stop = min(start + size, last)
            try:
                columns = _chunk(work, model, data, start, stop, device=device, journal=journal)
            except KeyboardInterrupt as stopped:
                if journal is None:
                    raise
                raise _stopped(stopped, label, start - first, last - first, journal) from None
            if columns is None:
                size = _halved(stop - start, label)
                continue
            parts.append(columns)
            if bar is not None:
                bar.update(stop - start)
            start = stop
    return gather_rows({name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else None)


def _chunk(
    work: Work,
    model: Callable[..., Any],
    data: Data,
    start: int,
    stop: int,
    *,
    device: torch.device,
    journal: Journal | None,
) -> Mapping[str, Tensor] | None:
    """A chunk's columns; None where memory does not suffice for it."""
    index = torch.arange(start, stop)
    try:
        x = fetch(data, index, device=device)
        require_readable(model, x, index)
        name = f"rows-{start:012d}-{stop:012d}"
        if journal is not None and (known := journal.read(name, x)) is not None:
            return known
        columns = {column: values.cpu() for column, values in work(index, x).items()}
    except (RuntimeError, MemoryError) as error:
        if stop - start <= BLOCK or not _lacks_memory(error):
            raise
        return None
    if journal is not None:
        journal.write(name, x, columns)
    return columns


def _lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory is short: on the CPU it is a RuntimeError like any other."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _halved(size: int, label: str) -> int:
    """Half as many datapoints, in whole blocks, after what the failed attempt held is free again."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    half = BLOCK * max(1, size // (2 * BLOCK))
    _log.warning("%s: memory does not suffice for %d datapoints at once; going on with %d.", label, size, half)
    return half


def _stopped(by: KeyboardInterrupt, label: str, done: int, num_data: int, journal: Journal) -> Stopped:
    signum = by.signal if isinstance(by, Stopped) else 2
    return Stopped(
        signum,
        f"stopped after {done} of {num_data} datapoints of {label}; they are kept in {journal.folder}, and the same "
        "call goes on from there",
    )
