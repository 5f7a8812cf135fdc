import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle
from torch import nn

from inference import (
    HMC,
    Adam,
    Amortized,
    Constrained,
    Cosine,
    CouplingFlow,
    FullCovariance,
    Local,
    MeanField,
    RobbinsMonro,
    Training,
    conditioned,
    fit_mcem,
    refine,
)
from inference.mcmc import mcem
from pyro_vae.linear import LinearGaussian

STILL = Adam(lr=1e-12)


def start(num_values=8, num_latents=2):
    torch.manual_seed(0)
    return LinearGaussian(0.3 * torch.randn(num_values, num_latents), torch.zeros(num_values), 1.0)


def oracle_of(model):
    return LinearOracle(*(part.detach().numpy() for part in (model.weight, model.bias, model.scale)))


@pytest.fixture
def x():
    return torch.tensor(LinearOracle.random(8, 2).draw(200))


@pytest.fixture
def chains(monkeypatch):
    """The chains of the last fit."""
    made = []

    class Spy(mcem.Chains):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            made.append(self)

    monkeypatch.setattr(mcem, "Chains", Spy)
    return made


@pytest.mark.parametrize(
    ("epochs", "steps", "schedule"),
    [
        pytest.param(60, 2, Cosine(), id="cosine"),
        pytest.param(120, 5, RobbinsMonro(exponent=0.8, delay=200.0), id="Robbins-Monro", marks=pytest.mark.slow),
    ],
)
def test_reaches_the_maximum_likelihood(epochs, steps, schedule):
    oracle = LinearOracle.random(10, 3)
    x = torch.tensor(oracle.draw(500))
    model = start(10, 3)
    training = Training(epochs=epochs, batch_size=100, optimizer=Adam(lr=0.05), schedule=schedule, local_steps=steps)
    fit_mcem(model.model, x, training=training, seed=0)
    short = oracle.best_log_evidence(x, 3) - oracle_of(model).log_evidence(x).mean()
    assert short == pytest.approx(0.0, abs=0.01)


def test_at_a_model_that_stands_still_the_chains_are_posterior_draws(x, chains):
    model = LinearGaussian(torch.tensor(LinearOracle.random(8, 2).weight), torch.zeros(8), 0.7)
    fit = fit_mcem(model.model, x, num_chains=8, training=Training(epochs=10, batch_size=200, optimizer=STILL), seed=0)
    oracle = oracle_of(model)
    root = np.linalg.cholesky(oracle.precision)
    white = ((chains[0].u.numpy() - oracle.posterior_mean(x)) @ root).reshape(-1, 2)
    assert np.abs(white.mean(0)).max() < 4 / math.sqrt(len(white))
    covariance = white.T @ white / len(white)
    assert abs(covariance[0, 1]) < 4 / math.sqrt(len(white))
    assert np.abs(np.diag(covariance) - 1).max() < 4 * math.sqrt(2 / len(white))
    # E log p(x, z) under the posterior is log p(x) less the posterior's entropy.
    entropy = math.log(2 * math.pi * math.e) - 0.5 * np.linalg.slogdet(oracle.precision)[1]
    expected = oracle.log_evidence(x).mean() - entropy
    # Of each draw the log density varies by D / 2.
    assert np.abs(fit.log_joint.numpy() - expected).max() < 4 * math.sqrt(1 / (200 * 8))
    assert fit.elbo is None and fit.elbo_validation is None and fit.params is None
    assert (chains[0].age == 10 * 5 + 50).all()


def test_step_sizes_settle_where_the_acceptance_is_the_target(x, chains, monkeypatch):
    accepts = []
    original = mcem.transition

    def spy(*arguments, **options):
        point, accept = original(*arguments, **options)
        accepts.append(accept.mean())
        return point, accept

    monkeypatch.setattr(mcem, "transition", spy)
    training = Training(epochs=40, batch_size=200, optimizer=STILL)
    fit_mcem(start().model, x, hmc=HMC(target_accept=0.8), training=training, seed=0)
    assert torch.stack(accepts[-100:]).mean().item() == pytest.approx(0.8, abs=0.03)


def test_chains_outside_the_batch_do_not_move(x, chains, monkeypatch):
    moved = []
    original = mcem.Chains.move

    def spy(table, x, index, num_steps):
        before = table.u.clone(), table.step_size.clone(), table.age.clone()
        z = original(table, x, index, num_steps)
        changed = [(table.u != before[0]).any(-1).any(0), table.step_size != before[1], table.age != before[2]]
        moved.append((sorted(index.tolist()), num_steps, [part.nonzero().squeeze(-1).tolist() for part in changed]))
        return z

    monkeypatch.setattr(mcem.Chains, "move", spy)
    training = Training(epochs=3, batch_size=10, local_steps=3)
    fit_mcem(start().model, x[:30], burn_in=20, training=training, seed=0)
    assert [steps for _, steps, _ in moved] == 3 * [23] + 6 * [3]
    for visited, _, changed in moved:
        assert changed == [visited] * 3


