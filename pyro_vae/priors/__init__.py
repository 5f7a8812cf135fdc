"""Priors over the latent vector: modules without inputs that return one distribution.

A prior is anything that `as_prior` accepts: a class of this folder, a distribution, or a module or function of the
user's.
"""

from pyro_vae.priors.base import Prior
from pyro_vae.priors.fixed import as_prior
from pyro_vae.priors.flow import FlowPrior
from pyro_vae.priors.gaussian_mixture import GaussianMixture
from pyro_vae.priors.horseshoe import Horseshoe
from pyro_vae.priors.normal import DiagonalNormal, StandardNormal
from pyro_vae.priors.scale_mixture import ScaleMixture
from pyro_vae.priors.tails import Laplace, Logistic, StudentT
from pyro_vae.priors.top_down import TopDown
from pyro_vae.priors.uniform import Uniform
from pyro_vae.priors.vamp import VampPrior

__all__ = [
    "DiagonalNormal",
    "FlowPrior",
    "GaussianMixture",
    "Horseshoe",
    "Laplace",
    "Logistic",
    "Prior",
    "ScaleMixture",
    "StandardNormal",
    "StudentT",
    "TopDown",
    "Uniform",
    "VampPrior",
    "as_prior",
]
