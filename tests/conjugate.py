"""A model with a global site in which everything is known, in NumPy: it shares no code with the library."""

from dataclasses import dataclass

import numpy as np
import scipy.stats


@dataclass(frozen=True)
class ConjugateOracle:
    """w ~ N(0, t^2) once; z_n ~ N(0, 1) and x_n | z_n, w ~ N(w + z_n, s^2) for each datapoint."""

    x: np.ndarray  # (N,)
    scale: float = 0.5
    prior_scale: float = 2.0

    @classmethod
    def random(cls, num_data=40, *, w=1.3, scale=0.5, prior_scale=2.0, seed=0):
        rng = np.random.default_rng(seed)
        x = w + rng.standard_normal(num_data) + scale * rng.standard_normal(num_data)
        return cls(x, scale, prior_scale)

    @property
    def posterior(self):
        """Of w: mean and scale. Given w the datapoints are independent, N(w, 1 + s^2) each."""
        variance = 1 / (1 / self.prior_scale**2 + len(self.x) / (1 + self.scale**2))
        return variance * self.x.sum() / (1 + self.scale**2), np.sqrt(variance)

    @property
    def log_evidence(self):
        """log p(x_1, ..., x_N)."""
        size = len(self.x)
        covariance = (1 + self.scale**2) * np.eye(size) + self.prior_scale**2 * np.ones((size, size))
        return scipy.stats.multivariate_normal(np.zeros(size), covariance).logpdf(self.x)

    def log_evidence_given(self, w):
        """log p(x_n | w), one a datapoint."""
        return scipy.stats.norm(w, np.sqrt(1 + self.scale**2)).logpdf(self.x)

    def posterior_of_z(self, w):
        """Of z_n given x_n and w: means and the scale."""
        return (self.x - w) / (1 + self.scale**2), np.sqrt(self.scale**2 / (1 + self.scale**2))

    @property
    def precision(self):
        """Of the joint posterior of (w, z_1, ..., z_N)."""
        size = len(self.x)
        precision = (1 + 1 / self.scale**2) * np.eye(size + 1)
        precision[0, 0] = 1 / self.prior_scale**2 + size / self.scale**2
        precision[0, 1:] = precision[1:, 0] = 1 / self.scale**2
        return precision

    @property
    def mean_field(self):
        """The best q(w) q(z_1) ... q(z_N): w's mean and scale. Of a normal target: means, conditional scales."""
        return self.posterior[0], self.precision[0, 0] ** -0.5

    @property
    def best_mean_field_elbo(self):
        precision = self.precision
        gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
        return self.log_evidence - gap

    def local_elbo(self, w, loc, scale):
        """E_q[log p(x_n, z_n | w) - log q(z_n)] for q(z_n) = N(loc_n, scale^2), one a datapoint."""
        noise = self.scale**2
        likelihood = -0.5 * (np.log(2 * np.pi * noise) + ((self.x - w - loc) ** 2 + scale**2) / noise)
        return likelihood - 0.5 * (loc**2 + scale**2 - 1) + np.log(scale)
