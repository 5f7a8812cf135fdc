"""Gradients against those derived by hand on x | z ~ N(W z, s^2 I), z ~ N(0, I), draw by draw.

With z = loc + L noise, Lambda = I + W'W / s^2 and m(x) the posterior mean:
d/dz log p(x, z) = -Lambda (z - m).
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn

from inference.families import FullCovariance, MeanField
from inference.guides import Amortized
from inference.isolation import private_store, trainable
from inference.noise import antithetic, seeded
from inference.objectives import AmortizedELBO, LocalLoss, PathwiseELBO, StickingTheLanding

D, P, B, S = 2, 3, 4, 6
SCALE = 0.7


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, P))
        self.bias = nn.Parameter(torch.randn(P))

    def model(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight + self.bias, SCALE).to_event(1), obs=x)

    def residual(self, x, z):
        return (x - z @ self.weight - self.bias).detach() / SCALE**2

    def posterior(self, x):
        weight = self.weight.detach()
        precision = torch.eye(D) + weight @ weight.T / SCALE**2
        covariance = torch.linalg.inv(precision)
        return (x - self.bias.detach()) @ weight.T / SCALE**2 @ covariance, covariance


@pytest.fixture
def linear():
    return Linear()


@pytest.fixture
def x():
    return torch.randn(B, P)


def log_normal(value, loc, scale):
    return (-0.5 * ((value - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)).sum(-1)


def mean_field_by_hand(linear, x, rows, noise, *, weight=1.0):
    """Minus the objective of each datapoint and its gradient in (loc, r), noise given; `weight` on the whole KL."""
    loc, raw = rows.chunk(2, -1)
    confined = torch.tanh(raw / 12)
    scale = (12 * confined).exp()
    z = loc + scale * noise
    entropy_terms = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi) - scale.log()
    likelihood = log_normal(x, z @ linear.weight.detach() + linear.bias.detach(), SCALE)
    value = likelihood + weight * (log_normal(z, 0.0, 1.0) - entropy_terms.sum(-1))
    # Through z: log p(x | z) and weight * log p(z). At fixed noise, -weight * log q is weight * sum log scale.
    in_z = linear.residual(x, z) @ linear.weight.detach().T - weight * z
    in_log_scale = in_z * scale * noise + weight
    gradient = torch.cat([in_z, in_log_scale * (1 - confined**2)], -1)
    # Sticking the landing leaves the score of q out: then -log q counts through z alone, weight * noise / scale.
    path = in_z + weight * noise / scale
    stuck = torch.cat([path, path * scale * noise * (1 - confined**2)], -1)
    return -value.mean(0), -gradient.mean(0), -stuck.mean(0)


# Rows of their own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("stick", [True, False])
def test_local_gradient_draw_by_draw(linear, x, stick, weight):
    rows, noise = torch.randn(B, 2 * D), torch.randn(S, B, D)
    objective = LocalLoss(linear.model, MeanField(D), "z", loss=StickingTheLanding() if stick else PathwiseELBO())
    objective.kl_weight = weight
    value, gradient, stuck = mean_field_by_hand(linear, x, rows, noise, weight=weight)
    with private_store(linear.model):
        torch.testing.assert_close(objective(x, rows, noise).detach(), value)
        torch.testing.assert_close(objective.row_gradient(x, rows, noise), stuck if stick else gradient)


def test_both_gradients_have_the_same_mean(linear, x):
    """10,000 datapoints with one x and one row, a draw each: the two estimators agree within 4 standard errors."""
    num_draws = 10_000
    x, rows = x[:1].expand(num_draws, P), (0.5 * torch.randn(1, 2 * D)).expand(num_draws, 2 * D)
    _, gradient, stuck = mean_field_by_hand(linear, x, rows, torch.randn(1, num_draws, D))
    difference = gradient - stuck
    assert (difference.mean(0).abs() < 4 * difference.std(0) / math.sqrt(num_draws)).all()
    assert difference.std(0).min() > 0.1


def test_local_gradient_of_the_exact_expectation(linear, x):
    """Antithetic pairs at +-sqrt(D) e_d integrate quadratics exactly: the gradient is then the closed form's."""
    rows = torch.randn(B, 2 * D)
    nodes = math.sqrt(D) * torch.eye(D)
    noise = antithetic(nodes.unsqueeze(1).expand(D, B, D))
    loc, raw = rows.chunk(2, -1)
    variance = (24 * torch.tanh(raw / 12)).exp()
    mean, covariance = linear.posterior(x)
    precision = torch.linalg.inv(covariance)
    in_loc = (loc - mean) @ precision
    in_log_scale = precision.diagonal() * variance - 1
    expected = torch.cat([in_loc, in_log_scale * (1 - torch.tanh(raw / 12) ** 2)], -1)
    objective = LocalLoss(linear.model, MeanField(D), "z", loss=PathwiseELBO())
    with private_store(linear.model):
        torch.testing.assert_close(objective.row_gradient(x, rows, noise), expected)


