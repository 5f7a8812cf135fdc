"""The jobs behind the command line: fit a run, measure a run. Each leaves its folder complete."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple, cast

import torch
import xarray as xr
from matplotlib.axes import Axes
from torch import Tensor
from torch.distributions.constraints import Constraint

from inference import (
    Amortized,
    Fit,
    Gaps,
    Local,
    Resume,
    TermTracker,
    Training,
    elbo_surgery,
    fit_svi,
    measure_gaps,
    refine,
    to_datatree,
)
from inference.checkpoint import atomic_write
from inference.devices import resolve_device
from inference.draws import gaps_dataset, gaps_from_datatree
from inference.families import Family
from inference.noise import derive_seed, seeded
from inference.objectives import Loss
from inference.processes import alone, is_first, num_processes
from inference.supports import is_unconstrained
from inference.training import LoopState
from pyro_vae import plots
from pyro_vae.configuration import dtype_in, parameters_of
from pyro_vae.data import Dataset, Preprocessing, Split, describe, dtype_of, load, located, say_scales, silent
from pyro_vae.engines import ENGINES, Engine, fit_by, needs_encoder, objective_to_config
from pyro_vae.figures import Picture, draw_each, draw_fit, draw_gaps, draw_worst
from pyro_vae.folders import FIGURES, METRICS, NOT_MADE, RESULTS
from pyro_vae.likelihoods import Likelihood
from pyro_vae.parts import Parts, Sizes, catalog, options, to_config
from pyro_vae.run import Run, save_run
from pyro_vae.vae import VAE

__all__ = [
    "choose_likelihood",
    "draw_run",
    "fit_guide",
    "fit_run",
    "gaps_label",
    "join_run",
    "lacks_draws",
    "measure_run",
    "say_units",
    "start_at_data",
]

_log = logging.getLogger(__name__)

# Datapoints with draws in results.nc, and in the pictures.
NUM_DRAWN = 100
# Datapoints of each split whose ELBO is taken apart over training.
NUM_TRACKED = 500
# Values of x whose terms are measured at most each time, of as many datapoints as hold them.
TRACKED_VALUES = 2 * 10**6
# Draws a chain, and how many datapoints have draws at least, however wide they are.
NUM_DRAWS, FEWEST_DRAWS, FEWEST_DRAWN = 250, 10, 10
NUM_CHAINS = 4
# Outputs of the decoder that are computed for the draws, as far as those fewest allow it: a few seconds.
MAX_OUTPUTS = 25 * 10**6


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
            _mark(folder, {f"{RESULTS}, {FIGURES}": "they were not made yet"})
    return run.of(dataset)


def draw_run(run: Run) -> dict[str, str]:
    """Make draws and pictures of the first test datapoints, as far as the run's configuration asks for them.

    The run is whole without them. Where some cannot be made, the others are, a warning is logged, and the folder keeps
    the reasons in `not-made.json`. Draws that `results.nc` holds already stay as they are.

    Args:
        run: a fitted run.

    Returns:
        The error in words for each file that could not be made.
    """
    draws, figures = (bool(run.config.get(name, True)) for name in ("draws", "figures"))
    failed: dict[str, str] = {}
    with alone(), parameters_of(dtype_in(run.config)):
        if draws or figures:
            _mark(run.folder, {f"{RESULTS}, {FIGURES}": "they were not made yet"})
            try:
                _draw(run, run.dataset, failed, draws=draws, figures=figures)
            # Whatever a model, its data or the disk raise: the fit is done, and must not be lost.
            except Exception as error:  # noqa: BLE001
                failed[f"{RESULTS}, {FIGURES}"] = _in_words(error)
        _mark(run.folder, failed)
    _tell(run.folder, failed, f"Try again: pyro-vae resume {quote(str(run.folder))}.")
    return failed


def lacks_draws(run: Run) -> bool:
    """Whether draws or pictures that the run's configuration asks for are not there, or not all of them.

    Args:
        run: a fitted run.
    """
    made = {"draws": (run.folder / RESULTS).is_file(), "figures": any((run.folder / FIGURES).glob("*.png"))}
    asked = [there for name, there in made.items() if run.config.get(name, True)]
    return bool(asked) and ((run.folder / NOT_MADE).is_file() or not all(asked))


def _mark(folder: Path, failed: Mapping[str, str]) -> None:
    """Keep what could not be made, and why; nothing where there is nothing, or no room to say so."""
    try:
        if not failed:
            (folder / NOT_MADE).unlink(missing_ok=True)
            return
        with atomic_write(folder / NOT_MADE) as temporary:
            temporary.write_text(json.dumps(dict(failed), indent=2) + "\n")
    except OSError as error:
        _log.warning("%s: cannot be written (%s).", folder / NOT_MADE, error.strerror or error)


def _tell(folder: Path, failed: Mapping[str, str], advice: str) -> None:
    """Say in one line what could not be made."""
    if failed:
        told = "; ".join(f"{name} ({error})" for name, error in failed.items())
        _log.warning("%s: the run is whole, but could not be given %s. %s", folder, told, advice)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ").removesuffix(".")


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
    with seeded(derive_seed(seed, "parts")):
        modules = parts.build(sizes)
    if not needs_encoder(engine):
        # Neither kind of EM has an encoder; one may be fitted to the frozen model afterwards.
        modules["encoder"] = None
    vae = VAE(**modules, standardization=dataset.standardization)
    start_at_data(vae.prior, dataset.train, seed=seed)
    _check_support(vae.likelihood, dataset)
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


def _check_support(likelihood: Likelihood, dataset: Dataset) -> None:
    """Refuse data outside the support; the classes that the advice names are named as a command line does, too."""
    try:
        for split in (dataset.train, dataset.validation, dataset.test):
            for x in _blocks(_fixed(split)):
                likelihood.check(x)
    except ValueError as error:
        # What the advice says is of the numbers that the likelihood saw, which are not those of a file of 8 bits.
        text = _in_8_bits(str(error), dataset) if dataset.is_gray else str(error)
        advice = text.removeprefix(repr(likelihood))
        named = [name for name, part in catalog("likelihood").items() if re.search(rf"\b{part.__name__}\b", advice)]
        words = ", ".join(f"likelihood:{name}" for name in named)
        raise ValueError(f"{text}{f' On the command line: {words}.' if named else ''}") from error


def _in_8_bits(text: str, dataset: Dataset) -> str:
    """An error on a value of x, with the number that the file holds and the way to keep counts."""

    def shown(match: re.Match[str]) -> str:
        return f"{match[0]} (the 8-bit {float(match[1]) * dataset.divisor:.0f}, divided by {dataset.divisor:g})"

    return f"{re.sub(r'(?<=[]] = )([0-9.e+-]*[0-9])', shown, text, count=1)} {_keep_counts(dataset)}"


def _keep_counts(dataset: Dataset) -> str:
    """Why counts in 8-bit integers are not what is fitted, and what to do."""
    return (
        f"8-bit integers are taken for gray levels and divided by {dataset.divisor:g}: if they are counts, save a "
        'wider integer type, x.astype("int64").'
    )


def _term_tracker(vae: VAE, dataset: Dataset, training: Training, *, seed: int) -> TermTracker | None:
    """What measures the terms of the ELBO some 50 times on a few training and held-out datapoints."""
    if vae.guide is None:
        return None
    shown = {"training": dataset.train, "held-out": dataset.validation}
    most = min(NUM_TRACKED, max(FEWEST_DRAWN, TRACKED_VALUES // dataset.num_values))
    data = {name: _fixed(split.head(min(most, len(split)))) for name, split in shown.items() if len(split)}
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
                _log.warning("The terms of the ELBO could not be measured (%s); the fit goes on.", _in_words(error))
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
    prior.init_from(_fixed(train)[rows].nan_to_num(0.0))


def choose_likelihood(parts: Parts, dataset: Dataset) -> Parts:
    """The parts with a likelihood: their own, else Bernoulli for zeros and ones and binomial for counts.

    Where values are missing, the likelihood chosen here leaves them out.

    Args:
        parts: a design, perhaps without a likelihood.
        dataset: what it shall fit.

    Raises:
        ValueError: the data call for none of the two: the choice is the user's.
    """
    if dataset.standardization is not None:
        _require_real(parts)
    if parts.likelihood is not None:
        return parts
    low, high = dataset.min_value, dataset.max_value
    if low < 0 or not all(
        bool(((x == x.round()) | x.isnan()).all())
        for split in (dataset.train, dataset.validation, dataset.test)
        for x in _blocks(_fixed(split))
    ):
        if dataset.is_gray:
            low, high = round(low * dataset.divisor), round(high * dataset.divisor)
            raise ValueError(
                f"likelihood: {dataset.name!r} holds 8-bit integers, from {low} to {high}: expected a choice. "
                f"{_keep_counts(dataset)} Gray levels: binarize them (--data.binarize fixed), or choose "
                "likelihood:discretized-logistic or, as real numbers, likelihood:gaussian-shared-scale."
            )
        raise ValueError(
            f"likelihood: {dataset.name!r} holds values between whole numbers, from {low:g} to {high:g}: "
            "expected a choice. Binarize gray values (--data.binarize fixed), or take them as real numbers "
            "(likelihood:gaussian-shared-scale)."
        )
    name = "bernoulli" if high <= 1 else "binomial"
    return dataclasses.replace(parts, likelihood=options("likelihood", name, mask=dataset.has_missing))


def _require_real(parts: Parts) -> None:
    """Refuse a likelihood of standardized data that is none of real numbers, before anything is made of them."""
    if parts.likelihood is None or not _is_real(parts):
        came = "none" if parts.likelihood is None else f"likelihood:{to_config(parts.likelihood)['part']}"
        raise ValueError(
            f"likelihood: expected one of real numbers, since standardized values are real numbers; got {came}. Choose "
            "one (likelihood:gaussian-output-scale, a noise scale for each column), or leave standardize "
            "(--data.standardize) out."
        )


def _is_real(parts: Parts) -> bool:
    support = None if parts.likelihood is None else getattr(parts.likelihood._part, "support", None)
    return isinstance(support, Constraint) and is_unconstrained(support)


def say_units(dataset: Dataset, *designs: Parts) -> None:
    """Log whole numbers whose scales are far apart, or far from 1, where a likelihood is one of real numbers.

    Of data with other values `load` has spoken.

    Args:
        dataset: the data that are going to be fitted.
        designs: designs that are fitted to them.
    """
    if any(map(_is_real, designs)) and dataset.standardization is None:
        say_scales(dataset, counts=True)


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
    test = _fixed(run.dataset.test)
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
            failed[FIGURES] = _in_words(error)
        _tell(run.folder, failed, f"Its gaps are in {RESULTS}.")
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


def _draw(run: Run, dataset: Dataset, failed: dict[str, str], *, draws: bool, figures: bool) -> None:
    """Draws and pictures of the first test datapoints; `failed` is given what cannot be made."""
    seed: int = run.config["seed"]
    test = _fixed(dataset.test)
    shown = test.head(min(NUM_DRAWN, len(test)))
    guide: Amortized | Local | None = run.vae.guide
    if guide is None:
        family: Family = run.vae.family  # type: ignore[assignment]
        # Pictures and draws do not show the last tenth of a nat.
        guide = Local(family, refine(run.vae.model, family, shown, tol=0.1, seed=seed).params)
    if draws:
        try:
            _save_draws(run, dataset, guide, shown, seed=seed)
        except Exception as error:  # noqa: BLE001 (the pictures can be drawn all the same)
            failed[RESULTS] = _in_words(error)
    if not figures:
        return
    folder = run.folder / FIGURES
    folder.mkdir(exist_ok=True)
    with seeded(derive_seed(seed, "figures")):
        failed |= draw_fit(folder, {ENGINES[run.engine]: run.fit}, run.vae, guide, shown, dataset.image_shape)
    pictures: dict[str, Picture] = {"elbo_terms": partial(_terms_picture, run)}
    # The mean of q over datapoints needs its density at draws that are not its own.
    if guide.family.has_log_prob and len(shown) > 1:
        pictures["kl_per_dim"] = partial(_kl_picture, run, guide, shown, seed=derive_seed(seed, "surgery"))
    failed |= draw_each(folder, pictures)


def _save_draws(run: Run, dataset: Dataset, guide: Amortized | Local, shown: Split, *, seed: int) -> None:
    """Add draws to `results.nc`, unless it holds some: fewer of wide datapoints, whose draws take longer."""
    tree = run.results if (run.folder / RESULTS).is_file() else xr.DataTree()
    if "posterior" in tree.children:
        return
    outputs = NUM_CHAINS * dataset.num_values * run.vae.likelihood.num_params
    num_drawn = min(len(shown), max(FEWEST_DRAWN, MAX_OUTPUTS // (FEWEST_DRAWS * outputs)))
    drawn = shown.head(num_drawn)
    drawn_tree = to_datatree(
        run.vae.model,
        guide,
        drawn,
        num_draws=min(NUM_DRAWS, max(FEWEST_DRAWS, MAX_OUTPUTS // (num_drawn * outputs))),
        num_chains=NUM_CHAINS,
        labels=drawn.labels,
        image_shape=dataset.image_shape,
        seed=seed,
    )
    # Gaps that were measured before.
    for name, group in tree.children.items():
        drawn_tree[name] = group
    run.save_results(drawn_tree)


def _terms_picture(run: Run) -> Axes | None:
    """The terms of the ELBO over training, read off the lines of the metrics; None where they were not measured."""
    lines = [json.loads(line) for line in (run.folder / METRICS).read_text().splitlines()]
    lines = [line for line in lines if any(name.startswith("kl (") for name in line)]
    guide = run.vae.guide
    if not lines or guide is None:
        return None
    names = [name.removeprefix("kl (").removesuffix(")") for name in lines[0] if name.startswith("kl (")]

    def column(term: str) -> dict[str, list[float]]:
        # JSON has no NaN.
        values = {name: [line[f"{term} ({name})"] for line in lines] for name in names}
        return {name: [math.nan if one is None else one for one in some] for name, some in values.items()}

    terms = TermTracker(run.vae.model, guide, {})
    terms.data = dict.fromkeys(names, ())
    terms.load_state_dict(
        {"epochs": [line["epoch"] for line in lines], "reconstruction": column("reconstruction"), "kl": column("kl")}
    )
    return plots.plot_elbo_terms(terms)


def _kl_picture(run: Run, guide: Amortized | Local, shown: Split, *, seed: int) -> Axes | None:
    """The KL of each latent dimension; None where it cannot be told apart by dimension."""
    surgery = elbo_surgery(run.vae.model, guide, shown, seed=seed)
    return None if surgery.kl_per_dim is None else plots.plot_kl_per_dim({ENGINES[run.engine]: surgery})


def _blocks(split: Split) -> Iterator[Tensor]:
    """All rows, a few thousand at a time: a split may be larger than memory."""
    for start in range(0, len(split), 4096):
        yield split[start : start + 4096]


def _fixed(split: Split) -> Split:
    """One realisation of a split that draws x anew at each access; its seed belongs to the data."""
    return split.fix() if split.resamples else split
