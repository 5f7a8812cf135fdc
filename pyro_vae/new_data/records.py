"""Records with one entry for each new row: they print as a short table, and are written as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from inference import Gaps
from inference.results import summarise
from inference.results.html import html_table
from inference.results.summary import one_line
from pyro_vae.new_data.writing import write_columns

__all__ = ["Encoded", "Imputed", "Scores"]

# Rows that are printed.
_SHOWN = 5
# Numbers of a row that are printed.
_WIDTH = 7


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Rows:
    """One entry for each row, in the order of the rows.

    Attributes:
        where: name of the file or the object that the rows come from.
        id_name: name of the column that identifies rows, or None.
        ids: (N,) its values, or None.
        method: how the numbers were computed, in words.
        remarks: sentences on how the rows were read.
        settings: everything needed to run it again.
    """

    where: str
    id_name: str | None = None
    ids: np.ndarray | None = None
    method: str = ""
    remarks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        raise NotImplementedError

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the table, by name."""
        raise NotImplementedError

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of an .npz file, by name."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Sentences that a reader of the numbers must know."""
        return [f"{self.method}.", *self.remarks]

    def summary(self) -> dict[str, Any]:
        """The record without its rows, as a dictionary that JSON can hold."""
        return {"file": self.where, "num_data": len(self), "notes": self.notes(), "settings": dict(self.settings)}

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the rows to a file.

        Args:
            path: a path that ends in .csv or .parquet, for a table, or in .npz, for arrays.
            overwrite: whether a file that is there is replaced.

        Raises:
            ValueError: the file is there already, cannot be written, or its ending is unknown.
        """
        target = Path(path)
        is_table = target.suffix != ".npz"
        write_columns(target, self._table if is_table else {}, {} if is_table else self.arrays(), overwrite=overwrite)

    @cached_property
    def _table(self) -> dict[str, np.ndarray]:
        return self.columns()

    def __repr__(self) -> str:
        """One line, without the numbers of every row."""
        return one_line(self, N=len(self), where=repr(self.where))

    def __str__(self) -> str:
        """The first rows, with the notes under them."""
        header, *rows = self._first_rows()
        widths = [max(len(line[place]) for line in (header, *rows)) for place in range(len(header))]
        lines = [
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in (header, *rows)
        ]
        return "\n".join([*lines, *self._more(), "", *self.notes()])

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        header, *rows = self._first_rows()
        return html_table(header, rows, [*self._more(), *self.notes()])

    def _first_rows(self) -> list[list[str]]:
        columns = dict(list(self._table.items())[:_WIDTH])
        return [
            list(columns),
            *([_cell(values[row]) for values in columns.values()] for row in range(self._num_shown())),
        ]

    def _num_shown(self) -> int:
        return min(_SHOWN, len(next(iter(self._table.values()))))

    def _more(self) -> list[str]:
        columns = self._table
        rows, wide = len(next(iter(columns.values()))) - self._num_shown(), len(columns) - _WIDTH
        more = [f"{rows} more row{'s' * (rows > 1)}"] if rows > 0 else []
        more += [f"{wide} more column{'s' * (wide > 1)}"] if wide > 0 else []
        return [f"... {' and '.join(more)}"] if more else []

    def _identified(self, rows: np.ndarray | None = None, *, taken: Mapping[str, object] = {}) -> dict[str, np.ndarray]:  # noqa: B006 (not changed)
        """The number of each row, and what identifies it."""
        rows = np.arange(len(self)) if rows is None else rows
        named = {free("row", taken): rows}
        if self.id_name is not None and self.ids is not None:
            named[free(self.id_name, {**taken, **named})] = self.ids[rows]
        return named


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Scores(Rows):
    """Estimates of log p(x) for each row, with what says how far to trust each.

    Attributes:
        log_evidence: (N,) log p(x), nats.
        log_evidence_se: (N,) its Monte Carlo standard error.
        elbo: (N,) L[q], nats: q the encoder's, or the best found for the row where there is no encoder.
        elbo_se: (N,) its Monte Carlo standard error.
        ess: (N,) effective number of draws or chains behind `log_evidence`, or None.
        pareto_k: (N,) tail index of the importance weights, or None; NaN where there is no tail.
        gaps: the decomposition of log p(x) - L[q], where it was asked for.
        precision: relative rounding error of the type that densities are computed in.
    """

    log_evidence: Float[Tensor, " N"]
    log_evidence_se: Float[Tensor, " N"]
    elbo: Float[Tensor, " N"]
    elbo_se: Float[Tensor, " N"]
    ess: Float[Tensor, " N"] | None = None
    pareto_k: Float[Tensor, " N"] | None = None
    gaps: Gaps | None = None
    precision: float = 0.0

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.log_evidence)

    @property
    def flag(self) -> np.ndarray:
        """(N,) how far to trust each row, in words.

        "ok"; "error unreliable": Pareto k > 0.5; "rounded": the densities' type rounds log p(x) by more than 0.1 nats;
        "do not trust": k > 0.7, fewer than 2 effective draws, or an overflow.
        """
        return flags(
            self.pareto_k,
            self.ess,
            finite=self.log_evidence.isfinite() & self.log_evidence_se.isfinite(),
            rounding=self.log_evidence.abs() * self.precision,
        )

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the table: row, identifier, log p(x), ELBO, how far to trust them, and gaps."""
        found: dict[str, Any] = {
            "log_evidence": self.log_evidence,
            "log_evidence_se": self.log_evidence_se,
            "elbo": self.elbo,
            "elbo_se": self.elbo_se,
        }
        if self.gaps is not None:
            for term in ("inference_gap", "amortization_gap", "approximation_gap", "elbo_local"):
                found |= {term: getattr(self.gaps, term), f"{term}_se": getattr(self.gaps, f"{term}_se")}
            found["converged"] = self.gaps.converged
        found |= {name: values for name in ("ess", "pareto_k") if (values := getattr(self, name)) is not None}
        numbers = {name: values.numpy() for name, values in found.items()}
        return {**self._identified(taken=numbers), **numbers, "flag": self.flag}

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns."""
        return plain(self.columns())

    def notes(self) -> list[str]:
        """The means with their errors, where not to trust them, and how they were computed."""
        found = {"log p(x)": (self.log_evidence, self.log_evidence_se), "ELBO": (self.elbo, self.elbo_se)}
        said = []
        for name, (value, se) in found.items():
            row = summarise(value, se)
            said.append(f"{name}: {row['mean']:.4f} nats per row, se {row['se']:.4f} (Monte Carlo {row['mc_se']:.4f})")
        lines = [f"{'; '.join(said)}; N = {len(self)}.", *super().notes()]
        lines += trust_notes(self.flag, "log p(x)")
        if self.gaps is not None:
            lines += [str(note) for note in self.gaps.notes() if note.is_grave and "Pareto" not in note.text]
        return lines

    def summary(self) -> dict[str, Any]:
        """The means with their errors and the notes."""
        terms = {
            "log_evidence": summarise(self.log_evidence, self.log_evidence_se),
            "elbo": summarise(self.elbo, self.elbo_se),
        }
        if self.gaps is not None:
            for gap in self.gaps.GAPS:
                terms[gap] = summarise(getattr(self.gaps, gap), getattr(self.gaps, f"{gap}_se"))
        return {**super().summary(), **terms, "num_untrusted": int((self.flag == UNTRUSTED).sum())}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Encoded(Rows):
    """The posterior approximation q(z | x) of each row.

    Attributes:
        mean: (N, D) mean of q.
        sd: (N, D) standard deviation of q.
        draws: (N, S, D) draws of q, or None.
        elbo: (N,) L[q] of a q that was searched for, nats; None where an encoder gave it.
        converged: (N,) whether that search ended within tolerance, or None.
    """

    mean: Float[Tensor, "N D"]
    sd: Float[Tensor, "N D"]
    draws: Float[Tensor, "N S D"] | None = None
    elbo: Float[Tensor, " N"] | None = None
    converged: Bool[Tensor, " N"] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.mean)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the table: row and identifier, mean and sd of each latent; of draws, one line a draw."""
        places = range(self.mean.shape[1])
        if self.draws is not None:
            num_draws = self.draws.shape[1]
            flat = self.draws.flatten(0, 1).numpy()
            found = {f"z{place}": flat[:, place] for place in places}
            rows = np.repeat(np.arange(len(self)), num_draws)
            return {
                **self._identified(rows, taken=found | {"draw": 0}),
                "draw": np.tile(np.arange(num_draws), len(self)),
                **found,
            }
        found = {f"z{place}_mean": self.mean[:, place].numpy() for place in places}
        found |= {f"z{place}_sd": self.sd[:, place].numpy() for place in places}
        if self.converged is not None:
            found["converged"] = self.converged.numpy()
        return {**self._identified(taken=found), **found}

    def arrays(self) -> dict[str, np.ndarray]:
        """Mean, sd and, where they were asked for, draws."""
        tensors = {name: getattr(self, name) for name in ("mean", "sd", "draws", "elbo", "converged")}
        known = {name: values.numpy() for name, values in tensors.items() if values is not None}
        return plain({**self._identified(taken=known), **known})

    def notes(self) -> list[str]:
        """How the vectors were computed, and which searches did not converge."""
        lines = super().notes()
        if self.converged is not None and (num := int((~self.converged).sum())):
            lines.append(f"Not converged: {num} of {len(self)} searches for q.")
        return lines


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Imputed(Rows):
    """Rows with the values that were not observed drawn from their distribution given the observed ones.

    Numbers are in the units of the file. Where a value was observed, `x` is that value, and `sd` and the errors are 0.

    Attributes:
        names: names of the values of a row.
        x: (N, P) observed values as they are, and the posterior mean of the others.
        sd: (N, P) posterior standard deviation.
        x_se: (N, P) Monte Carlo standard error of `x`.
        sd_se: (N, P) Monte Carlo standard error of `sd`.
        missing: (N, P) which values were not observed.
        draws: (N, S, P) rows filled by draws, or None.
        ess: (N,) effective number of importance draws; NaN where nothing is missing.
        pareto_k: (N,) tail index of their weights; NaN where nothing is missing.
        originals: values as the file holds them, by the name of their column.
        shape: shape of a datapoint.
    """

    names: tuple[str, ...]
    x: Float[Tensor, "N P"]
    sd: Float[Tensor, "N P"]
    x_se: Float[Tensor, "N P"]
    sd_se: Float[Tensor, "N P"]
    missing: Bool[Tensor, "N P"]
    draws: Float[Tensor, "N S P"] | None = None
    ess: Float[Tensor, " N"]
    pareto_k: Float[Tensor, " N"]
    originals: Mapping[str, np.ndarray]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.x)

    @property
    def flag(self) -> np.ndarray:
        """(N,) how far to trust each row, in words.

        "ok"; "error unreliable": Pareto k > 0.5; "do not trust": k > 0.7, fewer than 2 effective draws, or an overflow.
        """
        finite = (self.x.isfinite() & self.sd.isfinite()) | ~self.missing
        return flags(self.pareto_k, self.ess, finite=finite.all(1))

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the table: the file's, filled, and sd and error of each that was; of draws, one line a draw."""
        incomplete = self.missing.any(0).tolist()
        if self.draws is not None:
            num_draws = self.draws.shape[1]
            rows = np.repeat(np.arange(len(self)), num_draws)
            filled = {
                name: self.draws[:, :, place].flatten().numpy() if incomplete[place] else self.originals[name][rows]
                for place, name in enumerate(self.names)
            }
            number = np.tile(np.arange(num_draws), len(self))
            return {**self._identified(rows, taken=filled), free("draw", filled): number, **filled}
        filled = {
            name: self.x[:, place].numpy() if incomplete[place] else self.originals[name]
            for place, name in enumerate(self.names)
        }
        found = dict(filled)
        for place, name in enumerate(self.names):
            if incomplete[place]:
                for of, values in (("sd", self.sd), ("se", self.x_se)):
                    # Empty where the value was observed.
                    found[free(f"{name}_{of}", found)] = (
                        values[:, place].masked_fill(~self.missing[:, place], torch.nan).numpy()
                    )
        for name, column in (("ess", self.ess.numpy()), ("pareto_k", self.pareto_k.numpy()), ("flag", self.flag)):
            found[free(name, found)] = column
        return {**self._identified(taken=found), **found}

    def arrays(self) -> dict[str, np.ndarray]:
        """Filled rows in the shape of a datapoint, errors, and, where they were asked for, draws."""
        found = {name: getattr(self, name).numpy() for name in ("x", "sd", "x_se", "sd_se", "missing")}
        found = {name: values.reshape(len(self), *self.shape) for name, values in found.items()}
        if self.draws is not None:
            found["draws"] = self.draws.numpy().reshape(*self.draws.shape[:2], *self.shape)
        found |= {"ess": self.ess.numpy(), "pareto_k": self.pareto_k.numpy(), "flag": self.flag}
        found["names"] = np.array(self.names)
        return plain({**self._identified(taken=found), **found})

    def notes(self) -> list[str]:
        """How many values were filled, how, and where not to trust them."""
        num_rows, num_values = int(self.missing.any(1).sum()), int(self.missing.sum())
        if not num_values:
            return ["No value is missing: the rows are as they were.", *self.remarks]
        lines = [f"{num_values} values in {num_rows} of {len(self)} rows were filled.", *super().notes()]
        least = float(self.ess[self.missing.any(1)].min())
        lines.append(f"The smallest effective number of draws is {least:.1f}.")
        return lines + trust_notes(self.flag, "the values filled in")

    def summary(self) -> dict[str, Any]:
        """Counts and notes."""
        counts = {"num_missing": int(self.missing.sum()), "num_untrusted": int((self.flag == UNTRUSTED).sum())}
        return {**super().summary(), **counts}


