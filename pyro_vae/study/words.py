"""Values as a reader sees them, and names that are near to a wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

__all__ = ["hint", "where", "words"]


def words(value: object) -> str:
    """A value on an axis as a reader sees it.

    Example:
        >>> words({"part": "mlp", "hidden": [64, 32]})
        'mlp(hidden=64-32)'
    """
    if isinstance(value, Mapping):
        options = ", ".join(f"{name}={words(option)}" for name, option in value.items() if name != "part")
        name = str(value.get("part", ""))
        return f"{name}({options})" if options else name
    if isinstance(value, list | tuple):
        return "-".join(map(words, value))
    return "none" if value is None else str(value)


def where(place: Mapping[str, str]) -> str:
    """A place on the axes.

    Example:
        >>> where({"prior": "laplace", "seed": "0"})
        'prior laplace, seed 0'
    """
    return ", ".join(f"{axis} {value}" for axis, value in place.items())


def hint(name: object, known: Iterable[str]) -> str:
    """A question after the nearest name, or nothing.

    Example:
        >>> hint("pior", ["prior", "seed"])
        " Did you mean 'prior'?"
    """
    close = get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
