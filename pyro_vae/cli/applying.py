"""Verbs that apply a run to the rows of a file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from inference import Resume
from inference.processes import is_first
from pyro_vae.cli.output import next_command, print_json, require_positive
from pyro_vae.new_data import require_target
from pyro_vae.new_data.records import Rows
from pyro_vae.run import Run, open_run

__all__ = ["EncodeCommand", "ImputeCommand", "ScoreCommand"]


@dataclass(frozen=True, kw_only=True)
class _Applying:
    """What the three verbs ask for.

    Attributes:
        run: the run's folder.
        file: rows to read, .csv, .parquet, .npy or .npz, one datapoint a row; columns of a table are found by name.
        out: file to write, .csv, .parquet or .npz; by default a .csv in the run's folder, named by the rows' file.
        overwrite: replace a file that is there.
        key: array of an .npz file that holds the rows, where it is not called x.
        id: column of a table that identifies its rows; it is copied into what is written.
        separator: character between the columns of a .csv file, such as ';' or tab; by default as in the fit's file.
        decimal: decimal mark of a .csv file; by default as in the fit's file.
        seed: of all draws.
        json: print the summary as JSON alone on standard output.
    """

    run: tyro.conf.Positional[Path]
    file: tyro.conf.Positional[Path]
    out: Path | None = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    key: str | None = None
    id: str | None = None
    separator: str | None = None
    decimal: Literal[".", ","] | None = None
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def _apply(self, what: str, work: Callable[[Run, Any, Path], Rows], *next_words: object) -> None:
        """Open the run, do the work, write and print what came of it."""
        run = open_run(self.run)
        out = self.run / f"{self.file.stem}.{what}.csv" if self.out is None else self.out
        require_target(out, overwrite=self.overwrite, source=self.file)
        form = {"separator": self.separator, "decimal": self.decimal}
        found = work(run, {"key": self.key, "id_column": self.id, "seed": self.seed, **form}, out)
        if not is_first():
            return
        found.save(out, overwrite=self.overwrite)
        if self.json:
            print_json(found.summary() | {"out": str(out)})
            return
        print(found)
        print(f"Written to {out}.")
        print(next_command(*next_words))


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(_Applying):
    """Estimate log p(x) of each row of a file under a run's model, with errors: outliers, comparison, held-out data.

    Rows are read as the run's own data were: the same columns, division, binarization and units. Each row of the
    result holds log p(x), the ELBO, their Monte Carlo errors, the effective number of draws, and Pareto k with a flag.

    Example: pyro-vae score runs/mine new.csv --out scores.csv

    Attributes:
        gaps: add the inference gap of each row and its two parts, amortization and approximation, with errors.
        estimator: iwae, importance sampling; ais, annealed importance sampling. With --gaps both are run.
        num_draws: draws of importance sampling.
        num_temperatures: temperatures of annealing.
    """

    gaps: tyro.conf.FlagCreatePairsOff[bool] = False
    estimator: Literal["iwae", "ais"] = "iwae"
    num_draws: int = 5000
    num_temperatures: int = 100

    def __call__(self) -> None:
        """Score."""

        def work(run: Run, common: Any, out: Path) -> Rows:  # noqa: ANN401
            # What is measured is kept on the way; of other settings what is done is of no use.
            kind = "gaps" if self.gaps else self.estimator
            state = out.parent / f"{out.name}-{kind}-{self.seed}.unfinished"
            try:
                found = run.score(
                    self.file,
                    gaps=self.gaps,
                    estimator=self.estimator,
                    num_draws=self.num_draws,
                    num_temperatures=self.num_temperatures,
                    resume=Resume(state),
                    **common,
                )
            except BaseException:
                if is_first() and not any(state.rglob("rows-*.pt")):
                    # Nothing has been done that could be gone on from.
                    shutil.rmtree(state, ignore_errors=True)
                raise
            if is_first():
                shutil.rmtree(state, ignore_errors=True)
            return found

        self._apply("score", work, "encode", self.run, self.file)


@dataclass(frozen=True, kw_only=True)
class EncodeCommand(_Applying):
    """Mean and standard deviation of the latent vector of each row of a file, or draws of it, by a run's encoder.

    A run of EM has no encoder: q is then searched for at each row.

    Example: pyro-vae encode runs/mine new.csv --out latents.parquet

    Attributes:
        draws: draws of the latent vector for each row, a line each, in place of its mean and standard deviation.
    """

    draws: int | None = None

    def __call__(self) -> None:
        """Encode."""
        require_positive("--draws", self.draws)
        self._apply(
            "encode",
            lambda run, common, _: run.encode(self.file, num_draws=self.draws, **common),
            "score",
            self.run,
            self.file,
        )


@dataclass(frozen=True, kw_only=True)
class ImputeCommand(_Applying):
    """Fill in the missing values of each row of a file, given the observed ones: posterior mean and sd, or draws.

    The run's likelihood must leave missing values out (--likelihood.mask). Observed values are kept as they are.

    Example: pyro-vae impute runs/mine new.csv --out filled.csv

    Attributes:
        draws: draws of the missing values of each row, a line each, in place of their mean and standard deviation.
        num_importance_draws: importance draws of the latent vector for each row.
    """

    draws: int | None = None
    num_importance_draws: int = 5000

    def __call__(self) -> None:
        """Impute."""
        require_positive("--draws", self.draws)
        self._apply(
            "impute",
            lambda run, common, _: run.impute(
                self.file, num_draws=self.draws, num_importance_draws=self.num_importance_draws, **common
            ),
            "score",
            self.run,
            self.file,
        )