UNRELIABLE, ROUNDED, UNTRUSTED = "error unreliable", "rounded", "do not trust"
# Below this effective number one draw or one chain carries the estimate.
LEAST_ESS = 2
# Nats that the type of the densities may round away unnoticed.
LEAST_ROUNDING = 0.1


def flags(
    pareto_k: Float[Tensor, " N"] | None,
    ess: Float[Tensor, " N"] | None,
    *,
    finite: Bool[Tensor, " N"],
    rounding: Float[Tensor, " N"] | None = None,
) -> np.ndarray:
    """Words for each row on how far it is to be trusted.

    Args:
        pareto_k: tail index of the importance weights, or None.
        ess: effective number of draws, or None.
        finite: whether what was estimated is finite.
        rounding: largest rounding error of the densities, in nats, or None.
    """
    nothing = np.full(len(finite), np.nan)
    k, few, rounded = (nothing if values is None else values.numpy() for values in (pareto_k, ess, rounding))
    found = np.where(k > 0.5, UNRELIABLE, "ok")
    found = np.where(rounded > LEAST_ROUNDING, ROUNDED, found)
    return np.where((k > 0.7) | (few < LEAST_ESS) | ~finite.numpy(), UNTRUSTED, found)


def trust_notes(flag: np.ndarray, of: str) -> list[str]:
    """Sentences on the rows that are flagged.

    Args:
        flag: (N,) as `flags` returns it.
        of: what was estimated.
    """
    lines = []
    if num := int((flag == UNRELIABLE).sum()):
        lines.append(f"Pareto k > 0.5 at {num} of {len(flag)} rows: the error of {of} is unreliable there.")
    if len(rows := np.flatnonzero(flag == ROUNDED)):
        lines.append(
            f"{of} of {len(rows)} of {len(flag)} rows{_rows(rows)} is so far from 0 that the run's floating-point type "
            f"rounds it by more than {LEAST_ROUNDING} nats: these rows are unlike the fit's data, by how much is known "
            "to some digits alone."
        )
    if len(rows := np.flatnonzero(flag == UNTRUSTED)):
        lines.append(
            f"Warning: Pareto k > 0.7, fewer than {LEAST_ESS} effective draws or an overflow at {len(rows)} of "
            f"{len(flag)} rows{_rows(rows)}: do not trust {of} there. Raise the number of draws, or look at the values."
        )
    return lines


def _rows(rows: np.ndarray) -> str:
    return f" ({', '.join(map(str, rows[:_SHOWN]))}{', ...' if len(rows) > _SHOWN else ''})"


def free(name: str, taken: Mapping[str, object]) -> str:
    """A name that no other column has."""
    while name in taken:
        name += "_"
    return name


def plain(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays that can be saved without pickling objects: texts get a fixed width."""
    return {
        name: values.astype(str) if values.dtype == object else np.asarray(values) for name, values in arrays.items()
    }


def _cell(value: Any) -> str:  # noqa: ANN401
    return f"{value:.4f}" if isinstance(value, float | np.floating) else str(value)
