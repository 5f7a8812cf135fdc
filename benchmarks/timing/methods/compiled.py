"""PyTorch as fast as its user can make it without writing kernels: compiled loss from logits, fused Adam."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from timing.methods.networks import PlainVAE, batches, read, synchronise
from timing.protocol import Cell, Pipe, run_blocks


def versions() -> dict[str, str]:
    """Of what is used."""
    return {"torch": torch.__version__}


def run(cell: Cell, pipe: Pipe) -> None:
    """Serve timing blocks."""
    torch.manual_seed(0)
    torch.compiler.reset()
    x, vae = read(cell), PlainVAE(cell.widths).to(cell.device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=cell.lr, fused=True)

    def loss_of(batch: Tensor) -> Tensor:
        mean, log_var = vae.encoder(batch).chunk(2, -1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        loss = functional.binary_cross_entropy_with_logits(vae.decoder(z), batch, reduction="sum")
        return loss - 0.5 * torch.sum(1 + log_var - mean.square() - log_var.exp())

    # Without CUDA graphs a small step on a GPU is launches and nothing else.
    mode = "reduce-overhead" if cell.device == "cuda" else None
    backend = cell.options.get("backend", "inductor")
    compiled = torch.compile(loss_of, dynamic=False, backend=backend, mode=mode if backend == "inductor" else None)

    def block() -> float:
        total = torch.zeros((), device=cell.device)
        for batch in batches(x, cell.batch):
            loss = compiled(batch)
            loss.backward()
            total += loss.detach()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronise(cell)
        return float(total) / len(x)

    run_blocks(cell, pipe, block)
