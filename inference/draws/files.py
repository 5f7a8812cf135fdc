"""A tree of draws as one file, written and read again."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import xarray as xr

from inference.checkpoint import atomic_write
from inference.counts import require_kind
from inference.memory import available_memory, in_words

__all__ = ["load_datatree", "save_datatree"]


def save_datatree(tree: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a tree as one compressed netCDF file, whole or not at all.

    The file is written beside its final place and then renamed, so that a run that is stopped leaves what was there.

    Args:
        tree: what `to_datatree` returns.
        path: the file, by custom `results.nc`; its folder exists. A file that is there is replaced.

    Returns:
        The path. Open it by `arviz.from_netcdf(path)` or `xarray.open_datatree(path, engine="h5netcdf")`.

    Raises:
        TypeError: `tree` is something else.
        FileNotFoundError: the folder does not exist.
    """
    require_kind("tree", tree, xr.DataTree, hint="Pass what to_datatree returns.")
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


def load_datatree(path: str | os.PathLike[str], *, group: str | None = None) -> xr.DataTree:
    """Read a tree into memory. Nothing in the file is executed.

    Args:
        path: what `save_datatree` wrote.
        group: the only group to read, where the others are not needed; all of them by default.

    Returns:
        The tree, of one group that group's; the file is closed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or unpacks to more than there is memory: a few bytes can promise any number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a tree of draws; there is no such file. Check the path.")
    try:
        # Where HDF5 refuses the file or its root, h5netcdf leaves half an object, of which Python complains in the end.
        with h5py.File(path, "r") as file:
            dict(file.attrs)
        with xr.open_datatree(path, engine="h5netcdf", phony_dims="access", group=group) as tree:
            size, room = sum(node.to_dataset(inherit=False).nbytes for node in tree.subtree), available_memory()
            if room is not None and size > room:
                raise MemoryError(f"it holds {in_words(size)}, and {in_words(room)} of memory are free")
            return tree.load()
    # What a damaged file of HDF5 raises depends on where the damage is.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: expected draws and gaps; it cannot be read ({reason}).") from error
