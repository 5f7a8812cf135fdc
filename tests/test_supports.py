import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from inference.supports import bijection, describe, is_unconstrained, same_support

BOX = dist.Uniform(-torch.ones(3), torch.ones(3)).to_event(1).support
REAL = dist.Normal(torch.zeros(3), 1.0).to_event(1).support

PAIRS = {
    "two ways to say R^D": (REAL, dist.MultivariateNormal(torch.zeros(3), torch.eye(3)).support, True),
    "one bound for all, or one each": (BOX, constraints.independent(constraints.interval(-1.0, 1.0), 1), True),
    "open and closed": (constraints.positive, constraints.nonnegative, True),
    "other bounds": (BOX, constraints.interval(-1.0, 2.0), False),
    "bounds of other sizes": (BOX, dist.Uniform(-torch.ones(2), torch.ones(2)).to_event(1).support, False),
    "two batches": (
        dist.Uniform(torch.zeros(5, 3), 1.0).to_event(1).support,
        dist.Uniform(torch.zeros(2, 3), 1.0).to_event(1).support,
        True,
    ),
    "a half-line and a box": (constraints.positive, constraints.interval(0.0, 1.0), False),
    "a box and R^D": (BOX, REAL, False),
    "whole numbers and reals": (constraints.nonnegative_integer, constraints.nonnegative, False),
    "simplex": (constraints.simplex, dist.Dirichlet(torch.ones(3)).support, True),
    "a mixture's": (
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
        ).support,
        REAL,
        True,
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_same_support(case):
    one, other, same = PAIRS[case]
    assert same_support(one, other) is same
    assert same_support(other, one) is same


def test_a_bijection_reaches_all_of_the_support_and_nothing_else():
    onto = bijection(BOX)
    z = onto(torch.linspace(-30, 30, 999).expand(3, -1).T)
    assert bool((z.abs() <= 1).all()) and z.min() < -0.999999 and z.max() > 0.999999
    assert bijection(REAL) is None
    assert is_unconstrained(REAL) and not is_unconstrained(BOX)


def test_no_bijection_onto_whole_numbers():
    with pytest.raises(ValueError, match=r"got integers\(0, inf\). Sum discrete variables out"):
        bijection(dist.Poisson(torch.ones(3)).to_event(1).support)


@pytest.mark.parametrize(
    ("support", "text"),
    [(REAL, "all real vectors"), (BOX, "interval(-1, 1)"), (constraints.positive, "interval(0, inf)")],
)
def test_describe(support, text):
    assert describe(support) == text
