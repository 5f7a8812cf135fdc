"""A run: a folder with everything a fit left, written whole or not at all, and opened again."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import xarray as xr

import inference.training
from inference import Fit, Gaps, Local, Training
from inference.checkpoint import atomic_write, load_checkpoint, save_checkpoint
from inference.draws import gaps_from_datatree, load_datatree, save_datatree
from inference.guides import Amortized
from inference.results.html import html_table
from inference.results.summary import one_line
from pyro_vae.data import NAMED, Dataset, load, located
from pyro_vae.encoding import to_json
from pyro_vae.engines import ENGINES
from pyro_vae.parts import Parts, Sizes
from pyro_vae.vae import VAE

__all__ = [
    "Run",
    "listed",
    "new_folder",
    "no_folder",
    "open_run",
    "read_config",
    "runs_in",
    "save_run",
    "training_from",
    "unfinished",
]

CONFIG, METRICS, CHECKPOINT, RESULTS, FIGURES = "config.json", "metrics.jsonl", "checkpoint.pt", "results.nc", "figures"
_PACKAGES = ("pyro-vae", "torch", "pyro-ppl", "numpy", "xarray")


@dataclass(frozen=True, eq=False)
class Run:
    """A fitted model with its record, as `open_run` finds it.

    Attributes:
        folder: where it lies.
        config: everything resolved: data, parts, sizes, training, seed, versions.
        vae: the fitted model, in eval mode.
        fit: how the training went.
    """

    folder: Path
    config: Mapping[str, Any]
    vae: VAE
    fit: Fit

    def __repr__(self) -> str:
        """One line."""
        return one_line(
            self,
            folder=repr(str(self.folder)),
            data=repr(self._data),
            engine=self.config.get("engine"),
            fit=repr(self.fit),
        )

    def __str__(self) -> str:
        """Where it lies, what it is made of, and how far its training came."""
        return "\n".join([*(f"{name:<11}{text}" for name, text in self._described().items()), str(self.fit)])

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        rows = [[name, text] for name, text in self._described().items()]
        return html_table(["run", str(self.folder)], rows[1:], str(self.fit).split("\n"))

    @property
    def _data(self) -> str:
        # A record in print refuses nothing: `open_run` takes a configuration that lacks what opening does not need.
        return str(self.config.get("data", {}).get("load", {}).get("name_or_path", "unknown"))

    def _described(self) -> dict[str, str]:
        return {
            "run": str(self.folder),
            "data": self._data,
            "engine": ENGINES.get(engine := str(self.config.get("engine", "unknown")), engine),
            **{kind: chosen["part"] for kind, chosen in self.config["parts"].items()},
            "latents": str(self.config["sizes"]["num_latents"]),
        }

    @cached_property
    def dataset(self) -> Dataset:
        """The data the run was fitted to, loaded again and compared by fingerprint.

        Raises:
            FileNotFoundError: they are not there any more.
            ValueError: they are not the same data any more.
        """
        with _as_configuration(self.folder / CONFIG):
            asked = dict(self.config["data"]["load"])
            try:
                data = load(**asked)
            except FileNotFoundError as error:
                if asked["name_or_path"] in NAMED:
                    raise
                raise FileNotFoundError(
                    f"{self.folder}: expected the data that the run was fitted to in {located(asked['name_or_path'])}; "
                    "there is no such file. Put it back, or write where it lies now into "
                    f"{self.folder / CONFIG}, as name_or_path."
                ) from error
        if data.fingerprint != self.config["data"]["fingerprint"]:
            fitted = self.config["data"]["fingerprint"]
            raise ValueError(
                f"{self.folder}: the run was fitted to data with fingerprint {fitted[:12]}; "
                f"{data.name!r} now has {data.fingerprint[:12]}. Restore the data file, or fit again."
            )
        return data

    @property
    def engine(self) -> str:
        """Which engine fitted it, by the name in `pyro_vae.engines`."""
        return self.config["engine"]

    @property
    def results(self) -> xr.DataTree:
        """The draws and gaps of `results.nc`, in memory.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged.
        """
        if not (self.folder / RESULTS).is_file():
            raise FileNotFoundError(
                f"{self.folder}: expected {RESULTS}, draws and gaps, in its folder; there is none. Make it by pyro-vae "
                f"gaps {self.folder}."
            )
        try:
            return load_datatree(self.folder / RESULTS)
        except ValueError as error:
            raise ValueError(f"{error} Delete it, and measure again: pyro-vae gaps {self.folder}.") from error

    @property
    def gaps(self) -> Gaps | None:
        """What amortization cost, or None where it has not been measured.

        Raises:
            ValueError: `results.nc` is damaged, or holds something else.
        """
        if not (self.folder / RESULTS).is_file():
            return None
        tree = self.results
        try:
            return gaps_from_datatree(tree)
        except ValueError as error:
            raise ValueError(f"{self.folder / RESULTS}: {error} By pyro-vae gaps {self.folder}.") from error

    @property
    def parts(self) -> Parts:
        """The design it was built from."""
        return Parts.from_config(self.config["parts"])

    @property
    def training(self) -> Training:
        """The settings it was trained with."""
        return training_from(self.config)

    @property
    def local_guide(self) -> Local | None:
        """The guide of the training data that variational EM ended with, or None."""
        if self.fit.params is None or self.vae.local_family is None:
            return None
        return Local(self.vae.local_family, self.fit.params)

    def new_guide(self) -> Amortized | None:
        """An encoder of the run's own design with fresh weights, as a guide of a model fitted without one."""
        modules = self.parts.build(Sizes(**self.config["sizes"]))
        return VAE(
            **{**modules, "prior": self.vae.prior, "decoder": self.vae.decoder, "likelihood": self.vae.likelihood}
        ).guide

    def require_writable(self) -> None:
        """Refuse a folder that takes no results, before the work that they come from.

        Raises:
            ValueError: it cannot be written to.
        """
        if not os.access(self.folder, os.W_OK):
            raise ValueError(
                f"{self.folder}: expected a run folder that can be written to, since results go there; it cannot. Copy "
                "it to where you may write, or change its permissions."
            )

    def save_guide(self) -> None:
        """Write the checkpoint again, with the guide the model has now."""
        save_checkpoint(self.folder / CHECKPOINT, _content(self.vae, self.fit))

    def save_results(self, tree: xr.DataTree) -> None:
        """Replace `results.nc`."""
        save_datatree(tree, self.folder / RESULTS)


