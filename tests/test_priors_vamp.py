"""The prior that is made from the guide: its density, and who shares which weights when."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from torch import nn

from inference import Training, fit_em, fit_svi
from inference.families import Family, FullCovariance, MeanField
from inference.guides import Amortized, Local
from pyro_vae import parts
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import MLP
from pyro_vae.parts import Parts, Sizes
from pyro_vae.priors import VampPrior
from pyro_vae.vae import VAE

D, P, C = 2, 6, 5


def make_guide(family=None):
    family = family or MeanField(D)
    encoder = MLP(P, 8, family.num_params)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return Amortized(family, encoder)


def make_vae():
    guide = make_guide()
    prior = VampPrior(guide, num_components=C, max_value=1.0)
    return VAE(prior=prior, likelihood=Bernoulli(), decoder=MLP(D, 8, P), family=guide.family, encoder=guide.encoder)


def disturb(module, by=0.5):
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(by)


def data(num=60):
    return torch.bernoulli(torch.full((num, P), 0.4))


# Density


def test_density_is_the_mean_of_the_posteriors_at_the_pseudo_inputs():
    guide = Amortized(MeanField(D), nn.Linear(P, 2 * D))
    prior = VampPrior(guide, C, max_value=2.0)
    z = torch.randn(3, 4, D)
    weight, bias, raw = (t.detach().numpy() for t in (guide.encoder.weight, guide.encoder.bias, prior.raw))
    rows = 2 * scipy.special.expit(raw) @ weight.T + bias
    loc, scale = rows[:, :D], np.exp(12 * np.tanh(rows[:, D:] / 12))
    components = scipy.stats.norm.logpdf(z.numpy()[..., None, :], loc, scale).sum(-1)
    expected = scipy.special.logsumexp(components, axis=-1) - math.log(C)
    np.testing.assert_allclose(prior().log_prob(z).detach(), expected, rtol=1e-11)


class Shifted(Family):
    """A family of no kind of normal."""

    def __init__(self, num_latents):
        super().__init__(num_latents)
        self.num_params = num_latents

    def forward(self, params):
        return dist.Laplace(params, torch.full_like(params, 0.3)).to_event(1)


@pytest.mark.parametrize("family", [FullCovariance(D), Shifted(D)], ids=repr)
def test_other_families(family):
    guide = make_guide(family)
    prior = VampPrior(guide, C)
    p, z = prior(), torch.randn(3, 4, D)
    reference = dist.MixtureSameFamily(dist.Categorical(torch.full((C,), 1 / C)), guide.distribution(prior.raw))
    torch.testing.assert_close(p.log_prob(z), reference.log_prob(z))
    draws = p.sample((20_000,))
    assert draws.shape == (20_000, D) and p.expand((3, 2)).sample().shape == (3, 2, D)
    assert ((draws.mean(0) - reference.mean).abs() < 4 * (reference.variance / 20_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), reference.variance.detach(), rtol=0.1, atol=0)
    p.log_prob(z).sum().backward()
    assert prior.raw.grad.abs().max() > 0 and all(weight.grad is not None for weight in guide.encoder.parameters())


def test_pseudo_inputs_stay_in_the_range_of_the_data():
    prior = VampPrior(make_guide(), C, max_value=16.0)
    with torch.no_grad():
        prior.raw.mul_(1e4)
    assert 0 <= prior.pseudo_inputs.min() < 1e-3 and 16 - 1e-3 < prior.pseudo_inputs.max() <= 16
    free = VampPrior(make_guide(), C)
    assert free.pseudo_inputs is free.raw


def test_pseudo_inputs_start_at_data():
    prior = VampPrior(make_guide(), C, max_value=16.0)
    x = torch.rand(C, P) * 15 + 0.5
    x[0, 0], x[0, 1] = 0.0, 16.0
    prior.init_from(x)
    expected = x.clone()
    expected[0, :2] = torch.tensor([0.16, 15.84])
    torch.testing.assert_close(prior.pseudo_inputs.detach(), expected)
    free = VampPrior(make_guide(), C)
    free.init_from(-x)
    assert torch.equal(free.pseudo_inputs, -x)


# Sharing


def test_the_guide_is_shared_not_copied():
    vae = make_vae()
    assert vae.prior.guide.encoder is vae.encoder and vae.prior.guide.family is vae.family
    z = torch.randn(4, D)
    before = vae.prior().log_prob(z)
    disturb(vae.encoder)
    assert not torch.allclose(vae.prior().log_prob(z), before)
    copied = copy.deepcopy(vae)
    assert copied.prior.guide.encoder is copied.encoder is not vae.encoder


def test_both_train_together():
    vae = make_vae()
    before = copy.deepcopy(vae)
    fit_svi(vae.model, vae.guide, data(), training=Training(epochs=2), seed=0)
    assert vae.prior.guide.encoder is vae.encoder
    for module in ("prior", "guide", "decoder"):
        for one, other in zip(getattr(before, module).parameters(), getattr(vae, module).parameters(), strict=True):
            assert not torch.equal(one, other)
    # The density's gradient in the encoder is there: the prior moves it too.
    (gradient,) = torch.autograd.grad(vae.prior().log_prob(torch.randn(4, D)).sum(), vae.encoder.layers[0].weight)
    assert gradient.abs().max() > 0


def test_own_guide_does_not_move_and_is_never_trained():
    vae = make_vae()
    pyro.module("registered", vae)  # Pyro leaves a reference on the parameters.
    z = torch.randn(4, D)
    before = vae.prior().log_prob(z)
    vae.prior.keep_own_guide()
    own = vae.prior.guide
    vae.prior.keep_own_guide()
    assert vae.prior.guide is own and vae.prior.guide.encoder is not vae.encoder
    disturb(vae.encoder)
    assert torch.equal(vae.prior().log_prob(z), before)
    assert dict(vae.prior.named_parameters()).keys() == {"raw"}
    vae.train()
    assert not any(module.training for module in own.modules()) and vae.prior.training and vae.encoder.training
    vae.prior().log_prob(z).sum().backward()
    assert vae.prior.raw.grad.abs().max() > 0 and all(weight.grad is None for weight in vae.encoder.parameters())
    # A module of Pyro's: no warning about weights that are not trained.
    vae.model(data(3))


def test_a_prior_with_its_own_guide_comes_back_as_such():
    vae = make_vae()
    vae.prior.keep_own_guide()
    disturb(vae.encoder)
    z, x = torch.randn(4, D), data(3)
    other = make_vae()
    shared = other.encoder
    other.load_state_dict(vae.state_dict())
    assert other.encoder is shared and other.prior.guide.encoder is not shared
    torch.testing.assert_close(other.prior().log_prob(z), vae.prior().log_prob(z), rtol=0, atol=0)
    torch.testing.assert_close(other.encode(x).mean, vae.encode(x).mean, rtol=0, atol=0)
    assert not torch.equal(other.prior.guide.encoder.layers[0].weight, other.encoder.layers[0].weight)
    # Copies of it, and what is loaded once more, stay so.
    copied = copy.deepcopy(other)
    copied.load_state_dict(vae.state_dict())
    disturb(copied.encoder)
    assert torch.equal(copied.prior().log_prob(z), vae.prior().log_prob(z))


def test_a_prior_that_shares_comes_back_as_such():
    vae, other = make_vae(), make_vae()
    other.load_state_dict(vae.state_dict())
    assert other.prior.guide.encoder is other.encoder
    z = torch.randn(4, D)
    assert torch.equal(other.prior().log_prob(z), vae.prior().log_prob(z))
    other.prior.keep_own_guide()
    with pytest.raises(ValueError, match="this one has its own copy. Build the VAE anew"):
        other.load_state_dict(vae.state_dict())


# Engines


def test_a_guide_trained_alone_leaves_the_model_where_it_is():
    vae = make_vae()
    z = torch.randn(4, D)
    before, encoder = vae.prior().log_prob(z), copy.deepcopy(vae.encoder)
    fit_svi(vae.model, vae.guide, data(), train="guide", training=Training(epochs=2), seed=0)
    assert torch.equal(vae.prior().log_prob(z), before)
    assert not torch.equal(vae.encoder.layers[0].weight, encoder.layers[0].weight)


def test_variational_em_from_cold_is_refused():
    vae = make_vae()
    message = "VampPrior: expected an encoder .* from cold .* GaussianMixture, or .* init=guide"
    with pytest.raises(ValueError, match=message):
        vae.prior.check_cold_start()
    with pytest.raises(ValueError, match=message):
        fit_em(vae.model, MeanField(D), data(), training=Training(epochs=1), seed=0)
    vae.prior.keep_own_guide()
    fit_em(vae.model, MeanField(D), data(), training=Training(epochs=1), seed=0)


# Parts


def test_parts_build_it_on_the_guide_of_the_vae():
    chosen = Parts(
        prior=parts.options("prior", "vamp-prior", num_components=7),
        encoder=parts.options("encoder", "mlp", hidden=(8,)),
    )
    sizes = Sizes(num_latents=D, num_values=P, max_value=3.0)
    built = chosen.build(sizes)
    assert built["prior"].guide.encoder is built["encoder"] and built["prior"].guide.family is built["family"]
    assert repr(built["prior"]) == f"VampPrior({D}, num_components=7, num_values={P}, max_value=None)"
    with pytest.raises(ValueError, match="VampPrior: guide: .* got None. .* GaussianMixture"):
        Parts(prior=chosen.prior, encoder=None).build(sizes)
    context = {"guide": make_guide(), "num_values": P, "num_levels": 256, "level_step": 1 / 255}
    assert parts.build(chosen.prior, context).max_value == pytest.approx(1.0)


class Silent(nn.Module):
    def forward(self, x):
        return x[:, : 2 * D]


class Unscored(MeanField):
    has_log_prob = False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: VampPrior(None), "guide: .* got None. .* GaussianMixture", id="no guide"),
        pytest.param(
            lambda: VampPrior(Local(MeanField(D), torch.zeros(3, 4))), "an Amortized guide; got Local", id="local"
        ),
        pytest.param(lambda: VampPrior(make_guide(Unscored(D))), "density can .* MeanField", id="no density"),
        pytest.param(lambda: VampPrior(make_guide(), 0), "num_components: .* got 0", id="components"),
        pytest.param(lambda: VampPrior(Amortized(MeanField(D), Silent())), "Pass num_values=P", id="size"),
        pytest.param(lambda: VampPrior(make_guide(), num_values=4), "expected 6, .* got 4", id="mismatch"),
        pytest.param(lambda: VampPrior(make_guide(), max_value=0.0), "max_value: .* positive .* got 0", id="range"),
        pytest.param(
            lambda: VampPrior(make_guide(), C).init_from(torch.zeros(3, P)), r"expected \(5, 6\) .* \(3, 6\)", id="rows"
        ),
        pytest.param(
            lambda: VampPrior(make_guide(), C).init_from(torch.full((C, P), math.nan)), "fully observed", id="nan"
        ),
        pytest.param(
            lambda: VampPrior(make_guide(), C, max_value=1.0).init_from(torch.full((C, P), 2.0)),
            "from 0 to max_value = 1; got 2 to 2",
            id="out of range",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_sizes_are_read_off_the_encoder():
    for encoder in (nn.Linear(P, 2 * D), nn.Sequential(nn.Sequential(nn.Linear(P, 3)), nn.ELU(), nn.Linear(3, 2 * D))):
        assert VampPrior(Amortized(MeanField(D), encoder), C).num_values == P
    prior = VampPrior(Amortized(MeanField(D), Silent()), num_components=C, num_values=P)
    assert prior().log_prob(torch.zeros(D)).shape == () and prior.num_latents == prior.num_features == D
