"""Each prior against what is known of it: SciPy's densities, hand-written ones, direct simulation."""

import math

import numpy as np
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import scipy.special
import scipy.stats
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.priors import (
    DiagonalNormal,
    FlowPrior,
    GaussianMixture,
    Horseshoe,
    Laplace,
    Logistic,
    ScaleMixture,
    StandardNormal,
    StudentT,
    TopDown,
    Uniform,
)

CLOSED_FORMS = {
    "standard normal": (StandardNormal(3), scipy.stats.norm().logpdf),
    "Laplace": (Laplace(3, scale=0.7), scipy.stats.laplace(scale=0.7).logpdf),
    "Student": (StudentT(3, df=2.5, scale=1.3), scipy.stats.t(2.5, scale=1.3).logpdf),
    "nearly normal": (StudentT(3, df=100), scipy.stats.t(100).logpdf),
    "logistic": (Logistic(3, scale=0.4), scipy.stats.logistic(scale=0.4).logpdf),
    "uniform": (Uniform(3, low=-2.0, high=0.5), scipy.stats.uniform(-2.0, 2.5).logpdf),
    "scale mixture": (
        ScaleMixture(3, spike=0.2, slab=3.0, weight=0.9),
        lambda z: np.log(0.9 * scipy.stats.norm.pdf(z, scale=0.2) + 0.1 * scipy.stats.norm.pdf(z, scale=3.0)),
    ),
}


@pytest.mark.parametrize("case", CLOSED_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_form(case, dtype):
    prior, log_density = CLOSED_FORMS[case]
    z = torch.tensor([[0.0, 0.3, -1.9], [-0.01, 0.5, -0.1], [6.0, -20.0, 0.2]], dtype=dtype)
    with np.errstate(divide="ignore"):
        expected = torch.tensor(log_density(z.double().numpy())).sum(-1)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(
        prior.to(dtype)().log_prob(z).double(), expected, rtol=tolerance, atol=10 * tolerance, equal_nan=False
    )
    prior.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (100.0, 101.0), (-0.1, 0.3)])
def test_the_box_has_both_its_ends(low, high, dtype):
    p = Uniform(2, low=low, high=high).to(dtype)()
    z = torch.tensor([[low, high], [high, high]], dtype=dtype)
    torch.testing.assert_close(p.log_prob(z), torch.full((2,), -2 * math.log(high - low), dtype=dtype))
    # A family is pushed onto the support, and its draws may be rounded to the ends.
    onto = torch.distributions.biject_to(p.support)
    assert p.log_prob(onto(torch.tensor([[-80.0, 80.0]], dtype=dtype))).isfinite()
    assert p.log_prob(z + 1e-3 * abs(high)).isneginf().all()
    draws = p.sample((20_000,)).double()
    assert ((draws.mean(0) - p.mean).abs() < 4 * (p.variance / 20_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), p.variance.double(), rtol=0.05, atol=0)


def test_a_logistic_draw_is_finite_at_the_ends_of_the_uniform(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *_: self.copy_(torch.tensor([0.0, 1.0])))
    draw = Logistic(2).float()().sample()
    assert draw.isfinite().all() and draw[0] == -draw[1] < -15


def test_a_diagonal_normal_starts_standard_and_learns():
    prior = DiagonalNormal(2)
    z = torch.tensor([3.0, -1.0]) + torch.tensor([0.2, 5.0]) * torch.randn(2000, 2)
    torch.testing.assert_close(prior().log_prob(z), StandardNormal(2)().log_prob(z))
    climb(prior, z, num_steps=600)
    torch.testing.assert_close(prior.loc, z.mean(0), atol=1e-2, rtol=0)
    torch.testing.assert_close(prior.scale, z.std(0, correction=0), rtol=1e-2, atol=0)


def climb(prior, z, *, num_steps, lr=0.05):
    optimizer = torch.optim.Adam(prior.parameters(), lr=lr)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (-prior().log_prob(z).mean()).backward()
        optimizer.step()
    return prior().log_prob(z).mean().item()


# Horseshoe


