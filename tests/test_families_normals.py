"""The families of normals: what each says it is, what it takes from others, and their divergences."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch.distributions import kl_divergence

from inference.families import (
    LOG_SCALE,
    FullCovariance,
    HouseholderFlow,
    LowRank,
    MeanField,
    family_of,
    from_noise,
    loc_and_tril,
)

NORMALS = {
    "mean-field": MeanField,
    "full-covariance": FullCovariance,
    "low-rank": LowRank,
    "householder": lambda size: HouseholderFlow(size, num_layers=3),
}


@pytest.fixture(params=NORMALS)
def make(request):
    return NORMALS[request.param]


def random_params(family, *batch, scale=0.7):
    return scale * torch.randn(*batch, family.num_params)


def test_numbers_of_parameters():
    assert [MeanField(d).num_params for d in (1, 2, 8)] == [2, 4, 16]
    assert [FullCovariance(d).num_params for d in (1, 2, 8)] == [2, 5, 44]
    assert [LowRank(d, rank=3).num_params for d in (1, 2, 8)] == [3, 8, 40]
    assert [HouseholderFlow(d, num_layers=3).num_params for d in (1, 2, 8)] == [5, 10, 40]
    assert LowRank(8, rank=3).num_noise == 11 and LowRank(2, rank=3).num_noise == 4


def test_mean_field_is_what_it_says():
    params = torch.tensor([[0.3, -1.0, 0.2, -0.4]])
    q = MeanField(2)(params)
    torch.testing.assert_close(q.mean, params[:, :2])
    torch.testing.assert_close(q.stddev.log(), 12 * torch.tanh(params[:, 2:] / 12))


def test_full_covariance_is_what_it_says():
    family = FullCovariance(3)
    params = random_params(family, 1)
    loc, raw, odds = params[0, :3], params[0, 3:6], params[0, 6:]
    a = [1000 * math.tanh(value / math.sqrt(3) / 1000) for value in odds.tolist()]
    factor = torch.tensor([[1.0, 0, 0], [a[0], 1, 0], [a[1], a[2], 1]])
    factor = factor / factor.square().sum(1, keepdim=True).sqrt()
    scale = (12 * torch.tanh(raw / 12)).exp()
    covariance = scale[:, None] * (factor @ factor.T) * scale
    q = family(params)
    torch.testing.assert_close(q.covariance_matrix[0], covariance)
    torch.testing.assert_close(q.mean[0], loc)
    # The marginals do not depend on the correlations, and without them it is the mean-field member.
    torch.testing.assert_close(q.stddev[0], scale)
    apart = torch.cat([params[:, :6], torch.zeros(1, 3)], 1)
    z = torch.randn(7, 1, 3)
    torch.testing.assert_close(family(apart).log_prob(z), MeanField(3)(params[:, :6]).log_prob(z))


def test_low_rank_is_what_it_says():
    family = LowRank(3, rank=2)
    row = random_params(family)
    scale = np.exp(12 * np.tanh(row[3:6].numpy() / 12))
    a = 1000 * np.tanh(row[6:].reshape(3, 2).numpy() / math.sqrt(2) / 1000)
    length = np.sqrt(1 + (a**2).sum(1))
    covariance = np.diag(scale / length) @ (np.eye(3) + a @ a.T) @ np.diag(scale / length)
    q = family(row)
    z = torch.randn(7, 3)
    expected = stats.multivariate_normal(row[:3].numpy(), covariance).logpdf(z.numpy())
    torch.testing.assert_close(q.log_prob(z), torch.tensor(expected))
    torch.testing.assert_close(q.covariance_matrix, torch.tensor(covariance))
    torch.testing.assert_close(q.stddev, torch.tensor(scale))
    draws, log_q = from_noise(q, torch.randn(7, 5))
    expected = stats.multivariate_normal(row[:3].numpy(), covariance).logpdf(draws.numpy())
    torch.testing.assert_close(log_q, torch.tensor(expected))


def test_householder_is_what_it_says():
    family = HouseholderFlow(3, num_layers=2)
    row = random_params(family)
    turn = np.eye(3)
    for v in row[6:].reshape(2, 3).numpy():
        turn = (np.eye(3) - 2 * np.outer(v, v) / (v @ v)) @ turn
    covariance = turn @ np.diag(np.exp(24 * np.tanh(row[3:6].numpy() / 12))) @ turn.T
    q = family(row)
    z = torch.randn(7, 3)
    expected = stats.multivariate_normal(row[:3].numpy(), covariance).logpdf(z.numpy())
    torch.testing.assert_close(q.log_prob(z), torch.tensor(expected))
    torch.testing.assert_close(q.variance, torch.tensor(np.diag(covariance).copy()))
    loc, tril = loc_and_tril(q)
    torch.testing.assert_close(loc, row[:3])
    torch.testing.assert_close(tril, torch.tensor(np.linalg.cholesky(covariance)))


def covariances(*batch, size=3):
    root = torch.randn(*batch, size, size)
    return root @ root.mT + 0.1 * torch.eye(size)


def normal():
    return dist.Normal(torch.randn(4, 3), torch.rand(4, 3) + 0.1).to_event(1)


def multivariate():
    return dist.MultivariateNormal(torch.randn(4, 3), covariance_matrix=covariances(4))


def expanded():
    return dist.MultivariateNormal(torch.randn(3), covariance_matrix=covariances()).expand([4])


def low_rank():
    return dist.LowRankMultivariateNormal(torch.randn(4, 3), torch.randn(4, 3, 2), torch.rand(4, 3) + 0.1)


def householder():
    family = HouseholderFlow(3)
    return family(random_params(family, 4))


SOME = [normal, multivariate, expanded, low_rank, householder]


@pytest.mark.parametrize("make_q", SOME, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "family", [FullCovariance(3), LowRank(3, rank=3), HouseholderFlow(3), HouseholderFlow(3, num_layers=5)], ids=repr
)
def test_families_that_contain_every_normal(make_q, family):
    """Two reflections turn any axes in three dimensions, three columns make any covariance."""
    q = make_q()
    again = family(family.params_from(q))
    z = torch.randn(5, 4, 3)
    torch.testing.assert_close(again.log_prob(z), q.log_prob(z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make_q", SOME, ids=lambda f: f.__name__)
def test_mean_field_takes_the_moments(make_q):
    family, q = MeanField(3), make_q()
    again = family(family.params_from(q))
    torch.testing.assert_close(again.mean, q.mean)
    torch.testing.assert_close(again.variance, q.variance)


@pytest.mark.parametrize("make_q", [normal, low_rank], ids=lambda f: f.__name__)
def test_low_rank_reproduces_no_more_columns_than_its_own(make_q):
    family, q = LowRank(3, rank=2), make_q()
    again = family(family.params_from(q))
    z = torch.randn(5, 4, 3)
    torch.testing.assert_close(again.log_prob(z), q.log_prob(z), rtol=1e-8, atol=1e-8)


def test_low_rank_takes_the_leading_correlations():
    """With one common correlation, one column is exact: the eigenvalues left over are equal."""
    covariance = 0.3 * torch.eye(4) + 0.7
    q = dist.MultivariateNormal(torch.ones(4), covariance_matrix=4 * covariance)
    again = LowRank(4, rank=1)(LowRank(4, rank=1).params_from(q))
    torch.testing.assert_close(again.covariance_matrix, 4 * covariance)
    closer = [
        (LowRank(3, rank=r)(LowRank(3, rank=r).params_from(q)).covariance_matrix - q.covariance_matrix).norm().item()
        for q in [multivariate()]
        for r in (1, 2, 3)
    ]
    assert closer[0] > closer[1] > closer[2] and closer[2] < 1e-6


def test_params_from_takes_the_moments_of_other_distributions(make):
    q = dist.Gamma(torch.full((4, 3), 2.0), 3.0).to_event(1)
    family = make(3)
    again = family(family.params_from(q))
    torch.testing.assert_close(again.mean, q.mean)
    torch.testing.assert_close(again.variance, q.variance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_params_from_takes_members_at_the_bounds(make, dtype):
    family = make(3).to(dtype)
    params = torch.full((2, family.num_params), 1e4, dtype=dtype)
    params[1] = -1e4
    params[:, :3] = 0.5
    q = family(params)
    rows = family.params_from(q)
    assert rows.isfinite().all()
    torch.testing.assert_close(family(rows).stddev, q.stddev, rtol=1e-3, atol=0)


@pytest.mark.parametrize("raw", [1e38, -1e38, 1e3, -1e3], ids=str)
def test_scales_stay_within_their_stated_range(make, raw):
    family = make(3).float()
    params = torch.full((family.num_params,), raw, dtype=torch.float32)
    log_scale = family(params).stddev.log()
    assert (log_scale.abs() <= LOG_SCALE * (1 + 1e-4)).all() and (log_scale.sign() == math.copysign(1, raw)).all()


@pytest.mark.parametrize(
    ("q", "kind"),
    [
        (lambda: dist.Normal(torch.zeros(2, 3), 1.0).to_event(1), "MeanField(3)"),
        (lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1).expand([2]), "MeanField(3)"),
        (lambda: dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3)), "FullCovariance(3)"),
        (low_rank, "LowRank(3, rank=2)"),
        (householder, "HouseholderFlow(3, num_layers=2)"),
    ],
    ids=["normal", "expanded", "multivariate", "low rank", "householder"],
)
def test_family_of(q, kind):
    assert repr(family_of(q())) == kind


def test_a_correlation_that_is_none():
    tril = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    with pytest.raises(ValueError, match="correlation factor of q: expected magnitudes below 1000; got 1e\\+04"):
        FullCovariance(2).params_from(dist.MultivariateNormal(torch.zeros(2), scale_tril=tril))


@pytest.mark.parametrize("make", [FullCovariance, LowRank], ids=lambda c: c.__name__)
def test_a_nearly_singular_covariance_costs_no_digits(make):
    family = make(2)
    row = torch.tensor([0.0, 0.0, 2.0, -3.0, *[900.0, 901.0, -905.0, -900.0][: family.num_params - 4]])
    noise = torch.randn(50, family.num_noise)
    z, exact = from_noise(family(row), noise)
    single = from_noise(family.float()(row.float()), noise.float())[1]
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)


def test_low_rank_is_stable_in_float32():
    """Columns that nearly coincide, 500 times the diagonal: torch's own class cannot even be made of them."""
    family = LowRank(6, rank=2)
    row = random_params(family)
    row[12:] = 500.0 + torch.randn(12)
    noise = torch.randn(20, 8)
    z, exact = from_noise(family(row), noise)
    q = family.float()(row.float())
    torch.testing.assert_close(from_noise(q, noise.float())[1].double(), exact, rtol=0, atol=1e-2)
    assert (q.log_prob(z.float()).double() - exact).abs().max() < 1.0


