"""A run's files that a stranger sent: results.nc without what is read from it, checkpoints of something else."""

import shutil

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from inference import Gaps
from inference.draws import files, gaps_dataset, gaps_from_datatree, load_datatree, save_datatree
from inference.results import Evidence
from pyro_vae.cli import main
from pyro_vae.run import Run, open_run

N = 6


def make_gaps():
    ones = torch.ones(N)
    terms = {name: ones for term in Gaps.TERMS for name in (term, f"{term}_se")}
    columns = {name: ones for name in ("converged", "start_gap", "pareto_k", "ess")}
    halves = {"halves": torch.ones(2, N), "halves_se": torch.ones(2, N)}
    estimates = {"IWAE": Evidence(value=ones, se=ones, method="IWAE", bound="lower", **halves)}
    return Gaps(
        **terms,
        **columns,
        family="MeanField(2)",
        families=("FullCovariance(2)",),
        elbo_local_by_family=torch.ones(1, N),
        elbo_local_by_family_se=torch.ones(1, N),
        estimates=estimates,
        evidence_method="IWAE",
    )


@pytest.fixture
def tree():
    return xr.DataTree.from_dict({"gaps": gaps_dataset(make_gaps(), labels=np.arange(N))})


def without(*names):
    return lambda group: group.drop_vars(names)


def other(name, dims, values):
    return lambda group: group.drop_vars(name).assign({name: (dims, values)})


def attribute(name, value):
    def change(group):
        group.attrs.pop(name)
        return group if value is None else group.assign_attrs({name: value})

    return change


