"""Random numbers that belong to datapoints: the noise of a datapoint depends on the seed and its index alone.

A measurement draws per block of 64 consecutive datapoints, from a generator seeded by (seed, stage, step, block), and
always for a full block. So what is drawn at a datapoint depends neither on the chunk it is computed in, nor on the
order, nor on what follows it in the data.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from inference.devices import send
from inference.exclusive import exclusive

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
    with exclusive(), torch.random.fork_rng(devices=_devices()):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside; leave them outside as they were."""
    with own_random_state():
        torch.random.default_generator.manual_seed(seed)
        for device in _devices():
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


@contextmanager
def measured(seed: int) -> Iterator[None]:
    """As `seeded`, and what distributions draw inside does not depend on their device, either: it is drawn on the CPU.

    They draw where their parameters are, and generators of two devices give different numbers.
    """
    with seeded(seed), _DrawnOnCPU() if torch.cuda.is_initialized() else nullcontext():
        yield


class _DrawnOnCPU(TorchDispatchMode):
    """Operations that draw random numbers run on the CPU, on copies of their arguments; the draws go where they go."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401, ARG002
        kwargs = kwargs or {}
        device = next(filter(_is_cuda, map(_place, tree_leaves((args, kwargs)))), None)
        if device is None or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        here_args, here_kwargs = tree_map(_on_cpu, (args, kwargs))
        drawn = func(*here_args, **here_kwargs)
        if func._schema.is_mutable:
            return args[0].copy_(drawn)
        return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, drawn)


def _place(value: object) -> torch.device | None:
    return value.device if isinstance(value, Tensor) else value if isinstance(value, torch.device) else None


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


def _on_cpu(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.cpu() if isinstance(value, Tensor) else value


def random_states() -> dict[str, Any]:
    """The states of all generators (torch's, NumPy's, Python's), as tensors and plain values."""
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in _devices()],
        "numpy": numpy_state | {"state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Go back to what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    for device, state in zip(_devices(), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    numpy_state = states["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state | {"state": {**numpy_state["state"], "key": key}})
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))


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
    return send(torch.cat(parts).transpose(0, 1), like.device)


class OrthogonalNoise:
    r"""A sequence of standard normal vectors for each datapoint, in windows of D that are orthogonal to each other.

    .. math::
        \epsilon_{nj} = r_{nj} \, (s_n \odot q_j), \qquad r^2 \sim \chi^2_D

    with q_1 ... q_D the rows of a random orthogonal matrix (uniform on the group; one a window and block of 64
    datapoints) and s random signs (D, one vector a window and datapoint). Each vector is exactly N(0, I). Over a window
    the products of two coordinates sum to nearly nothing, where those of independent draws add up as a random walk:
    what they contribute to the gradient of a scale or a correlation cancels in the mean over the steps of a search.
    Vectors of one window, and the directions of one block, depend on each other: not for scoring.

    The j-th vector at a datapoint is a function of the seed, the stage, j and the datapoint's index.

    Args:
        seed: the run's seed.
        stage: what the noise is for; two stages share nothing.
        num_dims: D.
        like: tensor whose dtype and device the noise takes. It is drawn on the CPU.

    References:
        Yu, Suresh, Choromanski, Holtmann-Rice & Kumar (2016), Orthogonal random features.

    Example:
        >>> draws = OrthogonalNoise(0, "search", 2, like=torch.zeros(0)).draw(torch.arange(3), 2, first=0)
        >>> draws.shape
        torch.Size([2, 3, 2])
        >>> (draws[0] * draws[1]).sum(-1).abs().max() < 1e-5
        tensor(True)
    """

    def __init__(self, seed: int, stage: str, num_dims: int, *, like: Tensor) -> None:
        self.seed = seed
        self.stage = stage
        self.num_dims = num_dims
        self.like = like
        # A generator is seeded once for so many windows: of small vectors a step may ask for many.
        self.num_windows = max(1, 64 // num_dims)
        # What was drawn last: for which blocks, which sheet, and the sheet of each.
        self._sheets: tuple[tuple[int, ...], int, tuple[Tensor, ...]] = ((), -1, ())

    def draw(self, index: Int[Tensor, " B"], count: int, *, first: int) -> Float[Tensor, "S B D"]:
        """Vectors number `first` to `first + count - 1` of each datapoint's sequence.

        Args:
            index: (B,) indices of the datapoints.
            count: S.
            first: number of the first of them.
        """
        index = index.cpu()
        size = self.num_windows * self.num_dims
        touched, place = torch.unique(index // BLOCK, return_inverse=True)
        row = index % BLOCK
        parts, at = [], first
        while at < first + count:
            sheet, offset = divmod(at, size)
            stop = min(size, offset + first + count - at)
            parts.append(self._vectors(tuple(touched.tolist()), sheet, offset, stop)[place, row].transpose(0, 1))
            at += stop - offset
        return send(torch.cat(parts) if len(parts) > 1 else parts[0], self.like.device)

    def _vectors(self, blocks: tuple[int, ...], sheet: int, start: int, stop: int) -> Float[Tensor, "N 64 S D"]:
        """Of every datapoint of these blocks."""
        if self._sheets[:2] != (blocks, sheet):
            drawn = zip(*(self._draw_sheet(block, sheet) for block in blocks), strict=True)
            self._sheets = (blocks, sheet, tuple(map(torch.stack, drawn)))
        directions, signs, radii = self._sheets[2]
        window = torch.arange(start, stop) // self.num_dims
        vectors = directions[:, start:stop].unsqueeze(1) * signs[:, window].transpose(1, 2)
        return vectors * radii[:, start:stop].transpose(1, 2).unsqueeze(-1)

    def _draw_sheet(self, block: int, sheet: int) -> tuple[Tensor, Tensor, Tensor]:
        """Directions (W*D, D), signs (W, 64, D) and radii (W*D, 64) of the W windows of a sheet."""
        size, num = self.num_dims, self.num_windows
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.stage, "orthogonal", sheet, block))
        normal = torch.randn(num, size, size, generator=generator, dtype=self.like.dtype)
        basis, triangle = torch.linalg.qr(normal)
        # With these signs, and only then, the matrix is uniform (Mezzadri 2007).
        basis = basis * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        signs = torch.randint(2, (num, BLOCK, size), generator=generator).to(basis) * 2 - 1
        lengths = torch.randn(num * size, BLOCK, size, generator=generator, dtype=self.like.dtype).norm(dim=-1)
        return basis.flatten(0, 1), signs, lengths


def like(x: Tensor) -> Tensor:
    """An empty tensor with the dtype and device that rows and noise for these data take."""
    return x.new_empty(0) if x.is_floating_point() else x.new_empty(0, dtype=torch.get_default_dtype())


def antithetic(noise: Float[Tensor, "S B D"]) -> Float[Tensor, "2*S B D"]:
    """The noise and its mirror image: what is odd in it cancels exactly in a mean."""
    return torch.cat([noise, -noise])
