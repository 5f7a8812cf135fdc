"""Work that is killed at any moment, and made again, ends with the bits of work that was not."""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import differences, endings
from torch import nn

from inference import (
    Adam,
    Amortized,
    Annealing,
    Cosine,
    FullCovariance,
    Gaps,
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
from pyro_vae.study import Study, run_study

X = torch.randn(130, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# Two chunks.
FEW = X[:70]
HELD_OUT = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TRAINING = Training(
    epochs=6, batch_size=32, optimizer=Adam(lr=0.01), schedule=Cosine(), warm_up=2, patience=3, tol_params=1e-9
)


class Model(nn.Module):
    """Factor analysis whose decoder has running statistics, and a network that may be left out."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.exact = LinearGaussian(torch.randn(3, 2), torch.zeros(3), 1.0)
            self.encoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))
        self.guide = Amortized(MeanField(2), self.encoder)


def tensors(model, record, *names):
    columns = {name: getattr(record, name) for name in names}
    return {**{f"model.{name}": value for name, value in model.state_dict().items()}, **columns}


def svi(folder, compile=False):  # noqa: FBT002
    model = Model()
    training = dataclasses.replace(TRAINING, compile=compile)
    resume = folder and Resume(folder, every=0.03)
    fit = fit_svi(model.exact.model, model.guide, X, training=training, validation=HELD_OUT, resume=resume, seed=0)
    return tensors(model, fit, "elbo", "elbo_validation", "best_epoch", "num_steps")


def em(folder):
    model = Model()
    resume = folder and Resume(folder, every=0.03)
    fit = fit_em(model.exact.model, MeanField(2), X, training=TRAINING, validation=HELD_OUT[:8], resume=resume, seed=0)
    return tensors(model, fit, "elbo", "elbo_validation", "params", "elbo_best", "best_epoch")


def semi_amortized(folder):
    model = Model()
    resume = folder and Resume(folder, every=0.03)
    options = {"init": model.guide, "restart": "every visit", "training": TRAINING, "validation": HELD_OUT[:8]}
    fit = fit_em(model.exact.model, MeanField(2), X, resume=resume, seed=0, **options)
    return tensors(model, fit, "elbo", "elbo_start", "elbo_start_validation", "params", "elbo_best")


def mcem(folder):
    model = Model()
    resume = folder and Resume(folder, every=0.03)
    training = dataclasses.replace(TRAINING, warm_up=0)
    fit = fit_mcem(model.exact.model, X, training=training, validation=HELD_OUT[:8], burn_in=5, resume=resume, seed=0)
    return tensors(model, fit, "log_joint", "elbo_validation", "best_epoch")


def search(folder):
    found = refine(Model().exact.model, FullCovariance(2), FEW, resume=folder and Resume(folder), seed=0)
    return {name: getattr(found, name) for name in ("params", "elbo", "remaining", "converged")}


def annealed(folder, start=None):
    short = Annealing(num_temperatures=40)
    found = ais(Model().exact.model, FEW, start=start, annealing=short, resume=folder and Resume(folder), seed=0)
    return {name: getattr(found, name) for name in ("value", "se", "ess", "acceptance")}


def annealed_from_near(folder):
    return annealed(folder, MeanField(2))


def importance(folder):
    model = Model().eval()
    found = iwae(model.exact.model, model.guide, FEW, num_draws=500, resume=folder and Resume(folder), seed=0)
    return {name: getattr(found, name) for name in ("value", "se", "ess", "pareto_k", "halves")}


def gaps(folder):
    model = Model().eval()
    options = {"num_draws": 100, "num_evidence_draws": 200, "annealing": None}
    options |= {"search": Search(max_rounds=2, first_round=16), "seed": 0}
    found = measure_gaps(model.exact.model, model.guide, FEW, resume=folder and Resume(folder), **options)
    names = ("log_evidence", "elbo_local", "elbo_amortized", "amortization_gap_se")
    return {name: getattr(found, name) for name in names}


def study(folder):
    """Of two cells: what it found in each."""
    torch.set_default_dtype(torch.float32)
    with tempfile.TemporaryDirectory() as nowhere:
        place = Path(folder or nowhere)
        place.mkdir(parents=True, exist_ok=True)
        data = place.parent / "data.npy"
        np.save(data, np.random.default_rng(0).integers(0, 2, (60, 5)))
        small = {"parts": {part: {"part": "mlp", "hidden": [4]} for part in ("decoder", "encoder")}}
        small |= {"training": {"epochs": 20}, "num_latents": 2, "num_data": 2, "axes": {"seed": [0, 1]}}
        results = run_study(Study(data=str(data), **small), place / "study")
    assert results.failures == []
    return {f"{cell.name} {term}": getattr(cell.gaps, term) for cell in results.cells for term in Gaps.TERMS}


ENGINES = {
    "svi": svi,
    "em": em,
    "semi-amortized": semi_amortized,
    "mcem": mcem,
    "refine": search,
    "ais": annealed,
    "ais from near the posterior": annealed_from_near,
    "iwae": importance,
    "gaps": gaps,
    "study": study,
}


@pytest.fixture(autouse=True)
def much_to_keep(monkeypatch):
    """Measurements in chunks of 64 datapoints, and files after every step of a fit."""
    monkeypatch.setattr("inference.scoring.VALUES_AT_ONCE", 1)
    monkeypatch.setattr("inference.resuming.MOST_SAVING", 1e9)
    # Fewer steps to rest, of rows that no test looks at.
    monkeypatch.setattr("inference.table.FIRST_STEPS", 20)
    monkeypatch.setattr("inference.table.HELD_OUT_STEPS", 5)
    monkeypatch.setattr("inference.em.LAST_STEPS", 5)
    # A study's pictures and draws take longer than its fits.
    monkeypatch.setattr("pyro_vae.drawing._draw", lambda *_, **__: None)
    monkeypatch.setattr("pyro_vae.jobs.draw_gaps", lambda folder, gaps: {})
    monkeypatch.setattr("pyro_vae.jobs.measure_gaps", partial(measure_gaps, annealing=None, num_evidence_draws=100))


def check(work, tmp_path, kills):
    whole, found, died = endings(lambda folder: lambda: work(folder), tmp_path, kills=kills)
    assert [differences(whole, one) for one in found] == [[]] * kills
    return died


@pytest.mark.parametrize("engine", ["svi", "em"])
def test_killed_and_made_again(engine, tmp_path):
    check(ENGINES[engine], tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_a_hundred_moments(engine, tmp_path):
    died = check(ENGINES[engine], tmp_path, 100)
    print(f"{engine}: {died} of 100 were killed in the middle; all ended with the same bits")
    assert died > 60
