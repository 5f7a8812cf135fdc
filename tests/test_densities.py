import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import constraints

from inference import draw_globals, fit_em, quadrature, refine, sample_posterior, simulate
from inference.densities import (
    densities,
    guide_distribution,
    latent_prior,
    log_joint,
    log_weights,
    weights_from_noise,
)
from inference.families import FullCovariance, MeanField, MixtureOfGaussians
from inference.guides import Amortized, Local
from inference.noise import seeded

D, P, B, S = 2, 3, 5, 7
LOG_2PI = math.log(2 * math.pi)


def log_normal(value, loc, scale):
    """By hand, constants and all."""
    scale = torch.as_tensor(scale)
    return (-0.5 * ((value - loc) / scale).square() - scale.log() - 0.5 * LOG_2PI).sum(-1)


@pytest.fixture
def x():
    return torch.randn(B, P)


@pytest.fixture
def z():
    return torch.randn(S, B, D)


@pytest.fixture
def weight():
    return torch.randn(D, P)


def linear(weight, *, scale=0.7, **names):
    latent, observed = names.get("latent", "z"), names.get("observed", "x")

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(latent, dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample(observed, dist.Normal(z @ weight, scale).to_event(1), obs=x)

    return model


def hand_written_guide(x, *, site="z"):
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample(site, dist.Normal(x[:, :D], 0.5).to_event(1))


# The numbers ----------------------------------------------------------------------------------------------------------


def test_linear_gaussian(x, z, weight):
    model = linear(weight)
    prior, likelihood = log_normal(z, 0.0, 1.0), log_normal(x, z @ weight, 0.7)
    terms = densities(model, x, z)
    torch.testing.assert_close(terms.log_prior, prior)
    torch.testing.assert_close(terms.log_likelihood, likelihood)
    torch.testing.assert_close(log_joint(model, x, z), prior + likelihood)


def test_bernoulli_and_a_prior_of_its_own(z):
    x = torch.randint(0, 2, (B, P)).double()
    weight = torch.randn(D, P)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Laplace(torch.zeros(D), 2.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)

    p = torch.sigmoid(z @ weight)
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1) - (z.abs() / 2 + math.log(4)).sum(-1)
    torch.testing.assert_close(log_joint(model, x, z), expected)


def test_several_observed_sites_and_deterministic_ones(x, z, weight):
    def model(x):
        pyro.deterministic("weight", weight)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            mean = pyro.deterministic("mean", z @ weight)
            pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x)
            pyro.sample("count", dist.Poisson(z[..., 0].exp()), obs=torch.tensor(3.0))
            pyro.factor("extra", z[..., 1])

    rate = z[..., 0].exp()
    expected = log_normal(x, z @ weight, 0.7) + 3 * rate.log() - rate - math.log(6) + z[..., 1]
    torch.testing.assert_close(densities(model, x, z).log_likelihood, expected)


@pytest.mark.parametrize("kind", ["datapoints", "everything", "nothing", "fn.mask"])
def test_masks_count(kind, x, z, weight):
    keep = torch.tensor([True, False, True, True, False])
    mask = {"datapoints": keep, "everything": True, "nothing": False, "fn.mask": None}[kind]

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            likelihood = dist.Normal(z @ weight, 0.7).to_event(1)
            if kind == "fn.mask":
                pyro.sample("x", likelihood.mask(keep), obs=x)
            else:
                with poutine.mask(mask=mask):
                    pyro.sample("x", likelihood, obs=x)

    kept = {"everything": torch.ones(B), "nothing": torch.zeros(B)}.get(kind, keep.double())
    torch.testing.assert_close(densities(model, x, z).log_likelihood, kept * log_normal(x, z @ weight, 0.7))
    torch.testing.assert_close(densities(model, x, z).log_prior, log_normal(z, 0.0, 1.0))


