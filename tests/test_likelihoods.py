import copy
import io

import pytest
import scipy.special
import scipy.stats
import torch

from pyro_vae import parts
from pyro_vae.likelihoods import Bernoulli, Binomial, Gaussian, GaussianDecoderScale, GaussianSharedScale

NAMES = list(parts.catalog("likelihood"))
names = pytest.mark.parametrize("name", NAMES)
# What each decoder's outputs mean, as scipy names it: f(likelihood, outputs of one data value).
SCIPY = {
    "bernoulli": lambda likelihood, out: scipy.stats.bernoulli(scipy.special.expit(out[0])),
    "binomial": lambda likelihood, out: scipy.stats.binom(likelihood.total_count, scipy.special.expit(out[0])),
    "gaussian": lambda likelihood, out: scipy.stats.norm(out[0], likelihood.scale),
    "gaussian-shared-scale": lambda likelihood, out: scipy.stats.norm(out[0], likelihood.scale.item()),
    "gaussian-decoder-scale": lambda likelihood, out: scipy.stats.norm(
        out[0], likelihood.floor + torch.nn.functional.softplus(torch.tensor(out[1])).item()
    ),
}


def make(name):
    return parts.build(parts.options("likelihood", name), {"num_values": 3, "max_value": 6.0})


def outputs(likelihood, *left, num_values=3):
    return 2 * torch.randn(*left, num_values * likelihood.num_params)


@names
@pytest.mark.parametrize("left", [(), (5,), (4, 5)])
def test_shapes(name, left):
    likelihood = make(name)
    p = likelihood(outputs(likelihood, *left))
    assert p.batch_shape == left and p.event_shape == (3,)
    x = p.sample((2,))
    assert x.shape == (2, *left, 3)
    assert p.log_prob(x).shape == (2, *left)
    assert p.expand((7, *left)).log_prob(x[0]).shape == (7, *left)
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
    out = outputs(likelihood, 5)
    p = likelihood(out)
    x = p.sample()
    blocks = out.reshape(5, likelihood.num_params, 3)
    for n in range(5):
        truth = [SCIPY[name](likelihood, blocks[n, :, i].tolist()) for i in range(3)]
        logs = [
            (q.logpmf if hasattr(q, "logpmf") and likelihood.base_measure == "counting" else q.logpdf)(v.item())
            for q, v in zip(truth, x[n], strict=True)
        ]
        assert p.log_prob(x)[n].item() == pytest.approx(sum(logs), rel=1e-10)
        assert p.mean[n].tolist() == pytest.approx([q.mean() for q in truth], rel=1e-10)


@names
def test_sums_or_integrates_to_one(name):
    likelihood = make(name)
    p = likelihood(outputs(likelihood, num_values=1))
    if likelihood.base_measure == "counting":
        x = torch.arange(0.0, 100.0).unsqueeze(-1)
        x = x[likelihood.support.check(x).squeeze(-1)]
        assert len(x) >= 2
        mass = p.log_prob(x).exp().sum()
    else:
        x = torch.linspace(-60, 60, 240_001)
        mass = p.log_prob(x.unsqueeze(-1)).exp().sum() * (x[1] - x[0])
    assert mass.item() == pytest.approx(1, abs=1e-6)


@names
def test_gradients_reach_every_parameter_and_output(name):
    likelihood = make(name)
    out = outputs(likelihood, 4, 5).requires_grad_()
    p = likelihood(out)
    p.log_prob(p.sample()).sum().backward()
    assert (out.grad != 0).all()
    for parameter, weight in likelihood.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, parameter


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(name, dtype):
    likelihood = make(name).to(dtype)
    out = outputs(likelihood, 5).to(dtype)
    p = likelihood(out)
    x = p.sample()
    assert x.dtype == dtype and p.log_prob(x).dtype == dtype and p.mean.dtype == dtype
    double = copy.deepcopy(likelihood).double()(out.double()).log_prob(x.double())
    torch.testing.assert_close(p.log_prob(x).double(), double, rtol=1e-5, atol=1e-5)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-1e4, -200.0, 200.0, 1e4])
def test_extreme_outputs_stay_finite(name, value, dtype):
    likelihood = make(name).to(dtype)
    out = torch.full((5, 3 * likelihood.num_params), value, dtype=dtype, requires_grad=True)
    x = likelihood(torch.zeros(5, 3 * likelihood.num_params, dtype=dtype)).sample()
    log_p = likelihood(out).log_prob(x)
    assert log_p.isfinite().all()
    (gradient,) = torch.autograd.grad(log_p.sum(), out)
    assert gradient.isfinite().all()


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
    assert repr(likelihood).startswith(type(likelihood).__name__) and len(repr(likelihood).splitlines()) == 1


@names
def test_declares_what_it_is(name):
    likelihood = make(name)
    assert likelihood.base_measure == ("lebesgue" if name.startswith("gaussian") else "counting")
    assert likelihood.num_params == (2 if name == "gaussian-decoder-scale" else 1)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
def test_binomial_does_not_cancel(dtype, rtol):
    logits = torch.tensor([-90.0, -30.0, -5.0, 0.0, 5.0, 30.0, 90.0], dtype=dtype)
    for count in (0, 1, 15, 16):
        exact = scipy.stats.binom(16, 0.5).logpmf(count) + 16 * torch.log(torch.tensor(2.0, dtype=torch.float64))
        sides = count * torch.nn.functional.logsigmoid(logits.double())
        exact = exact + sides + (16 - count) * torch.nn.functional.logsigmoid(-logits.double())
        x = torch.full((1,), count, dtype=dtype)
        came = torch.stack([Binomial(16)(logit[None]).log_prob(x) for logit in logits])
        # Relative to the log of the binomial coefficient where the two sides vanish.
        torch.testing.assert_close(came.double(), exact, rtol=rtol, atol=3e-6 if dtype == torch.float32 else 1e-13)


