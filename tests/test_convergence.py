import math

import arviz
import numpy as np
import pytest
import torch

from inference.convergence import autocorrelated_ess, nested_rhat, still_rising


def autoregressive(num_chains, num_draws, correlation, *, seed=0):
    """Stationary chains of N(0, 1)."""
    rng = np.random.default_rng(seed)
    values = np.empty((num_chains, num_draws))
    values[:, 0] = rng.standard_normal(num_chains)
    for t in range(1, num_draws):
        noise = rng.standard_normal(num_chains)
        values[:, t] = correlation * values[:, t - 1] + np.sqrt(1 - correlation**2) * noise
    return values


def nested_rhat_by_hand(values):
    """Equations of Margossian et al. (2024), one sum at a time."""
    num_superchains, num_chains, num_draws = values.shape
    grand = values.mean()
    between, within = 0.0, 0.0
    for superchain in values:
        centre = superchain.mean()
        between += (centre - grand) ** 2 / (num_superchains - 1)
        if num_chains > 1:
            within += sum((chain.mean() - centre) ** 2 for chain in superchain) / (num_chains - 1) / num_superchains
        if num_draws > 1:
            each = [((chain - chain.mean()) ** 2).sum() / (num_draws - 1) for chain in superchain]
            within += sum(each) / num_chains / num_superchains
    return np.sqrt((within + between) / within)


@pytest.mark.parametrize("shape", [(4, 16, 10), (2, 3, 5), (8, 5, 1), (4, 1, 30)])
def test_nested_rhat_is_the_formula(shape):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((*shape, 3)) + rng.standard_normal((shape[0], 1, 1, 3)) * [0.0, 0.3, 5.0]
    expected = [nested_rhat_by_hand(values[..., i]) for i in range(3)]
    np.testing.assert_allclose(nested_rhat(torch.tensor(values)), expected, rtol=1e-12)


def test_nested_rhat_of_stationary_superchains_is_one_plus_half_the_reciprocal_of_their_draws():
    """E B = 1 / (M T), T the effective draws of a chain: here of correlation 0.5, a third of S."""
    values = autoregressive(400 * 4 * 8, 60, 0.5).reshape(400, 4, 8, 60)
    rhat = nested_rhat(torch.tensor(values).movedim(0, -1))
    assert (rhat**2 - 1).mean().item() == pytest.approx(1 / (8 * 60 / 3), rel=0.15)


def test_nested_rhat_of_chains_that_never_moved():
    start = torch.arange(3.0).reshape(3, 1, 1).expand(3, 4, 5)
    assert nested_rhat(start).item() == np.inf
    assert nested_rhat(torch.zeros(3, 4, 5)).item() == np.inf


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.7, 0.95])
def test_ess_of_long_chains_is_that_of_arviz(correlation):
    values = np.stack([autoregressive(8, 4000, correlation, seed=seed) for seed in range(4)], -1)
    expected = [arviz.ess(values[..., i], method="identity") for i in range(4)]
    np.testing.assert_allclose(autocorrelated_ess(torch.tensor(values)), expected, rtol=0.03)


@pytest.mark.parametrize(("correlation", "num_draws"), [(0.0, 4), (0.0, 8), (0.5, 12), (0.9, 25), (0.9, 200)])
def test_ess_of_many_short_chains_is_the_variance_of_their_mean(correlation, num_draws):
    lags = np.arange(1, num_draws)
    tau = 1 + 2 * ((1 - lags / num_draws) * correlation**lags).sum()
    values = autoregressive(4000, num_draws, correlation)
    assert autocorrelated_ess(torch.tensor(values)).item() == pytest.approx(values.size / tau, rel=0.05)


def test_ess_of_chains_that_disagree_is_their_number():
    values = autoregressive(200, 50, 0.0) + 1000 * np.random.default_rng(1).standard_normal((200, 1))
    assert autocorrelated_ess(torch.tensor(values)).item() == pytest.approx(200, rel=0.02)


def test_ess_of_what_never_changes_is_unknown():
    assert autocorrelated_ess(torch.ones(4, 10)).isnan().item()


EPOCHS = torch.arange(100, dtype=torch.float64)


def noise(num_epochs=100, *, seed=0):
    return torch.randn(num_epochs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestStillRising:
    def test_a_line_rises_by_its_slope(self):
        rise, num_epochs = still_rising(0.06 * EPOCHS - 50)
        assert rise == pytest.approx(0.6) and num_epochs == 10

    def test_a_line_under_noise(self):
        rise, _ = still_rising(0.06 * EPOCHS + 0.2 * noise())
        assert abs(rise - 0.6) < 3 * 0.2 * math.sqrt(2 / 10)

    @pytest.mark.parametrize(
        "curve",
        {
            "flat": torch.zeros(100),
            "at rest since half of the epochs": -50 * torch.exp(-EPOCHS / 10) + 0.05 * noise(),
            "falling, as held-out data overfit": -0.06 * EPOCHS + 0.2 * noise(),
            "too little to matter": 0.005 * EPOCHS,
            "not told from noise": 0.01 * EPOCHS + noise(),
            "at rest after a leap, in ten epochs": torch.tensor(
                [-100.0, -50, -20, -10, -9, -9.01, -9, -8.99, -9, -9.02]
            ),
            "four epochs": torch.arange(4.0),
            "no epoch": torch.zeros(0),
            "NaN at its end": torch.cat([EPOCHS, torch.tensor([math.nan])]),
            "all NaN": torch.full((20,), math.nan),
            "NaN before its end": torch.cat([EPOCHS[:70], torch.tensor([math.nan]), EPOCHS[:29]]),
            "from minus infinity": torch.cat([torch.full((90,), -math.inf), torch.zeros(10)]),
            "infinite": torch.full((20,), -math.inf),
        }.items(),
        ids=lambda named: named[0],
    )
    def test_what_does_not_rise(self, curve):
        assert still_rising(curve[1]) is None

    @pytest.mark.parametrize("values", [[-20.0, -15, -12, -10, -9], [-350.0, -292, -249, -217, -196, -182, -174, -168]])
    def test_short_runs(self, values):
        _, num_epochs = still_rising(torch.tensor(values))
        assert num_epochs == 2

    @pytest.mark.parametrize(("num_epochs", "share"), [(5, 0.06), (10, 0.04), (100, 0.015)])
    def test_flat_curves_are_seldom_called_rising(self, num_epochs, share):
        # The docstring's rates, and three standard errors of 1000 curves above them at most.
        found = [still_rising(noise(num_epochs, seed=seed)) is not None for seed in range(1000)]
        assert sum(found) / len(found) < share
