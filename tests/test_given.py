import dataclasses
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import ConjugateOracle
from torch import nn

from inference import (
    Adam,
    Amortized,
    Cosine,
    Gaps,
    Local,
    MeanField,
    Training,
    conditioned,
    elbo,
    fit_em,
    iwae,
    log_joint,
    log_weights,
    measure_gaps,
    quadrature,
    refine,
)
from inference.densities import guide_distribution
from inference.given import over_draws
from inference.noise import derive_seed
from inference.results import Evidence

W = torch.tensor([[0.4], [1.1], [2.3]])


@pytest.fixture(scope="module")
def oracle():
    return ConjugateOracle.random(6)


@pytest.fixture
def x(oracle):
    return torch.tensor(oracle.x)[:, None]


@pytest.fixture
def model(oracle):
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(1), oracle.prior_scale).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w + z, oracle.scale).to_event(1), obs=x)

    return model


def guide_at(oracle, *, shift=0.0, stretch=1.0):
    """q(w) q(z | x, w), the second factor exact but for a shift and a stretch; w is drawn as Pyro's guides draw it."""

    def guide(x):
        raw = pyro.sample("w_unconstrained", dist.Normal(torch.zeros(1), 1.0).to_event(1), infer={"is_auxiliary": True})
        w = pyro.sample("w", dist.Delta(raw, event_dim=1))
        loc, scale = (x - w) / (1 + oracle.scale**2) + shift, stretch * oracle.posterior_of_z(0.0)[1]
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return guide


def mean_over(function, draws=W):
    return np.mean([function(w.item()) for w in draws], axis=0)


# Values -------------------------------------------------------------------------------------------------------------


def test_exact_log_p_of_x_given_w(oracle, model, x):
    """With the exact q(z | x, w) every log weight is log p(x | w): means over draws have no error."""
    truth = mean_over(oracle.log_evidence_given)
    for record in (
        elbo(model, guide_at(oracle), x, given={"w": W}, num_draws=4, seed=0),
        iwae(model, guide_at(oracle), x, given={"w": W}, num_draws=50, proposal=None, seed=0),
        quadrature(model, x, given={"w": W}),
    ):
        np.testing.assert_allclose(record.value, truth, atol=1e-4)
        np.testing.assert_allclose(record.se, 0.0, atol=1e-10)
        assert record.settings["given"] == 3 and record.settings["given_sites"] == ["w"]
        assert record.method.endswith("conditional on 3 draws of 'w', averaged")
        assert "conditional on 3 draws of 'w', averaged" in str(record)
    # It is not log p(x), nor its bound's Jensen partner.
    assert (truth < np.log(mean_over(lambda w: np.exp(oracle.log_evidence_given(w)))) - 0.05).any()


def test_gaps_equal_the_closed_form(oracle, model, x):
    """L[q] of a shifted, stretched q in closed form; the family holds the posterior, so L[q*] is log p(x | w)."""
    shift, stretch = 0.3, 1.4
    width = oracle.posterior_of_z(0.0)[1]

    def local(w):
        return oracle.local_elbo(w, oracle.posterior_of_z(w)[0] + shift, stretch * width)

    guide = guide_at(oracle, shift=shift, stretch=stretch)
    gaps = measure_gaps(model, guide, x, given={"w": W[:2]}, num_draws=400, num_evidence_draws=500, seed=0)
    log_p, elbo_amortized = mean_over(oracle.log_evidence_given, W[:2]), mean_over(local, W[:2])
    truth = {
        "log_evidence": log_p,
        "elbo_local": log_p,
        "elbo_amortized": elbo_amortized,
        "approximation_gap": 0 * log_p,
        "amortization_gap": log_p - elbo_amortized,
        "inference_gap": log_p - elbo_amortized,
    }
    for term, expected in truth.items():
        error = (getattr(gaps, term) - torch.tensor(expected)).abs()
        assert bool((error < 4.5 * getattr(gaps, f"{term}_se") + 0.015).all()), term
    assert gaps.elbo_amortized_se.max() < 0.05 and (gaps.amortization_gap > 0.1).all()
    assert gaps.converged.all() and gaps.settings["given"] == 2
    assert "everything conditional on 2 draws of 'w', averaged" in str(gaps)


