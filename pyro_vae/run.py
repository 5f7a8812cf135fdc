"""A run: a folder with everything a fit left, written whole or not at all, and opened again."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import xarray as xr

from inference import Fit, Gaps, Local, Resume, Training
from inference.checkpoint import atomic_write, load_checkpoint, save_checkpoint
from inference.draws import gaps_from_datatree, load_datatree, save_datatree
from inference.guides import Amortized
from inference.results.html import html_table
from inference.results.summary import one_line
from pyro_vae.configuration import as_configuration, dtype_in, parameters_of, read_config, training_from, version_of
from pyro_vae.data import NAMED, Dataset, NewRows, Preprocessing, Standardization, load, located, silent
from pyro_vae.encoding import to_json
from pyro_vae.engines import ENGINES
from pyro_vae.folders import CHECKPOINT, CONFIG, METRICS, RESULTS, runs_in
from pyro_vae.new_data import Encoded, Estimator, Imputed, Scores, encode, impute, score
from pyro_vae.parts import Parts, Sizes
from pyro_vae.vae import VAE

__all__ = ["Run", "open_run", "save_run"]

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
        with as_configuration(self.folder / CONFIG):
            asked = dict(self.config["data"]["load"])
            try:
                # The fit has described their scales.
                with silent():
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

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How its data were read, for rows that were not among them: as its configuration keeps it.

        Of a run whose configuration lacks it, the data are loaded again.

        Raises:
            FileNotFoundError: they are needed, and not there any more.
            ValueError: the configuration is damaged, or they are not the same data any more.
        """
        with as_configuration(self.folder / CONFIG):
            if (kept := self.config["data"].get("preprocessing")) is not None:
                return Preprocessing.from_config(kept)
        return Preprocessing.of(self.dataset)

    def read_rows(
        self,
        x: Any,
        *,
        key: str | None = None,
        id_column: str | None = None,
        separator: str | None = None,
        decimal: str | None = None,
    ) -> NewRows:  # noqa: ANN401
        """Read new rows as those of the fit were read: what `score`, `encode` and `impute` begin with.

        Args:
            x: a path that ends in .csv, .parquet, .npy or .npz; a tensor, an array or a pandas DataFrame, (N, P) or
                images, in the unit of the fit's file; or a `Split` of `dataset`.
            key: array of a .npz file that holds the rows; None: as in the fit's file, else x.
            id_column: column of a table that identifies its rows; it is copied into what is written.
            separator: of a .csv file, the character between columns; None: as in the fit's file.
            decimal: of a .csv file, the decimal mark, "." or ","; None: as in the fit's file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the rows lack a column, have another shape, or hold values that the fit's data could not, or
                that the likelihood does not allow; the message names row and column.
        """
        likelihood = self.vae.likelihood
        if key is None and isinstance(x, str | os.PathLike) and os.fspath(x).endswith(".npz"):
            key = self.config["data"].get("load", {}).get("key")
        if isinstance(x, str | os.PathLike) and os.fspath(x).endswith(".csv"):
            fitted = self.config["data"].get("load", {})
            separator = fitted.get("separator") if separator is None else separator
            decimal = fitted.get("decimal") if decimal is None else decimal
        rows = self.preprocessing.read(
            x,
            dtype=next(self.vae.parameters()).dtype,
            allow_missing=likelihood.mask,
            key=key,
            id_column=id_column,
            separator=separator,
            decimal=decimal,
        )
        right = likelihood.support.check(rows.x) | rows.x.isnan()
        rows.require(right, f"{likelihood.expected}, for {likelihood!r}", "Correct the value, or drop the row.")
        likelihood.check(rows.x)
        return rows

    def score(
        self,
        x: Any,  # noqa: ANN401
        *,
        gaps: bool = False,
        estimator: Estimator = "iwae",
        num_draws: int = 5000,
        num_temperatures: int = 100,
        key: str | None = None,
        id_column: str | None = None,
        separator: str | None = None,
        decimal: str | None = None,
        resume: Resume | None = None,
        seed: int = 0,
    ) -> Scores:
        """Estimate log p(x) of each row, with its error and with what says how far to trust it.

        Args:
            x: rows, as `read_rows` takes them; labels need not be there.
            gaps: whether log p(x) - L[q] is split into what the encoder and the family cost.
            estimator: "iwae" or "ais"; with `gaps` both are run, and the one with the larger mean is taken.
            num_draws: draws of importance sampling.
            num_temperatures: temperatures of annealing.
            key: array of a .npz file that holds the rows; None: x.
            id_column: column of a table that identifies its rows.
            separator: of a .csv file, the character between columns; None: as in the fit's file.
            decimal: of a .csv file, the decimal mark, "." or ","; None: as in the fit's file.
            resume: where what is done is kept, so that the same call goes on after it was killed.
            seed: of all draws. A row's numbers depend on the seed, its values and its number; in another order they
                differ by their Monte Carlo error.

        Returns:
            Nats in the unit of the fit's file, one entry a row in the order of the rows.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the rows are refused, or `gaps` were asked of a run without an encoder.
        """
        rows = self.read_rows(x, key=key, id_column=id_column, separator=separator, decimal=decimal)
        return score(
            self.vae,
            rows,
            gaps=gaps,
            estimator=estimator,
            num_draws=num_draws,
            num_temperatures=num_temperatures,
            resume=resume,
            seed=seed,
        )

    def encode(
        self,
        x: Any,  # noqa: ANN401
        *,
        num_draws: int | None = None,
        key: str | None = None,
        id_column: str | None = None,
        separator: str | None = None,
        decimal: str | None = None,
        seed: int = 0,
    ) -> Encoded:
        """Mean and standard deviation of q(z | x) of each row, and draws of it where they are asked for.

        Of a run without an encoder, q is the best member of its family, found by a search for each row.

        Args:
            x: rows, as `read_rows` takes them; labels need not be there.
            num_draws: draws of q that are kept for each row; None: none.
            key: array of a .npz file that holds the rows; None: x.
            id_column: column of a table that identifies its rows.
            separator: of a .csv file, the character between columns; None: as in the fit's file.
            decimal: of a .csv file, the decimal mark, "." or ","; None: as in the fit's file.
            seed: of the draws and of the search.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the rows are refused, or a number is out of range.
        """
        return encode(
            self.vae,
            self.read_rows(x, key=key, id_column=id_column, separator=separator, decimal=decimal),
            num_draws=num_draws,
            seed=seed,
        )

    def impute(
        self,
        x: Any,  # noqa: ANN401
        *,
        num_draws: int | None = None,
        num_importance_draws: int = 5000,
        key: str | None = None,
        id_column: str | None = None,
        separator: str | None = None,
        decimal: str | None = None,
        seed: int = 0,
    ) -> Imputed:
        """Fill in the values that were not observed: posterior mean and sd given the observed ones, or draws.

        Args:
            x: rows, as `read_rows` takes them, in which NaN (in a table, an empty cell) is a value that was not
                observed.
            num_draws: draws of the missing values that are kept for each row; None: none.
            num_importance_draws: importance draws of z for each row.
            key: array of a .npz file that holds the rows; None: x.
            id_column: column of a table that identifies its rows.
            separator: of a .csv file, the character between columns; None: as in the fit's file.
            decimal: of a .csv file, the decimal mark, "." or ","; None: as in the fit's file.
            seed: of all draws.

        Returns:
            Rows in the unit of the fit's file; observed values as they are.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the rows are refused, or the likelihood does not leave out missing values.
        """
        rows = self.read_rows(x, key=key, id_column=id_column, separator=separator, decimal=decimal)
        return impute(self.vae, rows, num_draws=num_draws, num_importance_draws=num_importance_draws, seed=seed)

    def of(self, data: Dataset) -> Run:
        """This run with the data that it was fitted to, so that they need not be loaded again."""
        vars(self)["dataset"] = data
        return self

    def at(self, folder: Path) -> Run:
        """This run, whose folder was moved."""
        moved = dataclasses.replace(self, folder=folder)
        return moved.of(self.dataset) if "dataset" in vars(self) else moved

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
        own = {"prior": self.vae.prior, "decoder": self.vae.decoder, "likelihood": self.vae.likelihood}
        with parameters_of(dtype_in(self.config)):
            return VAE(**{**self.parts.build(Sizes(**self.config["sizes"])), **own}).guide

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


