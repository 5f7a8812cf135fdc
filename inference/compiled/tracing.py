"""One run of a function of tensors, written down as a graph without Python."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from inference.compiled.decompositions import CHEAPER
from inference.compiled.facts import Facts
from inference.compiled.products import by_rows_of_weights, num_operations

__all__ = ["Function", "NotTraceable", "Traced", "trace", "tracing"]

# Of tensors, to tensors and Nones through which no gradient flows.
Function = Callable[..., tuple[Tensor | None, ...]]

_aten = torch.ops.aten
# Fresh tensors that something is drawn into, in place.
_FILLS = {
    _aten.normal_.default,
    _aten.uniform_.default,
    _aten.exponential_.default,
    _aten.cauchy_.default,
    _aten.log_normal_.default,
    _aten.geometric_.default,
    _aten.bernoulli_.float,
    _aten.random_.default,
    _aten.random_.to,
    getattr(_aten.random_, "from"),
}
_EMPTY = {_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default, _aten.empty_strided.default}
# Draws that depend on values of the graph stay in it.
_INSIDE = {
    _aten.bernoulli.default,
    _aten.bernoulli.p,
    _aten.native_dropout.default,
    _aten.multinomial.default,
    _aten.poisson.default,
    _aten.binomial.default,
    _aten._standard_gamma.default,
    _aten._sample_dirichlet.default,
    _aten.normal.Tensor_Tensor,
    _aten.normal.Tensor_float,
    _aten.normal.float_Tensor,
}
_OWN = tuple(str(Path(importlib.import_module(name).__file__ or "").parent) for name in ("torch", "pyro", "inference"))


# Whether a trace is being made: what is compiled by itself then runs as it is, and becomes a part of it.
tracing: ContextVar[bool] = ContextVar("tracing", default=False)


class NotTraceable(Exception):
    """A run that no graph can stand for; the message says why, for a user."""


@dataclass(frozen=True)
class Traced:
    """A graph, and what it takes besides the arguments.

    Attributes:
        graph: maps the arguments, then the captured tensors, then the draws, to the outputs that are not None.
        captured: tensors that the function reached by itself, such as a module's parameters.
        draws: make fresh random numbers, in the order in which the function drew them.
        present: for each output of the function, whether it is a tensor rather than None.
        num_operations: about how many it takes.
        draws_inside: whether the graph draws random numbers itself, by values that it computes.
    """

    graph: GraphModule
    captured: list[Tensor]
    draws: list[Callable[[], Tensor]]
    present: list[bool]
    num_operations: int
    draws_inside: bool


def trace(function: Function, args: Sequence[Tensor], facts: Facts) -> Traced:
    """Run the function once, on tensors without values, and write down what it does.

    Args:
        function: of tensors; it may reach others, draw random numbers and differentiate.
        args: its arguments, for their shapes, types and devices.
        facts: what its programs depend on.

    Raises:
        NotTraceable: what the function does depends on values, or changes something besides tensors.
    """
    store = set(pyro.get_param_store().keys())
    # Some writing in place, such as counting batches, is done all the same.
    buffers = [(tensor, tensor.detach().clone()) for tensor in facts.tensors() if not isinstance(tensor, nn.Parameter)]
    token = tracing.set(True)
    try:
        with _pyro_on_tensors_without_values(), pyro.validation_enabled(is_validate=False):
            record = make_fx(function, decomposition_table=CHEAPER, tracing_mode="fake", _allow_non_fake_inputs=True)
            graph = record(*args)
    except NotTraceable:
        facts.restore()
        raise
    except Exception as error:
        facts.restore()
        raise NotTraceable(_reason(error)) from error
    finally:
        tracing.reset(token)
        _write(buffers)
    remembered = facts.restore()
    if (change := facts.change()) is not None:
        raise NotTraceable(f"it changes {change} as it runs")
    if set(pyro.get_param_store().keys()) != store:
        raise NotTraceable("it makes parameters as it runs, by pyro.param or a lazy module")
    facts.ignore(remembered)
    present = _present_outputs(graph)
    captured = _lift_captured(graph)
    draws = _lift_draws(graph)
    kept = {id(entry.value) for entry in remembered}
    if any(id(tensor) in kept for tensor in captured):
        raise NotTraceable(f"it carries {remembered[0].where} from one run to the next")
    for node in reversed(graph.graph.nodes):
        if not node.users and not _must_stay(node):
            graph.graph.erase_node(node)
    captured = _used(graph, captured, skip=len(args))
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    by_rows_of_weights(graph, inputs[len(args) : len(args) + len(captured)])
    graph.recompile()
    draws_inside = any(_is_random(node) for node in graph.graph.nodes)
    return Traced(graph, captured, draws, present, num_operations(graph), draws_inside)


@contextmanager
def _pyro_on_tensors_without_values() -> Iterator[None]:
    """Let Pyro's ELBOs hand tensors through where they ask for a number, which is for their report alone."""
    names = {base.__module__ for kind in (TraceGraph_ELBO, TraceMeanField_ELBO) for base in kind.__mro__}
    with ExitStack() as stack:
        for name in names:
            module = importlib.import_module(name)
            for attribute, replacement in (("torch_item", _detached), ("warn_if_nan", _nothing)):
                if hasattr(module, attribute):
                    stack.callback(setattr, module, attribute, getattr(module, attribute))
                    setattr(module, attribute, replacement)
        yield


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _nothing(*_: Any) -> None:
    pass


