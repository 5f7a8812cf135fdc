"""What a run was asked for: its `config.json`, read again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import inference.training
from inference import Training
from pyro_vae.data import dtype_of
from pyro_vae.folders import no_run

__all__ = ["as_configuration", "dtype_in", "parameters_of", "read_config", "training_from", "version_of"]


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
        raise FileNotFoundError(no_run(path.parent, path.name)) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON; it cannot be read ({error}). Fit again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a run's configuration; it holds a {type(config).__name__}. Fit again.")
    with as_configuration(path):
        written, here = str(config.get("versions", {}).get("pyro-vae", "0")), version_of("pyro-vae")
    if here != "unknown" and _numbers(written) > _numbers(here):
        raise ValueError(
            f"{path}: it was written by pyro-vae {written}, which is newer than this {here}. Install that version "
            f"(pip install 'pyro-vae>={written}')."
        )
    return config


def training_from(config: Mapping[str, Any]) -> Training:
    """The settings that a run was trained with.

    Args:
        config: the run's configuration.

    Raises:
        ValueError: a setting is missing, or there is none of that name.
    """
    with as_configuration("training"):
        settings = dict(config["training"])
        for name in ("optimizer", "schedule"):
            # JSON has lists for tuples.
            options = {key: tuple(value) if isinstance(value, list) else value for key, value in settings[name].items()}
            settings[name] = getattr(inference.training, str(options.pop("part")))(**options)
        return Training(**settings)


@contextmanager
def as_configuration(where: Path | str) -> Iterator[None]:
    """Read what a configuration must hold; what is missing or unknown in it is said in one line."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        wrong = f"{error} is" if isinstance(error, KeyError) else f"something is ({error})"
        raise ValueError(
            f"{where}: expected a run's configuration; in it {wrong} missing or unknown. Fit again."
        ) from error


@contextmanager
def parameters_of(dtype: torch.dtype) -> Iterator[None]:
    """Make parts, and what they draw, in a floating-point type; torch's own default comes back afterwards.

    The default belongs to the process: other threads that make tensors meanwhile see it, too.

    Args:
        dtype: that of the data.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def dtype_in(config: Mapping[str, Any]) -> torch.dtype:
    """The floating-point type of a run: that which its data were loaded in, else torch's default.

    Args:
        config: the run's configuration.

    Raises:
        ValueError: it names another type than `load` knows.
    """
    return dtype_of(config.get("data", {}).get("load", {}).get("dtype"))


def version_of(package: str) -> str:
    """The version of an installed package, or "unknown".

    Args:
        package: its name in a package index.
    """
    try:
        return version(package)
    except ModuleNotFoundError:
        return "unknown"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())
