"""What every prior of this folder shares."""

from __future__ import annotations

import math
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.networks import check_size

# What torch's `sample` takes.
Shape: TypeAlias = torch.Size | list[int] | tuple[int, ...]

# A learned log scale is confined to (-LOG_SCALE, LOG_SCALE), smoothly and with slope 1 at 0: no real number can make
# the scale overflow or become 0.
LOG_SCALE = 12.0

# Options that are scales: beyond these the density of one or the other would overflow in float32.
SMALLEST, LARGEST = 1e-6, 1e6


class Prior(nn.Module):
    """A distribution over (D,) vectors, made anew at every call from the module's parameters and buffers.

    Args:
        num_latents: D, size of the latent vector.

    Attributes:
        num_latents: D.
        num_features: F, size of what the decoder reads; D unless the prior holds more than that.

    Raises:
        ValueError: the size is not a positive integer.
    """

    # Names of the attributes that its line of text shows.
    _shown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        self.num_latents = check_size(type(self).__name__, "num_latents", num_latents)
        self.num_features = self.num_latents

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        raise NotImplementedError

    def features(self, z: Float[Tensor, "*B D"]) -> Float[Tensor, "*B F"]:
        """What the decoder reads of z: z itself, unless the prior holds more than that.

        Args:
            z: latent vectors, (*B, D).
        """
        return z

    def extra_repr(self) -> str:
        """The size that the decoder reads, and the options."""
        return ", ".join([str(self.num_features), *(f"{name}={getattr(self, name)!r}" for name in self._shown)])

    def __repr__(self) -> str:
        """One line, whatever it is made of."""
        return f"{type(self).__name__}({self.extra_repr()})"


def confine(raw: Tensor, bound: float = LOG_SCALE) -> Tensor:
    """The number, kept smoothly within `(-bound, bound)`."""
    return bound * torch.tanh(raw / bound)


def check_number(prior: Prior, name: str, value: float, low: float, high: float, *, fix: str) -> float:
    """The option as a `float`.

    Raises:
        ValueError: it is not a number from `low` to `high`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(
            f"{type(prior).__name__}: {name}: expected a number from {low:g} to {high:g}; got {value!r}. {fix}"
        )
    return float(value)


def check_scale(prior: Prior, name: str, value: float) -> float:
    """The option as a `float` that can be a scale.

    Raises:
        ValueError: it is not a positive number of moderate size.
    """
    return check_number(prior, name, value, SMALLEST, LARGEST, fix="Rescale z, or leave it at the default.")


def check_widths(prior: Prior, name: str, widths: tuple[int, ...]) -> tuple[int, ...]:
    """The widths of hidden layers as integers.

    Raises:
        ValueError: there is none, or one is not a positive integer.
    """
    owner = type(prior).__name__
    if not isinstance(widths, tuple | list) or not widths:
        raise ValueError(f"{owner}: {name}: expected at least one width; got {widths!r}. Pass, for example, (64,).")
    return tuple(check_size(owner, f"{name}[{i}]", width) for i, width in enumerate(widths))


def log_normal(noise: Tensor) -> Tensor:
    """Log density of the standard normal, number by number."""
    return -0.5 * (noise.square() + math.log(2 * math.pi))
