"""The command line: parse, call, save."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from inference import SGD, Adam, Constant, Cosine, RobbinsMonro, Staircase, Training
from pyro_vae import __version__, plots
from pyro_vae.comparison import TRAINING, compare
from pyro_vae.data import load
from pyro_vae.demo import run_demo, table
from pyro_vae.figures import save
from pyro_vae.jobs import Engine, fit_run, measure_run
from pyro_vae.parts import Parts, build_family, options, subcommands
from pyro_vae.run import CONFIG, new_folder, open_run

__all__ = ["main"]


Optimizer = (
    Annotated[Adam, tyro.conf.subcommand(name="adam", description="Adam, with one step size for all parameters.")]
    | Annotated[
        SGD, tyro.conf.subcommand(name="sgd", description="Stochastic gradient descent, with momentum if wanted.")
    ]
)
Schedule = (
    Annotated[Constant, tyro.conf.subcommand(name="constant", description="The same step size throughout.")]
    | Annotated[
        RobbinsMonro,
        tyro.conf.subcommand(name="robbins-monro", description="(1 + step / delay) ** -exponent, which converges."),
    ]
    | Annotated[Cosine, tyro.conf.subcommand(name="cosine", description="Down to nothing along half a cosine.")]
    | Annotated[
        Staircase,
        tyro.conf.subcommand(name="staircase", description="Down by a factor in stages, each longer than the last."),
    ]
)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Training):
    """The settings record, with the optimisers and schedules that the command line can name."""

    optimizer: Optimizer = Adam()
    schedule: Schedule = Constant()
    callbacks: tyro.conf.Suppress[tuple[()]] = ()


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data, their split and their binarization.

    Attributes:
        name: digits, mnist, fashion-mnist, kmnist, emnist-balanced, emnist-letters, emnist-digits, cifar10, or a path
            that ends in .npy, .npz, .csv or .parquet.
        binarize: none; fixed: one draw with probability value / maximum; dynamic: a new draw at every visit (SVI only).
        binarize_seed: seed of the fixed draw; leave it alone to be comparable between runs.
        split_seed: seed of the random split; likewise.
        num_validation: size of the validation split.
        num_test: size of the test split.
        missing: refuse NaN, or keep it as unobserved; the likelihood then wants --likelihood.mask.
        key: array of an .npz file that holds x, where it is not called x.
        label_key: array of an .npz file that holds labels.
        columns: columns of a table that make up x; all but the label by default.
        label: column of a table that holds labels.
        stream: read rows of an .npy file when they are needed; by default where it is larger than 1 GiB.
    """

    name: Annotated[str, tyro.conf.arg(name="data", prefix_name=False)] = "digits"
    binarize: Literal["none", "fixed", "dynamic"] = "none"
    binarize_seed: int = 0
    split_seed: int = 0
    num_validation: int | None = None
    num_test: int | None = None
    missing: Literal["refuse", "keep"] = "refuse"
    key: str | None = None
    label_key: str | None = None
    columns: tuple[str, ...] | None = None
    label: str | None = None
    stream: bool | None = None

    def load_arguments(self) -> dict[str, Any]:
        """Arguments of `pyro_vae.load`."""
        values = dict(vars(self))
        return {"name_or_path": values.pop("name"), **values}


@dataclass(frozen=True)
class PartsOptions(Parts):
    """The parts of a VAE, where the data may choose the likelihood.

    Attributes:
        likelihood: distribution of x given z; none: bernoulli for zeros and ones, binomial for counts.
    """

    likelihood: subcommands("likelihood") | None = None  # type: ignore[valid-type, assignment]


