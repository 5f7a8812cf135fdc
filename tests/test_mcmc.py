import copy
import dataclasses

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from oracles import LinearOracle, PoissonOracle
from torch import nn

from inference import (
    HMC,
    Amortized,
    Constrained,
    FullCovariance,
    Local,
    MeanField,
    conditioned,
    log_joint,
    sample_posterior,
    scoring,
)
from inference.convergence import autocorrelated_ess, nested_rhat
from inference.hmc import Course, Energy, Metric, Moving
from inference.mcmc import sampling
from pyro_vae.linear import LinearGaussian

FEW = {"num_superchains": 2, "chains_per_superchain": 3, "num_warmup": 20, "num_draws": 10}


def linear(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale)


def errors(of_chain, truth):
    """How far the mean over chains is from the truth, in errors estimated from the chains' own spread."""
    of_chain = np.asarray(of_chain)
    return (of_chain.mean(0) - truth) / (of_chain.std(0, ddof=1) / np.sqrt(len(of_chain)))


def moment_errors(draws, mean, covariance):
    """Of every posterior mean, and of every covariance about the exact mean."""
    apart = draws.z.numpy() - mean
    products = np.einsum("csni,csnj->cnij", apart, apart) / apart.shape[1]
    upper = np.triu_indices(mean.shape[-1])
    return np.concatenate(
        [
            errors(draws.z.mean(1), mean).ravel(),
            errors(products, np.broadcast_to(covariance, products.shape[1:]))[:, upper[0], upper[1]].ravel(),
        ]
    )


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_linear_draws_have_the_exact_mean_and_covariance(start):
    oracle = LinearOracle.random(8, 3)
    x = torch.tensor(oracle.draw(20))
    # Away from the posterior and narrow, so that doubling its scales still leaves something to forget.
    guide = Local(MeanField(3), torch.tensor([[1.0, -1.0, 0.5, -2.0, -2.0, -2.0]]).repeat(20, 1))
    draws = sample_posterior(linear(oracle).model, x, init=guide if start == "guide" else None, num_warmup=150, seed=0)
    off = moment_errors(draws, oracle.posterior_mean(x), oracle.covariance)
    assert off.size == 20 * (3 + 6) and np.abs(off).max() < 4
    assert 0.85 < np.sqrt((off**2).mean()) < 1.15  # errors of chains that agree are neither too small nor too large
    assert draws.converged.all() and draws.notes() == []
    assert draws.settings["seed"] == 0 and start in draws.settings["start"]
    assert draws.acceptance.mean().item() == pytest.approx(HMC().target_accept, abs=0.03)
    assert (draws.acceptance - HMC().target_accept).abs().max() < 0.15


def test_record_is_that_of_its_draws():
    oracle = LinearOracle.random(8, 3)
    x = torch.tensor(oracle.draw(5))
    model = linear(oracle)
    draws = sample_posterior(model.model, x, seed=0, **FEW)
    assert draws.z.shape == (6, 10, 5, 3) and draws.log_joint.shape == (6, 10, 5) and len(draws) == 5
    expected = scipy.stats.norm.logpdf(draws.z).sum(-1)
    mean = draws.z.numpy() @ oracle.weight.T + oracle.bias
    expected += scipy.stats.norm.logpdf(x.numpy(), mean, oracle.scale).sum(-1)
    np.testing.assert_allclose(draws.log_joint, expected)
    halves = draws.log_joint[:, 5:].mean(1) - draws.log_joint[:, :5].mean(1)
    np.testing.assert_allclose(draws.drift, halves.mean(0))
    np.testing.assert_allclose(draws.drift_se, halves.std(0) / np.sqrt(6))
    quantities = [*draws.z.unbind(-1), draws.log_joint]
    rhat = torch.stack([nested_rhat(values.unflatten(0, (2, 3))) for values in quantities]).amax(0)
    ess = torch.stack([autocorrelated_ess(values) for values in quantities]).amin(0)
    # The same sums over tensors that lie otherwise in memory: the last bit is the machine's.
    torch.testing.assert_close(draws.nested_rhat, rhat, rtol=1e-12, atol=0)
    torch.testing.assert_close(draws.ess, ess, rtol=1e-12, atol=0)


