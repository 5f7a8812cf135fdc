"""One seed, one result: to the last bit between runs and processes, within round-off between chunks and data sets."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import inference.noise
import inference.scoring
from inference import (
    Amortized,
    Annealing,
    FullCovariance,
    Local,
    MeanField,
    Search,
    Training,
    elbo,
    fit_em,
    fit_svi,
    iwae,
    measure_gaps,
    quadrature,
    refine,
)
from inference.guides import unique_name

QUICK = Search(max_rounds=2, first_round=8)
SHORT = Annealing(num_temperatures=5)


class Model(nn.Module):
    """A decoder with running statistics, dropout and a learned prior."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ELU(), nn.Dropout(0.2), nn.Linear(8, 6))
        self.prior_loc = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.prior_loc, 1.0).to_event(1))
            logits = self.decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def parts(seed=0):
    torch.manual_seed(seed)
    model = Model()
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ELU(), nn.Linear(8, 4))
    x = torch.bernoulli(torch.rand(100, 6))
    # Running statistics that are worth losing.
    for module in (*model.modules(), *encoder.modules()):
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model, Amortized(MeanField(2), encoder), x


def run(name):
    """The numbers of one engine or measurement, from scratch."""
    model, guide, x = parts()
    training = Training(epochs=2, batch_size=32)
    family = MeanField(2)
    if name == "fit_svi":
        fit = fit_svi(model, guide, x, training=training, validation=x[:20], seed=7)
        return [fit.elbo, fit.elbo_validation, *model.state_dict().values(), *guide.state_dict().values()]
    if name == "fit_em":
        fit = fit_em(model, family, x, init=guide, training=training, validation=x[:20], seed=7)
        return [fit.elbo, fit.elbo_validation, fit.params, *model.state_dict().values()]
    if name == "refine":
        refined = refine(model, family, x, init=guide, search=QUICK, seed=7)
        return [refined.params, refined.elbo, refined.elbo_se, refined.remaining, refined.start_gap]
    if name == "iwae":
        evidence = iwae(model, guide, x, num_draws=100, search=QUICK, seed=7)
        return [evidence.value, evidence.se, evidence.ess, evidence.pareto_k]
    if name == "elbo":
        evidence = elbo(model, guide, x, num_draws=100, seed=7)
        return [evidence.value, evidence.se]
    gaps = measure_gaps(
        model,
        guide,
        x,
        families=[FullCovariance(2)],
        num_draws=100,
        num_evidence_draws=100,
        search=QUICK,
        annealing=SHORT,
        seed=7,
    )
    return [getattr(gaps, term) for term in gaps.TERMS] + [gaps.elbo_local_by_family, gaps.amortization_gap_se]


def digest(values):
    return hashlib.sha256(pickle.dumps([value.numpy().tobytes() for value in values])).hexdigest()


NAMES = ["fit_svi", "fit_em", "refine", "iwae", "elbo", "measure_gaps"]


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_twice_in_one_process(name):
    first = run(name)
    torch.randn(17)  # the caller's generator is not what decides
    second = run(name)
    assert all(torch.equal(a, b) or (a.isnan() == b.isnan()).all() for a, b in zip(first, second, strict=True))
    assert digest(first) == digest(second)


