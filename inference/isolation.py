"""Run a user's Pyro program without leaving a trace: in its parameters, its modules' modes, the parameter store."""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import StateDict
from torch import Tensor, nn

from inference.exclusive import exclusively
from inference.noise import own_random_state

__all__ = [
    "InitParams",
    "SharesGuide",
    "device_of",
    "eval_mode",
    "frozen",
    "modules_of",
    "private_store",
    "reached_by",
    "require_finite_parameters",
    "require_program",
    "running",
    "sharing_guide",
    "trainable",
]

InitParams = Literal["program", "store"]

_DIVIDER = "$$$"  # Pyro writes the parameters of `pyro.module("name", ...)` as "name$$$parameter".
_LIBRARIES = ("pyro", "torch")
# What torch says where tensors do not go together; of short memory it says other things.
_MISFIT = re.compile(r"shape|size|dimension|type|device|bool", re.IGNORECASE)


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
@exclusively
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
@exclusively
def private_store(
    *programs: Callable[..., Any] | None, keep: bool = False, init_params: InitParams = "store"
) -> Iterator[StateDict]:
    """Give the programs a parameter store of their own; the bare `pyro.param` sites of the caller's are yielded.

    Parameters of modules live in the modules; registering them leaves nothing behind.

    Args:
        programs: models and guides that run inside.
        keep: whether bare `pyro.param` sites met inside are handed to the caller's store, in the place of those of the
            same name.
        init_params: the store's first content: "store", the caller's bare sites, which are then trained in place;
            "program", none, so that every site starts at the initial value that the program gives it.
    """

    def bare(state: StateDict) -> StateDict:
        owned = _weights(*programs)
        params = {
            name: value for name, value in state["params"].items() if _DIVIDER not in name and id(value) not in owned
        }
        return {"params": params, "constraints": {name: state["constraints"][name] for name in params}}

    store = pyro.get_param_store()
    outer = bare(store.get_state())
    # A copy: Pyro writes what is in the store at the end into the state that it is given.
    start: StateDict = {"params": {}, "constraints": {}}
    if init_params == "store":
        start = {"params": {**outer["params"]}, "constraints": {**outer["constraints"]}}
    with store.scope(start), _own_initial_values(*programs):
        yield outer
        inner = store.get_state()
    if keep:
        # Asked again which are bare: some modules make their parameters when they first run.
        kept = bare(inner)
        known = store.get_state()["params"]
        for name, value in kept["params"].items():
            if name in known and known[name] is not value:
                del store[name]
        store.set_state(kept)


def _weights(*programs: Callable[..., Any] | None) -> set[int]:
    """The identities of the weights of the modules that the programs reach."""
    return {id(weight) for module in modules_of(*programs) for weight in module.parameters()}


