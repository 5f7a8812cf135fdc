"""What Pyro's signatures take for a shape."""

from __future__ import annotations

from typing import TypeAlias

import torch

__all__ = ["NO_SHAPE", "Shape"]

Shape: TypeAlias = torch.Size | list[int] | tuple[int, ...]
NO_SHAPE = torch.Size()
