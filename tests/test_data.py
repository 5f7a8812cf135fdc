import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from pyro_vae.data import load

ROWS = np.arange(60.0).reshape(20, 3) / 60
BITS = ROWS.round()


@pytest.fixture
def save(tmp_path):
    """Write an array to a .npy file, or named arrays to a .npz file; returns the path as text."""

    def write(array=None, **arrays):
        path = tmp_path / ("data.npy" if array is not None else "data.npz")
        if array is not None:
            np.save(path, array, allow_pickle=True)
        else:
            np.savez(path, **arrays)
        return str(path)

    return write


def splits(data):
    return data.train, data.validation, data.test


# ------------------------------------------------------------------------------------------------------------ digits


def test_digits_are_the_whole_data_set_once():
    data = load("digits")
    assert [len(split) for split in splits(data)] == [1197, 200, 400]
    assert (data.image_shape, data.num_values, data.binarize) == ((8, 8), 64, "none")
    from sklearn.datasets import load_digits

    original = load_digits()
    rows = torch.cat([split.rows for split in splits(data)])
    x = torch.cat([split.tensor() for split in splits(data)])
    labels = torch.cat([split.labels for split in splits(data)])
    assert torch.equal(rows.sort().values, torch.arange(1797))
    assert torch.equal(x, torch.from_numpy(original.data)[rows])
    assert torch.equal(labels, torch.from_numpy(original.target)[rows])
    assert data.test.labels.bincount().min() >= 20


def test_split_does_not_depend_on_the_seed_of_the_run():
    pyro.set_rng_seed(1)
    first = load("digits")
    pyro.set_rng_seed(2)
    assert torch.equal(load("digits").test.rows, first.test.rows)
    assert not torch.equal(load("digits", split_seed=1).test.rows, first.test.rows)


def test_split_and_values_are_those_of_every_release():
    assert load("digits").fingerprint == "c52572a35ba0e10acb9bf067ba71a1e3d80f85873dc219750b62c8521cc17ca8"
    assert (
        load("digits", binarize="fixed").fingerprint
        == "9014965507075386a2807e12ebb9dbfed3b8adfed394c131eb25b054ab212b5c"
    )


# ------------------------------------------------------------------------------------------------------------ access


def test_index_reads_rows_at_the_default_type():
    data = load("digits")
    index = torch.tensor([7, 0, 7])
    assert torch.equal(data.train[index], data.train.tensor()[index])
    assert data.train[index].dtype == torch.float64
    torch.set_default_dtype(torch.float32)
    assert load("digits").train[index].dtype == torch.float32
    assert data.train[index].dtype == torch.float64, "the type is that of the call to load"


@pytest.mark.parametrize("binarize", ["none", "fixed", "dynamic"])
def test_reading_leaves_the_data_alone(save, binarize):
    data = load(save(BITS), binarize=binarize)
    before = data.train.stored.clone()
    data.train[:].mul_(0) if binarize == "dynamic" else data.train[torch.arange(3)].mul_(0)
    assert torch.equal(data.train.stored, before)


def test_head_is_the_first_rows():
    test = load("digits").test
    head = test.head(5)
    assert len(head) == len(head.labels) == len(head.rows) == 5
    assert torch.equal(head.tensor(), test.tensor()[:5])
    assert len(test.head(1000)) == 400


def test_repr_is_one_screen_and_names_the_choices():
    text = repr(load("digits", binarize="fixed", binarize_seed=3))
    assert text.count("\n") < 10
    for part in ("digits", "8 x 8", "64", "1197", "200", "400", "fixed", "seed 3", "fingerprint"):
        assert part in text
    assert repr(load("digits", binarize="dynamic").test) == "Split('test', 400 x 64, resamples)"


# ------------------------------------------------------------------------------------------------------ binarization


