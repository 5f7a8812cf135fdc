"""Data in: named data sets, files and torch data sets, split once, binarized only by choice."""

from __future__ import annotations

from pyro_vae.data.loading import describe, dtype_of, load, located, say_scales, silent
from pyro_vae.data.named import NAMED
from pyro_vae.data.preprocessing import NewRows, Preprocessing
from pyro_vae.data.records import Binarize, Dataset, Split
from pyro_vae.data.standardization import Standardization

__all__ = [
    "NAMED",
    "Binarize",
    "Dataset",
    "NewRows",
    "Preprocessing",
    "Split",
    "Standardization",
    "describe",
    "dtype_of",
    "load",
    "located",
    "say_scales",
    "silent",
]
