import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from inference import Adam, Amortized, Cosine, FullCovariance, MeanField, RobbinsMonro, Training, elbo, fit_svi
from inference.objectives import AmortizedELBO
from pyro_vae.linear import LinearGaussian


@pytest.fixture
def oracle():
    return LinearOracle.random(8, 2)


@pytest.fixture
def x(oracle):
    return torch.tensor(oracle.draw(200))


def start(num_values=8, num_latents=2, family=None):
    torch.manual_seed(0)
    family = family or MeanField(num_latents)
    model = LinearGaussian(0.3 * torch.randn(num_values, num_latents), torch.zeros(num_values), 1.0)
    return model, Amortized(family, nn.Linear(num_values, family.num_params))


def bits(*modules):
    return [tensor.detach().clone() for module in modules for tensor in (*module.parameters(), *module.buffers())]


def same(before, after):
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("family", [MeanField(3), FullCovariance(3)], ids=repr)
@pytest.mark.parametrize("schedule", [Cosine(), RobbinsMonro(exponent=1.0, delay=200.0)], ids=repr)
def test_reaches_the_maximum_likelihood(family, schedule):
    """A mean-field optimum is among the maxima: W is unique up to a rotation, and one of them makes W'W diagonal."""
    oracle = LinearOracle.random(10, 3)
    x = torch.tensor(oracle.draw(500))
    model, guide = start(10, 3, family)
    training = Training(epochs=300, batch_size=100, optimizer=Adam(lr=0.03), schedule=schedule)
    fit_svi(
        model.model,
        guide,
        x,
        training=training,
        loss=Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1),
        seed=0,
    )
    fitted = LinearOracle(*(part.detach().numpy() for part in (model.weight, model.bias, model.scale)))
    assert oracle.best_log_evidence(x, 3) - fitted.log_evidence(x).mean() == pytest.approx(0.0, abs=0.01)


