import json
import math
import os

import h5py
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from inference.draws import save_datatree, to_datatree
from inference.families import MeanField
from inference.guides import Amortized, Local
from inference.results import Evidence, Gaps
from pyro_vae.likelihoods import Binomial

W = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, 0.2]], dtype=torch.float64)
B = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
S = 0.7
X = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


def linear_model(x):
    """z ~ N(0, I), x | z ~ N(Wz + b, s^2 I)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.mT + B, S).to_event(1), obs=x)


def linear_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, :2] / 3, torch.tensor([0.6, 0.4])).to_event(1))


def count_model(x):
    """A site of counts and a site of real numbers, a deterministic one, a factor, and unusual names."""
    with pyro.plate("data", len(x), dim=-1):
        latent = pyro.sample("latent", dist.Laplace(torch.zeros(1), 1.0).to_event(1))
        rate = pyro.deterministic("rate", latent.exp(), event_dim=1)
        pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=x[:, :1])
        pyro.sample("total", dist.Normal(latent.sum(-1), 1.0), obs=x.sum(-1))
        pyro.factor("penalty", -0.5 * latent.square().sum(-1))


def count_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("latent", dist.Normal(x[:, :1].log1p(), 0.3).to_event(1))


class Net(torch.nn.Module):
    """A Bernoulli model whose decoder has dropout: only eval mode makes it a density."""

    def __init__(self):
        super().__init__()
        self.decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 4))
        self.frozen = torch.nn.Linear(2, 2).eval()

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


def make_gaps(num_data):
    values = {term: torch.arange(num_data) + float(shift) for shift, term in enumerate(Gaps.TERMS)}
    return Gaps(
        **values,
        **{f"{term}_se": torch.full((num_data,), 0.1) for term in Gaps.TERMS},
        converged=torch.arange(num_data) % 2 == 0,
        start_gap=torch.zeros(num_data),
        pareto_k=torch.full((num_data,), 0.4),
        ess=None,
        family="MeanField(2)",
        evidence_method="IWAE",
        families=("FullCovariance(2)",),
        elbo_local_by_family=torch.ones(1, num_data),
        elbo_local_by_family_se=torch.zeros(1, num_data),
        estimates={
            "IWAE": estimate(num_data, method="IWAE", pareto_k=torch.full((num_data,), 0.4)),
            "AIS": estimate(num_data, method="AIS", acceptance=torch.full((num_data,), 0.6)),
        },
        is_lower_bound=True,
        width=(0.1, 0.02),
        settings={"seed": 3},
    )


def estimate(num_data, **columns):
    value = torch.arange(num_data) - 7.0
    return Evidence(value=value, se=value.abs() / 100, ess=value.abs(), bound="lower", settings={"seed": 3}, **columns)


def normal_log_prob(value, loc, scale):
    """Sum over the last dimension, by hand."""
    return (-0.5 * ((value - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)).sum(-1)


class TestLinearGaussian:
    @pytest.fixture
    def tree(self):
        return to_datatree(linear_model, linear_guide, X, num_draws=500, seed=1)

    def test_groups_and_dimensions(self, tree):
        dims = {name: dict(node.sizes) for name, node in tree.children.items()}
        draws = {"chain": 4, "draw": 500, "obs_id": 5}
        assert dims == {
            "posterior": draws | {"latent_dim": 2},
            "sample_stats": draws,
            "log_likelihood": draws,
            "posterior_predictive": draws | {"x_dim_0": 3},
            "prior": draws | {"latent_dim": 2},
            "prior_predictive": draws | {"x_dim_0": 3},
            "observed_data": {"obs_id": 5, "x_dim_0": 3},
        }
        assert tree.attrs["seed"] == 1
        assert "independent draws" in tree["posterior"].attrs["sampling"]
        assert "conditional" not in tree["posterior"].attrs and "misleads" in tree["log_likelihood"].attrs["note"]

    def test_log_densities_equal_those_written_by_hand(self, tree):
        z, x = tree["posterior"]["z"].values, X.numpy()
        prior = normal_log_prob(z, 0.0, np.ones(2))
        likelihood = normal_log_prob(x, z @ W.numpy().T + B.numpy(), np.full(3, S))
        log_q = normal_log_prob(z, x[:, :2] / 3, np.array([0.6, 0.4]))
        np.testing.assert_allclose(tree["log_likelihood"]["x"], likelihood)
        np.testing.assert_allclose(tree["sample_stats"]["lp"], prior + likelihood)
        np.testing.assert_allclose(tree["sample_stats"]["log_q"], log_q)

    def test_observed_data_are_the_data(self, tree):
        np.testing.assert_allclose(tree["observed_data"]["x"], X, rtol=1e-6)

    def test_moments_are_those_of_the_densities(self, tree):
        weights, loc, scale = W.numpy(), X.numpy()[:, :2] / 3, np.array([0.6, 0.4])
        # In the order: draws, mean (N, .), covariance (., .).
        moments = {
            "posterior": ("z", loc, np.diag(scale**2)),
            "posterior_predictive": (
                "x",
                loc @ weights.T + B.numpy(),
                weights @ np.diag(scale**2) @ weights.T + S**2 * np.eye(3),
            ),
            "prior": ("z", np.zeros((5, 2)), np.eye(2)),
            "prior_predictive": ("x", np.tile(B.numpy(), (5, 1)), weights @ weights.T + S**2 * np.eye(3)),
        }
        for group, (name, mean, covariance) in moments.items():
            draws = tree[group][name].values.reshape(2000, *mean.shape)
            variance = np.diag(covariance)
            error = np.abs(draws.mean(0) - mean) / np.sqrt(variance / 2000)
            assert error.max() < 4, group
            centred = draws - mean
            products = np.einsum("sni,snj->nij", centred, centred) / 2000
            # Var of a product of two normals: v_i v_j + c_ij^2.
            product_error = np.sqrt((np.outer(variance, variance) + covariance**2) / 2000)
            assert (np.abs(products - covariance) / product_error).max() < 4, group

    def test_predictive_draws_belong_to_the_latent_draws_beside_them(self, tree):
        for latent, predictive in (("posterior", "posterior_predictive"), ("prior", "prior_predictive")):
            z, x = tree[latent]["z"].values, tree[predictive]["x"].values
            residual = (x - (z @ W.numpy().T + B.numpy())) / S
            assert abs(residual.std() - 1) < 4 / math.sqrt(2 * residual.size)

    def test_chains_and_datapoints_are_independent(self, tree):
        z = tree["posterior"]["z"].values[..., 0] - X.numpy()[:, 0] / 3
        correlations = np.corrcoef(z.transpose(0, 2, 1).reshape(20, 500))[np.triu_indices(20, 1)]
        assert np.abs(correlations).max() < 4.5 / math.sqrt(500)


class TestSites:
    def test_counts_stay_integers_and_only_observed_sites_are_likelihoods(self):
        x = torch.tensor([[2.0, 0.5], [0.0, 1.0], [7.0, -1.0]])
        tree = to_datatree(count_model, count_guide, x, num_draws=20, seed=0)
        assert set(tree["log_likelihood"].data_vars) == set(tree["observed_data"].data_vars) == {"counts", "total"}
        for group in ("observed_data", "posterior_predictive", "prior_predictive"):
            assert tree[group]["counts"].dtype == np.int32 and tree[group]["total"].dtype == np.float64
        assert tree["observed_data"]["counts"].values.ravel().tolist() == [2, 0, 7]
        assert tree["observed_data"]["total"].dims == ("obs_id",)
        latent = tree["posterior"]["latent"].values[..., 0]
        lp = -np.abs(latent) - math.log(2) - 0.5 * latent**2
        lp = lp + tree["log_likelihood"]["counts"] + tree["log_likelihood"]["total"]
        np.testing.assert_allclose(tree["sample_stats"]["lp"], lp)

    def test_gray_values_scored_as_binary_are_not_rounded(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                logits = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3)
                pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

        x = torch.full((2, 3), 0.25)
        tree = to_datatree(model, linear_guide, x, num_draws=2, seed=0)
        assert (tree["observed_data"]["x"] == 0.25).all()

    def test_a_mask_hides_its_values(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                with pyro.poutine.mask(mask=x[:, 0] != X[0, 0]):
                    pyro.sample(
                        "x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], 3]).to_event(1), obs=x
                    )

        tree = to_datatree(model, linear_guide, X, num_draws=3, seed=0)
        assert (tree["log_likelihood"]["x"][..., 0] == 0).all() and (tree["log_likelihood"]["x"][..., 1:] != 0).all()

    def test_a_table_of_local_parameters_is_a_guide(self):
        num_data = 70
        loc = torch.arange(num_data, dtype=torch.float64)[:, None].expand(-1, 2)
        family = MeanField(2)
        q = dist.Normal(loc, 1e-3).to_event(1)
        guide = Local(family, family.params_from(q))
        tree = to_datatree(linear_model, guide, torch.zeros(num_data, 3), num_draws=2, seed=0)
        np.testing.assert_allclose(tree["posterior"]["z"].mean(("chain", "draw")), loc, atol=0.01)

    def test_single_precision_stays_single(self):
        torch.set_default_dtype(torch.float32)
        tree = to_datatree(Net().model, Amortized(MeanField(2), torch.nn.Linear(4, 4)), torch.ones(3, 4), num_draws=2)
        assert tree["posterior"]["z"].dtype == np.float32
        assert tree["sample_stats"]["lp"].dtype == np.float64


class TestReproducible:
    def test_same_seed_same_bits_other_seed_other_draws(self):
        first, again, other = (to_datatree(linear_model, linear_guide, X, num_draws=30, seed=s) for s in (5, 5, 6))
        assert first.identical(again)
        assert (first["posterior"]["z"] != other["posterior"]["z"]).all()

    def test_draws_of_a_datapoint_do_not_depend_on_what_follows(self):
        x = torch.randn(150, 3)
        full = to_datatree(linear_model, linear_guide, x, num_draws=30, max_data=None, seed=5)
        for few in (
            to_datatree(linear_model, linear_guide, x, num_draws=30, max_data=70, seed=5),
            to_datatree(linear_model, linear_guide, x[:70], num_draws=30, max_data=None, seed=5),
        ):
            assert few["posterior"].sizes["obs_id"] == 70
            for group in few.children:
                xr.testing.assert_allclose(few[group].to_dataset(), full[group].to_dataset().isel(obs_id=slice(70)))

    def test_random_state_is_as_it_was(self):
        before = torch.get_rng_state()
        to_datatree(linear_model, linear_guide, X, num_draws=2, seed=0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_without_a_seed_the_one_that_was_drawn_is_kept(self):
        tree = to_datatree(linear_model, linear_guide, X, num_draws=2)
        again = to_datatree(linear_model, linear_guide, X, num_draws=2, seed=tree.attrs["seed"])
        assert tree.identical(again)
        assert to_datatree(linear_model, linear_guide, X, num_draws=2).attrs["seed"] != tree.attrs["seed"]


class TestLeavesNothingBehind:
    def test_modes_parameters_and_store(self):
        net = Net()
        guide = Amortized(MeanField(2), torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)))
        pyro.param("mine", torch.tensor(2.0), constraint=dist.constraints.positive)
        bits = {name: value.clone() for name, value in net.state_dict().items()}
        tree = to_datatree(net.model, guide, torch.ones(3, 4), num_draws=4, seed=0)
        assert net.training and net.decoder[1].training and not net.frozen.training and guide.training
        assert list(pyro.get_param_store()) == ["mine"] and pyro.param("mine") == 2
        assert all(torch.equal(value, bits[name]) for name, value in net.state_dict().items())
        # With dropout off the likelihood is a function of z.
        z = torch.as_tensor(tree["posterior"]["z"].values)
        net.eval()
        with torch.no_grad():
            expected = dist.Bernoulli(logits=net.decoder(z)).to_event(1).log_prob(torch.ones(3, 4))
        np.testing.assert_allclose(tree["log_likelihood"]["x"], expected)

    def test_bare_parameters_of_the_caller_are_used(self):
        def guide(x):
            scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(2), scale).expand([len(x), 2]).to_event(1))

        pyro.param("scale", torch.tensor(1e-6), constraint=dist.constraints.positive)
        tree = to_datatree(linear_model, guide, X, num_draws=2, seed=0)
        assert np.abs(tree["posterior"]["z"]).max() < 1e-4


class TestSizes:
    def test_at_most_a_hundred_datapoints_unless_asked(self):
        x = torch.zeros(130, 3)
        assert to_datatree(linear_model, linear_guide, x, num_draws=1).posterior.sizes["obs_id"] == 100
        assert to_datatree(linear_model, linear_guide, x, num_draws=1, max_data=None).posterior.sizes["obs_id"] == 130

    def test_predictive_draws_are_fewer_where_they_would_be_too_many(self, monkeypatch):
        monkeypatch.setattr("inference.draws.tree.PREDICTIVE_VALUES", 4 * 5 * 3 * 30 + 59)
        tree = to_datatree(linear_model, linear_guide, X, num_draws=40, seed=0)
        assert tree.posterior.sizes["draw"] == 40
        for group in ("posterior_predictive", "prior", "prior_predictive"):
            assert tree[group].sizes["draw"] == 30
        residual = tree.posterior_predictive["x"].values - (
            tree.posterior["z"].values[:, :30] @ W.numpy().T + B.numpy()
        )
        assert abs(residual.std() / S - 1) < 4 / math.sqrt(2 * residual.size)

    def test_predictive_draws_as_asked(self):
        tree = to_datatree(linear_model, linear_guide, X, num_draws=40, num_predictive=7, num_chains=2)
        assert tree.posterior_predictive.sizes["draw"] == 7 and tree.posterior_predictive.sizes["chain"] == 2


class TestGapsAndLabels:
    @pytest.fixture
    def tree(self):
        ids, labels = [f"row {index}" for index in range(5)], torch.tensor([3, 1, 4, 1, 5])
        return to_datatree(
            linear_model,
            linear_guide,
            X,
            num_draws=2,
            max_data=3,
            seed=0,
            gaps=make_gaps(5),
            obs_ids=ids,
            labels=labels,
        )

    def test_gaps_cover_all_datapoints(self, tree):
        gaps, record = tree["gaps"], make_gaps(5)
        assert gaps.sizes["obs_id"] == 5 and tree["posterior"].sizes["obs_id"] == 3
        for term in Gaps.TERMS:
            np.testing.assert_array_equal(gaps[term], getattr(record, term))
            np.testing.assert_array_equal(gaps[f"{term}_se"], getattr(record, f"{term}_se"))
            assert gaps[term].attrs["units"] == "nats"
        np.testing.assert_array_equal(gaps["converged"], record.converged)
        assert "pareto_k" in gaps and "ess" not in gaps
        assert gaps["elbo_local_by_family"].sel(family="FullCovariance(2)").values.tolist() == [1.0] * 5
        assert json.loads(gaps.attrs["settings"]) == {"seed": 3} and gaps.attrs["evidence_method"] == "IWAE"

    def test_ids_and_labels(self, tree):
        assert tree["posterior"]["obs_id"].values.tolist() == ["row 0", "row 1", "row 2"]
        assert tree["constant_data"]["labels"].sel(obs_id="row 2") == 4
        assert tree["gaps"]["labels"].values.tolist() == [3, 1, 4, 1, 5]
        assert tree["gaps"]["label"].values.tolist() == [3, 1, 4, 1, 5]
        assert all(node["label"].values.tolist()[:3] == [3, 1, 4] for node in tree.children.values())

    def test_it_all_survives_the_file(self, tree, tmp_path):
        path = save_datatree(tree, tmp_path / "results.nc")
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            for name, node in tree.children.items():
                xr.testing.assert_identical(opened[name].to_dataset().load(), node.to_dataset())
            assert opened.attrs["seed"] == 0


class TestFile:
    @pytest.fixture
    def tree(self):
        return to_datatree(linear_model, linear_guide, X, num_draws=30, seed=0)

    def test_a_failed_write_leaves_the_old_file(self, tree, tmp_path, monkeypatch):
        path = save_datatree(tree, tmp_path / "results.nc")
        before = path.read_bytes()

        def stop(*args, **kwargs):
            raise OSError("disk full")

        monkeypatch.setattr(xr.DataTree, "to_netcdf", stop)
        with pytest.raises(OSError, match="disk full"):
            save_datatree(tree, path)
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["results.nc"]

    def test_others_may_read_it_as_any_new_file(self, tree, tmp_path):
        (tmp_path / "plain").touch()
        assert save_datatree(tree, tmp_path / "results.nc").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_counts_take_little_room(self, tmp_path):
        guide = Amortized(MeanField(2), torch.nn.Linear(4, 4))
        tree = to_datatree(Net().model, guide, torch.ones(50, 4), num_draws=100, seed=0)
        with h5py.File(save_datatree(tree, tmp_path / "results.nc")) as file:
            stored = file["posterior_predictive/x"].id.get_storage_size()
        assert stored < tree["posterior_predictive"]["x"].size / 4

    def test_missing_folder(self, tree, tmp_path):
        with pytest.raises(FileNotFoundError, match="Make it first"):
            save_datatree(tree, tmp_path / "none" / "results.nc")


def two_sites(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.mT, 1.0).to_event(1), obs=x)


def no_data(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def named(latent, observed="x"):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(latent, dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(observed, dist.Normal(z @ W.mT, 1.0).to_event(1), obs=x)

    return model


def named_guide(latent):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample(latent, dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    return guide


class Resampling:
    resamples = True

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.rand(len(index), 3)


BAD = {
    "no draws": ({"num_draws": 0}, "num_draws: expected"),
    "fraction of a chain": ({"num_chains": 1.5}, "num_chains: expected"),
    "negative limit": ({"max_data": -1}, "max_data: expected"),
    "no predictive draws": ({"num_predictive": 0}, "num_predictive: expected"),
    "seed": ({"seed": -1}, "seed: expected"),
    "no data": ({"data": torch.zeros(0, 3)}, "data: expected"),
    "data drawn anew": ({"data": Resampling()}, "data: .* needs a fixed x"),
    "gaps of other data": ({"gaps": make_gaps(4)}, "gaps: expected one row for each of the 5 datapoints"),
    "ids": ({"obs_ids": [0, 1]}, "obs_ids: expected shape"),
    "labels": ({"labels": torch.zeros(4)}, "labels: expected shape"),
    "site": ({"site": "latent"}, "site 'latent': expected"),
    "two latent sites": ({"model": two_sites}, "site 'w': expected one latent site"),
    "nothing observed": ({"model": no_data}, "expected at least one observed site"),
    "image of another size": ({"image_shape": (2, 2)}, r"image_shape: expected .*\('x' \(3,\)\); got \(2, 2\)"),
    "no image": ({"image_shape": (3,)}, r"image_shape: expected \(height, width\)"),
    "name of a dimension": ({"model": named("draw"), "guide": named_guide("draw")}, "site 'draw': expected a name"),
    "name of a coordinate": (
        {"model": named("z", "label"), "guide": named_guide("z"), "labels": torch.zeros(5)},
        "site 'label': expected a name",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named_in_one_line(change, message):
    arguments = {"model": linear_model, "guide": linear_guide, "data": X} | change
    model, guide, data = (arguments.pop(name) for name in ("model", "guide", "data"))
    with pytest.raises(ValueError, match=message) as error:
        to_datatree(model, guide, data, **arguments)
    assert "\n" not in str(error.value)


def test_a_count_that_was_not_observed_stays_so():
    """However late it comes: no integer stands for it."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rate = z.exp().repeat_interleave(2, -1)[..., :3]
            pyro.sample("x", Binomial(4, mask=True)(rate), obs=x)

    x = torch.randint(0, 5, (8, 3)).double()
    whole = to_datatree(model, linear_guide, x, num_draws=4, seed=0)
    assert whole["observed_data"]["x"].dtype == np.int32
    x[5, 1] = math.nan
    tree = to_datatree(model, Local(MeanField(2), torch.zeros(8, 4)), x, num_draws=4, seed=0)
    np.testing.assert_array_equal(tree["observed_data"]["x"], x.numpy())
    assert tree["posterior_predictive"]["x"].dtype == np.int32
    assert np.isfinite(tree["log_likelihood"]["x"]).all()
