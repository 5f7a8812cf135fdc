"""Work that may be killed: what is done is kept, and the same call goes on from there and ends with the same bits."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from inference.batches import Data, fetch
from inference.checkpoint import load_checkpoint, save_checkpoint
from inference.counts import is_number, require_kind
from inference.isolation import modules_of
from inference.processes import Shards, agree, is_first, largest

__all__ = [
    "Journal",
    "Resume",
    "Sharded",
    "Signals",
    "Snapshots",
    "Stateful",
    "Stopped",
    "data_digest",
    "program_digest",
    "stop_signals",
]

_log = logging.getLogger(__name__)

# Saving takes no more than this share of a run: a large table is saved less often than asked for.
MOST_SAVING = 0.05
# How many snapshots stay: where the newest is damaged, the one before serves.
KEPT = 2
# Rows at either end that say whether data are the same.
ROWS_READ = 64


@dataclass(frozen=True)
class Resume:
    """Where a call keeps what it has done, so that the same call goes on from there.

    Pass the same `Resume` to the same call (the same model, data, settings and seed) after it was killed, and it ends
    with the bits it would have ended with: on one kind of machine, with the same number of threads. What is on the disk
    is always whole; where the newest file is damaged, the one before serves.

    SIGINT and SIGTERM are waited for: a training step is finished and saved, then `Stopped` is raised.

    Attributes:
        folder: where the files go; it is made, and holds one call's files alone.
        every: seconds between saves at least. Saving never takes more than a twentieth of the time.

    Example:
        >>> import tempfile
        >>> from inference import Amortized, MeanField, Training, fit_svi
        >>> from pyro_vae.linear import LinearGaussian
        >>> exact, x = LinearGaussian(torch.eye(2), torch.zeros(2), 1.0), torch.ones(8, 2)
        >>> folder = tempfile.mkdtemp()
        >>> def fit():
        ...     guide = Amortized(MeanField(2), torch.nn.Linear(2, 4))
        ...     return fit_svi(exact.model, guide, x, training=Training(epochs=3), resume=Resume(folder), seed=0)
        >>> first, again = fit(), fit()
        >>> bool((first.elbo == again.elbo).all())
        True
    """

    folder: str | os.PathLike[str]
    every: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what is no folder, and what is no time."""
        if not isinstance(self.folder, str | os.PathLike):
            raise TypeError(f"folder: expected a path; got {self.folder!r}.")
        if not (is_number(self.every) and self.every >= 0):
            raise ValueError(f"every: expected seconds, 0 or more; got {self.every!r}. The default is 30.")

    def part(self, name: str) -> Resume:
        """That of one part of a call."""
        return Resume(Path(self.folder) / name, self.every)


@runtime_checkable
class Stateful(Protocol):
    """What a run changes besides its parameters: tables, chains, callbacks that remember."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Go back to them."""
        ...


class Sharded(Protocol):
    """What a run keeps of every datapoint, a shard at a time."""

    def shard_state(self, shard: int) -> Mapping[str, Any]:
        """Of the datapoints of a shard of this process: tensors and plain values."""
        ...

    def load_shard(self, shard: int, state: Mapping[str, Any], /) -> None:
        """Go back to them."""
        ...


