"""Inverse autoregressive flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference.families.conditioner import ConditionedFlow, Net, check_hidden
from inference.families.flow import Bijection


class AutoregressiveFlow(ConditionedFlow):
    r"""Inverse autoregressive flows: each number is moved and scaled by those before it; draws are fast.

    .. math::
        z = \mu + \sigma \odot (f_L \circ \dots \circ f_1)(\epsilon), \qquad
        f(y)_d = t_d + e^{s_d} y_d, \quad (t_d, s_d) = g \cdot \mathrm{net}_d(y_{<d}, c), \; |s_d| \le 3

    with the order of the dimensions reversed from layer to layer. A draw and its density take one pass a layer; the
    density of another point takes D. With `shared`, the weights of the networks belong to the family, and a row holds
    :math:`\mu`, the log scale, a context c and a gate in (-1, 1) a layer: K = 2 D + C + L. Gates of 0 are independent
    normals, whatever the weights; the cold start is there. Without, the weights are a datapoint's own and g = 1.

    Args:
        num_latents: D, size of the latent vector.
        num_layers: L, layers, each with a network of its own.
        hidden: widths of the hidden layers of each network, of tanh units; by default 64, or 8 where not shared.
        context: C, size of the context; used where the weights are shared.
        shared: whether all datapoints share the networks' weights. A flow with shared weights must be trained.

    Raises:
        ValueError: a size is not a positive integer.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling (2016), Improved variational inference with inverse
        autoregressive flow. Germain, Gregor, Murray & Larochelle (2015), MADE.

    Example:
        >>> family = AutoregressiveFlow(4, num_layers=2, context=3)
        >>> family.num_params, family.is_fitted
        (13, False)
        >>> family(torch.zeros(5, 13)).rsample().shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        num_latents: int,
        *,
        num_layers: int = 2,
        hidden: tuple[int, ...] | None = None,
        context: int = 8,
        shared: bool = True,
    ) -> None:
        size = self._size("num_latents", num_latents)
        hidden = check_hidden("AutoregressiveFlow", hidden, shared=shared)
        sizes = (self._size("num_layers", num_layers), self._size("context", context))
        masks = [_masks(_order(size, number), hidden, shared=shared) for number in range(sizes[0])]
        super().__init__(size, masks, hidden=hidden, context=context, shared=shared)

    def _layer(self, number: int, net: Net) -> Bijection:
        return Autoregressive(net, _order(self.num_latents, number))


def _order(num_latents: int, number: int) -> list[int]:
    """The dimensions in the order of this layer: forwards in even layers, backwards in odd ones."""
    order = list(range(num_latents))
    return order[::-1] if number % 2 else order


def _masks(order: Sequence[int], hidden: tuple[int, ...], *, shared: bool) -> list[Tensor]:
    """Which inputs each unit sees: an output those before it, a unit of degree m the first m."""
    size = len(order)
    rank = torch.empty(size, dtype=torch.long)
    rank[list(order)] = torch.arange(1, size + 1)
    # A unit of degree 0 sees the context alone: what the first dimension's shift is made of.
    least = 0 if shared or size == 1 else 1
    seen, masks = rank, []
    for width in hidden:
        degree = least + torch.arange(width) % (size - least if size > least else 1)
        masks.append(degree.unsqueeze(-1) >= seen)
        seen = degree
    masks.append(rank.repeat(2).unsqueeze(-1) > seen)
    return [mask.double() for mask in masks]


class Autoregressive(Bijection):
    """One layer: a network whose d-th shift and log scale depend on the dimensions before it alone."""

    def __init__(self, net: Net, order: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.order = order

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Every dimension scaled and moved, in one pass."""
        shift, log_scale = self.net(x)
        return shift + log_scale.exp() * x, log_scale.sum(-1)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """One dimension after the other moved back and rescaled: D passes."""
        known: dict[int, Tensor] = {}
        log_det = torch.zeros_like(y[..., 0])
        for place in self.order:
            zero = torch.zeros_like(y[..., 0])
            x = torch.stack([known.get(other, zero) for other in range(len(self.order))], -1)
            shift, log_scale = self.net(x)
            known[place] = (y[..., place] - shift[..., place]) * (-log_scale[..., place]).exp()
            log_det = log_det + log_scale[..., place]
        return torch.stack([known[place] for place in range(len(self.order))], -1), log_det
