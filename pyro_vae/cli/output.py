"""What every verb prints, and where it writes by default."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from pyro_vae.encoding import to_json

__all__ = ["default_out", "next_command", "print_json", "require_positive"]


def print_json(record: Any) -> None:  # noqa: ANN401
    """The record alone, on standard output."""
    print(to_json(record))


def next_command(*words: object) -> str:
    """The last line of a verb: what to type next, as a shell takes it.

    Example:
        >>> next_command("gaps", "runs/my digits")
        "Next: pyro-vae gaps 'runs/my digits'"
    """
    return f"Next: pyro-vae {shlex.join(map(str, words))}"


def default_out(data: str, prior: str) -> Path:
    """A folder named by time, data and prior, which no run lies in yet."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(data).stem}-{prior}"
    out = Path("runs") / name
    number = 2
    while out.exists():
        out = Path("runs") / f"{name}-{number}"
        number += 1
    return out


def require_positive(option: str, value: int | None) -> None:
    """Refuse a count that is none.

    Raises:
        ValueError: it is not positive.
    """
    if value is not None and value < 1:
        raise ValueError(f"{option}: expected a positive number; got {value}.")
