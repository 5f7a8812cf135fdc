"""Whole numbers among the arguments: refused in one way, with one sentence."""

from __future__ import annotations

__all__ = ["require_count"]


def require_count(name: str, value: object, *, least: int = 1, hint: str = "") -> None:
    """Refuse what is no whole number, or too small a one.

    Args:
        name: of the argument.
        value: what came. True is not 1, and 2.0 is not 2: both are mistakes more often than meant.
        least: the smallest that will do.
        hint: what to try, where that is not obvious.

    Raises:
        ValueError: it is no `int` of at least `least`.

    Example:
        >>> require_count("num_draws", 0)
        Traceback (most recent call last):
        ValueError: num_draws: expected an integer of at least 1; got 0.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}; got {value!r}.{hint and ' ' + hint}")
