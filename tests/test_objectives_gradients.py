"""Every loss's gradient against the derivative of its bound, by quadrature in NumPy.

z ~ N(m, 1), x | z ~ N(w z, s^2 I), q = N(loc, scale^2): z is a number, so a bound made of three draws is an integral
over three. Every row of a batch has the same x and copies of all parameters of its own, so that the gradient in those
copies is a sample of gradients.
"""

import copy
import math
from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ReweightedWakeSleep
from torch import nn

from inference import (
    IWAE,
    Amortized,
    AnalyticKL,
    DReG,
    FullCovariance,
    MeanField,
    PathwiseELBO,
    PlanarFlow,
    Renyi,
    ScoreFunctionELBO,
    StickingTheLanding,
    WakeSleep,
)
from inference.isolation import private_store, trainable
from inference.noise import antithetic, seeded
from inference.objectives import AmortizedELBO, AmortizedLoss, Joint
from pyro_vae import MLP, VAE, LinearGaussian
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import Laplace, StandardNormal, VampPrior

X = np.array([0.9, -0.3])
SCALE = 0.7
# loc, raw log scale, w, m.
POINT = np.array([0.1, math.log(0.6), 1.0, -0.7, 0.2])
# How much of q's location the prior's shares, where they share it.
SHARED = 0.6
NUM_ROWS = 40_000

LOSSES = [
    PathwiseELBO(),
    PathwiseELBO(3),
    StickingTheLanding(2),
    ScoreFunctionELBO(1),
    ScoreFunctionELBO(3),
    AnalyticKL(2),
    IWAE(3),
    DReG(3),
    Renyi(3, alpha=0.5),
    Renyi(3, alpha=-1.0),
]


def grid(size=40):
    nodes, weights = np.polynomial.hermite.hermgauss(size)
    return math.sqrt(2) * nodes, weights / math.sqrt(math.pi)


def log_normal(value, loc, scale):
    return -0.5 * ((value - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)


def log_weights(point, noise, *, kl_weight, shared):
    loc, raw, *w, m = point
    scale = np.exp(12 * np.tanh(raw / 12))
    z = loc + scale * noise
    likelihood = sum(log_normal(value, slope * z, SCALE) for value, slope in zip(X, w, strict=True))
    return likelihood + kl_weight * (log_normal(z, m + shared * loc, 1.0) - log_normal(z, loc, scale))


def triples(values):
    """Of three independent draws: each one's value on the grid (3, n, n, n)."""
    return np.stack(np.broadcast_arrays(values[:, None, None], values[:, None], values))


def bound(loss, point, *, kl_weight, shared):
    noise, weight = grid()
    log_w = log_weights(point, noise, kl_weight=kl_weight, shared=shared)
    if loss.is_elbo:
        return weight @ log_w
    power = 1 - getattr(loss, "alpha", 0.0)
    log_mean = np.log(np.exp(power * triples(log_w)).mean(0)) / power
    return np.einsum("i,j,k,ijk", weight, weight, weight, log_mean)


@cache
def derivative(loss, *, kl_weight, shared):
    """Of minus the bound in loc, raw, w and m, by central differences."""
    step = 1e-4 * np.eye(len(POINT))
    up, down = ([bound(loss, POINT + sign * h, kl_weight=kl_weight, shared=shared) for h in step] for sign in (1, -1))
    return -(np.array(up) - np.array(down)) / 2e-4


class Copies:
    """The model and q with parameters of its own in every row."""

    def __init__(self, num_rows, *, shared=0.0):
        point = torch.tensor(POINT).expand(num_rows, -1)
        self.rows = point[:, :2].clone().requires_grad_()
        self.w = point[:, 2:4].clone().requires_grad_()
        self.m = point[:, 4:].clone().requires_grad_()
        self.x = torch.tensor(X).expand(num_rows, -1)
        self.shared = shared
        self.family = MeanField(1)

    def model(self, x):
        # On a few of the rows, too: all are the same.
        m, w, rows = (copies[: len(x)] for copies in (self.m, self.w, self.rows))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(m + self.shared * rows[:, :1], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * w, SCALE).to_event(1), obs=x)

    def gradients(self, loss, noise, *, kl_weight=1.0, **options):
        """(N, 5): a row's gradient in its own copies."""
        value = loss(Joint(self.model, self.x, "z"), self.family(self.rows), noise, kl_weight=kl_weight, **options)
        grads = torch.autograd.grad(value.sum(), [self.rows, self.w, self.m])
        return torch.cat(grads, 1), value.detach()


