import numpy as np
import pytest
import sklearn.decomposition
import torch

from inference import Adam, Cosine, Training
from pyro_vae.autoencoder import PCA, Autoencoder
from pyro_vae.linear import LinearGaussian
from pyro_vae.networks import MLP, Linear


@pytest.fixture
def data():
    return LinearGaussian(torch.randn(8, 3), torch.randn(8), 0.5).generate(400, seed=3)


def squared_error(model, x):
    return (x - model.reconstruct(x)).square().sum(-1).mean().item()


class TestPCA:
    @pytest.mark.parametrize("num_latents", [1, 3, 8])
    def test_is_scikit_learns(self, data, num_latents):
        theirs = sklearn.decomposition.PCA(num_latents).fit(data.numpy())
        ours = PCA.fit(data, num_latents)
        codes = theirs.transform(data.numpy())
        np.testing.assert_allclose(ours.encode(data), codes, atol=1e-10)
        np.testing.assert_allclose(ours.reconstruct(data), theirs.inverse_transform(codes), atol=1e-10)
        assert ours.num_latents == num_latents

    def test_its_error_is_the_variance_that_is_left(self, data):
        eigenvalues = np.linalg.eigvalsh(np.cov(data.T, bias=True))
        assert squared_error(PCA.fit(data, 3), data) == pytest.approx(eigenvalues[:-3].sum(), rel=1e-10)

    def test_keeps_dtype_and_state(self, data):
        pca = PCA.fit(data.float(), 2)
        assert pca.components.dtype == torch.float32
        other = PCA(torch.zeros(2, 8), torch.zeros(8))
        other.load_state_dict(pca.state_dict())
        torch.testing.assert_close(other.encode(data), pca.double().encode(data))
        assert repr(pca) == "PCA(8, 2)"

    def test_draws_nothing(self, data):
        state = torch.get_rng_state()
        first = PCA.fit(data, 2).components
        assert torch.equal(torch.get_rng_state(), state) and torch.equal(PCA.fit(data, 2).components, first)


class TestAutoencoder:
    def test_linear_networks_reach_pca(self, data):
        """And never pass it: no affine map through three numbers has a smaller squared error."""
        autoencoder = Autoencoder(Linear(8, 3), Linear(3, 8))
        training = Training(epochs=250, batch_size=100, optimizer=Adam(lr=0.02), schedule=Cosine())
        fit = autoencoder.fit(data, training=training, seed=0)
        best = squared_error(PCA.fit(data, 3), data)
        assert best - 1e-12 < squared_error(autoencoder, data) < 1.0005 * best
        assert fit.squared_error[0] > 2 * best
        # The codes span the same subspace, in another basis.
        codes = torch.cat([autoencoder.encode(data).detach(), torch.ones(400, 1)], 1)
        solved = torch.linalg.lstsq(codes, PCA.fit(data, 3).encode(data)).solution
        torch.testing.assert_close(codes @ solved, PCA.fit(data, 3).encode(data), rtol=0, atol=0.1)

    def test_a_curve_needs_more_than_a_line(self):
        angle = torch.linspace(0, 5, 300)
        x = torch.stack([angle.cos(), angle.sin()], -1)
        autoencoder = Autoencoder(MLP(2, 32, 1), MLP(1, 32, 2))
        autoencoder.fit(x, training=Training(epochs=100, batch_size=50, optimizer=Adam(lr=0.01)), seed=0)
        assert squared_error(autoencoder, x) < 0.2 * squared_error(PCA.fit(x, 1), x)

    def test_the_record_is_the_squared_error(self, data):
        autoencoder = Autoencoder(Linear(8, 3), Linear(3, 8))
        before = squared_error(autoencoder, data)
        # One batch an epoch, so that the first value is the error before the first step.
        fit = autoencoder.fit(data, training=Training(epochs=4, batch_size=400), validation=data[:50], seed=0)
        assert fit.squared_error[0].item() == pytest.approx(before, rel=1e-12)
        assert fit.squared_error_validation[-1].item() == pytest.approx(
            squared_error(autoencoder, data[:50]), rel=1e-12
        )
        assert len(fit.squared_error) == len(fit.squared_error_validation) == fit.num_steps == 4
        assert "squared error" in str(fit) and "ELBO" not in str(fit) and "nats" not in str(fit)

    def test_early_stopping_keeps_the_best_epoch(self, data):
        # Batch norm has buffers: they belong to the best epoch as the weights do.
        autoencoder = Autoencoder(torch.nn.Sequential(MLP(8, 64, 3), torch.nn.BatchNorm1d(3)), MLP(3, 64, 8))
        training = Training(epochs=100, batch_size=10, patience=3, optimizer=Adam(lr=0.03))
        fit = autoencoder.fit(data[:40], training=training, validation=data[40:], seed=0)
        assert len(fit.squared_error) < 100
        assert fit.best_epoch == int(fit.squared_error_validation.argmin())
        best = fit.squared_error_validation.min().item()
        assert squared_error(autoencoder, data[40:]) == pytest.approx(best, rel=1e-12)
        assert fit.stopped_because == "held-out squared error has not improved for 3 epochs"

    def test_a_seed_fixes_the_run_and_leaves_the_generator_alone(self, data):
        def run(seed):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                autoencoder = Autoencoder(Linear(8, 2), Linear(2, 8))
            state = torch.get_rng_state()
            autoencoder.fit(data, training=Training(epochs=2, batch_size=64), seed=seed)
            assert torch.equal(torch.get_rng_state(), state)
            return autoencoder.decoder.affine.weight

        assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))

    def test_reconstructs_in_eval_mode_without_gradients(self, data):
        autoencoder = Autoencoder(torch.nn.Sequential(Linear(8, 2), torch.nn.Dropout(0.5)), Linear(2, 8))
        first = autoencoder.reconstruct(data)
        assert torch.equal(first, autoencoder.reconstruct(data)) and not first.requires_grad
        assert autoencoder.training and autoencoder.encode(data).requires_grad


