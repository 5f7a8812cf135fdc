"""Bad input to the command line: one line that names what was wrong, and an exit code."""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyro_vae.cli import main

__all__ = ["VALUES", "VERBS", "Outcome", "commands", "run"]

# Words and the one line that they must give.
WRONG: dict[str, list[tuple[str, str]]] = {
    "": [
        ("fitt", "expected one of .*; got 'fitt'. Did you mean fit"),
        ("--verson", "expected one of"),
        ("-x", "expected one of"),
    ],
    "fit": [
        ("fit --num-latents 0", "num_latents|num-latents|latent"),
        ("fit --num-latents -3", "latent"),
        ("fit --num-latents two", "num-latents"),
        ("fit --num-latents 2.5", "num-latents"),
        ("fit --num-latents", "num-latents"),
        ("fit --num-latent 2", "Unknown option --num-latent. Did you mean --num-latents"),
        ("fit --data digit", "Did you mean 'digits'"),
        ("fit --data nowhere.npy", "nowhere.npy"),
        ("fit --data nowhere.csv", "nowhere.csv"),
        ("fit --data {nan}", "NaN or infinity in 1 row"),
        ("fit --data {strings}", "expected real numbers"),
        ("fit --data {few}", "expected at least 1 in each"),
        ("fit --data {vector}", "expected rows"),
        ("fit --data {empty}", "at least one value"),
        ("fit --data {broken}", "broken.npy"),
        ("fit --data {reals} likelihood:bernoulli", "expected|likelihood"),
        ("fit --data digits --data.binarize sometimes", "binarize"),
        ("fit --data digits --data.split-seed -1", "split_seed"),
        ("fit --data digits --data.num-test 0", "num_test"),
        ("fit --data digits --data.num-test 9999", "expected at least 1 in each"),
        ("fit --data digits --data.missing drop", "missing"),
        ("fit --data digits --data.key x", "an option of .npz files"),
        ("fit --training.epochs 0", "epochs: expected an integer of at least 1; got 0"),
        ("fit --training.epochs many", "epochs"),
        ("fit --training.epoch 3", "Unknown option --training.epoch. Did you mean --training.epochs"),
        ("fit --training.batch-size 0", "batch_size: expected"),
        ("fit --training.patience 0", "patience: expected"),
        ("fit --training.device cuda:99 --training.epochs 1", "device"),
        ("fit --training.device nowhere --training.epochs 1", "device: expected one that this machine has"),
        ("fit --training.precision float16", "precision"),
        ("fit training.optimizer:adam --training.optimizer.lr -1", "lr: expected a positive step size; got -1"),
        ("fit training.optimizer:adam --training.optimizer.lr nan", "lr: expected a positive step size; got nan"),
        ("fit training.optimizer:adm", "training.optimizer:adam"),
        ("fit prior:normal", "prior:"),
        ("fit prior:student-t --prior.df -1", "df"),
        ("fit prior:student-t --prior.df nan", "df"),
        ("fit likelihood:binomial --likelihood.total-count 0", "total_count|total-count"),
        ("fit likelihood:gaussian --likelihood.scale 0", "scale"),
        ("fit family:low-rank --family.rank 0", "rank: expected"),
        ("fit encoder:mlp --encoder.hidden 0", "hidden"),
        ("fit encoder:mlp --encoder.activation rleu", "activation"),
        ("fit encoder:conv-encoder likelihood:gaussian --data {reals}", "image_shape|image shape"),
        ("fit --prior.df 3", "Unknown option --prior.df"),
        ("fit objective:iwae --objective.num-particles 0", "num_particles: expected"),
        ("fit --seed -1", "seed: expected an integer from 0"),
        ("fit --seed one", "seed"),
        ("fit --out {file}", "out.txt"),
        ("fit --config nowhere", "nowhere"),
        ("fit --config", "--config: expected a run's config.json"),
        ("fit --config {file}", "."),
        ("fit extra", "extra"),
    ],
    "em": [
        ("em --training.local-steps 0", "local_steps: expected"),
        ("em --training.local-lr nan", "local_lr: expected a positive step size; got nan"),
        ("em --training.num-particles 3", "num_particles: expected an even number"),
        ("em --data digits --data.binarize dynamic --training.epochs 1", "fixed x|dynamic"),
        ("em --restart sometimes", "restart"),
        ("em --num-latents 0", "latent"),
    ],
    "gaps": [
        ("gaps", "."),
        ("gaps nowhere", "nowhere"),
        ("gaps {folder}", "."),
        ("gaps nowhere --num-data 0", "num-data: expected a positive number; got 0|nowhere"),
        ("gaps nowhere --split all", "split"),
        ("gaps nowhere --families full", "famil|nowhere"),
    ],
    "evaluate": [
        ("evaluate", "."),
        ("evaluate nowhere", "nowhere"),
        ("evaluate nowhere --data {reals}", "own splits are measured. Rows of a file: pyro-vae score RUN FILE"),
        ("evaluate nowhere --num-data -1", "num-data: expected a positive number; got -1"),
        ("evaluate nowhere --estimators", "estimators"),
        ("evaluate nowhere --estimators waic", "estimators|waic"),
    ],
    "score": [
        ("score", "."),
        ("score nowhere", "PATH|file|required|."),
        ("score nowhere {reals}", "nowhere"),
        ("score {folder} {reals}", "."),
        ("score nowhere {reals} --estimator waic", "estimator|waic"),
        ("score nowhere {reals} --num-draw 3", "Unknown option|nowhere"),
    ],
    "encode": [
        ("encode", "."),
        ("encode nowhere {reals}", "nowhere"),
        ("encode nowhere {reals} --draws 0", "draws: expected a positive number; got 0"),
        ("encode nowhere {reals} --draws some", "draws"),
    ],
    "impute": [
        ("impute", "."),
        ("impute nowhere {nan}", "nowhere"),
        ("impute nowhere {nan} --draws -1", "draws: expected a positive number; got -1"),
    ],
    "generate": [
        ("generate", "."),
        ("generate nowhere", "nowhere"),
        ("generate nowhere --num-draw 3", "Unknown option|nowhere"),
    ],
    "report": [("report", "."), ("report nowhere", "nowhere"), ("report {folder}", "."), ("report {file}", ".")],
    "compare": [
        ("compare --data nowhere.npy", "nowhere.npy"),
        ("compare --num-latents 0", "num_latents: expected"),
        ("compare --num-latents 64", "num_latents: expected fewer"),
        ("compare --num-data 0", "num-data: expected a positive number"),
        ("compare --hidden 0", "hidden"),
    ],
    "study": [
        ("study", "."),
        ("study nowhere.yaml", "nowhere.yaml"),
        ("study {file}", "out.txt|expected"),
        ("study {yaml}", "."),
        ("study {yaml} --num-jobs 0", "num-jobs: expected a positive number|."),
    ],
    "resume": [("resume", "."), ("resume nowhere", "nothing was begun there"), ("resume {folder}", ".")],
    "list": [("list colours", "."), ("list --verbose", "Unknown option")],
    "completion": [("completion", "."), ("completion fish", "bash|zsh")],
    "demo": [("demo --seed -1", "seed: expected"), ("demo --out {file}", "."), ("demo extra", "extra")],
}

