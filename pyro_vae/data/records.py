"""What the data come as: splits that are read by index, and the data set that holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_vae.data.standardization import Standardization
from pyro_vae.data.streams import DrawnRows, Rows, take

__all__ = ["SPLITS", "Binarize", "Dataset", "Split", "check_seed"]

Binarize = Literal["none", "fixed", "dynamic"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One part of a data set: `len(split)` rows, read by `split[index]`.

    Rows are kept as they are stored (gray levels stay 8-bit) and converted when read, so reading a minibatch is one
    gather and one conversion. Rows of a file that is larger than memory stay there until they are read.

    Args:
        name: "train", "validation" or "test".
        stored: values as stored, shape (N, P): a tensor, or rows of an array that stays on disk or sparse.
        labels: class labels, shape (N,), or None.
        rows: the row number of each datapoint in the array it comes from, shape (N,).
        divisor: `stored / divisor` is x, or, where `resamples`, the probability that x is 1.
        resamples: whether each access draws a new binary x (dynamic binarization).
        seed: seed of the data set's own binarization.
        dtype: floating-point type of x.
        standardization: the map from the data's own units to x, or None where x is in those units.

    Example:
        >>> from pyro_vae import load
        >>> test = load("digits").test
        >>> test[torch.tensor([0, 5, 2])].shape
        torch.Size([3, 64])
    """

    name: str
    stored: Rows
    labels: Int[Tensor, " N"] | None
    rows: Int[Tensor, " N"]
    divisor: float
    resamples: bool
    seed: int
    dtype: torch.dtype
    standardization: Standardization | None = None

    def __len__(self) -> int:
        return self.stored.shape[0]

    def __getitem__(self, index: Int[Tensor, " B"] | slice) -> Float[Tensor, "B P"]:
        if self.standardization is not None:
            # In double precision before it is narrowed: digits behind a large offset would be lost.
            return self.standardization.apply(self.stored[index].double() / self.divisor, dtype=self.dtype)
        x = self.stored[index].to(self.dtype)
        if self.divisor != 1.0:
            x = x / self.divisor
        return torch.bernoulli(x) if self.resamples else x

    def __repr__(self) -> str:
        num_data, num_values = self.stored.shape
        return f"Split({self.name!r}, {num_data} x {num_values}{', resamples' if self.resamples else ''})"

    def tensor(self) -> Float[Tensor, "N P"]:
        """Return all rows at once, shape (N, P). They must fit into memory, also those of a file that is streamed.

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
            >>> from pyro_vae import load
            >>> dynamic = load("digits", binarize="dynamic").test
            >>> bool((dynamic.fix().tensor() == load("digits", binarize="fixed").test.tensor()).all())
            True
        """
        seed = check_seed("seed", self.seed if seed is None else seed)
        if not self.resamples:
            return self
        # NumPy's generator: its stream of uniforms is the same on every platform and for every block size.
        stream = [seed, SPLITS.index(self.name)]
        stored: Rows
        if not isinstance(self.stored, Tensor | DrawnRows):
            stored = DrawnRows(self.stored, self.divisor, stream)
        else:
            generator = np.random.default_rng(stream)
            stored = torch.empty(self.stored.shape, dtype=torch.uint8)
            for block, drawn in zip(self.stored[:].split(1024), stored.split(1024), strict=True):
                drawn.copy_(torch.from_numpy(generator.random(block.shape)) < block.double() / self.divisor)
        return replace(self, stored=stored, divisor=1.0, resamples=False, seed=seed)

    def head(self, n: int) -> Split:
        """Return the first `n` rows as a split (all of them where there are fewer).

        Raises:
            ValueError: if `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"head(n) of split {self.name!r}: expected n at least 1, got {n}")
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, stored=take(self.stored, slice(n)), labels=labels, rows=self.rows[:n])


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
            the same split. Labels do not enter, nor do names of columns.
        min_value: smallest value of x in all splits, of those observed; standardized where x is.
        max_value: largest value of x in all splits, of those observed; standardized where x is.
        num_levels: L, where x lies on the grid 0, step, ..., (L - 1) step by the type it is stored in: 256 for 8-bit
            gray levels, whatever the largest; 2 for binary data; the largest value of all splits plus 1 for other
            integers of at least 0. None for real numbers.
        level_step: that step: 1/255 for 8-bit gray levels, else 1; None where there are no levels.
        columns: name of each value in a datapoint, where the file names them.
        has_missing: whether some values are NaN, which means that they were not observed.
        divisor: `value / divisor` is x, or, where x is binarized, the probability that it is 1; 255 for gray levels.
        is_real: whether the values are stored as real numbers, and not as integers or booleans.
        standardization: the map from the data's own units to x, by the mean and the standard deviation of the training
            split; `standardization.apply(rows)` treats new rows alike, `.invert(x)` leads back. None where x is in the
            data's own units. The fingerprint is that of the data in their own units either way.
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
    min_value: float
    max_value: float
    num_levels: int | None = None
    level_step: float | None = None
    columns: tuple[str, ...] | None = None
    has_missing: bool = False
    divisor: float = 1.0
    is_real: bool = True
    standardization: Standardization | None = None

    @property
    def num_values(self) -> int:
        """Number of data values in one datapoint, P."""
        return self.train.stored.shape[1]

    @property
    def is_gray(self) -> bool:
        """Whether x are 8-bit integers that were divided by 255, which is for gray levels and not for counts."""
        return self.binarize == "none" and self.divisor == 255

    def __repr__(self) -> str:
        kind = "rows" if self.image_shape is None else f"{' x '.join(map(str, self.image_shape))} images"
        low, high = self.min_value, self.max_value
        seed = "" if self.binarize == "none" else f" (seed {self.binarize_seed})"
        lines = [f"Dataset {self.name}: {kind} of {self.num_values} values in {low:g} .. {high:g}"]
        if self.is_gray:
            ends = "" if self.standardization is not None else f" {low * self.divisor:.0f} .. {high * self.divisor:.0f}"
            lines[0] += f" (8-bit integers{ends}, divided by {self.divisor:g})"
        if self.standardization is not None:
            lines[0] += ", standardized"
        if self.has_missing:
            lines[0] += ", some missing"
        lines += [f"  {'binarize':<11} {self.binarize}{seed}"]
        for split in (self.train, self.validation, self.test):
            labels = "no labels" if split.labels is None else f"{len(split.labels.unique())} classes"
            lines.append(f"  {split.name:<11} {len(split):>7} rows, {labels}")
        lines.append(f"  {'fingerprint':<11} {self.fingerprint[:16]}…")
        return "\n".join(lines)


def check_seed(argument: str, seed: int) -> int:
    """The seed as an `int`.

    Raises:
        ValueError: it is not an integer of at least 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"{argument}={seed!r}: expected an integer of at least 0")
    return int(seed)
