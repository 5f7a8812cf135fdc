"""The jobs behind the command line: fit a run, measure a run. Each leaves its folder complete."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple, cast

import torch
import xarray as xr

from inference import (
    Amortized,
    Fit,
    Gaps,
    Resume,
    TermTracker,
    Training,
    fit_svi,
    measure_gaps,
)
from inference.devices import resolve_device
from inference.draws import gaps_dataset, gaps_from_datatree
from inference.families import Family
from inference.noise import derive_seed, seeded
from inference.objectives import Loss
from inference.processes import alone, is_first, num_processes
from inference.training import LoopState
from pyro_vae.choosing import choose_likelihood, in_file_numbers, require_support, say_units
from pyro_vae.configuration import dtype_in, parameters_of
from pyro_vae.data import Dataset, Preprocessing, Split, describe, dtype_of, load, located, silent
from pyro_vae.drawing import FEWEST_DRAWN, in_words, mark_missing, tell_missing
from pyro_vae.engines import ENGINES, Engine, fit_by, needs_encoder, objective_to_config
from pyro_vae.figures import draw_gaps, draw_worst
from pyro_vae.folders import FIGURES, RESULTS
from pyro_vae.parts import Parts, Sizes
from pyro_vae.run import Run, save_run
from pyro_vae.vae import VAE

__all__ = ["fit_guide", "fit_run", "gaps_label", "join_run", "measure_run", "start_at_data"]

_log = logging.getLogger(__name__)

# Datapoints of each split whose ELBO is taken apart over training.
NUM_TRACKED = 500
# Values of x whose terms are measured at most each time, of as many datapoints as hold them.
TRACKED_VALUES = 2 * 10**6


def fit_run(
    folder: Path,
    *,
    data: Mapping[str, Any],
    parts: Parts,
    num_latents: int,
    engine: Engine,
    training: Training,
    seed: int,
    objective: Loss | None = None,
    resume: Resume | None = None,
    draws: bool = True,
    figures: bool = True,
) -> Run:
    """Fit a VAE and write the run into `folder`, without draws and pictures: those are made by `draw_run` afterwards.

    Of several processes that fit it together, the first one writes; the others call `join_run`.

    Args:
        folder: an empty folder.
        data: arguments of `pyro_vae.load`.
        parts: prior, likelihood, family, decoder, encoder.
        num_latents: D, size of z.
        engine: how it is fitted.
        training: settings.
        seed: of the initial weights, of training and of all draws.
        objective: what is minimised; None: the engine's own.
        resume: where the state of the fit is kept, and gone on from.
        draws: whether `draw_run` makes draws for `results.nc`.
        figures: whether `draw_run` draws pictures.

    Returns:
        The run, as it would be opened from its folder.

    Raises:
        ValueError: data or parts that do not fit together; the message says which.
        FileNotFoundError: the data are not there.
    """
    dtype = dtype_of(data.get("dtype"))
    with parameters_of(dtype):
        vae, fit, dataset, terms, config = _fitted(
            data=data,
            parts=parts,
            num_latents=num_latents,
            engine=engine,
            training=training,
            seed=seed,
            objective=objective,
            resume=resume,
            draws=draws,
            figures=figures,
        )
    # What is left to do is little, and the other processes are done.
    with alone(), parameters_of(dtype):
        run = save_run(folder, config=config, vae=vae, fit=fit, terms={} if terms is None else terms.rows())
        if draws or figures:
            mark_missing(folder, {f"{RESULTS}, {FIGURES}": "they were not made yet"})
    return run.of(dataset)


def join_run(**asked: Any) -> None:  # noqa: ANN401
    """Take part in a fit that another process writes.

    Args:
        asked: what that one's `fit_run` was called with, but for the folder.
    """
    with parameters_of(dtype_of(asked["data"].get("dtype"))):
        _fitted(**asked)


class _Fitted(NamedTuple):
    """A fitted model, and what is written beside it."""

    vae: VAE
    fit: Fit
    dataset: Dataset
    terms: TermTracker | None
    config: dict[str, Any]


def _fitted(
    *,
    data: Mapping[str, Any],
    parts: Parts,
    num_latents: int,
    engine: Engine,
    training: Training,
    seed: int,
    objective: Loss | None,
    resume: Resume | None,
    draws: bool,
    figures: bool,
) -> _Fitted:
    if needs_encoder(engine) and parts.encoder is None:
        raise ValueError(
            f"encoder: expected one for the engine {engine}; got none. Choose one (encoder:mlp), or fit without it "
            "(pyro-vae em)."
        )
    described = objective_to_config(objective)
    with silent():
        dataset = load(**data)
    parts = choose_likelihood(parts, dataset)
    sizes = Sizes(
        num_latents=num_latents,
        num_values=dataset.num_values,
        image_shape=dataset.image_shape,
        max_value=dataset.max_value,
        num_levels=dataset.num_levels,
        level_step=dataset.level_step,
    )
    try:
        with seeded(derive_seed(seed, "parts")):
            modules = parts.build(sizes)
    except ValueError as error:
        raise ValueError(in_file_numbers(str(error), dataset)) from error
    if not needs_encoder(engine):
        # Neither kind of EM has an encoder; one may be fitted to the frozen model afterwards.
        modules["encoder"] = None
    vae = VAE(**modules, standardization=dataset.standardization)
    start_at_data(vae.prior, dataset.train, seed=seed)
    require_support(vae.likelihood, dataset)
    # A fit that is refused says the reason alone.
    describe(dataset)
    say_units(dataset, parts)

    config = {
        "command": "fit",
        "engine": engine,
        "data": {
            "load": {**data, "name_or_path": located(data["name_or_path"])} | _named_dtype(data),
            "fingerprint": dataset.fingerprint,
            "base_measure": vae.likelihood.base_measure,
            "preprocessing": Preprocessing.of(dataset).to_config(),
        },
        "parts": parts.to_config(),
        "sizes": dataclasses.asdict(sizes),
        "objective": described,
        # As many however many processes repeat it.
        "training": {**training.describe(), "shards": training.shards or _several()},
        "seed": seed,
        "draws": draws,
        "figures": figures,
    }
    # What JSON cannot hold is refused here, not after the fit.
    json.dumps(config)
    terms = _term_tracker(vae, dataset, training, seed=seed)
    watched = training if terms is None else dataclasses.replace(training, callbacks=(*training.callbacks, terms))
    if training.device is not None:
        device = resolve_device(training.device)
        vae.to(device)
        modules["family"].to(device)
    how: dict[str, Any] = {"objective": objective, "training": watched, "resume": resume, "seed": seed}
    fit = fit_by(engine, vae, modules["family"], dataset, **how)
    return _Fitted(vae, fit, dataset, terms, config)


def _named_dtype(data: Mapping[str, Any]) -> dict[str, str]:
    """The type of x by its name, for JSON, where it was asked for."""
    asked = data.get("dtype")
    return {} if asked is None else {"dtype": str(asked).removeprefix("torch.")}


def _several() -> int | None:
    """The number of processes, where there is more than one."""
    return num_processes() if num_processes() > 1 else None


def _term_tracker(vae: VAE, dataset: Dataset, training: Training, *, seed: int) -> TermTracker | None:
    """What measures the terms of the ELBO some 50 times on a few training and held-out datapoints."""
    if vae.guide is None:
        return None
    shown = {"training": dataset.train, "held-out": dataset.validation}
    most = min(NUM_TRACKED, max(FEWEST_DRAWN, TRACKED_VALUES // dataset.num_values))
    data = {name: split.head(min(most, len(split))).fix() for name, split in shown.items() if len(split)}
    every = max(1, training.epochs // 50)
    return _LenientTracker(vae.model, vae.guide, data, every=every, seed=derive_seed(seed, "terms"))


class _LenientTracker(TermTracker):
    """One that says so where the terms cannot be measured, for want of memory for instance: a fit goes on without."""

    failed = False

    def __call__(self, state: LoopState) -> None:
        try:
            super().__call__(state)
        except Exception as error:  # noqa: BLE001
            if not self.failed:
                _log.warning("The terms of the ELBO could not be measured (%s); the fit goes on.", in_words(error))
            self.failed = True


def start_at_data(prior: Any, train: Split, *, seed: int) -> None:
    """Start a prior that can at random training rows: its `init_from` is given as many as its `num_components`.

    Args:
        prior: a prior; one without `init_from` is left as it is.
        train: training data; unobserved values are taken as 0, as the encoder does.
        seed: of the choice.
    """
    if not hasattr(prior, "init_from"):
        return
    with seeded(derive_seed(seed, "prior")):
        rows = torch.randint(len(train), (prior.num_components,))
    prior.init_from(train.fix()[rows].nan_to_num(0.0))


def measure_run(
    run: Run,
    *,
    num_data: int | None = None,
    families: Sequence[Family] = (),
    seed: int = 0,
    training: Training | None = None,
    replace: bool = False,
    device: str | None = None,
    resume: Resume | None = None,
    figures: bool = True,
) -> Gaps:
    """Measure the gaps of a run on its test split, and keep them in its folder.

    A model fitted by EM has no encoder: one of the run's own design is first fitted to the frozen model.

    Args:
        run: the run; its `results.nc`, its figures and, where an encoder was fitted, its checkpoint are written again.
        num_data: datapoints of the test split to measure; None: all.
        families: further families to find q* in.
        seed: of all draws.
        training: settings for that encoder; those of the run by default.
        replace: whether gaps that the run holds already are replaced, when the new ones are complete.
        device: where to measure: "cpu", "cuda" or "auto"; None: on the CPU.
        resume: where the gaps of datapoints that are done are kept, and gone on from.
        figures: whether pictures of the gaps are drawn. One that cannot be drawn is logged and left out: the gaps are
            in `results.nc` before.

    Raises:
        ValueError: the run holds gaps already, the data changed since the fit, `num_data` is not positive, or
            the folder cannot be written to.
        FileNotFoundError: the data are not there any more.
    """
    with parameters_of(dtype_in(run.config)):
        return _measured(
            run,
            num_data=num_data,
            families=families,
            seed=seed,
            training=training,
            replace=replace,
            device=device,
            resume=resume,
            figures=figures,
        )


def _measured(
    run: Run,
    *,
    num_data: int | None,
    families: Sequence[Family],
    seed: int,
    training: Training | None,
    replace: bool,
    device: str | None,
    resume: Resume | None,
    figures: bool,
) -> Gaps:
    run.require_writable()
    # Of a folder that has lost its draws the gaps are kept all the same; a damaged file is refused before the work.
    tree = run.results if (run.folder / RESULTS).is_file() else xr.DataTree()
    found = gaps_from_datatree(tree)
    if found is not None and not replace:
        further = f", with {', '.join(found.families)}" if found.families else ""
        folder = quote(str(run.folder))
        raise ValueError(
            f"{run.folder}: the run already holds the gaps of {len(found)} datapoints{further}; nothing was touched. "
            f"Read them: pyro-vae report {folder}. Replace them: pyro-vae gaps {folder} --overwrite, or replace=True."
        )
    test = run.dataset.test.fix()
    if num_data is not None:
        test = test.head(min(num_data, len(test)))
    if device is not None:
        run.vae.to(resolve_device(device))
    guide = run.vae.guide
    if guide is None:
        guide, fit = fit_guide(run, training=training, seed=seed)
        for note in fit.notes():
            _log.warning("%s: of the encoder that was fitted to its model: %s", run.folder, note.in_full)
    gaps = measure_gaps(run.vae.model, guide, test, families=families, resume=resume, seed=seed)
    if not is_first():
        return gaps
    run.vae.cpu()
    tree["gaps"] = gaps_dataset(gaps, labels=None if test.labels is None else test.labels.numpy())
    run.save_results(tree)
    if figures:
        failed: dict[str, str] = {}
        try:
            (run.folder / FIGURES).mkdir(exist_ok=True)
            failed |= draw_gaps(run.folder / FIGURES, {gaps_label(run.engine): gaps})
            image_shape = run.config["sizes"]["image_shape"]
            if image_shape is not None:
                failed |= draw_worst(run.folder / FIGURES, gaps, run.vae, guide, test.tensor(), tuple(image_shape))
        # The gaps are on disk.
        except Exception as error:  # noqa: BLE001
            failed[FIGURES] = in_words(error)
        tell_missing(run.folder, failed, f"Its gaps are in {RESULTS}.")
    return gaps


def gaps_label(engine: str) -> str:
    """What pictures of gaps call a model: where its engine has no encoder, with the one that they were measured with.

    Args:
        engine: by its name in `pyro_vae.engines`.
    """
    return ENGINES[engine] + ("" if needs_encoder(cast(Engine, engine)) else ", encoder fitted afterwards")


def fit_guide(run: Run, *, training: Training | None = None, seed: int = 0) -> tuple[Amortized, Fit]:
    """Fit an encoder of the run's own design to its frozen model, and keep it in the run's checkpoint.

    Args:
        run: a run without an encoder.
        training: settings; those of the run by default.
        seed: of the initial weights and of training.

    Raises:
        ValueError: the design has no encoder.
    """
    with parameters_of(dtype_in(run.config)), seeded(derive_seed(seed, "guide")):
        guide = run.new_guide()
    if guide is None:
        raise ValueError(
            f"{run.folder}: the run's design has no encoder, so there is no amortization gap to measure. Fit with one."
        )
    data = run.dataset
    run.vae.guide = guide
    fit = fit_svi(
        run.vae.model,
        guide,
        data.train,
        train="guide",
        # The run's own device need not be here.
        training=dataclasses.replace(training or run.training, device=None),
        validation=data.validation,
        seed=seed,
    )
    run.vae.eval()
    if is_first():
        run.save_guide()
    return guide, fit
