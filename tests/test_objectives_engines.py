"""One contract for every loss: each engine takes it, searches its bound, and reports the true ELBO."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO
from torch import nn

import inference.em
import inference.table
from inference import (
    IWAE,
    Adam,
    Amortized,
    AnalyticKL,
    Cosine,
    DReG,
    FullCovariance,
    MeanField,
    PathwiseELBO,
    PlanarFlow,
    Renyi,
    ScoreFunctionELBO,
    Search,
    StickingTheLanding,
    Training,
    WakeSleep,
    elbo,
    fit_em,
    fit_svi,
    refine,
)
from inference.objectives import LocalLoss
from inference.scoring import bound_noise, pair_means, score, score_bound
from inference.search import gains
from pyro_vae.linear import LinearGaussian

EVERYWHERE = [
    PathwiseELBO(),
    StickingTheLanding(),
    ScoreFunctionELBO(8),
    AnalyticKL(),
    IWAE(5),
    DReG(5),
    Renyi(5, alpha=0.5),
]
LOSSES = [*EVERYWHERE, WakeSleep(5), WakeSleep(5, insomnia=0.5)]
ELBOS = [loss for loss in EVERYWHERE if loss.is_elbo]
AWAY = torch.tensor([1.5, -1.5, -1.0, -1.0], dtype=torch.float64)
STILL = {"optimizer": Adam(lr=1e-12), "local_lr": 1e-12}


@pytest.fixture
def oracle():
    return LinearOracle.random(6, 2)


@pytest.fixture
def x(oracle):
    return torch.tensor(oracle.draw(60))


def exact(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale)


def start():
    torch.manual_seed(1)
    return LinearGaussian(0.3 * torch.randn(6, 2), torch.zeros(6), 1.0)


def encoder(family):
    torch.manual_seed(2)
    guide = Amortized(family, nn.Linear(6, family.num_params))
    nn.init.normal_(guide.encoder.weight, std=0.1)
    return guide


def log_evidence(model, x):
    parts = (part.detach().numpy() for part in (model.weight, model.bias, model.scale))
    return LinearOracle(*parts).log_evidence(x).mean()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_fit_svi(loss, oracle, x):
    """Model and encoder come near the maximum of the likelihood, which in this family is that of every bound."""
    model, guide = start(), encoder(FullCovariance(2))
    training = Training(epochs=120, batch_size=20, optimizer=Adam(lr=0.05), schedule=Cosine())
    fit = fit_svi(model.model, guide, x, loss=loss, training=training, seed=0)
    best = oracle.best_log_evidence(x, 2)
    assert log_evidence(model, x) == pytest.approx(best, abs=0.1)
    assert elbo(model.model, guide, x, seed=1).value.mean().item() == pytest.approx(best, abs=0.2)
    assert fit.settings["loss"] == repr(loss)


@pytest.mark.parametrize("loss", EVERYWHERE, ids=repr)
def test_fit_em(loss, oracle, x):
    model = start()
    training = Training(epochs=100, batch_size=15, optimizer=Adam(lr=0.05), schedule=Cosine(), local_steps=3)
    fit = fit_em(model.model, FullCovariance(2), x, loss=loss, training=training, seed=0)
    best = oracle.best_log_evidence(x, 2)
    assert log_evidence(model, x) == pytest.approx(best, abs=0.05)
    objective = LocalLoss(model.model, FullCovariance(2), "z", loss=loss)
    bound = score_bound(objective, x, torch.arange(60), fit.params, num_values=200, seed=1, stage="test")
    assert bound.mean().item() == pytest.approx(best, abs=0.1)
    assert fit.settings["loss"] == repr(loss)


@pytest.mark.parametrize("loss", EVERYWHERE, ids=repr)
def test_refine(loss, oracle, x):
    """With full covariance the posterior is best for every bound: every search ends there."""
    search = Search(num_particles=16, max_rounds=5, num_judge_draws=256)
    refined = refine(exact(oracle).model, FullCovariance(2), x[:20], loss=loss, search=search, seed=0)
    evidence = oracle.log_evidence(x[:20])
    assert np.abs(refined.elbo.numpy() - evidence).max() < 0.05
    assert refined.converged.all()
    assert refined.settings["loss"] == repr(loss)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("warm_up", [0, 3])
def test_fit_svi_reports_the_true_elbo(loss, warm_up, oracle, x):
    """Neither the bound of several draws nor the surrogate of a warm-up: nothing moves, so the truth is known."""
    model, guide = exact(oracle).model, encoder(MeanField(2))
    # Far from the prior: a surrogate would leave out part of a KL of several nats.
    guide.encoder.bias.data[:] = AWAY
    x = x[:50].repeat(40, 1)
    training = Training(epochs=2, batch_size=500, warm_up=warm_up, **STILL)
    fit = fit_svi(model, guide, x, loss=loss, training=training, seed=0)
    q = guide.distribution(x)
    truth = oracle.log_evidence(x) - oracle.inference_gap(
        x, q.mean.detach().numpy(), torch.diag_embed(q.variance).detach().numpy()
    )
    draws = score(LocalLoss(model, MeanField(2), "z"), x, torch.arange(2000), guide.params(x), num_draws=50, seed=1)
    error = draws.std(0).square().mean().sqrt().item() / 2000**0.5
    assert fit.elbo.numpy() == pytest.approx(truth.mean(), abs=4 * error)


@pytest.mark.parametrize("loss", EVERYWHERE, ids=repr)
@pytest.mark.parametrize("warm_up", [0, 3])
def test_fit_em_reports_the_true_elbo(loss, warm_up, oracle, x, monkeypatch):
    monkeypatch.setattr(inference.em, "LAST_STEPS", 1)
    monkeypatch.setattr(inference.table, "FIRST_STEPS", 10)
    monkeypatch.setattr(inference.table, "HELD_OUT_STEPS", 10)
    model, family = exact(oracle).model, MeanField(2)
    training = Training(epochs=2, batch_size=500, warm_up=warm_up, num_particles=8, local_steps=1, **STILL)
    x, rows = x[:50].repeat(10, 1), AWAY.repeat(500, 1)
    init = Amortized(family, nn.Linear(6, 4))
    init.encoder.load_state_dict({"weight": torch.zeros(4, 6), "bias": AWAY})
    fit = fit_em(model, family, x, init=init, loss=loss, training=training, validation=x[:100], seed=0)
    q = family(rows)
    truth = oracle.log_evidence(x) - oracle.inference_gap(x, q.mean.numpy(), torch.diag_embed(q.variance).numpy())
    draws = score(LocalLoss(model, family, "z"), x, torch.arange(500), rows, num_draws=64, seed=1)
    # Of pairs: 4 for each datapoint.
    error = pair_means(draws).std(0).square().mean().sqrt().item() / (4 * 500) ** 0.5
    assert fit.elbo.numpy() == pytest.approx(truth.mean(), abs=4 * error)
    assert fit.elbo_validation.numpy() == pytest.approx(truth[:100].mean(), abs=4 * error * 5**0.5)


def test_the_search_is_for_the_bound(oracle, x):
    """A mean-field q that is best for the importance-weighted bound is wider than one that is best for the ELBO."""
    model, search = exact(oracle).model, Search(num_particles=32, max_rounds=3, num_judge_draws=256)
    of_elbo = refine(model, MeanField(2), x[:10], search=search, seed=0)
    of_bound = refine(model, MeanField(2), x[:10], loss=DReG(20), search=search, seed=0)
    objective, index = LocalLoss(model, MeanField(2), "z", loss=IWAE(20)), torch.arange(10)
    gain = [
        score_bound(objective, x[:10], index, rows.params, num_values=2000, seed=3, stage="test").mean()
        for rows in (of_bound, of_elbo)
    ]
    assert gain[0] > gain[1] + 1e-3
    assert (of_bound.elbo < of_elbo.elbo).all()
    widths = [MeanField(2)(rows.params).stddev.mean() for rows in (of_bound, of_elbo)]
    assert widths[0] > 1.02 * widths[1]


@pytest.mark.parametrize("loss", [IWAE(3), Renyi(3, alpha=0.5), ScoreFunctionELBO(3)], ids=repr)
def test_values_of_a_bound_come_in_pairs(loss, oracle, x):
    """Each is made of k draws that are independent, and the next of their mirror images."""
    objective = LocalLoss(exact(oracle).model, MeanField(2), "z", loss=loss)
    x, index, rows = x[:4], torch.arange(4), 0.1 * torch.randn(4, 4)
    parts = list(bound_noise(objective, x, index, 14, seed=0, stage="test"))
    assert [len(part) for part in parts] == [30, 12]
    for noise in parts:
        values = objective.bounds(x, rows, noise)
        draws = objective.log_weights(x, rows, noise)
        first, mirrored = noise[0::2], noise[1::2]
        assert torch.equal(first, -mirrored)
        for group in range(len(noise) // 6):
            here = slice(3 * group, 3 * group + 3)
            expected = torch.stack([loss.bound(draws[side::2][here].unsqueeze(0))[0] for side in (0, 1)])
            torch.testing.assert_close(values[2 * group : 2 * group + 2], expected)


def test_gains_of_a_bound_of_several_draws(oracle, x):
    """They have the mean of the plain differences, and less variance near the best q."""
    family, objective = MeanField(2), LocalLoss(exact(oracle).model, MeanField(2), "z", loss=IWAE(4))
    x, index = x[:8], torch.arange(8)
    rows = refine(objective.model, family, x, seed=0).params
    old, new = rows, rows + 0.05 * torch.randn_like(rows)

    def noise():
        return bound_noise(objective, x, index, 4000, seed=0, stage="test")

    gain = pair_means(gains(objective, x, old, new, noise()))
    plain = pair_means(torch.cat([objective.bounds(x, new, part) - objective.bounds(x, old, part) for part in noise()]))
    difference = gain - plain
    assert (difference.mean(0).abs() < 4 * difference.std(0) / len(difference) ** 0.5).all()
    assert (gain.std(0) < 0.9 * plain.std(0)).all()


def test_the_default_of_a_family_without_densities():
    assert LocalLoss(nn.Identity(), MeanField(2), "z").loss == StickingTheLanding()
    assert LocalLoss(nn.Identity(), PlanarFlow(2), "z").loss == PathwiseELBO()


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [refine, fit_em])
def test_local_engines_refuse(engine, oracle, x):
    arguments = (start().model, MeanField(2), x[:8])
    with pytest.raises(ValueError, match="loss: WakeSleep .*no rows.*fit_svi"):
        engine(*arguments, loss=WakeSleep(2), seed=0)
    with pytest.raises(TypeError, match="loss: expected.*PathwiseELBO.*got Trace_ELBO.*fit_svi"):
        engine(*arguments, loss=Trace_ELBO(), seed=0)
    with pytest.raises(ValueError, match="loss: StickingTheLanding .*PlanarFlow.*PathwiseELBO"):
        engine(start().model, PlanarFlow(2), x[:8], loss=StickingTheLanding(), seed=0)


def in_pieces(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        for name, part in (("left", x[:, :3]), ("right", x[:, 3:])):
            pyro.sample(
                name, dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=2 * part
            )


def with_a_global_site(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    start().model(x)


SVI = {
    "batches of Pyro's wake-sleep": (
        {"loss": ReweightedWakeSleep(num_particles=3)},
        ValueError,
        "ReweightedWakeSleep .*batches of 8.*WakeSleep",
    ),
    "Renyi's bound of a batch": (
        {"loss": RenyiELBO(alpha=0.5), "training": Training(warm_up=2)},
        ValueError,
        r"RenyiELBO.*inference\.Renyi",
    ),
    "global site": ({"loss": IWAE(3), "model": with_a_global_site}, ValueError, "IWAE .*site 'w'.*Trace_ELBO"),
    "x in other units": (
        {"loss": WakeSleep(3, insomnia=0.5), "model": in_pieces},
        ValueError,
        "site 'left': expected columns of x as they are",
    ),
    "a name": ({"loss": "iwae"}, TypeError, "loss: expected a Pyro ELBO object.*IWAE.*got str"),
}


@pytest.mark.parametrize("case", SVI)
def test_fit_svi_refuses(case, x):
    change, kind, message = SVI[case]
    arguments = {"model": start().model, "guide": encoder(MeanField(2)), "data": x[:8], **change}
    if arguments["model"] is with_a_global_site:
        local = arguments["guide"]

        def guide(x):
            pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
            local(x)

        arguments["guide"] = guide
    with pytest.raises(kind, match=message) as error:
        fit_svi(**arguments, seed=0)
    assert "\n" not in str(error.value)


def test_one_datapoint_a_step_is_enough_for_pyros_wake_sleep(x):
    loss = ReweightedWakeSleep(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    fit = fit_svi(start().model, encoder(MeanField(2)), x[:3], loss=loss, training=Training(epochs=1, batch_size=1))
    assert fit.num_steps == 3
