"""Variational autoencoders declared as Pyro programs, and their results."""

from pyro_vae.autoencoder import PCA, Autoencoder
from pyro_vae.bayes import BayesianVAE
from pyro_vae.comparison import compare, paired_difference
from pyro_vae.data import Dataset, Split, load
from pyro_vae.linear import LinearGaussian
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder, Linear
from pyro_vae.run import Run, open_run
from pyro_vae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "PCA",
    "VAE",
    "Autoencoder",
    "BayesianVAE",
    "ConvDecoder",
    "ConvEncoder",
    "Dataset",
    "Linear",
    "LinearGaussian",
    "Run",
    "Split",
    "__version__",
    "compare",
    "load",
    "open_run",
    "paired_difference",
]
