"""Data in their own units: the map of `load(standardize=True)`, and densities and draws that do not depend on it."""

import dataclasses
import json
import logging
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import AffineTransform, MultivariateNormal, TransformedDistribution
from torch.utils.data import TensorDataset

from inference import Annealing, Training, ais, elbo, fit_svi, iwae, measure_gaps, sbc, to_datatree
from inference.densities import densities
from inference.families import FullCovariance, MeanField
from inference.noise import seeded
from pyro_vae import PCA, compare, open_run, paired_difference, plots
from pyro_vae.cli import main
from pyro_vae.cli.options import DataOptions
from pyro_vae.data import Standardization, load
from pyro_vae.drawing import draw_run
from pyro_vae.engines import fit_by
from pyro_vae.jobs import fit_run, measure_run
from pyro_vae.likelihoods import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    GaussianDecoderScale,
    GaussianLowRank,
    GaussianOutputScale,
    GaussianSharedScale,
    Laplace,
    MixtureOfGaussians,
    Poisson,
    StudentT,
)
from pyro_vae.linear import LinearGaussian, as_linear_gaussian
from pyro_vae.networks import MLP, Linear
from pyro_vae.parts import Parts, options
from pyro_vae.priors import StandardNormal
from pyro_vae.report.run import run_page
from pyro_vae.study import Study, run_study
from pyro_vae.vae import VAE

UNITS = np.array([12.0, 25_000.0, 8.0])
OFFSETS = np.array([45.0, 60_000.0, 120.0])
NAMES = ["age", "income", "pressure"]


def table(num_data=200, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num_data, 2))
    return (z @ rng.normal(size=(2, 3)) + 0.3 * rng.normal(size=(num_data, 3))) * UNITS + OFFSETS


def with_gaps(x, seed=1):
    return np.where(np.random.default_rng(seed).random(x.shape) < 0.2, np.nan, x)


@pytest.fixture
def said(caplog):
    """The lines that were logged so far."""
    caplog.set_level(logging.WARNING, logger="pyro_vae")
    return lambda: [record.getMessage() for record in caplog.records]


# ------------------------------------------------------------------------------------------------------------- data


def write(folder, kind, x):
    """The arguments of `load` for one kind of file or object that holds x."""
    if kind in ("csv", "parquet"):
        if kind == "parquet":
            pytest.importorskip("pyarrow")
        frame = pd.DataFrame(x, columns=NAMES)
        frame.to_csv(folder / "x.csv", index=False) if kind == "csv" else frame.to_parquet(folder / "x.parquet")
        return {"name_or_path": folder / f"x.{kind}"}
    if kind in ("npy", "stream"):
        np.save(folder / "x.npy", x)
        return {"name_or_path": folder / "x.npy", "stream": kind == "stream"}
    if kind == "npz":
        np.savez(folder / "x.npz", x_train=x[:140], x_validation=x[140:160], x_test=x[160:])
        return {"name_or_path": folder / "x.npz"}
    objects = {"array": lambda: x, "tensor": lambda: torch.tensor(x), "torch": lambda: TensorDataset(torch.tensor(x))}
    return {"name_or_path": objects[kind]()}


KINDS = ("csv", "parquet", "npy", "stream", "npz", "array", "tensor", "torch")


