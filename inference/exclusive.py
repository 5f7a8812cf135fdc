"""One call at a time: Pyro's handlers and parameter store, and torch's generators, belong to the process."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

__all__ = ["exclusive", "exclusively"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_lock = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep other threads out of all that runs inside such a block; a thread that is inside may enter again.

    Example:
        >>> with exclusive(), exclusive():
        ...     print("inside")
        inside
    """
    with _lock:
        yield


def exclusively(body: Callable[Arguments, Iterator[Result]]) -> Callable[Arguments, Iterator[Result]]:
    """The body of a context manager, held as `exclusive` from its first line to its last."""

    @functools.wraps(body)
    def held(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[Result]:
        with exclusive():
            yield from body(*args, **kwargs)

    return held


def _renew() -> None:
    # Another thread may hold it at the moment of a fork; the child has no such thread to give it back.
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
