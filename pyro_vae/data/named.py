"""Data sets that are known by name."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.data.sources import Part, Source

__all__ = ["NAMED"]


@dataclass(frozen=True)
class _Official:
    """Images that torchvision brings, with an official test split.

    Args:
        class_name: its class in torchvision.
        what: what is on the images, in a few words.
        num_train: images in the official training split.
        num_test: images in the official test split.
        num_validation: how many of the training images are cut for validation.
        image_shape: shape of an image.
        options: further arguments of the class.
        transposed: whether rows and columns come exchanged.
    """

    class_name: str
    what: str
    num_train: int = 60000
    num_test: int = 10000
    num_validation: int = 10000
    image_shape: tuple[int, ...] = (28, 28)
    options: Mapping[str, Any] = field(default_factory=dict)
    transposed: bool = False


@dataclass(frozen=True)
class Named:
    """A data set that is known by name.

    Attributes:
        description: one line for a list.
        open: reads it, and downloads it first where it is not there.
    """

    description: str
    open: Callable[[], Source]


def _emnist(split: str, what: str, num_train: int, num_test: int) -> _Official:
    # As many for validation as for test, as the paper does (Cohen, Afshar, Tapson & van Schaik 2017).
    return _Official("EMNIST", what, num_train, num_test, num_test, options={"split": split}, transposed=True)


_OFFICIAL = {
    "mnist": _Official("MNIST", "handwritten digits"),
    "fashion-mnist": _Official("FashionMNIST", "articles of clothing"),
    "kmnist": _Official("KMNIST", "cursive Japanese characters"),
    "emnist-balanced": _emnist("balanced", "handwritten digits and letters, as many of each", 112800, 18800),
    "emnist-letters": _emnist("letters", "handwritten letters", 124800, 20800),
    "emnist-digits": _emnist("digits", "handwritten digits", 240000, 40000),
    "cifar10": _Official("CIFAR10", "photographs", num_train=50000, num_validation=5000, image_shape=(32, 32, 3)),
}


def _load_digits() -> Source:
    # Imported here: scikit-learn takes a second, and only this data set needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    values, labels = torch.from_numpy(digits.data.astype(np.uint8)), torch.from_numpy(digits.target.astype(np.int64))
    part = Part(values, labels, low=0.0, high=16.0)
    return Source({"all": part}, (8, 8), maximum=16.0, num_validation=200, num_test=400)


def _load_official(name: str) -> Source:
    # Imported here: torchvision takes seconds, and only these data sets need it.
    from torchvision import datasets

    official = _OFFICIAL[name]
    dataset = getattr(datasets, official.class_name)
    folder = _data_folder()
    read: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    try:
        # torchvision verifies checksums of archives that are there, and unpacks them instead of downloading.
        # Older ones report on standard output, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4, of the CIFAR-10 files, which Python 2 wrote.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            for which, num_data in (("train", official.num_train), ("test", official.num_test)):
                part = dataset(folder, train=which == "train", download=True, **official.options)
                images, labels = torch.as_tensor(part.data), torch.as_tensor(part.targets).long()
                if images.shape != (num_data, *official.image_shape) or labels.shape != (num_data,):
                    raise ValueError(f"{which} images of shape {tuple(images.shape)}")
                read[which] = images, labels
    # Whatever torchvision raises (it has no error type of its own) becomes one line that names the folder.
    except Exception as error:
        raise _explain(official, dataset, folder, error) from error
    parts = {}
    for which, (images, labels) in read.items():
        upright = images.transpose(1, 2) if official.transposed else images
        parts[which] = Part(upright.flatten(1), labels, low=0.0, high=255.0)
    return Source(parts, official.image_shape, divisor=255.0, maximum=255.0, num_validation=official.num_validation)


def _explain(official: _Official, dataset: Any, folder: Path, error: Exception) -> Exception:
    """The error that says which files are missing or damaged, and what to do."""
    from torchvision.datasets.utils import check_md5

    name = official.class_name
    if name == "CIFAR10":
        place, content = folder, dataset.filename
        archives = {folder / dataset.filename: dataset.tgz_md5}
        unpacked = [folder / dataset.base_folder / file for file, _ in dataset.train_list + dataset.test_list]
    else:
        place, content = folder / name / "raw", f"{name}/raw"
        if name == "EMNIST":
            archives = {place / "gzip.zip": dataset.md5}
            prefixes = [f"emnist-{official.options['split']}-{which}" for which in ("train", "test")]
            unpacked = [
                place / f"{prefix}-{kind}" for prefix in prefixes for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
            ]
        else:
            archives = {place / file: md5 for file, md5 in dataset.resources}
            unpacked = [archive.with_suffix("") for archive in archives]
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    if all(file.exists() for file in unpacked):
        return ValueError(
            f"{name}: unpacked files in {unpacked[0].parent} are damaged ({reason}): delete them, they are unpacked or "
            "downloaded again"
        )
    damaged = [file.name for file, md5 in archives.items() if file.is_file() and not check_md5(file, md5)]
    found = f"; damaged there: {', '.join(damaged)}" if damaged else ""
    originals = "the original archive" if len(archives) == 1 else f"the {len(archives)} original archives"
    return FileNotFoundError(
        f"{name} could not be downloaded into {place} ({reason}){found}: try again with a network, or copy "
        f"{originals} ({', '.join(file.name for file in archives)}) into that folder, or set "
        f"PYRO_VAE_DATA to a folder that holds {content}"
    )


def _data_folder() -> Path:
    if chosen := os.environ.get("PYRO_VAE_DATA"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro-vae"


def _describe(official: _Official) -> str:
    num_data, size = official.num_train + official.num_test, " x ".join(map(str, official.image_shape))
    return f"{num_data} images of {size} values: {official.what}; downloaded once."


NAMED: dict[str, Named] = {
    "digits": Named("1797 images of 8 x 8 counts: handwritten digits; comes with scikit-learn.", _load_digits),
    **{name: Named(_describe(official), partial(_load_official, name)) for name, official in _OFFICIAL.items()},
}
