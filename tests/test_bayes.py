import copy
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from conjugate import ConjugateOracle
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from inference import Adam, Amortized, Cosine, MeanField, Training, draw_globals, elbo, fit_em, fit_svi
from inference.globals import GlobalSites, find_globals, whole_data
from inference.objectives import AmortizedELBO
from pyro_vae import MLP, VAE, load
from pyro_vae.bayes import BayesianVAE
from pyro_vae.likelihoods import Binomial, Gaussian
from pyro_vae.priors import DiagonalNormal, StandardNormal

# The conjugate model ------------------------------------------------------------------------------------------------


def conjugate_model(oracle, plate="data"):
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(1), oracle.prior_scale).to_event(1))
        with pyro.plate(plate, len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w + z, oracle.scale).to_event(1), obs=x)

    return model


class MeanFieldGuide(nn.Module):
    """q(w) q(z | x), all by hand: the best of them is in the oracle."""

    def __init__(self, plate="data"):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.encoder = nn.Linear(1, 2)
        self.plate = plate

    def forward(self, x):
        pyro.module(f"guide_{id(self)}", self)
        pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate(self.plate, len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    @torch.no_grad()
    def full_elbo(self, oracle):
        """In closed form, at the encoder's present numbers."""
        loc, log_scale = (
            column.flatten().numpy() for column in self.encoder(torch.tensor(oracle.x)[:, None]).chunk(2, -1)
        )
        mean, scale = self.loc.item(), self.log_scale.exp().item()
        local = oracle.local_elbo(mean, loc, np.exp(log_scale)) - 0.5 * scale**2 / oracle.scale**2
        ratio = scale / oracle.prior_scale
        return local.sum() - 0.5 * (ratio**2 + (mean / oracle.prior_scale) ** 2 - 1 - 2 * np.log(ratio))


class ExactGuide(nn.Module):
    """q(w) q(z | x, w) with the exact second factor at the start: log w_n is then log p(x_n | w), without noise."""

    def __init__(self, oracle, loc=0.0, scale=1.0, *, exact=True):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor([loc])), nn.Parameter(torch.tensor([scale]).log())
        slope, width = 1 / (1 + oracle.scale**2), oracle.posterior_of_z(0.0)[1]
        start = (slope, -slope, np.log(width)) if exact else (0.0, 0.0, 0.0)
        self.row = nn.Parameter(torch.tensor(start))

    def forward(self, x):
        pyro.module(f"guide_{id(self)}", self)
        w = pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            loc = self.row[0] * x + self.row[1] * w
            pyro.sample("z", dist.Normal(loc, self.row[2].exp()).to_event(1))


@pytest.fixture(scope="module")
def oracle():
    return ConjugateOracle.random(40)


@pytest.fixture
def x(oracle):
    return torch.tensor(oracle.x)[:, None]


def still(**options):
    return Training(optimizer=Adam(lr=1e-12), **options)


def test_the_oracle_agrees_with_itself(oracle):
    """log p(x) by quadrature over w of its conditionals; the mean-field optimum has vanishing derivatives."""
    w = np.linspace(-4, 6, 2001)
    given = np.array([oracle.log_evidence_given(value).sum() for value in w])
    joint = given + scipy.stats.norm(0, oracle.prior_scale).logpdf(w)
    assert np.log(np.trapezoid(np.exp(joint - joint.max()), w)) + joint.max() == pytest.approx(oracle.log_evidence)
    density = np.exp(joint - joint.max())
    mean = (w * density).sum() / density.sum()
    assert mean == pytest.approx(oracle.posterior[0])
    assert np.sqrt(((w - mean) ** 2 * density).sum() / density.sum()) == pytest.approx(oracle.posterior[1])
    guide = MeanFieldGuide()
    best_elbo = at_the_optimum(guide, oracle).full_elbo(oracle)
    assert best_elbo == pytest.approx(oracle.best_mean_field_elbo)
    for nudge in (-0.01, 0.01):
        for weight in guide.parameters():
            weight.data += nudge
            assert guide.full_elbo(oracle) < best_elbo
            weight.data -= nudge


