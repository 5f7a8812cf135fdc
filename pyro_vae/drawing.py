"""Draws and pictures of a run, made once the run is in its place: none of them can undo the fit."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from shlex import quote

import xarray as xr
from matplotlib.axes import Axes

from inference import Amortized, Local, TermTracker, elbo_surgery, refine, to_datatree
from inference.checkpoint import atomic_write
from inference.families import Family
from inference.noise import derive_seed, seeded
from inference.processes import alone
from pyro_vae import plots
from pyro_vae.configuration import dtype_in, parameters_of
from pyro_vae.data import Dataset, Split
from pyro_vae.engines import ENGINES
from pyro_vae.figures import Picture, draw_each, draw_fit
from pyro_vae.folders import FIGURES, METRICS, NOT_MADE, RESULTS
from pyro_vae.run import Run

__all__ = ["FEWEST_DRAWN", "draw_run", "in_words", "lacks_draws", "mark_missing", "tell_missing"]

_log = logging.getLogger(__name__)

# Datapoints with draws in results.nc, and in the pictures.
NUM_DRAWN = 100
# Draws a chain, and how many datapoints have draws at least, however wide they are.
NUM_DRAWS, FEWEST_DRAWS, FEWEST_DRAWN = 250, 10, 10
NUM_CHAINS = 4
# Outputs of the decoder that are computed for the draws, as far as those fewest allow it: a few seconds.
MAX_OUTPUTS = 25 * 10**6


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
            mark_missing(run.folder, {f"{RESULTS}, {FIGURES}": "they were not made yet"})
            try:
                _draw(run, run.dataset, failed, draws=draws, figures=figures)
            # Whatever a model, its data or the disk raise: the fit is done, and must not be lost.
            except Exception as error:  # noqa: BLE001
                failed[f"{RESULTS}, {FIGURES}"] = in_words(error)
        mark_missing(run.folder, failed)
    tell_missing(run.folder, failed, f"Try again: pyro-vae resume {quote(str(run.folder))}.")
    return failed


def lacks_draws(run: Run) -> bool:
    """Whether draws or pictures that the run's configuration asks for are not there, or not all of them.

    Args:
        run: a fitted run.
    """
    made = {"draws": (run.folder / RESULTS).is_file(), "figures": any((run.folder / FIGURES).glob("*.png"))}
    asked = [there for name, there in made.items() if run.config.get(name, True)]
    return bool(asked) and ((run.folder / NOT_MADE).is_file() or not all(asked))


def mark_missing(folder: Path, failed: Mapping[str, str]) -> None:
    """Keep in `not-made.json` the files that could not be made; nothing where there are none, or no room to say so.

    Args:
        folder: the run's folder.
        failed: the error in words for each file.
    """
    try:
        if not failed:
            (folder / NOT_MADE).unlink(missing_ok=True)
            return
        with atomic_write(folder / NOT_MADE) as temporary:
            temporary.write_text(json.dumps(dict(failed), indent=2) + "\n")
    except OSError as error:
        _log.warning("%s: cannot be written (%s).", folder / NOT_MADE, error.strerror or error)


def tell_missing(folder: Path, failed: Mapping[str, str], advice: str) -> None:
    """Log one line that names the files that could not be made.

    Args:
        folder: the run's folder.
        failed: the error in words for each file; none: nothing is said.
        advice: a sentence on what to do.
    """
    if failed:
        told = "; ".join(f"{name} ({error})" for name, error in failed.items())
        _log.warning("%s: the run is whole, but could not be given %s. %s", folder, told, advice)


def in_words(error: Exception) -> str:
    """The class and the text of an error in one line.

    Args:
        error: the error.

    Example:
        >>> in_words(OSError(28, "No space left on device"))
        'OSError: [Errno 28] No space left on device'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ").removesuffix(".")


def _draw(run: Run, dataset: Dataset, failed: dict[str, str], *, draws: bool, figures: bool) -> None:
    """Draws and pictures of the first test datapoints; `failed` is given what cannot be made."""
    seed: int = run.config["seed"]
    test = dataset.test.fix()
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
            failed[RESULTS] = in_words(error)
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
