"""Other ways to the best mean-field q of every datapoint: tuned Adam, and the dynamics of the 2018 code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Rows(NamedTuple):
    """Mean-field q of every datapoint: (N, D) means and log scales."""

    mean: Tensor
    log_scale: Tensor


def adam(decoder: nn.Module, x: Tensor, start: Rows, *, steps: int, rate: float, seed: int) -> Rows:
    """Adam on the rows alone, at a frozen decoder: all points at once, one antithetic pair a step, cosine step sizes.

    Args:
        decoder: to logits; none of its parameters requires a gradient.
        x: (N, P) zeros and ones.
        start: rows to start from, the encoder's.
        steps: of the optimiser.
        rate: first step size.
        seed: of the draws.
    """
    generator = torch.Generator(device=x.device).manual_seed(seed)
    mean, log_scale = (part.detach().clone().requires_grad_() for part in start)
    optimizer = torch.optim.Adam([mean, log_scale], lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    both = torch.cat([x, x])
    for _ in range(steps):
        noise = torch.randn(mean.shape, generator=generator, device=x.device)
        scale = log_scale.exp()
        z = torch.cat([mean + scale * noise, mean - scale * noise])
        loss = 0.5 * functional.binary_cross_entropy_with_logits(decoder(z), both, reduction="sum")
        loss = loss + 0.5 * (mean.square() + scale.square() - 1).sum() - log_scale.sum()
        mean.grad, log_scale.grad = torch.autograd.grad(loss, [mean, log_scale])
        optimizer.step()
        schedule.step()
    return Rows(mean.detach(), log_scale.detach())


class Snapshot(NamedTuple):
    """Where the slow dynamics stood."""

    steps: int
    seconds: float
    gap: float


def dynamics_of_2018(
    decoder: nn.Module,
    x: Tensor,
    num_latents: int,
    gap_of: Callable[[Rows], float],
    *,
    below: float,
    cap: float,
    first_look: int = 400,
    growth: float = 1.15,
    seed: int,
) -> list[Snapshot]:
    """The local optimisation of the 2018 study of inference suboptimality, written anew from its description.

    Adam with step size 1e-3 from mean 0 and log variance 0, one plain Gaussian draw a step, log densities of the draw
    rather than an analytic KL, and a backward pass through the whole graph, gradients of the decoder's weights
    included. Easier than there: one copy of a point instead of 100, and all points at once.

    Args:
        decoder: to logits; a copy of its parameters requires gradients here.
        x: (N, P) zeros and ones.
        num_latents: D.
        gap_of: mean gap of rows to the reference optimum; the clock stands still while it looks.
        below: stop once the gap is below.
        cap: stop after so many seconds.
        first_look: steps before the first look.
        growth: how much later each further look is.
        seed: of the draws.
    """
    for weight in decoder.parameters():
        weight.requires_grad_()
    generator = torch.Generator(device=x.device).manual_seed(seed)
    mean = torch.zeros(len(x), num_latents, device=x.device, requires_grad=True)
    log_var = torch.zeros(len(x), num_latents, device=x.device, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_var], lr=1e-3)
    found: list[Snapshot] = []
    seconds, look = 0.0, float(first_look)
    began = time.perf_counter()
    step = 0
    while True:
        step += 1
        optimizer.zero_grad()
        noise = torch.randn(mean.shape, generator=generator, device=x.device)
        z = mean + (0.5 * log_var).exp() * noise
        log_likelihood = -functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="none").sum(1)
        log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        log_q = -0.5 * (log_var + (z - mean).square() / log_var.exp() + math.log(2 * math.pi)).sum(1)
        (log_q - log_prior - log_likelihood).mean().backward()
        # The mean's gradient is a point's divided by N, which Adam's step does not see.
        optimizer.step()
        late = step % 50 == 0 and seconds + time.perf_counter() - began > cap
        if step >= look or late:
            seconds += time.perf_counter() - began
            found.append(Snapshot(step, seconds, gap_of(Rows(mean.detach(), 0.5 * log_var.detach()))))
            if late or found[-1].gap < below:
                return found
            look *= growth
            began = time.perf_counter()
