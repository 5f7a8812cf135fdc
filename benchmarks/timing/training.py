"""The training table: milliseconds a step of every method, architecture and batch size, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studies.common import say

from timing.client import Worker, WorkerError
from timing.machine import Probe
from timing.protocol import Cell
from timing.rounds import summary, turning
from timing.sizes import Sizes


@dataclass(frozen=True)
class Method:
    """A way to train: its module, its options, and whether its interpreter is another one."""

    module: str
    options: dict[str, Any] = field(default_factory=dict)
    python: str | None = None


# Seconds of rest before a block.
SETTLE = 0.01

OURS, OURS_BF16 = "fit_svi float32", "fit_svi bf16"
PYRO, EAGER, COMPILED = "Pyro SVI", "PyTorch eager", "torch.compile"
NUMPYRO, PYTHAE = "NumPyro scan", "pythae"
PRODUCTS, PRODUCTS_BF16 = "matrix products float32", "matrix products bf16"


def methods(sizes: Sizes, *, numpyro: str | None, pythae: str | None) -> dict[str, Method]:
    """All that can be measured here; the two that need another interpreter where one is given."""
    ours = {"compile": sizes.compile}
    found = {
        OURS: Method("fit_svi", ours),
        OURS_BF16: Method("fit_svi", {**ours, "precision": "bfloat16"}),
        PYRO: Method("pyro_svi"),
        EAGER: Method("eager"),
        COMPILED: Method("compiled", {"backend": sizes.backend}),
        PRODUCTS: Method("products", {"precision": "float32"}),
        PRODUCTS_BF16: Method("products", {"precision": "bfloat16"}),
    }
    if numpyro:
        found[NUMPYRO] = Method("numpyro_scan", python=numpyro)
    if pythae:
        found[PYTHAE] = Method("pythae_trainer", python=pythae)
    return found


def table(
    chosen: Mapping[str, Method], cells: Sequence[tuple[Cell, int]], *, log: Path, probe: Probe
) -> dict[str, Any]:
    """Time every method in every cell, a block at a time, in turns.

    Args:
        chosen: the methods, by name.
        cells: what is trained, and the number of rounds.
        log: file that takes what the workers print.
        probe: runs between rounds.

    Returns:
        `versions` by method and `cells`, each with `ms` (median, best, worst) and `loss` by method; a method that
        cannot do something has its `error` there.
    """
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(method.module, python=method.python, log=log))
            for name, method in chosen.items()
        }
        versions, missing = {}, {}
        for name, worker in list(workers.items()):
            try:
                worker.greet()
                versions[name] = worker.versions
            except WorkerError as error:
                missing[name] = str(error)
                del workers[name]
        found = [_cell(chosen, workers, cell, rounds, probe) for cell, rounds in cells]
    return {"versions": versions, "missing": missing, "cells": found}


def _cell(
    chosen: Mapping[str, Method], workers: Mapping[str, Worker], cell: Cell, num_rounds: int, probe: Probe
) -> dict[str, Any]:
    errors: dict[str, str] = {}
    ready = []
    # All compile at the same time, and nothing is timed until all are done.
    for name, worker in workers.items():
        own = Cell(**{**vars(cell), "options": chosen[name].options})
        worker.send("cell", own)
    for name, worker in workers.items():
        try:
            worker.receive()
            ready.append(name)
        except WorkerError as error:
            errors[name] = str(error)
    ms: dict[str, list[float]] = {name: [] for name in ready}
    losses: dict[str, float] = {}
    for name in turning(ready, num_rounds, probe):
        if name in errors:
            continue
        try:
            # The threads of the process before spin for some milliseconds before they sleep.
            time.sleep(SETTLE)
            workers[name].send("block")
            answer = probe.watch(workers[name].receive, lambda answer: answer["core_seconds"])
            ms[name].append(answer["ms"])
            losses[name] = answer["loss"]
        except WorkerError as error:
            errors[name] = str(error)
    for name in ready:
        if name not in errors:
            workers[name].send("end")
    found = {
        "widths": list(cell.widths),
        "batch": cell.batch,
        "steps": cell.steps,
        "device": cell.device,
        "ms": {name: summary(times) for name, times in ms.items() if name not in errors},
        "loss": {name: loss for name, loss in losses.items() if loss == loss},
        "errors": errors,
    }
    say(_line(found))
    return found


def _line(found: Mapping[str, Any]) -> str:
    times = ", ".join(f"{name} {ms['median']:.2f}" for name, ms in found["ms"].items())
    return f"training {'-'.join(map(str, found['widths']))}, B = {found['batch']}, ms a step: {times}"


def cells(sizes: Sizes, file: Path, *, device: str) -> list[tuple[Cell, int]]:
    """The table's cells."""
    return [
        (Cell(data=str(file), widths=widths, batch=batch, steps=steps, device=device), num_rounds)
        for widths in sizes.architectures
        for batch, steps, num_rounds in sizes.steps
    ]
