"""The ratios that the library is meant to reach, each with what was measured, and the tables that a reader sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from timing import leapfrogs, race, training
from timing.rounds import ratio

# Nats: the mean gap that the race is run to.
RACE = 0.05
# The routes of annealing that are judged: from the encoder, which costs no search, in both precisions.
NEAR = ("encoder", "encoder, bf16 forces")


class Target(NamedTuple):
    """A ratio.

    Attributes:
        line: what against what.
        target: to be reached.
        least: below this it is not good enough.
        measured: medians' ratio in each case, by case; None where it was not measured.
        lower_bound: the slower side was ended before it got there, so that the ratio is larger than what is said.
    """

    line: str
    target: float
    least: float
    measured: dict[str, float | None]
    lower_bound: bool = False

    @property
    def verdict(self) -> str:
        """Decided by the worst case that was measured."""
        known = [value for value in self.measured.values() if value is not None]
        if not known:
            return "not measured"
        if min(known) >= self.target:
            return "met"
        return "acceptable" if min(known) >= self.least else "missed"


def _training(record: Mapping[str, Any], batch: int, slow: str, fast: str) -> dict[str, float | None]:
    found = {}
    for cell in record.get("training", {}).get("cells", []):
        if cell["batch"] == batch:
            ratios = ratio(cell["ms"].get(slow), cell["ms"].get(fast))
            found["-".join(map(str, cell["widths"]))] = ratios and ratios["median"]
    return found


def _race(record: Mapping[str, Any], slow: str) -> tuple[dict[str, float | None], bool]:
    found: dict[str, float | None] = {}
    bound = False
    for name, part in record.get("estep", {}).items():
        ours = part["seconds"].get(f"{race.OURS} < {RACE}")
        if slow == race.SLOW and slow not in part:
            continue
        if slow == race.SLOW:
            theirs = {"median": part[slow]["seconds"], "best": part[slow]["seconds"]}
            bound = bound or not part[slow]["reached"]
        else:
            theirs = part["seconds"].get(f"{slow} < {RACE}")
        ratios = ratio(theirs, ours)
        found[name] = ratios and ratios["median"]
    return found, bound


def targets(record: Mapping[str, Any]) -> list[Target]:
    """Every line, with what this record holds of it."""
    t = training
    lines = [
        Target(
            "fit_svi float32, B = 128, against NumPyro's scan", 1.0, 0.75, _training(record, 128, t.NUMPYRO, t.OURS)
        ),
        Target("... against torch.compile, logits, fused Adam", 1.35, 1.05, _training(record, 128, t.COMPILED, t.OURS)),
        Target("... against plain PyTorch eager", 1.8, 1.35, _training(record, 128, t.EAGER, t.OURS)),
        Target("... against Pyro's SVI, B = 128", 2.8, 2.0, _training(record, 128, t.PYRO, t.OURS)),
        Target("... against Pyro's SVI, B = 1", 8.0, 5.0, _training(record, 1, t.PYRO, t.OURS)),
        Target("fit_svi bf16, B = 128, against eager float32", 2.5, 1.9, _training(record, 128, t.EAGER, t.OURS_BF16)),
    ]
    against_adam, _ = _race(record, race.ADAM)
    against_slow, bound = _race(record, race.SLOW)
    lines += [
        Target("E-step to < 0.05 nat against tuned one-copy Adam", 10.0, 3.0, against_adam),
        Target("... against the dynamics of 2018, one copy a point", 200.0, 60.0, against_slow, bound),
    ]
    rates = record.get("ais", {}).get("leapfrogs", {}).get("ratio_to_2018", {})
    for name, target, least in ((leapfrogs.OURS, 3.0, 2.0), (leapfrogs.OURS_BF16, 5.0, 3.0)):
        found = rates.get(name)
        lines.append(
            Target(f"AIS leapfrogs a second against 2018, {name}", target, least, {"": found and found["median"]})
        )
    found = record.get("ais", {}).get("widths", {}).get("ratios", {})
    widths_of = {name: found[name] and found[name]["median"] for name in NEAR if name in found}
    lines.append(Target("AIS seconds to a width of 0.5, against the prior as published", 20.0, 5.0, widths_of))
    return lines


def as_records(found: list[Target]) -> list[dict[str, Any]]:
    """As plain values."""
    return [{**target._asdict(), "verdict": target.verdict} for target in found]


def text_of(found: list[Target]) -> str:
    """The table, a line a target."""
    lines = [f"{'ratio':<62}{'target':>8}{'least':>8}  {'verdict':<14}measured"]
    for target in found:
        sign = ">= " if target.lower_bound else ""
        values = ", ".join(
            f"{name + ' ' if name else ''}{sign}{value:.2f}"
            for name, value in target.measured.items()
            if value is not None
        )
        lines.append(f"{target.line:<62}{target.target:>8g}{target.least:>8g}  {target.verdict:<14}{values}")
    return "\n".join(lines)


def training_text(record: Mapping[str, Any]) -> str:
    """Milliseconds a step, median (best), a line a method."""
    lines = []
    for cell in record.get("training", {}).get("cells", []):
        lines.append(f"{'-'.join(map(str, cell['widths']))}, B = {cell['batch']}, {cell['device']}: ms a step")
        lines += [f"  {name:<26}{ms['median']:>9.3f} ({ms['best']:.3f})" for name, ms in cell["ms"].items()]
        lines += [f"  {name:<26} failed: {error}" for name, error in cell["errors"].items()]
    return "\n".join(lines)
