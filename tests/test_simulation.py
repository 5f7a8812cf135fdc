import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle

from inference import (
    Adam,
    Amortized,
    Annealing,
    MeanField,
    Search,
    Training,
    WakeSleep,
    bdmc,
    fit_svi,
    sbc,
    simulate,
    simulated_gaps,
)
from inference.noise import derive_seed
from pyro_vae import MLP, VAE
from pyro_vae.likelihoods import Binomial
from pyro_vae.linear import LinearGaussian
from pyro_vae.priors import StandardNormal

LIKE = torch.zeros(3, 4, dtype=torch.float64)


def normal(name, loc, obs=None):
    return pyro.sample(name, dist.Normal(loc, 1.0).to_event(1), obs=obs)


def in_plate(body):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            body(x, normal("z", torch.zeros(4)))

    return model


def test_moments_are_those_of_the_model():
    oracle = LinearOracle.random(4, 2)
    model = LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model
    z, x = simulate(model, LIKE, num_data=20_000, seed=0)
    joint = torch.cat([z, x - torch.tensor(oracle.bias)], dim=-1)
    mix = torch.cat([torch.eye(2), torch.tensor(oracle.weight)])
    noise = torch.tensor([0.0] * 2 + [oracle.scale**2] * 4)
    covariance = mix @ mix.T + noise.diag()
    variances = covariance.diagonal()
    # The variance of a sample covariance of normals (Isserlis 1918).
    error = ((covariance.square() + torch.outer(variances, variances)) / len(z)).sqrt()
    assert ((joint.T @ joint / len(z) - covariance).abs() < 4.5 * error).all()
    assert (joint.mean(0).abs() < 4.5 * (variances / len(z)).sqrt()).all()


def test_a_datapoint_depends_on_the_seed_and_its_index_alone():
    model = in_plate(lambda x, z: normal("x", z, x))
    z, x = simulate(model, LIKE, num_data=150, seed=3)
    fewer_z, fewer_x = simulate(model, torch.randn(70, 4), num_data=100, seed=3)
    assert torch.equal(z[:100], fewer_z) and torch.equal(x[:100], fewer_x)
    assert len(torch.unique(x[:, 0])) == 150  # No block repeats another.
    assert not torch.equal(x, simulate(model, LIKE, num_data=150, seed=4)[1])


def test_nothing_is_left_behind():
    vae = VAE(
        prior=StandardNormal(2),
        likelihood=Binomial(16),
        decoder=MLP(2, 8, 4),
        family=MeanField(2),
        encoder=MLP(4, 8, 4),
    ).train()
    before, state = [p.clone() for p in vae.parameters()], torch.get_rng_state()
    z, x = simulate(vae.model, LIKE, num_data=5, seed=0)
    assert z.shape == (5, 2) and x.shape == (5, 4) and x.dtype == LIKE.dtype
    assert ((x == x.round()) & (x >= 0) & (x <= 16)).all() and x.any()
    assert all(torch.equal(p, b) for p, b in zip(vae.parameters(), before, strict=True))
    assert torch.equal(state, torch.get_rng_state()) and vae.training
    assert len(pyro.get_param_store()) == 0


def test_draws_are_as_incomplete_as_the_data():
    """So that an encoder sees the same patterns, and log p(x) is over the same values."""
    vae = VAE(prior=StandardNormal(2), likelihood=Binomial(16, mask=True), decoder=MLP(2, 8, 4), family=MeanField(2))
    x = LIKE.clone()
    x[1, 2] = torch.nan
    _, drawn = simulate(vae.double().model, x, num_data=100, seed=0)
    _, whole = simulate(vae.model, LIKE, num_data=100, seed=0)
    missing = (torch.arange(100) % 3 == 1).unsqueeze(-1) & (torch.arange(4) == 2)
    assert torch.equal(drawn.isnan(), missing)
    assert torch.equal(drawn[~missing], whole[~missing])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x, z: pyro.factor("fit", -(x - z).square().sum(-1)), "'fit': expected the model to draw it"),
        (lambda x, z: pyro.sample("x", dist.Delta(x, event_dim=1), obs=x), "'x': expected the model to draw it"),
        (lambda x, z: None, "expected observed sites.*got none"),
        (lambda x, z: [normal(name, z, x) for name in "ab"], r"column 0 more than once \(site 'a', 'b'\)"),
        (lambda x, z: normal("x", z, x.exp()), "'x': expected columns of x as they are.*Transform the data before"),
        (lambda x, z: normal("x", z, 2 * x), "'x': expected columns of x as they are"),
        (lambda x, z: normal("x", z, x.cumsum(-1)), "'x': expected columns of x as they are"),
        (lambda x, z: normal("x", z, torch.bernoulli(x.sigmoid())), "'x' of the model: .*two runs on the same"),
        (lambda x, z: normal("x", z, torch.ones(len(x), 4)), "'x': expected columns of x as they are"),
        (lambda x, z: normal("x", z + x, x), "site 'x': expected a distribution that depends on z, on given columns"),
        (
            lambda x, z: [normal("a", z[..., :2] + x[:, 2:], x[:, :2]), normal("b", z[..., 2:], x[:, 2:])],
            "site 'a': expected a distribution that depends on z",
        ),
        (lambda x, z: normal("x", z + normal("u", z), x), "one latent site, 'z'"),
    ],
    ids=[
        "a factor",
        "a point mass",
        "nothing observed",
        "x twice",
        "transformed",
        "scaled",
        "summed",
        "drawn in the model",
        "constant",
        "given x",
        "given later x",
        "a second latent site",
    ],
)
def test_models_that_cannot_be_simulated(body, message):
    with pytest.raises(ValueError, match=message):
        simulate(in_plate(body), LIKE, num_data=2, seed=0)


