import dataclasses
import gzip
import os
import pickle
import urllib.error
import urllib.request
import warnings

import numpy as np
import pytest
import torch
from torchvision import datasets

from pyro_vae.data import load, named


@pytest.fixture
def offline(monkeypatch):
    def urlopen(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def splits(data):
    return data.train, data.validation, data.test


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------------------------ MNIST and its kind


@pytest.mark.parametrize(
    ("name", "mean", "first_labels"),
    [("mnist", 0.13066047627384, [7, 2, 1, 0, 4]), ("fashion-mnist", 0.28604059698880, [9, 2, 1, 1, 6])],
)
def test_original_images(image_folder, offline, name, mean, first_labels):
    data = load(name)
    assert [len(split) for split in splits(data)] == [50000, 10000, 10000]
    assert (data.image_shape, data.num_values) == ((28, 28), 784)
    assert data.test.labels[:5].tolist() == first_labels
    assert torch.equal(data.test.rows, torch.arange(10000))
    cut = [data.train, data.validation]
    assert torch.equal(torch.cat([split.rows for split in cut]).sort().values, torch.arange(60000))
    total = sum(split.stored.sum(dtype=torch.int64).item() for split in cut)
    assert total / 255 / 784 / 60000 == pytest.approx(mean, abs=1e-12)
    x = data.train[torch.arange(100)]
    assert x.min() == 0 and x.max() == 1 and x.dtype == torch.float64


PRINTS = {
    "mnist": {
        "none": "a189396f7076740df927469a13583d5ff1669a6f1a6a34c1f5d0381799b488af",
        "fixed": "5fe37f719bde58b2fee63c25b6f23e3dd9a19eaf66079e41f60f8b2c7b41ecfc",
        "dynamic": "2a359b6f4665150c24b47376b6af02cb240169c4daa2ae010c75ce5e8c06cb63",
    },
    "fashion-mnist": {
        "none": "8dcffdf31ee6878d42529ef9a160c3be180dcf6d3d51efd65570cd244a298045",
        "fixed": "6aab2f976e992b01a6a60310aeb8f6f55daac5dac12158f7f1e74d2aad96f898",
    },
}


@pytest.mark.parametrize(("name", "binarize"), [(name, each) for name, prints in PRINTS.items() for each in prints])
def test_split_and_values_are_those_of_every_release(image_folder, offline, name, binarize):
    data = load(name, binarize=binarize)
    assert data.fingerprint == PRINTS[name][binarize]
    assert (data.num_levels, data.level_step) == ((256, 1 / 255) if binarize == "none" else (2, 1.0))


def test_fixed_mnist_is_binary_and_quickly_read(image_folder, offline):
    data = load("mnist", binarize="fixed")
    x = data.validation.tensor()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    gray = load("mnist").validation.tensor()
    assert torch.equal(x[gray == 0], gray[gray == 0]) and torch.equal(x[gray == 1], gray[gray == 1])
    assert abs(x.mean() - gray.mean()) < 5e-4


def test_download_failure_names_the_folder_and_what_to_try(tmp_path, monkeypatch, offline, capsys):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="MNIST could not be downloaded into ") as error:
        load("mnist")
    text = one_line(error)
    for part in (str(tmp_path / "MNIST" / "raw"), "train-images-idx3-ubyte.gz", "copy", "PYRO_VAE_DATA"):
        assert part in text
    assert capsys.readouterr().out == "", "standard output belongs to results"


def test_damaged_archive_is_named(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(b"half a download")
    with pytest.raises(FileNotFoundError, match="damaged there: train-labels-idx1-ubyte.gz") as error:
        load("fashion-mnist")
    one_line(error)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes.fromhex("00000803 0000ea60 0000001c 0000001c") + b"only some pixels", id="cut short"),
        pytest.param(bytes.fromhex("00000803 00000001 0000001c 0000001c") + bytes(784), id="too few images"),
    ],
)
def test_damaged_unpacked_file_is_named(tmp_path, monkeypatch, offline, content):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "t10k-images-idx3"):
        (raw / f"{part}-ubyte").write_bytes(content)
    for part in ("train-labels-idx1", "t10k-labels-idx1"):
        (raw / f"{part}-ubyte").write_bytes(bytes.fromhex("00000801 00000001 05"))
    with pytest.raises(ValueError, match="unpacked files in .*raw are damaged.*delete them") as error:
        load("mnist")
    one_line(error)


def test_folder_that_cannot_be_written(tmp_path, monkeypatch, offline):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError, match="could not be downloaded into .*file/MNIST/raw") as error:
        load("mnist")
    one_line(error)


