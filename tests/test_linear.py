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