def test_averages_equal_those_by_hand(oracle, model, x):
    guide = guide_at(oracle, shift=0.2, stretch=1.3)
    record = elbo(model, guide, x, given={"w": W}, num_draws=20, seed=5)
    parts = []
    for number, w in enumerate(W):

        def fixed(x, w=w):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(w + z, oracle.scale).to_event(1), obs=x)

        def at(x, w=w):
            loc, scale = (x - w) / (1 + oracle.scale**2) + 0.2, 1.3 * oracle.posterior_of_z(0.0)[1]
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

        parts.append(elbo(fixed, at, x, num_draws=20, seed=derive_seed(5, "given", number) if number else 5))
    torch.testing.assert_close(record.value, torch.stack([part.value for part in parts]).mean(0))
    errors = torch.stack([part.se for part in parts])
    torch.testing.assert_close(record.se, errors.square().sum(0).sqrt() / 3)
    assert record.settings == {"num_draws": 20, "seed": 5, "given": 3, "given_sites": ["w"]}
    # The draws are measured on numbers of their own: their errors are independent.
    width = 1.3 * oracle.posterior_of_z(0.0)[1]
    truth = [oracle.local_elbo(w, oracle.posterior_of_z(w)[0] + 0.2, width) for w in W.flatten().tolist()]
    noise = torch.stack([part.value - torch.tensor(exact) for part, exact in zip(parts, truth, strict=True)])
    assert not torch.allclose(noise[0], noise[1], atol=1e-6) and not torch.allclose(noise[1], noise[2], atol=1e-6)


def test_the_error_is_that_of_the_mean(oracle, model, x):
    """Over seeds, the mean over draws spreads as its error says."""
    guide = guide_at(oracle, shift=0.5, stretch=1.6)
    records = [elbo(model, guide, x, given={"w": W}, num_draws=100, seed=seed) for seed in range(60)]
    spread = torch.stack([record.value for record in records]).std(0)
    claimed = torch.stack([record.se for record in records]).square().mean(0).sqrt()
    torch.testing.assert_close(spread.square().mean().sqrt(), claimed.square().mean().sqrt(), rtol=0.2, atol=0)


def records_by_hand():
    """Two gaps whose every mean is known."""

    def gaps(level, converged, **others):
        terms = {term: torch.tensor([level, 2 * level]) for term in Gaps.TERMS}
        terms |= {f"{term}_se": torch.tensor([3.0, 4.0]) * level for term in Gaps.TERMS}
        return Gaps(
            **terms,
            converged=torch.tensor(converged),
            family="f",
            evidence_method="m",
            families=("g",),
            elbo_local_by_family=torch.tensor([[level, level]]),
            elbo_local_by_family_se=torch.tensor([[level, level]]),
            seconds={"search": level},
            **others,
        )

    nan = math.nan
    return [
        gaps(
            1.0,
            [True, False],
            start_gap=torch.tensor([0.1, nan]),
            pareto_k=torch.tensor([nan, nan]),
            ess=torch.tensor([5.0, 7.0]),
            settings={"seed": 0, "tol": 0.01, "left": [0]},
        ),
        gaps(
            3.0,
            [True, True],
            start_gap=torch.tensor([0.3, nan]),
            pareto_k=torch.tensor([0.6, nan]),
            ess=torch.tensor([6.0, 2.0]),
            settings={"seed": 1, "tol": 0.01, "left": [2]},
        ),
    ]