def test_default_folder_is_the_cache_of_the_user(tmp_path, monkeypatch, offline):
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "cache" / "pyro-vae" / "MNIST" / "raw")):
        load("mnist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / ".cache" / "pyro-vae" / "MNIST" / "raw")):
        load("mnist")


# ------------------------------------------------------------------------------- other data sets, from tiny archives


def shrink(monkeypatch, name, **sizes):
    """Let the data set be as small as what the test wrote."""
    monkeypatch.setitem(named._OFFICIAL, name, dataclasses.replace(named._OFFICIAL[name], **sizes))


def write_idx(path, array):
    """The format of MNIST: a magic number with the type and the number of dimensions, the sizes, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = [0x0800 + array.ndim, *array.shape]
    path.write_bytes(np.array(header, ">i4").tobytes() + array.astype(np.uint8).tobytes())


def images(num_data, seed):
    return np.random.default_rng(seed).integers(0, 256, (num_data, 28, 28)), np.arange(num_data) % 7


@pytest.mark.parametrize(
    ("name", "files", "transposed"),
    [
        pytest.param("kmnist", "KMNIST/raw/{}-{}-ubyte", False, id="kmnist"),
        *[
            pytest.param(f"emnist-{part}", f"EMNIST/raw/emnist-{part}-{{}}-{{}}-ubyte", True, id=part)
            for part in ("balanced", "letters", "digits")
        ],
    ],
)
def test_images_are_upright_and_keep_their_split(tmp_path, monkeypatch, offline, name, files, transposed):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    shrink(monkeypatch, name, num_train=12, num_test=5, num_validation=4)
    content = {}
    for which, num_data in (("train", 12), ("test", 5)):
        content[which] = images(num_data, seed=num_data)
        stored = content[which][0].swapaxes(1, 2) if transposed else content[which][0]
        prefix = "t10k" if name == "kmnist" and which == "test" else which
        write_idx(tmp_path / files.format(prefix, "images-idx3"), stored)
        write_idx(tmp_path / files.format(prefix, "labels-idx1"), content[which][1])
    data = load(name)
    assert [len(split) for split in splits(data)] == [8, 4, 5]
    assert (data.image_shape, data.num_levels, data.level_step) == ((28, 28), 256, 1 / 255)
    for split in splits(data):
        x, labels = content["test" if split.name == "test" else "train"]
        expected = torch.from_numpy(x).reshape(-1, 784)[split.rows] / 255
        torch.testing.assert_close(split.tensor(), expected)
        assert torch.equal(split.labels, torch.from_numpy(labels)[split.rows])


def test_official_sizes():
    sizes = {name: (each.num_train, each.num_test, each.num_validation) for name, each in named._OFFICIAL.items()}
    assert sizes["kmnist"] == sizes["mnist"] == (60000, 10000, 10000)
    assert sizes["emnist-balanced"] == (112800, 18800, 18800)
    assert sizes["emnist-letters"] == (124800, 20800, 20800)
    assert sizes["emnist-digits"] == (240000, 40000, 40000)
    assert sizes["cifar10"] == (50000, 10000, 5000)


def warn_as_numpy_does():
    warnings.warn("dtype(): align should be passed as Python or NumPy boolean but got `align=0`.", stacklevel=1)


class OfPython2:
    """Warns at unpickling, as the original files do with NumPy 2.4.0 to 2.4.4."""

    def __reduce__(self):
        return warn_as_numpy_does, ()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with a tiny CIFAR-10; returns its images, channels last, and its labels by split."""
    from torchvision.datasets.utils import calculate_md5

    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    shrink(monkeypatch, "cifar10", num_train=10, num_test=3, num_validation=2)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    content = {"train": ([], []), "test": ([], [])}
    lists = {"train": [], "test": []}
    for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        which, num_data = ("test", 3) if file == "test_batch" else ("train", 2)
        x, labels = (
            generator.integers(0, 256, (num_data, 3, 32, 32)).astype(np.uint8),
            [int(file[-1] == "2")] * num_data,
        )
        entry = {"data": x.reshape(num_data, -1), "labels": labels, "type": OfPython2()}
        (folder / file).write_bytes(pickle.dumps(entry))
        lists[which].append([file, calculate_md5(folder / file)])
        content[which][0].append(np.moveaxis(x, 1, -1))
        content[which][1].extend(labels)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists["train"])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists["test"])
    meta = dict(datasets.CIFAR10.meta, md5=calculate_md5(folder / "batches.meta"))
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return {which: (np.concatenate(x), np.array(labels)) for which, (x, labels) in content.items()}


def test_cifar_has_its_channels_last(cifar, offline):
    data = load("cifar10")
    assert [len(split) for split in splits(data)] == [8, 2, 3]
    assert (data.image_shape, data.num_values, data.num_levels) == ((32, 32, 3), 3072, 256)
    for split in splits(data):
        x, labels = cifar["test" if split.name == "test" else "train"]
        torch.testing.assert_close(split.tensor(), torch.from_numpy(x / 255).reshape(len(x), -1)[split.rows])
        assert torch.equal(split.labels, torch.from_numpy(labels)[split.rows])


