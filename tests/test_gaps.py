import dataclasses
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle

from inference import (
    Amortized,
    Annealing,
    Evidence,
    FullCovariance,
    Gaps,
    Local,
    MeanField,
    Search,
    bdmc,
    elbo,
    measure_gaps,
    quadrature,
)
from pyro_vae.linear import LinearGaussian

FACTOR = 1.7  # of the encoder's variances
QUICK = Search(max_rounds=2)


class PosteriorEncoder(torch.nn.Module):
    """The exact posterior mean, with variances that are a factor of the best ones; or the exact covariance."""

    def __init__(self, oracle, family, *, factor=1.0, shift=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(oracle.encoder_weight))
        self.bias = torch.nn.Parameter(torch.tensor(oracle.bias))
        if isinstance(family, MeanField):
            covariance = np.diag(factor / np.diag(oracle.precision))
        else:
            covariance = factor * oracle.covariance
        self.family, self.covariance, self.shift = family, torch.tensor(covariance), shift

    def forward(self, x):
        loc = (x - self.bias) @ self.weight.T + self.shift
        return self.family.params_from(dist.MultivariateNormal(loc, self.covariance))


@pytest.fixture
def oracle():
    return LinearOracle.random()


def program(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model


def pair(oracle, family, **wrong):
    return program(oracle), Amortized(family, PosteriorEncoder(oracle, family, **wrong))


def assert_close(gaps, truth):
    """Within 4 mc_se and within 0.02 nats on average; 5 errors at every datapoint."""
    summary = gaps.summary()
    for term, expected in truth.items():
        mean, mc_se = summary[term]["mean"], summary[term]["mc_se"]
        expected = torch.as_tensor(expected)
        assert abs(mean - expected.mean().item()) < 4 * mc_se, term
        assert abs(mean - expected.mean().item()) < 0.02, term
        value, se = getattr(gaps, term), getattr(gaps, f"{term}_se")
        # The search may leave up to its tolerance.
        assert ((value - expected).abs() < 5 * se + 0.01).all(), term


def test_mean_field_terms_equal_the_closed_forms(oracle):
    x = torch.tensor(oracle.draw(64))
    gaps = measure_gaps(*pair(oracle, MeanField(5), factor=FACTOR), x, families=[FullCovariance(5)], seed=0)
    log_p = oracle.log_evidence(x)
    approximation = oracle.approximation_gap
    amortization = oracle.amortization_gap(FACTOR / np.diag(oracle.precision))
    assert amortization == pytest.approx(0.5 * 5 * (FACTOR - 1 - math.log(FACTOR)))
    assert_close(
        gaps,
        {
            "log_evidence": log_p,
            "elbo_local": log_p - approximation,
            "elbo_amortized": log_p - approximation - amortization,
            "approximation_gap": approximation,
            "amortization_gap": amortization,
            "inference_gap": approximation + amortization,
        },
    )
    assert gaps.converged.all()
    # In the family of full covariance nothing is left.
    assert abs((gaps.log_evidence - gaps.elbo_local_by_family[0]).mean()) < 0.01
    assert gaps.families == ("FullCovariance(5)",) and gaps.family == "MeanField(5)"
    assert gaps.settings["num_unconverged_by_family"] == [0]


@pytest.mark.slow
def test_full_covariance_has_no_approximation_gap(oracle):
    x = torch.tensor(oracle.draw(64))
    gaps = measure_gaps(*pair(oracle, FullCovariance(5), factor=FACTOR), x, seed=0)
    amortization = 0.5 * 5 * (FACTOR - 1 - math.log(FACTOR))
    assert abs(gaps.approximation_gap.mean()) < 0.01
    assert gaps.amortization_gap.mean().item() == pytest.approx(amortization, abs=0.02)
    assert (gaps.pareto_k < 0.5).all()


def test_exact_posterior_has_no_gaps(oracle):
    x = torch.tensor(oracle.draw(64))
    gaps = measure_gaps(*pair(oracle, FullCovariance(5)), x, seed=0)
    summary = gaps.summary()
    for term in ("approximation_gap", "amortization_gap", "inference_gap"):
        assert abs(summary[term]["mean"]) < max(4 * summary[term]["mc_se"], 1e-9), term
        assert abs(summary[term]["mean"]) < 0.01, term
        assert (getattr(gaps, term).abs() < 5 * getattr(gaps, f"{term}_se") + 0.01).all(), term
    # L[q] is the evidence at every draw.
    torch.testing.assert_close(gaps.elbo_amortized, torch.tensor(oracle.log_evidence(x)), rtol=1e-9, atol=1e-9)


def test_a_shifted_encoder_pays_for_its_mean(oracle):
    x = torch.tensor(oracle.draw(64))
    shift = torch.tensor([0.2, -0.1, 0.0, 0.15, 0.0])
    gaps = measure_gaps(
        *pair(oracle, MeanField(5), shift=shift), x, log_evidence=torch.tensor(oracle.log_evidence(x)), seed=0
    )
    expected = 0.5 * float(shift @ torch.tensor(oracle.precision) @ shift)
    assert_close(gaps, {"amortization_gap": expected, "inference_gap": expected + oracle.approximation_gap})
    # The sum is additive whatever the noise.
    torch.testing.assert_close(gaps.approximation_gap + gaps.amortization_gap, gaps.inference_gap)


@pytest.mark.slow
def test_errors_are_those_of_another_seed(oracle):
    """Over seeds, each term's spread is its stated error; the amortization gap's is that of paired differences."""
    x = torch.tensor(oracle.draw(16))
    model, guide = pair(oracle, MeanField(5), factor=FACTOR)
    search = Search(max_rounds=1, num_particles=32)
    runs = [
        measure_gaps(model, guide, x, search=search, annealing=None, num_draws=200, num_evidence_draws=200, seed=s)
        for s in range(40)
    ]
    for term in Gaps.TERMS:
        spread = torch.stack([getattr(run, term) for run in runs]).std(0)
        stated = torch.stack([getattr(run, f"{term}_se") for run in runs]).square().mean(0).sqrt()
        ratio = (spread / stated).square().mean().sqrt()
        assert 0.85 < ratio < 1.2, (term, ratio)
    one = runs[0]
    unpaired = one.elbo_local_se.hypot(one.elbo_amortized_se)
    assert (one.amortization_gap_se < 0.8 * unpaired).float().mean() > 0.9


def test_the_same_noise_scores_both():
    """Where the search cannot improve on the guide, the two are the same row on the same draws: no gap and no error."""
    oracle = LinearOracle.random()
    x = torch.tensor(oracle.draw(16))
    harmful = Search(lr=5.0, first_round=4, max_rounds=1, num_particles=2)
    gaps = measure_gaps(*pair(oracle, MeanField(5)), x, search=harmful, annealing=None, num_evidence_draws=50, seed=0)
    assert torch.equal(gaps.elbo_local, gaps.elbo_amortized)
    assert not gaps.amortization_gap.any() and not gaps.amortization_gap_se.any()
    assert not gaps.converged.any() and gaps.summary()["num_unconverged"] == 16
    assert "Not converged: 16 of 16" in str(gaps)


def test_elbo_is_measured_as_elbo_does(oracle):
    x = torch.tensor(oracle.draw(10))
    model, guide = pair(oracle, MeanField(5), factor=FACTOR)
    gaps = measure_gaps(model, guide, x, search=QUICK, annealing=None, num_evidence_draws=50, num_draws=100, seed=3)
    alone = elbo(model, guide, x, num_draws=100, seed=3)
    assert torch.equal(alone.value, gaps.elbo_amortized) and torch.equal(alone.se, gaps.elbo_amortized_se)


def test_negative_gaps_are_kept(oracle):
    """At an encoder that is already best, the gap is noise around what little the search cost."""
    x = torch.tensor(oracle.draw(64))
    gaps = measure_gaps(
        *pair(oracle, MeanField(5)), x, num_draws=50, annealing=None, num_evidence_draws=50, search=QUICK, seed=0
    )
    assert (gaps.amortization_gap < 0).any()
    assert (gaps.approximation_gap < 0).any()
    assert (gaps.amortization_gap > -4 * gaps.amortization_gap_se - 1e-12).all()


@pytest.mark.parametrize("given", ["tensor", "record"])
def test_known_evidence_is_named(given):
    oracle = LinearOracle.random(6, 1)
    x = torch.tensor(oracle.draw(5))
    model, guide = pair(oracle, MeanField(1))
    known = torch.tensor(oracle.log_evidence(x)) if given == "tensor" else quadrature(model, x)
    gaps = measure_gaps(model, guide, x, log_evidence=known, seed=0)
    assert gaps.evidence_method == ("given, taken as exact" if given == "tensor" else "quadrature")
    assert f"log p(x): {gaps.evidence_method}." in str(gaps)
    assert gaps.pareto_k is None and "lower bound" not in str(gaps)
    assert "evidence" not in gaps.seconds
    assert gaps.log_evidence.tolist() == pytest.approx(oracle.log_evidence(x).tolist(), abs=1e-4)
    assert not gaps.log_evidence_se.any()


def test_a_local_guide_is_measured_row_by_row(oracle):
    """Rows in another order would show at once: every datapoint's mean is its own."""
    x = torch.tensor(oracle.draw(70))
    loc = torch.tensor(oracle.posterior_mean(x))
    rows = torch.cat([loc, torch.tensor(-0.5 * np.log(np.diag(oracle.precision))).expand(70, 5)], 1)
    gaps = measure_gaps(
        program(oracle), Local(MeanField(5), rows), x, search=QUICK, annealing=None, num_evidence_draws=100, seed=0
    )
    assert gaps.inference_gap.mean().item() == pytest.approx(oracle.approximation_gap, abs=0.02)


def test_hand_written_guides_are_read_off_their_site(oracle):
    x = torch.tensor(oracle.draw(6))
    families = {
        "MeanField(5)": lambda loc: dist.Normal(loc, torch.full((5,), 0.2)).to_event(1),
        "FullCovariance(5)": lambda loc: dist.MultivariateNormal(loc, torch.tensor(oracle.covariance)),
    }
    for name, q in families.items():

        def guide(x, q=q):
            with pyro.plate("data", len(x)):
                pyro.sample("z", q(torch.tensor(oracle.posterior_mean(x))))

        gaps = measure_gaps(program(oracle), guide, x, search=QUICK, annealing=None, num_evidence_draws=100, seed=0)
        assert gaps.family == name


def evidence(value, halves, **changes):
    count = len(value)
    fields = {"value": torch.tensor(value), "se": torch.full((count,), 0.01), "method": "one", "bound": "lower"}
    halves = torch.tensor(halves)
    return Evidence(**{**fields, "halves": halves, "halves_se": torch.full_like(halves, 0.02), **changes})


def test_evidence_is_chosen_on_one_half_of_the_draws_and_scored_on_the_other(oracle, monkeypatch):
    """On the first halves AIS is the larger one, on the second it is not: its value there is what is reported."""
    by_name = {
        "IWAE": evidence([-5.0, -6.0], [[-5.0, -6.0], [-5.0, -6.0]]),
        "AIS": evidence([-4.5, -5.5], [[-4.0, -5.0], [-5.5, -6.5]], method="another"),
    }
    model, guide = pair(oracle, MeanField(5))
    options = {"search": QUICK, "num_draws": 10, "num_evidence_draws": 50, "seed": 0}

    def measured(*names):
        for name in by_name:
            found = by_name[name if name in names else names[0]]
            monkeypatch.setattr(f"inference.gaps.{name.lower()}", lambda *args, found=found, **kwargs: found)
        return measure_gaps(model, guide, torch.tensor(oracle.draw(2)), **options)

    gaps = measured("IWAE", "AIS")
    assert gaps.log_evidence.tolist() == [-5.5, -6.5] and gaps.log_evidence_se.tolist() == [0.02, 0.02]
    assert gaps.evidence_method.startswith("another; chosen over IWAE on half of its draws")
    assert gaps.estimates == by_name and gaps.is_lower_bound
    assert "Estimators: IWAE -5.5000; AIS -5.0000." in str(gaps)
    # Where both say the same, the first, whose errors are smaller, stays.
    assert measured("IWAE").evidence_method.startswith("one; chosen over AIS")


def test_every_estimator_is_kept(oracle):
    x = torch.tensor(oracle.draw(16))
    gaps = measure_gaps(*pair(oracle, MeanField(5)), x, search=QUICK, num_evidence_draws=500, seed=0)
    assert list(gaps.estimates) == ["IWAE", "AIS"]
    for name, estimate in gaps.estimates.items():
        error = estimate.value - torch.tensor(oracle.log_evidence(x))
        assert abs(error.mean()) < 4 * estimate.se.square().sum().sqrt() / 16, name
        assert estimate.bias.shape == estimate.ess.shape == (16,)
    assert not torch.equal(gaps.estimates["IWAE"].value, gaps.estimates["AIS"].value)
    assert "annealing" in gaps.seconds and gaps.settings["annealing"]["num_temperatures"] == 50
    alone = measure_gaps(*pair(oracle, MeanField(5)), x, search=QUICK, num_evidence_draws=500, annealing=None, seed=0)
    # Nothing to choose between: all draws count.
    assert torch.equal(alone.log_evidence, gaps.estimates["IWAE"].value) and list(alone.estimates) == ["IWAE"]


def test_annealing_takes_over_where_importance_sampling_falls_short():
    """Above 64 dimensions the proposal is mean-field, too narrow for a posterior with correlations."""
    oracle = LinearOracle.random(90, 70, scale=3.0)
    x = torch.tensor(oracle.draw(8))
    model, guide = pair(oracle, MeanField(70))
    gaps = measure_gaps(model, guide, x, search=QUICK, num_draws=100, num_evidence_draws=1000, seed=0)
    log_p = oracle.log_evidence(x)
    iwae, ais = ((gaps.estimates[name].value - torch.tensor(log_p)).mean() for name in ("IWAE", "AIS"))
    assert iwae < ais - 0.1 and gaps.evidence_method.startswith("AIS")
    assert "Warning: the estimators of log p(x) are" in str(gaps)


def test_bounds_that_are_wide_beside_the_gap_are_said(oracle):
    model, guide = pair(oracle, MeanField(5))
    x = torch.tensor(oracle.draw(8))
    crude = Annealing(num_temperatures=5, num_chains=2)
    bounds = bdmc(model, x, num_data=16, annealing=crude, seed=0)
    options = {"search": QUICK, "num_draws": 10, "num_evidence_draws": 50, "annealing": None, "seed": 0}
    gaps = measure_gaps(model, guide, x, bounds=bounds, **options)
    assert gaps.width == (bounds.width.mean().item(), pytest.approx(bounds.width.std().item() / 4))
    assert "nats off" in str(gaps)
    tight = dataclasses.replace(bounds, upper=bounds.lower)
    assert "nats off" not in str(measure_gaps(model, guide, x, bounds=tight, **options))


def test_what_the_table_says(oracle):
    x = torch.tensor(oracle.draw(6))
    gaps = measure_gaps(
        *pair(oracle, MeanField(5)),
        x,
        families=[FullCovariance(5)],
        annealing=None,
        num_evidence_draws=100,
        search=QUICK,
        seed=0,
    )
    text = str(gaps)
    for part in (
        "approximation gap",
        "amortization gap",
        "L[q*] in FullCovariance(5)",
        "N = 6",
        "under-estimated",
        "IWAE, 100",
    ):
        assert part in text
    assert set(gaps.seconds) == {"search", "score", "further families", "evidence"}
    assert gaps.settings["seed"] == 0


class Resampling:
    resamples = True

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(len(index), 20)


class OverTheBatch(torch.nn.Module):
    def forward(self, x):
        return (x - x.mean(0))[:, :10]


def heavy_tailed_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.StudentT(4.0, torch.zeros(len(x), 5), 1.0).to_event(1))


