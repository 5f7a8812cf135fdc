import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle
from torch import nn

import inference.em
from inference import (
    IWAE,
    Adam,
    Amortized,
    Cosine,
    DReG,
    FullCovariance,
    Local,
    MeanField,
    PathwiseELBO,
    PlanarFlow,
    ScoreFunctionELBO,
    StickingTheLanding,
    Training,
    fit_em,
)
from inference.isolation import private_store
from inference.noise import seeded
from inference.objectives import LocalLoss
from inference.scoring import pair_means, score
from inference.semi_amortized import SemiAmortized
from pyro_vae import MLP, VAE, LinearGaussian
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import VampPrior

GRADIENTS = ["own row", "through steps"]


def start(num_values=6, num_latents=2):
    torch.manual_seed(1)
    return LinearGaussian(0.3 * torch.randn(num_values, num_latents), torch.zeros(num_values), 1.0)


def encoder(family, num_values=6):
    torch.manual_seed(2)
    return Amortized(family, nn.Linear(num_values, family.num_params))


def fitted(model):
    return LinearOracle(*(part.detach().numpy() for part in (model.weight, model.bias, model.scale)))


def exact(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale)


@pytest.fixture
def oracle():
    return LinearOracle.random(6, 2)


@pytest.fixture
def x(oracle):
    return torch.tensor(oracle.draw(200))


@pytest.mark.parametrize("encoder_gradient", GRADIENTS)
def test_reaches_the_maximum_likelihood(encoder_gradient, oracle, x):
    """The linear encoder can be exact, up to the family: start, steps and rest then meet."""
    model, guide, family = start(), encoder(MeanField(2)), MeanField(2)
    training = Training(
        epochs=80, batch_size=50, optimizer=Adam(lr=0.05), schedule=Cosine(), num_particles=8, local_steps=3
    )
    fit = fit_em(
        model.model,
        guide.family,
        x,
        init=guide,
        restart="every visit",
        encoder_gradient=encoder_gradient,
        training=training,
        seed=0,
    )
    best = oracle.best_log_evidence(x, 2)
    now = fitted(model)
    short = best - now.log_evidence(x).mean()
    print(f"{encoder_gradient}: short of the maximum likelihood by {short:.4f} nats; {fit}")
    assert short == pytest.approx(0.0, abs=0.01)
    # By closed forms, at the final model: what the encoder and the table lack of the family's best.
    for rows in (guide.params(x).detach(), fit.params):
        q = family(rows)
        left = now.inference_gap(x, q.mean.numpy(), torch.diag_embed(q.variance).numpy()) - now.approximation_gap
        assert 0 <= left.mean() < 0.02
    assert fit.elbo_best.item() == pytest.approx(now.log_evidence(x).mean() - now.approximation_gap, abs=0.02)
    assert fit.settings["restart"] == "every visit" and fit.settings["encoder_gradient"] == encoder_gradient


class Constant(nn.Module):
    """An encoder that gives every datapoint the same row."""

    def __init__(self, row):
        super().__init__()
        self.row = nn.Parameter(torch.as_tensor(row))

    def forward(self, x):
        return self.row.expand(len(x), -1)


@pytest.mark.parametrize("encoder_gradient", GRADIENTS)
def test_the_stages_are_those_of_their_rows(encoder_gradient, oracle, x):
    """At an exact model that stands still: start and q* in closed form, the steps between them."""
    row = [0.5, -0.5, -1.0, -1.0]
    still = Training(epochs=2, batch_size=50, optimizer=Adam(lr=1e-12), local_steps=8, num_particles=32)
    held_out = torch.tensor(oracle.draw(100, seed=9))
    fit = fit_em(
        exact(oracle).model,
        MeanField(2),
        x,
        init=Amortized(MeanField(2), Constant(row)),
        restart="every visit",
        encoder_gradient=encoder_gradient,
        training=still,
        validation=held_out,
        seed=0,
    )
    q = MeanField(2)(torch.tensor(row))
    stages = {
        "training": (x, fit.elbo_start, fit.elbo, fit.elbo_best.expand(2)),
        "held out": (held_out, fit.elbo_start_validation, fit.elbo_validation, fit.elbo_best_validation),
    }
    for name, (data, first, middle, last) in stages.items():
        evidence = oracle.log_evidence(data)
        first_truth = (evidence - oracle.inference_gap(data, q.mean.numpy(), torch.diag(q.variance).numpy())).mean()
        last_truth = evidence.mean() - oracle.approximation_gap
        print(f"{encoder_gradient}, {name}: {first.tolist()} < {middle.tolist()} < {last.tolist()}")
        assert first.numpy() == pytest.approx(first_truth, abs=0.25)
        assert last.numpy() == pytest.approx(last_truth, abs=0.02)
        assert first_truth + 2 < middle.min() and middle.max() < last_truth - 0.1
    assert "before the steps" in str(fit) and "at q*" in str(fit)
    assert fit.params.shape == (200, 4) and not fit.params.requires_grad