def test_damaged_cifar_is_named(cifar, tmp_path, offline):
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"half")
    with pytest.raises(ValueError, match="CIFAR10: unpacked files in .*cifar-10-batches-py are damaged") as error:
        load("cifar10")
    one_line(error)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("kmnist", ["KMNIST could", "KMNIST/raw", "the 4 original archives (train-images-idx3-ubyte.gz"]),
        ("emnist-letters", ["EMNIST could", "EMNIST/raw", "the original archive (gzip.zip)"]),
        (
            "cifar10",
            ["CIFAR10 could", "the original archive (cifar-10-python.tar.gz)", "a folder that holds cifar-10-py"],
        ),
    ],
)
def test_without_a_network_the_folder_and_the_files_are_named(tmp_path, monkeypatch, offline, name, parts):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not be downloaded into ") as error:
        load(name)
    text = one_line(error)
    for part in (str(tmp_path), "copy", "PYRO_VAE_DATA", *parts):
        assert part in text


@pytest.mark.parametrize(
    ("name", "archive"), [("emnist-digits", "EMNIST/raw/gzip.zip"), ("cifar10", "cifar-10-python.tar.gz")]
)
def test_half_an_archive_is_named(tmp_path, monkeypatch, offline, name, archive):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    (tmp_path / archive).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / archive).write_bytes(gzip.compress(b"half a download"))
    with pytest.raises(FileNotFoundError, match=f"damaged there: {(tmp_path / archive).name}"):
        load(name)


# ------------------------------------------------------------------------------------------------ cut and forged files


@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_idx_files_cut_at_every_boundary(tmp_path, monkeypatch, offline, part):
    """Magic number, sizes, one image less a byte, all less a byte; and one byte too many."""
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    shrink(monkeypatch, "kmnist", num_train=12, num_test=5, num_validation=4)
    raw = tmp_path / "KMNIST" / "raw"
    for which, num_data in (("train", 12), ("t10k", 5)):
        x, labels = images(num_data, seed=0)
        write_idx(raw / f"{which}-images-idx3-ubyte", x)
        write_idx(raw / f"{which}-labels-idx1-ubyte", labels)
    assert len(load("kmnist").train) == 8
    for which in ("train", "t10k"):
        path = raw / f"{which}-{part}-ubyte"
        content = path.read_bytes()
        boundaries = [0, 1, 2, 3, 4, 7, 8, 11, 12, 15, 16, 16 + 783, len(content) - 785, len(content) - 1]
        for size in {size for size in boundaries if size < len(content)}:
            path.write_bytes(content[:size])
            with pytest.raises(ValueError, match="KMNIST: unpacked files in .*raw are damaged.*delete them") as error:
                load("kmnist")
            one_line(error)
        path.write_bytes(content + b"x")
        with pytest.raises(ValueError, match="KMNIST: unpacked files in .*raw are damaged"):
            load("kmnist")
        path.write_bytes(content)
    assert len(load("kmnist").train) == 8


@pytest.mark.parametrize(
    "header",
    [
        pytest.param([0x0803, 2**31 - 1, 28, 28], id="images beyond any memory"),
        pytest.param([0x0803, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF], id="sizes whose product has no end"),
        pytest.param([0x08FF, 12, 28, 28], id="255 dimensions"),
        pytest.param([0x0803, 0, 28, 28], id="no images"),
        pytest.param([0x0D03, 12, 28, 7], id="real numbers"),
        pytest.param([0x0C03, 12, 28, 7], id="other integers"),
        pytest.param([0xFF03, 12, 28, 28], id="no type"),
    ],
)
def test_idx_headers_that_lie(tmp_path, monkeypatch, offline, header):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    shrink(monkeypatch, "kmnist", num_train=12, num_test=5, num_validation=4)
    raw = tmp_path / "KMNIST" / "raw"
    for which, num_data in (("train", 12), ("t10k", 5)):
        x, labels = images(num_data, seed=0)
        write_idx(raw / f"{which}-images-idx3-ubyte", x)
        write_idx(raw / f"{which}-labels-idx1-ubyte", labels)
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(np.array(header, ">u4").tobytes() + path.read_bytes()[16:])
    with pytest.raises(ValueError, match="KMNIST: unpacked files in .*raw are damaged") as error:
        load("kmnist")
    one_line(error)


def test_gzip_archives_cut_at_every_boundary(tmp_path, monkeypatch, offline):
    """The checksum of an archive is looked at before it is unpacked."""
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    content = gzip.compress(bytes(2**16))
    for size in (0, 1, 2, 3, 9, 10, len(content) // 2, len(content) - 8, len(content) - 1, len(content)):
        (raw / "train-images-idx3-ubyte.gz").write_bytes(content[:size])
        with pytest.raises(FileNotFoundError, match="damaged there: train-images-idx3-ubyte.gz") as error:
            load("kmnist")
        one_line(error)
        assert not (raw / "train-images-idx3-ubyte").exists()


def test_a_forged_pickle_of_cifar_is_not_run(cifar, tmp_path, offline):
    """The format of CIFAR-10 is a pickle, so only the official bytes are read."""

    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for file in ("data_batch_1", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Command()))
        with pytest.raises((ValueError, FileNotFoundError), match="CIFAR10") as error:
            load("cifar10")
        one_line(error)
    assert not (tmp_path / "executed").exists()
