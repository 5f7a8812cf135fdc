import errno
import os
import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from pyro_vae.data import files, load
from pyro_vae.data.streams import DrawnRows, FileRows, StoredArray

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
        assert isinstance(one.stored, FileRows) and isinstance(one.stored.array, StoredArray)
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
    path = save(x)
    streamed, read = (load(path, stream=stream, missing="keep") for stream in (True, False))
    assert streamed.fingerprint == read.fingerprint and streamed.has_missing
    torch.testing.assert_close(streamed.test.tensor(), read.test.tensor(), equal_nan=True, rtol=0, atol=0)


def test_a_memory_map_is_streamed(save):
    path = save(GRAY)
    data = load(np.load(path, mmap_mode="r"))
    assert isinstance(data.test.stored, FileRows)
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
    monkeypatch.setattr("pyro_vae.data.streams._BLOCK_BYTES", 8 * 30 * 4)
    with pytest.raises(ValueError, match=message) as error:
        load(save(array), stream=True, **options)
    assert "data.npy" in str(error.value) and "\n" not in str(error.value)


def test_bad_archives_are_not_mapped(tmp_path):
    np.savez(tmp_path / "data.npz", x=GRAY)
    with pytest.raises(ValueError, match="stream=True: .*np.save, because an archive cannot be streamed"):
        load(tmp_path / "data.npz", stream=True)
    assert len(load(tmp_path / "data.npz", stream=False).test) == 10


def test_bits_belong_to_their_row(save):
    stored = load(save(GRAY), stream=True, binarize="fixed").train.stored
    index = torch.tensor([7, 2, 3, 4, 0])
    assert torch.equal(stored.take(index)[:], stored[index])
    assert torch.equal(stored.take(index).take(torch.tensor([3, 0]))[:], stored[torch.tensor([4, 7])])


# ------------------------------------------------------------------------------- a file that changes, or is gone


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-700])


def rewrite(path):
    later = path.stat().st_mtime_ns + 10**9
    np.save(path, 255 - GRAY)
    os.utime(path, ns=(later, later))


def replace(path):
    """By another file of the same size and time: a rename."""
    before = path.stat()
    other = path.with_name("other.npy")
    np.save(other, 255 - GRAY)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(cut_short, ValueError, "has changed while it was in use.*size.*load it again", id="cut short"),
        pytest.param(rewrite, ValueError, "has changed .*time of writing", id="written anew"),
        pytest.param(replace, ValueError, "has changed .*inode", id="replaced"),
        pytest.param(lambda path: path.unlink(), FileNotFoundError, "is gone: .*bring it back", id="gone"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), ValueError, "no regular file", id="a folder now"),
    ],
)
@pytest.mark.parametrize("binarize", ["none", "fixed", "dynamic"])
def test_a_file_that_changes_gives_no_wrong_numbers(save, change, error, message, binarize):
    path = save(GRAY)
    data = load(path, stream=True, binarize=binarize)
    change(path)
    for index in (torch.tensor([3, 1]), slice(2), -1):
        with pytest.raises(error, match=message) as caught:
            data.train[index]
        assert "data.npy" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_changes_between_its_bytes(save, monkeypatch):
    """While rows are read, after the look at its state and before its last byte."""
    path = save(GRAY)
    data = load(path, stream=True)
    read = os.preadv

    def cut_first(handle, buffers, position):
        os.truncate(path, 300)
        return read(handle, buffers, position)

    monkeypatch.setattr(os, "preadv", cut_first)
    with pytest.raises(ValueError, match="data.npy has changed while it was in use"):
        data.train[:]


@pytest.mark.parametrize("name", ["data.npy", "data.npz", "data.csv"])
def test_a_file_that_is_written_while_it_is_read_whole(tmp_path, monkeypatch, name):
    path = tmp_path / name
    if name == "data.csv":
        path.write_text("a,b\n" + "1,2\n" * 50)
    else:
        {"data.npy": np.save, "data.npz": np.savez}[name](path, GRAY) if name == "data.npy" else np.savez(path, x=GRAY)
    state, calls = os.fstat, []

    def write_second(handle):
        calls.append(handle)
        if len(calls) == 2:
            os.utime(path, ns=(0, 0))
        return state(handle)

    monkeypatch.setattr("pyro_vae.data.streams.os.fstat", write_second)
    with pytest.raises(ValueError, match=f"{name}.* has changed while it was in use"):
        load(path)


def test_a_file_system_that_fails(save, monkeypatch):
    data = load(save(GRAY), stream=True)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="data.npy cannot be read .Input/output error."):
        data.train[:]


def test_reads_may_come_in_pieces(save, monkeypatch):
    data = load(save(GRAY), stream=True)
    whole, read = data.train.tensor(), os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, buffers, at: read(handle, [buffers[0][:7]], at))
    assert torch.equal(data.train.tensor(), whole)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda array: array[5:40], id="rows"),
        pytest.param(lambda array: array[40:4:-3], id="every third, backwards"),
        pytest.param(lambda array: array[:, 1:4], id="part of a row"),
        pytest.param(lambda array: array[::2, 2], id="one line of each image"),
    ],
)
def test_views_of_a_memory_map_are_read_from_its_file(tmp_path, view):
    # An offset beyond the first page of the map.
    GRAY.tofile(tmp_path / "raw")
    large = np.memmap(tmp_path / "large", np.uint8, "w+", 8192, (50, 6, 5))
    large[:] = GRAY
    large.flush()
    array = view(np.memmap(tmp_path / "large", np.uint8, "r", 8192, (50, 6, 5)))
    data, read = load(array), load(np.array(array))
    assert isinstance(data.train.stored, FileRows) and data.fingerprint == read.fingerprint
    assert torch.equal(data.test.tensor(), read.test.tensor())


def test_changes_that_a_memory_map_keeps_to_itself_count(save):
    array = np.load(save(GRAY), mmap_mode="c")
    array[:] = 255 - GRAY
    data = load(array)
    assert isinstance(data.train.stored, torch.Tensor) and data.fingerprint == load(255 - GRAY).fingerprint


def test_streamed_rows_go_to_other_processes(save):
    data = load(save(GRAY), stream=True, binarize="fixed")
    assert torch.equal(pickle.loads(pickle.dumps(data.train)).tensor(), data.train.tensor())