@pytest.mark.parametrize("gaps", [False, True], ids=["full", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_standardized_by_the_training_split_alone(tmp_path, kind, gaps):
    x = with_gaps(table()) if gaps else table()
    given = write(tmp_path, kind, x)
    missing = "keep" if gaps else "refuse"
    raw, data = load(**given, missing=missing), load(**given, missing=missing, standardize=True)
    train = raw.train.tensor().numpy()
    assert np.allclose(data.standardization.location, np.nanmean(train, 0), rtol=1e-14, atol=0)
    assert np.allclose(data.standardization.scale, np.nanstd(train, 0), rtol=1e-13, atol=0)
    assert not np.allclose(np.nanmean(x, 0), np.nanmean(train, 0), rtol=1e-6)
    for name in ("train", "validation", "test"):
        ours, theirs = getattr(data, name), getattr(raw, name).tensor()
        expected = torch.tensor((theirs.numpy() - np.nanmean(train, 0)) / np.nanstd(train, 0))
        assert torch.allclose(ours.tensor(), expected, rtol=1e-12, atol=1e-12, equal_nan=True)
        assert torch.equal(ours.rows, getattr(raw, name).rows)
        assert torch.allclose(data.standardization.invert(ours.tensor()), theirs, rtol=1e-13, equal_nan=True)
        assert torch.equal(
            data.standardization.apply(theirs).nan_to_num(7.0), ours[torch.arange(len(ours))].nan_to_num(7.0)
        )
    assert data.fingerprint == raw.fingerprint
    observed = data.train.tensor().nan_to_num(float(0))
    assert (data.min_value, data.max_value) == (float(observed.min()), float(observed.max()))
    assert data.num_levels is None and "standardized" in repr(data)


@pytest.mark.parametrize("stream", [False, True])
def test_blocks_of_a_long_column_are_merged(tmp_path, stream, monkeypatch):
    monkeypatch.setattr("pyro_vae.data.streams._BLOCK_BYTES", 8 * 7)
    x = 1e9 + with_gaps(table())
    np.save(tmp_path / "x.npy", x)
    data = load(tmp_path / "x.npy", standardize=True, missing="keep", stream=stream)
    train = x[data.train.rows]
    assert np.allclose(data.standardization.location, np.nanmean(train, 0), rtol=1e-15, atol=0)
    assert np.allclose(data.standardization.scale, np.nanstd(train, 0), rtol=1e-9, atol=0)


def test_digits_behind_a_large_offset_are_kept():
    torch.set_default_dtype(torch.float32)
    stamps = 1.7e9 + np.arange(400.0)[:, None] * [1.0, 2.0]
    data = load(stamps, standardize=True)
    x = data.train.tensor()
    assert x.dtype == torch.float32 and len(x[:, 0].unique()) == len(x)
    assert np.abs(data.standardization.invert(x).numpy() - stamps[data.train.rows]).max() < 1e-3


def test_images_have_one_scale_a_channel(said):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5, 4, 3)) * [1.0, 10.0, 100.0] + [5.0, 0.0, -70.0]
    x[:, 0] = 0.0
    data = load(x, standardize=True)
    train = x[data.train.rows]
    scale = np.sqrt(((train - train.mean((0, 1, 2))) ** 2).mean((0, 1, 2)))
    assert np.allclose(data.standardization.location.reshape(5, 4, 3), train.mean((0, 1, 2)))
    assert np.allclose(data.standardization.scale.reshape(5, 4, 3), scale)
    assert not said()
    digits = load("digits", standardize=True)
    assert len(digits.standardization.scale.unique()) == 1 and digits.num_levels is None
    assert digits.train.tensor().mean().abs() < 1e-12 and not said()


def test_constant_columns_are_named_and_not_scaled(said):
    x = np.column_stack([table(), np.full(200, 0.1), 0.1 + 1e-17 * np.arange(200) % 3e-17, np.full(200, np.nan)])
    data = load(x, standardize=True, missing="keep")
    assert torch.equal(data.standardization.scale[3:], torch.ones(3))
    assert bool((data.train.tensor()[:, 3:5].abs() < 1e-15).all())
    assert bool(data.train.tensor()[:, 5].isnan().all())
    (line,) = said()
    assert "constant in the training split: column 3 (0.1), column 4 (0.1), column 5 (never observed)" in line
    assert "scales are taken as 1" in line and "\n" not in line


@pytest.mark.parametrize(
    "x, pattern",
    [
        (table(), "differ by a factor of .*'pressure' .*'age' .*'income' .*standardize=True"),
        (table() / UNITS * [1.0, 40.0, 1.0] - OFFSETS / UNITS * [1.0, 40.0, 1.0], "differ by a factor of"),
        (table() / UNITS * 500, "far from order 1: 'age' .*'income' .*'pressure' .*standardize=True"),
        (table() / UNITS * 1e-4, "far from order 1: 'age'"),
        (np.column_stack([table()[:, :1] / 12, np.full((200, 1), 3.5), np.zeros((200, 1))]), "'income' .3.5., 'press"),
    ],
    ids=["orders apart", "two orders", "large", "small", "constant"],
)
def test_scales_are_described_when_the_data_are_loaded(tmp_path, said, x, pattern):
    pd.DataFrame(x, columns=NAMES).to_csv(tmp_path / "x.csv", index=False)
    load(tmp_path / "x.csv")
    (line,) = said()
    assert re.search(pattern, line), line
    assert "\n" not in line