def test_m_step_moves_the_model_and_e_step_does_not(x, monkeypatch):
    model = start()
    original = mcem.Chains.move

    def spy(*arguments):
        before = [weight.detach().clone() for weight in model.parameters()]
        z = original(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert all(weight.grad is None for weight in model.parameters())
        return z

    monkeypatch.setattr(mcem.Chains, "move", spy)
    before = model.weight.detach().clone()
    fit = fit_mcem(model.model, x, burn_in=5, training=Training(epochs=2, batch_size=50), seed=0)
    assert not torch.equal(before, model.weight) and fit.num_steps == 8


def test_starts_are_draws_of_the_prior_or_the_guide(x, chains):
    never = HMC(num_leapfrog=1)
    options = {"num_chains": 500, "burn_in": 0, "hmc": never}
    rows = torch.tensor([[3.0, -3.0, -1.0, 0.5]]).repeat(4, 1)
    q = MeanField(2)(rows[0])
    for init, mean, std in ((None, torch.zeros(2), torch.ones(2)), (Local(MeanField(2), rows), q.mean, q.stddev)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mcem.Chains, "move", lambda table, x, index, num_steps: table.u[:, index])
            training = Training(epochs=1, batch_size=4, optimizer=STILL)
            fit = fit_mcem(start().model, x[:4], init=init, training=training, seed=0, **options)
        u = chains.pop().u.flatten(0, 1)
        assert ((u.mean(0) - mean).abs() < 4 * std / math.sqrt(len(u))).all()
        assert ((u.std(0) / std - 1).abs() < 4 / math.sqrt(2 * len(u))).all()
        assert fit.settings["start"] == ("prior" if init is None else "guide")


def test_one_seed_fixes_every_bit(x):
    def weights(seed):
        model = start()
        fit = fit_mcem(model.model, x, burn_in=5, training=Training(epochs=2, batch_size=50), seed=seed)
        return torch.cat([model.weight.detach().flatten(), fit.log_joint])

    first = weights(3)
    torch.manual_seed(99)
    assert torch.equal(first, weights(3)) and not torch.equal(first, weights(4))


@pytest.mark.parametrize("family", [None, FullCovariance(2)])
def test_held_out_elbo_is_that_of_refined_rows(x, family):
    model = start()
    training = Training(epochs=1, batch_size=50, optimizer=Adam(lr=0.02))
    fit = fit_mcem(model.model, x, burn_in=5, training=training, validation=x[:80], validation_family=family, seed=0)
    best = refine(model.model, family or MeanField(2), x[:80], seed=1).elbo.mean().item()
    assert fit.elbo_validation[-1].item() == pytest.approx(best, abs=0.05)
    assert "mean log p(x, z)" in str(fit) and f"held-out ELBO {fit.elbo_validation[-1]:.3f}" in str(fit)


def test_patience_keeps_the_best(x):
    model = start()
    training = Training(epochs=40, batch_size=20, optimizer=Adam(lr=0.3), patience=2)
    fit = fit_mcem(model.model, x[:20], training=training, validation=x[20:60], seed=0)
    assert fit.best_epoch == fit.elbo_validation.argmax().item() == len(fit.log_joint) - 3
    best = refine(model.model, MeanField(2), x[20:60], seed=1).elbo.mean().item()
    assert fit.elbo_validation.max().item() == pytest.approx(best, abs=0.1)


class Counts(nn.Module):
    """z ~ Gamma(2, 1), x | z ~ Poisson(rate * z): the best rate is half the mean count."""

    def __init__(self):
        super().__init__()
        self.log_rate = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        pyro.module("counts", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(2 * torch.ones(3), 1.0).to_event(1))
            return pyro.sample("x", dist.Poisson(self.log_rate.exp() * z).to_event(1), obs=x)


def test_a_constrained_latent(chains):
    z = dist.Gamma(2 * torch.ones(200, 3), 1.0).sample()
    x = torch.poisson(torch.tensor([0.5, 2.0, 5.0]) * z)
    model = Counts()
    training = Training(epochs=40, batch_size=50, optimizer=Adam(lr=0.1), schedule=Cosine(), local_steps=2)
    fit_mcem(model, x, burn_in=20, training=training, seed=0)
    np.testing.assert_allclose(model.log_rate.detach().exp(), x.mean(0) / 2, rtol=0.03)
    # The exact posterior is Gamma(2 + x, 1 + rate).
    q = dist.Gamma(2 + x, 1 + model.log_rate.detach().exp())
    white = ((chains[0].u.exp() - q.mean) / q.stddev).flatten(0, 1)
    assert white.mean(0).abs().max() < 4 / math.sqrt(len(white)) and (white.var(0) - 1).abs().max() < 0.3


def test_held_out_rows_live_where_the_prior_does():
    model, x = Counts(), torch.poisson(2 * torch.ones(50, 3))
    fit = fit_mcem(model, x, burn_in=0, training=Training(epochs=1, optimizer=STILL), validation=x, seed=0)
    family = Constrained(MeanField(3), dist.constraints.positive)
    best = refine(model, family, x, seed=1).elbo.mean().item()
    assert fit.elbo_validation[-1].item() == pytest.approx(best, abs=0.05)


class NormalisedDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Linear(16, 8))
        self.modes = []
        self.decoder[1].register_forward_hook(lambda module, *_: self.modes.append(module.training))

    def forward(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            flat = self.decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 8)
            return pyro.sample("x", dist.Normal(flat, 1.0).to_event(1), obs=x)


