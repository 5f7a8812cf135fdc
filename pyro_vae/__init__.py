"""Variational autoencoders as Pyro programs, measured honestly."""

__version__ = "0.1.0"
