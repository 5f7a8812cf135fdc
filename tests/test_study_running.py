"""Studies that run: side by side, alone in failing, and on from where they were stopped."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import xarray as xr

import pyro_vae.drawing
import pyro_vae.jobs
import pyro_vae.study.running as running
from inference import Fit, Search
from inference.results import Note
from pyro_vae import open_run
from pyro_vae.cli import main
from pyro_vae.study import Study, StudyResults, run_study

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "parts": {"decoder": {"part": "mlp", "hidden": [4]}, "encoder": {"part": "mlp", "hidden": [4]}},
    "training": {"epochs": 1},
    "num_latents": 2,
    "num_data": 4,
}


def quickly(patch):
    """A cell in half a second: without pictures, and measured with few draws."""
    patch.setattr(pyro_vae.drawing, "draw_fit", lambda *args, **how: {})
    patch.setattr(pyro_vae.jobs, "draw_gaps", lambda *args, **how: {})
    patch.setattr(pyro_vae.jobs, "_term_tracker", lambda *args, **how: None)
    patch.setattr(pyro_vae.drawing, "NUM_DRAWN", 2)
    few = {"num_draws": 20, "num_evidence_draws": 50, "annealing": None, "search": Search(first_round=4, max_rounds=1)}
    measure = pyro_vae.jobs.measure_gaps
    patch.setattr(pyro_vae.jobs, "measure_gaps", lambda *args, **how: measure(*args, **how, **few))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    torch.set_default_dtype(torch.float32)  # as the command line has it
    quickly(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npy"
    rng = np.random.default_rng(0)
    np.save(path, rng.integers(0, 2, (60, 5)))
    return str(path)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "priors"
    study = Study(data=data, **SMALL, axes={"prior": ["standard-normal", "laplace"], "seed": [0, 1, 2]})
    torch.set_default_dtype(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        return study, out, run_study(study, out)


def stamps(out):
    """When each file of the cells was last written."""
    return {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()}


def test_every_cell_is_a_run_and_is_scored(done):
    study, out, results = done
    assert len(results.cells) == 6 and not results.failures and not results.num_open
    for cell, asked in zip(results.cells, study.cells(), strict=True):
        assert cell.place == asked.place
        run = open_run(out / "cells" / cell.name)
        assert run.config["seed"] == asked.seed and run.parts.prior == asked.parts.prior
        # The likelihood was left to the data, which are zeros and ones.
        assert run.config["parts"]["likelihood"]["part"] == "bernoulli"
        torch.testing.assert_close(run.gaps.log_evidence, cell.gaps.log_evidence)
    table = results.table()
    assert (table["num_data"] == 4).all() and (table["seconds"] > 0).all()
    # Each cell is measured with draws of its own.
    assert len({cell.gaps.settings["seed"] for cell in results.cells}) == 6


def test_a_cell_remembers_that_its_fit_was_cut_short(data, tmp_path, monkeypatch):
    study = Study(data=data, **SMALL, axes={"seed": [0]})
    note = Note(severity="warning", text="the ELBO was still rising.")
    monkeypatch.setattr(Fit, "notes", lambda fit: [note])
    run_study(study, tmp_path)
    (cell,) = StudyResults.read(tmp_path).cells
    assert cell.is_unfinished
    # What was written before there was such a sign has none.
    scored = tmp_path / "cells" / cell.name / "scored.json"
    record = json.loads(scored.read_text())
    del record["is_unfinished"]
    scored.write_text(json.dumps(record))
    (cell,) = StudyResults.read(tmp_path).cells
    assert not cell.is_unfinished


def test_differences_of_fits(done):
    _, _, results = done
    (found,) = results.differences("prior")
    table = results.table().set_index(["prior", "seed"])["log_p"]
    for seed in range(3):
        by_hand = table["laplace", seed] - table["standard-normal", seed]
        assert found.by_seed[str(seed)] == pytest.approx(by_hand)
    assert found.mean == pytest.approx(sum(found.by_seed.values()) / 3)
    assert found.seed_se > 0 and found.se > 0 and found.mc_se > 0


def test_what_is_done_is_not_done_again(done):
    study, out, _ = done
    before = stamps(out)
    assert len(run_study(study, out).cells) == 6
    assert stamps(out) == before


def test_a_study_that_was_stopped_goes_on(data, tmp_path, monkeypatch):
    study = Study(data=data, **SMALL, axes={"seed": [0, 1, 2, 3]})
    original = running.measure_run

    def stopped(run, **how):
        if run.config["seed"] == 2:
            raise KeyboardInterrupt
        return original(run, **how)

    monkeypatch.setattr(running, "measure_run", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path)
    results = StudyResults.read(tmp_path)
    assert len(results.cells) == 2 and results.num_open == 2 and "2 of 4 cells are not done" in str(results)
    before = stamps(tmp_path)
    # Two are finished, and the third is fitted, but not measured.
    assert sum(path.name == "checkpoint.pt" for path in before) == 3
    monkeypatch.setattr(running, "measure_run", original)
    fitted = []
    fit = running.fit_run
    monkeypatch.setattr(running, "fit_run", lambda *args, **how: (fitted.append(how["seed"]), fit(*args, **how))[1])
    assert len(run_study(study, tmp_path).cells) == 4
    after = stamps(tmp_path)
    finished = {path for path in before if not path.parent.name.startswith("seed=2") or path.name == "checkpoint.pt"}
    assert {path: after[path] for path in finished} == {path: before[path] for path in finished}
    assert fitted == [3]


def test_a_fit_that_was_interrupted_leaves_nothing(data, tmp_path, monkeypatch):
    def interrupted(folder, **how):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "fit_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(Study(data=data, **SMALL, axes={"seed": [0]}), tmp_path)
    assert list((tmp_path / "cells").iterdir()) == []


def test_what_a_killed_process_left_is_cleared(done):
    study, out, _ = done
    (out / "cells" / ".seed=0.half").mkdir()
    (out / "cells" / ".seed=0.half" / "config.json").write_text("{}")
    (out / "cells" / "some.running").touch()
    before = stamps(out)
    run_study(study, out)
    assert {path.name for path in before.keys() - stamps(out).keys()} == {"config.json", "some.running"}


def test_a_cell_that_fails_is_on_record_and_the_rest_go_on(data, tmp_path, monkeypatch):
    original = running.fit_run

    def fragile(folder, *, seed, **how):
        if seed == 1:
            raise FloatingPointError("step 3: the loss is not finite.")
        return original(folder, seed=seed, **how)

    monkeypatch.setattr(running, "fit_run", fragile)
    study = Study(data=data, **SMALL, axes={"seed": [0, 1, 2]})
    results = run_study(study, tmp_path)
    assert [cell.place["seed"] for cell in results.cells] == ["0", "2"]
    (failure,) = results.failures
    assert failure["error"] == "FloatingPointError: step 3: the loss is not finite."
    assert "in fragile" in failure["traceback"] and "Failed: seed 1: FloatingPointError" in str(results)
    monkeypatch.setattr(running, "fit_run", original)
    again = run_study(study, tmp_path)
    assert len(again.cells) == 3 and not again.failures


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scored.json", b"{"),
        ("scored.json", b"{}"),
        ("scored.json", b"[]"),
        ("config.json", b'{"engine": "svi"}'),
        ("config.json", None),
        ("results.nc", None),
        ("results.nc", b""),
        ("results.nc", "half"),
        ("results.nc", "no gaps"),
    ],
)
def test_a_damaged_cell_is_named_and_the_rest_are_read(done, tmp_path, name, content):
    _, out, _ = done
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    cell = next(folder for folder in (tmp_path / "cells").iterdir() if folder.name.startswith("prior=laplace-seed=1"))
    file = cell / name
    if content is None:
        file.unlink()
    elif content == "no gaps":
        xr.DataTree().to_netcdf(file, engine="h5netcdf")
    else:
        file.write_bytes(file.read_bytes()[:-2000] if content == "half" else content)
    results = StudyResults.read(tmp_path)
    assert len(results.cells) == 5
    (failure,) = results.failures
    assert failure["place"] == {"prior": "laplace", "seed": "1"} and str(cell) in failure["error"]
    assert "Remove the folder: the same command fits the cell again" in failure["error"]


def test_a_removed_cell_is_fitted_again_and_a_damaged_record_of_failure_is_no_obstacle(done, tmp_path):
    study, out, results = done
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    lost = results.cells[1]
    shutil.rmtree(tmp_path / "cells" / lost.name)
    (tmp_path / "cells" / f"{lost.name}.failed.json").write_text("{")
    (failure,) = StudyResults.read(tmp_path).failures
    assert failure["place"] == lost.place and "failed.json: expected JSON" in failure["error"]
    again = run_study(study, tmp_path)
    assert not again.failures
    torch.testing.assert_close(again.cells[1].gaps.log_evidence, lost.gaps.log_evidence, rtol=0, atol=0)


def test_a_fit_that_is_damaged_says_what_to_remove(done, tmp_path):
    study, out, results = done
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    cell = tmp_path / "cells" / results.cells[0].name
    (cell / "scored.json").unlink()
    (cell / "checkpoint.pt").write_bytes(b"half")
    (failure,) = run_study(study, tmp_path).failures
    assert (
        f"{cell}: expected a run; it cannot be opened" in failure["error"] and "remove the folder" in failure["error"]
    )
    # What is there may be precious to someone.
    assert (cell / "checkpoint.pt").read_bytes() == b"half"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"axes": {}, "cells": {}}'])
def test_a_damaged_record_of_the_study(done, tmp_path, text):
    study, _, _ = done
    (tmp_path / "study.json").write_text(text)
    for call in (lambda: StudyResults.read(tmp_path), lambda: run_study(study, tmp_path)):
        with pytest.raises(ValueError, match=r"study.json: expected .* Choose another folder"):
            call()
    assert (tmp_path / "study.json").read_text() == text


def test_cells_that_another_process_adds_before_the_lock_is_had_are_kept(done, tmp_path, monkeypatch):
    study, out, _ = done
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    record = json.loads((tmp_path / "study.json").read_text())
    flock = running.fcntl.flock

    def slow(*args):
        (tmp_path / "study.json").write_text(
            json.dumps({**record, "cells": {**record["cells"], "further": {"prior": "uniform", "seed": "0"}}})
        )
        flock(*args)

    monkeypatch.setattr(running.fcntl, "flock", slow)
    assert run_study(study, tmp_path).num_open == 1


def test_a_folder_that_cannot_be_locked_is_not_said_to_be_busy(data, tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(running.fcntl, "flock", unsupported)
    with pytest.raises(ValueError, match="cannot be locked against a second process .No locks available"):
        run_study(Study(data=data, **SMALL, axes={"seed": [0]}), tmp_path)


def test_further_values_are_more_cells_of_the_same_study(data, tmp_path):
    run_study(Study(data=data, **SMALL, axes={"seed": [0]}), tmp_path)
    before = stamps(tmp_path)
    results = run_study(Study(data=data, **SMALL, axes={"seed": [1]}), tmp_path)
    assert [cell.place["seed"] for cell in results.cells] == ["0", "1"] and results.study["axes"]["seed"] == [0, 1]
    assert before.items() <= stamps(tmp_path).items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_latents": 3}, "with other num_latents"),
        ({"training": {"epochs": 2}}, "with other training"),
        ({"axes": {"prior": ["laplace"]}}, "with other axes"),
    ],
)
def test_another_study_in_the_folder_is_refused(done, changes, message):
    study, out, _ = done
    asked = {"data": study.data, **SMALL, "axes": study.axes}
    before = (out / "study.json").read_text()
    with pytest.raises(ValueError, match=message):
        run_study(Study(**{**asked, **changes}), out)
    assert (out / "study.json").read_text() == before


def test_a_folder_with_other_files_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="other files"):
        run_study(Study(data=data, **SMALL, axes={"seed": [0]}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FileNotFoundError, match="pyro-vae study FILE"):
        StudyResults.read(tmp_path)


def test_threads_take_turns(done, data, tmp_path):
    """A process has one generator and one parameter store."""
    _, _, alone = done
    study = Study(data=data, **SMALL, axes={"prior": ["standard-normal"], "seed": [0, 1]})
    with joblib.parallel_config(backend="threading", n_jobs=2):
        results = run_study(study, tmp_path)
    assert len(results.cells) == 2
    for cell in results.cells:
        (same,) = (other for other in alone.cells if other.place == cell.place)
        torch.testing.assert_close(cell.gaps.log_evidence, same.gaps.log_evidence, rtol=0, atol=0)


def test_two_at_once_are_refused(done):
    study, out, _ = done
    with running._open(study, out), pytest.raises(ValueError, match="a study is running there"):
        run_study(study, out)


def test_data_that_change_between_two_runs_do_not_compare(tmp_path):
    path = tmp_path / "data.npy"
    rng = np.random.default_rng(1)
    np.save(path, rng.integers(0, 2, (60, 5)))
    shared = {"data": str(path), **SMALL}
    run_study(Study(**shared, axes={"prior": ["standard-normal"]}), tmp_path / "out")
    np.save(path, rng.integers(0, 2, (60, 5)))
    results = run_study(Study(**shared, axes={"prior": ["standard-normal", "laplace"]}), tmp_path / "out")
    assert len(results.cells) == 2
    with pytest.raises(ValueError, match="refused: fingerprint: expected the same data"):
        results.differences("prior")


def test_masses_and_densities_do_not_compare(data, tmp_path):
    axes = {"likelihood": ["bernoulli", "gaussian-shared-scale"]}
    results = run_study(Study(data=data, **SMALL, axes=axes), tmp_path)
    assert len(results.cells) == 2
    with pytest.raises(ValueError, match="refused: base_measure"):
        results.differences("likelihood")


def test_every_engine_is_scored(data, tmp_path):
    shared = {**SMALL, "training": {"epochs": 1, "local_steps": 1}}
    results = run_study(Study(data=data, **shared, axes={"engine": ["svi", "em"]}), tmp_path)
    assert not results.failures
    (found,) = results.differences("engine")
    assert found.value == "em" and "these two fits only" in str(found)


class TestCommand:
    def test_from_a_file_to_a_table(self, data, tmp_path, capsys):
        file = tmp_path / "priors.yaml"
        file.write_text(
            textwrap.dedent(f"""\
                data: {data}
                num_latents: 2
                num_data: 4
                parts: {{decoder: {{part: mlp, hidden: [4]}}, encoder: {{part: mlp, hidden: [4]}}}}
                training: {{epochs: 1}}
                axes:
                  prior: [standard-normal, laplace]
                """)
        )
        out = tmp_path / "out"
        assert main(["study", str(file), f"--out={out}"]) == 0
        said = capsys.readouterr().out
        assert "prior: laplace - standard-normal: " in said and "these two fits only" in said
        assert said.splitlines()[-1] == f"Next: pyro-vae report {out}"
        assert main(["study", str(file), f"--out={out}", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert len(record["cells"]) == 2 and record["differences"][0]["seed_se"] is None
        assert (out / "table.csv").is_file() and (out / "table.nc").is_file()

    def test_where_every_cell_fails_the_verb_does(self, data, tmp_path, capsys):
        file = tmp_path / "bad.yaml"
        file.write_text(f"data: {data}\naxes: {{likelihood: [categorical], network: [conv]}}\n")
        assert main(["study", str(file), f"--out={tmp_path / 'out'}"]) == 2
        assert "every cell failed" in capsys.readouterr().err

    def test_an_unknown_axis(self, tmp_path, capsys):
        file = tmp_path / "bad.yaml"
        file.write_text("data: digits\naxes:\n  pior: [laplace]\n")
        assert main(["study", str(file), f"--out={tmp_path / 'out'}"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "line 3" in said and "Did you mean 'prior'?" in said
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_interrupted_it_says_that_it_goes_on(self, data, tmp_path):
        """As a user does it: Ctrl-C, and the same command again."""
        file = tmp_path / "long.yaml"
        file.write_text(
            f"data: {data}\nnum_latents: 2\nnum_data: 2\ntraining: {{compile: false}}\n"
            "axes: {training.epochs: [1, 100000], seed: [0]}\n"
        )
        command = [sys.executable, "-m", "pyro_vae", "study", str(file), f"--out={tmp_path / 'out'}"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        deadline = time.monotonic() + 100
        while not list((tmp_path / "out").glob("cells/training.epochs=100000*.running")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert "the same command goes on" in process.communicate(timeout=60)[1]
        assert process.returncode == 130
        results = StudyResults.read(tmp_path / "out")
        assert len(results.cells) == 1 and results.num_open == 1
        left = [path.name for path in (tmp_path / "out" / "cells").iterdir()]
        assert left == [results.cells[0].name]
