"""Digits that the type of x cannot hold: refused by column, or kept by a wider type."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import TensorDataset

from inference import to_datatree
from inference.checkpoint import load_checkpoint
from pyro_vae import load, open_run
from pyro_vae.cli import main
from pyro_vae.data import Preprocessing
from pyro_vae.jobs import measure_run

RNG = np.random.default_rng(0)
TIME = 1.7e9 + RNG.uniform(0, 60, 200)
PLAIN = RNG.normal(10, 1, 200)
COLUMNS = {
    "unix_time": TIME,
    "julian_day": 2460000.5 + RNG.uniform(0, 0.1, 200),
    "easting": 448_251.7 + 1e-3 * RNG.normal(size=200),
    "reads": 2.0**24 + RNG.integers(0, 4, 200),
    "time_with_a_zero": np.append(0.0, TIME[1:]),
    "large": np.append(1e300, PLAIN[1:]),
    "small": np.append(1e-50, PLAIN[1:]),
    "subnormal": np.append(1e-42, PLAIN[1:]),
}
FINE = {
    "measured": PLAIN,
    "altitude": RNG.normal(8_000, 900, 200),
    "heavy": RNG.standard_cauchy(200) * 1e6,
    "counts": RNG.poisson(1e5, 200).astype(float),
    "hours": 1.7e9 + 128.0 * np.arange(200),
    "constant": np.full(200, 1.7e9 + 0.3),
    "gaps": np.where(np.arange(200) % 7 == 0, np.nan, PLAIN),
}


@pytest.fixture(autouse=True)
def single_precision():
    """The type that users have by default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def written(tmp_path):
    """Write columns in a format, and return what `load` takes."""

    def write(columns, how):
        x = np.column_stack(list(columns.values()))
        if how in ("csv", "parquet"):
            frame, path = pd.DataFrame(columns), tmp_path / f"x.{how}"
            frame.to_csv(path, index=False) if how == "csv" else frame.to_parquet(path)
            return path, {}
        if how == "npz":
            np.savez(tmp_path / "x.npz", x=x)
            return tmp_path / "x.npz", {}
        if how in ("npy", "streamed"):
            np.save(tmp_path / "x.npy", x)
            return tmp_path / "x.npy", {"stream": how == "streamed"}
        return {"array": x, "tensor": torch.from_numpy(x), "data set": TensorDataset(torch.from_numpy(x))}[how], {}

    return write


@pytest.mark.parametrize("name", COLUMNS)
def test_column_that_loses_its_digits_is_refused_by_name(written, name):
    path, _ = written({"plain": PLAIN, name: COLUMNS[name]}, "csv")
    with pytest.raises(ValueError, match=rf"got column '{name}': .*dtype='float64' \(--dtype float64\)") as caught:
        load(path)
    assert "plain" not in str(caught.value) and "NaN" not in str(caught.value)


@pytest.mark.parametrize("how", ["csv", "parquet", "npz", "npy", "streamed", "array", "tensor", "data set"])
def test_every_format_is_checked_and_right_in_float64(written, how):
    data, options = written({"plain": PLAIN, "unix_time": TIME}, how)
    with pytest.raises(
        ValueError, match=r"column ('unix_time'|1): steps of 128 at 1.7e\+09.*different values become 1"
    ):
        load(data, **options)
    kept = load(data, dtype="float64", **options).train
    assert kept[:].dtype == torch.float64 and (kept[:][:, 1].numpy() == TIME[kept.rows]).all()
    standardized = load(data, standardize=True, **options).train
    wide = (TIME[kept.rows] - TIME[kept.rows].mean()) / TIME[kept.rows].std()
    np.testing.assert_allclose(standardized[:][:, 1], wide, atol=1e-6)


@pytest.mark.parametrize("how", ["csv", "npy", "streamed", "tensor"])
def test_ordinary_measurements_pass(written, how):
    data, options = written(FINE, how)
    assert load(data, missing="keep", **options).train[:].dtype == torch.float32
    single = torch.tensor(TIME, dtype=torch.float32)[:, None]
    assert (load(single).train[:].double().numpy() == 1.7e9).all()


