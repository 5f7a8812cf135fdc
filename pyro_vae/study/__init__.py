"""Studies: a grid of fits, run side by side, and what tells their cells apart."""

from pyro_vae.study.differences import Difference, Refusal
from pyro_vae.study.grid import AXES, Cell, Study
from pyro_vae.study.reading import read_study
from pyro_vae.study.results import CELLS, STUDY, ScoredCell, StudyResults
from pyro_vae.study.running import run_study

__all__ = [
    "AXES",
    "CELLS",
    "STUDY",
    "Cell",
    "Difference",
    "Refusal",
    "ScoredCell",
    "Study",
    "StudyResults",
    "read_study",
    "run_study",
]
