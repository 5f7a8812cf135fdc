import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae.drawing
from pyro_vae import open_run
from pyro_vae.cli import main
from pyro_vae.data import load

FRAME = pd.DataFrame(
    {
        "height": np.linspace(1, 2, 20) / 3,
        "weight": np.linspace(50, 90, 20),
        "visits": np.arange(20) * 20,
        "ill": np.arange(20) % 3 == 0,
        "species": ["setosa", "virginica", "adelie", "adelie"] * 5,
        "ward": np.arange(20) % 4 - 1,
    }
)
NUMBERS = ["height", "weight", "visits", "ill", "ward"]


@pytest.fixture
def save(tmp_path):
    def write(frame, **options):
        frame.to_csv(tmp_path / "data.csv", **{"index": False, **options})
        return str(tmp_path / "data.csv")

    return write


def splits(data):
    return data.train, data.validation, data.test


def test_numeric_columns_become_x_to_the_last_digit(save):
    data = load(save(FRAME[NUMBERS]))
    assert data.columns == tuple(NUMBERS)
    assert (data.image_shape, data.num_values, data.num_levels) == (None, 5, None)
    assert [len(split) for split in splits(data)] == [14, 2, 4]
    x = torch.from_numpy(FRAME[NUMBERS].to_numpy(dtype=float))
    for split in splits(data):
        assert split.labels is None
        assert torch.equal(split.tensor(), x[split.rows])


def test_columns_are_chosen_in_order(save):
    data = load(save(FRAME), columns=["visits", "height"])
    assert data.columns == ("visits", "height")
    assert torch.equal(data.test.tensor(), torch.from_numpy(FRAME[["visits", "height"]].to_numpy())[data.test.rows])


@pytest.mark.parametrize(
    ("label", "codes"),
    [
        ("species", np.array([1, 2, 0, 0] * 5)),
        ("ward", np.arange(20) % 4 - 1),
        ("ill", (np.arange(20) % 3 == 0).astype(int)),
    ],
)
def test_labels_are_taken_out_of_x(save, label, codes):
    data = load(save(FRAME if label == "species" else FRAME.drop(columns="species")), label=label)
    assert data.columns == tuple(name for name in NUMBERS if name != label)
    assert torch.equal(data.test.labels, torch.from_numpy(codes)[data.test.rows])


def test_integers_stay_counts(save):
    data = load(save(FRAME[["visits", "ill"]]))
    assert (data.num_levels, data.level_step, data.max_value) == (381, 1.0, 380)
    assert data.train.divisor == 1
    assert (load(save(FRAME[["ill"]])).num_levels, load(save(FRAME[["ill"]])).max_value) == (2, 1)


def test_empty_cells_are_refused_or_kept(save):
    frame = FRAME[["height", "visits"]].astype(object)
    frame.iloc[[3, 17], 1] = None
    path = save(frame)
    with pytest.raises(ValueError, match=r"in 2 rows, the first is row 3.*frame.dropna\(\), or missing='keep'"):
        load(path)
    data = load(path, missing="keep")
    assert data.has_missing
    expected = torch.from_numpy(frame.to_numpy(dtype=float))
    for split in splits(data):
        torch.testing.assert_close(split.tensor(), expected[split.rows], equal_nan=True, rtol=0, atol=0)


def test_the_same_numbers_have_the_same_fingerprint(save, tmp_path):
    np.save(tmp_path / "data.npy", FRAME[["height", "weight"]].to_numpy())
    assert load(save(FRAME[["height", "weight"]])).fingerprint == load(tmp_path / "data.npy").fingerprint


def test_columns_called_by_their_number_have_names(save):
    assert load(save(pd.DataFrame(np.ones((20, 3))))).columns == ("0", "1", "2")


def test_one_column(save):
    assert load(save(FRAME[["height"]])).num_values == 1


def parquet(monkeypatch, tmp_path, frame):
    """A .parquet file as pandas would read it: the tests need no pyarrow."""
    (tmp_path / "data.parquet").write_bytes(b"")
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame.copy())
    return tmp_path / "data.parquet"


