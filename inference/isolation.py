"""Run a user's Pyro program without leaving a trace: in its parameters, its modules' modes, the parameter store."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import StateDict
from torch import Tensor, nn

from inference.noise import own_random_state

__all__ = [
    "SharesGuide",
    "device_of",
    "eval_mode",
    "frozen",
    "modules_of",
    "private_store",
    "reached_by",
    "sharing_guide",
    "trainable",
]

_DIVIDER = "$$$"  # Pyro writes the parameters of `pyro.module("name", ...)` as "name$$$parameter".
_LIBRARIES = ("pyro", "torch")


def modules_of(*programs: Callable[..., Any] | None) -> list[nn.Module]:
    """The modules that these programs can reach.

    Found are the programs themselves, the objects they are bound to, what they and the functions they call name
    (closures, globals, default arguments), what `functools.partial` and Pyro's handlers wrap, and what lists, tuples,
    dictionaries and attributes of such objects hold.

    Args:
        programs: models and guides; None is passed over.
    """
    return [value for value in reached_by(*programs) if isinstance(value, nn.Module)]


def reached_by(*programs: Callable[..., Any] | None) -> list[object]:
    """What these programs can reach, as `modules_of` says, of every type."""
    seen: dict[int, object] = {}  # Keeps bound methods alive: an id must not be used twice.

    def visit(value: object, *, attributes: bool = True) -> None:
        if id(value) in seen or isinstance(value, Tensor | ModuleType | type):
            return
        seen[id(value)] = value
        if isinstance(value, nn.Module):
            return
        if isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                visit(part)
        elif isinstance(value, MethodType):
            visit(value.__self__)
            visit(value.__func__)
        elif isinstance(value, FunctionType):
            for part in _named_by(value):
                visit(part)
        elif isinstance(value, list | tuple | set):
            for part in value:
                visit(part, attributes=attributes)
        elif isinstance(value, dict):
            # A copy: asking a lazy object for its attributes may add some.
            for part in list(value.values()):
                visit(part, attributes=attributes)
        elif attributes and hasattr(value, "__dict__"):
            # One level: what an object's attributes hold in their turn may be anything, a whole data set for example.
            for part in (*vars(value).values(), vars(type(value)).get("__call__")):
                visit(part, attributes=False)

    for program in programs:
        visit(program)
    return list(seen.values())


def _named_by(function: FunctionType) -> Iterator[object]:
    """What a function's code names: globals (those of inner functions too), closures, defaults."""
    # What a library's functions name is the library's; what they close over, as a decorator does, is the user's.
    library = str(function.__globals__.get("__name__")).partition(".")[0] in _LIBRARIES
    codes = [] if library else [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # A name that is not bound yet.
            continue


@runtime_checkable
class SharesGuide(Protocol):
    """A part of a model that shares weights with the guide, as a prior made from the encoder does."""

    def keep_own_guide(self) -> None:
        """Stop sharing: the model must not move when the guide alone is trained."""
        ...

    def check_cold_start(self) -> None:
        """Refuse to be fitted without the guide."""
        ...


def sharing_guide(*programs: Callable[..., Any] | None) -> list[SharesGuide]:
    """The modules that the programs reach, at any depth, which share weights with a guide."""
    modules = (module for root in modules_of(*programs) for module in root.modules())
    return [module for module in modules if isinstance(module, SharesGuide)]


@contextmanager
def eval_mode(*programs: Callable[..., Any] | None) -> Iterator[None]:
    """Put every module the programs reach into `eval()` inside; restore each submodule's own mode after."""
    modes = {module: module.training for root in modules_of(*programs) for module in root.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def private_store(*programs: Callable[..., Any] | None, keep: bool = False) -> Iterator[None]:
    """Give the programs a parameter store of their own, which starts with the caller's bare `pyro.param` sites.

    Those are trained in place. Parameters of modules live in the modules; registering them leaves nothing behind.

    Args:
        programs: models and guides that run inside.
        keep: whether bare `pyro.param` sites first met inside are handed to the caller's store.
    """

    def bare(state: StateDict, *, besides: StateDict | None = None) -> StateDict:
        owned = {id(weight) for module in modules_of(*programs) for weight in module.parameters()}
        params = {
            name: value
            for name, value in state["params"].items()
            if _DIVIDER not in name and id(value) not in owned and (besides is None or name not in besides["params"])
        }
        return {"params": params, "constraints": {name: state["constraints"][name] for name in params}}

    store = pyro.get_param_store()
    outer = store.get_state()
    with store.scope(bare(outer)):
        yield
        inner = store.get_state()
    if keep:
        # Asked again which are bare: some modules make their parameters when they first run.
        store.set_state(bare(inner, besides=outer))


def trainable(*programs: Callable[..., Any], x: Tensor) -> dict[str, Tensor]:
    """The unconstrained leaves behind the `param` sites of one run of each program, by name.

    Args:
        programs: models and guides; a model runs on its own draws.
        x: (B, P) a minibatch to run them on.
    """
    leaves: dict[str, Tensor] = {}
    for program in programs:
        # In eval mode: running statistics belong to training, and this run trains nothing.
        with eval_mode(program), poutine.block(), poutine.trace(param_only=True) as capture:
            program(x)
        for name, site in capture.trace.nodes.items():
            if site["type"] != "param":
                continue
            leaf = site["value"].unconstrained()  # type: ignore[union-attr]
            if not any(leaf is known for known in leaves.values()):
                leaves[name] = leaf
    return leaves


@contextmanager
def frozen(*programs: Callable[..., Any] | None) -> Iterator[None]:
    """What E-steps and measurements run inside: eval mode, a private parameter store, a random state of their own."""
    with eval_mode(*programs), private_store(*programs), own_random_state():
        yield


def device_of(*programs: Callable[..., Any] | None) -> torch.device:
    """Where the programs' parameters and buffers live; the CPU where they have none."""
    for module in modules_of(*programs):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")
