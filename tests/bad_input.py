"""Cases of bad input: what is called with what, and the error or the answer that must come of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

__all__ = ["Case", "check"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call.

    Attributes:
        of: name of the public callable, as `inference.elbo`.
        what: is odd about the input.
        call: makes it.
        error: what the message of the error says, as a regular expression; None: the answer is right.
        kind: type of the error.
        clean: a call without the oddity, whose answer this one's must equal.
        tolerance: by how much it may differ, relative to it.
    """

    of: str
    what: str
    call: Callable[[], Any]
    error: str | None = None
    kind: type[Exception] | tuple[type[Exception], ...] = ValueError
    clean: Callable[[], Any] | None = None
    tolerance: float = 0.0

    def __str__(self) -> str:
        return f"{self.of}: {self.what}"


def check(case: Case) -> None:
    """Make the call, and hold what comes of it against what the case says."""
    if case.error is not None:
        with pytest.raises(case.kind, match=re.compile(case.error, re.DOTALL)) as caught:
            case.call()
        # A subclass would do for `raises`: an OSError that says "no such file" is one thing, a crash another.
        raw = (AttributeError, KeyError, IndexError, RuntimeError, AssertionError)
        said = case.kind if isinstance(case.kind, tuple) else (case.kind,)
        assert any(issubclass(kind, raw) for kind in said) or not isinstance(caught.value, raw), repr(caught.value)
        return
    torch.manual_seed(0)
    came = case.call()
    if case.clean is not None:
        torch.manual_seed(0)
        require_equal(came, case.clean(), case.tolerance)


def require_equal(came: Any, expected: Any, tolerance: float, where: str = "answer") -> None:
    """Hold two answers against each other: tensors, arrays, numbers, and what consists of them."""
    if isinstance(expected, dict):
        assert set(came) == set(expected), where
        for name in expected:
            require_equal(came[name], expected[name], tolerance, f"{where}[{name!r}]")
    elif isinstance(expected, tuple | list):
        assert len(came) == len(expected), where
        for i, (one, other) in enumerate(zip(came, expected, strict=True)):
            require_equal(one, other, tolerance, f"{where}[{i}]")
    elif isinstance(expected, torch.Tensor | np.ndarray | float | int):
        one, other = (torch.as_tensor(value).detach().double() for value in (came, expected))
        assert one.shape == other.shape, where
        torch.testing.assert_close(
            one, other, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{where}: {m}"
        )
    else:
        assert came == expected, where
