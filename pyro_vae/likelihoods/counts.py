"""Counts without a known total."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.likelihoods.elementwise import Elementwise
from pyro_vae.likelihoods.scales import confine

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial", "ZeroInflatedPoisson"]

# Bounds of a log rate (rates from 2e-9 to 4.9e8) and of a log dispersion (from 6e-6 to 1.6e5).
_LOG_RATE = 20.0
_LOG_DISPERSION = 12.0


class _Counts(Likelihood):
    """Counts, with or without more zeros than the counts explain."""

    base_measure = "counting"
    support = constraints.nonnegative_integer
    expected = "whole numbers from 0"
    advice = "For real numbers choose Gaussian; for gray values DiscretizedLogistic."


class Poisson(_Counts):
    r"""Counts, from log rates.

    .. math::
        p(x \mid l) = \prod_p \frac{\lambda_p^{x_p} e^{-\lambda_p}}{x_p!}, \qquad
        \log \lambda_p = 20 \tanh(l_p / 20)

    so that l is the log rate where rates are moderate, and no rate leaves 2e-9 to 4.9e8.

    Args:
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    Example:
        >>> Poisson()(torch.zeros(3)).mean
        tensor([1., 1., 1.])
    """

    def forward(self, decoder_output: Float[Tensor, "*B P"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        (log_rate,) = self.split(decoder_output)
        return _Poisson(confine(log_rate, _LOG_RATE)).to_event(1)


class NegativeBinomial(_Counts):
    r"""Counts more spread than the Poisson's, from log means and log dispersions.

    .. math::
        p(x \mid l, r) = \prod_p \frac{\Gamma(x_p + n_p)}{\Gamma(n_p) \, x_p!}
        \left(\frac{n_p}{n_p + \mu_p}\right)^{n_p} \left(\frac{\mu_p}{n_p + \mu_p}\right)^{x_p}, \qquad
        \log \mu_p = 20 \tanh(l_p / 20), \qquad -\log n_p = 12 \tanh(r_p / 12)

    The variance is :math:`\mu_p + \mu_p^2 / n_p`, so that :math:`1 / n_p`, the dispersion, goes to 0 at the Poisson
    distribution. The decoder's first P outputs are l, the last P are r.

    Args:
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    References:
        Lopez et al., Deep Generative Modeling for Single-cell Transcriptomics, 2018,
        https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> NegativeBinomial()(torch.zeros(2 * 3)).mean
        tensor([1., 1., 1.])
    """

    num_params = 2

    def forward(self, decoder_output: Float[Tensor, "*B P2"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        log_mean, log_dispersion = self.split(decoder_output)
        return _NegativeBinomial(confine(log_mean, _LOG_RATE), confine(log_dispersion, _LOG_DISPERSION)).to_event(1)


class ZeroInflatedPoisson(_Counts):
    r"""Counts that are 0 for a second reason, with probability g, and Poisson otherwise.

    .. math::
        p(x \mid l, a) = \prod_p \left[ g_p \, 1\{x_p = 0\} + (1 - g_p) \, \mathrm{Poisson}(x_p; \lambda_p) \right],
        \qquad g_p = \sigma(a_p), \qquad \log \lambda_p = 20 \tanh(l_p / 20)

    The decoder's first P outputs are l, the last P are a.

    Args:
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    References:
        Lambert, Zero-Inflated Poisson Regression, 1992, https://doi.org/10.2307/1269547

    Example:
        >>> ZeroInflatedPoisson()(torch.zeros(2 * 3)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    num_params = 2

    def forward(self, decoder_output: Float[Tensor, "*B P2"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        log_rate, gate = self.split(decoder_output)
        return _ZeroInflatedPoisson(confine(log_rate, _LOG_RATE), gate).to_event(1)


class ZeroInflatedNegativeBinomial(_Counts):
    r"""Counts that are 0 for a second reason, with probability g, and negative binomial otherwise.

    .. math::
        p(x \mid l, r, a) = \prod_p \left[ g_p \, 1\{x_p = 0\} + (1 - g_p) \, \mathrm{NB}(x_p; \mu_p, n_p) \right],
        \qquad g_p = \sigma(a_p)

    with the mean :math:`\mu` and n of `NegativeBinomial`. The decoder's outputs are P of l, P of r and P of a.

    Args:
        mask: whether NaN stands for a value that was not observed and is marginalised; NaN is refused otherwise.

    References:
        Lopez et al., Deep Generative Modeling for Single-cell Transcriptomics, 2018,
        https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> ZeroInflatedNegativeBinomial()(torch.zeros(3 * 3)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    num_params = 3

    def forward(self, decoder_output: Float[Tensor, "*B P3"]) -> Distribution:
        """The distribution of x: batch shape `*B`, event shape (P,)."""
        log_mean, log_dispersion, gate = self.split(decoder_output)
        return _ZeroInflatedNegativeBinomial(
            confine(log_mean, _LOG_RATE), confine(log_dispersion, _LOG_DISPERSION), gate
        ).to_event(1)


class _Poisson(Elementwise):
    """Log masses in double precision: their terms cancel at large counts."""

    support = constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        return self.parameters[0].exp()

    def draw(self, *parameters: Tensor) -> Tensor:
        (log_rate,) = parameters
        return torch.poisson(log_rate.exp())

    def log_prob(self, value: Tensor) -> Tensor:
        (log_rate,) = self.parameters
        value, exact = value.double(), log_rate.double()
        return (value * exact - exact.exp() - torch.lgamma(value + 1)).to(log_rate.dtype)


class _NegativeBinomial(Elementwise):
    """By mean and dispersion; log masses in double precision."""

    support = constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        return self.parameters[0].exp()

    def draw(self, *parameters: Tensor) -> Tensor:
        log_mean, log_dispersion = parameters
        shape = (-log_dispersion).exp()
        return torch.poisson(torch._standard_gamma(shape) * (log_mean + log_dispersion).exp())

    def log_prob(self, value: Tensor) -> Tensor:
        log_mean, log_dispersion = (parameter.double() for parameter in self.parameters)
        value, shape = value.double(), (-log_dispersion).exp()
        log_odds = log_mean + log_dispersion
        log_choose = torch.lgamma(value + shape) - torch.lgamma(shape) - torch.lgamma(value + 1)
        log_p = log_choose - shape * softplus(log_odds) + value * logsigmoid(log_odds)
        return log_p.to(self.parameters[0].dtype)


class _ZeroInflated(Elementwise):
    """A distribution of counts whose last parameter is the logit of one more reason to be 0."""

    support = constraints.nonnegative_integer
    counts: ClassVar[type[Elementwise]]

    @property
    def mean(self) -> Tensor:
        *inner, gate = self.parameters
        return torch.sigmoid(-gate) * self.counts(*inner).mean

    def draw(self, *parameters: Tensor) -> Tensor:
        *inner, gate = parameters
        return torch.bernoulli(torch.sigmoid(-gate)) * self.counts(*inner).sample()

    def log_prob(self, value: Tensor) -> Tensor:
        *inner, gate = self.parameters
        counts = self.counts(*inner)
        at_0 = torch.logaddexp(logsigmoid(gate), logsigmoid(-gate) + counts.log_prob(torch.zeros_like(gate)))
        return torch.where(value == 0, at_0, logsigmoid(-gate) + counts.log_prob(value))


class _ZeroInflatedPoisson(_ZeroInflated):
    counts = _Poisson


class _ZeroInflatedNegativeBinomial(_ZeroInflated):
    counts = _NegativeBinomial
