import tracemalloc

import numpy as np
import pytest
import torch

from pyro_vae.data import files, load
from pyro_vae.data.mapped import DrawnRows, MappedRows

GRAY = np.random.default_rng(0).integers(0, 256, (50, 6, 5)).astype(np.uint8)


@pytest.fixture
def save(tmp_path):
    def write(array):
        np.save(tmp_path / "data.npy", array)
        return tmp_path / "data.npy"

    return write


def splits(data):
    return data.train, data.validation, data.test


ARRAYS = {
    "gray": GRAY,
    "binary": GRAY.reshape(50, 30) > 99,
    "counts": GRAY.astype(np.int16),
    "big-endian": GRAY.reshape(50, 30).astype(">f4"),
    "half": GRAY.astype(np.float16),
    "real": GRAY.reshape(50, 6, 5, 1) / 7,
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_streamed_data_are_the_data(save, array):
    path = save(array)
    streamed, read = load(path, stream=True), load(path, stream=False)
    for name in ("fingerprint", "image_shape", "num_values", "num_levels", "level_step", "min_value", "max_value"):
        assert getattr(streamed, name) == getattr(read, name), name
    assert repr(streamed) == repr(read)
    for one, other in zip(splits(streamed), splits(read), strict=True):
        assert isinstance(one.stored, MappedRows) and isinstance(one.stored.array, np.memmap)
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.tensor(), other.tensor())
        index = torch.tensor([3, 0, 3, 4])
        assert torch.equal(one[index], other[index]) and one[index].dtype == torch.float64
        assert torch.equal(one[1:4], other[1:4]) and torch.equal(one[-1], other[-1])
        assert torch.equal(one.head(3).tensor(), other.head(3).tensor()) and len(one.head(3)) == 3


@pytest.mark.parametrize("array", [GRAY, GRAY / 255.0], ids=["gray", "real"])
def test_streamed_bits_are_the_bits(save, array):
    path = save(array)
    streamed, read = (load(path, stream=stream, binarize="fixed", binarize_seed=3) for stream in (True, False))
    dynamic = load(path, stream=True, binarize="dynamic", binarize_seed=3)
    assert streamed.fingerprint == read.fingerprint
    for one, other, drawn in zip(splits(streamed), splits(read), splits(dynamic), strict=True):
        assert isinstance(one.stored, DrawnRows)
        for split in (one, drawn.fix()):
            assert torch.equal(split.tensor(), other.tensor())
            assert torch.equal(split[torch.tensor([4, 3, 3, 0])], other[torch.tensor([4, 3, 3, 0])])
            assert torch.equal(split[2], other[2]) and split[:0].shape == (0, 30)
            assert torch.equal(split.head(4)[1:], other[1:4])
        assert not torch.equal(drawn.fix(seed=4).tensor(), other.tensor())
    assert not torch.equal(dynamic.train[:], dynamic.train[:])


def test_reading_leaves_the_file_alone(save):
    path = save(GRAY / 7)
    before = path.read_bytes()
    load(path, stream=True).train[:].mul_(0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("binarize", ["none", "fixed"])
def test_large_file_is_never_in_memory(tmp_path, monkeypatch, binarize):
    num_data, num_values = 30_000, 2_000
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (num_data, num_values)}
        np.lib.format.write_array_header_1_0(file, header)
        # All zeros but the last: the file takes no room on disk.
        file.seek(num_data * num_values - 1, 1)
        file.write(b"\xff")
    monkeypatch.setattr(files, "STREAM_BYTES", 2**20)
    tracemalloc.start()
    try:
        data = load(path, binarize=binarize)
        x = data.train[torch.arange(100)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.shape == (100, num_values)
    assert sum(len(split) for split in splits(data)) == num_data
    assert (data.num_levels, data.min_value) == (256 if binarize == "none" else 2, 0)
    # A copy of the file is 60 MB; a block of rows, in a type eight times as wide, 8 MB.
    assert peak < 25e6


def test_small_files_are_read(save):
    assert isinstance(load(save(GRAY)).train.stored, torch.Tensor)


def test_missing_values_stream(save):
    x = GRAY.reshape(50, 30) / 7
    x[::5, 3] = np.nan
    streamed, read = (load(save(x), stream=stream, missing="keep") for stream in (True, False))
    assert streamed.fingerprint == read.fingerprint and streamed.has_missing
    torch.testing.assert_close(streamed.test.tensor(), read.test.tensor(), equal_nan=True, rtol=0, atol=0)


def test_a_memory_map_is_streamed(save):
    path = save(GRAY)
    data = load(np.load(path, mmap_mode="r"))
    assert isinstance(data.test.stored, MappedRows)
    assert data.fingerprint == load(path).fingerprint


def with_value(value):
    x = GRAY / 255.0
    x[31, 2, 2] = value
    return x


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        pytest.param(with_value(np.nan), {}, "NaN or infinity in 1 row, the first is row 31.*missing='keep'", id="NaN"),
        pytest.param(with_value(np.inf), {"missing": "keep"}, "infinity in 1 row, the first is row 31", id="infinity"),
        pytest.param(with_value(1.5), {"binarize": "fixed"}, r"values in \[0, 1\], got 0 .. 1.5", id="range"),
        pytest.param(GRAY[0, 0], {}, r"x has shape \(5,\): expected rows", id="1-D"),
        pytest.param(
            np.asfortranarray(GRAY), {}, "stored column by column.*ascontiguousarray.*stream=False", id="columns"
        ),
        pytest.param(GRAY + 0j, {}, "type complex128: expected real numbers", id="complex"),
        pytest.param(np.array([{}] * 20), {}, "pickled Python objects.*refused", id="pickled"),
    ],
)
def test_bad_streams(save, monkeypatch, array, options, message):
    # Blocks of a few rows: what is wrong is not in the first.
    monkeypatch.setattr("pyro_vae.data.mapped._BLOCK_BYTES", 8 * 30 * 4)
    with pytest.raises(ValueError, match=message) as error:
        load(save(array), stream=True, **options)
    assert "data.npy" in str(error.value) and "\n" not in str(error.value)


def test_bad_archives_are_not_mapped(tmp_path):
    np.savez(tmp_path / "data.npz", x=GRAY)
    with pytest.raises(ValueError, match="stream=True: .*np.save, because an archive cannot be mapped"):
        load(tmp_path / "data.npz", stream=True)
    assert len(load(tmp_path / "data.npz", stream=False).test) == 10


def test_bits_belong_to_their_row(save):
    stored = load(save(GRAY), stream=True, binarize="fixed").train.stored
    index = torch.tensor([7, 2, 3, 4, 0])
    assert torch.equal(stored.take(index)[:], stored[index])
    assert torch.equal(stored.take(index).take(torch.tensor([3, 0]))[:], stored[torch.tensor([4, 7])])
