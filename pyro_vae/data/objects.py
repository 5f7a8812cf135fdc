"""Data that are in memory already: arrays, tensors, map-style torch data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pyro_vae.data.sources import Found, Missing, Source, check_labels, make_source
from pyro_vae.data.sparse import is_sparse, read_sparse

__all__ = ["read_object"]


def read_object(data: Any, *, missing: Missing) -> Source:
    """An array, a tensor or a sparse matrix x, or a map-style torch data set whose items are x or (x, label).

    Args:
        data: the object. Each item of a data set is read once. Items may be numbers in rows, arrays, tensors or PIL
            images; a tensor (C, H, W), torch's order, becomes (H, W, C).
        missing: whether NaN is refused or kept.

    Raises:
        ValueError: it is none of these, its items differ in shape, or they are drawn anew at each access.
    """
    name = type(data).__name__
    if hasattr(data, "iloc"):
        # Read by [i] it hands out columns.
        raise ValueError(f"load: expected an array, a tensor or a path; got a pandas {name}. Pass its .to_numpy().")
    if is_sparse(data):
        remedy = "x.tocsr()[np.isfinite(np.asarray(x.sum(1)).ravel())]"
        found = Found(f"{name}: x", read_sparse(f"{name}: x", data))
        return make_source(name, {"all": found}, missing=missing, remedy=remedy)
    if (advice := _container(data)) is not None:
        raise ValueError(f"load: expected an array, a tensor or a path; got {advice}")
    if isinstance(data, np.ma.MaskedArray):
        raise ValueError(
            f"{name} has a mask, which an array of values does not keep: expected plain values, try "
            "x.filled(np.nan) and missing='keep'"
        )
    if isinstance(data, Tensor | np.ndarray):
        array = _array(data) if isinstance(data, Tensor) else data
        return make_source(name, {"all": Found(f"{name}: x", array)}, missing=missing)
    is_map = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not is_map or isinstance(data, list | tuple | dict | IterableDataset):
        raise ValueError(
            f"load: expected a name, a path, an array or a map-style torch data set with len() and [i]; got a {name}. "
            "Stack the values of a list or an iterable data set to an array."
        )
    if not len(data):
        raise ValueError(f"{name} is empty: expected at least one datapoint; check how it was made")
    values: list[np.ndarray] = []
    labels: list[Any] = []
    for i in range(len(data)):
        x, label = _pair(name, data[i])
        if values and (x.shape, x.dtype) != (values[0].shape, values[0].dtype):
            raise ValueError(
                f"{name}: item {i} has shape {x.shape} and type {x.dtype}: expected those of the first, "
                f"{values[0].shape} and {values[0].dtype}; resize or convert the items"
            )
        values.append(x)
        labels.append(label)
    # Items drawn anew show at once, as long as they are not rarely so.
    if not np.array_equal(_pair(name, data[0])[0], values[0], equal_nan=values[0].dtype.kind == "f"):
        raise ValueError(
            f"{name} draws x anew at each access: expected one fixed x an item; leave its random transforms out"
        )
    array = np.stack(values)
    made = None if labels[0] is None else check_labels(f"{name}: label", np.asarray(labels), len(array))
    return make_source(name, {"all": Found(f"{name}: x", array, made)}, missing=missing)


# By the library that a class comes from; none of them is imported.
_CONTAINERS = {
    "anndata": "an AnnData object. Pass its counts, load(adata.X) or a layer; where the file is backed, "
    "load(adata.to_memory().X).",
    "mudata": "a MuData object. Pass the counts of one modality: load(mdata[name].X).",
    "datasets": "a Hugging Face data set. Choose a split and stack one column: "
    "load(np.stack(data.with_format('numpy')[column])).",
    "polars": "a polars table. Pass its .to_numpy().",
    "pyarrow": "a pyarrow table. Pass its .to_pandas().to_numpy().",
    "xarray": "an xarray object. Pass the .to_numpy() of one variable.",
}


def _container(data: Any) -> str | None:  # noqa: ANN401
    """What a container of data is and how to take x out of it; None where it may be read as it is.

    It is told by its class alone: what its len() and [i] return is not x.
    """
    if isinstance(data, np.ndarray | Tensor):
        return None
    for each in type(data).__mro__:
        if (library := each.__module__.split(".")[0]) in _CONTAINERS:
            return _CONTAINERS[library]
    if isinstance(data, DataLoader):
        return "a DataLoader, which draws batches. Pass its .dataset."
    if isinstance(data, Mapping):
        keys = ", ".join(map(str, list(data)[:6]))
        return f"a dictionary with {keys or 'nothing'}. Pass the values of one key, data[key]."
    if isinstance(data, list | tuple) and data and isinstance(data[0], Mapping):
        keys = ", ".join(map(str, list(data[0])[:6]))
        return (
            f"a {type(data).__name__} of dictionaries with {keys or 'nothing'}. Stack the values of one key: "
            "np.stack([item[key] for item in data])."
        )
    return None


def _pair(name: str, item: Any) -> tuple[np.ndarray, Any]:
    """The values and the label, if there is one."""
    if isinstance(item, dict):
        keys = ", ".join(map(str, item))
        raise ValueError(
            f"{name}: expected items x or (x, label); got a dictionary with {keys}. Stack the values of one key: "
            "np.stack([item[key] for item in data])."
        )
    x, label = (
        (item[0], item[1] if len(item) > 1 else None) if isinstance(item, list | tuple) and item else (item, None)
    )
    if isinstance(x, Tensor):
        channels_first = x.ndim == 3 and x.shape[0] in (1, 3, 4) and x.shape[2] not in (1, 3, 4)
        x = _array(x.movedim(0, -1) if channels_first else x)
    try:
        return np.asarray(x), label.item() if isinstance(label, Tensor) and label.ndim == 0 else label
    except Exception as error:
        raise ValueError(
            f"{name}: an item is a {type(x).__name__}: expected x or (x, label), x a tensor, an array or an image"
        ) from error


def _array(x: Tensor) -> np.ndarray:
    if x.is_meta or x.layout is not torch.strided:
        what = "no values: it is on device 'meta'" if x.is_meta else f"layout {x.layout}, not dense: try x.to_dense()"
        raise ValueError(f"Tensor: x has {what}")
    # NumPy has no bfloat16.
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()
