"""Verbs that fit one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from inference.processes import agree, is_first
from pyro_vae.cli.options import DataOptions, ObjectiveOption, PartsOptions, TrainingOptions
from pyro_vae.cli.output import default_out, next_command, print_json
from pyro_vae.cli.resuming import kept_state, said_to_be_whole
from pyro_vae.configuration import read_config, training_from
from pyro_vae.drawing import draw_run
from pyro_vae.engines import Engine, objective_from
from pyro_vae.folders import CONFIG, new_folder
from pyro_vae.jobs import fit_run, join_run
from pyro_vae.report.missing import trains_longer

__all__ = ["EmCommand", "FitCommand"]


@dataclass(frozen=True, kw_only=True)
class _Fitting:
    """What both engines ask for.

    Attributes:
        out: folder to write; by default in runs/, named by time, data and prior.
        overwrite: replace a run that is there, when the new one is complete.
        data: what to fit.
        num_latents: D, size of the latent vector.
        training: how long and how fast.
        parts: prior, likelihood, family, decoder, encoder.
        objective: what is minimised, and by which estimator of its gradient; none: the engine's own.
        seed: of initial weights, training and draws.
        draws: make draws of the posterior and of x, for results.nc.
        figures: draw pictures of the fit. Neither is part of the result: one that cannot be made is left out with a
            warning, and pyro-vae resume makes it later.
        json: print the record as JSON alone on standard output.
        config: config.json of a run, or its folder: what it was made by is taken where nothing else is said.
    """

    out: Path | None = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    data: DataOptions = DataOptions()
    num_latents: int = 8
    training: TrainingOptions = TrainingOptions()
    parts: Annotated[PartsOptions, tyro.conf.arg(name="")] = PartsOptions()
    objective: ObjectiveOption = None
    seed: int = 0
    draws: bool = True
    figures: bool = True
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    # Read before all other options, which start from it: `cli.parsing`.
    config: Path | None = None

    def engine(self) -> Engine:
        """Which engine fits."""
        raise NotImplementedError

    @classmethod
    def of_engine(cls, engine: str) -> dict[str, Any] | None:
        """The options by which this verb calls an engine, or None where another verb does."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, path: Path) -> Self:
        """What a run was made by, for another with the same or some other options.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no run's configuration, or that of another verb.
        """
        config = _read(path)
        variant = cls.of_engine(config["engine"])
        if variant is None:
            other = "fit" if config["engine"] == "svi" else "em"
            raise ValueError(
                f"--config {path}: that run was fitted by {config['engine']}; repeat it by pyro-vae {other}."
            )
        settings = {name: value for name, value in vars(training_from(config)).items() if name != "callbacks"}
        try:
            load = dict(config["data"]["load"])
            return cls(
                data=DataOptions(name=load.pop("name_or_path"), **load),
                num_latents=config["sizes"]["num_latents"],
                training=TrainingOptions(**settings),
                parts=PartsOptions.from_config(config["parts"]),
                objective=objective_from(config.get("objective")),
                seed=config["seed"],
                draws=bool(config.get("draws", True)),
                figures=bool(config.get("figures", True)),
                **variant,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"--config {path}: it has something missing or unknown ({error}). Fit without it."
            ) from error

    def __call__(self) -> None:
        """Fit."""
        # Named by the time, of which several processes have several.
        out = agree(self.out or default_out(self.data.name, self.parts.to_config()["prior"]["part"]))
        with kept_state(out, anew=self.overwrite) as resume:
            asked: dict[str, Any] = {
                "data": self.data.load_arguments(),
                "parts": self.parts,
                "num_latents": self.num_latents,
                "engine": self.engine(),
                "objective": self.objective,
                "training": self.training,
                "resume": resume,
                "seed": self.seed,
                "draws": self.draws,
                "figures": self.figures,
            }
            if not is_first():
                join_run(**asked)
                return
            with new_folder(out, replace=self.overwrite) as folder:
                run = fit_run(folder, **asked)
        # Now the run is in its place: whatever happens to its draws and pictures, it stays.
        run = run.at(out)
        with said_to_be_whole(out):
            draw_run(run)
        fit = run.fit
        if self.json:
            columns = {name: values.tolist() for name, values in fit.history.items()}
            print_json(
                {
                    **columns,
                    "elbo_validation": columns.get("elbo_validation"),
                    "seconds": fit.seconds,
                    "num_steps": fit.num_steps,
                    "stopped_because": fit.stopped_because,
                    "best_epoch": fit.best_epoch,
                    "notes": list(map(str, fit.notes())),
                    "out": str(out),
                }
            )
            return
        print(run.vae)
        print(fit)
        if longer := trains_longer(out, run.config, fit):
            print(f"To train longer: {longer}")
        print(f"Written to {out}.")
        print(next_command("gaps", out))


@dataclass(frozen=True, kw_only=True)
class FitCommand(_Fitting):
    """Fit a VAE by stochastic variational inference, with an encoder, and write a run folder.

    Example: pyro-vae fit --out runs/digits --num-latents 8 prior:laplace decoder:mlp --decoder.hidden 128 128
    """

    def engine(self) -> Engine:
        """Stochastic variational inference."""
        return "svi"

    @classmethod
    def of_engine(cls, engine: str) -> dict[str, Any] | None:
        """No option calls it."""
        return {} if engine == "svi" else None


@dataclass(frozen=True, kw_only=True)
class EmCommand(_Fitting):
    """Fit a VAE by expectation maximisation, with a row or chains for every datapoint, and write a run folder.

    Example: pyro-vae em --out runs/digits-em --training.epochs 50 --training.local-steps 2

    Attributes:
        variant: variational, a row of parameters for every datapoint; semi-amortized, rows that start at an encoder at
            each visit; monte-carlo, Markov chains for every datapoint.
    """

    variant: Literal["variational", "semi-amortized", "monte-carlo"] = "variational"

    def engine(self) -> Engine:
        """That of the variant."""
        return _VARIANTS[self.variant]

    @classmethod
    def of_engine(cls, engine: str) -> dict[str, Any] | None:
        """The variant of an engine."""
        return next(({"variant": name} for name, known in _VARIANTS.items() if known == engine), None)


_VARIANTS: dict[str, Engine] = {"variational": "em", "semi-amortized": "semi-amortized", "monte-carlo": "mcem"}


def _read(path: Path) -> dict[str, Any]:
    """The configuration of a run, named by its folder or by the file."""
    if not path.exists():
        raise FileNotFoundError(
            f"--config {path}: expected a run's config.json or its folder; there is no {path.resolve()}."
        )
    config = read_config(path / CONFIG if path.is_dir() else path)
    if not {"engine", "data", "parts", "sizes", "training", "seed"} <= set(config):
        raise ValueError(f"--config {path}: expected the configuration of a fit; it holds something else.")
    return config