@torch.no_grad()
def at_the_optimum(guide, oracle):
    mean, scale = oracle.mean_field
    slope, width = 1 / (1 + oracle.scale**2), oracle.posterior_of_z(0.0)[1]
    guide.loc.fill_(mean), guide.log_scale.fill_(np.log(scale))
    guide.encoder.weight.copy_(torch.tensor([[slope], [0.0]]))
    guide.encoder.bias.copy_(torch.tensor([-slope * mean, np.log(width)]))
    return guide


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_minibatches_reach_the_best_mean_field(oracle, x, kind):
    guide = MeanFieldGuide(plate="batch")
    training = Training(epochs=300, batch_size=7, optimizer=Adam(lr=0.05), schedule=Cosine())
    loss = kind(8, vectorize_particles=True, max_plate_nesting=1)
    fit = fit_svi(conjugate_model(oracle, plate="batch"), guide, x, loss=loss, training=training, seed=0)
    mean, scale = oracle.mean_field
    assert guide.loc.item() == pytest.approx(mean, abs=0.3 * scale)
    assert guide.log_scale.exp().item() == pytest.approx(scale, rel=0.05)
    assert oracle.best_mean_field_elbo - guide.full_elbo(oracle) == pytest.approx(0.0, abs=0.1)
    last = fit.elbo[-60:]
    noise = (last.std() / len(last) ** 0.5).item()
    assert last.mean().item() == pytest.approx(oracle.best_mean_field_elbo / 40, abs=4 * noise)
    assert fit.settings["global_sites"] == ["w"]


def test_minibatches_reach_the_posterior(oracle, x):
    """With q(z | x, w) the family holds the posterior: its ELBO is then log p(x)."""
    guide = ExactGuide(oracle, exact=False)
    training = Training(epochs=300, batch_size=7, optimizer=Adam(lr=0.03), schedule=Cosine())
    loss = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)
    fit = fit_svi(conjugate_model(oracle), guide, x, loss=loss, training=training, seed=0)
    mean, scale = oracle.posterior
    assert guide.loc.item() == pytest.approx(mean, abs=0.2 * scale)
    assert guide.log_scale.exp().item() == pytest.approx(scale, rel=0.05)
    last = fit.elbo[-60:]
    noise = (last.std() / len(last) ** 0.5).item()
    assert last.mean().item() == pytest.approx(oracle.log_evidence / 40, abs=4 * noise)


# Scaling ------------------------------------------------------------------------------------------------------------


