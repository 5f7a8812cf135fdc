"""log p(x) for each datapoint: lower bounds with standard errors, and quadrature where the latent space is small.

One method a file: the bound of a guide (`bound`), importance sampling (`importance`), annealed importance sampling
(`annealing`, along a `path`, on one of the `schedules`) and how far it can be off (`bidirectional`), and `integration`.
"""

from inference.evidence.annealing import ais
from inference.evidence.bidirectional import bdmc
from inference.evidence.bound import elbo
from inference.evidence.importance import Defensive, iwae, proposal_draws, proposal_family, proposal_rows
from inference.evidence.integration import quadrature
from inference.evidence.path import Annealing
from inference.evidence.schedules import GeometricSchedule, LinearSchedule, SigmoidalSchedule

__all__ = [
    "Annealing",
    "Defensive",
    "GeometricSchedule",
    "LinearSchedule",
    "SigmoidalSchedule",
    "ais",
    "bdmc",
    "elbo",
    "iwae",
    "proposal_draws",
    "proposal_family",
    "proposal_rows",
    "quadrature",
]