@dataclass(frozen=True, kw_only=True)
class FitCommand:
    """Fit a VAE and write a run folder.

    Example: pyro-vae fit --out runs/digits --num-latents 8 decoder:mlp --decoder.hidden 128 128

    Attributes:
        out: folder to write; it must not hold a run yet.
        data: what to fit.
        engine: svi: with an encoder; em: variational EM, one row of parameters a datapoint.
        num_latents: D, size of the latent vector.
        training: how long and how fast.
        parts: prior, likelihood, family, decoder, encoder.
        seed: of initial weights, training and draws.
        json: print the record as JSON alone on standard output.
    """

    out: Path
    data: DataOptions = DataOptions()
    engine: Engine = "svi"
    num_latents: int = 8
    training: TrainingOptions = TrainingOptions()
    parts: Annotated[PartsOptions, tyro.conf.arg(name="")] = PartsOptions()
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Fit."""
        with new_folder(self.out) as folder:
            run = fit_run(
                folder,
                data=self.data.load_arguments(),
                parts=self.parts,
                num_latents=self.num_latents,
                engine=self.engine,
                training=self.training,
                seed=self.seed,
            )
            fit = run.fit
        if self.json:
            columns = {name: values.tolist() for name, values in fit.history.items()}
            record = {
                **columns,
                "elbo_validation": columns.get("elbo_validation"),
                "seconds": fit.seconds,
                "num_steps": fit.num_steps,
            }
            _print_json(
                {**record, "stopped_because": fit.stopped_because, "best_epoch": fit.best_epoch, "out": str(self.out)}
            )
            return
        print(run.vae)
        print(fit)
        print(f"Written to {self.out}. Next: pyro-vae gaps {self.out}")


@dataclass(frozen=True, kw_only=True)
class GapsCommand:
    """Measure what amortization cost, on the test split of a run, and keep it in its folder.

    A run of variational EM has no encoder: one of its own design is first fitted to the frozen model.

    Example: pyro-vae gaps runs/digits --num-data 200

    Attributes:
        run: the run's folder.
        num_data: test datapoints to measure, the first ones; all by default.
        families: further families to find q* in, for example full-covariance.
        seed: of all draws.
        json: print the summary as JSON alone on standard output.
    """

    run: tyro.conf.Positional[Path]
    num_data: int | None = None
    families: tuple[str, ...] = ()
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Measure."""
        if self.num_data is not None and self.num_data < 1:
            raise ValueError(f"--num-data: expected a positive number of datapoints; got {self.num_data}.")
        run = open_run(self.run)
        support = run.vae.prior().support
        further = [build_family(options("family", name), run.vae.num_latents, support) for name in self.families]
        gaps = measure_run(run, num_data=self.num_data, families=further, seed=self.seed)
        if self.json:
            _print_json(gaps.summary())
            return
        print(gaps)
        print("Seconds: " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in gaps.seconds.items()))
        print(f"Written to {self.run}: results.nc, figures/gaps.png, figures/gap_histogram.png.")


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Fit PCA, autoencoder, probabilistic PCA, factor analysis, linear VAE and VAE, and compare them on the test split.

    Example: pyro-vae compare --data digits --num-latents 8 --out runs/compare

    Attributes:
        data: what to fit, in its own units; without --data.binarize every value is a real number.
        num_latents: D, size of the latent vector or code.
        out: folder to write, with table and picture; it must not hold a run yet.
        training: of the networks.
        hidden: widths of the hidden layers of autoencoder and VAE.
        num_data: test datapoints to measure, the first ones; all by default.
        seed: of initial weights, training and draws.
        json: print the summary as JSON alone on standard output.
    """

    data: DataOptions = DataOptions()
    num_latents: int = 8
    out: Path | None = None
    training: TrainingOptions = TrainingOptions(**vars(TRAINING))
    hidden: tuple[int, ...] = (128, 128)
    num_data: int | None = None
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Compare."""
        if self.num_data is not None and self.num_data < 1:
            raise ValueError(f"--num-data: expected a positive number of datapoints; got {self.num_data}.")
        with contextlib.nullcontext() if self.out is None else new_folder(self.out) as folder:
            comparison = compare(
                load(**self.data.load_arguments()),
                self.num_latents,
                training=self.training,
                hidden=self.hidden,
                num_data=self.num_data,
                seed=self.seed,
            )
            summary = comparison.summary()
            if folder is not None:
                config = {"command": "compare", "data": {"load": self.data.load_arguments()}, **summary["settings"]}
                (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
                (folder / "compare.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
                save(plots.plot_comparison(comparison)[0], folder / "compare.png")
        if self.json:
            _print_json(summary)
            return
        print(comparison)
        if self.out is not None:
            print(f"Written to {self.out}: compare.json, compare.png.")


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Fit real digits with and without amortization, measure the gaps of both, and draw them.

    Attributes:
        out: folder to write; a run that is there is replaced.
        seed: of everything but the data.
        json: print the summary as JSON alone on standard output.
    """

    out: Path = Path("runs/demo")
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False

    def __call__(self) -> None:
        """Demonstrate."""
        demo = run_demo(self.out, seed=self.seed)
        if self.json:
            _print_json(demo.summary())
            return
        print(table(demo))
        print()
        print(f"Written to {self.out}: the runs svi and em, figures/, gaps.json.")
        print(f"Next: pyro-vae gaps {self.out}/svi --families full-covariance, or pyro-vae fit --help")


Command = (
    Annotated[FitCommand, tyro.conf.subcommand(name="fit")]
    | Annotated[GapsCommand, tyro.conf.subcommand(name="gaps")]
    | Annotated[CompareCommand, tyro.conf.subcommand(name="compare")]
    | Annotated[DemoCommand, tyro.conf.subcommand(name="demo")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what went wrong is one line on standard error.

    Args:
        arguments: words of the command line; by default those of the process.

    Returns:
        The exit code: 0, or 2 where the input was wrong.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        print(f"pyro-vae {__version__}")
        return 0
    try:
        _parse(words)()
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"pyro-vae: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyro-vae: interrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


def _parse(words: list[str]) -> FitCommand | GapsCommand | CompareCommand | DemoCommand:
    said = io.StringIO()
    try:
        # tyro draws its errors as boxes of several lines.
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Command,  # type: ignore[arg-type]
                prog="pyro-vae",
                description="Variational autoencoders as Pyro programs, and what amortization costs them.",
                args=words,
                config=(tyro.conf.CascadeSubcommandArgs,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_one_line(said.getvalue())) from stop


def _one_line(box: str) -> str:
    """A box of tyro's as one line: what is wrong, without the frame and the argument's whole help."""
    rule = "──"
    first = box.split(f"│ {rule}")[0] if f"│ {rule}" in box else box
    rest = box.split(f"│ {rule}")[1:]
    lines = [line.strip("│╭╰╮╯─ ") for line in first.splitlines()[1:]]
    text = " ".join(line for line in lines if line).replace("__tyro-dummy-inner__.", "--")
    known = next((part for part in rest if "Available subcommands" in part), "")
    choices = " ".join(line.strip("│╭╰╮╯─ ") for line in known.splitlines())
    return f"{text.rstrip('.')}.{' ' + choices.strip() + '.' if choices else ''} See --help."


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, indent=2, allow_nan=False, default=str))