@contextmanager
def _own_initial_values(*programs: Callable[..., Any] | None) -> Iterator[None]:
    """Parameters made inside start at copies of their initial values.

    Pyro takes the tensor that an unconstrained site is given as the parameter itself: training would move a tensor that
    the program names, and the next fit would start where it ended. The weights of modules stay what they are.
    """
    store = pyro.get_param_store()
    before = vars(store).get("setdefault")
    setdefault = store.setdefault

    def own(name: str, value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        is_weight = isinstance(value, nn.Parameter) and (_DIVIDER in name or id(value) in _weights(*programs))
        return value if is_weight else value.detach().clone()

    def with_own(name: str, value: object, *rest: object) -> Tensor:
        if name not in store:
            value = own(name, value() if callable(value) else value)
        return setdefault(name, value, *rest)  # type: ignore[arg-type]

    vars(store)["setdefault"] = with_own
    try:
        yield
    finally:
        if before is None:
            del vars(store)["setdefault"]
        else:
            vars(store)["setdefault"] = before


def trainable(*programs: Callable[..., Any], x: Tensor) -> dict[str, Tensor]:
    """The unconstrained leaves behind the `param` sites of one run of each program, by name.

    Args:
        programs: models and guides; a model runs on its own draws.
        x: (B, P) a minibatch to run them on.
    """
    leaves: dict[str, Tensor] = {}
    for program in programs:
        # In eval mode: running statistics belong to training, and this run trains nothing.
        with running(program, x), eval_mode(program), poutine.block(), poutine.trace(param_only=True) as capture:
            program(x)
        for name, site in capture.trace.nodes.items():
            if site["type"] != "param":
                continue
            leaf = site["value"].unconstrained()  # type: ignore[union-attr]
            if not any(leaf is known for known in leaves.values()):
                leaves[name] = leaf
    return leaves


@contextmanager
def running(program: Callable[..., Any], x: Tensor, *, name: str = "data") -> Iterator[None]:
    """Around a run of a program on x: where the two do not go together, the error says what x was.

    Torch's own speaks of two matrices deep inside a network. Other errors of the program pass as they are.

    Args:
        program: Pyro model or guide, or a network.
        x: (B, P) what it is run on.
        name: what x is called.

    Raises:
        TypeError: `program` cannot be called.
        ValueError: its networks take data of another type, device or width.
    """
    require_program(program)
    try:
        yield
    except MisfitError as error:
        # Of a network inside, given what was made from x: where x itself is the cause, that is what to say.
        if (complaint := _misfit(program, x)) is None:
            raise
        raise MisfitError(f"{name}: {complaint}.") from error
    except RuntimeError as error:
        require_finite_parameters(program)
        said = str(error).partition("\n")[0]
        if isinstance(error, NotImplementedError) and not said:
            # The text of torch's own distributions is empty where they lack a method.
            method = traceback.extract_tb(error.__traceback__)[-1].name
            raise NotImplementedError(
                f"{_name(program)}: expected distributions and modules that implement all that the program calls; "
                f"`{method}` is not implemented. Choose others, or define it in a subclass."
            ) from error
        if isinstance(error, torch.OutOfMemoryError) or not _MISFIT.search(said):
            raise
        complaint = _misfit(program, x)
        if complaint is None:
            if isinstance(error, NotImplementedError):
                raise
            advice = (
                "one type throughout, in data, parameters and rows"
                if "type" in said
                else f"networks that take rows of {x.shape[-1]} values: compare their sizes with the width of the data"
            )
            complaint = f"{_name(program)} fails on shape {tuple(x.shape)}, {x.dtype}: {said}. Expected {advice}"
        raise MisfitError(f"{name}: {complaint}.") from error


class MisfitError(ValueError):
    """A program and what it was run on do not go together."""


def require_program(program: object) -> None:
    """Refuse what is no Pyro function of x.

    Raises:
        TypeError: it cannot be called.
    """
    if isinstance(program, nn.Module) and type(program).forward is nn.Module.forward:
        hint = f" Pass its {' or '.join(methods)}." if (methods := _methods(program)) else ""
        raise TypeError(
            f"model, guide: expected Pyro functions of x; got {type(program).__name__}, a module without forward.{hint}"
        )
    if not callable(program):
        hint = " A model without an encoder has no guide: use refine or fit_em." if program is None else ""
        raise TypeError(f"model, guide: expected Pyro functions of x; got {type(program).__name__}.{hint}")


def _name(program: object) -> str:
    return getattr(program, "__qualname__", type(program).__name__)


def _not_finite(program: Callable[..., Any]) -> str | None:
    """The name of a parameter, or of a row of parameters, that is not finite, or None."""
    for root in modules_of(program):
        for name, tensor in (*root.named_parameters(), *((n, t) for n, t in root.named_buffers() if n == "table")):
            if not bool(tensor.isfinite().all()):
                return name
    return None


def require_finite_parameters(*programs: Callable[..., Any] | None) -> None:
    """Refuse programs that a run has broken: all that is measured of them would be NaN.

    Raises:
        ValueError: the message names the program and the parameter.
    """
    for program in programs:
        if program is not None and (broken := _not_finite(program)) is not None:
            raise ValueError(
                f"{_name(program)}: expected finite parameters; '{broken}' holds NaN or infinity. Fit it anew, with a "
                "smaller step size."
            )


def _methods(program: nn.Module) -> list[str]:
    return [name for name in ("model", "guide") if callable(getattr(program, name, None))]


def _misfit(program: Callable[..., Any], x: Tensor) -> str | None:
    """How x differs in type or device from all parameters of a program."""
    tensors = [t for root in modules_of(program) for t in (*root.parameters(), *root.buffers())]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if len(dtypes) == 1 and x.dtype not in dtypes:
        (dtype,) = dtypes
        cast = {torch.float32: ".float()", torch.float64: ".double()"}.get(dtype, f".to({dtype})")
        return f"expected {dtype} like the model's parameters; got {x.dtype}. Pass {cast}"
    devices = {tensor.device for tensor in tensors}
    if devices and x.device not in devices:
        return f"expected device {devices.pop()} like the model's parameters; got {x.device}"
    return None


@contextmanager
@exclusively
def frozen(*programs: Callable[..., Any] | None) -> Iterator[None]:
    """What E-steps and measurements run inside: eval mode, a private parameter store, a random state of their own.

    Raises:
        ValueError: a parameter is NaN or infinite.
    """
    require_finite_parameters(*programs)
    with eval_mode(*programs), private_store(*programs), own_random_state():
        yield


def device_of(*programs: Callable[..., Any] | None) -> torch.device:
    """Where the programs' parameters and buffers live; the CPU where they have none."""
    for module in modules_of(*programs):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")
