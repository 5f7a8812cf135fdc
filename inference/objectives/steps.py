"""What a training step calls: one small module each, whose `forward(batch)` is minimised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from inference.compiled import Compiled, NotTraceable, Precision, tracing
from inference.counts import require_kind
from inference.densities import densities, guide_distribution
from inference.families import Family, from_noise, noise_size
from inference.isolation import modules_of
from inference.memory import draws_for
from inference.noise import like
from inference.objectives.elbo import PathwiseELBO, StickingTheLanding
from inference.objectives.loss import Joint, Loss, log_prob_at, surrogate
from inference.objectives.wake_sleep import WakeSleep
from inference.simulation import Layout, read_layout

__all__ = ["AmortizedELBO", "AmortizedLoss", "LocalLoss", "Objective"]


class Objective(nn.Module):
    """A loss in nats per datapoint, to be minimised.

    Attributes:
        kl_weight: weight of the whole KL term, log q(z) - log p(z). 1 is the true ELBO; warm-up starts lower.
    """

    kl_weight: float | Float[Tensor, ""] = 1.0

    @property
    def is_true(self) -> bool:
        """Whether the KL counts in full. A weight that is a tensor counts as another than 1."""
        return not isinstance(self.kl_weight, Tensor) and self.kl_weight == 1.0

    def weight_tensor(self, like: Tensor) -> Float[Tensor, ""]:
        """The weight, of the dtype and on the device of another tensor."""
        if isinstance(self.kl_weight, Tensor):
            return self.kl_weight.to(like)
        # Made where it is used: to a GPU it would have to be copied.
        return torch.full((), self.kl_weight, dtype=like.dtype, device=like.device)

    @contextmanager
    def weighted(self, weight: float | Float[Tensor, ""]) -> Iterator[None]:
        """Another weight of the KL inside; a tensor where it is to be an input of compiled code, not a constant."""
        before, self.kl_weight = self.kl_weight, weight
        try:
            yield
        finally:
            self.kl_weight = before


class _ScaleLatent(poutine.messenger.Messenger):
    """Scale the log density of every latent site, in the model and in the guide alike: the whole KL."""

    def __init__(self, weight: float | Tensor) -> None:
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
        if not self.is_true:
            model, guide = _ScaleLatent(self.kl_weight)(model), _ScaleLatent(self.kl_weight)(guide)
        if hasattr(self.loss, "differentiable_loss"):
            return self.loss.differentiable_loss(model, guide, x) / (self.num_data or len(x))
        if not torch.is_grad_enabled():
            value = self.loss.loss(model, guide, x)  # type: ignore[attr-defined]
            value = value[0] if isinstance(value, tuple) else value
            return torch.as_tensor(value, device=x.device) / (self.num_data or len(x))
        return self._loss_and_grads(model, guide, x)

    def _loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> Tensor:
        if tracing.get():
            raise NotTraceable(f"{type(self.loss).__name__} takes its gradients itself")
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


class AmortizedLoss(Objective):
    """A loss at the guide's distributions, one value of its bound a datapoint.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        loss: minus a bound on log p(x), per datapoint.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.loss = loss
        self.layout: Layout | None = None

    def look_at(self, x: Float[Tensor, "B P"], *, site: str) -> None:
        """Find out, where the loss simulates x, what the model observes.

        Args:
            x: (B, P) a minibatch.
            site: name of the latent site.

        Raises:
            ValueError: the model cannot be simulated.
        """
        if isinstance(self.loss, WakeSleep) and self.loss.insomnia < 1:
            self.layout = read_layout(self.model, x, site=site)

    def forward(self, x: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
        """The mean loss of a minibatch on noise from torch's global generator, nats per datapoint."""
        site, q = guide_distribution(self.guide, x)
        log_p = Joint(self.model, x, site, self.layout)
        shape = (self.loss.num_particles, len(x), noise_size(q))
        noise = torch.randn(shape, dtype=like(x).dtype, device=x.device)
        loss = self.loss(log_p, q, noise, kl_weight=self.kl_weight)
        if isinstance(self.loss, WakeSleep):
            loss = loss + self.loss.sleep(log_p, self.guide)
        return loss.mean()


class LocalLoss(Objective):
    r"""A loss at a row of variational parameters of every datapoint's own, by default minus the ELBO.

    .. math::
        -L(\lambda_n) = -\frac1S \sum_s \left[ \log p(x_n \mid z_{sn})
        + \beta \left( \log p(z_{sn}) - \log q_{\lambda_n}(z_{sn}) \right) \right]

    Differentiated in the rows it is the E-step, differentiated in the model's parameters the M-step.

    Args:
        model: Pyro model.
        family: variational family.
        site: name of the latent site.
        loss: what is minimised; by default `StickingTheLanding()`, or `PathwiseELBO()` in a family whose densities are
            known at its own draws alone.
        compile: whether gradients in the rows, and log weights, run as compiled code.
        precision: of matrix products in those gradients; log weights have full precision.

    Raises:
        ValueError: the loss needs a guide that can be run on other datapoints.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        family: Family,
        site: str,
        *,
        loss: Loss | None = None,
        compile: bool = False,  # noqa: FBT001, FBT002
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        require_kind("family", family, Family, hint="Pass MeanField(D), for example.")
        if loss is None:
            loss = StickingTheLanding() if family.has_log_prob else PathwiseELBO()
        if not isinstance(loss, Loss):
            raise TypeError(
                f"loss: expected a loss of this package, for example PathwiseELBO(); got {type(loss).__name__}. Pyro's "
                "ELBO objects sum over datapoints; fit_svi takes them."
            )
        if loss.amortized_only:
            raise ValueError(
                f"loss: {type(loss).__name__} trains a guide on simulated datapoints, which have no rows. Use fit_svi, "
                "or take IWAE."
            )
        self.model = model
        self.family = family
        self.site = site
        self.loss = loss
        programs = (model, family)
        gradient: Any = {"compile": compile, "precision": precision}
        self._gradient = Compiled(self._row_gradient, *programs, name="the gradient of the E-step", **gradient)  # type: ignore[arg-type]
        self._weighted_gradient = Compiled(
            self._weighted_row_gradient, *programs, name="the gradient of the E-step under warm-up", **gradient
        )  # type: ignore[arg-type]
        # A search looks at them in many shapes, few times in each.
        self._log_weights = Compiled(
            self._eager_log_weights, *programs, name="the log weights", compile=compile, at_once=False
        )

    @property
    def compiled(self) -> dict[str, Compiled]:
        """What runs as compiled code, by name."""
        return {part.name: part for part in (self._gradient, self._weighted_gradient, self._log_weights)}

    def forward(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], noise: Float[Tensor, "S B R"]
    ) -> Float[Tensor, " B"]:
        """The loss of each datapoint, nats.

        Args:
            x: (B, P) datapoints.
            rows: (B, K) their variational parameters.
            noise: (S, B, R) standard normal, R = `family.num_noise`; S a multiple of the loss's `num_particles`.
        """
        log_p, q = Joint(self.model, x, self.site), self.family(rows)
        if not rows.requires_grad:
            # What is differentiated then, the model and weights of the family, is not q's alone.
            return self.loss.keeping_score(log_p, q, noise, kl_weight=self.kl_weight)
        return self.loss(log_p, q, noise, kl_weight=self.kl_weight, still=self.family(rows.detach()))

    def log_weights(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], noise: Float[Tensor, "S B R"]
    ) -> Float[Tensor, "S B"]:
        """Every draw's log p(x, z) - log q(z): their mean is the true ELBO, whatever the loss and the KL weight."""
        (log_w,) = self._log_weights(x, rows, noise)
        return log_w  # type: ignore[return-value]

    def bounds(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], noise: Float[Tensor, "2*G*k B R"]
    ) -> Float[Tensor, "2*G B"]:
        """Values of the bound that the loss is minus of, on noise in which draw s + 1 mirrors draw s for even s.

        So do these values: each is made of k independent draws, and the next one of their mirror images.
        """
        return self.pairwise(self.log_weights(x, rows, noise).double(), self.loss.bound)

    def pairwise(self, draws: Float[Tensor, "2*G*k B"], reduce: Callable[[Tensor], Tensor]) -> Float[Tensor, "2*G B"]:
        """What `reduce` makes of the draws of each value, (G, k, 2, B) to (G, 2, B), where draws come in pairs."""
        return reduce(draws.unflatten(0, (-1, self.loss.num_particles, 2))).flatten(0, 1)

    def row_gradient(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], noise: Float[Tensor, "S B R"]
    ) -> Float[Tensor, "B K"]:
        """Gradient of the loss in the rows alone: nothing else is touched, no `requires_grad` is flipped."""
        if self.is_true:
            (grad,) = self._gradient(x, rows, noise)
        else:
            (grad,) = self._weighted_gradient(self.weight_tensor(rows), x, rows, noise)
        return grad  # type: ignore[return-value]

    def _row_gradient(self, x: Tensor, rows: Tensor, noise: Tensor) -> tuple[Tensor]:
        rows = rows.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self(x, rows, noise).sum(), rows)
        # A row that has left the range of its dtype must not take its optimiser state with it.
        return (grad.nan_to_num(0.0, 0.0, 0.0),)

    def _weighted_row_gradient(self, weight: Tensor, *args: Tensor) -> tuple[Tensor]:
        with self.weighted(weight):
            return self._row_gradient(*args)

    @torch.no_grad()
    def _eager_log_weights(self, x: Tensor, rows: Tensor, noise: Tensor) -> tuple[Tensor]:
        z, log_q = from_noise(self.family(rows), noise)
        # Compiled code makes few tensors of its own.
        size = len(z) if tracing.get() else draws_for(x)
        parts = [densities(self.model, x, few, site=self.site).log_joint for few in z.split(size)]
        return (torch.cat(parts) - log_q,)

    def differentiable_gradient(
        self, x: Float[Tensor, "B P"], rows: Float[Tensor, "B K"], noise: Float[Tensor, "S B R"]
    ) -> Float[Tensor, "B K"]:
        """As `row_gradient`, as a function of rows that can be differentiated again; of a `DReG` loss, that of `IWAE`.

        Args:
            x: (B, P) datapoints.
            rows: (B, K) their variational parameters, which require a gradient.
            noise: (S, B, R) standard normal.
        """
        log_p, q = Joint(self.model, x, self.site), self.family(rows)
        if isinstance(self.loss, StickingTheLanding):
            # Not through `along_path`: what it holds still would be held still in the second derivative too.
            z, _ = from_noise(q, noise)
            loss = -self.loss.mean(surrogate(log_p(z), log_prob_at(self.loss, q, z), self.kl_weight))
            (slope,) = torch.autograd.grad(loss.sum(), z, create_graph=True)
            (grad,) = torch.autograd.grad(z, rows, slope, create_graph=True)
        else:
            loss = self.loss.keeping_score(log_p, q, noise, kl_weight=self.kl_weight)
            (grad,) = torch.autograd.grad(loss.sum(), rows, create_graph=True)
        return grad.nan_to_num(0.0, 0.0, 0.0)
