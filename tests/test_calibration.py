import math
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle

from inference import Amortized, Constrained, FullCovariance, Local, MeanField, sbc
from inference.diagnostics.bands import critical_level, limits, p_value, tail_probabilities
from inference.diagnostics.calibration import judge
from pyro_vae.linear import LinearGaussian

LIKE = torch.zeros(1, 6, dtype=torch.float64)
MARGINALS = ("z[0]", "z[1]", "z[2]")


# The bands.


def counts_below(ranks, num_draws):
    return np.stack([(ranks < i).sum(-1) for i in range(1, num_draws + 1)], axis=-1)


@pytest.mark.parametrize("alpha", [0.05, 0.4])
def test_coverage_equals_that_of_every_possible_set_of_ranks(alpha):
    num_ranks, num_draws = 6, 3
    ranks = np.array(list(product(range(num_draws + 1), repeat=num_ranks)))
    counts = counts_below(ranks, num_draws)
    tails = tail_probabilities(num_ranks, num_draws)
    worst = tails.numpy()[np.arange(num_draws), counts].min(-1)
    for few in ranks[:: len(ranks) // 50]:
        mine = tails.numpy()[np.arange(num_draws), counts_below(few, num_draws)].min()
        expected = (worst <= mine * (1 + 1e-8)).mean()
        assert p_value(torch.tensor(few), tails) == pytest.approx(expected, abs=1e-12)
    lower, upper = (limit.numpy() for limit in limits(tails, critical_level(tails, alpha)))
    outside = ((counts < lower) | (counts > upper)).any(-1).mean()
    # No band between this and the next has a level in between.
    assert outside <= alpha
    looser = np.unique(worst)[np.unique(worst) > critical_level(tails, alpha) * (1 + 1e-5)][0]
    assert (worst <= looser * (1 + 1e-8)).mean() > alpha


def test_tails_are_those_of_the_binomial_distribution():
    from scipy.stats import binom

    count, share = np.arange(301), np.arange(1, 21)[:, None] / 21
    expected = np.minimum(1, 2 * np.minimum(binom.cdf(count, 300, share), binom.sf(count - 1, 300, share)))
    np.testing.assert_allclose(tail_probabilities(300, 20), expected, rtol=1e-9, atol=1e-15)


def test_false_alarms_are_as_rare_as_stated():
    """200 seeds of uniform ranks in four quantities: 10 are expected to fail, 19 is three standard deviations above."""
    generator = torch.Generator().manual_seed(0)
    found = [
        judge(torch.randint(100, (500, 4), generator=generator), names=tuple("abcd"), num_draws=99) for _ in range(200)
    ]
    assert 2 <= sum(not one.passes for one in found) <= 19
    # The verdict is that of the p-values.
    assert all(one.passes == bool((one.p_values > one.alpha / 4).all()) for one in found)
    p_values = torch.cat([one.p_values for one in found]).sort().values
    uniform = torch.arange(1, 801) / 800
    assert (p_values - uniform).abs().max() < 1.63 / math.sqrt(800)  # Kolmogorov's distance at 1 %.


# The guides.


@pytest.fixture
def oracle():
    return LinearOracle.random(6, 3)


def model_of(oracle):
    return LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model


def guide_of(oracle, covariance, shift=0.0):
    weight, bias = torch.tensor(oracle.encoder_weight), torch.tensor(oracle.bias)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal((x - bias) @ weight.T + shift, covariance))

    return guide


def test_the_exact_posterior_passes(oracle):
    found = sbc(model_of(oracle), guide_of(oracle, torch.tensor(oracle.covariance)), LIKE, seed=0)
    assert found.passes and found.names == (*MARGINALS, "log p(x, z)")
    assert found.ranks.shape == (1000, 4) and found.ranks.min() >= 0 and found.ranks.max() <= 99
    assert found.shapes == ("uniform",) * 4
    assert "the guide passes" in str(found)


def test_the_exact_posterior_passes_over_many_seeds(oracle):
    model, guide = model_of(oracle), guide_of(oracle, torch.tensor(oracle.covariance))
    failed = sum(not sbc(model, guide, LIKE, num_simulations=200, num_draws=19, seed=seed).passes for seed in range(60))
    assert failed <= 8  # 3 are expected.


@pytest.mark.parametrize(
    ("factor", "shift", "word", "joint"),
    [(0.7, 0.0, "a U: the guide is too narrow", "low"), (1.4, 0.0, "a hump: the guide is too wide", "high")],
    ids=["narrow", "wide"],
)
def test_a_wrong_width_fails(oracle, factor, shift, word, joint):
    found = sbc(model_of(oracle), guide_of(oracle, factor * torch.tensor(oracle.covariance), shift), LIKE, seed=0)
    assert not found.passes_by_quantity.any()
    assert found.shapes[:3] == (word,) * 3 and found.shapes[3].startswith(joint)
    assert "fails in z[0], z[1], z[2], log p(x, z)" in str(found)


