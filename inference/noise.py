"""Random numbers that belong to datapoints: the noise of a datapoint depends on the seed and its index alone.

A measurement draws per block of 64 consecutive datapoints, from a generator seeded by (seed, stage, step, block), and
always for a full block. So what is drawn at a datapoint depends neither on the chunk it is computed in, nor on the
order, nor on what follows it in the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64


def resolve_seed(seed: int | None) -> int:
    """The seed to run with: the one given, or one drawn from torch's global generator, so that it can be reported."""
    if seed is None:
        return int(torch.randint(2**31, ()).item())
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer from 0 to 2**63 - 1; got {seed!r}. Pass, for example, seed=0.")
    return seed


def derive_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one purpose, independent for practical purposes of every other purpose's."""
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def own_random_state() -> Iterator[None]:
    """Leave torch's global generators as they were, whatever is drawn inside."""
    with torch.random.fork_rng(devices=_devices()):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside; leave them outside as they were."""
    with own_random_state():
        torch.random.default_generator.manual_seed(seed)
        for device in _devices():
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def _devices() -> list[int]:
    # Asking for CUDA's generators would start CUDA in a process that does not use it.
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def normal_noise(
    seed: int,
    stage: str,
    index: Int[Tensor, " B"],
    shape: tuple[int, int],
    *,
    step: int = 0,
    like: Tensor,
) -> Float[Tensor, "S B D"]:
    """Standard normal noise that belongs to datapoints.

    Args:
        seed: the run's seed.
        stage: what the noise is for; two stages share nothing.
        index: (B,) indices of the datapoints.
        shape: (S, D): draws, and noise dimensions a datapoint.
        step: position in a sequence of draws for one stage.
        like: tensor whose dtype and device the noise takes. It is drawn on the CPU: the numbers do not depend on the
            device.
    """
    num_draws, num_dims = shape
    generator = torch.Generator()
    parts = []
    index = index.cpu()
    touched, counts = torch.unique_consecutive(index // BLOCK, return_counts=True)
    for block, rows in zip(touched.tolist(), index.split(counts.tolist()), strict=True):
        generator.manual_seed(derive_seed(seed, stage, step, block))
        noise = torch.randn(BLOCK, num_draws, num_dims, generator=generator, dtype=like.dtype)
        parts.append(noise[rows - block * BLOCK])
    return torch.cat(parts).transpose(0, 1).to(like.device)


def like(x: Tensor) -> Tensor:
    """An empty tensor with the dtype and device that rows and noise for these data take."""
    return x.new_empty(0) if x.is_floating_point() else x.new_empty(0, dtype=torch.get_default_dtype())


def antithetic(noise: Float[Tensor, "S B D"]) -> Float[Tensor, "2*S B D"]:
    """The noise and its mirror image: what is odd in it cancels exactly in a mean."""
    return torch.cat([noise, -noise])
