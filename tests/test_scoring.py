import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle
from torch import nn

from inference import Amortized, CouplingFlow, Local, LowRank, MeanField, MixtureOfGaussians, PlanarFlow, refine
from inference.families import from_noise
from inference.objectives import LocalLoss
from inference.scoring import (
    guide_of,
    guide_rows,
    pair_means,
    read_chunks,
    require_draws,
    require_finite,
    require_readable,
    require_tol,
    score,
    score_distribution,
    scoring_noise,
)
from pyro_vae.linear import LinearGaussian
from pyro_vae.priors import VampPrior


def test_noise_comes_in_mirrored_pairs_of_its_own_for_every_datapoint():
    x, index = torch.zeros(70, 3), torch.arange(70)
    noise = torch.cat(list(scoring_noise(x, index, MeanField(4), 100, seed=0, stage="score")))
    assert noise.shape == (100, 70, 4)
    assert torch.equal(noise[::2], -noise[1::2])
    assert len(noise[::2].flatten().unique()) == noise[::2].numel()
    assert noise[::2].mean().abs() < 0.05 and noise[::2].std().sub(1).abs() < 0.05
    other = torch.cat(list(scoring_noise(x, index, MeanField(4), 100, seed=0, stage="select")))
    assert not (noise == other).any()
    # Fewer draws are the first of more.
    fewer = torch.cat(list(scoring_noise(x, index[:10], MeanField(4), 32, seed=0, stage="score")))
    assert torch.equal(fewer, noise[:32, :10])


def test_a_row_and_its_distribution_score_alike():
    oracle = LinearOracle.random(6, 2)
    model = LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model
    x, index, rows = torch.tensor(oracle.draw(9)), torch.arange(9), torch.randn(9, 4)
    by_row = score(LocalLoss(model, MeanField(2), "z"), x, index, rows, num_draws=50, seed=3)
    by_distribution = score_distribution(model, x, index, MeanField(2)(rows), site="z", num_draws=50, seed=3)
    torch.testing.assert_close(by_row, by_distribution, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pair_means(by_row).mean(0), by_row.mean(0))
    assert pair_means(by_row)[3].tolist() == pytest.approx(((by_row[6] + by_row[7]) / 2).tolist())


def test_chunks_are_whole_blocks_in_order():
    x = torch.randn(300, 5)
    parts = list(read_chunks(lambda x: None, x, 300, 2**13, "reading", device=torch.device("cpu")))
    assert torch.equal(torch.cat([index for index, _ in parts]), torch.arange(300))
    assert torch.equal(torch.cat([values for _, values in parts]), x)
    assert all(len(index) % 64 == 0 for index, _ in parts[:-1]) and len(parts) > 1


def test_the_guide_of_a_chunk():
    def amortized(x):
        raise AssertionError

    local = Local(MeanField(1), torch.arange(6.0).reshape(3, 2))
    assert guide_of(amortized, torch.tensor([1]), num_data=3) is amortized
    assert guide_of(local, torch.tensor([2, 0]), num_data=3).table.tolist() == [[4.0, 5.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: require_draws(5, least=4), "num_draws: .*pairs.*got 5", id="odd"),
        pytest.param(lambda: require_draws(2, least=4, name="draws"), "draws: .*at least 4.*got 2", id="few"),
        pytest.param(lambda: require_draws(True, least=0), "num_draws: .*True", id="boolean"),
        pytest.param(lambda: require_tol(math.nan), "tol: .*nan", id="tolerance"),
        pytest.param(
            lambda: require_finite(torch.tensor([[0.0], [math.inf]]), torch.tensor([4, 8])),
            "datapoint 8",
            id="infinity",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("family", [LowRank(4, rank=2), MixtureOfGaussians(4)], ids=repr)
def test_a_family_that_needs_more_noise_shares_what_the_others_have(family):
    x, index = torch.zeros(9, 3), torch.arange(9)
    plain = torch.cat(list(scoring_noise(x, index, MeanField(4), 40, seed=0, stage="score")))
    more = torch.cat(list(scoring_noise(x, index, family, 40, seed=0, stage="score")))
    assert more.shape[-1] == family.num_noise > 4
    assert torch.equal(more[..., :4], plain) and torch.equal(more[::2], -more[1::2])
    assert len(more[::2].flatten().unique()) == more[::2].numel()
    q = family(torch.randn(9, family.num_params))
    same = torch.cat(list(scoring_noise(x, index, q, 40, seed=0, stage="score")))
    assert torch.equal(same, more)


def hand_written(family, rows):
    """A guide that says nothing of its family."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family(rows))

    return guide


def test_rows_are_read_off_a_flow_without_a_density():
    """Only what a flow draws can be compared: the same rows, and others, which are refused."""
    family, x = PlanarFlow(3), torch.zeros(5, 2)
    rows = 0.5 * torch.randn(5, family.num_params)
    read = guide_rows(hand_written(family, rows), family, x, site="z", seed=0)
    noise = torch.randn(20, 5, family.num_noise)
    for ours, theirs in zip(from_noise(family(read), noise), from_noise(family(rows), noise), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="does not contain the guide's distribution"):
        guide_rows(hand_written(PlanarFlow(3, num_layers=1), torch.randn(5, 13)), family, x, site="z", seed=0)


def test_rows_of_a_flow_with_other_weights_are_not_taken():
    """Nor where those weights are frozen, and no parameters any more."""
    guide = Amortized(CouplingFlow(2), nn.Linear(5, CouplingFlow(2).num_params))
    with torch.no_grad():
        for weight in guide.parameters():
            weight.add_(torch.randn_like(weight))
    prior = VampPrior(guide, num_components=3)
    prior.keep_own_guide()
    assert prior.guide.family.num_shared == 0 and prior.guide.family.is_fitted
    with pytest.raises(ValueError, match="does not contain the guide's distribution"):
        guide_rows(prior.guide, CouplingFlow(2), torch.randn(4, 5), site="z", seed=0)


def normal_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def masking_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        seen = dist.Normal(z, 1.0).mask(~x.isnan()).to_event(1)
        pyro.sample("x", seen, obs=x.nan_to_num())


def test_an_unobserved_value_passes_where_the_model_leaves_it_out():
    x = torch.zeros(4, 3)
    x[2, 1] = math.nan
    index = torch.arange(10, 14)
    state = torch.get_rng_state()
    require_readable(masking_model, x, index)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="datapoint 12 holds NaN.*mask=True"):
        require_readable(normal_model, x, index)
    x[1, 0] = math.inf
    with pytest.raises(ValueError, match="datapoint 11 holds NaN or infinity"):
        require_readable(masking_model, x, index)


def box_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Uniform(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_a_family_must_live_where_the_prior_does():
    with pytest.raises(
        ValueError, match=r"site 'z': expected a family on interval\(0, 1\).*MeanField\(3\) on all real"
    ):
        refine(box_model, MeanField(3), torch.zeros(4, 3), seed=0)
