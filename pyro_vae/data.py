"""Data in: named data sets and NumPy files, split once, binarized only by choice."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Dataset", "Split", "load"]

Binarize = Literal["none", "fixed", "dynamic"]

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One part of a data set: `len(split)` rows, read by `split[index]`.

    Rows are kept as they are stored (gray levels stay 8-bit) and converted when read, so reading a minibatch is one
    gather and one conversion.

    Args:
        name: "train", "validation" or "test".
        stored: values as stored, shape (N, P).
        labels: class labels, shape (N,), or None.
        rows: the row number of each datapoint in the array it comes from, shape (N,).
        divisor: `stored / divisor` is x, or, where `resamples`, the probability that x is 1.
        resamples: whether each access draws a new binary x (dynamic binarization).
        seed: seed of the data set's own binarization.
        dtype: floating-point type of x.

    Example:
        >>> test = load("digits").test
        >>> test[torch.tensor([0, 5, 2])].shape
        torch.Size([3, 64])
    """

    name: str
    stored: Tensor
    labels: Int[Tensor, " N"] | None
    rows: Int[Tensor, " N"]
    divisor: float
    resamples: bool
    seed: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.stored.shape[0]

    def __getitem__(self, index: Int[Tensor, " B"] | slice) -> Float[Tensor, "B P"]:
        x = self.stored[index].to(self.dtype)
        if self.divisor != 1.0:
            x = x / self.divisor
        return torch.bernoulli(x) if self.resamples else x

    def __repr__(self) -> str:
        num_data, num_values = self.stored.shape
        return f"Split({self.name!r}, {num_data} x {num_values}{', resamples' if self.resamples else ''})"

    def tensor(self) -> Float[Tensor, "N P"]:
        """Return all rows at once, shape (N, P).

        Raises:
            ValueError: if the split resamples, because then there is no such table.
        """
        if self.resamples:
            raise ValueError(
                f"split {self.name!r} draws x anew at each access: expected one fixed x, try .fix().tensor()"
            )
        return self[:]

    def fix(self, *, seed: int | None = None) -> Split:
        """Return one realisation of a resampling split; a split that does not resample is returned as it is.

        x = 1 where u < p, with u from a generator seeded by (seed, split) and read row after row: x at a row does not
        depend on how many rows follow it.

        Args:
            seed: seed of the realisation, at least 0. None is the data set's own seed, which gives the same bits as
                `load(..., binarize="fixed")`.

        Raises:
            ValueError: if `seed` is negative.

        Example:
            >>> dynamic = load("digits", binarize="dynamic").test
            >>> bool((dynamic.fix().tensor() == load("digits", binarize="fixed").test.tensor()).all())
            True
        """
        seed = _check_seed("seed", self.seed if seed is None else seed)
        if not self.resamples:
            return self
        # NumPy's generator: its stream of uniforms is the same on every platform and for every block size.
        generator = np.random.default_rng([seed, _SPLITS.index(self.name)])
        bits = torch.empty(self.stored.shape, dtype=torch.uint8)
        for block, drawn in zip(self.stored.split(1024), bits.split(1024), strict=True):
            drawn.copy_(torch.from_numpy(generator.random(block.shape)) < block.double() / self.divisor)
        return replace(self, stored=bits, divisor=1.0, resamples=False, seed=seed)

    def head(self, n: int) -> Split:
        """Return the first `n` rows as a split (all of them where there are fewer).

        Raises:
            ValueError: if `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"head(n) of split {self.name!r}: expected n at least 1, got {n}")
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, stored=self.stored[:n], labels=labels, rows=self.rows[:n])


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Three splits and the choices that made them.

    Args:
        name: the name or path it was loaded by.
        train: what models are fitted to.
        validation: what early stopping looks at.
        test: what is measured.
        image_shape: (H, W) or (H, W, C) of one datapoint, or None where rows are not images.
        binarize: "none", "fixed" or "dynamic".
        binarize_seed: seed of the binarization.
        split_seed: seed of the split.
        fingerprint: SHA-256 (hexadecimal) of the stored values of each split, in order, with their types, shapes and
            divisors, and of the choice of binarization with its seed. Equal fingerprints: the same x at the same row of
            the same split. Labels do not enter.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    image_shape: tuple[int, ...] | None
    binarize: Binarize
    binarize_seed: int
    split_seed: int
    fingerprint: str

    @property
    def num_values(self) -> int:
        """Number of data values in one datapoint, P."""
        return self.train.stored.shape[1]

    def __repr__(self) -> str:
        kind = "rows" if self.image_shape is None else f"{' x '.join(map(str, self.image_shape))} images"
        stored = self.train.stored
        low, high = (0.0, 1.0) if self.train.resamples else (float(v) / self.train.divisor for v in stored.aminmax())
        seed = "" if self.binarize == "none" else f" (seed {self.binarize_seed})"
        lines = [f"Dataset {self.name}: {kind} of {self.num_values} values in {low:g} .. {high:g}"]
        lines += [f"  {'binarize':<11} {self.binarize}{seed}"]
        for split in (self.train, self.validation, self.test):
            labels = "no labels" if split.labels is None else f"{len(split.labels.unique())} classes"
            lines.append(f"  {split.name:<11} {len(split):>7} rows, {labels}")
        lines.append(f"  {'fingerprint':<11} {self.fingerprint[:16]}…")
        return "\n".join(lines)


def load(
    name_or_path: str | os.PathLike[str],
    *,
    binarize: Binarize = "none",
    binarize_seed: int = 0,
    split_seed: int = 0,
    num_validation: int | None = None,
    num_test: int | None = None,
) -> Dataset:
    """Load a named data set, or a NumPy file, and split it into train, validation and test.

    * "digits": 1797 digits of 8x8 counts 0 .. 16, part of scikit-learn. Split 1197 / 200 / 400.
    * "mnist", "fashion-mnist": 28x28 gray values in [0, 1], through torchvision into the folder `$PYRO_VAE_DATA`
      (default: `pyro-vae` in the user's cache folder). Official test split; 10000 of the 60000 are cut for validation.
    * "path.npy", "path.npz": rows (N, P), or images (N, H, W) or (N, H, W, C), which are flattened. A .npz file holds
      `x` (and `y` or `labels`), or `x_train` and `x_test` (and `y_train`, `y_test`), and perhaps `x_validation`; splits
      that are there are kept. Otherwise a fifth becomes the test split and a tenth the validation split.

    In files, 8-bit unsigned integers are gray levels and are divided by 255, unless the largest is 1, when they are
    taken as binary; booleans become 0 and 1; every other type is taken as it is (so counts want a wider integer type).

    Split and binarization seeds belong to the data: leave them alone to be comparable between runs.

    Args:
        name_or_path: a name, or a path that ends in .npy or .npz.
        binarize: "none"; "fixed", one draw x ~ Bernoulli(value / maximum) made here; or "dynamic", a new draw at every
            access, from torch's global generator. The maximum is 255 for gray levels, 16 for the digits, 1 otherwise.
        binarize_seed: seed of the fixed draw (and of `Split.fix`).
        split_seed: seed of the random split.
        num_validation: size of the validation split; None is the default above.
        num_test: size of the test split; None is the default above. Official test splits are kept whole.

    Returns:
        The data set; x has torch's default floating-point type at the time of this call.

    Raises:
        FileNotFoundError: a file that is not there, or a data set that could not be downloaded.
        ValueError: an unknown name or choice, a negative seed, sizes that leave nothing to train on, or a file that is
            unreadable, pickled, of a wrong shape or type, empty, not finite, or outside the range binarization needs.

    Example:
        >>> data = load("digits")
        >>> len(data.train), len(data.validation), len(data.test)
        (1197, 200, 400)
        >>> data.image_shape, data.num_values
        ((8, 8), 64)
    """
    if binarize not in get_args(Binarize):
        raise ValueError(f"binarize={binarize!r}: expected one of {', '.join(map(repr, get_args(Binarize)))}")
    binarize_seed = _check_seed("binarize_seed", binarize_seed)
    split_seed = _check_seed("split_seed", split_seed)
    name = os.fspath(name_or_path)
    source = _open(name)
    if binarize != "none":
        _check_probabilities(name, source, binarize)
    parts = _split(name, source, split_seed, num_validation, num_test)

    def split(which: str) -> Split:
        values, labels, rows = parts[which]
        divisor, resamples = (source.divisor, False) if binarize == "none" else (source.maximum, True)
        made = Split(which, values, labels, rows, divisor, resamples, binarize_seed, torch.get_default_dtype())
        return made.fix() if binarize == "fixed" else made

    train, validation, test = (split(which) for which in _SPLITS)
    fingerprint = _fingerprint((train, validation, test), binarize, binarize_seed)
    return Dataset(name, train, validation, test, source.image_shape, binarize, binarize_seed, split_seed, fingerprint)


@dataclass(frozen=True)
class _Source:
    """What was found, not yet split: `parts` maps "train" (or "all", to be split), … to values (N, P) and labels."""

    parts: dict[str, tuple[Tensor, Tensor | None]]
    image_shape: tuple[int, ...] | None
    divisor: float = 1.0
    maximum: float = 1.0
    num_validation: int | None = None
    num_test: int | None = None


def _open(name: str) -> _Source:
    if name in _NAMED:
        return _NAMED[name]()
    path = Path(name).expanduser()
    if path.suffix in (".npy", ".npz"):
        return _load_file(path)
    known = ", ".join(_NAMED)
    close = difflib.get_close_matches(name.lower().replace("_", "-"), _NAMED, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"unknown data set {name!r}: {hint}expected one of {known}, or a path ending in .npy or .npz")


def _load_digits() -> _Source:
    # Imported here: scikit-learn takes a second, and only this data set needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    values, labels = torch.from_numpy(digits.data.astype(np.uint8)), torch.from_numpy(digits.target.astype(np.int64))
    return _Source({"all": (values, labels)}, (8, 8), maximum=16.0, num_validation=200, num_test=400)


def _data_folder() -> Path:
    if chosen := os.environ.get("PYRO_VAE_DATA"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro-vae"


def _load_torchvision(class_name: str) -> _Source:
    # Imported here: torchvision takes seconds, and only these data sets need it.
    from torchvision import datasets
    from torchvision.datasets.utils import check_md5

    dataset = getattr(datasets, class_name)
    folder = _data_folder()
    raw = folder / class_name / "raw"
    try:
        # torchvision verifies checksums of archives that are there, and unpacks them instead of downloading.
        # Older ones report on standard output, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            train, test = (dataset(folder, train=is_train, download=True) for is_train in (True, False))
        read = {"train": train, "test": test}
        for which, expected in (("train", 60000), ("test", 10000)):
            if read[which].data.shape != (expected, 28, 28) or read[which].targets.shape != (expected,):
                raise ValueError(f"{which} images of shape {tuple(read[which].data.shape)}")
    # Whatever torchvision raises (it has no error type of its own) becomes one line that names the folder.
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        archives = {raw / file: md5 for file, md5 in dataset.resources}
        if all(archive.with_suffix("").exists() for archive in archives):
            raise ValueError(
                f"{class_name}: unpacked files in {raw} are damaged ({reason[0]}): delete them, they are unpacked or "
                "downloaded again"
            ) from error
        damaged = [file.name for file, md5 in archives.items() if file.is_file() and not check_md5(file, md5)]
        found = f"; damaged there: {', '.join(damaged)}" if damaged else ""
        raise FileNotFoundError(
            f"{class_name} could not be downloaded into {raw} ({reason[0]}){found}: try again with a network, or copy "
            f"the four original archives ({', '.join(file.name for file in archives)}) into that folder, or set "
            f"PYRO_VAE_DATA to a folder that holds {class_name}/raw"
        ) from error
    parts = {which: (part.data.flatten(1), part.targets.long()) for which, part in read.items()}
    return _Source(parts, (28, 28), divisor=255.0, maximum=255.0, num_validation=10000)


_NAMED: dict[str, Callable[[], _Source]] = {
    "digits": _load_digits,
    "mnist": lambda: _load_torchvision("MNIST"),
    "fashion-mnist": lambda: _load_torchvision("FashionMNIST"),
}


def _load_file(path: Path) -> _Source:
    arrays = _read_arrays(path)
    found: dict[str, tuple[str, np.ndarray[Any, Any], str | None]] = {}
    for which, suffix in (("all", ""), *((which, f"_{which}") for which in _SPLITS)):
        if f"x{suffix}" in arrays:
            label_key = next((key for key in (f"y{suffix}", f"labels{suffix}") if key in arrays), None)
            found[which] = (f"x{suffix}", arrays[f"x{suffix}"], label_key)
    if "train" not in found and list(found) != ["all"] or "all" in found and len(found) > 1:
        raise ValueError(
            f"{path}: expected one array x, or x_train (and x_test, x_validation), "
            f"the file has {', '.join(arrays) or 'nothing'}"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, tuple[Tensor, Tensor | None]] = {}
    for which, (key, array, label_key) in found.items():
        values = _check_values(f"{path}: {key}", array)
        shapes[key] = array.shape[1:]
        labels = None if label_key is None else _check_labels(f"{path}: {label_key}", arrays[label_key], len(array))
        parts[which] = (values.flatten(1), labels)
    if len(set(shapes.values())) > 1 or len({values.dtype for values, _ in parts.values()}) > 1:
        listed = ", ".join(f"{key} has (N, {', '.join(map(str, shape))})" for key, shape in shapes.items())
        raise ValueError(f"{path}: expected splits of one shape and type, {listed}; save them alike")
    shape = next(iter(shapes.values()))
    image_shape = None if len(shape) == 1 else (shape[:2] if shape[2:] == (1,) else shape)
    gray = next(iter(parts.values()))[0].dtype == torch.uint8 and max(int(x.max()) for x, _ in parts.values()) > 1
    maximum = 255.0 if gray else 1.0
    return _Source(parts, image_shape, divisor=maximum, maximum=maximum)


def _read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: expected a .npy or .npz file, check the path")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            # An archive's member that is no array comes back as bytes.
            return {key: np.asarray(loaded[key]) for key in loaded.files}
    # Damaged headers make NumPy's reader raise many types, SyntaxError and zlib.error among them.
    except Exception as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{path} holds pickled Python objects, which could run code and are refused: expected numbers, try "
                "np.save(path, np.stack(list(x)))"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        # NumPy takes any file that it does not know for a pickle.
        reason = "not a NumPy file" if "allow_pickle" in reason else reason
        raise ValueError(f"{path} cannot be read ({reason}): expected a file written by np.save or np.savez") from error


def _check_values(where: str, array: np.ndarray[Any, Any]) -> Tensor:
    shapes = "rows (N, P) or images (N, H, W) or (N, H, W, C)"
    if array.dtype.kind not in "buif":
        raise ValueError(f"{where} has type {array.dtype}: expected real numbers, try x.astype(float)")
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"{where} has shape {array.shape}: expected {shapes}, try x.reshape(num_data, -1)")
    if array.size == 0:
        raise ValueError(f"{where} has shape {array.shape}: expected {shapes} with at least one value")
    if array.ndim == 4 and array.shape[1] in (1, 3, 4) and array.shape[3] not in (1, 3, 4):
        raise ValueError(f"{where} has shape {array.shape}: expected channels last, try np.moveaxis(x, 1, -1)")
    # Booleans become int8: uint8 means gray levels from here on.
    kinds: dict[str, Any] = {"b": np.int8, "u": np.int64, "i": np.int64, "f": np.float64}
    stays = array.dtype == np.uint8 or (array.dtype.kind == "f" and array.dtype.itemsize <= 8)
    wanted = array.dtype.newbyteorder("=") if stays else kinds[array.dtype.kind]
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=wanted))
    # At the type that x will have: a large float64 is infinite as float32.
    finite = values.to(torch.get_default_dtype()).isfinite().flatten(1).all(1) if values.is_floating_point() else None
    if finite is not None and not finite.all():
        bad = int(finite.logical_not().nonzero()[0])
        number = int(finite.logical_not().sum())
        raise ValueError(
            f"{where} has NaN or infinity in {number} row{'s' if number > 1 else ''}, the first is row {bad}: expected "
            "finite values, try x[np.isfinite(x).reshape(len(x), -1).all(1)]"
        )
    return values


def _check_labels(where: str, labels: np.ndarray[Any, Any], num_data: int) -> Tensor:
    if labels.shape != (num_data,) or labels.dtype.kind not in "bui":
        raise ValueError(
            f"{where} has shape {labels.shape} and type {labels.dtype}: expected {num_data} integers, one a row, "
            "or leave the labels out"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _check_seed(argument: str, seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"{argument}={seed!r}: expected an integer of at least 0")
    return int(seed)


def _check_probabilities(name: str, source: _Source, binarize: str) -> None:
    ranges = [values.aminmax() for values, _ in source.parts.values()]
    low, high = min(float(r.min) for r in ranges), max(float(r.max) for r in ranges)
    if low < 0 or high > source.maximum:
        raise ValueError(
            f"{name}: binarize={binarize!r} takes value / {source.maximum:g} as a probability: expected values in "
            f"[0, {source.maximum:g}], got {low:g} .. {high:g}; rescale them, or use binarize='none'"
        )


def _split(
    name: str, source: _Source, seed: int, num_validation: int | None, num_test: int | None
) -> dict[str, tuple[Tensor, Tensor | None, Tensor]]:
    """Cut what `source` does not bring along; where nothing is cut, rows keep their order."""
    for which, asked in (("validation", num_validation), ("test", num_test)):
        if asked is not None and asked < 1:
            raise ValueError(f"num_{which}={asked}: expected at least 1 row, or None for the default")
        if asked is not None and which in source.parts:
            raise ValueError(f"num_{which}={asked}: {name} has a {which} split of its own, which is kept; leave it out")
    parts = {which: (*part, torch.arange(len(part[0]))) for which, part in source.parts.items()}
    values, labels, rows = parts.pop("all") if "all" in parts else parts.pop("train")
    num_data = len(values)
    cut = {}
    if "test" not in parts:
        cut["test"] = num_test or source.num_test or num_data // 5
    if "validation" not in parts:
        cut["validation"] = num_validation or source.num_validation or num_data // 10
    num_train = num_data - sum(cut.values())
    if num_train < 1 or min(cut.values(), default=1) < 1:
        sizes = " + ".join(f"{size} {which}" for which, size in cut.items())
        raise ValueError(
            f"{name} has {num_data} rows to split into train + {sizes}: expected at least 1 in each; bring more rows "
            "(10 are enough for the default sizes), or choose num_validation and num_test"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(num_data)) if cut else torch.arange(num_data)
    for which, chosen in zip((*cut, "train"), order.split([*cut.values(), num_train]), strict=True):
        parts[which] = (values[chosen], None if labels is None else labels[chosen], rows[chosen])
    return parts


def _fingerprint(splits: tuple[Split, ...], binarize: str, binarize_seed: int) -> str:
    digest = hashlib.sha256()
    for split in splits:
        stored = split.stored.contiguous().numpy()
        header = [split.name, str(stored.dtype), list(stored.shape), split.divisor]
        digest.update(json.dumps(header).encode())
        digest.update(stored.astype(stored.dtype.newbyteorder("<"), copy=False).data)
    digest.update(json.dumps([binarize, None if binarize == "none" else binarize_seed]).encode())
    return digest.hexdigest()