def test_what_becomes_of_every_part_of_a_record(model, x):
    parts = iter(records_by_hand())
    mean = over_draws(lambda p, q, seed: next(parts), {"w": W[:2]}, x, model, seed=9)
    for term in Gaps.TERMS:
        torch.testing.assert_close(getattr(mean, term), torch.tensor([2.0, 4.0]))
        torch.testing.assert_close(getattr(mean, f"{term}_se"), torch.tensor([3.0, 4.0]) * 10**0.5 / 2)
    torch.testing.assert_close(mean.elbo_local_by_family, torch.full((1, 2), 2.0))
    torch.testing.assert_close(mean.elbo_local_by_family_se, torch.full((1, 2), 10**0.5 / 2))
    assert mean.converged.tolist() == [True, False]
    torch.testing.assert_close(mean.start_gap, torch.tensor([0.3, math.nan]), equal_nan=True)
    torch.testing.assert_close(mean.pareto_k, torch.tensor([0.6, math.nan]), equal_nan=True)
    assert mean.ess.tolist() == [5.0, 2.0] and mean.seconds == {"search": 4.0}
    assert mean.settings == {"seed": 9, "tol": 0.01, "left": [[0], [2]], "given": 2, "given_sites": ["w"]}
    assert mean.evidence_method == "m; everything conditional on 2 draws of 'w', averaged"
    assert {entry.name for entry in dataclasses.fields(Gaps)} >= {"family", "families"}
    assert mean.family == "f" and mean.families == ("g",)


def test_records_without_diagnostics(model, x):
    plain = Evidence(value=torch.zeros(6), se=torch.zeros(6), method="m", settings={})
    mean = over_draws(lambda p, q, seed: plain, {"w": W[:1]}, x, model)
    assert mean.ess is None and mean.pareto_k is None and mean.settings == {"given": 1, "given_sites": ["w"]}
    assert mean.method == "m, conditional on 1 draw of 'w'"


# Rows ---------------------------------------------------------------------------------------------------------------


def test_refine_at_one_draw(oracle, model, x):
    """The best row is the posterior given w, and its ELBO log p(x | w); `Local` measures it at that draw again."""
    found = refine(model, MeanField(1), x, given={"w": W[1:2]}, seed=0)
    q = MeanField(1)(found.params)
    loc, scale = oracle.posterior_of_z(W[1].item())
    np.testing.assert_allclose(q.mean[:, 0], loc, atol=0.05)
    np.testing.assert_allclose(q.stddev[:, 0], scale, rtol=0.05)
    np.testing.assert_allclose(found.elbo, oracle.log_evidence_given(W[1].item()), atol=0.01)
    assert found.settings["given"] == 1 and found.settings["given_sites"] == ["w"]
    again = elbo(model, Local(MeanField(1), found.params), x, given={"w": W[1:2]}, seed=0)
    np.testing.assert_allclose(again.value, oracle.log_evidence_given(W[1].item()), atol=0.01)
    warm = refine(model, MeanField(1), x, init=guide_at(oracle), given={"w": W[1:2]}, seed=0)
    assert (warm.start_gap < 0.02).all()
    cold = refine(model, MeanField(1), x, init=found.params, given={"w": W[1:2]}, seed=0)
    assert (cold.elbo - found.elbo).abs().max() < 0.02


def test_em_at_one_draw(oracle, x):
    """x ~ N(w + a + z, s^2) at a given w: the maximum likelihood a is the mean of x - w."""
    shift = nn.Parameter(torch.zeros(1))
    holder = nn.Module()
    holder.shift = shift

    def model(x):
        pyro.module("holder", holder)
        w = pyro.sample("w", dist.Normal(torch.zeros(1), oracle.prior_scale).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w + shift + z, oracle.scale).to_event(1), obs=x)

    training = Training(epochs=300, batch_size=6, optimizer=Adam(lr=0.05), schedule=Cosine())
    fit = fit_em(model, MeanField(1), x, given={"w": W[:1]}, training=training, seed=0)
    assert shift.item() == pytest.approx(oracle.x.mean() - W[0].item(), abs=0.02)
    assert fit.settings["given"] == 1


