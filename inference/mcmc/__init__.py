"""Markov chains in the posteriors of all datapoints at once."""

from inference.mcmc.sampling import sample_posterior

__all__ = ["sample_posterior"]