class Tutorial(nn.Module):
    """As Pyro's tutorial writes a VAE: plain names, sites "latent" and "obs", probabilities, a plate without dim."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(P, 8), nn.Softplus(), nn.Linear(8, 2 * D))
        self.decoder = nn.Sequential(nn.Linear(D, 8), nn.Softplus(), nn.Linear(8, P), nn.Sigmoid())

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], D)))
            z_scale = x.new_ones(torch.Size((x.shape[0], D)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_a_tutorial_style_vae(z):
    vae = Tutorial()
    x = torch.randint(0, 2, (B, P)).double()
    p = vae.decoder(z)
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1) + log_normal(z, 0.0, 1.0)
    torch.testing.assert_close(log_joint(vae.model, x, z, site="latent"), expected)
    site, q = guide_distribution(vae.guide, x)
    loc, log_scale = vae.encoder(x).chunk(2, -1)
    assert site == "latent"
    torch.testing.assert_close(q.log_prob(z), log_normal(z, loc, log_scale.exp()))
    log_w = log_weights(vae.model, vae.guide, x, num_particles=S)
    assert log_w.shape == (S, B)
    torch.testing.assert_close(latent_prior(vae.model, x, site="latent").log_prob(z), log_normal(z, 0.0, 1.0))


def test_log_weights_at_the_exact_posterior_are_the_evidence(x):
    """z ~ N(0, 1), x | z ~ N(z, s^2) in each dimension: every draw's weight is p(x), constants included."""
    variance = 0.3
    model = linear(torch.eye(D), scale=math.sqrt(variance))
    x = x[:, :D]

    def posterior(x):
        with pyro.plate("data", len(x), dim=-1):
            scale = math.sqrt(variance / (1 + variance))
            pyro.sample("z", dist.Normal(x / (1 + variance), scale).to_event(1))

    log_w = log_weights(model, posterior, x, num_particles=S)
    torch.testing.assert_close(log_w, log_normal(x, 0.0, math.sqrt(1 + variance)).expand(S, B))


def test_log_weights_sum_to_what_pyro_estimates(x, weight):
    """The same draw through Trace_ELBO, which sums over the plate, and through log_weights, which does not."""
    model = linear(weight)
    _, q = guide_distribution(hand_written_guide, x)
    with seeded(5):
        pyro_elbo = -Trace_ELBO().loss(model, hand_written_guide, x)
    with seeded(5):
        noise = torch.randn(1, B, D)
    torch.testing.assert_close(weights_from_noise(model, x, q, noise, site="z").sum(), torch.tensor(pyro_elbo))
    torch.testing.assert_close(
        weights_from_noise(model, x, q, noise, site="z"),
        log_joint(model, x, z := x[:, :D] + 0.5 * noise) - log_normal(z, x[:, :D], 0.5),
    )


def test_log_weights_are_differentiable(x, weight):
    weight.requires_grad_()
    log_weights(linear(weight), hand_written_guide, x, num_particles=3).sum().backward()
    assert weight.grad.abs().min() > 0


def test_log_weights_of_a_distribution_without_rsample(x):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Poisson(torch.ones(D)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], P]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Poisson(torch.full((len(x), D), 2.0)).to_event(1))

    assert log_weights(model, guide, x, num_particles=4).shape == (4, B)


def test_the_callers_store_is_left_alone(x, z):
    vae = Tutorial()
    log_joint(vae.model, x.sigmoid().round(), z, site="latent")
    log_weights(vae.model, vae.guide, x.sigmoid().round())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    "guide",
    [
        hand_written_guide,
        lambda x: hand_written_guide(x, site="other"),
        Amortized(MeanField(D), nn.Linear(P, 4, dtype=torch.float64), site="mine"),
        Local(FullCovariance(D), torch.zeros(B, 5, dtype=torch.float64)),
    ],
    ids=["by hand", "another name", "amortized", "local"],
)
def test_the_site_is_read_off_the_guide(guide, x):
    site, q = guide_distribution(guide, x)
    assert site == next(name for name in poutine.trace(guide).get_trace(x).stochastic_nodes if name != "data")
    assert q.batch_shape == (B,) and q.event_shape == (D,)


# Breaking the contract ------------------------------------------------------------------------------------------------


def no_to_event(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], P]).to_event(1), obs=x)


def a_scalar(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def no_to_event_at_x(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], P), 1.0), obs=x)


def no_to_event_at_x_of_the_plates_size(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], B), 1.0), obs=torch.zeros(B, B))


def latent_outside(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), D), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], P]).to_event(1), obs=x)


def observed_outside(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], P]).to_event(1), obs=x)


def two_latents(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((z + w).sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], P]).to_event(1), obs=x)


def global_latent(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(D, P), 1.0).to_event(2))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ w, 1.0).to_event(1), obs=x)


def other_name(x):
    linear(torch.ones(D, P), latent="latent")(x)


def scaled(x):
    with poutine.scale(scale=3.0):
        linear(torch.ones(D, P))(x)


def scaled_likelihood(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], P]).to_event(1), obs=x)


