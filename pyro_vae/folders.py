"""Where runs lie: a folder that is filled whole or not at all, and what is said of one that holds no run."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "FIGURES",
    "METRICS",
    "NOT_MADE",
    "RESULTS",
    "listed",
    "new_folder",
    "no_folder",
    "no_run",
    "runs_in",
    "unfinished",
]

# Of a run.
CONFIG, METRICS, CHECKPOINT, RESULTS, FIGURES = "config.json", "metrics.jsonl", "checkpoint.pt", "results.nc", "figures"
# Which draws and pictures a run was to have and has not, and why.
NOT_MADE = "not-made.json"


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill that becomes `out` when the block ends well, and vanishes when it does not.

    Args:
        out: where the run shall lie; its parents are made. Of a link it is the folder that it leads to.
        replace: whether a run that is there is replaced; it stays until the new one is complete.

    Raises:
        ValueError: `out` holds a run already, or other files, or is a file or the folder one is in.
    """
    if Path.cwd().is_relative_to(out.resolve()):
        # It is put in place whole, which would leave a shell in a folder that is gone.
        raise ValueError(
            f"--out {out}: expected a folder to make; you are in it. Name one below, such as {out / 'run'}."
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder; it is a file. Choose another.")
    if out.is_dir() and any(out.iterdir()):
        is_run = (out / CONFIG).is_file()
        if not is_run:
            raise ValueError(f"--out {out}: expected an empty or new folder; it holds other files. Choose another.")
        if not replace:
            raise ValueError(
                f"--out {out}: the folder already holds a run; nothing was touched. Choose another, or --overwrite."
            )
    try:
        place = out.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        # Not by mkdtemp, which makes folders for their owner alone: who may read a run is for the umask to say.
        partial = place.parent / f".{place.name}.{secrets.token_hex(4)}"
        partial.mkdir()
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}). Choose another folder.") from error
    try:
        yield partial
        if not place.is_dir():
            os.replace(partial, place)
            return
        # The old one is put aside, not removed, until the new one is there.
        old = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        os.replace(place, old)
        try:
            os.replace(partial, place)
        except BaseException:
            os.replace(old, place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unfinished(out: Path) -> Path:
    """Where the state of a fit is that has not become a run yet, beside the folder that it is going to fill.

    Args:
        out: that folder.
    """
    return out.parent / f"{out.name}.unfinished"


def runs_in(folder: Path) -> list[Path]:
    """The runs that lie side by side in a folder.

    Args:
        folder: the one above them.
    """
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))


def listed(runs: Sequence[Path]) -> str:
    """Runs by their names, a few of many.

    Example:
        >>> listed([Path("runs/mine"), Path("runs/x5")])
        'the runs mine, x5'
    """
    names = ", ".join(run.name for run in runs[:5])
    if len(runs) == 1:
        return f"the run {names}"
    return f"the runs {names}" + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")


def no_folder(folder: Path) -> str:
    """What to say of a folder that is not there: where it was looked for, which tells of a wrong working directory.

    Args:
        folder: as it was given.
    """
    return f"there is no folder {os.path.abspath(folder)}. Check the path, and the folder you are in."


def no_run(folder: Path, name: str) -> str:
    """What to say of a folder that holds no run: whether it is there, and which runs lie in it.

    Args:
        folder: as it was given.
        name: the file that was looked for.
    """
    if not folder.is_dir():
        return f"{folder}: expected a run folder; {no_folder(folder)}"
    if runs := runs_in(folder):
        return f"{folder}: expected a run folder; it holds {listed(runs)}. Name one, such as {runs[0]}."
    return (
        f"{folder}: expected a run folder; there is no {name} in it. Make one by `pyro-vae fit --out {folder / 'run'}`."
    )
