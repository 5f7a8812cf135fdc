"""Sylvester flows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from inference.families.flow import Bijection, FlowFamily
from inference.families.noise import times
from inference.families.planar import no_inverse
from inference.families.raw import confine, directions, stretch, unit

# Largest entries of the triangular matrices, and log of the largest steepness.
_ENTRY = 100.0
_LOG_STEEP = 4.0


class SylvesterFlow(FlowFamily):
    r"""Sylvester flows with Householder frames, all parameters a datapoint's own.

    .. math::
        z = \mu + \sigma \odot (f_L \circ \dots \circ f_1)(\epsilon), \qquad
        f(y) = y + Q R \tanh(\tilde R Q^\top y + b)

    with Q (D, M) the first columns of a product of M reflections, and upper triangular R and R~ (M, M) whose diagonals
    have products above -1: the diagonal of R~ is a steepness s in [e^-4, e^4], that of R is m(s a) / s with m(0) = 0
    and m > -1. So R = 0 is the identity, and `MeanField` is nested. A planar layer is the case M = 1. There is no
    inverse in closed form: the density is known at draws alone. K = 2 D + (M D + M (M + 2)) L.

    Args:
        num_latents: D, size of the latent vector.
        num_layers: L, bends one after the other.
        rank: M, directions that a layer moves along; no more than D are used.

    Raises:
        ValueError: a size is not a positive integer.

    References:
        van den Berg, Hasenclever, Tomczak & Welling (2018), Sylvester normalizing flows for variational inference.

    Example:
        >>> family = SylvesterFlow(4, num_layers=1, rank=2)
        >>> family.num_params
        24
        >>> family(family.initial_params(5, like=torch.zeros(0))).rsample().shape
        torch.Size([5, 4])
    """

    has_log_prob = False
    _upper: Tensor

    def __init__(self, num_latents: int, *, num_layers: int = 2, rank: int = 4) -> None:
        size, num_layers = self._size("num_latents", num_latents), self._size("num_layers", num_layers)
        used = min(self._size("rank", rank), size)
        start = torch.zeros(num_layers, used * (size + used + 2), dtype=torch.float64)
        start[:, : used * size] = directions(num_layers, used * size)
        super().__init__(size, start.flatten())
        self.num_layers = num_layers
        self.rank = rank
        self._used = used
        self.register_buffer("_upper", torch.triu_indices(used, used, 1), persistent=False)

    def _bijections(self, rest: Tensor) -> list[Bijection]:
        size, used = self.num_latents, self._used
        num_upper = used * (used - 1) // 2
        bijections: list[Bijection] = []
        for layer in rest.unflatten(-1, (self.num_layers, -1)).unbind(-2):
            vectors, amount, steep, one, other, b = layer.split(
                [used * size, used, used, num_upper, num_upper, used], dim=-1
            )
            steep = confine(steep, _LOG_STEEP).exp()
            first = self._triangular(stretch(steep * confine(amount, _ENTRY)) / steep, one)
            second = self._triangular(steep, other)
            bijections.append(Sylvester(unit(vectors.unflatten(-1, (used, size))), first, second, b))
        return bijections

    def _triangular(self, diagonal: Tensor, upper: Tensor) -> Tensor:
        matrix = torch.diag_embed(diagonal)
        rows, columns = self._upper
        matrix[..., rows, columns] = confine(upper, _ENTRY)
        return matrix

    def extra_repr(self) -> str:
        """Its size, layers and rank."""
        return f"{self.num_latents}, num_layers={self.num_layers}, rank={self.rank}"


class Sylvester(Bijection):
    """One layer, from unit vectors (*B, M, D), triangular matrices (*B, M, M) and b (*B, M)."""

    def __init__(self, vectors: Tensor, first: Tensor, second: Tensor, b: Float[Tensor, "*B M"]) -> None:
        super().__init__()
        self.vectors = vectors.unbind(-2)
        self.first = first
        self.second = second
        self.b = b
        self.product = first.diagonal(dim1=-2, dim2=-1) * second.diagonal(dim1=-2, dim2=-1)

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Moved along the M directions of Q, by functions of the coordinates in them."""
        rank = self.b.shape[-1]
        bend = torch.tanh(times(self.second, reflect(x, self.vectors)[..., :rank]) + self.b)
        move = times(self.first, bend)
        move = torch.nn.functional.pad(move, (0, x.shape[-1] - rank))
        return x + reflect(move, self.vectors[::-1]), torch.log1p((1 - bend.square()) * self.product).sum(-1)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Not known.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(no_inverse("SylvesterFlow"))


def reflect(x: Float[Tensor, "*S D"], vectors: tuple[Tensor, ...]) -> Float[Tensor, "*S D"]:
    """Points reflected in the planes across the unit vectors (*B, D), one after the other."""
    for vector in vectors:
        x = x - 2 * vector * (vector * x).sum(-1, keepdim=True)
    return x
