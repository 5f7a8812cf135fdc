"""What a study found: one tidy table, and the differences between values of an axis with both their errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from inference import Evidence, Gaps, by_one_estimator
from inference.checkpoint import atomic_write
from inference.draws import gaps_from_datatree, load_datatree
from inference.results import Note, summarise
from pyro_vae.comparison import Scored
from pyro_vae.folders import CONFIG, RESULTS
from pyro_vae.names import did_you_mean
from pyro_vae.parts import KINDS
from pyro_vae.study.differences import Difference, Refusal, difference_of
from pyro_vae.study.grid import Study
from pyro_vae.study.words import where, words

__all__ = ["CELLS", "FAILED", "SCORED", "STUDY", "ScoredCell", "StudyResults", "read_record"]

STUDY, CELLS, SCORED, FAILED = "study.json", "cells", "scored.json", "failed.json"
_GAPS = "gaps"
# What must stand in a study's record, and in that of each cell's run.
_RECORD = (*Study.__dataclass_fields__, "cells")
_CONFIG = ("data", "parts", "engine", "sizes", "training", "seed", "versions")
# Tail index of the importance weights above which log p(x) is not to be trusted.
UNTRUSTED = 0.7
_STATISTICS = {"mean": "", "se": "_se", "mc_se": "_mc_se"}
_NATS = [f"{term}{suffix}" for term in ("log_p", *Gaps.TERMS) for suffix in _STATISTICS.values()]


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredCell:
    """One cell that was fitted and measured.

    Attributes:
        name: of its folder, which is a run.
        place: its value on each axis, in words.
        config: everything resolved, as its run keeps it.
        gaps: what was measured.
        seconds: wall-clock seconds of the fit.
        is_unfinished: whether the fit was cut short while it still rose, by `Fit.notes`.
    """

    name: str
    place: Mapping[str, str]
    config: Mapping[str, Any]
    gaps: Gaps
    seconds: float
    is_unfinished: bool = False

    @property
    def num_untrusted(self) -> int:
        """Datapoints whose log p(x) is not to be trusted: Pareto k above 0.7."""
        return 0 if self.gaps.pareto_k is None else int((self.gaps.pareto_k > UNTRUSTED).sum())

    def scored(self, log_p: Evidence) -> Scored:
        """These scores with what decides whether they compare with others."""
        data = self.config["data"]
        return Scored(
            name=where(self.place),
            log_p=log_p,
            base_measure=data["base_measure"],
            fingerprint=f"{data['fingerprint']}/test/{len(self.gaps)}",
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyResults:
    """A study's folder, read. Printing it shows the table, the differences and the failures.

    Attributes:
        folder: where it lies.
        study: what was asked for, as plain values.
        cells: those that are fitted and measured.
        failures: of each cell that failed its `place`, its `error` and the `traceback`.
        num_cells: how many there are to be.
    """

    folder: Path
    study: Mapping[str, Any]
    cells: list[ScoredCell]
    failures: list[Mapping[str, Any]]
    num_cells: int

    @classmethod
    def read(cls, folder: str | Path) -> StudyResults:
        """Read what is there.

        Args:
            folder: what `run_study` wrote.

        A cell whose files are damaged counts as one that failed: the others are read all the same.

        Raises:
            FileNotFoundError: there is no study.
            ValueError: its record is damaged.
        """
        folder = Path(folder)
        study = read_record(folder)
        cells, failures = [], []
        for name, place in study["cells"].items():
            cell, failed = folder / CELLS / name, folder / CELLS / f"{name}.{FAILED}"
            try:
                if (cell / SCORED).is_file():
                    cells.append(_read_cell(cell, place))
                elif failed.is_file():
                    failures.append(_read_failure(failed, place))
            except ValueError as error:
                failures.append({"place": place, "error": str(error), "traceback": ""})
        return cls(folder=folder, study=study, cells=cells, failures=failures, num_cells=len(study["cells"]))

    @property
    def num_open(self) -> int:
        """Cells that are neither scored nor failed."""
        return self.num_cells - len(self.cells) - len(self.failures)

    @cached_property
    def log_p(self) -> list[Evidence]:
        """Held-out log p(x) of every cell, of all by the same estimator, each started at the cell's own refined q*."""
        return by_one_estimator(*(cell.gaps for cell in self.cells)) if self.cells else []

    def table(self) -> pd.DataFrame:
        """A row a cell: its place, each term's mean and errors in nats per datapoint, and its settings.

        `log_p` is by the same estimator in every row. A cell's gaps were measured against the tighter of its own two
        bounds on log p(x), so that here and there they do not add up to it exactly.
        """
        rows = []
        for cell, log_p in zip(self.cells, self.log_p, strict=True):
            terms = {"log_p": summarise(log_p.value, log_p.se)}
            summary = cell.gaps.summary()
            terms |= {term: summary[term] for term in Gaps.TERMS if term != "log_evidence"}
            numbers = {
                f"{term}{suffix}": row[name] for term, row in terms.items() for name, suffix in _STATISTICS.items()
            }
            counts = {
                "num_data": summary["num_data"],
                "num_unconverged": summary["num_unconverged"],
                "num_untrusted": cell.num_untrusted,
                "is_unfinished": cell.is_unfinished,
                "seconds": cell.seconds,
            }
            rows.append({**cell.place, **numbers, **counts, **_settings(cell, log_p)})
        table = pd.DataFrame(rows)
        for axis in self.study["axes"] if self.cells else ():
            table[axis] = _numbers(table[axis].tolist())
        return table

    def dataset(self) -> xr.Dataset:
        """The table with a dimension an axis, values in the study's order; cells that are not there are NaN or ""."""
        axes = list(self.study["axes"])
        table = self.table()
        attrs = {"study": json.dumps(dict(self.study))}
        if table.empty:
            return xr.Dataset(attrs=attrs)
        values = {axis: self._values(axis) for axis in axes}
        shape = tuple(map(len, values.values()))
        at = tuple(np.array([values[axis].index(cell.place[axis]) for cell in self.cells]) for axis in axes)
        variables = {}
        for name in table.columns.difference(axes, sort=False):
            is_number = pd.api.types.is_numeric_dtype(table[name])
            column = np.full(shape, np.nan) if is_number else np.full(shape, "", dtype=object)
            column[at] = table[name].to_numpy() if is_number else table[name].astype(str).to_numpy()
            units = {"units": "nats per datapoint"} if name in _NATS else {}
            variables[name] = (axes, column if is_number else column.astype(str), units)
        return xr.Dataset(variables, {axis: _numbers(values[axis]) for axis in axes}, attrs)

    def save(self) -> list[Path]:
        """Write the table beside the cells: table.csv, table.nc and, where pyarrow is there, table.parquet."""
        table, data = self.table(), self.dataset()
        files = [self.folder / "table.csv", self.folder / "table.nc", self.folder / "table.parquet"]
        with atomic_write(files[0]) as temporary:
            table.to_csv(temporary, index=False)
        with atomic_write(files[1]) as temporary:
            data.to_netcdf(temporary, engine="h5netcdf")
        try:
            with atomic_write(files[2]) as temporary:
                table.to_parquet(temporary)
        except ImportError:
            return files[:2]
        return files

    def differences(self, axis: str, baseline: str | None = None) -> list[Difference]:
        """Held-out log p(x) at each value of an axis less that at the baseline, paired by datapoint and by seed.

        Args:
            axis: an axis of the study, not the seed.
            baseline: one of its values, in words; by default the first that has cells.

        Raises:
            ValueError: there is no such axis or value, or what would be compared does not compare: probability masses
                and densities, or other data.
        """
        found = []
        for outcome in self._along(axis, baseline):
            if isinstance(outcome, Refusal):
                raise ValueError(str(outcome))
            found.append(outcome)
        return found

    def comparisons(self) -> tuple[list[Difference], list[Refusal]]:
        """Along every axis but the seed, the differences to its first value that has cells; and those refused."""
        found: list[Difference] = []
        refused: dict[tuple[str, ...], Refusal] = {}
        for axis in self.study["axes"]:
            if axis == "seed" or len(self._values(axis)) < 2:
                continue
            for outcome in self._along(axis, None):
                if isinstance(outcome, Difference):
                    found.append(outcome)
                    continue
                # One for all places on the other axes.
                key = outcome.kind, outcome.axis, outcome.value, outcome.baseline
                known = refused.get(key, outcome)
                places = known.places if known is outcome else (*known.places, *outcome.places)
                refused[key] = dataclasses.replace(known, places=places)
        return found, list(refused.values())

    def _values(self, axis: str) -> list[str]:
        """What cells there are have on an axis, in the study's order."""
        there = {cell.place[axis] for cell in self.cells}
        return [value for value in map(words, self.study["axes"][axis]) if value in there]

    def _along(self, axis: str, baseline: str | None) -> Iterator[Difference | Refusal]:
        axes = [name for name in self.study["axes"] if name != "seed"]
        if axis not in axes:
            raise ValueError(f"axis: expected one of {', '.join(axes)}; got {axis!r}.{did_you_mean(axis, axes)}")
        values = self._values(axis)
        if not values:
            return
        baseline = values[0] if baseline is None else baseline
        if baseline not in values:
            raise ValueError(
                f"baseline: expected one of {', '.join(values)}; got {baseline!r}.{did_you_mean(baseline, values)}"
            )
        # By place on the other axes, then by value and seed.
        groups: dict[tuple[tuple[str, str], ...], dict[tuple[str, str], int]] = {}
        for number, cell in enumerate(self.cells):
            elsewhere = tuple((name, value) for name, value in cell.place.items() if name not in (axis, "seed"))
            groups.setdefault(elsewhere, {})[cell.place[axis], cell.place.get("seed", "")] = number
        scored = [cell.scored(log_p) for cell, log_p in zip(self.cells, self.log_p, strict=True)]
        for elsewhere, members in groups.items():
            for value in values:
                seeds = [seed for name, seed in members if name == value and (baseline, seed) in members]
                if value == baseline or not seeds:
                    continue
                pairs = {seed: (scored[members[value, seed]], scored[members[baseline, seed]]) for seed in seeds}
                yield difference_of(pairs, axis=axis, value=value, baseline=baseline, elsewhere=dict(elsewhere))

    def notes(self) -> list[Note]:
        """What a reader of the numbers must know: where they come from, and where not to trust them."""
        if not self.cells:
            return []
        notes = [
            Note(
                text=f"log p(x) of every cell from its own refined q*, by one estimator: {self.log_p[0].method}.",
            ),
            Note(
                text="se: another sample of datapoints, the fits as they are; mc_se: another seed of the measurement; "
                "seed_se: other training seeds."
            ),
        ]
        if unfinished := [cell for cell in self.cells if cell.is_unfinished]:
            text = (
                f"{len(unfinished)} of {len(self.cells)} fits were still rising when their budget of epochs ended "
                f"({where(unfinished[0].place)}{', ...' * (len(unfinished) > 1)}): differences may be of the training "
                "alone. Raise training.epochs."
            )
            notes.append(Note(severity="warning", text=text))
        counts = {
            "No finite log p(x) {}: there is neither a mean nor a difference with them.": [
                int((~log_p.value.isfinite()).sum()) for log_p in self.log_p
            ],
            "Pareto k > 0.7 {}: do not trust log p(x) there.": [cell.num_untrusted for cell in self.cells],
            "The search for q* did not converge {}: L[q*] and the amortization gap are under-estimated there.": [
                int((~cell.gaps.converged).sum()) for cell in self.cells
            ],
        }
        for text, count in counts.items():
            worst = max(range(len(count)), key=count.__getitem__)
            if count[worst]:
                cell = self.cells[worst]
                place = f"at {count[worst]} of {len(cell.gaps)} datapoints of {where(cell.place)}"
                others = sum(map(bool, count)) - 1
                more = f", and in {others} other cell{'s' * (others > 1)}" if others else ""
                notes.append(Note(severity="warning", text=text.replace("{}", place + more)))
        return notes

    def summary(self) -> dict[str, Any]:
        """What `--json` prints: cells, differences, refusals and failures, as plain values; None for NaN."""
        differences, refused = self.comparisons()
        cells = json.loads(self.table().to_json(orient="records", double_precision=15)) if self.cells else []
        return {
            "cells": cells,
            "differences": [difference.summary() for difference in differences],
            "refused": [refusal.summary() for refusal in refused],
            "failures": [{"place": one["place"], "error": one["error"]} for one in self.failures],
            "num_open": self.num_open,
        }

    def __str__(self) -> str:
        """The table, the differences along every axis, the failures, and what a reader must know."""
        lines = []
        if self.cells:
            shown = [*self.study["axes"], "log_p", "log_p_se", "approximation_gap", "amortization_gap"]
            lines += [self.table()[shown].to_string(index=False, float_format=lambda value: f"{value:.3f}"), ""]
            differences, refused = self.comparisons()
            lines += [*map(str, [*differences, *refused]), "", *map(str, self.notes())]
        lines += [f"Failed: {where(failure['place'])}: {failure['error']}" for failure in self.failures]
        if self.num_open:
            lines.append(f"{self.num_open} of {self.num_cells} cells are not done: the same command goes on.")
        return "\n".join(lines)


