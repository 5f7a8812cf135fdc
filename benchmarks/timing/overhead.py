"""What a step costs beyond its arithmetic: a net so small that nothing else is left, and a profile of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timing.client import Worker, WorkerError
from timing.protocol import Cell
from timing.sizes import Sizes


def tiny_cell(sizes: Sizes, file: Path) -> Cell:
    """B = 1 on a net whose arithmetic takes no time."""
    return Cell(data=str(file), widths=sizes.tiny, batch=1, steps=sizes.tiny_steps)


def profiled(cell: Cell, sizes: Sizes, *, log: Path) -> dict[str, Any]:
    """Where a step of ours goes in such a cell, by Python's and by torch's profiler."""
    try:
        with Worker("profiled", log=log) as worker:
            worker.greet()
            worker.send("cell", Cell(**{**vars(cell), "options": {"compile": sizes.compile}}))
            return worker.receive()
    except WorkerError as error:
        return {"error": str(error)}
