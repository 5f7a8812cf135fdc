import math

import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto
from torch.distributions import Exponential

from inference.weights import ess, log_mean_exp, mean_and_se, pareto_k


def pareto_log_weights(k, num_draws, num_data):
    """Weights whose tail index is exactly k: w = u^-k, so that log w is exponential with mean k."""
    return k * Exponential(torch.ones(num_data)).sample((num_draws,))


def tail_size(num_draws):
    return min(num_draws // 5, math.ceil(3 * math.sqrt(num_draws)))


def pyro_k(log_w):
    """Pyro's fit of the same tail: the largest weights, less the largest of the others."""
    weights = (log_w - log_w.max()).exp().sort().values
    size = tail_size(len(weights))
    return fit_generalized_pareto(weights[-size:] - weights[-size - 1])[0]


@pytest.mark.parametrize("num_draws", [25, 26, 99, 100, 1000, 4999])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_pareto_k_agrees_with_pyro(num_draws, scale):
    log_w = scale * torch.randn(num_draws, 4) - 500
    expected = torch.tensor([pyro_k(column) for column in log_w.T], dtype=torch.float64)
    torch.testing.assert_close(pareto_k(log_w), expected, rtol=1e-7, atol=1e-7)


def test_pareto_k_finds_a_known_tail_index():
    """Exact Pareto weights, 200 datapoints: the mean estimate within 4 of its standard errors."""
    num_draws, num_data = 10_000, 200
    size = tail_size(num_draws)
    for k in (0.2, 0.5, 0.8):
        found = pareto_k(pareto_log_weights(k, num_draws, num_data))
        expected = (k * size + 5) / (size + 10)  # shrunk to 0.5 as if by ten draws
        # Asymptotic deviation of a single estimate: (1 + k) / sqrt(M).
        se = (1 + k) / math.sqrt(size)
        assert abs(found.std() - se) < 0.3 * se
        assert abs(found.mean() - expected) < 4 * se / math.sqrt(num_data)


def test_pareto_k_is_per_datapoint():
    log_w = torch.cat([pareto_log_weights(0.1, 2000, 1), pareto_log_weights(1.5, 2000, 1)], dim=1)
    together = pareto_k(log_w)
    assert together.shape == (2,)
    assert together[0] < 0.4 and together[1] > 1.0
    for n in range(2):
        torch.testing.assert_close(together[n], pareto_k(log_w[:, n : n + 1])[0])


def test_pareto_k_of_a_linear_gaussian_proposal():
    """z ~ N(0, 1) / proposal N(0, s^2), s < 1: the weights' tail index is 1 - s^2; wider proposals have light tails."""
    z = torch.randn(20_000, 100)
    for scale in (0.5, 0.8, 1.5):
        # log p - log q at z = scale * noise.
        log_w = 0.5 * z.square() * (1 - scale**2)
        k = pareto_k(log_w)
        if scale < 1:
            # The logarithmic factor in this tail biases k downwards; the stated error is 0.15.
            assert abs(k.mean() - (1 - scale**2)) < 0.15
        else:
            assert (k < 0.1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pareto_k_of_equal_weights_is_nan(dtype):
    log_w = torch.full((100, 3), -321.5, dtype=dtype)
    log_w[:, 1] += 1e-5 * torch.randn(100)  # round-off of a float32 density
    log_w[:, 2] = torch.randn(100)
    k = pareto_k(log_w)
    assert k[:2].isnan().all() and k[2].isfinite()


@pytest.mark.parametrize("scale", [1e2, 1e3, 1e5, 1e30], ids=str)
@pytest.mark.parametrize("num_draws", [25, 1000])
def test_pareto_k_warns_where_one_weight_is_everything(scale, num_draws):
    assert (pareto_k(scale * torch.randn(num_draws, 5)) > 0.7).all()


def test_pareto_k_where_most_weights_vanish():
    log_w = torch.full((1000, 1), -math.inf)
    log_w[0] = 0.0
    assert (pareto_k(log_w) > 0.7).all()


def test_pareto_k_does_not_depend_on_the_constant():
    log_w = torch.randn(500, 3)
    torch.testing.assert_close(pareto_k(log_w - 1e4), pareto_k(log_w), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_draws", [1, 5, 24])
def test_too_few_draws_for_a_tail(num_draws):
    with pytest.raises(ValueError, match=f"log_w: expected at least 25 draws to see a tail; got {num_draws}"):
        pareto_k(torch.zeros(num_draws, 2))


def test_log_mean_exp_against_weights():
    weights = torch.rand(50, 4) + 0.1
    value, se = log_mean_exp(weights.log())
    mean = weights.mean(0)
    torch.testing.assert_close(value, mean.log())
    torch.testing.assert_close(se, weights.std(0, correction=1) / math.sqrt(50) / mean)


def test_log_mean_exp_in_float32_far_from_zero():
    log_w = torch.randn(200, 3)
    value, se = log_mean_exp(log_w)
    shifted, shifted_se = log_mean_exp(log_w.float() - 512)
    assert shifted.dtype == torch.float64
    torch.testing.assert_close(shifted + 512, value, rtol=0, atol=1e-4)
    torch.testing.assert_close(shifted_se, se, rtol=1e-3, atol=0)


def test_log_mean_exp_error_is_calibrated():
    """The stated error against the spread over 2000 repetitions: within 4 standard errors of a standard deviation."""
    log_w = 0.5 * torch.randn(500, 2000)
    value, se = log_mean_exp(log_w)
    spread = value.std()
    assert abs(se.mean() - spread) < 4 * spread / math.sqrt(2 * 2000)
    assert abs(value.mean() - 0.125) < 4 * spread / math.sqrt(2000) + 0.5 * spread**2


def test_log_mean_exp_of_equal_weights_has_no_error():
    value, se = log_mean_exp(torch.full((10, 2), -3.0))
    torch.testing.assert_close(value, torch.full((2,), -3.0))
    assert (se < 1e-12).all()


def test_a_draw_of_weight_zero():
    value, se = log_mean_exp(torch.tensor([[0.0], [-math.inf]]))
    torch.testing.assert_close(value, torch.tensor([math.log(0.5)]))
    torch.testing.assert_close(se, torch.tensor([1.0]))


def test_a_single_draw_has_no_known_error():
    for function in (log_mean_exp, mean_and_se):
        value, se = function(torch.tensor([[-2.0, 3.0]]))
        torch.testing.assert_close(value, torch.tensor([-2.0, 3.0]))
        assert se.isnan().all()


def test_mean_and_se():
    draws = torch.randn(30, 4, dtype=torch.float32)
    mean, se = mean_and_se(draws)
    assert mean.dtype == se.dtype == torch.float64
    torch.testing.assert_close(mean, draws.double().mean(0))
    torch.testing.assert_close(se, draws.double().std(0, correction=1) / math.sqrt(30))


def test_ess_is_the_formula():
    weights = torch.rand(50, 4)
    torch.testing.assert_close(ess(weights.log() - 700), weights.sum(0).square() / weights.square().sum(0))


def test_ess_limits():
    log_w = torch.zeros(20, 3)
    log_w[:, 1] = -math.inf
    log_w[7, 1] = -5.0
    log_w[10:, 2] = -1e6
    torch.testing.assert_close(ess(log_w), torch.tensor([20.0, 1.0, 10.0]))
