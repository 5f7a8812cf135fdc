"""Sparse matrices: the same data as the dense ones, which are never made."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import sparse

from inference import Amortized, MeanField, Training, fit_em, fit_svi, measure_gaps
from pyro_vae.data import load
from pyro_vae.data.streams import DrawnRows, SparseRows
from pyro_vae.linear import LinearGaussian

COUNTS = np.random.default_rng(0).poisson(0.3, (60, 20))
LAYOUTS = ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")
STORED = ("csr", "csc", "coo", "bsr", "dia")


def same(found, dense):
    assert isinstance(found.train.stored, SparseRows | DrawnRows)
    assert found.fingerprint == dense.fingerprint
    for name in ("num_levels", "min_value", "max_value", "has_missing", "is_real", "divisor"):
        assert getattr(found, name) == getattr(dense, name), name
    for which in ("train", "validation", "test"):
        ours, theirs = getattr(found, which).fix(), getattr(dense, which).fix()
        torch.testing.assert_close(ours.tensor(), theirs.tensor(), rtol=0, atol=0, equal_nan=True)
        index = torch.tensor([1, 0, 1])
        torch.testing.assert_close(ours[index], theirs[index], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_dense_data(layout, kind):
    same(load(getattr(sparse, f"{layout}_{kind}")(COUNTS)), load(COUNTS))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize(
    "options", [{}, {"binarize": "fixed"}, {"binarize": "dynamic"}, {"standardize": True}], ids=str
)
def test_every_type_and_option_is_that_of_the_dense_data(dtype, options):
    x = (COUNTS > 0 if "binarize" in options else COUNTS).astype(dtype)
    same(load(sparse.csr_array(x), **options), load(x, **options))


def test_entries_in_disorder():
    # Two entries at (0, 1) are added up, a zero and a NaN are written down, and columns come in any order.
    rows, columns, values = [0, 0, 0, 1, 2], [1, 3, 1, 0, 2], [2.0, 5.0, 1.0, 0.0, np.nan]
    made = sparse.coo_array((values, (rows, columns)), shape=(20, 4))
    unsorted = sparse.csr_array(([5.0, 2.0, 1.0, 0.0, np.nan], [3, 1, 1, 0, 2], [0, 3, 4, 5, *[5] * 17]), shape=(20, 4))
    for matrix in (made, unsorted):
        entries = matrix.nnz
        same(load(matrix, missing="keep"), load(made.toarray(), missing="keep"))
        assert matrix.nnz == entries, "the matrix of the caller must stay as it is"


def test_the_data_do_not_follow_the_matrix():
    matrix = sparse.csr_array(COUNTS)
    data = load(matrix)
    matrix.data[:] = 7
    assert torch.equal(data.train.tensor(), load(COUNTS).train.tensor())


@pytest.mark.parametrize("layout", STORED)
def test_files_by_save_npz(tmp_path, layout):
    path = tmp_path / "x.npz"
    sparse.save_npz(path, getattr(sparse, f"{layout}_array")(COUNTS))
    same(load(path), load(COUNTS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"indices": np.full(3, 10**6)}, "cannot be read .*indices", id="columns outside"),
        pytest.param({"indptr": np.array([0, 9, 3])}, "cannot be read", id="rows outside"),
        pytest.param({"indices": np.zeros(3)}, "indices that are no integers", id="real indices"),
        pytest.param({"shape": np.array([10**13, 4])}, "takes .* of memory are free", id="rows beyond memory"),
        pytest.param({"shape": np.array([2, 10**13])}, "takes .* of memory are free", id="columns beyond memory"),
        pytest.param({"shape": np.array([8])}, "cannot be read .*shape", id="shape"),
        pytest.param({"format": np.array(b"xyz")}, "cannot be read .layout 'xyz'", id="layout"),
        pytest.param({"format": np.array([1, 2])}, "cannot be read", id="no layout"),
    ],
)
def test_damaged_files_are_refused(tmp_path, changes, message):
    matrix = sparse.csr_array(([1, 2, 3], [0, 1, 3], [0, 2, 3]), shape=(2, 4))
    arrays = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": np.array([2, 4])}
    np.savez(tmp_path / "x.npz", **{**arrays, "format": np.array(b"csr"), **changes})
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "x.npz")
    assert "x.npz" in str(error.value) and "\n" not in str(error.value)


def test_the_dense_table_is_never_made(monkeypatch):
    rng = np.random.default_rng(0)
    places = rng.integers(0, 20_000, 100_000), rng.integers(0, 5_000, 100_000)
    matrix = sparse.csr_array((rng.integers(1, 9, 100_000), places), shape=(20_000, 5_000))
    sizes, dense = [], sparse.csr_array.toarray

    def toarray(self, *words, **options):
        sizes.append(self.shape[0] * self.shape[1])
        return dense(self, *words, **options)

    monkeypatch.setattr(sparse.csr_array, "toarray", toarray)
    tracemalloc.start()
    try:
        data = load(matrix)
        x = data.train[torch.arange(100)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.shape == (100, 5_000) and len(data.train) == 14_000
    # A block of rows; all of them are 10^8 values, 800 MB.
    assert 0 < max(sizes) <= 2**20 and peak < 60e6


def test_engines_read_sparse_rows():
    numbers = []
    for x in (COUNTS.astype(np.float32), sparse.csr_array(COUNTS.astype(np.float32))):
        data = load(x)
        torch.manual_seed(0)
        # A fit trains the model, too.
        exact = LinearGaussian(torch.randn(20, 2), torch.zeros(20), 1.0)
        guide = Amortized(MeanField(2), torch.nn.Linear(20, 4))
        svi = fit_svi(exact.model, guide, data.train, training=Training(epochs=2, batch_size=8), seed=0)
        em = fit_em(exact.model, MeanField(2), data.train, training=Training(epochs=2, batch_size=8), seed=0)
        gaps = measure_gaps(exact.model, guide, data.test, seed=0)
        numbers.append([svi.history["elbo"], em.history["elbo"], repr(gaps)])
    assert repr(numbers[0]) == repr(numbers[1])


def test_a_matrix_itself_is_no_data_of_an_engine():
    exact = LinearGaussian(torch.ones(20, 2), torch.zeros(20), 1.0)
    guide = Amortized(MeanField(2), torch.nn.Linear(20, 4))
    with pytest.raises(TypeError, match=r"got a sparse csr_array\. Pass pyro_vae\.load\(data\)\.train"):
        fit_svi(exact.model, guide, sparse.csr_array(COUNTS * 1.0))
