"""Files written whole or not at all, and read without executing anything."""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["UnwritableError", "atomic_write", "load_checkpoint", "save_checkpoint"]


class UnwritableError(OSError):
    """A file that cannot be made where it is wanted; it has the number and the words of the system's own error."""

    def __str__(self) -> str:
        """One line that names the file and not its temporary neighbour."""
        return f"{self.filename}: cannot be written ({self.strerror}). Choose a folder that you may write to."


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces `path` when the block ends well, and vanishes when it does not.

    Args:
        path: the file to write.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        # mkstemp files are private; a result is as readable as any file the user makes.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        # The name, too, is on the disk only when the folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _require_whole(path: Path) -> None:
    """Refuse an archive whose bytes are not those written: torch does not look at its checksums.

    What torch writes is not compressed, so nothing in it can be larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            too_large = sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size
            damaged = too_large or archive.testzip() is not None
    except Exception as error:  # Of a damaged archive, many kinds.
        raise ValueError("it is no whole archive") from error
    if damaged:
        raise ValueError("its parts are not what they should be")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them, atomically.

    Args:
        path: the file.
        content: what it holds.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    with atomic_write(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:
            # What torch says is that its writer was surprised; what surprised it is behind.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing in the file is executed.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint; there is no such file. Check the run's folder.")
    try:
        _require_whole(path)
        with warnings.catch_warnings():
            # torch warns of files it did not write; they are refused below, in one line.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise ValueError(
            f"{path}: expected a checkpoint of tensors and plain values; it is damaged or holds something else "
            f"({type(error).__name__}). Fit again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a checkpoint of tensors and plain values; it holds {type(content).__name__}. Fit again."
        )
    return content
