import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyro
import pytest
import sklearn.decomposition
import torch

from inference import Adam, Cosine, Evidence, FullCovariance, MeanField, Training, fit_svi, measure_gaps
from pyro_vae import VAE, Linear, LinearGaussian, load
from pyro_vae.comparison import Scored, compare, paired_difference
from pyro_vae.likelihoods import GaussianDecoderScale, GaussianSharedScale
from pyro_vae.linear import as_linear_gaussian
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal

ROOT = Path(__file__).resolve().parents[1]


def scored(value, se=0.0, *, name="a", base_measure="lebesgue", fingerprint="digits/test"):
    value = torch.as_tensor(value)
    log_p = Evidence(value=value, se=torch.full_like(value, se), method="IWAE")
    return Scored(name=name, log_p=log_p, base_measure=base_measure, fingerprint=fingerprint)


class TestPairedDifference:
    def test_both_errors(self):
        rng = np.random.default_rng(0)
        common, ours, theirs = rng.standard_normal((3, 50))
        a, b = 10 * common + ours, 10 * common + 0.5 * theirs
        row = paired_difference(scored(a, 0.3), scored(b, 0.4, name="b"))
        assert row["mean"] == pytest.approx((a - b).mean())
        assert row["se"] == pytest.approx((a - b).std(ddof=1) / 50**0.5)
        assert row["mc_se"] == pytest.approx((50 * (0.3**2 + 0.4**2)) ** 0.5 / 50)
        # What is hard for both cancels.
        assert row["se"] < 0.2 * a.std(ddof=1) / 50**0.5

    def test_its_sign(self):
        assert paired_difference(scored([1.0, 2.0]), scored([0.0, 0.0]))["mean"] == 1.5
        assert paired_difference(scored([0.0, 0.0]), scored([1.0, 2.0]))["mean"] == -1.5

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            pytest.param(
                {"base_measure": "counting"},
                "base_measure: expected one for 'a' and 'b'; got 'lebesgue' and 'counting'.* Fit both",
                id="base measure",
            ),
            pytest.param(
                {"fingerprint": "mnist/test"},
                "fingerprint: .* 'a' and 'b'; got digits/test and mnist/test. Score both",
                id="data",
            ),
            pytest.param({"fingerprint": "digits/validation"}, "digits/test and digits/validation", id="split"),
            pytest.param({"value": [1.0, 2.0, 3.0]}, "log_p: expected the same datapoints .* 2 and 3", id="rows"),
        ],
    )
    def test_what_does_not_compare_is_refused(self, other, message):
        with pytest.raises(ValueError, match=message) as error:
            paired_difference(scored([1.0, 2.0]), scored(**{"value": [1.0, 2.0], "name": "b"} | other))
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """400 rows of a linear model with three latent variables, in units far from 1."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    truth = LinearGaussian(20 * torch.randn(8, 3), 100 + 20 * torch.randn(8), 10.0)
    path = tmp_path_factory.mktemp("data") / "linear.npy"
    np.save(path, truth.generate(600, seed=1).numpy())
    return load(path)


@pytest.fixture(scope="module")
def comparison(data):
    training = Training(epochs=60, batch_size=50, optimizer=Adam(lr=0.01), schedule=Cosine())
    return compare(data, 3, training=training, hidden=(16,), seed=0)


class TestCompare:
    def test_baselines_are_scikit_learns(self, data, comparison):
        x, test = data.train.tensor().numpy(), data.test.tensor().numpy()
        pca = sklearn.decomposition.PCA(3).fit(x)
        error = ((test - pca.inverse_transform(pca.transform(test))) ** 2).mean(1)
        np.testing.assert_allclose(comparison["PCA"].squared_error, error, rtol=1e-8)
        factors = sklearn.decomposition.FactorAnalysis(3, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(x)
        log_p = comparison["FA"].log_p.value
        assert log_p.mean().item() == pytest.approx(factors.score(test), abs=1e-3)
        # scikit-learn's PCA divides by N - 1; its score at the covariance divided by N is ours.
        pca.explained_variance_ *= (len(x) - 1) / len(x)
        pca.noise_variance_ *= (len(x) - 1) / len(x)
        np.testing.assert_allclose(comparison["pPCA"].log_p.value, pca.score_samples(test), rtol=1e-10)

    def test_the_linear_vae_reaches_probabilistic_pca(self, comparison):
        row = comparison.difference("linear VAE", "pPCA")
        assert abs(row["mean"]) < 0.05 and row["mc_se"] == 0
        ours, theirs = comparison["linear VAE"], comparison["pPCA"]
        assert ours.scale == pytest.approx(theirs.scale, rel=0.06)
        assert ours.squared_error.mean().item() == pytest.approx(theirs.squared_error.mean().item(), rel=0.06)

    def test_iwae_agrees_with_the_exact_value(self, comparison):
        model = comparison["linear VAE"]
        error = (model.log_p_iwae.value - model.log_p.value).mean().item()
        assert abs(error) < 4 * model.summary()["log_p_iwae"]["mc_se"] + 1e-4

    def test_no_density_where_there_is_none(self, comparison):
        for name in ("PCA", "autoencoder"):
            assert comparison[name].log_p is None
            with pytest.raises(ValueError, match="expected a model with a density"):
                comparison.difference(name, "pPCA")
        with pytest.raises(KeyError, match="expected one of 'PCA'"):
            comparison["vae"]

    def test_the_table_shows_the_numbers(self, comparison):
        text = str(comparison)
        rows = {model.name: row for model, row in zip(comparison.models, text.splitlines()[4:10], strict=True)}
        for name, row in rows.items():
            assert row.startswith(name)
            assert f"{comparison[name].squared_error.mean().item():.4g}" in row
            assert row.count("–") == (4 if name in ("PCA", "autoencoder") else 0)
            if comparison[name].log_p is not None:
                assert f"{comparison[name].log_p.value.mean().item():.3f}" in row
        assert len({len(row) for row in rows.values()}) == 1, "aligned"
        assert rows["FA"].startswith("FA*") and "* a noise scale for each of the 8 data values" in text
        assert "IWAE" in rows["VAE"] and "exact" in rows["linear VAE"]

    def test_the_summary_is_json(self, comparison):
        summary = json.loads(json.dumps(comparison.summary(), allow_nan=False))
        assert summary["log_p_difference"]["VAE - pPCA"] == comparison.difference("VAE", "pPCA")
        assert summary["models"]["VAE"]["log_p"] == summary["models"]["VAE"]["log_p_iwae"]
        assert summary["settings"]["training"]["epochs"] == 60

    def test_a_seed_fixes_everything(self, data):
        def run(seed):
            state = torch.get_rng_state()
            training = Training(epochs=1, batch_size=100)
            summary = compare(data, 2, training=training, hidden=(4,), num_data=10, seed=seed).summary()
            assert torch.equal(torch.get_rng_state(), state)
            return {name: {k: v for k, v in row.items() if k != "seconds"} for name, row in summary["models"].items()}

        first = run(0)
        assert first == run(0)
        other = run(1)
        assert first["PCA"] == other["PCA"] and first["VAE"] != other["VAE"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param({"num_latents": 8}, "num_latents: expected fewer than the 8 data values; got 8", id="D = P"),
            pytest.param({"num_latents": 0}, "num_latents: expected a positive integer", id="D = 0"),
            pytest.param({"num_data": 0}, "num_data: expected a positive integer", id="no datapoints"),
            pytest.param({"seed": -1}, "seed: expected", id="seed"),
        ],
    )
    def test_bad_input(self, data, change, message):
        arguments = {"num_latents": 3, "seed": 0} | change
        with pytest.raises(ValueError, match=message):
            compare(data, arguments.pop("num_latents"), **arguments)

    @pytest.mark.parametrize(("value", "message"), [(torch.nan, "expected finite"), (None, "values that vary")])
    def test_unfit_data(self, data, value, message):
        stored = data.train.stored.clone()
        stored[:] = stored[0] if value is None else value
        broken = dataclasses.replace(data, train=dataclasses.replace(data.train, stored=stored))
        with pytest.raises(ValueError, match=message):
            compare(broken, 3, seed=0)


def linear_vae(family, num_values=8, *, decoder=None, likelihood=None, prior=None):
    size = family.num_latents
    return VAE(
        prior=prior or StandardNormal(size),
        likelihood=likelihood or GaussianSharedScale(),
        decoder=decoder or Linear(size, num_values),
        family=family,
        encoder=Linear(num_values, family.num_params),
    )


class TestReadingAVAE:
    def test_is_the_same_model(self):
        vae = linear_vae(MeanField(2), likelihood=GaussianSharedScale(init_scale=0.4))
        exact = as_linear_gaussian(vae)
        x, z = torch.randn(5, 8), torch.randn(5, 2)
        torch.testing.assert_close(exact.decode(z).log_prob(x), vae.decode(z).log_prob(x))
        torch.testing.assert_close(exact.weight, vae.decoder.affine.weight)
        assert exact.scale.item() == pytest.approx(0.4)

    def test_what_the_decoder_is_made_of_does_not_matter(self):
        decoder = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 8))
        vae = linear_vae(MeanField(2), decoder=decoder)
        z = torch.randn(5, 2)
        torch.testing.assert_close(as_linear_gaussian(vae).decode(z).mean, decoder(z))

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            pytest.param(lambda: {"decoder": MLP(2, 16, 8)}, "decoder: expected an affine map", id="decoder"),
            pytest.param(
                lambda: {"likelihood": GaussianDecoderScale(), "decoder": Linear(2, 16)},
                "likelihood: expected normal",
                id="scale",
            ),
            pytest.param(
                lambda: {"prior": pyro.distributions.Normal(torch.zeros(2), 2.0).to_event(1)},
                "prior: expected a standard",
                id="prior",
            ),
        ],
    )
    def test_others_are_refused(self, parts, message):
        with pytest.raises(ValueError, match=message):
            as_linear_gaussian(linear_vae(MeanField(2), **parts()))


@pytest.fixture(scope="module", params=["mean field", "full covariance"])
def fitted(request):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    # Columns that are far from orthogonal: the truth itself is no solution for a mean-field q.
    weight = torch.randn(8, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.5]])
    x = LinearGaussian(weight, torch.randn(8), 0.7).generate(1000, seed=1)
    vae = linear_vae({"mean field": MeanField, "full covariance": FullCovariance}[request.param](2))
    training = Training(epochs=150, batch_size=100, optimizer=Adam(lr=0.05), schedule=Cosine())
    fit_svi(vae.model, vae.guide, x, training=training, seed=0)
    return vae.eval(), as_linear_gaussian(vae), x


class TestWhatALinearEncoderLearns:
    """At fixed W, b, s the posterior mean is affine in x and its covariance constant: see docs/linear-vae.md."""

    def test_the_model_is_probabilistic_pca(self, fitted):
        _, exact, x = fitted
        best = LinearGaussian.fit(x, 2)
        cost = (best.log_evidence(x) - exact.log_evidence(x)).mean().item()
        assert 0 < cost < 0.01

    def test_the_encoder_is_the_posterior_map(self, fitted):
        vae, exact, x = fitted
        learned = vae.encoder.affine.weight[:2]
        truth = torch.linalg.solve(exact.precision, exact.weight.T / exact.scale**2)
        assert (learned - truth).norm() < 0.05 * truth.norm()
        error = vae.encode(x).mean - exact.posterior(x).mean
        assert (error.std(0) < 0.1 * exact.posterior(x).stddev[0]).all()

    def test_amortization_costs_nothing(self, fitted):
        vae, exact, x = fitted
        x = x[:60]
        gaps = measure_gaps(vae.model, vae.guide, x, log_evidence=exact.log_evidence(x), seed=0).summary()
        assert abs(gaps["amortization_gap"]["mean"]) < 4 * gaps["amortization_gap"]["mc_se"] + 0.005
        assert abs(gaps["inference_gap"]["mean"]) < 4 * gaps["inference_gap"]["mc_se"] + 0.01

    def test_mean_field_turns_the_columns_until_they_are_orthogonal(self, fitted):
        vae, exact, _ = fitted
        gram = exact.weight.T @ exact.weight
        cosine = (gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()).abs()
        if isinstance(vae.family, FullCovariance):
            assert cosine > 0.5, "any rotation of W is as good to it"
            return
        assert cosine < 0.03
        # The best mean-field q has the diagonal of the precision.
        variances = vae.encode(torch.randn(3, 8)).variance
        torch.testing.assert_close(variances[0], 1 / exact.precision.diagonal(), rtol=0.1, atol=0)


def test_the_page_runs(capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/linear-vae.md").read_text(), flags=re.DOTALL | re.M)
    torch.set_default_dtype(torch.float32)
    exec(compile(block, "docs/linear-vae.md", "exec"), {})  # noqa: S102
    said = capsys.readouterr().out
    assert "amortization gap" in said
    error = re.search(r"encoder against the exact map, relative error: (\S+)", said)
    assert float(error[1]) < 0.1
