"""Reading data by index: anything with `len` and `data[index] -> (B, P)` serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference.devices import send

__all__ = ["Data", "fetch", "require_data", "require_fixed", "require_numbers", "require_rows"]

# Complex numbers have no order and 16-bit ones too few digits for a density.
_READABLE = (
    torch.float32,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)


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
        TypeError: the data cannot be read by a tensor of indices.
        ValueError: what came back is not one vector of numbers a datapoint.
    """
    if type(data) is Tensor and data.dim() == 2:
        # Three times as fast as data[index].
        values: Any = data.index_select(0, send(index, data.device))
    else:
        values = _read(data, index)
    if not hasattr(values, "shape"):
        raise ValueError(
            f"data: expected data[index] to be a tensor of shape (B, P); got a {type(values).__name__}. Pass the x of "
            "(x, label) pairs alone."
        )
    x = values if isinstance(values, Tensor) else _as_tensor(values)
    if x.dim() != 2 or len(x) != len(index):
        raise ValueError(
            f"data: expected {len(index)} vectors of shape (B, P); got shape {tuple(x.shape)}. Flatten each datapoint "
            "to a vector."
        )
    require_numbers(x)
    return send(x, device) if device is not None else x


def _read(data: Data, index: Int[Tensor, " B"]) -> Any:
    key: Any = index if isinstance(data, Tensor) or not hasattr(data, "__array_interface__") else index.numpy()
    try:
        return data[key]
    except (KeyError, TypeError) as error:
        raise TypeError(
            f"data: expected data[index] with index a tensor (B,) to be a tensor (B, P); {type(data).__name__} refused "
            f"it ({type(error).__name__}: {error}). Try torch.as_tensor."
        ) from error


def _as_tensor(values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError) as error:
        kind = getattr(values, "dtype", type(values).__name__)
        raise ValueError(
            f"data: expected numbers; got an array of type {kind}. Convert it first, for example by x.astype(float)."
        ) from error


def require_numbers(x: Tensor, *, name: str = "data") -> None:
    """Refuse a tensor that is not made of real numbers in memory.

    Raises:
        ValueError: it has no values, or values of another kind.
    """
    if x.is_meta:
        raise ValueError(f"{name}: expected values; got a tensor on device 'meta', which has a shape and no values.")
    if x.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense tensor; got layout {x.layout}. Pass {name}.to_dense().")
    if x.dtype not in _READABLE:
        raise ValueError(
            f"{name}: expected torch.float32, torch.float64 or integers; got {x.dtype}. Pass {name}.float() if that "
            "loses nothing."
        )
    if x.dim() == 2 and not x.shape[1]:
        raise ValueError(f"{name}: expected at least one value a datapoint; got shape {tuple(x.shape)}.")


def require_rows(x: object, *, name: str = "x") -> None:
    """Refuse what is no tensor of datapoints.

    Raises:
        TypeError: it is no tensor.
        ValueError: it has another shape than (B, P), is empty, or is not made of real numbers in memory.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor (B, P); got {type(x).__name__}. Try torch.as_tensor.")
    if x.dim() != 2 or not len(x):
        raise ValueError(f"{name}: expected shape (B, P), one row a datapoint and at least one; got {tuple(x.shape)}.")
    require_numbers(x, name=name)


def require_data(data: Data, *, name: str = "data") -> int:
    """Number of datapoints, or an error that says what is wrong with them.

    Raises:
        TypeError: `data` cannot be read by index.
        ValueError: `data` is empty, or a tensor that is not made of real numbers in memory.
    """
    if hasattr(data, "iloc"):
        # What square brackets take from it are columns.
        raise TypeError(
            f"{name}: expected a tensor (N, P); got a pandas {type(data).__name__}. Pass "
            f"torch.as_tensor({name}.to_numpy())."
        )
    if any(each.__module__.startswith("scipy.sparse") for each in type(data).__mro__):
        # It has no len(), and its rows are sparse.
        raise TypeError(
            f"{name}: expected a tensor (N, P); got a sparse {type(data).__name__}. Pass "
            f"pyro_vae.load({name}).train, which makes rows dense as they are read, torch.as_tensor({name}.toarray()), "
            "or an object whose [index] returns dense rows."
        )
    if getattr(data, "ndim", 1) == 0:
        raise ValueError(f"{name}: expected shape (N, P), one row a datapoint; got a single number.")
    if isinstance(data, Tensor):
        require_numbers(data, name=name)
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