def test_chains_of_a_superchain_start_together_and_then_part(monkeypatch):
    starts = []
    original = Energy.point

    def spy(energy, z):
        starts.append(z)
        return original(energy, z)

    monkeypatch.setattr(Energy, "point", spy)
    oracle = LinearOracle.random(8, 3)
    draws = sample_posterior(linear(oracle).model, torch.tensor(oracle.draw(5)), seed=0, **FEW)
    points = starts[0].unflatten(0, (2, 3))
    assert (points == points[:, :1]).all() and (points[0] != points[1]).all()
    assert len(np.unique(draws.z[:, 0, 0, 0])) == 6


def test_starts_are_over_dispersed(monkeypatch):
    """Twice as wide as the guide, around its mean; or as wide as the prior."""
    starts = []
    monkeypatch.setattr(sampling, "_sample", lambda target, start, *_, **__: starts.append(start) or {})
    model = linear(LinearOracle.random(8, 2))
    rows = FullCovariance(2).params_from(
        dist.MultivariateNormal(torch.tensor([5.0, -5.0]), torch.tensor([[4.0, 1.0], [1.0, 1.0]])).expand((2,))
    )
    for init, mean, covariance in (
        (None, [0.0, 0.0], np.eye(2)),
        (Local(FullCovariance(2), rows), [5.0, -5.0], 4 * np.array([[4.0, 1.0], [1.0, 1.0]])),
    ):
        with pytest.raises(KeyError):
            sample_posterior(model.model, torch.zeros(2, 8), init=init, num_superchains=4000, seed=0)
        points, scale = starts.pop()
        np.testing.assert_allclose(points.mean(0), np.broadcast_to(mean, (2, 2)), atol=4 * 4 / np.sqrt(4000))
        for n in range(2):
            np.testing.assert_allclose(np.cov(points[:, n].T), covariance, atol=0.1 * covariance.max())
        exact = np.broadcast_to(np.sqrt(np.diag(covariance)) / (1 if init is None else 2), (2, 2))
        np.testing.assert_allclose(scale, exact, rtol=0.4 if init is None else 1e-6)