class Pinned(dist.Normal):
    """A normal whose draws are made from noise that belongs to the datapoints: every minibatch sees the same."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape, _instance=None):
        loc, scale = (part.expand(batch_shape) for part in (self.loc, self.scale))
        return Pinned(loc, scale, torch.as_tensor(self.noise).expand(batch_shape))

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise


class PinnedGuide(MeanFieldGuide):
    def forward(self, x):
        pyro.module(f"guide_{id(self)}", self)
        pyro.sample("w", Pinned(self.loc, self.log_scale.exp(), 0.3).to_event(1))
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Pinned(loc, log_scale.exp(), (37 * x).sin()).to_event(1))


def objective_of(oracle, guide, num_data, kl_weight=1.0, loss=None):
    model = conjugate_model(oracle)
    plates = find_globals(model, torch.zeros(2, 1), guide=guide).plates
    pair = (whole_data(model, num_data, plates), whole_data(guide, num_data, plates))
    objective = AmortizedELBO(*pair, loss or Trace_ELBO(), list(guide.parameters()), num_data=num_data)
    objective.kl_weight = kl_weight
    return objective


def by_hand(oracle, guide, x, kl_weight):
    """Minus [log p(x | z, w) + beta (log p(z) - log q(z) + log p(w) - log q(w))] / N at the pinned noise."""
    loc, log_scale = (part.detach().numpy() for part in guide.encoder(x).chunk(2, -1))
    eps = np.sin(37 * x.numpy())
    mean, scale = guide.loc.item(), guide.log_scale.exp().item()
    w, z = mean + 0.3 * scale, loc + np.exp(log_scale) * eps
    normal = scipy.stats.norm
    likelihood = normal(w + z, oracle.scale).logpdf(x.numpy()).sum()
    kl = (normal(loc, np.exp(log_scale)).logpdf(z) - normal.logpdf(z)).sum()
    kl += normal(mean, scale).logpdf(w) - normal(0, oracle.prior_scale).logpdf(w)
    return -(likelihood - kl_weight * kl) / len(x)


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceGraph_ELBO()], ids=lambda loss: type(loss).__name__)
def test_the_mean_over_all_minibatches_is_the_full_batch(oracle, loss, kl_weight):
    x = torch.tensor(oracle.x[:5])[:, None]
    guide = PinnedGuide()
    objective = objective_of(oracle, guide, 5, kl_weight, loss)
    leaves = list(guide.parameters())
    full = objective(x)
    assert full.item() == pytest.approx(by_hand(oracle, guide, x, kl_weight))
    batches = [objective(x[list(rows)]) for rows in itertools.combinations(range(5), 2)]
    mean = torch.stack(batches).mean()
    torch.testing.assert_close(mean, full)
    for ours, theirs in zip(torch.autograd.grad(mean, leaves), torch.autograd.grad(full, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_a_global_site_nothing_changes(monkeypatch):
    """Looking for one leaves every number as it is."""
    x = torch.randn(30, 3)
    found = []

    def look(model, x, *, guide):
        found.append(find_globals(model, x, guide=guide))
        return found[-1]

    def look_away(model, x, *, guide):
        return GlobalSites((), frozenset())

    fits = []
    for find in (look, look_away):
        monkeypatch.setattr("inference.svi.find_globals", find)
        torch.manual_seed(1)
        parts = {"decoder": MLP(2, 3), "encoder": MLP(3, 4)}
        vae = VAE(prior=StandardNormal(2), likelihood=Gaussian(), family=MeanField(2), **parts)
        training = Training(epochs=3, batch_size=8, warm_up=1)
        fits.append(fit_svi(vae.model, vae.guide, x, training=training, validation=x, seed=0))
    assert found == [GlobalSites((), frozenset({"data"}))]
    assert torch.equal(fits[0].elbo, fits[1].elbo) and torch.equal(fits[0].elbo_validation, fits[1].elbo_validation)
    assert "global_sites" not in fits[0].settings


def test_what_is_reported_is_the_full_elbo_during_warm_up_too(oracle, x):
    guide = at_the_optimum(MeanFieldGuide(), oracle)
    with torch.no_grad():
        guide.log_scale += 0.5
    fit = fit_svi(conjugate_model(oracle), guide, x, training=still(epochs=400, batch_size=20, warm_up=200), seed=0)
    truth = guide.full_elbo(oracle) / 40
    for part in fit.elbo.split(200):
        assert part.mean().item() == pytest.approx(truth, abs=4 * (part.std() / len(part) ** 0.5).item())
    # The KL of w is a part of it that this can see.
    kl = guide.full_elbo(oracle) - 40 * guide_without_kl(guide, oracle)
    assert abs(kl) / 40 > 6 * (part.std() / len(part) ** 0.5).item()


def guide_without_kl(guide, oracle):
    ratio, mean = guide.log_scale.exp().item() / oracle.prior_scale, guide.loc.item() / oracle.prior_scale
    return (guide.full_elbo(oracle) + 0.5 * (ratio**2 + mean**2 - 1 - 2 * np.log(ratio))) / 40


def test_the_held_out_elbo_is_conditional(oracle, x):
    """q(w) is nearly a point and q(z | x, w) exact: it is log p(x | w), and the 14 nats of KL(w) are not in it."""
    guide = ExactGuide(oracle, loc=0.7, scale=1e-6)
    fit = fit_svi(conjugate_model(oracle), guide, x, training=still(epochs=2), validation=x[:9], seed=0)
    truth = oracle.log_evidence_given(0.7)[:9].mean()
    np.testing.assert_allclose(fit.elbo_validation, truth, atol=1e-4)


def test_held_out_draws_are_those_of_every_epoch_and_particles_differ(oracle, x):
    """With q(z | x, w) exact the value is the mean of log p(x | w) over the draws that the model was run at."""
    guide, inner, seen = ExactGuide(oracle, loc=0.7, scale=2.0), conjugate_model(oracle), []

    def model(x):
        with poutine.trace() as capture:
            out = inner(x)
        if len(x) == 9:
            seen.append(capture.trace.nodes["x"]["fn"].base_dist.loc - capture.trace.nodes["z"]["value"])
        return out

    fit = fit_svi(model, guide, x, training=still(epochs=2, batch_size=10), validation=x[:9], seed=0)
    # The first run looks at the held-out data before the first step.
    draws = [w.flatten()[0].item() for w in seen[1:]]
    assert len(set(np.round(draws[:4], 9))) == 4 and np.allclose(draws[:4], draws[4:])
    truth = np.mean([oracle.log_evidence_given(w)[:9].mean() for w in draws[:4]])
    np.testing.assert_allclose(fit.elbo_validation, truth)


def test_train_guide_freezes_the_model(oracle, x):
    shift = nn.Linear(1, 1)

    def model(x):
        pyro.module("shift", shift)
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 2.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w + shift(z), 0.5).to_event(1), obs=x)

    guide = MeanFieldGuide()
    before = [weight.clone() for weight in (*shift.parameters(), *guide.parameters())]
    fit_svi(model, guide, x, train="guide", training=Training(epochs=2), seed=0)
    after = [*shift.parameters(), *guide.parameters()]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False, False, False]


def without_w(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("a", torch.zeros(1)) * x, 1.0).to_event(1))


def subsampled(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(1), 2.0).to_event(1))
    with pyro.plate("data", 400, subsample=x, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w + z, 0.5).to_event(1), obs=x)


CASES = {
    "no guide of w": ({"guide": without_w}, "guide: expected it to sample 'w'.* it samples 'z'. Add it"),
    "Renyi": ({"loss": RenyiELBO(alpha=0.5)}, "loss: .*'w'.*scaled by N / B, under which RenyiELBO is wrong"),
    "scaled": ({"scale": 3.0}, "site '.' scaled by 3.0: expected an unscaled program.*fit_svi itself scales"),
    "subsampled": ({"model": subsampled}, "site '.' scaled by 10.0: expected an unscaled.*instead of subsampling"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_fit_svi_refuses(case, oracle, x):
    change, message = CASES[case]
    arguments = {"model": conjugate_model(oracle), "guide": MeanFieldGuide(), **change}
    if scale := arguments.pop("scale", None):
        arguments = {name: poutine.scale(part, scale) for name, part in arguments.items()}
    with pytest.raises(ValueError, match=message) as error:
        fit_svi(**{"data": x, **arguments}, training=Training(epochs=1), seed=0)
    assert "\n" not in str(error.value)


def test_draws_of_a_guide_written_by_hand(oracle, x):
    guide = ExactGuide(oracle, loc=3.0, scale=0.1)
    draws = draw_globals(conjugate_model(oracle), guide, x, num_draws=400, seed=0)
    assert set(draws) == {"w"} and draws["w"].shape == (400, 1) and not draws["w"].requires_grad
    assert draws["w"].mean().item() == pytest.approx(3.0, abs=4 * 0.1 / 20)
    assert draws["w"].std().item() == pytest.approx(0.1, rel=0.15)
    assert torch.equal(draws["w"], draw_globals(conjugate_model(oracle), guide, x, num_draws=400, seed=0)["w"])
    with pytest.raises(ValueError, match="num_draws: expected an integer of at least 1; got 0"):
        draw_globals(conjugate_model(oracle), guide, x, num_draws=0)
    with pytest.raises(ValueError, match="model: expected a latent site outside the data plate"):
        draw_globals(without_w, without_w, x, num_draws=1)


# The VAE ------------------------------------------------------------------------------------------------------------


def small_vae(*, prior=None, decoder=None, encoder=True, likelihood=None, seed=0):
    torch.manual_seed(seed)
    family = MeanField(2)
    return VAE(
        prior=prior or StandardNormal(2),
        likelihood=likelihood or Binomial(16),
        decoder=decoder or MLP(2, 16, 64),
        family=family,
        encoder=MLP(64, 16, family.num_params) if encoder else None,
    )


@pytest.fixture(scope="module")
def digits():
    return load("digits").train[torch.arange(200)].double()


def bits(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    "loss",
    [Trace_ELBO(), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1), TraceMeanField_ELBO()],
    ids=["one particle", "vectorised", "mean-field"],
)
def test_a_fit_on_digits(digits, loss):
    bayes = BayesianVAE(small_vae(prior=DiagonalNormal(2)))
    before = bits(bayes)
    trained = set()

    def note(state):
        trained.update(map(id, state.leaves.values()))

    training = Training(epochs=12, batch_size=50, optimizer=Adam(lr=0.01), callbacks=[note])
    fit = fit_svi(bayes.model, bayes.guide, digits, loss=loss, training=training, validation=digits[:20], seed=0)
    assert fit.elbo[-1] > fit.elbo[0] + 10 and fit.elbo_validation[-1] > fit.elbo_validation[0] + 10
    moved = changed(bayes, before)
    assert moved == {name for name in before if not name.startswith("vae.decoder.")}
    assert {name.split(".")[0] for name in moved} == {"vae", "weights_guide"}
    assert sum(name.startswith("weights_guide.scales") for name in moved) == 4
    assert not trained.intersection(map(id, bayes.vae.decoder.parameters()))
    assert not list(pyro.get_param_store().keys())
    assert all(weight.grad is None for weight in bayes.parameters())


def test_its_elbo_counts_the_kl_of_the_weights_once(digits):
    """Nothing moves: the mean over epochs is E[log p(x, z | w) - log q(z)] - KL(w) / N, the KL in closed form."""
    bayes = BayesianVAE(small_vae(), scale=0.5, init_scale=0.02)
    fit = fit_svi(bayes.model, bayes.guide, digits, training=still(epochs=60, batch_size=60), seed=0)
    draws = bayes.draw_weights(60, seed=1)
    local = elbo(bayes.model, bayes.guide, digits, given=draws, num_draws=4, seed=2)
    kl = 0.0
    for weight in bayes.vae.decoder.parameters():
        mean = weight.detach() / 0.5
        kl += 0.5 * (mean.square() + 0.04**2 - 1 - 2 * np.log(0.04)).sum().item()
    # The two are estimated on draws of the weights of their own.
    noise = (fit.elbo.std() / 60**0.5).item()
    assert fit.elbo.mean().item() == pytest.approx(local.value.mean().item() - kl / 200, abs=6 * noise)
    assert kl / 200 > 20 * noise


def test_particles_have_a_decoder_each(digits):
    """Under a plate of particles the log density of x is that of each particle's own weights and z."""
    bayes = BayesianVAE(small_vae(), init_scale=0.3)
    x = digits[:5]

    def vectorised(program):
        def wrapped(x):
            with pyro.plate("particles", 3, dim=-2):
                return program(x)

        return wrapped

    guide = poutine.trace(vectorised(bayes.guide)).get_trace(x)
    model = poutine.trace(poutine.replay(vectorised(bayes.model), trace=guide)).get_trace(x)
    model.compute_log_prob()
    z = guide.nodes["z"]["value"]
    assert z.shape == (3, 5, 2)
    for particle in range(3):
        decoder = copy.deepcopy(bayes.vae.decoder)
        for name, weight in decoder.named_parameters():
            weight.data.copy_(guide.nodes[f"decoder.{name}"]["value"][particle, 0])
        expected = Binomial(16)(decoder(z[particle])).log_prob(x)
        torch.testing.assert_close(model.nodes["x"]["log_prob"][particle], expected)
    with pytest.raises(ValueError, match="site 'z': expected one particle for each of the 3 draws.*3 x 5 rows; got 5"):
        poutine.condition(vectorised(bayes.model), {"z": z[0]})(x)