def worst_z(sample, expected):
    """The largest distance of a mean from what it should be, in standard errors; differences err by about 1e-10."""
    se = sample.std(0) / math.sqrt(len(sample))
    return ((sample.mean(0) - torch.as_tensor(expected)).abs() / se.clamp_min(1e-9)).max().item()


def test_the_quadrature_has_settled(monkeypatch):
    """To a thousandth of the Monte Carlo errors that it is compared with."""
    losses = [PathwiseELBO(), IWAE(3), Renyi(3, alpha=-1.0)]
    fine = [bound(loss, POINT, kl_weight=1.0, shared=0.0) for loss in losses]
    monkeypatch.setitem(globals(), "grid", lambda: grid_of(60))
    assert [bound(loss, POINT, kl_weight=1.0, shared=0.0) for loss in losses] == pytest.approx(fine, abs=1e-6)
    evidence = dist.MultivariateNormal(
        torch.tensor(POINT[2:4] * POINT[4]),
        torch.tensor(np.outer(POINT[2:4], POINT[2:4]) + SCALE**2 * np.eye(2)),
    ).log_prob(torch.tensor(X))
    assert fine[0] < fine[1] < evidence.item()


grid_of = grid


@pytest.mark.parametrize("shared", [0.0, SHARED], ids=["", "shared"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.4])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_mean_gradient(loss, kl_weight, shared):
    """In q's parameters, the model's, and those that a prior shares with q."""
    copies = Copies(NUM_ROWS, shared=shared)
    noise = antithetic(torch.randn(loss.num_particles, NUM_ROWS, 1))
    gradients, value = copies.gradients(loss, noise, kl_weight=kl_weight)
    expected = derivative(loss, kl_weight=kl_weight, shared=shared)
    z = worst_z(gradients, expected)
    print(f"{loss!r} kl_weight={kl_weight} shared={shared}: worst |z| {z:.2f}")
    assert z < 4
    assert worst_z(value[:, None], [-bound(loss, POINT, kl_weight=kl_weight, shared=shared)]) < 4


@pytest.mark.parametrize("kl_weight", [1.0, 0.4])
def test_mean_gradient_of_wake_sleep(kl_weight):
    """The model's is that of the bound; the guide's is the weighted score of q."""
    copies, loss = Copies(NUM_ROWS), WakeSleep(3, insomnia=0.3)
    gradients, _ = copies.gradients(loss, torch.randn(3, NUM_ROWS, 1), kl_weight=kl_weight)
    noise, weight = grid()
    w = np.exp(triples(log_weights(POINT, noise, kl_weight=kl_weight, shared=0.0)))
    slope = 1 - math.tanh(POINT[1] / 12) ** 2
    scale = math.exp(12 * math.tanh(POINT[1] / 12))
    scores = [triples(noise / scale), triples((noise**2 - 1) * slope)]
    wake = [-np.einsum("i,j,k,ijk", weight, weight, weight, (w * score).sum(0) / w.sum(0)) for score in scores]
    model = derivative(IWAE(3), kl_weight=kl_weight, shared=0.0)[2:]
    z = worst_z(gradients, [*(0.3 * part for part in wake), *model])
    print(f"{loss!r} kl_weight={kl_weight}: worst |z| {z:.2f}")
    assert z < 4


def test_mean_gradient_of_sleep():
    """q = N(a'x + c, scale^2) at x simulated from the model: -log q is quadratic in normals."""
    copies = Copies(NUM_ROWS)
    a = torch.tensor([0.3, -0.2]).expand(NUM_ROWS, -1).clone().requires_grad_()
    rows = copies.rows

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            loc = (a[: len(x)] * x).sum(-1, keepdim=True) + rows[: len(x), :1]
            pyro.sample("z", copies.family(torch.cat([loc, rows[: len(x), 1:]], 1)))

    value = WakeSleep(1, insomnia=0.25).sleep(Joint(copies.model, copies.x, "z"), guide)
    assert not value.any() and not torch.equal(copies.x[0], copies.x[0] + 1)
    gradients = torch.cat(torch.autograd.grad(value.sum(), [rows, a]), 1)
    loc, raw, m = POINT[[0, 1, 4]]
    slope, w = np.array([0.3, -0.2]), POINT[2:4]
    variance = math.exp(24 * math.tanh(raw / 12))
    # The error z' - a'x' - c has this mean and variance, and these covariances with x'.
    mean = m - slope @ w * m - loc
    spread = (1 - slope @ w) ** 2 + SCALE**2 * slope @ slope
    covariance = (1 - slope @ w) * w - SCALE**2 * slope
    in_loc = -mean / variance
    in_raw = (1 - (spread + mean**2) / variance) * (1 - math.tanh(raw / 12) ** 2)
    in_a = -(covariance + mean * w * m) / variance
    z = worst_z(gradients, 0.75 * np.array([in_loc, in_raw, *in_a]))
    print(f"sleep: worst |z| {z:.2f}")
    assert z < 4
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(
            WakeSleep(1, insomnia=0.25).sleep(Joint(copies.model, copies.x, "z"), guide).sum(), copies.w
        )


