"""What a study asks for: the settings that all its cells share, the axes along which they differ, and the cells."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference import Training
from inference.noise import resolve_seed
from inference.objectives import Loss
from pyro_vae.data import load
from pyro_vae.engines import Engine, objective_from, objective_to_config, require_engine
from pyro_vae.names import did_you_mean
from pyro_vae.networks import check_size
from pyro_vae.parts import KINDS, Options, Parts, catalog, from_config, to_config
from pyro_vae.study.settings import PARTS_OF_TRAINING, SETTINGS, describe_training, training_of
from pyro_vae.study.words import words

__all__ = ["AXES", "Cell", "Study", "require_axis"]

# Beside these any setting of `Training` may be an axis, as "training.epochs".
AXES = (*KINDS, "network", "engine", "objective", "num_latents", "seed")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One fit of a study.

    Attributes:
        place: its value on each axis, in words, by axis.
        parts: its design.
        engine: how it is fitted.
        objective: what is minimised; None: the engine's own.
        num_latents: D.
        training: its settings.
        seed: of its fit.
    """

    place: Mapping[str, str]
    parts: Parts
    engine: Engine
    objective: Loss | None
    num_latents: int
    training: Training
    seed: int

    @property
    def name(self) -> str:
        """A folder's name: the place, and a few letters that tell apart what looks alike."""
        place = "-".join(f"{axis}={value}" for axis, value in self.place.items())
        plain = "".join(letter if letter.isalnum() or letter in "-=._" else "_" for letter in place)
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()
        return f"{plain[:120]}-{digest[:8]}"

    def describe(self) -> dict[str, Any]:
        """As plain values: two cells that agree here are the same fit."""
        return {
            "parts": self.parts.to_config(),
            "engine": self.engine,
            "objective": objective_to_config(self.objective),
            "num_latents": self.num_latents,
            "training": describe_training(self.training),
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of fits to one data set: every combination of the axes' values is a cell.

    A part is its name, or `{"part": name, option: value}`; so is an objective, an optimizer ("adam", "sgd") and a
    schedule ("constant", "robbins-monro", "cosine", "staircase"). What is left out takes the defaults of the command
    line: the likelihood, say, follows the data.

    Args:
        data: arguments of `pyro_vae.load`, or the name or path alone.
        axes: values by axis. An axis is a kind of part ("prior", "likelihood", "family", "decoder", "encoder"),
            "network" (decoder and encoder alike), "engine" ("svi", "em", "semi-amortized" or "mcem"), "objective",
            "num_latents", "seed", or a setting of `inference.Training` ("training.epochs").
        parts: what all cells share of their design, by kind, or by "network".
        training: settings that all cells share.
        engine: how cells are fitted, where that is no axis.
        objective: what is minimised, where that is no axis; None: the engine's own.
        num_latents: D, where it is no axis.
        seed: of the fits, where it is no axis.
        num_data: test datapoints that cells are scored on, the first ones; None: all.

    Raises:
        ValueError: an axis, a part or a setting is unknown, or a value is not one that it can have.

    Example:
        >>> study = Study(data="digits", axes={"prior": ["standard-normal", "laplace"], "seed": [0, 1, 2]})
        >>> len(list(study.cells()))
        6
    """

    data: str | Mapping[str, Any]
    axes: Mapping[str, Sequence[Any]]
    parts: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    engine: Engine = "svi"
    objective: Any = None
    num_latents: int = 8
    seed: int = 0
    num_data: int | None = 200

    def __post_init__(self) -> None:
        """Refuse what no cell can be made of, before the first is fitted."""
        data = self.load_arguments
        _require_known("data", data, list(inspect.signature(load).parameters))
        if not isinstance(data.get("name_or_path"), str):
            raise ValueError(f"data: expected a name or a path, as name_or_path; got {data}.")
        for name in ("parts", "training", "axes"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name}: expected names, each with a value; got {getattr(self, name)!r}.")
        _require_known("parts", self.parts, (*KINDS, "network"))
        parts = _plain("parts", self.parts)
        networks = _both_networks(parts.pop("network")) if "network" in parts else {}
        object.__setattr__(self, "parts", networks | parts)
        training = {key: value for key, value in self.training.items() if key != "callbacks"}
        kept = {"callbacks": self.training["callbacks"]} if "callbacks" in self.training else {}
        object.__setattr__(self, "training", _plain("training", training) | kept)
        object.__setattr__(self, "objective", _plain("objective", self.objective))
        object.__setattr__(self, "axes", {axis: _values(axis, values) for axis, values in self.axes.items()})
        if not self.axes:
            raise ValueError("axes: expected at least one, along which the cells differ. Try seed: [0, 1, 2].")
        if "network" in self.axes and {"decoder", "encoder"} & set(self.axes):
            raise ValueError("axes: expected network, or decoder and encoder; got both. Leave one out.")
        if self.num_data is not None:
            check_size("Study", "num_data", self.num_data)
            if self.num_data < 2:
                raise ValueError("num_data: expected at least 2 datapoints, for a standard error; got 1.")
        for _ in self.cells():
            pass

    @property
    def load_arguments(self) -> dict[str, Any]:
        """Arguments of `pyro_vae.load`."""
        return _plain("data", self.data if isinstance(self.data, Mapping) else {"name_or_path": self.data})

    def cells(self) -> Iterator[Cell]:
        """Every combination, the last axis fastest."""
        for values in itertools.product(*self.axes.values()):
            yield self._cell(dict(zip(self.axes, values, strict=True)))

    def _cell(self, chosen: Mapping[str, Any]) -> Cell:
        settings: dict[str, Any] = {
            name: getattr(self, name) for name in ("engine", "objective", "num_latents", "seed")
        }
        settings |= {axis: value for axis, value in chosen.items() if axis in settings}
        parts: dict[str, Any] = {**self.parts, **{axis: value for axis, value in chosen.items() if axis in KINDS}}
        if "network" in chosen:
            parts |= _both_networks(chosen["network"])
        training: dict[str, Any] = {
            **self.training,
            **{axis.removeprefix("training."): value for axis, value in chosen.items() if axis.startswith("training.")},
        }
        require_engine(settings["engine"])
        check_size("Study", "num_latents", settings["num_latents"])
        resolve_seed(-1 if settings["seed"] is None else settings["seed"])
        # Without a likelihood of its own a cell takes the one that suits the data.
        design: dict[str, Any] = {"likelihood": None} | {kind: _part(kind, value) for kind, value in parts.items()}
        return Cell(
            place={axis: words(value) for axis, value in chosen.items()},
            parts=Parts(**design),
            engine=settings["engine"],
            objective=objective_from(settings["objective"]),
            num_latents=settings["num_latents"],
            training=training_of(training),
            seed=settings["seed"],
        )

    def describe(self) -> dict[str, Any]:
        """As plain values, for a record; what cells share is spelt out, defaults included."""
        shared = training_of(self.training)
        return {
            "data": self.load_arguments,
            "axes": {axis: list(values) for axis, values in self.axes.items()},
            "parts": {
                kind: None if value is None else to_config(_part(kind, value)) for kind, value in self.parts.items()
            },
            "training": describe_training(shared),
            "engine": self.engine,
            "objective": objective_to_config(objective_from(self.objective)),
            "num_latents": self.num_latents,
            "seed": self.seed,
            "num_data": self.num_data,
        }


def require_axis(axis: object) -> None:
    """Refuse an axis that there is not.

    Raises:
        ValueError: there is no such axis; the message lists those there are.
    """
    known = [*AXES, *(f"training.{name}" for name in SETTINGS)]
    if axis not in known:
        raise ValueError(
            f"axes: expected {', '.join(AXES)} or a setting of training, such as training.epochs; got {axis!r}."
            f"{did_you_mean(axis, known)}"
        )


def _values(axis: str, values: Any) -> list[Any]:  # noqa: ANN401
    require_axis(axis)
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"axes: {axis}: expected a list of at least one value; got {values!r}.")
    plain = _plain(f"axes: {axis}", list(values))
    seen: set[str] = set()
    for value in plain:
        if words(value) in seen:
            raise ValueError(f"axes: {axis}: expected different values; got {words(value)} twice.")
        seen.add(words(value))
    return plain


def _part(kind: Any, value: Any) -> Any:  # noqa: ANN401
    if value is None and kind in ("encoder", "likelihood"):
        return None
    return from_config(kind, {"part": value} if isinstance(value, str) else value)


def _both_networks(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """A decoder and an encoder of one make: "conv" stands for conv-decoder and conv-encoder."""
    options = {"part": value} if isinstance(value, str) else value
    if not isinstance(options, Mapping) or not isinstance(options.get("part"), str):
        raise ValueError(f'network: expected a name or {{"part": name, ...}}; got {value!r}.')
    name = options["part"]
    known = {kind: list(catalog(kind)) for kind in ("decoder", "encoder")}  # type: ignore[arg-type]
    makes = [part for part in known["decoder"] if part in known["encoder"]]
    makes += [part.removesuffix("-decoder") for part in known["decoder"] if part.endswith("-decoder")]
    if name not in makes:
        raise ValueError(f"network: expected one of {', '.join(makes)}; got {name!r}.{did_you_mean(name, makes)}")
    return {kind: {**options, "part": name if name in known[kind] else f"{name}-{kind}"} for kind in known}


def _require_known(where: str, given: Any, known: Sequence[str]) -> None:  # noqa: ANN401
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: expected {', '.join(known)}; got {name!r}.{did_you_mean(name, known)}")


def _plain(where: str, value: Any) -> Any:  # noqa: ANN401
    """The value as JSON has it: a record of the study holds it."""
    if isinstance(value, Options):
        return to_config(value)
    if isinstance(value, Loss):
        return objective_to_config(value)
    if type(value) in PARTS_OF_TRAINING:
        return {"part": PARTS_OF_TRAINING[type(value)], **_plain(where, dataclasses.asdict(value))}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(where, item) for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(where, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{where}: expected names, numbers, and lists and mappings of them, which a file can hold; got "
        f"{type(value).__name__}."
    )
