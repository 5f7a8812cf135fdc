"""Families pushed onto a support."""

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import biject_to, constraints

from inference.families import Constrained, FullCovariance, MeanField, family_of, from_noise, loc_and_tril

LOW, HIGH = torch.tensor([-1.0, 0.0, 5.0]), torch.tensor([1.0, 10.0, 5.5])
SUPPORTS = {
    "interval": constraints.interval(-1.0, 2.0),
    "vector bounds": constraints.interval(LOW, HIGH),
    "half open": constraints.half_open_interval(0.0, 1.0),
    "unit": constraints.unit_interval,
    "positive": constraints.positive,
    "nonnegative": constraints.nonnegative,
    "above": constraints.greater_than(3.0),
    "below": constraints.less_than(3.0),
    "of a vector": constraints.independent(constraints.interval(-1.0, 2.0), 1),
    "real": constraints.real_vector,
}


@pytest.fixture(params=SUPPORTS, ids=lambda name: name.replace(" ", "-"))
def support(request):
    return SUPPORTS[request.param]


def test_it_is_the_image_of_the_family_on_r(support):
    family = Constrained(MeanField(3), support)
    params = torch.randn(5, 6)
    q = family(params)
    base = MeanField(3)(params)
    whole = support if support.event_dim else constraints.independent(support, 1)
    theirs = dist.TransformedDistribution(base, [biject_to(whole)])
    noise = torch.randn(7, 5, 3)
    z, log_q = from_noise(q, noise)
    torch.testing.assert_close(z, biject_to(whole)(from_noise(base, noise)[0]))
    torch.testing.assert_close(q.log_prob(z), theirs.log_prob(z), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_q, theirs.log_prob(z), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(q.unconstrained.mean, base.mean)
    assert family.support.event_dim == 1 and family.support.check(z).all() and q.support.check(z).all()
    # Rows come from a distribution that someone else pushed, too.
    for other in (q, theirs):
        torch.testing.assert_close(family.params_from(other), params, rtol=1e-6, atol=1e-6)
    assert repr(family_of(q)) == repr(family)


def test_a_log_normal_is_one():
    q = Constrained(MeanField(1), constraints.positive)(torch.tensor([0.3, 0.0]))
    z = torch.tensor([[0.1], [1.0], [4.0]])
    expected = stats.lognorm(1.0, scale=torch.tensor(0.3).exp()).logpdf(z.squeeze(-1))
    torch.testing.assert_close(q.log_prob(z), torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loc", [50.0, -50.0, 1e4, -3e38], ids=str)
def test_draws_never_reach_the_boundary(support, loc, dtype):
    family = Constrained(FullCovariance(3), support).to(dtype)
    params = torch.zeros(family.num_params, dtype=dtype)
    params[:3] = loc
    q = family(params.requires_grad_())
    z, log_q = from_noise(q, torch.randn(20, 3, dtype=dtype))
    assert z.isfinite().all() and log_q.isfinite().all()
    assert family.support.check(z).all()
    log_p = q.log_prob(z.detach())
    assert not log_p.isnan().any()
    for bound in ("lower_bound", "upper_bound"):
        edge = getattr(family.support.base_constraint, bound, None)
        if edge is not None:
            edge = torch.as_tensor(edge, dtype=dtype)
            assert (z != edge).all()
            assert not q.log_prob(edge.expand(3)).isnan()
            assert q.log_prob(edge.expand(3)).isfinite() or abs(loc) > 1e30


def test_moments_carried_to_r():
    """Of a distribution on the support that is nobody's image: nearly exact where the bijection is nearly straight."""
    family = Constrained(FullCovariance(3), constraints.interval(0.0, 1.0))
    # Beta(2000, 1000), so that its standard deviation is 0.01.
    q = dist.Beta(torch.full((4, 3), 2000.0), 1000.0).to_event(1)
    loc, tril = loc_and_tril(family(family.params_from(q)))
    torch.testing.assert_close(loc, q.mean, rtol=1e-3, atol=0)
    torch.testing.assert_close(tril.norm(dim=-1), q.stddev, rtol=0.05, atol=0)


def test_bounds_follow_the_family():
    family = Constrained(MeanField(3), SUPPORTS["vector bounds"]).float()
    assert family.support.base_constraint.lower_bound.dtype == torch.float32
    assert family(torch.zeros(6, dtype=torch.float32)).sample().dtype == torch.float32
    assert repr(family) == "Constrained(MeanField(3), interval([-1, 0, 5], [1, 10, 5.5]))"
    assert repr(Constrained(MeanField(2), constraints.positive)) == "Constrained(MeanField(2), interval(0, inf))"


@pytest.mark.parametrize(
    ("family", "support", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), constraints.positive, "family: expected a family on R\\^D; got Linear"),
        (
            lambda: Constrained(MeanField(3), constraints.positive),
            constraints.positive,
            "family: expected a family on R\\^D; got Constrained",
        ),
        (lambda: MeanField(3), constraints.simplex, "support: expected a constraint that each number .* got Simplex"),
        (lambda: MeanField(3), constraints.boolean, "support: expected a constraint that each number"),
        (lambda: MeanField(3), constraints.nonnegative_integer, "support: expected a constraint that each number"),
        (
            lambda: MeanField(3),
            constraints.interval(torch.zeros(2), 1.0),
            r"support: expected bounds that are numbers or have shape \(3,\); got \(2,\)",
        ),
    ],
    ids=["no family", "twice", "simplex", "boolean", "integers", "wrong size"],
)
def test_bad_arguments(family, support, message):
    with pytest.raises(ValueError, match=message):
        Constrained(family(), support)


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (
            lambda: dist.Normal(torch.zeros(2, 3), 1.0).to_event(1),
            r"on interval\(-1, 2\); got a \w+ on all real vectors",
        ),
        (lambda: dist.Beta(torch.ones(2, 3), 1.0).to_event(1), r"got a \w+ on interval\(0, 1\)"),
        (lambda: dist.Uniform(-torch.ones(2, 2), 2.0).to_event(1), r"event shape \(3,\)"),
    ],
    ids=["unconstrained", "elsewhere", "other size"],
)
def test_distributions_it_cannot_be(q, message):
    with pytest.raises(ValueError, match=message):
        Constrained(MeanField(3), constraints.interval(-1.0, 2.0)).params_from(q())