def read_record(folder: Path) -> dict[str, Any]:
    """What a study's folder says was asked for.

    Raises:
        FileNotFoundError: there is no study.
        ValueError: the record is damaged.
    """
    try:
        return _read_json(folder / STUDY, _RECORD)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{folder}: expected a study; there is no {STUDY} in it. Make one: pyro-vae study FILE --out "
            f"{quote(str(folder))}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{error} Choose another folder and run it anew.") from error


def _read_json(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """The record in a file, which has these names.

    Raises:
        ValueError: it is no such record.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON; it cannot be read ({error}).") from error
    lacking = [name for name in names if not isinstance(record, dict) or name not in record]
    if lacking:
        raise ValueError(f"{path}: expected a record with {', '.join(names)}; it lacks {', '.join(lacking)}.")
    return record


def _read_cell(folder: Path, place: Mapping[str, str]) -> ScoredCell:
    try:
        config = _read_json(folder / CONFIG, _CONFIG)
        record = _read_json(folder / SCORED, ("seconds",))
        # One group of many: of a study of hundreds of cells the draws need not be opened.
        group = load_datatree(folder / RESULTS, group=_GAPS).to_dataset()
        gaps = gaps_from_datatree(xr.DataTree.from_dict({_GAPS: group}))
    # What a damaged file of HDF5 raises depends on where the damage is.
    except Exception as error:
        raise ValueError(
            f"{folder}: expected a cell's {CONFIG}, {SCORED} and {RESULTS}; one cannot be read ({error}). Remove the "
            "folder: the same command fits the cell again."
        ) from error
    return ScoredCell(
        name=folder.name,
        place=place,
        config=config,
        gaps=gaps,  # type: ignore[arg-type]  # the group was there
        seconds=record["seconds"],
        # What was written before there was such a sign has none.
        is_unfinished=record.get("is_unfinished", False),
    )


def _read_failure(file: Path, place: Mapping[str, str]) -> Mapping[str, Any]:
    record = _read_json(file, ("error", "traceback"))
    return {"place": place, "error": record["error"], "traceback": record["traceback"]}


def _settings(cell: ScoredCell, log_p: Evidence) -> dict[str, Any]:
    """What a row says of its cell beside the axes, as text and numbers."""
    config = cell.config
    settings: dict[str, Any] = {
        **{kind: words(config["parts"][kind]) for kind in KINDS},
        "engine": config["engine"],
        "objective": "its own" if config.get("objective") is None else words(config["objective"]),
        "num_latents": config["sizes"]["num_latents"],
        "seed": config["seed"],
        "training": json.dumps(config["training"]),
        "base_measure": config["data"]["base_measure"],
        "fingerprint": config["data"]["fingerprint"],
        "estimator": log_p.method,
        "cell": cell.name,
    }
    return {name: value for name, value in settings.items() if name not in cell.place}


def _numbers(values: list[str]) -> np.ndarray:
    """Values on an axis, as numbers where all are, so that they are sorted and drawn as such."""
    try:
        return pd.to_numeric(pd.Series(values)).to_numpy()
    except ValueError:
        return np.array(values)
