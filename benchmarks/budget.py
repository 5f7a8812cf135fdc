"""What should a fixed budget buy: an encoder, or inference for every datapoint by itself?

`python benchmarks/budget.py --preset quick --out FOLDER` gives every engine the same wall-clock seconds to fit the same
model to N = 1000 and to N = 50000 MNIST images (Kingma & Welling 2014, figure 3: 100 hidden units, 3 latent
dimensions), and writes `FOLDER/record.json`, and `FOLDER/log_p.png` and `FOLDER/elbo.png`: held-out log p(x) and ELBO
against seconds and against decoder evaluations. Fits and scores are kept in `FOLDER/kept`, so that an interrupted run
goes on where it was.

* The budget includes tuning: each engine tries the same step sizes for the same seconds each, and keeps the one with
  the highest log p(x) of validation images. Scoring is outside the budget: it is the same for all.
* Every snapshot of every model is scored by the same estimator from its own q*: mean-field rows refined at the frozen
  model, then importance sampling from there. No encoder takes part in it.
* A decoder evaluation is one latent vector sent through the decoder; its backward pass, where there is one, is another.
  Those an engine spends to report its own progress count too, as their seconds do.
* One fit at a time, in one process with one thread, so that seconds compare.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from records import provenance, write
from studies.common import kept, one_line_errors, open_folder, parser_of, read, say, slug
from studies.curves import SCORES, draw, record_of, text_of
from studies.engines import ENGINES, PRESETS, Engine, Preset, dry
from studies.meter import Meter
from torch import Tensor

from inference import Local, MeanField, Training, iwae, refine
from pyro_vae import MLP, VAE, Dataset, Split, load
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal


def build(preset: Preset, num_values: int, *, amortized: bool) -> VAE:
    """The model, and a guide where it has one; a seed gives every engine the same decoder."""
    decoder = MLP(preset.num_latents, *preset.hidden, num_values)
    family = MeanField(preset.num_latents)
    return VAE(
        prior=StandardNormal(preset.num_latents),
        likelihood=Bernoulli(),
        decoder=decoder,
        family=family if amortized else None,
        encoder=MLP(num_values, *preset.hidden, family.num_params) if amortized else None,
    )


def fit(
    engine: Engine, preset: Preset, data: Split, *, times: Sequence[float], rate: float, seed: int, device: str
) -> dict[str, Any]:
    """One run of an engine until the last of these times.

    Returns:
        The snapshots, and the whole cost.
    """
    torch.manual_seed(seed)
    num_values = data[:1].shape[1]
    vae = build(preset, num_values, amortized=engine.amortized).to(device)
    meter = Meter(vae.decoder, times=times, rate=rate)
    training = Training(
        # The clock ends it, not the epochs.
        epochs=10**9,
        batch_size=min(preset.batch_size, len(data)),
        optimizer=meter.optimizer,
        local_steps=engine.local_steps,
        # The meter counts the decoder's calls, and compiled code makes none.
        compile=False,
    )
    # The library checks values throughout the first epoch, which is all that a budget may allow where N is large.
    with pyro.validation_enabled(is_validate=False), meter:
        engine.fit(vae, data, training, seed)
    return {"snapshots": meter.snapshots, "seconds": meter.seconds, "evaluations": meter.evaluations}


def score(
    weights: Mapping[str, Tensor], preset: Preset, images: Tensor, *, seed: int, device: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Log p(x) and the ELBO of each image, with Monte Carlo errors, from q* at this decoder."""
    vae = build(preset, images.shape[1], amortized=False)
    vae.decoder.load_state_dict(weights)
    vae.to(device)
    family = MeanField(preset.num_latents)
    options = {"num_draws": preset.num_draws, "search": preset.search, "seed": seed}
    refined = refine(vae.model, family, images, tol=preset.tol, **options)  # type: ignore[arg-type]
    own = Local(family, refined.params).to(device)
    evidence = iwae(vae.model, own, images, **options)  # type: ignore[arg-type]
    return {"log_p": (evidence.value, evidence.se), "elbo": (refined.elbo, refined.elbo_se)}