# Variances ------------------------------------------------------------------------------------------------------------


def variance_ratio(first, second, *, num_batches=20):
    """Total variance of one sample of gradients over another's, and its standard error over batches."""
    parts = [
        (a.var(0).sum() / b.var(0).sum()).item()
        for a, b in zip(first.chunk(num_batches), second.chunk(num_batches), strict=True)
    ]
    return np.mean(parts), np.std(parts, ddof=1) / math.sqrt(num_batches)


@pytest.mark.parametrize("k", [4, 32])
def test_dreg_has_less_variance_than_iwae(k):
    """In q's parameters; in the model's they are the same, draw by draw."""
    copies, noise = Copies(NUM_ROWS // 4), torch.randn(k, NUM_ROWS // 4, 1)
    (dreg, _), (iwae, _) = (copies.gradients(loss, noise) for loss in (DReG(k), IWAE(k)))
    torch.testing.assert_close(dreg[:, 2:], iwae[:, 2:])
    assert worst_z(dreg[:, :2] - iwae[:, :2], torch.zeros(2)) < 4
    ratio, se = variance_ratio(dreg[:, :2], iwae[:, :2])
    print(f"DReG({k}) over IWAE({k}): variance ratio {ratio:.4f} +- {se:.4f}")
    assert ratio + 4 * se < 1


def test_the_baseline_lowers_the_variance():
    copies, noise = Copies(NUM_ROWS), torch.randn(4, NUM_ROWS, 1)
    (with_baseline, _), (without, _), (pathwise, _) = (
        copies.gradients(loss, noise) for loss in (ScoreFunctionELBO(4), ScoreFunctionELBO(1), PathwiseELBO())
    )
    assert worst_z(with_baseline[:, :2] - pathwise[:, :2], torch.zeros(2)) < 4
    ratio, se = variance_ratio(with_baseline[:, :2], without[:, :2])
    print(f"score function, baseline over none, 4 draws each: variance ratio {ratio:.4f} +- {se:.4f}")
    assert ratio + 4 * se < 1
    ratio, se = variance_ratio(with_baseline[:, :2], pathwise[:, :2])
    print(f"score function with baseline over pathwise, 4 draws each: variance ratio {ratio:.3f} +- {se:.3f}")


@pytest.mark.parametrize("loss", [StickingTheLanding(), DReG(5)], ids=repr)
def test_no_variance_at_the_posterior(loss):
    """An encoder that is exact: every draw's gradient is round-off, for the encoder though not for the model."""
    exact = LinearGaussian(torch.randn(3, 2), torch.zeros(3), SCALE)
    x, family = torch.randn(6, 3), FullCovariance(2)
    rows = family.params_from(exact.posterior(x)).detach()
    encoder = nn.Linear(3, family.num_params)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(6, 1)], 1), rows).solution
    encoder.load_state_dict({"weight": solution[:3].T, "bias": solution[3]})
    guide = Amortized(family, encoder)
    with private_store(exact.model, guide):
        for estimator, limit in ((loss, 1e-9), (PathwiseELBO(), math.inf)):
            value = AmortizedLoss(exact.model, guide, estimator)(x)
            gradient = torch.autograd.grad(value, encoder.weight, retain_graph=True)[0]
            assert gradient.abs().max() < limit
            assert torch.autograd.grad(value, exact.weight)[0].abs().max() > 0.01
        assert gradient.abs().max() > 0.01
        torch.testing.assert_close(AmortizedLoss(exact.model, guide, loss)(x), -exact.log_evidence(x).mean())