def test_parquet_with_types_of_its_own(monkeypatch, tmp_path):
    frame = pd.DataFrame(
        {
            "small": np.arange(20, dtype=np.uint8) * 12,
            "whole": pd.array([*range(19), None], dtype="Int64"),
            "real": pd.array([*np.arange(19) / 7, None], dtype="Float64"),
            "flag": pd.array([True, False] * 10, dtype="boolean"),
            "kind": pd.Categorical(["b", "a"] * 10),
        }
    )
    path = parquet(monkeypatch, tmp_path, frame)
    data = load(path, label="kind", missing="keep")
    assert data.columns == ("small", "whole", "real", "flag")
    expected = torch.from_numpy(frame[list(data.columns)].to_numpy(dtype=float, na_value=np.nan))
    for split in splits(data):
        torch.testing.assert_close(split.tensor(), expected[split.rows], equal_nan=True, rtol=0, atol=0)
        assert torch.equal(split.labels, 1 - split.rows % 2)
    counts = load(path, columns=["small", "flag"])
    assert (counts.num_levels, counts.train.divisor) == (229, 1.0), "8-bit integers of a table are no gray levels"


def test_a_real_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    FRAME.to_parquet(tmp_path / "data.parquet")
    FRAME.to_csv(tmp_path / "data.csv", index=False)
    ours, theirs = (load(tmp_path / f"data.{kind}", label="species") for kind in ("parquet", "csv"))
    assert ours.columns == theirs.columns
    torch.testing.assert_close(ours.train.tensor(), theirs.train.tensor())
    assert torch.equal(ours.train.labels, theirs.train.labels)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch, tmp_path):
    def read_parquet(path):
        raise ImportError("Unable to find a usable engine; tried using: 'pyarrow', 'fastparquet'.\nA suitable version")

    (tmp_path / "data.parquet").write_bytes(b"")
    monkeypatch.setattr(pd, "read_parquet", read_parquet)
    with pytest.raises(ValueError, match="data.parquet: reading .parquet needs pyarrow.*pip install pyarrow") as error:
        load(tmp_path / "data.parquet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("frame", "write", "options", "message"),
    [
        pytest.param(FRAME, {}, {}, "no numbers in column 'species': .*columns=.*label=", id="text"),
        pytest.param(
            FRAME.assign(day=pd.Timestamp("2020-01-01")), {}, {}, "no numbers in columns 'species', 'day'", id="dates"
        ),
        pytest.param(FRAME, {}, {"columns": ["hieght"]}, r"no column 'hieght'\. Did you mean 'height'", id="misspelt"),
        pytest.param(FRAME, {}, {"label": "kind"}, r"label: .* no column 'kind'\. Expected some of height", id="label"),
        pytest.param(FRAME, {}, {"columns": "height"}, r"columns='height': .*try columns=\['height'\]", id="one name"),
        pytest.param(FRAME, {}, {"columns": ["ward"] * 2}, "different columns.* got ward, ward", id="twice"),
        pytest.param(FRAME, {}, {"columns": ["ward"], "label": "ward"}, "not the label 'ward'", id="label in x"),
        pytest.param(FRAME[["ward"]], {}, {"label": "ward"}, "at least one.* got none", id="nothing but labels"),
        pytest.param(FRAME, {}, {"columns": ["ward"], "label": "height"}, "label 'height' holds real", id="real label"),
        pytest.param(
            FRAME.assign(species=[None, "a"] * 10),
            {},
            {"label": "species", "columns": ["ward"]},
            "label 'species' is empty in 10 rows",
            id="empty label",
        ),
        pytest.param(FRAME[NUMBERS], {"index": True}, {}, "column without a name .*index=False", id="index"),
        pytest.param(FRAME[["height", "weight"]], {"header": False}, {}, "first line holds numbers", id="no header"),
        pytest.param(FRAME[NUMBERS][:0], {}, {}, "the table has no rows", id="no rows"),
        pytest.param(FRAME[NUMBERS][:5], {}, {}, "5 rows to split", id="too few rows"),
    ],
)
def test_bad_tables(save, frame, write, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(save(frame, **write), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n1,2,3,4\n", b"\xff\xfe\x00"], ids=["empty", "ragged", "no text"])
def test_unreadable_tables(tmp_path, content):
    (tmp_path / "data.csv").write_bytes(content)
    with pytest.raises(ValueError, match="data.csv cannot be read .*expected a table with named columns") as error:
        load(tmp_path / "data.csv")
    assert "\n" not in str(error.value)


def test_missing_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*missing.csv: expected a .csv or .parquet file"):
        load(tmp_path / "missing.csv")


REAL = FRAME[["height", "weight", "visits"]].round(3)


def same_rows(data, frame):
    expected = torch.tensor(frame.to_numpy(dtype=float))
    return all(torch.equal(split.tensor(), expected[split.rows]) for split in splits(data))


@pytest.mark.parametrize(
    ("write", "asked"),
    [
        pytest.param({"sep": ";", "decimal": ","}, {"separator": ";", "decimal": ","}, id="German"),
        pytest.param({"sep": ";"}, {"separator": ";"}, id="semicolons"),
        pytest.param({"sep": "\t", "decimal": ","}, {"separator": "tab", "decimal": ","}, id="tabs"),
        pytest.param({"sep": "|"}, {"separator": "|", "decimal": "."}, id="bars"),
        pytest.param({"decimal": ",", "quoting": 1}, {"decimal": ","}, id="quoted decimal commas"),
        pytest.param({"quoting": 1, "encoding": "utf-8-sig"}, {}, id="a byte order mark"),
        pytest.param({"lineterminator": "\r\n\r\n"}, {}, id="empty lines"),
    ],
)
def test_separators_and_decimals(save, write, asked):
    data = load(save(REAL, **write), **asked)
    assert data.columns == tuple(REAL)
    assert same_rows(data, REAL)


def test_separators_within_names_and_quotation_marks_are_text(save):
    frame = REAL.set_axis(["dose; mg", 'a "b", c', "d\ne"], axis=1)
    data = load(save(frame))
    assert data.columns == tuple(frame)
    assert same_rows(data, frame)
    one = frame[["dose; mg"]]
    assert same_rows(load(save(one)), one)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        pytest.param("a;b\n1,5;2\n", {}, r"first line has none, but semicolons, and .* decimal commas.*"
                     r"separator=\";\", decimal=\",\" \(--data.separator ';' --data.decimal ,\)", id="German"),
        pytest.param("a;b\n1.5;2\n", {}, r"but semicolons: 'a;b'. Read it with separator=\";\" \(", id="semicolons"),
        pytest.param("a\tb\n1\t2\n", {}, "but tabs.*separator=\"tab\"", id="tabs"),
        pytest.param("a b c\n1 2 3\n", {}, "but spaces", id="spaces"),
        pytest.param("a,b\n1.5,2\n", {"separator": ";", "decimal": ","}, r'but commas.*separator=",", decimal="\."',
                     id="commas"),
        pytest.param("a,b\n1,2\n3,4,\n", {}, "line 3 has 3 fields, the first line 2 .*end of each row", id="trailing"),
        pytest.param("a,b\n0,1,0,2\n", {}, "line 2 has 4 fields.*decimal commas", id="decimal commas"),
        pytest.param("a,b\nx1,1.5,2.5\n", {}, "line 2 has 3 fields.*names of rows", id="names of rows"),
        pytest.param('a,b\n"1\n",2\n\n3\n', {}, "line 5 has 1 fields.*cut short", id="cut short"),
        pytest.param("a,b,\n1,2\n", {}, "line 2 has 2 fields, the first line 3.*end of the first line", id="header"),
        pytest.param("a,b,\n1,2,\n", {}, "without a name .number 3 of 3., perhaps a separator", id="trailing in all"),
        pytest.param('a,b\n"1,5",2\n', {}, r"column 'a': expected numbers; got '1,5', with a decimal comma.*decimal ,",
                     id="quoted decimals"),
        pytest.param("a;b\n1,5;2\n", {"separator": ";"}, r"'a': .*'1,5', with a decimal comma", id="decimals unsaid"),
        pytest.param('a,b\n"1,234.5",2\n7,8\n', {}, "'1,234.5', with a mark between thousands", id="thousands"),
        pytest.param("a;b\n1.234,5;2\n", {"separator": ";", "decimal": ","}, "'1.234,5', with a mark", id="points"),
        pytest.param("a;b\n1.234;2\n2,5;3\n", {"separator": ";", "decimal": ","}, "'1.234', with a mark", id="both"),
        pytest.param("a;b\n1.234;2\n", {"separator": ";", "decimal": ","}, "decimal point or a mark", id="unclear"),
        pytest.param("a;b\n1.5;2\n", {"separator": ";", "decimal": ","}, r'decimal point: .*decimal="\."', id="point"),
        pytest.param('a,b\n1,"2,5"\n', {"label": "b"}, "'b': expected numbers; got '2,5'", id="label"),
        pytest.param("1.5,2.5\n3,4\n", {}, "first line holds numbers", id="no names"),
        pytest.param("1,1\n3,4\n", {}, "first line holds numbers", id="no names, twice the same"),
        pytest.param("1,5;2,5\n3;4\n", {"separator": ";", "decimal": ","}, "first line holds numbers",
                     id="no names, commas"),
        pytest.param("a,b,a\n1,2,3\n", {}, "different names; 'a' is there twice", id="twice"),
        pytest.param("a,é\n1,2\n".encode("latin-1"), {}, "byte 0xe9 is no UTF-8", id="latin-1"),
        pytest.param("a,b\n1,2\n".encode("utf-16"), {}, "is no UTF-8", id="utf-16"),
    ],
)  # fmt: skip
def test_files_that_would_be_read_wrong(tmp_path, text, options, message):
    path = tmp_path / "data.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        load(path, missing="keep", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.npy", {"separator": ";"}, r"separator=';': an option of .csv files"),
        ("a.parquet", {"decimal": ","}, "decimal=',': an option of .csv files"),
        ("digits", {"decimal": "."}, "an option of .csv files"),
        ("a.csv", {"separator": ";;"}, "separator=';;': expected one character"),
        ("a.csv", {"separator": "\n"}, "expected one character"),
        ("a.csv", {"separator": 3}, "separator=3: expected one character"),
        ("a.csv", {"decimal": ";"}, "decimal=';': expected '.' or ','"),
    ],
)
def test_bad_separators(tmp_path, name, options, message):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=message):
        load(name if name == "digits" else tmp_path / name, **options)


