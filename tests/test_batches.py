import numpy as np
import pytest
import torch

from inference.batches import Data, chunks, fetch, require_data, require_fixed


class View:
    """A data set of a user's own: drawn anew at each access, if it says so."""

    def __init__(self, x, *, resamples=False):
        self.x = x
        self.resamples = resamples

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


def as_memory_map(x, tmp_path):
    np.save(tmp_path / "x.npy", x.numpy())
    return np.load(tmp_path / "x.npy", mmap_mode="r")


@pytest.mark.parametrize(
    "wrap",
    [lambda x, _: x, lambda x, _: x.numpy(), as_memory_map, lambda x, _: View(x)],
    ids=["tensor", "array", "memory map", "view"],
)
def test_fetch(wrap, tmp_path):
    x = torch.randn(10, 3)
    data = wrap(x, tmp_path)
    assert isinstance(data, Data) and require_data(data) == require_fixed(data, purpose="a test") == 10
    for index in (torch.tensor([7, 2, 2]), torch.arange(10), torch.tensor([4])):
        rows = fetch(data, index)
        assert isinstance(rows, torch.Tensor) and torch.equal(rows, x[index])
    assert fetch(data, torch.tensor([0]), device=torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(10), r"expected 2 vectors of shape \(B, P\); got shape \(2,\). Flatten"),
        (torch.zeros(10, 4, 4), r"got shape \(2, 4, 4\). Flatten"),
        (View(torch.utils.data.TensorDataset(torch.zeros(10, 3), torch.zeros(10))), r"got a tuple. Pass the x"),
    ],
    ids=["numbers", "images", "pairs"],
)
def test_fetch_of_what_is_no_vector(data, message):
    with pytest.raises(ValueError, match="^data: .*" + message):
        fetch(data, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "data", [None, 3, iter([]), [[1.0]], ((1.0,),), {0: 1.0}, "x"], ids=lambda data: type(data).__name__
)
def test_what_cannot_be_read_by_index(data):
    with pytest.raises(TypeError, match=rf"^held-out: expected a tensor \(N, P\).*got {type(data).__name__}"):
        require_data(data, name="held-out")


def test_empty_data():
    with pytest.raises(ValueError, match="^validation: expected at least one datapoint; got none"):
        require_fixed(torch.zeros(0, 3), name="validation", purpose="refine")


def test_data_that_changes():
    data = View(torch.zeros(4, 2), resamples=True)
    assert require_data(data) == 4
    with pytest.raises(ValueError, match="^data: refine needs a fixed x for each datapoint"):
        require_fixed(data, purpose="refine")


@pytest.mark.parametrize(
    ("num_data", "size", "expected"),
    [(5, 2, [(0, 2), (2, 4), (4, 5)]), (4, 2, [(0, 2), (2, 4)]), (3, 8, [(0, 3)]), (0, 8, [])],
    ids=str,
)
def test_chunks(num_data, size, expected):
    assert list(chunks(num_data, size)) == expected


def test_a_sparse_matrix_is_named_before_it_is_asked_for_its_length():
    from scipy import sparse

    for kind in (sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix):
        with pytest.raises(TypeError, match=rf"data: .*sparse {kind.__name__}\. Pass pyro_vae\.load\(data\)\.train"):
            require_data(kind(np.eye(3)))
