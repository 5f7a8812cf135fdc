"""This library's `fit_svi`, end to end: its data, its optimiser, its records; timed between its epochs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from inference import Adam, MeanField, Training
from inference import fit_svi as fit
from pyro_vae import MLP, VAE
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal
from timing.methods.networks import read
from timing.protocol import Cell, EpochClock, Pipe

# More than anybody asks for: the run ends when no block is wanted any more.
ENDLESS = 10**6


def versions() -> dict[str, str]:
    """Of what is used."""
    return {"torch": torch.__version__, "pyro": version("pyro-ppl")}


def build(widths: tuple[int, ...]) -> VAE:
    """A Bernoulli VAE of these widths, as a user writes it."""
    *seen, num_latents = widths
    family = MeanField(num_latents)
    return VAE(
        prior=StandardNormal(num_latents),
        likelihood=Bernoulli(),
        decoder=MLP(num_latents, *reversed(seen)),
        family=family,
        encoder=MLP(*seen, family.num_params),
    )


def settings(cell: Cell, **more: Any) -> Training:
    """The cell's settings."""
    return Training(batch_size=cell.batch, optimizer=Adam(lr=cell.lr), **cell.options, **more)


def train(cell: Cell, after_epoch: Callable[[Any], None], *, epochs: int = ENDLESS) -> VAE:
    """Fit; `after_epoch` is called with the state of the loop."""
    torch.manual_seed(0)
    x: Tensor = read(cell)
    vae = build(cell.widths).to(cell.device)
    fit(vae.model, vae.guide, x, training=settings(cell, epochs=epochs, callbacks=[after_epoch]), seed=0)  # type: ignore[arg-type]
    return vae


def run(cell: Cell, pipe: Pipe) -> None:
    """Serve timing blocks."""
    clock = EpochClock(cell, pipe)

    def after_epoch(state: Any) -> None:
        if not clock(-state.elbo[-1]):
            state.stop = "no further block was asked for"

    train(cell, after_epoch)
