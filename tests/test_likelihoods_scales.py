"""Who owns a scale, where it starts, and when it sits on its floor."""

import math

import pytest
import torch

from pyro_vae.likelihoods import (
    Beta,
    DiscretizedGaussian,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    GaussianDecoderScale,
    GaussianLowRank,
    GaussianOutputScale,
    GaussianSharedScale,
    Laplace,
    StudentT,
)


def test_blocks_are_parameter_major():
    p = GaussianDecoderScale(floor=0.5)(torch.tensor([1.0, 2.0, 3.0, -50.0, 0.0, 50.0]))
    assert p.mean.tolist() == [1, 2, 3]
    assert p.stddev.tolist() == pytest.approx([0.5, 0.5 + math.log(2), 50.5])


@pytest.mark.parametrize("init_scale", [0.011, 0.5, 1.0, 300.0])
def test_learned_scales_start_where_asked(init_scale):
    assert GaussianSharedScale(init_scale=init_scale).scale.item() == pytest.approx(init_scale, rel=1e-12)
    scale = GaussianOutputScale(3, init_scale=init_scale).scale
    assert scale.tolist() == pytest.approx(3 * [init_scale], rel=1e-12)


def fit(likelihood, out, x):
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        (-likelihood(out).log_prob(x).mean()).backward()
        optimizer.step()


def test_shared_scale_is_learned_down_to_its_floor_and_says_so():
    likelihood = GaussianSharedScale(floor=0.1)
    out = torch.randn(200, 3)
    assert not likelihood.on_floor(out).any()
    x = out + 0.5 * torch.randn_like(out)
    fit(likelihood, out, x)
    assert likelihood.scale.item() == pytest.approx((x - out).square().mean().sqrt().item(), rel=1e-3)
    assert not likelihood.on_floor(out).any()
    fit(likelihood, out, out + 0.01 * torch.randn_like(out))
    assert likelihood.on_floor(out).all()
    assert likelihood.scale > 0.1


def test_output_scales_are_learned_each_for_itself():
    likelihood = GaussianOutputScale(3, floor=0.1)
    out = torch.randn(200, 3)
    x = out + torch.tensor([0.01, 0.5, 2.0]) * torch.randn_like(out)
    fit(likelihood, out, x)
    best = (x - out).square().mean(0).sqrt()
    assert likelihood.scale[1:].tolist() == pytest.approx(best[1:].tolist(), rel=1e-3)
    assert likelihood.on_floor(out).tolist() == [[True, False, False]] * 200


@pytest.mark.parametrize(
    "likelihood", [GaussianDecoderScale(floor=0.1), Laplace(floor=0.1), StudentT(floor=0.1), Beta(floor=0.1)], ids=repr
)
def test_decoder_scales_say_which_values_are_on_the_floor(likelihood):
    raw = torch.tensor([-30.0, 0.0, -20.0])
    assert likelihood.on_floor(torch.cat([torch.zeros(3), raw]).expand(5, 6)).tolist() == [[True, False, True]] * 5


def test_low_rank_floor_is_that_of_the_independent_scale():
    out = torch.cat([torch.zeros(3), torch.tensor([-30.0, 0.0, -20.0]), torch.full((6,), 9.0)])
    assert GaussianLowRank(floor=0.1).on_floor(out).tolist() == [True, False, True]


@pytest.mark.parametrize("cls", [DiscretizedGaussian, DiscretizedLogistic])
def test_floor_of_levels_is_in_levels(cls):
    likelihood = cls(17, 0.5, floor=2.0)
    out = torch.tensor([0.0, 0.0, -30.0, 0.0])
    assert likelihood.on_floor(out).tolist() == [True, False]
    # From the middle level to the last takes the same number of scales whatever the step.
    ratio = cls(17, 1.0, floor=2.0)(out).log_prob(torch.tensor([16.0, 8.0])) - likelihood(out).log_prob(
        torch.tensor([8.0, 4.0])
    )
    assert ratio.item() == pytest.approx(0, abs=1e-12)


def test_a_mixture_is_on_the_floor_where_one_of_its_components_is():
    likelihood = DiscretizedLogisticMixture(17, 1.0, num_components=2)
    out = torch.zeros(6, 3)
    out[4, 0] = out[5, 2] = -30
    assert likelihood.on_floor(out.flatten()).tolist() == [True, False, True]
