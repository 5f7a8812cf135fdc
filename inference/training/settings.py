"""The one settings record, and what a callback sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from inference.compiled import Compile, Precision, require_precision, worthwhile
from inference.counts import is_number, require_count, require_kind
from inference.devices import resolve_device
from inference.isolation import device_of, modules_of
from inference.processes import Shards, num_processes
from inference.training.steps import Adam, Constant, OptimizerFactory, ScheduleFactory


@dataclass
class LoopState:
    """What a callback sees after each epoch.

    Attributes:
        epoch: epochs finished.
        step: optimiser steps taken.
        elbo: true training ELBO of each finished epoch, nats per datapoint; of Monte Carlo EM, which has none, the mean
            of log p(x, z).
        elbo_validation: held-out ELBO at the end of each, where there are held-out data.
        leaves: what is trained, by name.
        optimizer: the optimiser.
        stop: set to a phrase to end the run; it becomes `Fit.stopped_because`.
    """

    leaves: Mapping[str, Tensor]
    optimizer: Optimizer
    epoch: int = 0
    step: int = 0
    elbo: list[float] = field(default_factory=list)
    elbo_validation: list[float] = field(default_factory=list)
    stop: str | None = None


@runtime_checkable
class Checks(Protocol):
    """A callback that can say before the first step that it would fail after an epoch."""

    def check(self, training: Training, *, held_out: bool) -> None:
        """Refuse what would fail later, and change nothing.

        Args:
            training: settings of the run.
            held_out: whether held-out data are measured.

        Raises:
            ValueError: the callback would fail.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast an engine trains.

    Attributes:
        epochs: passes over the data at most.
        batch_size: B, datapoints a step.
        optimizer: makes the optimiser of the shared parameters, for example `Adam(lr=1e-3)` or
            `functools.partial(torch.optim.SGD, lr=0.1)`.
        schedule: makes its step-size schedule, for example `RobbinsMonro()`.
        warm_up: epochs over which the weight of the whole KL grows linearly from 0 to 1; the ELBO that is reported is
            the true one.
        patience: stop when the held-out ELBO has not improved for so many epochs, and keep the best parameters; None:
            run to the end.
        tol_elbo: stop when the mean ELBO of the last five epochs exceeds that of the five before by less, nats per
            datapoint; 0: never.
        tol_params: stop when no parameter changed over an epoch by more than this, relative to its tensor's norm;
            0: never.
        local_steps: steps on a datapoint's own row at each visit (variational EM). Over many epochs fewer, down to 1,
            fit a model faster; over few epochs a row needs more, or a warm start.
        local_lr: their step size, in standard deviations of q for locations (variational EM); it follows the schedule,
            unless every visit starts anew.
        num_particles: draws a datapoint for the gradients of variational EM, in antithetic pairs; with a loss that is
            made of k draws, k times as many.
        callbacks: called with the loop's state after each epoch; setting `state.stop` to a phrase ends the run.
        device: where the model is and minibatches go: "cpu", "cuda", or "auto", the GPU where there is one. None: where
            the model is.
        compile: run steps as compiled code, which gives the same numbers: True, False, or "auto", where the run is long
            enough to win back the seconds that compiling takes. What cannot be compiled runs as it is, and says why.
        precision: of matrix products in training steps, "float32" (that of the parameters) or "bfloat16", faster where
            the hardware has it; what is measured is measured at full precision.
        shards: k, parts that every minibatch and the datapoints are divided into; a multiple of the number of
            processes, which visit k / K of them each. The numbers depend on k and not on K, but for rounding. None: one
            for each process.
    """

    epochs: int = 100
    batch_size: int = 128
    optimizer: OptimizerFactory = Adam()  # noqa: RUF009 (frozen)
    schedule: ScheduleFactory = Constant()  # noqa: RUF009
    warm_up: int = 0
    patience: int | None = None
    tol_elbo: float = 0.0
    tol_params: float = 0.0
    local_steps: int = 5
    local_lr: float = 0.1
    num_particles: int = 2
    callbacks: Sequence[Callable[[LoopState], None]] = ()
    device: str | None = None
    compile: Compile = "auto"
    precision: Precision = "float32"
    shards: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.shards is not None:
            require_count("shards", self.shards)
        for name in ("epochs", "batch_size", "local_steps", "num_particles"):
            require_count(name, getattr(self, name))
        require_count("warm_up", self.warm_up, least=0)
        if self.patience is not None:
            require_count("patience", self.patience)
        worthwhile(self.compile, 0)
        require_precision(self.precision)
        if self.num_particles % 2:
            raise ValueError(
                f"num_particles: expected an even number (antithetic pairs); got {self.num_particles}. Try 2."
            )
        if not (is_number(self.local_lr) and self.local_lr > 0):
            raise ValueError(f"local_lr: expected a positive step size; got {self.local_lr!r}. Try 0.1.")
        lr = getattr(self.optimizer, "lr", 1.0)
        if not (is_number(lr) and lr > 0):
            raise ValueError(f"lr: expected a positive step size; got {lr!r}. Try 1e-3.")
        for name in ("tol_elbo", "tol_params"):
            value = getattr(self, name)
            if not (is_number(value) and value >= 0):
                raise ValueError(f"{name}: expected 0 (never) or a positive number; got {value!r}.")
        _require_callables(self)

    def num_steps(self, num_data: int) -> int:
        """Optimiser steps of the whole run, where nothing ends it before."""
        return self.epochs * -(-num_data // self.batch_size)

    def sharding(self) -> Shards:
        """How datapoints are divided, and which are this process's."""
        return Shards(self.shards or num_processes())

    def describe(self) -> dict[str, Any]:
        """The settings as plain values, for a record."""
        return {
            entry.name: _plain(getattr(self, entry.name))
            for entry in dataclasses.fields(self)
            if entry.name != "callbacks"
        }


def _require_callables(training: Training) -> None:
    for name, example in (("optimizer", "Adam(lr=1e-3)"), ("schedule", "Constant()")):
        value = getattr(training, name)
        if not callable(value) or (isinstance(value, type) and dataclasses.is_dataclass(value)):
            came = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
            raise TypeError(f"{name}: expected what makes one, such as {example}; got {came}.")
    callbacks = training.callbacks
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks: expected a list of functions of the loop's state; got {callbacks!r}. Try [f].")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"part": type(value).__name__, **dataclasses.asdict(value)}
    return value if isinstance(value, int | float | str | None) else repr(value)


def device_for(training: Training, *programs: Callable[..., Any] | None) -> torch.device:
    """Where minibatches go: the device asked for, else that of the programs.

    Every engine asks here first, so `training` itself is looked at too.

    Args:
        training: settings.
        programs: models and guides; None is passed over.

    Raises:
        TypeError: `training` is something else.
        ValueError: this machine has no such device, or the programs are on another.
    """
    require_kind("training", training, Training)
    here = device_of(*programs)
    if training.device is None:
        return here
    device = resolve_device(training.device)
    # Bare `pyro.param` sites are made where the program says.
    placed = any(True for module in modules_of(*programs) for _ in module.parameters())
    if placed and device.type != here.type:
        raise ValueError(
            f"device: expected {here.type!r}, where the model is; got {training.device!r}. Move the model first, "
            f"model.to({device.type!r}), or leave it out."
        )
    return here if placed else device