def square(x):
    """Two modes: x = z^2 + noise."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 2.0).to_event(1))
        pyro.sample("x", dist.Normal(z.square(), 0.1).to_event(1), obs=x)


def test_superchains_stuck_in_different_modes_are_flagged():
    hmc = HMC(target_accept=0.65)
    x = torch.full((12, 1), 4.0)
    draws = sample_posterior(square, x, chains_per_superchain=8, num_warmup=100, hmc=hmc, seed=0)
    modes = draws.z.sign().mean((1, 3))
    assert (modes.abs() == 1).all()  # no chain ever crosses
    split = modes.mean(0).abs() < 1
    whole = split & (modes.unflatten(0, (4, 8)).mean(1).abs() == 1).all(0)
    assert split.sum() > 6 and whole.sum() > 1
    # Where some chains of a superchain went left and others right, the superchains differ by the luck of few chains.
    assert (draws.nested_rhat[whole] > 1.5).all() and (draws.nested_rhat[split] > 1.05).all()
    # What all chains have missed, no comparison between them can show.
    assert (draws.nested_rhat[~split] < 1.01).all()
    assert f"nested R-hat above 1.01 at {int(split.sum())} of 12" in str(draws)


@pytest.mark.parametrize("num_warmup", [0, 10, 15])
def test_too_little_warm_up_is_flagged(num_warmup):
    oracle = LinearOracle.random(50, 4, scale=0.2)
    # Steps that are too long for a start from afar.
    hmc = HMC(num_leapfrog=2, target_accept=0.65)
    draws = sample_posterior(
        linear(oracle).model, torch.tensor(oracle.draw(10)), num_warmup=num_warmup, hmc=hmc, seed=0
    )
    assert (draws.nested_rhat > 1.01).all()
    notes = " ".join(map(str, draws.notes()))
    assert "nested R-hat above 1.01 at 10 of 10" in notes and "acceptance outside" in notes


def test_chains_still_on_their_way_drift():
    oracle = LinearOracle.random(50, 4, scale=0.2)
    draws = sample_posterior(
        linear(oracle).model, torch.tensor(oracle.draw(10)), num_warmup=20, hmc=HMC(num_leapfrog=2), seed=0
    )
    mean = draws.drift.mean().item()
    assert mean > 3 * draws.drift_se.square().sum().sqrt().item() / 10
    assert any(f"log p(x, z) drifts by {mean:.4f} nats" in note.text for note in draws.notes())


def test_enough_warm_up_is_not_flagged():
    oracle = LinearOracle.random(50, 4, scale=0.2)
    draws = sample_posterior(
        linear(oracle).model, torch.tensor(oracle.draw(10)), num_warmup=150, hmc=HMC(num_leapfrog=2), seed=0
    )
    assert draws.converged.all() and draws.notes() == []


class Poisson(nn.Module):
    """As `PoissonOracle`."""

    def __init__(self, oracle):
        super().__init__()
        self.intercept, self.slope = torch.tensor(oracle.intercept), torch.tensor(oracle.slope)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson((self.intercept + self.slope * z).exp()).to_event(1), obs=x)


def test_poisson_draws_have_the_moments_of_quadrature():
    oracle = PoissonOracle.random()
    x = oracle.draw(40)
    draws = sample_posterior(Poisson(oracle), torch.tensor(x), num_warmup=100, seed=0)
    grid = np.linspace(-8, 8, 4001)
    log_joint = oracle.log_joint(x, grid)
    weights = np.exp(log_joint - log_joint.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    for power in (1, 2, 3):
        off = errors((draws.z[..., 0] ** power).mean(1), weights @ grid**power)
        assert np.abs(off).max() < 4
    expected = (weights * log_joint).sum(1)
    assert np.abs(errors(draws.log_joint.mean(1), expected)).max() < 4


class SmallVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 12))
        for weight in self.decoder.parameters():
            nn.init.normal_(weight)

    def forward(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


MOMENTS = (lambda z: z, lambda z: z**2, lambda z: z[..., :1] * z[..., 1:])


def test_small_vae_draws_have_the_moments_of_quadrature():
    model = SmallVAE()
    x = torch.bernoulli(torch.sigmoid(model.decoder(torch.randn(20, 2)))).detach()
    draws = sample_posterior(model, x, num_warmup=150, seed=0)
    grid = torch.cartesian_prod(*[torch.linspace(-6, 6, 201)] * 2)
    with torch.no_grad():
        log_p = torch.cat([log_joint(model, x, z[:, None].expand(-1, 20, -1)) for z in grid.split(4000)])
    weights = log_p.softmax(0).T
    off = np.concatenate([errors(f(draws.z).mean(1), (weights @ f(grid)).numpy()).ravel() for f in MOMENTS])
    assert draws.converged.all() and off.size == 20 * 5 and np.abs(off).max() < 4


@pytest.mark.slow
def test_draws_agree_with_nuts():
    """Within four errors of the difference: over chains of ours, from NUTS's effective draws (ArviZ) of its one."""
    model = SmallVAE()
    x = torch.bernoulli(torch.sigmoid(model.decoder(torch.randn(3, 2)))).detach()
    ours = sample_posterior(model, x, num_warmup=150, seed=0)
    # All datapoints together are one target.
    chains = pyro.infer.MCMC(pyro.infer.NUTS(model), 800, warmup_steps=200, disable_progbar=True)
    chains.run(x)
    theirs = chains.get_samples()["z"]
    off = []
    for moment in MOMENTS:
        of_chain, other = moment(ours.z).mean(1).numpy(), moment(theirs).numpy()
        error = of_chain.std(0, ddof=1) / np.sqrt(len(of_chain))
        others = np.array([[arviz.mcse(other[None, :, n, d]) for d in range(other.shape[2])] for n in range(3)])
        off.append(((of_chain.mean(0) - other.mean(0)) / np.hypot(error, others)).ravel())
    off = np.concatenate(off)
    assert ours.converged.all() and off.size == 3 * 5 and np.abs(off).max() < 4


def constrained(prior, likelihood):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    return model


COUNTS = torch.tensor([[0.0, 3.0, 5.0], [7.0, 1.0, 0.0]], dtype=torch.float64)
CONSTRAINED = {
    "half-line": (
        constrained(
            dist.Gamma(torch.full_like(COUNTS[0], 2.0), 1.0).to_event(1), lambda z: dist.Poisson(2 * z).to_event(1)
        ),
        lambda x: dist.Gamma(2.0 + x, 3.0),
    ),
    "interval": (
        constrained(
            dist.Uniform(torch.zeros_like(COUNTS[0]), 1.0).to_event(1), lambda z: dist.Binomial(8, z).to_event(1)
        ),
        lambda x: dist.Beta(1 + x, 9 - x),
    ),
    "simplex": (
        constrained(dist.Dirichlet(torch.full_like(COUNTS[0], 1.5)), lambda z: dist.Multinomial(8, z)),
        lambda x: dist.Dirichlet(1.5 + x),
    ),
}