# Conditioned programs -------------------------------------------------------------------------------------------------


def test_conditioned_by_hand(oracle, model, x):
    """Outside the library's own measurements too, and under particles the value stays as it is."""
    draw = {"w": W[0]}
    z = torch.randn(5, 6, 1)
    normal = torch.distributions.Normal
    expected = (normal(0.0, 1.0).log_prob(z) + normal(W[0] + z, oracle.scale).log_prob(x)).squeeze(-1)
    torch.testing.assert_close(log_joint(conditioned(model, draw), x, z), expected)
    weights = log_weights(conditioned(model, draw), conditioned(guide_at(oracle), draw), x, num_particles=3)
    np.testing.assert_allclose(weights, np.broadcast_to(oracle.log_evidence_given(W[0].item()), (3, 6)), atol=1e-9)
    site, q = guide_distribution(conditioned(guide_at(oracle), draw), x)
    assert site == "z"
    np.testing.assert_allclose(q.mean[:, 0], oracle.posterior_of_z(W[0].item())[0])


def test_guides_without_the_site_stay_what_they_are(oracle, model, x):
    encoder = nn.Linear(1, 2)
    guide = Amortized(MeanField(1), encoder)
    seen = []

    def measure(p, q, seed):
        seen.append(q)
        return elbo(p, q, x, num_draws=4, seed=seed)

    over_draws(measure, {"w": W}, x, model, guide, seed=0)
    assert all(part is guide for part in seen)
    assert conditioned(guide, {"w": W[0]}).family is guide.family
    local = Local(MeanField(1), torch.zeros(6, 2))
    over_draws(measure, {"w": W}, x, model, local, seed=0)
    assert seen[-1] is local


def test_modes_are_reached_through_a_conditioned_program(oracle, x):
    dropout = nn.Dropout(0.5)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w + dropout(z), oracle.scale).to_event(1), obs=x)

    record = elbo(model, guide_at(oracle), x, given={"w": W}, num_draws=4, seed=0)
    np.testing.assert_allclose(record.value, mean_over(oracle.log_evidence_given), atol=1e-9)
    assert dropout.training


# Errors ---------------------------------------------------------------------------------------------------------------


def positive(x):
    a = pyro.sample("a", dist.LogNormal(torch.zeros(()), 1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), a).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w.sum() + z, 1.0).to_event(1), obs=x)