VERBS = (
    "fit",
    "em",
    "gaps",
    "evaluate",
    "score",
    "encode",
    "impute",
    "generate",
    "report",
    "compare",
    "study",
    "resume",
    "list",
    "completion",
    "demo",
)
VALUES = (
    "0",
    "-1",
    "1",
    "3",
    "nan",
    "inf",
    "1e30",
    "-0.5",
    "two",
    "",
    " ",
    "None",
    "[]",
    "--",
    "-",
    "ü",
    "\x00",
    "\n",
    "a" * 300,
)


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def run(words: Sequence[str]) -> Outcome:
    """Run a command in this process, as `pyro-vae` would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(words))
        except SystemExit as stop:  # After a help text.
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def commands() -> Iterator[tuple[str, str]]:
    """A command line with places for files, and what its one line must say."""
    for rows in WRONG.values():
        yield from rows


def files(folder: Path) -> dict[str, str]:
    """The files that the commands name."""
    rows = np.random.default_rng(0).standard_normal((20, 3))
    broken = rows.copy()
    broken[3, 1] = np.nan
    arrays = {
        "reals": rows,
        "nan": broken,
        "strings": np.full((20, 3), "a"),
        "few": rows[:3],
        "vector": rows[:, 0],
        "empty": rows[:0],
    }
    made = {}
    for name, array in arrays.items():
        made[name] = str(folder / f"{name}.npy")
        np.save(made[name], array)
    (folder / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
    (folder / "out.txt").write_text("no folder")
    (folder / "study.yaml").write_text("data: [digits\n")
    (folder / "empty").mkdir()
    return made | {
        "broken": str(folder / "broken.npy"),
        "file": str(folder / "out.txt"),
        "yaml": str(folder / "study.yaml"),
        "folder": str(folder / "empty"),
    }


def refused(outcome: Outcome) -> None:
    """A command that was wrong: exit code 2 and one line, in which no exception shows."""
    assert outcome.code == 2, outcome
    # Of the lines before it the program may say what it does, as that it compiles.
    last = outcome.err.rstrip("\n").splitlines()
    assert len(last) == 1 and last[0].startswith("pyro-vae: "), outcome.err
    assert not re.search(r"Traceback|Error\b.*Error|object at 0x", outcome.err), outcome.err


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        made = files(Path(name))
        for line, message in commands():
            outcome = run([word.format(**made) for word in line.split()])
            try:
                refused(outcome)
                assert re.search(message, outcome.err), "message"
            except AssertionError as error:
                print("##", line, "->", str(error)[:150].replace("\n", " "), "|", outcome.err[:250])