# What a loss is made of -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl_weight", [1.0, 0.4])
@pytest.mark.parametrize("loss", [StickingTheLanding(2), DReG(3)], ids=repr)
def test_a_copy_that_stands_still_gives_the_same_gradient(loss, kl_weight):
    copies, noise = Copies(7, shared=SHARED), torch.randn(2 * loss.num_particles, 7, 1)
    subtracted, _ = copies.gradients(loss, noise, kl_weight=kl_weight)
    still = copies.family(copies.rows.detach())
    torch.testing.assert_close(copies.gradients(loss, noise, kl_weight=kl_weight, still=still)[0], subtracted)


@pytest.mark.parametrize("loss", [*LOSSES, WakeSleep(3)], ids=repr)
def test_a_datapoint_does_not_depend_on_its_batch(loss):
    copies, noise = Copies(5), torch.randn(2 * loss.num_particles, 5, 1)
    copies.x = torch.randn(5, 2)
    whole = copies.gradients(loss, noise)
    for n in range(5):
        alone = Copies(1)
        alone.x = copies.x[n : n + 1]
        gradient, value = alone.gradients(loss, noise[:, n : n + 1])
        torch.testing.assert_close((gradient[0], value[0]), (whole[0][n], whole[1][n]))


@pytest.mark.parametrize(
    "loss", [StickingTheLanding(2), DReG(3), IWAE(3), ScoreFunctionELBO(2), WakeSleep(3)], ids=repr
)
def test_a_prior_made_from_the_guide_keeps_its_gradient(loss):
    """The encoder's gradient is that of the guide under a prior that stands still, plus that of the prior."""
    family, x = MeanField(2), torch.rand(6, 8).round()
    encoder, decoder = MLP(8, 8, family.num_params), MLP(2, 8, 8)
    prior = VampPrior(Amortized(family, encoder), 3)
    vae = VAE(prior=prior, likelihood=Bernoulli(), decoder=decoder, family=family, encoder=encoder)

    def gradient(*leaves):
        with private_store(vae.model, vae.guide), seeded(3):
            return torch.autograd.grad(AmortizedLoss(vae.model, vae.guide, loss)(x), leaves)

    whole = gradient(*encoder.parameters())
    prior.guide = copy.deepcopy(prior.guide)
    own = prior.guide.encoder
    parts = gradient(*encoder.parameters(), *own.parameters())
    of_guide, of_prior = parts[: len(whole)], parts[len(whole) :]
    torch.testing.assert_close(whole, tuple(a + b for a, b in zip(of_guide, of_prior, strict=True)))
    assert all(part.abs().max() > 1e-4 for part in of_prior)


@pytest.mark.parametrize("loss", [*LOSSES, WakeSleep(3, insomnia=0.5)], ids=repr)
def test_the_step_is_the_loss_at_the_guide(loss):
    """At one value a datapoint, with the weight of the KL."""
    model, guide, x = (
        LinearGaussian(torch.randn(3, 2), torch.zeros(3), SCALE),
        Amortized(MeanField(2), nn.Linear(3, 4)),
        torch.randn(5, 3),
    )
    objective = AmortizedLoss(model.model, guide, loss)
    objective.kl_weight = 0.3
    with private_store(model.model, guide):
        with seeded(3):
            value = objective(x)
        with seeded(3):
            guide(x)
            log_p, noise = Joint(model.model, x, "z"), torch.randn(loss.num_particles, 5, 2)
            expected = loss(log_p, guide.distribution(x), noise, kl_weight=0.3).mean()
            plain = loss(log_p, guide.distribution(x), noise).mean()
    torch.testing.assert_close(value, expected)
    assert abs((plain - expected).item()) > 0.01


# Pyro's wake-sleep ----------------------------------------------------------------------------------------------------


def wake_sleep_pair():
    torch.manual_seed(5)
    model = LinearGaussian(torch.randn(3, 2), torch.zeros(3), SCALE)
    guide = Amortized(MeanField(2), nn.Linear(3, 4))

    def on_observations(x, observations=None):
        """Pyro hands simulated data to a guide in this way."""
        return guide(observations["x"] if observations else x)

    return model, guide, on_observations