def tune(engine: Engine, preset: Preset, data: Split, validation: Tensor, *, device: str) -> dict[str, Any]:
    """Try every step size for the same seconds; the cost of all trials, and the best."""
    trials = []
    for rate in preset.rates:
        found = fit(engine, preset, data, times=[preset.trial_seconds], rate=rate, seed=preset.seeds[0], device=device)
        last = found["snapshots"].get(0)
        log_p = -math.inf
        if last is not None:
            log_p = score(last["weights"], preset, validation, seed=0, device=device)["log_p"][0].mean().item()
        trials.append({"rate": rate, "log_p": log_p, "seconds": found["seconds"], "evaluations": found["evaluations"]})
    return {
        "trials": trials,
        "rate": max(trials, key=lambda trial: trial["log_p"])["rate"],
        "seconds": sum(trial["seconds"] for trial in trials),
        "evaluations": sum(trial["evaluations"] for trial in trials),
    }


def train(preset: Preset, names: Sequence[str], folder: Path, data: Dataset, device: str) -> None:
    """Tune and fit every engine, one at a time."""
    validation = data.validation[: preset.num_validation]
    for size in preset.sizes:
        few = data.train.head(size)
        for name in names:
            engine, own = ENGINES[name], folder / str(size) / slug(name)
            tuned = kept(
                own / "tuned.pt",
                lambda engine=engine, few=few: tune(engine, preset, few, validation, device=device),
            )
            for seed in preset.seeds:
                found = kept(
                    own / f"fit-{seed}.pt",
                    lambda engine=engine, few=few, seed=seed, rate=tuned["rate"]: fit(
                        engine, preset, few, times=preset.times, rate=rate, seed=seed, device=device
                    ),
                )
                say(f"N = {size}, {name}, seed {seed}: {found['evaluations']} decoder evaluations")


def score_all(preset: Preset, own: Path, seed: int, images: Tensor, device: str) -> None:
    """Score every snapshot of one fit."""
    torch.set_num_threads(1)
    snapshots = read(own / f"fit-{seed}.pt")["snapshots"]
    kept(
        own / f"scores-{seed}.pt",
        lambda: {
            number: score(snapshot["weights"], preset, images, seed=0, device=device)
            for number, snapshot in snapshots.items()
        },
    )


def run(preset: Preset, *, names: Sequence[str], out: Path, device: str, jobs: int) -> dict[str, Any]:
    """Fit every engine, score every snapshot, and make the record."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    engines = {name: {"how": ENGINES[name].fit.__doc__, "local_steps": ENGINES[name].local_steps} for name in names}
    settings = {**dataclasses.asdict(preset), "engines": engines, "device": device}
    open_folder(out, settings)
    folder = out / "kept"
    data = load("mnist", binarize="fixed")
    train(preset, names, folder, data, device)
    images = data.test[: preset.num_images]
    work = [
        (preset, folder / str(size) / slug(name), seed, images, device)
        for size in preset.sizes
        for name in names
        for seed in preset.seeds
    ]
    if jobs == 1:
        for arguments in work:
            score_all(*arguments)
    else:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            pool.starmap(score_all, work, chunksize=1)
    return {
        "study": "what should a fixed budget buy?",
        "settings": settings,
        "fingerprint": data.fingerprint,
        "sizes": record_of(preset, names, folder),
        "errors": "se: other images; mc_se: other draws of the measurement; seed_se: other training seeds, at the step "
        "size that was chosen with one of them.",
        "seconds_of_this_run": time.perf_counter() - began,
        **provenance(),
    }


def main() -> None:
    """Run the study and write its record and pictures."""
    parser = parser_of(__doc__, PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", help="of training (default: 0 1 2)")
    parser.add_argument("--seconds", type=float, help="the budget of one engine, with tuning (default: the preset's)")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--jobs", type=int, default=2, help="processes that score (default 2); fits run one at a time")
    arguments = parser.parse_args()
    if arguments.seconds is not None and not arguments.seconds > 0:
        parser.error(f"--seconds: expected a positive number; got {arguments.seconds}.")
    preset = dry(PRESETS[arguments.preset]) if arguments.dry_run else PRESETS[arguments.preset]
    chosen = {"seeds": tuple(arguments.seeds or preset.seeds), "seconds": arguments.seconds or preset.seconds}
    record = run(
        dataclasses.replace(preset, **chosen),
        names=arguments.engines,
        out=arguments.out,
        device=arguments.device,
        jobs=arguments.jobs,
    )
    say(text_of(record))
    for term in SCORES:
        draw(record, term, arguments.out / f"{term}.png")
    write({"preset": arguments.preset, "dry_run": arguments.dry_run, **record}, arguments.out / "record.json")


if __name__ == "__main__":
    one_line_errors(main)
