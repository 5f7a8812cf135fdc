"""Draws made from noise, of the families' distributions and of a user's."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms as T

from inference.families import FullCovariance, family_of, from_noise, loc_and_tril, noise_size


def affine(base_of):
    def make_q(loc, scale):
        return dist.TransformedDistribution(base_of(loc, scale), [T.AffineTransform(0.5, -2.0)])

    return make_q


DRAWN = {
    "normal": lambda loc, scale: dist.Normal(loc, scale).to_event(1),
    "multivariate": lambda loc, scale: FullCovariance(2)(torch.cat([loc, scale.log(), scale[..., :1]], -1)),
    "low rank": lambda loc, scale: dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1), scale.square()),
    "mixture": lambda loc, scale: dist.MixtureOfDiagNormals(
        torch.stack([loc, loc + 1.0], -2),
        torch.stack([scale, 2 * scale], -2),
        torch.stack([loc[..., 0], -loc[..., 0]], -1),
    ),
    "affine": affine(lambda loc, scale: dist.Normal(loc, scale).to_event(1)),
    "affine of multivariate": affine(lambda loc, scale: DRAWN["multivariate"](loc, scale)),
    "affine, one scale a dimension": lambda loc, scale: dist.TransformedDistribution(
        dist.Normal(loc, scale).to_event(1), [T.AffineTransform(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.2]))]
    ),
    "log-normal": lambda loc, scale: dist.LogNormal(loc, scale).to_event(1),
    "independent of transformed": lambda loc, scale: dist.TransformedDistribution(
        dist.Normal(loc, scale), [T.TanhTransform()]
    ).to_event(1),
    "transformed of independent": lambda loc, scale: dist.TransformedDistribution(
        dist.Normal(loc, scale).to_event(1), [T.SigmoidTransform(), T.AffineTransform(-1.0, 3.0)]
    ),
    "triangular": lambda loc, scale: dist.TransformedDistribution(
        dist.Normal(loc, scale),
        [dist.transforms.LowerCholeskyAffine(torch.ones(2), torch.tensor([[2.0, 0.0], [0.7, 0.5]]))],
    ),
}
# One number more for the component, or for the one column.
SIZES = {"mixture": 3, "low rank": 3}


@pytest.fixture(params=DRAWN, ids=lambda name: name.replace(" ", "-"))
def name(request):
    return request.param


def mixture_same_family(q):
    parts = dist.Normal(q.locs, q.coord_scale).to_event(1)
    return torch.distributions.MixtureSameFamily(dist.Categorical(logits=q.component_logits), parts)


def moderate(batch=5):
    return 0.3 * torch.randn(batch, 2), torch.rand(batch, 2) * 0.5 + 0.3


def test_from_noise_gives_log_q(name):
    q = DRAWN[name](*moderate())
    assert noise_size(q) == SIZES.get(name, 2)
    z, log_q = from_noise(q, torch.randn(7, 5, noise_size(q)))
    torch.testing.assert_close(log_q, q.log_prob(z), rtol=1e-8, atol=1e-8)


def test_from_noise_without_a_batch(name):
    loc, scale = moderate(1)
    q = DRAWN[name](loc[0], scale[0])
    z, log_q = from_noise(q, torch.randn(7, noise_size(q)))
    assert z.shape == (7, 2) and log_q.shape == (7,)
    torch.testing.assert_close(log_q, q.log_prob(z), rtol=1e-8, atol=1e-8)


def test_from_noise_has_the_right_law(name):
    """Means and second moments of 20,000 draws from noise against as many of Pyro's own: within 4 standard errors."""
    q = DRAWN[name](*moderate(2))
    num_draws = 20_000
    ours, _ = from_noise(q, torch.randn(num_draws, 2, noise_size(q)))
    # Pyro's mixture draws only as many as its batch is long.
    theirs = mixture_same_family(q).sample((num_draws,)) if name == "mixture" else q.sample((num_draws,))
    for statistic in (lambda z: z, torch.square, lambda z: z.prod(-1)):
        a, b = statistic(ours), statistic(theirs)
        se = ((a.var(0) + b.var(0)) / num_draws).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * se).all()


