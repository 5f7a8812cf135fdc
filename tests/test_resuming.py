"""Going on from what was saved: signals, damaged files, full disks, other settings, compiled code."""

import dataclasses
import logging
import signal

import pytest
import torch
from killing import differences, finish, kill
from torch import nn

from inference import (
    SGD,
    Adam,
    Amortized,
    Cosine,
    EarlyStopping,
    GapTracker,
    MeanField,
    MetricsFile,
    Resume,
    RobbinsMonro,
    Search,
    TermTracker,
    Training,
    fit_svi,
)
from inference.callbacks import Checkpoints
from inference.resuming import Snapshots, data_digest, program_digest
from pyro_vae.linear import LinearGaussian

TRAINING = Training(epochs=6, batch_size=16, optimizer=Adam(lr=0.01), compile=False)


@pytest.fixture(autouse=True)
def saving_costs_nothing(monkeypatch):
    """With `every=0`, a file a step."""
    monkeypatch.setattr("inference.resuming.MOST_SAVING", 1e9)


class Cut(Exception):
    """As if the process had been killed."""


class Problem:
    """A small fit, the same each time."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.exact = LinearGaussian(torch.randn(3, 2), torch.zeros(3), 1.0)
            self.guide = Amortized(MeanField(2), nn.Linear(3, 4))
            self.x = torch.randn(70, 3)

    def fit(self, folder=None, *, training=TRAINING, every=0.0, seed=0, validated=False):
        """What is fitted, and how it went."""
        options = {"resume": None if folder is None else Resume(folder, every=every), "seed": seed}
        # Other data than those of training, so that the best epoch is not the last.
        options["validation"] = 3 * self.x[:5] if validated else None
        fit = fit_svi(self.exact.model, self.guide, self.x, training=training, **options)
        how = {"elbo": fit.elbo, "num_steps": fit.num_steps, "best_epoch": fit.best_epoch}
        return {**self.guide.state_dict(), **self.exact.state_dict(), **how}


class Cutting:
    """A callback that ends the process after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def __call__(self, state):
        if state.epoch == self.epoch:
            raise Cut


def cut_after(epoch, *callbacks):
    return dataclasses.replace(TRAINING, callbacks=(*callbacks, Cutting(epoch)))


@pytest.fixture
def cut_at(monkeypatch):
    """Ends the process, as it were, when the state of a step has been saved."""
    save = Snapshots.save

    def cut(step):
        def saved(self, at, *content):
            save(self, at, *content)
            if at == step:
                monkeypatch.setattr(Snapshots, "save", save)
                raise Cut

        monkeypatch.setattr(Snapshots, "save", saved)

    return cut


EVERYTHING = dataclasses.replace(
    TRAINING, schedule=Cosine(), warm_up=2, patience=3, tol_params=1e-12, optimizer=Adam(lr=0.05)
)
MOMENTUM = dataclasses.replace(EVERYTHING, schedule=RobbinsMonro(delay=3), optimizer=SGD(lr=0.003, momentum=0.9))


@pytest.mark.parametrize(
    "training", [pytest.param(EVERYTHING, id="adam"), pytest.param(MOMENTUM, id="momentum", marks=pytest.mark.slow)]
)
def test_the_same_bits_after_every_step(tmp_path, cut_at, training):
    whole = Problem().fit(training=training, validated=True)
    for step in range(1, whole["num_steps"] + 1):
        folder = tmp_path / str(step)
        cut_at(step)
        with pytest.raises(Cut):
            Problem().fit(folder, training=training, validated=True)
        assert differences(whole, Problem().fit(folder, training=training, validated=True)) == [], step
        # And once more, where nothing is left to do.
        assert differences(whole, Problem().fit(folder, training=training, validated=True)) == [], step


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_compiled_code_goes_on_as_compiled_code(tmp_path, step, cut_at):
    """The last minibatch of an epoch is smaller, and compiled only after it has come often."""
    training = dataclasses.replace(TRAINING, batch_size=64, compile=True)
    whole = Problem().fit(training=training)
    cut_at(step)
    with pytest.raises(Cut):
        Problem().fit(tmp_path, training=training)
    assert differences(whole, Problem().fit(tmp_path, training=training)) == []


