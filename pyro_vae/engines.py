"""Engines and objectives by name, as the command line, configurations and studies choose them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from inference import Fit, Resume, Training, fit_em, fit_mcem, fit_svi
from inference.families import Family
from inference.objectives import (
    IWAE,
    AnalyticKL,
    DReG,
    Loss,
    PathwiseELBO,
    Renyi,
    ScoreFunctionELBO,
    StickingTheLanding,
    WakeSleep,
)
from pyro_vae.data import Dataset
from pyro_vae.names import did_you_mean
from pyro_vae.vae import VAE

__all__ = [
    "ENGINES",
    "OBJECTIVES",
    "Engine",
    "fit_by",
    "needs_encoder",
    "objective_from",
    "objective_to_config",
    "require_engine",
]

Engine = Literal["svi", "em", "semi-amortized", "mcem"]

# What a picture or a page calls them.
ENGINES: dict[str, str] = {
    "svi": "SVI",
    "em": "variational EM",
    "semi-amortized": "semi-amortized EM",
    "mcem": "Monte Carlo EM",
}

OBJECTIVES: dict[str, type[Loss]] = {
    "pathwise": PathwiseELBO,
    "score-function": ScoreFunctionELBO,
    "analytic-kl": AnalyticKL,
    "sticking-the-landing": StickingTheLanding,
    "iwae": IWAE,
    "dreg": DReG,
    "renyi": Renyi,
    "wake-sleep": WakeSleep,
}


def needs_encoder(engine: Engine) -> bool:
    """Whether an engine trains an encoder."""
    return engine in ("svi", "semi-amortized")


def fit_by(
    engine: Engine,
    vae: VAE,
    family: Family,
    dataset: Dataset,
    *,
    objective: Loss | None,
    training: Training,
    resume: Resume | None = None,
    seed: int,
) -> Fit:
    """Fit a VAE in place, by the engine of this name.

    Args:
        engine: "svi"; "em", variational EM with a row for every datapoint; "semi-amortized", whose visits start at the
            encoder; "mcem", Monte Carlo EM.
        vae: with an encoder where the engine trains one, without where not.
        family: of the rows of variational EM, and of held-out rows.
        dataset: training and validation split.
        objective: what is minimised; None: the engine's own.
        training: settings.
        resume: where the state is kept, and gone on from.
        seed: of shuffling and draws.

    Raises:
        ValueError: the engine takes no objective, or lacks the encoder that it trains.
    """
    guide = vae.guide
    if needs_encoder(engine) and guide is None:
        raise ValueError(f"vae: expected an encoder for the engine {engine}; got none. Pass encoder=, or take 'em'.")
    common: dict[str, Any] = {"training": training, "validation": dataset.validation, "resume": resume, "seed": seed}
    if engine == "mcem":
        if objective is not None:
            raise ValueError(
                "objective: Monte Carlo EM maximises the mean log joint density of its draws, and takes no other. "
                "Leave it out."
            )
        return fit_mcem(vae.model, dataset.train, validation_family=family, **common)
    if engine == "svi" and guide is not None:
        return fit_svi(vae.model, guide, dataset.train, loss=objective, **common)
    start: dict[str, Any] = {} if engine == "em" else {"init": vae.guide, "restart": "every visit"}
    return fit_em(vae.model, family, dataset.train, loss=objective, **start, **common)


def objective_to_config(objective: Loss | None) -> dict[str, Any] | None:
    """The objective as a dictionary that JSON can hold; None stands for the engine's own.

    Example:
        >>> objective_to_config(IWAE(8))
        {'part': 'iwae', 'num_particles': 8}

    Raises:
        ValueError: it is none of those that have a name.
    """
    if objective is None:
        return None
    name = next((name for name, kind in OBJECTIVES.items() if kind is type(objective)), None)
    if name is None:
        raise ValueError(
            f"objective: expected one of {', '.join(OBJECTIVES)}, which a run can keep; got {objective!r}. Fit with "
            "your own by inference.fit_svi or fit_em."
        )
    return {"part": name, **dataclasses.asdict(objective)}  # type: ignore[call-overload]


def objective_from(config: Mapping[str, Any] | str | None) -> Loss | None:
    """The objective that `objective_to_config` wrote, or that a name stands for with its defaults.

    Raises:
        ValueError: there is none of that name, or it refuses its options.
    """
    if config is None:
        return None
    options = {"part": config} if isinstance(config, str) else dict(config)
    name = options.pop("part", None)
    if name not in OBJECTIVES:
        raise ValueError(
            f"objective: expected one of {', '.join(OBJECTIVES)}; got {name!r}.{did_you_mean(name, OBJECTIVES)}"
        )
    make: Callable[..., Loss] = OBJECTIVES[name]
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(f"objective {name}: {error}.") from error


def require_engine(engine: object) -> None:
    """Refuse an engine that there is not.

    Raises:
        ValueError: there is none of that name.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine: expected one of {', '.join(get_args(Engine))}; got {engine!r}.")
