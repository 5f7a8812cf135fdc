"""One part changes, the rest stays: every prior with every family, every likelihood with every network."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from oracles import LinearOracle
from torch import nn

from inference import (
    Amortized,
    Annealing,
    FullCovariance,
    MeanField,
    Search,
    Training,
    em,
    fit_em,
    fit_svi,
    iwae,
    measure_gaps,
    quadrature,
    refine,
    to_datatree,
)
from inference.families import Constrained, CouplingFlow, HouseholderFlow, LowRank
from pyro_vae import VAE, Linear, LinearGaussian
from pyro_vae.likelihoods import Gaussian, Poisson
from pyro_vae.parts import Parts, Sizes, catalog, options
from pyro_vae.priors import Laplace, StandardNormal, StudentT, Uniform, VampPrior

# A few steps, where only that they can be taken is asked.
BRIEF = Search(first_round=4, max_rounds=1, num_particles=2, num_judge_draws=64, num_select_draws=4)
SHORT = Annealing(num_temperatures=2, num_chains=2, num_pilot_chains=2)
ONE_STEP = Training(epochs=1, batch_size=6, local_steps=1)
SIZES = Sizes(num_latents=2, num_values=16, image_shape=(4, 4), max_value=1.0, num_levels=3, level_step=0.5)


def fields(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def trainable(part):
    return any(weight.requires_grad for weight in part.parameters())


@pytest.mark.parametrize("family", list(catalog("family")))
@pytest.mark.parametrize("prior", list(catalog("prior")))
def test_every_prior_with_every_family(prior, family, monkeypatch):
    """One optimiser step in each engine moves what it should; one round of search and the gaps are finite."""
    monkeypatch.setattr(em, "LAST_STEPS", 1)
    if prior == "vamp-prior" and not catalog("family")[family].has_log_prob:
        # A mixture over such a family has no density at z.
        with pytest.raises(ValueError, match="VampPrior: guide: expected a family whose density"):
            Parts(prior=options("prior", prior), family=options("family", family)).build(SIZES)
        return
    parts = Parts(
        prior=options("prior", prior),
        likelihood=options("likelihood", "gaussian"),
        family=options("family", family),
        decoder=options("decoder", "linear"),
        encoder=options("encoder", "linear"),
    )
    x = torch.randn(6, 16)
    vae = VAE(**parts.build(SIZES))
    before = fields(vae)
    fit = fit_svi(vae.model, vae.guide, x, training=ONE_STEP, seed=0)
    assert fit.elbo.isfinite().all()
    moved = changed(vae, before)
    for part in ("prior", "guide.family", "guide.encoder", "decoder"):
        if trainable(vae.get_submodule(part)):
            assert any(name.startswith(part) for name in moved), part

    rows = refine(vae.model, vae.family, x[:2], init=vae.guide, search=BRIEF, num_draws=4, seed=0)
    assert rows.params.isfinite().all() and rows.elbo.isfinite().all()

    gaps = measure_gaps(
        vae.model,
        vae.guide,
        x[:2],
        search=BRIEF,
        annealing=SHORT,
        num_draws=4,
        num_evidence_draws=50,
        tol=math.inf,
        seed=0,
    )
    assert gaps.log_evidence.isfinite().all() and gaps.amortization_gap.isfinite().all()

    before = fields(vae.decoder)
    fit = fit_em(vae.model, vae.family, x, init=vae.guide, training=ONE_STEP, seed=0)
    assert fit.params.isfinite().all() and changed(vae.decoder, before)


@pytest.mark.parametrize("likelihood", list(catalog("likelihood")))
@pytest.mark.parametrize("network", ["linear", "mlp", "conv"])
def test_every_likelihood_with_every_network(likelihood, network):
    decoder, encoder = {"conv": ("conv-decoder", "conv-encoder")}.get(network, (network, network))
    chosen = {"likelihood": options("likelihood", likelihood)}
    if network == "mlp":
        chosen |= {kind: options(kind, "mlp", hidden=(4,)) for kind in ("decoder", "encoder")}
    elif network == "conv":
        chosen |= {
            kind: options(kind, name, channels=(2,), hidden=(4,))
            for kind, name in (("decoder", decoder), ("encoder", encoder))
        }
    else:
        chosen |= {"decoder": options("decoder", decoder), "encoder": options("encoder", encoder)}
    vae = VAE(**Parts(**chosen).build(SIZES))
    with torch.no_grad():
        x = vae.generate(6, seed=0)
    vae.likelihood.check(x)
    before = fields(vae)
    fit = fit_svi(vae.model, vae.guide, x, training=ONE_STEP, seed=0)
    assert fit.elbo.isfinite().all() and {"guide", "decoder"} <= {name.split(".")[0] for name in changed(vae, before)}
    rows = refine(vae.model, vae.family, x[:2], init=vae.guide, search=BRIEF, num_draws=4, seed=0)
    assert rows.elbo.isfinite().all()
    assert vae.reconstruct(x).shape == x.shape
    drawn = to_datatree(vae.model, vae.guide, x, num_draws=2, num_chains=1, seed=0)
    np.testing.assert_allclose(drawn["observed_data"]["x"], x.numpy(), rtol=1e-6)


class TestLinearGaussian:
    """Where the posterior is normal, and known."""

    oracle = LinearOracle.random(8, 3)
    x = oracle.draw(16)

    def model(self):
        return LinearGaussian(torch.tensor(self.oracle.weight), torch.tensor(self.oracle.bias), self.oracle.scale)

    @pytest.mark.parametrize(
        "family", [FullCovariance(3), LowRank(3, rank=3), HouseholderFlow(3, num_layers=3)], ids=repr
    )
    def test_a_family_that_contains_the_posterior_has_no_approximation_gap(self, family):
        refined = refine(self.model().model, family, torch.tensor(self.x), num_draws=2000, seed=0)
        gap = torch.tensor(self.oracle.log_evidence(self.x)) - refined.elbo
        assert refined.converged.all()
        assert gap.abs().max() < 0.02, gap

    def test_mean_field_reaches_its_closed_form(self):
        refined = refine(self.model().model, MeanField(3), torch.tensor(self.x), num_draws=2000, seed=0)
        gap = torch.tensor(self.oracle.log_evidence(self.x)) - refined.elbo
        assert self.oracle.approximation_gap > 0.2
        assert (gap.mean() - self.oracle.approximation_gap).abs() < 0.01 + 4 * refined.elbo_se.norm() / len(gap)


class SparseOracle:
    """z ~ any prior on the line, x_p | z ~ Poisson(exp(a_p + b_p z)), all by quadrature."""

    def __init__(self, log_prior, *, num_values=4, seed=0):
        rng = np.random.default_rng(seed)
        self.log_prior = log_prior
        self.intercept = rng.uniform(-0.5, 1.0, num_values)
        self.slope = rng.uniform(-1.0, 1.0, num_values)

    def draw(self, z, seed=1):
        return np.random.default_rng(seed).poisson(np.exp(self.intercept + np.multiply.outer(z, self.slope)))

    def log_joint(self, x, z):
        log_rate = self.intercept + np.multiply.outer(z, self.slope)
        return (x * log_rate - np.exp(log_rate) - scipy.special.gammaln(x + 1)).sum(-1) + self.log_prior(z)

    def elbo(self, x, loc, scale):
        u, step = np.linspace(-9, 9, 1801, retstep=True)
        density = scipy.stats.norm.pdf(u)
        return (density * self.log_joint(x, loc + scale * u)).sum() * step + scipy.stats.norm(0, scale).entropy()

    def best(self, x):
        """The best normal q over starts on both sides: a spiky prior has more than one."""
        found = [
            scipy.optimize.minimize(
                lambda row: -self.elbo(x, row[0], np.exp(row[1])),
                start,
                method="Nelder-Mead",
                options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000},
            )
            for start in ((0.0, 0.0), (0.0, -2.0), (1.5, -0.5), (-1.5, -0.5))
        ]
        return -min(result.fun for result in found)


def spiky(z):
    parts = [np.log(0.5) + scipy.stats.norm(0, scale).logpdf(z) for scale in (0.1, 1.0)]
    return np.logaddexp(*parts)


SPARSE = {
    "laplace": (lambda: Laplace(1), scipy.stats.laplace.logpdf),
    "student-t": (lambda: StudentT(1, df=4.0), scipy.stats.t(4).logpdf),
    "spiky mixture": (lambda: catalog("prior")["scale-mixture"](1, spike=0.1, slab=1.0, weight=0.5), spiky),
    "normal": (lambda: StandardNormal(1), scipy.stats.norm.logpdf),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case in ("laplace", "spiky mixture") else ()) for case in SPARSE],
)
def test_the_e_step_finds_the_best_normal_under_a_sparse_prior(case):
    prior, log_prior = SPARSE[case]
    oracle = SparseOracle(log_prior)
    x = oracle.draw(np.array([0.0, 0.4, -0.6, 1.2, -1.8, 2.5]))
    decoder = nn.Linear(1, 4)
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor(oracle.slope)[:, None])
        decoder.bias.copy_(torch.tensor(oracle.intercept))
    vae = VAE(prior=prior(), likelihood=Poisson(), decoder=decoder)
    family = MeanField(1)
    search = Search(num_particles=64, num_judge_draws=8192)
    refined = refine(vae.model, family, torch.tensor(x).double(), tol=1e-3, search=search, seed=0)
    q = family(refined.params)
    for n in range(len(x)):
        short = oracle.best(x[n]) - oracle.elbo(x[n], q.mean[n].item(), q.stddev[n].item())
        assert -1e-6 < short < 0.005, (n, short)


class TestBox:
    """z uniform on a box: q is a normal pushed through a bijection, and log q holds its Jacobian."""

    def vae(self):
        torch.manual_seed(1)
        return VAE(prior=Uniform(1, low=-1.0, high=2.0), likelihood=Gaussian(scale=0.5), decoder=nn.Linear(1, 3))

    def truth(self, vae, x):
        """log p(x) = log of the mean of the likelihood over the box."""
        z, step = np.linspace(-1, 2, 200001, retstep=True)
        mean = z[:, None] * vae.decoder.weight.detach().numpy().T + vae.decoder.bias.detach().numpy()
        log_p = scipy.stats.norm(mean, 0.5).logpdf(x[:, None]).sum(-1)
        trapezoid = np.full(len(z), step)
        trapezoid[[0, -1]] /= 2
        return scipy.special.logsumexp(log_p + np.log(trapezoid / 3), axis=-1)

    def test_evidence(self):
        vae = self.vae()
        x = vae.generate(20, seed=2)
        truth = torch.tensor(self.truth(vae, x.numpy()))
        assert (quadrature(vae.model, x).value - truth).abs().max() < 2e-4
        family = Constrained(MeanField(1), vae.prior().support)
        guide = Amortized(family, nn.Linear(3, family.num_params))
        evidence = iwae(vae.model, guide, x, num_draws=2000, seed=0)
        error = (evidence.value - truth) / evidence.se
        assert error.abs().max() < 4.5 and error.square().mean() < 2.5
        gaps = measure_gaps(vae.model, guide, x, num_draws=200, num_evidence_draws=500, seed=0)
        assert bool((gaps.approximation_gap > -4 * gaps.approximation_gap_se).all())
        assert bool((gaps.amortization_gap > -4 * gaps.amortization_gap_se).all())

    def test_another_family_is_refused_with_the_cure(self):
        with pytest.raises(
            ValueError, match=r"family: expected distributions on interval\(-1, 2\).*Constrained\(MeanF"
        ):
            VAE(
                prior=Uniform(1, low=-1.0, high=2.0),
                likelihood=Gaussian(),
                decoder=nn.Linear(1, 3),
                family=MeanField(1),
            )


class TestVampPrior:
    """The encoder is shared while both are trained, and a copy of it is kept when the guide alone is."""

    def build(self):
        family = MeanField(2)
        encoder = Linear(5, family.num_params)
        guide = Amortized(family, encoder)
        prior = VampPrior(guide, num_components=3)
        return VAE(
            prior=prior, likelihood=Gaussian(), decoder=nn.Linear(2, 5), family=family, encoder=encoder
        ), torch.randn(40, 5)

    def test_the_encoder_is_shared(self):
        vae, x = self.build()
        before = vae.prior().log_prob(torch.ones(2)).item()
        with torch.no_grad():
            vae.encoder.affine.bias += 1
        assert vae.prior().log_prob(torch.ones(2)).item() != before
        fit_svi(vae.model, vae.guide, x, training=Training(epochs=1), seed=0)
        assert vae.prior.guide.encoder is vae.encoder

    def test_training_the_guide_alone_leaves_the_model_as_it_is(self):
        vae, x = self.build()
        z = torch.randn(9, 2)
        before, weights = vae.prior().log_prob(z).detach(), vae.encoder.affine.weight.detach().clone()
        fit_svi(vae.model, vae.guide, x, train="guide", training=Training(epochs=2), seed=0)
        assert not torch.equal(vae.encoder.affine.weight, weights)
        assert torch.equal(vae.prior().log_prob(z), before)
        again, _ = self.build()
        again.load_state_dict(vae.state_dict())
        assert torch.equal(again.prior().log_prob(z), before)
        assert torch.equal(again.encoder.affine.weight, vae.encoder.affine.weight)

    def test_em_from_cold_is_refused(self):
        vae, x = self.build()
        with pytest.raises(ValueError, match="VampPrior.*GaussianMixture"):
            fit_em(vae.model, vae.family, x, training=ONE_STEP, seed=0)
        fit_em(vae.model, vae.family, x, init=vae.guide, training=ONE_STEP, seed=0)


def test_an_unfitted_flow_is_refused_as_a_further_family():
    vae = VAE(
        prior=StandardNormal(2),
        likelihood=Gaussian(),
        decoder=nn.Linear(2, 5),
        family=MeanField(2),
        encoder=nn.Linear(5, 4),
    )
    flow = CouplingFlow(2)
    with pytest.raises(ValueError, match="families: .*CouplingFlow.*shared=False"):
        measure_gaps(vae.model, vae.guide, torch.randn(3, 5), families=[flow], seed=0)
    guide = Amortized(flow, nn.Linear(5, flow.num_params))
    fit_svi(vae.model, guide, torch.randn(30, 5), train="guide", training=Training(epochs=1), seed=0)
    gaps = measure_gaps(
        vae.model,
        vae.guide,
        torch.randn(3, 5),
        families=[flow, CouplingFlow(2, shared=False)],
        search=BRIEF,
        annealing=SHORT,
        num_draws=4,
        num_evidence_draws=50,
        seed=0,
    )
    assert gaps.elbo_local_by_family.shape == (2, 3)


def test_missing_values_go_through_every_engine():
    """With every value but one of a datapoint unobserved, all is as if that value were the data."""
    torch.manual_seed(0)
    vae = VAE(
        prior=StandardNormal(2),
        likelihood=Gaussian(mask=True),
        decoder=nn.Linear(2, 5),
        family=MeanField(2),
        encoder=nn.Linear(5, 4),
    )
    x = vae.generate(30, seed=0)
    x[torch.rand(30, 5) < 0.4] = math.nan
    fit = fit_svi(vae.model, vae.guide, x, training=Training(epochs=2), seed=0)
    assert fit.elbo.isfinite().all()
    exact = LinearGaussian(vae.decoder.weight, vae.decoder.bias, 1.0)
    gaps = measure_gaps(vae.model, vae.guide, x[:8], num_draws=200, num_evidence_draws=2000, seed=0)
    error = (gaps.log_evidence - exact.log_evidence(x[:8]).detach()) / gaps.log_evidence_se
    assert error.abs().max() < 4.5
    fit_em(vae.model, vae.family, x, training=Training(epochs=1), seed=0)
    with pytest.raises(ValueError, match="mask=True"):
        plain = VAE(
            prior=StandardNormal(2),
            likelihood=Gaussian(),
            decoder=nn.Linear(2, 5),
            family=MeanField(2),
            encoder=nn.Linear(5, 4),
        )
        fit_svi(plain.model, plain.guide, x, training=Training(epochs=1), seed=0)


def test_a_mean_does_not_depend_on_its_company():
    """Of a flow, whose mean has no closed form."""
    family = CouplingFlow(2)
    vae = VAE(
        prior=StandardNormal(2),
        likelihood=Gaussian(),
        decoder=nn.Linear(2, 5),
        family=family,
        encoder=nn.Linear(5, family.num_params),
    )
    x = torch.randn(6, 5)
    torch.testing.assert_close(vae.reconstruct(x)[:1], vae.reconstruct(x[:1]))


@pytest.mark.parametrize("engine", ["svi", "em"])
def test_data_outside_the_support_are_not_blamed_on_the_step_size(engine):
    vae = VAE(
        prior=StandardNormal(2),
        likelihood=Poisson(),
        decoder=nn.Linear(2, 5),
        family=MeanField(2),
        encoder=nn.Linear(5, 4),
    )
    x = torch.ones(300, 5)
    x[200, 3] = -1
    with pytest.raises(ValueError, match=r"Poisson\(\): expected whole numbers.*got x\[\d+, 3\] = -1"):
        if engine == "svi":
            fit_svi(vae.model, vae.guide, x, training=Training(epochs=1), seed=0)
        else:
            fit_em(vae.model, vae.family, x, training=Training(epochs=1), seed=0)