def test_a_damaged_file_falls_back_to_the_one_before(tmp_path, caplog):
    whole = Problem().fit()
    with pytest.raises(Cut):
        Problem().fit(tmp_path, training=cut_after(3))
    older, newest = sorted(tmp_path.glob("step-*.pt"))
    for damage in (newest.read_bytes()[:-100], newest.read_bytes()[:200] + b"x" + newest.read_bytes()[201:]):
        newest.write_bytes(damage)
        caplog.clear()
        assert differences(whole, Problem().fit(tmp_path)) == []
        if "is damaged" in caplog.text:
            assert f"{newest} is damaged; going on from what was saved before it" in caplog.text
        for path in tmp_path.glob("step-*.pt"):
            if path not in (older, newest):
                path.unlink()


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    """A file that is damaged anywhere is refused, or holds what it held."""
    from inference.checkpoint import load_checkpoint, save_checkpoint

    content = {"a": torch.arange(200.0), "b": "text", "c": [1.5, None]}
    save_checkpoint(tmp_path / "c.pt", content)
    whole = (tmp_path / "c.pt").read_bytes()
    for place in range(0, len(whole), 7):
        (tmp_path / "c.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = load_checkpoint(tmp_path / "c.pt")
        except ValueError:
            continue
        assert differences(content, found) == [], place


def test_other_settings_are_refused(tmp_path):
    Problem().fit(tmp_path)
    with pytest.raises(ValueError, match="resume: .* holds the state of another call: seed was 0, is 1"):
        Problem().fit(tmp_path, seed=1)
    with pytest.raises(ValueError, match="training was .*'epochs': 6.* is .*'epochs': 7"):
        Problem().fit(tmp_path, training=dataclasses.replace(TRAINING, epochs=7))
    other = Problem()
    other.x[0] += 1
    with pytest.raises(ValueError, match="data was '70 rows"):
        other.fit(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="resume: .*file/state cannot be made"):
        Problem().fit(tmp_path / "file" / "state")


def test_no_time_before_zero():
    with pytest.raises(ValueError, match="every: expected seconds, 0 or more; got -1"):
        Resume("somewhere", every=-1)


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, signum):
    whole = finish(lambda: Problem().fit(), tmp_path / "whole.pt")
    # Of 400 epochs, long enough for a signal in the middle.
    training = dataclasses.replace(TRAINING, epochs=400)
    work = lambda: Problem().fit(tmp_path / "state", training=training, every=1000)  # noqa: E731
    assert kill(work, tmp_path / "cut.pt", 0.4, signum) == 128 + signum
    message = (tmp_path / "cut.txt").read_text()
    name = signal.Signals(signum).name
    assert message.startswith(f"stopped by {name} after step ") and message.endswith("the same call goes on from there")
    step = int(message.split("after step ")[1].split(":")[0])
    (path,) = (tmp_path / "state").glob("step-*.pt")
    assert path.name == f"step-{step:012d}.pt"
    whole = finish(lambda: Problem().fit(training=training), tmp_path / "whole.pt")
    assert differences(whole, finish(work, tmp_path / "again.pt")) == []


