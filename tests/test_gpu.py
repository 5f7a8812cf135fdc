"""The same contracts on a GPU: numbers of the CPU within tolerance, exact resume, chunks that do not fit."""

import dataclasses

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
    fit_em,
    fit_mcem,
    fit_svi,
    iwae,
    measure_gaps,
    refine,
)
from pyro_vae.linear import LinearGaussian

pytestmark = pytest.mark.gpu

TRAINING = Training(epochs=4, batch_size=50, optimizer=Adam(lr=0.01))


def problem(device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exact = LinearGaussian(torch.randn(3, 2), torch.zeros(3), 1.0).to(device)
        return exact, Amortized(MeanField(2), nn.Linear(3, 4)).to(device), torch.randn(200, 3)


@pytest.mark.parametrize("name", ["refine", "iwae", "ais", "gaps"])
def test_measurements_have_the_numbers_of_the_cpu(name):
    """Their noise is drawn on the CPU, whatever the device."""
    short, quick = Annealing(num_temperatures=20), Search(max_rounds=2)

    def run(device):
        exact, guide, x = problem(device)
        return {
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
        return exact.cpu().log_evidence(x)

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