@pytest.mark.parametrize(
    "family",
    [FullCovariance(2), LowRank(2, rank=1), LowRank(2), HouseholderFlow(2, num_layers=1), HouseholderFlow(2)],
    ids=repr,
)
def test_the_cold_start_is_no_saddle(family):
    """Without any noise to break a symmetry, descent on the divergence from a correlated normal all but reaches it."""
    target = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    row = family.initial_params(1, like=torch.zeros(0)).requires_grad_()
    optimizer = torch.optim.Adam([row], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loc, tril = loc_and_tril(family(row))
        divergence = kl_divergence(dist.MultivariateNormal(loc, scale_tril=tril), target).sum()
        divergence.backward()
        optimizer.step()
    assert divergence.item() < 0.02


# Divergences ----------------------------------------------------------------------------------------------------------


def full(size=3, batch=4):
    return FullCovariance(size)(random_params(FullCovariance(size), batch))


PAIRS = {
    "mean-field": lambda: MeanField(3)(random_params(MeanField(3), 4)),
    "full covariance": full,
    "low rank": lambda: LowRank(3)(random_params(LowRank(3), 4)),
    "torch's low rank": low_rank,
    "householder": householder,
}
TARGETS = {"independent": normal, "dense": multivariate, "low rank": low_rank}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PAIRS)
def test_divergences_of_normals(name, target):
    p, q = PAIRS[name](), TARGETS[target]()
    if (name, target) in (("householder", "dense"), ("householder", "low rank")):
        with pytest.raises(NotImplementedError):
            kl_divergence(p, q)
        return
    (p_loc, p_tril), (q_loc, q_tril) = loc_and_tril(p), loc_and_tril(q)
    for n in range(4):
        sigma = p_tril[n].numpy() @ p_tril[n].numpy().T
        other = q_tril[n].numpy() @ q_tril[n].numpy().T
        away = (q_loc - p_loc)[n].numpy()
        expected = 0.5 * (
            np.trace(np.linalg.solve(other, sigma))
            + away @ np.linalg.solve(other, away)
            - 3
            + np.linalg.slogdet(other)[1]
            - np.linalg.slogdet(sigma)[1]
        )
        assert kl_divergence(p, q)[n].item() == pytest.approx(expected, rel=1e-7)