def test_dynamic_draws_anew_with_the_stated_probability():
    split = load("digits", binarize="dynamic").test.head(50)
    assert split.resamples
    assert not torch.equal(split[:], split[:])
    draws = torch.stack([split[:] for _ in range(400)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    probability = load("digits").test.head(50).tensor() / 16
    error = (draws.mean(0) - probability) / (probability * (1 - probability) / 400).sqrt().clamp(min=1e-9)
    assert error.abs().max() < 5.5
    assert torch.equal(draws.mean(0)[probability == 0], probability[probability == 0])
    assert torch.equal(draws.mean(0)[probability == 1], probability[probability == 1])


def test_dynamic_follows_the_global_generator():
    split = load("digits", binarize="dynamic").test
    pyro.set_rng_seed(5)
    first = split[:]
    pyro.set_rng_seed(5)
    assert torch.equal(split[:], first)


def test_fixed_is_one_draw_by_the_seed_of_the_data():
    fixed = load("digits", binarize="fixed")
    pyro.set_rng_seed(9)
    again = load("digits", binarize="fixed")
    assert not fixed.test.resamples
    for one, other in zip(splits(fixed), splits(again), strict=True):
        assert torch.equal(one.tensor(), other.tensor())
        assert set(one.tensor().unique().tolist()) == {0.0, 1.0}
    probability = load("digits").train.tensor() / 16
    assert abs((fixed.train.tensor() - probability).mean()) < 5 * (probability * (1 - probability)).mean().sqrt() / 276
    other = load("digits", binarize="fixed", binarize_seed=1)
    assert not torch.equal(other.test.tensor(), fixed.test.tensor())


def test_fix_is_one_realisation_whatever_follows_a_row():
    dynamic = load("digits", binarize="dynamic", binarize_seed=4)
    fixed = load("digits", binarize="fixed", binarize_seed=4)
    for one, other in zip(splits(dynamic), splits(fixed), strict=True):
        assert torch.equal(one.fix().tensor(), other.tensor())
        assert torch.equal(one.head(7).fix().tensor(), other.head(7).tensor())
    assert not torch.equal(dynamic.test.fix(seed=5).tensor(), fixed.test.tensor())
    assert fixed.test.fix(seed=5) is fixed.test
    # More rows than are drawn at once.
    train = load("digits", binarize="dynamic").train
    assert torch.equal(train.head(1100).fix().tensor(), train.fix().tensor()[:1100])


def test_splits_are_binarized_independently(save):
    half = np.full((40, 30), 0.5)
    data = load(save(x_train=half, x_validation=half, x_test=half), binarize="fixed")
    for one, other in ((data.train, data.test), (data.train, data.validation), (data.validation, data.test)):
        agree = (one.tensor() == other.tensor()).double().mean()
        assert abs(agree - 0.5) < 5 * 0.5 / 1200**0.5


# ------------------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_tells_apart_what_is_not_comparable(save):
    load_file = {
        "none": {},
        "fixed": {"binarize": "fixed"},
        "other draw": {"binarize": "fixed", "binarize_seed": 1},
        "dynamic": {"binarize": "dynamic"},
        "other split": {"split_seed": 1},
        "other sizes": {"num_test": 5},
    }
    prints = [load(save(ROWS), **options).fingerprint for options in load_file.values()]
    changed = ROWS.copy()
    changed[3, 1] += 1e-9
    prints += [load(save(changed)).fingerprint, load(save(ROWS[::-1])).fingerprint]
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in prints)


def test_fingerprint_ignores_what_does_not_change_x(save):
    plain = load(save(ROWS)).fingerprint
    assert load(save(ROWS), binarize_seed=7).fingerprint == plain
    assert load(save(x=ROWS, y=np.arange(20))).fingerprint == plain
    torch.set_default_dtype(torch.float32)
    assert load(save(ROWS)).fingerprint == plain


# ------------------------------------------------------------------------------------------------------------- files


def test_npy_rows_are_split_by_default_sizes(save):
    data = load(save(ROWS))
    assert [len(split) for split in splits(data)] == [14, 2, 4]
    assert data.image_shape is None
    for split in splits(data):
        assert split.labels is None
        assert torch.equal(split.tensor(), torch.from_numpy(ROWS)[split.rows])


def test_sizes_can_be_chosen(save):
    assert [len(split) for split in splits(load(save(ROWS), num_validation=1, num_test=18))] == [1, 1, 18]


@pytest.mark.parametrize(
    ("shape", "image_shape", "num_values"),
    [((20, 6), None, 6), ((20, 2, 3), (2, 3), 6), ((20, 2, 4, 3), (2, 4, 3), 24), ((20, 4, 5, 1), (4, 5), 20)],
)
def test_images_are_flattened(save, shape, image_shape, num_values):
    x = np.random.default_rng(0).random(shape)
    data = load(save(x))
    assert (data.image_shape, data.num_values) == (image_shape, num_values)
    assert torch.equal(data.test.tensor(), torch.from_numpy(x.reshape(20, -1))[data.test.rows])


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        pytest.param(np.array([[0, 51, 255]] * 20, np.uint8), [0, 0.2, 1], id="gray levels"),
        pytest.param(np.array([[0, 1, 1]] * 20, np.uint8), [0, 1, 1], id="binary 8-bit"),
        pytest.param(np.array([[False, True, True]] * 20), [0, 1, 1], id="booleans"),
        pytest.param(np.array([[0, 3, 300]] * 20, np.int16), [0, 3, 300], id="counts"),
        pytest.param(np.array([[0, 3, 300]] * 20, np.uint32), [0, 3, 300], id="unsigned counts"),
        pytest.param(np.array([[0, 3, 300]] * 20, ">f4"), [0, 3, 300], id="big-endian"),
        pytest.param(np.array([[0, 0.5, -3]] * 20, np.float16), [0, 0.5, -3], id="half"),
        pytest.param(np.array([[0, 0.5, -3]] * 20, np.longdouble), [0, 0.5, -3], id="long double"),
        pytest.param(np.asfortranarray([[0, 0.5, -3]] * 20), [0, 0.5, -3], id="column-major"),
    ],
)
def test_types_of_files(save, x, expected):
    torch.testing.assert_close(load(save(x)).test.tensor(), torch.tensor([expected] * 4, dtype=torch.float64))


