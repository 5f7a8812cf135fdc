"""Programs whose rows, particles or runs depend on each other are refused, by site and cause."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

from inference import (
    IWAE,
    Amortized,
    Annealing,
    GapTracker,
    MeanField,
    Training,
    WakeSleep,
    ais,
    elbo,
    elbo_surgery,
    fit_em,
    fit_mcem,
    fit_svi,
    iwae,
    measure_gaps,
    quadrature,
    refine,
    sample_posterior,
    sbc,
    simulated_gaps,
    to_datatree,
)
from inference.densities import site_log_probs
from inference.independence import require_rowwise
from inference.noise import random_states
from inference.tracking import TermTracker

D, P = 2, 4


@pytest.fixture
def x():
    return torch.randn(20, P, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def z():
    return torch.randn(3, 20, D, generator=torch.Generator().manual_seed(1))


def made(change=lambda mean: mean, *, prior=lambda x: 0.0):
    """A model whose mean of x is changed."""
    decoder = nn.Linear(D, P)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            loc = torch.zeros(D) + prior(x)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(change(decoder(z)), 0.5).to_event(1), obs=x)

    return model


def guided(change=lambda x: x):
    """A guide whose input is changed."""
    encoder = nn.Linear(P, D)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(change(x)), 0.5).to_event(1))

    return guide


def counter():
    """A number that grows by one from call to call."""
    calls = iter(range(10**6))
    return lambda mean: mean + next(calls)


COUPLED = {
    "mean over the batch": lambda mean: mean - mean.mean(-2, keepdim=True),
    "sum over the batch": lambda mean: mean + mean.sum(-2, keepdim=True),
    "many rows alone": lambda mean: mean - mean.mean(-2, keepdim=True) if mean.shape[-2] > 7 else mean,
    "softmax over the batch": lambda mean: mean.softmax(-2),
    "sorted": lambda mean: mean.sort(-2).values,
    "position": lambda mean: mean + torch.arange(mean.shape[-2])[:, None],
    "cumulative": lambda mean: mean.cumsum(-2),
    "faint": lambda mean: mean + 0.01 * mean.mean(-2, keepdim=True),
}
MIXED_UP = {
    "softmax(dim=1)": lambda mean: mean.softmax(dim=1),
    "sum(1)": lambda mean: mean - mean.sum(1, keepdim=True),
    "view(-1, P)": lambda mean: mean.view(-1, P),
    "flatten(1)": lambda mean: mean.flatten(1)[:, :P],
    "centred over particles": lambda mean: mean - mean.mean(0) if mean.dim() == 3 else mean,
}
RANDOM = {
    "randn": lambda mean: mean + 0.1 * torch.randn(P),
    "numpy": lambda mean: mean + 0.1 * np.random.randn(),  # noqa: NPY002
    "python": lambda mean: mean + random.random(),
    "functional dropout": lambda mean: nn.functional.dropout(mean, 0.1),
    "rare": lambda mean: mean + (torch.rand(()) < 0.5),
    "counter": counter(),
}


@pytest.mark.parametrize("num_rows", [1, 2, 3, 20])
@pytest.mark.parametrize("name", COUPLED)
def test_coupled_rows_of_a_model(name, num_rows, x, z):
    if name == "many rows alone" and num_rows < 8:
        pytest.skip("that few rows are not coupled")
    with pytest.raises(ValueError, match=r"site 'x' of the model: expected .* own row alone.*over the batch") as error:
        require_rowwise(made(COUPLED[name]), x[:num_rows], z[:, :num_rows], site="z")
    assert "LayerNorm" not in str(error.value)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 20])
@pytest.mark.parametrize("name", COUPLED)
def test_coupled_rows_of_a_guide(name, num_rows, x, z):
    if name == "many rows alone" and num_rows < 8:
        pytest.skip("that few rows are not coupled")
    with pytest.raises(ValueError, match=r"site 'z' of the guide: expected .* own row alone.*over the batch"):
        require_rowwise(made(), x[:num_rows], z[:, :num_rows], site="z", guide=guided(COUPLED[name]))


def test_a_coupled_prior(x, z):
    with pytest.raises(ValueError, match="site 'z' of the model: .* own row alone"):
        require_rowwise(made(prior=lambda x: x.mean()), x, z, site="z")


@pytest.mark.parametrize("num_rows", [1, 3, 20])
@pytest.mark.parametrize("name", MIXED_UP)
def test_a_particle_dimension_taken_for_another(name, num_rows, x, z):
    if (name, num_rows) == ("flatten(1)", 1):
        pytest.skip("one row has one place")
    with pytest.raises(
        ValueError, match=r"of the model: expected .* S of them|model: expected one that takes"
    ) as error:
        require_rowwise(made(MIXED_UP[name]), x[:num_rows], z[:, :num_rows], site="z")
    assert "dim=-1 for" in str(error.value)


@pytest.mark.parametrize("num_rows", [1, 20])
@pytest.mark.parametrize("name", RANDOM)
def test_hidden_random_numbers(name, num_rows, x, z):
    few, particles = x[:num_rows], z[:, :num_rows]
    with pytest.raises(ValueError, match=r"site 'x' of the model: .* same values; row \d .* two runs on the same rows"):
        require_rowwise(made(RANDOM[name]), few, particles, site="z")
    with pytest.raises(ValueError, match="site 'z' of the guide: .* two runs on the same rows"):
        require_rowwise(made(), few, particles, site="z", guide=guided(RANDOM[name]))


def test_what_is_right_is_taken(x, z):
    """Operations along a row, dropout in eval mode, covariates, data of any units."""
    net = nn.Sequential(nn.Linear(P, 8), nn.LayerNorm(8), nn.Dropout(), nn.Linear(8, P)).eval()
    for change in (lambda mean: mean.softmax(-1), net, lambda mean: mean - mean.mean(-1, keepdim=True)):
        require_rowwise(made(change), x, z, site="z", guide=guided(net))
        require_rowwise(made(change), x[:1], z[:, :1], site="z", guide=guided(net))
    require_rowwise(made(prior=lambda x: x[:, :D]), x, z, site="z", guide=guided())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("units", [1e-6, 1.0, 1e7])
def test_rounding_is_no_dependence(units, dtype):
    """Long sums in large or small units: other batch sizes give other bits."""
    torch.manual_seed(0)
    x = units * torch.randn(700, 3000, dtype=dtype)
    net = nn.Sequential(nn.Linear(3000, 200), nn.Tanh(), nn.Linear(200, D)).to(dtype)
    decoder = nn.Linear(D, 3000).to(dtype)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(units * decoder(z), 0.01 * units).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(net(x / units), 1e-3).to_event(1))

    z = net(x / units) + 1e-3 * torch.randn(3, 700, D, dtype=dtype)
    require_rowwise(model, x, z, site="z", guide=guide)


def normalised(norm):
    """Batch norm of a mean with any particles on the left."""
    return lambda mean: norm(mean.reshape(-1, mean.shape[-1])).reshape(mean.shape)


@pytest.mark.parametrize("num_rows", [2, 5])
def test_batch_norm_is_blamed_where_there_is_one(num_rows, x, z):
    few, particles = x[:num_rows], z[:, :num_rows]
    train, bare = nn.BatchNorm1d(P), nn.BatchNorm1d(P, track_running_stats=False)
    with pytest.raises(ValueError, match=r"site 'x' of the model: .*BatchNorm1d '' .*in train mode: call .eval\(\)"):
        require_rowwise(made(normalised(train)), few, particles, site="z")
    with pytest.raises(ValueError, match="site 'z' of the guide: .*without running statistics: use LayerNorm instead"):
        require_rowwise(made(), few, particles, site="z", guide=guided(bare))
    require_rowwise(made(normalised(train.eval())), few, particles, site="z", guide=guided(train))
    # One that stands still is not to blame for another cause.
    with pytest.raises(ValueError, match="Look for a sum, mean") as error:
        require_rowwise(made(lambda mean: normalised(train)(mean) + mean.mean(-2)), few, particles, site="z")
    assert "BatchNorm" not in str(error.value)


def test_batch_norm_on_one_row(x):
    with pytest.raises(ValueError, match="data: expected more than one row for a program that normalises"):
        elbo(made(), guided(nn.BatchNorm1d(P, track_running_stats=False)), x[:1], seed=0)


def test_everything_is_as_it_was(x, z):
    """Generators, running statistics, counters in attributes and buffers, modes."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.register_buffer("seen", torch.zeros(()))
            self.norm = nn.BatchNorm1d(P)

        def forward(self, mean):
            self.calls += 1
            self.seen = self.seen + 1
            torch.randn(()), np.random.randn(), random.random()  # noqa: NPY002
            self.norm(mean.reshape(-1, P))
            return mean

    part = Noisy()
    model, guide = made(part), guided(part)
    before, states = {name: value.clone() for name, value in part.state_dict().items()}, random_states()
    require_rowwise(model, x, z, site="z", guide=guide)
    after = random_states()
    assert torch.equal(after.pop("torch"), states.pop("torch"))
    assert after.pop("numpy") == states.pop("numpy") and after.pop("python") == states.pop("python")
    assert part.calls == 0 and part.training and part.norm.training
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


