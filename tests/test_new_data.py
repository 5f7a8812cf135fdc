"""A fitted model applied to new rows: exact answers of the linear model, and how rows are read and written."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

import pyro_vae.drawing
import pyro_vae.jobs
from inference import Training
from inference.families import MeanField, PlanarFlow
from pyro_vae import VAE, Linear, LinearGaussian, load, open_run
from pyro_vae.cli import main
from pyro_vae.data import Preprocessing
from pyro_vae.jobs import fit_run
from pyro_vae.likelihoods import Bernoulli, Gaussian, GaussianLowRank, GaussianSharedScale, Poisson
from pyro_vae.linear import as_linear_gaussian
from pyro_vae.new_data import Scores, encode, impute, score
from pyro_vae.parts import Parts, options
from pyro_vae.priors import StandardNormal

NAMES = ("height", "mass", "age", "width")
NAN = float("nan")
# Errors of estimate that none of some hundred comparisons exceeds.
ERRORS = 4.5


def linear_vae(*, mask=True, encoder=True, family=None, seed=3):
    """A linear decoder with noise 0.5, in float64, as it was made."""
    torch.manual_seed(seed)
    family = MeanField(2) if family is None else family
    vae = VAE(
        prior=StandardNormal(2),
        likelihood=Gaussian(scale=0.5, mask=mask),
        decoder=Linear(2, len(NAMES)),
        family=family,
        encoder=Linear(len(NAMES), family.num_params) if encoder else None,
    )
    nn.init.normal_(vae.decoder.weight if hasattr(vae.decoder, "weight") else next(vae.decoder.parameters()))
    return vae.eval()


def rows_of(x, **options):
    how = Preprocessing(num_values=x.shape[1], columns=NAMES if x.shape[1] == len(NAMES) else None)
    return how.read(np.asarray(x), dtype=torch.float64, allow_missing=True, **options)


def drawn(vae, num_rows, *, missing=0.3, seed=0):
    x = vae.generate(num_rows, seed=seed)
    torch.manual_seed(seed)
    return x.masked_fill(torch.rand(x.shape) < missing, NAN)


def covariance_of(vae):
    exact = as_linear_gaussian(vae)
    weight = exact.weight.detach().numpy()
    scale = exact.scale.detach().expand(len(weight)).numpy()
    return exact.bias.detach().numpy(), weight @ weight.T + np.diag(scale**2)


def conditional(mean, covariance, row):
    """Mean and covariance of the missing values given the observed ones."""
    m = np.isnan(row)
    gain = (
        covariance[np.ix_(m, ~m)] @ np.linalg.inv(covariance[np.ix_(~m, ~m)]) if (~m).any() else np.zeros((m.sum(), 0))
    )
    loc = mean[m] + gain @ (row[~m] - mean[~m])
    return loc, covariance[np.ix_(m, m)] - gain @ covariance[np.ix_(~m, m)]


class TestExact:
    @pytest.mark.parametrize("encoder", [True, False])
    def test_log_evidence_is_within_its_errors(self, encoder):
        vae = linear_vae(encoder=encoder)
        x = drawn(vae, 40)
        found = score(vae, rows_of(x), num_draws=2000, seed=1)
        exact = as_linear_gaussian(vae).log_evidence(x).detach()
        assert ((found.log_evidence - exact).abs() < ERRORS * found.log_evidence_se + 1e-9).all()
        assert (found.log_evidence_se > 0).all() and (found.log_evidence_se < 0.05).all()
        assert (found.elbo < exact + ERRORS * found.elbo_se).all()
        assert set(found.flag) == {"ok"}

    def test_annealing_is_within_its_errors(self):
        vae = linear_vae()
        x = drawn(vae, 10)
        found = score(vae, rows_of(x), estimator="ais", num_temperatures=30, seed=1)
        exact = as_linear_gaussian(vae).log_evidence(x).detach()
        assert ((found.log_evidence - exact).abs() < ERRORS * found.log_evidence_se + 0.02).all()
        assert found.settings["num_temperatures"] == 30

    def test_gaps_add_up_and_have_errors(self):
        vae = linear_vae()
        x = drawn(vae, 8)
        found = score(vae, rows_of(x), gaps=True, num_draws=1000, num_temperatures=20, seed=1)
        columns = found.columns()
        parts = columns["amortization_gap"] + columns["approximation_gap"]
        np.testing.assert_allclose(columns["inference_gap"], parts, atol=1e-9)
        np.testing.assert_allclose(columns["inference_gap"], columns["log_evidence"] - columns["elbo"], atol=1e-9)
        assert {"inference_gap_se", "amortization_gap_se", "approximation_gap_se", "converged"} <= set(columns)
        exact = as_linear_gaussian(vae).log_evidence(x).detach()
        assert ((found.log_evidence - exact).abs() < ERRORS * found.log_evidence_se + 1e-9).all()

    def test_imputed_means_and_deviations_are_those_of_the_conditional_normal(self):
        vae = linear_vae()
        x = drawn(vae, 60)
        x[7] = NAN
        found = impute(vae, rows_of(x), num_importance_draws=4000, seed=1)
        mean, covariance = covariance_of(vae)
        for n, row in enumerate(x.numpy()):
            m = np.isnan(row)
            loc, spread = conditional(mean, covariance, row)
            assert (np.abs(found.x[n].numpy()[m] - loc) < ERRORS * found.x_se[n].numpy()[m]).all()
            sd = np.sqrt(np.diag(spread))
            assert (np.abs(found.sd[n].numpy()[m] - sd) < ERRORS * found.sd_se[n].numpy()[m] + 1e-12).all()
            assert (found.x[n].numpy()[~m] == row[~m]).all() and not found.sd[n].numpy()[~m].any()
        assert (found.x_se[found.missing] > 0).all() and (found.x_se < 0.1).all()
        assert (found.ess.isnan() == ~x.isnan().any(1)).all()

    def test_draws_have_the_conditional_covariance(self):
        vae = linear_vae()
        x = drawn(vae, 3, missing=0)
        x[0, :2] = NAN
        x[2] = NAN
        found = impute(vae, rows_of(x), num_draws=4000, num_importance_draws=20_000, seed=1)
        assert found.draws.shape == (3, 4000, 4)
        mean, covariance = covariance_of(vae)
        for n in (0, 2):
            row = x[n].numpy()
            loc, spread = conditional(mean, covariance, row)
            values = found.draws[n].numpy()[:, np.isnan(row)]
            assert (np.abs(values.mean(0) - loc) < 5 * np.sqrt(np.diag(spread) / 4000)).all()
            # Of a covariance of normals: (s_ii s_jj + s_ij^2) / S, the importance draws' own share added.
            error = np.sqrt((np.outer(np.diag(spread), np.diag(spread)) + spread**2) / 4000 * 1.3)
            assert (np.abs(np.cov(values.T) - spread) < 5 * error).all()
        assert (found.draws[1] == x[1]).all() and (found.draws[0, :, 2:] == x[0, 2:]).all()

    def test_values_that_depend_on_each_other_given_z(self):
        """The shared noise of a low-rank likelihood is informed by the observed values."""
        torch.manual_seed(0)
        likelihood = GaussianLowRank(rank=2, mask=True)
        output = torch.randn(5, 4 * likelihood.num_params)
        p = likelihood(output)
        x = p.sample()
        x[0, 0], x[1, :2], x[2, 1:], x[3] = NAN, NAN, NAN, NAN
        given = likelihood.conditional(p, x)
        for n in range(4):
            row = x[n].numpy()
            loc, spread = conditional(p.mean[n].numpy(), p.covariance_matrix[n].numpy(), row)
            m = np.isnan(row)
            np.testing.assert_allclose(given.mean[n].numpy()[m], loc, rtol=1e-9)
            np.testing.assert_allclose(given.covariance_matrix[n].numpy()[np.ix_(m, m)], spread, rtol=1e-8, atol=1e-10)

    def test_a_likelihood_without_a_conditional_is_refused(self):
        class Joint(GaussianSharedScale):
            def marginal(self, p):
                return p

        with pytest.raises(ValueError, match="Override `conditional` beside `marginal`"):
            Joint(mask=True).conditional(None, None)

    def test_moments_without_a_closed_form_are_those_of_draws(self):
        """Counts have no variance here: what is filled in is a mean of draws, with the error of one."""
        torch.manual_seed(0)
        family = MeanField(1)
        vae = VAE(
            prior=StandardNormal(1),
            likelihood=Poisson(mask=True),
            decoder=Linear(1, 3),
            family=family,
            encoder=Linear(3, family.num_params),
        )
        x = torch.tensor([[1.0, NAN, 2.0], [NAN, NAN, NAN]])
        found = impute(vae, rows_of(x), seed=0)
        # By a sum over z on a fine grid.
        z = torch.linspace(-7, 7, 2001).unsqueeze(-1)
        with torch.no_grad():
            rate = vae.likelihood(vae.decode(z).p.base_dist.parameters[0]).mean
            log_prior = -0.5 * z.squeeze(-1).square()
            for n in range(2):
                log_p = log_prior + vae.decode(z).log_prob(x[n].expand(2001, 3))
                weight = log_p.softmax(0).unsqueeze(-1)
                mean = (weight * rate).sum(0)
                sd = ((weight * (rate + rate.square())).sum(0) - mean.square()).sqrt()
                m = x[n].isnan()
                assert ((found.x[n] - mean).abs()[m] < ERRORS * found.x_se[n][m]).all()
                assert ((found.sd[n] - sd).abs()[m] < ERRORS * found.sd_se[n][m]).all()

    def test_encode_is_the_encoders(self):
        vae = linear_vae()
        x = drawn(vae, 70)
        found = encode(vae, rows_of(x), num_draws=3)
        q = vae.encode(x)
        torch.testing.assert_close(found.mean, q.mean.detach())
        torch.testing.assert_close(found.sd, q.stddev.detach())
        assert found.draws.shape == (70, 3, 2) and found.converged is None

    def test_encode_without_an_encoder_finds_the_best_member(self):
        vae = linear_vae(encoder=False)
        x = drawn(vae, 6, missing=0)
        found = encode(vae, rows_of(x))
        posterior = as_linear_gaussian(vae).posterior(x)
        precision = torch.linalg.inv(posterior.covariance_matrix)
        # Of the best mean-field q: the posterior's mean, and one over the diagonal of its precision.
        best = precision.diagonal(dim1=-2, dim2=-1).rsqrt().expand(6, 2)
        assert found.converged.all()
        torch.testing.assert_close(found.mean, posterior.mean.detach(), atol=0.05, rtol=0)
        torch.testing.assert_close(found.sd, best.detach(), atol=0.05, rtol=0)

    def test_moments_of_a_flow_are_those_of_its_draws(self):
        vae = linear_vae(family=PlanarFlow(2, num_layers=2))
        x = drawn(vae, 3)
        found = encode(vae, rows_of(x), num_draws=4000)
        assert "2048 draws" in found.method
        apart = (found.draws.mean(1) - found.mean).abs()
        assert (apart < 5 * found.sd * (1 / 4000 + 1 / 2048) ** 0.5).all()
        torch.testing.assert_close(found.draws.std(1), found.sd, rtol=0.15, atol=0)


class TestOrder:
    def test_a_permuted_file_gives_the_same_rows_within_their_errors(self):
        vae = linear_vae()
        x = drawn(vae, 70)
        order = torch.randperm(70)
        one, other = (score(vae, rows_of(rows), num_draws=1000, seed=1) for rows in (x, x[order]))
        error = one.log_evidence_se[order].hypot(other.log_evidence_se)
        assert ((one.log_evidence[order] - other.log_evidence).abs() < ERRORS * error).all()
        torch.testing.assert_close(encode(vae, rows_of(x)).mean[order], encode(vae, rows_of(x[order])).mean)
        filled, again = (impute(vae, rows_of(rows), num_importance_draws=1000, seed=1) for rows in (x, x[order]))
        error = filled.x_se[order].hypot(again.x_se)
        assert ((filled.x[order] - again.x).abs() <= ERRORS * error).all()

    def test_what_follows_a_row_does_not_matter(self):
        vae = linear_vae()
        x = drawn(vae, 70, missing=0.5)
        x[0, 0] = NAN
        for work in (score, impute):
            options = {"num_draws": 500} if work is score else {"num_importance_draws": 500, "num_draws": 2}
            alone, beside = (work(vae, rows_of(rows), seed=1, **options) for rows in (x[:1], x))
            for name in ("log_evidence", "elbo") if work is score else ("x", "sd", "draws"):
                torch.testing.assert_close(getattr(alone, name)[0], getattr(beside, name)[0])

    def test_a_seed_is_a_number(self):
        vae = linear_vae()
        x = rows_of(drawn(vae, 5))
        one, same, other = (score(vae, x, num_draws=500, seed=seed).log_evidence for seed in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)
        with pytest.raises(ValueError, match="seed: expected"):
            score(vae, x, seed=-1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a table with a label and missing values, of the same without, by EM, and of gray levels."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_default_dtype(torch.float32)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(60, 4))
    table = pd.DataFrame(x, columns=NAMES).assign(species=["a", "b"] * 30)
    table.to_csv(folder / "whole.csv", index=False)
    table.mask(
        pd.DataFrame(rng.random(table.shape) < 0.1, columns=table.columns) & (table.columns != "species")
    ).to_csv(folder / "holes.csv", index=False)
    np.save(folder / "gray.npy", rng.integers(0, 256, (60, 3, 2)).astype(np.uint8))
    np.save(folder / "floats.npy", x)
    small = {kind: options(kind, "mlp", hidden=(8,)) for kind in ("decoder", "encoder")}
    normal = options("likelihood", "gaussian-shared-scale")
    table_of = {"columns": NAMES}
    made = {
        "table": ({"name_or_path": "whole.csv", "label": "species"}, normal, "svi"),
        "holes": (
            {"name_or_path": "holes.csv", **table_of, "missing": "keep"},
            options("likelihood", "gaussian-shared-scale", mask=True),
            "svi",
        ),
        "em": ({"name_or_path": "whole.csv", **table_of}, normal, "em"),
        "mcem": ({"name_or_path": "whole.csv", **table_of}, normal, "mcem"),
        "gray": ({"name_or_path": "gray.npy"}, normal, "svi"),
        "floats": ({"name_or_path": "floats.npy"}, normal, "svi"),
        "bits": ({"name_or_path": "gray.npy", "binarize": "fixed"}, options("likelihood", "bernoulli"), "svi"),
        "dynamic": ({"name_or_path": "digits", "binarize": "dynamic"}, options("likelihood", "bernoulli"), "svi"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyro_vae.drawing, "_draw", lambda *_, **__: None)
        patch.setattr(pyro_vae.jobs, "_term_tracker", lambda *_, **__: None)
        for name, (data, likelihood, engine) in made.items():
            if data["name_or_path"] != "digits":
                data = {**data, "name_or_path": str(folder / data["name_or_path"])}
            out = folder / name
            out.mkdir()
            training = Training(epochs=2, batch_size=20, local_steps=1)
            fit_run(
                out,
                data=data,
                parts=Parts(likelihood=likelihood, **small),
                num_latents=2,
                engine=engine,
                training=training,
                seed=0,
            )
    return folder


@pytest.fixture
def opened(runs):
    torch.set_default_dtype(torch.float32)
    return lambda name: open_run(runs / name)


def new_table(num_rows=3):
    return pd.DataFrame(np.random.default_rng(1).normal(size=(num_rows, 4)), columns=NAMES)


class TestReading:
    def test_columns_are_found_by_name(self, opened, tmp_path):
        run, table = opened("table"), new_table()
        assert run.preprocessing.columns == NAMES
        turned = table[list(reversed(NAMES))].assign(remark="x", id=[5, 3, 9])
        turned.to_csv(tmp_path / "a.csv", index=False)
        turned.to_parquet(tmp_path / "a.parquet", index=False)
        plain = run.score(table.to_numpy(), num_draws=100)
        assert plain.remarks == ("The values have no names: they were taken in the order height, mass, age, width.",)
        for source in (tmp_path / "a.csv", str(tmp_path / "a.parquet"), turned):
            found = run.score(source, num_draws=100, id_column="id")
            assert torch.equal(found.log_evidence, plain.log_evidence)
            assert found.columns()["id"].tolist() == [5, 3, 9] and found.columns()["row"].tolist() == [0, 1, 2]
            assert found.remarks == ("Ignored: remark, which the run was not fitted to.",)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop(columns=["age", "mass"]), "it lacks mass, age.* It has height, width"),
            (lambda t: t.rename(columns={"mass": "Mass"}), "it lacks mass. Did you mean 'Mass'"),
            (lambda t: t.iloc[:0], "no rows: expected at least one"),
            (lambda t: t.assign(age=[1.0, "old", 2.0]), "column 'age': expected numbers; got 'old' in row 1"),
            (lambda t: t.assign(age=[1.0, 2.0, NAN]), "row 2, column 'age': expected a finite number; got a missing"),
            (lambda t: t.assign(mass=[1.0, np.inf, 2.0]), "row 1, column 'mass': expected a finite number; got inf"),
            (lambda t: t.assign(mass=[1.0, 1e300, 2.0]), "row 1, column 'mass': .* range of torch.float32; got 1e.300"),
        ],
    )
    def test_a_table_that_does_not_fit(self, opened, tmp_path, change, message):
        change(new_table()).to_csv(tmp_path / "new.csv", index=False)
        with pytest.raises(ValueError, match=message) as caught:
            opened("table").encode(tmp_path / "new.csv")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros(4), r"expected shape \(N, 4\).* got \(4,\)\. Add the dimension"),
            (np.zeros((2, 5)), r"expected shape \(N, 4\)"),
            (np.zeros((0, 4)), "expected at least one row"),
            (np.full((2, 4), "a"), "expected real numbers"),
            (np.full((2, 4), 200, np.uint8), "got 8-bit integers up to 200"),
        ],
    )
    def test_an_array_that_does_not_fit(self, opened, array, message):
        with pytest.raises(ValueError, match=message):
            opened("floats").encode(array)

    def test_digits_that_the_type_of_the_run_does_not_hold_are_named(self, opened):
        table = new_table().assign(age=[16_777_217, 2**40 + 1, 5])
        (note,) = opened("table").read_rows(table).notes
        assert note.startswith("Whole numbers in age have more digits than torch.float32 holds")
        assert not opened("table").read_rows(table.assign(age=[16_777_216, 2**40, 5])).notes

    @pytest.mark.parametrize("rows", ["1,2,3,4,\n5,6,7,8,\n", "0,1,0,2,0,3,0,4\n0,1,0,2,0,3,0,4\n", "0,2,3,4,5\n"])
    def test_rows_longer_than_their_header(self, opened, tmp_path, rows):
        (tmp_path / "new.csv").write_text(",".join(NAMES) + "\n" + rows)
        with pytest.raises(ValueError, match="new.csv.*expected"):
            opened("table").encode(tmp_path / "new.csv")

    def test_a_table_for_a_fit_without_names(self, opened):
        run, x = opened("floats"), np.arange(12.0).reshape(3, 4)
        plain = run.read_rows(x)
        numbered = pd.DataFrame(x, columns=["x0", "x1", "x2", "x3"])[["x2", "x0", "x3", "x1"]].assign(name="n")
        for table in (numbered, pd.DataFrame(x)[[3, 1, 0, 2]], pd.DataFrame(x, columns=NAMES)):
            assert torch.equal(run.read_rows(table).x, plain.x)
        assert "in the order height, mass, age, width" in run.read_rows(pd.DataFrame(x, columns=NAMES)).notes[0]
        with pytest.raises(ValueError, match="expected 4 columns.*got 5: height"):
            run.read_rows(pd.DataFrame(x, columns=NAMES).assign(label=1))

    def test_what_is_no_rows(self, opened, tmp_path):
        run = opened("floats")
        with pytest.raises(FileNotFoundError, match="there is none"):
            run.encode(tmp_path / "nowhere.csv")
        with pytest.raises(ValueError, match="path ending in"):
            run.encode("digits")
        with pytest.raises(TypeError, match="got a list"):
            run.encode([[1.0] * 4])
        sparse = csr_matrix(np.eye(2, 4))
        assert torch.equal(run.encode(sparse).mean, run.encode(sparse.toarray()).mean)
        np.savez(tmp_path / "a.npz", z=np.zeros((2, 4)))
        with pytest.raises(ValueError, match="expected an array x; the file has z"):
            run.encode(tmp_path / "a.npz")
        assert len(run.encode(tmp_path / "a.npz", key="z")) == 2
        run.config["data"]["load"]["key"] = "z"  # that of the fit's file
        assert len(run.encode(tmp_path / "a.npz")) == 2
        with pytest.raises(ValueError, match="key: expected with .npz files alone"):
            run.encode(np.zeros((2, 4)), key="z")
        with pytest.raises(ValueError, match="id_column: expected with tables alone"):
            run.encode(np.zeros((2, 4)), id_column="z")
        new_table().to_csv(tmp_path / "new.csv", index=False)
        with pytest.raises(ValueError, match="has no column 'name'"):
            run.encode(tmp_path / "new.csv", id_column="name")

    def test_gray_levels_are_divided_as_the_fits_were(self, opened):
        """Decided by the fit: an all but black image is no binary one."""
        run = opened("gray")
        assert run.preprocessing.divisor == 255
        split = run.dataset.test
        levels = split.stored.numpy().reshape(-1, 3, 2)
        x = split.tensor()
        for given in (levels, levels.astype(np.int64), levels.astype(np.float32), levels.reshape(len(levels), -1)):
            assert torch.equal(run.read_rows(given).x, x)
        assert torch.equal(run.read_rows(split).x, x) and torch.equal(run.read_rows(x).x, x)
        dark = run.read_rows(np.ones((1, 3, 2), np.uint8))
        assert torch.equal(dark.x, torch.full((1, 6), 1 / 255)) and "1 of 255" in dark.notes[1]
        with pytest.raises(ValueError, match="it is not known whether they are divided by 255"):
            run.read_rows(np.ones((1, 3, 2)))
        with pytest.raises(ValueError, match="it is not known whether"):
            run.read_rows(np.full((1, 3, 2), 30.5))
        with pytest.raises(ValueError, match="row 0, column 'x0': expected a number from 0 to 255.*got 300"):
            run.read_rows(np.full((1, 3, 2), 300))
        with pytest.raises(ValueError, match="got booleans"):
            run.read_rows(np.ones((1, 3, 2), bool))
        with pytest.raises(ValueError, match=r"expected shape \(N, 3, 2\)"):
            run.read_rows(np.zeros((1, 2, 3), np.uint8))

    def test_bits_are_drawn_from_the_row_alone(self, opened):
        run = opened("bits")
        levels = np.random.default_rng(5).integers(0, 256, (40, 3, 2)).astype(np.uint8)
        found = run.read_rows(levels)
        assert set(found.x.unique().tolist()) == {0.0, 1.0} and "probability value / 255, seed 0" in found.notes[1]
        assert torch.equal(run.read_rows(levels[::-1].copy()).x, found.x.flip(0))
        many = run.read_rows(np.arange(4000 * 6).reshape(4000, 6) % 240 // 4 + 40).x.mean()
        expected = (np.arange(240) // 4 + 40).mean() / 255
        assert abs(float(many) - expected) < 5 * 0.5 / 24_000**0.5
        bits = np.array([[True, False, True, True, False, False]])
        assert run.read_rows(bits).x.tolist() == bits.astype(float).tolist()
        assert opened("dynamic").read_rows(np.full((1, 8, 8), 16)).x.min() == 1

    def test_a_missing_bit_is_missing(self, opened):
        run = opened("bits")
        run.vae.likelihood.mask = True
        levels = np.array([[0, 255, NAN, 255, 0, 2]])
        assert run.read_rows(levels).x.isnan().tolist() == [[False, False, True, False, False, False]]
        found = run.impute(levels, num_draws=50, num_importance_draws=200)
        assert 20 < found.x[0, 2] < 235 and set(found.draws[0, :, 2].tolist()) == {0.0, 255.0}
        assert (found.x[0, [0, 1, 3, 4, 5]] == torch.from_numpy(levels)[0, [0, 1, 3, 4, 5]]).all()

    def test_values_outside_the_support_are_named(self):
        how = Preprocessing(num_values=2, columns=("a", "b"))
        rows = how.read(np.array([[0, 1], [1, 7]]), dtype=torch.float32)
        with pytest.raises(ValueError, match="row 1, column 'b': expected zeros; got 7. Drop it."):
            rows.require(Bernoulli().support.check(rows.x), "zeros", "Drop it.")

    def test_support_of_a_runs_likelihood(self, opened):
        with pytest.raises(ValueError, match="row 1, column 'x2': expected a number from 0 to 16"):
            opened("dynamic").score(np.where(np.arange(128).reshape(2, 64) == 66, 17, 3))

    def test_the_fits_data_need_not_be_there(self, runs, tmp_path):
        torch.set_default_dtype(torch.float32)
        shutil.copytree(runs / "table", tmp_path / "run")
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        table = new_table(1)
        plain = open_run(runs / "table").encode(table).mean
        assert set(config["data"]["preprocessing"]) >= {"columns", "divisor", "binarize", "is_real"}

        def change(**data):
            new = {**config, "data": {**config["data"], **data}}
            (tmp_path / "run" / "config.json").write_text(json.dumps(new))
            return open_run(tmp_path / "run")

        gone = {**config["data"]["load"], "name_or_path": str(tmp_path / "gone.csv")}
        assert torch.equal(change(load=gone).encode(table).mean, plain)
        # As an earlier version wrote it: the data are loaded again, or missed by name.
        assert torch.equal(change(preprocessing=None).encode(table).mean, plain)
        with pytest.raises(FileNotFoundError, match="expected the data that the run was fitted to in .*gone.csv"):
            change(preprocessing=None, load=gone).encode(table)

    @pytest.mark.parametrize("name", ["em", "mcem"])
    def test_runs_without_an_encoder(self, opened, name):
        run, table = opened(name), new_table()
        found, encoded = run.score(table, num_draws=500), run.encode(table, num_draws=2)
        assert (
            found.log_evidence > found.elbo - 5 * found.log_evidence_se.hypot(found.elbo_se)
        ).all() and "no encoder" in found.method
        assert encoded.draws.shape == (3, 2, 2) and len(encoded.converged) == 3 and "no encoder" in encoded.method
        with pytest.raises(ValueError, match="gaps: expected a run with an encoder"):
            run.score(table, gaps=True)

    def test_missing_values(self, opened):
        table = new_table(4).astype(float)
        table.iloc[1, 2] = table.iloc[3, 0] = NAN
        found = opened("holes").impute(table)
        assert torch.equal(found.missing, torch.tensor(table.isna().to_numpy().tolist()))
        columns = found.columns()
        for name in ("mass", "width"):
            assert (columns[name] == table[name]).all() and f"{name}_sd" not in columns
        assert np.isnan(columns["age_sd"]).tolist() == [True, False, True, True]
        assert np.isfinite(columns["age"]).all() and (columns["age"][[0, 2, 3]] == table["age"][[0, 2, 3]]).all()
        assert opened("holes").score(table, num_draws=100).log_evidence.isfinite().all()
        with pytest.raises(ValueError, match="impute: expected a likelihood that leaves out missing values"):
            opened("table").impute(new_table())
        whole = opened("holes").impute(new_table())
        assert whole.notes()[0] == "No value is missing: the rows are as they were."


class TestWriting:
    def test_tables_and_arrays(self, opened, tmp_path):
        run, table = opened("holes"), new_table(4).assign(row=["p", "q", "r", "s"])
        table.iloc[1, 2] = NAN
        filled = run.impute(table, num_draws=2, id_column="row")
        for name in ("a.csv", "a.parquet"):
            filled.save(tmp_path / name)
        for read in (
            pd.read_csv(tmp_path / "a.csv"),
            pd.read_parquet(tmp_path / "a.parquet"),
        ):
            assert read["row"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
            assert read["row_"].tolist() == list("ppqqrrss") and read["draw"].tolist() == [0, 1] * 4
            assert (read["mass"].to_numpy() == np.repeat(table["mass"], 2)).all() and read["age"].notna().all()
        filled.save(tmp_path / "a.npz")
        arrays = np.load(tmp_path / "a.npz")
        assert arrays["draws"].shape == (4, 2, 4) and arrays["row_"].tolist() == list("pqrs")
        encoded = run.encode(table, num_draws=3)
        encoded.save(tmp_path / "z.csv")
        assert list(pd.read_csv(tmp_path / "z.csv")) == ["row", "draw", "z0", "z1"]
        found = run.score(table, num_draws=100)
        found.save(tmp_path / "s.npz")
        assert np.load(tmp_path / "s.npz")["log_evidence"].tolist() == found.log_evidence.tolist()
        for record in (filled, encoded, found):
            assert "\n" not in repr(record) and str(record).count("\n") > 5 and "<table>" in record._repr_html_()
            json.dumps(record.summary())

    def test_images_keep_their_shape(self, opened, tmp_path):
        run = opened("gray")
        run.vae.likelihood.mask = True
        x = np.array([[[0, 9.0], [NAN, 255], [7, 8]]])
        filled = run.impute(x)
        filled.save(tmp_path / "a.npz")
        arrays = np.load(tmp_path / "a.npz")
        assert arrays["x"].shape == (1, 3, 2) and (arrays["x"][~np.isnan(x)] == x[~np.isnan(x)]).all()
        # In gray levels, as the file; of a file that is divided already, divided.
        divided = run.impute(x / 255)
        np.testing.assert_allclose(arrays["x"].reshape(1, 6), 255 * divided.x.numpy(), rtol=1e-5)
        np.testing.assert_allclose(arrays["sd"].reshape(1, 6), 255 * divided.sd.numpy(), rtol=1e-5)
        assert arrays["sd"][0, 1, 0] > 20

    def test_what_is_there_is_kept(self, opened, tmp_path):
        found = opened("table").encode(new_table())
        (tmp_path / "a.csv").write_text("mine")
        with pytest.raises(ValueError, match="the file is there already"):
            found.save(tmp_path / "a.csv")
        assert (tmp_path / "a.csv").read_text() == "mine"
        found.save(tmp_path / "a.csv", overwrite=True)
        assert len(pd.read_csv(tmp_path / "a.csv")) == 3
        for path, message in (("a.txt", "ends in"), ("no/a.csv", "there is no"), ("b.csv", "it is a folder")):
            (tmp_path / "b.csv").mkdir(exist_ok=True)
            with pytest.raises(ValueError, match=message):
                found.save(tmp_path / path)

    def test_flags_are_words(self):
        from pyro_vae.new_data.records import flags, trust_notes

        k, ess = torch.tensor([NAN, 0.2, 0.6, 0.8, 0.1, 0.6, 0.1]), torch.tensor([NAN, 50.0, 9, 9, 1.5, 9, 9])
        finite, rounding = torch.tensor([True] * 6 + [False]), torch.tensor([0.0, 0.05, 0, 0, 0, 0.2, 0])
        flag = flags(k, ess, finite=finite, rounding=rounding)
        assert flag.tolist() == ["ok", "ok", "error unreliable", *["do not trust"] * 2, "rounded", "do not trust"]
        assert any("(3, 4, 6): do not trust log p(x) there" in note for note in trust_notes(flag, "log p(x)"))

    def test_rows_far_from_the_data_are_told_from_rounding(self, opened):
        """A density that single precision cannot hold is no number to rank by without a word."""
        nats = {"elbo": torch.zeros(4), "elbo_se": torch.zeros(4), "log_evidence_se": torch.tensor([0.0, 0, 0, NAN])}
        values = torch.tensor([-9.0, -1e5, -1e7, -torch.inf])
        far = Scores(log_evidence=values, precision=1e-7, where="x", **nats)
        assert far.flag.tolist() == ["ok", "ok", "rounded", "do not trust"] and "to some digits" in str(far)
        json.dumps(far.summary())
        assert opened("floats").score(np.zeros((1, 4)), num_draws=50).precision == torch.finfo(torch.float32).eps
        x = np.zeros((2, 4))
        x[1, 0] = 1e30
        run = opened("holes")
        x[1:, 3] = NAN
        with pytest.raises(ValueError, match="density can hold; that of datapoint 1 is 0"):
            run.impute(x)


class TestFixedRows:
    def test_a_split_is_its_own_rows(self, opened):
        run = opened("dynamic")
        found = run.read_rows(run.dataset.test.head(3))
        assert torch.equal(found.x, run.dataset.test.fix().tensor()[:3])

    def test_digits_are_counts_of_sixteen(self):
        how = Preprocessing.of(load("digits", binarize="fixed"))
        assert (how.divisor, how.is_real, how.image_shape) == (16, False, (8, 8))
        assert Preprocessing.from_config(json.loads(json.dumps(how.to_config()))) == how


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """Its commands on small files, and its code on what they have made."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyro_vae.drawing, "_draw", lambda *_, **__: None)
    table = new_table(40)
    table.to_csv("train.csv", index=False)
    table.iloc[3, 1] = NAN
    table.head(6).assign(patient=list("abcdef")).to_csv("new.csv", index=False)
    (tmp_path / "runs").mkdir()
    text = (Path(__file__).resolve().parents[1] / "docs" / "new-data.md").read_text()
    (commands,), (code,) = (
        re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for kind in ("sh", "py")
    )
    for line in commands.splitlines():
        words = shlex.split(line)[1:]
        small = ["--training.epochs=1", "decoder:mlp", "--decoder.hidden=4", "encoder:mlp", "--encoder.hidden=4"]
        assert main([*words, *(small if words[0] == "fit" else [])]) == 0, capsys.readouterr().err
    assert pd.read_parquet("latents.parquet")["patient"].tolist() == list("abcdef")
    assert pd.read_csv("filled.csv")["mass_sd"].notna().tolist() == [False, False, False, True, False, False]
    capsys.readouterr()
    exec(compile(code, "new-data.md", "exec"), {})  # noqa: S102
    assert "log p(x):" in capsys.readouterr().out and len(pd.read_csv("draws.csv")) == 6 * 20


