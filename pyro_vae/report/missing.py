"""What a run lacks, files or epochs, and the command that makes up for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from inference import Fit
from pyro_vae.folders import FIGURES, METRICS, NOT_MADE, RESULTS

__all__ = ["missing_from", "trains_longer"]

# So many times the epochs.
_LONGER = 4


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
    # From the same configuration and seed comes the same run.
    again = f"pyro-vae {_verb(config)} --config {name} --out {name} --overwrite"
    afterwards = f"pyro-vae resume {name}"
    pieces = {METRICS: ("the metrics of every epoch", again)}
    # Pieces that were left out on purpose are not missing.
    if config.get("draws", True):
        pieces[RESULTS] = ("draws and gaps", afterwards)
    if config.get("figures", True):
        pieces[f"{FIGURES}/elbo.png"] = ("the pictures of the fit", afterwards)
        if measured:
            pieces[f"{FIGURES}/gaps.png"] = ("the pictures of the gaps", f"pyro-vae gaps {name} --overwrite")
    missing = {name: piece for name, piece in pieces.items() if not (folder / name).is_file()}
    for file, reason in _not_made(folder).items():
        missing[file] = (f"it could not be made: {reason}", afterwards)
    return missing


def _not_made(folder: Path) -> dict[str, str]:
    """What could not be made after the fit, and why; a damaged record of it says nothing."""
    try:
        found = json.loads((folder / NOT_MADE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(reason) for name, reason in found.items()} if isinstance(found, dict) else {}


def trains_longer(folder: Path, config: Mapping[str, Any], fit: Fit) -> str | None:
    """The command that fits a run again with more epochs, beside it; None where the fit was not cut short.

    Args:
        folder: where the run lies.
        config: its configuration.
        fit: how its training went.
    """
    if not fit.notes():
        return None
    name, longer = quote(str(folder)), quote(f"{folder}-longer")
    epochs = _LONGER * config["training"]["epochs"]
    return f"pyro-vae {_verb(config)} --config {name} --out {longer} --training.epochs {epochs}"


def _verb(config: Mapping[str, Any]) -> str:
    return "fit" if config.get("engine", "svi") == "svi" else "em"
