import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle
from torch import nn

import inference.em
import inference.table
from inference import (
    Adam,
    Amortized,
    Cosine,
    FullCovariance,
    Local,
    MeanField,
    RobbinsMonro,
    Training,
    elbo,
    fit_em,
    refine,
)
from pyro_vae.linear import LinearGaussian


def start(num_values=8, num_latents=2):
    torch.manual_seed(0)
    return LinearGaussian(0.3 * torch.randn(num_values, num_latents), torch.zeros(num_values), 1.0)


def fitted(model):
    return LinearOracle(*(part.detach().numpy() for part in (model.weight, model.bias, model.scale)))


@pytest.fixture
def x():
    return torch.tensor(LinearOracle.random(8, 2).draw(200))


@pytest.mark.parametrize(
    ("family", "schedule"),
    [
        pytest.param(MeanField(3), Cosine(), id="mean-field"),
        pytest.param(FullCovariance(3), Cosine(), id="full covariance", marks=pytest.mark.slow),
        pytest.param(
            FullCovariance(3), RobbinsMonro(exponent=0.8, delay=200.0), id="Robbins-Monro", marks=pytest.mark.slow
        ),
    ],
)
def test_reaches_the_maximum_likelihood(family, schedule):
    oracle = LinearOracle.random(10, 3)
    x = torch.tensor(oracle.draw(500))
    model = start(10, 3)
    training = Training(epochs=120, batch_size=100, optimizer=Adam(lr=0.05), schedule=schedule, num_particles=8)
    fit = fit_em(model.model, family, x, training=training, seed=0)
    best = oracle.best_log_evidence(x, 3)
    assert best - fitted(model).log_evidence(x).mean() == pytest.approx(0.0, abs=0.01)
    # The table that comes back is an E-step's at the final model.
    assert elbo(model.model, Local(family, fit.params), x, seed=1).value.mean().item() == pytest.approx(best, abs=0.05)


@pytest.mark.slow
def test_reported_elbo_and_table_are_those_of_a_converged_e_step(x):
    held_out = torch.tensor(LinearOracle.random(8, 2).draw(100, seed=9))
    model = start()
    training = Training(epochs=60, batch_size=50, optimizer=Adam(lr=0.02), schedule=Cosine())
    fit = fit_em(model.model, MeanField(2), x, training=training, validation=held_out, seed=0)
    best = refine(model.model, MeanField(2), x, seed=1)
    local = elbo(model.model, Local(MeanField(2), fit.params), x, seed=1)
    assert (best.elbo - local.value).mean().item() == pytest.approx(0.0, abs=0.02)
    assert fit.elbo[-1].item() == pytest.approx(best.elbo.mean().item(), abs=0.3)  # one draw a datapoint
    unseen = refine(model.model, MeanField(2), held_out, seed=1)
    assert fit.elbo_validation[-1].item() == pytest.approx(unseen.elbo.mean().item(), abs=0.05)
    assert fit.params.shape == (200, 4) and not fit.params.requires_grad


def test_rows_outside_the_batch_do_not_move(x, monkeypatch):
    """Neither by this step nor by momentum of earlier ones."""
    moved = []
    original = inference.em.Table.e_step

    def spy(table, x, index, num_steps, **options):
        before = table.params.clone()
        rows = original(table, x, index, num_steps, **options)
        changed = (table.params != before).any(1).nonzero().squeeze(-1)
        moved.append((sorted(index.tolist()), changed.tolist()))
        return rows

    monkeypatch.setattr(inference.em.Table, "e_step", spy)
    monkeypatch.setattr(inference.em, "LAST_STEPS", 1)
    fit_em(start().model, MeanField(2), x[:30], training=Training(epochs=4, batch_size=10), seed=0)
    assert len(moved) == 13
    for visited, changed in moved:
        assert visited == changed


def test_m_step_moves_the_model_and_e_step_does_not(x, monkeypatch):
    model = start()
    original = inference.em.Table.e_step

    def spy(table, *arguments, **options):
        before = [weight.detach().clone() for weight in model.parameters()]
        rows = original(table, *arguments, **options)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert all(weight.grad is None for weight in model.parameters())
        return rows

    monkeypatch.setattr(inference.em.Table, "e_step", spy)
    before = model.weight.detach().clone()
    fit = fit_em(model.model, MeanField(2), x, training=Training(epochs=2, batch_size=50), seed=0)
    assert not torch.equal(before, model.weight) and fit.num_steps == 8


