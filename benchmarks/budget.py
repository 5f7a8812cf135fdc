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
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from records import over_seeds, provenance, write
from studies import kept, one_line_errors, open_folder, parser_of, say, slug
from torch import Tensor, nn
from torch.optim import Optimizer

from inference import (
    Adam,
    Local,
    MeanField,
    Search,
    Training,
    WakeSleep,
    fit_em,
    fit_mcem,
    fit_svi,
    iwae,
    refine,
)
from pyro_vae import MLP, VAE, Dataset, Split, load
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.plots import COLORS, STYLE
from pyro_vae.priors import StandardNormal

# Fits one VAE: with an encoder where the engine is amortized.
Fit = Callable[[VAE, Split, Training, int], object]
SCORES = ("log_p", "elbo")


def _svi(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """The ELBO with pathwise gradients, one draw a datapoint."""
    return fit_svi(vae.model, vae.guide, data, training=training, seed=seed)  # type: ignore[arg-type]


def _wake_sleep(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """Reweighted wake-sleep: 5 particles, the guide's loss half wake and half sleep."""
    loss = WakeSleep(num_particles=5, insomnia=0.5)
    return fit_svi(vae.model, vae.guide, data, loss=loss, training=training, seed=seed)  # type: ignore[arg-type]


def _semi_amortized(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """Every visit starts at the encoder's rows; the encoder descends the loss there."""
    family = vae.guide.family  # type: ignore[union-attr]
    return fit_em(vae.model, family, data, init=vae.guide, restart="every visit", training=training, seed=seed)


def _em(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """Mean-field rows of every datapoint's own, started at the prior; two draws a step."""
    return fit_em(vae.model, MeanField(vae.num_latents), data, training=training, seed=seed)


def _mcem(vae: VAE, data: Split, training: Training, seed: int) -> object:
    """One Hamiltonian chain a datapoint, 5 transitions a visit, 10 more at its first."""
    return fit_mcem(vae.model, data, num_chains=1, burn_in=10, training=training, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to spend the budget.

    Attributes:
        fit: runs it; its docstring says how.
        amortized: whether there is an encoder.
        local_steps: steps on a datapoint's own row at each visit.
    """

    fit: Fit
    amortized: bool = False
    local_steps: int = 5


ENGINES = {
    "SVI": Engine(fit=_svi, amortized=True),
    "wake-sleep": Engine(fit=_wake_sleep, amortized=True),
    "semi-amortized, 5 steps": Engine(fit=_semi_amortized, amortized=True),
    "variational EM, 1 step": Engine(fit=_em, local_steps=1),
    "variational EM, 5 steps": Engine(fit=_em),
    "variational EM, 20 steps": Engine(fit=_em, local_steps=20),
    "Monte Carlo EM": Engine(fit=_mcem),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything.

    Attributes:
        seconds: the budget of one engine, with tuning.
        tuning: share of it that goes into the trials, in equal parts.
        rates: step sizes that are tried.
        seeds: of training.
        num_snapshots: models scored along the way, at seconds that grow by a constant factor.
        num_images: first test images that are scored.
        num_validation: first validation images that choose the step size.
        num_draws: behind each log p(x) and ELBO.
        tol: of the searches, nats.
        search: for q*.
        sizes: N, first training images fitted to.
        hidden: widths of the hidden layers.
        num_latents: D.
        batch_size: datapoints a step.
    """

    seconds: float
    tuning: float = 1 / 3
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    num_snapshots: int
    num_images: int
    num_validation: int
    num_draws: int
    tol: float
    search: Search
    sizes: tuple[int, ...] = (1000, 50_000)
    hidden: tuple[int, ...] = (100,)
    num_latents: int = 3
    batch_size: int = 100

    @property
    def trial_seconds(self) -> float:
        """Seconds of one trial."""
        return self.tuning * self.seconds / len(self.rates)

    @property
    def times(self) -> list[float]:
        """Seconds of a fit, after tuning, at which models are kept; the last ends it."""
        left = (1 - self.tuning) * self.seconds
        return np.geomspace(left / 30, left, self.num_snapshots).tolist()


PRESETS = {
    "quick": Preset(
        seconds=12.0,
        rates=(1e-3, 3e-3, 1e-2),
        num_snapshots=5,
        num_images=64,
        num_validation=64,
        num_draws=500,
        tol=0.1,
        search=Search(num_particles=2, max_rounds=4, num_judge_draws=128, num_select_draws=64),
    ),
    "paper": Preset(
        seconds=1800.0,
        rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        num_snapshots=12,
        num_images=1000,
        num_validation=500,
        num_draws=5000,
        tol=0.01,
        search=Search(),
    ),
}


def dry(preset: Preset) -> Preset:
    """The same design at a tiny size."""
    return dataclasses.replace(
        preset,
        seconds=1.0,
        rates=preset.rates[:2],
        seeds=preset.seeds[:2],
        num_snapshots=2,
        num_images=4,
        num_validation=2,
        num_draws=50,
        tol=1.0,
        search=Search(num_particles=2, first_round=4, max_rounds=1, num_judge_draws=64, num_select_draws=8),
        sizes=(200,),
    )


class BudgetSpent(Exception):
    """Ends a fit in the middle of an epoch: one epoch may be longer than the budget."""


class Meter:
    """Times a fit, counts its decoder evaluations, keeps its decoder at set times, and ends it at the last.

    The clock stands still while a model is copied.

    Args:
        decoder: the module that is watched.
        times: seconds at which it is kept, ascending.
        rate: step size of the optimiser.

    Attributes:
        snapshots: by number of the time: seconds, evaluations, and the decoder's weights.
        evaluations: rows sent through the decoder, forward and backward.
    """

    def __init__(self, decoder: nn.Module, *, times: Sequence[float], rate: float) -> None:
        self.decoder = decoder
        self.times = list(times)
        self.rate = rate
        self.snapshots: dict[int, dict[str, Any]] = {}
        self.evaluations = 0
        self._paused = 0.0

    def __enter__(self) -> Self:
        self._hook = self.decoder.register_forward_hook(self._count)
        self._began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> bool:
        self._hook.remove()
        # A diverged fit has what it had until then.
        return kind is not None and issubclass(kind, BudgetSpent | FloatingPointError)

    def optimizer(self, leaves: Iterable[Tensor]) -> Optimizer:
        """Adam, which looks at the clock after every step: `Training(optimizer=meter.optimizer)`."""
        made = Adam(lr=self.rate)(leaves)
        made.register_step_post_hook(self._look)
        return made

    def _look(self, *_: object) -> None:
        now = time.perf_counter()
        seconds = now - self._began - self._paused
        number = bisect_right(self.times, seconds) - 1
        if number < 0 or number in self.snapshots:
            return
        weights = {name: value.detach().cpu().clone() for name, value in self.decoder.state_dict().items()}
        self.snapshots[number] = {"seconds": seconds, "evaluations": self.evaluations, "weights": weights}
        if number == len(self.times) - 1:
            raise BudgetSpent
        self._paused += time.perf_counter() - now

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG002
        rows = len(output)
        self.evaluations += rows
        if output.requires_grad:
            output.register_hook(lambda _: self._count_backward(rows))

    def _count_backward(self, rows: int) -> None:
        self.evaluations += rows


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
    )
    # The library checks values throughout the first epoch, which is all that a budget may allow where N is large.
    with pyro.validation_enabled(is_validate=False), meter:
        engine.fit(vae, data, training, seed)
    seconds = max((snapshot["seconds"] for snapshot in meter.snapshots.values()), default=0.0)
    return {"snapshots": meter.snapshots, "seconds": seconds, "evaluations": meter.evaluations}


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
    snapshots = kept(own / f"fit-{seed}.pt", dict)["snapshots"]
    kept(
        own / f"scores-{seed}.pt",
        lambda: {
            number: score(snapshot["weights"], preset, images, seed=0, device=device)
            for number, snapshot in snapshots.items()
        },
    )


def curve(preset: Preset, own: Path) -> dict[str, Any]:
    """The scores of one engine along its budget: over seeds, at the times that all of them reached."""
    tuned = kept(own / "tuned.pt", dict)
    fits = [kept(own / f"fit-{seed}.pt", dict) for seed in preset.seeds]
    scores = [kept(own / f"scores-{seed}.pt", dict) for seed in preset.seeds]
    points = []
    for number in range(len(preset.times)):
        reached = [found["snapshots"].get(number) for found in fits]
        if None in reached:
            continue
        point: dict[str, Any] = {
            cost: tuned[cost] + sum(snapshot[cost] for snapshot in reached) / len(reached)
            for cost in ("seconds", "evaluations")
        }
        for term in SCORES:
            value, se = (torch.stack([found[number][term][part] for found in scores]) for part in (0, 1))
            point[term] = over_seeds(value, se) | {"by_seed": value.mean(1).tolist()}
        points.append(point)
    return {"tuned": tuned, "points": points}


def at(points: Sequence[Mapping[str, Any]], cost: str, spent: float, term: str) -> float:
    """The mean score when so much is spent: interpolated in the logarithm of the cost; NaN before the first point."""
    costs = [math.log(point[cost]) for point in points]
    if not costs or math.log(spent) < costs[0]:
        return math.nan
    return float(np.interp(math.log(spent), costs, [point[term]["mean"] for point in points]))


def compare(
    engines: Mapping[str, Mapping[str, Any]], kept_scores: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """What the budget bought: each engine against SVI at the end, and all at equal decoder evaluations.

    Args:
        engines: the curve of each.
        kept_scores: log p(x) at the end, (seeds, images), and its Monte Carlo errors.
    """
    ends = [engine["points"][-1]["evaluations"] for engine in engines.values() if engine["points"]]
    spent = min(ends, default=math.nan)
    first = "SVI" if "SVI" in kept_scores else next(iter(kept_scores))
    against = {
        name: over_seeds(value - kept_scores[first][0], se.hypot(kept_scores[first][1]))
        for name, (value, se) in kept_scores.items()
    }
    return {
        f"log_p_less_that_of_{first}": against,
        "at_equal_evaluations": {
            "evaluations": spent,
            "log_p": {name: at(engine["points"], "evaluations", spent, "log_p") for name, engine in engines.items()},
        },
    }


def record_of(preset: Preset, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Curves and comparisons for every N, from what is kept."""
    sizes = {}
    for size in preset.sizes:
        engines, last = {}, {}
        for name in names:
            own = folder / str(size) / slug(name)
            engines[name] = curve(preset, own)
            ends = [kept(own / f"scores-{seed}.pt", dict).get(len(preset.times) - 1) for seed in preset.seeds]
            if None not in ends:
                value, se = (torch.stack([end["log_p"][part] for end in ends]) for part in (0, 1))
                last[name] = (value, se)
        sizes[str(size)] = {"engines": engines, "comparison": compare(engines, last)}
    return sizes


def text_of(record: Mapping[str, Any]) -> str:
    """What each engine had reached when the budget was spent."""
    lines = []
    for size, found in record["sizes"].items():
        equal = found["comparison"]["at_equal_evaluations"]
        lines += [
            f"N = {size}: held-out nats per datapoint after {record['settings']['seconds']:.0f} s, tuning included",
            f"{'':<26}{'step size':>10}{'log p(x)':>20}{'ELBO at q*':>12}{'evaluations':>13}"
            f"{'log p(x) at ' + format(equal['evaluations'], '.1e'):>22}",
        ]
        for name, engine in found["engines"].items():
            if not engine["points"]:
                lines += [f"{name:<26} finished no step within the budget"]
                continue
            end = engine["points"][-1]
            score = f"{end['log_p']['mean']:.2f} ± {end['log_p']['seed_se']:.2f}"
            lines += [
                f"{name:<26}{engine['tuned']['rate']:>10g}{score:>20}{end['elbo']['mean']:>12.2f}"
                f"{end['evaluations']:>13.1e}{equal['log_p'][name]:>22.2f}"
            ]
        lines += ["(± standard error over training seeds)", ""]
    return "\n".join(lines)


def draw(record: Mapping[str, Any], term: str, file: Path) -> None:
    """A score against seconds and against decoder evaluations, one row an N; bands reach from seed to seed."""
    words = {"log_p": "held-out log p(x)", "elbo": "held-out ELBO at q*"}[term]
    axes_of = {"seconds": "seconds, tuning included", "evaluations": "decoder evaluations, tuning included"}
    markers = "os^vDPX"
    with plt.rc_context(STYLE):
        rows = len(record["sizes"])
        figure, axes = plt.subplots(rows, 2, figsize=(8.4, 0.9 + 2.9 * rows), sharey="row", squeeze=False)
        for row, (size, found) in zip(axes, record["sizes"].items(), strict=True):
            for ax, (cost, label) in zip(row, axes_of.items(), strict=True):
                for number, (name, engine) in enumerate(found["engines"].items()):
                    style = {"marker": markers[number], "markersize": 4, "color": [*COLORS, "#333333"][number]}
                    points = engine["points"]
                    spent = [point[cost] for point in points]
                    ax.plot(spent, [point[term]["mean"] for point in points], label=name, **style)
                    low, high = ([edge(point[term]["by_seed"]) for point in points] for edge in (min, max))
                    ax.fill_between(spent, low, high, color=style["color"], alpha=0.2, linewidth=0)
                ax.set_xscale("log")
                ax.set_xlabel(label)
            row[0].set_ylabel(f"{words}\n(nats per datapoint)")
            row[0].set_title(f"N = {size}", loc="left")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        title = (
            f"lines: mean of {len(record['settings']['seeds'])} training seeds; bands: from the lowest to the highest"
        )
        figure.legend(handles, labels, loc="outside upper center", ncols=4, title=title)
        figure.savefig(file)
        plt.close(figure)


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
    write({"preset": arguments.preset, **record}, arguments.out / "record.json")


if __name__ == "__main__":
    one_line_errors(main)
