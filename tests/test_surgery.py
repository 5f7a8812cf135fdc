import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from oracles import LinearOracle

from inference import (
    Amortized,
    Constrained,
    CouplingFlow,
    FullCovariance,
    Local,
    MeanField,
    MixtureOfGaussians,
    PlanarFlow,
    Surgery,
    elbo,
    elbo_surgery,
)
from inference.families import marginals
from pyro_vae.linear import LinearGaussian
from pyro_vae.priors import GaussianMixture, StandardNormal, Uniform

LOCS, SCALES = np.array([-2.0, -1.8, 0.3, 1.0, 2.5]), np.array([0.3, 0.5, 0.2, 0.8, 0.4])


def model_of(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model


def model_with(prior):
    """z ~ prior, x | z ~ N(z, 1)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior() if isinstance(prior, torch.nn.Module) else prior)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return model


def rows_of(locs, scales):
    q = dist.Normal(torch.tensor(locs), torch.tensor(scales)).to_event(1)
    return Local(MeanField(q.event_shape[0]), MeanField(q.event_shape[0]).params_from(q))


def guide_of(oracle, covariance):
    weight, bias = torch.tensor(oracle.encoder_weight), torch.tensor(oracle.bias)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal((x - bias) @ weight.T, covariance))

    return guide


def exact_pair(oracle):
    return model_of(oracle), guide_of(oracle, torch.tensor(oracle.covariance))


def terms_by_quadrature(locs, scales, log_prior):
    """KL to the prior, to the mean of q, and the mean of q's, each (N,), in NumPy."""
    grid = np.linspace(-12, 12, 20001)
    log_q = scipy.stats.norm.logpdf(grid, locs[:, None], scales[:, None])
    log_mean = scipy.special.logsumexp(log_q, axis=0) - np.log(len(locs))
    weight = np.exp(log_q) * (grid[1] - grid[0])
    return {
        "kl": (weight * (log_q - log_prior(grid))).sum(-1),
        "mutual_information": (weight * (log_q - log_mean)).sum(-1),
        "marginal_kl": (weight * (log_mean - log_prior(grid))).sum(-1),
    }


def assert_means_close(surgery, truth):
    summary = surgery.summary()
    for term, expected in truth.items():
        assert abs(summary[term]["mean"] - np.mean(expected)) < 4 * summary[term]["mc_se"], term
        assert ((getattr(surgery, term) - torch.tensor(expected)).abs() < 5 * getattr(surgery, f"{term}_se")).all(), (
            term
        )


def test_terms_equal_quadrature():
    truth = terms_by_quadrature(LOCS, SCALES, scipy.stats.norm.logpdf)
    model = model_with(dist.Normal(torch.zeros(1), 1.0).to_event(1))
    surgery = elbo_surgery(model, rows_of(LOCS[:, None], SCALES[:, None]), torch.zeros(5, 1), num_draws=4000, seed=0)
    assert_means_close(surgery, truth)
    assert surgery.summary()["mutual_information"]["mc_se"] < 0.01
    expected = -0.5 * (np.log(2 * np.pi) + LOCS**2 + SCALES**2)  # E log N(0; z, 1).
    assert_means_close(surgery, {"reconstruction": expected})
    torch.testing.assert_close(surgery.kl_per_dim[:, 0], torch.tensor(truth["kl"]), rtol=1e-8, atol=1e-8)


def test_the_parts_add_up_to_the_elbo_draw_by_draw():
    oracle = LinearOracle.random()
    model, x = model_of(oracle), torch.tensor(oracle.draw(100))
    guide = Amortized(MeanField(5), torch.nn.Linear(20, 10))
    surgery = elbo_surgery(model, guide, x, num_draws=32, seed=7)
    bound = elbo(model, guide, x, num_draws=32, seed=7)
    torch.testing.assert_close(surgery.elbo, bound.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(surgery.elbo_se, bound.se, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(surgery.reconstruction - surgery.kl, surgery.elbo, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(surgery.mutual_information + surgery.marginal_kl, surgery.kl, rtol=1e-12, atol=1e-12)
    assert len(surgery) == 100 and surgery.summary()["num_data"] == 100


def test_many_datapoints_have_the_mutual_information_of_the_model():
    """Under the exact posterior the mean of q is the prior, and I(x; z) = log det(I + W'W / s^2) / 2."""
    oracle = LinearOracle.random(6, 2)
    surgery = elbo_surgery(*exact_pair(oracle), torch.tensor(oracle.draw(1500)), num_draws=4, seed=0)
    summary = surgery.summary()
    information = summary["mutual_information"]
    truth = 0.5 * np.linalg.slogdet(oracle.precision)[1]
    assert abs(information["mean"] - truth) < 3 * information["se"]
    assert 0 < summary["marginal_kl"]["mean"] < 0.02


def test_the_population_s_information_is_under_estimated_and_the_marginal_kl_over():
    """Over samples of N datapoints, I rises to its truth and KL(mean q || p) falls to 0; their sum does neither."""
    oracle = LinearOracle.random(6, 2)
    pair = exact_pair(oracle)
    truth = 0.5 * np.linalg.slogdet(oracle.precision)[1]
    means = {}
    for size, repeats in ((5, 200), (20, 100), (80, 25)):
        runs = [
            elbo_surgery(*pair, torch.tensor(oracle.draw(size, seed=seed)), num_draws=32, seed=seed).summary()
            for seed in range(repeats)
        ]
        for term in ("mutual_information", "marginal_kl", "kl"):
            values = np.array([run[term]["mean"] for run in runs])
            means[term, size] = values.mean(), values.std(ddof=1) / math.sqrt(repeats)
    for size in (5, 20, 80):
        information, error = means["mutual_information", size]
        assert information < truth - 2 * error and information <= math.log(size)
        excess, error = means["marginal_kl", size]
        assert excess > 4 * error
        total, error = means["kl", size]
        assert abs(total - truth) < 3.5 * error
    assert means["mutual_information", 5][0] < means["mutual_information", 20][0] < means["mutual_information", 80][0]
    assert means["marginal_kl", 5][0] > means["marginal_kl", 20][0] > means["marginal_kl", 80][0]


def test_errors_are_those_of_another_seed():
    model = model_with(dist.Normal(torch.zeros(1), 1.0).to_event(1))
    guide = rows_of(LOCS[:, None], SCALES[:, None])
    runs = [elbo_surgery(model, guide, torch.zeros(5, 1), num_draws=32, seed=seed).summary() for seed in range(200)]
    for term in Surgery.TERMS:
        spread = np.std([run[term]["mean"] for run in runs], ddof=1)
        stated = math.sqrt(np.mean([run[term]["mc_se"] ** 2 for run in runs]))
        assert 0.8 < spread / stated < 1.25, term  # A deviation of 200 runs is known to 5 %.


def test_two_clusters_far_apart_hold_one_bit():
    locs = np.repeat([[-40.0, 0.0], [40.0, 0.0]], 10, axis=0)
    model = model_with(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    surgery = elbo_surgery(model, rows_of(locs, np.ones_like(locs)), torch.zeros(20, 2), seed=0)
    torch.testing.assert_close(surgery.mutual_information, torch.full((20,), math.log(2)))
    assert surgery.active_units.tolist() == [True, False]


def test_a_bound_that_is_reached_is_said():
    locs = 40.0 * np.arange(6)[:, None]
    model = model_with(dist.Normal(torch.zeros(1), 1.0).to_event(1))
    assert "I is at that bound" in str(elbo_surgery(model, rows_of(locs, np.ones((6, 1))), torch.zeros(6, 1), seed=0))
    apart = elbo_surgery(model, rows_of(LOCS[:, None], SCALES[:, None]), torch.zeros(5, 1), seed=0)
    assert "I is at that bound" not in str(apart)


def test_a_collapsed_guide_has_nothing_to_take_apart():
    model = model_with(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    surgery = elbo_surgery(model, rows_of(np.zeros((30, 2)), np.ones((30, 2))), torch.zeros(30, 2), seed=0)
    for term in ("kl", "mutual_information", "marginal_kl"):
        assert getattr(surgery, term).abs().max() < 1e-12, term
    assert surgery.kl_per_dim.abs().max() == 0 and not surgery.active_units.any()
    assert "Active units: 0 of 2" in str(surgery)


def test_activity_is_relative_to_the_prior():
    """The variance of the posterior means is that of the prior times 1 - Var(z | x) / Var(z), in any unit."""
    scales = torch.tensor([0.01, 1.0, 100.0])
    noise = torch.tensor([1.0, 100.0, 0.1]) * scales  # The second says nearly nothing.

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), scales).to_event(1))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    gain = scales**2 / (scales**2 + noise**2)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(gain * x, (gain * noise**2).sqrt()).to_event(1))

    x = (scales**2 + noise**2).sqrt() * torch.randn(800, 3)
    surgery = elbo_surgery(model, guide, x, num_draws=4, seed=0)
    # A sample variance of N normals is known to sqrt(2 / N) of itself.
    assert ((surgery.activity / gain - 1).abs() < 4 * math.sqrt(2 / 800)).all()
    assert surgery.active_units.tolist() == [True, False, True]
    assert surgery.summary()["num_active"] == 2
    per_dim = 0.5 * (1 + noise.square().reciprocal() * scales**2).log()
    assert ((surgery.kl_per_dim.mean(0) - per_dim).abs() < 4 * surgery.kl_per_dim.std(0) / math.sqrt(800)).all()


def test_kl_per_dimension_adds_up_where_coordinates_are_independent():
    locs, scales = np.random.default_rng(0).normal(size=(2, 6, 3))
    model = model_with(dist.Normal(torch.zeros(3), 1.0).to_event(1))
    surgery = elbo_surgery(model, rows_of(locs, np.exp(scales)), torch.zeros(6, 3), num_draws=2000, seed=0)
    assert surgery.kl_per_dim_method == "closed form"
    assert ((surgery.kl_per_dim.sum(-1) - surgery.kl).abs() < 5 * surgery.kl_se).all()


def test_kl_per_dimension_of_marginals():
    """Of a dense normal in closed form, of mixtures by Monte Carlo; of a flow there are none, and it says so."""
    oracle = LinearOracle.random(6, 2)
    x = torch.tensor(oracle.draw(40))
    dense = elbo_surgery(*exact_pair(oracle), x, seed=0)
    variance = np.diag(oracle.covariance)
    truth = 0.5 * (variance + oracle.posterior_mean(x) ** 2 - 1 - np.log(variance))
    torch.testing.assert_close(dense.kl_per_dim, torch.tensor(truth))

    prior = GaussianMixture(1, num_components=3)
    mixed = elbo_surgery(
        model_with(prior), rows_of(LOCS[:, None], SCALES[:, None]), torch.zeros(5, 1), num_draws=4000, seed=0
    )
    assert mixed.kl_per_dim_method == "Monte Carlo, 4000 draws"
    torch.testing.assert_close(mixed.kl_per_dim[:, 0], mixed.kl)  # In one dimension they are the same draws.

    flow = Amortized(CouplingFlow(2), torch.nn.Linear(6, CouplingFlow(2).num_params))
    none = elbo_surgery(model_of(oracle), flow, x, seed=0)
    assert none.kl_per_dim is None and "marginals of a" in none.kl_per_dim_method


def test_kl_per_dimension_in_a_box():
    """In one dimension it is the whole KL."""
    prior = Uniform(1, low=-1.0, high=3.0)
    family = Constrained(MeanField(1), prior().support)
    rows = torch.stack([torch.tensor(LOCS), torch.tensor(SCALES).log()], dim=-1)
    boxed = elbo_surgery(model_with(prior), Local(family, rows), torch.zeros(5, 1), num_draws=2000, seed=0)
    assert boxed.kl_per_dim_method == "Monte Carlo, 2000 draws"
    torch.testing.assert_close(boxed.kl_per_dim[:, 0], boxed.kl, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", [FullCovariance(3), MixtureOfGaussians(3)], ids=repr)
def test_marginals_integrate_out_the_rest(family):
    """Against the average over draws of the other coordinates, with a chi-squared bound on the histogram."""
    q = family(torch.randn(family.num_params))
    z = q.sample((40_000,))
    edges = torch.linspace(-1, 1, 8)
    for d in range(3):
        points = q.mean[d] + 1.5 * q.stddev[d] * edges
        grid = torch.linspace(float(points[0]), float(points[-1]), 7001)
        one = marginals(q)
        mass = one.log_prob(grid.unsqueeze(-1).expand(-1, 3))[:, d].exp()
        expected = mass[:-1].unflatten(0, (7, 1000)).sum(-1) * (grid[1] - grid[0])
        found = torch.histogram(z[:, d], points)[0] / len(z)
        assert (found - expected).abs().max() < 4.5 * (expected.max() / len(z)).sqrt()


@pytest.mark.parametrize(
    "family", [CouplingFlow(2, shared=False), MixtureOfGaussians(2, num_components=2), FullCovariance(2)], ids=repr
)
def test_the_mixture_holds_every_datapoint_s_distribution(family):
    """Across chunks and blocks: the same as one datapoint at a time."""
    guide = Amortized(family, torch.nn.Linear(2, family.num_params))
    torch.nn.init.normal_(guide.encoder.weight)
    x = torch.randn(70, 2)
    model = model_with(StandardNormal(2))
    surgery = elbo_surgery(model, guide, x, num_draws=4, seed=0)
    with torch.no_grad():
        z = torch.stack([guide.distribution(x).sample() for _ in range(50)])
        singles = [guide.distribution(row[None]) for row in x]
        log_q = torch.stack([q.log_prob(z.reshape(-1, 1, 2))[:, 0] for q in singles])
        own = log_q.reshape(70, 50, 70).diagonal(dim1=0, dim2=2)  # (50, N)
        draws = own - (log_q.logsumexp(0) - math.log(70)).reshape(50, 70)
    error = math.hypot(surgery.summary()["mutual_information"]["mc_se"], float(draws.std(0).norm()) / 50**0.5 / 70)
    assert abs(surgery.mutual_information.mean() - draws.mean()) < 4 * error


def test_chunks_do_not_change_the_numbers(monkeypatch):
    oracle = LinearOracle.random(6, 2)
    x = torch.tensor(oracle.draw(150))
    whole = elbo_surgery(*exact_pair(oracle), x, num_draws=4, seed=0)
    monkeypatch.setattr("inference.scoring.VALUES_AT_ONCE", 1)
    monkeypatch.setattr("inference.diagnostics.surgery.VALUES_AT_ONCE", 1000)
    parts = elbo_surgery(*exact_pair(oracle), x, num_draws=4, seed=0)
    for term in Surgery.TERMS:
        torch.testing.assert_close(getattr(whole, term), getattr(parts, term), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.activity, parts.activity)


def test_nothing_is_left_behind():
    oracle = LinearOracle.random(6, 2)
    guide = Amortized(MeanField(2), torch.nn.Linear(6, 4)).train()
    before, state = [p.clone() for p in guide.parameters()], torch.get_rng_state()
    elbo_surgery(model_of(oracle), guide, torch.tensor(oracle.draw(10)), seed=0)
    assert torch.equal(state, torch.get_rng_state()) and guide.training
    assert all(torch.equal(p, b) for p, b in zip(guide.parameters(), before, strict=True))


def test_a_prior_without_a_variance_is_said():
    model = model_with(dist.StudentT(1.0, torch.zeros(1), 1.0).to_event(1))
    surgery = elbo_surgery(model, rows_of(LOCS[:, None], SCALES[:, None]), torch.zeros(5, 1), seed=0)
    assert not surgery.active_units.any() and "no variance in 1 dimensions" in str(surgery)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 5}, "num_draws: expected an even number of at least 4"),
        ({"threshold": 0.0}, "threshold: expected a positive share"),
        ({"guide": Amortized(PlanarFlow(2), torch.nn.Linear(2, PlanarFlow(2).num_params))}, "has_log_prob"),
        ({"guide": Local(MeanField(2), torch.zeros(4, 4))}, "expected one row a datapoint, 3; got 4"),
    ],
    ids=["draws", "threshold", "no density", "rows"],
)
def test_bad_input(options, message):
    options = {"guide": rows_of(np.zeros((3, 2)), np.ones((3, 2)))} | options
    guide = options.pop("guide").double()
    with pytest.raises(ValueError, match=message):
        elbo_surgery(model_with(StandardNormal(2)), guide, torch.zeros(3, 2), **options)