def test_moments_are_those_of_draws(name):
    """Mean and covariance of 40,000 draws: within 4 standard errors, and 0.05 where the moments are drawn too."""
    q = DRAWN[name](*moderate(2))
    num_draws = 40_000
    z, _ = from_noise(q, torch.randn(num_draws, 2, noise_size(q)))
    loc, tril = loc_and_tril(q)
    try:
        known = bool(q.mean.isfinite().all()) or 0.0
    except NotImplementedError:
        known = name in SIZES
    slack = 0.0 if known else 0.05
    assert ((z.mean(0) - loc).abs() < 4 * z.std(0) / math.sqrt(num_draws) + slack).all()
    products = (z - loc).unsqueeze(-1) * (z - loc).unsqueeze(-2)
    se = products.std(0) / math.sqrt(num_draws)
    difference = (products.mean(0) - tril @ tril.mT).abs()
    assert (difference < 4 * se + slack * tril.norm(dim=-1).amax().square()).all()


def test_moments_of_draws_are_always_the_same():
    q = DRAWN["affine"](*moderate())
    state = torch.random.get_rng_state()
    one, two = loc_and_tril(q), loc_and_tril(q)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    alone = loc_and_tril(DRAWN["affine"](q.base_dist.mean[2], q.base_dist.stddev[2]))
    torch.testing.assert_close(alone[1], one[1][2], rtol=1e-9, atol=1e-9)
    # Antithetic pairs: of an affine image the mean is exact.
    torch.testing.assert_close(one[0], 0.5 - 2 * q.base_dist.mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "mixture"])
def test_gradients_are_those_of_rsample(name, monkeypatch):
    """The same noise through Pyro's own reparametrised sampler gives the same draws and the same gradients."""
    loc, scale = moderate()
    # torch's samplers take their noise from one of these; the low-rank one takes the column's first.
    own, column = torch.randn(7, 5, 2), torch.randn(7, 5, 1)
    low_rank = iter([column, own])
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: own)
    monkeypatch.setattr("torch.distributions.multivariate_normal._standard_normal", lambda *_, **__: own)
    monkeypatch.setattr(
        "torch.distributions.lowrank_multivariate_normal._standard_normal", lambda *_, **__: next(low_rank)
    )
    leaves = [loc.requires_grad_(), scale.requires_grad_()]
    q = DRAWN[name](*leaves)
    ours, log_q = from_noise(q, torch.cat([own, column], -1)[..., : noise_size(q)])
    theirs = q.rsample((7,))
    torch.testing.assert_close(ours, theirs)

    def gradients(z, log_q):
        return torch.autograd.grad((z.sin() * torch.tensor([1.0, 2.0])).sum() + log_q.sum(), leaves, retain_graph=True)

    torch.testing.assert_close(gradients(ours, log_q), gradients(theirs, q.log_prob(theirs)), rtol=1e-7, atol=1e-7)


def test_noise_for_an_unknown_distribution():
    with pytest.raises(NotImplementedError, match="cannot draw a Gamma from standard normal noise.*Register"):
        from_noise(dist.Gamma(torch.ones(2, 3), 1.0).to_event(1), torch.zeros(1, 2, 3))


@pytest.mark.parametrize(
    "q",
    [
        lambda: dist.Gamma(torch.ones(2, 3), 1.0).to_event(1),
        lambda: dist.Normal(torch.zeros(2, 3, 3), 1.0).to_event(2),
        lambda: dist.LogNormal(torch.zeros(2, 3), 1.0).to_event(1),
        lambda: dist.Dirichlet(torch.ones(2, 3)),
    ],
    ids=["gamma", "matrix", "log-normal", "dirichlet"],
)
def test_family_that_cannot_be_read_off(q):
    with pytest.raises(ValueError, match=r"family: cannot be read off a \w+ .* Pass family="):
        family_of(q())
