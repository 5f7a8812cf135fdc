import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import transforms as T

import inference
import inference.families
from inference.families import LOG_SCALE, Family, FullCovariance, MeanField, family_of, from_noise


def subclasses(cls):
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


# Every family of the library, found and not listed: a new one is held to the same contract.
FAMILIES = sorted(
    {cls for cls in subclasses(Family) if cls.__module__.startswith("inference")}, key=lambda c: c.__name__
)


def test_the_families_are_found():
    assert {FullCovariance, MeanField} <= set(FAMILIES)


def random_params(family, *batch, scale=0.7, dtype=None):
    return scale * torch.randn(*batch, family.num_params, dtype=dtype)


@pytest.fixture(params=FAMILIES, ids=lambda cls: cls.__name__)
def make(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [(), (5,), (4, 5)], ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_shapes_and_dtypes(make, size, batch, dtype):
    family = make(size).to(dtype)
    q = family(random_params(family, *batch, dtype=dtype))
    assert q.batch_shape == batch and q.event_shape == (size,)
    z = q.rsample()
    assert z.shape == (*batch, size) and z.dtype == dtype
    assert q.log_prob(z).shape == batch and q.log_prob(z).dtype == dtype
    noise = torch.randn(6, *batch, size, dtype=dtype)
    draws, log_q = from_noise(q, noise)
    assert draws.shape == (6, *batch, size) and log_q.shape == (6, *batch)
    assert draws.dtype == log_q.dtype == dtype
    assert family.params_from(q).shape == (*batch, family.num_params)


def test_gradients_reach_every_parameter(make):
    family = make(3)
    params = random_params(family, 5).requires_grad_()
    family(params).log_prob(torch.randn(5, 3)).sum().backward()
    assert (params.grad != 0).all()
    params = random_params(family, 5).requires_grad_()
    z, _ = from_noise(family(params), torch.randn(5, 3).unsqueeze(0))
    (z.square().sum() + z.prod(-1).sum()).backward()
    assert (params.grad != 0).all()


@pytest.mark.parametrize("size", [1, 2])
def test_density_is_normalised(make, size):
    family = make(size)
    q = family(random_params(family, 3, scale=0.5))
    line = torch.linspace(-14, 14, 701)
    grid = torch.cartesian_prod(*[line] * size).reshape(-1, 1, size)
    total = q.log_prob(grid).exp().sum(0) * (line[1] - line[0]) ** size
    torch.testing.assert_close(total, torch.ones(3), rtol=0, atol=1e-6)


def test_params_come_back(make):
    family = make(4)
    params = random_params(family, 6, scale=2.0)
    torch.testing.assert_close(family.params_from(family(params)), params, rtol=1e-9, atol=1e-9)


def test_params_come_back_in_float32(make):
    family = make(4)
    params = random_params(family, 6, dtype=torch.float32)
    torch.testing.assert_close(family.params_from(family(params)), params, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_params_from_takes_members_at_the_bounds(make, dtype):
    family = make(3)
    params = torch.full((2, family.num_params), 1e4, dtype=dtype)
    params[1] = -1e4
    params[:, :3] = 0.5
    q = family(params)
    rows = family.params_from(q)
    assert rows.isfinite().all()
    again = family(rows)
    torch.testing.assert_close(again.stddev, q.stddev, rtol=1e-4, atol=0)


def test_cold_start_is_the_standard_normal(make):
    family = make(3)
    q = family(family.initial_params(2, like=torch.zeros(0)))
    torch.testing.assert_close(q.mean, torch.zeros(2, 3))
    torch.testing.assert_close(inference.families.loc_and_tril(q)[1], torch.eye(3).expand(2, 3, 3))
    assert family.initial_params(2, like=torch.zeros(0, dtype=torch.float32)).dtype == torch.float32


def test_saving_copying_and_printing(make):
    family = make(3)
    params = random_params(family, 5)
    z = torch.randn(5, 3)
    expected = family(params).log_prob(z)
    fresh = make(3)
    fresh.load_state_dict(family.state_dict())
    for other in (fresh, pickle.loads(pickle.dumps(family)), copy.deepcopy(family)):
        torch.testing.assert_close(other(params).log_prob(z), expected, rtol=0, atol=0)
        assert other.num_params == family.num_params and repr(other) == repr(family)
    assert repr(family) == f"{make.__name__}(3)"
    assert family.num_shared == sum(weight.numel() for weight in family.parameters())
    assert family.has_log_prob is True


def test_numbers_of_parameters():
    assert [MeanField(d).num_params for d in (1, 2, 8)] == [2, 4, 16]
    assert [FullCovariance(d).num_params for d in (1, 2, 8)] == [2, 5, 44]
    assert FullCovariance(8).num_shared == MeanField(8).num_shared == 0


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


@pytest.mark.parametrize("make_q", [normal, multivariate, expanded, low_rank], ids=lambda f: f.__name__)
def test_full_covariance_reproduces_any_normal(make_q):
    family, q = FullCovariance(3), make_q()
    again = family(family.params_from(q))
    z = torch.randn(5, 4, 3)
    torch.testing.assert_close(again.log_prob(z), q.log_prob(z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make_q", [normal, multivariate, expanded, low_rank], ids=lambda f: f.__name__)
def test_mean_field_takes_the_moments(make_q):
    family, q = MeanField(3), make_q()
    again = family(family.params_from(q))
    torch.testing.assert_close(again.mean, q.mean)
    torch.testing.assert_close(again.variance, q.variance)


def test_params_from_takes_the_moments_of_other_distributions():
    q = dist.Gamma(torch.full((4, 3), 2.0), 3.0).to_event(1)
    for family in (MeanField(3), FullCovariance(3)):
        again = family(family.params_from(q))
        torch.testing.assert_close(again.mean, q.mean)
        torch.testing.assert_close(again.variance, q.variance)


@pytest.mark.parametrize(
    ("q", "kind"),
    [
        (lambda: dist.Normal(torch.zeros(2, 3), 1.0).to_event(1), MeanField),
        (lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1).expand([2]), MeanField),
        (lambda: dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3)), FullCovariance),
    ],
    ids=["normal", "expanded", "multivariate"],
)
def test_family_of(q, kind):
    family = family_of(q())
    assert type(family) is kind and family.num_latents == 3


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, -1, 2.0, True, None, "2"], ids=["zero", "negative", "float", "bool", "none", "text"]
)
def test_bad_sizes(make, size):
    with pytest.raises(ValueError, match=rf"{make.__name__}: num_latents: expected a positive integer; got {size!r}"):
        make(size)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (7, 1)], ids=str)
