"""The same contracts on a GPU: numbers of the CPU within tolerance, exact resume, chunks that do not fit."""

import dataclasses

import pyro.distributions as dist
import pytest
import torch
from killing import differences
from torch import nn

from inference import (
    Adam,
    Amortized,
    Annealing,
    FullCovariance,
    MeanField,
    Resume,
    Search,
    Training,
    ais,
    elbo,
    fit_em,
    fit_mcem,
    fit_svi,
    iwae,
    measure_gaps,
    refine,
)
from inference.compiled import Compiled
from inference.compiled.replaying import Replayed
from inference.noise import measured
from inference.training.loop import LOOK_EVERY
from pyro_vae.linear import LinearGaussian

pytestmark = pytest.mark.gpu

TRAINING = Training(epochs=4, batch_size=50, optimizer=Adam(lr=0.01))


def problem(device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exact = LinearGaussian(torch.randn(3, 2), torch.zeros(3), 1.0).to(device)
        return exact, Amortized(MeanField(2), nn.Linear(3, 4)).to(device), torch.randn(200, 3)


@pytest.mark.parametrize("name", ["elbo", "refine", "iwae", "ais", "gaps"])
def test_measurements_have_the_numbers_of_the_cpu(name):
    """Their noise is drawn on the CPU, whatever the device."""
    short, quick = Annealing(num_temperatures=20), Search(max_rounds=2)

    def run(device):
        exact, guide, x = problem(device)
        return {
            "elbo": lambda: elbo(exact.model, guide, x, num_draws=50, seed=0).value,
            "refine": lambda: refine(exact.model, FullCovariance(2), x, search=quick, seed=0).elbo,
            "iwae": lambda: iwae(exact.model, guide, x, num_draws=200, search=quick, seed=0).value,
            "ais": lambda: ais(exact.model, x, annealing=short, seed=0).value,
            "gaps": lambda: (
                measure_gaps(
                    exact.model, guide, x, num_draws=50, num_evidence_draws=100, annealing=short, search=quick, seed=0
                ).inference_gap
            ),
        }[name]()

    torch.testing.assert_close(run("cuda"), run("cpu"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ["svi", "em", "mcem"])
def test_fits_reach_what_they_reach_on_the_cpu(engine):
    """Draws are the device's own: the mean log p(x) of the fitted models agrees within its errors."""

    def run(device):
        exact, guide, x = problem(device)
        training = dataclasses.replace(TRAINING, epochs=40)
        if engine == "svi":
            fit_svi(exact.model, guide, x, training=training, seed=0)
        elif engine == "em":
            fit_em(exact.model, MeanField(2), x, training=training, seed=0)
        else:
            fit_mcem(exact.model, x, training=training, burn_in=5, seed=0)
        return exact.cpu().log_evidence(x).detach()

    on_gpu, on_cpu = run("cuda"), run("cpu")
    # Two fits from one start by other draws: 160 steps of 0.01 leave the parameters some 0.02 apart.
    assert abs(float(on_gpu.mean() - on_cpu.mean())) < 0.1


@pytest.mark.parametrize("engine", ["svi", "em"])
def test_a_run_goes_on_with_the_same_bits(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.resuming.MOST_SAVING", 1e9)

    class Cut(Exception):
        pass

    def cut(state):
        if state.epoch == 2:
            raise Cut

    def fit(resume=None, callbacks=()):
        exact, guide, x = problem("cuda")
        training = dataclasses.replace(TRAINING, callbacks=callbacks)
        if engine == "svi":
            record = fit_svi(exact.model, guide, x, training=training, resume=resume, seed=0)
        else:
            record = fit_em(exact.model, MeanField(2), x, training=training, resume=resume, seed=0)
        return {**exact.state_dict(), **guide.state_dict(), "elbo": record.elbo, "params": record.params}

    whole = fit()
    with pytest.raises(Cut):
        fit(Resume(tmp_path, every=0), callbacks=[cut])
    assert differences(whole, fit(Resume(tmp_path, every=0))) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda one: dist.Normal(2 * one, one),
        lambda one: dist.Laplace(2 * one, one),
        lambda one: dist.Gamma(2 * one, one),
        lambda one: dist.Bernoulli(0.3 * one),
        lambda one: dist.MixtureSameFamily(dist.Categorical(one), dist.Normal(one, 0.1)),
    ],
)
def test_draws_of_a_measurement_are_those_of_the_cpu(make):
    """Whatever the distribution, and without moving the generators outside."""
    before = torch.cuda.get_rng_state()
    drawn = []
    for device in ("cpu", "cuda"):
        with measured(3):
            drawn.append(make(torch.ones(3, device=device)).sample((50,)))
    assert drawn[1].device.type == "cuda"
    # What becomes of a uniform number on the way is computed on the device.
    torch.testing.assert_close(drawn[1].cpu(), drawn[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_too_large_a_chunk_is_halved(caplog):
    """A real lack of memory: a model that asks for more than the device has, of more than 64 datapoints."""
    exact, _, x = problem("cuda")
    free, _ = torch.cuda.mem_get_info()

    def hungry(x):
        if len(x) > 64:
            torch.empty(2 * free, dtype=torch.uint8, device="cuda")
        return exact.model(x)

    whole = refine(exact.model, MeanField(2), x, search=Search(max_rounds=1), seed=0)
    halved = refine(hungry, MeanField(2), x, search=Search(max_rounds=1), seed=0)
    torch.testing.assert_close(halved.elbo, whole.elbo, rtol=1e-6, atol=1e-6)
    assert "memory does not suffice" in caplog.text


def compiled(function, *programs):
    return Compiled(function, *programs, name="this")


def is_replayed(form):
    return [type(entry.run) is Replayed for entry in form._entries.values()]


def test_a_replayed_call_sees_what_was_written_since():
    """Parameters are read where they lie, also after another tensor has been put in their place."""
    layer = nn.Linear(3, 2, device="cuda")

    def step(x):
        loss = layer(x).square().mean() + torch.randn(2, device="cuda").mean()
        return loss, *torch.autograd.grad(loss, list(layer.parameters()))

    form = compiled(step, layer)
    for change in (
        lambda: None,
        lambda: layer.weight.mul_(2),
        lambda: layer.bias.copy_(torch.tensor([3.0, 4.0])),
        lambda: setattr(layer.weight, "data", torch.ones(2, 3, device="cuda")),
    ):
        with torch.no_grad():
            change()
        x = torch.randn(5, 3, device="cuda")
        states = torch.cuda.get_rng_state()
        found = form(x)
        torch.cuda.set_rng_state(states)
        for ours, theirs in zip(found, step(x), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-9)
    assert is_replayed(form) == [True]


def test_what_a_call_returned_stays_as_it_was():
    form = compiled(lambda x: (2 * x, x.sum()))
    first = form(torch.ones(3, device="cuda"))
    form(torch.zeros(3, device="cuda"))
    assert is_replayed(form) == [True]
    assert first[0].tolist() == [2, 2, 2] and float(first[1]) == 3


def test_recording_writes_nothing():
    """The runs before the recording, and the comparison after it, count as one call."""
    norm = nn.BatchNorm1d(3, device="cuda")
    other = nn.BatchNorm1d(3, device="cuda")
    form = compiled(lambda x: (norm(x).sum(),), norm)
    for _ in range(3):
        x = torch.randn(7, 3, device="cuda")
        form(x), other(x)
    assert form.is_compiled
    torch.testing.assert_close(norm.running_mean, other.running_mean)
    assert norm.num_batches_tracked == other.num_batches_tracked == 3


def test_what_draws_by_values_is_not_recorded():
    form = compiled(lambda x: (nn.functional.dropout(x, 0.5),))
    first, second = (form(torch.ones(1000, device="cuda"))[0] for _ in range(2))
    assert form.is_compiled and is_replayed(form) == [False]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("engine", ["svi", "em"])
def test_a_step_waits_for_nothing(engine, place):
    """Within an epoch the host reads a number once in fifty steps; of data on the GPU it sends the indices alone."""
    num_steps, seen = 100, {}
    exact, guide, _ = problem("cuda")
    x = torch.randn(50 * num_steps, 3, device=place)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True)

    def watch(state):
        if state.epoch == 1:
            profile.start()
        elif state.epoch == 2:
            profile.stop()
            for event in profile.events():
                if event.name.startswith("Memcpy"):
                    kind = " ".join(event.name.split()[:2])
                    seen[kind] = seen.get(kind, 0) + 1

    training = Training(epochs=3, batch_size=50, compile=True, optimizer=Adam(lr=0.01), callbacks=[watch])
    if engine == "svi":
        fit_svi(exact.model, guide, x, training=training, seed=0)
    else:
        fit_em(exact.model, MeanField(2), x, training=training, seed=0)
    # A look at the loss, and at the epoch's end its mean and the parameters.
    assert seen["Memcpy DtoH"] <= num_steps // LOOK_EVERY + 12
    assert seen["Memcpy HtoD"] <= (2 if place == "cpu" or engine == "em" else 1) * num_steps + 12
