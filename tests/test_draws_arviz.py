"""A saved tree as a user of ArviZ meets it; which of two majors that is depends on the Python."""

import json
import math
import re
from pathlib import Path

import arviz
import arviz_reading as reading
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_draws import make_gaps

from inference import iwae, log_joint
from inference.draws import save_datatree, to_datatree
from inference.weights import log_mean_exp, pareto_k
from pyro_vae.linear import LinearGaussian

# ArviZ 0.23 calls pandas and matplotlib in ways that their latest releases deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:Passing a dict or None as alias_mapping:matplotlib.MatplotlibDeprecationWarning"
    ),
]


def mixed_model(x):
    """Counts, a number, and an image of 2 x 3 binary pixels."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("counts", dist.Poisson(z[..., :1].exp()).to_event(1), obs=x[:, :1])
        pyro.sample("total", dist.Normal(z.sum(-1), 1.0), obs=x[:, 1])
        logits = torch.cat([z, -z, z.flip(-1)], -1)
        pyro.sample("image", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, 2:])


def mixed_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, :2] / 4, 0.5).to_event(1))


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(0)
    image = torch.bernoulli(torch.full((5, 6), 0.4))
    return torch.cat([torch.poisson(torch.ones(5, 1)), torch.randn(5, 1), image], -1).double()


@pytest.fixture(scope="module")
def path(mixed, tmp_path_factory):
    torch.set_default_dtype(torch.float64)
    tree = to_datatree(
        mixed_model,
        mixed_guide,
        mixed,
        num_draws=50,
        seed=7,
        gaps=make_gaps(5),
        labels=[0, 1, 1, 2, 0],
        image_shape=(2, 3),
    )
    return save_datatree(tree, tmp_path_factory.mktemp("run") / "results.nc")


class TestReading:
    @pytest.fixture
    def opened(self, path):
        return arviz.from_netcdf(path)

    def test_groups_dimensions_and_coordinates(self, opened, mixed):
        assert reading.groups(opened) == {
            *("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "prior_predictive"),
            *("observed_data", "constant_data", "gaps"),
        }
        for group in ("posterior_predictive", "prior_predictive"):
            assert opened[group]["image"].dims == ("chain", "draw", "obs_id", "row", "column")
        image = opened["observed_data"]["image"]
        assert image["column"].values.tolist() == [0, 1, 2]
        # Pixels go row by row.
        np.testing.assert_array_equal(image.isel(obs_id=3, row=1, column=0), mixed[3, 2 + 3])
        np.testing.assert_array_equal(image.values, mixed[:, 2:].reshape(5, 2, 3))
        for group in reading.groups(opened):
            assert opened[group]["label"].values.tolist() == [0, 1, 1, 2, 0], group
        assert opened["constant_data"]["labels"].values.tolist() == [0, 1, 1, 2, 0]

    def test_a_reader_finds_that_the_draws_are_variational(self, opened):
        assert opened.attrs["inference_method"] == "variational"
        for group in ("posterior", "sample_stats"):
            assert opened[group].attrs["inference_method"] == "variational"
        assert opened.attrs["inference_library_version"] == pyro.__version__
        assert opened.attrs["seed"] == 7 and opened.attrs["guide"] == "mixed_guide"
        settings = json.loads(opened.attrs["settings"])
        assert settings["num_draws"] == 50 and settings["image_shape"] == [2, 3]

    def test_summary_has_a_row_a_latent_value(self, opened):
        table = reading.summary(opened, "z")
        assert len(table) == 10
        means = opened["posterior"]["z"].mean(("chain", "draw")).values.ravel()
        np.testing.assert_allclose(table["mean"].astype(float), means)

    @pytest.mark.parametrize("draw", [reading.plot_posterior, reading.plot_dist, reading.plot_forest])
    def test_plots_of_the_posterior(self, opened, draw):
        assert draw(opened, "z", coords={"obs_id": [0, 3]}) is not None

    @pytest.mark.parametrize("name", ["counts", "total", "image"])
    def test_predictive_checks(self, opened, name):
        assert reading.plot_ppc(opened, name) is not None

    def test_all_of_it_as_a_script(self, path, capsys):
        reading.main(path)
        said = capsys.readouterr().out
        assert "'variational'" in said and said.count("plot_ppc") == 3


class TestImportanceSamplingFromTheFile:
    """Of the exactly solvable case, where log p(x) is known."""

    # Four chains make 3600, whose root is whole: the tail has 3 sqrt(S) draws, which 0.2x rounds up and 1.x down.
    NUM_DRAWS = 900

    @pytest.fixture
    def model(self):
        weight = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.6, 0.2], [0.1, 0.9]])
        return LinearGaussian(weight, torch.tensor([0.1, -0.2, 0.3, 0.0]), 0.7)

    @pytest.fixture
    def x(self, model):
        return model.generate(20, seed=1)

    def opened(self, model, x, tmp_path, factor):
        """The file of a mean-field guide whose scales are those of the posterior times a factor."""

        def guide(x):
            q = model.posterior(x)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(q.loc, factor * q.variance.sqrt()).to_event(1))

        tree = to_datatree(model.model, guide, x, num_draws=self.NUM_DRAWS, seed=3)
        return guide, arviz.from_netcdf(save_datatree(tree, tmp_path / "results.nc"))

    @pytest.mark.parametrize("factor", [0.4, 1.3])
    def test_it_is_the_librarys_on_the_same_draws(self, model, x, tmp_path, factor):
        _, opened = self.opened(model, x, tmp_path, factor)
        raw, _, k = reading.psis(opened)
        # The weights again, from z alone.
        z = torch.as_tensor(opened["posterior"]["z"].values).flatten(0, 1)
        q = model.posterior(x)
        log_q = dist.Normal(q.loc, factor * q.variance.sqrt()).to_event(1).log_prob(z)
        with torch.no_grad():
            log_w = log_joint(model.model, x, z) - log_q
        np.testing.assert_allclose(raw, log_mean_exp(log_w)[0], rtol=1e-12)
        np.testing.assert_allclose(k, pareto_k(log_w), atol=1e-9)
        # Too narrow a q has heavy-tailed weights, and a reader of the file sees it.
        assert (k > 0.7).mean() > 0.5 if factor < 1 else (k < 0.5).all()

    def test_log_p_is_the_librarys_within_standard_errors(self, model, x, tmp_path):
        guide, opened = self.opened(model, x, tmp_path, 1.3)
        raw, smoothed, _ = reading.psis(opened)
        ours = iwae(model.model, guide, x, proposal=None, num_draws=4 * self.NUM_DRAWS, seed=5)
        exact = model.log_evidence(x).detach()
        for estimate in (raw, smoothed):
            # Both estimates have as many draws and the same weights, so the same error.
            assert (np.abs(estimate - ours.value.numpy()) < 4 * math.sqrt(2) * ours.se.numpy()).all()
            assert (np.abs(estimate - exact.numpy()) < 4 * ours.se.numpy()).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution:UserWarning")
def test_the_page_shows_what_it_says(capsys):
    """docs/arviz.md: `az.loo` is too high and ranks models in the wrong order, `to_elpd` in that of exact log p(x)."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "arviz.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    namespace = {}
    for block in blocks:
        exec(compile(block, "arviz.md", "exec"), namespace)  # noqa: S102
    said = capsys.readouterr().out
    file, exact = map(float, re.search(r"from the file (\S+), exact (\S+) nats", said).groups())
    assert abs(file - exact) < 0.01
    line = re.compile(r"^(\d+) latents: az.loo (\S+), log p\(x\) (\S+); k > 0.7 at (\d+) of 50", flags=re.MULTILINE)
    size, loo, exact, high = np.array(line.findall(said), dtype=float).T
    assert size[exact.argsort()].tolist() == [40, 4, 16] and size[loo.argsort()].tolist() == [4, 16, 40]
    assert (loo - exact > 3).all() and (high >= 45).all()
    assert namespace["table"].index.tolist() == ["16 latents", "4 latents", "40 latents"]
    # The page quotes these lines.
    np.testing.assert_allclose(np.array(line.findall(page), dtype=float).T, [size, loo, exact, high], atol=0.15)
