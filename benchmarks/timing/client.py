"""The benchmark's side of a timing worker."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import inference
from timing.protocol import Cell


class WorkerError(RuntimeError):
    """What a worker could not do, in its own words."""


class Worker:
    """A process that trains by one method when it is asked to.

    Args:
        method: a module of `timing.methods`.
        python: the interpreter to run it with; by default this one.
        log: file that takes what the process prints.

    Attributes:
        versions: of the libraries that the method uses.
    """

    def __init__(self, method: str, *, python: str | None = None, log: Path) -> None:
        benchmarks = Path(__file__).resolve().parents[1]
        own = [str(benchmarks), *([] if python else [str(Path(inference.__file__).resolve().parents[1])])]
        # Another interpreter must not see this one's packages; the library stands where this process found it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(own), "PYTHONUNBUFFERED": "1"}
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                # Not resolved: an environment's interpreter is a link that knows where it lies.
                [str(Path(python).absolute()) if python else sys.executable, "-m", "timing.worker", method],
                # Python looks for modules there first: elsewhere might lie another copy of the library.
                cwd=benchmarks,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def greet(self) -> None:
        """Wait until the process has read its libraries.

        Raises:
            WorkerError: it lacks one.
        """
        self.versions = self.receive()["versions"]

    def send(self, do: str, cell: Cell | None = None) -> None:
        """Ask for something without waiting for the answer.

        Raises:
            WorkerError: the process is gone.
        """
        request = {"do": do} if cell is None else {"do": do, "cell": dataclasses.asdict(cell)}
        assert self._process.stdin is not None  # noqa: S101 (it was opened above)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"the process ended with status {self._process.wait()}") from error

    def receive(self) -> dict[str, Any]:
        """The answer.

        Raises:
            WorkerError: there is none, or it tells of a failure.
        """
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer
