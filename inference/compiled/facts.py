"""What a program's run depends on besides the values of tensors: a trace of it holds while these stay as they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inference.isolation import modules_of, reached_by

__all__ = ["Facts"]

_MISSING = object()
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
# What users put into these libraries stands in attributes of modules; the rest is for their authors to look after.
_LIBRARIES = {"torch", "pyro", "inference", "pyro_vae"} | sys.stdlib_module_names
# What torch keeps in a module for its own ends.
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"training"}
# A new part may be used, and a hook would run with the module.
_MODULE_DICTIONARIES = (
    *("_parameters", "_buffers", "_modules"),
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
)


class _Entry(NamedTuple):
    """A value, and where it stands."""

    mapping: Any
    key: Any
    value: Any
    where: str


class Facts:
    """Training flags, attributes, parts and tensors of the modules that programs reach, and what their functions name.

    Each value is held, so that `is` can tell whether it is still there: comparing a few hundred takes microseconds.

    Args:
        programs: models, guides and others.
    """

    def __init__(self, *programs: Any) -> None:
        self._entries: list[_Entry] = []
        self._contents: list[tuple[Any, list[Any], str]] = []
        self._tensors: list[tuple[Tensor, str]] = []
        self._modules: list[dict[str, Any]] = []
        self._sized: list[tuple[Any, str]] = []
        seen: set[int] = set()
        called: list[Any] = []
        for root in modules_of(*programs):
            for path, module in root.named_modules():
                if id(module) not in seen:
                    seen.add(id(module))
                    self._look_into(module, ".".join(filter(None, (type(root).__name__, path))))
                    called += _called_by(module)
        for value in reached_by(*programs, *called):
            if isinstance(value, FunctionType):
                self._look_at_names(value, seen)
            elif not isinstance(value, nn.Module | list | tuple | dict | set) and _is_users(type(value)):
                for key, part in list(getattr(value, "__dict__", {}).items()):
                    self._keep(vars(value), key, part, f"{type(value).__name__}.{key}")
        self._snapshot()

    def hold(self) -> bool:
        """Whether everything is as it was."""
        return (
            list(chain.from_iterable(map(dict.values, self._modules))) == self._module_values
            and [len(parts) for parts, _ in self._sized] == self._sizes
            and all(_equal(entry.mapping.get(entry.key, _MISSING), entry.value) for entry in self._elsewhere)
            and all(_same_content(container, content) for container, content, _ in self._contents)
            and [_describe(tensor) for tensor, _ in self._tensors] == self._described
        )

    def change(self) -> str | None:
        """The first thing that is not as it was, in words, or None."""
        for entry in self._entries:
            if not _equal(entry.mapping.get(entry.key, _MISSING), entry.value):
                return entry.where
        for container, content, where in self._contents:
            if not _same_content(container, content):
                return where
        for (parts, where), size in zip(self._sized, self._sizes, strict=True):
            if len(parts) != size:
                return where
        for (tensor, where), description in zip(self._tensors, self._described, strict=True):
            if _describe(tensor) != description:
                return where
        return None

    def tensors(self) -> list[Tensor]:
        """Parameters, buffers and other tensors."""
        return [tensor for tensor, _ in self._tensors]

    def restore(self) -> list[_Entry]:
        """Put back the tensors, and what holds tensors, that a run has left elsewhere; returns what stood there before.

        Some modules remember their last call. After a trace that would be tensors without values.
        """
        changed = [
            entry
            for entry in self._entries
            if not isinstance(entry.value, _PLAIN) and entry.mapping.get(entry.key, _MISSING) is not entry.value
        ]
        for container, content, where in self._contents:
            for key, value in _places(container, content):
                if isinstance(value, Tensor) and not any(value is part for part in _content(container)):
                    changed.append(_Entry(container, key, value, where))
        for entry in changed:
            entry.mapping[entry.key] = entry.value
        for attributes, known in zip(self._modules, self._names, strict=True):
            for name in [name for name in attributes if name not in known]:
                if not isinstance(attributes[name], _PLAIN):
                    changed.append(_Entry(attributes, name, None, f"attribute '{name}'"))
                    del attributes[name]
        return changed

    def ignore(self, entries: list[_Entry]) -> None:
        """Do not look at these any more."""
        places = {(id(entry.mapping), entry.key) for entry in entries}
        self._entries = [entry for entry in self._entries if (id(entry.mapping), entry.key) not in places]
        restless = {id(entry.mapping) for entry in entries}
        self._modules = [mapping for mapping in self._modules if id(mapping) not in restless]
        self._snapshot()

    def _snapshot(self) -> None:
        """What `hold` compares: of most modules all values at once, since a list finds the same objects equal fast."""
        at_once = {id(mapping) for mapping in self._modules}
        self._module_values = list(chain.from_iterable(map(dict.values, self._modules)))
        self._elsewhere = [
            entry for entry in self._entries if id(entry.mapping) not in at_once or isinstance(entry.value, Tensor)
        ]
        self._names = [frozenset(attributes) for attributes in self._modules]
        self._sizes = [len(parts) for parts, _ in self._sized]
        self._described = [_describe(tensor) for tensor, _ in self._tensors]

    def _look_into(self, module: nn.Module, name: str) -> None:
        self._modules.append(vars(module))
        for parts in (module._parameters, module._buffers, module._modules):
            for key, value in parts.items():
                self._keep(parts, key, value, f"{name}.{key}")
        self._sized += [(vars(module)[key], f"{name}.{key}") for key in _MODULE_DICTIONARIES]
        for key, value in vars(module).items():
            if key not in _BOOKKEEPING:
                self._keep(vars(module), key, value, f"{name}.{key}")
        if _is_users(type(module)):
            for method in vars(type(module)).values():
                if isinstance(method, FunctionType):
                    self._look_at_names(method, set())

    def _look_at_names(self, function: FunctionType, seen: set[int]) -> None:
        if id(function) in seen or not _is_users(function):
            return
        seen.add(id(function))
        for mapping, key, value in _names_in(function):
            if not isinstance(value, ModuleType | type):
                self._keep(mapping, key, value, f"'{key}' in {function.__qualname__}")

    def _keep(self, mapping: Any, key: Any, value: Any, where: str) -> None:
        self._entries.append(_Entry(mapping, key, value, where))
        if isinstance(value, Tensor):
            self._tensors.append((value, where))
        elif isinstance(value, list | dict | set):
            self._contents.append((value, _content(value), where))


def _called_by(module: nn.Module) -> list[Any]:
    """Functions that run with a module: its hooks, and those put into its attributes."""
    hooks = [hook for key in _MODULE_DICTIONARIES[3:] for hook in vars(module)[key].values()]
    return hooks + [value for value in vars(module).values() if isinstance(value, FunctionType | MethodType | partial)]


def _is_users(definition: type | FunctionType) -> bool:
    return str(definition.__module__).partition(".")[0] not in _LIBRARIES


def _names_in(function: FunctionType) -> Iterator[tuple[Any, Any, Any]]:
    """What a function's code names that may be bound to something else one day: globals, closures, defaults."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for name in code.co_names:
            if name in function.__globals__:
                yield function.__globals__, name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        variable = _Variable(cell)
        if (value := variable.get(name)) is not _MISSING:
            yield variable, name, value
    defaults: Mapping[str, Any] = function.__kwdefaults__ or {}
    yield from ((defaults, name, value) for name, value in defaults.items())


class _Variable:
    """A closure's cell, read and written as a mapping of one name."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def get(self, key: Any, default: Any = _MISSING) -> Any:  # noqa: ARG002
        try:
            return self.cell.cell_contents
        except ValueError:  # A name that is not bound any more.
            return default

    def __setitem__(self, key: Any, value: Any) -> None:
        self.cell.cell_contents = value


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and isinstance(one, _PLAIN) and one == other


def _content(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else list(container)


def _places(container: Any, content: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Where each value of the content stood."""
    if isinstance(container, dict):
        half = len(content) // 2
        return zip(content[:half], content[half:], strict=True)
    return iter(enumerate(content) if isinstance(container, list) else ())


def _same_content(container: Any, content: list[Any]) -> bool:
    now = _content(container)
    return len(now) == len(content) and all(map(_equal, now, content))


def _describe(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.requires_grad, tensor.shape, tensor.stride(), tensor.dtype, tensor.device