def test_signals_are_the_users_again_after_it(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    Problem().fit(tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_full_disk_does_not_end_a_run(tmp_path, caplog):
    """A limit on the size of files stands for it: what was saved before stays."""
    import resource

    whole = Problem().fit()
    with pytest.raises(Cut):
        Problem().fit(tmp_path, training=cut_after(3))
    before = {path: path.read_bytes() for path in tmp_path.glob("step-*.pt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            found = Problem().fit(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert differences(whole, found) == []
    assert caplog.text.count("cannot be saved (File too large); the run goes on, and what was saved before stays") == 1
    assert {path: path.read_bytes() for path in tmp_path.glob("step-*.pt")} == before
    assert len(list(tmp_path.iterdir())) == len(before)


def test_saving_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("inference.resuming.time.monotonic", lambda: now[0])

    def slow(path, content):
        now[0] += 10.0

    monkeypatch.setattr("inference.resuming.save_checkpoint", slow)
    monkeypatch.setattr("inference.resuming.MOST_SAVING", 0.05)
    snapshots = Snapshots(Resume(tmp_path, every=30.0), {})
    now[0] = 29.0
    assert not snapshots.due()
    now[0] = 31.0
    assert snapshots.due() and snapshots.save(1, {})
    now[0] += 199.0
    assert not snapshots.due()
    now[0] += 2.0
    assert snapshots.due()


def test_nan_points_to_the_last_good_state(tmp_path):
    problem = Problem()

    def poison(state):
        if state.epoch == 3:
            problem.x[5] = 1e200
            problem.x[6] = -1e200

    training = dataclasses.replace(TRAINING, callbacks=[poison])
    with pytest.raises(FloatingPointError, match=r"The last good state, of step 15, is in .*\.$"):
        problem.fit(tmp_path, training=training, every=0)


class TestCallbacks:
    """What they remember is the run's."""

    def run(self, tmp_path, make, cut=3):
        whole = make("whole")
        Problem().fit(training=dataclasses.replace(TRAINING, callbacks=[whole]))
        first = make("cut")
        with pytest.raises(Cut):
            Problem().fit(tmp_path / "state", training=cut_after(cut, first))
        again = make("cut")
        Problem().fit(tmp_path / "state", training=dataclasses.replace(TRAINING, callbacks=[again]))
        return whole, again

    @pytest.mark.parametrize("suffix", ["csv", "jsonl"])
    def test_metrics_have_each_epoch_once(self, tmp_path, suffix):
        self.run(tmp_path, lambda name: MetricsFile(tmp_path / f"{name}.{suffix}"))
        whole, again = ((tmp_path / f"{name}.{suffix}").read_text().splitlines() for name in ("whole", "cut"))
        # All but the seconds.
        assert [line.rsplit("time" if suffix == "jsonl" else ",", 1)[0] for line in whole] == [
            line.rsplit("time" if suffix == "jsonl" else ",", 1)[0] for line in again
        ]

    def test_patience_goes_on(self, tmp_path):
        whole, again = self.run(tmp_path, lambda name: EarlyStopping(100, min_gain=100.0, metric="elbo"))
        assert whole.state_dict() == again.state_dict() and whole.state_dict()["since"] > 3

    def test_files_go_on(self, tmp_path):
        def make(name):
            (tmp_path / name).mkdir(exist_ok=True)
            return Checkpoints(tmp_path / name, keep=2)

        self.run(tmp_path, make)
        names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("whole", "cut")]
        assert names[0] == names[1] == ["epoch-0005.pt", "epoch-0006.pt"]

    def test_terms_go_on(self, tmp_path):
        problem = Problem()

        def make(name):
            return TermTracker(problem.exact.model, problem.guide, {"few": problem.x[:4]})

        whole, again = self.run(tmp_path, make)
        assert again.epochs == whole.epochs == [1, 2, 3, 4, 5, 6]

    def test_gaps_go_on(self, tmp_path):
        problem = Problem()

        def make(name):
            quick = Search(max_rounds=1)
            return GapTracker(problem.exact.model, problem.guide, problem.x[:4], every=2, search=quick)

        whole, again = self.run(tmp_path, make)
        assert [entry.epoch for entry in again.history] == [2, 4, 6]
        torch.testing.assert_close(again.table()["amortization_gap"], whole.table()["amortization_gap"])
        assert again.history[0].gaps.estimates.keys() == whole.history[0].gaps.estimates.keys()


def test_digests():
    problem = Problem()
    model, x = problem.exact.model, problem.x
    assert program_digest(model) == program_digest(Problem().exact.model)
    assert data_digest(x) == data_digest(x.clone()) != data_digest(x[:-1])
    with torch.no_grad():
        problem.exact.bias[0] += 1e-12
    assert program_digest(model) != program_digest(Problem().exact.model)