def test_bad_params(make, shape):
    family = make(4)
    with pytest.raises(ValueError, match=rf"expected params of shape \(\.\.\., {family.num_params}\); got"):
        family(torch.zeros(shape))


@pytest.mark.parametrize(
    ("q", "error", "message"),
    [
        (lambda: dist.Normal(torch.zeros(2, 3), 1.0), ValueError, r"event shape \(3,\).*to_event\(1\)"),
        (lambda: dist.Normal(torch.zeros(2, 4), 1.0).to_event(1), ValueError, r"event shape \(4,\)"),
        (
            lambda: dist.Normal(torch.zeros(2, 3), 1e-7).to_event(1),
            ValueError,
            "log scale of q: .* below 12; got 16.12",
        ),
        (lambda: dist.Normal(torch.zeros(2, 3), 1e7).to_event(1), ValueError, "log scale of q: .* below 12"),
        (lambda: dist.Delta(torch.zeros(2, 3)).to_event(1), ValueError, "log scale of q: .* got inf"),
    ],
    ids=["no event", "other size", "too narrow", "too wide", "a point"],
)
def test_distributions_a_family_cannot_be(make, q, error, message):
    with pytest.raises(error, match=message):
        make(3).params_from(q())


def test_a_correlation_that_is_none():
    tril = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    with pytest.raises(ValueError, match="correlation factor of q: expected magnitudes below 1000; got 1e\\+04"):
        FullCovariance(2).params_from(dist.MultivariateNormal(torch.zeros(2), scale_tril=tril))


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


def test_noise_for_an_unknown_distribution():
    with pytest.raises(NotImplementedError, match="cannot draw a Gamma from standard normal noise.*Register"):
        from_noise(dist.Gamma(torch.ones(2, 3), 1.0).to_event(1), torch.zeros(1, 2, 3))


# No real input breaks a family ----------------------------------------------------------------------------------------


@given(data=st.data())
@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_real_row_breaks_a_family(size, data):
    entries = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
        [1e38, -1e38, 3e38, 1e3, -50.0]
    )
    for make in FAMILIES:
        family = make(size)
        row = torch.tensor(
            data.draw(st.lists(entries, min_size=family.num_params, max_size=family.num_params)), dtype=torch.float32
        )
        q = family(row)
        _, tril = inference.families.loc_and_tril(q)
        diagonal = tril.diagonal(dim1=-2, dim2=-1)
        assert tril.isfinite().all() and (diagonal > 0).all()
        assert (tril.tril() == tril).all()
        noise = torch.linspace(-3, 3, 4 * size, dtype=torch.float32).reshape(4, size)
        z, log_q = from_noise(q, noise)
        assert z.isfinite().all() and log_q.isfinite().all()
        assert q.log_prob(z).isfinite().all()


@pytest.mark.parametrize("raw", [1e38, -1e38, 1e3, -1e3], ids=str)
def test_scales_stay_within_their_stated_range(make, raw):
    family = make(3)
    params = torch.full((family.num_params,), raw, dtype=torch.float32)
    log_scale = family(params).stddev.log()
    assert (log_scale.abs() <= LOG_SCALE * (1 + 1e-5)).all() and (log_scale.sign() == math.copysign(1, raw)).all()


