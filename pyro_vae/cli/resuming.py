"""Verbs that were stopped, and go on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from shlex import quote

from inference import Resume, Stopped
from inference.checkpoint import atomic_write
from inference.processes import is_first
from pyro_vae.folders import unfinished

__all__ = ["going_on", "kept_state", "said_to_be_whole", "typed"]

COMMAND = "command.json"

# The words of the command that runs, and whether it goes on where an earlier one was stopped.
typed: ContextVar[list[str]] = ContextVar("typed", default=[])  # noqa: B039 (never changed in place)
going_on: ContextVar[bool] = ContextVar("going_on", default=False)


@contextlib.contextmanager
def kept_state(out: Path, *, anew: bool) -> Iterator[Resume]:
    """Where a fit keeps its state until its run is complete, with the command that made it.

    Args:
        out: the run's folder.
        anew: whether the state of an earlier fit is removed, unless that is what goes on.

    Raises:
        Stopped: a signal came; the message says how to go on.
    """
    state = unfinished(out)
    if is_first():
        if anew and not going_on.get():
            shutil.rmtree(state, ignore_errors=True)
        _keep_command(state, out)
    try:
        yield Resume(state)
    except BaseException as error:
        if list(state.glob("step-*.pt")):
            if isinstance(error, Stopped):
                raise Stopped(error.signal, f"{error}. Go on: pyro-vae resume {out}") from None
        elif is_first():
            # Nothing has been done that could be gone on from.
            shutil.rmtree(state, ignore_errors=True)
        raise
    if is_first():
        shutil.rmtree(state, ignore_errors=True)


@contextlib.contextmanager
def said_to_be_whole(out: Path) -> Iterator[None]:
    """What follows a fit; where it is interrupted, the message says that the run is there.

    Args:
        out: the run's folder.

    Raises:
        Stopped: a signal came.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        came = error.signal if isinstance(error, Stopped) else signal.SIGINT
        text = f"interrupted while draws and pictures were made; the run in {out} is whole. The rest:"
        raise Stopped(came, f"{text} pyro-vae resume {quote(str(out))}") from None


def words_of(out: Path) -> tuple[list[str], Path]:
    """The command whose run was to fill this folder, and where it was typed.

    Raises:
        FileNotFoundError: there is nothing to go on from.
        ValueError: the file that says it is damaged.
    """
    path = unfinished(out) / COMMAND
    try:
        said = json.loads(path.read_text())
        return [str(word) for word in said["words"]], Path(said["where"])
    except (FileNotFoundError, NotADirectoryError) as error:
        there = f"the run there is complete: pyro-vae report {out}" if out.is_dir() else "nothing was begun there"
        raise FileNotFoundError(f"{out}: expected a fit that was stopped; {there}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the command that was stopped; it is damaged. Type that one again."
        ) from error


def _keep_command(state: Path, out: Path) -> None:
    words = typed.get()
    if not any(word == "--out" or word.startswith("--out=") for word in words):
        words = [*words[:1], "--out", str(out.resolve()), *words[1:]]
    try:
        state.mkdir(parents=True, exist_ok=True)
        with atomic_write(state / COMMAND) as temporary:
            temporary.write_text(json.dumps({"words": words, "where": os.getcwd()}, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}). Choose another folder.") from error
