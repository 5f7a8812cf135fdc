"""Inference for Pyro models whose latent variables live in one data plate.

It fits them with an encoder and with parameters of their own for every datapoint, and measures the difference.
"""

from inference.callbacks import Checkpoints, EarlyStopping, MetricsFile, TensorBoard
from inference.densities import log_joint, log_weights
from inference.diagnostics import elbo_surgery, sbc
from inference.draws import save_datatree, to_datatree, to_elpd
from inference.em import fit_em
from inference.estep import refine
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
from inference.gaps import by_one_estimator, measure_gaps
from inference.generalization import generalization, simulated_gaps
from inference.given import conditioned
from inference.globals import draw_globals
from inference.guides import Amortized, Local
from inference.hmc import HMC
from inference.mcmc import fit_mcem, sample_posterior
from inference.objectives import (
    IWAE,
    AnalyticKL,
    DReG,
    Loss,
    Objective,
    PathwiseELBO,
    Renyi,
    ScoreFunctionELBO,
    StickingTheLanding,
    WakeSleep,
)
from inference.results import (
    Bidirectional,
    Calibration,
    Evidence,
    Fit,
    Gaps,
    Generalization,
    Note,
    PosteriorDraws,
    Refined,
    SimulatedGaps,
    Surgery,
)
from inference.resuming import Resume, Stopped
from inference.search import Search
from inference.simulation import simulate
from inference.svi import fit_svi
from inference.tracking import GapTracker, TermTracker, Tracked
from inference.training import SGD, Adam, Constant, Cosine, RobbinsMonro, Staircase, Training
from inference.weights import ess, pareto_k

__all__ = [
    "HMC",
    "IWAE",
    "SGD",
    "Adam",
    "Amortized",
    "AnalyticKL",
    "Annealing",
    "AutoregressiveFlow",
    "Bidirectional",
    "Calibration",
    "Checkpoints",
    "Constant",
    "Constrained",
    "Cosine",
    "CouplingFlow",
    "DReG",
    "Defensive",
    "EarlyStopping",
    "Evidence",
    "Family",
    "Fit",
    "FullCovariance",
    "GapTracker",
    "Gaps",
    "Generalization",
    "GeometricSchedule",
    "HouseholderFlow",
    "LinearSchedule",
    "Local",
    "Loss",
    "LowRank",
    "MeanField",
    "MetricsFile",
    "MixtureOfGaussians",
    "Note",
    "Objective",
    "PathwiseELBO",
    "PlanarFlow",
    "PosteriorDraws",
    "Refined",
    "Renyi",
    "RobbinsMonro",
    "ScoreFunctionELBO",
    "Resume",
    "Search",
    "Stopped",
    "SigmoidalSchedule",
    "SimulatedGaps",
    "Staircase",
    "StickingTheLanding",
    "Surgery",
    "SylvesterFlow",
    "TensorBoard",
    "TermTracker",
    "Tracked",
    "Training",
    "WakeSleep",
    "ais",
    "bdmc",
    "by_one_estimator",
    "conditioned",
    "draw_globals",
    "elbo",
    "elbo_surgery",
    "ess",
    "fit_em",
    "fit_mcem",
    "fit_svi",
    "generalization",
    "iwae",
    "log_joint",
    "log_weights",
    "measure_gaps",
    "pareto_k",
    "quadrature",
    "refine",
    "sample_posterior",
    "save_datatree",
    "sbc",
    "simulate",
    "simulated_gaps",
    "to_datatree",
    "to_elpd",
]
