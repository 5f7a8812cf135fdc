"""Verbs that show what is there."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from inference.checkpoint import atomic_write
from pyro_vae import plots
from pyro_vae.cli.output import next_command, print_json, require_positive
from pyro_vae.data import NAMED
from pyro_vae.figures import save
from pyro_vae.parts import KINDS, Kind, catalog
from pyro_vae.report import open_folder, write_report
from pyro_vae.run import Run, open_run

__all__ = ["GenerateCommand", "ListCommand", "ReportCommand"]


@dataclass(frozen=True, kw_only=True)
class GenerateCommand:
    """Draw datapoints from a run's model: z from the prior, then x given z.

    Example: pyro-vae generate runs/digits --num-draws 1000 --out draws.npy

    Attributes:
        run: the run's folder.
        num_draws: how many.
        out: file to write, .npy for the draws themselves or .png for a picture; by default draws.npy in the run.
        overwrite: replace a file that is there.
        seed: of the draws.
        json: print the record as JSON alone on standard output.
    """

    run: tyro.conf.Positional[Path]
    num_draws: int = 64
    out: Path | None = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Draw."""
        require_positive("--num-draws", self.num_draws)
        run = open_run(self.run)
        out = self.run / "draws.npy" if self.out is None else self.out
        if out.suffix not in (".npy", ".png"):
            raise ValueError(f"--out {out}: expected a file that ends in .npy or .png.")
        if out.exists() and not self.overwrite:
            raise ValueError(
                f"--out {out}: the file is there already; nothing was touched. Choose another, or --overwrite."
            )
        if not out.parent.is_dir():
            raise ValueError(
                f"--out {out}: expected a file in an existing folder; there is no {out.parent}. Make it first."
            )
        x = run.vae.generate(self.num_draws, seed=self.seed).cpu()
        with atomic_write(out) as temporary:
            if out.suffix == ".npy":
                np.save(temporary, x.numpy())
            else:
                save(plots.plot_samples(x, run.config["sizes"]["image_shape"]), temporary)
        if self.json:
            print_json({"out": str(out), "shape": list(x.shape), "seed": self.seed})
            return
        print(f"Written to {out}: {len(x)} draws of {x.shape[1]} values.")
        print(next_command("report", self.run))


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write one HTML page of a run or a study: pictures, numbers, warnings and settings, to be sent and printed.

    Example: pyro-vae report runs/digits --out digits.html

    Attributes:
        folder: of the run or the study.
        out: .html file to write, or to write anew; by default report.html in the folder.
        json: print the record as JSON alone on standard output.
    """

    folder: tyro.conf.Positional[Path]
    out: Path | None = None
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Write."""
        source = open_folder(self.folder)
        out = write_report(source, self.out)
        if self.json:
            print_json({"out": str(out)})
            return
        print(f"Written to {out}.")
        unmeasured = isinstance(source, Run) and source.gaps is None
        print(next_command("gaps", self.folder) if unmeasured else f"Next: open {out} in a browser.")


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List the data and the parts there are, one line each.

    Example: pyro-vae list prior

    Attributes:
        kind: which.
        json: print the record as JSON alone on standard output.
    """

    kind: tyro.conf.Positional[Literal["all", "data", Kind]] = "all"
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """List."""
        chosen: tuple[Literal["data", Kind], ...] = ("data", *KINDS) if self.kind == "all" else (self.kind,)
        found = {kind: _described(kind) for kind in chosen}
        if self.json:
            print_json(found)
            return
        for kind, entries in found.items():
            print(kind)
            width = max(map(len, entries))
            for name, text in entries.items():
                print(f"  {name:<{width}}  {text}")
        print(next_command("fit", "prior:laplace", "--help"))


def _described(kind: Literal["data", Kind]) -> dict[str, str]:
    if kind == "data":
        return {name: known.description for name, known in NAMED.items()} | {
            "FILE": "A path that ends in .npy, .npz, .csv or .parquet."
        }
    return {name: inspect.cleandoc(part.__doc__ or "").split("\n")[0] for name, part in catalog(kind).items()}
