"""Small callables that look at the loop's state."""

import csv
import json
import sys
import time

import pytest
import torch

from inference import Adam, MeanField, Training, fit_em
from inference.callbacks import Checkpoints, EarlyStopping, MetricsFile, TensorBoard
from inference.checkpoint import load_checkpoint
from inference.training import LoopState
from pyro_vae.linear import LinearGaussian


def fitted(*callbacks, epochs=5, validation=True):
    torch.manual_seed(0)
    model = LinearGaussian(torch.randn(6, 2), torch.zeros(6), 1.0)
    x = torch.randn(40, 6)
    training = Training(epochs=epochs, batch_size=20, optimizer=Adam(lr=0.01), callbacks=list(callbacks))
    return fit_em(
        model.model, MeanField(2), x, training=training, validation=torch.randn(10, 6) if validation else None, seed=0
    )


def state(epoch, elbo, *held_out):
    return LoopState(leaves={}, optimizer=None, epoch=epoch, step=epoch, elbo=[elbo], elbo_validation=list(held_out))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_metrics_are_those_of_the_fit(suffix, tmp_path):
    path = tmp_path / f"metrics{suffix}"
    path.write_text("something older")
    fit = fitted(MetricsFile(path))
    if suffix == ".csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [float(row["elbo"]) for row in rows] == fit.elbo.tolist()
    assert [float(row["elbo_validation"]) for row in rows] == fit.elbo_validation.tolist()
    times = [float(row["time"]) for row in rows]
    assert times == sorted(times) and abs(times[-1] - time.time()) < 600


def test_metrics_without_held_out_data(tmp_path):
    fitted(MetricsFile(tmp_path / "metrics.jsonl"), validation=False)
    assert "elbo_validation" not in json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.jsonl or \.csv; got 'metrics\.txt'"):
        MetricsFile(tmp_path / "metrics.txt")


def test_early_stopping_counts_epochs_without_a_gain():
    stopping = EarlyStopping(2, min_gain=0.5, metric="elbo")
    stops = []
    # Of these -8 and -7.4 are more than half a nat above the last gain.
    for epoch, elbo in enumerate([-9.0, -8.0, -7.8, -7.4, -7.0, -6.95], start=1):
        now = state(epoch, elbo)
        stopping(now)
        stops.append(now.stop)
    assert stops == [None] * 5 + ["elbo has not gained 0.5 nats for 2 epochs"]
    again = state(1, -20.0)
    stopping(again)
    assert again.stop is None  # a new run starts afresh


def test_early_stopping_ends_a_fit():
    fit = fitted(EarlyStopping(1, min_gain=1e6), epochs=50)
    assert len(fit.elbo) == 2 and "elbo_validation has not gained" in fit.stopped_because


def test_early_stopping_needs_its_metric():
    with pytest.raises(ValueError, match="there are no held-out data"):
        fitted(EarlyStopping(1), validation=False)
    with pytest.raises(ValueError, match="metric: expected"):
        EarlyStopping(1, metric="loss")
    with pytest.raises(ValueError, match="patience: expected an integer of at least 1; got 0"):
        EarlyStopping(0)


def test_checkpoints_keep_the_last(tmp_path):
    kept = []
    fitted(
        Checkpoints(tmp_path, every=2, keep=1),
        lambda state: kept.append({k: v.detach().clone() for k, v in state.leaves.items()}),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0004.pt"]
    content = load_checkpoint(tmp_path / "epoch-0004.pt")
    assert content["epoch"] == 4
    assert content["parameters"].keys() == kept[3].keys()
    assert all(torch.equal(content["parameters"][name], kept[3][name]) for name in kept[3])


def test_tensorboard_holds_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit = fitted(TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("elbo")] == [1, 2, 3, 4, 5]
    assert [event.value for event in events.Scalars("elbo")] == pytest.approx(fit.elbo.tolist(), rel=1e-6)


def test_tensorboard_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoard(tmp_path)
