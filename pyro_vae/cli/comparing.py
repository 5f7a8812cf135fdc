"""Verbs that fit several models."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from pyro_vae import plots
from pyro_vae.cli.options import DataOptions, TrainingOptions
from pyro_vae.cli.output import next_command, print_json, require_positive
from pyro_vae.comparison import TRAINING, compare
from pyro_vae.configuration import parameters_of
from pyro_vae.data import load, located
from pyro_vae.demo import run_demo, table
from pyro_vae.encoding import to_json
from pyro_vae.figures import draw_each
from pyro_vae.folders import CONFIG, new_folder
from pyro_vae.study import CELLS, read_study, run_study

__all__ = ["CompareCommand", "DemoCommand", "StudyCommand"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Fit PCA, autoencoder, probabilistic PCA, factor analysis, linear VAE and VAE, and compare them on the test split.

    Example: pyro-vae compare --data digits --num-latents 8 --out runs/compare

    Attributes:
        data: what to fit, in its own units; without --data.binarize every value is a real number.
        num_latents: D, size of the latent vector or code.
        out: folder to write, with table and picture; none: they are printed alone.
        overwrite: replace a run that is there, when the new one is complete.
        training: of the networks.
        hidden: widths of the hidden layers of autoencoder and VAE.
        num_data: test datapoints to measure, the first ones; all by default.
        figures: draw compare.png into the folder.
        seed: of initial weights, training and draws.
        json: print the summary as JSON alone on standard output.
    """

    data: DataOptions = DataOptions()
    num_latents: int = 8
    out: Path | None = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    training: TrainingOptions = TrainingOptions(**vars(TRAINING))
    hidden: tuple[int, ...] = (128, 128)
    num_data: int | None = None
    figures: bool = True
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Compare."""
        require_positive("--num-data", self.num_data)
        with contextlib.nullcontext() if self.out is None else new_folder(self.out, replace=self.overwrite) as folder:
            dataset = load(**self.data.load_arguments())
            with parameters_of(dataset.train.dtype):
                comparison = compare(
                    dataset,
                    self.num_latents,
                    training=self.training,
                    hidden=self.hidden,
                    num_data=self.num_data,
                    seed=self.seed,
                )
            summary = comparison.summary()
            if folder is not None:
                data = self.data.load_arguments()
                data["name_or_path"] = located(data["name_or_path"])
                config = {"command": "compare", "data": {"load": data}, **summary["settings"]}
                (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
                (folder / "compare.json").write_text(to_json(summary) + "\n")
        files = ["compare.json"]
        if self.out is not None and self.figures:
            # The numbers are in their place.
            failed = draw_each(self.out, {"compare": lambda: plots.plot_comparison(comparison)[0]})
            files += [] if failed else ["compare.png"]
            for name, error in failed.items():
                _log.warning("%s: it is whole, but %s could not be drawn (%s).", self.out, Path(name).name, error)
        if self.json:
            print_json(summary)
            return
        print(comparison)
        if self.out is not None:
            print(f"Written to {self.out}: {', '.join(files)}.")
        print(next_command("fit", *self.data.words(), "--num-latents", self.num_latents))


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Fit real digits with and without amortization, measure the gaps of both, and draw them.

    Example: pyro-vae demo --out runs/demo

    Attributes:
        out: folder to write; a demonstration that is there is replaced.
        seed: of everything but the data.
        json: print the summary as JSON alone on standard output.
    """

    out: Path = Path("runs/demo")
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Demonstrate."""
        demo = run_demo(self.out, seed=self.seed)
        if self.json:
            print_json(demo.summary())
            return
        print(table(demo))
        print()
        print(f"Written to {self.out}: the runs svi and em, figures/, gaps.json.")
        print(next_command("report", self.out / "svi"))


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """Fit and measure every cell of a grid, side by side, and say which differences there are.

    A study that was stopped goes on where it was; a cell that fails is recorded, and the rest go on.

    Example: pyro-vae study priors.yaml --out runs/priors --num-jobs 2

    where priors.yaml holds two lines, data: digits, and axes: {prior: [standard-normal, laplace], seed: [0, 1, 2]}.

    Attributes:
        file: the study, a .yaml or .py file; docs/grid.md says what it holds.
        out: folder of its cells; one that holds this study is continued; by default in runs/, named as the file is.
        num_jobs: processes to run cells in, of one thread each; by default one cell after the other.
        dtype: float64 for data and models of more than seven digits; by default what the file says, else float32.
        draws: make draws of the cells that are fitted now, for their results.nc.
        figures: draw pictures of the cells that are fitted or measured now.
        json: print cells, differences and failures as JSON alone on standard output.
    """

    file: tyro.conf.Positional[Path]
    out: Path | None = None
    num_jobs: int | None = None
    dtype: Literal["float32", "float64"] | None = None
    draws: bool = True
    figures: bool = True
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Run what is not done."""
        require_positive("--num-jobs", self.num_jobs)
        study = read_study(self.file)
        if self.dtype is not None:
            study = replace(study, data={**study.load_arguments, "dtype": self.dtype})
        out = Path("runs") / self.file.stem if self.out is None else self.out
        try:
            results = run_study(study, out, num_jobs=self.num_jobs, draws=self.draws, figures=self.figures)
        except KeyboardInterrupt:
            print("pyro-vae: interrupted; the cells that are done stay, and the same command goes on.", file=sys.stderr)
            raise SystemExit(130) from None
        if not results.cells:
            first = results.failures[0]["error"]
            raise ValueError(f"every cell failed; their records lie in {out / CELLS}. The first: {first}")
        files = results.save()
        if self.json:
            print_json(results.summary())
            return
        print(results)
        print(f"Written to {out}: {CELLS}/, {', '.join(file.name for file in files)}.")
        print(next_command("report", out))
