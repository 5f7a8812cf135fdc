"""Plain PyTorch, eager: the usual example's loss (sigmoid, binary cross entropy, analytic KL) and its optimiser."""

from __future__ import annotations

import torch
from torch.nn import functional

from timing.methods.networks import PlainVAE, batches, read, synchronise
from timing.protocol import Cell, Pipe, run_blocks


def versions() -> dict[str, str]:
    """Of what is used."""
    return {"torch": torch.__version__}


def run(cell: Cell, pipe: Pipe) -> None:
    """Serve timing blocks."""
    torch.manual_seed(0)
    x, vae = read(cell), PlainVAE(cell.widths).to(cell.device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=cell.lr)

    def block() -> float:
        total = 0.0
        for batch in batches(x, cell.batch):
            optimizer.zero_grad()
            mean, log_var = vae.encoder(batch).chunk(2, -1)
            z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
            reconstruction = torch.sigmoid(vae.decoder(z))
            loss = functional.binary_cross_entropy(reconstruction, batch, reduction="sum")
            loss = loss - 0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
            loss.backward()
            # The example adds up the loss of every step.
            total += loss.item()
            optimizer.step()
        synchronise(cell)
        return total / len(x)

    run_blocks(cell, pipe, block)
