import math

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import scipy.stats
import torch
from sklearn.decomposition import PCA, FactorAnalysis

from inference.families import FullCovariance
from inference.guides import Amortized
from pyro_vae.linear import LinearGaussian
from pyro_vae.linear.em import complete_step, missing_step, moments, start

SCALES = {"isotropic": 0.7, "diagonal": torch.linspace(0.3, 2.0, 20)}


@pytest.fixture(params=SCALES)
def model(request):
    return LinearGaussian(torch.randn(20, 5), torch.randn(20), SCALES[request.param])


def joint(model):
    """Mean and covariance of (z, x), written down without Woodbury."""
    weight, scale = model.weight.detach(), model.scale.detach().expand(20)
    covariance = torch.zeros(25, 25)
    covariance[:5, :5] = torch.eye(5)
    covariance[5:, :5] = weight
    covariance[:5, 5:] = weight.T
    covariance[5:, 5:] = weight @ weight.T + torch.diag(scale**2)
    return torch.cat([torch.zeros(5), model.bias.detach()]), covariance


def test_log_evidence(model):
    x = model.generate(64, seed=0)
    mean, covariance = joint(model)
    truth = scipy.stats.multivariate_normal(mean[5:], covariance[5:, 5:]).logpdf(x)
    assert model.log_evidence(x).tolist() == pytest.approx(truth.tolist(), rel=1e-12)


def test_posterior(model):
    x = model.generate(64, seed=0)
    mean, covariance = joint(model)
    gain = covariance[:5, 5:] @ covariance[5:, 5:].inverse()
    q = model.posterior(x)
    assert q.batch_shape == (64,) and q.event_shape == (5,)
    torch.testing.assert_close(q.mean, (x - mean[5:]) @ gain.T)
    torch.testing.assert_close(q.covariance_matrix[3], covariance[:5, :5] - gain @ covariance[5:, :5])
    torch.testing.assert_close(model.precision.inverse(), q.covariance_matrix[0])


def test_bayes_rule(model):
    x, z = model.generate(64, seed=0), torch.randn(64, 5)
    trace = poutine.trace(poutine.condition(model.model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["data"]["value"].shape == (64,)
    log_joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    torch.testing.assert_close(log_joint - model.posterior(x).log_prob(z), model.log_evidence(x))


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("num_values", [784, 10_000, 50_000])
def test_evidence_of_many_values_in_single_precision(num_values, share):
    weight = torch.randn(num_values, 10)
    single = LinearGaussian(weight.float(), torch.full((num_values,), 0.5, dtype=torch.float32), 0.1)
    x = hide(single.generate(20, seed=1), share)
    double = LinearGaussian(*(value.detach().double() for value in (single.weight, single.bias, single.scale)))
    truth = double.log_evidence(x.double())
    assert single.log_evidence(x).dtype == torch.float32
    # Rounded to single precision once, at the end.
    torch.testing.assert_close(single.log_evidence(x).double(), truth, rtol=2e-7, atol=1e-6)
    torch.testing.assert_close(single.posterior(x).mean, double.posterior(x.double()).mean.float())


def test_small_noise_does_not_cancel():
    weight = torch.randn(20, 5)
    x = LinearGaussian(weight, torch.zeros(20), 1e-6).generate(64, seed=0)
    double = LinearGaussian(weight, torch.zeros(20), 1e-6)
    # The covariance itself has condition 1e13: the eigenvalues are taken apart instead.
    left, singular, _ = torch.linalg.svd(weight, full_matrices=True)
    variances = torch.full((20,), 1e-12)
    variances[:5] += singular**2
    truth = torch.distributions.Normal(0.0, variances.sqrt()).log_prob(x @ left).sum(-1)
    torch.testing.assert_close(double.log_evidence(x), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 2e-9, 3e-9, 1e-10, 1e-20, 1e-30])
def test_weights_of_lower_rank_with_noise_that_is_lost_beside_them(scale):
    # The precision is 1 in one direction and beyond 1e17 in the other, which no Cholesky factor in float64 holds.
    model = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale)
    for call in (model.log_evidence, model.posterior, model.reconstruct):
        with pytest.raises(ValueError, match=r"scale: expected noise that torch.float64 can tell from 0"):
            call(torch.randn(3, 4))


