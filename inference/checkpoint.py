"""Files written whole or not at all, and read without executing anything."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["atomic_write", "load_checkpoint", "save_checkpoint"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces `path` when the block ends well, and vanishes when it does not.

    Args:
        path: the file to write.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
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
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them, atomically.

    Args:
        path: the file.
        content: what it holds.
    """
    with atomic_write(path) as temporary:
        torch.save(dict(content), temporary)


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
