"""Where a latent vector lives: comparing supports, and the coordinates in which one is all of R^D."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

__all__ = ["bijection", "describe", "is_unconstrained", "same_support"]


def is_unconstrained(support: constraints.Constraint | None) -> bool:
    """Whether the support is all of R^D.

    Example:
        >>> is_unconstrained(constraints.independent(constraints.real, 1)), is_unconstrained(constraints.unit_interval)
        (True, False)
    """
    return _parts(support) == (constraints.real,)


def same_support(one: constraints.Constraint | None, other: constraints.Constraint | None) -> bool:
    """Whether two constraints on vectors describe the same set.

    Example:
        >>> box = constraints.interval(torch.zeros(2), 1.0)
        >>> same_support(constraints.independent(box, 1), constraints.independent(constraints.unit_interval, 1))
        True
    """
    first, second = _parts(one), _parts(other)
    return len(first) == len(second) and all(
        _value(a, b) if isinstance(a, Tensor | float | int) else a == b for a, b in zip(first, second, strict=True)
    )


def bijection(support: constraints.Constraint | None) -> Transform | None:
    """The map from all of R^D onto the support; None where they are the same.

    Raises:
        ValueError: no such map is known, as for integers.
    """
    if is_unconstrained(support):
        return None
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"support: expected a continuous one that R^D can be mapped onto; got {describe(support)}. Sum discrete "
            "variables out of the model, or choose another prior."
        ) from error


def describe(support: constraints.Constraint | None) -> str:
    """The support in words, for an error."""
    kind, *bounds = _parts(support)
    if kind is constraints.real:
        return "all real vectors"
    if not bounds:
        return type(support).__name__ if not isinstance(kind, str) else kind
    return f"{kind}({', '.join(_number(bound) for bound in bounds)})"


def _parts(support: Any) -> tuple[object, ...]:
    """What tells one set from another: its kind, and its bounds. None is the support of nothing that is known."""
    # `independent`, and the constraint of mixtures.
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support in (constraints.real, constraints.real_vector):
        return (constraints.real,)
    # A bound makes every pair of half-lines and intervals comparable, open or closed: their difference has no mass.
    low = getattr(support, "lower_bound", None)
    high = getattr(support, "upper_bound", None)
    if low is None and high is None:
        return (support,)
    bounds = (float("-inf") if low is None else low, float("inf") if high is None else high)
    return ("integers" if support.is_discrete else "interval", *bounds)


def _value(one: object, other: object) -> bool:
    if not isinstance(other, Tensor | float | int):
        return False
    first, second = _bound(one), _bound(other)
    try:
        return bool(torch.broadcast_tensors(first, second)[0].eq(second).all())
    except RuntimeError:
        return False


def _bound(value: object) -> Tensor:
    """One number, or one for each dimension of the vector, whatever batch the distribution was expanded to."""
    bound = torch.as_tensor(value).detach().double().cpu()
    rows = bound.reshape(-1, bound.shape[-1]) if bound.dim() > 1 else bound
    return rows[0] if bound.dim() > 1 and bool(rows.eq(rows[0]).all()) else bound


def _number(bound: object) -> str:
    values = torch.as_tensor(bound).unique()
    return f"{values.item():g}" if values.numel() == 1 else "..."