def test_generate_draws_from_the_model(model):
    _, covariance = joint(model)
    x = model.generate(200_000, seed=1).detach()
    assert (x.T.cov() - covariance[5:, 5:]).abs().max() < 0.02 * covariance.abs().max()
    assert (x.mean(0) - model.bias).abs().max() < 0.05


def test_generate_with_a_seed_leaves_the_generator_alone(model):
    state = torch.get_rng_state()
    first = model.generate(3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.generate(3, seed=1), first)
    assert not torch.equal(model.generate(3, seed=2), first)
    assert not torch.equal(model.generate(3), model.generate(3))


def test_elbo_at_the_posterior_is_the_evidence_for_every_draw(model):
    class Posterior(torch.nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                return pyro.sample("z", model.posterior(x))

    x = model.generate(16, seed=0)
    elbo = pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.loss(model.model, Posterior(), x)
    assert -loss == pytest.approx(model.log_evidence(x).sum().item(), rel=1e-10)


def test_trains_under_pyro():
    truth = LinearGaussian(torch.randn(6, 2), torch.randn(6), 0.5)
    x = truth.generate(400, seed=0)
    model = LinearGaussian(0.1 * torch.randn(6, 2), torch.zeros(6), 1.0)
    best = LinearGaussian.fit(x, 2).log_evidence(x).mean().item()
    family = FullCovariance(2)
    guide = Amortized(family, torch.nn.Linear(6, family.num_params))
    svi = pyro.infer.SVI(model.model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.Trace_ELBO())
    for _ in range(1500):
        svi.step(x)
    assert model.log_evidence(x).mean().item() == pytest.approx(best, abs=0.05)


@pytest.fixture
def data():
    return LinearGaussian(torch.randn(12, 4), torch.randn(12), torch.linspace(0.4, 1.2, 12)).generate(500, seed=3)


@pytest.mark.parametrize("num_latents", [1, 4, 11])
def test_fit_is_the_maximum(data, num_latents):
    model = LinearGaussian.fit(data, num_latents)
    evidence = model.log_evidence(data).mean()
    gradients = torch.autograd.grad(evidence, list(model.parameters()))
    for gradient in gradients:
        assert gradient.abs().max() < 1e-10
    pca = PCA(num_latents).fit(data.numpy())
    # scikit-learn divides by N - 1: its covariance is taken back to the maximum likelihood one.
    covariance = pca.get_covariance() * 499 / 500
    truth = scipy.stats.multivariate_normal(pca.mean_, covariance).logpdf(data).mean()
    assert evidence.item() == pytest.approx(truth, rel=1e-9)
    for step in torch.randn(20, 12, num_latents):
        other = LinearGaussian(model.weight + 0.01 * step, model.bias, model.scale)
        assert other.log_evidence(data).mean() < evidence


def test_fit_needs_fewer_rows_than_values():
    x = torch.randn(8, 30)
    model = LinearGaussian.fit(x, 3)
    assert model.log_evidence(x).isfinite().all()
    assert torch.equal(LinearGaussian.fit(x, 3).weight, model.weight)


def test_fit_keeps_the_dtype(data):
    assert LinearGaussian.fit(data.float(), 2).weight.dtype == torch.float32


@pytest.mark.parametrize("num_latents", [1, 2])
def test_factor_analysis_matches_scikit_learn(num_latents):
    data = LinearGaussian(torch.randn(12, num_latents), torch.randn(12), torch.linspace(0.4, 1.2, 12)).generate(500)
    model = LinearGaussian.fit_factor_analysis(data, num_latents, tol=1e-12)
    truth = FactorAnalysis(num_latents, tol=1e-9, max_iter=20_000, svd_method="lapack").fit(data.numpy())
    assert model.log_evidence(data).mean().item() == pytest.approx(truth.score(data.numpy()), rel=1e-6)
    torch.testing.assert_close(model.scale.detach() ** 2, torch.from_numpy(truth.noise_variance_), rtol=1e-3, atol=0)
    assert model.log_evidence(data).mean() > LinearGaussian.fit(data, num_latents).log_evidence(data).mean()


def test_factor_analysis_rises_with_every_step(data):
    evidence = [
        LinearGaussian.fit_factor_analysis(data, 3, tol=1e-15, max_steps=steps).log_evidence(data).mean().item()
        for steps in range(1, 30)
    ]
    assert all(after > before for before, after in zip(evidence, evidence[1:], strict=False))


def test_factor_analysis_of_a_constant_value_stays_on_the_floor(data):
    data[:, 4] = 1.5
    model = LinearGaussian.fit_factor_analysis(data, 1, floor=0.05)
    assert model.scale[4].item() == pytest.approx(0.05)
    assert (model.scale[torch.arange(12) != 4] > 0.06).all()


class TestEM:
    @pytest.mark.parametrize("num_latents", [1, 4])
    def test_isotropic_ends_at_the_closed_form(self, data, num_latents):
        model, fit = LinearGaussian.fit_em(data, num_latents, tol=1e-12)
        best = LinearGaussian.fit(data, num_latents)
        assert model.log_evidence(data).mean().item() == pytest.approx(best.log_evidence(data).mean().item(), rel=1e-8)
        assert model.scale.item() == pytest.approx(best.scale.item(), rel=1e-4)
        assert fit.elbo[0] < fit.elbo[-1] - 1, "it must not start at the solution"

    def test_diagonal_matches_scikit_learn(self):
        data = LinearGaussian(torch.randn(12, 2), torch.randn(12), torch.linspace(0.4, 1.2, 12)).generate(500)
        model, _ = LinearGaussian.fit_em(data, 2, noise="diagonal", tol=1e-13)
        truth = FactorAnalysis(2, tol=1e-11, max_iter=20_000, svd_method="lapack").fit(data.numpy())
        # Both divide by N, so the two log-likelihoods are the same number.
        assert model.log_evidence(data).mean().item() == pytest.approx(truth.score(data.numpy()), rel=1e-8)

    @pytest.mark.parametrize("missing", [0.0, 0.3])
    @pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
    def test_the_record_is_the_evidence_and_never_falls(self, data, noise, missing):
        data = hide(data, missing)
        model, fit = LinearGaussian.fit_em(data, 3, noise=noise, max_steps=60)
        assert fit.num_steps == 60 and len(fit.elbo) == 61
        assert fit.elbo.diff().min() > -1e-11
        assert fit.elbo[-1].item() == pytest.approx(model.log_evidence(data).mean().item(), rel=1e-12)
        # Step by step: the record of a shorter run is the beginning of this one.
        model, shorter = LinearGaussian.fit_em(data, 3, noise=noise, max_steps=7)
        assert torch.equal(shorter.elbo, fit.elbo[:8])
        assert shorter.elbo[-1].item() == pytest.approx(model.log_evidence(data).mean().item(), rel=1e-12)
        assert shorter.stopped_because.startswith("the budget")

    @pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
    def test_missing_values_do_not_matter_where_there_are_none(self, data, noise):
        begin = start(data, 3, noise=noise, floor=1e-2, seed=0)
        covariance, bias, _ = moments(data, 3)
        evidence, after = complete_step(covariance, bias, noise=noise, floor=1e-2)(begin)
        other_evidence, other = missing_step(data, noise=noise, floor=1e-2)(begin)
        assert other_evidence == pytest.approx(evidence, rel=1e-12)
        for ours, theirs in zip(other, after, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
    def test_with_missing_values_it_ends_where_the_gradient_vanishes(self, noise):
        truth = LinearGaussian(torch.randn(8, 2), torch.randn(8), 0.5 if noise == "isotropic" else torch.rand(8) + 0.5)
        data = hide(truth.generate(300, seed=3), 0.3)
        model, fit = LinearGaussian.fit_em(data, 2, noise=noise, tol=1e-13)
        assert fit.stopped_because.startswith("the evidence converged")
        for gradient in torch.autograd.grad(model.log_evidence(data).mean(), list(model.parameters())):
            assert gradient.abs().max() < 1e-5
        assert fit.elbo[-1] > truth.log_evidence(data).mean()

    def test_chunks_add_up(self, data, monkeypatch):
        data = hide(data, 0.2)
        whole, _ = LinearGaussian.fit_em(data, 2, max_steps=5)
        monkeypatch.setattr("pyro_vae.linear.em._CHUNK", 7)
        parts, _ = LinearGaussian.fit_em(data, 2, max_steps=5)
        torch.testing.assert_close(parts.weight, whole.weight)

    def test_one_seed_one_fit(self, data):
        first, _ = LinearGaussian.fit_em(data, 2, max_steps=3)
        again, _ = LinearGaussian.fit_em(data, 2, max_steps=3)
        other, _ = LinearGaussian.fit_em(data, 2, max_steps=3, seed=1)
        assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)

    def test_scales_on_the_floor_are_counted(self, data):
        data[:, 4] = 1.5
        model, fit = LinearGaussian.fit_em(data, 1, noise="diagonal", floor=0.05)
        assert fit.settings["num_on_floor"] == 1
        assert model.scale[4].item() == pytest.approx(0.05)
        assert LinearGaussian.fit_em(data, 1)[1].settings["num_on_floor"] == 0

    def test_rows_without_values_change_nothing(self, data):
        data = hide(data, 0.2)
        empty = torch.full((50, 12), torch.nan)
        model, _ = LinearGaussian.fit_em(data, 2, max_steps=5)
        more, fit = LinearGaussian.fit_em(torch.cat([data, empty]), 2, max_steps=5)
        torch.testing.assert_close(more.weight, model.weight)
        assert (more.log_evidence(empty) == 0).all()

    def test_keeps_the_dtype(self, data):
        assert LinearGaussian.fit_em(hide(data, 0.1).float(), 2, max_steps=5)[0].weight.dtype == torch.float32


class TestScikitLearn:
    """scikit-learn's `PCA.score` is the log-likelihood at the covariance divided by N - 1; the maximum divides by N."""

    def test_its_score_is_our_evidence_at_its_parameters(self, data):
        pca = PCA(4).fit(data.numpy())
        ratio = (500 / 499) ** 0.5
        best = LinearGaussian.fit(data, 4)
        # All eigenvalues, and so W and s^2 alike, are larger by N / (N - 1).
        theirs = LinearGaussian(best.weight * ratio, best.bias, best.scale * ratio)
        assert theirs.log_evidence(data).mean().item() == pytest.approx(pca.score(data.numpy()), rel=1e-12)
        np.testing.assert_allclose(theirs.log_evidence(data).detach(), pca.score_samples(data.numpy()), rtol=1e-10)

    def test_the_two_differ_by_a_known_number(self, data):
        # At the maximum tr(C^-1 S) = P, so scaling C by c = N / (N - 1) costs P (log c + 1 / c - 1) / 2.
        pca, scaling = PCA(4).fit(data.numpy()), 500 / 499
        cost = 6 * (np.log(scaling) + 1 / scaling - 1)
        best = LinearGaussian.fit(data, 4).log_evidence(data).mean().item()
        assert best - pca.score(data.numpy()) == pytest.approx(cost, rel=1e-6)
        assert cost > 0


def hide(x, share):
    """A copy in which each entry is missing with probability `share`."""
    return x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(7)) < share, torch.nan)


