"""Likelihoods: modules that map the decoder's output to a distribution over x.

The decoder ends in P x `num_params` outputs, in blocks: the first P outputs are the first parameter of every data
value. Any real output gives finite log densities of data in the support. Values that are NaN are refused, or, with
`mask=True`, marginalised.
"""

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.bernoulli import Bernoulli
from pyro_vae.likelihoods.binomial import Binomial
from pyro_vae.likelihoods.categorical import Categorical
from pyro_vae.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial, ZeroInflatedPoisson
from pyro_vae.likelihoods.discretized import DiscretizedGaussian, DiscretizedLogistic, DiscretizedLogisticMixture
from pyro_vae.likelihoods.gaussian import Gaussian, GaussianDecoderScale, GaussianOutputScale, GaussianSharedScale
from pyro_vae.likelihoods.heavy_tailed import Laplace, StudentT
from pyro_vae.likelihoods.low_rank import GaussianLowRank
from pyro_vae.likelihoods.mixture import MixtureOfGaussians
from pyro_vae.likelihoods.unit_interval import Beta, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedGaussian",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "GaussianDecoderScale",
    "GaussianLowRank",
    "GaussianOutputScale",
    "GaussianSharedScale",
    "Laplace",
    "Likelihood",
    "MixtureOfGaussians",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]