@pytest.mark.parametrize("maximum", [255, 1])
def test_binarized_gray_levels_use_their_maximum(save, maximum):
    x = np.array([[0, maximum]] * 20, np.uint8)
    assert torch.equal(load(save(x), binarize="fixed").test.tensor(), torch.tensor([[0.0, 1.0]] * 4))


def test_npz_with_one_array_is_split_with_its_labels(save):
    for key in ("y", "labels"):
        data = load(save(**{"x": ROWS, key: np.arange(20)}))
        for split in splits(data):
            assert torch.equal(split.labels, split.rows)


def test_npz_keeps_the_splits_it_brings(save):
    data = load(save(x_train=ROWS, y_train=np.arange(20, dtype=np.uint8), x_test=ROWS[:7], y_test=np.arange(7)))
    assert [len(split) for split in splits(data)] == [18, 2, 7]
    assert torch.equal(data.test.tensor(), torch.from_numpy(ROWS[:7]))
    assert torch.equal(torch.cat([data.train.rows, data.validation.rows]).sort().values, torch.arange(20))
    assert torch.equal(data.train.labels, data.train.rows)
    own = load(save(x_train=ROWS, x_validation=ROWS[:3], x_test=ROWS[:2]))
    for split, size in zip(splits(own), (20, 3, 2), strict=True):
        assert torch.equal(split.tensor(), torch.from_numpy(ROWS[:size]))


def test_path_objects_and_home_are_understood(save, monkeypatch):
    path = Path(save(ROWS))
    assert len(load(path).test) == 4
    monkeypatch.setenv("HOME", str(path.parent))
    assert len(load("~/data.npy").test) == 4


