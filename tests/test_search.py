import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.autograd.functional import hessian
from torch.distributions import MultivariateNormal, kl_divergence

from inference import FullCovariance, MeanField, PlanarFlow, Search, refine
from inference.families import Constrained, loc_and_tril
from inference.noise import OrthogonalNoise
from inference.objectives import IWAE, LocalLoss
from inference.rows import RowAdam, RowNatural, optimizer_for
from inference.search import Problem, filled, looks

FAMILIES = [MeanField(3), FullCovariance(1), FullCovariance(4)]


def fisher(family, row):
    """The Fisher information of normals: the curvature of the divergence from q at the row, where it is zero."""
    loc, tril = loc_and_tril(family(row))
    still = MultivariateNormal(loc, scale_tril=tril)

    def divergence(other):
        q = family(other)
        tril = torch.diag_embed(q.stddev) if isinstance(family, MeanField) else q.scale_tril
        return kl_divergence(still, MultivariateNormal(q.mean, scale_tril=tril))

    return hessian(divergence, row)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_the_natural_direction_is_the_inverse_of_the_fisher_information_times_the_gradient(family, size):
    rows, grads = size * torch.randn(4, family.num_params), torch.randn(4, family.num_params)
    expected = [torch.linalg.solve(fisher(family, row), grad) for row, grad in zip(rows, grads, strict=True)]
    torch.testing.assert_close(family.natural_direction(rows, grads), torch.stack(expected), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_fisher_information_is_the_mean_square_of_the_score(family):
    row = torch.randn(family.num_params)
    z = family(row).sample((20_000,))
    rows = row.expand(len(z), -1).clone().requires_grad_()
    (score,) = torch.autograd.grad(family(rows).log_prob(z).sum(), rows)
    exact = fisher(family, row)
    scale = exact.diagonal().sqrt()
    error = (score.mT @ score / len(z) - exact) / scale / scale.unsqueeze(-1)
    assert error.abs().max() < 5 * (15 / len(z)) ** 0.5


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_a_natural_step_stays_within_its_reach(family):
    rows, grads = torch.randn(64, family.num_params), 1e3 * torch.randn(64, family.num_params)
    step = family.natural_direction(rows, grads, reach=0.01, stretch=torch.full((64, 1), 0.01))
    before, after = family(rows), family(rows + step)
    assert ((after.mean - before.mean).abs() / before.stddev).max() < 0.011 * family.num_latents**0.5
    assert (after.stddev / before.stddev).log().abs().max() < 0.011
    assert (step != 0).any(-1).all()


def test_a_bijection_leaves_the_natural_direction_and_flows_offer_none():
    rows, grads = torch.randn(5, 6), torch.randn(5, 6)
    pushed = Constrained(MeanField(3), dist.constraints.positive)
    assert torch.equal(pushed.natural_direction(rows, grads), MeanField(3).natural_direction(rows, grads))
    flow = PlanarFlow(2)
    row = flow.initial_params(1, like=torch.zeros(0))
    assert flow.natural_direction(row, row) is None
    assert isinstance(optimizer_for(flow, 3, like=row)[0], RowAdam)
    assert isinstance(optimizer_for(pushed, 3, like=row)[0], RowNatural)
    with pytest.raises(ValueError, match="offers natural gradients; got PlanarFlow"):
        RowNatural(flow, 1, like=row).step(row, row, torch.tensor([0]), lr=1.0)


@pytest.mark.parametrize("size", [1, 5, 20])
def test_orthogonal_noise_is_normal(size):
    index = torch.arange(640)
    draws = OrthogonalNoise(0, "a", size, like=torch.zeros(0)).draw(index, 40, first=7)
    # Over blocks, since directions are shared inside one: 40 x 10 x size numbers at least.
    assert draws.mean().abs() < 4 / (400 * size) ** 0.5
    for power, moment in ((2, 1.0), (4, 3.0), (6, 15.0)):
        assert abs(draws.pow(power).mean() - moment) < 0.15 * moment
    radii = draws.square().sum(-1)
    assert abs(radii.var() / (2 * size) - 1) < 0.1
    # A vector is normal in every direction, not along the axes alone: +-1 would fail here.
    along = (draws * torch.nn.functional.normalize(torch.ones(size), dim=0)).sum(-1)
    assert abs(along.pow(4).mean() - 3) < 0.45


@pytest.mark.parametrize("size", [2, 7, 50])
def test_a_window_of_noise_is_orthogonal(size):
    draws = OrthogonalNoise(0, "a", size, like=torch.zeros(0)).draw(torch.arange(70), 2 * size, first=0)
    for window in draws.split(size):
        products = torch.einsum("snd,tnd->nst", window, window)
        off = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
        assert off.abs().max() < 1e-10 * size
    # The second window is another one, and so are the signs and lengths of each datapoint.
    assert draws.flatten().unique().numel() == draws.numel()


@pytest.mark.parametrize("parts", [[range(0, 64), range(64, 200)], [range(150, 200), range(0, 150)], [[3], [3, 70]]])
def test_orthogonal_noise_belongs_to_the_datapoint(parts):
    whole = OrthogonalNoise(4, "a", 6, like=torch.zeros(0)).draw(torch.arange(200), 90, first=0)
    for part in parts:
        sequence, index = OrthogonalNoise(4, "a", 6, like=torch.zeros(0)), torch.tensor(list(part))
        # Whatever was asked for before, and in whatever pieces.
        sequence.draw(index, 1, first=80)
        pieces = [sequence.draw(index, count, first=first) for first, count in ((0, 1), (1, 64), (65, 25))]
        assert torch.equal(torch.cat(pieces), whole[:, index])


def test_the_search_is_antithetic_and_independent_where_a_value_takes_several_draws():
    objective = LocalLoss(poisson, MeanField(2), "z")
    problem = Problem(objective, torch.zeros(3, 2), torch.arange(3), tol=0.01, search=Search(num_particles=6), seed=0)
    noise = problem._noise("warm", like=torch.zeros(0))(torch.arange(3), 4)
    assert noise.shape == (6, 3, 2) and torch.equal(noise[:3], -noise[3:])
    assert (noise[0] * noise[1]).sum(-1).abs().max() < 1e-12
    problem.objective = LocalLoss(poisson, MeanField(2), "z", loss=IWAE(2))
    noise = problem._noise("warm", like=torch.zeros(0))(torch.arange(3), 4)
    assert noise.shape == (12, 3, 2) and (noise[0] * noise[1]).sum(-1).abs().min() > 1e-6


def poisson(x):
    """Counts with an exponential link: nothing about it is quadratic."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)


def spiky(x):
    """A prior with a kink where the posterior has its mass."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Laplace(torch.zeros(2), 0.3).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def exact_elbo(model, x, rows):
    """The ELBO by Gauss-Hermite quadrature (Poisson), or on a grid, one dimension after the other."""
    loc, raw = rows.chunk(2, -1)
    scale = (12 * torch.tanh(raw / 12)).exp()
    grid = torch.linspace(-8, 8, 16001)
    weight = torch.exp(-0.5 * grid**2) / (2 * torch.pi) ** 0.5 * (grid[1] - grid[0])
    z = loc + scale * grid[:, None, None]
    if model is poisson:
        log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Poisson(z.exp()).log_prob(x)
    else:
        log_p = dist.Laplace(0.0, 0.3).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    return ((log_p - dist.Normal(loc, scale).log_prob(z)) * weight[:, None, None]).sum((0, 2))


@pytest.mark.parametrize("model", [poisson, spiky], ids=lambda m: m.__name__)
def test_targets_that_are_not_quadratic(model):
    """Noise of +-1 has another optimum here, and a search that was judged on it would call that one converged."""
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0], [0.0, 0.0], [1.0, 3.0]])
    refined = refine(model, MeanField(2), x, seed=0, num_draws=4000)
    rows = refined.params.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([rows], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -exact_elbo(model, x, rows).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    left = exact_elbo(model, x, rows.detach()) - exact_elbo(model, x, refined.params)
    assert refined.converged.all() and left.min() > -1e-6 and left.mean() < 0.01 and left.max() < 0.02
    assert ((refined.elbo - exact_elbo(model, x, refined.params)).abs() < 5 * refined.elbo_se + 1e-6).all()


def test_few_shapes_reach_the_model():
    """A compiled function is traced once a shape."""
    x = torch.randn(300, 2).exp().round()
    shapes = set()
    objective = LocalLoss(poisson, MeanField(2), "z")
    for name in ("row_gradient", "bounds"):
        original = getattr(objective, name)

        def spy(x, rows, noise, original=original, name=name):
            shapes.add((name, *noise.shape))
            return original(x, rows, noise)

        setattr(objective, name, spy)
    problem = Problem(objective, x, torch.arange(300), tol=0.003, search=Search(max_rounds=5), seed=0)
    problem.search(MeanField(2).initial_params(300, like=x), stage="cold")
    assert {shape[2] for shape in shapes} <= {300, 150, 75}
    assert {shape[1] for shape in shapes if shape[0] == "row_gradient"} == {2}
    assert {shape[1] for shape in shapes if shape[0] == "bounds"} <= {16, 32}


def test_filled_and_looks():
    assert [len(filled(torch.arange(n), 1000)) for n in (1000, 501, 500, 130, 63, 1)] == [
        1000,
        1000,
        500,
        250,
        125,
        125,
    ]
    assert len(filled(torch.arange(3), 5)) == 5
    assert torch.equal(filled(torch.arange(3), 5), torch.tensor([0, 1, 2, 0, 1]))
    assert looks(1024) == [16, 64, 256, 1024] and looks(64) == [8, 16, 64] and looks(4) == [4]
