"""Variational EM: every datapoint has a row of variational parameters of its own, kept or started at an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from inference.batches import Data, fetch, require_fixed
from inference.compiled import worthwhile
from inference.counts import require_kind
from inference.estep import start_rows
from inference.families import Family
from inference.given import Given, describe_one, one_draw
from inference.guides import Local
from inference.initial import fit_store, require_init_params
from inference.isolation import InitParams, eval_mode, modules_of, sharing_guide, trainable
from inference.noise import derive_seed, like, resolve_seed, seeded
from inference.objectives import Gradients, LocalLoss, Loss, Step
from inference.processes import add_up, gather_rows
from inference.refusals import require_data_fit, require_last_batch, unmoved
from inference.results import Fit
from inference.resuming import Resume
from inference.rows import room_for_rows
from inference.scoring import require_contract, require_guide, require_readable
from inference.semi_amortized import EncoderGradient, SemiAmortized, require_encoder
from inference.table import FIRST_STEPS, HeldOut, Table, pairs_of_noise, passes
from inference.training import Training, blame_site, device_for, optimise, require_one_shard, require_valid

__all__ = ["fit_em"]

# E-steps on the whole table at the final model, where its rows are warm.
LAST_STEPS = 50


def fit_em(
    model: Callable[..., Any],
    family: Family,
    data: Data,
    *,
    site: str | None = None,
    init: Callable[..., Any] | Float[Tensor, "N K"] | None = None,
    restart: Literal["never", "every visit"] = "never",
    encoder_gradient: EncoderGradient = "own row",
    loss: Loss | None = None,
    training: Training = Training(),  # noqa: B008 (frozen)
    validation: Data | None = None,
    given: Given | None = None,
    init_params: InitParams = "program",
    resume: Resume | None = None,
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

    With `restart="every visit"` inference is semi-amortized: each visit starts at the current encoder's rows, and the
    same optimiser step trains the encoder. It takes plain gradient steps of at most one standard deviation of q, whose
    size does not follow the schedule: they are part of the inference, not of its training. The ELBO is then reported
    before the steps, after them, and at q*, rows that have come to rest.

    Args:
        model: Pyro model.
        family: variational family.
        data: (N, P) training data, each with a fixed x.
        site: name of the latent site; by default that of `init`, else "z".
        init: a guide, (N, K) rows of parameters, or None: the standard normal for every datapoint.
        restart: "never": a row goes on where its last visit left it; "every visit": it starts at the guide `init`, an
            encoder with rows of this family, which is trained with the model.
        encoder_gradient: what the encoder descends: the loss at its "own row", where visits start (Hjelm et al.), or
            that where they end, "through steps" (Kim et al.), at several times the cost of a step.
        loss: what E-steps and M-steps minimise, and how; by default `StickingTheLanding()`, or `PathwiseELBO()` in a
            family whose densities are known at its own draws alone. What is reported is always the ELBO.
        training: settings.
        validation: held-out data: rows of their own are refined at the frozen model at the end of each epoch.
        given: one draw (1, *shape) of each latent site outside the data plate: the model is fitted at that value.
        init_params: start of the bare `pyro.param` sites that are trained: "program", their initial values in the
            program, so that the same call gives the same numbers again; "store", the values that an earlier fit left
            in Pyro's parameter store, where it holds some. Sites that are not trained are read from the store.
        resume: where the state is kept, rows included, so that the same call goes on from it after it was killed.
        seed: of shuffling and draws; one seed fixes the run bit for bit on one machine.

    Returns:
        The ELBO over training, why the run ended, and the table `params` (N, K) after a last E-step at the final model,
        started at the encoder where every visit is.

    Raises:
        ValueError: nothing to train, the program breaks the contract, or `data` draws x anew at each access.
        FloatingPointError: a value became NaN or infinite; the message names the site.

    References:
        Neal & Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants.
        Hjelm, Cho, Chung, Salakhutdinov, Calhoun & Jojic (2016), Iterative refinement of the approximate posterior for
        directed belief networks.
        Kim, Wiseman, Miller, Sontag & Rush (2018), Semi-amortized variational autoencoders.

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
    require_init_params(init_params)
    require_kind("training", training, Training)
    require_kind("family", family, Family, hint="Pass MeanField(D), for example.")
    semi_amortized = _is_semi_amortized(restart, encoder_gradient)
    shards = training.sharding()
    if semi_amortized:
        require_one_shard(shards, "semi-amortized inference (restart='every visit')")
        require_encoder(init, family)
    site = site or getattr(init, "site", None) or "z"
    encoder = init
    if given is not None:
        model, init = one_draw(given, data, model, init, purpose="fit_em")
    guide = init if callable(init) else None
    # What shares weights with a guide goes on doing so where the guide is trained; else its weights must not move.
    for part in [] if semi_amortized else sharing_guide(model):
        if guide is None:
            part.check_cold_start()
        part.keep_own_guide()
    device = device_for(training, model, guide)

    with fit_store(model, guide, init_params=init_params) as start, seeded(seed):
        steps = training.num_steps(num_data)
        objective = LocalLoss(
            model,
            family,
            site,
            loss=loss,
            compile=worthwhile(training.compile, steps * training.local_steps),
            precision=training.precision,
        )
        index = torch.arange(min(num_data, training.batch_size))
        first = fetch(data, index, device=device)
        if not semi_amortized:
            start.hold(guide, first, besides=model)
        # In eval mode, so that looking at the model moves no running statistics.
        with eval_mode(model, guide), start.first_runs(model, guide if semi_amortized else None, first):
            require_readable(model, first, index)
            require_contract(objective, first, index, seed=seed)
            if semi_amortized and guide is not None:
                require_guide(guide, first, site=site)
            leaves = trainable(model, *([guide] if semi_amortized and guide is not None else []), x=first)
        # A model may hold them too, as one whose prior is made from the guide does.
        known = {id(leaf) for leaf in leaves.values()}
        leaves |= {f"family.{name}": leaf for name, leaf in family.named_parameters() if id(leaf) not in known}
        if not leaves:
            raise ValueError(
                "model: expected parameters to train; found no `param` site. To fit rows alone, use refine."
            )

        def on_one_row() -> None:
            rows = family.initial_params(1, like=like(first))
            objective(first[:1], rows, pairs_of_noise(objective, 1, training.num_particles, like=rows))
            if semi_amortized:
                encoder.params(first[:1])  # type: ignore[union-attr]

        with unmoved(model, guide):
            require_last_batch(on_one_row, num_data, training)
            require_data_fit(model, data, first, shards=shards, device=device)
            if validation is not None:
                require_data_fit(model, validation, first, shards=shards, device=device, name="validation")

        def table(rows_of: Data, init: Callable[..., Any] | Tensor | None) -> Table:
            start, stop = shards.own_rows(len(rows_of))
            # Filled in place: at the end of a list of parts the table would be there twice.
            params = room_for_rows(stop - start, family.num_params, like=like(first))
            for index, x in passes(model, rows_of, shards, device=device):
                rows = start_rows(init, family, x, index, site=site, num_data=len(rows_of), seed=seed)
                params[index - start] = family.initial_params(len(x), like=like(x)) if rows is None else rows.detach()
            settings: dict[str, Any] = {"lr": training.local_lr, "num_particles": training.num_particles}
            return Table(objective, params, num_rows=len(rows_of), shards=shards, **settings)

        with eval_mode(model, guide):
            kept = None if semi_amortized else table(data, init)
            # Rows given for the training data say nothing about held-out ones; a guide does.
            unseen = (
                None
                if validation is None
                else HeldOut(table(validation, guide), validation, model, guide, device=device, seed=seed)
            )

        compile = worthwhile(training.compile, steps)

        def check(x: Tensor, index: Tensor) -> None:
            require_readable(model, x, index)
            if compile:
                require_valid(model, x)

        visits = (
            SemiAmortized(
                objective, encoder, model, training, leaves.values(), encoder_gradient=encoder_gradient, compile=compile
            )
            if kept is None
            else _KeptRows(kept, model, training, leaves.values(), compile=compile)
        )
        fit = optimise(
            objective,
            visits,
            leaves,
            data,
            training,
            keep=modules_of(model, guide if semi_amortized else None),
            device=device,
            held_out=None if unseen is None else lambda: visits.held_out(unseen),
            blame=lambda x: blame_site(model, lambda x: _standard_guide(family, site, x), x),
            label="semi-amortized" if semi_amortized else "variational EM",
            check=check,
            resume=resume,
            seed=seed,
            identity={"family": repr(family), "loss": repr(objective.loss), "restart": restart}
            | {"encoder_gradient": encoder_gradient, **describe_one(given), **start.identity()},
            parts={"visits": visits, **({} if unseen is None else {"held-out": unseen}), **objective.compiled},
            tables={
                **({} if kept is None else {"rows": kept}),
                **({} if unseen is None else {"held-out": unseen.table}),
            },
        )
        # Rows of early batches belong to an older model: one more E-step for all of them at the final one.
        objective.kl_weight = 1.0
        best = torch.zeros((), dtype=torch.float64)
        with eval_mode(model, guide), pyro.validation_enabled(is_validate=False):
            # Where every visit starts anew, so does this one; it then goes on to the end.
            local, num_steps = (table(data, init), FIRST_STEPS) if kept is None else (kept, LAST_STEPS)
            for index, x in passes(model, data, shards, device=device):
                # Noise of its own for each chunk, whoever's it is.
                with seeded(derive_seed(seed, "last", int(index[0]))):
                    rows = local.settle(x, index, num_steps)
                with seeded(derive_seed(seed, "best", int(index[0]))):
                    best += local.total_elbo(x, rows)[0]
        add_up([best])
        params = gather_rows({"params": local.params})["params"].cpu()
    settings = {**fit.settings, "engine": "em", "family": repr(family), "site": site, "restart": restart}
    if semi_amortized:
        settings["encoder_gradient"] = encoder_gradient
    settings |= {"loss": repr(objective.loss), **start.settings(), "seed": seed, **describe_one(given)}
    return dataclasses.replace(
        fit,
        params=params,
        elbo_best=best / num_data,
        settings=settings,
        **visits.record(num_data),
    )


class _KeptRows:
    """Visits that go on where the row's last visit ended: variational EM."""

    def __init__(
        self,
        table: Table,
        model: Callable[..., Any],
        training: Training,
        leaves: Iterable[Tensor],
        *,
        compile: bool,  # noqa: FBT001
    ) -> None:
        self.table = table
        self.model = model
        self.num_local_steps = training.local_steps
        objective = table.objective
        self.gradients = Gradients(
            objective, self._values, leaves, model, objective.family, compile=compile, precision=training.precision
        )

    def __call__(self, x: Tensor, index: Tensor, lr_factor: float) -> Step:
        """The loss of a visit at its rows after the E-step, and the true ELBO there."""
        with eval_mode(self.model):
            rows = self.table.e_step(x, index, self.num_local_steps, lr_factor=lr_factor)
        return self.gradients(x, rows, self.table.noise(len(x)))

    def state_dict(self) -> dict[str, Any]:
        """What is compiled; the rows are a table."""
        return self.gradients.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.gradients.load_state_dict(state)

    def _values(self, x: Tensor, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        objective = self.table.objective
        value = objective(x, rows, noise).mean()
        if objective.is_true and objective.loss.is_elbo:
            return value, -value
        return value, objective.log_weights(x, rows, noise).mean()

    def held_out(self, rows_at_rest: HeldOut) -> float:
        """The held-out ELBO at q*."""
        return rows_at_rest()[0]

    def record(self, num_data: int) -> dict[str, Any]:  # noqa: ARG002
        """Nothing that `Fit` does not have of every run."""
        return {}


def _is_semi_amortized(restart: str, encoder_gradient: str) -> bool:
    if restart not in ("never", "every visit"):
        raise ValueError(f"restart: expected 'never' or 'every visit'; got {restart!r}.")
    if encoder_gradient not in ("own row", "through steps"):
        raise ValueError(f"encoder_gradient: expected 'own row' or 'through steps'; got {encoder_gradient!r}.")
    return restart == "every visit"


def _standard_guide(family: Family, site: str, x: Tensor) -> None:
    Local(family, family.initial_params(len(x), like=like(x)), site)(x)
