"""Shards: a minibatch is the same sum whoever visits its parts; several processes against one."""

import dataclasses

import pytest
import torch
from killing import differences
from torch import nn

from inference import Adam, Amortized, MeanField, Resume, Training, fit_em, fit_mcem, fit_svi
from inference.processes import Shards, gather_rows, num_processes, own_range
from inference.training.minibatches import Plan
from pyro_vae.linear import LinearGaussian

TRAINING = Training(epochs=3, batch_size=12, optimizer=Adam(lr=0.01), shards=4)


class TestPlan:
    @pytest.mark.parametrize("num_data", [7, 47, 48, 49, 50])
    @pytest.mark.parametrize("count", [1, 2, 4, 6])
    def test_every_datapoint_once_an_epoch(self, num_data, count):
        plan = Plan(num_data, 12, Shards(count), seed=0)
        orders = plan.orders(0)
        seen, sizes = [], []
        for step in range(plan.num_steps):
            pieces = plan.pieces(orders, step)
            seen += [int(n) for _, index in pieces for n in index]
            sizes.append(sum(len(index) for _, index in pieces))
            assert plan.size(step) == sizes[-1] > 0
        assert sorted(seen) == list(range(num_data)) and max(sizes) <= 12
        assert plan.num_steps == -(-num_data // 12)

    def test_orders_belong_to_seed_epoch_and_shard(self):
        def order(seed, epoch):
            return torch.cat(Plan(40, 4, Shards(4), seed=seed).orders(epoch))

        assert torch.equal(order(0, 1), order(0, 1))
        assert not torch.equal(order(0, 1), order(0, 2)) and not torch.equal(order(0, 1), order(1, 1))
        within = order(0, 1).view(4, 10)
        assert not torch.equal(within[0], within[1] - 10)

    def test_what_does_not_divide_is_refused(self):
        with pytest.raises(ValueError, match="batch_size: expected a multiple of the number of shards, 5; got 12. Try"):
            Plan(100, 12, Shards(5), seed=0)
        with pytest.raises(ValueError, match="shards: expected at most one a datapoint, 3; got 4"):
            Plan(3, 12, Shards(4), seed=0)


class TestShards:
    @pytest.mark.parametrize("num_data", [4, 5, 7, 1000])
    def test_rows_are_all_and_alike(self, num_data):
        shards = Shards(4)
        rows = [shards.rows(num_data, shard) for shard in range(4)]
        assert [start for start, _ in rows[1:]] == [stop for _, stop in rows[:-1]]
        assert rows[0][0] == 0 and rows[-1][1] == num_data == shards.own_rows(num_data)[1]
        sizes = [stop - start for start, stop in rows]
        assert max(sizes) - min(sizes) <= 1

    def test_chunks_cross_no_shard(self):
        assert list(Shards(2).chunks(10, 3)) == [(0, 3), (3, 5), (5, 8), (8, 10)]

    def test_of_one_process(self):
        assert num_processes() == 1 and own_range(5) == (0, 5) and Shards(3).own == range(3)
        assert gather_rows({"x": torch.ones(2)})["x"].tolist() == [1, 1]


def problem():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exact = LinearGaussian(torch.randn(3, 2), torch.zeros(3), 1.0)
        return exact, Amortized(MeanField(2), nn.Linear(3, 4)), torch.randn(50, 3)


def test_a_gradient_in_shards_is_the_gradient():
    """Without noise in it: the mean over shards of other sizes is the mean over datapoints."""
    exact, guide, x = problem()
    plan = Plan(50, 52, Shards(4), seed=0)
    from inference.objectives import Step

    leaves = list(exact.parameters())

    def step(index):
        loss = -exact.log_evidence(x[index]).mean()
        return Step.of(loss, -loss, leaves)

    parts = [(len(index), step(index)) for _, index in plan.pieces(plan.orders(0), 0)]
    together, whole = plan.together(parts, 50, leaves), step(torch.arange(50))
    torch.testing.assert_close(together.loss, whole.loss)
    assert len({len(index) for _, index in plan.pieces(plan.orders(0), 0)}) == 2
    for ours, theirs in zip(together.grads, whole.grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_leaf_without_gradient_stays_one():
    leaves = [torch.zeros(2), torch.zeros(3)]
    from inference.objectives import Step

    visits = [(3, Step(torch.ones(()), torch.ones(()), [torch.ones(2), None]))] * 2
    assert Plan(6, 6, Shards(2), seed=0).together(visits, 6, leaves).grads[1] is None


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["svi", "em"])
def test_shards_fit_as_well(engine):
    """Stratified minibatches are as good as others."""
    found = {}
    for shards in (1, 5):
        exact, guide, x = problem()
        training = dataclasses.replace(TRAINING, shards=shards, epochs=30, batch_size=10)
        if engine == "svi":
            fit = fit_svi(exact.model, guide, x, training=training, validation=x, seed=0)
        else:
            fit = fit_em(exact.model, MeanField(2), x, training=training, validation=x[:7], seed=0)
        found[shards] = fit.elbo[-10:].mean()
    # Over 500 datapoint visits of one draw or two, whose log weights have a standard deviation of about 1.
    assert abs(found[1] - found[5]) < 4 * 1.0 / 500**0.5


@pytest.mark.parametrize("engine", ["em", pytest.param("svi", marks=pytest.mark.slow)])
def test_shards_resume_with_the_same_bits(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.resuming.MOST_SAVING", 1e9)

    class Cut(Exception):
        pass

    def cut(state):
        if state.epoch == 2:
            raise Cut

    def fit(resume=None, callbacks=()):
        exact, guide, x = problem()
        options = {"training": dataclasses.replace(TRAINING, callbacks=callbacks), "resume": resume, "seed": 0}
        options["validation"] = x[:9]
        if engine == "svi":
            record = fit_svi(exact.model, guide, x, **options)
        else:
            record = fit_em(exact.model, MeanField(2), x, **options)
        return {**exact.state_dict(), **guide.state_dict(), "elbo": record.elbo, "params": record.params}

    whole = fit()
    with pytest.raises(Cut):
        fit(Resume(tmp_path, every=0), callbacks=[cut])
    newest = sorted(tmp_path.glob("step-*0.pt"))
    assert len(list(tmp_path.glob("*.shard-00003.pt"))) == (2 if engine == "em" else 0), newest
    assert differences(whole, fit(Resume(tmp_path, every=0))) == []


def test_running_statistics_are_refused():
    exact, _, x = problem()
    guide = Amortized(MeanField(2), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    with pytest.raises(ValueError, match="BatchNorm1d normalises a shard by itself.*LayerNorm"):
        fit_svi(exact.model, guide, x, training=TRAINING, seed=0)


def test_engines_of_one_shard():
    exact, guide, x = problem()
    with pytest.raises(ValueError, match="shards: Monte Carlo EM runs in one process and one shard; got 4"):
        fit_mcem(exact.model, x, training=TRAINING, seed=0)
    with pytest.raises(ValueError, match="shards: semi-amortized inference"):
        fit_em(exact.model, MeanField(2), x, init=guide, restart="every visit", training=TRAINING, seed=0)
