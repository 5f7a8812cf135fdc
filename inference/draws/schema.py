"""Names of dimensions and coordinates in a tree of draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

__all__ = ["Axes", "per_datapoint"]

_IMAGE = ("row", "column", "channel")
_LONG_NAMES = {"lp": "log p(x, z)", "log_q": "log q(z | x)"}


@dataclass(frozen=True)
class Axes:
    """The dimensions and coordinates that every group of a tree shares.

    Attributes:
        site: the latent site.
        obs_ids: (N,) names of the datapoints.
        labels: (N,) their labels, or None.
        image_shape: (height, width) or (height, width, channels) of the observed values that are an image, or None.
    """

    site: str
    obs_ids: np.ndarray
    labels: np.ndarray | None
    image_shape: tuple[int, ...] | None

    def require_match(self, observed: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse names and shapes that do not fit the observed sites.

        Args:
            observed: the shape of a datapoint's value at each observed site.

        Raises:
            ValueError: `image_shape` is no shape of an image or that of no site, or a site bears the name of a
                dimension.
        """
        shape = self.image_shape
        if shape is not None:
            sound = len(shape) in (2, 3) and all(isinstance(size, int | np.integer) and size > 0 for size in shape)
            if not sound or not any(own == (prod(shape),) for own in observed.values()):
                sizes = ", ".join(f"{name!r} {own}" for name, own in observed.items())
                raise ValueError(
                    "image_shape: expected (height, width) or (height, width, channels) with as many values as a "
                    f"datapoint of an observed site ({sizes}); got {shape}. Leave it out where x is not an image."
                )
        taken = {"chain", "draw", "obs_id", "latent_dim"}
        taken |= {"label"} if self.labels is not None else set()
        taken |= set(_IMAGE) if shape is not None else set()
        for name in (self.site, *observed):
            if name in taken:
                raise ValueError(
                    f"site {name!r}: expected a name that is no dimension or coordinate of the tree; got one of "
                    f"{', '.join(sorted(taken))}. Rename the site in model and guide."
                )

    def dataset(self, group: str, arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
        """One group.

        Args:
            group: its name: observed data have no draws.
            arrays: (C, S, N, ...) or (N, ...) values of each variable.
        """
        leading = ("obs_id",) if group in ("observed_data", "constant_data") else ("chain", "draw", "obs_id")
        in_nats = group in ("sample_stats", "log_likelihood")
        variables, coords = {}, dict(self._of_datapoints())
        for name, array in arrays.items():
            own = self._own_dims(name, array.shape[len(leading) :])
            if own[:1] == ("row",):
                array = array.reshape(array.shape[:-1] + self.image_shape)  # type: ignore[operator]
            attrs = {"units": "nats"} if in_nats else {}
            if name in _LONG_NAMES and group == "sample_stats":
                attrs["long_name"] = _LONG_NAMES[name]
            variables[name] = (leading + own, array, attrs)
            sizes = zip(leading + own, array.shape, strict=True)
            coords |= {dim: (dim, np.arange(size)) for dim, size in sizes if dim != "obs_id"}
        return xr.Dataset(variables, coords=coords)

    def _of_datapoints(self) -> Iterable[tuple[str, tuple[str, np.ndarray]]]:
        yield "obs_id", ("obs_id", self.obs_ids)
        if self.labels is not None:
            yield "label", ("obs_id", self.labels)

    def _own_dims(self, name: str, shape: Sequence[int]) -> tuple[str, ...]:
        """The dimensions of one value."""
        if name == self.site and shape:
            return ("latent_dim",)
        if self.image_shape is not None and tuple(shape) == (prod(self.image_shape),):
            return _IMAGE[: len(self.image_shape)]
        return tuple(f"{name}_dim_{i}" for i in range(len(shape)))


def per_datapoint(name: str, values: Sequence[Any] | np.ndarray | Tensor, num_data: int) -> np.ndarray:
    """One entry a datapoint as an array that a netCDF file takes: text as `str`, never as objects.

    Args:
        name: of the argument.
        values: (N,) entries.
        num_data: N.

    Raises:
        ValueError: another shape.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape != (num_data,):
        raise ValueError(
            f"{name}: expected shape ({num_data},), one entry a datapoint of data; got {array.shape}. Pass all of them."
        )
    return array.astype(str) if array.dtype.kind in "OU" else array