def test_the_guide_starts_at_the_decoder():
    bayes = BayesianVAE(small_vae(), init_scale=1e-6)
    draws = bayes.draw_weights(2, seed=0)
    for name, weight in bayes.vae.decoder.named_parameters():
        torch.testing.assert_close(
            draws[f"decoder.{name}"], weight.detach().expand(2, *weight.shape), atol=1e-4, rtol=0
        )
    assert all(torch.isfinite(values).all() and not values.requires_grad for values in draws.values())


def test_two_instances_share_nothing(digits):
    """Nor do copies, also where both live in one store, as under Pyro's own SVI."""
    first = BayesianVAE(small_vae(seed=0))
    second, third = BayesianVAE(small_vae(seed=1)), copy.deepcopy(first)
    before = bits(second), bits(third)
    start = first.draw_weights(2, seed=0)
    steps = [
        SVI(part.model, part.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()) for part in (first, second, third)
    ]
    for _ in range(3):
        steps[0].step(digits[:20])
    assert not changed(second, before[0]) and not changed(third, before[1])
    for _ in range(3):
        steps[2].step(digits[:20])
    moved = changed(third, before[1])
    assert any(name.startswith("weights_guide.locs") for name in moved)
    assert not any(name.startswith("vae.decoder") for name in moved)
    steps[1].step(digits[:20])
    drawn = [part.draw_weights(2, seed=0)["decoder.layers.0.weight"] for part in (first, second, third)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    assert not torch.equal(drawn[0], start["decoder.layers.0.weight"])


def test_a_state_dict_brings_the_draws_back(digits):
    bayes = BayesianVAE(small_vae(seed=0))
    fit_svi(bayes.model, bayes.guide, digits, training=Training(epochs=1), seed=0)
    file = io.BytesIO()
    torch.save(bayes.state_dict(), file)
    file.seek(0)
    other = BayesianVAE(small_vae(seed=1))
    other.load_state_dict(torch.load(file, weights_only=True))
    ours, theirs = bayes.draw_weights(4, seed=7), other.draw_weights(4, seed=7)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Drawing leaves the global generators and the store as they were.
    state = torch.get_rng_state()
    bayes.draw_weights(2, seed=3)
    assert torch.equal(state, torch.get_rng_state()) and not list(pyro.get_param_store().keys())


def test_buffers_and_modes_of_the_decoder_stay(digits):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.dropout = nn.Linear(2, 64), nn.Dropout(0.3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, z):
            self.calls += 1
            return self.dropout(self.layer(z))

    vae = small_vae(decoder=Counting())
    bayes = BayesianVAE(vae)
    vae.train()
    fit_svi(bayes.model, bayes.guide, digits, training=Training(epochs=1), validation=digits[:10], seed=0)
    assert vae.decoder.calls == 0 and vae.decoder.dropout.training
    # Dropout is off in a measurement.
    draws = bayes.draw_weights(1, seed=0)
    one, two = (elbo(bayes.model, bayes.guide, digits[:4], given=draws, seed=0).value for _ in range(2))
    assert torch.equal(one, two)


def test_parts_that_are_replaced_later_are_seen(digits):
    vae = small_vae(encoder=False)
    bayes = BayesianVAE(vae)
    with pytest.raises(ValueError, match="guide: expected a VAE with an encoder; got encoder=None"):
        bayes.guide(digits)
    vae.guide = Amortized(MeanField(2), MLP(64, 4))
    vae.prior = DiagonalNormal(2)
    fit_svi(bayes.model, bayes.guide, digits, training=Training(epochs=1), seed=0)
    assert not torch.equal(vae.prior.loc, torch.zeros(2))


def test_em_fits_the_rest_of_the_model_at_one_draw(digits):
    vae = small_vae(prior=DiagonalNormal(2), encoder=False)
    bayes = BayesianVAE(vae)
    before = bits(bayes)
    fit = fit_em(
        bayes.model, MeanField(2), digits[:60], given=bayes.draw_weights(1, seed=0), training=Training(epochs=1), seed=0
    )
    assert fit.params.shape == (60, 4) and fit.settings["given"] == 1
    moved = changed(bayes, before)
    assert moved and all(name.startswith("vae.prior") for name in moved)


def test_autonormal_by_hand_is_as_good(oracle, x):
    """A user's own guide, of Pyro's parts alone."""
    model = conjugate_model(oracle)
    weights, local = AutoNormal(poutine.block(model, expose=["w"])), Amortized(MeanField(1), nn.Linear(1, 2))

    def guide(x):
        weights(x)
        local(x)

    fit_svi(model, guide, x, training=Training(epochs=200, batch_size=10, optimizer=Adam(lr=0.05)), seed=0)
    draws = draw_globals(model, guide, x, num_draws=500, seed=0)["w"]
    mean, scale = oracle.mean_field
    assert draws.mean().item() == pytest.approx(mean, abs=2 * scale)
    assert elbo(model, guide, x, given={"w": draws[:2]}, seed=0).settings["given"] == 2


BAD = {
    "scale": (lambda: BayesianVAE(small_vae(), scale=0.0), "scale: expected a positive standard deviation; got 0.0"),
    "init_scale": (lambda: BayesianVAE(small_vae(), init_scale=-1.0), "init_scale: expected a positive.*got -1.0"),
    "no parameters": (lambda: BayesianVAE(small_vae(decoder=nn.Identity())), "decoder: expected parameters.*Identity"),
    "batch norm": (
        lambda: BayesianVAE(small_vae(decoder=nn.Sequential(nn.Linear(2, 64), nn.BatchNorm1d(64)))),
        r"decoder: expected no running statistics.*'1' \(BatchNorm1d\).*layer norm",
    ),
    "no draws": (lambda: BayesianVAE(small_vae()).draw_weights(0), "num_draws: expected a positive integer; got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_document_runs(capsys):
    text = (Path(__file__).resolve().parents[1] / "docs" / "full-bayes.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    torch.set_default_dtype(torch.float32)
    namespace = {}
    for block in blocks:
        exec(compile(block, "full-bayes.md", "exec"), namespace)  # noqa: S102
    assert "conditional on 2 draws" in capsys.readouterr().out
    assert not list(pyro.get_param_store().keys())