def test_trailing_commas_are_refused(save, tmp_path):
    lines = FRAME[NUMBERS].to_csv(index=False).splitlines()
    (tmp_path / "tail.csv").write_text("\n".join([lines[0], *(line + "," for line in lines[1:])]))
    with pytest.raises(ValueError, match="line 2 has 6 fields, the first line 5 names.*at the end of each row"):
        load(tmp_path / "tail.csv", missing="keep")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        pytest.param(REAL.assign(a=["1,5"] * 20), "'a': .* got '1,5', .*write decimal points", id="commas"),
        pytest.param(REAL.assign(a=[[1, 2]] * 20), "no numbers in column 'a'", id="lists"),
        pytest.param(REAL.assign(__index_level_0__=range(20)), "without a name .number 4 of 4., .* index", id="index"),
        pytest.param(pd.concat([REAL, REAL[["height"]]], axis=1), "'height' is there twice", id="twice"),
    ],
)  # fmt: skip
def test_parquet_that_would_be_read_wrong(monkeypatch, tmp_path, frame, message):
    with pytest.raises(ValueError, match=message):
        load(parquet(monkeypatch, tmp_path, frame))


def test_a_stored_index_is_no_data(tmp_path):
    pytest.importorskip("pyarrow")
    REAL.set_index(np.arange(20) * 3).to_parquet(tmp_path / "data.parquet")
    assert same_rows(load(tmp_path / "data.parquet"), REAL)


