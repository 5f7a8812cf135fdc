"""The main job on real data: one model fitted with and one without amortization, and the gaps of both."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference import Adam, Cosine, Fit, Gaps, Training, by_one_estimator
from inference.noise import resolve_seed
from inference.results import summarise
from inference.results.summary import fixed
from pyro_vae.configuration import read_config
from pyro_vae.drawing import draw_run
from pyro_vae.encoding import to_json
from pyro_vae.engines import ENGINES, Engine
from pyro_vae.figures import draw_each, draw_gaps
from pyro_vae.folders import CONFIG, FIGURES, new_folder
from pyro_vae.jobs import fit_guide, fit_run, gaps_label, measure_run
from pyro_vae.parts import Parts, options
from pyro_vae.plots import plot_elbo
from pyro_vae.run import Run

__all__ = ["Demo", "run_demo", "table"]

_log = logging.getLogger(__name__)

PARTS = Parts(
    likelihood=options("likelihood", "binomial"),
    decoder=options("decoder", "mlp", hidden=(128, 128)),
    encoder=options("encoder", "mlp", hidden=(128, 128)),
)
NUM_LATENTS = 8
TRAINING = {
    "svi": Training(epochs=100, batch_size=50, optimizer=Adam(lr=3e-3), schedule=Cosine(), patience=20),
    "em": Training(
        epochs=80, batch_size=50, optimizer=Adam(lr=5e-3), schedule=Cosine(), patience=20, local_steps=2, local_lr=0.3
    ),
}
WHAT = {
    "svi": "Fitting by SVI, with an encoder.",
    "em": "Fitting by variational EM, one row of parameters a datapoint.",
}


@dataclass(frozen=True)
class Demo:
    """What the demonstration measured.

    Attributes:
        gaps: of both models, by engine.
        difference: held-out log p(x), EM minus SVI, paired by datapoint: `{"mean", "se", "mc_se"}`, nats per datapoint.
    """

    gaps: Mapping[str, Gaps]
    difference: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            **{name: gaps.summary() for name, gaps in self.gaps.items()},
            "difference": {"log_evidence": dict(self.difference)},
        }


def run_demo(out: Path, *, seed: int = 0) -> Demo:
    """Fit the digits by SVI and by variational EM, fit an encoder to the frozen EM model, and measure the gaps of both.

    Progress is logged.

    Args:
        out: folder to write; a demonstration that is there is replaced.
        seed: of everything but the data.

    Raises:
        ValueError: `out` cannot be written, or holds something else than a demonstration.
    """
    seed = resolve_seed(seed)
    runs: dict[str, Run] = {}
    gaps: dict[str, Gaps] = {}
    if (out / CONFIG).is_file():
        if read_config(out / CONFIG).get("command") != "demo":
            raise ValueError(
                f"--out {out}: it holds a run that is no demonstration; nothing was touched. Choose another."
            )
        _log.info(f"{out} holds a demonstration already: it is replaced when this one is complete.")
    with new_folder(out, replace=True) as folder, _one_thread():
        engines: tuple[Engine, Engine] = ("svi", "em")
        for engine in engines:
            began = time.perf_counter()
            _log.info(WHAT[engine])
            part = folder / engine
            part.mkdir()
            runs[engine] = fit_run(
                part,
                data={"name_or_path": "digits"},
                parts=PARTS,
                num_latents=NUM_LATENTS,
                engine=engine,
                training=TRAINING[engine],
                seed=seed,
            )
            draw_run(runs[engine])
            seconds = time.perf_counter() - began
            _log.info(_told(runs[engine].fit, f" ({seconds:.0f} s with pictures)"))
        _log.info("Fitting an encoder of the same shape to the frozen EM model.")
        _log.info(_told(fit_guide(runs["em"], training=TRAINING["svi"], seed=seed)[1]))
        for engine in engines:
            _log.info(
                f"Measuring the gaps of the {engine.upper()} model on {len(runs[engine].dataset.test)} test digits."
            )
            gaps[engine] = measure_run(runs[engine], seed=seed)
            _log.info("  " + ", ".join(f"{part} {seconds:.0f} s" for part, seconds in gaps[engine].seconds.items()))
        svi, em = by_one_estimator(gaps["svi"], gaps["em"])
        demo = Demo(gaps, summarise(em.value - svi.value, em.se.hypot(svi.se)))
        (folder / "gaps.json").write_text(to_json(demo.summary()) + "\n")
        (folder / CONFIG).write_text(json.dumps({"command": "demo", "seed": seed}, indent=2) + "\n")
        figures = folder / FIGURES
        figures.mkdir()
        failed = draw_gaps(figures, {gaps_label(engine): gaps[engine] for engine in engines})
        fits = {ENGINES[engine]: runs[engine].fit for engine in engines}
        failed |= draw_each(figures, {"elbo": lambda: plot_elbo(fits)})
        for name, error in failed.items():
            _log.warning("%s could not be drawn (%s).", name, error)
    return demo


@contextmanager
def _one_thread() -> Iterator[None]:
    """These matrices are too small to share: a second thread gains little, and waits long for a core that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _told(fit: Fit, more: str = "") -> str:
    return "\n".join(f"  {line}" for line in [f"{fit.headline}{more}", *map(str, fit.notes())])


def table(demo: Demo) -> str:
    """Both tables side by side, and the model cost under them."""
    summaries = {"SVI": demo.gaps["svi"].summary(), "variational EM": demo.gaps["em"].summary()}
    lines = [
        " " * 20 + "".join(f"{name:>30}" for name in summaries),
        f"{'nats per datapoint':<20}" + f"{'mean':>12}{'se':>9}{'mc_se':>9}" * 2,
    ]
    for term, label in Gaps.LABELS.items():
        cells = (summary[term] for summary in summaries.values())
        lines.append(
            f"{label:<20}"
            + "".join(
                f"{fixed(cell['mean'], 12, 3)}{fixed(cell['se'], 9, 3)}{fixed(cell['mc_se'], 9, 3)}" for cell in cells
            )
        )
    svi, em = (summary["amortization_gap"]["mean"] for summary in summaries.values())
    cost = demo.difference
    lines += [
        "",
        f"Inference cost of amortization, at a fixed model: {svi:.3f} (SVI), {em:.3f} (EM's model) nats per datapoint.",
        f"Model cost of amortization, held-out log p(x) of EM - SVI, paired: {cost['mean']:.3f} nats per datapoint "
        f"(se {cost['se']:.3f}, mc_se {cost['mc_se']:.3f}).",
        "These two fits only: another training seed may change them by more than se.",
    ]
    shared = [note for note in demo.gaps["svi"].notes() if note in demo.gaps["em"].notes()]
    lines += ["", *map(str, shared)]
    for name, gaps in zip(summaries, demo.gaps.values(), strict=True):
        lines += [f"{name}: {note}" for note in gaps.notes() if note not in shared]
    return "\n".join(lines)
