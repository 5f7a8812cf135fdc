"""Plain values among the arguments: refused in one way, with one sentence."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeGuard

__all__ = ["is_number", "require_count", "require_kind"]


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


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value can be compared with a bound: a real number of Python or NumPy, and no truth value.

    NaN is one; it is within no bound.

    Example:
        >>> is_number(1e-3), is_number("1e-3"), is_number(None)
        (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def require_kind(name: str, value: object, kind: type[Any], *, hint: str = "") -> None:
    """Refuse a value of another class, and the class itself where one of its objects is meant.

    Args:
        name: of the argument.
        value: what came.
        kind: the class.
        hint: what to try, where that is not obvious.

    Raises:
        TypeError: it is no `kind`.

    Example:
        >>> require_kind("seed", int, int)
        Traceback (most recent call last):
        TypeError: seed: expected an object of class int; got the class int. Call it: int(...).
    """
    if isinstance(value, kind):
        return
    if isinstance(value, type):
        came, hint = f"the class {value.__name__}", f"Call it: {value.__name__}(...)."
    else:
        came = (
            repr(value) if isinstance(value, str | int | float | None) else f"an object of class {type(value).__name__}"
        )
    raise TypeError(f"{name}: expected an object of class {kind.__name__}; got {came}.{hint and ' ' + hint}")