# The gradients of a visit ---------------------------------------------------------------------------------------------


def visits(loss, encoder_gradient, **settings):
    """A model that is not linear, a small encoder, and what visits them."""
    torch.manual_seed(4)
    decoder, family = MLP(2, 4, 3), MeanField(2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            flat = decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 3)
            pyro.sample("x", dist.Normal(flat, 0.5).to_event(1), obs=x)

    guide = Amortized(family, nn.Linear(3, 4))
    training = Training(local_steps=3, num_particles=2, **{"local_lr": 0.3, **settings})
    objective = LocalLoss(model, family, "z", loss=loss)
    leaves = [*guide.parameters(), *decoder.parameters()]
    return SemiAmortized(objective, guide, model, training, leaves, encoder_gradient=encoder_gradient), guide, decoder


@pytest.fixture
def held_units(monkeypatch):
    """Step units in the order of the first run, whatever the rows: gradients do not go through them."""
    units, original = [], MeanField.step_units
    replay = {"at": None}

    def step_units(family, rows):
        if replay["at"] is None:
            units.append(original(family, rows))
            return units[-1]
        replay["at"] += 1
        return units[(replay["at"] - 1) % len(units)]

    monkeypatch.setattr(MeanField, "step_units", step_units)
    return lambda: replay.update(at=0)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("loss", [StickingTheLanding(), PathwiseELBO(), IWAE(3)], ids=repr)
def test_steps_are_differentiated(loss, kl_weight, held_units):
    """The last row as a function of the first, against central differences."""
    semi, _, _ = visits(loss, "through steps")
    semi.objective.kl_weight = kl_weight
    x, rows, direction = torch.randn(4, 3), 0.5 * torch.randn(4, 4), torch.randn(4, 4)

    def last(rows):
        with seeded(3):
            return semi.steps(x, rows, differentiable=True)

    rows.requires_grad_()
    along = torch.randn(4, 4)
    with private_store(semi.model):
        (gradient,) = torch.autograd.grad((last(rows) * direction).sum(), rows)
        held_units()
        h = 1e-5
        difference = ((last(rows + h * along) - last(rows - h * along)) * direction).sum() / (2 * h)
    assert (gradient * along).sum().item() == pytest.approx(difference.item(), rel=1e-6)
    # The steps move, and count: the gradient is not that of standing still.
    assert (gradient - direction).abs().max() > 0.1


def test_the_encoder_learns_through_the_steps(held_units):
    """One visit: the encoder's gradient against differences of the loss at the last row; the model's is not touched."""
    semi, guide, decoder = visits(PathwiseELBO(), "through steps")
    x, index = torch.randn(5, 3), torch.arange(5)

    def loss_at_the_end(bias):
        with seeded(3), torch.no_grad():
            start = guide.params(x) + bias
        with seeded(3):
            rows = semi.steps(x, start.requires_grad_(), differentiable=True)
            return semi.objective(x, rows, semi.noise(rows)).mean().item()

    with private_store(semi.model, guide):
        with seeded(3):
            in_weight, in_bias, *in_model = semi(x, index, 1.0).grads
        held_units()
        h = 1e-5
        for k, unit in enumerate(torch.eye(4)):
            difference = (loss_at_the_end(h * unit) - loss_at_the_end(-h * unit)) / (2 * h)
            assert in_bias[k].item() == pytest.approx(difference, rel=1e-6)
        # At the last row, which stands still: the steps' own dependence on the model is left out.
        held_units()
        with seeded(3):
            rows = semi.steps(x, guide.params(x).detach().requires_grad_(), differentiable=True).detach()
            semi.noise(rows)
            at_rows = torch.autograd.grad(semi.objective(x, rows, semi.noise(rows)).mean(), list(decoder.parameters()))
    torch.testing.assert_close(tuple(in_model), at_rows)


