"""Missing values: marginalised exactly with a mask, refused without one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import tyro
from likelihood_oracles import CONTEXT, exact_log_prob, make, names, outputs
from torch import nn

from pyro_vae import parts
from pyro_vae.likelihoods import Bernoulli, Gaussian, GaussianLowRank, GaussianSharedScale, Likelihood

NAN = torch.nan
PATTERNS = [[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]]


def masked(name):
    """A likelihood with a mask, outputs and data (5, 3) with each pattern of missing values, and what is observed."""
    likelihood = make(name, mask=True)
    out = outputs(likelihood, 5)
    x = likelihood(out).sample()
    observed = ~torch.tensor(PATTERNS, dtype=torch.bool)
    return likelihood, out, torch.where(observed, x, NAN), observed


@names
def test_missing_values_are_marginalised_exactly(name):
    likelihood, out, x, observed = masked(name)
    came = likelihood(out).log_prob(x)
    exact = [exact_log_prob(name, likelihood, out[n], x[n], observed[n]) for n in range(5)]
    assert came.tolist() == pytest.approx(exact, rel=1e-9, abs=1e-9)
    assert came[-1] == 0


@names
def test_a_mask_changes_nothing_where_all_is_observed(name):
    likelihood, without = make(name, mask=True), make(name)
    out = outputs(likelihood, 4, 5)
    x = likelihood(out).sample()
    torch.testing.assert_close(likelihood(out).log_prob(x), without(out).log_prob(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(likelihood(out).mean, without(out).mean)
    draws = []
    for p in (likelihood(out), without(out)):
        torch.manual_seed(3)
        draws.append(p.sample((2,)))
    assert torch.equal(*draws)


@names
def test_gradients_are_finite_and_none_comes_from_missing_values(name):
    likelihood, out, x, observed = masked(name)
    out.requires_grad_()
    log_p = likelihood(out).log_prob(x)
    gradient, *of_weights = torch.autograd.grad(log_p.sum(), [out, *likelihood.parameters()])
    by_value = gradient.reshape(5, likelihood.num_params, 3).movedim(1, -1)
    assert (by_value[observed] != 0).any(-1).all()
    assert (by_value[~observed] == 0).all()
    assert all(weight.isfinite().all() for weight in of_weights)


@names
def test_particles_may_miss_different_values(name):
    likelihood, out, x, _ = masked(name)
    particles = torch.stack([x, x.flip(0)])
    p = likelihood(out)
    torch.testing.assert_close(p.log_prob(particles), torch.stack([p.log_prob(x), p.log_prob(x.flip(0))]))
    wide = p.expand((2, 5))
    torch.testing.assert_close(wide.log_prob(particles), p.log_prob(particles))


@names
def test_check_accepts_nan_with_a_mask_alone(name):
    likelihood, _, x, _ = masked(name)
    likelihood.check(x)
    with pytest.raises(ValueError, match=r"got x\[1, 0\] = nan\. Missing values need mask=True") as error:
        make(name).check(x)
    assert type(likelihood).__name__ in str(error.value) and "--likelihood.mask" in str(error.value)
    x[0, 2] = -torch.inf
    with pytest.raises(ValueError, match=r"got x\[0, 2\] = -inf\. (?!Missing)"):
        likelihood.check(x)


@names
def test_mask_is_an_option_of_the_command_line(name):
    class_ = parts.catalog("likelihood")[name]
    chosen = tyro.cli(parts.subcommands("likelihood"), args=[name, "--mask"])
    assert chosen == parts.options("likelihood", name, mask=True)
    built = parts.build(chosen, CONTEXT)
    assert type(built) is class_ and built.mask
    assert not parts.build(parts.options("likelihood", name), CONTEXT).mask


def test_learning_with_missing_values_finds_what_the_observed_say():
    """The closed form: the mean of the observed values, and their scale."""
    likelihood = GaussianSharedScale(mask=True)
    loc = nn.Parameter(torch.zeros(3))
    x = 2 + 0.5 * torch.randn(400, 3)
    x[torch.rand_like(x) < 0.3] = NAN

    def model(x):
        pyro.module("likelihood", likelihood)
        value = pyro.param("loc", lambda: loc)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", likelihood(value.expand(len(x), 3)), obs=x)

    svi = pyro.infer.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.02}), pyro.infer.Trace_ELBO())
    for _ in range(800):
        svi.step(x)
    observed = ~x.isnan()
    best = torch.where(observed, x, 0.0).sum(0) / observed.sum(0)
    scale = ((x - best)[observed].square().mean()).sqrt()
    torch.testing.assert_close(pyro.param("loc").detach(), best, rtol=0, atol=1e-4)
    torch.testing.assert_close(likelihood.scale.detach(), scale, rtol=1e-3, atol=0)


def test_low_rank_marginal_is_not_the_product_of_its_values():
    """Otherwise the test of the exact marginal could not tell the two apart."""
    likelihood = GaussianLowRank(mask=True)
    out = outputs(likelihood, 5)
    x = likelihood(out).sample()
    x[:, 0] = NAN
    p = likelihood(out)
    alone = dist.Normal(p.mean, p.variance.sqrt(), validate_args=False).log_prob(x)[:, 1:].sum(-1)
    assert ((p.log_prob(x) - alone).abs() > 1e-3).all()


def test_a_joint_likelihood_without_a_marginal_is_refused():
    class Correlated(Likelihood):
        base_measure, support, expected, advice = "lebesgue", Gaussian.support, "numbers", ""

        def forward(self, decoder_output):
            return dist.MultivariateNormal(decoder_output, torch.eye(3))

    assert Correlated()(torch.zeros(3)).event_shape == (3,)
    with pytest.raises(ValueError, match=r"Correlated\(mask=True\): mask: .* got MultivariateNormal. Override"):
        Correlated(mask=True)(torch.zeros(3))


def test_a_likelihood_of_the_user_needs_no_code_for_the_mask():
    class Wide(Likelihood):
        base_measure, support, expected, advice = "lebesgue", Gaussian.support, "numbers", ""

        def forward(self, decoder_output):
            return dist.Cauchy(decoder_output, 1.0).to_event(1)

    x = torch.tensor([0.5, NAN, 1.0])
    exact = dist.Cauchy(0.0, 1.0).log_prob(x[[0, 2]]).sum()
    torch.testing.assert_close(Wide(mask=True)(torch.zeros(3)).log_prob(x), exact)
    assert repr(Wide(mask=True)) == "Wide(mask=True)"


def test_draws_with_gradients_where_the_values_have_them():
    loc = torch.zeros(3, requires_grad=True)
    p = Gaussian(mask=True)(loc)
    assert p.has_rsample and p.variance.tolist() == [1, 1, 1]
    p.rsample().sum().backward()
    assert loc.grad.tolist() == [1, 1, 1]
    assert not Bernoulli(mask=True)(loc).has_rsample
    assert p.support.check(torch.zeros(3))