def subsampling(x):
    with pyro.plate("data", len(x), subsample_size=len(x) - 1, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        mean = z.sum(-1, keepdim=True)[..., : len(index), :]
        pyro.sample("x", dist.Normal(mean, 1.0).expand([*mean.shape[:-1], P]).to_event(1), obs=x[index])


BROKEN = {
    no_to_event: r"inside plate\('data'\) at site z dim -1, 5 vs 2\. Sample it inside .*\.to_event\(1\)",
    a_scalar: r"site 'z': expected event shape \(2,\), that of the particles; got \(\)\. .*\.to_event\(1\)",
    no_to_event_at_x: r"inside plate\('data'\) at site x dim -1, 5 vs 3\. Sample it inside .*\.to_event\(1\)",
    no_to_event_at_x_of_the_plates_size: r"at site x dim -2, 7 vs 5\. Sample it inside .*\.to_event\(1\)",
    latent_outside: r"site 'z': .*inside plate 'data'; got \(7, 5\) outside any plate at dim=-1.*Sample it inside",
    observed_outside: r"site 'x': .*outside any plate at dim=-1.*Sample it inside pyro.plate",
    two_latents: r"site 'w': expected one latent site, 'z', inside the data plate; the model samples 'w' as well",
    global_latent: r"site 'w': expected one latent site.*or make it a parameter",
    other_name: r"site 'z': expected a latent site of this name in the model; it has 'latent', 'x'. Pass site=",
    scaled: r"site 'z': expected an unscaled log density; it is scaled by 3.0. Remove poutine.scale",
    scaled_likelihood: r"site 'x': expected an unscaled log density; it is scaled by 0.5",
    subsampling: r"site 'z': expected an unscaled log density; it is scaled by 1.25.*instead of subsampling",
}


def test_sizes_that_all_agree_hide_nothing():
    with pytest.raises(ValueError, match=r"site 'x': expected log_prob of shape \(5, 5\).* got \(5, 5, 5\) inside"):
        log_joint(no_to_event_at_x_of_the_plates_size, torch.zeros(B, B), torch.zeros(B, B, D))


@pytest.mark.parametrize("model", BROKEN, ids=lambda model: model.__name__.replace("_", " "))
def test_a_model_that_breaks_the_contract(model, x, z):
    # What Pyro's own validation refuses first is refused by Pyro; here it must not depend on that.
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=BROKEN[model]):
        log_joint(model, x, z)


@pytest.mark.parametrize(
    ("model", "site", "message"),
    [
        (linear(torch.ones(D, P, dtype=torch.float64)), "x", "site 'x': expected a latent site .* model; it has 'z'"),
        (linear(torch.ones(D, P, dtype=torch.float64)), "w", "site 'w': expected a latent site .* model; it has 'z'"),
        (a_scalar, "z", r"site 'z': expected batch shape \(5,\) .* got batch shape \(5,\) and event shape \(\)"),
        (latent_outside, "z", r"site 'z': .*outside any plate at dim=-1"),
    ],
    ids=["observed", "no such", "a number", "outside"],
)
def test_priors_that_break_the_contract(model, site, message, x):
    with pytest.raises(ValueError, match=message):
        latent_prior(model, x, site=site)


def guide_no_to_event(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, :D], 1.0))


def guide_of_a_number(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, 0], 1.0))


def guide_outside(x):
    pyro.sample("z", dist.Normal(x[:, :D], 1.0).to_event(1))


def guide_global(x):
    pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))


def guide_two(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, :D], 0.5).to_event(1))
        pyro.sample("w", dist.Normal(x[:, :D], 0.5).to_event(1))


def guide_none(x):
    pass


def guide_scaled(x):
    with poutine.scale(scale=0.5):
        hand_written_guide(x)


def guide_masked(x):
    with poutine.mask(mask=torch.zeros(len(x), dtype=torch.bool)):
        hand_written_guide(x)


@pytest.mark.parametrize(
    ("guide", "site", "message"),
    [
        (guide_no_to_event, None, r"inside plate\('data'\) at site z dim -1, 5 vs 2\. .*\.to_event\(1\)"),
        (guide_of_a_number, None, r"site 'z': expected batch shape \(5,\) and event shape \(D,\).*\.to_event\(1\)"),
        (guide_outside, None, r"site 'z': .*outside any plate at dim=-1.*pyro.plate\('data', len\(x\), dim=-1\)"),
        (guide_global, None, r"site 'z': expected batch shape \(5,\) .* got batch shape \(\)"),
        (guide_two, None, r"guide: expected one latent site; it samples 'z', 'w'"),
        (guide_two, "z", r"guide: expected one latent site, 'z'; it samples 'w' as well"),
        (guide_none, None, r"guide: expected one latent site; it samples none"),
        (hand_written_guide, "latent", r"site 'latent': expected a latent site of this name in the guide; it has 'z'"),
        (guide_scaled, None, r"site 'z': expected an unscaled log density; it is scaled by 0.5"),
        (guide_masked, None, r"site 'z': expected the guide to sample every datapoint; it is masked"),
    ],
    ids=[
        "no to_event",
        "a number",
        "outside",
        "global",
        "two",
        "two, one named",
        "none",
        "other name",
        "scaled",
        "masked",
    ],
)
def test_guides_that_break_the_contract(guide, site, message, x):
    with pytest.raises(ValueError, match=message):
        guide_distribution(guide, x, site=site)


