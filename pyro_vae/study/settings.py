"""The settings of training from plain values, as a file holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference import SGD, Adam, Constant, Cosine, RobbinsMonro, Staircase, Training
from pyro_vae.names import did_you_mean

__all__ = ["PARTS_OF_TRAINING", "SETTINGS", "describe_training", "training_of"]

SETTINGS = tuple(name for name in Training.__dataclass_fields__ if name != "callbacks")
_MADE: dict[str, dict[str, type]] = {
    "optimizer": {"adam": Adam, "sgd": SGD},
    "schedule": {"constant": Constant, "robbins-monro": RobbinsMonro, "cosine": Cosine, "staircase": Staircase},
}
PARTS_OF_TRAINING: dict[type, str] = {made: name for known in _MADE.values() for name, made in known.items()}


def training_of(values: Mapping[str, Any]) -> Training:
    """The settings record.

    Args:
        values: settings by name; an optimizer or a schedule is its name or `{"part": name, option: value}`.

    Raises:
        ValueError: there is no such setting, or it cannot have this value.

    Example:
        >>> training_of({"epochs": 5, "optimizer": {"part": "adam", "lr": 0.003}}).optimizer
        Adam(lr=0.003, betas=(0.9, 0.999), eps=1e-08)
    """
    settings = dict(values)
    for name in settings:
        if name not in SETTINGS and name != "callbacks":
            raise ValueError(f"training: expected {', '.join(SETTINGS)}; got {name!r}.{did_you_mean(name, SETTINGS)}")
    for name, known in _MADE.items():
        if name in settings:
            settings[name] = _made(name, known, settings[name])
    try:
        return Training(**settings)
    except TypeError as error:
        raise ValueError(f"training: a value is of the wrong type: {error}.") from error


def describe_training(training: Training) -> dict[str, Any]:
    """The settings as plain values; of callbacks their names."""
    callbacks = [getattr(one, "__name__", type(one).__name__) for one in training.callbacks]
    return training.describe() | ({"callbacks": callbacks} if callbacks else {})


def _made(name: str, known: Mapping[str, type], value: Any) -> Any:  # noqa: ANN401
    options = {"part": value} if isinstance(value, str) else value
    if not isinstance(options, Mapping) or "part" not in options:
        raise ValueError(f'training: {name}: expected a name or {{"part": name, ...}}; got {value!r}.')
    part = options["part"]
    if part not in known:
        raise ValueError(
            f"training: {name}: expected one of {', '.join(known)}; got {part!r}.{did_you_mean(part, known)}"
        )
    try:
        given = {key: tuple(one) if isinstance(one, list) else one for key, one in options.items() if key != "part"}
        return known[part](**given)
    except TypeError as error:
        raise ValueError(f"training: {name} {part}: {error}.") from error
