"""How benchmarks/budget.py meters a fit, and what it computes from the scores."""

import dataclasses
import json
import math
import time
from functools import partial

import budget
import pytest
import records
import torch
from studies import common, curves, engines, meter

from inference import MeanField, Training, fit_em, fit_svi

PRESET = engines.dry(engines.PRESETS["quick"])
X = (torch.rand(60, 12, generator=torch.Generator().manual_seed(0)) < 0.3).double()


class Clock:
    """A clock that goes on by one second whenever a model has been stepped."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(meter.time, "perf_counter", made)
    return made


def step(watch, optimizer, clock, seconds=1.0):
    clock.now += seconds
    watch.decoder(torch.ones(5, 2)).sum().backward()
    optimizer.step()


def test_snapshots_at_set_times_until_the_last(clock):
    decoder = torch.nn.Linear(2, 3)
    watch = meter.Meter(decoder, times=[2.0, 3.5, 6.0], rate=0.1)
    steps = 0
    with watch:
        optimizer = watch.optimizer(decoder.parameters())
        while True:
            step(watch, optimizer, clock)
            steps += 1
    assert steps == 5  # the sixth ends it
    assert {number: found["seconds"] for number, found in watch.snapshots.items()} == {0: 2.0, 1: 4.0, 2: 6.0}
    assert [found["evaluations"] for found in watch.snapshots.values()] == [20, 40, 60]
    assert watch.seconds == 6.0
    kept = [found["weights"]["weight"] for found in watch.snapshots.values()]
    assert not torch.equal(kept[0], kept[1]) and torch.equal(kept[2], decoder.weight)
    # Nothing is watched any more.
    decoder(torch.ones(5, 2))
    assert watch.evaluations == 60


def test_a_step_that_takes_long_skips_times_and_a_divergence_keeps_what_there_was(clock):
    decoder = torch.nn.Linear(2, 3)
    watch = meter.Meter(decoder, times=[1.0, 2.0, 3.0, 9.0], rate=0.1)
    with watch:
        optimizer = watch.optimizer(decoder.parameters())
        step(watch, optimizer, clock, seconds=3.0)
        clock.now += 0.5
        raise FloatingPointError
    assert list(watch.snapshots) == [2] and watch.seconds == 3.5
    with pytest.raises(KeyError), watch:
        raise KeyError


def test_evaluations_are_rows_forward_and_backward():
    decoder = torch.nn.Linear(2, 3)
    with meter.Meter(decoder, times=[1.0], rate=0.1) as watch:
        z = torch.ones(4, 2, requires_grad=True)
        with torch.no_grad():
            decoder(z)
        assert watch.evaluations == 4
        output = decoder(z)
        assert watch.evaluations == 8
        torch.autograd.grad(output.sum(), z)
        assert watch.evaluations == 12


def test_what_engines_spend():
    """SVI: one draw a datapoint, there and back. EM with k steps and two draws: k times that, and the M-step."""
    count = {}
    for name, steps in {"svi": 0, "em": 3}.items():
        vae = budget.build(PRESET, X.shape[1], amortized=name == "svi")
        watch = meter.Meter(vae.decoder, times=[math.inf], rate=1e-3)
        training = partial(Training, batch_size=20, optimizer=watch.optimizer, local_steps=max(steps, 1))
        for epochs in (1, 2):
            before = watch.evaluations
            with watch:
                if name == "svi":
                    fit_svi(vae.model, vae.guide, X, training=training(epochs=epochs), seed=0)
                else:
                    fit_em(vae.model, MeanField(3), X, training=training(epochs=epochs), seed=0)
            count[name, epochs] = watch.evaluations - before
    # What is spent before and after the epochs cancels.
    assert count["svi", 2] - count["svi", 1] == len(X) * 2
    assert count["em", 2] - count["em", 1] == len(X) * 2 * (3 + 1) * 2


def test_every_engine_starts_at_the_same_decoder():
    weights = []
    for amortized in (True, False):
        torch.manual_seed(0)
        weights.append(budget.build(PRESET, 12, amortized=amortized).decoder.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_budget_holds_tuning_and_fit():
    preset = engines.PRESETS["quick"]
    assert preset.trial_seconds * len(preset.rates) + preset.times[-1] == pytest.approx(preset.seconds)
    assert len(preset.times) == preset.num_snapshots
    ratios = [later / earlier for earlier, later in zip(preset.times, preset.times[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_over_seeds():
    value = torch.tensor([[1.0, 3.0, 2.0], [2.0, 8.0, 5.0]])
    found = records.over_seeds(value, torch.tensor([[0.3, 0.0, 0.0], [0.4, 0.0, 0.0]]))
    assert found["mean"] == 3.5 and found["mc_se"] == pytest.approx(0.5 / 6)
    assert found["se"] == pytest.approx(torch.tensor([1.5, 5.5, 3.5]).std().item() / math.sqrt(3))
    assert found["seed_se"] == pytest.approx(torch.tensor([2.0, 5.0]).std().item() / math.sqrt(2))
    assert math.isnan(records.over_seeds(value[:1], value[:1])["seed_se"])


def test_scores_at_equal_cost():
    points = [{"evaluations": 10, "log_p": {"mean": -9.0}}, {"evaluations": 1000, "log_p": {"mean": -5.0}}]
    assert curves.at(points, "evaluations", 100, "log_p") == pytest.approx(-7)
    assert curves.at(points, "evaluations", 1000, "log_p") == -5
    assert math.isnan(curves.at(points, "evaluations", 5, "log_p")) and math.isnan(curves.at([], "seconds", 5, "log_p"))


def test_curves_and_comparison(tmp_path):
    """Three engines with two seeds: SVI, one that is better by 2, one that never finished a step."""
    for name, gain in {"SVI": 0.0, "wake-sleep": 2.0, "Monte Carlo EM": None}.items():
        own = tmp_path / "200" / common.slug(name)
        common.kept(own / "tuned.pt", lambda: {"trials": [], "rate": 0.1, "seconds": 5.0, "evaluations": 50})
        for seed in PRESET.seeds:
            numbers = [] if gain is None else [0, 1]
            snapshots = {n: {"seconds": 1.0 + n, "evaluations": 100 * (n + 1), "weights": {}} for n in numbers}
            value = torch.tensor([-90.0, -80.0]) + seed + (gain or 0)
            terms = {n: {term: (value + n, torch.ones(2)) for term in curves.SCORES} for n in numbers}
            common.kept(own / f"fit-{seed}.pt", lambda found=snapshots: {"snapshots": found})
            common.kept(own / f"scores-{seed}.pt", lambda found=terms: found)
    sizes = curves.record_of(PRESET, ["SVI", "wake-sleep", "Monte Carlo EM"], tmp_path)
    engines, comparison = sizes["200"]["engines"], sizes["200"]["comparison"]
    first, last = engines["SVI"]["points"]
    assert (first["seconds"], last["seconds"], last["evaluations"]) == (6.0, 7.0, 250)
    assert last["log_p"]["mean"] == -85 + 0.5 + 1 and last["log_p"]["by_seed"] == [-84.0, -83.0]
    assert engines["Monte Carlo EM"]["points"] == []
    against = comparison["log_p_less_that_of_SVI"]
    assert list(against) == ["SVI", "wake-sleep"]
    assert against["wake-sleep"]["mean"] == 2 and against["wake-sleep"]["seed_se"] == 0
    assert comparison["at_equal_evaluations"]["evaluations"] == 250
    record = {"sizes": sizes, "settings": {"seconds": 8.0, "seeds": PRESET.seeds}}
    json.dumps(record)
    assert "finished no step" in curves.text_of(record)
    curves.draw(record, "log_p", tmp_path / "log_p.png")
    assert (tmp_path / "log_p.png").stat().st_size > 10_000


def test_a_score_is_that_of_the_decoder_alone():
    """Log p(x) of a decoder that ignores z is known: every score of it is exact."""
    vae = budget.build(PRESET, 12, amortized=False)
    weights = {name: torch.zeros_like(value) for name, value in vae.decoder.state_dict().items()}
    preset = dataclasses.replace(PRESET, num_draws=2000)
    scores = budget.score(weights, preset, X[:4], seed=0, device="cpu")
    log_p, se = scores["log_p"]
    assert bool(((log_p + 12 * math.log(2)).abs() < 4 * se).all()) and bool((se < 0.05).all())
    # q* is the prior, where every draw has the same weight.
    assert scores["elbo"][0].tolist() == pytest.approx([-12 * math.log(2)] * 4)


def test_a_fit_ends_within_an_epoch():
    """An epoch of 10^5 steps does not hold it up."""
    data = X.repeat(2000, 1)
    began = time.perf_counter()
    found = budget.fit(engines.ENGINES["SVI"], PRESET, data, times=[0.05, 0.2], rate=1e-3, seed=0, device="cpu")
    assert time.perf_counter() - began < 30
    assert found["snapshots"][1]["seconds"] == pytest.approx(found["seconds"]) and found["seconds"] >= 0.2


@pytest.mark.slow
def test_budget_runs(tmp_path, run_benchmark):
    """Every engine at a tiny size; then again, from what was kept."""
    for _ in range(2):
        done = run_benchmark("budget.py", tmp_path, "--preset=paper", "--jobs=1", "--device=cpu")
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert list(record["sizes"]["200"]["engines"]) == list(engines.ENGINES)
    assert all((tmp_path / f"{term}.png").exists() for term in curves.SCORES)
