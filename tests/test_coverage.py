"""Error bars mean what they say: over 1000 repetitions a 95 % interval holds the truth in 92.5 to 97.5 % of them."""

import math

import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle

from inference import HMC, Annealing, FullCovariance, Local, MeanField, Search, ais, elbo, iwae, measure_gaps
from pyro_vae.linear import LinearGaussian

REPETITIONS = 1000
WIDEN = 1.3


@pytest.fixture(scope="module")
def case():
    """A model with as many datapoints as repetitions."""
    torch.set_default_dtype(torch.float64)
    oracle = LinearOracle.random(num_values=6, num_latents=3)
    model = LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model
    return oracle, model, torch.tensor(oracle.draw(REPETITIONS))


def widened(oracle, x, factor=WIDEN):
    """The posterior of every x with its scales multiplied by a factor."""
    covariance = torch.tensor(factor**2 * oracle.covariance).expand(len(x), -1, -1)
    family = FullCovariance(3)
    q = dist.MultivariateNormal(torch.tensor(oracle.posterior_mean(x)), covariance)
    return Local(family, family.params_from(q))


def coverage(evidence, truth):
    return ((evidence.value - truth).abs() < 1.96 * evidence.se).double().mean().item()


def test_of_the_elbo(case):
    oracle, model, x = case
    guide = widened(oracle, x)
    truth = torch.tensor(oracle.log_evidence(x) - 0.5 * 3 * (WIDEN**2 - 1 - 2 * math.log(WIDEN)))
    evidence = elbo(model, guide, x, num_draws=1000, seed=0)
    assert 0.925 <= coverage(evidence, truth) <= 0.975


def test_of_importance_sampling(case):
    oracle, model, x = case
    guide = widened(oracle, x)
    truth = torch.tensor(oracle.log_evidence(x))
    evidence = iwae(model, guide, x, num_draws=1000, proposal=None, seed=0)
    # What the theory asks for: a variance, and a bias that does not count.
    assert (evidence.pareto_k < 0.5).all() and (evidence.bias.abs() < 0.1 * evidence.se).all()
    assert 0.925 <= coverage(evidence, truth) <= 0.975


def test_of_annealed_importance_sampling(case):
    oracle, model, x = case
    guide = widened(oracle, x)
    path = Annealing(num_temperatures=4, num_chains=128, num_pilot_chains=4, hmc=HMC(num_leapfrog=1))
    evidence = ais(model, x, start=guide, annealing=path, seed=0)
    assert (evidence.pareto_k.nan_to_num(0) < 0.5).double().mean() > 0.99
    assert (evidence.bias.abs() < 0.1 * evidence.se).all()
    assert 0.925 <= coverage(evidence, torch.tensor(oracle.log_evidence(x))) <= 0.975


def test_the_bias_is_the_one_that_is_estimated(case):
    """Few draws: a bias that can be seen, in the mean over repetitions."""
    oracle, model, x = case
    x = x.repeat(8, 1)
    evidence = iwae(model, widened(oracle, x, 2.0), x, num_draws=50, proposal=None, seed=0)
    error = evidence.value - torch.tensor(oracle.log_evidence(x))
    se = error.std() / math.sqrt(len(x))
    assert error.mean() < -4 * se
    assert abs(error.mean() - evidence.bias.mean()) < 4 * se


def test_a_heavy_tail_raises_the_flag():
    """A q of a quarter of the posterior's variance v in two dimensions: log w = (1 - v) chi^2 / 2, exactly Pareto.

    chi^2 / 2 is exponential, so that P(w > t) = t^(-1 / k) with k = 1 - v.
    """
    variance = 0.25
    exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
    x = torch.randn(64, 2)
    loc, wide = exact.posterior(x).mean.detach(), exact.posterior(x).variance.detach()
    family = MeanField(2)
    guide = Local(family, family.params_from(dist.Normal(loc, (variance * wide).sqrt()).to_event(1)))
    evidence = iwae(exact.model, guide, x, num_draws=20_000, proposal=None, seed=0)
    assert evidence.pareto_k.mean().item() == pytest.approx(1 - variance, abs=0.05)
    assert (evidence.pareto_k > 0.5).all() and (evidence.pareto_k > 0.7).double().mean() > 0.5
    # The table of gaps says so, where that is all there is.
    gaps = measure_gaps(
        exact.model,
        guide,
        x,
        log_evidence=evidence,
        search=Search(first_round=4, max_rounds=1),
        num_draws=10,
        seed=0,
    )
    assert f"Pareto k > 0.7 at {int((evidence.pareto_k > 0.7).sum())} of 64" in str(gaps)
