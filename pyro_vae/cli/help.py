"""What tyro's help of a verb says there is."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import tyro

__all__ = ["CONFIG", "choices_in", "help_of", "options_in", "parts_in"]

# Options may follow the parts.
CONFIG = (tyro.conf.CascadeSubcommandArgs,)


def help_of(command: Any, parts: list[str]) -> str:  # noqa: ANN401
    """The help of a verb when these parts are named.

    Args:
        command: the verb's class.
        parts: such as `prior:laplace`.
    """
    found = io.StringIO()
    with contextlib.redirect_stdout(found), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        tyro.cli(command, args=[*parts, "--help"], config=CONFIG)
    return found.getvalue()


def options_in(text: str) -> list[str]:
    """The options that a help lists; those that a description mentions stand further right."""
    return list(dict.fromkeys(re.findall(r"^(?:│ | {1,3})(--[a-z][\w.-]*)", text, re.MULTILINE)))


def choices_in(text: str) -> dict[str, list[str]]:
    """What may follow an option, where its help names it in braces; under "", what may stand where no option does."""
    found = re.findall(r"^(?:│ | {1,3})(?:(--[a-z][\w.-]*) )?\[?\{([\w,.-]+)\}(?!\|)", text, re.MULTILINE)
    return {option: names.split(",") for option, names in found}


def parts_in(text: str) -> dict[str, list[str]]:
    """The parts that a help lists, by their kind, such as `{"prior": ["prior:laplace", ...]}`."""
    kinds: dict[str, list[str]] = {}
    for part, kind in re.findall(r"^\W*(([a-z.]+):[a-z][a-z-]*)", text, re.MULTILINE):
        if part not in kinds.setdefault(kind, []):
            kinds[kind].append(part)
    return kinds
