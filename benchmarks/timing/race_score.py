"""How far rows are from the best: the ELBO in float64 on common draws, and the reference optimum."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from timing.race_rivals import Rows

# Draws scored at once.
CHUNK = 8


class Judge:
    """Scores rows of the same datapoints on the same draws, at full precision.

    Args:
        decoder: to logits.
        x: (N, P) zeros and ones.
        num_latents: D.
        num_draws: in antithetic pairs.
        seed: of the draws.
    """

    def __init__(self, decoder: nn.Module, x: Tensor, num_latents: int, *, num_draws: int, seed: int) -> None:
        self._decoder = copy.deepcopy(decoder).double()
        self._x = x.double()
        self._seed = seed
        self._num_pairs = num_draws // 2
        self._num_latents = num_latents

    @torch.no_grad()
    def __call__(self, rows: Rows) -> Tensor:
        """(N,) ELBO of each datapoint, nats: the KL analytically, the expected likelihood over the draws."""
        generator = torch.Generator().manual_seed(self._seed)
        mean, log_scale = (part.double() for part in rows)
        num_data = len(mean)
        total = torch.zeros(num_data, dtype=torch.float64)
        drawn = 0
        while drawn < self._num_pairs:
            count = min(CHUNK // 2, self._num_pairs - drawn)
            noise = torch.randn(count, num_data, self._num_latents, generator=generator, dtype=torch.float64)
            z = mean + log_scale.exp() * torch.cat([noise, -noise])
            x = self._x.expand(2 * count, *self._x.shape)
            logits = self._decoder(z.flatten(0, 1)).unflatten(0, (2 * count, num_data))
            total -= functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((0, 2))
            drawn += count
        kl = 0.5 * (mean.square() + (2 * log_scale).exp() - 1).sum(1) - log_scale.sum(1)
        return total / (2 * self._num_pairs) - kl


def better(first: Rows, second: Rows, choosing: Judge) -> tuple[Rows, float]:
    """The better of two rows at each datapoint, on draws that score nothing, and how often it is the first."""
    wins = choosing(first) >= choosing(second)
    rows = Rows(*(torch.where(wins[:, None], one, other) for one, other in zip(first, second, strict=True)))
    return rows, float(wins.double().mean())