def test_same_bits_in_two_processes():
    code = "import torch; torch.set_default_dtype(torch.float64); import test_reproducibility as t;"
    code += "print(*[t.digest(t.run(name)) for name in t.NAMES])"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONHASHSEED": "5",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split() == [digest(run(name)) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_is_another_run(name, monkeypatch):
    first = run(name)
    original = inference.noise.resolve_seed
    for module in ("svi", "em", "estep", "evidence.bound", "evidence.importance", "gaps"):
        monkeypatch.setattr(f"inference.{module}.resolve_seed", lambda seed: original(seed) + 1)
    assert not torch.equal(first[0], run(name)[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_callers_generator_and_store_are_as_they_were(name, monkeypatch):
    pyro.param("mine", torch.tensor(2.0))
    made = parts()
    monkeypatch.setattr(sys.modules[__name__], "parts", lambda: made)
    before = {part: set(values) for part, values in pyro.get_param_store().get_state().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert {part: set(values) for part, values in pyro.get_param_store().get_state().items()} == before
    assert pyro.param("mine").item() == 2.0


@pytest.mark.parametrize("measure", ["refine", "measure_gaps", "iwae", "elbo", "quadrature"])
def test_measurements_leave_every_bit(measure):
    model, guide, x = parts()
    model.train(), guide.train()
    model.decoder[0].eval()  # a mode of its own must come back too
    guide.encoder[0].weight.requires_grad_(False)
    tensors = {**model.state_dict(keep_vars=True), **{f"q.{k}": v for k, v in guide.state_dict(keep_vars=True).items()}}
    before = {name: (tensor.detach().clone(), tensor.requires_grad, tensor.grad) for name, tensor in tensors.items()}
    modes = [part.training for module in (model, guide) for part in module.modules()]
    if measure == "refine":
        refine(model, MeanField(2), x, init=guide, search=QUICK, seed=0)
    elif measure == "measure_gaps":
        measure_gaps(model, guide, x, num_draws=20, num_evidence_draws=50, search=QUICK, annealing=SHORT, seed=0)
    elif measure == "iwae":
        iwae(model, guide, x, num_draws=50, search=QUICK, seed=0)
    elif measure == "elbo":
        elbo(model, guide, x, num_draws=20, seed=0)
    else:
        quadrature(model, x)
    for name, tensor in tensors.items():
        value, requires_grad, grad = before[name]
        assert torch.equal(tensor, value) and tensor.requires_grad == requires_grad, name
        assert tensor.grad is grad, name
    assert modes == [part.training for module in (model, guide) for part in module.modules()]


def values(name, model, guide, x):
    if name == "refine":
        return refine(model, MeanField(2), x, init=guide, search=QUICK, seed=0).elbo
    if name == "iwae":
        return iwae(model, guide, x, num_draws=600, search=QUICK, seed=0).value
    if name == "iwae of a Local guide":
        return iwae(model, Local(guide.family, guide.params(x).detach()), x, num_draws=600, seed=0).value
    if name == "elbo":
        return elbo(model, guide, x, num_draws=100, seed=0).value
    if name == "quadrature":
        return quadrature(model, x).value
    gaps = measure_gaps(model, guide, x, num_draws=100, num_evidence_draws=600, search=QUICK, annealing=SHORT, seed=0)
    return torch.stack([getattr(gaps, term) for term in gaps.TERMS], 1)


MEASURED = ["refine", "iwae", "iwae of a Local guide", "elbo", "quadrature", "measure_gaps"]


@pytest.mark.parametrize("name", MEASURED)
def test_a_value_does_not_depend_on_the_chunk(name, monkeypatch):
    model, guide, x = parts()
    model.eval(), guide.eval()
    x = x[:66] if name == "quadrature" else torch.cat([x, x[:60]])
    whole = values(name, model, guide, x)
    # Quadrature goes through its points in parts of this many values, too: fewer of them would take half a minute.
    monkeypatch.setattr(inference.scoring, "VALUES_AT_ONCE", 6 * 64 * (64 if name == "quadrature" else 1))
    torch.testing.assert_close(values(name, model, guide, x), whole, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", MEASURED)
def test_a_value_does_not_depend_on_what_follows(name):
    model, guide, x = parts()
    model.eval(), guide.eval()
    whole = values(name, model, guide, x)
    for num_data in (1, 10, 70):
        torch.testing.assert_close(values(name, model, guide, x[:num_data]), whole[:num_data], rtol=1e-7, atol=1e-7)


def test_without_a_seed_runs_differ_and_say_with_which():
    model, guide, x = parts()
    model.eval(), guide.eval()
    first, second = (elbo(model, guide, x, num_draws=20) for _ in range(2))
    assert not torch.equal(first.value, second.value)
    again = elbo(model, guide, x, num_draws=20, seed=first.settings["seed"])
    assert torch.equal(first.value, again.value)