# ------------------------------------------------------------------------------------------------- options of files


def test_npz_arrays_are_chosen_by_name(save):
    path = save(x=ROWS, small=ROWS[:, :2], y=np.arange(20), kind=np.arange(20) % 3, names=np.array(["a", "b"]))
    chosen = load(path, key="small", label_key="kind")
    assert torch.equal(chosen.test.tensor(), torch.from_numpy(ROWS[:, :2])[chosen.test.rows])
    assert torch.equal(chosen.test.labels, chosen.test.rows % 3)
    assert torch.equal(load(path, label_key="kind").test.labels, chosen.test.labels)
    assert torch.equal(load(path, key="small").test.labels, chosen.test.rows), "y stays the default"


def test_npz_splits_are_chosen_by_name(save):
    path = save(ink_train=ROWS, ink_test=ROWS[:7], who_train=np.arange(20), who_test=np.arange(7), x=ROWS[:5])
    data = load(path, key="ink", label_key="who")
    assert [len(split) for split in splits(data)] == [18, 2, 7]
    assert torch.equal(data.test.labels, torch.arange(7))


# ---------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize(
    ("x", "options", "levels"),
    [
        pytest.param(np.array([[0, 51, 255]] * 20, np.uint8), {}, (256, 1 / 255), id="gray"),
        pytest.param(np.array([[8, 51, 238]] * 20, np.uint8), {}, (256, 1 / 255), id="gray, darker than white"),
        pytest.param(np.array([[0, 1]] * 20, np.uint8), {}, (2, 1.0), id="binary 8-bit"),
        pytest.param(np.zeros((20, 2), bool), {}, (2, 1.0), id="booleans"),
        pytest.param(np.array([[0, 1, 300]] * 20, np.int32), {}, (301, 1.0), id="counts"),
        pytest.param(np.array([[0, -1, 300]] * 20, np.int32), {}, (None, None), id="negative integers"),
        pytest.param(np.array([[0.0, 1.0]] * 20), {}, (None, None), id="real numbers"),
        pytest.param(np.array([[0.0, 1.0]] * 20), {"binarize": "fixed"}, (2, 1.0), id="fixed bits"),
        pytest.param(np.array([[0, 51, 255]] * 20, np.uint8), {"binarize": "dynamic"}, (2, 1.0), id="drawn bits"),
    ],
)
def test_levels_follow_the_type(save, x, options, levels):
    data = load(save(x), **options)
    assert (data.num_levels, data.level_step) == levels
    if data.num_levels is not None:
        level = data.train[:] / data.level_step
        torch.testing.assert_close(level, level.round())
        assert level.min() >= 0 and level.max() <= data.num_levels - 1


def test_levels_are_those_of_all_splits(save):
    counts = np.arange(20).reshape(10, 2)
    data = load(save(x_train=counts, x_test=counts + 5))
    assert (data.num_levels, data.level_step) == (25, 1.0)
    whole = torch.cat([split[:] for split in splits(data)])
    assert (data.min_value, data.max_value) == (whole.min(), whole.max())
    assert data.max_value == 24 > data.train[:].max()


def test_levels_and_range_of_the_digits():
    assert (load("digits").num_levels, load("digits").level_step) == (17, 1.0)
    assert (load("digits").min_value, load("digits").max_value) == (0, 16)
    fixed = load("digits", binarize="fixed")
    assert (fixed.num_levels, fixed.min_value, fixed.max_value) == (2, 0, 1)


def test_range_of_gray_levels_is_that_of_x(save):
    data = load(save(np.array([[8, 51, 238]] * 20, np.uint8)))
    assert (data.min_value, data.max_value) == (pytest.approx(8 / 255), pytest.approx(238 / 255))


# ---------------------------------------------------------------------------------------------------------- missing