def test_data_of_order_one_counts_and_bits_pass_without_a_word(said):
    load((table() - OFFSETS) / UNITS)
    load((table() - OFFSETS) / UNITS * 5 + 3)
    load(np.random.default_rng(0).poisson([1.0, 300.0], (100, 2)))
    load(np.random.default_rng(0).poisson([1.0, 300.0], (100, 2)).astype(float))
    load(np.random.default_rng(0).random((50, 8, 8)) * (np.arange(8) > 2), binarize="fixed")
    load(np.random.default_rng(0).random((50, 8, 8)) * (np.arange(8) > 2))
    load(table(), standardize=True)
    assert not said()


@pytest.mark.parametrize(
    "options, pattern",
    [
        ({"standardize": 1}, "standardize=1: expected True or False"),
        ({"standardize": True, "binarize": "fixed"}, "standardize=True: expected real numbers, and binarize='fixed'"),
        ({"standardize": True, "binarize": "dynamic"}, "binarize='dynamic'"),
    ],
)
def test_what_cannot_be_standardized_is_refused(options, pattern):
    with pytest.raises(ValueError, match=pattern):
        load("digits", **options)


def test_columns_that_overflow_are_named():
    with pytest.raises(ValueError, match="standardize=True: expected standard deviations .* column 1 overflow"):
        load(table() * [1.0, 1e180, 1.0], standardize=True)


@pytest.mark.parametrize(
    "location, scale", [([0.0], [0.0]), ([0.0], [-1.0]), ([math.nan], [1.0]), ([0.0, 1.0], [1.0]), ([[0.0]], [[1.0]])]
)
def test_a_map_that_cannot_be_inverted_is_refused(location, scale):
    with pytest.raises(ValueError, match="location, scale: expected"):
        Standardization(torch.tensor(location), torch.tensor(scale))


def test_rows_of_another_width_are_refused():
    units = Standardization(torch.zeros(3), torch.ones(3))
    for method in (units.apply, units.invert, units.log_jacobian):
        with pytest.raises(ValueError, match=r"x: expected a tensor of shape \(..., 3\); got \(2, 1\)"):
            method(torch.zeros(2, 1))


# -------------------------------------------------------------------------------------------------------- densities

REAL = {
    "gaussian": lambda mask: Gaussian(scale=0.7, mask=mask),
    "shared scale": lambda mask: GaussianSharedScale(mask=mask),
    "output scale": lambda mask: GaussianOutputScale(3, init_scale=0.4, mask=mask),
    "decoder scale": lambda mask: GaussianDecoderScale(mask=mask),
    "laplace": lambda mask: Laplace(mask=mask),
    "student": lambda mask: StudentT(mask=mask),
    "low rank": lambda mask: GaussianLowRank(rank=2, mask=mask),
    "mixture": lambda mask: MixtureOfGaussians(num_components=2, mask=mask),
}


def vae_of(likelihood, standardization, *, seed=0):
    with seeded(seed):
        family = MeanField(2)
        return VAE(
            prior=StandardNormal(2),
            likelihood=likelihood,
            decoder=MLP(2, 8, 3 * likelihood.num_params),
            family=family,
            encoder=MLP(3, 8, family.num_params),
            standardization=standardization,
        ).eval()


@pytest.mark.parametrize("name", REAL)
def test_density_is_that_of_the_transformed_distribution(name):
    data = load(table(), standardize=True)
    location, scale = data.standardization.location, data.standardization.scale
    vae = vae_of(REAL[name](False), data.standardization)
    rows = data.test[:7]
    x = data.standardization.invert(rows)
    z = torch.randn(5, 7, 2)
    reference = TransformedDistribution(vae.likelihood(vae.decoder_output(z)), [AffineTransform(location, scale, 1)])
    expected = reference.log_prob(x)
    with torch.no_grad():
        assert torch.allclose(densities(vae.model, rows, z).log_likelihood, expected, rtol=1e-12, atol=1e-10)
        assert torch.allclose(vae.decode(z).log_prob(x), expected, rtol=1e-12, atol=1e-10)
        assert torch.allclose(vae.decode(z).mean, reference.base_dist.mean * scale + location)
        # Student's t here has no variance.
        if name != "student":
            assert torch.allclose(vae.decode(z).stddev, reference.base_dist.variance.sqrt() * scale)


