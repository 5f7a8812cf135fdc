"""The exactly solvable case: probabilistic principal component analysis and factor analysis."""

from pyro_vae.linear.model import LinearGaussian
from pyro_vae.linear.reading import as_linear_gaussian

__all__ = ["LinearGaussian", "as_linear_gaussian"]
