import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle

from inference import (
    Amortized,
    FullCovariance,
    Gaps,
    Local,
    MeanField,
    Search,
    SimulatedGaps,
    generalization,
    measure_gaps,
    simulated_gaps,
)
from pyro_vae.linear import LinearGaussian

QUICK = {
    "num_draws": 100,
    "num_evidence_draws": 200,
    "annealing": None,
    "search": Search(max_rounds=1, num_judge_draws=64, num_select_draws=64),
}


@pytest.fixture
def oracle():
    return LinearOracle.random(6, 2)


def model_of(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model


def guide_of(oracle, *, slope=1.0):
    """The exact posterior with a mean that grows too fast or too slowly with x: its gap depends on x."""
    weight, bias = slope * torch.tensor(oracle.encoder_weight), torch.tensor(oracle.bias)
    covariance = torch.tensor(oracle.covariance)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal((x - bias) @ weight.T, covariance))

    return guide


def gap_of(oracle, x, slope):
    """KL(q || posterior) at each x, in closed form."""
    return torch.tensor(oracle.inference_gap(x, slope * oracle.posterior_mean(x), oracle.covariance))


def record(value, *, num_data=4, **changes):
    """Gaps in which term t of datapoint n is value + t + n / 10, each with error 0.1."""
    column = torch.arange(num_data) / 10
    terms = {term: column + value + t for t, term in enumerate(Gaps.TERMS)}
    errors = {f"{term}_se": torch.full((num_data,), 0.1) for term in Gaps.TERMS}
    fields = dict(
        **terms,
        **errors,
        converged=torch.ones(num_data, dtype=torch.bool),
        start_gap=torch.zeros(num_data),
        pareto_k=None,
        ess=None,
        family="MeanField(2)",
        evidence_method="given",
        settings={"num_draws": 100, "seed": 0},
    )
    return Gaps(**(fields | changes))


# Training against held-out data.


def test_test_gap_is_training_gap_plus_generalization():
    both = generalization(record(1.0, num_data=4), record(1.5, num_data=9))
    row = both.summary()["amortization_gap"]
    assert row["test"] == both.test.summary()["amortization_gap"]
    assert row["training"]["mean"] + row["generalization"]["mean"] == pytest.approx(row["test"]["mean"])
    assert row["generalization"]["mean"] == pytest.approx(0.5 + 0.4 - 0.15)
    assert row["generalization"]["se"] == pytest.approx(math.hypot(row["test"]["se"], row["training"]["se"]))
    assert row["generalization"]["mc_se"] == pytest.approx(math.hypot(0.1 / 4**0.5, 0.1 / 9**0.5))
    line = str(both).splitlines()[1]
    assert line == (
        "amortization gap: test 5.9000 = training 5.1500 + generalization 0.7500 (se "
        f"{row['generalization']['se']:.4f}, mc_se {row['generalization']['mc_se']:.4f})"
    )
    assert "N = 4 training, 9 test" in str(both) and "Not converged" not in str(both)
    unconverged = generalization(record(1.0, converged=torch.zeros(4, dtype=torch.bool)), record(1.5))
    assert "Not converged: 4 of 4 and 0 of 4" in str(unconverged)


def test_the_errors_of_a_generalization_are_those_of_other_datapoints(oracle):
    """Over samples of both sets, its spread is the stated error and its mean the difference of the two means."""
    slope, wide = 1.4, dataclasses.replace(oracle, scale=1.4)
    values, errors = [], []
    for seed in range(300):
        train, test = oracle.draw(30, seed=seed), wide.draw(20, seed=1000 + seed)
        gaps = []
        for x in (train, test):
            gap = gap_of(oracle, x, slope)
            gaps.append(record(0.0, num_data=len(x), amortization_gap=gap, amortization_gap_se=0 * gap))
        row = generalization(*gaps).summary()["amortization_gap"]["generalization"]
        values.append(row["mean"])
        errors.append(row["se"])
    values, errors = torch.tensor(values), torch.tensor(errors)
    assert 0.85 < values.std() / errors.square().mean().sqrt() < 1.15
    many = [gap_of(oracle, drawn.draw(20_000, seed=5), slope).mean() for drawn in (oracle, wide)]
    assert abs(values.mean() - (many[1] - many[0])) < 4 * values.std() / 300**0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "FullCovariance(2)"}, r"in MeanField\(2\); got FullCovariance\(2\)"),
        ({"settings": {"num_draws": 200}}, "num_draws = 100; got 200"),
    ],
    ids=["another family", "other settings"],
)
def test_what_does_not_compare_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        generalization(record(1.0), record(1.5, **changes))


