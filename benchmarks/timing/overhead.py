"""What a step costs beyond its arithmetic: a net so small that nothing else is left, and a profile of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timing.client import Worker, WorkerError
from timing.machine import Probe
from timing.protocol import Cell
from timing.sizes import Sizes
from timing.training import Method, table


def fixed_overhead(
    chosen: Mapping[str, Method], sizes: Sizes, file: Path, *, log: Path, probe: Probe
) -> dict[str, Any]:
    """Milliseconds a step of every method at B = 1 on the tiny net, and where ours goes."""
    cell = Cell(data=str(file), widths=sizes.tiny, batch=1, steps=sizes.tiny_steps)
    found = table(chosen, [(cell, sizes.tiny_rounds)], log=log, probe=probe)["cells"][0]
    try:
        with Worker("profiled", log=log) as worker:
            worker.greet()
            worker.send("cell", Cell(**{**vars(cell), "options": {"compile": sizes.compile}}))
            found["profile_of_fit_svi"] = worker.receive()
    except WorkerError as error:
        found["profile_of_fit_svi"] = {"error": str(error)}
    return found