def test_the_divergence_in_one_dimension(make):
    family = make(1)
    row = family.params_from(dist.Normal(torch.tensor([1.5]), 0.4).to_event(1))
    prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    expected = 0.5 * (0.4**2 + 1.5**2 - 1 - math.log(0.4**2))
    assert kl_divergence(family(row), prior).item() == pytest.approx(expected)


def test_no_closed_form_is_made_up():
    laplace = dist.Laplace(torch.zeros(3), 1.0).to_event(1)
    matrix = dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)
    for q in (full(), LowRank(3)(torch.zeros(2, 12)), householder()):
        for other in (laplace, matrix):
            with pytest.raises(NotImplementedError):
                kl_divergence(q, other)


def test_trace_mean_field_elbo_has_no_noise_in_the_divergence(make):
    """With nothing observed the loss is the divergence itself, exactly, whatever the draw."""
    family = make(3)
    params = random_params(family, 4)
    prior = dist.Normal(torch.tensor([0.2, 0.0, -0.3]), torch.tensor([1.0, 2.0, 0.5])).to_event(1)

    def model():
        with pyro.plate("data", 4, dim=-1):
            pyro.sample("z", prior)

    def guide():
        with pyro.plate("data", 4, dim=-1):
            pyro.sample("z", family(params))

    losses = torch.tensor([TraceMeanField_ELBO().loss(model, guide) for _ in range(5)])
    loc, tril = loc_and_tril(family(params))
    variance = prior.variance
    expected = 0.5 * (
        ((tril.square().sum(-1) + (loc - prior.mean).square()) / variance - 1 + variance.log()).sum()
        - 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum()
    )
    torch.testing.assert_close(losses, expected.expand(5), rtol=1e-9, atol=1e-9)