def save_run(
    folder: Path,
    *,
    config: Mapping[str, Any],
    vae: VAE,
    fit: Fit,
    terms: Mapping[int, Mapping[str, float]] = MappingProxyType({}),
) -> Run:
    """Write what a fit left into an existing folder: configuration, metrics and checkpoint.

    Args:
        folder: the folder, as `new_folder` gives it.
        config: what was asked for; versions are added.
        vae: the fitted model.
        fit: its record.
        terms: of the epochs that have some, further numbers for their lines of the metrics.

    Returns:
        The run, on the CPU and in eval mode, as it would be opened.
    """
    resolved = {
        **config,
        "versions": {name: version_of(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(resolved, indent=2) + "\n")
    with atomic_write(folder / METRICS) as temporary, temporary.open("w") as lines:
        columns = {name: values.tolist() for name, values in fit.history.items()}
        for epoch, row in enumerate(zip(*columns.values(), strict=True)):
            numbers = dict(zip(columns, row, strict=True)) | dict(terms.get(epoch + 1, {}))
            lines.write(to_json({"epoch": epoch + 1, **numbers}, indent=None) + "\n")
    content = _content(vae, fit)
    save_checkpoint(folder / CHECKPOINT, content)
    on_cpu: dict[str, Any] = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in content["fit"].items()
    }
    return Run(folder, json.loads(json.dumps(resolved)), vae.cpu().eval(), Fit(**on_cpu))


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
    with as_configuration(folder / CONFIG):
        parts, sizes = Parts.from_config(config["parts"]), Sizes(**config["sizes"])
    try:
        content = load_checkpoint(folder / CHECKPOINT)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: expected {CHECKPOINT}, the weights of the run, in its folder; there is none. Fit again: "
            f"pyro-vae {'fit' if config.get('engine') == 'svi' else 'em'} --config {folder / CONFIG}."
        ) from error
    if not {"vae", "has_guide", "fit"} <= set(content) or not isinstance(content["vae"], Mapping):
        raise ValueError(
            f"{folder / CHECKPOINT}: expected the weights and the record of a run; it holds others. Fit again."
        )
    with torch.random.fork_rng(), parameters_of(dtype_in(config)):
        modules = parts.build(sizes)
        # Variational EM keeps the family of its rows beside that of a guide fitted afterwards.
        later = (
            VAE(**parts.build(sizes)).guide if config.get("engine") in ("em", "mcem") and content["has_guide"] else None
        )
    if not content["has_guide"] or later is not None:
        modules["encoder"] = None
    with parameters_of(dtype_in(config)):
        vae = VAE(**modules, standardization=_standardization_in(content["vae"]))
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


def _standardization_in(weights: Mapping[str, Any]) -> Standardization | None:
    """The map that a checkpoint holds; None where the data were not standardized, or an earlier version wrote it."""
    location, scale = weights.get("units.location"), weights.get("units.scale")
    return None if location is None or scale is None else Standardization(location, scale)


def _content(vae: VAE, fit: Fit) -> dict[str, Any]:
    return {
        "vae": vae.state_dict(),
        "has_guide": vae.guide is not None,
        "fit": {
            **{field.name: getattr(fit, field.name) for field in dataclasses.fields(fit)},
            "settings": json.loads(json.dumps(dict(fit.settings), default=str)),
        },
    }
