"""Progress bars of what may take more than two seconds: in terminals and notebooks, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

__all__ = ["progress_bar", "track"]

# Seconds before a bar is shown: what is over by then needs none.
DELAY = 2.0

Item = TypeVar("Item")


def progress_bar(total: int, label: str, unit: str) -> tqdm:
    """A bar that shows how far, how fast and how long still, and goes away when it is closed.

    It is quiet where nobody watches: where standard error is no terminal, unless in a notebook, and where the
    environment variable `TQDM_DISABLE` is set.

    Args:
        total: units to do.
        label: what is done.
        unit: what is counted, in the singular.

    Example:
        >>> with progress_bar(3, "counting", "number") as bar:
        ...     for _ in range(3):
        ...         bar.update()
    """
    # A notebook's streams are no terminals; None asks for one.
    disable = True if os.environ.get("TQDM_DISABLE") else False if _in_notebook() else None
    return tqdm(total=total, desc=label, unit=f" {unit}s", disable=disable, leave=False, delay=DELAY)


def track(items: Iterable[Item], total: int, label: str, unit: str) -> Iterator[Item]:
    """The items, one by one, under a bar.

    Args:
        items: what is gone through.
        total: how many.
        label: what is done.
        unit: what is counted, in the singular.

    Example:
        >>> list(track("abc", 3, "reading", "letter"))
        ['a', 'b', 'c']
    """
    with progress_bar(total, label, unit) as bar:
        for item in items:
            yield item
            bar.update()


def _in_notebook() -> bool:
    """Whether bars are a notebook's widgets: tqdm takes those where it finds a kernel that can show them."""
    return tqdm.__module__ == "tqdm.notebook" or any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