def test_local_model_gradient(linear, x):
    """The M-step: the same loss differentiated in the model's parameters at fixed rows."""
    rows, noise = torch.randn(B, 2 * D), torch.randn(S, B, D)
    with private_store(linear.model):
        loss = LocalLoss(linear.model, MeanField(D), "z")(x, rows, noise).mean()
    gradients = torch.autograd.grad(loss, [linear.weight, linear.bias])
    loc, raw = rows.chunk(2, -1)
    z = loc + (12 * torch.tanh(raw / 12)).exp() * noise
    residual = linear.residual(x, z)
    torch.testing.assert_close(gradients[0], -torch.einsum("sbd,sbp->dp", z, residual) / (S * B))
    torch.testing.assert_close(gradients[1], -residual.sum((0, 1)) / (S * B))


def test_sticking_the_landing_vanishes_at_the_posterior(linear, x):
    """At q = posterior, with full covariance: every draw alone has gradient 0, and weight log p(x). Nowhere else."""
    mean, covariance = linear.posterior(x)
    family = FullCovariance(D)
    rows = family.params_from(dist.MultivariateNormal(mean, covariance))
    objective = LocalLoss(linear.model, family, "z")
    full = LocalLoss(linear.model, family, "z", loss=PathwiseELBO())
    marginal = linear.weight.T @ linear.weight + SCALE**2 * torch.eye(P)
    evidence = dist.MultivariateNormal(linear.bias, marginal).log_prob(x).detach()
    with private_store(linear.model):
        for _ in range(5):
            noise = torch.randn(1, B, D)
            gradient = objective.row_gradient(x, rows, noise)
            torch.testing.assert_close(gradient, torch.zeros_like(rows), rtol=0, atol=1e-9)
            torch.testing.assert_close(objective.log_weights(x, rows, noise)[0], evidence)
            assert full.row_gradient(x, rows, noise).abs().max() > 0.1
            assert objective.row_gradient(x, rows + 0.1, noise).abs().max() > 0.01


def test_the_value_costs_no_digits():
    """A nearly singular covariance in float32: inverting a draw would lose them, the noise has them."""
    wide = FullCovariance(D)
    row, noise, x = torch.tensor([[100.0, -100.0, -4.0, -4.0, 800.0]]), torch.randn(S, 1, D), torch.randn(1, P)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 100.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(0.01 * z.sum(-1, keepdim=True).expand(*z.shape[:-1], P), 1.0).to_event(1), obs=x
            )

    objective = LocalLoss(model, wide, "z")
    exact = objective(x, row.clone().requires_grad_(), noise)
    single = objective(x.float(), row.float().requires_grad_(), noise.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)


def test_the_true_elbo_does_not_know_the_kl_weight(linear, x):
    rows, noise = torch.randn(B, 2 * D), torch.randn(S, B, D)
    objective = LocalLoss(linear.model, MeanField(D), "z")
    with private_store(linear.model):
        before = objective.log_weights(x, rows, noise)
        objective.kl_weight = 0.3
        assert torch.equal(objective.log_weights(x, rows, noise), before)
        torch.testing.assert_close(before.mean(0), -mean_field_by_hand(linear, x, rows, noise)[0])
        assert not objective.log_weights(x, rows.requires_grad_(), noise).requires_grad


