"""The command line: parse, call, save."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from inference import Stopped
from inference.processes import LostProcessError, process_group
from pyro_vae import __version__
from pyro_vae.cli.parsing import overview, parse
from pyro_vae.cli.resuming import typed

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what went wrong is one line on standard error.

    Args:
        arguments: words of the command line; by default those of the process.

    Returns:
        The exit code: 0, 2 where the input was wrong, 1 where another process of the job was lost, 130 or 143 where it
        was stopped by SIGINT or SIGTERM.

    Raises:
        SystemExit: the help of a verb was asked for and printed, or a study was interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            return _run(words)
        finally:
            # Here, where a reader who has gone away is known; at the interpreter's end it is a traceback.
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has read enough; nothing more may be written, not even at the end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"pyro-vae: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except LostProcessError as error:
        print(f"pyro-vae: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"pyro-vae: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("pyro-vae: interrupted; no run was written or replaced.", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"pyro-vae {__version__}")
        return 0
    if not words or words in (["--help"], ["-h"]):
        print(overview())
        return 0 if words else 2
    with _spoken(), _terminable(), process_group():
        typed.set(words)
        parse(words)()
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that nothing is left half written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:  # noqa: ARG001
        raise Stopped(signum, "interrupted; no run was written or replaced")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _spoken() -> Iterator[None]:
    """What the library logs, said on standard error while a command runs."""
    handler = logging.StreamHandler(sys.stderr)
    loggers = [logging.getLogger(name) for name in ("pyro_vae", "inference")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
