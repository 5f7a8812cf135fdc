"""Where formulas cancel or overflow: each likelihood against a reference that does neither."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from likelihood_oracles import NAMES, joint

from pyro_vae import parts
from pyro_vae.likelihoods import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedGaussian,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    GaussianDecoderScale,
    GaussianLowRank,
    MixtureOfGaussians,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflatedPoisson,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
def test_binomial_does_not_cancel(dtype, rtol):
    logits = torch.tensor([-90.0, -30.0, -5.0, 0.0, 5.0, 30.0, 90.0], dtype=dtype)
    for count in (0, 1, 15, 16):
        exact = scipy.stats.binom(16, 0.5).logpmf(count) + 16 * torch.log(torch.tensor(2.0, dtype=torch.float64))
        sides = count * torch.nn.functional.logsigmoid(logits.double())
        exact = exact + sides + (16 - count) * torch.nn.functional.logsigmoid(-logits.double())
        x = torch.full((1,), count, dtype=dtype)
        came = torch.stack([Binomial(16)(logit[None]).log_prob(x) for logit in logits])
        # Relative to the log of the binomial coefficient where the two sides vanish.
        torch.testing.assert_close(came.double(), exact, rtol=rtol, atol=3e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("total", [1_000, 10_000, 60_000, 1_000_000, 10_000_000])
def test_binomial_keeps_its_digits_at_large_totals(total):
    # Mass near the mode is a difference of terms as large as the log factorials, 1.5e8 nats at the largest total.
    rng = np.random.default_rng(0)
    share = rng.beta(0.5, 20, (3, 2000)).clip(1e-6)
    x, logits = rng.binomial(total, share), torch.tensor(scipy.special.logit(share), dtype=torch.float32)
    exact = scipy.stats.binom.logpmf(x, total, torch.sigmoid(logits.double()).numpy()).sum(-1)
    for mask in (False, True):
        came = Binomial(total, mask=mask)(logits).log_prob(torch.tensor(x, dtype=torch.float32)).double().numpy()
        # The sum is rounded to single precision once.
        np.testing.assert_allclose(came, exact, rtol=3e-7)


@pytest.mark.parametrize("name", NAMES)
def test_sum_of_many_values_is_that_in_double_precision(name):
    context = {"num_values": 20_000, "max_value": 65_535.0, "num_levels": 256, "level_step": 1 / 255}
    single = parts.build(parts.options("likelihood", name), context)
    double = parts.build(parts.options("likelihood", name), context).double()
    double.load_state_dict(single.state_dict())
    out = torch.randn(2, 20_000 * single.num_params)
    with torch.no_grad():
        x = single(out).sample()
        came, exact = single(out).log_prob(x).double(), double(out.double()).log_prob(x.double())
    # Four roundings of the sum of the sizes of the values.
    torch.testing.assert_close(came, exact, rtol=0, atol=4 * 2**-24 * max(20_000.0, exact.abs().max().item()))


def test_binomial_with_one_trial_is_bernoulli():
    out = torch.randn(4, 5, 3)
    x = torch.randint(0, 2, (5, 3)).to(out)
    torch.testing.assert_close(Binomial(1)(out).log_prob(x), Bernoulli()(out).log_prob(x))


class TestContinuousBernoulli:
    # Around 0, around the change of formula at 0.5, and where exp overflows.
    LOGITS = (0.0, 1e-30, 1e-12, 1e-6, 1e-3, 0.02, 0.3, 0.499999, 0.5, 0.500001, 2.0, 30.0, 200.0, 1e4)

    @staticmethod
    def exact(logit, x):
        """Log density and mean by quadrature of exp(l (x - 1)) for l > 0, which cannot overflow."""
        size = abs(logit)
        depth = 1 - x if logit > 0 else x
        # Beyond 50 / l there is nothing.
        end = min(1.0, 50 / size) if size else 1.0
        options = {"epsabs": 0, "epsrel": 1e-13}
        mass, _ = scipy.integrate.quad(lambda d: math.exp(-size * d), 0, end, **options)
        first, _ = scipy.integrate.quad(lambda d: d * math.exp(-size * d), 0, end, **options)
        return -size * depth - math.log(mass), 1 - first / mass if logit > 0 else first / mass

    @DTYPES
    @pytest.mark.parametrize("sign", [1, -1])
    def test_density_and_mean(self, dtype, sign):
        rtol = 1e-12 if dtype == torch.float64 else 1e-6
        for size in self.LOGITS:
            logit = torch.tensor([sign * size], dtype=dtype)
            p = ContinuousBernoulli()(logit)
            for x in (0.0, 0.125, 0.5, 1.0):
                log_p, mean = self.exact(logit.item(), x)
                assert p.log_prob(torch.tensor([x], dtype=dtype)).item() == pytest.approx(log_p, rel=rtol, abs=rtol)
            assert p.mean.item() == pytest.approx(mean, rel=rtol)

    @DTYPES
    def test_gradient_is_x_minus_the_mean(self, dtype):
        logits = torch.tensor([s * size for size in self.LOGITS for s in (1, -1)], dtype=dtype, requires_grad=True)
        p = ContinuousBernoulli()(logits)
        (gradient,) = torch.autograd.grad(p.log_prob(torch.full_like(logits, 0.25)), logits)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(gradient, 0.25 - p.mean, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("logit", [-200.0, -3.0, 0.0, 1e-9, 3.0, 200.0])
    def test_draws_have_its_mean(self, logit):
        p = ContinuousBernoulli()(torch.tensor([logit]))
        x = p.sample((20_000,))
        assert abs(x.mean() - p.mean) < 4 * x.std() / math.sqrt(20_000)
        assert x.min() >= 0 and x.max() <= 1


class TestDiscretized:
    @staticmethod
    def exact(frozen, loc, scale, num_levels):
        """Log masses of all levels in float64: by the difference that does not cancel, or by quadrature."""
        level = np.arange(num_levels)
        low, high = (level - 0.5 - loc) / scale, (level + 0.5 - loc) / scale
        # Differences of upper tails to the right of 0, of lower tails to the left.
        near, far = np.where(low + high > 0, -high, low), np.where(low + high > 0, -low, high)
        near[0], far[0] = (-np.inf, high[0])
        near[-1], far[-1] = (-np.inf, -low[-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            log_far, log_near = frozen.logcdf(far), frozen.logcdf(near)
            logs = log_far + np.log(-np.expm1(log_near - log_far))
        width = far - near
        # Where the density hardly changes over the bin: Simpson's rule in logs.
        middle = (near + far) / 2
        with np.errstate(invalid="ignore"):
            three = frozen.logpdf(np.stack([near, middle, far])) + np.log(np.array([[1], [4], [1]]) / 6)
            simpson = scipy.special.logsumexp(three, axis=0) + np.log(width)
            flat = width * (np.abs(middle) + 1) < 3e-3
        return np.where(flat, simpson, logs)

    CASES = ((DiscretizedGaussian, scipy.stats.norm()), (DiscretizedLogistic, scipy.stats.logistic()))
    LOCS = (-50.0, -3.0, -1.0, -0.3, 0.0, 0.01, 1.0, 4.0, 50.0)
    RAW_SCALES = (-1e4, -8.0, -6.0, -4.0, -2.0, 0.0, 3.0, 100.0, 1e4)

    @DTYPES
    @pytest.mark.parametrize(("cls", "frozen"), CASES)
    @pytest.mark.parametrize("num_levels", [17, 256])
    def test_whole_grid_at_any_location_and_scale(self, cls, frozen, num_levels, dtype):
        likelihood = cls(num_levels, 1 / (num_levels - 1), floor=0.1)
        x = torch.arange(num_levels, dtype=dtype)[:, None] / (num_levels - 1)
        half = (num_levels - 1) / 2
        for loc in self.LOCS:
            for raw in self.RAW_SCALES:
                # Rounded once to the precision at hand, so that both sides start from the same numbers.
                out = torch.tensor([loc, raw], dtype=dtype)
                parameters = (half * (1 + out[0]), 0.1 + half * torch.nn.functional.softplus(out[1]))
                exact = self.exact(frozen, *(v.item() for v in parameters), num_levels)
                came = likelihood(out).log_prob(x).double().numpy()
                # A location a rounding error away changes the log mass by that times its slope, at most |log mass|.
                tolerance = {torch.float32: 2e-5, torch.float64: 1e-8}[dtype]
                np.testing.assert_allclose(came, exact, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize(("cls", "frozen"), CASES)
    def test_formulas_meet(self, cls, frozen):
        """Along scales and distances that cross every change of formula, slopes have no jump."""
        likelihood = cls(17, 1.0)
        loc = torch.linspace(-4, 4, 20_001, requires_grad=True)
        for raw in (-6.0, -3.0, -2.5, -2.0, -1.0):
            p = likelihood(torch.stack([loc, torch.full_like(loc, raw)], -1))
            log_p = p.log_prob(torch.tensor([8.0]))
            (slope,) = torch.autograd.grad(log_p.sum(), loc)
            differences = (log_p[2:] - log_p[:-2]) / (loc[2:] - loc[:-2])
            error = (differences - slope[1:-1]).abs() / (1 + slope[1:-1].abs())
            # The density's third derivative is the difference between the two: a jump would be far above it.
            assert error.max() < 2e-3

    def test_mixture_of_one_is_the_logistic(self):
        out = torch.randn(5, 3 * 3)
        one = DiscretizedLogisticMixture(17, 1.0, num_components=1)
        p, q = one(out), DiscretizedLogistic(17, 1.0)(out[:, 3:])
        x = q.sample()
        torch.testing.assert_close(p.log_prob(x), q.log_prob(x))
        torch.testing.assert_close(p.mean, q.mean)

    def test_mixture_starts_spread_over_the_levels(self):
        likelihood = DiscretizedLogisticMixture(101, 0.01, num_components=2)
        narrow = torch.tensor([0.0, 0.0, 0.0, 0.0, -20.0, -20.0])
        x = 0.01 * torch.arange(101)[:, None]
        mass = likelihood(narrow).log_prob(x).exp()
        assert mass[[25, 75]].tolist() == pytest.approx([0.5, 0.5], abs=1e-2)

    def test_step_is_a_unit_alone(self):
        """Values and step in another unit: the same masses, the mean in that unit."""
        out = torch.randn(5, 6)
        x = torch.randint(0, 17, (5, 3)).double()
        for cls in (DiscretizedGaussian, DiscretizedLogistic):
            p, q = cls(17, 1.0)(out), cls(17, 0.25)(out)
            torch.testing.assert_close(p.log_prob(x), q.log_prob(0.25 * x))
            torch.testing.assert_close(0.25 * p.mean, q.mean)

    @pytest.mark.parametrize("cls", [DiscretizedGaussian, DiscretizedLogistic])
    def test_rounded_levels_are_the_levels(self, cls):
        likelihood = cls(256, 1 / 255)
        out = torch.randn(512)
        single = torch.arange(256, dtype=torch.float32) / 255
        torch.testing.assert_close(
            likelihood(out).log_prob(single.double()), likelihood(out).log_prob(torch.arange(256) * (1 / 255))
        )


@pytest.mark.parametrize("df", [1.01, 4.0, 1e3, 9.9e5, 1.1e6, 1e9, 1e15])
@DTYPES
def test_student_t_at_any_degrees_of_freedom(df, dtype):
    p = StudentT(df=df)(torch.zeros(2, dtype=dtype))
    scale = 0.01 + math.log(2)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-9
    for x in (0.0, 0.5, 3.0):
        # Near the normal limit scipy's own constant cancels; the limit differs by less than x^4 / df.
        frozen = scipy.stats.norm(0, scale) if df > 1e10 else scipy.stats.t(df, 0, scale)
        rtol = max(tolerance, 1e-7 if df > 1e5 else 0)
        assert p.log_prob(torch.tensor([x], dtype=dtype)).item() == pytest.approx(frozen.logpdf(x), rel=rtol, abs=rtol)


def test_student_t_constant_has_no_jump_between_its_formulas():
    at = [StudentT(df=df)(torch.zeros(2)).log_prob(torch.zeros(1)).item() for df in (1e6, 1e6 + 1e-3)]
    assert at[0] == pytest.approx(at[1], abs=1e-9)


@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e3, 1e6])
def test_poisson_does_not_cancel_in_single_precision(rate):
    out = torch.tensor([20 * math.atanh(math.log(rate) / 20)], dtype=torch.float32)
    exact_rate = math.exp(20 * math.tanh(out.item() / 20))
    for x in {0, round(rate), round(rate + 3 * math.sqrt(rate))}:
        came = Poisson()(out).log_prob(torch.tensor([float(x)])).item()
        # The rounding of the log rate, times the slope x - rate of the log mass.
        slack = 1e-6 * max(1, math.log(max(rate, 2))) * abs(x - exact_rate)
        assert came == pytest.approx(scipy.stats.poisson(exact_rate).logpmf(x), rel=1e-6, abs=1e-6 + slack)


def test_rates_are_confined_as_stated():
    out = torch.tensor([-1e4, 1e4])
    assert Poisson()(out).mean.tolist() == pytest.approx([2.061e-9, 4.852e8], rel=1e-3)
    assert Poisson()(out[1:].float()).sample().isfinite().all()


def test_negative_binomial_goes_to_the_poisson():
    out = torch.randn(5, 3)
    narrow = NegativeBinomial()(torch.cat([out, torch.full_like(out, -1e4)], -1))
    x = Poisson()(out).sample()
    # Its dispersion is then exp(-12), and the log mass differs by about that times x^2 / 2.
    torch.testing.assert_close(narrow.log_prob(x), Poisson()(out).log_prob(x), rtol=0, atol=1e-3)


def test_negative_binomial_has_the_variance_it_states():
    out = torch.tensor([1.0, 0.3])
    x = NegativeBinomial()(out).sample((40_000,))
    mean, dispersion = 20 * math.tanh(1 / 20), 12 * math.tanh(0.3 / 12)
    expected = math.exp(mean) + math.exp(2 * mean + dispersion)
    squares = (x - x.mean()).square()
    assert abs(squares.mean() - expected) < 4 * squares.std() / 200


def test_zero_inflation_without_a_gate_is_none():
    out = torch.randn(5, 3)
    x = Poisson()(out).sample()
    closed = ZeroInflatedPoisson()(torch.cat([out, torch.full_like(out, -50.0)], -1))
    torch.testing.assert_close(closed.log_prob(x), Poisson()(out).log_prob(x))
    assert (ZeroInflatedPoisson()(torch.cat([out, torch.full_like(out, 50.0)], -1)).sample() == 0).all()


def test_beta_at_its_narrowest_in_single_precision():
    out = torch.tensor([0.25, -1e4], dtype=torch.float32)
    mean = 0.001 + 0.998 * scipy.special.expit(0.25)
    frozen = scipy.stats.beta(mean * 10_000.1, (1 - mean) * 10_000.1)
    for x in (0.5, 0.5625, 0.625):
        came = Beta()(out).log_prob(torch.tensor([x], dtype=torch.float32)).item()
        assert came == pytest.approx(frozen.logpdf(x), abs=5e-3)


def test_categorical_blocks_are_level_major():
    p = Categorical(3, 0.5)(torch.tensor([900.0, 0.0, 0.0, 900.0, 0.0, 0.0]))
    assert p.mean.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("make", [GaussianDecoderScale, MixtureOfGaussians])
@pytest.mark.parametrize("output", [1.8446743523953738e19, 1e30, 3e38])
def test_scales_whose_square_overflows(make, output):
    """At z = -1: minus the log of the scale, minus (1 + log 2 pi) / 2."""
    likelihood = make()
    log_p = likelihood(torch.full((2 * likelihood.num_params,), output, dtype=torch.float32)).log_prob(torch.zeros(2))
    exact = 2 * (-math.log(output) - 0.5 - 0.5 * math.log(2 * math.pi))
    assert float(log_p) == pytest.approx(exact, rel=1e-5)


def test_mixture_blocks_are_weights_locations_scales():
    # Two components of two values: the second component has all of the weight at the first value alone.
    logits, loc, raw = [[-99.0, 99.0], [99.0, -99.0]], [[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]
    out = torch.tensor([logits, loc, raw]).flatten()
    p = MixtureOfGaussians(num_components=2)(out)
    assert p.mean.tolist() == [3.0, 2.0]
    raw_on_floor = torch.tensor([logits, loc, [[0.0, -50.0], [0.0, 0.0]]]).flatten()
    assert MixtureOfGaussians(num_components=2).on_floor(raw_on_floor).tolist() == [False, True]


class TestLowRank:
    def test_integrates_to_one(self):
        likelihood = GaussianLowRank(rank=2)
        out = torch.randn(8)
        p = likelihood(out)
        t = torch.linspace(-9, 9, 601)
        square = torch.cartesian_prod(t, t)
        root = torch.linalg.cholesky(p.covariance_matrix)
        mass = p.log_prob(p.mean + square @ root.mT).exp().sum() * (t[1] - t[0]) ** 2 * root.diagonal().prod()
        assert mass.item() == pytest.approx(1, abs=1e-9)

    def test_draws_have_its_covariance(self):
        likelihood = GaussianLowRank(rank=2)
        out = torch.randn(4 * 3)
        loc, covariance = joint(out.reshape(4, 3).numpy())
        p = likelihood(out)
        np.testing.assert_allclose(p.covariance_matrix.numpy(), covariance, rtol=1e-12)
        torch.testing.assert_close(p.variance, p.covariance_matrix.diagonal())
        x = p.sample((40_000,)).numpy() - loc
        assert (np.abs(x.mean(0)) < 4 * x.std(0) / 200).all()
        products = x[:, :, None] * x[:, None, :]
        assert (np.abs(products.mean(0) - covariance) < 4 * products.std(0) / 200).all()

    def test_without_loadings_the_values_are_independent(self):
        out = torch.randn(5, 4 * 3)
        out[:, 6:] = 0
        x = torch.randn(5, 3)
        normal = torch.distributions.Normal(out[:, :3], 0.01 + torch.nn.functional.softplus(out[:, 3:6]))
        torch.testing.assert_close(GaussianLowRank()(out).log_prob(x), normal.log_prob(x).sum(-1))

    @DTYPES
    @pytest.mark.parametrize("mask", [False, True])
    def test_strong_loadings_do_not_cancel(self, dtype, mask):
        """Two equal columns, a hundred times to 10,000 times the independent scale: against one column, by hand."""
        for size in (1.0, 10.0, 100.0):
            loc, raw, column = torch.zeros(50), torch.full((50,), -40.0), torch.full((50,), size)
            out = torch.cat([loc, raw, column, column]).to(dtype)
            x = torch.linspace(-0.02, 0.02, 50) + 0.7 * size
            factor = 1e4 * math.tanh(size / 0.01 / 1e4)
            residual = x.to(dtype).double() / 0.01
            # Along the one direction of the loadings, and across it, in units of the scale.
            along = residual.sum().square() / 50
            across = residual.square().sum() - along
            variance = 1 + 2 * 50 * factor**2
            exact = -(across + along / variance + math.log(variance) + 50 * math.log(2 * math.pi * 1e-4)) / 2
            came = GaussianLowRank(mask=mask)(out).log_prob(x.to(dtype)).double()
            torch.testing.assert_close(came, exact, rtol=1e-4 if dtype == torch.float32 else 1e-6, atol=0)

    def test_gives_the_gradient_of_the_dense_covariance(self):
        out = torch.randn(5, 4 * 3)
        x = torch.randn(5, 3)

        def dense(out):
            loc, raw, *columns = out.unflatten(-1, (4, 3)).unbind(-2)
            factor, scale = torch.stack(columns, -1), 0.01 + torch.nn.functional.softplus(raw)
            covariance = factor @ factor.mT + torch.diag_embed(scale.square())
            return torch.distributions.MultivariateNormal(loc, covariance).log_prob(x).sum()

        came = torch.func.grad(lambda out: GaussianLowRank()(out).log_prob(x).sum())(out)
        # tanh changes loadings of some scales by parts in 1e7.
        torch.testing.assert_close(came, torch.func.grad(dense)(out), rtol=1e-4, atol=1e-4)
