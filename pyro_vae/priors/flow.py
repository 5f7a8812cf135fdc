"""A learned prior without a fixed shape: a normalising flow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from pyro.distributions import TorchDistribution
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_vae.networks import check_size
from pyro_vae.priors.base import Prior, Shape, check_widths, confine, log_normal

__all__ = ["FlowKind", "FlowPrior"]

FlowKind = Literal["coupling", "autoregressive"]

# Bound of the log scale of one layer: L layers stretch by up to exp(3 L).
LOG_STRETCH = 3.0


class FlowPrior(Prior):
    r"""A normalising flow: standard normal noise pushed through learned affine layers.

    .. math::
        \epsilon = f_L \circ \cdots \circ f_1(z), \qquad
        \log p(z) = \log N(\epsilon; 0, I) + \sum_l \log |\det \partial f_l|, \qquad
        f(z)_d = (z_d - m_d) \, e^{-a_d}

    In an autoregressive layer m and a at d are functions of the :math:`z_k` with k < d; in a coupling layer the first
    half of z stays as it is, and m and a of the other half are functions of it. The networks are Pyro's, with
    :math:`a = 3 \tanh(r / 3)` for their real outputs r, and the order of the dimensions is reversed between layers. The
    direction from z to :math:`\epsilon` is explicit, so that a density costs one pass through each network for both
    kinds; a draw costs one for coupling layers and D for autoregressive ones. The last layers of the networks start at
    0: the flow starts as the standard normal.

    Args:
        num_latents: D, size of the latent vector, at least 2.
        kind: layers, "coupling" (cheap to draw from) or "autoregressive" (richer).
        num_layers: L, number of layers; a coupling flow needs two to change every dimension.
        hidden: widths of the hidden layers of each network; at least D for "autoregressive".

    Raises:
        ValueError: a size is not a positive integer, D is 1, or an option out of range.

    References:
        Dinh, Sohl-Dickstein & Bengio (2017), Density estimation using Real NVP.
        Papamakarios, Pavlakou & Murray (2017), Masked autoregressive flow for density estimation.

    Example:
        >>> FlowPrior(2)().log_prob(torch.zeros(2)).exp()  # 1 / (2 pi)
        tensor(0.1592, grad_fn=<ExpBackward0>)
    """

    _zero: Tensor
    _shown = ("kind", "num_layers", "hidden")

    def __init__(
        self,
        num_latents: int,
        *,
        kind: FlowKind = "coupling",
        num_layers: int = 4,
        hidden: tuple[int, ...] = (64,),
    ) -> None:
        super().__init__(num_latents)
        if self.num_latents < 2:
            raise ValueError(
                "FlowPrior: num_latents: expected at least 2, one to condition on and one to transform; got "
                f"{num_latents}. In one dimension take GaussianMixture."
            )
        if kind not in get_args(FlowKind):
            raise ValueError(f"FlowPrior: kind: expected one of {', '.join(get_args(FlowKind))}; got {kind!r}.")
        self.kind: FlowKind = kind
        self.num_layers = check_size("FlowPrior", "num_layers", num_layers)
        self.hidden = check_widths(self, "hidden", hidden)
        if kind == "autoregressive" and min(self.hidden) < self.num_latents:
            raise ValueError(
                f"FlowPrior: hidden: expected widths of at least num_latents = {self.num_latents} for "
                f"kind='autoregressive'; got {hidden!r}. Widen it, or take kind='coupling'."
            )
        layer = _Coupling if kind == "coupling" else _Autoregressive
        self.register_buffer("_zero", torch.zeros(self.num_latents), persistent=False)
        self.layers = nn.ModuleList(layer(self.num_latents, self.hidden) for _ in range(self.num_layers))

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        return _Flow(self.layers, self._zero)  # type: ignore[arg-type]


class _Flow(TorchDistribution):
    """The distribution of the z that the layers turn into standard normal noise.

    Pyro's transforms would remember the last pair that they saw, and with it the weights of that time; and the clamp on
    their log scales has a gradient that is not its own.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, layers: Iterable[_Coupling | _Autoregressive], like: Tensor) -> None:
        self.layers, self._like = list(layers), like
        super().__init__(torch.Size(), like.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        log_det = value.new_zeros(value.shape[:-1])
        for i, layer in enumerate(self.layers):
            value, log_det_layer = layer(value.flip(-1) if i else value)
            log_det = log_det + log_det_layer
        return log_normal(value).sum(-1) + log_det

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            z = self._like.new_empty(self._extended_shape(torch.Size(sample_shape))).normal_()
            for i, layer in reversed(list(enumerate(self.layers))):
                z = layer.inverse(z)
                z = z.flip(-1) if i else z
        return z


class _Coupling(nn.Module):
    """Shifts and scales the second half of a vector by functions of the first."""

    def __init__(self, num_latents: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = [num_latents // 2, num_latents - num_latents // 2]
        self.net = _from_zero(DenseNN(self.sizes[0], list(hidden), [self.sizes[1]] * 2, nonlinearity=nn.ELU()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = z.split(self.sizes, dim=-1)
        loc, raw = self.net(kept)
        log_scale = confine(raw, LOG_STRETCH)
        return torch.cat([kept, (moved - loc) * torch.exp(-log_scale)], dim=-1), -log_scale.sum(-1)

    def inverse(self, noise: Tensor) -> Tensor:
        kept, moved = noise.split(self.sizes, dim=-1)
        loc, raw = self.net(kept)
        return torch.cat([kept, loc + moved * confine(raw, LOG_STRETCH).exp()], dim=-1)


class _Autoregressive(nn.Module):
    """Shifts and scales every number of a vector by functions of those before it."""

    def __init__(self, num_latents: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        # Pyro's default order of the dimensions is random.
        order: Any = torch.arange(num_latents)
        self.net = _from_zero(AutoRegressiveNN(num_latents, list(hidden), permutation=order, nonlinearity=nn.ELU()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.net(z)
        log_scale = confine(raw, LOG_STRETCH)
        return (z - loc) * torch.exp(-log_scale), -log_scale.sum(-1)

    def inverse(self, noise: Tensor) -> Tensor:
        z = torch.zeros_like(noise)
        for d in range(noise.shape[-1]):
            loc, raw = self.net(z)
            z[..., d] = loc[..., d] + noise[..., d] * confine(raw[..., d], LOG_STRETCH).exp()
        return z


def _from_zero(net: DenseNN | AutoRegressiveNN) -> nn.Module:
    with torch.no_grad():
        for weight in net.layers[-1].parameters():
            weight.zero_()
    return net