def test_row_gradient_touches_nothing(linear, x):
    rows, noise = torch.randn(B, 2 * D), torch.randn(S, B, D)
    objective = LocalLoss(linear.model, MeanField(D), "z")
    linear.bias.requires_grad_(False)
    linear.weight.grad = torch.ones_like(linear.weight)
    before = {name: weight.detach().clone() for name, weight in linear.named_parameters()}
    copy = rows.clone()
    with private_store(linear.model):
        linear.eval()
        objective.row_gradient(x, rows, noise)
    assert torch.equal(linear.weight.grad, torch.ones_like(linear.weight)) and linear.bias.grad is None
    assert linear.weight.requires_grad and not linear.bias.requires_grad
    assert not rows.requires_grad and rows.grad is None and torch.equal(rows, copy)
    assert all(torch.equal(weight, before[name]) for name, weight in linear.named_parameters())


def test_a_row_out_of_range_does_not_take_the_others_along(linear, x):
    rows, noise = torch.randn(B, 2 * D), torch.randn(S, B, D)
    objective = LocalLoss(linear.model, MeanField(D), "z")
    with private_store(linear.model), pyro.validation_enabled(False):
        whole = objective.row_gradient(x, rows, noise)
        rows[1] = math.nan
        gradient = objective.row_gradient(x, rows, noise)
    others = [0, 2, 3]
    torch.testing.assert_close(gradient[others], whole[others])
    assert torch.equal(gradient[1], torch.zeros(2 * D))


# A Pyro ELBO object ---------------------------------------------------------------------------------------------------


@pytest.fixture
def guide():
    return Amortized(MeanField(D), nn.Linear(P, 2 * D))


def encoder_gradients(in_rows, x):
    """From the gradient in the rows (B, K) to that in the linear encoder's weight and bias, per datapoint."""
    return in_rows.T @ x / B, in_rows.sum(0) / B


@pytest.mark.parametrize("weight", [1.0, 0.25, 1e-8])
def test_amortized_gradient_on_the_same_draw(linear, guide, x, weight):
    leaves = [guide.encoder.weight, guide.encoder.bias, linear.weight, linear.bias]
    objective = AmortizedELBO(linear.model, guide, Trace_ELBO(), leaves)
    objective.kl_weight = weight
    with seeded(3), private_store(linear.model, guide):
        loss = objective(x)
        gradients = torch.autograd.grad(loss, leaves)
    with seeded(3):
        noise = torch.randn(B, D).unsqueeze(0)
    rows = guide.params(x).detach()
    value, in_rows, _ = mean_field_by_hand(linear, x, rows, noise, weight=weight)
    torch.testing.assert_close(loss.detach(), value.mean())
    torch.testing.assert_close(gradients[:2], encoder_gradients(in_rows, x))
    loc, raw = rows.chunk(2, -1)
    z = loc + (12 * torch.tanh(raw / 12)).exp() * noise[0]
    torch.testing.assert_close(gradients[2], -(z.T @ linear.residual(x, z)) / B)
    torch.testing.assert_close(gradients[3], -linear.residual(x, z).mean(0))


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
    ],
    ids=["loop", "vectorised", "mean field"],
)
def test_the_kl_weight_reaches_every_elbo(linear, guide, x, loss, weight):
    """weight = a: the loss is (1 - a) of that without KL, a of the true one, on one draw (and one closed-form KL)."""

    def value(kl_weight):
        objective = AmortizedELBO(linear.model, guide, loss, [])
        objective.kl_weight = kl_weight
        with seeded(3), private_store(linear.model, guide):
            return objective(x)

    torch.testing.assert_close(value(weight), (1 - weight) * value(0.0) + weight * value(1.0))
    assert not torch.isclose(value(0.0), value(1.0))


def test_the_kl_weight_scales_the_closed_form(linear, guide, x):
    def value(kl_weight):
        objective = AmortizedELBO(linear.model, guide, TraceMeanField_ELBO(), [])
        objective.kl_weight = kl_weight
        with seeded(3), private_store(linear.model, guide):
            return objective(x)

    q = guide.distribution(x)
    kl = 0.5 * (q.variance + q.mean.square() - 1 - q.variance.log()).sum(-1).mean()
    torch.testing.assert_close(value(1.0) - value(0.4), 0.6 * kl)