QUICK = {"annealing": None, "num_evidence_draws": 50, "num_draws": 4}
SHORT = Annealing(num_temperatures=3, num_chains=2)
ONE_EPOCH = Training(epochs=1, batch_size=10)
MEASURES = {
    "elbo": lambda m, g, x: elbo(m, g, x, num_draws=4, seed=0),
    "iwae": lambda m, g, x: iwae(m, g, x, num_draws=50, proposal=None, seed=0),
    "measure_gaps": lambda m, g, x: measure_gaps(m, g, x, seed=0, **QUICK),
    "ais": lambda m, g, x: ais(m, x, start=g, annealing=SHORT, seed=0),
    "elbo_surgery": lambda m, g, x: elbo_surgery(m, g, x, num_draws=4, seed=0),
    "sbc": lambda m, g, x: sbc(m, g, x, num_simulations=10, seed=0),
    "simulated_gaps": lambda m, g, x: simulated_gaps(m, g, x, seed=0, **QUICK),
    "sample_posterior": lambda m, g, x: sample_posterior(m, x, init=g, num_warmup=0, num_draws=4, seed=0),
    "to_datatree": lambda m, g, x: to_datatree(m, g, x, num_draws=2, seed=0),
}
OF_MODELS = {
    "refine": lambda m, x: refine(m, MeanField(D), x, seed=0),
    "quadrature": lambda m, x: quadrature(m, x),
    "ais from the prior": lambda m, x: ais(m, x, annealing=SHORT, seed=0),
    "fit_em": lambda m, x: fit_em(m, MeanField(D), x, training=ONE_EPOCH, seed=0),
    "fit_mcem": lambda m, x: fit_mcem(m, x, training=ONE_EPOCH, seed=0),
}