def unfinished(out: Path) -> Path:
    """Where the state of a fit is that has not become a run yet, beside the folder that it is going to fill.

    Args:
        out: that folder.
    """
    return out.parent / f"{out.name}.unfinished"


def training_from(config: Mapping[str, Any]) -> Training:
    """The settings that a run was trained with.

    Args:
        config: the run's configuration.

    Raises:
        ValueError: a setting is missing, or there is none of that name.
    """
    with _as_configuration("training"):
        settings = dict(config["training"])
        for name in ("optimizer", "schedule"):
            # JSON has lists for tuples.
            options = {key: tuple(value) if isinstance(value, list) else value for key, value in settings[name].items()}
            settings[name] = getattr(inference.training, str(options.pop("part")))(**options)
        return Training(**settings)


@contextmanager
def _as_configuration(where: Path | str) -> Iterator[None]:
    """Read what a configuration must hold; what is missing or unknown in it is said in one line."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        wrong = f"{error} is" if isinstance(error, KeyError) else f"something is ({error})"
        raise ValueError(
            f"{where}: expected a run's configuration; in it {wrong} missing or unknown. Fit again."
        ) from error


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill that becomes `out` when the block ends well, and vanishes when it does not.

    Args:
        out: where the run shall lie; its parents are made. Of a link it is the folder that it leads to.
        replace: whether a run that is there is replaced; it stays until the new one is complete.

    Raises:
        ValueError: `out` holds a run already, or other files, or is a file or the folder one is in.
    """
    if Path.cwd().is_relative_to(out.resolve()):
        # It is put in place whole, which would leave a shell in a folder that is gone.
        raise ValueError(
            f"--out {out}: expected a folder to make; you are in it. Name one below, such as {out / 'run'}."
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder; it is a file. Choose another.")
    if out.is_dir() and any(out.iterdir()):
        is_run = (out / CONFIG).is_file()
        if not is_run:
            raise ValueError(f"--out {out}: expected an empty or new folder; it holds other files. Choose another.")
        if not replace:
            raise ValueError(
                f"--out {out}: the folder already holds a run; nothing was touched. Choose another, or --overwrite."
            )
    try:
        place = out.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        # Not by mkdtemp, which makes folders for their owner alone: who may read a run is for the umask to say.
        partial = place.parent / f".{place.name}.{secrets.token_hex(4)}"
        partial.mkdir()
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}). Choose another folder.") from error
    try:
        yield partial
        if not place.is_dir():
            os.replace(partial, place)
            return
        # The old one is put aside, not removed, until the new one is there.
        old = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        os.replace(place, old)
        try:
            os.replace(partial, place)
        except BaseException:
            os.replace(old, place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_run(
    folder: Path,
    *,
    config: Mapping[str, Any],
    vae: VAE,
    fit: Fit,
    terms: Mapping[int, Mapping[str, float]] = MappingProxyType({}),
) -> None:
    """Write what a fit left into an existing folder: configuration, metrics and checkpoint.

    Args:
        folder: the folder, as `new_folder` gives it.
        config: what was asked for; versions are added.
        vae: the fitted model.
        fit: its record.
        terms: of the epochs that have some, further numbers for their lines of the metrics.
    """
    resolved = {
        **config,
        "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(resolved, indent=2) + "\n")
    with atomic_write(folder / METRICS) as temporary, temporary.open("w") as lines:
        columns = {name: values.tolist() for name, values in fit.history.items()}
        for epoch, row in enumerate(zip(*columns.values(), strict=True)):
            numbers = dict(zip(columns, row, strict=True)) | dict(terms.get(epoch + 1, {}))
            lines.write(to_json({"epoch": epoch + 1, **numbers}, indent=None) + "\n")
    save_checkpoint(folder / CHECKPOINT, _content(vae, fit))
    (folder / FIGURES).mkdir(exist_ok=True)


def open_run(folder: str | Path) -> Run:
    """Open a run folder.

    Args:
        folder: what `pyro-vae fit --out` wrote.

    Returns:
        The run, its model rebuilt and in eval mode.

    Raises:
        FileNotFoundError: there is no run in that folder.
        ValueError: a file of it is damaged.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    if config.get("command", "fit") != "fit":
        runs = ", ".join(map(str, runs_in(folder)))
        raise ValueError(
            f"{folder}: expected a run folder; pyro-vae {config['command']} wrote it. "
            + (f"The runs in it: {runs}." if runs else "It keeps no run.")
        )
    with _as_configuration(folder / CONFIG):
        parts, sizes = Parts.from_config(config["parts"]), Sizes(**config["sizes"])
    try:
        content = load_checkpoint(folder / CHECKPOINT)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: expected {CHECKPOINT}, the weights of the run, in its folder; there is none. Fit again: "
            f"pyro-vae {'fit' if config.get('engine') == 'svi' else 'em'} --config {folder / CONFIG}."
        ) from error
    if not {"vae", "has_guide", "fit"} <= set(content):
        raise ValueError(
            f"{folder / CHECKPOINT}: expected the weights and the record of a run; it holds others. Fit again."
        )
    with torch.random.fork_rng():
        modules = parts.build(sizes)
        # Variational EM keeps the family of its rows beside that of a guide fitted afterwards.
        later = (
            VAE(**parts.build(sizes)).guide if config.get("engine") in ("em", "mcem") and content["has_guide"] else None
        )
    if not content["has_guide"] or later is not None:
        modules["encoder"] = None
    vae = VAE(**modules)
    if later is not None:
        vae.guide = later
    try:
        vae.load_state_dict(content["vae"])
        fit = Fit(**content["fit"])
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{folder / CHECKPOINT}: expected the weights of the parts in {CONFIG}, and the record of a fit; they do "
            "not fit. Fit again."
        ) from error
    return Run(folder, config, vae.eval(), fit)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a run.

    Args:
        path: its config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one, or a newer version wrote it.
    """
    try:
        config = json.loads(path.read_text())
    except NotADirectoryError as error:
        raise ValueError(
            f"{path.parent}: expected a run folder; it is a file. Name the folder that it lies in."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(_no_run(path.parent, path.name)) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON; it cannot be read ({error}). Fit again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a run's configuration; it holds a {type(config).__name__}. Fit again.")
    with _as_configuration(path):
        written, here = str(config.get("versions", {}).get("pyro-vae", "0")), _version("pyro-vae")
    if here != "unknown" and _numbers(written) > _numbers(here):
        raise ValueError(
            f"{path}: it was written by pyro-vae {written}, which is newer than this {here}. Install that version "
            f"(pip install 'pyro-vae>={written}')."
        )
    return config


def runs_in(folder: Path) -> list[Path]:
    """The runs that lie side by side in a folder.

    Args:
        folder: the one above them.
    """
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))


def listed(runs: Sequence[Path]) -> str:
    """Runs by their names, a few of many.

    Example:
        >>> listed([Path("runs/mine"), Path("runs/x5")])
        'the runs mine, x5'
    """
    names = ", ".join(run.name for run in runs[:5])
    if len(runs) == 1:
        return f"the run {names}"
    return f"the runs {names}" + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")


def no_folder(folder: Path) -> str:
    """What to say of a folder that is not there: where it was looked for, which tells of a wrong working directory.

    Args:
        folder: as it was given.
    """
    return f"there is no folder {os.path.abspath(folder)}. Check the path, and the folder you are in."


def _no_run(folder: Path, name: str) -> str:
    if not folder.is_dir():
        return f"{folder}: expected a run folder; {no_folder(folder)}"
    if runs := runs_in(folder):
        return f"{folder}: expected a run folder; it holds {listed(runs)}. Name one, such as {runs[0]}."
    return (
        f"{folder}: expected a run folder; there is no {name} in it. Make one by `pyro-vae fit --out {folder / 'run'}`."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def _content(vae: VAE, fit: Fit) -> dict[str, Any]:
    return {
        "vae": vae.state_dict(),
        "has_guide": vae.guide is not None,
        "fit": {
            **{field.name: getattr(fit, field.name) for field in dataclasses.fields(fit)},
            "settings": json.loads(json.dumps(dict(fit.settings), default=str)),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "unknown"
