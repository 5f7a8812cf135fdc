"""Monte Carlo EM: every datapoint has Markov chains of its own in its posterior, and no variational family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference.batches import Data, fetch, require_fixed
from inference.compiled import worthwhile
from inference.counts import require_count, require_kind
from inference.densities import densities, guide_distribution, latent_prior
from inference.devices import send
from inference.families import Family, MeanField, on_support
from inference.given import Given, describe_one, one_draw
from inference.hmc import HMC, Energy, Metric, StepSize, noise_dims, transition
from inference.initial import fit_store, require_init_params
from inference.isolation import InitParams, eval_mode, modules_of, sharing_guide, trainable
from inference.mcmc.target import Target
from inference.noise import like, resolve_seed, seeded
from inference.objectives import Gradients, LocalLoss, Objective, Step
from inference.processes import Shards
from inference.refusals import require_data_fit, require_last_batch, unmoved
from inference.results import Fit
from inference.resuming import Resume
from inference.scoring import guide_of, prior_draws, require_contract, require_readable, require_sound
from inference.table import HeldOut, Table, passes
from inference.training import Training, blame_site, device_for, optimise, require_one_shard, require_valid

__all__ = ["fit_mcem"]


class Chains:
    """Chains of every datapoint that go on from visit to visit, each datapoint at a step size of its own.

    Args:
        model: Pyro model.
        site: name of the latent site.
        hmc: settings of a transition.
        u: (C, N, D) where the chains start, in R^D.
        num_transitions: how many each chain is going to make.
    """

    def __init__(
        self, model: Callable[..., Any], site: str, hmc: HMC, u: Float[Tensor, "C N D"], *, num_transitions: int
    ) -> None:
        self.model = model
        self.site = site
        self.hmc = hmc
        self.u = u
        self.energy = Energy(self._terms, model, hmc=hmc, num_transitions=num_transitions)
        self.step_size = u.new_full((u.shape[1],), u.shape[2] ** -0.25)
        self.age = torch.zeros(u.shape[1], dtype=torch.long, device=u.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Where they are, and how they move."""
        return {"u": self.u, "step_size": self.step_size, "age": self.age}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to it."""
        for name, values in self.state_dict().items():
            values.copy_(state[name])

    def move(self, x: Float[Tensor, "B P"], index: Int[Tensor, " B"], num_steps: int) -> Float[Tensor, "C B E"]:
        """Move the chains at `index` by `num_steps` transitions at the model as it is now; returns their z.

        Step sizes are adapted with gains that fall with a datapoint's own number of transitions.
        """
        index = send(index, self.u.device)
        u = self.u[:, index]
        size = StepSize(self.step_size[index], target=self.hmc.target_accept)
        metric, one = Metric(torch.ones_like(u[0])), u.new_ones(1)
        shape = (*u.shape[:2], noise_dims(u.shape[2]))
        with torch.no_grad():
            target = Target.of(self.model, x, self.site)
        self._onto = target.onto
        # A trajectory may leave what the model's distributions accept; it is refused then.
        with pyro.validation_enabled(is_validate=False):
            # The model has moved since the last visit, and log p(x, z) with it.
            energy = self.energy.at(x)
            point = energy.point(u)
            for _ in range(num_steps):
                noise = torch.randn(shape, dtype=u.dtype, device=u.device)
                point, accept = transition(energy, point, one, noise, step_size=size.value, metric=metric, hmc=self.hmc)
                self.age[index] += 1
                size.update(accept, gain=self.age[index].to(accept) ** -0.6)
        self.u[:, index] = point.z
        self.step_size[index] = size.value
        return target.constrain(point.z)[0]

    def _terms(self, u: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return Target(model=self.model, x=x, site=self.site, onto=self._onto)(u)


class JointLoss(Objective):
    """Minus log p(x, z) of every datapoint, a mean over its chains: what the M-step lowers."""

    def __init__(self, model: Callable[..., Any], site: str) -> None:
        super().__init__()
        self.model = model
        self.site = site

    def forward(self, x: Float[Tensor, "B P"], z: Float[Tensor, "C B D"]) -> Float[Tensor, " B"]:
        """Nats.

        Args:
            x: (B, P) datapoints.
            z: (C, B, D) a draw from each of their chains.
        """
        return -densities(self.model, x, z, site=self.site).log_joint.mean(0)


def fit_mcem(
    model: Callable[..., Any],
    data: Data,
    *,
    site: str | None = None,
    init: Callable[..., Any] | None = None,
    num_chains: int = 4,
    burn_in: int = 50,
    hmc: HMC = HMC(),  # noqa: B008 (frozen)
    training: Training = Training(),  # noqa: B008
    validation: Data | None = None,
    validation_family: Family | None = None,
    given: Given | None = None,
    init_params: InitParams = "program",
    resume: Resume | None = None,
    seed: int | None = None,
) -> Fit:
    r"""Fit a model by Monte Carlo EM, with Markov chains of their own for every datapoint.

    .. math::
        \theta \leftarrow \theta + \rho \, \nabla_\theta \frac1{BC} \sum_n \sum_c \log p_\theta(x_n, z_{cn}), \qquad
        z_{cn} \sim p_\theta(z \mid x_n) \text{ by Hamiltonian Monte Carlo}

    For each minibatch: `Training.local_steps` transitions of its chains from where they were left, at the current model
    (E-step; chains outside the batch do not move), then one optimiser step on the model's parameters at their positions
    (M-step). As chains lag behind the model and gradients are noisy, it comes to rest at the maximum of the likelihood
    only under a schedule that falls. No family limits the posterior, and no bound is maximised: there is no ELBO on the
    training data. Of held-out data there is one, that of rows of a family refined at the frozen model, as `fit_em`
    reports it.

    Args:
        model: Pyro model.
        data: (N, P) training data, each with a fixed x.
        site: name of the latent site; by default that of `init`, else "z".
        init: a guide that chains start at draws of; None: draws of the prior.
        num_chains: C, chains of each datapoint.
        burn_in: transitions of a datapoint's chains, beyond those of every visit, before its first M-step.
        hmc: settings of a transition.
        training: settings; `local_lr` and `num_particles` are those of held-out rows.
        validation: held-out data: rows of their own are refined at the frozen model at the end of each epoch.
        validation_family: of those rows; by default mean-field on the prior's support.
        given: one draw (1, *shape) of each latent site outside the data plate: the model is fitted at that value.
        init_params: start of the bare `pyro.param` sites that are trained: "program", their initial values in the
            program, so that the same call gives the same numbers again; "store", the values that an earlier fit left
            in Pyro's parameter store, where it holds some. Sites that are not trained are read from the store.
        resume: where the state is kept, chains included, so that the same call goes on from it after it was killed.
        seed: of shuffling and draws; one seed fixes the run bit for bit on one machine.

    Returns:
        Mean log p(x, z) over training, `log_joint`, the held-out ELBO, and why the run ended; `elbo` is None.

    Raises:
        ValueError: nothing to train, the program breaks the contract, `data` draws x anew at each access, or a setting
            that needs an ELBO.
        FloatingPointError: a value became NaN or infinite; the message names the site.

    References:
        Wei & Tanner (1990), A Monte Carlo implementation of the EM algorithm.
        Kingma & Welling (2014), Auto-encoding variational Bayes, where it is compared with.

    Example:
        >>> from pyro_vae.linear import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> fit = fit_mcem(model.model, torch.randn(64, 2), training=Training(epochs=2), seed=0)
        >>> fit.elbo is None, fit.log_joint.shape
        (True, torch.Size([2]))
    """
    seed = resolve_seed(seed)
    num_data = require_fixed(data, purpose="fit_mcem")
    if validation is not None:
        require_fixed(validation, name="validation", purpose="the held-out ELBO of fit_mcem")
    require_kind("hmc", hmc, HMC)
    require_init_params(init_params)
    _require_settings(init, training, validation, validation_family, num_chains=num_chains, burn_in=burn_in)
    require_one_shard(training.sharding(), "Monte Carlo EM")
    site = site or getattr(init, "site", None) or "z"
    if given is not None:
        model, init = one_draw(given, data, model, init, purpose="fit_mcem")
    for part in sharing_guide(model):
        if init is None:
            part.check_cold_start()
        # The guide is not trained here, so its weights must not move.
        part.keep_own_guide()
    device = device_for(training, model, init)

    with fit_store(model, init, init_params=init_params) as start, seeded(seed):
        index = torch.arange(min(num_data, training.batch_size))
        first = fetch(data, index, device=device)
        start.hold(init, first, besides=model)
        # In eval mode, so that looking at the model moves no running statistics.
        with eval_mode(model, init), start.first_runs(model, None, first):
            require_readable(model, first, index)
            with unmoved(model, init):
                for name, rows in (("data", data), *((("validation", validation),) if validation is not None else ())):
                    require_data_fit(model, rows, first, shards=Shards(), device=device, name=name)
            u = _start(model, init, data, num_chains, site=site, device=device, seed=seed)
            leaves = trainable(model, x=first)
            if not leaves:
                raise ValueError(
                    "model: expected parameters to train; found no `param` site. To draw from its posterior, use "
                    "sample_posterior."
                )
            held_out = None
            if validation is not None:
                rows = _held_out_rows(
                    model, validation_family, validation, training, site=site, device=device, seed=seed
                )
                held_out = HeldOut(rows, validation, model, device=device, seed=seed)
        num_visits = training.num_steps(num_data)
        chains = Chains(model, site, hmc, u, num_transitions=num_visits * training.local_steps)
        objective = JointLoss(model, site)

        def values(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            loss = objective(x, z).mean()
            return loss, -loss

        def on_one_row() -> None:
            with eval_mode(model):
                z = latent_prior(model, first[:1], site=site).sample((num_chains,))
            objective(first[:1], z)

        with unmoved(model, init):
            require_last_batch(on_one_row, num_data, training)

        compile = worthwhile(training.compile, num_visits)
        gradients = Gradients(objective, values, leaves.values(), model, compile=compile, precision=training.precision)

        def check(x: Tensor, index: Tensor) -> None:
            require_readable(model, x, index)
            if compile:
                require_valid(model, x)

        def visit(x: Tensor, index: Tensor, lr_factor: float) -> Step:  # noqa: ARG001
            # All datapoints of a batch have been visited equally often: once an epoch.
            fresh = not chains.age[index[0]]
            with eval_mode(model):
                z = chains.move(x, index, training.local_steps + burn_in * fresh)
            return gradients(x, z)

        fit = optimise(
            objective,
            visit,
            leaves,
            data,
            training,
            keep=modules_of(model),
            device=device,
            held_out=None if held_out is None else lambda: held_out()[0],
            blame=lambda x: blame_site(model, lambda x: None, x),  # noqa: ARG005
            label="Monte Carlo EM",
            check=check,
            resume=resume,
            seed=seed,
            identity={"num_chains": num_chains, "burn_in": burn_in, "hmc": asdict(hmc)}
            | {"validation_family": repr(validation_family), **describe_one(given), **start.identity()},
            parts={
                "chains": chains,
                "steps": gradients,
                **chains.energy.compiled,
                **({} if held_out is None else {"held-out": held_out, **held_out.table.objective.compiled}),
            },
            tables={} if held_out is None else {"held-out": held_out.table},
        )
    settings = {
        **fit.settings,
        "engine": "mcem",
        "site": site,
        "start": "prior" if init is None else "guide",
        "num_chains": num_chains,
        "burn_in": burn_in,
        "hmc": asdict(hmc),
        **start.settings(),
        "seed": seed,
        **describe_one(given),
    }
    # What the loop follows is the mean of log p(x, z): it goes up as an ELBO does, and is none.
    return dataclasses.replace(fit, elbo=None, log_joint=fit.elbo, settings=settings)


def _require_settings(
    init: object,
    training: Training,
    validation: Data | None,
    validation_family: Family | None,
    *,
    num_chains: int,
    burn_in: int,
) -> None:
    require_count("num_chains", num_chains)
    require_count("burn_in", burn_in, least=0)
    require_kind("training", training, Training)
    if validation_family is not None:
        require_kind("validation_family", validation_family, Family)
    if init is not None and not callable(init):
        raise ValueError(
            f"init: expected a guide or None; got {type(init).__name__}. Wrap rows of parameters: Local(family, rows)."
        )
    if training.warm_up:
        raise ValueError("warm_up: Monte Carlo EM has no KL term to weigh. Leave it at 0.")
    if training.tol_elbo:
        raise ValueError(
            "tol_elbo: Monte Carlo EM has no ELBO on the training data. Pass validation= and patience, or tol_params."
        )
    if validation_family is None:
        return
    if validation is None:
        raise ValueError(
            "validation_family: nothing is held out; got validation=None. Pass validation=, or leave it out."
        )
    if validation_family.has_weights:
        raise ValueError(
            f"validation_family: expected a family without weights of its own, which nothing here would train; got "
            f"{validation_family!r}. Try MeanField or FullCovariance."
        )


@torch.no_grad()
def _start(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    data: Data,
    num_chains: int,
    *,
    site: str,
    device: torch.device,
    seed: int,
) -> Float[Tensor, "C N D"]:
    """Where the chains of all datapoints start, in R^D; refuses a program that breaks the contract."""
    parts = []
    for index, x in passes(model, data, Shards(), device=device):
        target = Target.of(model, x, site)
        if guide is None:
            z = prior_draws(model, x, index, num_chains, site=site, seed=seed, stage="fit_mcem/start")
        else:
            part = guide_of(guide, index, num_data=len(data))
            _, q = guide_distribution(part, x, site=site)
            require_sound(model, part, q, x, site=site)
            z = q.sample((num_chains,))
        u = target.unconstrain(z)
        target.check(u[:3])
        parts.append(u)
    return torch.cat(parts, dim=1)


def _held_out_rows(
    model: Callable[..., Any],
    family: Family | None,
    data: Data,
    training: Training,
    *,
    site: str,
    device: torch.device,
    seed: int,
) -> Table:
    """Rows of a family for held-out data, at their cold start."""
    index = torch.arange(min(len(data), 64))
    x = fetch(data, index, device=device)
    if family is None:
        with torch.no_grad():
            prior = latent_prior(model, x, site=site)
        family = on_support(MeanField(prior.event_shape[0]), prior.support).to(device)
    objective = LocalLoss(model, family, site)
    require_contract(objective, x, index, seed=seed)
    rows = family.initial_params(len(data), like=like(x))
    settings: dict[str, Any] = {"lr": training.local_lr, "num_particles": training.num_particles}
    return Table(objective, rows, num_rows=len(data), shards=Shards(), **settings)
