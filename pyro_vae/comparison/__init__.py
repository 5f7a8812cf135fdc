"""Classical baselines and autoencoders on one data set: reconstruction error and held-out log p(x), side by side."""

from pyro_vae.comparison.fitting import TRAINING, compare
from pyro_vae.comparison.records import Compared, Comparison, Scored, paired_difference

__all__ = ["TRAINING", "Compared", "Comparison", "Scored", "compare", "paired_difference"]