def test_missing_values_are_kept_where_they_are(save):
    x = with_value(np.nan)
    x[3] = np.nan
    data = load(save(x), missing="keep")
    assert data.has_missing and not load(save(ROWS), missing="keep").has_missing
    for split in splits(data):
        torch.testing.assert_close(split.tensor(), torch.from_numpy(x)[split.rows], equal_nan=True, rtol=0, atol=0)
    assert data.max_value == pytest.approx(np.nanmax(x))
    assert (data.num_levels, data.level_step) == (None, None)
    assert "missing" in repr(data) and "nan" not in repr(data)


def test_fingerprint_sees_what_is_missing_and_not_its_bits(save):
    one, other = with_value(np.nan), with_value(np.nan)
    other.view(np.uint64)[11, 2] ^= 0x8000000000000123
    assert np.isnan(other[11, 2]) and one.tobytes() != other.tobytes()
    prints = [load(save(x), missing="keep").fingerprint for x in (one, other, ROWS, with_value(0.5))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert load(save(ROWS)).fingerprint == prints[2]


# --------------------------------------------------------------------------------------------------------- bad input


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        pytest.param(
            "mnits", {}, r"unknown data set 'mnits'\. Did you mean 'mnist'.*digits, mnist, fash", id="misspelt"
        ),
        pytest.param("Fashion_MNIST", {}, "Did you mean 'fashion-mnist'", id="other spelling"),
        pytest.param("emnist", {}, "Did you mean 'emnist-balanced'", id="part of a name"),
        pytest.param("cats", {}, r"unknown data set 'cats'\. Expected one of .*\.npy, \.npz, \.csv or", id="unknown"),
        pytest.param("data.txt", {}, "unknown data set 'data.txt'", id="other file type"),
        pytest.param("digits", {"missing": "drop"}, "missing='drop': expected one of 'refuse', 'keep'", id="missing"),
        pytest.param("digits", {"key": "x"}, r"key='x': an option of \.npz files, which 'digits' is not", id="key"),
        pytest.param("a.npy", {"label_key": "y"}, r"label_key='y': an option of \.npz files", id="label key"),
        pytest.param("a.npz", {"columns": ["b"]}, r"columns=\['b'\]: an option of \.csv and \.parquet", id="columns"),
        pytest.param("a.npz", {"label": "b"}, r"label='b': an option of \.csv and \.parquet files", id="label"),
        pytest.param("a.npz", {"stream": True}, "stream=True: .* np.save, because an archive", id="stream"),
        pytest.param("digits", {"stream": True}, "stream=True: .*'digits' is not; leave it out$", id="stream a name"),
        pytest.param("digits", {"binarize": "yes"}, "binarize='yes': expected one of 'none', 'fixed'", id="binarize"),
        pytest.param("digits", {"binarize_seed": -1}, "binarize_seed=-1: expected an integer", id="binarize_seed"),
        pytest.param("digits", {"split_seed": -1}, "split_seed=-1: expected an integer", id="split_seed"),
        pytest.param("digits", {"split_seed": 0.5}, "split_seed=0.5: expected an integer", id="seed not an integer"),
        pytest.param("digits", {"num_test": 0}, "num_test=0: expected at least 1", id="empty test split"),
        pytest.param("digits", {"num_validation": -3}, "num_validation=-3: expected at least 1", id="negative size"),
        pytest.param(
            "digits", {"num_test": 1597}, "1797 rows to split into train \\+ 1597 test", id="nothing to train"
        ),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(name, **options)
    one_line(error)


def with_value(value):
    x = ROWS.copy()
    x[11, 2] = value
    return x


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        pytest.param(np.array([{}, None]), {}, "pickled Python objects.*refused", id="pickled"),
        pytest.param(np.array(3.0), {}, r"x has shape \(\): expected rows \(N, P\)", id="0-D"),
        pytest.param(ROWS[0], {}, r"x has shape \(3,\): expected rows.*reshape", id="1-D"),
        pytest.param(ROWS.reshape(5, 2, 2, 3, 1), {}, r"x has shape \(5, 2, 2, 3, 1\)", id="5-D"),
        pytest.param(np.zeros((20, 3, 8, 8)), {}, "channels last.*moveaxis", id="channels first"),
        pytest.param(ROWS + 0j, {}, "type complex128: expected real numbers", id="complex"),
        pytest.param(np.array([["a", "b"]] * 20), {}, "type <U1: expected real numbers", id="text"),
        pytest.param(np.zeros((20, 3), "M8[s]"), {}, "type datetime64.*expected real numbers", id="dates"),
        pytest.param(np.zeros(20, "f8,f8"), {}, "expected real numbers", id="records"),
        pytest.param(ROWS[:0], {}, r"shape \(0, 3\).*at least one value", id="no rows"),
        pytest.param(ROWS[:, :0], {}, r"shape \(20, 0\).*at least one value", id="no columns"),
        pytest.param(with_value(np.nan), {}, "NaN or infinity in 1 row, the first is row 11", id="NaN"),
        pytest.param(with_value(np.nan), {}, r"try x\[np.isfinite.*, or missing='keep'", id="NaN, both fixes"),
        pytest.param(
            with_value(-np.inf), {}, r"NaN or infinity in 1 row, the first is row 11.*all\(1\)\]$", id="infinity"
        ),
        pytest.param(
            with_value(np.inf), {"missing": "keep"}, "has infinity in 1 row, the first is row 11", id="kept, inf"
        ),
        pytest.param(ROWS * np.nan, {"missing": "keep"}, "no value that was observed", id="all missing"),
        pytest.param(
            with_value(np.nan),
            {"missing": "keep", "binarize": "fixed"},
            "binarize='fixed' cannot draw values that are missing",
            id="missing, binarized",
        ),
        pytest.param(ROWS[:9], {}, "9 rows to split.*at least 1 in each.*10 are enough", id="too few rows"),
        pytest.param(ROWS - 0.5, {"binarize": "fixed"}, r"values in \[0, 1\], got -0.5", id="negative, binarized"),
        pytest.param(ROWS * 9, {"binarize": "dynamic"}, r"values in \[0, 1\], got 0 .. 8.85", id="large, binarized"),
    ],
)
def test_bad_arrays(save, array, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(save(array), **options)
    assert "data.npy" in one_line(error)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        pytest.param({}, {}, "expected one array x.*the file has nothing", id="empty archive"),
        pytest.param({"z": ROWS}, {}, "expected one array x, or x_train.*the file has z; .* key=", id="other names"),
        pytest.param(
            {"x": ROWS, "c": ROWS},
            {"key": "z"},
            "expected one array z, or z_train.*the file has x, c",
            id="no such key",
        ),
        pytest.param({"x": ROWS}, {"label_key": "c"}, "label_key='c': .*in an array c, the file has x", id="no labels"),
        pytest.param(
            {"x_train": ROWS, "c": np.arange(20)}, {"label_key": "c"}, "in an array c_train", id="no labels of a split"
        ),
        pytest.param(
            {"x": ROWS, "c": ROWS}, {"label_key": "c"}, r"c has shape \(20, 3\).*expected 20 integers", id="label array"
        ),
        pytest.param({"x_test": ROWS}, {}, "the file has x_test", id="no training split"),
        pytest.param({"x": ROWS, "x_test": ROWS}, {}, "the file has x, x_test", id="ambiguous"),
        pytest.param(
            {"x": ROWS, "y": np.arange(19)}, {}, r"y has shape \(19,\).*expected 20 integers", id="short labels"
        ),
        pytest.param(
            {"x": ROWS, "labels": ROWS[:, 0]}, {}, "labels has.*float64: expected 20 integers", id="real labels"
        ),
        pytest.param({"x": ROWS, "y": np.array([None] * 20)}, {}, "pickled Python objects", id="pickled labels"),
        pytest.param({"x_train": ROWS, "x_test": ROWS[:, :2]}, {}, "splits of one shape and type", id="other shape"),
        pytest.param({"x_train": ROWS, "x_test": ROWS > 0}, {}, "splits of one shape and type", id="other type"),
        pytest.param({"x_train": ROWS, "x_test": with_value(np.nan)}, {}, "x_test has NaN", id="NaN in test"),
        pytest.param({"x_train": ROWS, "x_test": ROWS}, {"num_test": 3}, "test split of its own", id="official test"),
    ],
)
def test_bad_archives(save, arrays, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(save(**arrays), **options)
    assert "data.npz" in one_line(error)


def test_value_too_large_for_the_type_of_x(save):
    path = save(with_value(1e200))
    load(path)
    torch.set_default_dtype(torch.float32)
    with pytest.raises(ValueError, match=r"1e\+200 is too large for float32.*dtype='float64'"):
        load(path)


def truncated(path):
    np.save(path, ROWS)
    path.write_bytes(path.read_bytes()[:-50])


def oversized(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10**3)})
    path.write_bytes(header.getvalue())


