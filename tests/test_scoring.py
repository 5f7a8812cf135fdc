import math

import pytest
import torch
from oracles import LinearOracle

from inference import Local, MeanField
from inference.objectives import LocalELBO
from inference.scoring import (
    guide_of,
    pair_means,
    read_chunks,
    require_draws,
    require_finite,
    require_tol,
    score,
    score_distribution,
    scoring_noise,
)
from pyro_vae.linear import LinearGaussian


def test_noise_comes_in_mirrored_pairs_of_its_own_for_every_datapoint():
    x, index = torch.zeros(70, 3), torch.arange(70)
    noise = torch.cat(list(scoring_noise(x, index, 4, 100, seed=0, stage="score")))
    assert noise.shape == (100, 70, 4)
    assert torch.equal(noise[::2], -noise[1::2])
    assert len(noise[::2].flatten().unique()) == noise[::2].numel()
    assert noise[::2].mean().abs() < 0.05 and noise[::2].std().sub(1).abs() < 0.05
    other = torch.cat(list(scoring_noise(x, index, 4, 100, seed=0, stage="select")))
    assert not (noise == other).any()
    # Fewer draws are the first of more.
    fewer = torch.cat(list(scoring_noise(x, index[:10], 4, 32, seed=0, stage="score")))
    assert torch.equal(fewer, noise[:32, :10])


def test_a_row_and_its_distribution_score_alike():
    oracle = LinearOracle.random(6, 2)
    model = LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model
    x, index, rows = torch.tensor(oracle.draw(9)), torch.arange(9), torch.randn(9, 4)
    by_row = score(LocalELBO(model, MeanField(2), "z"), x, index, rows, num_draws=50, seed=3)
    by_distribution = score_distribution(model, x, index, MeanField(2)(rows), site="z", num_draws=50, seed=3)
    torch.testing.assert_close(by_row, by_distribution, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pair_means(by_row).mean(0), by_row.mean(0))
    assert pair_means(by_row)[3].tolist() == pytest.approx(((by_row[6] + by_row[7]) / 2).tolist())


def test_chunks_are_whole_blocks_in_order():
    x = torch.randn(300, 5)
    parts = list(read_chunks(x, 300, 2**13, device=torch.device("cpu")))
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
