"""Scales from real numbers: positive, above a stated floor, and finite."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["check_above", "check_scale", "confine", "inverse_softplus", "near_floor", "scale_above"]

# A learned scale counts as sitting on its floor when it is less than 1 % above it.
_ON_FLOOR = 1.01


def scale_above(floor: float, raw: Tensor) -> Tensor:
    """The scale floor + softplus(raw)."""
    return floor + softplus(raw)


def near_floor(floor: float, scale: Tensor) -> Tensor:
    """Whether a scale is less than 1 % above its floor."""
    return scale < _ON_FLOOR * floor


def inverse_softplus(owner: str, init_scale: float, floor: float) -> Tensor:
    """The raw number at which `scale_above` is `init_scale`, in the default dtype.

    Raises:
        ValueError: `init_scale` is not above the floor.
    """
    if not floor < init_scale < float("inf"):
        raise ValueError(
            f"{owner}: init_scale: expected a number above floor = {floor:g}; got {init_scale!r}. Lower the floor or "
            "start higher."
        )
    above = torch.as_tensor(init_scale - floor, dtype=torch.get_default_dtype())
    # In the form that does not overflow.
    return above + torch.log(-torch.expm1(-above))


def confine(raw: Tensor, bound: float) -> Tensor:
    """A number in (-bound, bound): smooth, and with slope 1 at 0."""
    return bound * torch.tanh(raw / bound)


def check_scale(owner: str, name: str, value: float, *, unit: str = "in the units of x") -> float:
    """A positive number as a float.

    Raises:
        ValueError: it is not a positive number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{owner}: {name}: expected a positive number, {unit}; got {value!r}.")
    return float(value)


def check_above(owner: str, name: str, value: float, bound: float, *, why: str) -> float:
    """A finite number above a bound as a float.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not bound < value < float("inf"):
        raise ValueError(f"{owner}: {name}: expected a number above {bound:g}, {why}; got {value!r}.")
    return float(value)
