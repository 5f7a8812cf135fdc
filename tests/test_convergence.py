import arviz
import numpy as np
import pytest
import torch

from inference.convergence import autocorrelated_ess, nested_rhat


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
