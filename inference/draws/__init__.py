"""Posterior, prior and predictive draws, gaps and held-out log p(x), in the schema of ArviZ."""

from inference.draws.elpd import to_elpd
from inference.draws.files import load_datatree, save_datatree
from inference.draws.gaps import gaps_dataset, gaps_from_datatree
from inference.draws.tree import to_datatree

__all__ = ["gaps_dataset", "gaps_from_datatree", "load_datatree", "save_datatree", "to_datatree", "to_elpd"]
