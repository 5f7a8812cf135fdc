"""Distributions made by pushing another through bijections, and the families of flows."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from inference.compiled import tracing
from inference.families.family import Family, LocationScale
from inference.families.reading import family_of


class Bijection(Transform):
    """A map from (D,) vectors to (D,) vectors that says its log determinant along the way.

    It remembers no pair of points.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def push(self, x: Float[Tensor, "*S D"]) -> tuple[Float[Tensor, "*S D"], Float[Tensor, " *S"]]:
        """The image of x, and the log of the absolute determinant there."""
        raise NotImplementedError

    def pull(self, y: Float[Tensor, "*S D"]) -> tuple[Float[Tensor, "*S D"], Float[Tensor, " *S"]]:
        """The x whose image is y, and the same log determinant.

        Raises:
            NotImplementedError: there is no closed form.
        """
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        return self.push(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.pull(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log of the absolute determinant at x."""
        return self.push(x)[1]


class Pushed(dist.TransformedDistribution):  # type: ignore[name-defined, misc]
    """A distribution over (D,) vectors pushed through bijections.

    Of its own last draw it knows the point that was pushed, so the density there needs no inverse. It pushes that
    point again and compares: had a parameter changed since, the density would be of another point.
    """

    _drawn: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (Pyro's signature)
        """Draws, differentiable in the parameters."""
        x = self.base_dist.rsample(sample_shape)
        z, _ = self._push(x)
        self._drawn = (x, z)
        return z

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws."""
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats.

        Raises:
            NotImplementedError: a bijection has no inverse in closed form, and this is not the last draw.
        """
        if self._drawn is not None and self._drawn[1] is value:
            x, _ = self._drawn
            z, log_det = self._push(x)
            # While a trace is made, values are not known; and nothing changes them between a draw and its density.
            if tracing.get() or torch.equal(z, value):
                return self.base_dist.log_prob(x) - log_det
        x, log_det = self._pull(value)
        return self.base_dist.log_prob(x) - log_det

    def _push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x[..., 0])
        for transform in self.transforms:
            x, log_det = transform.push(x)
            total = total + log_det
        return x, total

    def _pull(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(z[..., 0])
        for transform in reversed(self.transforms):
            z, log_det = transform.pull(z)
            total = total + log_det
        return z, total


class FlowNormal(Pushed):
    """The standard normal distribution pushed through a flow; it knows the family and the parameters that made it."""

    family: FlowFamily
    params: Tensor

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowNormal:
        """The same distribution with a larger batch."""
        new = super().expand(batch_shape, _instance)
        new.family, new.params = self.family, self.params.expand(*batch_shape, -1)
        return new


class Affine(Bijection):
    """mu + sigma y, dimension by dimension."""

    def __init__(self, loc: Float[Tensor, "*B D"], scale: Float[Tensor, "*B D"]) -> None:
        super().__init__()
        self.loc = loc
        self.scale = scale

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled and moved."""
        return self.loc + self.scale * x, self.scale.log().sum(-1)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Moved back and rescaled."""
        return (y - self.loc) / self.scale, self.scale.log().sum(-1)


class FlowFamily(LocationScale):
    """Location and scale of a flow of standard normal noise. Subclasses say which bijections the noise goes through."""

    def forward(self, params: Float[Tensor, "*B K"]) -> Distribution:
        """The distribution at these parameters."""
        loc, scale, rest = self._split(params)
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc), validate_args=False).to_event(1)
        q = FlowNormal(base, [*self._bijections(rest), Affine(loc, scale)], validate_args=False)
        q.family, q.params = self, params
        return q

    def _bijections(self, rest: Tensor) -> list[Bijection]:
        """What the noise goes through before location and scale, given the rest of the rows."""
        raise NotImplementedError

    def params_from(self, q: Distribution) -> Float[Tensor, "*B K"]:
        """Parameters at which the family is `q`: one of its own members, or independent normals.

        Of anything else the means and variances are taken.
        """
        if isinstance(q, FlowNormal) and self._made(q):
            return q.params
        return super().params_from(q)

    def _made(self, q: FlowNormal) -> bool:
        if q.family is self:
            return True
        same = repr(q.family) == repr(self) and q.family.num_shared == self.num_shared
        return same and (not self.num_shared or torch.equal(q.family._shared().to(self._shared()), self._shared()))


@family_of.register
def _(q: FlowNormal) -> Family:
    return q.family