def two_sites(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 5), 1.0).to_event(1))
        pyro.sample("w", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))


def no_event(x):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 5), 1.0))


CASES = {
    "family too small": (
        {"guide": Local(FullCovariance(5), torch.randn(4, 20)), "family": MeanField(5)},
        r"MeanField\(5\) does not contain the guide's distribution.*family=",
    ),
    "family not normal": ({"guide": heavy_tailed_guide}, "cannot be read off.*family="),
    "family of another size": ({"family": MeanField(4)}, r"MeanField\(4\).*event shape"),
    "guide of another size": ({"guide": Amortized(MeanField(4), torch.nn.Linear(20, 8))}, "num_latents = 5"),
    "batch statistics": ({"guide": Amortized(MeanField(5), OverTheBatch())}, "site 'z' of the guide: .*own row alone"),
    "two sites": ({"guide": two_sites}, "one latent site"),
    "no event dimension": ({"guide": no_event}, "site 'z'"),
    "unknown site": ({"site": "w"}, "site 'w'"),
    "evidence of other data": ({"log_evidence": torch.zeros(5)}, r"log_evidence: .*\(4,\).*\(5,\)"),
    "evidence record of other data": (
        {"log_evidence": Evidence(value=torch.zeros(3), se=torch.zeros(3), method="exact")},
        r"log_evidence: .*\(4,\).*\(3,\)",
    ),
    "evidence not finite": ({"log_evidence": torch.full((4,), torch.nan)}, "log_evidence: .*finite"),
    "rows of other data": ({"guide": Local(MeanField(5), torch.zeros(5, 10))}, "one row a datapoint, 4; got 5"),
    "resampling": ({"data": Resampling()}, "measure_gaps needs a fixed x"),
    "empty": ({"data": torch.zeros(0, 20)}, "data: .*got none"),
    "infinity": ({"data": torch.full((4, 20), torch.inf)}, "datapoint 0 holds NaN"),
    "tol": ({"tol": -1.0}, "tol: .*got -1"),
    "draws": ({"num_draws": 3}, "num_draws: .*got 3"),
    "evidence draws": ({"num_evidence_draws": 4}, "num_evidence_draws: .*at least 50.*got 4"),
    "seed": ({"seed": 1.5}, "seed: .*1.5"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(oracle, case):
    change, message = CASES[case]
    model, guide = pair(oracle, MeanField(5))
    arguments = {"model": model, "guide": guide, "data": torch.tensor(oracle.draw(4)), **change}
    for part in arguments.values():
        # The table of cases is made before the tests' default dtype is set.
        if isinstance(part, torch.nn.Module):
            part.double()
    with pytest.raises(ValueError, match=message) as error:
        measure_gaps(**arguments)
    assert "\n" not in str(error.value)
