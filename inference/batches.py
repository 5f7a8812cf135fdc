"""Reading data by index: anything with `len` and `data[index] -> (B, P)` serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Data", "fetch", "require_data", "require_fixed"]


@runtime_checkable
class Data(Protocol):
    """What every engine reads: a tensor, a memory map, a view that binarizes."""

    def __len__(self) -> int:
        """Number of datapoints."""
        ...

    def __getitem__(self, index: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """The datapoints at these indices."""
        ...


def fetch(data: Data, index: Int[Tensor, " B"], *, device: torch.device | None = None) -> Float[Tensor, "B P"]:
    """The datapoints at `index`, as a tensor on `device`.

    Raises:
        ValueError: what came back is not one vector a datapoint.
    """
    if type(data) is Tensor and data.dim() == 2 and data.device == index.device:
        # Three times as fast as data[index].
        values: Any = data.index_select(0, index)
    else:
        key: Any = index if isinstance(data, Tensor) or not hasattr(data, "__array_interface__") else index.numpy()
        values = data[key]
    if not hasattr(values, "shape"):
        raise ValueError(
            f"data: expected data[index] to be a tensor of shape (B, P); got a {type(values).__name__}. Pass the x of "
            "(x, label) pairs alone."
        )
    x = torch.as_tensor(values)
    if x.dim() != 2 or len(x) != len(index):
        raise ValueError(
            f"data: expected {len(index)} vectors of shape (B, P); got shape {tuple(x.shape)}. Flatten each datapoint "
            "to a vector."
        )
    return x.to(device) if device is not None else x


def require_data(data: Data, *, name: str = "data") -> int:
    """Number of datapoints, or an error that says what is wrong with them.

    Raises:
        TypeError: `data` cannot be read by index.
        ValueError: `data` is empty.
    """
    # Built-in containers have len() and [index] too, but cannot be indexed by a tensor.
    if not isinstance(data, Data) or isinstance(data, list | tuple | dict | str):
        raise TypeError(
            f"{name}: expected a tensor (N, P) or an object with len() and [index tensor]; got {type(data).__name__}. "
            "Try torch.as_tensor."
        )
    num_data = len(data)
    if num_data == 0:
        raise ValueError(f"{name}: expected at least one datapoint; got none. Check how the data were split.")
    return num_data


def require_fixed(data: Data, *, name: str = "data", purpose: str) -> int:
    """Number of datapoints, or an error where x changes from one visit to the next.

    Raises:
        ValueError: `data` draws x anew at every access, so that nothing can be said about one x.
    """
    num_data = require_data(data, name=name)
    if getattr(data, "resamples", False):
        raise ValueError(
            f"{name}: {purpose} needs a fixed x for each datapoint, but this data set draws x anew at each access "
            "(dynamic binarization). Pass one realisation: `data.fix()`, or load with binarize='fixed'."
        )
    return num_data


def chunks(num_data: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges [start, stop) of at most `size` datapoints."""
    for start in range(0, num_data, size):
        yield start, min(start + size, num_data)
