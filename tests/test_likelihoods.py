"""The contract of every likelihood in the catalog, against scipy and quadrature."""

import copy
import io
import itertools
import math

import pyro
import pytest
import torch
from likelihood_oracles import (
    COUNTING,
    COUNTS,
    JOINT,
    LATTICE,
    LEVELS,
    SCIPY,
    exact_log_prob,
    independent,
    lattice,
    make,
    names,
    outputs,
)

from pyro_vae import likelihoods

# Parameters a data value, where they are not 1.
NUM_PARAMS = {
    "beta": 2,
    "categorical": 7,
    "discretized-gaussian": 2,
    "discretized-logistic": 2,
    "discretized-logistic-mixture": 15,
    "gaussian-decoder-scale": 2,
    "gaussian-low-rank": 4,
    "laplace": 2,
    "mixture-of-gaussians": 9,
    "negative-binomial": 2,
    "student-t": 2,
    "zero-inflated-negative-binomial": 3,
    "zero-inflated-poisson": 2,
}
WITH_FLOOR = (
    "beta",
    "discretized-gaussian",
    "discretized-logistic",
    "discretized-logistic-mixture",
    "gaussian-decoder-scale",
    "gaussian-low-rank",
    "gaussian-output-scale",
    "gaussian-shared-scale",
    "laplace",
    "mixture-of-gaussians",
    "student-t",
)


@names
@pytest.mark.parametrize("left", [(), (5,), (4, 5)])
def test_shapes(name, left):
    likelihood = make(name)
    p = likelihood(outputs(likelihood, *left))
    assert p.batch_shape == left and p.event_shape == (3,)
    x = p.sample((2,))
    assert x.shape == (2, *left, 3)
    assert p.mean.shape == (*left, 3)
    assert p.log_prob(x).shape == (2, *left)
    wide = p.expand((7, *left))
    assert wide.batch_shape == (7, *left) and wide.sample().shape == (7, *left, 3) and wide.mean.shape == (7, *left, 3)
    torch.testing.assert_close(wide.log_prob(x[0]), p.log_prob(x[0]).expand(7, *left))
    likelihood.check(x)
    assert likelihood.on_floor(outputs(likelihood, *left)).shape == (*left, 3)


@names
def test_particles_share_one_x(name):
    likelihood = make(name)
    out = outputs(likelihood, 4, 5)
    p = likelihood(out)
    x = p.sample()[0]
    one_by_one = torch.stack([likelihood(row).log_prob(x) for row in out])
    torch.testing.assert_close(p.log_prob(x), one_by_one)


@names
def test_log_prob_and_mean_match_scipy(name):
    likelihood = make(name)
    out = outputs(likelihood, 6)
    p = likelihood(out)
    for x in p.sample((2,)):
        exact = [exact_log_prob(name, likelihood, out[n], x[n]) for n in range(6)]
        assert p.log_prob(x).tolist() == pytest.approx(exact, rel=1e-9, abs=1e-9)
    blocks = out.reshape(6, likelihood.num_params, 3).numpy()
    for n in range(6):
        if name == JOINT:
            truth = blocks[n, 0].tolist()
        else:
            truth = [SCIPY[name](likelihood, blocks[n, :, i]).mean() for i in range(3)]
        assert p.mean[n].tolist() == pytest.approx(truth, rel=1e-9, abs=1e-12)


@independent
def test_sums_or_integrates_to_one_and_the_mean_is_its_mean(name):
    likelihood = make(name, num_values=1)
    out = outputs(likelihood, 4, num_values=1)
    if name == "beta":
        # Away from U shapes, part of whose mass lies between 1 and the floating point number before it.
        out[:, 1] = -1 - out[:, 1].abs()
    p = likelihood(out)
    x, weight = lattice(name)
    likelihood.check(x)
    mass = p.log_prob(x[:, None, None]).exp() * weight[:, None]
    torch.testing.assert_close(mass.sum(0), torch.ones(4), rtol=0, atol=1e-6)
    torch.testing.assert_close((mass * x[:, None]).sum(0), p.mean[:, 0], rtol=1e-6, atol=1e-6)


