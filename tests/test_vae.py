import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from inference.families import FullCovariance, MeanField
from inference.guides import Amortized
from pyro_vae.likelihoods import Bernoulli, Binomial, Gaussian, GaussianDecoderScale, GaussianSharedScale
from pyro_vae.linear import LinearGaussian
from pyro_vae.networks import MLP, Linear
from pyro_vae.priors import DiagonalNormal, StandardNormal
from pyro_vae.vae import VAE

D, P, B = 2, 6, 7


def make(*, prior=None, likelihood=None, decoder=None, family=None, encoder=None):
    likelihood = likelihood or Binomial(16)
    family = family or MeanField(D)
    return VAE(
        prior=prior or StandardNormal(D),
        likelihood=likelihood,
        decoder=decoder or MLP(D, 8, P * likelihood.num_params),
        family=family,
        encoder=encoder or MLP(P, 8, family.num_params),
    )


@pytest.fixture
def x():
    return torch.randint(0, 17, (B, P)).to(torch.get_default_dtype())


def elbo(vae, x, objective, *, seed=0):
    pyro.set_rng_seed(seed)
    return -objective.loss(vae.model, vae.guide, x)


def test_log_densities_are_the_parts(x):
    vae = make(prior=DiagonalNormal(D))
    z = torch.randn(B, D)
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], vae.prior().log_prob(z))
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], vae.likelihood(vae.decoder(z)).log_prob(x))
    assert trace.nodes["z"]["log_prob"].shape == (B,)
    assert [name for name, node in trace.nodes.items() if node["type"] == "sample"] == ["data", "z", "x"]
    free = poutine.trace(vae.model).get_trace(x)
    assert free.nodes["x"]["is_observed"] and not free.nodes["z"]["is_observed"]


def test_particles_on_the_left(x):
    vae = make(likelihood=GaussianDecoderScale(), decoder=nn.Sequential(nn.Linear(D, 4), Flat(), nn.Linear(4, 2 * P)))
    z = torch.randn(3, 4, B, D)
    model = poutine.condition(vae.model, {"z": z})
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (3, 4, B)
    single = poutine.trace(poutine.condition(vae.model, {"z": z[2, 1]})).get_trace(x)
    single.compute_log_prob()
    torch.testing.assert_close(trace.nodes["x"]["log_prob"][2, 1], single.nodes["x"]["log_prob"])


class Flat(nn.Module):
    """A module that, as a convolution, works on one batch dimension only."""

    def forward(self, x):
        if x.dim() != 2:
            raise RuntimeError("one batch dimension")
        return x


def test_uncondition_draws_x(x):
    vae = make()
    with pyro.plate("particles", 3, dim=-2):
        draws = poutine.uncondition(vae.model)(x)
    assert draws.shape == (3, B, P)
    drawn = poutine.uncondition(vae.model)(x)
    assert drawn.shape == (B, P) and not torch.equal(drawn, x)
    assert torch.equal(vae.model(x), x)


@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
        TraceMeanField_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        RenyiELBO(alpha=0.5, num_particles=2),
        RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=lambda objective: f"{type(objective).__name__}-{objective.num_particles}",
)
def test_trains_under_pyro(objective, x):
    vae = make(prior=DiagonalNormal(D), likelihood=GaussianSharedScale())
    before = {name: weight.clone() for name, weight in vae.named_parameters()}
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), objective)
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-5:]) < sum(losses[:5])
    for name, weight in vae.named_parameters():
        assert not torch.equal(weight, before[name]), name


def test_elbos_agree_and_the_mean_field_one_uses_the_closed_form_kl(x):
    vae = make(prior=DiagonalNormal(D))
    many = {"num_particles": 40, "vectorize_particles": True, "max_plate_nesting": 1}
    q = vae.encode(x)
    pyro.set_rng_seed(0)
    z = q.sample((40,))
    log_likelihood = vae.decode(z).log_prob(x).mean(0).sum()
    kl = torch.distributions.kl_divergence(q.base_dist, dist.Normal(vae.prior.loc, vae.prior.scale)).sum()
    assert elbo(vae, x, TraceMeanField_ELBO(**many)) == pytest.approx((log_likelihood - kl).item(), rel=1e-10)
    drawn = (q.log_prob(z) - vae.prior().log_prob(z)).mean(0).sum()
    assert elbo(vae, x, Trace_ELBO(**many)) == pytest.approx((log_likelihood - drawn).item(), rel=1e-10)


