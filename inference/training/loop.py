"""The one optimisation loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from inference.batches import Data, fetch
from inference.compiled import one_core, undisturbed
from inference.isolation import eval_mode
from inference.noise import own_random_state
from inference.objectives import Gradients, Objective, Step
from inference.progress import progress_bar
from inference.results import Fit
from inference.scoring import require_finite
from inference.training.settings import LoopState, Training
from inference.training.steps import FusedAdam


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
    steps: Gradients | None = None,
    check: Callable[[Tensor, Tensor], None] = require_finite,
) -> Fit:
    """Run the loop: visit minibatches, step, measure, stop.

    Args:
        objective: what is minimised; the loop sets its KL weight.
        visit: one minibatch's work.
        leaves: what is trained, by name.
        data: training data.
        training: settings.
        keep: modules whose buffers belong to the best-so-far.
        device: where minibatches go.
        held_out: measures the held-out ELBO, or None.
        blame: says which site or parameter of this minibatch is not finite.
        label: shown in the progress bar.
        steps: what visits consist of, where they do nothing else.
        check: refuses unfit rows of x, given with their indices; called once for every datapoint.

    Raises:
        FloatingPointError: a value became NaN or infinite; the message names the site.
    """
    began = time.perf_counter()
    if training.patience is not None and held_out is None:
        raise ValueError(
            "patience: early stopping needs held-out data; got validation=None. Pass validation=data.validation."
        )
    optimizer = training.optimizer(leaves.values())
    initial_lr = optimizer.param_groups[0]["lr"]
    schedule = training.schedule(optimizer, training.num_steps(len(data)))
    state = LoopState(leaves=leaves, optimizer=optimizer)
    best = _Best(leaves, keep)
    validate = pyro.settings.get("validate_distributions_pyro")

    with (
        progress_bar(training.num_steps(len(data)), label, "step") as bar,
        warnings.catch_warnings(),
    ):
        # Pyro warns of what the loop reports as an error, with the site's name.
        warnings.filterwarnings("ignore", "Encountered (NaN|inf)", UserWarning)
        while state.epoch < training.epochs and state.stop is None:
            before = [leaf.detach().clone() for leaf in leaves.values()] if training.tol_params else []
            # The first pass checks shapes and supports; after that the checks cost time and find nothing new.
            with pyro.validation_enabled(is_validate=validate and state.epoch == 0):
                with ExitStack() as stack:
                    if steps is not None and _runs_no_others(state, data):
                        stack.enter_context(undisturbed())
                    elbo = _epoch(
                        objective,
                        visit,
                        state,
                        schedule,
                        data,
                        training,
                        initial_lr,
                        device=device,
                        blame=blame,
                        check=check,
                        bar=bar,
                        steps=steps,
                        stack=stack,
                    )
                state.elbo.append(elbo)
                state.epoch += 1
                if held_out is not None:
                    state.elbo_validation.append(held_out())
            _require_finite_state(state, held_out)
            if training.patience is not None and state.epoch > training.warm_up:
                best.update(state.elbo_validation[-1], state.epoch - 1)
                if state.epoch - 1 - best.epoch >= training.patience:
                    state.stop = f"held-out ELBO has not improved for {training.patience} epochs"
            state.stop = state.stop or _converged(state, before, training)
            for callback in training.callbacks:
                callback(state)
    return Fit(
        elbo=torch.tensor(state.elbo, dtype=torch.float64),
        elbo_validation=torch.tensor(state.elbo_validation, dtype=torch.float64) if held_out is not None else None,
        seconds=time.perf_counter() - began,
        num_steps=state.step,
        stopped_because=state.stop or f"the budget of {training.epochs} epochs ended",
        best_epoch=best.restore(),
        settings={"training": training.describe()},
    )


def _epoch(
    objective: Objective,
    visit: Visit,
    state: LoopState,
    schedule: LRScheduler,
    data: Data,
    training: Training,
    initial_lr: float,
    *,
    device: torch.device,
    blame: Callable[[Tensor], str | None],
    check: Callable[[Tensor, Tensor], None],
    bar: tqdm,
    steps: Gradients | None,
    stack: ExitStack,
) -> float:
    """One pass over the data in random order; the mean of the true ELBOs."""
    elbos: list[Tensor] = []
    leaves = list(state.leaves.values())
    optimizer = state.optimizer
    batches = torch.randperm(len(data)).split(training.batch_size)
    for index in batches:
        if steps is not None and steps.fits_one_core:
            stack.enter_context(one_core())
            steps = None
        if training.warm_up:
            objective.kl_weight = min(1.0, max(state.step / (training.warm_up * len(batches)), 1e-8))
        x = fetch(data, index, device=device)
        if state.epoch == 0:
            check(x, index)
        random_state = torch.get_rng_state()
        refused: ValueError | None = None
        try:
            loss, elbo, grads = visit(x, index, optimizer.param_groups[0]["lr"] / initial_lr)
        except ValueError as error:
            # Under validation a distribution refuses NaN before any loss exists; where all is finite, the error is
            # another.
            refused = error
        if refused is not None or not math.isfinite(loss):
            torch.set_rng_state(random_state)
            culprit = _blame_leaf(state.leaves) or blame(x)
            # Data outside a support have no density either: what refused them says it better than their log density.
            outside = str(culprit).startswith("the log density") and "Expected parameter" not in str(refused)
            if refused is not None and (culprit is None or outside):
                raise refused
            raise FloatingPointError(_not_finite(state, culprit or "the loss")) from refused
        if isinstance(optimizer, FusedAdam):
            optimizer.descend(grads)
        else:
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = grad
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        del grads  # Their memory serves the next ones then, and stays in the caches.
        schedule.step()
        state.step += 1
        elbos.append(elbo)
        if not bar.disable and state.step % 20 == 0:
            bar.set_postfix_str(f"ELBO {float(elbo):.2f}", refresh=False)
        bar.update()
    sizes = torch.tensor([len(index) for index in batches], dtype=torch.float64, device=device)
    return float(torch.stack(elbos).double() @ sizes) / len(data)


def _runs_no_others(state: LoopState, data: Data) -> bool:
    """Whether an epoch runs no code that is the user's own, but for what may be compiled."""
    return (
        state.epoch > 0
        and type(data) is Tensor
        and isinstance(state.optimizer, FusedAdam)
        and not state.optimizer.hooks
    )


