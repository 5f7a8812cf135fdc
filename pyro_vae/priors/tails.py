"""Priors with heavier tails than the normal, of a fixed scale: Laplace, Student's t, logistic."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.priors.base import Prior, Shape, check_number, check_scale

__all__ = ["Laplace", "Logistic", "StudentT"]


class _Scaled(Prior):
    """Independent and identical in every dimension, centred at 0, with a scale that is an option."""

    _zero: Tensor
    _shown: ClassVar[tuple[str, ...]] = ("scale",)

    def __init__(self, num_latents: int, *, scale: float) -> None:
        super().__init__(num_latents)
        self.scale = check_scale(self, "scale", scale)
        self.register_buffer("_zero", torch.zeros(self.num_latents), persistent=False)

    def _full(self, value: float) -> Tensor:
        """(D,) of the module's present type: a buffer made in float32 would stay rounded after `.double()`."""
        return torch.full_like(self._zero, value)


class Laplace(_Scaled):
    r"""Independent Laplace distributions: sparser than the normal.

    .. math::
        p(z) = \prod_d \frac{1}{2 b} \exp(-|z_d| / b)

    Args:
        num_latents: D, size of the latent vector.
        scale: b, in units of z; the standard deviation is b times the square root of 2.

    Raises:
        ValueError: the size is not a positive integer, or the scale not a positive number.

    Example:
        >>> Laplace(2, scale=0.5)().log_prob(torch.zeros(2))
        tensor(0.)
    """

    def __init__(self, num_latents: int, *, scale: float = 1.0) -> None:
        super().__init__(num_latents, scale=scale)

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        return dist.Laplace(self._zero, self._full(self.scale), validate_args=False).to_event(1)


class StudentT(_Scaled):
    r"""Independent Student's t distributions: room for far-out latent vectors.

    .. math::
        p(z) = \prod_d \frac{\Gamma((\nu + 1) / 2)}{\Gamma(\nu / 2) \sqrt{\pi \nu} s}
        \left(1 + \frac{z_d^2}{\nu s^2}\right)^{-(\nu + 1) / 2}

    Args:
        num_latents: D, size of the latent vector.
        df: degrees of freedom nu, from 1 (Cauchy) to 100 (nearly normal).
        scale: s, in units of z.

    Raises:
        ValueError: the size is not a positive integer, or an option out of range.

    Example:
        >>> StudentT(8, df=4.0)
        StudentT(8, df=4.0, scale=1.0)
    """

    _shown = ("df", "scale")

    def __init__(self, num_latents: int, *, df: float = 4.0, scale: float = 1.0) -> None:
        super().__init__(num_latents, scale=scale)
        # Below, draws overflow in float32; above, it is hardly another distribution than the normal.
        self.df = check_number(self, "df", df, 1.0, 100.0, fix="Beyond 100 take StandardNormal, which it nearly is.")

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        return _StudentT(self._full(self.df), self._zero, self._full(self.scale), validate_args=False).to_event(1)


class Logistic(_Scaled):
    r"""Independent logistic distributions: the tails of the Laplace, smooth in the middle.

    .. math::
        p(z) = \prod_d \frac{e^{-z_d / s}}{s \, (1 + e^{-z_d / s})^2}

    Args:
        num_latents: D, size of the latent vector.
        scale: s, in units of z; the standard deviation is s times pi over the square root of 3.

    Raises:
        ValueError: the size is not a positive integer, or the scale not a positive number.

    Example:
        >>> Logistic(1)().log_prob(torch.zeros(1)).exp()
        tensor(0.2500)
    """

    def __init__(self, num_latents: int, *, scale: float = 1.0) -> None:
        super().__init__(num_latents, scale=scale)

    def forward(self) -> Distribution:
        """The prior: batch shape (), event shape (D,)."""
        return _Logistic(self._zero, self._full(self.scale), validate_args=False).to_event(1)


class _StudentT(dist.StudentT):
    """Pyro's takes the difference of two log gammas in the type of z, in float32 wrong by 1e-5 a dimension."""

    def log_prob(self, value: Tensor) -> Tensor:
        df = self.df.double()
        log_constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - (math.pi * df).log() / 2
        log_tail = torch.log1p(((value - self.loc) / self.scale).square() / self.df)
        return log_constant.to(value.dtype) - self.scale.log() - (self.df + 1) / 2 * log_tail


class _Logistic(dist.Logistic):
    """Pyro's, with draws that are always finite: a uniform number may be exactly 0, once in 2^24 in float32."""

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        uniform = self.loc.new_empty(self._extended_shape(torch.Size(sample_shape))).uniform_()
        return self.loc + self.scale * uniform.logit(eps=torch.finfo(uniform.dtype).eps)
