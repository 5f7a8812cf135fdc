"""What a training step optimises: one small module each, whose `forward(batch)` is all that a step calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from inference.densities import densities
from inference.families import Family, from_noise
from inference.isolation import modules_of

__all__ = ["AmortizedELBO", "LocalELBO", "Objective"]


class Objective(nn.Module):
    """A loss in nats per datapoint, to be minimised.

    Attributes:
        kl_weight: weight of the whole KL term, log q(z) - log p(z). 1 is the true ELBO; warm-up starts lower.
    """

    kl_weight: float = 1.0


class _ScaleLatent(poutine.messenger.Messenger):
    """Scale the log density of every latent site, in the model and in the guide alike: the whole KL."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message type is a TypedDict that it does not export)
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight


class _GivenGradients(torch.autograd.Function):
    """A loss whose gradients are already known: it hands them on when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: list[Tensor], *leaves: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # noqa: ANN401
        (grad_output,) = grad_outputs
        return None, None, *(grad_output * grad for grad in ctx.grads)


class AmortizedELBO(Objective):
    """The loss of a Pyro ELBO object for a model and a guide, divided by the number of datapoints.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        loss: any Pyro ELBO object. Where it offers no differentiable loss (`RenyiELBO`), its own gradients are handed
            on.
        leaves: what is trained; needed for the second case alone.
        num_data: number of datapoints that the loss of a minibatch stands for; by default those of the minibatch.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: ELBO,
        leaves: list[Tensor],
        *,
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        self.num_data = num_data
        self.model = model
        self.guide = guide
        self.loss = loss
        self._leaves = leaves

    def forward(self, x: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
        """The loss of one minibatch, nats per datapoint."""
        model, guide = self.model, self.guide
        if self.kl_weight != 1.0:
            model, guide = _ScaleLatent(self.kl_weight)(model), _ScaleLatent(self.kl_weight)(guide)
        if hasattr(self.loss, "differentiable_loss"):
            return self.loss.differentiable_loss(model, guide, x) / (self.num_data or len(x))
        return self._loss_and_grads(model, guide, x)

    def _loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> Tensor:
        # Its backward pass reaches every parameter of model and guide, trained or not.
        reached = [*self._leaves, *(weight for module in modules_of(model, guide) for weight in module.parameters())]
        reached += [value for _, value in pyro.get_param_store().named_parameters()]
        before = {tensor: tensor.grad for tensor in reached}
        try:
            for tensor in before:
                tensor.grad = None
            value = self.loss.loss_and_grads(model, guide, x)  # type: ignore[attr-defined]
            count = self.num_data or len(x)
            grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / count for leaf in self._leaves]
        finally:
            for tensor, grad in before.items():
                tensor.grad = grad
        # Reweighted wake-sleep returns two losses: the model's, then the guide's.
        value = value[0] if isinstance(value, tuple) else value
        loss = torch.as_tensor(value, dtype=self._leaves[0].dtype, device=x.device) / count
        return _GivenGradients.apply(loss, grads, *self._leaves)


class LocalELBO(Objective):
    r"""Minus the ELBO of every datapoint at its own row of variational parameters.

    .. math::
        -L(\lambda_n) = -\frac1S \sum_s \left[ \log p(x_n \mid z_{sn})
        + \beta \left( \log p(z_{sn}) - \log q_{\lambda_n}(z_{sn}) \right) \right]

    Differentiated in the rows it is the E-step, differentiated in the model's parameters the M-step.

    Args:
        model: Pyro model.
        family: variational family.
        site: name of the latent site.
        stick: whether the gradient in the rows leaves out the score of q, whose mean is zero ("sticking the landing"):
            at q = posterior it then vanishes draw by draw.

    References:
        Roeder, Wu & Duvenaud (2017), Sticking the landing.
    """

    def __init__(self, model: Callable[..., Any], family: Family, site: str, *, stick: bool = True) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.site = site
        self.stick = stick and family.has_log_prob

    def forward(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], noise: Float[Tensor, "S B R"]
    ) -> Float[Tensor, " B"]:
        """Minus the ELBO of each datapoint, nats.

        Args:
            x: (B, P) datapoints.
            rows: (B, K) their variational parameters.
            noise: (S, B, R) standard normal, R = `family.num_noise`.
        """
        z, log_q = from_noise(self.family(rows), noise)
        terms = densities(self.model, x, z, site=self.site)
        if self.stick and rows.requires_grad:
            path = self.family(rows.detach()).log_prob(z)
            log_q = log_q.detach() + (path - path.detach())
        return -(terms.log_likelihood + self.kl_weight * (terms.log_prior - log_q)).mean(0)

    @torch.no_grad()
    def log_weights(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], noise: Float[Tensor, "S B R"]
    ) -> Float[Tensor, "S B"]:
        """Every draw's log p(x, z) - log q(z): their mean is the true ELBO, whatever the KL weight."""
        z, log_q = from_noise(self.family(rows), noise)
        return densities(self.model, x, z, site=self.site).log_joint - log_q

    def row_gradient(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], noise: Float[Tensor, "S B R"]
    ) -> Float[Tensor, "B K"]:
        """Gradient of the loss in the rows alone: nothing else is touched, no `requires_grad` is flipped."""
        rows = rows.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self(x, rows, noise).sum(), rows)
        # A row that has left the range of its dtype must not take its optimiser state with it.
        return grad.nan_to_num(0.0, 0.0, 0.0)
