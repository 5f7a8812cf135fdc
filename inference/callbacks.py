"""Small callables for `Training(callbacks=[...])`: what to do with the loop's state after each epoch."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.checkpoint import save_checkpoint
from inference.counts import is_number, require_count
from inference.training import LoopState, Training

__all__ = ["Checkpoints", "EarlyStopping", "MetricsFile", "TensorBoard"]


class EarlyStopping:
    """End a run whose metric has not improved for some epochs. The parameters stay those of the last epoch.

    `Training(patience=...)` goes back to the best ones; this callback is for other metrics than the held-out ELBO, and
    for gains that are too small to wait for.

    Args:
        patience: epochs without improvement.
        min_gain: an improvement is more than this over the last one, nats per datapoint.
        metric: "elbo_validation" or "elbo".

    Raises:
        ValueError: `patience` is not a positive integer, or the metric is neither; when called, there is no such
            metric.

    Example:
        >>> from inference import Training
        >>> Training(epochs=1000, callbacks=[EarlyStopping(10, min_gain=0.01, metric="elbo")]).epochs
        1000
    """

    def __init__(self, patience: int, *, min_gain: float = 0.0, metric: str = "elbo_validation") -> None:
        require_count("patience", patience)
        if not (is_number(min_gain) and min_gain >= 0):
            raise ValueError(f"min_gain: expected 0 or a positive number of nats; got {min_gain!r}.")
        if metric not in ("elbo", "elbo_validation"):
            raise ValueError(f"metric: expected 'elbo' or 'elbo_validation'; got {metric!r}.")
        self.patience = patience
        self.min_gain = min_gain
        self.metric = metric
        self._best = -math.inf
        self._since = 0

    def check(self, training: Training, *, held_out: bool) -> None:  # noqa: ARG002
        """Refuse a metric that the run does not measure, before its first step."""
        self._require(held_out or self.metric == "elbo")

    def _require(self, measured: object) -> None:
        if not measured:
            raise ValueError(
                f"EarlyStopping: expected {self.metric} to look at; there are no held-out data. Pass "
                "validation=data.validation, or metric='elbo'."
            )

    def __call__(self, state: LoopState) -> None:
        """Look at the last epoch."""
        values = getattr(state, self.metric)
        self._require(values)
        if state.epoch == 1:
            # The same callback may serve one run after another.
            self._best, self._since = -math.inf, 0
        if values[-1] > self._best + self.min_gain:
            # Small gains add up: the best moves only when they are enough together.
            self._best, self._since = values[-1], 0
        else:
            self._since += 1
        if self._since >= self.patience:
            state.stop = f"{self.metric} has not gained {self.min_gain:g} nats for {self.patience} epochs"

    def state_dict(self) -> dict[str, float]:
        """The best so far, and how long ago."""
        return {"best": self._best, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to it."""
        self._best, self._since = state["best"], state["since"]


class MetricsFile:
    """A line an epoch in a file that other programs read while the run goes on: metrics, and seconds since 1970.

    Args:
        path: a file that ends in .jsonl (one JSON object a line) or .csv; a file that is there is replaced when the
            first epoch ends.

    Raises:
        ValueError: another ending.

    Example:
        >>> import tempfile
        >>> from inference import Amortized, MeanField, Training, fit_svi
        >>> from pyro_vae.linear import LinearGaussian
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> exact = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0)
        >>> guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        >>> training = Training(epochs=2, callbacks=[MetricsFile(path)])
        >>> fit = fit_svi(exact.model, guide, torch.randn(64, 2), training=training, seed=0)
        >>> len(path.read_text().splitlines())
        2
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"path: expected a file that ends in .jsonl or .csv; got {self.path.name!r}.")

    def check(self, training: Training, *, held_out: bool) -> None:  # noqa: ARG002
        """Refuse a path that cannot be written, before the first step."""
        _require_writable(self.path.parent, "MetricsFile")
        if self.path.is_dir() or (self.path.exists() and not os.access(self.path, os.W_OK)):
            raise ValueError(f"MetricsFile: expected a file that can be written; got {self.path}. Choose another.")

    def __call__(self, state: LoopState) -> None:
        """Write the line of the last epoch."""
        first = state.epoch == 1
        row = metrics(state) | {"time": time.time()}
        with self.path.open("w" if first else "a", newline="") as lines:
            if self.path.suffix == ".jsonl":
                lines.write(json.dumps(row) + "\n")
                return
            writer = csv.DictWriter(lines, row)
            if first:
                writer.writeheader()
            writer.writerow(row)

    def state_dict(self) -> dict[str, int]:
        """How long the file is."""
        return {"size": self.path.stat().st_size if self.path.is_file() else 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the lines of epochs that are run again."""
        if self.path.is_file():
            os.truncate(self.path, min(state["size"], self.path.stat().st_size))


class TensorBoard:
    """Curves in TensorBoard, which has to be installed.

    Args:
        folder: of the event files.

    Raises:
        ImportError: there is no tensorboard.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard: expected the package tensorboard; it is not installed. Install it (pip install "
                "tensorboard), or take MetricsFile."
            ) from error
        self._writer = SummaryWriter(os.fspath(folder))  # type: ignore[no-untyped-call]

    def __call__(self, state: LoopState) -> None:
        """Add the last epoch to each curve."""
        for name, value in metrics(state).items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, state.epoch)  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]


class Checkpoints:
    """Keep what is trained, every few epochs: the last files, whole or not at all.

    Args:
        folder: where `epoch-0010.pt` and so on go; it exists.
        every: epochs between files.
        keep: how many stay; the oldest go.

    Raises:
        ValueError: a count is not a positive integer.
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 1, keep: int = 2) -> None:
        require_count("every", every)
        require_count("keep", keep)
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        self._written: list[Path] = []

    def check(self, training: Training, *, held_out: bool) -> None:  # noqa: ARG002
        """Refuse a folder that cannot be written to, before the first step."""
        _require_writable(self.folder, "Checkpoints")

    def __call__(self, state: LoopState) -> None:
        """Write a file, where it is time."""
        if state.epoch % self.every:
            return
        path = self.folder / f"epoch-{state.epoch:04d}.pt"
        content = {"parameters": {name: leaf.detach().cpu() for name, leaf in state.leaves.items()}}
        save_checkpoint(path, {**content, "optimizer": state.optimizer.state_dict(), **metrics(state)})
        self._written.append(path)
        while len(self._written) > self.keep:
            self._written.pop(0).unlink(missing_ok=True)

    def state_dict(self) -> dict[str, list[str]]:
        """Which files there are."""
        return {"written": [path.name for path in self._written]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to them."""
        self._written = [self.folder / name for name in state["written"]]


def _require_writable(folder: Path, name: str) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        how = "cannot be written to" if folder.is_dir() else "is no folder"
        raise ValueError(f"{name}: expected a folder to write to; {folder} {how}. Make it first, or choose another.")


def metrics(state: LoopState) -> dict[str, Any]:
    """The last epoch as plain numbers."""
    row: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "elbo": state.elbo[-1]}
    if state.elbo_validation:
        row["elbo_validation"] = state.elbo_validation[-1]
    return row