# Draws made from noise ------------------------------------------------------------------------------------------------


def affine(base_of):
    def make_q(loc, scale):
        return dist.TransformedDistribution(base_of(loc, scale), [T.AffineTransform(0.5, -2.0)])

    return make_q


DRAWN = {
    "normal": lambda loc, scale: dist.Normal(loc, scale).to_event(1),
    "multivariate": lambda loc, scale: FullCovariance(2)(torch.cat([loc, scale.log(), scale[..., :1]], -1)),
    "low rank": lambda loc, scale: dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1), scale.square()),
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


@pytest.fixture(params=DRAWN, ids=lambda name: name.replace(" ", "-"))
def drawn(request):
    return DRAWN[request.param]


def moderate(batch=5):
    return 0.3 * torch.randn(batch, 2), torch.rand(batch, 2) * 0.5 + 0.3


def test_from_noise_gives_log_q(drawn):
    q = drawn(*moderate())
    z, log_q = from_noise(q, torch.randn(7, 5, 2))
    torch.testing.assert_close(log_q, q.log_prob(z), rtol=1e-8, atol=1e-8)


def test_from_noise_without_a_batch(drawn):
    loc, scale = moderate(1)
    q = drawn(loc[0], scale[0])
    z, log_q = from_noise(q, torch.randn(7, 2))
    assert z.shape == (7, 2) and log_q.shape == (7,)
    torch.testing.assert_close(log_q, q.log_prob(z), rtol=1e-8, atol=1e-8)


def test_from_noise_has_the_right_law(drawn):
    """Means and second moments of 20,000 draws from noise against as many of Pyro's own: within 4 standard errors."""
    q = drawn(*moderate(2))
    num_draws = 20_000
    ours, _ = from_noise(q, torch.randn(num_draws, 2, 2))
    theirs = q.sample((num_draws,))
    for statistic in (lambda z: z, torch.square, lambda z: z.prod(-1)):
        a, b = statistic(ours), statistic(theirs)
        se = ((a.var(0) + b.var(0)) / num_draws).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * se).all()


def test_normal_draws_have_the_closed_form_moments(make):
    family = make(2)
    q = family(random_params(family, 2))
    num_draws = 20_000
    z, _ = from_noise(q, torch.randn(num_draws, 2, 2))
    assert ((z.mean(0) - q.mean).abs() < 4 * q.stddev / math.sqrt(num_draws)).all()
    loc, tril = inference.families.loc_and_tril(q)
    expected = tril @ tril.mT
    products = (z - loc).unsqueeze(-1) * (z - loc).unsqueeze(-2)
    assert ((products.mean(0) - expected).abs() < 4 * products.std(0) / math.sqrt(num_draws)).all()


def test_gradients_are_those_of_rsample(drawn, monkeypatch):
    """The same noise through Pyro's own reparametrised sampler gives the same draws and the same gradients."""
    loc, scale = moderate()
    noise = torch.randn(7, 5, 2)
    # torch's samplers take their noise from one of these two.
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: noise)
    monkeypatch.setattr("torch.distributions.multivariate_normal._standard_normal", lambda *_, **__: noise)
    leaves = [loc.requires_grad_(), scale.requires_grad_()]
    q = drawn(*leaves)
    ours, log_q = from_noise(q, noise)
    if isinstance(q, dist.LowRankMultivariateNormal):
        q = dist.MultivariateNormal(q.loc, covariance_matrix=q.covariance_matrix)
    theirs = q.rsample((7,))
    torch.testing.assert_close(ours, theirs)

    def gradients(z, log_q):
        return torch.autograd.grad((z.sin() * torch.tensor([1.0, 2.0])).sum() + log_q.sum(), leaves, retain_graph=True)

    torch.testing.assert_close(gradients(ours, log_q), gradients(theirs, q.log_prob(theirs)), rtol=1e-7, atol=1e-7)


def test_a_nearly_singular_covariance_costs_no_digits():
    family = FullCovariance(2)
    row = torch.tensor([0.0, 0.0, 2.0, -3.0, 900.0])
    noise = torch.randn(50, 2)
    exact = from_noise(family(row), noise)[1]
    single = from_noise(family(row.float()), noise.float())[1]
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [MeanField(3), FullCovariance(3)], ids=repr)
def test_a_step_on_a_location_is_one_standard_deviation(family):
    params = torch.randn(5, family.num_params)
    units = family.step_units(params)
    assert units.shape == params.shape
    assert torch.allclose(units[:, :3], family(params).stddev.clamp(max=1.0))
    assert (units[:, 3:] == 1).all()
    assert (units[:, :3] < 1).any()