@pytest.mark.parametrize("num_rows", [1, 20])
@pytest.mark.parametrize("measure", MEASURES)
def test_measurements_refuse(measure, num_rows, x):
    for model, guide, message in (
        (made(MIXED_UP["softmax(dim=1)"]), guided(), "site 'x' of the model: .*S of them"),
        (made(COUPLED["sum over the batch"]), guided(), "site 'x' of the model: .*own row alone"),
        (made(RANDOM["functional dropout"]), guided(), "site 'x' of the model: .*two runs"),
        (made(), guided(COUPLED["sum over the batch"]), "site 'z' of the guide: .*own row alone"),
        (made(), guided(RANDOM["functional dropout"]), "site 'z' of the guide: .*two runs"),
    ):
        with pytest.raises(ValueError, match=message):
            MEASURES[measure](model, guide, x[:num_rows])


@pytest.mark.parametrize("num_rows", [1, 20])
@pytest.mark.parametrize("engine", OF_MODELS)
def test_what_takes_a_model_alone_refuses(engine, num_rows, x):
    for change, message in (
        (MIXED_UP["softmax(dim=1)"], "S of them"),
        (COUPLED["sum over the batch"], "own row alone"),
        (RANDOM["functional dropout"], "two runs"),
    ):
        with pytest.raises(ValueError, match=f"site 'x' of the model: .*{message}"):
            OF_MODELS[engine](made(change), x[:num_rows])