def test_a_shift_fails(oracle):
    covariance = torch.tensor(oracle.covariance)
    scales = covariance.diagonal().sqrt()
    shift = torch.stack([0.3 * scales[0], -0.3 * scales[1], 0 * scales[2]])
    found = sbc(model_of(oracle), guide_of(oracle, covariance, shift), LIKE, seed=0)
    assert not found.passes
    assert found.shapes[:3] == ("sloped: the guide is shifted up", "sloped: the guide is shifted down", "uniform")


def test_a_wrong_correlation_fails_in_the_joint_density_alone(oracle):
    right_marginals = torch.tensor(oracle.covariance).diagonal().diag()
    found = sbc(model_of(oracle), guide_of(oracle, right_marginals), LIKE, seed=0)
    assert found.passes_by_quantity.tolist() == [True, True, True, False]
    assert found.shapes[3].startswith("high") and found.distance.argmax() == 3


def test_the_prior_as_a_guide_fails_in_the_joint_density_alone(oracle):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    found = sbc(model_of(oracle), guide, LIKE, seed=0)
    assert found.passes_by_quantity.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("ranks", "shape"),
    [
        (torch.zeros(100), "sloped: the guide is shifted up"),
        (torch.full((100,), 19), "sloped: the guide is shifted down"),
        (torch.tensor([0, 19]).repeat(50), "a U: the guide is too narrow"),
        (torch.full((100,), 10), "a hump: the guide is too wide"),
        (torch.arange(100) % 20, "uniform"),
        (torch.tensor([4, 9, 10, 15]).repeat(250), "neither sloped, nor a U, nor a hump: look at the differences"),
    ],
    ids=["all low", "all high", "both ends", "the middle", "even", "in clumps"],
)
def test_shapes(ranks, shape):
    assert judge(ranks.long().unsqueeze(-1), names=("z[0]",), num_draws=19).shapes == (shape,)


def test_of_many_quantities_the_worst_are_printed():
    ranks = torch.arange(200).remainder(20).unsqueeze(-1).repeat(1, 40)
    ranks[:, 10:24] = 0
    lines = str(judge(ranks, names=tuple(f"z[{d}]" for d in range(40)), num_draws=19)).splitlines()
    assert lines[0].endswith("the guide fails in 14 of 40 quantities.")
    assert len(lines[2:14]) == 12 and all(line.split()[0] in {f"z[{d}]" for d in range(10, 24)} for line in lines[2:14])
    assert lines[14] == "and 28 more, closer to uniform"


def test_ties_are_broken_at_random():
    """Where every draw equals the truth, ranks are uniform still."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Delta(torch.zeros(2), event_dim=1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(torch.zeros(2), event_dim=1))

    found = sbc(model, guide, LIKE[:, :2], seed=0)
    assert found.passes and set(found.ranks.flatten().tolist()) == set(range(100))


def test_a_bounded_latent_is_ranked_where_it_lives():
    """z uniform on [0, 1] and no word of it in x: the posterior is the prior."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z, 1.0).to_event(1), obs=x)

    def exact(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(torch.zeros(len(x), 2), 1.0).to_event(1))

    assert sbc(model, exact, LIKE[:, :2], seed=0).passes
    family = Constrained(MeanField(2), dist.Uniform(torch.zeros(2), 1.0).to_event(1).support)
    narrow = Amortized(family, torch.nn.Linear(2, 4))
    torch.nn.init.zeros_(narrow.encoder.weight)
    torch.nn.init.zeros_(narrow.encoder.bias)
    found = sbc(model, narrow, LIKE[:, :2], seed=0)
    assert (
        found.shapes[:2] == ("a hump: the guide is too wide",) * 2
        or found.shapes[:2] == ("a U: the guide is too narrow",) * 2
    )


def test_ranks_belong_to_datapoints_and_nothing_is_left_behind(oracle):
    model = model_of(oracle)
    guide = Amortized(FullCovariance(3), torch.nn.Linear(6, 9)).train()
    before, state = [p.clone() for p in guide.parameters()], torch.get_rng_state()
    long = sbc(model, guide, LIKE, num_simulations=150, num_draws=9, seed=1)
    short = sbc(model, guide, LIKE.repeat(70, 1) + 1, num_simulations=100, num_draws=9, seed=1)
    assert torch.equal(long.ranks[:100], short.ranks)
    assert torch.equal(state, torch.get_rng_state()) and guide.training
    assert all(torch.equal(p, b) for p, b in zip(guide.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_simulations": 5}, "num_simulations: expected an integer of at least 10; got 5"),
        ({"num_draws": 0}, "num_draws: expected an integer of at least 1; got 0"),
        ({"alpha": 1.0}, "alpha: expected a probability"),
        ({"guide": Local(MeanField(3), torch.zeros(1, 6))}, "rows belong to fixed x"),
    ],
    ids=["few simulations", "no draws", "alpha", "local"],
)
def test_bad_input(oracle, options, message):
    options = {"guide": guide_of(oracle, torch.tensor(oracle.covariance))} | options
    with pytest.raises(ValueError, match=message):
        sbc(model_of(oracle), options.pop("guide"), LIKE, **options)