def test_e_steps_run_in_eval_mode_and_m_steps_do_not(x):
    model = NormalisedDecoder()
    fit_mcem(model, x[:100], training=Training(epochs=2, batch_size=50), validation=x[:9], seed=0)
    assert sum(model.modes) == 4 == model.decoder[1].num_batches_tracked
    assert all(part.training for part in model.modules())
    assert dict(pyro.get_param_store()) == {}


def test_given_global_sites(x):
    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        loc = pyro.param("loc", torch.zeros(8))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + loc, scale).to_event(1), obs=x)

    def fit(model, **options):
        pyro.clear_param_store()
        return fit_mcem(model, x, burn_in=2, training=Training(epochs=2, batch_size=100), seed=0, **options)

    draw = torch.tensor(2.0)
    by_given, by_hand = fit(model, given={"scale": draw[None]}), fit(conditioned(model, {"scale": draw}))
    assert torch.equal(by_given.log_joint, by_hand.log_joint) and by_given.settings["given_sites"] == ["scale"]
    with pytest.raises(ValueError, match="'scale' outside it.*pass given="):
        fit(model)


class Resampling:
    resamples = True

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(len(index), 8)


def nothing(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 8), 1.0).to_event(1), obs=x)


CASES = {
    "nothing to train": ({"model": nothing}, "parameters to train; found no.*sample_posterior"),
    "resampling": ({"data": Resampling()}, "fit_mcem needs a fixed x.*fix"),
    "resampling validation": ({"validation": Resampling()}, "validation: .*fixed x"),
    "empty": ({"data": torch.zeros(0, 8)}, "data: .*got none"),
    "infinity": ({"data": torch.full((4, 8), math.inf)}, "datapoint 0 holds NaN"),
    "site": ({"site": "w"}, "site 'w'.*'z'"),
    "rows": ({"init": torch.zeros(20, 4)}, r"init: expected a guide or None; got Tensor.*Local\(family, rows\)"),
    "rows of others": ({"init": Local(MeanField(2), torch.zeros(3, 4))}, "one row a datapoint, 20; got 3"),
    "guide of another size": ({"init": Amortized(MeanField(3), nn.Linear(8, 6).double())}, "num_latents = 2"),
    "no chains": ({"num_chains": 0}, "num_chains: .*at least 1; got 0"),
    "burn-in": ({"burn_in": -1}, "burn_in: .*at least 0; got -1"),
    "warm-up": ({"training": Training(warm_up=1)}, "warm_up: Monte Carlo EM has no KL"),
    "tol_elbo": ({"training": Training(tol_elbo=0.1)}, "tol_elbo: Monte Carlo EM has no ELBO.*tol_params"),
    "patience": ({"training": Training(patience=1)}, "patience: .*validation=None"),
    "family of nothing": ({"validation_family": MeanField(2)}, "validation_family: nothing is held out"),
    "family's size": (
        {"validation": torch.zeros(2, 8, dtype=torch.float64), "validation_family": MeanField(3)},
        r"num_latents = 2.*MeanField\(3\)",
    ),
    "family with weights": (
        {"validation": torch.zeros(2, 8), "validation_family": CouplingFlow(2)},
        "validation_family: .*weights of its own",
    ),
    "seed": ({"seed": True}, "seed: .*True"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, x):
    change, message = CASES[case]
    arguments = {"model": start().model, "data": x[:20], **change}
    with pytest.raises(ValueError, match=message) as error:
        fit_mcem(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")
def test_nan_stops_with_a_name(x):
    training = Training(epochs=20, batch_size=50, optimizer=Adam(lr=1e150))
    with pytest.raises(FloatingPointError, match=r"step \d+: .*(parameter '|site '[xz]').* not finite"):
        fit_mcem(start().model, x, training=training, seed=0)
