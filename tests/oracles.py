"""Models whose every term is known: closed forms and quadrature in NumPy, which share no code with the library."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats


@dataclass(frozen=True)
class LinearOracle:
    """z ~ N(0, I), x | z ~ N(W z + b, s^2 I)."""

    weight: np.ndarray
    bias: np.ndarray
    scale: float

    @classmethod
    def random(cls, num_values=20, num_latents=5, *, scale=0.7, seed=0):
        rng = np.random.default_rng(seed)
        return cls(rng.standard_normal((num_values, num_latents)), rng.standard_normal(num_values), scale)

    def draw(self, num_draws=64, *, seed=1):
        rng = np.random.default_rng(seed)
        num_values, num_latents = self.weight.shape
        z = rng.standard_normal((num_draws, num_latents))
        return z @ self.weight.T + self.bias + self.scale * rng.standard_normal((num_draws, num_values))

    @cached_property
    def precision(self):
        return np.eye(self.weight.shape[1]) + self.weight.T @ self.weight / self.scale**2

    @cached_property
    def covariance(self):
        return np.linalg.inv(self.precision)

    @property
    def encoder_weight(self):
        """The posterior mean is this times x - b."""
        return self.covariance @ self.weight.T / self.scale**2

    def posterior_mean(self, x):
        return (np.asarray(x) - self.bias) @ self.encoder_weight.T

    def log_evidence(self, x):
        cov = self.weight @ self.weight.T + self.scale**2 * np.eye(len(self.weight))
        return scipy.stats.multivariate_normal(self.bias, cov).logpdf(np.asarray(x))

    def inference_gap(self, x, loc, covariance):
        """KL(q || posterior) for q = N(loc, covariance), one a datapoint."""
        covariance = np.broadcast_to(covariance, (len(x), *self.precision.shape))
        error = np.asarray(loc) - self.posterior_mean(x)
        trace = np.einsum("ij,nji->n", self.precision, covariance)
        log_det = np.linalg.slogdet(self.precision)[1] + np.linalg.slogdet(covariance)[1]
        return 0.5 * (trace - len(self.precision) - log_det + np.einsum("ni,ij,nj->n", error, self.precision, error))

    @property
    def approximation_gap(self):
        """Of the best mean-field member: posterior mean, variances 1 / diagonal of the precision."""
        return 0.5 * (np.log(np.diag(self.precision)).sum() - np.linalg.slogdet(self.precision)[1])

    def amortization_gap(self, variances):
        """Of a mean-field encoder at the posterior mean with these variances."""
        ratio = np.diag(self.precision) * variances
        return 0.5 * (ratio - 1 - np.log(ratio)).sum()

    @property
    def tail_index(self):
        """Of the importance weights under the best mean-field member."""
        root = np.sqrt(np.diag(self.precision))
        return 1 - np.linalg.eigvalsh(self.precision / np.outer(root, root))[0]

    @staticmethod
    def best_log_evidence(x, num_latents):
        """Mean log p(x) at the maximum of the likelihood (Tipping & Bishop 1999)."""
        x = np.asarray(x)
        num_values = x.shape[1]
        values = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
        noise = values[num_latents:].mean()
        log_det = np.log(values[:num_latents]).sum() + (num_values - num_latents) * np.log(noise)
        return -0.5 * (num_values * np.log(2 * np.pi) + log_det + num_values)


@dataclass(frozen=True)
class PoissonOracle:
    """z ~ N(0, 1), x_p | z ~ Poisson(exp(a_p + b_p z))."""

    intercept: np.ndarray
    slope: np.ndarray

    @classmethod
    def random(cls, num_values=6, *, seed=0):
        rng = np.random.default_rng(seed)
        return cls(rng.uniform(-0.5, 1.0, num_values), rng.uniform(-1.0, 1.0, num_values))

    def draw(self, num_draws, *, seed=1):
        rng = np.random.default_rng(seed)
        z = rng.standard_normal((num_draws, 1))
        return rng.poisson(np.exp(self.intercept + self.slope * z)).astype(float)

    def log_joint(self, x, z):
        """(N, G) for x (N, P) on a grid z (G,)."""
        log_rate = self.intercept + np.multiply.outer(z, self.slope)
        log_likelihood = x @ log_rate.T - np.exp(log_rate).sum(-1) - scipy.special.gammaln(x + 1).sum(-1, keepdims=True)
        return log_likelihood - 0.5 * (z**2 + np.log(2 * np.pi))

    def log_evidence(self, x):
        """By the trapezoid rule, the grid halved until stable; the integrand is smooth and dies out inside."""
        previous = np.inf
        for points in (1001, 2001, 4001, 8001):
            z = np.linspace(-12, 12, points)
            value = scipy.special.logsumexp(self.log_joint(x, z), axis=1) + np.log(z[1] - z[0])
            if np.abs(value - previous).max() < 1e-10:
                return value
            previous = value
        raise AssertionError("the quadrature did not settle")

    def elbo(self, x, loc, scale):
        """E_q log p(x, z) - E_q log q for q = N(loc, scale^2), in closed form: the mean of exp(b z) is known."""
        loc, scale = np.asarray(loc)[:, None], np.asarray(scale)[:, None]
        log_rate = self.intercept + self.slope * loc
        mean_rate = np.exp(log_rate + 0.5 * self.slope**2 * scale**2)
        log_likelihood = (x * log_rate - mean_rate - scipy.special.gammaln(x + 1)).sum(-1)
        kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * np.log(scale))[:, 0]
        return log_likelihood - kl

    def best(self, x):
        """The best normal q of each datapoint: loc (N,), scale (N,)."""

        def loss(row, x):
            return -self.elbo(x[None], row[:1], np.exp(row[1:]))[0]

        rows = np.stack([scipy.optimize.minimize(loss, np.zeros(2), (row,), tol=1e-12).x for row in x])
        return rows[:, 0], np.exp(rows[:, 1])
