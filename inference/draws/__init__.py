"""Posterior, prior and predictive draws, and gaps, in the schema of ArviZ."""

from inference.draws.gaps import gaps_dataset, gaps_from_datatree
from inference.draws.tree import save_datatree, to_datatree

__all__ = ["gaps_dataset", "gaps_from_datatree", "save_datatree", "to_datatree"]
