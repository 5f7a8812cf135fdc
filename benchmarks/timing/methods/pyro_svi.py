"""Pyro's own `SVI` with `Trace_ELBO` and Adam, model and guide as in its VAE example, validation on as it is there."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from timing.methods.networks import PlainVAE, batches, read, synchronise
from timing.protocol import Cell, Pipe, run_blocks


def versions() -> dict[str, str]:
    """Of what is used."""
    return {"torch": torch.__version__, "pyro": pyro.__version__}


def run(cell: Cell, pipe: Pipe) -> None:
    """Serve timing blocks."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    x, vae = read(cell), PlainVAE(cell.widths).to(cell.device)

    def model(batch: Tensor) -> None:
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", len(batch)):
            z_loc = batch.new_zeros(len(batch), vae.num_latents)
            z = pyro.sample("latent", dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1))
            pixels = torch.sigmoid(vae.decoder(z))
            pyro.sample("obs", dist.Bernoulli(pixels, validate_args=False).to_event(1), obs=batch)

    def guide(batch: Tensor) -> None:
        pyro.module("encoder", vae.encoder)
        with pyro.plate("data", len(batch)):
            z_loc, log_scale = vae.encoder(batch).chunk(2, -1)
            pyro.sample("latent", dist.Normal(z_loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, Adam({"lr": cell.lr}), loss=Trace_ELBO())

    def block() -> float:
        total = 0.0
        for batch in batches(x, cell.batch):
            total += svi.step(batch)
        synchronise(cell)
        return total / len(x)

    run_blocks(cell, pipe, block)
