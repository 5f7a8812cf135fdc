"""Work in a process of its own, killed at a random moment: what the tests of resuming are made of."""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from inference.checkpoint import load_checkpoint, save_checkpoint


def start(work, result: Path) -> int:
    """The process that works and writes what it found to `result`."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        # Threads of a pool do not survive a fork.
        torch.set_num_threads(1)
        save_checkpoint(result, work())
        code = 0
    except KeyboardInterrupt as error:
        result.with_suffix(".txt").write_text(str(error))
        code = 128 + getattr(error, "signal", 2)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(work, result: Path) -> dict:
    """What undisturbed work finds."""
    _, status = os.waitpid(start(work, result), 0)
    assert status == 0, f"ended with {status}"
    return load_checkpoint(result)


def kill(work, result: Path, after: float, signum: int = signal.SIGKILL) -> int:
    """Kill the work after so many seconds; the exit code, negative where a signal ended it."""
    pid = start(work, result)
    time.sleep(after)
    os.kill(pid, signum)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def endings(make, folder: Path, *, kills: int, seed: int = 0) -> tuple[dict, list[dict], int]:
    """What undisturbed work finds; what work finds that was killed at a random moment, each time; how many were.

    Args:
        make: the work, given the folder where it keeps what it has done; None: nowhere.
        folder: of all files.
        kills: how often.
        seed: of the moments.
    """
    whole = finish(make(None), folder / "whole.pt")
    began = time.perf_counter()
    finish(make(folder / "timed"), folder / "timed.pt")
    seconds = time.perf_counter() - began
    generator = random.Random(seed)
    found, died = [], 0
    for number in range(kills):
        work = make(folder / f"state-{number}")
        died += kill(work, folder / f"{number}.pt", generator.uniform(0, seconds)) == -signal.SIGKILL
        found.append(finish(work, folder / f"{number}.pt"))
    return whole, found, died


def differences(whole: dict, found: dict) -> list[str]:
    """Names under which the bits are not the same."""
    return [name for name in whole if not _same(whole[name], found[name])]


def _same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(7.25), other.nan_to_num(7.25))
    return one == other