def horseshoe_log_density(z, *, tau_0, s, nu):
    """Of (eps, log lambda, log tau, log c^2), by SciPy's densities of the variables themselves times d exp(u) / du."""
    size = (z.shape[-1] - 2) // 2
    eps, scales = z[..., :size], np.exp(z[..., size:])
    local, tau, slab = scales[..., :size], scales[..., size], scales[..., size + 1]
    log_p = scipy.stats.norm.logpdf(eps).sum(-1) + scipy.stats.halfcauchy.logpdf(local).sum(-1)
    log_p += scipy.stats.halfcauchy.logpdf(tau, scale=tau_0)
    log_p += scipy.stats.invgamma.logpdf(slab, nu / 2, scale=nu * s**2 / 2)
    return log_p + z[..., size:].sum(-1)


def test_horseshoe_density():
    p = Horseshoe(3, global_scale=0.3, slab_scale=1.7, slab_df=5.0)()
    z = 2 * torch.randn(50, 8)
    expected = horseshoe_log_density(z.numpy(), tau_0=0.3, s=1.7, nu=5.0)
    np.testing.assert_allclose(p.log_prob(z), expected, rtol=1e-10)


def test_horseshoe_density_integrates_to_one_over_all_four_of_its_dimensions():
    p = Horseshoe(1, global_scale=0.5)()
    axes = [torch.linspace(*ends) for ends in ((-6, 6, 17), (-14, 14, 33), (-15, 13, 33), (-2, 14, 41))]
    mass = p.log_prob(torch.cartesian_prod(*axes)).exp().sum() * math.prod(float(axis[1] - axis[0]) for axis in axes)
    assert mass.item() == pytest.approx(1, abs=1e-4)


def test_horseshoe_coefficients_are_those_of_direct_simulation():
    num_draws, size, tau_0, s, nu = 40_000, 2, 0.5, 1.5, 4.0
    prior = Horseshoe(size, global_scale=tau_0, slab_scale=s, slab_df=nu)
    beta = prior.features(prior().sample((num_draws,))).numpy()
    rng = np.random.default_rng(0)
    local = np.abs(rng.standard_cauchy((num_draws, size)))
    tau = tau_0 * np.abs(rng.standard_cauchy((num_draws, 1)))
    slab = scipy.stats.invgamma.rvs(nu / 2, scale=nu * s**2 / 2, size=(num_draws, 1), random_state=rng)
    direct = rng.standard_normal((num_draws, size)) * tau * np.sqrt(slab * local**2 / (slab + tau**2 * local**2))
    assert beta.shape == direct.shape
    for j in range(size):
        assert scipy.stats.ks_2samp(beta[:, j], direct[:, j]).pvalue > 1e-3
    # The coefficients of one vector share tau and c: their sizes are correlated. And from below and above.
    for statistic in (lambda b: np.tanh(np.abs(b)).prod(1), lambda b: np.abs(b).max(1) < 0.1, lambda b: b[:, 0] > 3):
        one, other = (np.asarray(statistic(b), dtype=float) for b in (beta, direct))
        se = np.sqrt((one.var() + other.var()) / num_draws)
        assert abs(one.mean() - other.mean()) < 4 * se
    assert np.corrcoef(np.tanh(np.abs(beta)).T)[0, 1] > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_horseshoe_coefficients_at_extreme_scales(dtype):
    prior = Horseshoe(1).to(dtype)
    # eps, log lambda, log tau, log c^2: small scales are the horseshoe's, large ones the slab's.
    z = torch.tensor([[2.0, -30.0, -3.0, 0.0], [2.0, 70.0, 3.0, 1.0], [-2.0, 0.0, 0.0, 60.0]], dtype=dtype)
    expected = torch.tensor([[2 * math.exp(-33)], [2 * math.exp(0.5)], [-2.0]], dtype=dtype)
    torch.testing.assert_close(prior.features(z), expected, rtol=1e-5, atol=0)
    assert prior().log_prob(z).isfinite().all()


# Mixtures


