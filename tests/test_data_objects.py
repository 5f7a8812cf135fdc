import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pyro_vae.data import load

X = torch.linspace(0, 1, 60).reshape(20, 3)


class Items(Dataset):
    """What a list holds, as a map-style data set."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Jittered(Items):
    def __getitem__(self, index):
        return self.items[index] + torch.rand(3)


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0]

    def __len__(self):
        return 20


def splits(data):
    return data.train, data.validation, data.test


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: TensorDataset(X, torch.arange(20)), id="tensors"),
        pytest.param(lambda: Items([(row, i) for i, row in enumerate(X)]), id="pairs"),
        pytest.param(lambda: Items([(row.numpy(), np.int64(i), "more") for i, row in enumerate(X)]), id="arrays"),
        pytest.param(lambda: Subset(TensorDataset(X, torch.arange(20)), range(20)), id="subset"),
    ],
)
def test_data_sets_are_stacked_with_their_labels(make):
    dataset = make()
    data = load(dataset)
    assert data.name == type(dataset).__name__
    assert [len(split) for split in splits(data)] == [14, 2, 4]
    for split in splits(data):
        assert torch.equal(split.tensor(), X.double()[split.rows])
        assert torch.equal(split.labels, split.rows)
    assert data.fingerprint == load(X).fingerprint


@pytest.mark.parametrize(
    "data",
    [X, X.numpy(), X.clone().requires_grad_(), Items(list(X)), TensorDataset(X)],
    ids=["tensor", "array", "parameter", "items", "tensors"],
)
def test_x_alone(data):
    loaded = load(data, split_seed=2, num_test=6)
    assert len(loaded.test) == 6 and loaded.test.labels is None
    assert torch.equal(loaded.test.tensor(), X.double()[loaded.test.rows])
    assert not loaded.test.tensor().requires_grad


def test_options_apply():
    data = load(TensorDataset((X * 200).byte()), binarize="fixed")
    assert (data.num_levels, data.max_value) == (2, 1)
    assert load(TensorDataset((X * 200).byte())).num_levels == 256
    missing = X.clone()
    missing[3, 1] = torch.nan
    assert load(missing, missing="keep").has_missing


def test_images_have_their_channels_last():
    images = torch.rand(20, 3, 8, 6)
    data = load(Items(list(images)))
    assert data.image_shape == (8, 6, 3)
    assert torch.equal(data.test.tensor(), images.double().movedim(1, -1).reshape(20, -1)[data.test.rows])
    assert load(Items(list(images[:, :1]))).image_shape == (8, 6)


def test_pil_images_are_gray_levels():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 8, 6, 3)).astype(np.uint8)
    data = load(Items([(Image.fromarray(image), 0) for image in pixels]))
    assert (data.image_shape, data.num_levels) == ((8, 6, 3), 256)
    torch.testing.assert_close(data.test.tensor(), torch.from_numpy(pixels / 255.0).reshape(20, -1)[data.test.rows])


def test_read_only_and_other_types_are_copied():
    frozen = X.numpy().copy()
    frozen.flags.writeable = False
    data = load(frozen)
    data.train[:].mul_(0)
    assert torch.equal(data.test.tensor(), X.double()[data.test.rows])
    assert torch.equal(load(X.bfloat16()).test.tensor(), X.bfloat16().double()[data.test.rows])


def test_the_data_do_not_follow_the_object():
    x = X.clone()
    data = load(x)
    x.zero_()
    assert torch.equal(data.test.tensor(), X.double()[data.test.rows])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: 3, "expected a name, a path, an array or .* got a int", id="number"),
        pytest.param(lambda: [X], "got a list. Stack the values", id="list"),
        pytest.param(lambda: Endless(), "map-style torch data set .* got a Endless", id="iterable"),
        pytest.param(lambda: Items([]), "Items is empty: expected at least one", id="empty"),
        pytest.param(
            lambda: Items([X[0]] * 5 + [X[0, :2]]), r"item 5 has shape \(2,\).*the first, \(3,\)", id="ragged"
        ),
        pytest.param(lambda: Items([X[0], X[0].double()]), "item 1 has .* type float64: .* float32", id="types"),
        pytest.param(lambda: Jittered(list(X)), "Jittered draws x anew at each access.*random transforms", id="random"),
        pytest.param(lambda: Items([{"x": X[0]}] * 20), "got a dictionary with x", id="dictionaries"),
        pytest.param(lambda: Items([X[0, 0]] * 20), r"x has shape \(20,\): expected rows", id="numbers"),
        pytest.param(lambda: Items([(X[0], 0.5)] * 20), "label has .*float64: expected 20 integers", id="real labels"),
        pytest.param(lambda: Items([(X[0], 1), (X[0],)] * 10), "label has .* expected 20 integers", id="some labels"),
        pytest.param(lambda: X * torch.nan, "Tensor: x has NaN or infinity in 20 rows", id="NaN"),
        pytest.param(lambda: X.reshape(20, 3, 1, 1, 1), r"x has shape \(20, 3, 1, 1, 1\)", id="5-D"),
    ],
)
def test_bad_objects(make, message):
    with pytest.raises(ValueError, match=message) as error:
        load(make())
    assert "\n" not in str(error.value)


def test_options_of_files_are_refused():
    with pytest.raises(ValueError, match=r"key='x': an option of \.npz files, which 'Tensor' is not"):
        load(X, key="x")


def foreign(module):
    """An object of another library's class, which must not be read to be told."""

    def read(*_):
        raise AssertionError("it was read")

    return type("Foreign", (), {"__module__": module, "__len__": read, "__getitem__": read})()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: sparse.coo_array(X[0].numpy()), r"shape \(3,\): expected sparse rows", id="1-D sparse"),
        pytest.param(lambda: sparse.csr_array(X.numpy() + 1j), "type complex.*astype", id="complex sparse"),
        pytest.param(lambda: sparse.csr_array(X.numpy() + np.nan), "csr_array: x has NaN .* 20 rows", id="sparse NaN"),
        pytest.param(lambda: foreign("anndata._core.anndata"), r"an AnnData object.*load\(adata\.X\)", id="anndata"),
        pytest.param(lambda: foreign("datasets.arrow_dataset"), r"Hugging Face.*with_format\('numpy'\)", id="datasets"),
        pytest.param(lambda: foreign("polars.dataframe.frame"), r"a polars table\. Pass its \.to_numpy", id="polars"),
        pytest.param(lambda: DataLoader(TensorDataset(X)), r"a DataLoader.*Pass its \.dataset", id="loader"),
        pytest.param(lambda: {"x": X, "y": X}, r"a dictionary with x, y\. Pass the values of one key", id="dictionary"),
        pytest.param(lambda: [{"x": X[0]}] * 20, r"a list of dictionaries with x\. Stack", id="list of items"),
        pytest.param(lambda: Items([{"x": X[0], "y": 1}] * 20), "got a dictionary with x, y. Stack", id="tensors"),
        pytest.param(lambda: Items([{"x": [1.0, 2.0]}] * 20), "got a dictionary with x. Stack", id="lists"),
        pytest.param(lambda: np.full((20, 2), 2**63 + 5, np.uint64), "below 2..63.*got 9223372036854775813", id="wide"),
    ],
)
def test_containers_of_other_libraries_are_named(make, message):
    with pytest.raises(ValueError, match=message) as error:
        load(make())
    assert "\n" not in str(error.value)


def test_the_range_is_that_of_all_splits():
    x = np.zeros((200, 2), int)
    x[load(x).test.rows[0], 1] = 25
    assert load(x).max_value == 25, "the default likelihood of counts must take held-out counts, too"


def test_a_folder_of_images_is_refused_with_the_way_to_stack_them(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"got a folder\. .*np\.stack\(.*glob\('\*\.png'\)") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
