"""Values of options as JSON has them, taken as the types that the options have."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pyro_vae.names import did_you_mean

__all__ = ["coerce"]


def coerce(value: object, hint: Any, where: str) -> Any:
    """The value as the type of its option: JSON has lists for tuples, and writes 1.0 as 1."""
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        for member in arguments:
            try:
                return coerce(value, member, where)
            except ValueError:
                continue
        raise ValueError(f"{where}: expected {' or '.join(_type_name(member) for member in arguments)}; got {value!r}.")
    if get_origin(hint) is Literal:
        if value in arguments:
            return value
        names = dict.fromkeys(map(str, arguments))
        raise ValueError(
            f"{where}: expected one of {', '.join(names)}; got {value!r}.{did_you_mean(str(value), names)}"
        )
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        members = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(members) == len(value):
            pairs = enumerate(zip(value, members, strict=True))
            return tuple(coerce(item, member, f"{where}[{i}]") for i, (item, member) in pairs)
    elif isinstance(hint, type) and isinstance(value, bool) == (hint is bool):
        if isinstance(value, hint):
            return value
        if hint is float and isinstance(value, int):
            return float(value)
    raise ValueError(f"{where}: expected {_type_name(hint)}; got {value!r}.")


def _type_name(hint: Any) -> str:
    if hint is NoneType:
        return "None"
    return str(hint) if get_args(hint) else hint.__name__
