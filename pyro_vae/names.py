"""Names as a command line writes them, and what is near to a wrong one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "kebab"]


def kebab(name: str) -> str:
    """The name of a class with hyphens.

    Example:
        >>> kebab("MLP"), kebab("StandardNormal")
        ('mlp', 'standard-normal')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A question after the nearest name, or nothing.

    Example:
        >>> did_you_mean("pior", ["prior", "family"])
        " Did you mean 'prior'?"
    """
    close = get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
