"""Where a fit's bare parameters start: at the program's initial values, or at what an earlier fit left in the store."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pyro
import torch
from pyro import poutine
from pyro.params import param_store
from pyro.params.param_store import StateDict
from torch import Tensor

from inference.isolation import InitParams, eval_mode, private_store
from inference.noise import own_random_state
from inference.resuming import digest

__all__ = ["FitStore", "fit_store", "require_init_params"]


def require_init_params(init_params: object) -> None:
    """Refuse a word that names no start.

    Raises:
        ValueError: it is neither "program" nor "store".
    """
    if init_params not in get_args(InitParams):
        raise ValueError(
            f"init_params: expected 'program' (the initial values in the program) or 'store' (those of an earlier fit "
            f"in Pyro's parameter store); got {init_params!r}."
        )


class FitStore:
    """The parameter store of one fit, and which of its bare sites started at values of the caller's store.

    Args:
        init_params: where the sites that the fit trains start.
        outer: the caller's bare sites.
    """

    def __init__(self, init_params: InitParams, outer: StateDict) -> None:
        self.init_params = init_params
        self.outer = outer
        self.read: dict[str, Tensor] = {}
        self.started: set[str] = set()

    def hold(self, program: Callable[..., Any] | None, x: Tensor, *, besides: Callable[..., Any] | None = None) -> None:
        """Take from the caller's store the sites of a program that this fit holds still, as a measurement does.

        Args:
            program: Pyro model or guide whose parameters are not trained.
            x: (B, P) a few datapoints to run it on.
            besides: what is trained; sites that it has too start where it says.
        """
        if program is None:
            return
        trained = set() if besides is None else set(_param_sites(besides, x, self.outer))
        # Made here where the store holds none, so that the same call draws the same numbers when it does.
        sites = _param_sites(program, x, self.outer)
        held = {name: site for name, site in sites.items() if name not in trained and "$$$" not in name}
        self.read = {name: value.detach() for name, (value, _) in held.items() if name in self.outer["params"]}
        pyro.get_param_store().set_state(
            {
                "params": {name: value for name, (value, _) in held.items()},
                "constraints": {name: constraint for name, (_, constraint) in held.items()},
            }
        )

    @contextmanager
    def first_runs(self, model: Callable[..., Any], guide: Callable[..., Any] | None, x: Tensor) -> Iterator[None]:
        """Around the first runs of the programs, which make their parameters.

        Raises:
            ValueError: a site has no initial value, or one that does not go together with what the store holds.
        """
        if self.init_params == "store":
            for program in (model, guide):
                if program is not None and self.outer["params"]:
                    self._require_alike(program, x)
        try:
            yield
        except KeyError as error:
            name = error.args[0] if error.args else None
            if traceback.extract_tb(error.__traceback__)[-1].filename != param_store.__file__:
                raise
            how = (
                "and a fit starts at the program's own values. Give it one, or go on from the value in Pyro's "
                "parameter store: init_params='store'."
                if self.init_params == "program"
                else "and Pyro's parameter store holds none. Give it one."
            )
            raise ValueError(
                f"site '{name}': expected a pyro.param with an initial value, pyro.param('{name}', value); it has "
                f"none, {how}"
            ) from error

    def settings(self) -> dict[str, Any]:
        """What a record says of the start."""
        return {
            "init_params": self.init_params,
            **({"params_from_store": sorted(self.started)} if self.started else {}),
            **({"params_held_from_store": sorted(self.read)} if self.read else {}),
        }

    def identity(self) -> dict[str, Any]:
        """What has to be the same for a fit to be gone on with; nothing where all starts at the program."""
        return {
            **({"init_params": self.init_params} if self.init_params != "program" else {}),
            **({"params held": digest(*(self.read[name] for name in sorted(self.read)))} if self.read else {}),
        }

    def _require_alike(self, program: Callable[..., Any], x: Tensor) -> None:
        self.started |= set(_param_sites(program, x, self.outer)) & set(self.outer["params"])
        for name, (value, constraint) in _param_sites(program, x, {"params": {}, "constraints": {}}).items():
            if name not in self.outer["params"]:
                continue
            held = self.outer["params"][name], self.outer["constraints"][name]
            ours = (tuple(value.shape), repr(constraint))
            theirs = (tuple(held[0].shape), repr(held[1]))
            if ours != theirs:
                raise ValueError(
                    f"init_params: expected the store to hold '{name}' of shape {ours[0]} under {ours[1]}, as the "
                    f"program makes it; got shape {theirs[0]} under {theirs[1]}. Leave init_params out, so that the "
                    "fit starts at the program's own value."
                )


@contextmanager
def fit_store(
    model: Callable[..., Any], guide: Callable[..., Any] | None, *, init_params: InitParams
) -> Iterator[FitStore]:
    """The parameter store of a fit; its bare sites are handed to the caller's store when the fit has ended."""
    with private_store(model, guide, keep=True, init_params=init_params) as outer:
        yield FitStore(init_params, outer)


def _param_sites(program: Callable[..., Any], x: Tensor, start: StateDict) -> dict[str, tuple[Tensor, Any]]:
    """The unconstrained value and the constraint of each `param` site of one run; none where it cannot be run so."""
    store = pyro.get_param_store()
    # A copy: Pyro writes what is in the store at the end into the state that it is given.
    start = {"params": {**start["params"]}, "constraints": {**start["constraints"]}}
    with store.scope(start), own_random_state(), eval_mode(program), poutine.block(), torch.no_grad():
        try:
            with pyro.validation_enabled(is_validate=False), poutine.trace(param_only=True) as capture:
                program(x)
        except Exception:  # noqa: BLE001 (what is wrong with the program is said where it runs in earnest)
            return {}
        state = store.get_state()
    return {
        name: (state["params"][name], state["constraints"][name])
        for name, site in capture.trace.nodes.items()
        if site["type"] == "param" and name in state["params"]
    }
