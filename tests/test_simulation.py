import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle

from inference import MeanField, simulate
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
        (lambda x, z: None, "expected one observed site.*got none"),
        (lambda x, z: [normal(name, z, x) for name in "ab"], "expected one observed site.*got 'a', 'b'"),
        (lambda x, z: normal("x", z[:, :2], x[:, :2]), r"'x': expected draws of the shape of x, \(64, 4\); got"),
        (lambda x, z: normal("x", z + normal("u", z), x), "one latent site, 'z'"),
    ],
    ids=["a factor", "a point mass", "nothing observed", "two sites", "part of x", "a second latent site"],
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
