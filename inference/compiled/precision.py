"""Matrix products at reduced precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch

__all__ = ["Precision", "reduced", "require_precision"]

Precision = Literal["float32", "bfloat16"]


def reduced(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Run matrix products in this precision inside; parameters, sums and densities stay as they are."""
    if precision == "float32":
        return nullcontext()
    # Without autocast's cache of weights: a trace would leave weights without values there.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def require_precision(precision: str) -> None:
    """Refuse a precision that there is not.

    Raises:
        ValueError: it is none of those known.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision: expected 'float32' or 'bfloat16'; got {precision!r}.")