@pytest.mark.parametrize("loss", [StickingTheLanding(), DReG(3), ScoreFunctionELBO(2)], ids=repr)
def test_the_encoder_learns_at_its_own_row(loss):
    semi, guide, decoder = visits(loss, "own row")
    x = torch.randn(5, 3)
    with private_store(semi.model, guide):
        with seeded(3):
            gradients = tuple(semi(x, torch.arange(5), 1.0).grads)
        with seeded(3):
            begin = guide.params(x)
            rows = semi.steps(x, begin.detach())
            slope = semi.objective.row_gradient(x, begin, semi.noise(rows))
            noise = semi.noise(rows)
            of_encoder = torch.autograd.grad((begin * slope).sum() / 5, list(guide.parameters()))
            of_model = torch.autograd.grad(semi.objective(x, rows, noise).mean(), list(decoder.parameters()))
    torch.testing.assert_close(gradients, (*of_encoder, *of_model))
    assert not torch.equal(rows, begin)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("loss", [StickingTheLanding(), StickingTheLanding(2), PathwiseELBO(), IWAE(3)], ids=repr)
def test_a_gradient_that_can_be_differentiated_is_the_gradient(loss, kl_weight):
    semi, _, _ = visits(loss, "through steps")
    semi.objective.kl_weight = kl_weight
    x, rows = torch.randn(4, 3), torch.randn(4, 4).requires_grad_()
    noise = semi.noise(rows.detach())
    with private_store(semi.model):
        differentiable = semi.objective.differentiable_gradient(x, rows, noise)
        torch.testing.assert_close(differentiable.detach(), semi.objective.row_gradient(x, rows, noise))
    assert differentiable.requires_grad


@pytest.mark.parametrize("encoder_gradient", GRADIENTS)
def test_no_step_is_longer_than_a_standard_deviation(encoder_gradient):
    semi, _, _ = visits(StickingTheLanding(), encoder_gradient, local_lr=1e6)
    rows = torch.tensor([[30.0, -30.0, -1.0, -1.0]]).requires_grad_()
    with private_store(semi.model):
        moved = semi.steps(torch.zeros(1, 3), rows, differentiable=encoder_gradient == "through steps") - rows
    limits = [1.0, 1.0, 3.0, 3.0]
    assert (moved.abs() <= 3 * torch.tensor([math.e**2, math.e**2, 1.0, 1.0])).all() and moved.abs().max() <= max(
        limits
    )


# The run --------------------------------------------------------------------------------------------------------------


def test_every_visit_starts_at_the_current_encoder(x, monkeypatch):
    guide, starts = encoder(MeanField(2)), []
    original = SemiAmortized.steps

    def spy(semi, x, rows, **options):
        starts.append((rows.detach().clone(), guide.params(x).detach()))
        return original(semi, x, rows, **options)

    monkeypatch.setattr(SemiAmortized, "steps", spy)
    training = Training(epochs=2, batch_size=100, optimizer=Adam(lr=0.1))
    fit_em(start().model, guide.family, x, init=guide, restart="every visit", training=training, seed=0)
    assert len(starts) == 4
    assert all(torch.equal(rows, now) for rows, now in starts)
    assert not torch.equal(starts[0][1], starts[-1][1])


class NormalisedDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Linear(16, 6))
        self.modes = []
        self.decoder[1].register_forward_hook(lambda module, *_: self.modes.append(module.training))

    def forward(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            flat = self.decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            return pyro.sample("x", dist.Normal(flat, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("encoder_gradient", GRADIENTS)
def test_inference_runs_in_eval_mode_and_m_steps_do_not(encoder_gradient, x):
    model, guide = NormalisedDecoder(), encoder(MeanField(2))
    settings = {"restart": "every visit", "encoder_gradient": encoder_gradient, "seed": 0}
    fit_em(
        model, guide.family, x, init=guide, training=Training(epochs=2, batch_size=100), validation=x[:9], **settings
    )
    assert sum(model.modes) == 4 == model.decoder[1].num_batches_tracked
    assert all(part.training for part in (*model.modules(), *guide.modules()))


def test_patience_keeps_the_best_of_model_and_encoder(x):
    model, history = NormalisedDecoder(), []
    guide = Amortized(MeanField(2), nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))

    def state():
        return [t.detach().clone() for part in (model, guide) for t in part.state_dict().values()]

    training = Training(
        epochs=40, batch_size=20, optimizer=Adam(lr=0.1), patience=2, callbacks=[lambda _: history.append(state())]
    )
    settings = {"init": guide, "restart": "every visit", "validation": x[20:60], "seed": 0}
    fit = fit_em(model, guide.family, x[:20], training=training, **settings)
    assert fit.best_epoch == fit.elbo_validation.argmax().item() == len(fit.elbo) - 3
    assert len(fit.elbo_start) == len(fit.elbo_best_validation) == len(fit.elbo_start_validation) == len(fit.elbo)
    assert all(torch.equal(a, b) for a, b in zip(history[fit.best_epoch], state(), strict=True))


def test_one_seed_fixes_the_run(x):
    runs = []
    for _ in range(2):
        model, guide = start(), encoder(MeanField(2))
        settings = {"init": guide, "restart": "every visit", "encoder_gradient": "through steps", "validation": x[:20]}
        fit = fit_em(model.model, guide.family, x, training=Training(epochs=2, batch_size=64), seed=5, **settings)
        runs.append(
            [fit.params, fit.elbo, fit.elbo_start, fit.elbo_best, fit.elbo_best_validation, *guide.parameters()]
        )
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("encoder_gradient", GRADIENTS)
def test_a_prior_made_from_the_guide_goes_on_sharing_it(encoder_gradient, monkeypatch):
    monkeypatch.setattr(inference.em, "FIRST_STEPS", 1)
    family, network = MeanField(2), MLP(8, 8, 4)
    prior = VampPrior(Amortized(family, network), 3)
    vae = VAE(prior=prior, likelihood=Bernoulli(), decoder=MLP(2, 8, 8), family=family, encoder=network)
    before = prior.raw.detach().clone()
    settings = {"restart": "every visit", "encoder_gradient": encoder_gradient, "seed": 0}
    fit_em(vae.model, family, torch.rand(20, 8).round(), init=vae.guide, training=Training(epochs=1), **settings)
    assert prior.guide.encoder is network and any(weight.requires_grad for weight in prior.guide.parameters())
    assert not torch.equal(prior.raw, before)


def test_variational_em_has_q_star_too(oracle, x):
    model = exact(oracle)
    still = Training(epochs=1, batch_size=200, optimizer=Adam(lr=1e-12), local_steps=10)
    fit = fit_em(model.model, MeanField(2), x, training=still, seed=0)
    q = MeanField(2)(fit.params)
    truth = oracle.log_evidence(x) - oracle.inference_gap(x, q.mean.numpy(), torch.diag_embed(q.variance).numpy())
    draws = score(LocalLoss(model.model, MeanField(2), "z"), x, torch.arange(200), fit.params, num_draws=64, seed=1)
    # Eight antithetic pairs a datapoint.
    error = pair_means(draws).std(0).square().mean().sqrt().item() / (8 * 200) ** 0.5
    assert fit.elbo_best.item() == pytest.approx(truth.mean(), abs=4 * error)
    assert fit.elbo_start is fit.elbo_start_validation is fit.elbo_best_validation is None
    assert "steps," in str(fit) and "q*" not in str(fit)


def hand_written(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))


CASES = {
    "no encoder": ({"init": None}, r"init: .*encoder.*got NoneType.*Amortized\(MeanField\(2\), encoder\)"),
    "rows": ({"init": torch.zeros(20, 4)}, "init: .*got rows.*Amortized"),
    "rows as a guide": ({"init": Local(MeanField(2), torch.zeros(20, 4))}, "init: .*got Local.*Amortized"),
    "a guide without rows": ({"init": hand_written}, "init: .*`params`; got function.*Amortized"),
    "another family": (
        {"init": encoder(FullCovariance(2))},
        r"MeanField\(2\); got one of FullCovariance.*guide.family",
    ),
    "restart": ({"restart": "always"}, "restart: expected 'never' or 'every visit'; got 'always'"),
    "gradient": ({"encoder_gradient": "both"}, "encoder_gradient: .*'own row'.*got 'both'"),
    "score function": (
        {"loss": ScoreFunctionELBO(2), "encoder_gradient": "through steps"},
        "loss: ScoreFunctionELBO .*through steps.*PathwiseELBO",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, x):
    change, message = CASES[case]
    arguments = {"family": MeanField(2), "init": encoder(MeanField(2)), "restart": "every visit", **change}
    with pytest.raises(ValueError, match=message) as error:
        fit_em(start().model, data=x[:20], seed=0, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", [PlanarFlow(2, num_layers=1), FullCovariance(2)], ids=repr)
@pytest.mark.parametrize("encoder_gradient", GRADIENTS)
def test_other_families(family, encoder_gradient, x, monkeypatch):
    monkeypatch.setattr(inference.em, "FIRST_STEPS", 1)
    guide = encoder(family)
    before = guide.encoder.weight.detach().clone()
    settings = {"init": guide, "restart": "every visit", "encoder_gradient": encoder_gradient, "seed": 0}
    fit = fit_em(start().model, family, x[:20], training=Training(epochs=1, local_steps=2), **settings)
    assert np.isfinite(fit.elbo.item()) and not torch.equal(guide.encoder.weight, before)
