"""Data in their own units: the map of `load(standardize=True)`, and densities and draws that do not depend on it."""

import logging
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from pyro_vae.data import Standardization, load

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