class TestMissing:
    """Against the marginal of the joint normal over (z, observed x), by SciPy and by block inverses."""

    @pytest.fixture
    def x(self, model):
        x = hide(model.generate(40, seed=0), 0.4)
        x[0] = torch.nan
        x[1] = model.generate(1, seed=5)[0]
        x[2, 1:] = torch.nan
        return x

    def test_log_evidence_is_that_of_the_observed_values(self, model, x):
        mean, covariance = joint(model)
        for row, value in zip(x, model.log_evidence(x).tolist(), strict=True):
            keep = torch.nonzero(~row.isnan()).flatten()
            if not len(keep):
                assert value == 0.0
                continue
            normal = scipy.stats.multivariate_normal(mean[5:][keep], covariance[5:, 5:][keep][:, keep])
            assert value == pytest.approx(normal.logpdf(row[keep]), rel=1e-10)

    def test_posterior_and_reconstruction(self, model, x):
        mean, covariance = joint(model)
        q, reconstructed = model.encode(x), model.reconstruct(x)
        assert q.batch_shape == (40,) and not reconstructed.requires_grad
        for n, row in enumerate(x):
            keep = 5 + torch.nonzero(~row.isnan()).flatten()
            gain = covariance[:, keep] @ covariance[keep][:, keep].inverse()
            given = mean + gain @ (row[keep - 5] - mean[keep])
            torch.testing.assert_close(q.mean[n], given[:5])
            torch.testing.assert_close(
                q.covariance_matrix[n], covariance[:5, :5] - gain[:5] @ covariance[keep][:, :5], rtol=1e-9, atol=1e-9
            )
            missing = torch.nonzero(row.isnan()).flatten()
            torch.testing.assert_close(reconstructed[n, missing], given[5:][missing])

    def test_bayes_rule(self, model, x):
        z = torch.randn(40, 5)
        trace = poutine.trace(poutine.condition(model.model, {"z": z})).get_trace(x)
        trace.compute_log_prob()
        log_joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
        torch.testing.assert_close(log_joint - model.posterior(x).log_prob(z), model.log_evidence(x))

    def test_the_model_draws_every_value(self, model, x):
        drawn = poutine.uncondition(model.model)(x)
        assert drawn.shape == x.shape and drawn.isfinite().all()

    def test_gradients_are_those_of_the_observed_values(self, model, x):
        ours = torch.autograd.grad(model.log_evidence(x).sum(), list(model.parameters()))
        keep = (~x.isnan()).double()
        covariance = model.weight @ model.weight.T + torch.diag(model.scale.square().expand(20))
        total = 0.0
        for row, shown in zip(x.nan_to_num(), keep.bool(), strict=True):
            if shown.any():
                part = covariance[shown][:, shown]
                total = total + torch.distributions.MultivariateNormal(model.bias[shown], part).log_prob(row[shown])
        for mine, truth in zip(ours, torch.autograd.grad(total, list(model.parameters())), strict=True):
            torch.testing.assert_close(mine, truth)

    def test_infinity_is_not_missing(self, model, x):
        x[3, 4] = torch.inf
        assert not model.log_evidence(x)[3].isfinite()
        with pytest.raises(ValueError, match="support|constraint"):
            poutine.trace(model.model).get_trace(x).compute_log_prob()

    def test_trains_by_gradient(self, data):
        data = hide(data, 0.3)
        best = LinearGaussian.fit_em(data, 2, tol=1e-10)[0].log_evidence(data).mean().item()
        model = LinearGaussian(0.1 * torch.randn(12, 2), torch.zeros(12), 1.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            (-model.log_evidence(data).mean()).backward()
            optimizer.step()
        assert best - 1e-2 < model.log_evidence(data).mean().item() < best + 1e-9


def test_diagonal_with_equal_scales_is_isotropic():
    weight, bias, x = torch.randn(6, 2), torch.randn(6), torch.randn(10, 6)
    isotropic = LinearGaussian(weight, bias, 0.7)
    diagonal = LinearGaussian(weight, bias, torch.full((6,), 0.7))
    torch.testing.assert_close(diagonal.log_evidence(x), isotropic.log_evidence(x))
    assert repr(isotropic) == "LinearGaussian(6, 2, noise=isotropic)"
    assert repr(diagonal) == "LinearGaussian(6, 2, noise=diagonal)"


def test_no_weight_is_plain_noise():
    model = LinearGaussian(torch.zeros(3, 2), torch.zeros(3), 2.0)
    assert model.log_evidence(torch.zeros(1, 3)).item() == pytest.approx(-1.5 * math.log(2 * math.pi * 4))
    np.testing.assert_allclose(model.posterior(torch.ones(1, 3)).mean.detach(), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: LinearGaussian(torch.ones(3), torch.ones(3), 1.0), r"weight: .* \(3,\)", id="vector"),
        pytest.param(
            lambda: LinearGaussian(torch.ones(3, 2), torch.ones(2), 1.0), r"bias: expected shape \(3,\)", id="bias"
        ),
        pytest.param(
            lambda: LinearGaussian(torch.ones(3, 2), torch.ones(3), torch.ones(2)), "scale: .*(3,)", id="scales"
        ),
        pytest.param(lambda: LinearGaussian(torch.ones(3, 2), torch.ones(3), -1.0), "scale: .* got -1", id="negative"),
        pytest.param(lambda: LinearGaussian(torch.ones(3, 2), torch.ones(3), 0), "scale: .* got 0", id="no noise"),
        pytest.param(
            lambda: LinearGaussian.fit(torch.randn(9, 3), 3), "fewer than the 3 data values; got 3", id="D = P"
        ),
        pytest.param(lambda: LinearGaussian.fit(torch.randn(9, 3), 0), "num_latents: .* got 0", id="D = 0"),
        pytest.param(lambda: LinearGaussian.fit(torch.randn(3), 1), r"x: .* \(3,\)", id="vector data"),
        pytest.param(lambda: LinearGaussian.fit(torch.full((9, 3), float("nan")), 1), "x: .* NaN", id="NaN data"),
        pytest.param(
            lambda: LinearGaussian.fit(torch.randn(9, 1) * torch.ones(3), 1), "noise would be 0", id="no residual"
        ),
        pytest.param(
            lambda: LinearGaussian.fit_factor_analysis(torch.randn(9, 3), 1, floor=0.0), "floor: .* got 0.0", id="floor"
        ),
        pytest.param(
            lambda: LinearGaussian.fit_em(torch.randn(9, 3), 1, noise="full"), "noise: .* got 'full'", id="noise"
        ),
        pytest.param(lambda: LinearGaussian.fit_em(torch.randn(9, 3), 1, tol=0.0), "tol: .* got 0.0", id="tol"),
        pytest.param(lambda: LinearGaussian.fit_em(torch.randn(9, 3), 1, seed=-1), "seed: .* got -1", id="seed"),
        pytest.param(
            lambda: LinearGaussian.fit_em(torch.full((9, 3), torch.inf), 1), "x: .* got infinity", id="infinite data"
        ),
        pytest.param(
            lambda: LinearGaussian.fit_em(torch.tensor([[1.0, torch.nan], [2.0, torch.nan]]), 1),
            "column 1 has none",
            id="empty column",
        ),
        pytest.param(
            lambda: LinearGaussian.fit_factor_analysis(torch.randn(9, 3), 1, max_steps=0), "max_steps", id="steps"
        ),
        pytest.param(
            lambda: LinearGaussian(torch.ones(3, 2), torch.ones(3), 1.0).log_evidence(torch.ones(4, 2)),
            r"x: expected shape \(N, 3\)",
            id="width",
        ),
        pytest.param(
            lambda: LinearGaussian(torch.ones(3, 2), torch.ones(3), 1.0).model(torch.ones(3)),
            r"got \(3,\)",
            id="one row",
        ),
        pytest.param(
            lambda: LinearGaussian(torch.ones(3, 2), torch.ones(3), 1.0).generate(0), "num_draws: .* got 0", id="draws"
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
