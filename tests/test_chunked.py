"""Chunks: what does not fit is halved with the same numbers, and what is done is kept."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import (
    Annealing,
    FullCovariance,
    MeanField,
    Resume,
    Search,
    Stopped,
    ais,
    elbo,
    iwae,
    measure_gaps,
    refine,
)
from inference.chunked import over_chunks
from inference.guides import Amortized
from inference.resuming import Journal
from pyro_vae.linear import LinearGaussian

CPU = torch.device("cpu")


def no_model(x):
    raise AssertionError("asked about NaN alone")


class Memory:
    """Work for which memory suffices up to so many datapoints."""

    def __init__(self, most, error):
        self.most, self.error = most, error
        self.sizes = []

    def __call__(self, index, x):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise self.error
        return {"index": index, "sum": x.sum(-1)}


# What torch says on the CPU, and on a GPU; and Python.
SHORT = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
]


@pytest.fixture
def x():
    return torch.randn(1000, 4)


@pytest.mark.parametrize("error", SHORT, ids=["cpu", "cuda", "python"])
def test_a_chunk_that_does_not_fit_is_halved(error, x, caplog):
    work = Memory(200, error)
    with caplog.at_level(logging.WARNING):
        columns = over_chunks(work, no_model, x, 1, "testing", device=CPU)
    # 1000 do not fit, nor 500; then whole blocks alone, and the size that fits is kept.
    assert work.sizes == [1000, 448, 192, 192, 192, 192, 192, 40]
    assert torch.equal(columns["index"], torch.arange(1000)) and torch.equal(columns["sum"], x.sum(-1))
    assert "testing: memory does not suffice for 1000 datapoints at once; going on with 448" in caplog.text


def test_a_block_that_does_not_fit_is_an_error(x):
    with pytest.raises(torch.OutOfMemoryError, match="2.00 GiB"):
        over_chunks(Memory(63, SHORT[1]), no_model, x, 1, "testing", device=CPU)


def test_other_errors_are_not_tried_again(x):
    work = Memory(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        over_chunks(work, no_model, x, 1, "testing", device=CPU)
    assert work.sizes == [1000]


@pytest.mark.parametrize("name", ["refine", "iwae", "ais", "gaps"])
def test_numbers_do_not_depend_on_what_fits(name, monkeypatch):
    """The first attempt at more than 64 datapoints lacks memory."""
    exact = LinearGaussian(torch.randn(3, 2), torch.zeros(3), 1.0)
    guide = Amortized(MeanField(2), torch.nn.Linear(3, 4))
    x = torch.randn(130, 3)
    short, quick = Annealing(num_temperatures=20), Search(max_rounds=2)
    run = {
        "refine": lambda: refine(exact.model, FullCovariance(2), x, search=quick, seed=0).elbo,
        "iwae": lambda: iwae(exact.model, guide, x, num_draws=200, search=quick, seed=0).value,
        "ais": lambda: ais(exact.model, x, annealing=short, seed=0).value,
        "gaps": lambda: (
            measure_gaps(
                exact.model, guide, x, num_draws=50, num_evidence_draws=100, annealing=short, search=quick, seed=0
            ).inference_gap
        ),
    }[name]
    whole = run()
    from inference import chunked

    chunk, asked = chunked._chunk, []

    def lacking(work, model, data, start, stop, **options):
        asked.append(stop - start)
        return None if stop - start > 64 else chunk(work, model, data, start, stop, **options)

    monkeypatch.setattr(chunked, "_chunk", lacking)
    torch.testing.assert_close(run(), whole, rtol=1e-9, atol=1e-9)
    assert max(asked) == 130 and asked.count(64) >= 2


class TestJournal:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr("inference.scoring.VALUES_AT_ONCE", 1)

    def go(self, folder, x, work=None, **identity):
        work = work or Memory(64, None)
        journal = Journal.of(Resume(folder), **identity)
        return work, over_chunks(work, no_model, x, 1, "testing", device=CPU, journal=journal)

    def test_what_is_done_is_not_done_again(self, tmp_path, x):
        first, whole = self.go(tmp_path, x)
        (tmp_path / "rows-000000000064-000000000128.pt").unlink()
        again, found = self.go(tmp_path, x)
        assert len(first.sizes) == 16 and again.sizes == [64]
        assert all(torch.equal(found[name], whole[name]) for name in whole)

    def test_a_damaged_file_is_done_again(self, tmp_path, x, caplog):
        _, whole = self.go(tmp_path, x)
        path = tmp_path / "rows-000000000000-000000000064.pt"
        path.write_bytes(path.read_bytes()[:300])
        again, found = self.go(tmp_path, x)
        assert again.sizes == [64] and torch.equal(found["sum"], whole["sum"])
        assert "is damaged; its datapoints are done again" in caplog.text

    def test_other_settings_are_refused(self, tmp_path, x):
        self.go(tmp_path, x, seed=0)
        with pytest.raises(ValueError, match="holds the state of another call: seed was 0, is 1"):
            self.go(tmp_path, x, seed=1)

    def test_other_data_are_refused(self, tmp_path, x):
        self.go(tmp_path, x)
        x[70, 0] += 1
        with pytest.raises(ValueError, match="holds results of other data"):
            self.go(tmp_path, x)

    def test_another_model_is_refused(self, tmp_path, x):
        exact = LinearGaussian(torch.randn(4, 2), torch.zeros(4), 1.0)
        options = {"search": Search(max_rounds=1), "resume": Resume(tmp_path), "seed": 0}
        refine(exact.model, MeanField(2), x[:64], **options)
        with torch.no_grad():
            exact.bias += 1
        with pytest.raises(ValueError, match="holds the state of another call: programs was"):
            refine(exact.model, MeanField(2), x[:64], **options)

    def test_a_full_disk_stops_nothing(self, tmp_path, x, monkeypatch, caplog):
        def full(path, content):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("inference.resuming.save_checkpoint", full)
        (tmp_path / "identity.pt").touch()
        journal = Journal.__new__(Journal)
        journal.folder, journal.identity = tmp_path, {}
        columns = over_chunks(Memory(64, None), no_model, x, 1, "testing", device=CPU, journal=journal)
        assert torch.equal(columns["sum"], x.sum(-1))
        assert "results cannot be saved (No space left on device); the work goes on" in caplog.text

    def test_an_interrupt_says_what_is_kept(self, tmp_path, x):
        def work(index, x):
            if index[0] == 128:
                raise KeyboardInterrupt
            return {"sum": x.sum(-1)}

        with pytest.raises(Stopped, match="stopped after 128 of 1000 datapoints of testing; they are kept in") as stop:
            self.go(tmp_path, x, work)
        assert stop.value.signal == 2
        again, found = self.go(tmp_path, x)
        assert len(again.sizes) == 14 and torch.equal(found["sum"], x.sum(-1))


@pytest.mark.parametrize("name", ["refine", "elbo"])
def test_draws_are_scored_within_the_budget_of_a_chunk(name, monkeypatch):
    """Thirty-two draws of a chunk that was cut for two would take sixteen times as much."""
    x, seen = torch.randn(70, 3), []

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            seen.append(z.numel() // (2 * len(x)))
            return pyro.sample("x", dist.Normal(torch.cat([z, z[..., :1]], -1), 1.0).to_event(1), obs=x)

    guide = Amortized(MeanField(2), torch.nn.Linear(3, 4))

    def run():
        seen.clear()
        if name == "elbo":
            return elbo(model, guide, x, num_draws=64, seed=0).value
        return refine(model, MeanField(2), x, num_draws=64, search=Search(max_rounds=1), seed=0).elbo

    whole = run()
    assert max(seen) == 32
    monkeypatch.setattr("inference.memory.VALUES_AT_ONCE", 4 * x.numel())
    torch.testing.assert_close(run(), whole, rtol=1e-12, atol=1e-12)
    assert max(seen) == 4
