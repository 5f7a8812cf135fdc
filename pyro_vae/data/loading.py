"""Load a data set: find it, check it, split it, binarize or standardize it, and take its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from pyro_vae.data.files import read_npy, read_npz
from pyro_vae.data.named import NAMED
from pyro_vae.data.narrowing import Narrowing
from pyro_vae.data.objects import read_object
from pyro_vae.data.records import SPLITS, Binarize, Dataset, Split, check_seed
from pyro_vae.data.sources import Missing, Source
from pyro_vae.data.standardization import (
    ColumnStatistics,
    Standardization,
    column_statistics,
    constant_note,
    scale_note,
)
from pyro_vae.data.streams import Rows, blocks, take
from pyro_vae.data.tables import read_table
from pyro_vae.names import did_you_mean

__all__ = ["describe", "dtype_of", "load", "located", "say_scales", "silent"]

_log = logging.getLogger(__name__)

_TABLES = (".csv", ".parquet")
_FILES = (".npy", ".npz", *_TABLES)
# Rows of a file that stays on disk by which the scales of its columns are judged.
_SAMPLED = 20_000
# Images whose brightest pixel is below half of 8 bits are rare, and counts above it, too.
_DARK = 127
# Which files an option is for.
_OPTIONS = {
    "key": (".npz",),
    "label_key": (".npz",),
    "columns": _TABLES,
    "label": _TABLES,
    "stream": (".npy",),
} | dict.fromkeys(("separator", "decimal"), (".csv",))


def load(
    name_or_path: str | os.PathLike[str] | Tensor | np.ndarray | TorchDataset[Any],
    *,
    binarize: Binarize = "none",
    binarize_seed: int = 0,
    split_seed: int = 0,
    num_validation: int | None = None,
    num_test: int | None = None,
    missing: Missing = "refuse",
    key: str | None = None,
    label_key: str | None = None,
    columns: Sequence[str] | None = None,
    label: str | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    stream: bool | None = None,
    standardize: bool = False,
    dtype: str | torch.dtype | None = None,
) -> Dataset:
    """Load a data set by name, from a file or from an object, and split it into train, validation and test.

    * "digits": 1797 digits of 8x8 counts 0 .. 16, part of scikit-learn. Split 1197 / 200 / 400.
    * "mnist", "fashion-mnist", "kmnist", "emnist-balanced", "emnist-letters", "emnist-digits": 28x28 gray values in
      [0, 1]; "cifar10": 32x32x3 colours in [0, 1]. All through torchvision into the folder `$PYRO_VAE_DATA` (default:
      `pyro-vae` in the user's cache folder). Official test splits; for validation, 10000 training images are cut, of
      EMNIST as many as for test, of CIFAR-10 5000.
    * "path.npy", "path.npz": rows (N, P), or images (N, H, W) or (N, H, W, C), which are flattened. A .npz file holds
      `x` (and `y` or `labels`), or `x_train` and `x_test` (and `y_train`, `y_test`), and perhaps `x_validation`; splits
      that are there are kept. Otherwise a fifth becomes the test split and a tenth the validation split. A .npy file
      may be larger than memory: it is then left where it is, and `split[index]` reads the rows asked for.
    * "path.csv", "path.parquet": the numeric columns become x, and `Dataset.columns` names them. A .parquet file needs
      pyarrow.
    * a tensor or an array x, or a map-style torch data set whose items are x or (x, label): stacked, and split as a
      file is.
    * a sparse matrix or array of SciPy, of any layout, or a .npz file by `scipy.sparse.save_npz`: the same data as
      `x.toarray()`, which is never made; `split[index]` makes the rows asked for dense.

    In arrays, 8-bit unsigned integers are gray levels and are divided by 255, unless the largest is 1, when they are
    taken as binary; booleans become 0 and 1; every other type is taken as it is. So counts want a wider integer type,
    and one line says so where the largest 8-bit value is at most 127.
    In tables no integers are gray levels.

    Digits are not lost without a word: x is float32 by default, and where that would make other whole numbers of whole
    numbers (from 2**24 on), infinity or 0 of others, or would round a column by more than a ten-thousandth of its
    standard deviation (timestamps, coordinates), the columns are refused by name. dtype="float64" keeps the digits, and
    standardize=True subtracts the mean before they are lost. Values that are float32 already are taken as they are.

    Split and binarization seeds belong to the data: leave them alone to be comparable between runs.

    Args:
        name_or_path: a name, a path that ends in .npy, .npz, .csv or .parquet, or an object that holds the data.
        binarize: "none"; "fixed", one draw x ~ Bernoulli(value / maximum) made here; or "dynamic", a new draw at every
            access, from torch's global generator. The maximum is 255 for gray levels, 16 for the digits, 1 otherwise.
        binarize_seed: seed of the fixed draw (and of `Split.fix`).
        split_seed: seed of the random split.
        num_validation: size of the validation split; None is the default above.
        num_test: size of the test split; None is the default above. Official test splits are kept whole.
        missing: "refuse": NaN is an error; "keep": NaN is a value that was not observed (for likelihoods with
            `mask=True`).
        key: of a .npz file, the name of x where it is not x.
        label_key: of a .npz file, the name of the labels where they are not y or labels.
        columns: of a table, the columns of x, in this order; None: all but the labels.
        label: of a table, the column of the labels; names of classes are numbered in sorted order.
        separator: of a .csv file, the character between columns, such as ";" or "tab"; None: a comma.
        decimal: of a .csv file, the decimal mark, "." or ","; None: a point.
        stream: of a .npy file, whether its rows stay on disk until they are asked for; None: where it is larger than 1
            GiB. The data and their fingerprint are the same either way.
        standardize: whether x is (value - mean) / standard deviation of each column, by the values observed in the
            training split alone; images have one mean and one standard deviation a channel. A column that is constant
            there is moved to 0 and not scaled, and named in a warning. For likelihoods of real numbers: a `VAE` that is
            given `standardization=dataset.standardization` has its densities and its draws in the data's own units.
        dtype: floating-point type of x, "float32" or "float64" (or torch's own); None: torch's default at the time of
            this call. A model of such data needs parameters of the same type: `vae.double()`.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: a file that is not there, or a data set that could not be downloaded.
        ValueError: an unknown name or choice, a negative seed, sizes that leave nothing to train on, an option of
            another kind of file, or data that are unreadable, pickled, of a wrong shape or type, empty, not finite,
            outside the range binarization needs, or of more digits than `dtype` holds.

    Example:
        >>> data = load("digits")
        >>> len(data.train), len(data.validation), len(data.test)
        (1197, 200, 400)
        >>> data.image_shape, data.num_values, data.num_levels
        ((8, 8), 64, 17)
        >>> from torch.utils.data import TensorDataset
        >>> load(TensorDataset(torch.rand(100, 3), torch.arange(100)))
        Dataset TensorDataset: rows of 3 values in ...
    """
    for argument, value, choices in (("binarize", binarize, Binarize), ("missing", missing, Missing)):
        if value not in get_args(choices):
            raise ValueError(f"{argument}={value!r}: expected one of {', '.join(map(repr, get_args(choices)))}")
    if not isinstance(standardize, bool):
        raise ValueError(f"standardize={standardize!r}: expected True or False")
    if standardize and binarize != "none":
        raise ValueError(
            f"standardize=True: expected real numbers, and binarize={binarize!r} makes zeros and ones; leave one of "
            "the two out"
        )
    narrow = dtype_of(dtype)
    binarize_seed = check_seed("binarize_seed", binarize_seed)
    split_seed = check_seed("split_seed", split_seed)
    is_named = isinstance(name_or_path, str | os.PathLike)
    name = os.fspath(name_or_path) if is_named else type(name_or_path).__name__  # type: ignore[arg-type]
    options = {"key": key, "label_key": label_key, "columns": columns, "label": label, "stream": stream}
    options |= {"separator": separator, "decimal": decimal}
    _check_options(name, "" if name in NAMED or not is_named else Path(name).suffix, options)
    source = _open(name, missing, options) if is_named else read_object(name_or_path, missing=missing)
    if binarize != "none":
        _check_probabilities(name, source, binarize)
    parts = _split(name, source, split_seed, num_validation, num_test)

    def split(which: str) -> Split:
        values, labels, rows = parts[which]
        divisor, resamples = (source.divisor, False) if binarize == "none" else (source.maximum, True)
        made = Split(which, values, labels, rows, divisor, resamples, binarize_seed, narrow)
        return made.fix() if binarize == "fixed" else made

    train, validation, test = (split(which) for which in SPLITS)
    num_channels = train.stored.shape[1] if source.image_shape is None else _num_channels(source.image_shape)
    # Bits are drawn from probabilities, whatever their digits.
    digits = Narrowing(narrow, num_channels, standardized=standardize) if binarize == "none" else None
    fingerprint, (low, high) = _survey((train, validation, test), binarize, binarize_seed, digits)
    num_levels, level_step = source.levels if binarize == "none" else (2, 1.0)
    standardization = None
    if standardize:
        found = column_statistics(train.stored, train.divisor)
        if source.image_shape is not None:
            found = found.pooled(_num_channels(source.image_shape))
        standardization = _standardization(name, found, source.columns)
        seen = found.num_observed > 0
        ends = torch.stack([standardization.apply(found.low), standardization.apply(found.high)])[:, seen]
        low, high = float(ends.min()), float(ends.max())
        train, validation, test = (
            dataclasses.replace(split, standardization=standardization) for split in (train, validation, test)
        )
        # Standardized values lie on no grid.
        num_levels, level_step = None, None
    if digits is not None:
        digits.refuse(name, _named_columns(source, num_channels), standardization)
    dataset = Dataset(
        name,
        train,
        validation,
        test,
        source.image_shape,
        binarize,
        binarize_seed,
        split_seed,
        fingerprint,
        min_value=low,
        max_value=high,
        num_levels=num_levels,
        level_step=level_step,
        columns=source.columns,
        has_missing=source.has_missing,
        divisor=source.divisor if binarize == "none" else source.maximum,
        is_real=next(iter(source.parts.values())).values.dtype.is_floating_point,
        standardization=standardization,
    )
    describe(dataset)
    return dataset


_is_silent: ContextVar[bool] = ContextVar("_is_silent", default=False)


@contextmanager
def silent() -> Iterator[None]:
    """Load without a word on the scales of columns: of data that were loaded, and described, before."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


def describe(dataset: Dataset) -> None:
    """Log what a user may not expect of data as they were read: 8 bits that may be counts, and scales.

    Args:
        dataset: the data.
    """
    high = dataset.max_value * dataset.divisor
    if dataset.is_gray and dataset.standardization is None and high < _DARK + 0.5 and not _is_silent.get():
        _log.warning(
            f"{dataset.name}: {high:.0f} is the largest of its 8-bit integers, which are taken for gray levels and "
            f'divided by {dataset.divisor:g}. For counts save a wider integer type: x.astype("int64").'
        )
    if dataset.num_levels is None:
        say_scales(dataset, counts=False)


def say_scales(dataset: Dataset, *, counts: bool) -> None:
    """Log columns that are constant, and those whose scales differ by orders of magnitude or are far from 1.

    Of images the channels are looked at, and not the pixels, which at the border are often constant. Data that are
    binarized are passed over. The rows of a large file are represented by the first of its training split.

    Args:
        dataset: the data of a fit.
        counts: whether to speak of data of whole numbers, or of others. `load` speaks of the others: whole numbers may
            be counts, for which the units are right.
    """
    if _is_silent.get() or dataset.binarize != "none":
        return
    is_standardized = dataset.standardization is not None
    train = dataset.train
    is_sampled = not isinstance(train.stored, Tensor) and len(train) > _SAMPLED
    if is_sampled:
        train = train.head(_SAMPLED)
    found = column_statistics(train.stored, train.divisor)
    if not is_standardized and bool(found.is_whole.all()) != counts:
        return
    remedy = ""
    if dataset.image_shape is not None:
        num_channels = _num_channels(dataset.image_shape)
        found = found.pooled(num_channels).head(num_channels)
        names = ["all pixels"] if num_channels == 1 else [f"channel {c}" for c in range(num_channels)]
    elif dataset.columns is not None:
        names, remedy = list(map(repr, dataset.columns)), " (columns=, --data.columns)"
    else:
        names = [f"column {p}" for p in range(dataset.num_values)]
    notes = []
    if not is_sampled:
        notes.append(constant_note(dataset.name, found, names, remedy=remedy, scaled=is_standardized))
    if not is_standardized:
        notes.append(scale_note(dataset.name, found, names))
    for note in notes:
        if note is not None:
            _log.warning(note)


def _named_columns(source: Source, num_columns: int) -> list[str]:
    """Columns, or channels of images, in words."""
    if source.columns is not None:
        return [f"column {column!r}" for column in source.columns]
    if source.image_shape is None:
        return [f"column {p}" for p in range(num_columns)]
    return ["the values"] if num_columns == 1 else [f"channel {c}" for c in range(num_columns)]


def dtype_of(asked: str | torch.dtype | None) -> torch.dtype:
    """The floating-point type that is asked for.

    Args:
        asked: as `load` takes it.

    Raises:
        ValueError: it is another.
    """
    if asked is None:
        return torch.get_default_dtype()
    known = {"float32": torch.float32, "float64": torch.float64}
    found = known.get(str(asked).removeprefix("torch.")) if isinstance(asked, str | torch.dtype) else None
    if found is None:
        raise ValueError(f"dtype={asked!r}: expected 'float32', 'float64' or None; choose one of them")
    return found


def _num_channels(image_shape: tuple[int, ...]) -> int:
    return image_shape[2] if len(image_shape) == 3 else 1


def _standardization(name: str, found: ColumnStatistics, columns: Sequence[str] | None) -> Standardization:
    """The map of the training split's statistics; refuses columns whose standard deviation overflows."""
    overflows = (
        ((found.num_observed > 0) & ~(found.mean.isfinite() & found.spread.isfinite())).nonzero().flatten().tolist()
    )
    if overflows:
        which = ", ".join(repr(columns[p]) if columns else str(p) for p in overflows[:6])
        raise ValueError(
            f"{name}: standardize=True: expected standard deviations that double precision holds; those of column "
            f"{which} overflow; rescale their values, or leave them out"
        )
    return found.standardization()


def located(name_or_path: str | os.PathLike[str]) -> str:
    """Data as every folder finds them: the name of a data set as it is, the path of a file from the root.

    Args:
        name_or_path: as `load` takes it.

    Example:
        >>> located("digits")
        'digits'
    """
    name = os.fspath(name_or_path)
    return name if name in NAMED else os.path.abspath(os.path.expanduser(name))


def _open(name: str, missing: Missing, options: dict[str, Any]) -> Source:
    if name in NAMED:
        return NAMED[name].open()
    path = Path(name).expanduser()
    if path.suffix == ".npy":
        return read_npy(path, missing=missing, stream=options["stream"])
    if path.suffix == ".npz":
        return read_npz(path, missing=missing, key=options["key"], label_key=options["label_key"])
    if path.suffix in _TABLES:
        asked = {option: options[option] for option in ("columns", "label", "separator", "decimal")}
        return read_table(path, missing=missing, **asked)
    if path.is_dir():
        raise ValueError(
            f"{name}: expected a data set's name or a file ending in {', '.join(_FILES[:-1])} or {_FILES[-1]}; got a "
            "folder. Of images of one size, stack the pixels: np.save('x.npy', np.stack([np.asarray(Image.open(file)) "
            "for file in sorted(folder.glob('*.png'))]))."
        )
    wanted = name.lower().replace("_", "-")
    begun = [known for known in NAMED if known.startswith(f"{wanted}-")]
    hint = did_you_mean(begun[0] if begun else wanted, NAMED)
    raise ValueError(
        f"unknown data set {name!r}.{hint} Expected one of {', '.join(NAMED)}, or a path ending in "
        f"{', '.join(_FILES[:-1])} or {_FILES[-1]}."
    )


def _check_options(name: str, suffix: str, options: dict[str, Any]) -> None:
    """Options of another kind of file would pass unheard."""
    for option, value in options.items():
        if value is not None and value is not False and suffix not in _OPTIONS[option]:
            fix = "; save x alone with np.save, because an archive cannot be streamed" if suffix == ".npz" else ""
            raise ValueError(
                f"{option}={value!r}: an option of {' and '.join(_OPTIONS[option])} files, which {name!r} is not; "
                f"leave it out{fix if option == 'stream' else ''}"
            )


def _check_probabilities(name: str, source: Source, binarize: str) -> None:
    if source.has_missing:
        raise ValueError(
            f"{name}: binarize={binarize!r} cannot draw values that are missing: expected no NaN; fill them in, or use "
            "binarize='none'"
        )
    low, high = source.low, source.high
    if low < 0 or high > source.maximum:
        raise ValueError(
            f"{name}: binarize={binarize!r} takes value / {source.maximum:g} as a probability: expected values in "
            f"[0, {source.maximum:g}], got {low:g} .. {high:g}; rescale them, or use binarize='none'"
        )


def _split(
    name: str, source: Source, seed: int, num_validation: int | None, num_test: int | None
) -> dict[str, tuple[Rows, Int[Tensor, " N"] | None, Int[Tensor, " N"]]]:
    """Cut what `source` does not bring along; where nothing is cut, rows keep their order."""
    for which, asked in (("validation", num_validation), ("test", num_test)):
        if asked is not None and (isinstance(asked, bool) or not isinstance(asked, Integral) or asked < 1):
            raise ValueError(f"num_{which}={asked!r}: expected at least 1 row, or None for the default")
        if asked is not None and which in source.parts:
            raise ValueError(f"num_{which}={asked}: {name} has a {which} split of its own, which is kept; leave it out")
    parts = {
        which: (part.values, part.labels, torch.arange(part.values.shape[0])) for which, part in source.parts.items()
    }
    values, labels, rows = parts.pop("all") if "all" in parts else parts.pop("train")
    num_data = values.shape[0]
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
        parts[which] = (take(values, chosen), None if labels is None else labels[chosen], rows[chosen])
    return parts


def _survey(
    splits: tuple[Split, ...], binarize: str, binarize_seed: int, digits: Narrowing | None
) -> tuple[str, tuple[float, float]]:
    """The fingerprint, and the range of x in all splits, from one pass over the rows, which `digits` sees as well."""
    digest = hashlib.sha256()
    low, high = np.inf, -np.inf
    for split in splits:
        kind = torch.empty(0, dtype=split.stored.dtype).numpy().dtype
        header = [split.name, str(kind), list(split.stored.shape), split.divisor]
        digest.update(json.dumps(header).encode())
        for _, block in blocks(split.stored):
            array = block.contiguous().numpy()
            digest.update(array.astype(kind.newbyteorder("<"), copy=False).data)
            if digits is not None:
                digits.add(block, is_train=split.name == "train")
            if not split.resamples:
                observed = block[~block.isnan()] if block.is_floating_point() else block
                if observed.numel():
                    least, most = observed.aminmax()
                    low, high = min(low, float(least) / split.divisor), max(high, float(most) / split.divisor)
    digest.update(json.dumps([binarize, None if binarize == "none" else binarize_seed]).encode())
    return digest.hexdigest(), (0.0, 1.0) if splits[0].resamples else (low, high)
