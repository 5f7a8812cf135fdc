"""Models and guides that a user wrote by hand, through every engine, unchanged."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import PoissonOracle

from inference import (
    Adam,
    Cosine,
    FullCovariance,
    MeanField,
    Training,
    fit_em,
    fit_svi,
    measure_gaps,
    quadrature,
    refine,
)


@pytest.fixture
def oracle():
    return PoissonOracle.random()


class PoissonFactor:
    """Neither a module nor made of this package's parts: bare parameters, sites named by hand."""

    def __init__(self, oracle):
        self.intercept, self.slope = torch.tensor(oracle.intercept), torch.tensor(oracle.slope)

    def model(self, counts):
        intercept = pyro.param("intercept", self.intercept.clone())
        slope = pyro.param("slope", self.slope.clone())
        with pyro.plate("neurons", len(counts), dim=-1):
            factor = pyro.sample("factor", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("counts", dist.Poisson((intercept + slope * factor).exp()).to_event(1), obs=counts)

    def guide(self, counts):
        weight = pyro.param("weight", torch.linspace(-0.3, 0.4, counts.shape[1]))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("neurons", len(counts), dim=-1):
            loc = (torch.log1p(counts) @ weight).unsqueeze(-1)
            pyro.sample("factor", dist.Normal(loc, scale).to_event(1))


def test_poisson_quadrature(oracle):
    x = oracle.draw(64)
    evidence = quadrature(PoissonFactor(oracle).model, torch.tensor(x), site="factor")
    np.testing.assert_allclose(evidence.value, oracle.log_evidence(x), atol=1e-4, rtol=0)


def test_poisson_gaps_equal_the_quadrature(oracle):
    x = oracle.draw(48)
    program = PoissonFactor(oracle)
    gaps = measure_gaps(program.model, program.guide, torch.tensor(x), num_draws=10_000, seed=0)
    weight, scale = np.linspace(-0.3, 0.4, x.shape[1]), 0.5
    truth = {
        "log_evidence": oracle.log_evidence(x),
        "elbo_local": oracle.elbo(x, *oracle.best(x)),
        "elbo_amortized": oracle.elbo(x, np.log1p(x) @ weight, np.full(len(x), scale)),
    }
    assert truth["elbo_local"].mean() - truth["elbo_amortized"].mean() > 0.05  # the guide is far from the best
    for term, expected in truth.items():
        error = getattr(gaps, term).numpy() - expected
        assert abs(error.mean()) < 0.01, term
        assert np.abs(error).max() < 0.05, term
    assert gaps.family == "MeanField(1)" and gaps.settings["site"] == "factor"
    assert dict(pyro.get_param_store()) == {}


def test_poisson_refine_reaches_the_best_normal(oracle):
    x = oracle.draw(16)
    refined = refine(PoissonFactor(oracle).model, MeanField(1), torch.tensor(x), site="factor", seed=0)
    q = MeanField(1)(refined.params)
    loc, scale = q.mean[:, 0].numpy(), q.stddev[:, 0].numpy()
    left = oracle.elbo(x, *oracle.best(x)) - oracle.elbo(x, loc, scale)
    assert (left > -1e-9).all() and left.mean() < 0.01 and left.max() < 0.02


def test_poisson_fits(oracle):
    """Both engines raise exact log p(x) close to that of the truth, and leave bare parameters in the caller's store."""
    x = torch.tensor(oracle.draw(500, seed=5))
    wrong = PoissonOracle(oracle.intercept * 0 + 0.5, oracle.slope * 0 + np.linspace(0.2, 0.4, 6))
    training = Training(epochs=60, batch_size=50, optimizer=Adam(lr=0.02), schedule=Cosine())

    def evidence():
        store = pyro.get_param_store()
        fitted = PoissonOracle(store["intercept"].detach().numpy(), store["slope"].detach().numpy())
        return fitted.log_evidence(x.numpy()).mean()

    start, truth = wrong.log_evidence(x.numpy()).mean(), oracle.log_evidence(x.numpy()).mean()
    assert start < truth - 0.3
    program = PoissonFactor(wrong)
    fit = fit_svi(program.model, program.guide, x, training=training, seed=0)
    assert set(pyro.get_param_store().keys()) == {"intercept", "slope", "weight", "scale"}
    assert evidence() > truth - 0.02
    assert fit.elbo[-1] > fit.elbo[0] + 0.3
    pyro.clear_param_store()
    fit = fit_em(program.model, MeanField(1), x, site="factor", training=training, seed=0)
    assert set(pyro.get_param_store().keys()) == {"intercept", "slope"}
    assert evidence() > truth - 0.02
    assert fit.params.shape == (500, 2)


class TutorialVAE(torch.nn.Module):
    """As in Pyro's tutorials: probabilities rather than logits, sites `latent` and `obs`, modules named by hand."""

    def __init__(self, num_latents=2):
        super().__init__()
        self.num_latents = num_latents
        self.decoder = torch.nn.Sequential(
            torch.nn.Linear(num_latents, 16), torch.nn.Softplus(), torch.nn.Linear(16, 12), torch.nn.Sigmoid()
        )
        self.encoder = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Softplus())
        self.loc = torch.nn.Linear(16, num_latents)
        self.log_scale = torch.nn.Linear(16, num_latents)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = x.new_zeros((x.shape[0], self.num_latents))
            scale = x.new_ones((x.shape[0], self.num_latents))
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        for name in ("encoder", "loc", "log_scale"):
            pyro.module(name, getattr(self, name))
        with pyro.plate("data", x.shape[0]):
            hidden = self.encoder(x)
            pyro.sample("latent", dist.Normal(self.loc(hidden), self.log_scale(hidden).exp()).to_event(1))


@pytest.fixture
def images():
    z = torch.randn(300, 2)
    return torch.bernoulli(torch.sigmoid(3 * z @ torch.randn(2, 12)))


@pytest.mark.slow
def test_tutorial_vae_through_every_engine(images):
    train, test = images[:260], images[260:]
    training = Training(epochs=40, batch_size=65, optimizer=Adam(lr=0.01))
    vae = TutorialVAE()
    fit = fit_svi(vae.model, vae.guide, train, training=training, validation=test, seed=0)
    assert fit.elbo[-1] > fit.elbo[0] + 1 and fit.elbo_validation[-1] > fit.elbo_validation[0] + 0.5
    gaps = measure_gaps(vae.model, vae.guide, test, families=[FullCovariance(2)], seed=0)
    # Every term against quadrature over the two-dimensional latent space.
    exact = quadrature(vae.model, test, site="latent", tol=1e-3)
    assert abs((gaps.log_evidence - exact.value).mean()) < 0.01
    assert (gaps.log_evidence - exact.value).abs().max() < 0.05
    assert (gaps.inference_gap > -4 * gaps.inference_gap_se).all()
    assert (gaps.amortization_gap > -4 * gaps.amortization_gap_se).all()
    assert gaps.amortization_gap.mean() > 0.02
    wider = gaps.elbo_local_by_family[0]
    assert (wider - gaps.elbo_local).mean() > 0 and ((exact.value - wider) > -0.1).all()
    assert dict(pyro.get_param_store()) == {}

    again = TutorialVAE()
    fit = fit_em(again.model, MeanField(2), train, site="latent", training=training, validation=test, seed=0)
    assert fit.elbo[-1] > fit.elbo[0] + 1
    warm = fit_em(again.model, MeanField(2), train, site="latent", init=vae.guide, training=Training(epochs=1), seed=0)
    assert warm.params.shape == (260, 4)