@independent
def test_draws_have_the_frequencies_of_the_density(name):
    likelihood = make(name, num_values=1)
    p = likelihood(outputs(likelihood, num_values=1))
    x, weight = lattice(name)
    below = (p.log_prob(x[:, None]).exp() * weight).cumsum(0)
    num_draws = 40_000
    draws = p.sample((num_draws,))[:, 0]
    # At each of a few quantiles, the share of draws at or below it.
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        at = min(int(torch.searchsorted(below, level)), len(x) - 1)
        # Halfway to the next point, where rounding decides nothing.
        edge = (x[at] + x[at + 1]) / 2 if at + 1 < len(x) else x[at]
        share, expected = (draws <= edge).double().mean().item(), below[at].item()
        if name not in COUNTING:
            expected += (p.log_prob(edge[None]).exp() * (edge - x[at])).item()
        error = math.sqrt(max(expected * (1 - expected), 1e-12) / num_draws)
        assert abs(share - expected) < 4.5 * error + 1e-5


@names
def test_gradients_reach_every_parameter_and_output(name):
    likelihood = make(name)
    out = outputs(likelihood, 4, 5, size=0.5).requires_grad_()
    p = likelihood(out)
    p.log_prob(p.sample()).sum().backward()
    assert (out.grad != 0).all()
    for parameter, weight in likelihood.named_parameters():
        assert weight.grad is not None and (weight.grad != 0).all(), parameter


@names
def test_gradients_are_the_slopes_of_log_prob(name):
    likelihood = make(name)
    out = outputs(likelihood, 6).requires_grad_()
    x = likelihood(out).sample()
    assert torch.autograd.gradcheck(lambda out: likelihood(out).log_prob(x), out, atol=1e-5)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(name, dtype):
    likelihood = make(name).to(dtype)
    out = outputs(likelihood, 5).to(dtype)
    p = likelihood(out)
    x = p.sample()
    assert x.dtype == dtype and p.log_prob(x).dtype == dtype and p.mean.dtype == dtype
    double = copy.deepcopy(likelihood).double()(out.double()).log_prob(x.double())
    torch.testing.assert_close(p.log_prob(x).double(), double, rtol=2e-5, atol=2e-5)


def hard_data(name):
    """Data (n,) at the ends of the support and in between."""
    if name in LEVELS:
        return torch.tensor(LATTICE)
    if name in COUNTS:
        return torch.tensor([0.0, 1.0, 7.0, 1e3, 1e6])
    if name in ("bernoulli", "binomial"):
        return torch.tensor([0.0, 1.0])
    if name == "continuous-bernoulli":
        return torch.tensor([0.0, 1e-30, 0.25, 0.5, 1.0])
    if name == "beta":
        return torch.tensor([1e-30, 0.25, 0.5, 1 - 2.0**-24])
    return torch.tensor([-1e4, -1.0, 0.0, 0.3, 1e4])


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask", [False, True])
def test_any_output_gives_finite_densities_gradients_and_means(name, dtype, mask):
    likelihood = make(name, mask=mask).to(dtype)
    num_params = likelihood.num_params
    values = torch.tensor([-1e4, -200.0, -16.0, -1e-3, 0.0, 1e-30, 0.5, 20.0, 1e4])
    if num_params <= 3:
        rows = torch.tensor(list(itertools.product(values.tolist(), repeat=num_params)))
    else:
        rows = values[torch.randint(len(values), (300, num_params))]
        rows[: len(values)] = values[:, None]
    out = rows.to(dtype).repeat_interleave(3, dim=-1).requires_grad_()
    p = likelihood(out)
    assert p.mean.isfinite().all()
    likelihood.check(p.sample())
    data = hard_data(name).to(dtype)
    for i in range(len(data)):
        x = torch.stack([data[i], data[0], data[-1]])
        if mask:
            x[1] = torch.nan
        log_p = p.log_prob(x)
        assert log_p.isfinite().all()
        wanted = [out, *likelihood.parameters()]
        for gradient in torch.autograd.grad(log_p.sum(), wanted, retain_graph=True):
            assert gradient.isfinite().all()
    if likelihood.base_measure == "counting":
        assert (log_p <= 1e-4).all()


