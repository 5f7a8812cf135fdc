"""Where the time of a step goes that is no arithmetic: `fit_svi` under Python's and torch's profilers."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from timing.methods import fit_svi
from timing.protocol import Cell, Pipe

# Lines of each profile that are kept.
NUM_LINES = 20


def versions() -> dict[str, str]:
    """Of what is used."""
    return fit_svi.versions()


def run(cell: Cell, pipe: Pipe) -> None:
    """Profile one epoch by each, after two that compile and check."""
    python, torch_profile = cProfile.Profile(), profile(activities=[ProfilerActivity.CPU])

    def after_epoch(state: Any) -> None:
        if state.epoch == 2:
            python.enable()
        elif state.epoch == 3:
            python.disable()
            torch_profile.start()
        elif state.epoch == 4:
            torch_profile.stop()
            state.stop = "the profile is complete"

    fit_svi.train(cell, after_epoch)
    pipe.ask({"python": _functions(python, cell.steps), "torch": _operators(torch_profile, cell.steps)})


def _functions(found: cProfile.Profile, steps: int) -> list[dict[str, Any]]:
    """The functions with the longest own time, microseconds a step (the profiler's own cost is in them)."""
    lines = []
    for (file, _, name), (_, calls, own, total, _) in pstats.Stats(found).stats.items():  # type: ignore[attr-defined]
        where = "/".join(Path(file).parts[-2:]) if file not in ("~", "") else "built in"
        lines.append(
            {
                "function": name,
                "file": where,
                "calls": calls / steps,
                "own_us": 1e6 * own / steps,
                "total_us": 1e6 * total / steps,
            }
        )
    return sorted(lines, key=lambda line: -line["own_us"])[:NUM_LINES]


def _operators(found: profile, steps: int) -> list[dict[str, Any]]:
    """The operators with the longest own time on the CPU, microseconds a step."""
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)[:NUM_LINES]
    return [
        {"operator": event.key[:80], "calls": event.count / steps, "own_us": event.self_cpu_time_total / steps}
        for event in events
    ]
