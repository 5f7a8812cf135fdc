"""A study from a file; what is wrong with it is said with its line."""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pyro_vae.names import did_you_mean
from pyro_vae.study.grid import Study, require_axis

__all__ = ["read_study"]

_KEYS = tuple(Study.__dataclass_fields__)


class _Loader(yaml.SafeLoader):
    """YAML, where 3e-3 is a number: YAML 1.1 wants 3.0e-3, and reads the other as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_study(path: str | Path) -> Study:
    """Read a study from a YAML file, or from the variable `study` of a Python file.

    The keys of a YAML file are the arguments of `Study`. A Python file is run.

    Args:
        path: a file that ends in .yaml, .yml or .py.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else than a study; of a YAML file the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a study file; there is none. The shortest holds two lines: data: digits, and "
            "axes: {seed: [0, 1, 2]}."
        )
    if path.suffix == ".py":
        found = runpy.run_path(str(path)).get("study")
        if not isinstance(found, Study):
            came = "none" if found is None else type(found).__name__
            raise ValueError(f"{path}: expected a variable study that holds a pyro_vae.study.Study; got {came}.")
        return found
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{path}: expected a file that ends in .yaml, .yml or .py.")
    try:
        root, values = _parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML; {' '.join(str(error).split())}.") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}: expected keys, among {', '.join(_KEYS)}; got {type(values).__name__}.")
    _require_keys(path, root, values)
    try:
        return Study(**values)
    except (TypeError, ValueError) as error:
        line = _line(root, values)
        raise ValueError(f"{path}{'' if line is None else f', line {line}'}: {error}") from error


def _parse(text: str) -> tuple[Any, Any]:
    """The nodes, which know their lines, and the values."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _require_keys(path: Path, root: Any, values: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Known keys and axes, each once, and those that a study cannot do without."""
    _require_single(path, root)
    nodes = _nodes(path, root)
    for name, (line, _) in nodes.items():
        if name not in _KEYS:
            raise ValueError(
                f"{path}, line {line}: expected a key among {', '.join(_KEYS)}; got {name!r}."
                f"{did_you_mean(name, _KEYS)}"
            )
    if "data" not in values:
        raise ValueError(f"{path}: expected data, a name or a path. Add for example data: digits.")
    if "axes" not in values:
        raise ValueError(f"{path}: expected axes, along which cells differ. Add for example axes: {{seed: [0, 1, 2]}}.")
    line, axes = nodes["axes"]
    if not isinstance(axes, yaml.MappingNode):
        raise ValueError(f"{path}, line {line}: axes: expected names, each with a list of values.")
    for axis, (line, _) in _nodes(path, axes).items():
        try:
            require_axis(axis)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error


def _require_single(path: Path, node: Any) -> None:  # noqa: ANN401
    """No key twice at any depth, of which YAML would keep the last without a word."""
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [value for _, value in _nodes(path, node).values()]
    for child in children:
        _require_single(path, child)


def _nodes(path: Path, mapping: Any) -> dict[Any, tuple[int, Any]]:  # noqa: ANN401
    """Line and value of every key."""
    found: dict[Any, tuple[int, Any]] = {}
    for key, value in mapping.value:
        line = key.start_mark.line + 1
        name = key.value if isinstance(key, yaml.ScalarNode) else str(key.value)
        if name in found:
            raise ValueError(f"{path}, line {line}: {name} stands there twice, first in line {found[name][0]}.")
        found[name] = line, value
    return found


def _line(root: Any, values: Mapping[str, Any]) -> int | None:  # noqa: ANN401
    """The line of what a study refuses, found by leaving out and by trying alone; None where it is in no one place."""
    nodes = {key.value: (key.start_mark.line + 1, value) for key, value in root.value}
    plain: dict[str, Any] = {**values, "axes": {"seed": [0]}}
    if not _is_sound(plain):
        for name in (name for name in plain if name != "axes"):
            rest = {key: value for key, value in plain.items() if key != name}
            if _is_sound({"data": "digits", **rest}):
                return nodes[name][0]
        return None
    for key, value in nodes["axes"][1].value:
        items = values["axes"][key.value]
        for item, node in zip(items, value.value, strict=False) if isinstance(value, yaml.SequenceNode) else ():
            if not _is_sound({**plain, "axes": {key.value: [item]}}):
                return node.start_mark.line + 1
        if not _is_sound({**plain, "axes": {key.value: items}}):
            return key.start_mark.line + 1
    return None


def _is_sound(values: Mapping[str, Any]) -> bool:
    try:
        Study(**values)
    except (TypeError, ValueError):
        return False
    return True