# Real data against simulated.


def test_on_data_of_the_model_itself_both_agree(oracle):
    both = simulated_gaps(
        model_of(oracle), guide_of(oracle, slope=1.4), torch.tensor(oracle.draw(100)), seed=0, **QUICK
    )
    for term, row in both.summary().items():
        assert abs(row["difference"]["mean"]) < 3 * row["difference"]["se"], term
        assert row["difference"]["mean"] == pytest.approx(row["real"]["mean"] - row["simulated"]["mean"])
    assert both.reading.startswith("Real and simulated data differ by less than") and both.reading in str(both)
    truth = gap_of(oracle, oracle.draw(20_000, seed=9), 1.4).mean()
    gap = both.summary()["amortization_gap"]["simulated"]
    assert abs(gap["mean"] - truth) < 4 * gap["se"]


def test_on_misspecified_data_they_do_not(oracle):
    wide = dataclasses.replace(oracle, weight=2 * oracle.weight)  # z has twice the scale.
    x = torch.tensor(wide.draw(100))
    both = simulated_gaps(model_of(oracle), guide_of(oracle, slope=1.4), x, num_simulations=150, seed=0, **QUICK)
    gap = both.summary()["amortization_gap"]["difference"]
    truth = gap_of(oracle, wide.draw(20_000, seed=9), 1.4).mean() - gap_of(oracle, oracle.draw(20_000), 1.4).mean()
    assert gap["mean"] > 3 * gap["se"] and abs(gap["mean"] - truth) < 4 * gap["se"]
    assert both.reading.startswith("The amortization gap is larger on real data by")
    assert len(both.simulated) == 150 and "N = 100 real, 150 simulated." in str(both)


def test_a_misspecified_model_that_costs_the_encoder_nothing(oracle):
    """The exact posterior has no gap anywhere; log p(x) shows that the data are others."""
    wide = dataclasses.replace(oracle, scale=1.5 * oracle.scale)
    both = simulated_gaps(model_of(oracle), guide_of(oracle), torch.tensor(wide.draw(100)), seed=0, **QUICK)
    assert abs(both.summary()["amortization_gap"]["difference"]["mean"]) < 0.01  # The search's tolerance.
    assert "so it is the encoder's; the model is misspecified all the same" in both.reading
    assert "nats less." in both.reading


def test_one_datapoint_says_nothing():
    both = SimulatedGaps(real=record(1.0, num_data=1), simulated=record(5.0))
    assert both.reading.startswith("One datapoint alone")
    less = SimulatedGaps(real=record(1.0), simulated=record(5.0))
    assert less.reading.startswith("The amortization gap is smaller on real data by 4.0000")


def test_nothing_is_left_behind_and_a_seed_fixes_both(oracle):
    guide = Amortized(FullCovariance(2), torch.nn.Linear(6, 5)).train()
    before, state = [p.clone() for p in guide.parameters()], torch.get_rng_state()
    x = torch.tensor(oracle.draw(4))
    one, two = (simulated_gaps(model_of(oracle), guide, x, seed=3, **QUICK) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()) and guide.training
    assert all(torch.equal(p, b) for p, b in zip(guide.parameters(), before, strict=True))
    assert torch.equal(
        one.real.amortization_gap, measure_gaps(model_of(oracle), guide, x, seed=3, **QUICK).amortization_gap
    )
    assert torch.equal(one.simulated.amortization_gap, two.simulated.amortization_gap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": Local(MeanField(2), torch.zeros(4, 4))}, "rows belong to fixed x"),
        ({"log_evidence": torch.zeros(4)}, "log_evidence: expected None"),
        ({"num_simulations": 0}, "num_data: expected an integer of at least 1"),
    ],
    ids=["local", "known evidence", "no simulations"],
)
def test_bad_input(oracle, options, message):
    options = {"guide": guide_of(oracle)} | options
    with pytest.raises(ValueError, match=message):
        simulated_gaps(model_of(oracle), options.pop("guide"), torch.zeros(4, 6), **options)
