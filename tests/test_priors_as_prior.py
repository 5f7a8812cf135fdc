import copy

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from torch import nn

from pyro_vae.priors import GaussianMixture, Horseshoe, StandardNormal, as_prior


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(2))

    def forward(self):
        return dist.Laplace(torch.zeros_like(self.rate), self.rate).to_event(1)


def mixture():
    component = dist.Normal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.3, 1.0]])).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(probs=torch.tensor([0.3, 0.7])), component)


def box():
    inner = dist.TransformedDistribution(
        dist.Uniform(torch.zeros(2), torch.ones(2)), [transforms.SigmoidTransform().inv]
    )
    return inner.to_event(1)


ACCEPTED = {
    "pyro": lambda: dist.Laplace(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1),
    "expanded": lambda: dist.StudentT(4.0).expand([2]).to_event(1),
    "full covariance": lambda: dist.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 1.0], [1.0, 1.0]])),
    "mixture": mixture,
    "transformed": box,
    "torch": lambda: torch.distributions.Independent(torch.distributions.Normal(torch.ones(2), 2.0), 1),
    "torch nested": lambda: torch.distributions.Independent(torch.distributions.LogNormal(torch.ones(2), 0.5), 1),
    "module": Learned,
    "function": lambda: lambda: dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_as_prior_accepts(case):
    given = ACCEPTED[case]()
    prior = as_prior(given)
    assert isinstance(prior, nn.Module)
    p = prior()
    assert p.batch_shape == () and p.event_shape == (2,)
    # Pyro's sample statement calls the distribution.
    z = p.expand_by((7,))()
    original = given if isinstance(given, torch.distributions.Distribution) else given()
    torch.testing.assert_close(p.log_prob(z), original.log_prob(z))
    assert torch.isfinite(p.log_prob(z)).all()


@pytest.mark.parametrize("case", [name for name in ACCEPTED if name != "function"])
def test_tensors_follow_the_module(case):
    prior = as_prior(ACCEPTED[case]())
    single = copy.deepcopy(prior).to(torch.float32)
    z = single().sample()
    assert z.dtype == torch.float32
    assert single().log_prob(z).dtype == torch.float32
    torch.testing.assert_close(single().log_prob(z).double(), prior().log_prob(z.double()), rtol=1e-4, atol=1e-4)
    # The distribution that was passed is the caller's: it stays as it was.
    assert prior().sample().dtype == torch.float64


def test_fixed_distribution_is_in_the_state_dict():
    one = as_prior(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    other = as_prior(dist.Normal(torch.ones(2), 3.0).to_event(1))
    z = torch.randn(5, 2)
    assert not torch.equal(one().log_prob(z), other().log_prob(z))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one().log_prob(z), other().log_prob(z))


def test_module_is_returned_itself():
    prior = Learned()
    assert as_prior(prior) is prior


def test_flow_inside_a_distribution_is_trained_saved_and_copied():
    flow = transforms.affine_coupling(2, hidden_dims=[8])
    prior = as_prior(dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow]))
    assert set(prior.parameters()) == set(flow.parameters())
    z = torch.randn(50, 2)
    copied = copy.deepcopy(prior)
    (-prior().log_prob(z).mean()).backward()
    assert any(weight.grad.abs().max() > 0 for weight in flow.parameters())
    before = copied().log_prob(z)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.1)
    assert torch.equal(copied().log_prob(z), before)
    assert not torch.equal(prior().log_prob(z), before)
    copied.load_state_dict(prior.state_dict())
    assert torch.equal(copied().log_prob(z), prior().log_prob(z))


class Homeless(dist.TorchDistribution):
    """A distribution of a user's who forgot to say where it lives."""

    arg_constraints = {}

    def __init__(self):
        super().__init__(torch.Size(), torch.Size((2,)))


class Announcing(Learned):
    def __init__(self, **announced):
        super().__init__()
        vars(self).update(announced)


def test_a_module_may_say_what_the_decoder_reads():
    prior = Announcing(features=lambda z: z[..., :1], num_features=1)
    assert as_prior(prior) is prior
    assert as_prior(horseshoe := Horseshoe(3)) is horseshoe
    assert as_prior(mixture := GaussianMixture(3)).num_features == 3 and mixture.features(z := torch.ones(3)) is z


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        pytest.param(dist.Normal(torch.zeros(8), 1.0), r"got batch shape \(8,\) .*\.to_event\(1\)", id="no event"),
        pytest.param(dist.Normal(0.0, 1.0), r"\.expand\(\[D\]\)\.to_event\(1\)", id="scalar"),
        pytest.param(dist.Normal(torch.zeros(3, 8), 1.0).to_event(1), r"batch shape \(3,\)", id="batch"),
        pytest.param(dist.Normal(torch.zeros(3, 8), 1.0).to_event(2), r"event shape \(3, 8\)", id="matrix"),
        pytest.param(lambda: torch.zeros(8), "return a Pyro distribution; got torch.Tensor", id="tensor"),
        pytest.param(
            lambda: torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            "Return pyro.distributions.MultivariateNormal",
            id="function returning torch's",
        ),
        pytest.param(dist.Normal(torch.zeros(0), 1.0).to_event(1), "at least one dimension", id="empty"),
        pytest.param(dist.Poisson(torch.ones(2)).to_event(1), "which is discrete. Sum discrete", id="discrete"),
        pytest.param(Homeless(), "Homeless has no support. Declare it", id="no support"),
        pytest.param(Announcing(features=lambda z: z), "features alone. Add num_features", id="features alone"),
        pytest.param(Announcing(num_features=2), "num_features alone. Add features", id="num_features alone"),
        pytest.param(
            Announcing(features=lambda z: z, num_features=0), "positive integer num_features", id="no features"
        ),
        pytest.param(8, "module or function returning one; got 8", id="number"),
        pytest.param(StandardNormal, "Call the class", id="class"),
        pytest.param(
            dist.Normal(torch.zeros(2, requires_grad=True), 1.0).to_event(1), "would not be trained", id="learnable"
        ),
    ],
)
def test_as_prior_refuses(prior, message):
    with pytest.raises(ValueError, match=message) as error:
        as_prior(prior)
    assert str(error.value).startswith("prior: ") and "\n" not in str(error.value)
