"""Where a fit's bare parameters start: at the program's values, whatever earlier fits left behind."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference import (
    IWAE,
    Adam,
    Amortized,
    MeanField,
    Resume,
    Training,
    WakeSleep,
    elbo,
    fit_em,
    fit_mcem,
    fit_svi,
    refine,
)

TRAINING = Training(epochs=2, batch_size=20, optimizer=Adam(lr=0.05))
SHIFT, SCALE, SPREAD = torch.zeros(3), torch.tensor(1.0), nn.Parameter(torch.zeros(3))
POSITIVE = dist.constraints.positive


@pytest.fixture(autouse=True)
def clear():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def x():
    return 2 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def programs(family=None):
    """Fresh networks with the same weights, and bare parameters: a tensor as it is, made when asked for, random."""
    torch.manual_seed(1)
    decoder, encoder = nn.Linear(2, 3), nn.Linear(3, 4)

    def model(x):
        pyro.module("decoder", decoder)
        shift = pyro.param("shift", SHIFT)
        scale = pyro.param("scale", lambda: SCALE, constraint=POSITIVE)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            spread = scale * pyro.param("spread", SPREAD).exp()
            pyro.sample("x", dist.Normal(decoder(z) + shift, spread).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        loc = loc + pyro.param("offset", lambda: torch.randn(2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def store():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def assert_same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


ENGINES = {
    "svi": lambda model, guide, x: fit_svi(model, guide, x, training=TRAINING, validation=x[:9], seed=0),
    "IWAE": lambda model, guide, x: fit_svi(model, guide, x, loss=IWAE(2), training=TRAINING, seed=0),
    "wake-sleep": lambda model, guide, x: fit_svi(
        model, guide, x, loss=WakeSleep(2, insomnia=0.5), training=TRAINING, seed=0
    ),
    "guide alone": lambda model, guide, x: fit_svi(model, guide, x, train="guide", training=TRAINING, seed=0),
    "em": lambda model, guide, x: fit_em(model, MeanField(2), x, training=TRAINING, seed=0),
    "em from a guide": lambda model, guide, x: fit_em(model, MeanField(2), x, init=guide, training=TRAINING, seed=0),
    "mcem": lambda model, guide, x: fit_mcem(model, x, burn_in=2, training=TRAINING, seed=0),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_call_gives_the_same_numbers_again(engine, x):
    """Whatever an earlier fit, or a program of the same names, left in the store."""
    first = ENGINES[engine](*programs(), x)
    values = store()
    pyro.param("another", torch.ones(2))
    second = ENGINES[engine](*programs(), x)
    assert_same(first.history, second.history)
    assert torch.equal(pyro.param("another"), torch.ones(2))
    pyro.get_param_store().__delitem__("another")
    assert_same(values, store())
    assert first.settings["init_params"] == "program"
    # Training moves a parameter, not the tensor that it starts at.
    assert not SHIFT.any() and not SHIFT.requires_grad and SCALE == 1.0 and not SPREAD.any()


def test_sites_left_by_another_program_are_of_no_account(x):
    plain = fit_svi(*programs(), x, training=TRAINING, seed=0)
    pyro.clear_param_store()
    pyro.param("shift", torch.ones(7))  # of another shape
    pyro.param("scale", torch.tensor(-3.0))  # under another constraint
    again = fit_svi(*programs(), x, training=TRAINING, seed=0)
    assert_same(plain.history, again.history)
    assert pyro.param("shift").shape == (3,) and pyro.param("scale") > 0
    assert pyro.get_param_store().param_name(pyro.param("shift").unconstrained()) == "shift"


def test_going_on_is_asked_for_and_recorded(x):
    fit_svi(*programs(), x, training=TRAINING, seed=0)
    values = store()
    still = Training(epochs=1, batch_size=40, optimizer=Adam(lr=1e-12))
    on = fit_svi(*programs(), x, training=still, init_params="store", seed=0)
    assert on.settings["init_params"] == "store"
    assert on.settings["params_from_store"] == ["offset", "scale", "shift", "spread"]
    assert all(torch.allclose(store()[name], values[name], atol=1e-6) for name in values)
    fit_svi(*programs(), x, training=still, seed=0)
    assert torch.allclose(store()["scale"], SCALE, atol=1e-6)


def test_what_is_not_trained_is_read_from_the_store(x):
    """A guide alone is fitted to the model that was fitted, the one that measurements see."""
    model, guide = programs()
    fit_svi(model, guide, x, training=TRAINING, seed=0)
    values = store()
    fit = fit_svi(model, programs()[1], x, train="guide", training=TRAINING, seed=0)
    assert torch.equal(store()["scale"], values["scale"]) and torch.equal(store()["shift"], values["shift"])
    assert not torch.equal(store()["offset"], values["offset"])
    assert fit.settings["params_held_from_store"] == ["scale", "shift", "spread"]
    # Measurements read the fitted values, and leave them.
    values = store()
    measured = elbo(model, guide, x[:5], num_draws=4, seed=0)
    refine(model, MeanField(2), x[:2], num_draws=4, seed=0)
    assert_same(values, store())
    pyro.clear_param_store()
    assert not torch.equal(measured.value, elbo(model, guide, x[:5], num_draws=4, seed=0).value)


def test_a_resumed_fit_ends_with_the_same_parameters(x, tmp_path):
    options = {"training": TRAINING, "seed": 0}
    plain = fit_svi(*programs(), x, **options)
    values = store()
    for _ in range(2):
        pyro.clear_param_store()
        pyro.param("scale", torch.tensor(9.0), constraint=POSITIVE)
        fit = fit_svi(*programs(), x, resume=Resume(tmp_path / "a", every=0), **options)
        assert_same(fit.history, plain.history)
        assert_same(store(), values)
    with pytest.raises(ValueError, match="resume: .* init_params was None, is 'store'"):
        fit_svi(*programs(), x, resume=Resume(tmp_path / "a"), init_params="store", **options)


def test_weights_of_modules_stay_with_their_modules(x):
    """A fit goes on from the weights of the module that it is given, autoguide or not."""
    guide = Amortized(MeanField(2), nn.Linear(3, 4))
    model, _ = programs()
    first = fit_svi(model, guide, x, training=TRAINING, seed=0)
    second = fit_svi(model, guide, x, training=TRAINING, seed=0)
    assert not torch.equal(first.elbo, second.elbo)


def reads_alone(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + pyro.param("mean"), 1.0).to_event(1), obs=x)


CALLS = {
    "svi": lambda model, x, **options: fit_svi(model, programs()[1], x, training=TRAINING, seed=0, **options),
    "em": lambda model, x, **options: fit_em(model, MeanField(2), x, training=TRAINING, seed=0, **options),
    "mcem": lambda model, x, **options: fit_mcem(model, x, burn_in=2, training=TRAINING, seed=0, **options),
}


@pytest.mark.parametrize("engine", CALLS)
def test_a_start_that_there_is_not_is_refused(engine, x):
    call = CALLS[engine]
    before = store()
    with pytest.raises(ValueError, match=r"site 'mean': expected a pyro.param with an initial value.*='store'"):
        call(reads_alone, x)
    with pytest.raises(ValueError, match="init_params: expected 'program'"):
        call(reads_alone, x, init_params="last")
    pyro.param("mean", torch.zeros(3))
    assert call(reads_alone, x, init_params="store").settings["params_from_store"] == ["mean"]
    pyro.param("shift", torch.ones(7))
    with pytest.raises(ValueError, match=r"init_params: expected the store to hold 'shift' of shape \(3,\)"):
        call(programs()[0], x, init_params="store")
    assert set(store()) - set(before) <= {"mean", "shift", "offset", "spread"}
