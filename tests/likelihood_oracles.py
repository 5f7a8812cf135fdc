"""What each likelihood of the catalog means, as scipy has it, and how to integrate over one data value."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from scipy.special import expit, log_softmax, softmax

from pyro_vae import parts

NAMES = list(parts.catalog("likelihood"))
names = pytest.mark.parametrize("name", NAMES)
independent = pytest.mark.parametrize("name", [name for name in NAMES if name != "gaussian-low-rank"])
CONTEXT = {"num_values": 3, "max_value": 6.0, "num_levels": 7, "level_step": 0.5}
JOINT = "gaussian-low-rank"
COUNTS = ("poisson", "negative-binomial", "zero-inflated-poisson", "zero-inflated-negative-binomial")
LEVELS = ("categorical", "discretized-gaussian", "discretized-logistic", "discretized-logistic-mixture")
COUNTING = ("bernoulli", "binomial", *COUNTS, *LEVELS)
LATTICE = 0.5 * np.arange(7)


def make(name, *, num_values=3, **options):
    return parts.build(parts.options("likelihood", name, **options), {**CONTEXT, "num_values": num_values})


def outputs(likelihood, *left, num_values=3, size=1.0):
    return size * torch.randn(*left, num_values * likelihood.num_params)


def softplus(raw):
    return np.logaddexp(0, raw)


class Density:
    """A density or masses by their log, and a mean, where scipy has no frozen distribution."""

    def __init__(self, log_p, mean):
        self.logpdf = self.logpmf = log_p
        self._mean = mean

    def mean(self):
        return self._mean


def of_masses(masses):
    masses = np.asarray(masses)
    return Density(lambda x: math.log(masses[round(x / 0.5)]), masses @ LATTICE)


def binned(cdf):
    return of_masses(np.diff(np.concatenate([[0.0], cdf(LATTICE[:-1] + 0.25), [1.0]])))


def logistic_mixture(out):
    weight, loc, scale = (
        softmax(out[:5]),
        1.5 * (1 + out[5:10] + np.linspace(-0.8, 0.8, 5)),
        0.05 + 1.5 * softplus(out[10:]),
    )
    return binned(lambda edge: (weight * expit((edge[:, None] - loc) / scale)).sum(-1))


def continuous_bernoulli(out):
    mass, _ = scipy.integrate.quad(lambda x: math.exp(out[0] * x), 0, 1, epsabs=0, epsrel=1e-13)
    first, _ = scipy.integrate.quad(lambda x: x * math.exp(out[0] * x), 0, 1, epsabs=0, epsrel=1e-13)
    return Density(lambda x: out[0] * x - math.log(mass), first / mass)


def beta(out):
    mean, concentration = 0.001 + 0.998 * expit(out[0]), 0.1 + (0.01 + softplus(out[1])) ** -2
    return scipy.stats.beta(mean * concentration, (1 - mean) * concentration)


def poisson(out):
    return scipy.stats.poisson(np.exp(20 * np.tanh(out[0] / 20)))


def negative_binomial(out):
    mean, n = np.exp(20 * np.tanh(out[0] / 20)), np.exp(-12 * np.tanh(out[1] / 12))
    return scipy.stats.nbinom(n, n / (n + mean))


def inflated(counts, gate):
    def log_p(x):
        return math.log(expit(gate) * (x == 0) + expit(-gate) * counts.pmf(x))

    return Density(log_p, expit(-gate) * counts.mean())


def gaussian_mixture(out):
    log_weight, loc, scale = log_softmax(out[:3]), out[3:6], 0.01 + softplus(out[6:])
    return Density(
        lambda x: scipy.special.logsumexp(log_weight + scipy.stats.norm(loc, scale).logpdf(x)),
        np.exp(log_weight) @ loc,
    )


# What each decoder's outputs mean, as scipy names it: f(likelihood, outputs of one data value).
SCIPY = {
    "bernoulli": lambda _, out: scipy.stats.bernoulli(expit(out[0])),
    "beta": lambda _, out: beta(out),
    "binomial": lambda likelihood, out: scipy.stats.binom(likelihood.total_count, expit(out[0])),
    "categorical": lambda _, out: of_masses(softmax(out)),
    "continuous-bernoulli": lambda _, out: continuous_bernoulli(out),
    "discretized-gaussian": lambda _, out: binned(
        scipy.stats.norm(1.5 * (1 + out[0]), 0.05 + 1.5 * softplus(out[1])).cdf
    ),
    "discretized-logistic": lambda _, out: binned(
        scipy.stats.logistic(1.5 * (1 + out[0]), 0.05 + 1.5 * softplus(out[1])).cdf
    ),
    "discretized-logistic-mixture": lambda _, out: logistic_mixture(out),
    "gaussian": lambda likelihood, out: scipy.stats.norm(out[0], likelihood.scale),
    "gaussian-decoder-scale": lambda likelihood, out: scipy.stats.norm(out[0], likelihood.floor + softplus(out[1])),
    "gaussian-output-scale": lambda likelihood, out: scipy.stats.norm(out[0], likelihood.scale[0].item()),
    "gaussian-shared-scale": lambda likelihood, out: scipy.stats.norm(out[0], likelihood.scale.item()),
    "laplace": lambda likelihood, out: scipy.stats.laplace(out[0], likelihood.floor + softplus(out[1])),
    "mixture-of-gaussians": lambda _, out: gaussian_mixture(out),
    "negative-binomial": lambda _, out: negative_binomial(out),
    "poisson": lambda _, out: poisson(out),
    "student-t": lambda likelihood, out: scipy.stats.t(likelihood.df, out[0], likelihood.floor + softplus(out[1])),
    "zero-inflated-negative-binomial": lambda _, out: inflated(negative_binomial(out), out[2]),
    "zero-inflated-poisson": lambda _, out: inflated(poisson(out), out[1]),
}


def joint(out):
    """The low-rank Gaussian that one row of outputs (K, P) means."""
    loc, scale, factor = out[0], 0.01 + softplus(out[1]), out[2:].T
    factor = 1e4 * scale[:, None] * np.tanh(factor / (1e4 * scale[:, None]))
    return loc, factor @ factor.T + np.diag(scale**2)


def exact_log_prob(name, likelihood, out, x, observed=None):
    """Log density of one x (P,) by scipy, of the observed values alone."""
    blocks = out.detach().reshape(likelihood.num_params, -1).double().numpy()
    observed = np.ones(len(x), bool) if observed is None else observed.numpy()
    values = x.double().numpy()
    if not observed.any():
        return 0.0
    if name == JOINT:
        loc, covariance = joint(blocks)
        normal = scipy.stats.multivariate_normal(loc[observed], covariance[np.ix_(observed, observed)])
        return normal.logpdf(values[observed])
    log_p = "logpmf" if likelihood.base_measure == "counting" else "logpdf"
    return sum(getattr(SCIPY[name](likelihood, blocks[:, i]), log_p)(values[i]) for i in range(len(x)) if observed[i])


def lattice(name):
    """Points and weights that integrate over one data value."""
    if name in COUNTING:
        x = LATTICE if name in LEVELS else np.arange({"bernoulli": 2, "binomial": 7}.get(name, 20_000))
        return torch.tensor(x, dtype=torch.float64), torch.ones(len(x))
    if name in ("beta", "continuous-bernoulli"):
        # The substitution x = sigmoid(t): densities may be unbounded at the ends.
        t = torch.linspace(-34, 34, 100_001)
        x, slope = torch.sigmoid(t), torch.sigmoid(t) * torch.sigmoid(-t)
    else:
        # Heavy tails need far points, narrow peaks near ones.
        t = torch.linspace(-25, 25, 400_001)
        x, slope = torch.sinh(t), torch.cosh(t)
    return x, slope * (t[1] - t[0])
