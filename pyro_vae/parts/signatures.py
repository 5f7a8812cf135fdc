"""What the constructor of a part says: its arguments, and their descriptions."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

__all__ = ["descriptions", "factory", "needs", "parameters", "summary"]


def factory(part: type[nn.Module]) -> Any:
    """What makes a part: its `from_context` where it has one, else its constructor."""
    return getattr(part, "from_context", part)


def parameters(part: type[nn.Module]) -> list[inspect.Parameter]:
    """The arguments of what makes a part."""
    known = inspect.signature(factory(part)).parameters.values()
    # A class without a constructor has nn.Module's *args and **kwargs.
    return [p for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def needs(part: type[nn.Module], name: str) -> bool:
    """Whether what makes a part takes an argument of this name."""
    return any(parameter.name == name for parameter in parameters(part))


def summary(part: type[nn.Module]) -> str:
    """The first paragraph of a part's docstring, on one line."""
    return inspect.cleandoc(part.__doc__ or part.__name__).split("\n\n")[0].replace("\n", " ").replace("`", "")


def descriptions(docstring: str | None) -> dict[str, str]:
    """The entries of a docstring's `Args:` section, each on one line."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", inspect.cleandoc(docstring or "") + "\n", re.MULTILINE)
    entries = re.findall(r"^[ ]{4}(\w+):((?:.*\n)(?:^[ ]{5,}.*\n)*)", section.group(1) if section else "", re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for name, text in entries}
