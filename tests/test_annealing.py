import dataclasses

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle, PoissonOracle

from inference import (
    HMC,
    Amortized,
    Annealing,
    FullCovariance,
    GeometricSchedule,
    LinearSchedule,
    Local,
    MeanField,
    PlanarFlow,
    SigmoidalSchedule,
    ais,
    bdmc,
    quadrature,
)
from inference.evidence import path as path_module
from pyro_vae.linear import LinearGaussian

SCHEDULES = [LinearSchedule(), SigmoidalSchedule(), SigmoidalSchedule(delta=8.0), GeometricSchedule()]
SHORT = Annealing(num_temperatures=40, hmc=HMC(num_leapfrog=3))


@pytest.fixture
def oracle():
    return LinearOracle.random(num_values=6, num_latents=3)


def program(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale)


def poisson(oracle):
    intercept, slope = torch.tensor(oracle.intercept), torch.tensor(oracle.slope)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson((intercept + z * slope).exp()).to_event(1), obs=x)

    return model


def posterior_guide(oracle, x, *, factor=1.0):
    """The exact posterior with its scales multiplied by a factor."""
    covariance = torch.tensor(factor**2 * oracle.covariance).expand(len(x), -1, -1)
    family = FullCovariance(len(oracle.precision))
    loc = torch.tensor(oracle.posterior_mean(x))
    return Local(family, family.params_from(dist.MultivariateNormal(loc, covariance)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_increases_from_0_to_1(schedule):
    for size in (2, 3, 1000):
        betas = schedule(size)
        assert betas.shape == (size + 1,) and betas[0] == 0 and betas[-1] == 1
        assert (betas.diff() > 0).all()


def test_a_geometric_schedule_grows_by_one_factor():
    betas = GeometricSchedule(first=1e-2)(5)[1:]
    torch.testing.assert_close(betas, torch.tensor(10 ** np.linspace(-2, 0, 5)))


@pytest.mark.parametrize("start", [None, MeanField(3), FullCovariance(3)], ids=["prior", "mean-field", "full"])
def test_the_weights_are_unbiased_however_short_the_path(oracle, start):
    # Copies of one datapoint: independent chains at the same target. E[w] = p(x) at any number of temperatures.
    x = torch.tensor(oracle.draw(1)).expand(256, -1)
    path = Annealing(num_temperatures=12, num_chains=64, num_pilot_chains=8, hmc=HMC(num_leapfrog=2))
    evidence = ais(program(oracle).model, x, start=start, annealing=path, seed=0)
    ratio = (evidence.value - oracle.log_evidence(x)[0]).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 16
    # A wrong ratio could hide in the noise.
    assert ratio.std() / 16 < 0.1
    assert ((evidence.acceptance > 0.3) & (evidence.acceptance < 0.95)).all()


@pytest.mark.parametrize("start", [None, MeanField(3)], ids=["prior", "mean-field"])
def test_the_bounds_enclose_the_evidence(oracle, start):
    bounds = bdmc(
        program(oracle).model, torch.tensor(oracle.draw(8)), start=start, num_data=192, annealing=SHORT, seed=0
    )
    log_p = torch.tensor(oracle.log_evidence(bounds.x))
    summary = bounds.summary()
    below, above = (bounds.lower.value - log_p).mean(), (bounds.upper.value - log_p).mean()
    errors = {name: 3 * summary[name]["mc_se"] for name in ("lower", "upper")}
    assert -0.5 < below < errors["lower"] and -errors["upper"] < above < 0.5
    assert bounds.lower.bound == "lower" and bounds.upper.bound == "upper"
    assert (bounds.lower.bias <= 0).all() and (bounds.upper.bias >= 0).all()
    # From q* the way is short, from the prior it is not: there the two are seen to be apart.
    if start is None:
        assert summary["width"]["mean"] > 3 * summary["width"]["se"]
    else:
        assert abs(summary["width"]["mean"]) < 0.05
    # Chains forward and chains backward, of w / p and of p / w, both have mean 1.
    for sign, bound in ((1, bounds.lower), (-1, bounds.upper)):
        ratio = (sign * (bound.value - log_p)).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / 192**0.5


def test_the_true_latents_belong_to_the_backward_chains_alone(oracle, monkeypatch):
    model, x = program(oracle).model, torch.tensor(oracle.draw(8))
    before = bdmc(model, x, num_data=8, annealing=SHORT, seed=0)

    def elsewhere(*args, **kwargs):
        return before.z + 1.0, before.x

    monkeypatch.setattr("inference.evidence.bidirectional.simulate", elsewhere)
    after = bdmc(model, x, num_data=8, annealing=SHORT, seed=0)
    assert torch.equal(before.lower.value, after.lower.value)
    assert not torch.equal(before.upper.value, after.upper.value)


@pytest.mark.parametrize("num_temperatures", [2, 3, 12, 40, 1000])
def test_pilot_chains_go_all_the_way(num_temperatures):
    """At every temperature between the ends from the prior; from near the posterior rarely, but at the last one."""
    near, far = (path_module._pilot_transitions(num_temperatures, is_near=is_near) for is_near in (True, False))
    assert len(near) == len(far) == num_temperatures - 1
    assert near[0] == path_module.PILOT_NEAR[0] and far[0] == path_module.PILOT[0]
    assert min(far) >= 1
    if num_temperatures > 2:
        assert near[-1] >= 1 and sum(near[1:]) == max(path_module.PILOT_NEAR[1], (num_temperatures - 2) // 10)


@pytest.mark.parametrize("start", [None, "guide"])
def test_pilot_chains_share_no_draw_with_those_that_count(oracle, start, monkeypatch):
    model, x = program(oracle).model, torch.tensor(oracle.draw(4))
    stages = []
    for name in ("normal_noise", "prior_draws"):
        original = getattr(path_module, name)

        def recorded(*args, original=original, **kwargs):
            stages.append(kwargs.get("stage") or args[1])
            return original(*args, **kwargs)

        monkeypatch.setattr(path_module, name, recorded)
    guide = None if start is None else posterior_guide(oracle, x, factor=1.5)
    path = path_module.path_at(model, torch.arange(4), x, guide, num_data=4, site="z", annealing=SHORT, seed=0)
    drawn = []
    plan = path.plan(seed=0)
    for run in (
        lambda: path.forward(plan, seed=0),
        lambda: path.backward(torch.zeros(4, 3), plan, seed=0),
    ):
        drawn.append(set(stages))
        stages.clear()
        run()
    pilot, forward, backward = *drawn, set(stages)
    assert pilot and forward and backward
    assert not pilot & forward and not pilot & backward and not forward & backward


def test_a_longer_path_falls_less_short(oracle):
    x = torch.tensor(oracle.draw(256))
    short, long = (
        ais(program(oracle).model, x, annealing=dataclasses.replace(SHORT, num_temperatures=t), seed=0).value
        for t in (3, 40)
    )
    gain = long - short
    assert gain.mean() > 3 * gain.std() / 16


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_annealing_agrees_with_quadrature_beyond_normals(schedule):
    oracle = PoissonOracle.random()
    x = torch.tensor(oracle.draw(64))
    path = Annealing(num_temperatures=60, num_chains=32, schedule=schedule)
    evidence = ais(poisson(oracle), x, annealing=path, seed=0)
    error = evidence.value - torch.tensor(oracle.log_evidence(x.numpy()))
    assert abs(error.mean()) < 4 * evidence.se.square().sum().sqrt() / 64 + 0.5 * evidence.se.square().mean()
    assert (error.abs() < 6 * evidence.se + 0.02).all()
    assert evidence.pareto_k is not None and evidence.bound == "lower"


def test_a_constrained_latent_is_moved_in_the_coordinates_of_the_reals():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Beta(torch.tensor([0.8]), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 0.2).to_event(1), obs=x)

    x = torch.rand(32, 3)
    evidence = ais(model, x, annealing=Annealing(num_temperatures=60, num_chains=32), seed=0)
    error = evidence.value - quadrature(model, x).value
    assert (error.abs() < 5 * evidence.se + 0.02).all()
    assert abs(error.mean()) < 4 * evidence.se.square().sum().sqrt() / 32 + 0.005


def test_a_datapoint_has_its_own_value(oracle, monkeypatch):
    model, x = program(oracle).model, torch.tensor(oracle.draw(130))
    whole = ais(model, x, annealing=SHORT, seed=0)
    torch.testing.assert_close(whole.value[:100], ais(model, x[:100], annealing=SHORT, seed=0).value)
    monkeypatch.setattr("inference.scoring.VALUES_AT_ONCE", 1)
    torch.testing.assert_close(whole.value, ais(model, x, annealing=SHORT, seed=0).value)


def test_the_same_seed_gives_the_same_bits_and_the_model_stays_as_it_is(oracle):
    linear, x = program(oracle), torch.tensor(oracle.draw(8))
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    first, again, other = (ais(linear.model, x, start=MeanField(3), annealing=SHORT, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.value, again.value) and not torch.equal(first.value, other.value)
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())
    assert all(weight.grad is None for weight in linear.parameters())


def test_a_guide_is_where_chains_start(oracle):
    x = torch.tensor(oracle.draw(16))
    exact = ais(program(oracle).model, x, start=posterior_guide(oracle, x), annealing=SHORT, seed=0)
    # At r = posterior every weight is p(x).
    torch.testing.assert_close(exact.value, torch.tensor(oracle.log_evidence(x)))
    amortized = Amortized(MeanField(3), torch.nn.Linear(6, 6))
    evidence = ais(program(oracle).model, x, start=amortized, annealing=SHORT, seed=0)
    assert "guide's q in MeanField(3)" in evidence.method and (evidence.ess <= 16 + 1e-9).all()


def test_a_search_does_not_start_where_a_false_mode_holds_it():
    """A narrow mode explains x; a search from the standard normal slides away from it, to one that does not."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            bump = (-0.5 * ((z - 2.0) / 0.15).square()).exp()
            pyro.sample("x", dist.Normal(6 * bump - 0.3 * z, 0.1 * torch.ones(1)).to_event(1), obs=x)

    x = torch.full((16, 1), 5.2)
    exact = quadrature(model, x, max_points=2**16)
    evidence = ais(model, x, start=MeanField(1), annealing=SHORT, seed=0)
    assert abs((evidence.value - exact.value).mean()) < 0.2


def test_simulated_and_real_data_stand_side_by_side(oracle):
    model, x = program(oracle).model, torch.tensor(oracle.draw(64)) + 5.0
    bounds = bdmc(model, x, start=MeanField(3), num_data=64, annealing=SHORT, seed=0)
    # Real data that the model did not make: no estimator may hide it.
    assert bounds.real.elbo.value.mean() < bounds.simulated.elbo.value.mean() - 10
    text = str(bounds)
    assert "simulated" in text and "median Pareto k" in text and "not a bound" in text
    assert bounds.real.elbo.value.shape == (64,) and bounds.x.shape == (64, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: Annealing(num_chains=1), "num_chains: expected an integer of at least 2"),
        (lambda m, x: Annealing(num_temperatures=2.5), "num_temperatures: expected an integer"),
        (lambda m, x: SigmoidalSchedule(delta=0), "delta: expected a positive number"),
        (lambda m, x: GeometricSchedule(first=1.0), "first: expected an inverse temperature"),
        (lambda m, x: HMC(num_leapfrog=0), "num_leapfrog: expected an integer of at least 1"),
        (lambda m, x: HMC(target_accept=1.0), "target_accept: expected a probability"),
        (lambda m, x: HMC(jitter=1.0), "jitter: expected a number"),
        (lambda m, x: ais(m, x, start=MeanField(2), annealing=SHORT), "expected num_latents = 3"),
        (lambda m, x: ais(m, x, site="w", annealing=SHORT), "site 'w'"),
        (lambda m, x: bdmc(m, x, start=Local(MeanField(3), torch.zeros(4, 6))), "rows belong to other datapoints"),
    ],
)
def test_what_cannot_run_is_refused(oracle, call, message):
    with pytest.raises(ValueError, match=message):
        call(program(oracle).model, torch.tensor(oracle.draw(4)))


def test_a_start_without_a_density_is_refused(oracle):
    x = torch.tensor(oracle.draw(4))
    guide = Amortized(PlanarFlow(3), torch.nn.Linear(6, PlanarFlow(3).num_params))
    with pytest.raises(ValueError, match="start: .*density"):
        ais(program(oracle).model, x, start=guide, annealing=SHORT)