FITS = {
    "held-out data": {"validation": torch.zeros(3, P, dtype=torch.float64)},
    "IWAE": {"loss": IWAE(4)},
    "wake-sleep": {"loss": WakeSleep(4, insomnia=0.5)},
}


class Broken(Exception):
    pass


def fails_at_the_first_step(state):
    raise Broken


@pytest.mark.parametrize("case", FITS)
def test_fits_that_read_off_log_weights_refuse_before_the_first_step(case, x):
    training = Training(epochs=1, callbacks=[fails_at_the_first_step])
    for model, guide, message in (
        (made(MIXED_UP["softmax(dim=1)"]), guided(), "S of them"),
        (made(COUPLED["sum over the batch"]), guided(), "own row alone"),
        (made(RANDOM["randn"]), guided(), "two runs"),
        (made(), guided(COUPLED["mean over the batch"]), "own row alone"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_svi(model, guide, x, training=training, seed=0, **FITS[case])


def test_a_plain_fit_of_coupled_rows_is_allowed(x):
    """The ELBO of a minibatch is a sum; batch norm and dropout in training are common."""
    for model in (made(COUPLED["mean over the batch"]), made(MIXED_UP["softmax(dim=1)"]), made(RANDOM["randn"])):
        assert fit_svi(model, guided(), x, training=ONE_EPOCH, seed=0).num_steps == 2
    layers = nn.Sequential(nn.BatchNorm1d(P), nn.Dropout())
    model, guide = made(normalised(layers)), guided(layers)
    for options in (*FITS.values(), {"training": Training(epochs=1, warm_up=1)}):
        fit_svi(model, guide, x, **{"training": ONE_EPOCH, "seed": 0, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"training": Training(epochs=1, warm_up=1)},
        {"loss": RenyiELBO(num_particles=2)},
        {"loss": Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)},
    ],
    ids=["warm-up", "Renyi", "vectorised particles"],
)
def test_a_plain_fit_that_runs_particles_at_once(options, x):
    options = {"training": ONE_EPOCH, "seed": 0, **options}
    with pytest.raises(ValueError, match="site 'x' of the model: .*S of them"):
        fit_svi(made(MIXED_UP["softmax(dim=1)"]), guided(), x, **options)
    assert fit_svi(made(RANDOM["randn"]), guided(), x, **options).num_steps > 0


def test_semi_amortized_inference_looks_at_its_encoder(x):
    encoder = nn.Sequential(nn.Linear(P, 2 * D), nn.BatchNorm1d(2 * D, track_running_stats=False))
    with pytest.raises(ValueError, match="site 'z' of the guide: .*without running statistics"):
        fit_em(
            made(), MeanField(D), x, init=Amortized(MeanField(D), encoder), restart="every visit", training=ONE_EPOCH
        )


@pytest.mark.parametrize(
    "tracker", [lambda m, g, x: GapTracker(m, g, x, every=1), lambda m, g, x: TermTracker(m, g, {"training": x})]
)
def test_trackers_refuse_before_the_first_step(tracker, x):
    model, guide = made(MIXED_UP["softmax(dim=1)"]), guided()
    training = Training(epochs=1, callbacks=[fails_at_the_first_step, tracker(model, guide, x)])
    with pytest.raises(ValueError, match="S of them"):
        fit_svi(model, guide, x, training=training, seed=0)


def test_the_sum_over_sites_is_what_it_was(x, z):
    terms = site_log_probs(made(), x, z, site="z")
    assert list(terms) == ["z", "x"] and all(term.shape == (3, 20) for term in terms.values())
    assert all(term.shape == (20,) for term in site_log_probs(made(), x, z[0], site="z").values())
