"""Held-out log p(x), handed to ArviZ to rank models by."""

import math

import arviz
import arviz_reading as reading
import numpy as np
import pytest
import torch

from inference import Evidence, iwae, to_elpd
from pyro_vae.comparison import Scored, paired_difference
from pyro_vae.linear import LinearGaussian

# ArviZ 0.23 calls pandas and matplotlib in ways that their latest releases deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:Passing a dict or None as alias_mapping:matplotlib.MatplotlibDeprecationWarning"
    ),
]

ELPD, POINTWISE = ("elpd_loo", "loo_i") if reading.MAJOR == 0 else ("elpd", "elpd_i")

WEIGHT = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.6, 0.2], [0.1, 0.9]], dtype=torch.float64)
BIAS = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)


@pytest.fixture
def models():
    """The truth, one with too much noise, and one with the wrong weights."""
    return {
        "truth": LinearGaussian(WEIGHT, BIAS, 0.7),
        "noisy": LinearGaussian(WEIGHT, BIAS, 1.0),
        "turned": LinearGaussian(WEIGHT.flip(0), BIAS, 0.7),
    }


@pytest.fixture
def x(models):
    return models["truth"].generate(200, seed=1)


def exact(value, **columns):
    return Evidence(value=value, se=torch.zeros_like(value), method="closed form", **columns)


@pytest.fixture
def evidences(models, x):
    return {name: exact(model.log_evidence(x).detach()) for name, model in models.items()}


def test_the_sum_and_its_error(evidences):
    value = evidences["truth"].value
    elpd = to_elpd(evidences["truth"])
    assert elpd[ELPD] == pytest.approx(float(value.sum()))
    # ArviZ divides by N where a sample variance divides by N - 1.
    assert elpd["se"] == pytest.approx(math.sqrt(200) * float(value.std(correction=0)))
    np.testing.assert_array_equal(elpd[POINTWISE].values, value)
    assert elpd["n_data_points"] == 200 and elpd["scale"] == "log" and not elpd["warning"]


def test_arviz_ranks_and_its_differences_are_ours(evidences):
    table = reading.compare({name: to_elpd(evidence) for name, evidence in evidences.items()})
    means = {name: float(evidence.value.mean()) for name, evidence in evidences.items()}
    assert list(table.index) == sorted(means, key=means.get, reverse=True)
    assert table.index[0] == "truth" and table["weight"]["truth"] > 0.5
    for name in ("noisy", "turned"):
        ours = paired_difference(*(scored(model, evidences[model]) for model in ("truth", name)))
        # ArviZ: sum over datapoints, sqrt(N var_N); ours: mean, sqrt(var_{N-1} / N).
        assert table["elpd_diff"][name] == pytest.approx(200 * ours["mean"])
        assert table["dse"][name] == pytest.approx(math.sqrt(200 * 199) * ours["se"])


def scored(name, evidence):
    return Scored(name=name, log_p=evidence, base_measure="lebesgue", fingerprint="simulated")


def test_an_estimate_comes_with_its_pareto_k(models, x):
    model = models["truth"]
    evidence = iwae(model.model, _guide(model), x[:20], num_draws=500, seed=0)
    elpd = to_elpd(evidence, obs_ids=[f"row {n}" for n in range(20)])
    np.testing.assert_array_equal(elpd["pareto_k"].values, evidence.pareto_k)
    assert elpd["pareto_k"]["obs_id"].values[3] == "row 3"
    assert elpd["n_samples"] == 500 and not elpd["warning"]
    assert abs(elpd[ELPD] - float(model.log_evidence(x[:20]).detach().sum())) < 4 * float(
        evidence.se.square().sum().sqrt()
    )
    assert "Pareto k" in str(elpd)


def _guide(model):
    import pyro

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", model.posterior(x))

    return guide


def test_a_large_k_warns():
    k = torch.full((5,), 0.2)
    k[2] = 0.71
    elpd = to_elpd(exact(torch.arange(5.0), pareto_k=k))
    assert elpd["warning"] and "warning" in str(elpd)
    table = reading.compare({"a": elpd, "b": to_elpd(exact(torch.zeros(5)))})
    assert table["doubtful"]["a"] and not table["doubtful"]["b"]


def test_where_there_is_no_tail_nothing_is_counted():
    some = torch.tensor([math.nan, 0.2, 0.3])
    assert "Pareto k" in str(to_elpd(exact(torch.arange(3.0), pareto_k=some)))
    for k in (None, torch.full((3,), math.nan)):
        elpd = to_elpd(exact(torch.arange(3.0), pareto_k=k))
        assert "Pareto k" not in str(elpd) and not elpd["warning"]


def test_arviz_draws_it(evidences, models, x):
    table = arviz.compare({name: to_elpd(evidence) for name, evidence in evidences.items()})
    assert arviz.plot_compare(table) is not None
    evidence = iwae(models["truth"].model, _guide(models["truth"]), x[:20], num_draws=500, seed=0)
    assert arviz.plot_khat(to_elpd(evidence)) is not None


BAD = {
    "no evidence": (torch.zeros(3), {}, "evidence: expected an Evidence, .* got Tensor"),
    "upper bound": (exact(torch.zeros(3), bound="upper"), {}, "evidence: expected .* lower bound; got an upper bound"),
    "one datapoint": (exact(torch.zeros(1)), {}, "at least 2 datapoints"),
    "not finite": (exact(torch.tensor([0.0, -math.inf, math.nan])), {}, r"got -inf at datapoint 1 \(2 of 3"),
    "ids": (exact(torch.zeros(3)), {"obs_ids": [1, 2]}, "obs_ids: expected shape"),
}


@pytest.mark.parametrize(("evidence", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named_in_one_line(evidence, options, message):
    with pytest.raises(ValueError, match=message) as error:
        to_elpd(evidence, **options)
    assert "\n" not in str(error.value)