# One datapoint must not depend on another -----------------------------------------------------------------------------


def test_a_constrained_parameter_stays_differentiable(x, z):
    def model(x):
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        linear(torch.ones(D, P), scale=scale)(x)

    pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    leaf = pyro.get_param_store().named_parameters()
    (leaf,) = dict(leaf).values()
    log_joint(model, x, z).sum().backward()
    # By hand: d/d log s of sum (-P log s - r^2 / 2 s^2) is sum (r^2 / s^2 - P).
    expected = ((x - z @ torch.ones(D, P)).square().sum(-1) / 4 - P).sum()
    torch.testing.assert_close(leaf.grad, expected)


class Bare(dist.TorchDistribution):
    """As Pyro's adapter of Zuko's flows: a density and draws by a call, neither `support` nor `sample`."""

    arg_constraints = {}

    def __init__(self, batch_shape=()):
        super().__init__(batch_shape, (D,), validate_args=False)

    def __call__(self, shape=()):
        return torch.randn(*shape, *self.batch_shape, D)

    def log_prob(self, value):
        return log_normal(value, 0.0, 1.0)

    def expand(self, batch_shape, _instance=None):
        return Bare(batch_shape)


class Whole(Bare):
    support = constraints.real_vector

    def sample(self, shape=()):
        return self(shape)

    def expand(self, batch_shape, _instance=None):
        return Whole(batch_shape)


class Located(Bare):
    support = constraints.real_vector

    def expand(self, batch_shape, _instance=None):
        return Located(batch_shape)


def with_prior(prior):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], P]).to_event(1), obs=x)

    return model


@pytest.mark.parametrize(("prior", "missing"), [(Bare(), "support"), (Located(), "sample")])
def test_a_prior_without_support_or_draws_is_refused_before_any_search(prior, missing, x):
    for measure in (
        lambda m: refine(m, MeanField(D), x, seed=0),
        lambda m: quadrature(m, x),
        lambda m: sample_posterior(m, x, num_draws=4, num_warmup=0, seed=0),
        lambda m: simulate(m, x, num_data=2, seed=0),
        lambda m: fit_em(m, MeanField(D), x, seed=0),
    ):
        with pytest.raises(ValueError, match=f"site 'z': expected .* without `{missing}`. Write a subclass"):
            measure(with_prior(prior))


def test_a_prior_with_the_missing_parts_is_measured(x):
    expected = quadrature(with_prior(dist.Normal(torch.zeros(D), 1.0).to_event(1)), x).value
    torch.testing.assert_close(quadrature(with_prior(Whole()), x).value, expected, atol=1e-3, rtol=0)


def test_a_method_that_is_not_implemented_has_a_text(x, z):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.VonMises(x.sum(-1), 1.0).icdf(x[:, 0]), obs=x)

    with pytest.raises(NotImplementedError, match="model: expected .*`icdf` is not implemented"):
        densities(model, x, z)


def test_global_sites_of_a_guide_with_rows():
    """It takes all its datapoints or none: more than a block of them."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + w, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(3.0, 0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("rows", torch.zeros(100, D)), 1.0).to_event(1))

    draws = draw_globals(model, guide, torch.zeros(100, D), num_draws=50, seed=0)["w"]
    assert draws.shape == (50,) and abs(draws.mean() - 3) < 4.5 * 0.1 / 50**0.5


def test_certain_weights_of_a_mixture():
    """A weight of zero, or nearly so, is none: a family that contains q holds it."""
    for logits in (torch.tensor([0.0, -40.0]), torch.tensor([-200.0, 0.0])):
        q = dist.MixtureOfDiagNormals(torch.tensor([[0.0, 0.0], [2.0, 1.0]]), torch.ones(2, 2), logits)
        family = MixtureOfGaussians(2, num_components=2)
        z = torch.randn(5, 2) + q.locs[logits.argmax()]
        torch.testing.assert_close(family(family.params_from(q)).log_prob(z), q.log_prob(z), atol=1e-5, rtol=1e-5)
