"""Householder flows: normals whose covariance has axes turned by reflections."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from inference.families.flow import Bijection, FlowFamily, FlowNormal
from inference.families.moments import loc_and_tril
from inference.families.raw import directions, raw_of, unit
from inference.families.sylvester import reflect


class HouseholderFlow(FlowFamily):
    r"""Normals whose covariance has axes turned by reflections.

    .. math::
        z = \mu + H_L \cdots H_1 (\sigma \odot \epsilon), \qquad H = I - 2 v v^\top / |v|^2, \qquad
        q(z) = N(z; \mu, H_L \cdots H_1 \mathrm{diag}(\sigma^2) H_1 \cdots H_L)

    The flow keeps volumes, so log q is that of the independent normals, at a point turned back. L = D - 1 reflections
    reach every covariance; mean-field is nested for any L. K = 2 D + L D.

    Args:
        num_latents: D, size of the latent vector.
        num_layers: L, reflections.

    Raises:
        ValueError: a size is not a positive integer.

    References:
        Tomczak & Welling (2016), Improving variational auto-encoders using Householder flow.

    Example:
        >>> family = HouseholderFlow(3, num_layers=1)
        >>> q = family(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]))
        >>> q.stddev
        tensor([1.0000, 2.7120, 1.0000])
    """

    def __init__(self, num_latents: int, *, num_layers: int = 2) -> None:
        size, num_layers = self._size("num_latents", num_latents), self._size("num_layers", num_layers)
        # Turned axes: the standard normal does not feel them, and along them a symmetric posterior is not symmetric.
        super().__init__(size, directions(num_layers * size))
        self.num_layers = num_layers

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        loc, scale, rest = self._split(params)
        vectors = unit(rest.unflatten(-1, (self.num_layers, self.num_latents))).unbind(-2)
        base = dist.Normal(torch.zeros_like(loc), scale, validate_args=False).to_event(1)
        q = HouseholderNormal(base, [Turn(vectors, loc)], validate_args=False)
        q.family, q.params = self, params
        return q

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`, or has its mean and the leading L axes of its covariance."""
        if isinstance(q, HouseholderNormal) and self._made(q):
            return q.params
        loc, tril = self._moments(q)
        raw_of(tril.norm(dim=-1))
        root = tril.double()
        axes = torch.linalg.svd(root)[0]
        flip = torch.eye(self.num_latents, dtype=root.dtype, device=root.device)[0].expand(loc.shape)
        vectors = []
        for layer in range(self.num_layers):
            # Turns the axis of rank `layer` onto that coordinate, and leaves those before alone.
            vector = flip
            if layer < self.num_latents - 1:
                axis = torch.cat([torch.zeros_like(axes[..., :layer, layer]), axes[..., layer:, layer]], -1)
                sign = torch.where(axis[..., layer] < 0, -1.0, 1.0)
                # Added, not subtracted: the difference of two vectors that nearly coincide has no digits.
                vector = unit(axis) + 0.0
                vector[..., layer] += sign
            columns = (unit(vector),)
            root, axes = (reflect(matrix.mT, _beside(columns)).mT for matrix in (root, axes))
            vectors.append(vector)
        rest = torch.cat(vectors[::-1], -1).to(loc.dtype)
        return self._row(loc, raw_of(root.norm(dim=-1).to(loc.dtype)), rest)

    def extra_repr(self) -> str:
        """Its size and layers."""
        return f"{self.num_latents}, num_layers={self.num_layers}"


def _beside(vectors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Vectors (*B, D) as (*B, 1, D), to act on the rows of matrices."""
    return tuple(vector.unsqueeze(-2) for vector in vectors)


class Turn(Bijection):
    """Reflections across unit vectors (*B, D), and a location."""

    def __init__(self, vectors: tuple[Tensor, ...], loc: Tensor) -> None:
        super().__init__()
        self.vectors = vectors
        self.loc = loc

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turned and moved."""
        return self.loc + reflect(x, self.vectors), torch.zeros_like(x[..., 0])

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Moved and turned back."""
        return reflect(y - self.loc, self.vectors[::-1]), torch.zeros_like(y[..., 0])


class HouseholderNormal(FlowNormal):
    """A normal with known axes."""

    def root(self) -> Float[Tensor, "*B D D"]:
        """A square root of the covariance: the covariance is root times its transpose."""
        axes = torch.diag_embed(self.base_dist.base_dist.scale)
        # A diagonal matrix: its rows are the images of the axes before turning.
        return reflect(axes, _beside(self.transforms[0].vectors)).mT

    @property
    def mean(self) -> Tensor:
        """Mean (*B, D)."""
        return self.transforms[0].loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variances (*B, D)."""
        return self.root().square().sum(-1)


@loc_and_tril.register
def _(q: HouseholderNormal) -> tuple[Tensor, Tensor]:
    # QR of the transposed root, in float64: squaring it first would lose the narrow axes.
    upper = torch.linalg.qr(q.root().mT.double())[1]
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    tril = (upper * sign.unsqueeze(-1)).mT
    floor = torch.finfo(torch.float32).tiny
    tril = tril + torch.diag_embed((floor - tril.diagonal(dim1=-2, dim2=-1)).clamp_min(0))
    return q.mean, tril.to(q.params.dtype)
