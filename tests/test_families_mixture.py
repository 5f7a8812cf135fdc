"""Mixtures of independent normals, against closed forms."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from inference.families import MeanField, MixtureOfGaussians, family_of, from_noise, loc_and_tril


def mixture(size=2, count=3, batch=()):
    return dist.MixtureOfDiagNormals(
        torch.randn(*batch, count, size), torch.rand(*batch, count, size) + 0.2, torch.randn(*batch, count)
    )


def test_it_is_what_it_says():
    family = MixtureOfGaussians(2, num_components=3)
    row = 0.8 * torch.randn(family.num_params)
    loc, scale = row[:2].numpy(), np.exp(12 * np.tanh(row[2:4].numpy() / 12))
    distance = 1000 * np.tanh(row[4:10].reshape(3, 2).numpy() / 1000)
    relative = np.exp(8 * np.tanh(row[10:16].reshape(3, 2).numpy() / 8))
    odds = np.exp(12 * np.tanh(row[16:].numpy() / 12))
    z = torch.randn(7, 2)
    density = sum(
        odds[c] / odds.sum() * stats.norm(loc + scale * distance[c], scale * relative[c]).pdf(z.numpy()).prod(-1)
        for c in range(3)
    )
    torch.testing.assert_close(family(row).log_prob(z), torch.tensor(np.log(density)))
    theirs = dist.MixtureOfDiagNormals(family(row).locs, family(row).coord_scale, family(row).component_logits)
    torch.testing.assert_close(family(row).log_prob(z), theirs.log_prob(z))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_smaller_mixtures_are_members(count):
    q = mixture(count=count, batch=(4,)) if count > 1 else mixture(count=1, batch=(4,))
    family = MixtureOfGaussians(2, num_components=3)
    z = torch.randn(5, 4, 2)
    again = family(family.params_from(q))
    torch.testing.assert_close(again.log_prob(z), q.log_prob(z), rtol=1e-9, atol=1e-9)
    assert repr(family_of(q)) == f"MixtureOfGaussians(2, num_components={count})"


def test_larger_mixtures_lend_their_moments():
    q = mixture(count=5)
    family = MixtureOfGaussians(2, num_components=2)
    again = family(family.params_from(q))
    loc, tril = loc_and_tril(q)
    torch.testing.assert_close(again.mean, loc)
    torch.testing.assert_close(again.stddev, tril.norm(dim=-1))


def test_independent_normals_are_components_that_coincide():
    normal = MeanField(3)(torch.randn(4, 6))
    family = MixtureOfGaussians(3)
    row = family.params_from(normal).requires_grad_()
    torch.testing.assert_close(family(row).log_prob(torch.ones(4, 3)), normal.log_prob(torch.ones(4, 3)))
    z, log_q = from_noise(family(row), torch.randn(6, 4, 4))
    (z.sin().sum() + log_q.sum()).backward()
    assert row.grad.isfinite().all()


def test_moments_are_exact():
    q = mixture(batch=(4,))
    weights = q.component_logits.softmax(-1)
    loc, tril = loc_and_tril(q)
    for n in range(4):
        mean = sum(weights[n, c] * q.locs[n, c] for c in range(3))
        second = sum(
            weights[n, c] * (torch.outer(q.locs[n, c], q.locs[n, c]) + torch.diag(q.coord_scale[n, c].square()))
            for c in range(3)
        )
        torch.testing.assert_close(loc[n], mean)
        torch.testing.assert_close(tril[n] @ tril[n].T, second - torch.outer(mean, mean))
    family = MixtureOfGaussians(2)
    again = family(family.params_from(q))
    torch.testing.assert_close(again.mean, loc)
    torch.testing.assert_close(again.variance, tril.square().sum(-1))


def test_the_last_number_chooses_the_component():
    odds = torch.tensor([0.2, 0.5, 0.3]).log()
    q = dist.MixtureOfDiagNormals(torch.tensor([[-9.0], [0.0], [9.0]]), torch.ones(3, 1), odds)
    levels = torch.tensor([0.0001, 0.199, 0.201, 0.699, 0.701, 0.9999])
    noise = torch.stack([torch.zeros(6), torch.special.ndtri(levels)], -1)
    z, _ = from_noise(q, noise)
    assert z.squeeze(-1).tolist() == [-9, -9, 0, 0, 9, 9]


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_against_closed_forms(size):
    """Of E[z_d], E[z_d^2] and, through the weights alone, E[z_1 z_2]: within 4.5 standard errors of 40,000 draws."""
    num_draws = 40_000
    leaves = [value.requires_grad_() for value in (torch.randn(3, size), torch.rand(3, size) + 0.5, torch.randn(3))]
    moments = {
        "mean": lambda z: z[..., -1],
        "square": lambda z: z[..., -1].square(),
        "product": lambda z: z[..., 0] * z[..., -1],
    }
    locs, scales, logits = leaves
    weights = logits.softmax(-1)
    square = (weights * (locs[:, -1].square() + scales[:, -1].square())).sum()
    closed = {
        "mean": (weights * locs[:, -1]).sum(),
        "square": square,
        "product": (weights * locs[:, 0] * locs[:, -1]).sum() if size > 1 else square,
    }
    many = [leaf.detach().expand(num_draws, *leaf.shape).clone().requires_grad_() for leaf in leaves]
    locs, scales, logits = many
    family_q = MixtureOfGaussians(size)(torch.zeros(num_draws, MixtureOfGaussians(size).num_params))
    q = type(family_q)(locs, scales, logits)
    z, _ = from_noise(q, torch.randn(1, num_draws, size + 1))
    for name, f in moments.items():
        expected = torch.autograd.grad(closed[name], leaves, retain_graph=True, allow_unused=True)
        came = torch.autograd.grad(f(z).sum(), many, retain_graph=True)
        for a, b in zip(came, expected, strict=True):
            b = torch.zeros_like(a[0]) if b is None else b
            assert ((a.mean(0) - b).abs() < 4.5 * a.std(0) / math.sqrt(num_draws) + 1e-12).all(), name


def test_gradients_of_one_component_are_those_of_the_normal():
    row = torch.randn(5, 4).requires_grad_()
    noise = torch.randn(6, 5, 2)
    z, log_q = from_noise(MeanField(2)(row), noise)
    (expected,) = torch.autograd.grad(z.sin().sum() + (z * log_q.unsqueeze(-1)).sum(), row)
    family = MixtureOfGaussians(2, num_components=1)
    rows = torch.cat([row, torch.zeros(5, family.num_params - 4)], -1).detach().requires_grad_()
    z, log_q = from_noise(family(rows), torch.cat([noise, torch.zeros(6, 5, 1)], -1))
    (came,) = torch.autograd.grad(z.sin().sum() + (z * log_q.unsqueeze(-1)).sum(), rows)
    torch.testing.assert_close(came[:, :4], expected, rtol=1e-8, atol=1e-8)


def test_the_cold_start_is_spread():
    family = MixtureOfGaussians(3)
    q = family(family.initial_params(1, like=torch.zeros(0)))
    torch.testing.assert_close(q.mean, torch.zeros(1, 3))
    torch.testing.assert_close(q.variance, torch.ones(1, 3))
    assert (q.locs[0, 0] - q.locs[0, 1]).norm() > 0.1