@torch.no_grad()
def _write(values: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in values:
        tensor.copy_(value)


def _present_outputs(graph: GraphModule) -> list[bool]:
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    outputs = list(output.args[0])
    output.args = (tuple(value for value in outputs if value is not None),)
    return [value is not None for value in outputs]


def _lift_captured(graph: GraphModule) -> list[Tensor]:
    """Turn every tensor that the graph holds into an input: it is read anew at each call."""
    inputs: dict[int, Node] = {}
    captured: list[Tensor] = []
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target)
        if id(tensor) not in inputs:
            inputs[id(tensor)] = _new_input(graph, f"captured_{len(captured)}", node)
            captured.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.graph.erase_node(node)
    return captured


def _used(graph: GraphModule, captured: list[Tensor], *, skip: int) -> list[Tensor]:
    """Those of the captured tensors that the graph still reads or writes; the inputs of the others go."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"][skip:]
    # The draws' come after theirs.
    pairs = list(zip(inputs, captured, strict=False))
    unused = [node for node, _ in pairs if not node.users]
    used = [tensor for node, tensor in pairs if node.users]
    for node in unused:
        graph.graph.erase_node(node)
    return used


def _lift_draws(graph: GraphModule) -> list[Callable[[], Tensor]]:
    """Turn random numbers that depend on nothing into inputs: the same calls draw them, before each run.

    So they are those of the function itself, whatever becomes of the graph.
    """
    draws: list[Callable[[], Tensor]] = []
    for node in list(graph.graph.nodes):
        if not _is_random(node) or node.target in _INSIDE:
            continue
        base = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if not node.all_input_nodes:
            draws.append(_caller(node))
        elif node.target in _FILLS and node.all_input_nodes == [base] and _is_fresh(base, node):
            draws.append(_filler(node))
        elif str(node.target).split(".")[1] in ("randn_like", "rand_like"):
            draws.append(_caller(node, like=True))
        else:
            raise NotTraceable(f"it draws random numbers by {node.target}, which is not known here")
        fresh = _new_input(graph, f"draw_{len(draws) - 1}", node)
        if node.target in _FILLS and base is not None:
            base.replace_all_uses_with(fresh)
        node.replace_all_uses_with(fresh)
        graph.graph.erase_node(node)
    return draws


def _caller(node: Node, *, like: bool = False) -> Callable[[], Tensor]:
    target, args, kwargs = node.target, node.args, node.kwargs
    if like:
        value = node.meta["val"]
        target = torch.randn if "randn" in str(target) else torch.rand
        args, kwargs = (tuple(value.shape),), {"dtype": value.dtype, "device": value.device}
    return lambda: target(*args, **kwargs)  # type: ignore[operator]


def _filler(node: Node) -> Callable[[], Tensor]:
    value, fill, args, kwargs = node.meta["val"], node.target, node.args[1:], node.kwargs
    shape, dtype, device = tuple(value.shape), value.dtype, value.device
    return lambda: fill(torch.empty(shape, dtype=dtype, device=device), *args, **kwargs)  # type: ignore[operator]


def _new_input(graph: GraphModule, name: str, like: Node) -> Node:
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1:]
    with graph.graph.inserting_after(last[0]) if last else graph.graph.inserting_before(next(iter(graph.graph.nodes))):
        node = graph.graph.placeholder(name)
    node.meta = dict(like.meta)
    return node


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _is_fresh(base: Node | None, filled_by: Node) -> bool:
    """Whether nothing was in the tensor before."""
    return base is not None and base.target in _EMPTY and next(iter(base.users)) is filled_by


def _must_stay(node: Node) -> bool:
    """Whether it counts although nobody reads it: writing in place, into a module's buffer for example."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)


def _reason(error: Exception) -> str:
    """Why a run cannot be written down, in words, and where in the user's code."""
    kind = type(error).__name__
    if kind in ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException"):
        why = "what it does depends on values of tensors (control flow, .item(), or a shape that they decide)"
    else:
        why = f"it cannot be traced ({kind}: {str(error).splitlines()[0] if str(error) else 'no message'})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OWN)]
    place = f", in {frames[-1].name}, {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return why + place