@pytest.mark.parametrize("insomnia", [1.0, 0.4, 0.0])
def test_at_one_datapoint_wake_sleep_is_pyros(insomnia):
    model, guide, on_observations = wake_sleep_pair()
    x = torch.randn(1, 3)
    theirs = ReweightedWakeSleep(
        num_particles=4, insomnia=insomnia, num_sleep_particles=1, vectorize_particles=True, max_plate_nesting=1
    )
    with private_store(model.model, guide):
        leaves = list(trainable(model.model, guide, x=x).values())
        with seeded(3):
            ours, log_p = WakeSleep(4, insomnia=insomnia), Joint(model.model, x, "z")
            loss = ours(log_p, guide.distribution(x), torch.randn(4, 1, 2)) + ours.sleep(log_p, guide)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        with seeded(3):
            expected = AmortizedELBO(model.model, on_observations, theirs, leaves)(x)
        torch.testing.assert_close(loss.mean().detach(), expected.detach())
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves))


def test_pyros_weights_belong_to_the_batch():
    """Its bound of a batch loosens as the batch grows; ours is the same for every datapoint."""
    model, guide, _ = wake_sleep_pair()
    x = torch.randn(1, 3).expand(64, 3)
    theirs = ReweightedWakeSleep(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    values = {}
    with private_store(model.model, guide):
        leaves = list(trainable(model.model, guide, x=x).values())
        for name, size in (("one", 1), ("batch", 64)):
            runs = [
                [
                    AmortizedELBO(model.model, guide, theirs, leaves)(x[:size]).item(),
                    AmortizedLoss(model.model, guide, WakeSleep(8))(x[:size]).item(),
                ]
                for _ in range(400 if size == 1 else 50)
            ]
            values[name] = torch.tensor(runs)
    for column, name in enumerate(("Pyro", "ours")):
        one, batch = (values[key][:, column] for key in ("one", "batch"))
        difference = (batch.mean() - one.mean()).item()
        se = math.hypot(one.std().item() / math.sqrt(len(one)), batch.std().item() / math.sqrt(len(batch)))
        print(f"{name}: minus the bound, 64 together less alone: {difference:.3f} +- {se:.3f} nats per datapoint")
        assert difference > 0.5 if name == "Pyro" else abs(difference) < 4 * se


# Errors ---------------------------------------------------------------------------------------------------------------

BAD = {
    "no draws": (lambda: IWAE(0), "IWAE: num_particles: expected an integer of at least 1; got 0. Try 8"),
    "half a draw": (lambda: PathwiseELBO(0.5), "PathwiseELBO: num_particles"),
    "order 1": (lambda: Renyi(3, alpha=1), "Renyi: alpha: .*PathwiseELBO"),
    "infinite order": (lambda: Renyi(3, alpha=math.inf), "Renyi: alpha"),
    "insomnia": (lambda: WakeSleep(3, insomnia=1.5), "WakeSleep: insomnia: .*0 to 1; got 1.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("loss", [StickingTheLanding(), DReG(2), ScoreFunctionELBO(2), WakeSleep(2)], ids=repr)
def test_a_family_without_densities(loss):
    family = PlanarFlow(1)
    copies = Copies(3)
    with pytest.raises(ValueError, match=rf"loss: {type(loss).__name__} .*PlanarFlow.*PathwiseELBO"):
        loss(Joint(copies.model, copies.x, "z"), family(family.initial_params(3, like=copies.x)), torch.randn(2, 3, 1))


def test_no_closed_form():
    vae = VAE(prior=Laplace(2), likelihood=Bernoulli(), decoder=MLP(2, 3), family=MeanField(2), encoder=None)
    q = FullCovariance(2)(torch.zeros(4, 5))
    with (
        private_store(vae.model),
        pytest.raises(ValueError, match="KL.*MultivariateNormal.*prior Independent.*Laplace"),
    ):
        AnalyticKL()(Joint(vae.model, torch.zeros(4, 3), "z"), q, torch.randn(1, 4, 2))


def test_the_analytic_kl_looks_at_the_prior_alone():
    """The decoder runs once, on the draws."""
    calls = []

    class Decoder(MLP):
        def forward(self, z):
            calls.append(len(z))
            return super().forward(z)

    vae = VAE(prior=StandardNormal(2), likelihood=Bernoulli(), decoder=Decoder(2, 3), family=MeanField(2), encoder=None)
    with private_store(vae.model):
        AnalyticKL()(Joint(vae.model, torch.zeros(4, 3), "z"), MeanField(2)(torch.zeros(4, 4)), torch.randn(1, 4, 2))
    assert calls == [4]