def test_starts(x):
    """Warm rows from a guide, rows as given, and the standard normal: the first epoch's ELBO tells them apart."""
    still = Training(epochs=1, batch_size=200, optimizer=Adam(lr=1e-12), local_lr=1e-12, num_particles=64)
    model, family = start(), MeanField(2)
    encoder = nn.Linear(8, 4)
    guide = Amortized(family, encoder)
    given = torch.cat([3 * torch.ones(200, 2), torch.zeros(200, 2)], 1)
    for init, rows in ((None, torch.zeros(200, 4)), (guide, encoder(x).detach()), (given, given)):
        fit = fit_em(model.model, family, x, init=init, training=still, validation=x[:50], seed=0)
        torch.testing.assert_close(fit.params, rows, rtol=0, atol=1e-6)
        expected = elbo(model.model, Local(family, rows), x, seed=1)
        assert fit.elbo[0].item() == pytest.approx(expected.value.mean().item(), abs=0.3)
        # Rows of the training data say nothing about held-out ones: those start cold, or at the guide.
        held_out = rows[:50] if init is guide else torch.zeros(50, 4)
        expected = elbo(model.model, Local(family, held_out), x[:50], seed=1).value.mean().item()
        assert fit.elbo_validation[0].item() == pytest.approx(expected, abs=0.3)


class Fixed(nn.Module):
    def __init__(self, row):
        super().__init__()
        self.register_buffer("row", row)

    def forward(self, x):
        return self.row.expand(len(x), -1)


def test_warm_up_reports_the_true_elbo(x):
    still = Training(epochs=4, batch_size=200, warm_up=3, optimizer=Adam(lr=1e-12), local_lr=1e-12, num_particles=64)
    model = start()
    # Narrow rows away from the prior: their KL is 5 nats, which the warmed-up objective would leave out.
    rows = torch.tensor([[1.0, -1.0, -2.0, -2.0]]).expand(200, 4)
    init = Amortized(MeanField(2), Fixed(rows[0]))
    fit = fit_em(model.model, MeanField(2), x, init=init, training=still, validation=x, seed=0)
    truth = elbo(model.model, Local(MeanField(2), rows), x, seed=1).value.mean()
    assert (fit.elbo - truth).abs().max() < 0.3
    assert (fit.elbo_validation - truth).abs().max() < 0.3


def test_warm_up_frees_the_rows_of_the_kl(x):
    """While the weight is near 0 the variances shrink; the last E-step is at the true ELBO again."""
    stds = []
    model = start()

    class Spy(inference.em.Table):
        def e_step(self, *arguments, **options):
            rows = super().e_step(*arguments, **options)
            stds.append(MeanField(2)(rows).stddev.mean().item())
            return rows

    training = Training(epochs=40, batch_size=200, warm_up=10_000, optimizer=Adam(lr=1e-12), local_steps=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference.em, "Table", Spy)
        fit = fit_em(model.model, MeanField(2), x, training=training, seed=0)
    posterior = model.posterior(x).covariance_matrix[0].diagonal().sqrt().mean().item()
    assert stds[39] < 0.5 * posterior
    assert MeanField(2)(fit.params).stddev.mean().item() == pytest.approx(posterior, rel=0.1)


def test_stops_when_the_elbo_or_the_parameters_converge(x):
    settings = {"epochs": 300, "batch_size": 200, "optimizer": Adam(lr=0.05), "schedule": RobbinsMonro(delay=20.0)}
    by_elbo = fit_em(start().model, MeanField(2), x, training=Training(**settings, tol_elbo=0.02), seed=0)
    assert "the ELBO converged" in by_elbo.stopped_because and len(by_elbo.elbo) < 300
    by_params = fit_em(start().model, MeanField(2), x, training=Training(**settings, tol_params=0.01), seed=0)
    assert "the parameters converged" in by_params.stopped_because and len(by_params.elbo) < 300
    budget = fit_em(start().model, MeanField(2), x, training=Training(epochs=2), seed=0)
    assert budget.stopped_because == "the budget of 2 epochs ended"


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
    fit_em(
        model,
        MeanField(2),
        x[:100],
        training=Training(epochs=2, batch_size=50, local_steps=3),
        validation=x[:9],
        seed=0,
    )
    assert sum(model.modes) == 4 == model.decoder[1].num_batches_tracked
    assert all(part.training for part in model.modules())