def make_mixture(num_latents, num_components, *, seed=0):
    prior = GaussianMixture(num_latents, num_components=num_components)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(num_components, generator=generator))
        prior.loc.copy_(3 * torch.randn(num_components, num_latents, generator=generator))
        prior.raw_scale.copy_(torch.randn(num_components, num_latents, generator=generator) - 1)
    return prior


def mixture_log_density(prior, z):
    log_w = scipy.special.log_softmax(prior.logits.detach().double().numpy())
    scale = np.exp(12 * np.tanh(prior.raw_scale.detach().double().numpy() / 12))
    components = scipy.stats.norm.logpdf(z[..., None, :], prior.loc.detach().double().numpy(), scale)
    return scipy.special.logsumexp(log_w + components.sum(-1), axis=-1)


def test_gaussian_mixture_density_and_moments():
    prior = make_mixture(3, 4)
    z = prior().sample((6, 5))
    np.testing.assert_allclose(prior().log_prob(z).detach(), mixture_log_density(prior, z.numpy()), rtol=1e-11)
    reference = dist.MixtureSameFamily(
        dist.Categorical(probs=prior.weights), dist.Normal(prior.loc, prior.scale).to_event(1)
    )
    torch.testing.assert_close(prior().mean, reference.mean)
    torch.testing.assert_close(prior().variance, reference.variance)
    draws = prior().sample((40_000,))
    assert ((draws.mean(0) - reference.mean).abs() < 4 * (reference.variance / 40_000).sqrt()).all()


def test_gaussian_mixture_keeps_its_digits_in_float32():
    """Narrow components far apart: the expanded square has terms of 10^7, of which a few nats are left."""
    prior = make_mixture(50, 20).float()
    with torch.no_grad():
        prior.raw_scale.fill_(math.log(0.01))
        prior.loc.add_(100.0)
    z = prior.loc.detach() + prior.scale.detach() * torch.randn(20, 50)
    z.requires_grad_()
    log_p = prior().log_prob(z)
    expected = mixture_log_density(prior, z.detach().double().numpy())
    np.testing.assert_allclose(log_p.detach().numpy(), expected, atol=1e-3, rtol=0)
    (score,) = torch.autograd.grad(log_p.sum(), z)
    direct = -(z - prior.loc).double() / prior.scale.double().square()
    torch.testing.assert_close(score.double(), direct, rtol=1e-5, atol=1e-2)


def test_gaussian_mixture_far_beyond_what_float32_can_square():
    prior = make_mixture(2, 3).float()
    z = torch.full((2,), 1e25, requires_grad=True)
    log_p = prior().log_prob(z)
    gradients = torch.autograd.grad(log_p, [z, *prior.parameters()])
    assert -math.inf < log_p < -1e29 and all(gradient.isfinite().all() for gradient in gradients)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that is made inside."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


def test_a_mixture_of_many_components_makes_no_tensor_of_all_components_and_dimensions():
    prior = make_mixture(30, 40)
    z = torch.randn(4, 25, 30, requires_grad=True)
    with Largest() as largest:
        prior().log_prob(z).sum().backward()
    assert largest.numel <= 4 * 25 * 40 * 2 < 4 * 25 * 40 * 30
    with Largest() as largest:
        prior().sample((100,))
    assert largest.numel <= 100 * 40


def test_gaussian_mixture_starts_spread_by_the_global_generator_and_learns():
    torch.manual_seed(3)
    one = GaussianMixture(40, num_components=50)
    torch.manual_seed(3)
    assert torch.equal(GaussianMixture(40, num_components=50).loc, one.loc)
    assert not torch.equal(GaussianMixture(40, num_components=50).loc, one.loc)
    assert one().variance.mean().item() == pytest.approx(1, abs=0.05)
    z = torch.where(torch.rand(1000, 1) < 0.3, -3.0, 2.0) + 0.5 * torch.randn(1000, 1)
    prior = GaussianMixture(1, num_components=2)
    climb(prior, z, num_steps=400)
    low, high = prior.loc.flatten().argsort().tolist()
    assert prior.loc[low].item() == pytest.approx(-3, abs=0.1) and prior.loc[high].item() == pytest.approx(2, abs=0.1)
    assert prior.weights[low].item() == pytest.approx(0.3, abs=0.04)
    torch.testing.assert_close(prior.scale, torch.full((2, 1), 0.5), atol=0.06, rtol=0)


