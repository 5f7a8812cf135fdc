r"""Kullback-Leibler divergences between normals in closed form, where Pyro and torch have none.

.. math::
    \mathrm{KL}(N(\mu, \Sigma) \,\|\, N(m, \mathrm{diag}(s^2))) = \tfrac12 \sum_d \left[
    \frac{\Sigma_{dd} + (\mu_d - m_d)^2}{s_d^2} - 1 + \log s_d^2 \right] - \tfrac12 \log |\Sigma|

With them `TraceMeanField_ELBO` has no noise in the KL term of any family of normals under a prior of independent
normals, nor of low-rank or dense ones under the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from inference.families.householder import HouseholderNormal
from inference.families.noise import capacitance_tril


@register_kl(MultivariateNormal, Independent)
def _dense_to_diagonal(p: Any, q: Any) -> Tensor:
    return _to_diagonal(p, p.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1), q)


@register_kl(LowRankMultivariateNormal, Independent)
def _low_rank_to_diagonal(p: Any, q: Any) -> Tensor:
    scale = p.cov_diag.sqrt()
    tril = capacitance_tril(p.cov_factor / scale.unsqueeze(-1))
    half_log_det = scale.log().sum(-1) + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(scale.dtype)
    return _to_diagonal(p, half_log_det, q)


@register_kl(HouseholderNormal, Independent)
def _householder_to_diagonal(p: Any, q: Any) -> Tensor:
    return _to_diagonal(p, p.base_dist.base_dist.scale.log().sum(-1), q)


@register_kl(Independent, LowRankMultivariateNormal)
def _diagonal_to_low_rank(p: Any, q: Any) -> Tensor:
    _require_normal(p)
    tril = torch.diag_embed(p.base_dist.scale)
    return kl_divergence(MultivariateNormal(p.base_dist.loc, scale_tril=tril, validate_args=False), q)


def _to_diagonal(p: Any, half_log_det: Tensor, q: Any) -> Tensor:
    _require_normal(q)
    loc, scale = q.base_dist.loc, q.base_dist.scale
    terms = 0.5 * ((p.variance + (p.mean - loc).square()) / scale.square() - 1) + scale.log()
    return terms.sum(-1) - half_log_det


def _require_normal(q: Any) -> None:
    if not isinstance(q.base_dist, Normal) or q.reinterpreted_batch_ndims != 1:
        # What kl_divergence says where it knows nothing; TraceMeanField_ELBO then samples.
        raise NotImplementedError
