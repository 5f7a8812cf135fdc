"""One training step's numbers: the loss, the true ELBO, and the gradients, compiled where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from inference.compiled import Compiled, Precision
from inference.objectives.steps import Objective

__all__ = ["Gradients", "Step"]


class Step(NamedTuple):
    """What one minibatch gave.

    Attributes:
        loss: what is minimised, nats per datapoint.
        elbo: the true ELBO, nats per datapoint.
        grads: gradient of the loss in each leaf; None where it does not depend on it.
    """

    loss: Float[Tensor, ""]
    elbo: Float[Tensor, ""]
    grads: Sequence[Tensor | None]

    @classmethod
    def of(cls, loss: Tensor, elbo: Tensor, leaves: Iterable[Tensor]) -> Step:
        """The step of a loss that can be differentiated."""
        return cls(loss.detach(), elbo.detach(), torch.autograd.grad(loss, list(leaves), allow_unused=True))


class Gradients:
    """The steps of a loss, a function of tensors.

    Args:
        objective: whose KL weight the loss goes by; the loop changes it during warm-up.
        values: the loss and the true ELBO at a minibatch.
        leaves: what is trained.
        programs: models, guides and others that `values` reaches.
        compile: whether to run as compiled code.
        precision: of matrix products.
    """

    def __init__(
        self,
        objective: Objective,
        values: Callable[..., tuple[Tensor, Tensor]],
        leaves: Iterable[Tensor],
        *programs: Any,
        compile: bool,
        precision: Precision,
    ) -> None:
        self.objective = objective
        self.values = values
        self.leaves = list(leaves)
        settings = {"compile": compile, "precision": precision}
        self._true = Compiled(self._step, *programs, name="the training step", **settings)  # type: ignore[arg-type]
        # Whether a run that this one goes on from was on one core by now.
        self._was_on_one_core = False
        self._weighted = Compiled(self._weighted_step, *programs, name="the KL warm-up", **settings)  # type: ignore[arg-type]

    def __call__(self, *args: Tensor) -> Step:
        """The step at this minibatch."""
        self._was_on_one_core = False
        if self.objective.is_true:
            loss, elbo, *grads = self._true(*args)
        else:
            loss, elbo, *grads = self._weighted(self.objective.weight_tensor(self.leaves[0]), *args)
        return Step(loss, elbo, grads)  # type: ignore[arg-type]

    @property
    def is_compiled(self) -> bool:
        """Whether the steps run as compiled code now."""
        return self._now.is_compiled

    @property
    def fits_one_core(self) -> bool:
        """Whether a step is so little work that a second core would cost more than it saves."""
        return self._was_on_one_core or self._now.fits_one_core

    def state_dict(self) -> dict[str, Any]:
        """What is compiled, and whether steps run on one core."""
        return {
            "true": self._true.state_dict(),
            "weighted": self._weighted.state_dict(),
            "one core": self.fits_one_core,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._true.load_state_dict(state["true"])
        self._weighted.load_state_dict(state["weighted"])
        self._was_on_one_core = state["one core"]

    @property
    def _now(self) -> Compiled:
        return self._true if self.objective.is_true else self._weighted

    def _step(self, *args: Tensor) -> tuple[Tensor | None, ...]:
        step = Step.of(*self.values(*args), self.leaves)
        return step.loss, step.elbo, *step.grads

    def _weighted_step(self, weight: Tensor, *args: Tensor) -> tuple[Tensor | None, ...]:
        with self.objective.weighted(weight):
            return self._step(*args)
