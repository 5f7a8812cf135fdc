"""Levels in their order: a density on the line, integrated over one bin for each level."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.likelihoods.elementwise import Elementwise
from pyro_vae.likelihoods.levels import Levels, _OnLevels, known_levels, level_of
from pyro_vae.likelihoods.scales import check_scale, near_floor
from pyro_vae.networks import check_size

__all__ = ["DiscretizedGaussian", "DiscretizedLogistic", "DiscretizedLogisticMixture"]

_LOG_ROOT_2_PI = math.log(2 * math.pi) / 2
# Gauss-Legendre with 8 points, the 4 on the right half; their weights add up to 1.
_NODES, _WEIGHTS = ([float(v) for v in half[4:]] for half in np.polynomial.legendre.leggauss(8))


class _Discretized(_OnLevels):
    """A location and a scale on the line, cut into bins."""

    num_params = 2
    _bins: ClassVar[type[_Bins]]

    def __init__(self, num_levels: int, level_step: float, *, floor: float, mask: bool) -> None:
        super().__init__(num_levels, level_step, mask=mask)
        self.floor = check_scale(type(self).__name__, "floor", floor, unit="in levels")

    def forward(self, decoder_output: Float[Tensor, "*B R"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        loc, raw_scale = self.split(decoder_output)
        return self._distribution(loc, raw_scale).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B R"]) -> Bool[Tensor, "*B P"]:
        """Which scales are less than 1 % above the floor."""
        return near_floor(self.floor, self._scale(self.split(decoder_output)[1]))

    def settings(self) -> list[str]:
        """Its levels and its floor."""
        return [*super().settings(), f"floor={self.floor:g}"]

    def _distribution(self, loc: Tensor, raw_scale: Tensor) -> _Bins:
        # In levels: the same numbers then serve every step.
        half_range = (self.num_levels - 1) / 2
        return self._bins(
            half_range * (1 + loc), self._scale(raw_scale), num_levels=self.num_levels, step=self.level_step
        )

    def _scale(self, raw_scale: Tensor) -> Tensor:
        return self.floor + (self.num_levels - 1) / 2 * softplus(raw_scale)


class DiscretizedGaussian(_Discretized):
    r"""Levels, from a normal density integrated over one bin for each.

    .. math::
        p(x \mid l, r) = \prod_p \int_{\mathrm{bin}(x_p)} N(t; m_p, s_p^2) \, dt, \qquad
        m_p = h (1 + l_p), \qquad s_p = \mathrm{floor} \cdot \mathrm{step} + h \log(1 + e^{r_p})

    with h half of the largest level, so that outputs l from -1 to 1 span the levels. A bin reaches half a step to
    either side of its level; those of the first and the last level take the tails. The decoder's first P outputs are l,
    the last P are r.

    Args:
        num_levels: L, the levels 0, step, ..., (L - 1) step.
        level_step: distance between levels, in the units of x.
        floor: what a scale cannot fall below, in levels (units of `level_step`).
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: there are fewer than 2 levels, or `level_step` or `floor` is not positive.

    References:
        Ho, Jain & Abbeel, Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239

    Example:
        >>> DiscretizedGaussian(256, 1 / 255)(torch.zeros(2)).mean
        tensor([0.5000])
    """

    def __init__(self, num_levels: int, level_step: float, *, floor: float = 0.1, mask: bool = False) -> None:
        super().__init__(num_levels, level_step, floor=floor, mask=mask)

    @classmethod
    def from_context(
        cls,
        num_levels: int | None = None,
        level_step: float | None = None,
        *,
        floor: float = 0.1,
        mask: bool = False,
    ) -> Self:
        """The likelihood of the data's levels.

        Args:
            num_levels: L, levels of the data, where they are known.
            level_step: distance between levels, in the units of x.
            floor: what a scale cannot fall below, in levels.
            mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

        Raises:
            ValueError: the data have no levels.
        """
        return cls(*known_levels(cls.__name__, num_levels, level_step), floor=floor, mask=mask)


class DiscretizedLogistic(_Discretized):
    r"""Levels, from a logistic density integrated over one bin for each.

    .. math::
        p(x \mid l, r) = \prod_p \left[ \sigma\left(\frac{x_p + \mathrm{step}/2 - m_p}{s_p}\right) -
        \sigma\left(\frac{x_p - \mathrm{step}/2 - m_p}{s_p}\right) \right], \qquad
        m_p = h (1 + l_p), \qquad s_p = \mathrm{floor} \cdot \mathrm{step} + h \log(1 + e^{r_p})

    with h half of the largest level, so that outputs l from -1 to 1 span the levels. The bins of the first and the last
    level take the tails. The decoder's first P outputs are l, the last P are r.

    Args:
        num_levels: L, the levels 0, step, ..., (L - 1) step.
        level_step: distance between levels, in the units of x.
        floor: what a scale cannot fall below, in levels (units of `level_step`).
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: there are fewer than 2 levels, or `level_step` or `floor` is not positive.

    References:
        Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016,
        https://arxiv.org/abs/1606.04934

    Example:
        >>> DiscretizedLogistic(17, 1.0)(torch.zeros(2)).mean
        tensor([8.])
    """

    def __init__(self, num_levels: int, level_step: float, *, floor: float = 0.1, mask: bool = False) -> None:
        super().__init__(num_levels, level_step, floor=floor, mask=mask)

    @classmethod
    def from_context(
        cls,
        num_levels: int | None = None,
        level_step: float | None = None,
        *,
        floor: float = 0.1,
        mask: bool = False,
    ) -> Self:
        """The likelihood of the data's levels.

        Args:
            num_levels: L, levels of the data, where they are known.
            level_step: distance between levels, in the units of x.
            floor: what a scale cannot fall below, in levels.
            mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

        Raises:
            ValueError: the data have no levels.
        """
        return cls(*known_levels(cls.__name__, num_levels, level_step), floor=floor, mask=mask)


class DiscretizedLogisticMixture(_Discretized):
    r"""Levels, from a mixture of discretized logistics for each data value.

    .. math::
        p(x \mid a, l, r) = \prod_p \sum_k w_{pk} \, P(x_p; m_{pk}, s_{pk}), \qquad
        w_{pk} = \frac{e^{a_{pk}}}{\sum_j e^{a_{pj}}}, \qquad
        m_{pk} = h \left(1 + l_{pk} + \frac{2 k + 1}{K} - 1\right), \qquad k = 0, \ldots, K - 1

    with P, h and the scales s of `DiscretizedLogistic`: at l = 0 the components are spread evenly over the levels. The
    decoder's outputs are K blocks of a, K blocks of l, and K blocks of r.

    Args:
        num_levels: L, the levels 0, step, ..., (L - 1) step.
        level_step: distance between levels, in the units of x.
        num_components: K, logistics a data value.
        floor: what a scale cannot fall below, in levels (units of `level_step`).
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Raises:
        ValueError: there are fewer than 2 levels, `num_components` is not a positive integer, or `level_step` or
            `floor` is not positive.

    References:
        Salimans, Karpathy, Chen & Kingma, PixelCNN++, 2017, https://arxiv.org/abs/1701.05517

    Example:
        >>> DiscretizedLogisticMixture(256, 1 / 255)(torch.zeros(15 * 64)).event_shape
        torch.Size([64])
    """

    def __init__(
        self,
        num_levels: int,
        level_step: float,
        *,
        num_components: int = 5,
        floor: float = 0.1,
        mask: bool = False,
    ) -> None:
        super().__init__(num_levels, level_step, floor=floor, mask=mask)
        self.num_components = check_size("DiscretizedLogisticMixture", "num_components", num_components)
        self.num_params = 3 * self.num_components

    @classmethod
    def from_context(
        cls,
        num_levels: int | None = None,
        level_step: float | None = None,
        *,
        num_components: int = 5,
        floor: float = 0.1,
        mask: bool = False,
    ) -> Self:
        """The likelihood of the data's levels.

        Args:
            num_levels: L, levels of the data, where they are known.
            level_step: distance between levels, in the units of x.
            num_components: K, logistics a data value.
            floor: what a scale cannot fall below, in levels.
            mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

        Raises:
            ValueError: the data have no levels.
        """
        levels = known_levels(cls.__name__, num_levels, level_step)
        return cls(*levels, num_components=num_components, floor=floor, mask=mask)

    def forward(self, decoder_output: Float[Tensor, "*B R"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        logits, loc, raw_scale = self.blocks(decoder_output).movedim(-2, -1).chunk(3, dim=-1)
        evenly = torch.arange(1, 2 * self.num_components, 2, dtype=loc.dtype, device=loc.device) / self.num_components
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits, validate_args=False),
            self._distribution(loc + evenly - 1, raw_scale),
            validate_args=False,
        ).to_event(1)

    def on_floor(self, decoder_output: Float[Tensor, "*B R"]) -> Bool[Tensor, "*B P"]:
        """Which data values have a component whose scale is less than 1 % above the floor."""
        raw_scale = self.blocks(decoder_output)[..., 2 * self.num_components :, :]
        return near_floor(self.floor, self._scale(raw_scale)).any(-2)

    def settings(self) -> list[str]:
        """Its levels, its number of components and its floor."""
        *levels, floor = super().settings()
        return [*levels, f"num_components={self.num_components}", floor]


class _Bins(Elementwise):
    """A symmetric density with a location and a scale in levels, integrated over the bin of each level.

    A subclass writes the functions of the standard density: nothing else differs.
    """

    @property
    def support(self) -> constraints.Constraint:
        return Levels(self.settings["num_levels"], self.settings["step"])

    @property
    def mean(self) -> Tensor:
        loc, scale = self.parameters
        # The sum of P(x >= level), one level at a time: all at once they may not fit into memory.
        total = torch.zeros_like(loc)
        for level in range(1, self.settings["num_levels"]):
            total = total + self.cdf_of((loc - (level - 0.5)) / scale)
        return self.settings["step"] * total

    def log_prob(self, value: Tensor) -> Tensor:
        loc, scale = self.parameters
        level = level_of(value, self.settings["step"])
        centre, half = (level - loc) / scale, 0.5 / scale
        inner = self.log_mass(centre, half)
        # Each of the three is finite at every level, so that the gradient of what is not chosen is 0 and not NaN.
        outer = self.log_cdf(torch.where(level == 0, centre + half, half - centre))
        return torch.where((level == 0) | (level == self.settings["num_levels"] - 1), outer, inner)

    def draw(self, *parameters: Tensor) -> Tensor:
        loc, scale = parameters
        level = (loc + scale * self.noise(loc)).round().clamp(0, self.settings["num_levels"] - 1)
        return self.settings["step"] * level

    def cdf_of(self, value: Tensor) -> Tensor:
        """The cumulative probability of the standard density."""
        raise NotImplementedError

    def log_cdf(self, value: Tensor) -> Tensor:
        """Its log, finite everywhere."""
        raise NotImplementedError

    def log_mass(self, centre: Tensor, half: Tensor) -> Tensor:
        """Log of the probability from centre - half to centre + half, finite everywhere."""
        raise NotImplementedError

    def noise(self, like: Tensor) -> Tensor:
        """Standard draws of the shape of a tensor."""
        raise NotImplementedError


class _LogisticBins(_Bins):
    def cdf_of(self, value: Tensor) -> Tensor:
        return torch.sigmoid(value)

    def log_cdf(self, value: Tensor) -> Tensor:
        return logsigmoid(value)

    def log_mass(self, centre: Tensor, half: Tensor) -> Tensor:
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)): nothing cancels.
        return logsigmoid(centre + half) + logsigmoid(half - centre) + torch.log(-torch.expm1(-2 * half))

    def noise(self, like: Tensor) -> Tensor:
        info = torch.finfo(like.dtype)
        return torch.logit(torch.rand_like(like).clamp(info.tiny, 1 - info.eps))


class _NormalBins(_Bins):
    def cdf_of(self, value: Tensor) -> Tensor:
        return torch.special.ndtr(value)

    def log_cdf(self, value: Tensor) -> Tensor:
        return torch.special.log_ndtr(value)

    def log_mass(self, centre: Tensor, half: Tensor) -> Tensor:
        # By symmetry to the right of 0. No one formula holds everywhere: where the density hardly changes over the bin,
        # differences of cumulative probabilities cancel, and only there is quadrature exact.
        centre = centre.abs()
        narrow = half * (1 + centre) <= 0.5
        around_0 = ~narrow & (centre <= half)
        tail = ~narrow & ~around_0
        by_quadrature = _narrow_bin(torch.where(narrow, centre, 0.0), torch.where(narrow, half, 0.1))
        in_the_middle = _bin_around_0(torch.where(around_0, centre, 0.0), torch.where(around_0, half, 1.0))
        in_the_tail = _tail_bin(torch.where(tail, centre, 2.0), torch.where(tail, half, 1.0))
        return torch.where(narrow, by_quadrature, torch.where(around_0, in_the_middle, in_the_tail))

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)


def _narrow_bin(centre: Tensor, half: Tensor) -> Tensor:
    """The density at the centre times the width, times the mean of exp(-centre t - t^2 / 2) for t in the bin."""
    average = torch.zeros_like(centre)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        t = half * node
        average = average + weight * torch.exp(-t.square() / 2) * torch.cosh(centre * t)
    return -centre.square() / 2 - _LOG_ROOT_2_PI + torch.log(2 * half) + average.log()


def _bin_around_0(centre: Tensor, half: Tensor) -> Tensor:
    outside = torch.erfc((half + centre) / math.sqrt(2)) + torch.erfc((half - centre) / math.sqrt(2))
    return torch.log1p(-outside / 2)


def _tail_bin(centre: Tensor, half: Tensor) -> Tensor:
    """By Mills' ratio R(t) = (1 - Phi(t)) / phi(t): the mass is phi(a) R(a) - phi(b) R(b), and phi(a) comes out."""
    left, right = centre - half, centre + half
    difference = torch.special.erfcx(left / math.sqrt(2)) - torch.exp(-2 * centre * half) * torch.special.erfcx(
        right / math.sqrt(2)
    )
    return -left.square() / 2 - math.log(2) + difference.log()


DiscretizedGaussian._bins = _NormalBins
DiscretizedLogistic._bins = DiscretizedLogisticMixture._bins = _LogisticBins