def damaged_archive(path):
    np.savez_compressed(path.with_suffix(".npz"), x=ROWS)
    data = bytearray(path.with_suffix(".npz").read_bytes())
    data[60:160] = bytes(100)
    path.write_bytes(data)


def foreign_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "not an array")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: path.write_text("1,2\n3,4\n"), "not a NumPy file", id="text"),
        pytest.param(lambda path: path.write_bytes(b""), "cannot be read", id="empty file"),
        pytest.param(lambda path: path.mkdir(), "cannot be read", id="folder"),
        pytest.param(truncated, "cannot be read", id="truncated"),
        pytest.param(oversized, "cannot be read", id="header promises too much"),
        pytest.param(damaged_archive, "cannot be read", id="damaged archive"),
    ],
)
def test_unreadable_files(tmp_path, make, message):
    path = tmp_path / "data.npy"
    make(path)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in one_line(error)


def test_archive_of_something_else(tmp_path):
    path = tmp_path / "data.npz"
    foreign_archive(path)
    with pytest.raises(ValueError, match=r"data.npz cannot be read \(not a NumPy file\): expected") as error:
        load(path)
    one_line(error)


def test_pickles_are_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    import pickle

    np.save(tmp_path / "array.npy", np.array([Trap()]), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Trap()))
    for name, message in (("array.npy", "pickled Python objects"), ("bare.npy", "not a NumPy file")):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*missing.npz: expected a .npy or .npz file") as error:
        load(tmp_path / "missing.npz")
    one_line(error)


