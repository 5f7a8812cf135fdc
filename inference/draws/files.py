"""A tree of draws as one file."""

from __future__ import annotations

import os
from pathlib import Path

import xarray as xr

from inference.checkpoint import atomic_write

__all__ = ["save_datatree"]


def save_datatree(tree: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a tree as one compressed netCDF file, whole or not at all.

    The file is written beside its final place and then renamed, so that a run that is stopped leaves what was there.

    Args:
        tree: what `to_datatree` returns.
        path: the file, by custom `results.nc`; its folder exists. A file that is there is replaced.

    Returns:
        The path. Open it by `arviz.from_netcdf(path)` or `xarray.open_datatree(path, engine="h5netcdf")`.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"path: expected a file in an existing folder; there is no {path.parent}. Make it first."
        )
    encoding = {
        node.path: {
            str(name): {"zlib": True, "complevel": 4, "shuffle": True}
            for name, variable in node.data_vars.items()
            if variable.ndim and variable.dtype.kind in "iuf"
        }
        for node in tree.subtree
    }
    with atomic_write(path) as temporary:
        tree.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
    return path
