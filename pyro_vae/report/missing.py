"""What a run's folder lacks, and the command that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from pyro_vae.run import FIGURES, METRICS, RESULTS

__all__ = ["missing_from"]


def missing_from(folder: Path, config: Mapping[str, Any], *, measured: bool) -> dict[str, tuple[str, str]]:
    """The pieces that are not there, beside the configuration and the checkpoint, without which no run opens.

    Args:
        folder: a run.
        config: its configuration.
        measured: whether its gaps are known.

    Returns:
        By file, what it holds and the command that makes it.
    """
    name = quote(str(folder))
    verb = "fit" if config.get("engine", "svi") == "svi" else "em"
    # From the same configuration and seed comes the same run.
    again = f"pyro-vae {verb} --config {name} --out {name} --overwrite"
    pieces = {
        METRICS: ("the metrics of every epoch", again),
        RESULTS: ("draws and gaps", again),
        f"{FIGURES}/elbo.png": ("the pictures of the fit", again),
    }
    if measured:
        pieces[f"{FIGURES}/gaps.png"] = ("the pictures of the gaps", f"pyro-vae gaps {name} --overwrite")
    return {name: piece for name, piece in pieces.items() if not (folder / name).is_file()}