def test_the_command_line_takes_separators(save, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pyro_vae.drawing, "_draw", lambda *arguments, **options: None)
    path = save(REAL, sep=";", decimal=",")
    common = ["--data", path, "--num-latents", "1", "--training.epochs", "1", "--data.standardize"]
    parts = ["likelihood:gaussian-shared-scale"]
    assert main(["fit", "--out", str(tmp_path / "no"), *common, *parts]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--data.separator ';' --data.decimal ," in said
    asked = ["--data.separator", ";", "--data.decimal", ","]
    out = tmp_path / "run"
    assert main(["fit", "--out", str(out), *common, *asked, *parts]) == 0
    assert open_run(out).dataset.columns == tuple(REAL)
    assert main(["encode", str(out), path, "--out", str(tmp_path / "a.csv")]) == 0
    REAL.to_csv(tmp_path / "new.csv", index=False)
    capsys.readouterr()
    assert main(["encode", str(out), str(tmp_path / "new.csv"), "--out", str(tmp_path / "b.csv")]) == 2
    assert "--separator , --decimal ." in capsys.readouterr().err
    again = ["--separator", ",", "--decimal", "."]
    assert main(["encode", str(out), str(tmp_path / "new.csv"), "--out", str(tmp_path / "b.csv"), *again]) == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
