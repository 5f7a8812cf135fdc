import copy
import io
import pickle

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from pyro_vae import parts
from pyro_vae.priors import DiagonalNormal, StandardNormal, as_prior


def make(name, num_latents):
    prior = parts.build(parts.options("prior", name), {"num_latents": num_latents})
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return prior


names = pytest.mark.parametrize("name", parts.catalog("prior"))


@names
def test_shapes(name):
    p = make(name, 3)()
    assert p.batch_shape == () and p.event_shape == (3,)
    assert isinstance(p, TorchDistributionMixin)
    assert p.expand((4, 5)).sample().shape == (4, 5, 3)
    assert p.log_prob(torch.randn(4, 5, 3)).shape == (4, 5)


@names
@pytest.mark.parametrize("num_latents", [1, 2])
def test_density_integrates_to_one(name, num_latents):
    grid = torch.linspace(-40, 40, 80_001 if num_latents == 1 else 1601)
    z = torch.cartesian_prod(*[grid] * num_latents).reshape(-1, num_latents)
    mass = make(name, num_latents)().log_prob(z).exp().sum() * (grid[1] - grid[0]) ** num_latents
    assert mass.item() == pytest.approx(1, abs=1e-3)


@names
def test_draws_agree_with_the_density(name):
    p = make(name, 2)()
    z = p.sample((40_000,))
    # E[exp(-|z|^2)] by draws and by quadrature.
    grid = torch.linspace(-10, 10, 801)
    points = torch.cartesian_prod(grid, grid)
    weight = (-points.square().sum(-1)).exp()
    exact = (p.log_prob(points).exp() * weight).sum() * (grid[1] - grid[0]) ** 2
    draws = (-z.square().sum(-1)).exp()
    assert abs(draws.mean() - exact) < 4 * draws.std() / 200


@names
def test_gradients_reach_every_parameter(name):
    prior = make(name, 3)
    z = torch.randn(5, 3, requires_grad=True)
    prior().log_prob(z).sum().backward()
    assert z.grad.abs().max() > 0
    for parameter, weight in prior.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, parameter


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_save_load_and_repr(name, dtype):
    prior = make(name, 3).to(dtype)
    z = torch.randn(5, 3, dtype=dtype)
    assert prior().sample().dtype == dtype and prior().log_prob(z).dtype == dtype
    file = io.BytesIO()
    torch.save(prior.state_dict(), file)
    file.seek(0)
    other = make(name, 3).to(dtype)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other().log_prob(z), prior().log_prob(z))
    assert torch.equal(pickle.loads(pickle.dumps(prior))().log_prob(z), prior().log_prob(z))
    assert repr(prior) == f"{type(prior).__name__}(3)"


@names
@pytest.mark.parametrize("size", [0, -2, 1.5, True])
def test_bad_size(name, size):
    with pytest.raises(ValueError, match=f"num_latents: expected a positive integer; got {size}"):
        parts.catalog("prior")[name](size)


def test_standard_normal_is_standard():
    z = torch.randn(5, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(StandardNormal(3)().log_prob(z), expected)
    assert not list(StandardNormal(3).parameters())


def test_diagonal_normal_starts_standard_and_learns():
    prior = DiagonalNormal(2)
    z = torch.tensor([3.0, -1.0]) + torch.tensor([0.2, 5.0]) * torch.randn(2000, 2)
    torch.testing.assert_close(prior().log_prob(z), StandardNormal(2)().log_prob(z))
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (-prior().log_prob(z).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(prior.loc, z.mean(0), atol=1e-2, rtol=0)
    torch.testing.assert_close(prior.scale, z.std(0, correction=0), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [-1e30, -300.0, 300.0, 1e30])
def test_no_real_number_breaks_the_learned_scale(raw, dtype):
    prior = DiagonalNormal(2).to(dtype)
    with torch.no_grad():
        prior.raw_scale.fill_(raw)
    assert (prior.scale > 0).all()
    assert prior().log_prob(prior().sample()).isfinite()


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
