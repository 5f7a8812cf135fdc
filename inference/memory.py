"""How much memory is left, so that what would take more is refused, or kept on disk; and how much is taken at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

__all__ = ["VALUES_AT_ONCE", "available_memory", "draws_for", "in_words"]

# Numbers of an intermediate tensor: large enough to hide Python, small enough for a CPU's cache and any GPU's memory.
VALUES_AT_ONCE = 2**21

_MEMINFO = Path("/proc/meminfo")
# Which group of processes this one is in (a container, a job of a scheduler), and where groups are described.
_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process may take now without another one losing its own; None where the system does not tell.

    Example:
        >>> available_memory() is None or available_memory() > 0
        True
    """
    known = [found for found in (_of_machine(), *_of_groups()) if found is not None]
    return max(0, min(known)) if known else None


def draws_for(x: Float[Tensor, "B P"]) -> int:
    """How many draws for all of `x` are taken at once.

    Args:
        x: (B, P) datapoints of a chunk.

    Example:
        >>> import torch
        >>> draws_for(torch.zeros(64, 784))
        41
    """
    return max(1, VALUES_AT_ONCE // x.numel())


def in_words(num_bytes: int) -> str:
    """A size as people say it.

    Example:
        >>> in_words(3 * 2**30), in_words(2000)
        ('3.0 GiB', '2000 bytes')
    """
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def _of_machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _of_groups() -> Iterator[int]:
    """What each group that limits this process leaves to it, from its own up to that of all."""
    try:
        (own,) = (line[3:] for line in _GROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, ValueError):
        return
    place = _GROUPS / own.strip("/")
    while place.is_relative_to(_GROUPS):
        try:
            # Where there is no limit the file says "max", or is not there.
            limit, taken = (int((place / name).read_text()) for name in ("memory.max", "memory.current"))
            parts = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            # What is kept of files can be given back at once.
            yield limit - taken + int(parts["inactive_file"])
        except (OSError, KeyError, ValueError):
            pass
        place = place.parent
