"""The one optimisation loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from inference.batches import Data, fetch
from inference.compiled import one_core, undisturbed
from inference.objectives import Gradients, Objective, Step
from inference.processes import start_alike
from inference.progress import progress_bar
from inference.results import Fit
from inference.resuming import Resume, Sharded, Signals, Snapshots, Stateful, data_digest, stop_signals
from inference.scoring import require_finite
from inference.training.blame import blame_leaf
from inference.training.minibatches import Pass, Plan, require_shardable
from inference.training.saving import Best, Saver, put
from inference.training.settings import Checks, LoopState, Training
from inference.training.steps import FusedAdam

# Steps between looks at the loss on a GPU; parameters are looked at after each epoch anyway.
LOOK_EVERY = 50


class Visit(Protocol):
    """What an engine does with one minibatch."""

    def __call__(self, x: Tensor, index: Tensor, lr_factor: float, /) -> Step:
        """The loss, the true ELBO, and the gradients of the loss.

        `lr_factor` is where the schedule stands, from 1 down.
        """
        ...


def optimise(
    objective: Objective,
    visit: Visit,
    leaves: Mapping[str, Tensor],
    data: Data,
    training: Training,
    *,
    keep: Sequence[nn.Module],
    device: torch.device,
    held_out: Callable[[], float] | None,
    blame: Callable[[Tensor], str | None],
    label: str,
    seed: int,
    steps: Gradients | None = None,
    check: Callable[[Tensor, Tensor], None] = require_finite,
    resume: Resume | None = None,
    identity: Mapping[str, Any] = MappingProxyType({}),
    parts: Mapping[str, Stateful] = MappingProxyType({}),
    tables: Mapping[str, Sharded] = MappingProxyType({}),
) -> Fit:
    """Run the loop: visit minibatches, step, measure, stop.

    Args:
        objective: what is minimised; the loop sets its KL weight.
        visit: one minibatch's work, or that of one shard of it.
        leaves: what is trained, by name.
        data: training data.
        training: settings.
        keep: modules whose buffers belong to the best-so-far.
        device: where minibatches go.
        held_out: measures the held-out ELBO, or None.
        blame: says which site or parameter of this minibatch is not finite.
        label: shown in the progress bar.
        seed: of the run; where minibatches come in shards, each visit draws from a generator of its own.
        steps: what visits consist of, where they do nothing else.
        check: refuses unfit rows of x, given with their indices; called once for every datapoint.
        resume: where the loop's state is kept, and gone on from.
        identity: what of the engine's settings has to be the same for that.
        parts: what the engine changes besides its parameters, by name.
        tables: what it keeps of every datapoint, by name.

    Raises:
        ValueError: what `resume` holds is the state of another run, or the program cannot be divided.
        Stopped: a signal came, and the state has been saved.
        FloatingPointError: a value became NaN or infinite; the message names the site.
    """
    if training.patience is not None and held_out is None:
        raise ValueError(
            "patience: early stopping needs held-out data; got validation=None. Pass validation=data.validation."
        )
    for callback in training.callbacks:
        if isinstance(callback, Checks):
            callback.check(training, held_out=held_out is not None)
    shards = training.sharding()
    require_shardable(shards, keep, list(leaves))
    optimizer = _require_optimizer(training.optimizer(leaves.values()))
    initial_lr = optimizer.param_groups[0]["lr"]
    num_steps = training.num_steps(len(data))
    schedule = _require_schedule(training.schedule(optimizer, num_steps), num_steps)
    state = LoopState(leaves=leaves, optimizer=optimizer)
    best = Best(leaves, keep)
    start_alike(best.tensors)
    snapshots = None
    if resume is not None:
        settings = {**training.describe(), "shards": shards.count}
        identity = {"engine": label, **identity, "seed": seed, "training": settings, "data": data_digest(data)}
        # Not by name: the names of modules are given in the order in which they are made.
        identity |= {"parameters": [list(leaf.shape) for leaf in leaves.values()]}
        snapshots = Snapshots(resume, identity, shards)
        parts = {**parts, **_remembering(training), **({} if steps is None else {"steps": steps})}
    plan = Plan(len(data), training.batch_size, shards, seed)
    saver = Saver(snapshots, state, schedule, best, parts, tables, plan)
    loop = _Loop(
        objective=objective,
        visit=visit,
        data=data,
        training=training,
        device=device,
        blame=blame,
        check=check,
        steps=steps,
        state=state,
        schedule=schedule,
        initial_lr=initial_lr,
        saver=saver,
        plan=plan,
    )
    within = saver.load()
    validate = pyro.settings.get("validate_distributions_pyro")

    with (
        progress_bar(training.num_steps(len(data)), label, "step") as bar,
        warnings.catch_warnings(),
        stop_signals(wait=resume is not None) as signals,
    ):
        bar.initial = bar.n = state.step
        # Pyro warns of what the loop reports as an error, with the site's name.
        warnings.filterwarnings("ignore", "Encountered (NaN|inf)", UserWarning)
        # What was looked at before the first step may differ in another minibatch: the ELBO would be wrong there.
        warnings.filterwarnings("error", "Found (vars in model|non-auxiliary vars in guide)", UserWarning)
        while state.epoch < training.epochs and state.stop is None:
            if within is None:
                before = [leaf.detach().clone() for leaf in leaves.values()] if training.tol_params else []
                within = Pass(loop.plan.orders(state.epoch), before)
            # The first pass checks shapes and supports; after that the checks cost time and find nothing new.
            with pyro.validation_enabled(is_validate=validate and state.epoch == 0):
                state.elbo.append(loop.epoch(within, bar, signals))
                state.epoch += 1
                if held_out is not None:
                    state.elbo_validation.append(held_out())
            _require_finite_state(state, held_out, saver)
            if training.patience is not None and state.epoch > training.warm_up:
                best.update(state.elbo_validation[-1], state.epoch - 1)
                if state.epoch - 1 - best.epoch >= training.patience:
                    state.stop = f"held-out ELBO has not improved for {training.patience} epochs"
            state.stop = state.stop or _converged(state, within.before, training)
            for callback in training.callbacks:
                callback(state)
            within = None
            saver.between(None, signals.came)
        # Whoever makes the same call again finds it done.
        saver.save(None)
    return Fit(
        elbo=torch.tensor(state.elbo, dtype=torch.float64),
        elbo_validation=torch.tensor(state.elbo_validation, dtype=torch.float64) if held_out is not None else None,
        seconds=saver.elapsed,
        num_steps=state.step,
        stopped_because=state.stop or f"the budget of {training.epochs} epochs ended",
        best_epoch=best.restore(),
        settings={"training": training.describe()},
    )


@dataclass(kw_only=True)
class _Loop:
    """What every step needs."""

    objective: Objective
    visit: Visit
    data: Data
    training: Training
    device: torch.device
    blame: Callable[[Tensor], str | None]
    check: Callable[[Tensor, Tensor], None]
    steps: Gradients | None
    state: LoopState
    schedule: LRScheduler
    initial_lr: float
    saver: Saver
    plan: Plan

    def epoch(self, within: Pass, bar: tqdm, signals: Signals) -> float:
        """One pass over the data in random order, or what is left of it; the mean of the true ELBOs."""
        state, elbos, num_steps = self.state, within.elbos, self.plan.num_steps
        leaves = list(state.leaves.values())
        steps = self.steps
        # A first step that is refused has moved nothing, running statistics included.
        tensors = self.saver.best.tensors if state.step == 0 else []
        before = [tensor.detach().clone() for tensor in tensors]
        with ExitStack() as stack:
            if steps is not None and self._runs_no_others():
                stack.enter_context(undisturbed())
            for position in range(len(elbos), num_steps):
                if steps is not None and steps.fits_one_core:
                    stack.enter_context(one_core())
                    steps = None
                if self.training.warm_up:
                    self.objective.kl_weight = min(1.0, max(state.step / (self.training.warm_up * num_steps), 1e-8))
                visits = []
                try:
                    for shard, index in self.plan.pieces(within.orders, position):
                        with self.plan.drawing(state.step, shard):
                            visits.append((len(index), self._visit(index)))
                except Exception:
                    if state.step == 0:
                        put(tensors, before)
                    raise
                _, elbo, grads = self.plan.together(visits, self.plan.size(position), leaves)
                del visits
                self._descend(leaves, grads)
                del grads  # Their memory serves the next ones then, and stays in the caches.
                self.schedule.step()
                state.step += 1
                # A tensor of one number that outlives its step keeps the system from using the room beside it again:
                # a hundred kilobytes a step.
                elbos.append(float(elbo) if elbo.device.type == "cpu" else elbo)
                if not bar.disable and state.step % 20 == 0:
                    bar.set_postfix_str(f"ELBO {float(elbo):.2f}", refresh=False)
                bar.update()
                self.saver.between(within, signals.came)
        sizes = torch.tensor([self.plan.size(i) for i in range(num_steps)], dtype=torch.float64, device=self.device)
        means = torch.stack([torch.as_tensor(elbo, dtype=torch.float64, device=self.device) for elbo in elbos])
        return float(means @ sizes) / len(self.data)

    def _visit(self, index: Tensor) -> Step:
        """What the datapoints at `index` give; what is not finite is an error that says where."""
        state = self.state
        x = fetch(self.data, index, device=self.device)
        if state.epoch == 0:
            self.check(x, index)
        random_state = torch.get_rng_state()
        refused: ValueError | None = None
        try:
            found = self.visit(x, index, state.optimizer.param_groups[0]["lr"] / self.initial_lr)
        except UserWarning as warning:
            raise ValueError(
                f"guide: expected it to sample the model's latent sites at every step; at step {state.step} it does "
                f"not. {warning}"
            ) from warning
        except ValueError as error:
            # Under validation a distribution refuses NaN before any loss exists; where all is finite, the error is
            # another.
            refused = error
        if refused is None and (not self._looks() or math.isfinite(found.loss)):
            return found
        torch.set_rng_state(random_state)
        culprit = blame_leaf(state.leaves) or self.blame(x)
        # Data outside a support have no density either: what refused them says it better than their log density.
        outside = str(culprit).startswith("the log density") and "Expected parameter" not in str(refused)
        if refused is not None and (culprit is None or outside):
            raise refused
        raise FloatingPointError(_not_finite(state, culprit or "the loss", self.saver)) from refused

    def _looks(self) -> bool:
        """Whether this step's loss is looked at: on a GPU it would be waited for."""
        return self.device.type == "cpu" or self.state.step % LOOK_EVERY == 0

    def _descend(self, leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        optimizer = self.state.optimizer
        if isinstance(optimizer, FusedAdam):
            optimizer.descend(grads)
            return
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _runs_no_others(self) -> bool:
        """Whether an epoch runs no code that is the user's own, but for what may be compiled."""
        optimizer = self.state.optimizer
        return (
            self.state.epoch > 0
            and type(self.data) is Tensor
            and isinstance(optimizer, FusedAdam)
            and not optimizer.hooks
        )


def _require_optimizer(optimizer: object) -> Optimizer:
    """Refuse what takes no steps by itself."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer: expected a function that makes a torch optimiser; it made {optimizer!r}. Try Adam(lr=1e-3)."
        )
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise ValueError(
            f"optimizer: expected one that steps down dense gradients; {type(optimizer).__name__} asks for more. Try "
            "Adam(lr=1e-3)."
        )
    return optimizer


def _require_schedule(schedule: object, num_steps: int) -> LRScheduler:
    """Refuse what cannot be advanced once a step until the run ends."""
    if not isinstance(schedule, LRScheduler) or isinstance(schedule, ReduceLROnPlateau):
        raise TypeError(
            "schedule: expected a function that makes a schedule of torch which advances with each step, such as "
            f"Constant() or Cosine(); it made {type(schedule).__name__}."
        )
    most = getattr(schedule, "total_steps", None)
    if isinstance(most, int) and most < num_steps:
        raise ValueError(
            f"schedule: expected one for the {num_steps} steps of the run; {type(schedule).__name__} ends after "
            f"{most}. It is called with the optimiser and the number of steps: pass that on."
        )
    return schedule


def _require_finite_state(state: LoopState, held_out: object, saver: Saver) -> None:
    """The last step of an epoch may have broken what no later loss would show."""
    culprit = blame_leaf(state.leaves)
    if culprit is None and held_out is not None and not math.isfinite(state.elbo_validation[-1]):
        culprit = "the held-out ELBO"
    if culprit is not None:
        raise FloatingPointError(_not_finite(state, culprit, saver))


def _not_finite(state: LoopState, culprit: str, saver: Saver) -> str:
    return (
        f"step {state.step}: {culprit} is not finite. Try a smaller step size or a KL warm-up, and look for NaN in "
        f"the data and for scales far from 1.{saver.where()}"
    )


def _remembering(training: Training) -> dict[str, Stateful]:
    """The callbacks that remember something, by their place."""
    callbacks: Sequence[Any] = training.callbacks
    return {f"callback {i}": part for i, part in enumerate(callbacks) if isinstance(part, Stateful)}


def _converged(state: LoopState, before: list[Tensor], training: Training) -> str | None:
    """A phrase where the ELBO or the parameters have stopped changing."""
    recent = state.elbo[training.warm_up :]
    if training.tol_elbo and len(recent) >= 10:
        gain = (sum(recent[-5:]) - sum(recent[-10:-5])) / 5
        if gain < training.tol_elbo:
            return f"the ELBO converged: it gained {gain:.2g} nats in five epochs"
    if training.tol_params and state.epoch > training.warm_up:
        change = max(
            float((leaf.detach() - old).abs().max() / old.norm().clamp_min(1e-12))
            for leaf, old in zip(state.leaves.values(), before, strict=True)
        )
        if change < training.tol_params:
            return f"the parameters converged: none changed by more than {change:.2g} of its norm"
    return None
