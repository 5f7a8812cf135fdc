"""Coupling flows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from inference.families.conditioner import ConditionedFlow, Net, check_hidden
from inference.families.flow import Bijection


class CouplingFlow(ConditionedFlow):
    r"""Affine coupling flows: one half of the vector moves and scales the other, in turn; the inverse is exact.

    .. math::
        z = \mu + \sigma \odot (f_L \circ \dots \circ f_1)(\epsilon), \qquad
        f(y_1, y_2) = (y_1, \; t + e^s \odot y_2), \quad (t, s) = g \cdot \mathrm{net}(y_1, c), \; |s| \le 3

    With `shared`, the weights of the networks belong to the family, and a row holds :math:`\mu`, the log scale, a
    context c and a gate in (-1, 1) a layer: K = 2 D + C + L. Gates of 0 are independent normals, whatever the weights;
    the cold start is there. Without, the weights are a datapoint's own and g = 1.

    Args:
        num_latents: D, size of the latent vector; at least 2.
        num_layers: L, layers, each with a network of its own.
        hidden: widths of the hidden layers of each network, of tanh units; by default 64, or 8 where not shared.
        context: C, size of the context; used where the weights are shared.
        shared: whether all datapoints share the networks' weights. A flow with shared weights must be trained.

    Raises:
        ValueError: a size is not a positive integer, or D is 1.

    References:
        Dinh, Sohl-Dickstein & Bengio (2017), Density estimation using Real NVP.

    Example:
        >>> family = CouplingFlow(4, num_layers=2, context=3)
        >>> family.num_params, family.num_shared > 0, family.is_fitted
        (13, True, False)
        >>> CouplingFlow(4, num_layers=2, shared=False).num_shared
        0
    """

    def __init__(
        self,
        num_latents: int,
        *,
        num_layers: int = 4,
        hidden: tuple[int, ...] | None = None,
        context: int = 8,
        shared: bool = True,
    ) -> None:
        if self._size("num_latents", num_latents) == 1:
            raise ValueError(
                "CouplingFlow: num_latents: expected at least 2, so that one part can move the other; got 1. Choose "
                "PlanarFlow or MixtureOfGaussians."
            )
        hidden = check_hidden("CouplingFlow", hidden, shared=shared)
        sizes = (self._size("num_layers", num_layers), self._size("context", context))
        masks = []
        for number in range(sizes[0]):
            moving = num_latents - _fixed(num_latents, number)
            widths = (num_latents - moving, *hidden, 2 * moving)
            masks.append([torch.ones(b, a) for a, b in zip(widths[:-1], widths[1:], strict=True)])
        super().__init__(num_latents, masks, hidden=hidden, context=context, shared=shared)

    def _layer(self, number: int, net: Net) -> Bijection:
        return Coupling(net, _fixed(self.num_latents, number), first=number % 2 == 0)


def _fixed(num_latents: int, number: int) -> int:
    """How many dimensions stay fixed in this layer: one half in even layers, the other in odd ones."""
    half = num_latents // 2
    return num_latents - half if number % 2 else half


class Coupling(Bijection):
    """One layer: the `fixed` first (or else last) dimensions move and scale the rest."""

    def __init__(self, net: Net, fixed: int, *, first: bool) -> None:
        super().__init__()
        self.net = net
        self.fixed = fixed
        self.first = first

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One part scaled and moved."""
        still, moving = self._parts(x)
        shift, log_scale = self.net(still)
        return self._whole(still, shift + log_scale.exp() * moving), log_scale.sum(-1)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """That part moved back and rescaled."""
        still, moved = self._parts(y)
        shift, log_scale = self.net(still)
        return self._whole(still, (moved - shift) * (-log_scale).exp()), log_scale.sum(-1)

    def _parts(self, x: Float[Tensor, "*S D"]) -> tuple[Tensor, Tensor]:
        if self.first:
            return x[..., : self.fixed], x[..., self.fixed :]
        return x[..., -self.fixed :], x[..., : -self.fixed]

    def _whole(self, still: Tensor, moved: Tensor) -> Tensor:
        still = still.expand(*moved.shape[:-1], -1)
        return torch.cat([still, moved] if self.first else [moved, still], dim=-1)
