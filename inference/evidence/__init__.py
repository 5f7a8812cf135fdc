"""log p(x) for each datapoint: lower bounds with standard errors, and quadrature where the latent space is small.

One method a file: the bound of a guide (`bound`), importance sampling (`importance`), and `integration`.
"""

from inference.evidence.bound import elbo
from inference.evidence.importance import Defensive, iwae, proposal_rows
from inference.evidence.integration import quadrature

__all__ = ["Defensive", "elbo", "iwae", "proposal_rows", "quadrature"]