def test_two_vaes_do_not_touch_each_other(x):
    one, two = (make(prior=DiagonalNormal(D), likelihood=GaussianSharedScale()) for _ in range(2))
    twin = copy.deepcopy(one)
    svi = SVI(one.model, one.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    other = SVI(two.model, two.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    start, frozen = copy.deepcopy(one.state_dict()), copy.deepcopy(two.state_dict())
    svi.step(x)
    assert all(torch.equal(value, frozen[name]) for name, value in two.state_dict().items())
    between = copy.deepcopy(one.state_dict())
    other.step(x)
    assert all(torch.equal(value, between[name]) for name, value in one.state_dict().items())
    # Both, and the copy made before, have learned parameters of their own.
    SVI(twin.model, twin.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert all(torch.equal(value, between[name]) for name, value in one.state_dict().items())
    for vae, before in ((one, start), (two, frozen), (twin, start)):
        assert all(not torch.equal(weight, before[name]) for name, weight in vae.named_parameters())


def test_the_model_registers_its_own_parts_alone(x):
    vae = make(prior=DiagonalNormal(D), likelihood=GaussianSharedScale())
    model = {node["value"].unconstrained() for node in params(vae.model, x)}
    guide = {node["value"].unconstrained() for node in params(vae.guide, x)}
    owned = {*vae.prior.parameters(), *vae.decoder.parameters(), *vae.likelihood.parameters()}
    assert model == owned
    assert guide == set(vae.encoder.parameters())


def params(function, x):
    trace = poutine.trace(function).get_trace(x)
    return [node for node in trace.nodes.values() if node["type"] == "param"]


def test_names_stay_the_same_from_call_to_call(x):
    vae = make()
    assert [n["name"] for n in params(vae.model, x)] == [n["name"] for n in params(vae.model, x)]
    assert [n["name"] for n in params(vae.guide, x)] == [n["name"] for n in params(vae.guide, x)]


def test_nuts_finds_the_posterior():
    # The exactly solvable model, written as a VAE.
    weight = torch.randn(4, D)
    vae = VAE(prior=StandardNormal(D), likelihood=Gaussian(scale=0.8), decoder=nn.Linear(D, 4))
    with torch.no_grad():
        vae.decoder.weight.copy_(weight)
        vae.decoder.bias.zero_()
    truth = LinearGaussian(weight, torch.zeros(4), 0.8)
    x = truth.generate(3, seed=0)
    vae.requires_grad_(False).eval()
    mcmc = MCMC(NUTS(vae.model), num_samples=400, warmup_steps=150, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"]
    assert z.shape == (400, 3, D)
    q = truth.posterior(x)
    torch.testing.assert_close(z.mean(0), q.mean.detach(), atol=0.25, rtol=0)
    torch.testing.assert_close(z.std(0), q.stddev.detach(), atol=0.15, rtol=0)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel, x):
    vae = make()
    model = poutine.uncondition(vae.model)
    posterior = Predictive(model, guide=vae.guide, num_samples=5, parallel=parallel)(x)
    assert posterior["x"].shape == (5, B, P)
    prior = Predictive(model, num_samples=5, parallel=parallel, return_sites=("z", "x"))(x)
    assert prior["z"].shape == (5, B, D) and prior["x"].shape == (5, B, P)
    vae.likelihood.check(prior["x"])


def test_evidence_of_the_linear_case():
    truth = LinearGaussian(torch.randn(P, D), torch.randn(P), 0.5)
    family = FullCovariance(D)
    vae = make(
        likelihood=Gaussian(scale=0.5), decoder=Linear(D, P), family=family, encoder=Linear(P, family.num_params)
    )
    x = truth.generate(B, seed=0)
    q = truth.posterior(x)
    with torch.no_grad():
        vae.decoder.affine.weight.copy_(truth.weight)
        vae.decoder.affine.bias.copy_(truth.bias)
        gain = torch.linalg.solve(truth.precision, truth.weight.T) / 0.25
        rows = family.params_from(q)[0]
        vae.encoder.affine.weight.zero_()
        vae.encoder.affine.weight[:D] = gain
        vae.encoder.affine.bias.copy_(torch.cat([-gain @ truth.bias, rows[D:]]))
        assert elbo(vae, x, Trace_ELBO()) == pytest.approx(truth.log_evidence(x).sum().item(), rel=1e-10)


class OneTensor(nn.Module):
    """A user's prior with two modes."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))

    def forward(self):
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(self.loc, 1.0).to_event(1))


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Binomial(3), Gaussian(), GaussianSharedScale(), GaussianDecoderScale()]
)
@pytest.mark.parametrize("family", [MeanField(D), FullCovariance(D)], ids=repr)
@pytest.mark.parametrize(
    "prior",
    [
        StandardNormal(D),
        DiagonalNormal(D),
        OneTensor(),
        dist.Laplace(torch.zeros(D), 1.0).to_event(1),
        lambda: dist.StudentT(3.0, torch.zeros(D)).to_event(1),
    ],
    ids=["standard", "diagonal", "user's module", "distribution", "function"],
)
def test_every_combination_trains(prior, family, likelihood):
    vae = make(prior=copy.deepcopy(prior), family=family, likelihood=copy.deepcopy(likelihood)).double()
    x = torch.randint(0, 2, (B, P)).double()
    before = copy.deepcopy(vae.state_dict())
    loss = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert np.isfinite(loss)
    for name, weight in vae.named_parameters():
        assert not torch.equal(weight, before[name]), name
    assert vae.generate(3).shape == (3, P)
    assert vae.reconstruct(x).shape == (B, P)


def test_encode_is_the_guides_distribution(x):
    vae = make()
    q = vae.encode(x)
    assert q.batch_shape == (B,) and q.event_shape == (D,)
    z = torch.randn(B, D)
    torch.testing.assert_close(q.log_prob(z), vae.family(vae.encoder(x)).log_prob(z))
    assert q.mean.requires_grad


def test_reconstruct_is_the_mean_at_the_mean(x):
    vae = make(decoder=nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.5), nn.Linear(8, P)))
    vae.decoder[0].eval()
    vae.train(True).decoder[0].eval()
    first, second = vae.reconstruct(x), vae.reconstruct(x)
    assert torch.equal(first, second) and not first.requires_grad
    modes = {name: module.training for name, module in vae.named_modules()}
    assert not modes.pop("decoder.0") and all(modes.values())
    vae.eval()
    expected = 16 * torch.sigmoid(vae.decoder(vae.encode(x).mean))
    torch.testing.assert_close(vae.reconstruct(x), expected)


class NoMean(MeanField):
    def forward(self, params):
        q = super().forward(params)
        return dist.TransformedDistribution(q, [dist.transforms.AffineTransform(0.0, 1.0, event_dim=1)])


def test_reconstruct_where_q_has_no_mean(x):
    vae = make()
    other = make(family=NoMean(D))
    other.load_state_dict(vae.state_dict())
    with pytest.raises(NotImplementedError):
        _ = other.encode(x).mean
    state = torch.get_rng_state()
    assert (other.reconstruct(x) - vae.reconstruct(x)).abs().max() < 1.5
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(other.reconstruct(x), other.reconstruct(x))


def test_generate_draws_from_the_prior_predictive():
    vae = make(likelihood=Gaussian(scale=0.5), decoder=Linear(D, P))
    weight, bias = vae.decoder.affine.weight.detach(), vae.decoder.affine.bias.detach()
    x = vae.generate(100_000, seed=0)
    covariance = weight @ weight.T + 0.25 * torch.eye(P)
    assert x.shape == (100_000, P)
    assert (x.T.cov() - covariance).abs().max() < 0.05 * covariance.abs().max()
    assert (x.mean(0) - bias).abs().max() < 0.05


def test_generate_with_a_seed_leaves_the_generator_alone():
    vae = make()
    state = torch.get_rng_state()
    first = vae.generate(5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(vae.generate(5, seed=1), first)
    assert not torch.equal(vae.generate(5, seed=2), first)
    assert not torch.equal(vae.generate(5), vae.generate(5))
    assert vae.training


def test_without_an_encoder(x):
    vae = VAE(prior=StandardNormal(D), likelihood=Binomial(16), decoder=MLP(D, P), family=MeanField(D))
    assert vae.guide is None and vae.encoder is None and vae.family.num_latents == D
    vae.model(x)
    assert vae.generate(2, seed=0).shape == (2, P)
    for method in (vae.encode, vae.reconstruct):
        with pytest.raises(ValueError, match="encoder=None.*train='guide'"):
            method(x)
    vae.guide = Amortized(vae.family, MLP(P, 8, vae.family.num_params))
    assert vae.reconstruct(x).shape == (B, P)
    assert vae.family is vae.guide.family
    assert any(name.startswith("guide.encoder") for name in vae.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))], ids=["copy", "pickle"])
def test_copies(copied, x):
    vae = make(prior=dist.Laplace(torch.zeros(D), 1.0).to_event(1))
    vae.model(x)
    other = copied(vae)
    assert elbo(other, x, Trace_ELBO()) == elbo(vae, x, Trace_ELBO())
    before = elbo(vae, x, Trace_ELBO())
    SVI(other.model, other.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x)
    assert elbo(vae, x, Trace_ELBO()) == before
    assert elbo(other, x, Trace_ELBO()) != before


def test_state_dict_round_trip(x):
    vae, other = make(prior=DiagonalNormal(D)), make(prior=DiagonalNormal(D))
    assert elbo(other, x, Trace_ELBO()) != elbo(vae, x, Trace_ELBO())
    other.load_state_dict(vae.state_dict())
    assert elbo(other, x, Trace_ELBO()) == elbo(vae, x, Trace_ELBO())


def test_single_precision(x):
    vae = make(prior=dist.Laplace(torch.zeros(D), 1.0).to_event(1), family=FullCovariance(D)).float()
    assert vae.encode(x.float()).sample().dtype == torch.float32
    assert vae.generate(2).dtype == torch.float32
    assert elbo(vae, x.float(), Trace_ELBO()) == pytest.approx(elbo(vae.double(), x, Trace_ELBO()), rel=0.5)


def test_the_check_is_made_while_validation_is_on(x):
    vae = make(likelihood=Bernoulli(), decoder=MLP(D, P))
    with pytest.raises(ValueError, match=r"Bernoulli\(\): expected zeros and ones; got x\[0, 0\]"):
        vae.model(torch.full((B, P), 0.5))
    pyro.enable_validation(False)
    vae.model(torch.full((B, P), 0.5))


def test_print_is_one_screen():
    vae = make(prior=DiagonalNormal(D), decoder=nn.Sequential(*[nn.Linear(D, D) for _ in range(60)], nn.Linear(D, P)))
    text = str(vae)
    assert len(text.splitlines()) <= 10 and max(map(len, text.splitlines())) <= 120
    for words in ("DiagonalNormal(2)  (4 parameters)", "Binomial(16)", "Sequential", "MeanField(2)", "MLP(6, 8, 4,"):
        assert words in text
    vae = VAE(prior=lambda: dist.Normal(torch.zeros(D), 1.0).to_event(1), likelihood=Bernoulli(), decoder=MLP(D, P))
    assert "encoder:    None" in str(vae)
    shared = VAE(prior=StandardNormal(D), likelihood=GaussianSharedScale(), decoder=MLP(D, P))
    assert re.search(r"GaussianSharedScale\(.*\)  \(1 parameter\)$", str(shared), re.MULTILINE)


def test_importing_changes_nothing_global():
    code = (
        "import torch, pyro, random; state = torch.get_rng_state(); dtype = torch.get_default_dtype();"
        "import pyro_vae.vae, pyro_vae.parts, pyro_vae.linear;"
        "assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == dtype;"
        "assert torch.is_grad_enabled() and pyro.distributions.is_validation_enabled();"
        "assert not list(pyro.get_param_store().keys())"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


class Images(nn.Module):
    def forward(self, z):
        return torch.zeros(len(z), 2, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(
            lambda: make(encoder=MLP(P, 8, 5)), r"encoder: .* 4 outputs for MeanField\(2\); got 5", id="encoder outputs"
        ),
        pytest.param(
            lambda: make(encoder=nn.Sequential(nn.Linear(P, 3), nn.ReLU(), nn.Linear(3, 5))),
            "encoder: .* got 5",
            id="Sequential encoder outputs",
        ),
        pytest.param(
            lambda: make(family=MeanField(3)), r"family: expected size 2, .* MeanField\(3\)", id="family size"
        ),
        pytest.param(lambda: make(decoder=MLP(3, P)), "decoder: expected 2 inputs, .* got 3", id="decoder inputs"),
        pytest.param(
            lambda: make(decoder=MLP(D, 5)), "decoder: expected 6 x 1 = 6 outputs.* got 5", id="decoder outputs"
        ),
        pytest.param(
            lambda: make(likelihood=GaussianDecoderScale(), decoder=MLP(D, P)),
            r"decoder: expected 6 x 2 = 12 outputs.* GaussianDecoderScale.* got 6",
            id="decoder without scales",
        ),
        pytest.param(
            lambda: VAE(prior=StandardNormal(D), likelihood=GaussianDecoderScale(), decoder=MLP(D, 7)),
            "decoder: expected P x 2 outputs.* got 7",
            id="odd decoder outputs",
        ),
        pytest.param(
            lambda: VAE(prior=StandardNormal(D), likelihood=Bernoulli(), decoder=MLP(D, P), encoder=MLP(P, 4)),
            "family: .* got None",
            id="encoder without family",
        ),
        pytest.param(lambda: make(prior=dist.Normal(torch.zeros(D), 1.0)), r"prior: .*\.to_event\(1\)", id="prior"),
    ],
)
def test_parts_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("vae", "shape", "message"),
    [
        pytest.param({}, (P,), r"x: expected shape \(B, P\).*x\[None\]", id="one row"),
        pytest.param({}, (B, 2, 3), r"x: .* got \(7, 2, 3\).*x.flatten\(1\)", id="images"),
        pytest.param({}, (B, P + 1), "decoder: expected 7 x 1 = 7 outputs.* got 6", id="width"),
        pytest.param(
            {"decoder": Images()}, (B, P), r"decoder: .* got shape \(7, 2, 3\).*flatten\(1\)", id="decoded images"
        ),
    ],
)
def test_bad_x(vae, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**vae).model(torch.ones(shape))
    assert "\n" not in str(error.value)


def test_encoder_that_announces_nothing_is_found_out_at_the_first_call(x):
    class Encoder(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 5)

    vae = make(encoder=Encoder())
    with pytest.raises(ValueError, match="encoder: expected family.num_params = 4"):
        vae.encode(x)


@pytest.mark.parametrize(("n", "seed"), [(0, None), (2.5, None), (3, -1), (3, 1.5)])
def test_bad_generate(n, seed):
    with pytest.raises(ValueError, match="num_draws|seed"):
        make().generate(n, seed=seed)


def test_a_single_row_is_no_batch():
    """The message names x and the remedy, and leaves the encoder out of it."""
    vae = VAE(
        prior=StandardNormal(2), likelihood=Bernoulli(), decoder=MLP(2, 4, 6), family=MeanField(2), encoder=MLP(6, 4, 4)
    )
    x = torch.zeros(3, 6)
    for call in (vae.encode, vae.reconstruct, vae.model, vae.guide.params):
        with pytest.raises(ValueError, match=r"^x: expected shape \(B, P\).*got \(6,\).*x\[0:1\] in place of x\[0\]"):
            call(x[0])
    with pytest.raises(ValueError, match=r"^x: .*got \(3, 2, 3\).*x.flatten\(1\)"):
        vae.encode(x.view(3, 2, 3))
    with pytest.raises(TypeError, match="torch.as_tensor"):
        vae.encode(x.numpy())