def plain(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


A, W2 = torch.ones(3), torch.zeros(3, 2)
GIVEN = {
    "no mapping": (positive, torch.zeros(3), TypeError, r"given: expected a dictionary.*got Tensor"),
    "no tensor": (positive, {"a": A, "w": [0.0]}, TypeError, "given: expected a dictionary.*a tensor"),
    "missing": (positive, {"a": A}, ValueError, "given: expected draws of 'a', 'w', all that .*; got 'a'"),
    "another": (positive, {"a": A, "w": W2, "v": A}, ValueError, "expected draws of 'a', 'w'.*got 'a', 'w', 'v'"),
    "none": (positive, {}, ValueError, "expected draws of 'a', 'w'.*got none"),
    "numbers": (positive, {"a": A, "w": W2[:2]}, ValueError, "same number of draws.*3 of 'a', 2 of 'w'"),
    "shape": (
        positive,
        {"a": A, "w": A},
        ValueError,
        r"given: 'w': expected draws of shape \(M, \*\(2,\)\).* got \(3,\)",
    ),
    "no draw": (positive, {"a": A[:0], "w": W2[:0]}, ValueError, r"given: 'a': .*M at least 1; got \(0,\)"),
    "one value": (positive, {"a": torch.tensor(1.0), "w": W2[0]}, ValueError, "same number of draws"),
    "support": (positive, {"a": -A, "w": W2}, ValueError, "given: 'a': expected values in the support.*GreaterThan"),
    "NaN": (positive, {"a": A, "w": W2 * math.nan}, ValueError, "given: 'w': expected values in the support"),
    "no global": (plain, {"w": W2}, ValueError, "given: the model samples nothing outside the data plate. Leave given"),
}


@pytest.mark.parametrize("case", GIVEN)
def test_draws_that_do_not_fit(case):
    model, given, kind, message = GIVEN[case]
    with pytest.raises(kind, match=message) as error:
        quadrature(model, torch.zeros(4, 1), given=given)
    assert "\n" not in str(error.value)


def with_plain(run):
    """A guide that leaves w alone, so that it is the model that is refused."""
    return lambda model, guide, x: run(model, Amortized(MeanField(1), nn.Linear(1, 2)), x)


WITHOUT = {
    "elbo": (lambda model, guide, x: elbo(model, guide, x), "guide"),
    "iwae": (lambda model, guide, x: iwae(model, guide, x, num_draws=50), "guide"),
    "gaps": (lambda model, guide, x: measure_gaps(model, guide, x), "guide"),
    "log_weights": (lambda model, guide, x: log_weights(model, guide, x), "guide"),
    "refine from a guide": (lambda model, guide, x: refine(model, MeanField(1), x, init=guide), "guide"),
    "elbo, model": (with_plain(lambda model, guide, x: elbo(model, guide, x)), "model"),
    "gaps, model": (with_plain(lambda model, guide, x: measure_gaps(model, guide, x)), "model"),
    "log_weights, model": (with_plain(lambda model, guide, x: log_weights(model, guide, x)), "model"),
    "log_joint": (lambda model, guide, x: log_joint(model, x, torch.zeros(2, 6, 1)), "model"),
    "quadrature": (lambda model, guide, x: quadrature(model, x), "model"),
    "refine": (lambda model, guide, x: refine(model, MeanField(1), x), "model"),
    "fit_em": (lambda model, guide, x: fit_em(model, MeanField(1), x), "model"),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_without_given_the_site_and_the_fix_are_named(case, oracle, model, x):
    run, who = WITHOUT[case]
    message = rf"site 'w': .*the {who} samples 'w' outside it.*pass given=\{{'w': draws\}}.*inference.conditioned"
    with pytest.raises(ValueError, match=message) as error:
        run(model, guide_at(oracle), x)
    assert "\n" not in str(error.value)


def test_a_model_that_would_fail_on_particles_is_refused_first():
    """A global site under a plate of particles grows dimensions that `z @ w` does not expect."""

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        assert w.shape == (2, 3)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"site 'w': .*given=\{'w': draws\}"):
        log_joint(model, torch.zeros(4, 3), torch.zeros(5, 4, 2))
    log_joint(conditioned(model, {"w": torch.zeros(2, 3)}), torch.zeros(4, 3), torch.zeros(5, 4, 2))


def test_rows_belong_to_one_draw(model, x):
    message = r"given: expected one draw, as the rows of {} .*; got 3. Pass one, \{{'w': draws\[:1\]\}}"
    with pytest.raises(ValueError, match=message.format("refine")):
        refine(model, MeanField(1), x, given={"w": W})
    with pytest.raises(ValueError, match=message.format("fit_em")):
        fit_em(model, MeanField(1), x, given={"w": W})


def test_known_evidence_belongs_to_one_draw(oracle, model, x):
    known = torch.tensor(oracle.log_evidence_given(W[0].item()))
    options = {"num_draws": 20, "log_evidence": known, "seed": 0}
    gaps = measure_gaps(model, guide_at(oracle), x, given={"w": W[:1]}, **options)
    torch.testing.assert_close(gaps.log_evidence, known)
    with pytest.raises(ValueError, match="log_evidence: expected None with several draws in given="):
        measure_gaps(model, guide_at(oracle), x, given={"w": W}, **options)
