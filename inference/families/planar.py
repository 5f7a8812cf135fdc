"""Planar flows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from inference.families.flow import Bijection, FlowFamily
from inference.families.raw import confine, directions, stretch, unit

# Largest entries of the vectors of a layer, in standard deviations.
_ENTRY = 100.0


class PlanarFlow(FlowFamily):
    r"""Planar flows, all parameters a datapoint's own.

    .. math::
        z = \mu + \sigma \odot (f_L \circ \dots \circ f_1)(\epsilon), \qquad
        f(y) = y + \hat u \tanh(w^\top y + b), \quad w^\top \hat u = m(w^\top u) > -1

    with m(0) = 0 and :math:`\hat u = u` across w, so that u = 0 is the identity. The entries of u and w are confined to
    100, location and scale as in `MeanField`, which is nested in it. There is no inverse in closed form: the density is
    known at draws alone. K = 2 D + (2 D + 1) L.

    Args:
        num_latents: D, size of the latent vector.
        num_layers: L, bends one after the other.

    Raises:
        ValueError: a size is not a positive integer.

    References:
        Rezende & Mohamed (2015), Variational inference with normalizing flows.

    Example:
        >>> family = PlanarFlow(2, num_layers=3)
        >>> family.num_params, family.has_log_prob
        (19, False)
        >>> family(torch.zeros(5, 19)).rsample().shape
        torch.Size([5, 2])
    """

    has_log_prob = False

    def __init__(self, num_latents: int, *, num_layers: int = 4) -> None:
        size, num_layers = self._size("num_latents", num_latents), self._size("num_layers", num_layers)
        start = torch.zeros(num_layers, 2 * size + 1, dtype=torch.float64)
        # With w = 0 as well, a layer would be a saddle.
        start[:, size : 2 * size] = unit(directions(num_layers, size))
        super().__init__(size, start.flatten())
        self.num_layers = num_layers

    def _bijections(self, rest: Tensor) -> list[Bijection]:
        layers = rest.unflatten(-1, (self.num_layers, -1)).unbind(-2)
        size = self.num_latents
        return [Planar(*layer.split([size, size, 1], dim=-1)) for layer in layers]

    def extra_repr(self) -> str:
        """Its size and layers."""
        return f"{self.num_latents}, num_layers={self.num_layers}"


class Planar(Bijection):
    """One layer, from unconstrained u, w (*B, D) and b (*B, 1)."""

    def __init__(self, u: Tensor, w: Tensor, b: Float[Tensor, "*B 1"]) -> None:
        super().__init__()
        u, self.w = confine(u, _ENTRY), confine(w, _ENTRY)
        direction = unit(self.w)
        length = self.w.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        along = (u * direction).sum(-1, keepdim=True)
        amount = stretch(length * along)
        self.u = u + direction * (amount / length - along)
        # Not w'u: where both are long, its round-off would reach -1.
        self.amount = (amount * self.w.norm(dim=-1, keepdim=True) / length).squeeze(-1)
        self.b = b

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Moved along u by a function of w'x."""
        bend = torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)
        slope = (1 - bend.square()).squeeze(-1)
        return x + self.u * bend, torch.log1p(slope * self.amount)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Not known.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(no_inverse("PlanarFlow"))


def no_inverse(name: str) -> str:
    """Why the density of a point is not known, and what to do."""
    return (
        f"{name}: expected its own last draw; got another point, whose density would need an inverse that has no "
        "closed form (has_log_prob is False). Take log q from from_noise, or choose CouplingFlow, whose inverse is "
        "exact."
    )
