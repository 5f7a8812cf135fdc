"""Inference for Pyro models whose latent variables live in one data plate.

It fits them with an encoder and with parameters of their own for every datapoint, and measures the difference.
"""

from inference.densities import log_joint, log_weights
from inference.draws import save_datatree, to_datatree
from inference.em import fit_em
from inference.estep import Search, refine
from inference.evidence import (
    Annealing,
    Defensive,
    GeometricSchedule,
    LinearSchedule,
    SigmoidalSchedule,
    ais,
    bdmc,
    elbo,
    iwae,
    quadrature,
)
from inference.families import (
    AutoregressiveFlow,
    Constrained,
    CouplingFlow,
    Family,
    FullCovariance,
    HouseholderFlow,
    LowRank,
    MeanField,
    MixtureOfGaussians,
    PlanarFlow,
    SylvesterFlow,
)
from inference.gaps import measure_gaps
from inference.given import conditioned
from inference.globals import draw_globals
from inference.guides import Amortized, Local
from inference.hmc import HMC
from inference.objectives import Objective
from inference.results import Bidirectional, Evidence, Fit, Gaps, Refined
from inference.simulation import simulate
from inference.svi import fit_svi
from inference.training import SGD, Adam, Constant, Cosine, RobbinsMonro, Training
from inference.weights import ess, pareto_k

__all__ = [
    "Bidirectional",
    "HMC",
    "bdmc",
    "ais",
    "SigmoidalSchedule",
    "LinearSchedule",
    "GeometricSchedule",
    "Annealing",
    "SGD",
    "Adam",
    "Amortized",
    "AutoregressiveFlow",
    "Constant",
    "Constrained",
    "Cosine",
    "CouplingFlow",
    "Defensive",
    "Evidence",
    "Family",
    "Fit",
    "FullCovariance",
    "Gaps",
    "HouseholderFlow",
    "Local",
    "LowRank",
    "MeanField",
    "MixtureOfGaussians",
    "Objective",
    "PlanarFlow",
    "Refined",
    "RobbinsMonro",
    "Search",
    "SylvesterFlow",
    "Training",
    "conditioned",
    "draw_globals",
    "elbo",
    "ess",
    "fit_em",
    "fit_svi",
    "iwae",
    "log_joint",
    "log_weights",
    "measure_gaps",
    "pareto_k",
    "quadrature",
    "refine",
    "save_datatree",
    "simulate",
    "to_datatree",
]
