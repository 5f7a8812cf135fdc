"""NumPy files: .npy, whose rows may stay there until they are asked for, and .npz."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.data.arrays import find_array, read_archive, read_whole
from pyro_vae.data.records import SPLITS
from pyro_vae.data.sources import Found, Missing, Source, check_labels, make_source
from pyro_vae.data.sparse import MEMBERS, is_archive, unpack_sparse

__all__ = ["read_npy", "read_npz"]

# The rows of a .npy file of more bytes stay there, unless `stream` says otherwise.
STREAM_BYTES = 2**30


def read_npy(path: Path, *, missing: Missing, stream: bool | None) -> Source:
    """One array x, which stays on disk where it is large.

    Args:
        path: the file.
        missing: whether NaN is refused or kept.
        stream: whether rows are read when asked for; None: where the file is larger than 1 GiB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or does not hold rows or images.
    """
    _require(path)
    array = find_array(path)
    if array is None:
        # An archive under another name.
        return read_npz(path, missing=missing, key=None, label_key=None)
    stays = array.state.size > STREAM_BYTES if stream is None else stream
    if stays and not array.by_row:
        raise ValueError(
            f"{path} is stored column by column, where a row cannot be read alone: expected row order, try "
            "np.save(path, np.ascontiguousarray(x)), or stream=False"
        )
    return make_source(str(path), {"all": Found(f"{path}: x", array if stays else read_whole(array))}, missing=missing)


def read_npz(path: Path, *, missing: Missing, key: str | None, label_key: str | None) -> Source:
    """The array `key` with its labels, or those of its splits: `key_train`, `key_validation`, `key_test`.

    Args:
        path: the file.
        missing: whether NaN is refused or kept.
        key: name of the array; None: x.
        label_key: name of its labels; None: y or labels, if there are any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or does not hold these arrays.
    """
    _require(path)
    name = key or "x"
    suffixes = {"all": "", **{which: f"_{which}" for which in SPLITS}}
    label_names = ("y", "labels") if label_key is None else (label_key,)
    wanted = {f"{each}{suffix}" for each in (name, *label_names) for suffix in suffixes.values()}
    arrays, known = read_archive(path, wanted)
    if key is None and not arrays and is_archive(known):
        if label_key is not None:
            raise ValueError(f"{path}: label_key={label_key!r}: a sparse matrix has no labels beside it; leave it out")
        return read_sparse_file(path, missing=missing)
    found: dict[str, Found] = {}
    for which, suffix in suffixes.items():
        if f"{name}{suffix}" in arrays:
            array = arrays[f"{name}{suffix}"]
            label_name = next((f"{each}{suffix}" for each in label_names if f"{each}{suffix}" in arrays), None)
            if label_name is None and label_key is not None:
                raise ValueError(
                    f"{path}: label_key={label_key!r}: expected the labels in an array {label_key}{suffix}, the file "
                    f"has {', '.join(known)}; name one of these"
                )
            labels = (
                None if label_name is None else check_labels(f"{path}: {label_name}", arrays[label_name], len(array))
            )
            found[which] = Found(f"{path}: {name}{suffix}", array, labels)
    if "train" not in found and list(found) != ["all"] or "all" in found and len(found) > 1:
        raise ValueError(
            f"{path}: expected one array {name}, or {name}_train (and {name}_test, {name}_validation), "
            f"the file has {', '.join(known) or 'nothing'}; choose another array with key="
        )
    return make_source(str(path), found, missing=missing)


def read_sparse_file(path: Path, *, missing: Missing) -> Source:
    """The rows of a matrix that `scipy.sparse.save_npz` wrote; they stay sparse.

    Raises:
        ValueError: it is none, or does not hold real numbers.
    """
    arrays, _ = read_archive(path, MEMBERS)
    return make_source(str(path), {"all": Found(str(path), unpack_sparse(str(path), arrays))}, missing=missing)


def _require(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: expected a .npy or .npz file, check the path")
