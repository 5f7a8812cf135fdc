"""Densities and draws in the data's own units, of a distribution over standardized values."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from inference.supports import is_unconstrained
from pyro_vae.data.standardization import Standardization
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.shapes import NO_SHAPE, Shape

__all__ = ["InDataUnits", "OverStandardized", "Units", "require_real"]


def require_real(likelihood: Likelihood, *, fix: str) -> None:
    """Refuse a likelihood that is none of real numbers: standardized values are outside its support.

    Args:
        likelihood: the likelihood.
        fix: what to do instead, a sentence.

    Raises:
        ValueError: its support is another.
    """
    if not is_unconstrained(likelihood.support):
        raise ValueError(
            f"standardization: expected a likelihood of real numbers; got {likelihood!r}, which expects "
            f"{likelihood.expected}, and standardized values are others. {fix}"
        )


class Units(nn.Module):
    """A standardization as buffers, so that it is in the state dict and follows its module to a device.

    The buffers stay in double precision whatever the module is cast to.

    Args:
        standardization: the map.

    Attributes:
        location: (P,) means.
        scale: (P,) standard deviations.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, standardization: Standardization) -> None:
        super().__init__()
        self.register_buffer("location", standardization.location.clone())
        self.register_buffer("scale", standardization.scale.clone())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: ANN401, FBT001, FBT002 (torch's signature)
        wide = {name: value for name, value in self._buffers.items() if value is not None}
        super()._apply(fn, recurse)
        for name, value in wide.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != torch.float64:
                self._buffers[name] = value.to(moved.device)
        return self

    @property
    def standardization(self) -> Standardization:
        """The map."""
        return Standardization(self.location, self.scale)

    def log_jacobian(self, rows: Float[Tensor, "*B P"], *, mask: bool) -> Float[Tensor, "*B"]:
        """The sum of log scales over the observed values, in double precision; one number where none are missing.

        Args:
            rows: standardized values, (*B, P).
            mask: whether NaN stands for a value that was not observed.
        """
        log_scale = self.scale.log()
        return torch.where(rows.isnan(), 0.0, log_scale).sum(-1) if mask else log_scale.sum()

    def extra_repr(self) -> str:
        """Its size."""
        return f"{len(self.location)} values"


class _Affine(TorchDistribution):
    """A distribution beside the affine map to the data's own units.

    Args:
        p: the distribution of standardized values, batch shape `*B`, event shape (P,).
        units: the map.
        mask: whether `p` leaves out values that are NaN.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, p: Distribution, units: Units, *, mask: bool) -> None:
        self.p, self.units, self._has_mask = p, units, mask
        super().__init__(p.batch_shape, p.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients."""
        return self.p.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """That of the standardized values: all real numbers."""
        return self.p.support  # type: ignore[return-value]

    def expand(self, batch_shape: Shape, _instance: Distribution | None = None) -> Self:
        """The same with another batch shape."""
        return type(self)(self.p.expand(torch.Size(batch_shape)), self.units, mask=self._has_mask)

    def _log_prob(self, rows: Tensor) -> Tensor:
        log_p = self.p.log_prob(rows)
        return (log_p.double() - self.units.log_jacobian(rows, mask=self._has_mask)).to(log_p.dtype)


class OverStandardized(_Affine):
    r"""Standardized values u, with the log density of x = s u + m in the data's own units.

    .. math::
        \log p(x) = \log p(u) - \sum_{p\ \mathrm{observed}} \log s_p

    Draws, mean and variance are of u: a model that is simulated hands them to the encoder. `restore` brings values of u
    into the data's own units.
    """

    @property
    def mean(self) -> Tensor:
        """Mean of u, (*B, P)."""
        return self.p.mean

    @property
    def variance(self) -> Tensor:
        """Variance of u, (*B, P)."""
        return self.p.variance

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Draws of u, (*sample_shape, *B, P)."""
        return self.p.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Draws of u with gradients, (*sample_shape, *B, P)."""
        return self.p.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of x at the standardized value u, nats."""
        return self._log_prob(value)

    def restore(self, value: Tensor) -> Tensor:
        """Values of u in the data's own units, float64."""
        return self.units.standardization.invert(value)


class InDataUnits(_Affine):
    """The distribution of x in the data's own units: draws, moments and log densities, the first two in float64."""

    @property
    def mean(self) -> Tensor:
        """Mean of x, (*B, P)."""
        return self.units.standardization.invert(self.p.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of x, (*B, P)."""
        return self.p.variance.double() * self.units.scale.square()

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Draws of x, (*sample_shape, *B, P)."""
        return self.units.standardization.invert(self.p.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Draws of x with gradients, (*sample_shape, *B, P)."""
        return self.units.standardization.invert(self.p.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at x in the data's own units, nats."""
        return self._log_prob(self.units.standardization.apply(value, dtype=self.p.mean.dtype))
