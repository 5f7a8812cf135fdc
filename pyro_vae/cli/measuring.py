"""Verbs that measure a run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from inference import Annealing, Evidence, Resume, ais, elbo, iwae
from inference.processes import is_first
from inference.results import summarise
from pyro_vae.cli.output import next_command, print_json, require_positive
from pyro_vae.jobs import measure_run
from pyro_vae.parts import build_family, catalog, options
from pyro_vae.report.missing import trains_longer
from pyro_vae.run import open_run

__all__ = ["EvaluateCommand", "GapsCommand"]

_FAMILIES = (
    "further families to find q* in, for example full-covariance; each takes about as long again as the measurement "
    f"without it. There are {', '.join(catalog('family'))}."
)


@dataclass(frozen=True, kw_only=True)
class GapsCommand:
    """Measure what amortization cost, on the test split of a run, and keep it in its folder.

    A run of EM has no encoder: one of its own design is first fitted to the frozen model. What is measured is kept on
    the way: the same command goes on after it was stopped.

    Example: pyro-vae gaps runs/digits --num-data 200

    Attributes:
        run: the run's folder.
        num_data: test datapoints to measure, the first ones; all by default.
        families: further families to find q* in.
        device: where to measure: cpu, cuda, or auto; the CPU by default.
        overwrite: replace gaps that were measured before, when the new ones are complete.
        figures: draw pictures of the gaps.
        seed: of all draws.
        json: print the summary as JSON alone on standard output.
    """

    run: tyro.conf.Positional[Path]
    num_data: int | None = None
    families: Annotated[tuple[str, ...], tyro.conf.arg(help=_FAMILIES)] = ()
    device: str | None = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    figures: bool = True
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Measure."""
        require_positive("--num-data", self.num_data)
        run = open_run(self.run)
        support = run.vae.prior().support
        further = [build_family(options("family", name), run.vae.num_latents, support) for name in self.families]
        # Of other settings what is done is of no use.
        state = self.run / ("-".join(["gaps", str(self.seed), *self.families]) + ".unfinished")
        gaps = measure_run(
            run,
            num_data=self.num_data,
            families=further,
            seed=self.seed,
            replace=self.overwrite,
            device=self.device,
            resume=Resume(state),
            figures=self.figures,
        )
        if not is_first():
            return
        shutil.rmtree(state, ignore_errors=True)
        if self.json:
            print_json(gaps.summary() | {"fit_notes": list(map(str, run.fit.notes()))})
            return
        print("\n".join(map(str, [gaps, *run.fit.notes()])))
        if longer := trains_longer(self.run, run.config, run.fit):
            print(f"To train longer: {longer}")
        print("Seconds: " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in gaps.seconds.items()))
        print(f"Written to {self.run}: results.nc{', figures/' * self.figures}.")
        print(next_command("report", self.run))


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Held-out ELBO and log p(x) of a run, each with its errors.

    Example: pyro-vae evaluate runs/digits --num-data 200 --estimators elbo iwae ais

    Attributes:
        run: the run's folder.
        split: which datapoints.
        num_data: how many of them, the first ones; None: all.
        estimators: elbo: the guide's bound; iwae: importance sampling; ais: annealed importance sampling.
        num_draws: draws of elbo and iwae.
        num_temperatures: of ais.
        num_chains: of ais, a datapoint.
        seed: of all draws.
        json: print the record as JSON alone on standard output.
    """

    run: tyro.conf.Positional[Path]
    split: Literal["train", "validation", "test"] = "test"
    num_data: int | None = 200
    estimators: tuple[Literal["elbo", "iwae", "ais"], ...] = ("elbo", "iwae")
    num_draws: int = 5000
    num_temperatures: int = 100
    num_chains: int = 16
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Evaluate."""
        require_positive("--num-data", self.num_data)
        if not self.estimators:
            raise ValueError("--estimators: expected one or more of elbo, iwae, ais; got none.")
        run = open_run(self.run)
        guide = run.vae.guide
        if guide is None:
            raise ValueError(
                f"{self.run}: a run of EM has no encoder until one is fitted to it. First: pyro-vae gaps {self.run}"
            )
        data = getattr(run.dataset, self.split)
        data = data.fix() if data.resamples else data
        data = data if self.num_data is None else data.head(min(self.num_data, len(data)))
        annealing = Annealing(num_temperatures=self.num_temperatures, num_chains=self.num_chains)
        found: dict[str, Evidence] = {}
        for name in self.estimators:
            if name == "elbo":
                found[name] = elbo(run.vae.model, guide, data, num_draws=self.num_draws, seed=self.seed)
            elif name == "iwae":
                found[name] = iwae(run.vae.model, guide, data, num_draws=self.num_draws, seed=self.seed)
            else:
                found[name] = ais(run.vae.model, data, start=guide, annealing=annealing, seed=self.seed)
        if self.json:
            print_json({name: {**summarise(one.value, one.se), "method": one.method} for name, one in found.items()})
            return
        for label, one in found.items():
            print(f"{label}: {one}")
        print(next_command("gaps" if run.gaps is None else "report", self.run))