class Stopped(KeyboardInterrupt):
    """A signal came; what was done is saved. It is a `KeyboardInterrupt`, as Ctrl-C raises one anyway.

    Attributes:
        signal: its number, 2 or 15.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signal = signum


class Signals:
    """Whether one has come."""

    def __init__(self) -> None:
        self.came: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """What the system calls."""
        if self.came is not None:
            # Whoever asks twice does not want to wait.
            raise Stopped(signum, f"stopped by {signal.Signals(signum).name}, without waiting for the step to end")
        self.came = signum


@contextmanager
def stop_signals(*, wait: bool) -> Iterator[Signals]:
    """Take note of SIGINT and SIGTERM inside; a second one is not waited for.

    Args:
        wait: False: signals do what they did before. So they do in other threads than the main one.
    """
    came = Signals()
    if not wait or threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, came) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Snapshots:
    """The state of a loop, now and then: the last two files, each of them whole.

    Of a run in several shards, what is kept of every datapoint lies beside it, a file a shard: each process writes its
    own, and another number of processes can read them.

    Args:
        resume: where.
        identity: what has to be the same for a snapshot to be gone on from, as plain values.
        shards: how the datapoints are divided.
    """

    def __init__(self, resume: Resume, identity: Mapping[str, Any], shards: Shards = Shards()) -> None:  # noqa: B008
        require_kind("resume", resume, Resume, hint="Pass Resume(folder).")
        self.folder = Path(resume.folder)
        self.every = resume.every
        self.identity = _plain(identity)
        self.shards = shards
        self._saved_at = time.monotonic()
        self._took = 0.0
        self._failed = False

    def load(self) -> tuple[dict[str, Any], dict[int, Any]] | None:
        """The newest state that can be read, with the tables of this process's shards; None where there is none.

        Raises:
            ValueError: it is that of another run.
        """
        _make(self.folder)
        if is_first():
            for torn in self.folder.glob(".step-*"):
                torn.unlink(missing_ok=True)
        for path in agree(self._files()):
            found = self._read(path)
            # Damaged for one process, damaged for all.
            if largest(found is None):
                _log.warning("%s is damaged; going on from what was saved before it.", path)
                continue
            assert found is not None
            _require_same(self.folder, self.identity, found[0].get("identity"))
            return found
        return None

    def due(self) -> bool:
        """Whether it is time to save."""
        since = time.monotonic() - self._saved_at
        return since >= self.every and since * MOST_SAVING >= self._took

    def save(self, step: int, content: Mapping[str, Any], tables: Mapping[int, Any] = MappingProxyType({})) -> bool:
        """Keep this state, and the one before; whether it could be kept. Where not, the run goes on without.

        Args:
            step: optimiser steps taken.
            content: what all processes share.
            tables: of each shard of this process, what is kept of its datapoints.
        """
        began = time.monotonic()
        path = self.folder / f"step-{step:012d}.pt"
        failed = 0
        try:
            if self.shards.count > 1:
                for shard, table in tables.items():
                    save_checkpoint(_of_shard(path, shard), {"table": table})
            else:
                content = {**content, "tables": dict(tables)}
        except OSError as error:
            failed = self._tell(step, error)
        # What says that there is a state comes last.
        failed = largest(failed)
        if not failed and is_first():
            try:
                save_checkpoint(path, {**content, "identity": self.identity, "has tables": bool(tables)})
            except OSError as error:
                failed = self._tell(step, error)
        failed = largest(failed)
        if not failed:
            self._failed = False
            for old in self._files()[KEPT:]:
                if is_first():
                    old.unlink(missing_ok=True)
                for shard in self.shards.own:
                    _of_shard(old, shard).unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        self._took = self._saved_at - began
        return not failed

    def _tell(self, step: int, error: OSError) -> int:
        if not self._failed:
            _log.warning(
                "%s: the state at step %d cannot be saved (%s); the run goes on, and what was saved before stays. "
                "Free some room.",
                self.folder,
                step,
                error.strerror or error,
            )
        self._failed = True
        return 1

    def _files(self) -> list[Path]:
        """The states there are, newest first."""
        return sorted(self.folder.glob("step-" + "[0-9]" * 12 + ".pt"), reverse=True)

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[int, Any]] | None:
        try:
            content = load_checkpoint(path)
            if self.shards.count == 1 or not content["has tables"]:
                return content, content.get("tables", {})
            own = {shard: load_checkpoint(_of_shard(path, shard))["table"] for shard in self.shards.own}
        except (ValueError, FileNotFoundError):
            return None
        return content, own


def _of_shard(path: Path, shard: int) -> Path:
    return path.with_suffix(f".shard-{shard:05d}.pt")


@dataclass
class Journal:
    """What a measurement has done, chunk by chunk: a file each.

    Attributes:
        folder: where.
        identity: what has to be the same, as plain values.
    """

    folder: Path
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse the files of another call."""
        _make(self.folder)
        self.identity = _plain(self.identity)
        path = self.folder / "identity.pt"
        try:
            _require_same(self.folder, self.identity, load_checkpoint(path).get("identity"))
        except FileNotFoundError:
            save_checkpoint(path, {"identity": self.identity})

    @classmethod
    def of(
        cls, resume: Resume | None, *programs: Callable[..., Any] | Tensor | None, **identity: Any
    ) -> Journal | None:
        """The journal of a call with these programs and settings, or None where none is asked for."""
        if resume is None:
            return None
        require_kind("resume", resume, Resume, hint="Pass Resume(folder).")
        return cls(Path(resume.folder), {"programs": program_digest(*programs), **identity})

    def read(self, name: str, x: Tensor) -> dict[str, Tensor] | None:
        """What was done at these datapoints, or None.

        Raises:
            ValueError: the data have changed since.
        """
        try:
            content = load_checkpoint(self.folder / f"{name}.pt")
        except FileNotFoundError:
            return None
        except ValueError:
            _log.warning("%s is damaged; its datapoints are done again.", self.folder / f"{name}.pt")
            return None
        if content["x"] != digest(x):
            raise ValueError(
                f"resume: {self.folder} holds results of other data; x has changed since. Pass another folder, or "
                "delete it."
            )
        return content["columns"]

    def write(self, name: str, x: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Keep what was done at these datapoints; where that fails, the work goes on without."""
        try:
            save_checkpoint(self.folder / f"{name}.pt", {"x": digest(x), "columns": dict(columns)})
        except OSError as error:
            _log.warning("%s: results cannot be saved (%s); the work goes on.", self.folder, error.strerror or error)


def digest(*tensors: Tensor) -> str:
    """Of shapes, dtypes and bits."""
    total = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous()
        total.update(repr((tuple(flat.shape), str(flat.dtype))).encode())
        total.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def program_digest(*programs: Callable[..., Any] | Tensor | None) -> str:
    """Of every parameter and buffer that the programs reach: whether a model is the same, but for its code."""
    given = [program for program in programs if isinstance(program, Tensor)]
    reached = modules_of(*(program for program in programs if not isinstance(program, Tensor)))
    return digest(*given, *(tensor for module in reached for tensor in (*module.parameters(), *module.buffers())))


def data_digest(data: Data) -> str:
    """Of the number of rows, and the first and last of them."""
    if getattr(data, "resamples", False):
        return f"{len(data)} rows"
    few = torch.arange(min(len(data), ROWS_READ))
    return f"{len(data)} rows, {digest(fetch(data, few), fetch(data, len(data) - 1 - few))}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"resume: {folder} cannot be made ({error.strerror}). Choose another folder.") from error


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(identity), default=str))


def _require_same(folder: Path, ours: Mapping[str, Any], theirs: Any) -> None:  # noqa: ANN401
    theirs = theirs if isinstance(theirs, dict) else {}
    changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if changed:
        shown = "; ".join(f"{name} was {theirs.get(name)!r}, is {ours.get(name)!r}" for name in sorted(changed)[:3])
        raise ValueError(
            f"resume: {folder} holds the state of another call: {shown}. Make the same call again, pass another "
            "folder, or delete it."
        )