def test_binomial_with_one_trial_is_bernoulli():
    out = torch.randn(4, 5, 3)
    x = torch.randint(0, 2, (5, 3)).to(out)
    torch.testing.assert_close(Binomial(1)(out).log_prob(x), Bernoulli()(out).log_prob(x))


def test_blocks_are_parameter_major():
    p = GaussianDecoderScale(floor=0.5)(torch.tensor([1.0, 2.0, 3.0, -50.0, 0.0, 50.0]))
    assert p.mean.tolist() == [1, 2, 3]
    assert p.stddev.tolist() == pytest.approx([0.5, 0.5 + torch.log(torch.tensor(2.0)).item(), 50.5])


@pytest.mark.parametrize("init_scale", [0.011, 0.5, 1.0, 300.0])
def test_shared_scale_starts_where_asked(init_scale):
    assert GaussianSharedScale(init_scale=init_scale).scale.item() == pytest.approx(init_scale, rel=1e-12)


def test_shared_scale_is_learned_down_to_its_floor_and_says_so():
    likelihood = GaussianSharedScale(floor=0.1)
    out = torch.randn(200, 3)
    assert not likelihood.on_floor(out).any()

    def fit(noise):
        x = out + noise * torch.randn_like(out)
        optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
        for _ in range(1500):
            optimizer.zero_grad()
            (-likelihood(out).log_prob(x).mean()).backward()
            optimizer.step()
        return (x - out).square().mean().sqrt().item()

    expected = fit(0.5)
    assert likelihood.scale.item() == pytest.approx(expected, rel=1e-3)
    assert not likelihood.on_floor(out).any()
    fit(0.01)
    assert likelihood.on_floor(out).all()
    assert likelihood.scale > 0.1


def test_decoder_scale_says_which_values_are_on_the_floor():
    likelihood = GaussianDecoderScale(floor=0.1)
    raw = torch.tensor([-30.0, 0.0, -20.0])
    on_floor = likelihood.on_floor(torch.cat([torch.zeros(3), raw]).expand(5, 6))
    assert on_floor.tolist() == [[True, False, True]] * 5


@names
def test_only_learned_scales_have_a_floor(name):
    likelihood = make(name)
    far_below = torch.full((5, 3 * likelihood.num_params), -100.0)
    with torch.no_grad():
        for weight in likelihood.parameters():
            weight.fill_(-100.0)
    assert likelihood.on_floor(far_below).all().item() == name.startswith("gaussian-")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("likelihood", "value", "words"),
    [
        pytest.param(
            Bernoulli(), 0.25, ["Bernoulli()", "= 0.25", 'binarize="fixed"', "--data.binarize fixed"], id="gray"
        ),
        pytest.param(Bernoulli(), 2.0, ["= 2", "Binomial"], id="count to Bernoulli"),
        pytest.param(Bernoulli(), NAN, ["= nan"], id="NaN to Bernoulli"),
        pytest.param(Binomial(16), 17.0, ["Binomial(16)", "= 17", "from 0 to 16", "total_count"], id="count too large"),
        pytest.param(Binomial(16), -1.0, ["= -1"], id="negative count"),
        pytest.param(Binomial(16), 3.5, ["= 3.5", "whole numbers"], id="fraction of a count"),
        pytest.param(Binomial(16), NAN, ["= nan"], id="NaN to Binomial"),
        pytest.param(Gaussian(), NAN, ["Gaussian(scale=1)", "= nan", "missing"], id="NaN to Gaussian"),
        pytest.param(Gaussian(), INF, ["= inf", "finite"], id="infinity to Gaussian"),
        pytest.param(GaussianSharedScale(), -INF, ["GaussianSharedScale", "= -inf"], id="infinity to shared scale"),
        pytest.param(GaussianDecoderScale(), NAN, ["GaussianDecoderScale", "= nan"], id="NaN to decoder scale"),
    ],
)
def test_check_names_the_value_and_where_it_is(likelihood, value, words):
    x = torch.ones(4, 3)
    likelihood.check(x)
    x[2, 1] = value
    with pytest.raises(ValueError) as error:
        likelihood.check(x)
    for word in [*words, "x[2, 1]", "expected"]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Binomial(0), "total_count: expected a positive integer; got 0", id="no trials"),
        pytest.param(lambda: Binomial(2.5), "total_count: .* got 2.5", id="fractional trials"),
        pytest.param(
            lambda: Gaussian(scale=0.0), "Gaussian: scale: expected a positive number, .* got 0", id="scale 0"
        ),
        pytest.param(lambda: Gaussian(scale=NAN), "scale: .* got nan", id="scale NaN"),
        pytest.param(lambda: GaussianSharedScale(floor=0.0), "floor: .* got 0.0", id="no floor"),
        pytest.param(lambda: GaussianSharedScale(init_scale=0.01), "init_scale: .* above floor = 0.01", id="at floor"),
        pytest.param(lambda: GaussianDecoderScale(floor=-1), "floor: .* got -1", id="negative floor"),
        pytest.param(
            lambda: GaussianDecoderScale()(torch.zeros(5, 7)), r"decoder: expected P x 2 .* \(5, 7\)", id="odd outputs"
        ),
        pytest.param(lambda: Binomial.from_context(0.8), "total_count: .* 0.8. Set total_count", id="gray to binomial"),
        pytest.param(lambda: Binomial.from_context(), "total_count: .* nothing known", id="no data"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_total_count_comes_from_the_data_unless_chosen():
    assert Binomial.from_context(16.0).total_count == 16
    assert Binomial.from_context(16.0, total_count=20).total_count == 20
    assert Binomial.from_context(total_count=20).total_count == 20
