"""Markov chains in the posteriors of all datapoints at once."""

from inference.mcmc.mcem import fit_mcem
from inference.mcmc.sampling import sample_posterior

__all__ = ["fit_mcem", "sample_posterior"]
