"""What every prior that the command line offers must satisfy, those of tomorrow included."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn
from torch.distributions import biject_to

from inference.families import Family, MeanField
from inference.guides import Amortized
from pyro_vae import parts
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import MLP
from pyro_vae.priors import Prior

NUM_VALUES = 5

# Smaller than by default, so that quadrature stays cheap; and both kinds of flow.
OPTIONS = {
    "flow-prior": [{"kind": "coupling", "hidden": (8,)}, {"kind": "autoregressive", "hidden": (8,), "num_layers": 2}],
    "gaussian-mixture": [{"num_components": 3}],
    "top-down": [{"num_top": 1, "hidden": (8,)}],
    "uniform": [{"low": -3.0, "high": 1.5}],
    "vamp-prior": [{"num_components": 4}],
}
CASES = [(name, i) for name in parts.catalog("prior") for i in range(len(OPTIONS.get(name, [{}])))]
cases = pytest.mark.parametrize("case", CASES, ids=[f"{name}-{i}" for name, i in CASES])

# The options that a flow in one dimension has no room for.
SMALLEST = {"flow-prior": 2}


def fresh(case, num_latents):
    name, i = case
    guide = Amortized(MeanField(num_latents), MLP(NUM_VALUES, 6, 2 * num_latents))
    chosen = parts.options("prior", name, **OPTIONS.get(name, [{}])[i])
    return parts.build(chosen, {"num_latents": num_latents, "num_values": NUM_VALUES, "guide": guide})


def make(case, num_latents):
    """Away from where training starts, where much is symmetric or 0."""
    prior = fresh(case, num_latents)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return prior


def draws(p, *shape):
    return p.sample(torch.Size(shape))


@cases
def test_shapes(case):
    prior = make(case, 3)
    p = prior()
    size = prior.num_latents
    assert p.batch_shape == () and p.event_shape == (size,) and prior.num_features == 3
    assert isinstance(p, TorchDistributionMixin)
    z = p.expand((4, 5)).sample()
    assert z.shape == (4, 5, size)
    # Pyro's sample statement calls the distribution, inside a plate.
    assert p.expand_by((7,))().shape == (7, size)
    assert p.log_prob(z).shape == p.expand((5,)).log_prob(z).shape == (4, 5)
    assert p.support.check(z).all()
    assert prior.features(z).shape == (4, 5, 3)


@cases
def test_particles_and_batch_equal_row_by_row(case):
    prior = make(case, 3)
    p = prior()
    z = draws(p, 2, 3)
    torch.testing.assert_close(p.log_prob(z), torch.stack([torch.stack([p.log_prob(row) for row in s]) for s in z]))
    torch.testing.assert_close(
        prior.features(z), torch.stack([torch.stack([prior.features(row) for row in s]) for s in z])
    )


def density_on_the_real_line(p):
    """log p in the coordinates of R^D, where a box has no edges."""
    onto = biject_to(p.support)

    def log_prob(y):
        z = onto(y)
        log_det = onto.log_abs_det_jacobian(y, z)
        return p.log_prob(z) + (log_det.sum(-1) if log_det.dim() == y.dim() else log_det)

    return log_prob, onto


@cases
@pytest.mark.parametrize("num_latents", [1, 2])
def test_density_integrates_to_one(case, num_latents):
    if num_latents < SMALLEST.get(case[0], 1):
        pytest.skip("smaller than the smallest")
    p = make(case, num_latents)()
    size = p.event_shape[0]
    log_prob, onto = density_on_the_real_line(p)
    if size <= 2:
        # A grid that is fine near 0 and reaches far: y = sinh t.
        t = torch.linspace(-8, 8, 20_001 if size == 1 else 641)
        points = torch.cartesian_prod(*[t] * size).reshape(-1, size)
        mass = (log_prob(points.sinh()) + points.cosh().log().sum(-1)).exp().sum() * (t[1] - t[0]) ** size
        assert mass.item() == pytest.approx(1, abs=1e-3)
    else:
        # Too many dimensions for a grid: importance sampling from heavy tails, with its standard error.
        centre = onto.inv(draws(p, 5000))
        loc, scale = centre.median(0).values, 1.5 * (centre - centre.median(0).values).abs().median(0).values
        q = torch.distributions.Independent(torch.distributions.StudentT(3.0, loc, scale), 1)
        y = q.sample((100_000,))
        ratio = (log_prob(y) - q.log_prob(y)).exp()
        se = ratio.std() / math.sqrt(len(ratio))
        assert se < 0.05 and abs(ratio.mean() - 1) < 4 * se


@cases
def test_draws_agree_with_the_density(case):
    p = make(case, 2)()
    log_prob, onto = density_on_the_real_line(p)
    y = onto.inv(draws(p, 100_000))
    scale = 0.5 * (y - y.median(0).values).abs().median(0).values
    # For every density q, E_p[q / p] = 1; q narrow, so that each looks at one place.
    for centre in y[:5]:
        q = torch.distributions.Independent(torch.distributions.Normal(0.5 * (centre + y.median(0).values), scale), 1)
        ratio = (q.log_prob(y) - log_prob(y)).exp()
        se = ratio.std() / math.sqrt(len(ratio))
        assert se < 0.15 and abs(ratio.mean() - 1) < 4 * se


@cases
def test_gradient_of_the_density_in_z(case):
    p = make(case, 2)()
    z = draws(p, 4)
    if not p.log_prob(z.requires_grad_()).requires_grad:
        # Constant where it is not 0.
        assert p.log_prob(z).unique().numel() == 1
        return
    assert torch.autograd.gradcheck(p.log_prob, (z,))


@cases
def test_gradients_reach_every_parameter_and_no_buffer(case):
    prior = make(case, 3)
    z = draws(prior(), 50)
    if list(prior.parameters()):
        (prior().log_prob(z).sum() + prior.features(z).square().sum()).backward()
    for parameter, weight in prior.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, parameter
    assert not any(buffer.requires_grad for buffer in prior.buffers())


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_save_load_and_copy(case, dtype):
    prior = make(case, 3).to(dtype)
    z = draws(prior(), 5)
    log_p = prior().log_prob(z)
    assert z.dtype == log_p.dtype == prior.features(z).dtype == dtype
    assert prior().expand((2, 5)).log_prob(z).dtype == dtype
    file = io.BytesIO()
    torch.save(prior.state_dict(), file)
    file.seek(0)
    other = fresh(case, 3).to(dtype)
    other.load_state_dict(torch.load(file))
    for same in (other, copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))):
        assert torch.equal(same().log_prob(z), log_p)
        assert torch.equal(same.features(z), prior.features(z))


@cases
def test_float32_agrees_with_float64(case):
    prior = make(case, 3)
    z = draws(prior(), 200)
    exact, features = prior().log_prob(z), prior.features(z)
    # Both options and weights: nothing stays in the type that the prior was made in.
    torch.testing.assert_close(prior.float()().log_prob(z.float()).double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prior.features(z.float()).double(), features, rtol=1e-4, atol=1e-4)


def test_options_are_not_rounded_by_the_default_type():
    torch.set_default_dtype(torch.float32)
    single = [fresh(case, 3).double() for case in CASES if not list(fresh(case, 3).parameters())]
    torch.set_default_dtype(torch.float64)
    double = [fresh(case, 3) for case in CASES if not list(fresh(case, 3).parameters())]
    assert len(double) >= 7
    for one, other in zip(single, double, strict=True):
        z = draws(other(), 20)
        assert z.dtype == one().sample().dtype == torch.float64
        torch.testing.assert_close(one().log_prob(z), other().log_prob(z), rtol=1e-14, atol=1e-14)


@cases
def test_nothing_is_remembered_between_calls(case):
    prior = make(case, 3)
    z = draws(prior(), 5)
    before = prior().log_prob(z)
    before.sum().backward() if before.requires_grad else None
    copied = copy.deepcopy(prior)  # A graph that is kept could not be copied.
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.1)
    other = fresh(case, 3)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(prior().log_prob(z), other().log_prob(z))
    assert torch.equal(copied().log_prob(z), before)


@cases
@pytest.mark.parametrize("raw", [-1e30, -300.0, 300.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_real_number_breaks_a_learned_scale(case, raw, dtype):
    prior = make(case, 2).to(dtype)
    learned = [weight for name, weight in prior.named_parameters() if name in ("raw_scale", "logits", "raw")]
    with torch.no_grad():
        for weight in learned:
            weight.fill_(raw)
            weight[0] = 0.0
    z = draws(prior(), 20)
    log_p = prior().log_prob(z)
    assert log_p.isfinite().all()
    if learned:
        gradients = torch.autograd.grad(log_p.sum(), learned, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@cases
def test_repr_is_one_line_that_names_every_option(case):
    prior = make(case, 3)
    text = repr(prior)
    assert text.startswith(f"{type(prior).__name__}(3") and "\n" not in text
    chosen = parts.options("prior", case[0], **OPTIONS.get(case[0], [{}])[case[1]])
    for name, value in parts.to_config(chosen).items():
        if name != "part":
            assert f"{name}={tuple(value) if isinstance(value, list) else value!r}" in text


@cases
def test_no_prior_but_the_one_made_from_the_guide_holds_another_part(case):
    prior = make(case, 3)
    held = [module for module in prior.modules() if isinstance(module, Family | Likelihood | Amortized | Prior)]
    assert {type(module) for module in held} - {type(prior)} == (
        {Amortized, MeanField} if case[0] == "vamp-prior" else set()
    )


@pytest.mark.parametrize("kind", ["likelihood", "family", "decoder", "encoder"])
def test_no_other_part_knows_a_prior(kind):
    for part in parts.catalog(kind).values():
        assert "prior" not in inspect.signature(part).parameters
        assert not any(name in ("Prior", "VAE", "as_prior") for name in vars(inspect.getmodule(part)))


@pytest.mark.parametrize("name", [name for name in parts.catalog("prior") if name != "vamp-prior"])
@pytest.mark.parametrize("size", [0, -2, 1.5, True])
def test_bad_size(name, size):
    with pytest.raises(ValueError, match=f"num_latents: expected a positive integer; got {size}"):
        parts.catalog("prior")[name](size)


@pytest.mark.gpu
@cases
def test_follows_to_the_gpu(case):
    prior = make(case, 3)
    z = draws(prior(), 4, 5)
    expected, features = prior().log_prob(z), prior.features(z)
    prior = prior.cuda()
    assert draws(prior(), 2).is_cuda and prior().expand((2, 5)).sample().is_cuda
    torch.testing.assert_close(prior().log_prob(z.cuda()).cpu(), expected)
    torch.testing.assert_close(prior.features(z.cuda()).cpu(), features)


def test_modules_of_a_new_prior_are_not_forgotten():
    """Every option list above belongs to a prior that exists."""
    assert set(OPTIONS) | set(SMALLEST) <= set(parts.catalog("prior"))
    assert all(issubclass(part, nn.Module) for part in parts.catalog("prior").values())
