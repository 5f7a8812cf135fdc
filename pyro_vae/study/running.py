"""Run the cells of a study side by side; what is done stays done, and what fails does not stop the rest."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import joblib
import torch
from tqdm import tqdm

from inference import Resume
from inference.checkpoint import atomic_write
from inference.noise import derive_seed
from inference.progress import progress_bar
from pyro_vae.choosing import say_units
from pyro_vae.data import load, silent
from pyro_vae.drawing import draw_run, lacks_draws
from pyro_vae.folders import CONFIG, new_folder, unfinished
from pyro_vae.jobs import fit_run, measure_run
from pyro_vae.run import Run, open_run
from pyro_vae.study.grid import Cell, Study
from pyro_vae.study.results import CELLS, FAILED, SCORED, STUDY, StudyResults, read_record
from pyro_vae.study.words import words

__all__ = ["run_study"]

_log = logging.getLogger(__name__)
_RUNNING = "running"
# Fitting uses what a process has one of: torch's generators and Pyro's parameter store. Threads take turns.
_one_at_a_time = threading.Lock()


def run_study(
    study: Study, out: str | Path, *, num_jobs: int | None = None, draws: bool = True, figures: bool = True
) -> StudyResults:
    """Fit and measure every cell that is not done yet.

    A cell is a run folder in `out/cells`. Cells run through joblib: one after the other in this process, in `num_jobs`
    local processes of one thread each, or wherever a surrounding `joblib.parallel_config` sends them, to Dask say. One
    that fails is recorded, and tried again by the next call; a study that was stopped goes on where it was; one that
    was given further values goes on with those.

    Args:
        study: the grid.
        out: folder of the study; one that holds another study is refused.
        num_jobs: processes; None: one, or what the surrounding `joblib.parallel_config` says.
        draws: whether each cell that is fitted now makes draws for its `results.nc`.
        figures: whether pictures are drawn of the cells that are fitted or measured now.

    Returns:
        What is there now.

    Raises:
        ValueError: `out` holds another study or something else, or a study is running there.
        FileNotFoundError: the data are not there.
    """
    given, out = Path(out), Path(out).resolve()
    # Once here, so that a download or a wrong name does not wait for the first cell.
    dataset = load(**study.load_arguments)
    say_units(dataset, *(cell.parts for cell in study.cells()))
    with _open(study, out):
        todo = [cell for cell in study.cells() if not (out / CELLS / cell.name / SCORED).is_file()]
        for cell in todo:
            (out / CELLS / f"{cell.name}.{FAILED}").unlink(missing_ok=True)
        _log.info("%d cells, %d to do", len(list(study.cells())), len(todo))
        with progress_bar(len(todo), f"study {out.name}", "cell") as bar:
            _run_all(todo, study, out / CELLS, num_jobs, bar, draws=draws, figures=figures)
    return StudyResults.read(given)


def run_cell(
    cell: Cell,
    data: Mapping[str, Any],
    num_data: int | None,
    cells: Path,
    *,
    beside: bool,
    dtype: torch.dtype,
    draws: bool = True,
    figures: bool = True,
) -> None:
    """Fit and measure one cell, in a process of its own perhaps; whatever happens is on record afterwards.

    Args:
        cell: the cell.
        data: arguments of `pyro_vae.load`.
        num_data: test datapoints to measure.
        cells: folder of its folder.
        beside: whether others run beside it: it then takes one thread, and draws no progress bar.
        dtype: torch's default, which a new process does not know.
        draws: whether it makes draws.
        figures: whether it draws pictures.
    """
    folder, running = cells / cell.name, cells / f"{cell.name}.{_RUNNING}"
    with _one_at_a_time, _setting(beside=beside, dtype=dtype):
        try:
            running.touch()
            if not (folder / CONFIG).is_file():
                state = unfinished(folder)
                with new_folder(folder) as partial:
                    # The study has described the scales of the data.
                    with silent():
                        fit_run(
                            partial,
                            data=data,
                            parts=cell.parts,
                            num_latents=cell.num_latents,
                            engine=cell.engine,
                            objective=cell.objective,
                            training=cell.training,
                            resume=Resume(state),
                            seed=cell.seed,
                            draws=draws,
                            figures=figures,
                        )
                shutil.rmtree(state, ignore_errors=True)
            run = _opened(folder)
            if lacks_draws(run):
                draw_run(run)
            # A seed of its own, so that the Monte Carlo errors of two cells are independent. Gaps without a record of
            # the cell are those of one that was stopped in between.
            measure_run(run, num_data=num_data, seed=derive_seed(0, cell.name), replace=True, figures=figures)
            record = {"place": dict(cell.place), "seconds": run.fit.seconds, "num_data": num_data}
            record["is_unfinished"] = bool(run.fit.notes())
            _write(folder / SCORED, record)
        except Exception as error:  # noqa: BLE001 (one cell must not take the others with it)
            _log.warning("%s failed: %s", cell.name, error)
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            _record_failure(cells, cell, said, traceback.format_exc())
        finally:
            running.unlink(missing_ok=True)


def _opened(folder: Path) -> Run:
    try:
        return open_run(folder)
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise ValueError(
            f"{folder}: expected a run; it cannot be opened ({type(error).__name__}: {error}) To fit again, remove "
            "the folder: the same command does the rest."
        ) from error


def _run_all(
    todo: Sequence[Cell], study: Study, cells: Path, num_jobs: int | None, bar: tqdm, *, draws: bool, figures: bool
) -> None:
    """Run cells; those in whose company a process died are run again, each in a process of its own."""
    beside = joblib.effective_n_jobs(num_jobs) > 1
    common = (study.load_arguments, study.num_data, cells)
    where: dict[str, Any] = {
        "beside": beside,
        "dtype": torch.get_default_dtype(),
        "draws": draws,
        "figures": figures,
    }

    def run(some: Sequence[Cell], **how: Any) -> None:  # noqa: ANN401
        _Counting(bar, batch_size=1, **how)(joblib.delayed(run_cell)(cell, *common, **where) for cell in some)

    while todo:
        try:
            run(todo, n_jobs=num_jobs)
        except BrokenExecutor:
            _log.warning("a process died; the cells that were running are run again, one by one")
            left = [cell for cell in todo if not _is_done(cells, cell)]
            suspects = [cell for cell in left if (cells / f"{cell.name}.{_RUNNING}").exists()]
            for cell in suspects:
                try:
                    # One cell, but two jobs: else it would run in this process.
                    run([cell], n_jobs=2, backend="loky")
                except BrokenExecutor:
                    _record_failure(cells, cell, "its process died: killed, for want of memory perhaps, or crashed", "")
                finally:
                    (cells / f"{cell.name}.{_RUNNING}").unlink(missing_ok=True)
            if not suspects:
                raise
            todo = [cell for cell in left if cell not in suspects]
        else:
            return


class _Counting(joblib.Parallel):
    """Joblib, with a bar that counts finished cells."""

    def __init__(self, bar: tqdm, **how: Any) -> None:  # noqa: ANN401
        super().__init__(**how)
        self._bar, self._counted = bar, 0

    def print_progress(self) -> None:
        """Called by joblib after each."""
        self._bar.update(self.n_completed_tasks - self._counted)
        self._counted = self.n_completed_tasks


@contextlib.contextmanager
def _setting(*, beside: bool, dtype: torch.dtype) -> Iterator[None]:
    """What a cell runs in, put back afterwards."""
    threads, before = torch.get_num_threads(), torch.get_default_dtype()
    bars = {name: value for name, value in os.environ.items() if name == "TQDM_DISABLE"}
    try:
        torch.set_default_dtype(dtype)
        if beside:
            torch.set_num_threads(1)
            # Bars of several processes would overwrite each other.
            os.environ["TQDM_DISABLE"] = "1"
        yield
    finally:
        torch.set_default_dtype(before)
        if beside:
            os.environ.pop("TQDM_DISABLE")
            os.environ.update(bars)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _open(study: Study, out: Path) -> Iterator[None]:
    """The study's folder, with what is asked for on record; only one process at a time may be in it."""
    file = out / STUDY
    if not file.is_file() and out.is_dir() and any(entry.name != ".lock" for entry in out.iterdir()):
        raise ValueError(f"--out {out}: expected an empty or new folder, or this study's; it holds other files.")
    try:
        (out / CELLS).mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}). Choose another folder.") from error
    with lock:
        try:
            # Released when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--out {out}: a study is running there. Wait for it, or stop it.") from error
        except OSError as error:
            raise ValueError(
                f"--out {out}: cannot be locked against a second process ({error.strerror}). Choose a folder on "
                "another file system."
            ) from error
        # Only now: until the lock was had, another process may have written further cells.
        asked = _merged(out, study)
        _clear(out / CELLS)
        _write(file, asked)
        yield