def test_split_methods_refuse(save):
    dynamic = load("digits", binarize="dynamic").test
    with pytest.raises(ValueError, match=r"split 'test' draws x anew.*\.fix\(\)"):
        dynamic.tensor()
    with pytest.raises(ValueError, match="seed=-1: expected an integer of at least 0"):
        dynamic.fix(seed=-1)
    with pytest.raises(ValueError, match="expected n at least 1, got 0"):
        dynamic.head(0)


@pytest.mark.parametrize(
    ("x", "noted"),
    [
        pytest.param(np.array([[0, 9]] * 20, np.uint8), True, id="small"),
        pytest.param(np.array([[0, 127]] * 20, np.uint8), True, id="half"),
        pytest.param(np.array([[0, 128]] * 20, np.uint8), False, id="gray levels"),
        pytest.param(np.array([[0, 1]] * 20, np.uint8), False, id="bits"),
        pytest.param(np.array([[0, 9]] * 20, np.uint16), False, id="wider"),
    ],
)
def test_small_8_bit_integers_are_noted(save, caplog, x, noted):
    data = load(save(x))
    assert (f"{x.max()} is the largest of its 8-bit integers" in caplog.text) is noted
    assert (f"(8-bit integers 0 .. {x.max()}, divided by 255)" in repr(data)) is (data.divisor == 255)
    caplog.clear()
    assert "8-bit" not in repr(load(save(x.clip(0, 1)), binarize="fixed")) and not caplog.text