SMALL = np.ones(3)
HOSTILE = {
    "no error of a term": (without("log_evidence_se"), "it lacks log_evidence_se"),
    "hardly anything": (lambda group: xr.Dataset(), r"it lacks log_evidence, .*, \.\.\."),
    "another dimension": (other("log_evidence", "row", SMALL), r"log_evidence .*\(obs_id\).*of \(row\), sizes \(3,\)"),
    "a number alone": (other("converged", (), 1.0), r"converged to be numbers of dimensions \(obs_id\)"),
    "a draw more": (other("elbo_local", ("obs_id", "draw"), np.ones((N, 2))), r"of \(obs_id, draw\)"),
    "text for numbers": (other("start_gap", "obs_id", np.array(["a"] * N)), "start_gap to be numbers"),
    "no datapoints": (lambda group: group.isel(obs_id=slice(0)), r"sizes \(0,\)"),
    "labels of others": (other("labels", "row", SMALL), "labels to be numbers"),
    "families the wrong way": (
        other("elbo_local_by_family", ("obs_id", "family"), np.ones((N, 1))),
        r"\(family, obs_id\); it is float64 of \(obs_id, family\)",
    ),
    "an estimator without its value": (without("estimate_value"), "missing or unknown"),
    "more estimators than values": (attribute("estimates", '{"a": {}, "b": {}}'), "missing or unknown"),
    "estimates that are a list": (attribute("estimates", "[1]"), "missing or unknown"),
    "no JSON": (attribute("settings", "__import__('os')"), "missing or unknown"),
    "a width that is a number": (attribute("width", "3"), "missing or unknown"),
    "no family": (attribute("family", None), "it lacks attribute family"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_groups_of_gaps(tree, tmp_path, change, message):
    assert len(gaps_from_datatree(tree)) == N
    group = change(tree["gaps"].to_dataset())
    save_datatree(xr.DataTree.from_dict({"gaps": group}), tmp_path / "results.nc")
    with pytest.raises(ValueError, match=rf"results\.nc: group 'gaps': expected .*{message}.*Measure the") as error:
        _ = Run(tmp_path, {}, None, None).gaps
    assert "\n" not in str(error.value)


def test_a_file_without_gaps_has_none(tmp_path):
    save_datatree(xr.DataTree.from_dict({"posterior": xr.Dataset()}), tmp_path / "results.nc")
    assert Run(tmp_path, {}, None, None).gaps is None
    with pytest.raises(FileNotFoundError, match="nothing.nc: expected a tree of draws"):
        load_datatree(tmp_path / "nothing.nc")


def test_a_file_cut_anywhere(tree, tmp_path):
    path = save_datatree(tree, tmp_path / "results.nc")
    content = path.read_bytes()
    for size in (0, 1, 8, 9, 100, len(content) // 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"results\.nc: expected draws and gaps; it cannot be read") as error:
            load_datatree(path)
        assert "\n" not in str(error.value)


def test_bytes_that_are_wrong(tree, tmp_path):
    """Numbers, or an error of a line: nothing else, and no crash of the C library."""
    path = save_datatree(tree, tmp_path / "results.nc")
    content = np.frombuffer(path.read_bytes(), np.uint8)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        damaged = content.copy()
        damaged[generator.integers(0, len(content), 20)] = generator.integers(0, 256, 20)
        path.write_bytes(damaged.tobytes())
        try:
            _ = Run(tmp_path, {}, None, None).gaps
        except ValueError as error:
            refused += 1
            assert "results.nc" in str(error) and "\n" not in str(error)
    assert refused > 5


def test_a_promise_of_more_than_there_is_memory(tree, tmp_path, monkeypatch):
    """A thousand million numbers of which none is stored."""
    path = save_datatree(tree, tmp_path / "results.nc")
    with h5py.File(path, "a") as file:
        file.create_dataset("posterior/z", shape=(10**5, 10**7), dtype="f8", chunks=(1, 10**5), compression="gzip")
    assert path.stat().st_size < 2**18
    with pytest.raises(ValueError, match=r"results\.nc.*it holds 7.3 TiB, and .* of memory are free"):
        load_datatree(path)
    # Of one group the others' promises are nothing; its own is.
    assert list(load_datatree(path, group="gaps").to_dataset()) == list(tree["gaps"].to_dataset())
    with pytest.raises(ValueError, match=r"results\.nc.*it holds 7.3 TiB"):
        load_datatree(path, group="posterior")
    monkeypatch.setattr(files, "available_memory", lambda: None)
    assert "gaps" in load_datatree(save_datatree(tree, tmp_path / "other.nc")).children


def _results(group):
    return lambda folder, tree: save_datatree(
        xr.DataTree.from_dict({"gaps": group(tree["gaps"].to_dataset())}), folder / "results.nc"
    )


def _checkpoint(**changes):
    def write(folder, _):
        content = torch.load(folder / "checkpoint.pt", weights_only=True)
        torch.save({**content, **changes}, folder / "checkpoint.pt")

    return write


ON_THE_COMMAND_LINE = {
    "gaps of other dimensions": (_results(other("log_evidence", "row", SMALL)), "results.nc"),
    "gaps without estimates": (_results(without("estimate_value")), "results.nc"),
    "no NetCDF": (lambda folder, _: (folder / "results.nc").write_bytes(b"\x89HDF\r\n\x1a\n"), "results.nc"),
    "weights that are a number": (_checkpoint(vae=3), "checkpoint.pt"),
    "weights that are words": (_checkpoint(vae={"decoder.layers.0.weight": "a"}), "checkpoint.pt"),
    "a record of something else": (_checkpoint(fit={"a": 1}), "checkpoint.pt"),
    "no record": (_checkpoint(fit=3), "checkpoint.pt"),
}


@pytest.mark.parametrize(("write", "named"), ON_THE_COMMAND_LINE.values(), ids=ON_THE_COMMAND_LINE)
def test_no_traceback_on_the_command_line(fitted_run, tree, tmp_path, capsys, write, named):
    torch.set_default_dtype(torch.float32)
    folder = tmp_path / "run"
    shutil.copytree(fitted_run, folder)
    write(folder, tree)
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1 and "expected" in said


def test_the_run_itself_opens(fitted_run):
    torch.set_default_dtype(torch.float32)
    assert open_run(fitted_run).gaps is None