LOSSES = {
    "Trace_ELBO": Trace_ELBO,
    "Trace_ELBO, vectorised": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "RenyiELBO": lambda: RenyiELBO(alpha=0.5, num_particles=2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_pyro_elbo(name, x):
    model, guide = start()
    training = Training(epochs=30, batch_size=50, optimizer=Adam(lr=0.02))
    fit = fit_svi(model.model, guide, x, loss=LOSSES[name](), training=training, seed=0)
    assert fit.elbo[-3:].mean() > fit.elbo[:3].mean() + 1
    # What is reported is the true ELBO, whatever was optimised.
    truth = elbo(model.model, guide, x, seed=1).value.mean()
    assert fit.elbo[-5:].mean().item() == pytest.approx(truth.item(), abs=0.3)
    assert fit.settings["loss"] == name.split(",")[0]
    assert all(weight.grad is None for weight in (*model.parameters(), *guide.parameters()))


def test_gradients_equal_those_derived_by_hand(x):
    """For q = N(m, diag v): dL/dm = W'(x - b - W m)/s^2 - m, through the encoder's bias; and the bias of x."""
    model, guide = start()
    seen = {}

    def grab(state):
        seen["bias"] = guide.encoder.bias.detach().clone()
        seen["shift"] = model.bias.detach().clone()

    with torch.no_grad():
        guide.encoder.weight.zero_()
    before, shift = guide.encoder.bias.detach().clone(), model.bias.detach().clone()
    plain = Training(
        epochs=1, batch_size=200, optimizer=lambda leaves: torch.optim.SGD(leaves, lr=1e-3), callbacks=[grab]
    )
    loss = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    weight, scale = model.weight.detach().clone(), model.scale.detach().clone()
    fit_svi(model.model, guide, x, loss=loss, training=plain, seed=0)
    loc, log_scale = before[:2], before[2:]
    residual = (x - shift - weight @ loc).mean(0)
    to_loc = weight.T @ residual / scale**2 - loc
    variance = (2 * log_scale).exp()
    to_log_scale = 1 - variance * (1 + (weight**2).sum(0) / scale**2)
    torch.testing.assert_close((seen["bias"] - before) / 1e-3, torch.cat([to_loc, to_log_scale]), rtol=0.05, atol=0.05)
    torch.testing.assert_close((seen["shift"] - shift) / 1e-3, residual / scale**2, rtol=0.05, atol=0.05)


def test_warm_up_reports_the_true_elbo(x):
    model, guide = start()
    still = Training(epochs=8, batch_size=200, warm_up=4, optimizer=Adam(lr=1e-12))
    fit = fit_svi(model.model, guide, x, training=still, seed=0)
    truth = elbo(model.model, guide, x, num_draws=4000, seed=1)
    noise = 4 * elbo(model.model, guide, x, num_draws=4, seed=1).se.square().sum().sqrt().item() / len(x)
    # Nothing moves, so every epoch, warmed up or not, reports the same number.
    assert (fit.elbo - truth.value.mean()).abs().max() < max(noise, 0.3)


def test_warm_up_scales_the_whole_kl(x):
    """Without the KL the encoder's variances shrink to nothing; with log p(z) alone scaled they would grow."""
    results = {}
    for warm_up in (0, 10_000):
        model, guide = start()
        training = Training(epochs=200, batch_size=200, warm_up=warm_up, optimizer=Adam(lr=0.05))
        fit_svi(model.model, guide, x, train="guide", training=training, seed=0)
        results[warm_up] = guide.distribution(x).stddev.mean().item()
    posterior = model.posterior(x).covariance_matrix[0].diagonal().sqrt().mean().item()
    assert results[0] == pytest.approx(posterior, rel=0.2)
    assert results[10_000] < 0.5 * posterior


def test_the_mean_of_the_objective_follows_the_weight(x):
    model, guide = start()
    objective = AmortizedELBO(model.model, guide, TraceMeanField_ELBO(), [])
    objective.kl_weight = 0.25
    torch.manual_seed(1)
    warmed = objective(x)
    objective.kl_weight = 1.0
    torch.manual_seed(1)
    plain = objective(x)
    q = guide.distribution(x)
    kl = torch.distributions.kl_divergence(q, dist.Normal(torch.zeros(2), 1.0).to_event(1).expand(q.batch_shape)).mean()
    torch.testing.assert_close(plain - warmed, 0.75 * kl)


def test_train_guide_leaves_the_model_alone():
    encoder = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    model, guide = NormalisedDecoder(), Amortized(MeanField(2), encoder)
    x = torch.randn(100, 8)
    model.train(), guide.train()
    before, untrained = bits(model), bits(guide)
    flags = [weight.requires_grad for weight in model.parameters()]
    fit = fit_svi(model.program, guide, x, train="guide", training=Training(epochs=5, batch_size=50), seed=0)
    assert same(before, bits(model)) and not same(untrained, bits(guide))
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert all(weight.grad is None for weight in model.parameters())
    # The encoder's running statistics learn; the model was in eval mode during the run and is as before after it.
    assert guide.encoder[1].num_batches_tracked == 10
    assert all(part.training for part in (*model.modules(), *guide.modules()))
    assert fit.settings["train"] == "guide"


class NormalisedDecoder(nn.Module):
    """A model whose decoder keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 8))
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))

    def program(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            flat = self.decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 8)
            return pyro.sample("x", dist.Normal(flat, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


@pytest.mark.parametrize("loss", [TraceGraph_ELBO(), RenyiELBO(alpha=0.5, num_particles=2)], ids=["graph", "renyi"])
def test_losses_with_gradients_of_their_own_leave_none_on_a_frozen_model(loss, x):
    model, guide = start()
    before = bits(model)
    fit_svi(model.model, guide, x, loss=loss, train="guide", training=Training(epochs=1), seed=0)
    assert same(before, bits(model))
    assert all(weight.grad is None for weight in (*model.parameters(), *guide.parameters()))


def test_train_guide_when_model_and_guide_share_an_object():
    vae = NormalisedDecoder()
    modes = []
    vae.encoder[1].register_forward_hook(lambda module, *_: modes.append(("encoder", module.training)))
    vae.decoder[1].register_forward_hook(lambda module, *_: modes.append(("decoder", module.training)))
    before = bits(vae.decoder)
    fit_svi(
        vae.program, vae.guide, torch.randn(20, 8), train="guide", training=Training(epochs=2, batch_size=20), seed=0
    )
    assert same(before, bits(vae.decoder))
    assert ("encoder", True) in modes and ("decoder", True) not in modes


def test_patience_keeps_the_best(x):
    model, guide = NormalisedDecoder(), Amortized(MeanField(2), nn.Linear(8, 4))
    history = []
    training = Training(
        epochs=60,
        batch_size=20,
        optimizer=Adam(lr=0.05),
        patience=3,
        warm_up=2,
        callbacks=[lambda state: history.append(bits(model, guide))],
    )
    fit = fit_svi(model.program, guide, x[:20], training=training, validation=x[20:60], seed=0)
    assert fit.best_epoch == 2 + fit.elbo_validation[2:].argmax().item()
    assert len(fit.elbo) == fit.best_epoch + 4
    assert fit.stopped_because == "held-out ELBO has not improved for 3 epochs"
    # Parameters and running statistics are those of the best epoch, not of the last.
    assert same(history[fit.best_epoch], bits(model, guide))
    assert not same(history[-1], bits(model, guide))


def test_patience_starts_when_warm_up_ends(x):
    """Where every step does harm the first epoch is the best; but epochs of the warm-up do not count."""
    model, guide = start()

    def downhill(leaves):
        return torch.optim.SGD(leaves, lr=1e-5, maximize=True)

    training = Training(epochs=30, batch_size=50, optimizer=downhill, patience=2, warm_up=3)
    fit = fit_svi(model.model, guide, x, training=training, validation=x, seed=0)
    assert fit.elbo_validation.argmax() == 0
    assert fit.best_epoch == 3 and len(fit.elbo) == 6


def test_bare_parameters_live_in_the_callers_store(x):
    pyro.param("untouched", torch.tensor(3.0))

    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    guide = Amortized(MeanField(8), nn.Linear(8, 16))
    training = Training(epochs=3, batch_size=50, optimizer=Adam(lr=0.1))
    fit_svi(model, guide, x, training=training, seed=0)
    store = pyro.get_param_store()
    assert set(store.keys()) == {"untouched", "scale"}
    first = store["scale"].item()
    assert first != 2.0 and store["scale"].requires_grad
    fit = fit_svi(model, guide, x, training=training, init_params="store", seed=0)
    assert store["scale"].item() != first and store["untouched"].item() == 3.0
    assert fit.settings["init_params"] == "store" and fit.settings["params_from_store"] == ["scale"]


def test_two_models_in_one_process_do_not_touch(x):
    (first, first_guide), (second, second_guide) = start(), start()
    training = Training(epochs=3, batch_size=50)
    fit_svi(first.model, first_guide, x, training=training, seed=0)
    before = bits(first, first_guide)
    fit_svi(second.model, second_guide, x, training=training, seed=0)
    assert same(before, bits(first, first_guide))
    # Same start, same seed, same data: the second really trained.
    assert same(before, bits(second, second_guide))


def test_running_statistics_come_from_training_alone():
    model, guide = NormalisedDecoder(), Amortized(MeanField(2), nn.Linear(8, 4))
    fit_svi(
        model.program,
        guide,
        torch.randn(60, 8),
        training=Training(epochs=2, batch_size=20),
        validation=torch.randn(9, 8),
    )
    assert model.decoder[1].num_batches_tracked == 6


class Resampling:
    resamples = True

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return torch.bernoulli(self.x[index])


def test_resampling_data_are_welcome():
    model, guide = start()
    fit = fit_svi(model.model, guide, Resampling(torch.rand(50, 8)), training=Training(epochs=2), seed=0)
    assert fit.elbo.isfinite().all()


def test_a_scaled_program_reports_the_unscaled_elbo(x):
    model, guide = start()
    still, x = Training(epochs=2, batch_size=8000, optimizer=Adam(lr=1e-12)), x.repeat(40, 1)
    plain = fit_svi(model.model, guide, x, training=still, validation=x[:50], seed=0)
    scaled = fit_svi(
        poutine.scale(model.model, 3.0), poutine.scale(guide, 3.0), x, training=still, validation=x[:50], seed=0
    )
    torch.testing.assert_close(scaled.elbo, plain.elbo, rtol=0, atol=0.4)
    torch.testing.assert_close(scaled.elbo_validation, plain.elbo_validation)


class Unstable(nn.Module):
    def forward(self, x):
        return (x.sum(-1, keepdim=True) - 1e9).log().expand(-1, 4)


def nan_guide(x):
    weight = pyro.param("weight", torch.tensor(-1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(weight.log() * x[:, :2], 1.0).to_event(1))


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")
@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("step size", r"step \d+: .*(parameter '\w+\$\$\$|site 'z'|site 'x'|the held-out).* not finite"),
        ("hand-written guide", "step 0: the value of site 'z' is not finite"),
        ("unstable encoder", "step 0: the value of site 'z' is not finite"),
    ],
)
def test_nan_stops_with_a_name(case, message, validation, x):
    model, guide = start()
    training = Training(epochs=20, batch_size=50)
    if case == "step size":
        training = Training(epochs=60, batch_size=50, optimizer=Adam(lr=1e150))
    elif case == "hand-written guide":
        guide = nan_guide
    else:
        guide = Amortized(MeanField(2), Unstable())
    with pyro.validation_enabled(validation), pytest.raises(FloatingPointError, match=message) as error:
        fit_svi(model.model, guide, x, training=training, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")
def test_the_last_step_is_checked_too(x):
    """A gradient that is not finite breaks the parameters after a finite loss; no later loss would say so."""

    class Sharp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.nan

    model, guide = start()
    guide.encoder.register_forward_hook(lambda module, inputs, output: Sharp.apply(output))
    with pytest.raises(FloatingPointError, match=r"parameter '\w+\$\$\$encoder\.weight' is not finite"):
        fit_svi(model.model, guide, x, training=Training(epochs=1, batch_size=200), seed=0)


def outside_the_support(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], 8)).to_event(1), obs=x)


def nothing(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 8]).to_event(1), obs=x)


def nothing_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).expand([len(x), 2]).to_event(1))


def subsampled(x):
    with pyro.plate("data", 1000, subsample=x, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 8), 1.0).to_event(1), obs=x)


CASES = {
    "train": ({"train": "model"}, ValueError, "train: .*'guide'; got 'model'"),
    "loss": ({"loss": "elbo"}, TypeError, "loss: .*Trace_ELBO.*got str"),
    "nothing to train": ({"model": nothing, "guide": nothing_guide}, ValueError, "parameters to train; found no"),
    "nothing in the guide": ({"guide": nothing_guide, "train": "guide"}, ValueError, "guide: .*parameters to train"),
    "empty": ({"data": torch.zeros(0, 8)}, ValueError, "data: .*got none"),
    "empty validation": ({"validation": torch.zeros(0, 8)}, ValueError, "validation: .*got none"),
    "images": ({"data": torch.zeros(4, 2, 4)}, ValueError, r"data: .*\(4, 2, 4\)"),
    "not data": ({"data": 3}, TypeError, "data: .*got int"),
    "infinity": ({"data": torch.full((4, 8), math.inf)}, ValueError, "data: .*datapoint [0-3] holds NaN"),
    "seed": ({"seed": -5}, ValueError, "seed: .*got -5"),
    "renyi, warm-up": (
        {"loss": RenyiELBO(alpha=0.5), "training": Training(warm_up=3)},
        ValueError,
        "RenyiELBO.*warm_up=3.*Trace_ELBO",
    ),
    "renyi, plate": (
        {"loss": RenyiELBO(alpha=0.5), "model": subsampled},
        ValueError,
        "RenyiELBO.*site 'z' scaled by 7.8",
    ),
    "renyi, scale": ({"loss": RenyiELBO(alpha=0.5), "scale": 2.0}, ValueError, "RenyiELBO.*scaled by 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, x):
    change, kind, message = CASES[case]
    model, guide = start()
    arguments = {"model": model.model, "guide": guide, "data": x, **change}
    if scale := arguments.pop("scale", None):
        arguments["model"] = poutine.scale(arguments["model"], scale)
    if isinstance(arguments["data"], torch.Tensor):
        arguments["data"] = arguments["data"].double()
    with pytest.raises(kind, match=message) as error:
        fit_svi(**arguments)
    assert "\n" not in str(error.value)


def test_data_outside_the_support_are_refused_at_the_start():
    with pytest.raises(ValueError, match="support"):
        fit_svi(outside_the_support, start()[1], torch.rand(9, 8), seed=0)


def test_validation_data_outside_the_support_are_refused_too():
    x = torch.rand(9, 8)
    with pytest.raises(ValueError, match="support"):
        fit_svi(outside_the_support, start()[1], x.round(), validation=x, seed=0)