# Flows


def make_flow(num_latents, **options):
    prior = FlowPrior(num_latents, hidden=(8, 6), **options)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return prior


class Confined(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        loc, raw = self.net(x)
        return loc, 3 * torch.tanh(raw / 3)


@pytest.mark.parametrize("num_latents", [2, 5])
def test_a_coupling_flow_is_pyros(num_latents):
    prior = make_flow(num_latents, num_layers=3)
    reverse = torch.arange(num_latents - 1, -1, -1)
    parts = []
    for layer in prior.layers:
        coupling = transforms.AffineCoupling(num_latents // 2, Confined(layer.net))
        parts = [coupling, *parts] if not parts else [coupling, transforms.Permute(reverse), *parts]
    reference = dist.TransformedDistribution(dist.Normal(torch.zeros(num_latents), 1.0).to_event(1), parts)
    z = torch.randn(4, 6, num_latents)
    torch.testing.assert_close(prior().log_prob(z), reference.log_prob(z))


def test_an_autoregressive_flow_is_a_chain_of_conditional_normals():
    prior = make_flow(4, kind="autoregressive", num_layers=1)
    z = torch.randn(7, 4)
    loc, raw = prior.layers[0].net(z)
    expected = scipy.stats.norm.logpdf(z, loc.detach(), (3 * torch.tanh(raw.detach() / 3)).exp()).sum(-1)
    np.testing.assert_allclose(prior().log_prob(z).detach(), expected, rtol=1e-10)
    # Number d depends on those before it, and on no other.
    jacobian = torch.autograd.functional.jacobian(lambda z: prior.layers[0].net(z)[0], z[0])
    assert torch.equal(jacobian, jacobian.tril(-1)) and (jacobian[1:, 0] != 0).all()


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_a_flow_is_evaluated_in_one_pass_and_inverts_itself(kind):
    prior = make_flow(5, kind=kind, num_layers=3)
    calls = []
    for layer in prior.layers:
        layer.net.register_forward_hook(lambda *_: calls.append(1))
    z = torch.randn(4, 5)
    prior().log_prob(z)
    assert len(calls) == 3
    for layer in prior.layers:
        torch.testing.assert_close(layer.inverse(layer(z)[0]), z)
    jacobian = torch.autograd.functional.jacobian(lambda z: prior.layers[0](z)[0], z[0])
    torch.testing.assert_close(prior.layers[0](z)[1][0], torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_a_flow_starts_standard_and_learns_what_no_normal_is(kind):
    prior = FlowPrior(2, kind=kind, num_layers=2, hidden=(16,))
    first = torch.randn(500, 1)
    z = torch.cat([first, first.square() + 0.3 * torch.randn(500, 1)], -1)
    torch.testing.assert_close(prior().log_prob(z), StandardNormal(2)().log_prob(z))
    best_normal = dist.MultivariateNormal(z.mean(0), z.T.cov(correction=0)).log_prob(z).mean().item()
    truth = (scipy.stats.norm.logpdf(z[:, 0]) + scipy.stats.norm.logpdf(z[:, 1], z[:, 0] ** 2, 0.3)).mean()
    assert climb(prior, z, num_steps=300, lr=0.02) > best_normal + 0.7 * (truth - best_normal)


# Two layers


def test_top_down_is_a_standard_normal_whose_features_have_the_conditional_density():
    prior = TopDown(3, num_top=2, hidden=(6,))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    z = prior().sample((9,))
    np.testing.assert_allclose(prior().log_prob(z), scipy.stats.norm.logpdf(z).sum(-1), rtol=1e-12)
    noise, z2 = z.split([3, 2], dim=-1)
    z1 = prior.features(z)
    loc, raw = prior.net(z2).detach().chunk(2, dim=-1)
    scale = (12 * torch.tanh(raw / 12)).exp()
    torch.testing.assert_close(z1.detach(), loc + scale * noise)
    # The joint density of (z1, z2) is that of (eps, z2) with the Jacobian of eps -> z1.
    joint = scipy.stats.norm.logpdf(z1.detach(), loc, scale).sum(-1) + scipy.stats.norm.logpdf(z2).sum(-1)
    np.testing.assert_allclose(prior().log_prob(z) - scale.log().sum(-1), joint, rtol=1e-10)
    torch.testing.assert_close(
        prior.lower(z2).log_prob(z1).detach(), torch.tensor(scipy.stats.norm.logpdf(z1.detach(), loc, scale)).sum(-1)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Laplace(2, scale=0.0), "Laplace: scale: .* from 1e-06 to 1e.06; got 0.0", id="scale 0"),
        pytest.param(lambda: Logistic(2, scale=-1.0), "Logistic: scale: .* got -1.0", id="negative scale"),
        pytest.param(lambda: Laplace(2, scale=math.nan), "Laplace: scale: .* got nan", id="nan"),
        pytest.param(lambda: Laplace(2, scale="1"), "Laplace: scale: expected a number .* got '1'", id="text"),
        pytest.param(lambda: Laplace(2, scale=True), "Laplace: scale: .* got True", id="bool"),
        pytest.param(lambda: StudentT(2, df=0.5), "StudentT: df: .* from 1 to 100; got 0.5", id="df"),
        pytest.param(lambda: StudentT(2, df=1e9), "StudentT: df: .* take StandardNormal", id="large df"),
        pytest.param(lambda: Uniform(2, low=1.0, high=1.0), "Uniform: high: .* above low = 1; got 1.0", id="point"),
        pytest.param(lambda: Uniform(2, low=0.0, high=0.0), "Uniform: high: .* above low = 0; got 0.0", id="zero"),
        pytest.param(lambda: Uniform(2, low=-math.inf), "Uniform: low: .* got -inf", id="half-line"),
        pytest.param(lambda: Uniform(2, low=1000.0, high=1000.01), "Uniform: high: .* above", id="too thin"),
        pytest.param(lambda: ScaleMixture(2, spike=2.0), "ScaleMixture: slab: .* at least spike = 2", id="order"),
        pytest.param(lambda: ScaleMixture(2, weight=1.0), "weight: .* take StandardNormal", id="weight"),
        pytest.param(lambda: Horseshoe(2, global_scale=0), "Horseshoe: global_scale: .* got 0", id="global scale"),
        pytest.param(lambda: Horseshoe(2, slab_scale=-1.0), "Horseshoe: slab_scale: .* got -1", id="slab scale"),
        pytest.param(lambda: Horseshoe(2, slab_df=0.1), "Horseshoe: slab_df: .* got 0.1", id="slab df"),
        pytest.param(lambda: GaussianMixture(2, num_components=0), "num_components: .* got 0", id="components"),
        pytest.param(lambda: FlowPrior(1), "FlowPrior: num_latents: expected at least 2.* GaussianMixture", id="1-D"),
        pytest.param(lambda: FlowPrior(2, kind="spline"), "expected one of coupling, autoregressive; got", id="kind"),
        pytest.param(lambda: FlowPrior(2, num_layers=0), "FlowPrior: num_layers: .* got 0", id="layers"),
        pytest.param(lambda: FlowPrior(2, hidden=()), "FlowPrior: hidden: expected at least one width", id="hidden"),
        pytest.param(lambda: FlowPrior(2, hidden=(8, 0)), r"FlowPrior: hidden\[1\]: .* got 0", id="width"),
        pytest.param(
            lambda: FlowPrior(9, kind="autoregressive", hidden=(8,)), "at least num_latents = 9 .* Widen", id="narrow"
        ),
        pytest.param(lambda: TopDown(2, num_top=0), "TopDown: num_top: .* got 0", id="top"),
        pytest.param(lambda: TopDown(2, hidden=()), "TopDown: hidden: expected at least one width", id="top hidden"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