def test_other_bad_input():
    model = in_plate(lambda x, z: normal("x", z, x))
    with pytest.raises(ValueError, match="num_data: expected an integer of at least 1; got 0"):
        simulate(model, LIKE, num_data=0)
    with pytest.raises(ValueError, match="site 'latent': expected a latent site of this name"):
        simulate(model, LIKE, num_data=2, site="latent")
    with pytest.raises(ValueError, match="at least one datapoint"):
        simulate(model, LIKE[:0], num_data=2)


# Columns of x ---------------------------------------------------------------------------------------------------------


SHORT = Annealing(num_temperatures=20, num_chains=8)


def regression(x):
    """Two columns given z and two covariates; and the covariates themselves."""
    observed, given = x[:, [3, 1]], x[:, [0, 2]]
    with pyro.plate("data", len(x), dim=-1):
        z = normal("z", torch.zeros(2))
        pyro.sample("x", dist.Normal(z + 2 * given, 0.5).to_event(1), obs=observed)


def test_given_columns_stay_and_the_others_follow_them():
    """Linear regression: x[:, [3, 1]] = z + 2 x[:, [0, 2]] + noise, columns in another order than in x."""
    data = torch.randn(50, 4)
    z, x = simulate(regression, data, num_data=20_000, seed=0)
    rows = torch.arange(len(x)) % 50
    assert torch.equal(x[:, [0, 2]], data[rows][:, [0, 2]])
    noise = x[:, [3, 1]] - z - 2 * x[:, [0, 2]]
    assert (noise.mean(0).abs() < 4.5 * 0.5 / len(x) ** 0.5).all()
    assert (noise.var(0) - 0.25).abs().max() < 4.5 * 0.25 * (2 / len(x)) ** 0.5
    assert (z.mean(0).abs() < 4.5 / len(x) ** 0.5).all()
    # Least squares finds the coefficients again, and nothing of the noise in z.
    design = torch.cat([z, x[:, [0, 2]]], 1)
    slopes = torch.linalg.lstsq(design, x[:, [3, 1]]).solution
    torch.testing.assert_close(slopes, torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 2]]), atol=0.03, rtol=0)


def test_sbc_of_the_exact_posterior_given_covariates():
    """Its ranks are uniform; those of a guide that ignores the covariates are not."""

    def posterior(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x[:, [3, 1]] - 2 * x[:, [0, 2]]) / 1.25, 0.2**0.5).to_event(1))

    def ignorant(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, [3, 1]] / 1.25, 0.2**0.5).to_event(1))

    data = torch.randn(50, 4)
    assert sbc(regression, posterior, data, num_simulations=500, seed=0).passes
    assert not sbc(regression, ignorant, data, num_simulations=500, seed=0).passes


