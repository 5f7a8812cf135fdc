"""What every benchmark's record says of how it was made."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def provenance() -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "hardware": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "pyro-ppl", "numpy")},
    }


def over_seeds(value: Tensor, se: Tensor) -> dict[str, float]:
    """Mean over datapoints and training seeds, and its three errors.

    Args:
        value: (seeds, N) one value a seed and datapoint.
        se: (seeds, N) its Monte Carlo standard error.

    Returns:
        The mean, `se` (other datapoints), `mc_se` (other draws of the measurement), `seed_se` (other training seeds).
    """
    num_seeds, num_data = value.shape
    return {
        "mean": value.mean().item(),
        "se": value.mean(0).std().item() / math.sqrt(num_data),
        "mc_se": se.square().sum().sqrt().item() / value.numel(),
        "seed_se": value.mean(1).std().item() / math.sqrt(num_seeds) if num_seeds > 1 else math.nan,
    }


def write(record: dict[str, Any], out: Path | None) -> None:
    """Print the record as JSON, and keep it in a file where one is named."""
    text = json.dumps(record, indent=2) + "\n"
    sys.stdout.write(text)
    if out:
        out.write_text(text)
