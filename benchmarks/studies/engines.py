"""The design of the study of a fixed budget: engines, and how much of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from inference import MeanField, Search, Training, WakeSleep, fit_em, fit_mcem, fit_svi
from pyro_vae import VAE, Split

# Fits one VAE: with an encoder where the engine is amortized.
Fit = Callable[[VAE, Split, Training, int], object]


def _svi(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """The ELBO with pathwise gradients, one draw a datapoint."""
    return fit_svi(vae.model, vae.guide, data, training=training, seed=seed)  # type: ignore[arg-type]


def _wake_sleep(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """Reweighted wake-sleep: 5 particles, the guide's loss half wake and half sleep."""
    loss = WakeSleep(num_particles=5, insomnia=0.5)
    return fit_svi(vae.model, vae.guide, data, loss=loss, training=training, seed=seed)  # type: ignore[arg-type]


def _semi_amortized(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """Every visit starts at the encoder's rows; the encoder descends the loss there."""
    family = vae.guide.family  # type: ignore[union-attr]
    return fit_em(vae.model, family, data, init=vae.guide, restart="every visit", training=training, seed=seed)


def _em(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """Mean-field rows of every datapoint's own, started at the prior; two draws a step."""
    return fit_em(vae.model, MeanField(vae.num_latents), data, training=training, seed=seed)


def _mcem(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """One Hamiltonian chain a datapoint, 5 transitions a visit, 10 more at its first."""
    return fit_mcem(vae.model, data, num_chains=1, burn_in=10, training=training, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to spend the budget.

    Attributes:
        fit: runs it; its docstring says how.
        amortized: whether there is an encoder.
        local_steps: steps on a datapoint's own row at each visit.
    """

    fit: Fit
    amortized: bool = False
    local_steps: int = 5


ENGINES = {
    "SVI": Engine(fit=_svi, amortized=True),
    "wake-sleep": Engine(fit=_wake_sleep, amortized=True),
    "semi-amortized, 5 steps": Engine(fit=_semi_amortized, amortized=True),
    "variational EM, 1 step": Engine(fit=_em, local_steps=1),
    "variational EM, 5 steps": Engine(fit=_em),
    "variational EM, 20 steps": Engine(fit=_em, local_steps=20),
    "Monte Carlo EM": Engine(fit=_mcem),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything.

    Attributes:
        seconds: the budget of one engine, with tuning.
        tuning: share of it that goes into the trials, in equal parts.
        rates: step sizes that are tried.
        seeds: of training.
        num_snapshots: models scored along the way, at seconds that grow by a constant factor.
        num_images: first test images that are scored.
        num_validation: first validation images that choose the step size.
        num_draws: behind each log p(x) and ELBO.
        tol: of the searches, nats.
        search: for q*.
        sizes: N, first training images fitted to.
        hidden: widths of the hidden layers.
        num_latents: D.
        batch_size: datapoints a step.
    """

    seconds: float
    tuning: float = 1 / 3
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    num_snapshots: int
    num_images: int
    num_validation: int
    num_draws: int
    tol: float
    search: Search
    sizes: tuple[int, ...] = (1000, 50_000)
    hidden: tuple[int, ...] = (100,)
    num_latents: int = 3
    batch_size: int = 100

    @property
    def trial_seconds(self) -> float:
        """Seconds of one trial."""
        return self.tuning * self.seconds / len(self.rates)

    @property
    def times(self) -> list[float]:
        """Seconds of a fit, after tuning, at which models are kept; the last ends it."""
        left = (1 - self.tuning) * self.seconds
        return np.geomspace(left / 30, left, self.num_snapshots).tolist()


PRESETS = {
    "quick": Preset(
        seconds=12.0,
        rates=(1e-3, 3e-3, 1e-2),
        num_snapshots=5,
        num_images=64,
        num_validation=64,
        num_draws=500,
        tol=0.1,
        search=Search(num_particles=2, max_rounds=4, num_judge_draws=128, num_select_draws=64),
    ),
    "paper": Preset(
        seconds=1800.0,
        rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        num_snapshots=12,
        num_images=1000,
        num_validation=500,
        num_draws=5000,
        tol=0.01,
        search=Search(),
    ),
}


def dry(preset: Preset) -> Preset:
    """The same design at a tiny size."""
    return dataclasses.replace(
        preset,
        seconds=1.0,
        rates=preset.rates[:2],
        seeds=preset.seeds[:2],
        num_snapshots=2,
        num_images=4,
        num_validation=2,
        num_draws=50,
        tol=1.0,
        search=Search(num_particles=2, first_round=4, max_rounds=1, num_judge_draws=64, num_select_draws=8),
        sizes=(200,),
    )
