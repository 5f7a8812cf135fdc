"""Records as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["to_json"]


def to_json(record: Any, *, indent: int | None = 2) -> str:  # noqa: ANN401
    """The record as JSON, where a number that is not defined, as the error of a single datapoint, is null.

    Args:
        record: mappings, sequences, numbers and words; what JSON has no form for is written as `str` shows it.
        indent: spaces a level; None: all on one line.

    Example:
        >>> print(to_json({"se": float("nan")}))
        {
          "se": null
        }
    """
    return json.dumps(_finite(record), indent=indent, allow_nan=False, default=str)


def _finite(record: Any) -> Any:  # noqa: ANN401
    if isinstance(record, Mapping):
        return {name: _finite(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record
