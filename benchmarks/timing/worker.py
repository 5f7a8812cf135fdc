"""A process that trains by one method, a timing block at a time, when it is asked to: `python -m timing.worker eager`.

Every method has a process of its own, so that none leaves its settings, caches or threads to the next, and so that they
can alternate. Between blocks the process waits for a line on its standard input.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import traceback
from typing import Any

from timing.protocol import Cell, Pipe


def serve(name: str, pipe: Pipe) -> None:
    """Answer requests until there are no more."""
    method = importlib.import_module(f"timing.methods.{name}")
    pipe.send({"versions": method.versions()})
    while (request := pipe.receive()) is not None:
        # After a cell that failed its end is still asked for.
        if request["do"] != "cell":
            continue
        try:
            method.run(_cell_of(request["cell"]), pipe)
        except Exception as error:  # noqa: BLE001 (whatever a method cannot do is its result)
            traceback.print_exc()
            pipe.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def _cell_of(values: dict[str, Any]) -> Cell:
    known = {entry.name for entry in dataclasses.fields(Cell)}
    return Cell(**{**{name: values[name] for name in known}, "widths": tuple(values["widths"])})


def main() -> None:
    """Serve on the pipes that this process was started with."""
    # What libraries print must not come between answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        serve(sys.argv[1], Pipe(sys.stdin, answers))
    except ImportError as error:
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
