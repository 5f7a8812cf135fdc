"""Stochastic variational inference: the amortized engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.batches import Data, fetch, require_data
from inference.compiled import worthwhile
from inference.densities import guide_distribution, is_factor, is_unscaled, log_weights, sample_sites
from inference.given import conditioned
from inference.globals import find_globals, require_scalable, values_of, whole_data
from inference.independence import require_rowwise
from inference.initial import fit_store, require_init_params
from inference.isolation import InitParams, eval_mode, modules_of, sharing_guide, trainable
from inference.noise import derive_seed, own_random_state, resolve_seed, seeded
from inference.objectives import AmortizedELBO, AmortizedLoss, Gradients, Loss, Objective
from inference.processes import Shards, add_up
from inference.refusals import (
    buffers_kept,
    refuse_early,
    require_pair,
    without_factors,
)
from inference.results import Fit
from inference.resuming import Resume
from inference.scoring import require_readable
from inference.training import Training, blame_site, device_for, optimise, require_valid

__all__ = ["fit_svi"]

# Their loss is a one-sample estimate of minus the true ELBO; that of other objectives is not.
_TRUE_ELBO = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO)


def fit_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    loss: ELBO | Loss | None = None,
    train: Literal["all", "guide"] = "all",
    training: Training = Training(),  # noqa: B008 (frozen)
    validation: Data | None = None,
    init_params: InitParams = "program",
    resume: Resume | None = None,
    seed: int | None = None,
) -> Fit:
    r"""Fit a model and its guide by stochastic variational inference.

    .. math::
        \max_{\theta, \phi} \; \frac1N \sum_n E_{q_\phi(z \mid x_n)}[\log p_\theta(x_n, z) - \log q_\phi(z \mid x_n)]

    A latent site w of the model outside the data plate (a global site, such as a decoder's weights under a prior) needs
    a guide of its own there. Everything inside the plate is then scaled by N / B, and the loss of a minibatch is
    divided by N:

    .. math::
        \max_{\theta, \phi} \; \frac1N \Big( E_{q(w)} \sum_n E_{q_\phi(z \mid x_n)}[\log p_\theta(x_n, z \mid w)
        - \log q_\phi(z \mid x_n)] - \mathrm{KL}(q(w) \,\|\, p(w)) \Big)

    That is the ELBO that is reported; KL warm-up scales the KL of w too. The held-out ELBO is conditional on draws of
    w from the guide, without that KL.

    Modules are fitted in place, and a fit goes on from their weights. Bare `pyro.param` sites of hand-written code
    start at the initial values in the program, and their fitted values are left in Pyro's parameter store, where
    measurements find them. The rest of the store is as it was.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        data: (N, P) training data; dynamic binarization is welcome.
        loss: a loss of this package, such as `IWAE(8)`, or any Pyro ELBO object; `Trace_ELBO()` by default. What is
            reported is always the ELBO.
        train: "all", or "guide": the guide alone, on a frozen model in eval mode. A model that shares weights with the
            guide (a VampPrior) keeps a copy of its own from then on.
        training: settings.
        validation: held-out data, measured at the end of each epoch and used by `Training.patience`.
        init_params: start of the bare `pyro.param` sites that are trained: "program", their initial values in the
            program, so that the same call gives the same numbers again; "store", the values that an earlier fit left
            in Pyro's parameter store, where it holds some. Sites that are not trained are read from the store.
        resume: where the state is kept, so that the same call goes on from it after it was killed.
        seed: of shuffling and draws; one seed fixes the run bit for bit on one machine.

    Returns:
        The true ELBO over training, and why the run ended.

    Raises:
        ValueError: nothing to train, a guide with parameters for each datapoint, a loss that is wrong under warm-up,
            scaling or in minibatches, or a global site that the guide does not sample.
        TypeError: a loss of another kind.
        FloatingPointError: a value became NaN or infinite; the message names the site.

    Example:
        >>> from inference import Amortized, MeanField
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> fit = fit_svi(model.model, guide, torch.randn(64, 2), training=Training(epochs=2), seed=0)
        >>> fit.num_steps
        2
    """
    seed = resolve_seed(seed)
    require_data(data)
    if validation is not None:
        require_data(validation, name="validation")
    require_init_params(init_params)
    if train not in ("all", "guide"):
        raise ValueError(f"train: expected 'all' or 'guide'; got {train!r}.")
    loss = Trace_ELBO() if loss is None else loss
    if not isinstance(loss, ELBO | Loss):
        raise TypeError(
            f"loss: expected a Pyro ELBO object, for example Trace_ELBO(), or a loss of this package, for example "
            f"IWAE(8); got {type(loss).__name__}."
        )
    if isinstance(loss, ReweightedWakeSleep):
        _require_single(len(data), training)
    device = device_for(training, model, guide)

    if train == "guide":
        for part in sharing_guide(model):
            part.keep_own_guide()
    with fit_store(model, guide, init_params=init_params) as start, seeded(seed), ExitStack() as stack:
        first = fetch(data, torch.arange(min(len(data), training.batch_size)), device=device)
        if train == "guide":
            start.hold(model, first)
        # Looking for parameters moves no running statistics, and leaves it to the first step to say what is wrong.
        with (
            eval_mode(model, guide),
            pyro.validation_enabled(is_validate=False),
            start.first_runs(model, guide, first),
        ):
            leaves = trainable(model, guide, x=first)
            models = trainable(model, x=first) if train == "guide" else {}
            # Before the model runs with it, which would only say that sizes differ.
            factors = require_pair(model, guide, first, num_data=len(data))
            scaled = _scaled_site(model, guide, first)
            found = find_globals(model, first, guide=guide)
        if train == "guide":
            leaves = {
                name: leaf for name, leaf in leaves.items() if not any(leaf is other for other in models.values())
            }
            _freeze(stack, model, guide, leaves)
        if not leaves:
            who = "guide" if train == "guide" else "model and guide"
            raise ValueError(
                f"{who}: expected parameters to train; found no `param` site. Register modules with pyro.module."
            )
        if isinstance(loss, RenyiELBO):
            _require_unscaled(scaled, training)
        whole, num_data = (model, guide), None
        if found.names:
            if isinstance(loss, Loss):
                raise ValueError(
                    f"loss: {type(loss).__name__} bounds each datapoint by itself; site '{found.names[0]}' lies "
                    "outside the data plate and belongs to all. Use Trace_ELBO()."
                )
            require_scalable(found, loss, scaled)
            num_data = len(data)
            whole = (whole_data(model, num_data, found.plates), whole_data(guide, num_data, found.plates))
        objective: Objective
        reported: Objective | None = None
        whole_elbo = whole
        if isinstance(loss, Loss):
            objective, estimates_elbo = AmortizedLoss(model, guide, loss), loss.is_elbo
        else:
            objective = AmortizedELBO(*whole, loss, list(leaves.values()), num_data=num_data)
            estimates_elbo = type(loss) in _TRUE_ELBO and scaled is None
            if factors:
                # They belong to the loss: the ELBO is that of the guide without them, on the same draws.
                whole_elbo = (whole[0], without_factors(whole[1]))
                reported = AmortizedELBO(*whole_elbo, loss, [], num_data=num_data)
        # What the ELBO is read off: a scale inside the programs changes the loss, not the ELBO.
        true_model, true_guide = (model, guide) if scaled is None else (_Unscaled()(model), _Unscaled()(guide))

        measured_apart = num_data is None and (bool(training.warm_up) or not estimates_elbo)

        def values(x: Tensor) -> tuple[Tensor, Tensor]:
            if reported is not None and estimates_elbo and objective.is_true:
                with own_random_state(), buffers_kept(model, guide), torch.no_grad():
                    elbo = -reported(x)
                return objective(x), elbo
            value = objective(x)
            if estimates_elbo and objective.is_true:
                return value, -value
            with torch.no_grad():
                if num_data is not None:
                    return value, -torch.as_tensor(Trace_ELBO().loss(*whole_elbo, x), device=x.device) / num_data
                return value, log_weights(true_model, true_guide, x).mean()

        # Two runs on the same random numbers are no compiled step.
        compile = not factors and worthwhile(training.compile, training.num_steps(len(data)))
        gradients = Gradients(
            objective, values, leaves.values(), model, guide, compile=compile, precision=training.precision
        )

        def check(x: Tensor, index: Tensor) -> None:
            require_readable(model, x, index)
            if compile:
                require_valid(model, x)

        def held_out(validation: Data, shards: Shards | None = None) -> float:
            programs = (true_model, true_guide)
            options: dict[str, Any] = {"shards": shards or training.sharding(), "device": device, "seed": seed}
            return _held_out(*programs, validation, modules=(model, guide), names=found.names, **options)

        refuse_early(
            model,
            guide,
            data,
            first,
            training,
            objective=objective if isinstance(loss, Loss) else None,
            step=objective,
            factors=factors,
            scored=(lambda x: log_weights(true_model, true_guide, x)) if measured_apart else None,
            validation=validation,
            held_out=held_out,
            device=device,
        )
        with seeded(derive_seed(seed, "contract")), eval_mode(model, guide):
            pair = (true_model, true_guide)
            if found.names:
                draw = values_of(guide, first, found.names)
                pair = (conditioned(true_model, draw), conditioned(true_guide, draw))
            if isinstance(loss, Loss) or validation is not None:
                site = _require_rowwise(*pair, first)
                if isinstance(objective, AmortizedLoss):
                    objective.look_at(first, site=site)
            elif measured_apart or (num_data is None and _runs_particles_at_once(loss, *pair, first)):
                # A sum over the minibatch: its rows may depend on each other, but not on the particle dimension.
                _require_rowwise(*pair, first, company=False)

        fit = optimise(
            objective,
            lambda x, index, lr_factor: gradients(x),  # noqa: ARG005
            leaves,
            data,
            training,
            keep=modules_of(model, guide),
            device=device,
            held_out=None if validation is None else lambda: held_out(validation),
            blame=lambda x: blame_site(model, guide, x),
            label="SVI",
            steps=gradients,
            check=check,
            resume=resume,
            seed=seed,
            identity={"loss": repr(loss) if isinstance(loss, Loss) else type(loss).__name__, "train": train}
            | start.identity(),
        )
    settings = {**fit.settings, "engine": "svi", "train": train, **start.settings(), "seed": seed}
    settings["loss"] = repr(loss) if isinstance(loss, Loss) else type(loss).__name__
    if found.names:
        settings["global_sites"] = list(found.names)
    return dataclasses.replace(fit, settings=settings)


class _Unscaled(Messenger):
    """Undo every scale: the plates' and the programs' own."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def _runs_particles_at_once(loss: ELBO, model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> bool:
    """Whether a Pyro loss adds a particle dimension to programs with one latent site, which can be checked."""
    if loss.num_particles == 1 or not loss.vectorize_particles:
        return False
    with own_random_state(), poutine.block(), eval_mode(model, guide):
        traces = [poutine.trace(program).get_trace(x) for program in (model, guide)]
    return all(sum(not node["is_observed"] for node in sample_sites(trace).values()) == 1 for trace in traces)


@torch.no_grad()
def _require_rowwise(model: Callable[..., Any], guide: Callable[..., Any], x: Tensor, *, company: bool = True) -> str:
    """The latent site; refuse a pair whose log weights are not each datapoint's own, where the run reads them off."""
    site, q = guide_distribution(guide, x)
    require_rowwise(model, x, q.sample((3,)), site=site, guide=guide, company=company)
    return site


def _freeze(
    stack: ExitStack, model: Callable[..., Any], guide: Callable[..., Any], leaves: Mapping[str, Tensor]
) -> None:
    """The model in eval mode for the run; what holds the guide's parameters alone stays as it is."""
    trained = {id(leaf) for leaf in leaves.values()}
    modules = [module for root in modules_of(guide) for module in root.modules()]
    guides = [part for part in modules if (own := {id(leaf) for leaf in part.parameters()}) and own <= trained]
    modes = {module: module.training for part in guides for module in part.modules()}
    stack.enter_context(eval_mode(model))
    for module, mode in modes.items():
        module.training = mode


@torch.no_grad()
def _held_out(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    modules: Sequence[Callable[..., Any]],
    names: tuple[str, ...],
    shards: Shards,
    device: torch.device,
    seed: int,
) -> float:
    """The true ELBO on held-out data: the same draws every epoch, so that epochs compare.

    With global sites, of these names, it is conditional on draws of them: a fresh one for each particle.
    """
    total, num_particles = torch.zeros((), dtype=torch.float64), 4
    with eval_mode(*modules):
        with seeded(derive_seed(seed, "validation/globals")):
            few = fetch(data, torch.arange(min(len(data), 4)), device=device)
            draws = [values_of(guide, few, names) for _ in range(num_particles)] if names else []
        pairs = [(conditioned(model, draw), conditioned(guide, draw)) for draw in draws] or [(model, guide)]
        for start, stop in shards.chunks(len(data), 1024):
            x = fetch(data, torch.arange(start, stop), device=device)
            with seeded(derive_seed(seed, "validation") + start):
                for pair in pairs:
                    log_w = log_weights(*pair, x, num_particles=num_particles // len(pairs))
                    total += log_w.double().mean(0).sum().cpu() / len(pairs)
    add_up([total])
    return float(total) / len(data)


def _scaled_site(model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> str | None:
    """The first site whose log density is scaled, and by what; a factor of the guide is the loss's own."""
    for program in (guide, model):
        for name, node in poutine.trace(program).get_trace(x).nodes.items():
            if node["type"] == "sample" and not is_unscaled(node) and not (program is guide and is_factor(node)):
                return f"site '{name}' scaled by {node['scale']}"
    return None


def _require_unscaled(scaled: str | None, training: Training) -> None:
    """RenyiELBO applies its power after the sum over the batch, so a scale inside is not the scale of a datapoint."""
    wrong = f"warm_up={training.warm_up}" if training.warm_up else scaled
    if wrong:
        raise ValueError(
            "loss: RenyiELBO bounds the whole batch, and is wrong under KL warm-up, under scaling and in subsampled "
            "plates; "
            f"got {wrong}. Use inference.Renyi, which bounds each datapoint, or Trace_ELBO, or train without it."
        )


def _require_single(num_data: int, training: Training) -> None:
    """ReweightedWakeSleep normalises its weights after the sum over the batch: they are the batch's."""
    if (size := min(num_data, training.batch_size)) > 1:
        raise ValueError(
            "loss: ReweightedWakeSleep gives a whole batch one set of importance weights, which degenerate as it grows;"
            f" got batches of {size}. Use inference.WakeSleep, which weighs each datapoint by itself."
        )