@pytest.mark.parametrize("case", CONSTRAINED)
def test_constrained_draws_have_the_exact_moments(case):
    model, posterior = CONSTRAINED[case]
    q = posterior(COUNTS)
    draws = sample_posterior(model, COUNTS, num_warmup=100, num_draws=200, seed=0)
    assert q.support.check(draws.z).all()
    assert np.abs(errors(draws.z.mean(1), q.mean.numpy())).max() < 4
    assert np.abs(errors((draws.z - q.mean).square().mean(1), q.variance.numpy())).max() < 4
    with pyro.plate("draws", draws.z[..., 0, 0].numel(), dim=-2):
        trace = pyro.poutine.trace(pyro.poutine.condition(model, {"z": draws.z.flatten(0, 1)})).get_trace(COUNTS)
    trace.compute_log_prob()
    expected = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    torch.testing.assert_close(draws.log_joint.flatten(0, 1), expected)


@pytest.mark.parametrize("kind", ["family", "other"])
def test_a_constrained_guide_places_the_chains(kind, monkeypatch):
    model, posterior = CONSTRAINED["half-line"]
    rows = torch.tensor([[0.5, 0.5, 0.5, -1.0, -1.0, -1.0]]).repeat(2, 1)
    family = Constrained(MeanField(3), dist.constraints.positive)

    def other(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.LogNormal(0.5 * torch.ones(len(x), 3), 0.1).to_event(1))

    guide = Local(family, rows) if kind == "family" else other
    draws = sample_posterior(model, COUNTS, init=guide, num_warmup=100, seed=0)
    assert np.abs(errors(draws.z.mean(1), posterior(COUNTS).mean.numpy())).max() < 4


def test_bits_belong_to_the_seed_and_draws_to_datapoints(monkeypatch):
    oracle = LinearOracle.random(8, 3)
    x = torch.tensor(oracle.draw(70))
    model = linear(oracle).model
    draws = sample_posterior(model, x, seed=3, **FEW)
    torch.manual_seed(123)
    again = sample_posterior(model, x, seed=3, **FEW)
    assert torch.equal(draws.z, again.z) and torch.equal(draws.log_joint, again.log_joint)
    assert not torch.equal(draws.z, sample_posterior(model, x, seed=4, **FEW).z)
    monkeypatch.setattr(scoring, "VALUES_AT_ONCE", 1)  # chunks of 64
    torch.testing.assert_close(sample_posterior(model, x, seed=3, **FEW).z, draws.z)
    torch.testing.assert_close(sample_posterior(model, x[:10], seed=3, **FEW).z, draws.z[:, :, :10])


def test_nothing_is_left_behind():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))

        def forward(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                loc = self.decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 3)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    model, guide = Normalised(), Amortized(MeanField(2), nn.Linear(3, 4))
    before = copy.deepcopy([model.state_dict(), guide.state_dict()])
    random_state = torch.get_rng_state()
    sample_posterior(model, torch.zeros(4, 3), init=guide, seed=0, **FEW)
    for kept, now in zip(before, [model.state_dict(), guide.state_dict()], strict=True):
        assert all(torch.equal(kept[name], now[name]) for name in kept)
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert dict(pyro.get_param_store()) == {} and torch.equal(random_state, torch.get_rng_state())


def test_given_global_sites():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + w, 1.0).to_event(1), obs=x)

    x, w = torch.ones(3, 2), torch.tensor([3.0, -3.0])
    draws = sample_posterior(model, x, given={"w": w[None]}, seed=0, **FEW)
    by_hand = sample_posterior(conditioned(model, {"w": w}), x, seed=0, **FEW)
    assert torch.equal(draws.z, by_hand.z) and draws.settings["given_sites"] == ["w"]
    with pytest.raises(ValueError, match="given: expected one draw.*sample_posterior"):
        sample_posterior(model, x, given={"w": torch.zeros(2, 2)}, **FEW)
    with pytest.raises(ValueError, match="'w' outside it"):
        sample_posterior(model, x, **FEW)


