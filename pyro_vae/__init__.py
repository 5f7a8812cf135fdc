"""Variational autoencoders declared as Pyro programs, and their results."""

from pyro_vae.data import Dataset, Split, load
from pyro_vae.linear import LinearGaussian
from pyro_vae.networks import MLP, Linear
from pyro_vae.run import Run, open_run
from pyro_vae.vae import VAE

__version__ = "0.1.0"

__all__ = ["MLP", "VAE", "Dataset", "Linear", "LinearGaussian", "Run", "Split", "__version__", "load", "open_run"]