def test_patience_keeps_the_best(x):
    model = NormalisedDecoder()
    history = []
    training = Training(
        epochs=40,
        batch_size=20,
        optimizer=Adam(lr=0.1),
        patience=2,
        callbacks=[lambda state: history.append([t.detach().clone() for t in model.state_dict().values()])],
    )
    fit = fit_em(model, MeanField(2), x[:20], training=training, validation=x[20:60], seed=0)
    assert fit.best_epoch == fit.elbo_validation.argmax().item() == len(fit.elbo) - 3
    kept = list(model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(history[fit.best_epoch], kept, strict=True))


def test_held_out_draws_chose_nothing(x, monkeypatch):
    """The seeds under which held-out rows move are not those under which they are scored."""
    seeds = []
    original = inference.table.derive_seed

    def spy(seed, stage, *keys):
        seeds.append((stage, *keys))
        return original(seed, stage, *keys)

    monkeypatch.setattr(inference.table, "derive_seed", spy)
    fit_em(start().model, MeanField(2), x, training=Training(epochs=3), validation=x[:20], seed=0)
    moves, scores = (seeds[i::2] for i in (0, 1))
    assert len(set(scores)) == 1 and not set(moves) & set(scores)


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
    "nothing to train": ({"model": nothing}, "parameters to train; found no.*refine"),
    "resampling": ({"data": Resampling()}, "fit_em needs a fixed x.*fix"),
    "resampling validation": ({"validation": Resampling()}, "validation: .*fixed x"),
    "empty": ({"data": torch.zeros(0, 8)}, "data: .*got none"),
    "infinity": ({"data": torch.full((4, 8), math.inf)}, "datapoint 0 holds NaN"),
    "latent size": ({"family": MeanField(3)}, r"num_latents = 2.*MeanField\(3\)"),
    "site": ({"site": "w"}, "site 'w'.*'z'"),
    "rows": ({"init": torch.zeros(3, 4)}, r"init: .*\(20, 4\).*\(3, 4\)"),
    "rows of NaN": ({"init": torch.full((20, 4), math.nan)}, "init: .*NaN"),
    "guide of another family": (
        {"init": Amortized(FullCovariance(2), nn.Linear(8, 5, dtype=torch.float64))},
        r"MeanField\(2\) does not contain",
    ),
    "seed": ({"seed": True}, "seed: .*True"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, x):
    change, message = CASES[case]
    arguments = {"model": start().model, "family": MeanField(2), "data": x[:20], **change}
    with pytest.raises(ValueError, match=message) as error:
        fit_em(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")
@pytest.mark.parametrize("validation", [True, False])
def test_nan_stops_with_a_name(x, validation):
    training = Training(epochs=60, batch_size=50, optimizer=Adam(lr=1e150))
    with (
        pyro.validation_enabled(validation),
        pytest.raises(
            FloatingPointError, match=r"step \d+: .*(parameter '\w+\$\$\$\w+'|site '[xz]').* not finite"
        ) as error,
    ):
        fit_em(start().model, MeanField(2), x, training=training, seed=0)
    assert "\n" not in str(error.value)


def test_no_encoder_is_involved(x):
    """Every row is its own: permuting the data permutes the table, but for the order of visits."""
    still = Training(epochs=40, batch_size=200, optimizer=Adam(lr=1e-12), local_steps=10, schedule=Cosine())
    model = start()
    order = torch.randperm(200)
    rows = fit_em(model.model, MeanField(2), x, training=still, seed=0).params
    permuted = fit_em(model.model, MeanField(2), x[order], training=still, seed=0).params
    exact = model.posterior(x).mean.detach()
    for params, truth in ((rows, exact), (permuted, exact[order])):
        assert np.abs((params[:, :2] - truth).numpy()).max() < 0.1
