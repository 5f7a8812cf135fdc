"""What every benchmark's record says of how it was made."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


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


def write(record: dict[str, Any], out: Path | None) -> None:
    """Print the record as JSON, and keep it in a file where one is named."""
    text = json.dumps(record, indent=2) + "\n"
    sys.stdout.write(text)
    if out:
        out.write_text(text)