@pytest.mark.parametrize("name", REAL)
def test_density_of_missing_values_has_the_scales_of_the_others(name):
    data = load(with_gaps(table()), standardize=True, missing="keep")
    rows = data.train[:40]
    observed = ~rows.isnan()
    assert not bool(observed.all()) and not bool(observed.any(1).all())
    masked, plain = (vae_of(REAL[name](True), units) for units in (data.standardization, None))
    z = torch.randn(3, 40, 2)
    jacobian = torch.stack([data.standardization.scale[here].log().sum() for here in observed])
    with torch.no_grad():
        ours, standard = (densities(vae.model, rows, z).log_likelihood for vae in (masked, plain))
    assert torch.allclose(ours, standard - jacobian, rtol=1e-12, atol=1e-10)
    assert torch.allclose(data.standardization.log_jacobian(rows), jacobian)
    x = data.standardization.invert(rows)
    assert torch.allclose(masked.decode(z).log_prob(x), ours, rtol=1e-10, atol=1e-8)


def raw_model(exact, units):
    """The same model with parameters of the data in their own units."""
    weight = exact.weight.detach() * units.scale[:, None]
    bias = exact.bias.detach() * units.scale + units.location
    return LinearGaussian(weight, bias, exact.scale.detach() * units.scale)


@pytest.mark.parametrize("gaps", [False, True], ids=["full", "missing"])
def test_exact_evidence_is_that_of_the_model_in_raw_units(gaps):
    x = with_gaps(table()) if gaps else table()
    data = load(x, standardize=True, missing="keep")
    rows, units = data.train.tensor(), data.standardization
    exact, fit = LinearGaussian.fit_em(rows, 1, noise="diagonal", standardization=units, max_steps=50)
    original = torch.tensor(x[data.train.rows])
    with torch.no_grad():
        expected = raw_model(exact, units).log_evidence(original)
        found = exact.log_evidence(rows)
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-9)
    assert fit.elbo[-1].item() == pytest.approx(expected.mean().item(), rel=1e-10)
    assert torch.allclose(
        exact.generate(5, seed=1),
        units.invert(LinearGaussian.fit_em(rows, 1, noise="diagonal", max_steps=50)[0].generate(5, seed=1)),
    )
    assert torch.allclose(exact.reconstruct(rows), raw_model(exact, units).reconstruct(original), rtol=1e-9)
    z = torch.randn(2, len(rows), 1)
    with torch.no_grad():
        ours = densities(exact.model, rows, z).log_likelihood
        assert torch.allclose(ours, densities(raw_model(exact, units).model, original, z).log_likelihood, rtol=1e-9)
        assert torch.allclose(ours, exact.decode(z).log_prob(original), rtol=1e-9, atol=1e-7)


def linear_vae(standardization):
    with seeded(3):
        return VAE(
            prior=StandardNormal(2),
            likelihood=GaussianOutputScale(3, init_scale=0.5),
            decoder=Linear(2, 3),
            family=FullCovariance(2),
            encoder=Linear(3, FullCovariance(2).num_params),
            standardization=standardization,
        ).eval()


def test_a_linear_vae_is_read_with_its_units():
    data = load(table(), standardize=True)
    vae = linear_vae(data.standardization)
    exact = as_linear_gaussian(vae)
    rows = data.test.tensor()
    weight = vae.decoder(torch.eye(2)) - vae.decoder(torch.zeros(1, 2))
    scale = data.standardization.scale
    covariance = (weight.T * scale[:, None]) @ (weight * scale) + torch.diag((vae.likelihood.scale * scale) ** 2)
    mean = vae.decoder(torch.zeros(1, 2))[0] * scale + data.standardization.location
    expected = MultivariateNormal(mean, covariance).log_prob(data.standardization.invert(rows))
    assert torch.allclose(exact.log_evidence(rows), expected, rtol=1e-10, atol=1e-8)


