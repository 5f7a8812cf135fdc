"""Cheaper forms of the same functions, which compiled code takes in their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["CHEAPER"]

_aten = torch.ops.aten
_HALVES = (torch.bfloat16, torch.float16)


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """By exp where aten takes expm1, whose vectorised form costs three times as much and on some processors twenty.

    It differs from it by a rounding of the value 1, which is what the layer after it sees.
    """
    # Rounded once, at the end, as the kernel of the operation itself does.
    wide = x.float() if x.dtype in _HALVES else x
    below = (torch.exp(wide * input_scale) - 1) * (alpha * scale)
    return torch.where(wide > 0, wide * scale, below).to(x.dtype)


def _isnan(x: Tensor) -> Tensor:
    """By a comparison, which is vectorised where the function of the C library goes one number at a time."""
    return x != x  # noqa: PLR0124


def _nan_to_num(
    x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """By comparisons, likewise."""
    if not x.is_floating_point():
        return x.clone()
    largest = torch.finfo(x.dtype).max
    x = torch.where(x == math.inf, largest if posinf is None else posinf, x)
    x = torch.where(x == -math.inf, -largest if neginf is None else neginf, x)
    return torch.where(x != x, 0.0 if nan is None else nan, x)  # noqa: PLR0124


def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Tensor:
    """By log where aten takes log1p, of a number between 1 and 2: as good to a rounding of 1, and as much cheaper."""
    if weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    return (1 - target) * logits + torch.log(1 + torch.exp(-logits.abs())) - logits.clamp_max(0)


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """The bias added by the code that reads the product: aten copies it into every row before it multiplies.

    A product of halves is rounded once before the bias is added; with it in the product it is rounded once after.
    """
    if beta != 1 or alpha != 1 or left.is_cuda:
        return NotImplemented
    # Inductor would make the two one again, were they not a view apart.
    return (torch.mm(left, right).unsqueeze(0) + bias).squeeze(0)


CHEAPER: dict[Any, Callable[..., Tensor]] = {
    _aten.addmm.default: _addmm,
    _aten.binary_cross_entropy_with_logits.default: _cross_entropy,
    _aten.elu.default: _elu,
    _aten.isnan.default: _isnan,
    _aten.nan_to_num.default: _nan_to_num,
}