def _require_finite_state(state: LoopState, held_out: object) -> None:
    """The last step of an epoch may have broken what no later loss would show."""
    culprit = _blame_leaf(state.leaves)
    if culprit is None and held_out is not None and not math.isfinite(state.elbo_validation[-1]):
        culprit = "the held-out ELBO"
    if culprit is not None:
        raise FloatingPointError(_not_finite(state, culprit))


def _not_finite(state: LoopState, culprit: str) -> str:
    return (
        f"step {state.step}: {culprit} is not finite. Try a smaller step size or a KL warm-up, and look for NaN in "
        "the data and "
        "for scales far from 1."
    )


def _blame_leaf(leaves: Mapping[str, Tensor]) -> str | None:
    for name, leaf in leaves.items():
        if not bool(leaf.isfinite().all()):
            return f"parameter '{name}'"
    return None


def blame_site(model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> str | None:
    """Which site of this minibatch is the first whose value or log density is not finite."""
    with torch.no_grad(), pyro.validation_enabled(is_validate=False):
        guide_trace = poutine.trace(guide).get_trace(x)
        culprit = _blame_trace(guide_trace)
        return culprit or _blame_trace(poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x))


@torch.no_grad()
def require_valid(model: Callable[..., Any], x: Tensor) -> None:
    """Let Pyro refuse data outside a support, where its validation is on: compiled code does not look.

    Raises:
        ValueError: Pyro's, of the distribution that refuses.
    """
    if dist.is_validation_enabled():
        with eval_mode(model), own_random_state():
            poutine.trace(model).get_trace(x).compute_log_prob(lambda name, site: site["is_observed"])  # noqa: ARG005


def _blame_trace(trace: Any) -> str | None:
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            if not bool(site["value"].isfinite().all()):
                return f"the value of site '{name}'"
            if not bool(site["fn"].log_prob(site["value"]).isfinite().all()):
                return f"the log density of site '{name}'"
    return None


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


class _Best:
    """The parameters and buffers of the best epoch so far."""

    def __init__(self, leaves: Mapping[str, Tensor], modules: Sequence[nn.Module]) -> None:
        buffers = (buffer for module in modules for buffer in module.buffers())
        self._tensors = [*leaves.values(), *buffers]
        self._saved: list[Tensor] = []
        self.elbo = -math.inf
        self.epoch = 0

    def update(self, elbo: float, epoch: int) -> None:
        if elbo > self.elbo or not self._saved:
            self.elbo, self.epoch = elbo, epoch
            self._saved = [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def restore(self) -> int | None:
        if not self._saved:
            return None
        for tensor, saved in zip(self._tensors, self._saved, strict=True):
            tensor.copy_(saved)
        return self.epoch