def test_every_number_in_nats_is_that_of_the_model_in_raw_units():
    """ELBO, importance sampling, annealing and gaps: those of the standardized model and the sum of log scales."""
    data = load(table(), standardize=True)
    rows, shift = data.test.tensor()[:12], data.standardization.scale.log().sum()
    ours, standard = linear_vae(data.standardization), linear_vae(None)
    exact = as_linear_gaussian(ours).log_evidence(rows).detach()
    for estimate in (elbo, iwae):
        found, other = (estimate(vae.model, vae.guide, rows, seed=1) for vae in (ours, standard))
        assert torch.allclose(found.value, other.value - shift, atol=1e-7)
    found = iwae(ours.model, ours.guide, rows, seed=1)
    assert (found.value - exact).abs().max() < 6 * found.se.max() + 1e-3
    annealed = ais(ours.model, rows, start=ours.guide, annealing=Annealing(num_temperatures=10), seed=1)
    assert (annealed.value - exact).abs().max() < 6 * annealed.se.max() + 1e-3
    gaps = [measure_gaps(vae.model, vae.guide, rows, num_evidence_draws=500, seed=1) for vae in (ours, standard)]
    for name in ("log_evidence", "elbo_amortized", "elbo_local"):
        assert torch.allclose(getattr(gaps[0], name), getattr(gaps[1], name) - shift, atol=1e-5), name
    assert torch.allclose(gaps[0].amortization_gap, gaps[1].amortization_gap, atol=1e-5)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fit_is_the_fit_of_standardized_rows_and_reports_raw_nats(compile):
    data = load(with_gaps(table()), standardize=True, missing="keep")
    options = {"training": Training(epochs=3, batch_size=50, compile=compile), "validation": data.validation, "seed": 0}
    fits = {}
    for units in (data.standardization, None):
        vae = vae_of(GaussianOutputScale(3, mask=True), units)
        fits[units] = vae, fit_svi(vae.model, vae.guide, data.train, **options)
    (ours, fit), (standard, other) = fits.values()
    for name, weight in standard.named_parameters():
        assert torch.allclose(dict(ours.named_parameters())[name], weight, atol=1e-7), name
    for split, trace in (("train", "elbo"), ("validation", "elbo_validation")):
        shift = data.standardization.log_jacobian(getattr(data, split).tensor()).mean()
        assert torch.allclose(getattr(fit, trace).double(), getattr(other, trace).double() - shift, atol=1e-6), trace


