"""A function of tensors at compiled speed, with the numbers that it has without."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from inference.compiled.facts import Facts
from inference.compiled.precision import Precision, reduced
from inference.compiled.replaying import Replayed, replayable
from inference.compiled.tracing import Function, NotTraceable, Traced, trace, tracing
from inference.noise import own_random_state

__all__ = ["Compile", "Compiled", "inductor", "one_core", "undisturbed", "worthwhile"]

Compile = Literal["auto"] | bool
Outputs = tuple[Tensor | None, ...]

# Compiling takes about ten seconds, and wins about two milliseconds a call.
CALLS_THAT_PAY = 5000
# A shape beside the first one, such as that of an epoch's last batch, is worth compiling when it has come so often.
CALLS_OF_ANOTHER_SHAPE = 100
# A program that changes more often than this between calls is better left alone.
MOST_TRACES = 8
# Operations of a call below which one core does them at least as fast as several whose caches lie
# apart: a tenth of a millisecond's.
ONE_CORE = 5_000_000
# How far compiled values may lie from eager ones, of the largest value: sums are taken in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
REDUCED_TOLERANCE = 0.1
# How many compiled graphs a process keeps.
MOST_KEPT = 64

_kept: OrderedDict[tuple[Any, ...], Callable[..., Sequence[Tensor]]] = OrderedDict()


def worthwhile(compile: Compile, num_calls: float) -> bool:
    """Whether to compile a function that is going to be called so often.

    The answer rests on the number alone, not on any clock, so that one seed goes on fixing a run.

    Args:
        compile: True, False, or "auto": where compiling wins back its seconds.
        num_calls: expected number of calls.

    Raises:
        ValueError: another word.
    """
    if isinstance(compile, bool):
        return compile
    if compile != "auto":
        raise ValueError(f"compile: expected True, False or 'auto'; got {compile!r}.")
    return num_calls >= CALLS_THAT_PAY


# How many there are, where `one_core` keeps operations on one.
_all_cores: ContextVar[int | None] = ContextVar("_all_cores", default=None)
_undisturbed: ContextVar[list[_Entry] | None] = ContextVar("_undisturbed", default=None)


@contextmanager
def undisturbed() -> Iterator[None]:
    """While nothing but compiled code runs: what was found as it was is not looked at again.

    Looking is short, but over networks that fill the caches every object has to come from afar. A call that runs
    without being compiled ends it.
    """
    token = _undisturbed.set([])
    try:
        yield
    finally:
        _undisturbed.reset(token)


@contextmanager
def one_core() -> Iterator[None]:
    """Run torch's operations on one core, this thread's."""
    token = _all_cores.set(_all_cores.get() or torch.get_num_threads())
    try:
        with _threads(1):
            yield
    finally:
        _all_cores.reset(token)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Entry(NamedTuple):
    run: Callable[..., Sequence[Tensor]]
    traced: Traced
    facts: Facts

    def holds(self) -> bool:
        """Whether what was traced is what the function would do now."""
        known = _undisturbed.get()
        if known is None:
            return self.facts.hold()
        if any(entry is self for entry in known):
            return True
        if held := self.facts.hold():
            known.append(self)
        return held


class Compiled:
    """A function of tensors, compiled for each shape of its arguments, which gives the numbers of the function itself.

    The function is run once on tensors without values, under Pyro's handlers, and what it does is written down as a
    graph: forward pass, densities and gradients together. Parameters and buffers are read anew at each call, and random
    numbers drawn as the function draws them, from the same generator. The first call is compared with the function.

    What no graph can stand for runs as it is, and a warning says once why: control flow that depends on values,
    a function that changes Python objects as it runs, a machine without a compiler. A training flag, an attribute or a
    part of a module that changes between calls is noticed, and the function traced anew.

    Args:
        function: of tensors, to a tuple of tensors and Nones; gradients are among its outputs, none flows through them.
        programs: the models, guides and modules that it reaches.
        name: what it does, for the warning.
        compile: False: run the function itself.
        precision: of matrix products.
        patience: calls after which a shape beside the first one is compiled, too.
        at_once: compile the first shape at its first call; else it has to come as often as the others.
        backend: makes a callable of a graph and example inputs.

    Example:
        >>> scale = torch.nn.Parameter(torch.tensor(2.0))
        >>> def slope(x):
        ...     return torch.autograd.grad((scale * x.square()).sum(), scale)
        >>> compiled = Compiled(slope, name="the slope", backend=lambda graph, inputs: graph)
        >>> compiled(torch.tensor([1.0, 2.0]))
        (tensor(5.),)
    """

    def __init__(
        self,
        function: Function,
        *programs: Any,
        name: str,
        compile: bool = True,  # noqa: FBT001, FBT002
        precision: Precision = "float32",
        patience: int = CALLS_OF_ANOTHER_SHAPE,
        at_once: bool = True,
        backend: Callable[[GraphModule, list[Tensor]], Callable[..., Sequence[Tensor]]] | None = None,
    ) -> None:
        self.function = function
        self.programs = programs
        self.name = name
        self.backend = backend or inductor
        self.compile = compile
        self.patience = patience
        self.at_once = at_once
        self.precision = precision
        self.num_traces = 0
        self.reason: str | None = None
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._seen: dict[str, int] = {}
        # Shapes that were compiled in the run that this one goes on from.
        self._owed: set[str] = set()

    @property
    def is_compiled(self) -> bool:
        """Whether a compiled form is in use."""
        return self.reason is None and bool(self._entries)

    @property
    def fits_one_core(self) -> bool:
        """Whether it is compiled, and so little work that a second core would cost more than it saves."""
        return self.is_compiled and all(entry.traced.num_operations < ONE_CORE for entry in self._entries.values())

    def state_dict(self) -> dict[str, Any]:
        """Which shapes have come how often, and which are compiled: a run that goes on has to do the same."""
        compiled = [*self._owed, *(str(key) for key in self._entries)]
        return {"seen": dict(self._seen), "compiled": compiled, "reason": self.reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: what was compiled is compiled at its first call."""
        self._seen = dict(state["seen"])
        self._owed = set(state["compiled"])
        self.reason = state["reason"]

    def __call__(self, *args: Tensor) -> Outputs:
        """The function's outputs at these arguments."""
        if not self.compile or self.reason is not None or tracing.get():
            return self._eager(*args)
        # One layout, so that a shape says all.
        args = tuple(arg.contiguous() for arg in args)
        key = (torch.get_default_dtype(), *[(arg.shape, arg.dtype, arg.device) for arg in args])
        entry = self._entries.get(key)
        if entry is not None and entry.holds():
            return _run(entry, args)
        name = str(key)
        count = self._seen[name] = self._seen.get(name, 0) + 1
        is_patient = (self._entries or self._owed or not self.at_once) and count < self.patience
        if entry is None and is_patient and name not in self._owed:
            return self._eager(*args)
        try:
            return self._compile(key, args)
        except NotTraceable as error:
            self._leave_alone(str(error))
        return self._eager(*args)

    def _eager(self, *args: Tensor) -> Outputs:
        if known := _undisturbed.get():
            known.clear()
        with torch.enable_grad(), reduced(self.precision, args[0].device):
            outputs = self.function(*args)
        return tuple(None if output is None else output.detach() for output in outputs)

    def _compile(self, key: tuple[Any, ...], args: Sequence[Tensor]) -> Outputs:
        if self.num_traces >= MOST_TRACES * max(1, len(self._entries)):
            raise NotTraceable("what it depends on keeps changing from call to call")
        self.num_traces += 1
        facts = Facts(*self.programs)
        traced = trace(self._eager, args, facts)
        inputs = [*(arg.detach() for arg in args), *(tensor.detach() for tensor in traced.captured)]
        with own_random_state():
            inputs += [draw() for draw in traced.draws]
        run = self._from_graph(traced.graph, inputs)
        if replayable(inputs) and not traced.draws_inside:
            # From the first call on, so that a run that goes on from a saved state does what one in one piece does.
            run = self._recorded(run, inputs, slice(len(args), len(args) + len(traced.captured)))
        self._entries[key] = _Entry(run, traced, facts)
        return self._compare(self._entries[key], args)

    def _recorded(
        self, run: Callable[..., Sequence[Tensor]], inputs: list[Tensor], still: slice
    ) -> Callable[..., Sequence[Tensor]]:
        try:
            with torch.no_grad(), own_random_state():
                return Replayed(run, inputs, still)
        except RuntimeError:  # An operation that waits for the device cannot be recorded.
            return run

    def _from_graph(self, graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
        shapes = tuple((value.shape, value.stride(), value.dtype, value.device) for value in inputs)
        key = (self.backend, graph.code, shapes)
        if key not in _kept:
            try:
                # For all cores wherever it is first called: the order of its sums depends on their number.
                with torch.no_grad(), warnings.catch_warnings(), _threads(_all_cores.get() or torch.get_num_threads()):
                    warnings.simplefilter("ignore")
                    _kept[key] = self.backend(graph, inputs)
            except Exception as error:
                raise NotTraceable(_no_compiler(error)) from error
            if len(_kept) > MOST_KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return _kept[key]

    def _compare(self, entry: _Entry, args: Sequence[Tensor]) -> Outputs:
        """Run both forms from one state of everything, and leave a function alone whose compiled form differs.

        What it drew and wrote must not be done twice: the function's own outputs are those of this call then.
        """
        captured = entry.traced.captured
        before = [tensor.detach().clone() for tensor in captured]
        with own_random_state():
            try:
                compiled = _run(entry, args)
            except Exception as error:
                raise NotTraceable(_no_compiler(error)) from error
            finally:
                written = [tensor.detach().clone() for tensor in captured]
                with torch.no_grad():
                    for tensor, value in zip(captured, before, strict=True):
                        tensor.copy_(value)
        eager = self._eager(*args)
        pairs = [*zip(compiled, eager, strict=True), *zip(written, captured, strict=True)]
        if (change := entry.facts.change()) is not None:
            self._leave_alone(f"it changes {change} as it runs")
        elif any((ours is None) != (theirs is None) or self._differ(ours, theirs) for ours, theirs in pairs):
            self._leave_alone(
                "its compiled form gives other numbers: it may depend on random numbers that are not torch's, or on "
                "something that changes from call to call"
            )
        if self.reason is not None:
            return eager
        # As every later call: what is written, too, is the compiled form's, to the bit.
        with torch.no_grad():
            for tensor, value in zip(captured, written, strict=True):
                tensor.copy_(value)
        return compiled

    def _differ(self, ours: Tensor | None, theirs: Tensor | None) -> bool:
        if ours is None or theirs is None:
            return False
        ours, theirs = ours.detach(), theirs.detach()
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return True
        if not ours.is_floating_point():
            return not torch.equal(ours, theirs)
        finite = theirs.isfinite()
        if not torch.equal(finite, ours.isfinite()):
            return True
        if not bool(finite.any()):
            return False
        tolerance = REDUCED_TOLERANCE if self.precision != "float32" else TOLERANCE.get(ours.dtype, REDUCED_TOLERANCE)
        error, scale = (ours - theirs)[finite].abs().max(), theirs[finite].abs().max()
        return bool(error > tolerance * scale.clamp_min(1e-6))

    def _leave_alone(self, reason: str) -> None:
        self.reason = reason
        self._entries.clear()
        warnings.warn(f"compile: {self.name} runs without being compiled: {reason}.", RuntimeWarning, stacklevel=4)


def inductor(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """TorchInductor's form of a graph."""
    # Imported where it is needed: it takes seconds, and says on every machine without a GPU that there is none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch import _inductor

    # With random numbers of torch's own generators, and without a pool of processes for a few small kernels.
    options = {"fallback_random": True, "compile_threads": 1}
    return _inductor.compile(graph, inputs, options=options)  # type: ignore[arg-type, return-value]


@torch.no_grad()
def _run(entry: _Entry, args: Sequence[Tensor]) -> Outputs:
    traced = entry.traced
    inputs = [*args, *traced.captured, *[draw() for draw in traced.draws]]
    outputs = iter(entry.run(*[value.detach() for value in inputs]))
    return tuple(next(outputs) if here else None for here in traced.present)


def _no_compiler(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"TorchInductor cannot compile it here ({type(error).__name__}: {text[0] if text else 'no message'})"