RENYI = [
    RenyiELBO(alpha=0.0, num_particles=3),
    RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    TraceGraph_ELBO(),
    ReweightedWakeSleep(num_particles=3, max_plate_nesting=1),
]


@pytest.mark.parametrize("loss", RENYI, ids=lambda loss: f"{type(loss).__name__}")
def test_gradients_that_are_handed_on(linear, guide, x, loss):
    """Where Pyro differentiates by itself: its value and its gradients, and every .grad as it was."""
    with private_store(linear.model, guide):
        leaves = trainable(linear.model, guide, x=x)
        with seeded(3):
            value = loss.loss_and_grads(linear.model, guide, x)
        value = value[0] if isinstance(value, tuple) else value
        expected = {name: leaf.grad / B for name, leaf in leaves.items()}
        for leaf in leaves.values():
            leaf.grad = None
        linear.bias.grad = kept = torch.ones(P)
        objective = AmortizedELBO(linear.model, guide, loss, list(leaves.values()))
        with seeded(3):
            handed = objective(x)
        gradients = torch.autograd.grad(2 * handed, list(leaves.values()))
    torch.testing.assert_close(handed.detach(), torch.tensor(value / B))
    assert handed.dtype == torch.float64
    torch.testing.assert_close(dict(zip(leaves, gradients, strict=True)), {n: 2 * g for n, g in expected.items()})
    assert linear.bias.grad is kept and torch.equal(kept, torch.ones(P))
    assert linear.weight.grad is guide.encoder.weight.grad is None


def test_gradients_of_what_is_not_trained_are_left_alone(linear, guide, x):
    """train="guide": Pyro's own backward pass reaches the model too."""

    def with_a_bare_site(x):
        pyro.param("bare", torch.zeros(()))
        pyro.sample("y", dist.Normal(pyro.param("bare"), 1.0), obs=torch.tensor(1.0))
        linear.model(x)

    unregistered = nn.Linear(P, P)

    def guide_with_more(x):
        return guide(unregistered(x))

    leaves = list(guide.encoder.parameters())
    with private_store(with_a_bare_site, guide):
        trainable(with_a_bare_site, guide, x=x)
        linear.weight.grad = torch.ones(D, P)
        AmortizedELBO(with_a_bare_site, guide_with_more, RENYI[0], leaves)(x)
        bare = dict(pyro.get_param_store().named_parameters())["bare"]
        assert bare.grad is None and linear.bias.grad is None
    assert torch.equal(linear.weight.grad, torch.ones(D, P))
    assert all(leaf.grad is None for leaf in (*leaves, *unregistered.parameters()))


def test_grads_come_back_when_pyro_raises(linear, guide, x):
    linear.weight.grad = kept = torch.ones(D, P)
    leaves = [*guide.parameters(), *linear.parameters()]
    with private_store(linear.model, guide), pytest.raises(Exception, match="size|shape"):
        AmortizedELBO(linear.model, guide, RENYI[0], leaves)(x[:, :2])
    assert linear.weight.grad is kept and linear.bias.grad is None


def test_a_leaf_that_the_loss_does_not_reach(linear, guide, x):
    unused = nn.Parameter(torch.ones(2))
    leaves = [*guide.parameters(), unused]
    with private_store(linear.model, guide):
        loss = AmortizedELBO(linear.model, guide, RENYI[0], leaves)(x)
    assert torch.equal(torch.autograd.grad(loss, leaves)[-1], torch.zeros(2))


def test_integer_data_keep_the_loss_a_number(guide):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(z.sum(-1, keepdim=True).exp().expand(*z.shape[:-1], P)).to_event(1), obs=x)

    counts = torch.randint(0, 3, (B, P))
    guide = Amortized(MeanField(D), nn.Sequential(Float(), nn.Linear(P, 2 * D)))
    leaves = list(guide.parameters())
    with private_store(model, guide):
        with seeded(3):
            expected = RENYI[0].loss(model, guide, counts)
        with seeded(3):
            loss = AmortizedELBO(model, guide, RENYI[0], leaves)(counts)
    torch.testing.assert_close(loss.detach(), torch.tensor(expected / B))


class Float(nn.Module):
    def forward(self, x):
        return x.to(torch.get_default_dtype())