@pytest.mark.parametrize(
    "engine", ["em", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mcem", "semi-amortized"))]
)
def test_other_engines_report_raw_nats(engine):
    data = load(table(60), standardize=True)
    shift = data.standardization.scale.log().sum()
    fits = []
    for units in (data.standardization, None):
        vae = vae_of(GaussianSharedScale(), units)
        if engine != "semi-amortized":
            vae.guide = None
        options = {"objective": None, "training": Training(epochs=2, batch_size=20), "seed": 0}
        fits.append(fit_by(engine, vae, MeanField(2), data, **options))
    for name in ("elbo", "elbo_validation"):
        ours, other = (getattr(fit, name) for fit in fits)
        if ours is not None:
            assert torch.allclose(ours.double(), other.double() - shift, atol=1e-5), name


# ------------------------------------------------------------------------------------------ draws in the data's units


def test_draws_and_reconstructions_are_in_the_datas_units():
    data = load(with_gaps(table()), standardize=True, missing="keep")
    ours, standard = (vae_of(GaussianOutputScale(3, mask=True), units) for units in (data.standardization, None))
    invert, rows = data.standardization.invert, data.test.tensor()
    assert torch.allclose(ours.generate(9, seed=2), invert(standard.generate(9, seed=2)))
    filled = rows.nan_to_num(0.0)
    assert torch.allclose(ours.reconstruct(filled), invert(standard.reconstruct(filled)))
    trees = [to_datatree(vae.model, vae.guide, data.test, num_draws=3, seed=0) for vae in (ours, standard)]
    for group in ("posterior_predictive", "prior_predictive", "observed_data"):
        ours_x, theirs = (tree[group]["x"].values for tree in trees)
        assert np.allclose(ours_x, invert(torch.from_numpy(theirs)).numpy(), rtol=1e-4, equal_nan=True), group
        assert ours_x.dtype == np.float64
    assert np.allclose(
        trees[0]["observed_data"]["x"].values, with_gaps(table())[data.test.rows], rtol=1e-12, equal_nan=True
    )
    jacobian = data.standardization.log_jacobian(rows).numpy()
    for group, name in (("log_likelihood", "x"), ("sample_stats", "lp")):
        assert np.allclose(trees[0][group][name].values, trees[1][group][name].values - jacobian)
    assert np.allclose(trees[0]["posterior"]["z"].values, trees[1]["posterior"]["z"].values)


def test_simulated_rows_are_those_that_the_encoder_takes():
    data = load(table(), standardize=True)
    vae = linear_vae(data.standardization)
    ours, standard = (
        sbc(one.model, one.guide, data.test, num_simulations=40, seed=0) for one in (vae, linear_vae(None))
    )
    assert torch.equal(ours.ranks, standard.ranks)


def test_units_stay_in_double_precision_and_in_the_state_dict():
    data = load(1.7e9 + table(), standardize=True)
    vae = vae_of(GaussianSharedScale(), data.standardization).float()
    assert (
        vae.units.location.dtype == torch.float64
        and vae.decoder_output(torch.zeros(1, 2).float()).dtype == torch.float32
    )
    assert torch.equal(vae.standardization.location, data.standardization.location)
    other = vae_of(GaussianSharedScale(), Standardization(torch.zeros(3), torch.ones(3)))
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.standardization.scale, data.standardization.scale)
    assert "standardized" in repr(vae) and "standardized" not in repr(vae_of(GaussianSharedScale(), None))


@pytest.mark.parametrize(
    "likelihood",
    [
        Bernoulli(),
        Binomial(5),
        Poisson(),
        Beta(),
        ContinuousBernoulli(),
        Categorical(3, 1.0),
        DiscretizedLogistic(3, 1.0),
    ],
    ids=repr,
)
def test_likelihoods_of_other_numbers_are_refused(likelihood):
    with pytest.raises(ValueError, match="standardization: expected a likelihood of real numbers; got"):
        vae_of(likelihood, Standardization(torch.zeros(3), torch.ones(3)))


def test_units_of_other_data_are_refused():
    with pytest.raises(ValueError, match="standardization: expected as many values as the decoder has"):
        vae_of(GaussianSharedScale(), Standardization(torch.zeros(4), torch.ones(4)))
    with pytest.raises(ValueError, match="standardization: expected 3 values"):
        LinearGaussian(
            torch.ones(3, 1), torch.zeros(3), 1.0, standardization=Standardization(torch.zeros(4), torch.ones(4))
        )


# ------------------------------------------------------------------------------------------------------------- runs

PARTS = Parts(
    likelihood=options("likelihood", "gaussian-output-scale"),
    decoder=options("decoder", "mlp", hidden=(8,)),
    encoder=options("encoder", "mlp", hidden=(8,)),
)


def fitted(folder, data, *, engine="svi", parts=PARTS):
    folder.mkdir()
    run = fit_run(
        folder,
        data=data,
        parts=parts,
        num_latents=1,
        engine=engine,
        training=Training(epochs=2, batch_size=50),
        seed=0,
    )
    draw_run(run)
    return run


@pytest.fixture
def path(tmp_path):
    """A table in its own units, with an offset whose digits single precision would lose."""
    pd.DataFrame(table() + [0.0, 1e9, 0.0], columns=NAMES).to_csv(tmp_path / "x.csv", index=False)
    return tmp_path / "x.csv"


