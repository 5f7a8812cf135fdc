"""Values and places as a reader sees them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["where", "words"]


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