class TestCommands:
    @pytest.fixture
    def here(self, runs, tmp_path, monkeypatch):
        torch.set_default_dtype(torch.float32)
        monkeypatch.chdir(tmp_path)
        new_table().to_csv("new.csv", index=False)
        shutil.copytree(runs / "table", "run")

    def test_a_summary_alone(self, here, capsys):
        assert main(["score", "run", "new.csv", "--num-draws", "100", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (
            said["num_data"] == 3
            and said["out"] == "run/new.score.csv"
            and set(said["elbo"]) == {"mean", "se", "mc_se"}
        )
        assert sorted(path.name for path in Path("run").glob("new*")) == ["new.score.csv"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("encode run new.csv --out a.txt", "--out a.txt: expected a file that ends in"),
            ("encode run new.csv --out new.csv", "expected another file than the rows are read from"),
            ("encode run new.csv --out new.csv --overwrite", "expected another file than the rows are read from"),
            ("encode run new.csv --out no/a.csv", "there is no no. Make it first"),
            ("encode run new.csv --out there.csv", "the file is there already; nothing was touched"),
            ("encode run new.csv --out /proc/a.csv", "--out /proc/a.csv: cannot be written"),
            ("encode run gone.csv", "gone.csv: expected a file of rows; there is none"),
            ("encode run new.csv --key z", "key: expected with .npz files alone"),
            ("score run new.csv --num-draws 3", "num_draws: expected an even number of at least 50"),
            ("impute run new.csv", "expected a likelihood that leaves out missing values"),
        ],
    )
    def test_what_is_refused(self, here, capsys, words, message):
        Path("there.csv").write_text("mine")
        assert main(words.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and Path("there.csv").read_text() == "mine"
        left = {path.name for path in Path().iterdir()} | {path.name for path in Path("run").glob("*.csv")}
        assert left == {"new.csv", "run", "there.csv"}

    def test_a_target_is_refused_before_the_work(self, here, monkeypatch, capsys):
        monkeypatch.setattr("pyro_vae.run.encode", None)
        assert main(["encode", "run", "new.csv", "--out", "new.txt"]) == 2
        assert "ends in" in capsys.readouterr().err


class TestStandardized:
    """A run on columns around 0 of unit spread speaks in the file's own units."""

    def test_nats_and_values_have_the_units_of_the_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pyro_vae.drawing, "_draw", lambda *_, **__: None)
        monkeypatch.setattr(pyro_vae.jobs, "_term_tracker", lambda *_, **__: None)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(60, 4))
        table = pd.DataFrame(x * [1, 1e4, 0.01, 10] + [0, 5e5, 3, -40], columns=NAMES)
        table.to_csv(tmp_path / "raw.csv", index=False)
        (tmp_path / "run").mkdir()
        run = fit_run(
            tmp_path / "run",
            data={"name_or_path": str(tmp_path / "raw.csv"), "standardize": True},
            parts=Parts(
                likelihood=options("likelihood", "gaussian-shared-scale", mask=True),
                decoder=options("decoder", "linear"),
                encoder=options("encoder", "linear"),
            ),
            num_latents=2,
            engine="svi",
            training=Training(epochs=3, batch_size=20),
            seed=0,
        )
        # The model of the file's own values, probed.
        with torch.no_grad():
            p = run.vae.decode(torch.cat([torch.zeros(1, 2), torch.eye(2)]))
            weight = (p.mean[1:] - p.mean[:1]).T.contiguous()
            exact = LinearGaussian(weight, p.mean[0], p.variance[0].sqrt())
        new = table.head(20).mask(rng.random((20, 4)) < 0.25)
        raw = torch.tensor(new.to_numpy().tolist(), dtype=torch.float64)
        found = run.score(new, num_draws=1000)
        error = (found.log_evidence - exact.log_evidence(raw).detach()).abs()
        assert (error < ERRORS * found.log_evidence_se + 1e-6).all()
        filled = run.impute(new, num_importance_draws=2000)
        mean = exact.bias.detach().numpy()
        covariance = (weight @ weight.T + p.variance[0].diag()).numpy()
        for n, row in enumerate(raw.numpy()):
            m = np.isnan(row)
            loc, spread = conditional(mean, covariance, row)
            assert (np.abs(filled.x[n].numpy()[m] - loc) < ERRORS * filled.x_se[n].numpy()[m]).all()
            assert (
                np.abs(filled.sd[n].numpy()[m] - np.sqrt(np.diag(spread))) < ERRORS * filled.sd_se[n].numpy()[m]
            ).all()
            assert (filled.x[n].numpy()[~m] == row[~m]).all()
        split = run.dataset.test
        torch.testing.assert_close(run.read_rows(split).x, split.tensor())
        assert torch.equal(run.read_rows(table.iloc[split.rows.tolist()]).x, split.tensor())
