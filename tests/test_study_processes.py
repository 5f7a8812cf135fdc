"""Studies in processes of their own, through joblib and through Dask: the same numbers, and no cell lost to another."""

import importlib.util
import os
import signal
import sys

import joblib
import numpy as np
import pytest
import torch

from pyro_vae.study import Study, run_study

SMALL = {
    "parts": {"decoder": {"part": "mlp", "hidden": [4]}, "encoder": {"part": "mlp", "hidden": [4]}},
    "training": {"epochs": 1},
    "num_latents": 2,
    "num_data": 2,
}


@pytest.fixture(autouse=True)
def _single_precision():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npy"
    np.save(path, np.random.default_rng(0).integers(0, 2, (60, 5)))
    return str(path)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """What this process finds."""
    torch.set_default_dtype(torch.float32)
    study = Study(data=data, **SMALL, axes={"seed": [0]})
    (cell,) = run_study(study, tmp_path_factory.mktemp("study") / "alone").cells
    return cell


def require_same(results, alone):
    assert [failure["error"] for failure in results.failures] == []
    same = next(cell for cell in results.cells if cell.name == alone.name)
    for term in ("log_evidence", "elbo_local", "elbo_amortized"):
        torch.testing.assert_close(getattr(same.gaps, term), getattr(alone.gaps, term), rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(alone, data, tmp_path):
    results = run_study(Study(data=data, **SMALL, axes={"seed": [0, 1]}), tmp_path, num_jobs=2)
    assert len(results.cells) == 2
    require_same(results, alone)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="no Dask (pip install distributed)")
@pytest.mark.filterwarnings("ignore")  # Dask's own
def test_dask_finds_the_same(alone, data, tmp_path):
    from distributed import Client, LocalCluster

    study = Study(data=data, **SMALL, axes={"seed": [0]})
    # Two threads, which take turns: a cluster of one is one job, and joblib runs that in this process.
    local = {"n_workers": 1, "threads_per_worker": 2, "processes": True, "dashboard_address": None}
    with LocalCluster(**local) as cluster, Client(cluster) as client, joblib.parallel_config(backend="dask"):
        results = run_study(study, tmp_path)
        # It ran there.
        assert all(client.run(lambda: "pyro_vae.study.running" in sys.modules).values())
    require_same(results, alone)


class Deadly:
    """A callback that kills the process of a cell with three latents, as the kernel does where memory runs out."""

    def __call__(self, state):
        if any(3 in leaf.shape for leaf in state.leaves.values()):
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_dies_takes_no_other_cell_with_it(data, tmp_path):
    changes = {"training": {"epochs": 1, "callbacks": [Deadly()]}}
    results = run_study(Study(data=data, **SMALL | changes, axes={"num_latents": [3, 2]}), tmp_path, num_jobs=2)
    assert [cell.place["num_latents"] for cell in results.cells] == ["2"]
    (failure,) = results.failures
    assert failure["place"] == {"num_latents": "3"} and "its process died" in failure["error"]