@pytest.mark.parametrize("engine", ["svi", *(pytest.param(name, marks=pytest.mark.slow) for name in ("em", "mcem"))])
def test_a_run_keeps_its_units(tmp_path, path, engine, monkeypatch):
    drawn, draw = {}, plots.plot_reconstructions

    def watched(x, mean, *args, **kwargs):
        drawn.update(x=x, mean=mean)
        return draw(x, mean, *args, **kwargs)

    monkeypatch.setattr(plots, "plot_reconstructions", watched)
    data = {"name_or_path": str(path), "standardize": True}
    parts = PARTS if engine == "svi" else dataclasses.replace(PARTS, encoder=None)
    fitted(tmp_path / "run", data, engine=engine, parts=parts)
    run = open_run(tmp_path / "run")
    x = pd.read_csv(path).to_numpy()
    assert run.config["data"]["load"]["standardize"] is True
    assert "columns standardized; all numbers and pictures in the data&#x27;s own units" in run_page(run)
    assert run.config["data"]["fingerprint"] == load(path).fingerprint
    train = x[run.dataset.train.rows]
    for units in (run.vae.standardization, run.dataset.standardization, run.preprocessing.standardization):
        assert np.allclose(units.location, train.mean(0), rtol=1e-14) and np.allclose(units.scale, train.std(0))
    test = x[run.dataset.test.rows]
    assert np.allclose(run.results["observed_data"]["x"].values, test[:100], rtol=0, atol=1e-2)
    for group in ("posterior_predictive", "prior_predictive"):
        means = run.results[group]["x"].values.mean((0, 1, 2))
        assert (np.abs(means - train.mean(0)) < 3 * train.std(0)).all(), group
    assert np.allclose(drawn["x"], test[:10], rtol=0, atol=1e-2)
    assert (np.abs(np.asarray(drawn["mean"]) - train.mean(0)) < 9 * train.std(0)).all()
    draws = run.vae.generate(400, seed=0).numpy()
    assert (np.abs(draws.mean(0) - train.mean(0)) < 3 * train.std(0)).all()
    # The model before it learned much: near the density of independent normals, in the table's own units.
    normal = -np.log(train.std(0)).sum() - 1.5 * (1 + math.log(2 * math.pi))
    assert abs(float(run.fit.elbo_validation[-1]) - normal) < 5
    if engine == "svi":
        gaps = measure_run(run, num_data=3, seed=0)
        scores = run.score(pd.DataFrame(test[:3], columns=NAMES), num_draws=1000, seed=0)
        assert (gaps.log_evidence - scores.log_evidence).abs().max() < 0.1
        assert abs(float(gaps.log_evidence.mean()) - normal) < 8


@pytest.mark.slow
def test_an_image_with_the_largest_gap_is_drawn_in_its_own_units(tmp_path, monkeypatch):
    x = np.random.default_rng(0).random((40, 3, 3)) * 4000 + 1000
    np.save(tmp_path / "x.npy", x)
    run = fitted(
        tmp_path / "run",
        {"name_or_path": str(tmp_path / "x.npy"), "standardize": True},
        parts=dataclasses.replace(PARTS, likelihood=options("likelihood", "gaussian-shared-scale")),
    )
    seen, draw = {}, plots.plot_worst

    def watched(gaps, x, *args, means, **kwargs):
        seen.update(x=x, **means)
        return draw(gaps, x, *args, means=means, **kwargs)

    monkeypatch.setattr(plots, "plot_worst", watched)
    measure_run(run, num_data=3)
    assert np.allclose(seen["x"], x.reshape(40, -1)[run.dataset.test.rows[:3]], rtol=1e-6)
    assert bool((seen["from the encoder"] > 500).all())


def test_a_run_without_units_opens_as_before(tmp_path, path):
    fitted(tmp_path / "run", {"name_or_path": str(path)})
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    config["data"]["load"].pop("standardize", None)
    config["data"].pop("preprocessing", None)
    file.write_text(json.dumps(config))
    run = open_run(tmp_path / "run")
    assert run.vae.standardization is None and run.dataset.standardization is None
    assert not [name for name in run.vae.state_dict() if name.startswith("units")]


@pytest.mark.parametrize("likelihood", [None, "binomial", "beta", "bernoulli", "discretized-logistic"])
def test_a_fit_refuses_other_likelihoods_before_it_starts(tmp_path, path, likelihood):
    parts = dataclasses.replace(PARTS, likelihood=None if likelihood is None else options("likelihood", likelihood))
    with pytest.raises(ValueError, match=r"likelihood: expected one of real numbers.*gaussian-output-scale"):
        fitted(tmp_path / "run", {"name_or_path": str(path), "standardize": True}, parts=parts)


