"""What the two studies share: a folder that an interrupted run goes on in, paired differences, and verdicts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference import Evidence, Gaps
from inference.results import summarise

SETTINGS = "settings.json"

# A value of each datapoint (N,), and its Monte Carlo standard error (N,).
Column = tuple[Tensor, Tensor]

# What is read back from a folder may hold these, and no other code.
torch.serialization.add_safe_globals([Evidence, Gaps])


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder of a study, or find it again: results of other settings must not be taken for these.

    Raises:
        ValueError: it holds results of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SETTINGS
    text = json.dumps(settings, indent=2) + "\n"
    if file.exists() and file.read_text() != text:
        raise ValueError(
            f"--out: {folder} holds results of other settings (see {SETTINGS} there). Choose another folder."
        )
    file.write_text(text)


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What the file holds; where there is none, what is made now, and then kept there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        torch.save(make(), part)
        part.replace(file)
    return read(file)


def read(file: Path) -> Any:
    """What was kept in a file."""
    return torch.load(file, weights_only=True, map_location="cpu")


def slug(name: str) -> str:
    """A name as a file has it."""
    return "-".join(name.replace(",", "").split())


def difference(first: Column, second: Column, rows: slice = slice(None)) -> dict[str, float]:
    """Mean of the first less the second, paired by datapoint, with both errors.

    `mc_se` takes the Monte Carlo errors as independent; where the two share draws it is too large.
    """
    values = first[0][rows].double() - second[0][rows].double()
    return summarise(values, first[1][rows].double().hypot(second[1][rows].double()))


def verdict(found: dict[str, float]) -> str:
    """Whether a difference that is expected to be positive is: decided at two standard errors."""
    if not abs(found["mean"]) > 2 * found["se"]:
        return "undecided"
    return "as expected" if found["mean"] > 0 else "contrary"


def parser_of(description: str | None, presets: dict[str, Any]) -> argparse.ArgumentParser:
    """The options that both studies have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(presets), default="quick")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results; an interrupted run goes on there"
    )
    parser.add_argument("--dry-run", action="store_true", help="the preset at a tiny size: does it run?")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU where there is one"
    )
    return parser


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def one_line_errors(main: Callable[[], None]) -> None:
    """Run a script; what its user can put right is said in one line."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