CASES = {
    "one superchain": ({"num_superchains": 1}, "num_superchains: expected an integer of at least 2; got 1"),
    "no chains": ({"chains_per_superchain": 0}, "chains_per_superchain: .*at least 1; got 0"),
    "no draws": ({"num_draws": 3}, "num_draws: .*at least 4; got 3"),
    "warm-up": ({"num_warmup": 2.5}, "num_warmup: .*got 2.5"),
    "rows": ({"init": torch.zeros(4, 6)}, r"init: expected a guide or None; got Tensor. .*Local\(family, rows\)"),
    "rows of others": ({"init": Local(MeanField(3), torch.zeros(3, 6))}, "one row a datapoint, 4; got 3 rows"),
    "size of the guide": ({"init": Local(MeanField(2), torch.zeros(4, 4))}, "num_latents = 3"),
    "support of the guide": (
        {"init": Local(Constrained(MeanField(3), dist.constraints.positive), torch.zeros(4, 6))},
        "all real vectors",
    ),
    "site": ({"site": "w"}, "site 'w'.*'z'"),
    "empty": ({"data": torch.zeros(0, 8)}, "data: .*got none"),
    "infinity": ({"data": torch.full((4, 8), torch.inf)}, "datapoint 0 holds NaN"),
    "seed": ({"seed": -1}, "seed: .*-1"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    change, message = CASES[case]
    arguments = {"model": linear(LinearOracle.random(8, 3)).model, "data": torch.zeros(4, 8), **FEW, **change}
    with pytest.raises(ValueError, match=message) as error:
        sample_posterior(**arguments)
    assert "\n" not in str(error.value)


def test_record_prints_a_short_table():
    draws = sample_posterior(linear(LinearOracle.random(8, 3)).model, torch.zeros(4, 8), seed=0, **FEW)
    lines = str(draws).splitlines()
    assert lines[0].startswith("asymptotically exact draws: 6 chains (2 starting points a datapoint) x 10 draws, N = 4")
    assert [line.split("  ")[0] for line in lines[2:5]] == ["nested R-hat", "effective draws", "acceptance"]
    fine = dataclasses.replace(
        draws, nested_rhat=torch.ones(4), drift=torch.zeros(4), drift_se=torch.ones(4), acceptance=torch.full((4,), 0.6)
    )
    assert fine.notes() == []
    for field, value, text in (
        ("nested_rhat", 1.02, "nested R-hat above 1.01 at 1 of 4"),
        ("drift", 4.0, "at 1 of 4 datapoints: the warm-up was too short"),
        ("acceptance", 0.2, r"acceptance outside [0.3, 0.95] at 1 of 4"),
        ("acceptance", 0.99, r"acceptance outside [0.3, 0.95] at 1 of 4"),
    ):
        column = getattr(fine, field).clone()
        column[1] = value
        (note,) = dataclasses.replace(fine, **{field: column}).notes()
        assert note.severity == "warning" and text in str(note)


@pytest.mark.parametrize("factor", [torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0])])
def test_the_error_of_a_leapfrog_step_is_of_third_order(factor):
    """Along a way of fixed length that of the energy is of second order: half the step, a quarter of the error."""

    def log_density(z):
        return (-(z**4).sum(-1) / 4 - (z[..., 0] - z[..., 1]).square() / 2,)

    def error(num_steps):
        torch.manual_seed(0)
        z, r = torch.randn(2, 1, 500, 2, dtype=torch.float64)
        energy = Energy(log_density, hmc=HMC(compile=False), num_transitions=1)
        point = energy.point(z)
        course = Course(torch.ones(1, dtype=z.dtype), torch.full((1, 500, 1), 0.4 / num_steps, dtype=z.dtype), scales)
        moving = Moving(z, r, point.grads[0])
        for _ in range(num_steps - 1):
            moving = energy.leap(moving, course)
        now, momentum = energy.last_leap(moving, course)
        before = point.terms[0] - 0.5 * r.square().sum(-1)
        return float((now.terms[0] - 0.5 * momentum.square().sum(-1) - before).abs().mean())

    scales = factor.double().expand(500, 2)
    assert Metric(scales).forward(torch.ones(1, 500, 2, dtype=torch.float64))[0, 0].tolist() == factor.tolist()
    assert error(8) / error(16) == pytest.approx(4, abs=0.3)