def _merged(out: Path, study: Study) -> dict[str, Any]:
    """The record of what is asked for, now and before: further values on an axis are more cells of one study."""
    # As JSON has it, which the record there came from.
    asked: dict[str, Any] = json.loads(json.dumps(study.describe()))
    asked["cells"] = {cell.name: dict(cell.place) for cell in study.cells()}
    if not (out / STUDY).is_file():
        return asked
    there = read_record(out)
    differ = [name for name in asked if name not in ("axes", "cells") and there.get(name) != asked[name]]
    if list(there["axes"]) != list(asked["axes"]):
        differ.insert(0, "axes")
    if differ:
        raise ValueError(
            f"--out {out}: the folder holds another study, with other {', '.join(differ)}. Choose another folder."
        )
    for axis, values in there["axes"].items():
        known = set(map(words, values))
        asked["axes"][axis] = values + [value for value in asked["axes"][axis] if words(value) not in known]
    places = list(asked["cells"].values())
    before = {name: place for name, place in there["cells"].items() if place not in places}
    asked["cells"] = before | asked["cells"]
    return asked


def _clear(cells: Path) -> None:
    """Remove what a process that was killed left half done."""
    for left in [*cells.glob(".*"), *cells.glob(f"*.{_RUNNING}")]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _is_done(cells: Path, cell: Cell) -> bool:
    return (cells / cell.name / SCORED).is_file() or (cells / f"{cell.name}.{FAILED}").is_file()


def _record_failure(cells: Path, cell: Cell, error: str, trace: str) -> None:
    _write(cells / f"{cell.name}.{FAILED}", {"place": dict(cell.place), "error": error, "traceback": trace})


def _write(path: Path, record: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
