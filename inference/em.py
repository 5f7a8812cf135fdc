"""Variational EM: every datapoint has a row of variational parameters of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from inference.batches import Data, chunks, fetch, require_fixed
from inference.estep import start_rows
from inference.families import Family
from inference.given import Given, describe_one, one_draw
from inference.guides import Local
from inference.isolation import eval_mode, modules_of, private_store, sharing_guide, trainable
from inference.noise import antithetic, derive_seed, like, resolve_seed, seeded
from inference.objectives import LocalELBO, Loss
from inference.results import Fit
from inference.rows import RowAdam
from inference.scoring import require_contract, require_readable
from inference.training import Training, blame_site, device_for, optimise

__all__ = ["fit_em"]

# E-steps on held-out rows at the end of an epoch; the first epoch starts from nothing and takes more.
HELD_OUT_STEPS = 50
FIRST_HELD_OUT_STEPS = 300
# E-steps on the whole table at the final model.
LAST_STEPS = 50


class Table:
    """Rows of variational parameters with their own optimiser state, moved by E-steps at a given model.

    Args:
        objective: the loss at a row.
        params: (N, K) rows to start from.
        lr: step size, in the family's `step_units`.
        num_particles: values of the loss a step and datapoint, in antithetic pairs.
    """

    def __init__(self, objective: LocalELBO, params: Float[Tensor, "N K"], *, lr: float, num_particles: int) -> None:
        self.objective = objective
        self.params = params
        self.lr = lr
        self.num_particles = num_particles
        self.optimizer = RowAdam(*params.shape, betas=(0.9, 0.99), like=params)

    def noise(self, num_rows: int) -> Float[Tensor, "S B R"]:
        """Fresh antithetic noise from torch's global generator."""
        num_draws = self.num_particles // 2 * self.objective.loss.num_particles
        shape = (num_draws, num_rows, self.objective.family.num_noise)
        return antithetic(torch.randn(shape, dtype=self.params.dtype, device=self.params.device))

    def e_step(self, x: Tensor, index: Tensor, num_steps: int, *, lr_factor: float = 1.0) -> Float[Tensor, "B K"]:
        """Move the rows at `index` by `num_steps`, asking gradients for them alone; returns them."""
        index = index.to(self.params.device)
        rows = self.params[index]
        for _ in range(num_steps):
            grad = self.objective.row_gradient(x, rows, self.noise(len(x)))
            rows = self.optimizer.step(
                rows, grad, index, lr=self.lr * lr_factor * self.objective.family.step_units(rows)
            )
        self.params[index] = rows
        return rows

    def settle(self, x: Tensor, index: Tensor, num_steps: int) -> Float[Tensor, "B K"]:
        """As `e_step`, with steps that shrink to nothing: at a model that stands still, the rows come to rest."""
        for step in range(num_steps):
            rows = self.e_step(x, index, 1, lr_factor=math.cos(math.pi / 2 * step / num_steps) ** 2)
        return rows