def test_bdmc_and_gaps_given_covariates():
    """log p(x | covariates) in closed form, of the simulated data and of the real ones."""

    def exact(x):
        return dist.Normal(2 * x[:, [0, 2]], 1.25**0.5).log_prob(x[:, [3, 1]]).sum(-1)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x[:, [3, 1]] - 2 * x[:, [0, 2]]) / 1.25, 0.5).to_event(1))

    data = torch.randn(20, 4)
    bounds = bdmc(regression, data, num_data=20, num_draws=50, annealing=SHORT, seed=0)
    for side, tolerance in ((bounds.lower, 4.5), (bounds.upper, 4.5)):
        apart = side.value - exact(bounds.x)
        assert apart.mean().abs() < tolerance * side.se.square().sum().sqrt() / len(apart) + 0.02
    quick = {"annealing": None, "num_evidence_draws": 500, "num_draws": 200, "search": Search(max_rounds=2)}
    both = simulated_gaps(regression, guide, data, **quick, seed=0)
    _, drawn = simulate(regression, data, num_data=20, seed=derive_seed(0, "simulated gaps"))
    for gaps, x in ((both.real, data), (both.simulated, drawn)):
        assert (gaps.log_evidence - exact(x)).abs().mean() < 0.02
        # q has the posterior's mean and the variance 1/4 in place of 1/5, in both dimensions.
        expected = 0.25 / 0.2 - 1 - math.log(0.25 / 0.2)
        assert (gaps.inference_gap - expected).mean().abs() < 0.05


def mixed_types(x):
    """Numbers, a count, a label and yes or no, in sites of their own; the last column is given."""
    with pyro.plate("data", len(x), dim=-1):
        z = normal("z", torch.zeros(2))
        pyro.sample("numbers", dist.Normal(z, 0.1).to_event(1), obs=x[:, 3:5])
        pyro.sample("count", dist.Poisson(1 + 9 * x[:, 5]), obs=x[:, 0])
        pyro.sample(
            "label", dist.Categorical(logits=torch.stack([z[..., 0], z[..., 1], 0 * z[..., 0]], -1)), obs=x[:, 2].long()
        )
        pyro.sample("yes", dist.Bernoulli(logits=20 * z[..., :1]).to_event(1), obs=(x[:, 1:2] > 0.5).to(x))


@pytest.mark.parametrize("kind", ["rows", "one row", "alike"])
def test_several_sites_of_several_types(kind):
    data = torch.stack([torch.tensor([3.0, 1, 2, 0.1, -0.4, 1]), torch.tensor([0.0, 0, 0, 0.2, 0.5, 0])])
    data = {"rows": data, "one row": data[:1], "alike": data[:1].expand(5, -1)}[kind]
    z, x = simulate(mixed_types, data, num_data=640, seed=0)
    assert torch.equal(x[:, 5], data[torch.arange(640) % len(data), 5])
    assert (x[:, 3:5] - z).std() < 0.12
    assert set(x[:, 1].unique().tolist()) == {0.0, 1.0} and set(x[:, 2].unique().tolist()) == {0.0, 1.0, 2.0}
    assert ((x[:, 1] == 1) == (z[:, 0] > 0)).double().mean() > 0.9
    given = x[:, 5] == 1
    assert abs(x[given, 0].mean() - 10) < 4.5 * (10 / given.sum()) ** 0.5
    if kind == "rows":
        assert abs(x[~given, 0].mean() - 1) < 4.5 * (1 / (~given).sum()) ** 0.5


def test_a_column_given_by_the_column_before():
    """An autoregressive model: each site is drawn at the values that were drawn before it."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = normal("z", torch.zeros(1))
            pyro.sample("first", dist.Normal(z[..., 0], 0.1), obs=x[:, 0])
            pyro.sample("second", dist.Normal(3 * x[:, 0], 0.1), obs=x[:, 1])
            pyro.sample("third", dist.Normal(x[:, 1] - x[:, 0], 0.1), obs=x[:, 2])

    z, x = simulate(model, torch.zeros(1, 3), num_data=2000, seed=0)
    for found, expected in ((x[:, 0], z[:, 0]), (x[:, 1], 3 * x[:, 0]), (x[:, 2], x[:, 1] - x[:, 0])):
        assert abs((found - expected).std() - 0.1) < 4.5 * 0.1 / (2 * 2000) ** 0.5
    assert abs(x[:, 1].std() - 3 * 1.005) < 0.3


def test_wake_sleep_given_covariates():
    """The sleep phase leaves the covariates as they are: the guide finds the posterior, which uses them."""
    encoder = torch.nn.Linear(4, 4)
    guide = Amortized(MeanField(2), encoder)
    loss = WakeSleep(2, insomnia=0.0)
    training = Training(epochs=110, batch_size=250, optimizer=Adam(lr=5e-2))
    fit_svi(regression, guide, torch.randn(500, 4), loss=loss, train="guide", training=training, seed=0)
    expected = torch.tensor([[-1.6, 0, 0, 0.8], [0, 0.8, -1.6, 0]])
    torch.testing.assert_close(encoder.weight[:2].detach(), expected, atol=0.15, rtol=0)