def test_images_are_judged_by_all_their_values():
    noise = RNG.normal(size=(50, 4, 4))
    with pytest.raises(ValueError, match="got the values: steps of 128"):
        load(1.7e9 + noise)
    # A corner that is nearly constant.
    noise[:, 0, 0] = 1e3 + 1e-6 * noise[:, 0, 0]
    load(noise)


@pytest.mark.parametrize(("type_", "value"), [(np.uint16, 65535), (np.uint32, 2**32 - 256), (np.uint64, 2**62)])
def test_unsigned_numbers_are_read_right(tmp_path, type_, value):
    x = np.full((20, 2), value, type_)
    np.save(tmp_path / "x.npy", x)
    pd.DataFrame(x, columns=["a", "b"]).to_csv(tmp_path / "x.csv", index=False)
    for data in (x, tmp_path / "x.npy", tmp_path / "x.csv"):
        assert load(data).train[:].double().unique().tolist() == [value]


def test_numbers_from_2_to_the_63_on(tmp_path):
    """Right in float64 where it holds them, else refused; never negative."""
    exact, other = np.full((20, 2), 2**63 + 2048, np.uint64), np.full((20, 2), 2**63 + 5, np.uint64)
    assert load(exact, dtype="float64").train[:].unique().tolist() == [2.0**63 + 2048]
    for array, stream in ((exact, False), (other, False), (other, True)):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(ValueError, match=r"92233720368547\d+"):
            load(tmp_path / "x.npy", stream=stream, dtype=None if array is exact else "float64")
    hashes = {"hash": [2**64 - 6 - i for i in range(20)], "b": range(20)}
    pd.DataFrame(hashes).to_csv(tmp_path / "x.csv", index=False)
    for dtype in (None, "float64"):
        with pytest.raises(ValueError, match="column 'hash'.*18446744073709551610"):
            load(tmp_path / "x.csv", dtype=dtype)


def test_whole_numbers_of_more_digits_than_float64_holds(tmp_path):
    x = np.column_stack([2**53 + np.arange(20), np.arange(20)])
    with pytest.raises(ValueError, match=r"got column 0: 90071992547409.. becomes 90071992547409..\. Choose one: sta"):
        load(x, dtype="float64")
    with pytest.raises(ValueError, match="got column 0: steps of 2 at"):
        load(x, standardize=True)
    nanoseconds = np.column_stack([1_700_000_000_000_000_000 + 10**9 * np.arange(20), np.arange(20)])
    assert load(nanoseconds, standardize=True).train[:][:, 0].std(correction=0).item() == pytest.approx(1)
    pd.DataFrame({"n": 2**53 + np.arange(20), "real": np.arange(20) / 3}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="column 'n': expected whole numbers that float64 holds"):
        load(tmp_path / "x.parquet", dtype="float64")
    gaps = pd.array([2**53 + 1, None, *range(18)], dtype="Int64")
    pd.DataFrame({"n": gaps[:2].take([0, 1] * 10), "m": gaps}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"column 'n': expected whole numbers below 2\*\*53"):
        load(tmp_path / "x.parquet", dtype="float64", missing="keep")
    pd.DataFrame({"m": pd.array([None, *range(19)], dtype="Int64")}).to_parquet(tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet", missing="keep").has_missing


@pytest.mark.parametrize(
    "labels",
    [np.full(20, 0.5), np.full(20, np.nan), np.full(20, 2**63 + 5, np.uint64), np.full(20, 1j)],
    ids=["between", "NaN", "uint64", "complex"],
)
def test_labels_that_are_no_integers_are_refused(tmp_path, labels):
    np.savez(tmp_path / "x.npz", x=np.arange(40.0).reshape(20, 2), y=labels)
    with pytest.raises(ValueError, match=r"x\.npz: y"):
        load(tmp_path / "x.npz")
    if labels.dtype != complex:
        frame = pd.DataFrame({"a": np.arange(20.0), "y": labels})
        frame.to_csv(tmp_path / "x.csv", index=False)
        with pytest.raises(ValueError, match="label 'y'"):
            load(tmp_path / "x.csv", label="y")


@pytest.mark.parametrize("dtype", ["float16", torch.float16, torch.int64, "double", 64])
def test_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match="dtype=.*expected 'float32', 'float64' or None"):
        load(np.ones((20, 2)), dtype=dtype)


