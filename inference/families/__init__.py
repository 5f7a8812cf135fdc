"""Variational families: one object that maps unconstrained parameters to a distribution.

A family never learns where its parameters came from: an encoder, a table with one row a datapoint, or a user's code.
One concept a file: what a family is (`family`), the numbers that no real row can break (`raw`), draws from noise
(`noise`), moments (`moments`), marginals (`marginals`), divergences (`kl`), and one file a family.
"""

from inference.families import kl as _kl  # noqa: F401 (registers divergences)
from inference.families.autoregressive import AutoregressiveFlow
from inference.families.constrained import Constrained, on_support
from inference.families.coupling import CouplingFlow
from inference.families.family import Family
from inference.families.full_covariance import FullCovariance
from inference.families.householder import HouseholderFlow
from inference.families.low_rank import LowRank
from inference.families.marginals import marginals, mixture_marginals
from inference.families.mean_field import MeanField
from inference.families.mixture import MixtureOfGaussians
from inference.families.moments import loc_and_tril
from inference.families.noise import from_noise, noise_size
from inference.families.planar import PlanarFlow
from inference.families.raw import LOG_SCALE
from inference.families.reading import family_of
from inference.families.sylvester import SylvesterFlow

__all__ = [
    "LOG_SCALE",
    "AutoregressiveFlow",
    "Constrained",
    "CouplingFlow",
    "Family",
    "FullCovariance",
    "HouseholderFlow",
    "LowRank",
    "MeanField",
    "MixtureOfGaussians",
    "PlanarFlow",
    "SylvesterFlow",
    "family_of",
    "from_noise",
    "loc_and_tril",
    "marginals",
    "mixture_marginals",
    "noise_size",
    "on_support",
]