@names
def test_save_load_and_repr(name):
    likelihood = make(name)
    with torch.no_grad():
        for weight in likelihood.parameters():
            weight.add_(0.5)
    file = io.BytesIO()
    torch.save(likelihood.state_dict(), file)
    file.seek(0)
    other = make(name)
    other.load_state_dict(torch.load(file))
    out = outputs(likelihood, 5)
    x = likelihood(out).sample()
    assert torch.equal(other(out).log_prob(x), likelihood(out).log_prob(x))
    for mask in (False, True):
        text = repr(make(name, mask=mask))
        assert text.startswith(type(likelihood).__name__) and len(text.splitlines()) == 1
        assert ("mask=True" in text) == mask


@names
def test_declares_what_it_is(name):
    likelihood = make(name)
    assert likelihood.base_measure == ("counting" if name in COUNTING else "lebesgue")
    assert likelihood.num_params == NUM_PARAMS.get(name, 1)
    assert type(likelihood).__name__ in likelihoods.__all__
    assert likelihood.support.check(torch.tensor(likelihood.inside))
    for words in (likelihood.expected, likelihood.advice):
        assert words and "\n" not in words


@names
@pytest.mark.parametrize("mask", [False, True])
def test_its_distribution_knows_where_its_draws_lie(name, mask):
    p = make(name, mask=mask)(outputs(make(name), 4))
    assert p.support.check(p.sample((50,))).all()
    assert p.support.is_discrete == (make(name).base_measure == "counting" and make(name).support.is_discrete)


@names
def test_only_learned_scales_have_a_floor(name):
    likelihood = make(name)
    far_below = torch.full((5, 3 * likelihood.num_params), -100.0)
    near = torch.zeros_like(far_below)
    assert not likelihood.on_floor(near).any()
    with torch.no_grad():
        for weight in likelihood.parameters():
            weight.fill_(-100.0)
    assert likelihood.on_floor(far_below).all().item() == (name in WITH_FLOOR)
    assert likelihood.on_floor(far_below).any().item() == (name in WITH_FLOOR)


@names
def test_wrong_number_of_outputs_is_refused(name):
    likelihood = make(name)
    wrong = torch.zeros(5, 3 * likelihood.num_params + 1)
    if likelihood.num_params == 1 and name != "gaussian-output-scale":
        wrong = torch.zeros(())
    for call in (likelihood, likelihood.on_floor):
        with pytest.raises(ValueError, match="decoder: expected .* outputs for") as error:
            call(wrong)
        assert type(likelihood).__name__ in str(error.value) and "\n" not in str(error.value)


@names
@pytest.mark.parametrize("mask", [False, True])
def test_is_observed_under_a_plate(name, mask):
    likelihood = make(name, mask=mask)
    out = outputs(likelihood, 4, 5)
    x = likelihood(out).sample()[0]
    if mask:
        x[0, 1] = x[2] = torch.nan

    def model():
        with pyro.plate("particles", 4, dim=-2), pyro.plate("data", 5, dim=-1):
            # One row, which the plate widens.
            pyro.sample("narrow", likelihood(out[0, 0]), obs=x[1])
            return pyro.sample("x", likelihood(out), obs=x)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], likelihood(out).log_prob(x))
    assert trace.nodes["narrow"]["log_prob"].shape == (4, 5)
    drawn = pyro.poutine.uncondition(model)()
    assert drawn.shape == (4, 5, 3)
    likelihood.check(drawn)


@pytest.mark.gpu
@names
@pytest.mark.parametrize("mask", [False, True])
def test_device(name, mask):
    likelihood = make(name, mask=mask)
    out = outputs(likelihood, 4, 5)
    x = likelihood(out).sample()
    if mask:
        x[:, :, 0] = torch.nan
    here = likelihood(out).log_prob(x)
    likelihood.to("cuda")
    p = likelihood(out.to("cuda"))
    torch.testing.assert_close(p.log_prob(x.to("cuda")).cpu(), here, rtol=1e-9, atol=1e-9)
    assert p.sample().is_cuda and p.mean.is_cuda and likelihood.on_floor(out.to("cuda")).is_cuda
    likelihood.check(p.sample())