def test_whole_numbers_are_described_where_the_likelihood_is_real(tmp_path, said):
    pd.DataFrame(table().round().astype(int), columns=NAMES).to_csv(tmp_path / "x.csv", index=False)
    fitted(tmp_path / "run", {"name_or_path": str(tmp_path / "x.csv")})
    assert len([line for line in said() if "'income'" in line and "--data.standardize" in line]) == 1
    assert not [line for line in said() if "'income'" in line and "differ" not in line]


def test_compare_reports_the_units_of_the_table(path, said):
    options = {"training": Training(epochs=3), "hidden": (4,), "num_data": 20, "seed": 0}
    raw, ours = (compare(load(path, standardize=choice), 2, **options) for choice in (False, True))
    assert len([line for line in said() if "differ by a factor" in line]) == 1
    # With one dimension of noise its scale is free, so that probabilistic PCA is the same model in any units.
    assert torch.allclose(ours["pPCA"].log_p.value, raw["pPCA"].log_p.value, atol=0.1)
    data = load(path, standardize=True)
    pca = PCA.fit(data.train.tensor(), 2)
    x = data.standardization.invert(data.test.tensor()[:20])
    error = (x - data.standardization.invert(pca.reconstruct(data.test.tensor()[:20]))).square().mean(-1)
    assert torch.allclose(ours["PCA"].squared_error, error, rtol=1e-6)
    # The same data: their scores compare.
    assert paired_difference(ours.scored("pPCA"), raw.scored("pPCA"))["mean"] == pytest.approx(0.0, abs=0.1)


def test_the_command_line_asks_for_it(tmp_path, path, capsys):
    assert DataOptions(name="x.csv", standardize=True).words() == ["--data", "x.csv", "--data.standardize"]
    words = ["fit", "--out", str(tmp_path / "run"), "--data", str(path), "--data.standardize", "--num-latents", "1"]
    words += ["--training.epochs", "1", "decoder:mlp", "--decoder.hidden", "4", "encoder:mlp", "--encoder.hidden", "4"]
    assert main([*words, "likelihood:gaussian-output-scale"]) == 0
    assert "standardize them" not in capsys.readouterr().err.lower()
    assert main(["fit", "--config", str(tmp_path / "run"), "--out", str(tmp_path / "again")]) == 0
    assert open_run(tmp_path / "again").vae.standardization is not None
    assert main([*words[:2], str(tmp_path / "no"), *words[3:], "likelihood:poisson"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "no").exists()


def test_a_study_describes_scales_once(tmp_path, said, monkeypatch):
    table_of = {"float": table(), "whole": table().round().astype(int)}
    study = {"axes": {"seed": [0, 1]}, "parts": {"likelihood": "gaussian-output-scale"}, "training": {"epochs": 1}}
    begun = []

    def refuse(folder, *, data, **_):
        begun.append(load(**data).standardization)
        raise ValueError("enough")

    monkeypatch.setattr("pyro_vae.study.running.fit_run", refuse)
    for number, (name, x) in enumerate(table_of.items(), 1):
        pd.DataFrame(x, columns=NAMES).to_csv(tmp_path / f"{name}.csv", index=False)
        data = {"name_or_path": str(tmp_path / f"{name}.csv")}
        run_study(Study(data=data, **study), tmp_path / name)
        assert len([line for line in said() if "differ by a factor" in line]) == number
        run_study(Study(data={**data, "standardize": True}, **study), tmp_path / f"{name}-standardized")
        assert len([line for line in said() if "differ by a factor" in line]) == number
    assert [units is not None for units in begun] == 2 * [False, False, True, True]


@pytest.mark.parametrize("units", [1.0, 1e3])
def test_a_table_in_its_own_units_is_not_called_coupled(tmp_path, units):
    """Rounding of inputs far from order 1 moves densities by much: that is no dependence on other rows."""
    torch.set_default_dtype(torch.float32)
    pd.DataFrame(units * table(600), columns=NAMES).to_csv(tmp_path / "x.csv", index=False)
    data = load(tmp_path / "x.csv")
    vae = vae_of(GaussianOutputScale(3), None)
    fit = fit_svi(vae.model, vae.guide, data.train, training=Training(epochs=1), validation=data.validation, seed=0)
    assert fit.num_steps > 0