def test_new_rows_lose_no_digits_either():
    how = Preprocessing.of(load(np.column_stack([np.arange(40), np.arange(40)])))
    with pytest.raises(ValueError, match="row 0, column 'x1': expected a whole number that torch.float32"):
        how.read(np.array([[1, 2**24 + 1]]), dtype=torch.float32)
    assert how.read(np.array([[1, 2**24 + 1]]), dtype=torch.float64).x[0, 1] == 2**24 + 1
    real = Preprocessing.of(load(np.column_stack([PLAIN, PLAIN])))
    with pytest.raises(ValueError, match="200 different values of 'x1' become 1"):
        real.read(np.column_stack([PLAIN, TIME]), dtype=torch.float32)
    with pytest.raises(ValueError, match="row 1, column 'x0': expected 0, or a number that torch.float32 tells"):
        real.read(np.array([[1.0, 1.0], [1e-50, 1.0]]), dtype=torch.float32)


def command(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("verb", ["fit", "em"])
def test_a_fit_in_double_precision_is_opened_again_and_measured(tmp_path, capsys, verb):
    table = tmp_path / "t.csv"
    pd.DataFrame({"level": 100 + 1e-3 * PLAIN[:40], "plain": PLAIN[:40]}).to_csv(table, index=False)
    asked = ["--data", table, "--num-latents", 1, "--training.epochs", 1, "likelihood:gaussian-shared-scale"]
    networks = ["decoder:linear", "encoder:linear"]
    assert command(verb, "--out", tmp_path / "run", *asked, *networks) == 2
    assert "column 'level': steps of 7.63e-06 at 100" in capsys.readouterr().err
    assert command(verb, "--out", tmp_path / "run", "--dtype", "float64", *asked, *networks) == 0
    assert torch.get_default_dtype() == torch.float32
    run = open_run(tmp_path / "run")
    assert {weight.dtype for weight in run.vae.parameters()} == {torch.float64}
    assert run.config["data"]["load"]["dtype"] == "float64"
    weights = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["vae"]
    assert all((run.vae.state_dict()[name] == value).all() for name, value in weights.items())
    assert set(run.dataset.train[:][:, 0].tolist()) <= set(pd.read_csv(table)["level"])
    assert len(measure_run(run, num_data=2)) == 2
    assert torch.get_default_dtype() == torch.float32
    rows = run.read_rows(table)
    assert (rows.x[:, 0].numpy() == pd.read_csv(table)["level"].to_numpy()).all()


def test_results_keep_the_digits_of_the_data():
    level = torch.tensor([1.7e9 + 0.25, 1.7e9 + 0.5], dtype=torch.float64)
    counts = torch.tensor([2.0**33 + 1, 2.0**33 + 2], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            at = z.double()[..., 0]
            pyro.sample("level", dist.Normal(1.7e9 + at, 1.0), obs=x[:, 0])
            pyro.sample("count", dist.Poisson(2.0**33 + 0 * at), obs=x[:, 1])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))

    tree = to_datatree(model, guide, torch.stack([level, counts], 1), num_draws=10, seed=0)
    assert tree["observed_data"]["level"].values.tolist() == level.tolist()
    assert tree["observed_data"]["count"].values.tolist() == counts.tolist()
    assert (abs(tree["posterior_predictive"]["count"].values - 2.0**33) < 1e6).all()