def fit_em(
    model: Callable[..., Any],
    family: Family,
    data: Data,
    *,
    site: str | None = None,
    init: Callable[..., Any] | Float[Tensor, "N K"] | None = None,
    loss: Loss | None = None,
    training: Training = Training(),  # noqa: B008 (frozen)
    validation: Data | None = None,
    given: Given | None = None,
    seed: int | None = None,
) -> Fit:
    r"""Fit a model by variational EM, with parameters of their own for every datapoint.

    .. math::
        \max_{\theta, \lambda_1 \dots \lambda_N} \; \frac1N \sum_n E_{q_{\lambda_n}(z)}[\log p_\theta(x_n, z) - \log
        q_{\lambda_n}(z)]

    For each minibatch: `Training.local_steps` steps on its rows at the current model (E-step; rows outside the batch
    do not move), then one optimiser step on the model's parameters at those rows (M-step). There is no encoder, so
    nothing is amortized. The ELBO reported for an epoch is taken after each visit's E-step, at the parameters current
    at that visit, on fresh draws.

    Args:
        model: Pyro model.
        family: variational family.
        data: (N, P) training data, each with a fixed x.
        site: name of the latent site; by default that of `init`, else "z".
        init: a guide, (N, K) rows of parameters, or None: the standard normal for every datapoint.
        loss: what E-steps and M-steps minimise, and how; by default `StickingTheLanding()`, or `PathwiseELBO()` in a
            family whose densities are known at its own draws alone. What is reported is always the ELBO.
        training: settings.
        validation: held-out data: rows of their own are refined at the frozen model at the end of each epoch.
        given: one draw (1, *shape) of each latent site outside the data plate: the model is fitted at that value.
        seed: of shuffling and draws; one seed fixes the run bit for bit on one machine.

    Returns:
        The ELBO over training, why the run ended, and the table `params` (N, K) after a last E-step at the final model.

    Raises:
        ValueError: nothing to train, the program breaks the contract, or `data` draws x anew at each access.
        FloatingPointError: a value became NaN or infinite; the message names the site.

    References:
        Neal & Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants.

    Example:
        >>> from inference import MeanField
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> fit = fit_em(model.model, MeanField(2), torch.randn(64, 2), training=Training(epochs=2), seed=0)
        >>> fit.params.shape
        torch.Size([64, 4])
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="fit_em")
    if validation is not None:
        require_fixed(validation, name="validation", purpose="the held-out ELBO of fit_em")
    site = site or getattr(init, "site", None) or "z"
    if given is not None:
        model, init = one_draw(given, data, model, init, purpose="fit_em")
    guide = init if callable(init) else None
    for part in sharing_guide(model):
        if guide is None:
            part.check_cold_start()
        # The guide is not trained here, so its weights must not move.
        part.keep_own_guide()
    device = device_for(training, model, guide)

    with private_store(model, guide, keep=True), seeded(seed):
        objective = LocalELBO(model, family, site, loss=loss)
        index = torch.arange(min(num_data, training.batch_size))
        first = fetch(data, index, device=device)
        # In eval mode, so that looking at the model moves no running statistics.
        with eval_mode(model, guide):
            require_readable(model, first, index)
            require_contract(objective, first, index, seed=seed)
            leaves = trainable(model, x=first)
        # A model may hold them too, as one whose prior is made from the guide does.
        known = {id(leaf) for leaf in leaves.values()}
        leaves |= {f"family.{name}": leaf for name, leaf in family.named_parameters() if id(leaf) not in known}
        if not leaves:
            raise ValueError(
                "model: expected parameters to train; found no `param` site. To fit rows alone, use refine."
            )

        def table(rows_of: Data, init: Callable[..., Any] | Tensor | None) -> Table:
            parts = []
            for index, x in _batches(model, rows_of, device=device):
                rows = start_rows(init, family, x, index, site=site, num_data=len(rows_of), seed=seed)
                parts.append(family.initial_params(len(x), like=like(x)) if rows is None else rows.detach())
            return Table(objective, torch.cat(parts), lr=training.local_lr, num_particles=training.num_particles)

        with eval_mode(model, guide):
            local = table(data, init)
            # Rows given for the training data say nothing about held-out ones; a guide does.
            held_out = (
                None if validation is None else _HeldOut(table(validation, guide), validation, model, device, seed)
            )

        def visit(x: Tensor, index: Tensor, lr_factor: float) -> tuple[Tensor, Tensor]:
            with eval_mode(model):
                rows = local.e_step(x, index, training.local_steps, lr_factor=lr_factor)
            noise = local.noise(len(x))
            value = objective(x, rows, noise).mean()
            if objective.kl_weight == 1.0 and objective.loss.is_elbo:
                return value, -value
            return value, objective.log_weights(x, rows, noise).mean()

        fit = optimise(
            objective,
            visit,
            leaves,
            data,
            training,
            keep=modules_of(model),
            device=device,
            held_out=held_out,
            blame=lambda x: blame_site(model, lambda x: _standard_guide(family, site, x), x),
            label="variational EM",
            check=lambda x, index: require_readable(model, x, index),
        )
        # Rows of early batches belong to an older model: one more E-step for all of them at the final one.
        objective.kl_weight = 1.0
        with eval_mode(model), pyro.validation_enabled(is_validate=False):
            for index, x in _batches(model, data, device=device):
                local.settle(x, index, LAST_STEPS)
    settings = {**fit.settings, "engine": "em", "family": repr(family), "site": site}
    settings |= {"loss": repr(objective.loss), "seed": seed}
    settings |= describe_one(given)
    return dataclasses.replace(fit, params=local.params.cpu(), settings=settings)


class _HeldOut:
    """The held-out ELBO of a model: rows of their own, refined at the frozen model, warm from one epoch to the next."""

    def __init__(self, table: Table, data: Data, model: Callable[..., Any], device: torch.device, seed: int) -> None:
        self.table = table
        self.data = data
        self.model = model
        self.device = device
        self.seed = seed
        self.num_steps = FIRST_HELD_OUT_STEPS

    def __call__(self) -> float:
        total = 0.0
        objective = self.table.objective
        weight, objective.kl_weight = objective.kl_weight, 1.0
        with eval_mode(self.model):
            for index, x in _batches(self.model, self.data, device=self.device):
                with seeded(derive_seed(self.seed, "validation", int(index[0]), self.num_steps)):
                    rows = self.table.settle(x, index, self.num_steps)
                # The same draws every epoch, so that epochs compare; and none that chose the rows.
                with seeded(derive_seed(self.seed, "validation/score", int(index[0]))):
                    for _ in range(8):
                        total += float(objective.log_weights(x, rows, self.table.noise(len(x))).double().mean(0).sum())
        self.num_steps = HELD_OUT_STEPS
        objective.kl_weight = weight
        return total / (8 * len(self.data))


def _batches(model: Callable[..., Any], data: Data, *, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for start, stop in chunks(len(data), 1024):
        index = torch.arange(start, stop)
        x = fetch(data, index, device=device)
        require_readable(model, x, index)
        yield index, x


def _standard_guide(family: Family, site: str, x: Tensor) -> None:
    Local(family, family.initial_params(len(x), like=like(x)), site)(x)