def linear():
    return Autoencoder(Linear(4, 2), Linear(2, 4))


BAD = {
    "codes": (lambda: Autoencoder(Linear(4, 2), Linear(3, 4)), "decoder: expected the encoder's number of codes, 2"),
    "values": (lambda: Autoencoder(Linear(4, 2), Linear(2, 5)), "number of data values, 4; got 5"),
    "shape": (
        lambda: Autoencoder(torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)).fit(torch.randn(9, 4), seed=0),
        r"decoder: expected reconstructions of shape \(9, 4\)",
    ),
    "nothing to train": (
        lambda: Autoencoder(torch.nn.Identity(), torch.nn.Identity()).fit(torch.randn(9, 4)),
        "expected parameters to train",
    ),
    "empty": (lambda: linear().fit(torch.randn(0, 4)), "data: expected at least one"),
    "missing": (lambda: linear().fit(torch.full((9, 4), torch.nan), seed=0), "data: expected finite"),
    "no validation": (
        lambda: linear().fit(torch.randn(9, 4), training=Training(patience=1), seed=0),
        "patience: early stopping needs",
    ),
    "latents": (lambda: PCA.fit(torch.randn(9, 4), 5), "num_latents: expected at most 4"),
    "no latents": (lambda: PCA.fit(torch.randn(9, 4), 0), "num_latents: expected a positive"),
    "NaN": (lambda: PCA.fit(torch.full((9, 4), torch.nan), 1), "x: expected finite"),
    "vector": (lambda: PCA.fit(torch.randn(9), 1), r"x: expected shape \(N, P\)"),
    "width": (lambda: PCA.fit(torch.randn(9, 4), 1).reconstruct(torch.randn(9, 3)), r"x: expected shape \(N, 4\)"),
    "mean": (lambda: PCA(torch.zeros(2, 4), torch.zeros(3)), r"\(2, 4\) and \(3,\)"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_step_too_large_is_named(data):
    training = Training(epochs=3, optimizer=lambda leaves: torch.optim.SGD(list(leaves), lr=1e200))
    with pytest.raises(FloatingPointError, match="not finite"):
        Autoencoder(Linear(8, 2), Linear(2, 8)).fit(data, training=training, seed=0)
