import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from oracles import LinearOracle

from inference import (
    Amortized,
    Constrained,
    Defensive,
    FullCovariance,
    Local,
    MeanField,
    Search,
    elbo,
    iwae,
    quadrature,
)
from inference.scoring import score_distribution
from inference.weights import pareto_k
from pyro_vae.linear import LinearGaussian
from pyro_vae.priors import Uniform


def program(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model


def normal_rows(loc, scale):
    """Mean-field rows of N(loc, scale^2)."""
    loc = torch.as_tensor(loc)
    return MeanField(loc.shape[1]).params_from(dist.Normal(loc, torch.as_tensor(scale)).to_event(1))


@pytest.fixture
def oracle():
    return LinearOracle.random()


def test_elbo_equals_the_closed_form(oracle):
    x = torch.tensor(oracle.draw(64))
    loc = oracle.posterior_mean(x) + 0.1 * np.random.default_rng(3).standard_normal((64, 5))
    scale = np.linspace(0.1, 0.4, 5)
    estimate = elbo(program(oracle), Local(MeanField(5), normal_rows(loc, scale)), x, num_draws=2000, seed=0)
    truth = oracle.log_evidence(x) - oracle.inference_gap(x, loc, np.diag(scale**2))
    error = (estimate.value - torch.tensor(truth)) / estimate.se
    assert error.abs().max() < 4.5
    # The error says what it means: over datapoints the scaled errors have unit spread.
    assert 0.75 < error.std() < 1.3


def test_elbo_at_the_posterior_has_no_error(oracle):
    x = torch.tensor(oracle.draw(8))
    q = dist.MultivariateNormal(torch.tensor(oracle.posterior_mean(x)), torch.tensor(oracle.covariance))
    estimate = elbo(program(oracle), Local(FullCovariance(5), FullCovariance(5).params_from(q)), x, seed=0)
    torch.testing.assert_close(estimate.value, torch.tensor(oracle.log_evidence(x)), rtol=1e-9, atol=1e-9)
    assert estimate.se.max() < 1e-9


def odd_model(x):
    """log p(x, z) - log q(z) is linear in z when q is the prior: a mirrored pair knows its mean exactly."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.factor("x", (z * x).sum(-1))


def test_antithetic_pairs_count_as_one():
    x = torch.tensor([[1.0], [3.0]])
    estimate = elbo(odd_model, Local(MeanField(1), torch.zeros(2, 2)), x, num_draws=100, seed=0)
    assert estimate.value.abs().max() < 1e-12
    assert estimate.se.max() < 1e-12


@pytest.mark.parametrize("proposal", [Defensive(), Defensive(widen=1.5, prior_weight=0.2), Defensive(prior_weight=0.0)])
def test_iwae_finds_the_evidence(oracle, proposal):
    x = torch.tensor(oracle.draw(64))
    guide = Local(MeanField(5), normal_rows(oracle.posterior_mean(x), np.diag(oracle.precision) ** -0.5))
    model, truth = program(oracle), torch.tensor(oracle.log_evidence(x))
    encoder = torch.nn.Linear(20, 10)
    with torch.no_grad():
        encoder.weight[:5], encoder.bias[:5] = torch.tensor(oracle.encoder_weight), 0.0
        encoder.bias[:5] -= encoder.weight[:5] @ torch.tensor(oracle.bias)
        encoder.weight[5:], encoder.bias[5:] = 0.0, -0.5 * torch.tensor(np.log(np.diag(oracle.precision)))
    refined = iwae(model, Amortized(MeanField(5), encoder), x, num_draws=2000, proposal=proposal, seed=0)
    given = iwae(model, guide, x, num_draws=2000, proposal=proposal, seed=0)
    for evidence in (refined, given):
        error = (evidence.value - truth) / evidence.se
        assert error.abs().max() < 4.5
        assert abs((evidence.value - truth).mean()) < 4 * evidence.se.square().sum().sqrt() / 64
        assert (evidence.ess > 100).all()
    assert (refined.pareto_k < 0.5).all()


def test_the_proposal_is_made_in_the_family_of_full_covariance():
    """Where the posterior is strongly correlated, one made from the mean-field guide would waste most draws."""
    oracle = LinearOracle.random(10, 5, scale=0.2)
    x = torch.tensor(oracle.draw(16))
    model, family = program(oracle), MeanField(5)
    encoder = torch.nn.Linear(10, 10)
    guide = Amortized(family, encoder)
    made = iwae(model, guide, x, num_draws=2000, seed=0)
    given = iwae(model, Local(family, guide.params(x).detach()), x, num_draws=2000, seed=0)
    assert made.ess.min() > 500 > 10 * given.ess.mean()


def test_iwae_from_the_guide_is_a_bound_that_grows_with_draws(oracle):
    x = torch.tensor(oracle.draw(200))
    guide = Local(MeanField(5), normal_rows(oracle.posterior_mean(x), 0.7 * np.diag(oracle.precision) ** -0.5))
    model = program(oracle)
    values = [iwae(model, guide, x, num_draws=s, proposal=None, seed=0).value.mean() for s in (50, 400, 3200)]
    truth = oracle.log_evidence(x).mean()
    bound = elbo(model, guide, x, seed=0).value.mean()
    assert bound + 0.1 < values[0] < values[1] < values[2] < truth


def test_iwae_counts_the_draws_from_the_prior():
    """A proposal far off: without the prior's share in its density, weights of prior draws would be wrong by orders."""
    oracle = LinearOracle(np.ones((3, 1)), np.zeros(3), 2.0)
    x = torch.tensor(oracle.draw(16))
    far = Local(MeanField(1), normal_rows(np.full((16, 1), 40.0), 0.01))
    evidence = iwae(program(oracle), far, x, num_draws=20_000, proposal=Defensive(prior_weight=0.2), seed=0)
    assert ((evidence.value - torch.tensor(oracle.log_evidence(x))).abs() < 4.5 * evidence.se).all()
    assert evidence.se.max() < 0.1


def test_pareto_k_finds_the_closed_form_tail_index(oracle):
    """Of the weights of the mean-field optimum, k = 1 - lambda_min; Zhang & Stephens' error is (1 + k) / sqrt(M)."""
    x = torch.tensor(oracle.draw(64))
    q = MeanField(5)(normal_rows(oracle.posterior_mean(x), np.diag(oracle.precision) ** -0.5))
    index = torch.arange(64)
    estimates = []
    for seed in range(4):
        log_w = score_distribution(program(oracle), x, index, q, site="z", num_draws=40_000, seed=seed)
        estimates.append(pareto_k(log_w[::2]))  # one of each mirrored pair: independent draws
    k = torch.stack(estimates).mean(0)
    assert k.mean().item() == pytest.approx(oracle.tail_index, abs=0.05)
    assert (k - oracle.tail_index).abs().max() < 0.25


@pytest.mark.parametrize("num_latents", [1, 2])
@pytest.mark.parametrize("scale", [0.7, 1e-3], ids=["wide", "narrow"])
def test_quadrature_equals_the_closed_form(num_latents, scale):
    oracle = LinearOracle.random(6, num_latents, scale=scale)
    x = torch.tensor(oracle.draw(32))
    evidence = quadrature(program(oracle), x)
    torch.testing.assert_close(evidence.value, torch.tensor(oracle.log_evidence(x)), rtol=0, atol=1e-4)
    assert not evidence.se.any()


def test_quadrature_follows_a_posterior_far_outside_the_prior():
    oracle = LinearOracle(np.ones((3, 1)), np.zeros(3), 0.01)
    x = torch.tensor([[0.0] * 3, [30.0] * 3, [-200.0] * 3])
    torch.testing.assert_close(
        quadrature(program(oracle), x).value, torch.tensor(oracle.log_evidence(x)), rtol=1e-9, atol=1e-4
    )


@pytest.mark.parametrize(("num_latents", "width"), [(1, 0.3), (1, 1e-3), (2, 0.3), (2, 0.02)])
def test_quadrature_of_two_modes(num_latents, width):
    """Modes of equal weight that fall between grid points: none may be lost."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(num_latents), 1.0).to_event(1))
            modes = [dist.Normal(sign * x, width).log_prob(z) for sign in (-1.0, 1.0)]
            pyro.factor("x", (torch.logaddexp(*modes) - math.log(2)).sum(-1))

    x = torch.tensor([[0.777], [1.234567], [2.6]])
    # N(z; m, w^2) N(z; 0, 1) integrates to N(m; 0, 1 + w^2), the same for both modes.
    truth = num_latents * dist.Normal(0.0, math.hypot(1.0, width)).log_prob(x).squeeze(-1)
    torch.testing.assert_close(quadrature(model, x).value, truth, rtol=0, atol=1e-4)


HEAVY = {
    "Laplace": dist.Laplace(torch.zeros(1), 1.0),
    "StudentT": dist.StudentT(torch.tensor(4.0), torch.zeros(1), 1.0),
    "Cauchy": dist.StudentT(torch.tensor(1.0), torch.zeros(1), 1.0),
}


@pytest.mark.parametrize("name", HEAVY)
def test_quadrature_under_other_priors(name):
    prior = HEAVY[name]

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    x = torch.tensor([[0.0], [1.5], [-9.0]])
    grid = np.linspace(-60, 60, 2_400_001)
    log_p = prior.log_prob(torch.tensor(grid)).numpy() + dist.Normal(x, 0.5).log_prob(torch.tensor(grid)).numpy()
    truth = np.log(np.exp(log_p).sum(1) * (grid[1] - grid[0]))
    np.testing.assert_allclose(quadrature(model, x).value, truth, atol=1e-4, rtol=0)


class Resampling:
    resamples = True

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(len(index), 6)


def over_the_batch(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + x.std(0, correction=0), 1.0).to_event(1), obs=x)


def small(num_latents=2):
    return program(LinearOracle.random(6, num_latents))


def guide():
    return Amortized(MeanField(2), torch.nn.Linear(6, 4))


class OverTheBatch(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x - x.mean(0), x], 1)[:, :4]


X = torch.randn(4, 6, dtype=torch.float64)
CASES = {
    "elbo: odd draws": (lambda: elbo(small(), guide(), X, num_draws=5), "num_draws: .*got 5"),
    "elbo: few draws": (lambda: elbo(small(), guide(), X, num_draws=2), "num_draws: .*at least 4.*got 2"),
    "elbo: no data": (lambda: elbo(small(), guide(), X[:0]), "data: .*none"),
    "elbo: resampling": (lambda: elbo(small(), guide(), Resampling()), "elbo needs a fixed x"),
    "elbo: infinity": (
        lambda: elbo(small(), guide(), X.clone().index_fill(0, torch.tensor([2]), math.inf)),
        "datapoint 2",
    ),
    "elbo: site": (lambda: elbo(small(), guide(), X, site="w"), "site 'w'.*'z'"),
    "elbo: batch model": (lambda: elbo(over_the_batch, guide(), X), "site 'x' of the model: .*own row alone"),
    "elbo: batch guide": (
        lambda: elbo(small(), Amortized(MeanField(2), OverTheBatch()), X),
        "site 'z' of the guide: .*own row alone",
    ),
    "elbo: rows": (lambda: elbo(small(), Local(MeanField(2), torch.zeros(9, 4)), X), "one row a datapoint, 4; got 9"),
    "iwae: few draws": (lambda: iwae(small(), guide(), X, num_draws=10), "num_draws: .*at least 50.*got 10"),
    "iwae: resampling": (lambda: iwae(small(), guide(), Resampling()), "iwae needs a fixed x"),
    "iwae: rows": (lambda: iwae(small(), Local(MeanField(2), torch.zeros(3, 4)), X), "one row a datapoint, 4; got 3"),
    "iwae: batch guide": (
        lambda: iwae(small(), Amortized(MeanField(2), OverTheBatch()), X),
        "site 'z' of the guide: .*own row alone",
    ),
    "Defensive: narrow": (lambda: Defensive(widen=0.0), "widen: .*got 0.0"),
    "Defensive: all prior": (lambda: Defensive(prior_weight=1.0), "prior_weight: .*got 1.0"),
    "quadrature: 3-D": (lambda: quadrature(small(3), X), "1 or 2 latent dimensions; got 3"),
    "quadrature: coarse": (lambda: quadrature(small(1), X, max_points=200), "not stable.*200"),
    "quadrature: batch": (lambda: quadrature(over_the_batch, X), "own row alone"),
    "quadrature: resampling": (lambda: quadrature(small(), Resampling()), "quadrature needs a fixed x"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_beyond_64_dimensions_the_proposal_is_in_the_guides_own_family():
    """An exact guide gives exact weights; a proposal that forgot its covariances would be tens of nats off."""
    oracle = LinearOracle.random(70, 66, scale=0.1)
    exact = LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale)
    x = torch.tensor(oracle.draw(2))
    family = FullCovariance(66)
    row = family.params_from(exact.posterior(torch.tensor(oracle.bias)[None])).detach()[0]
    encoder = torch.nn.Linear(70, family.num_params)
    with torch.no_grad():
        encoder.weight.zero_()[:66] = torch.tensor(oracle.encoder_weight)
        encoder.bias.copy_(row - encoder.weight @ torch.tensor(oracle.bias))
    guide = Amortized(family, encoder)
    brief = Search(first_round=4, max_rounds=1, num_judge_draws=64, num_select_draws=64)
    evidence = iwae(exact.model, guide, x, num_draws=500, search=brief, seed=0)
    assert (evidence.value - torch.tensor(oracle.log_evidence(x))).abs().max() < 1.0
    assert "FullCovariance(66)" in evidence.method


def test_a_posterior_at_the_edge_of_a_box_keeps_its_density_in_single_precision():
    """z rounded to float32 lies elsewhere in R^D: log r is taken where z was drawn."""
    torch.set_default_dtype(torch.float32)
    scale, box = 1e-4, Uniform(1)
    family = Constrained(MeanField(1), box().support)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", box())  # Closed: a draw that is rounded to the bound is still inside.
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    x = torch.full((64, 1), 1.001)
    above, below = scipy.stats.norm.logcdf((1 - x.double()) / scale), scipy.stats.norm.logcdf((-1 - x.double()) / scale)
    truth = (above + np.log1p(-np.exp(below - above)) - math.log(2))[:, 0]
    guide = Local(family, torch.tensor([[12.7, math.log(1.3)]]).expand(64, -1))
    evidence = iwae(model, guide, x, num_draws=2000, seed=0)
    # A lower bound in expectation: the mean of p-hat over datapoints that are all alike.
    ratio = (evidence.value - torch.as_tensor(truth)).exp()
    assert ratio.mean() < 1 + 4 * ratio.std() / 8 < 1.5
