"""Semi-amortized inference: every visit starts at the encoder's row and takes a few steps from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from inference.families import Family
from inference.guides import Local
from inference.isolation import eval_mode
from inference.objectives import Gradients, LocalLoss, ScoreFunctionELBO, Step
from inference.scoring import same_family
from inference.table import HeldOut, pairs_of_noise
from inference.training import Training

__all__ = ["EncoderGradient", "SemiAmortized", "require_encoder"]

EncoderGradient = Literal["own row", "through steps"]


class SemiAmortized:
    r"""Visits that start at the encoder.

    .. math::
        \lambda_0 = e_\phi(x), \qquad \lambda_{j + 1} = \lambda_j - u_j \odot \tanh(\rho \, u_j \odot
        \nabla_\lambda \ell(\lambda_j)), \quad j < k

    with :math:`\ell` the loss, :math:`\rho` the step size and u the family's `step_units`: near the optimum a step
    against the gradient times the variance of q, the natural gradient of a location, and never longer than one standard
    deviation.

    Args:
        objective: the loss at a row.
        encoder: the guide that starts are taken from, a module with `params`.
        model: Pyro model.
        training: settings.
        leaves: what is trained.
        encoder_gradient: whether the encoder descends the loss at its own row, or that at the last row through the
            steps.
        compile: whether the training step runs as compiled code.

    Attributes:
        elbo_start: the true ELBO at the start of each visit, and the number of datapoints visited.
        validation: (L at the start, L at q*) on the held-out data, one pair an epoch.

    Raises:
        ValueError: a loss whose steps cannot be differentiated, where they are to be.
    """

    def __init__(
        self,
        objective: LocalLoss,
        encoder: Any,  # noqa: ANN401
        model: Callable[..., Any],
        training: Training,
        leaves: Iterable[Tensor],
        *,
        encoder_gradient: EncoderGradient,
        compile: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        self.objective = objective
        self.encoder = encoder
        self.model = model
        self.training = training
        self.through_steps = encoder_gradient == "through steps"
        if self.through_steps and isinstance(objective.loss, ScoreFunctionELBO):
            raise ValueError(
                "loss: ScoreFunctionELBO does not differentiate its draws, so there is no gradient through steps along "
                "it. Take PathwiseELBO, or encoder_gradient='own row'."
            )
        self.gradients = Gradients(
            objective,
            self._values,
            leaves,
            model,
            encoder,
            objective.family,
            compile=compile,
            precision=training.precision,
        )
        self.elbo_start: list[tuple[Tensor, int]] = []
        self.validation: list[tuple[float, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far, and what is compiled."""
        return {"start": self.elbo_start, "validation": self.validation, "steps": self.gradients.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.elbo_start, self.validation = list(state["start"]), list(state["validation"])
        self.gradients.load_state_dict(state["steps"])

    def noise(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "S B R"]:
        """Fresh antithetic noise from torch's global generator."""
        return pairs_of_noise(self.objective, len(rows), self.training.num_particles, like=rows)

    def start(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "B K"]:
        """The encoder's rows, without gradient."""
        return self.encoder.params(x).detach()

    def end(self, x: Float[Tensor, "B P"]) -> Float[Tensor, "B K"]:
        """The rows that the steps from the encoder's end at, without gradient."""
        return self.steps(x, self.start(x))

    def steps(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], *, differentiable: bool = False
    ) -> Float[Tensor, "B K"]:
        """The rows after `Training.local_steps` steps; differentiable in those given, if so asked."""
        gradient = self.objective.differentiable_gradient if differentiable else self.objective.row_gradient
        for _ in range(self.training.local_steps):
            units = self.objective.family.step_units(rows.detach())
            rows = rows - units * torch.tanh(self.training.local_lr * units * gradient(x, rows, self.noise(rows)))
        return rows

    def __call__(self, x: Tensor, index: Tensor, lr_factor: float) -> Step:  # noqa: ARG002
        """The loss of a visit, whose gradient is the model's at the last row and the encoder's; and the true ELBO."""
        start = self.start(x)
        with eval_mode(self.model):
            rows, slope = self._descend(x, start)
            noise = self.noise(rows)
            elbo = self.objective.log_weights(x, rows, noise).mean()
            self.elbo_start.append((self.objective.log_weights(x, start, noise).mean(), len(x)))
        return self.gradients(x, rows, noise, slope)._replace(elbo=elbo)

    def _values(self, x: Tensor, rows: Tensor, noise: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.objective(x, rows, noise).mean()
        # Zero, with the encoder's gradient; the model's comes from the last row alone.
        start = self.encoder.params(x)
        of_encoder = ((start - start.detach()) * slope).sum() / len(x)
        return loss + of_encoder, -loss

    def _descend(self, x: Tensor, start: Tensor) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
        """The last rows, and the gradient in the start that the encoder follows."""
        if not self.through_steps:
            return self.steps(x, start), self.objective.row_gradient(x, start, self.noise(start))
        start = start.requires_grad_()
        rows = self.steps(x, start, differentiable=True)
        loss = self.objective(x, rows, self.noise(rows)).sum()
        (slope,) = torch.autograd.grad(loss, start)
        return rows.detach(), slope.nan_to_num(0.0, 0.0, 0.0)

    def held_out(self, rows_at_rest: HeldOut) -> float:
        """The held-out ELBO after the steps; that at the start and at q* are kept."""
        best, start, end = rows_at_rest(self.start, self.end)
        self.validation.append((start, best))
        return end

    def record(self, num_data: int) -> dict[str, Any]:
        """What `Fit` has of the start and of q*, one value an epoch."""
        sums = torch.stack([elbo.detach().double().cpu() * count for elbo, count in self.elbo_start])
        steps_an_epoch = -(-num_data // self.training.batch_size)
        held_out = torch.tensor(self.validation, dtype=torch.float64)
        return {
            "elbo_start": sums.view(-1, steps_an_epoch).sum(1) / num_data,
            "elbo_start_validation": held_out[:, 0] if self.validation else None,
            "elbo_best_validation": held_out[:, 1] if self.validation else None,
        }


def require_encoder(init: object, family: Family) -> None:
    """Refuse what no visit can start from.

    Raises:
        ValueError: no encoder, or one whose rows are another family's.
    """
    own = getattr(init, "family", None)
    if isinstance(init, Local) or not hasattr(init, "params"):
        came = "rows" if isinstance(init, Tensor) else type(init).__name__
        raise ValueError(
            "init: restart='every visit' starts at an encoder's rows, so it needs a guide with `params`; got "
            f"{came}. Pass init=Amortized({family!r}, encoder)."
        )
    if not same_family(own, family):
        raise ValueError(
            f"init: expected a guide whose rows are those of family={family!r}; got one of {own!r}. Pass "
            "family=guide.family."
        )
